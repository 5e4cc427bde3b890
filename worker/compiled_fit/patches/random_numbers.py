"""Uniform random floats that XLA and TensorFlow's own kernels draw alike."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import gen_stateless_random_ops_v2 as random_ops

from gridfleet.worker.compiled_fit.patches.patch import Patch, Replacement
from gridfleet.worker.compiled_fit.types import Tensor

#: The bits of a float32 behind the point, and those of 1.0.
MANTISSA, ONE = 0x7FFFFF, 0x3F800000
#: Operations that are others inside `same_random_numbers`.
TRACED_OTHERWISE_FOR_XLA = ("StatelessRandomUniformV2",)

_original = random_ops.stateless_random_uniform_v2


def same_random_numbers() -> AbstractContextManager[None]:
    """Return a block in which uniform floats are traced so that XLA draws those of TensorFlow's own kernels.

    Both draw the same 32 bits; TensorFlow makes a float of the low 23, XLA of the high 23. Inside this block
    it is done in the graph, from the low ones (tensorflow/core/lib/random/random_distributions.h).
    """
    return _patch.installed()


def _from_low_bits(shape: Any, key: Any, counter: Any, alg: Any, dtype: Any = tf.float32, name: Any = None) -> Tensor:
    if tf.as_dtype(dtype) != tf.float32:
        return _original(shape, key, counter, alg, dtype=dtype, name=name)
    bits = random_ops.stateless_random_uniform_full_int_v2(
        shape, key=key, counter=counter, dtype=tf.uint32, alg=alg, name=name
    )
    mantissa = tf.bitwise.bitwise_and(bits, tf.constant(MANTISSA, tf.uint32))
    return tf.bitcast(tf.bitwise.bitwise_or(mantissa, tf.constant(ONE, tf.uint32)), tf.float32) - 1.0


_patch = Patch(lambda: [Replacement(random_ops, "stateless_random_uniform_v2", _from_low_bits)])
