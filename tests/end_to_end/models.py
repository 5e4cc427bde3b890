"""Estimators of the tests. The workers can't import this module: it travels by value, as a user's does."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


def hang_in_c(library: ctypes.CDLL) -> None:
    """Lock a mutex of C twice: no signal ends that."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)


def deadlock() -> None:
    """Lock a lock of Python twice: signals are heeded meanwhile, and the other threads run."""
    lock = threading.Lock()
    for _ in range(2):
        lock.acquire()


def take_memory() -> None:
    """Ask for 3 GB, and use them."""
    np.ones(3_000_000_000, dtype=np.uint8)


def print_much() -> None:
    """Print 400 MB."""
    text = "spam " * 200_000
    for _ in range(200):
        print(text)
        print(text, file=sys.stderr)


def interrupt() -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def kill_the_worker() -> None:
    """Kill the main process, and with it all its processes."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


#: What models do that are no good.
MISCHIEF: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "kill the worker": kill_the_worker,
    "abort": os.abort,
    "exit hard": lambda: os._exit(1),
    "exit": lambda: sys.exit(3),
    "interrupt": interrupt,
    "fork": os.fork,
    "hang with the GIL": lambda: hang_in_c(ctypes.PyDLL(None)),
    "hang without the GIL": lambda: hang_in_c(ctypes.CDLL(None)),
    "deadlock": deadlock,
    "memory": take_memory,
    "print": print_much,
}


class Touching(ClassifierMixin, BaseEstimator):
    """Writes a file when its fit begins, and then does what its parameter `then` says."""

    def __init__(self, folder: str = "", value: int = 0, then: str = "") -> None:
        self.folder = folder
        self.value = value
        self.then = then

    def fit(self, X, y):
        first = self._mark("began")
        self.classes_ = np.unique(y)
        if self.then in MISCHIEF or (first and self.then.removesuffix(" once") in MISCHIEF):
            MISCHIEF[self.then.removesuffix(" once")]()
        if self.then == "wait" or (first and self.then == "wait once"):
            self._wait()
        if self.then == "wait through all":
            self._wait_through_all()
        if self.then == "raise" or (self.then == "raise until released" and not (Path(self.folder) / "go").exists()):
            raise ValueError(f"value={self.value} does not suit me")
        return self

    def predict(self, X):
        return np.zeros(len(X), dtype=int)

    def score(self, X, y):
        if self.then == "nan":
            return float("nan")
        return float(self.value)

    def _wait(self) -> None:
        while not (Path(self.folder) / "go").exists():
            time.sleep(0.02)

    def _wait_through_all(self) -> None:
        try:
            self._wait()
        except BaseException:  # as users' code does that catches more than it should
            self._mark("caught")

    def _mark(self, what: str) -> bool:
        marks = Path(self.folder)
        number = len(list(marks.glob(f"{what}-{self.value}-*")))
        (marks / f"{what}-{self.value}-{number}").touch()
        return number == 0


def create_model(optimizer: str = "adam", units: int = 4):
    """Build a small Keras classifier of 8 features."""
    from keras import Input, Sequential
    from keras.layers import Dense

    model = Sequential([Input((8,)), Dense(units, activation="relu"), Dense(1, activation="sigmoid")])
    model.compile(loss="binary_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    return model


def create_model_with_auc():
    """Build a Keras classifier of 8 features with a metric that Keras names."""
    from keras import Input, Sequential
    from keras.layers import Dense
    from keras.metrics import AUC

    model = Sequential([Input((8,)), Dense(1, activation="sigmoid")])
    model.compile(loss="binary_crossentropy", optimizer="adam", metrics=[AUC()])
    return model


def create_model_of_two_inputs(units: int = 4):
    """Build a small Keras classifier whose 8 features come in two parts."""
    from keras import Input, Model
    from keras.layers import Concatenate, Dense

    left, right = Input((3,), name="left"), Input((5,), name="right")
    hidden = Concatenate()([Dense(units, activation="relu")(left), Dense(units, activation="relu")(right)])
    model = Model({"left": left, "right": right}, Dense(1, activation="sigmoid")(hidden))
    model.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model
