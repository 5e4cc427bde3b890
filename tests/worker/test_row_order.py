"""The order of the rows under a seed is the one in which Keras' own dataset feeds them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from tensorflow.python.eager import context

from gridfleet.worker.compiled_fit import calls, compiled_fit
from gridfleet.worker.compiled_fit.data import row_order
from gridfleet.worker.compiled_fit.data.row_order import MAX_SEED, epoch_orders, seeded_order
from tests.thinning import some_of

SEEDS = [0, 1, 2, 3, 42, 20_261_124, MAX_SEED - 1, MAX_SEED, MAX_SEED + 1, 2**32 - 1, 2**32, 2**40 + 7, -1, -(2**33)]


@pytest.fixture(autouse=True)
def restored_seed() -> Iterator[None]:
    seed = context.global_seed()
    yield
    tf.random.set_seed(seed)


def order_of_keras(n_samples: int, seed: int, *, batch_size: int = 7, shuffle: bool | str = True) -> list[int]:
    tf.random.set_seed(seed)
    adapter = ArrayDataAdapter(np.arange(n_samples), batch_size=batch_size, shuffle=shuffle)
    batches = [tf.nest.flatten(batch)[0].numpy() for batch in adapter.get_tf_dataset()]
    return [int(row) for row in np.concatenate([np.atleast_1d(batch) for batch in batches])]


@pytest.mark.parametrize(("n_samples", "seed"), some_of(product([1, 2, 3, 4, 5, 31, 768], SEEDS), every=5))
def test_a_seeds_order_is_keras_own(n_samples: int, seed: int) -> None:
    assert seeded_order(n_samples, seed).tolist() == order_of_keras(n_samples, seed)


@pytest.mark.parametrize("n_seeds", [15, pytest.param(100, marks=pytest.mark.complete)])
def test_the_orders_of_many_seeds_are_keras_own(n_seeds: int) -> None:
    for seed in np.random.default_rng(0).integers(0, MAX_SEED, n_seeds).tolist():
        assert seeded_order(53, seed).tolist() == order_of_keras(53, seed), seed


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize("n_samples", [20, 21])
def test_epochs_under_a_seed_have_keras_order(n_samples: int, shuffle: bool | str) -> None:
    expected = order_of_keras(n_samples, 5, shuffle=shuffle)
    tf.random.set_seed(5)

    orders = epoch_orders(n_samples, 7, shuffle)(3)

    assert orders.tolist() == [expected]


def test_epochs_without_a_seed_have_orders_of_their_own() -> None:
    tf.random.set_seed(None)

    draw = epoch_orders(100, 7, True)
    orders = np.concatenate([draw(1), draw(2)])

    assert [sorted(order) for order in orders.tolist()] == [list(range(100))] * 3
    assert len({tuple(order) for order in orders.tolist()}) == 3


@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_orders_are_drawn_when_an_epoch_needs_them(shuffle: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    tf.random.set_seed(None)
    x, y = np.zeros((16, 2), "float32"), np.arange(16) % 2
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    asked: list[int] = []

    def epoch_orders_(*arguments: Any) -> Any:
        draw = epoch_orders(*arguments)
        return lambda n_epochs: (asked.append(n_epochs), draw(n_epochs))[1]

    monkeypatch.setattr(calls, "epoch_orders", epoch_orders_)
    with compiled_fit() as report:
        stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=99)
        history = model.fit(x, y, epochs=10**9, verbose=0, shuffle=shuffle, callbacks=[stop])

    assert report.fallback_reason is None
    assert asked == [1, 1]
    assert len(history.epoch) == 2


def test_where_keras_draws_another_order_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_order, "_order_is_keras", lambda: False)
    monkeypatch.setattr(row_order, "seeded_order", None)
    expected = order_of_keras(20, 5)
    tf.random.set_seed(5)

    assert epoch_orders(20, 7, True)(3).tolist() == [expected]


def test_an_untested_release_is_asked_for_its_order_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_order, "untested_release", lambda: "keras 3.99.1")
    row_order._order_is_keras.cache_clear()
    assert row_order._order_is_keras()

    monkeypatch.setattr(row_order, "seeded_order", lambda n_samples, _seed: np.arange(n_samples))
    assert row_order._order_is_keras()  # it is remembered
    row_order._order_is_keras.cache_clear()
    assert not row_order._order_is_keras()
    row_order._order_is_keras.cache_clear()
