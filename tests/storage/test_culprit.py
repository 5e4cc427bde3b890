"""What can't be pickled is named."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from sklearn.base import BaseEstimator

from gridfleet.storage.errors import NotPicklableError
from gridfleet.storage.payloads.store import PayloadStore


class Optimizer:
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Estimator(BaseEstimator):
    def __init__(self, optimizer: Any = None, callbacks: Any = None) -> None:
        self.optimizer = optimizer
        self.callbacks = callbacks


@pytest.mark.parametrize(
    ("estimator", "path"),
    [
        (Estimator(Optimizer()), "optimizer.lock is a lock"),
        (Estimator(callbacks={"log": sys.stderr}), "callbacks.log is a "),
        (Estimator(callbacks=(number for number in range(3))), "callbacks is a generator"),
        (threading.Lock(), "it is a lock"),
    ],
    ids=["attribute of an attribute", "dict", "generator", "itself"],
)
def test_an_object_that_can_not_be_pickled_is_named(estimator: Any, path: str, store: PayloadStore) -> None:
    with pytest.raises(NotPicklableError, match="estimator can't be pickled") as refused:
        store.put("evaluation", estimator, what="estimator")

    assert path in str(refused.value)
