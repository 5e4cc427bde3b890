"""TensorFlow's prepared functions outlive a new seed.

``tf.random.set_seed`` throws away every kernel of the process, to start the generators inside some of them anew,
and with them all functions that TensorFlow has optimized: 100 to 140 ms each to prepare again. scikeras sets a
seed four times a fit. Inside `kept_kernels` they are thrown away only if a kernel with a generator may exist.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tensorflow.python.eager import context
from tensorflow.python.framework import ops, random_seed

#: Whether a kernel with a generator may exist: one was asked to be seeded, or nobody looked.
_has_generators = True
#: Whether a function has one: its kernels are made anew whenever it runs, and nobody is asked.
_is_in_functions = False
_depth = 0
_lock = threading.Lock()


@contextmanager
def kept_kernels() -> Iterator[None]:
    """Keep TensorFlow's kernels at a new seed while none of them holds a generator.

    Every operation of TensorFlow that holds one asks ``random_seed.get_seed`` when it is made, in a function or
    outside of one; Keras' own random operations are stateless and do not.
    """
    global _depth, _has_generators
    with _lock:
        if _depth == 0:
            _has_generators = True
            _install()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _uninstall()


def _install() -> None:
    context.Context._set_global_seed = _set_global_seed
    random_seed.get_seed = _get_seed


def _uninstall() -> None:
    context.Context._set_global_seed = _original_set_global_seed
    random_seed.get_seed = _original_get_seed


_original_set_global_seed = context.Context._set_global_seed
_original_get_seed = random_seed.get_seed


def _get_seed(op_seed: Any) -> Any:
    global _has_generators, _is_in_functions
    _has_generators = True
    graph = ops.get_default_graph()
    # each iterator over a dataset has kernels of its own, which no seed reaches
    if graph.building_function and not graph.name.startswith("Dataset"):
        _is_in_functions = True
    return _original_get_seed(op_seed)


def _set_global_seed(self: Any, seed: Any) -> None:
    global _has_generators
    if _has_generators or _is_in_functions:
        _original_set_global_seed(self, seed)
        _has_generators = False
        return
    self._seed = seed
    self._rng = random.Random(seed if seed is None else int(seed))  # noqa: S311 - the seed of an experiment
