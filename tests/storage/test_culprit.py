"""What can't be pickled is named: an attribute, or what a function of the script takes from around it."""

from __future__ import annotations

import functools
import sys
import textwrap
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


SCRIPT = """
    import threading
    from sklearn.base import BaseEstimator

    guard = threading.Lock()

    class Settings:
        lock = None

    settings = Settings()
    settings.lock = guard

    def guarded():
        with guard:
            return 1

    def calls():
        return guarded()

    def reads():
        return settings.lock

    def in_a_list():
        return [guard for _ in range(2)]

    def outer():
        lock = guard
        def inner():
            return lock
        return inner

    def with_default(lock=guard):
        return lock

    class Guarded(BaseEstimator):
        def fit(self, X, y=None):
            with guard:
                return self
"""


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What a script defines, as cloudpickle sees it."""
    defined: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(SCRIPT), defined)
    return defined


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("guarded", "callbacks is a function: `guarded` uses the global `guard`, a lock ("),
        (
            "calls",
            "callbacks is a function: `calls` uses the global `guarded`: `guarded` uses the global `guard`, a lock",
        ),
        ("reads", "callbacks is a function: `reads` uses the global `settings`, whose lock is a lock ("),
        ("in_a_list", "callbacks is a function: `in_a_list` uses the global `guard`, a lock ("),
        ("with_default", "callbacks is a function: `with_default` uses a default, a lock ("),
        ("Guarded", "callbacks.fit is a function: `Guarded.fit` uses the global `guard`, a lock ("),
    ],
)
def test_what_a_function_of_the_script_uses_is_named(
    name: str, sentence: str, script: dict[str, Any], store: PayloadStore
) -> None:
    with pytest.raises(NotPicklableError) as refused:
        store.put("evaluation", Estimator(callbacks=script[name]), what="estimator")

    assert f"travel to the workers: {sentence}" in str(refused.value)


def test_a_variable_of_the_function_around_is_named(script: dict[str, Any], store: PayloadStore) -> None:
    build = functools.partial(script["outer"]())

    with pytest.raises(
        NotPicklableError, match=r"func is a function: `outer.<locals>.inner` uses the variable `lock` of"
    ):
        store.put("evaluation", Estimator(callbacks=build), what="estimator")
