"""In which order Keras feeds the rows of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from tensorflow.python.eager import context

from gridfleet.worker.compiled_fit.releases import untested_release
from gridfleet.worker.compiled_fit.types import Order, Orders, Shuffle

#: TensorFlow's largest seed (tensorflow/python/framework/random_seed.py).
MAX_SEED = 2**31 - 1
#: Rows and seed for which our order is compared with the adapter's, once in a process.
PROBE_ROWS, PROBE_SEED = 37, 20_261_124
#: The algorithm of TensorFlow's seeded kernels (tensorflow/core/framework/rng_alg.h): Philox4x32-10.
PHILOX = 1


def epoch_orders(n_samples: int, batch_size: int, shuffle: Shuffle) -> Callable[[int], Orders]:
    """Return what draws the orders of the rows in the next epochs: thousands of epochs may never be run.

    Under a global seed (``keras.utils.set_random_seed``) Keras on TensorFlow draws the same permutation in every
    epoch, since each epoch starts the same dataset anew. Without one, every epoch gets a fresh permutation.

    Parameters
    ----------
    n_samples : int
        Rows of the training data.
    batch_size : int
        Rows of a batch; matters for ``shuffle="batch"``, which permutes the rows within each batch.
    shuffle : bool or "batch"
        As in Keras' ``fit``.

    Returns
    -------
    callable
        Takes a number of epochs; returns an ndarray of shape (1, n_samples), one row if all have the same order, or
        (n_epochs, n_samples). The seed is that of now.
    """
    if not shuffle:
        return _always(np.arange(n_samples, dtype=np.int64))
    seed = context.global_seed()
    if seed is not None:
        if shuffle == "batch" or not _order_is_keras():
            return _always(_order_of_adapter(n_samples, batch_size, shuffle))
        return _always(seeded_order(n_samples, seed))
    generator = np.random.default_rng()

    def one_order() -> Order:
        if shuffle == "batch":
            return _shuffled_within_batches(n_samples, batch_size, generator)
        return generator.permutation(n_samples).astype(np.int64, copy=False)

    return lambda n_epochs: np.stack([one_order() for _ in range(n_epochs)])


def _always(order: Order) -> Callable[[int], Orders]:
    return lambda _: order[None]


@lru_cache(maxsize=64)
def seeded_order(n_samples: int, seed: int) -> Order:
    """Return the permutation that ``tf.random.shuffle`` draws inside a dataset under a global seed.

    The kernel draws 32-bit numbers from Philox4x32-10 and swaps by Fisher and Yates from the front
    (tensorflow/core/kernels/random_shuffle_op.cc); the seed of the operation is 0, for it is the first one
    of its graph.

    Parameters
    ----------
    n_samples : int
        Length of the permutation.
    seed : int
        The global seed.

    Returns
    -------
    ndarray of shape (n_samples,)
    """
    operation_seed = 0
    seed %= MAX_SEED
    if seed == 0:  # TensorFlow takes (0, 0) for "no seed"
        operation_seed = MAX_SEED
    draws = _draws(seed, operation_seed, n_samples - 1).astype(np.uint64)
    first = np.arange(n_samples - 1)
    swaps = (draws % np.arange(n_samples, 1, -1, dtype=np.uint64)).astype(np.int64) + first
    order = list(range(n_samples))
    for one, other in enumerate(swaps.tolist()):
        order[one], order[other] = order[other], order[one]
    return np.array(order, dtype=np.int64)


def _draws(seed: int, operation_seed: int, count: int) -> npt.NDArray[np.uint32]:
    """Draw 32-bit numbers as the kernel of ``tf.random.shuffle`` does."""
    with tf.device("CPU"):
        numbers = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=tf.constant([count]),
            key=tf.constant([int(seed)], tf.uint64),
            counter=tf.constant([0, operation_seed], tf.uint64),
            alg=tf.constant(PHILOX),
            dtype=tf.uint32,
        )
    return np.asarray(numbers)


@lru_cache(maxsize=1)
def _order_is_keras() -> bool:
    """Whether this release of Keras and TensorFlow still draws the order that we compute."""
    if untested_release() is None:
        return True  # the test of this file has compared them; here it would take an eighth of a first call
    seed, generator = context.global_seed(), context.context()._rng
    tf.random.set_seed(PROBE_SEED)
    try:
        drawn = _order_of_adapter(PROBE_ROWS, PROBE_ROWS, True)
    finally:
        tf.random.set_seed(seed)
        context.context()._rng = generator  # a seed starts it anew, and it is the model's
    return bool(np.array_equal(drawn, seeded_order(PROBE_ROWS, PROBE_SEED)))


def _order_of_adapter(n_samples: int, batch_size: int, shuffle: Shuffle) -> Order:
    """Ask Keras' own dataset; 16 to 40 ms."""
    adapter = ArrayDataAdapter(np.arange(n_samples), batch_size=batch_size, shuffle=shuffle)
    batches = [np.atleast_1d(tf.nest.flatten(batch)[0].numpy()) for batch in adapter.get_tf_dataset()]
    return np.concatenate(batches).astype(np.int64)


def _shuffled_within_batches(n_samples: int, batch_size: int, generator: np.random.Generator) -> Order:
    rows = np.arange(n_samples, dtype=np.int64)
    for start in range(0, n_samples, batch_size):
        generator.shuffle(rows[start : start + batch_size])
    return rows
