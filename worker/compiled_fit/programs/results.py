"""A step's logs, or a model's metrics, as the one vector in which they leave the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from gridfleet.worker.compiled_fit.errors import NotEligibleError
from gridfleet.worker.compiled_fit.types import Logs, Tensor

#: Scores and results travel as doubles, which hold every float32 exactly.
RESULT = tf.float64


class ResultLayout:
    """Where each result is in the vector: single numbers, or arrays, as those of a metric with several thresholds.

    Parameters
    ----------
    results : dict of tensors, or of such dicts
        What is to leave the graph; only names, shapes and dtypes count.

    Attributes
    ----------
    size : int
        Numbers of the vector.
    read_late : list of str
        Results that are variables, which Keras reads only when the callbacks are called: after the validation.

    Raises
    ------
    NotEligibleError
        If a result is no number or array of a known shape.
    """

    def __init__(self, results: dict[str, Any]) -> None:
        self._leaves = [(path, _shape_of(value), _dtype_of(value)) for path, value in _leaves_of(results)]
        self.read_late = [name for name, value in results.items() if isinstance(value, (keras.Variable, tf.Variable))]
        self._sizes = [int(np.prod(shape)) for _, shape, _ in self._leaves]
        self.size = sum(self._sizes)

    def __repr__(self) -> str:
        return f"ResultLayout({self._leaves})"

    def vector(self, results: dict[str, Any]) -> Tensor:
        """Return results of this layout as a vector, inside the graph."""
        values = dict(_leaves_of(results))
        parts = [tf.cast(values[path], RESULT) for path, _, _ in self._leaves]
        if not parts:
            return tf.zeros((0,), RESULT)
        if all(shape == () for _, shape, _ in self._leaves):
            return tf.stack(parts)
        return tf.concat([tf.reshape(part, (-1,)) for part in parts], 0)

    def place_of(self, name: str) -> int | None:
        """Return where in the vector a single number is; None if there is none of the name."""
        for number, (path, shape, _) in enumerate(self._leaves):
            if path == (name,) and shape == ():
                return sum(self._sizes[:number])
        return None

    def unpack(self, vector: npt.NDArray[np.float64]) -> Logs:
        """Return the results: numbers as Python's, arrays as Keras has them."""
        logs: Logs = {}
        first = 0
        for (path, shape, dtype), size in zip(self._leaves, self._sizes, strict=True):
            values = vector[first : first + size]
            first += size
            place = logs
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = float(values[0]) if shape == () else values.reshape(shape).astype(dtype)
        return logs


def _leaves_of(results: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(results, dict):
        yield path, results
        return
    for name, value in results.items():
        yield from _leaves_of(value, (*path, name))


def _shape_of(value: Any) -> tuple[int, ...]:
    shape = getattr(value, "shape", None)
    if shape is None or not tf.TensorShape(shape).is_fully_defined():
        raise NotEligibleError("a metric's result is neither a number nor an array of a known shape")
    return tuple(shape)


def _dtype_of(value: Any) -> Any:
    dtype = tf.as_dtype(value.dtype)
    # doubles do not hold all integers of 64 bits, of which Keras makes a double where it is a single number
    is_number = _shape_of(value) == ()
    if not (dtype.is_floating or dtype.is_bool or (dtype.is_integer and (is_number or dtype.size < 8))):
        raise NotEligibleError(f"a metric's result is of type {dtype.name}")
    return dtype.as_numpy_dtype
