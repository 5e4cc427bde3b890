"""Estimators of the tests. The workers can't import this module: it travels by value, as a user's does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class Touching(ClassifierMixin, BaseEstimator):
    """Writes a file when its fit begins, and then does what it is told."""

    def __init__(self, folder: str = "", value: int = 0, then: str = "") -> None:
        self.folder = folder
        self.value = value
        self.then = then

    def fit(self, X, y):
        first = self._mark("began")
        self.classes_ = np.unique(y)
        if self.then == "kill once" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.then == "wait":
            while not (Path(self.folder) / "go").exists():
                time.sleep(0.02)
        if self.then == "raise":
            raise ValueError(f"value={self.value} does not suit me")
        return self

    def predict(self, X):
        return np.zeros(len(X), dtype=int)

    def score(self, X, y):
        if self.then == "nan":
            return float("nan")
        return float(self.value)

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


def create_model_of_two_inputs(units: int = 4):
    """Build a small Keras classifier whose 8 features come in two parts."""
    from keras import Input, Model
    from keras.layers import Concatenate, Dense

    left, right = Input((3,), name="left"), Input((5,), name="right")
    hidden = Concatenate()([Dense(units, activation="relu")(left), Dense(units, activation="relu")(right)])
    model = Model({"left": left, "right": right}, Dense(1, activation="sigmoid")(hidden))
    model.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model
