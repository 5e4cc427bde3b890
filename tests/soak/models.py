"""Estimators of the soak: scores that can be told beforehand, and fits that take as long as they are told."""

from __future__ import annotations

import time

from sklearn.base import BaseEstimator


class Telling(BaseEstimator):
    """Scores what its parameter and the rows that it was fitted on give, exactly; may raise, or score NaN.

    It has a seed and draws nothing: what has none is not reused.
    """

    def __init__(self, value: int = 0, then: str = "", seconds: float = 0.0, random_state: int = 0) -> None:
        self.value = value
        self.then = then
        self.seconds = seconds
        self.random_state = random_state

    def fit(self, X, y=None):
        if self.then == "raise":
            raise ValueError(f"value={self.value} does not suit me")
        time.sleep(self.seconds)
        self.seen_ = float(X.sum())  # of whole numbers, so the order of adding up makes no difference
        return self

    def score(self, X, y=None):
        return float("nan") if self.then == "nan" else self.value + self.seen_ / 1024


def create_model(units: int = 4):
    """Build a small Keras classifier of 8 features."""
    from keras import Input, Sequential
    from keras.layers import Dense

    model = Sequential([Input((8,)), Dense(units, activation="relu"), Dense(1, activation="sigmoid")])
    model.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model
