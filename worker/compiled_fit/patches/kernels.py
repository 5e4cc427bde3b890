"""TensorFlow's prepared functions outlive a new seed.

``tf.random.set_seed`` throws away every kernel of the process, to start the generators inside some of them anew,
and with them all functions that TensorFlow has optimized: 100 to 140 ms each to prepare again. scikeras sets a
seed four times a fit. Inside `kept_kernels` they are thrown away only if a kernel with a generator may exist.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tensorflow.python.eager import context
from tensorflow.python.framework import ops, random_seed

from gridfleet.worker.compiled_fit.patches.patch import Patch, Replacement

_original_set_global_seed = context.Context._set_global_seed
_original_get_seed = random_seed.get_seed


@dataclass
class Generators:
    """What is known of kernels that hold a random generator.

    Attributes
    ----------
    may_exist : bool
        Whether one was asked to be seeded since the last seed, or nobody looked.
    are_in_functions : bool
        Whether a function has one: its kernels are made anew whenever it runs, and no seed is asked for.
    """

    may_exist: bool = True
    are_in_functions: bool = False


_generators = Generators()


def kept_kernels() -> AbstractContextManager[None]:
    """Return a block that keeps TensorFlow's kernels at a new seed while none of them holds a generator.

    Every operation of TensorFlow that holds one asks ``random_seed.get_seed`` when it is made, in a function or
    outside of one; Keras' own random operations are stateless and do not.
    """
    return _patch.installed()


def _replacements() -> Iterator[Replacement]:
    _generators.may_exist = True
    yield Replacement(context.Context, "_set_global_seed", _set_global_seed)
    yield Replacement(random_seed, "get_seed", _get_seed)


_patch = Patch(_replacements)


def _get_seed(op_seed: Any) -> Any:
    _generators.may_exist = True
    graph = ops.get_default_graph()
    # each iterator over a dataset has kernels of its own, which no seed reaches
    if graph.building_function and not graph.name.startswith("Dataset"):
        _generators.are_in_functions = True
    return _original_get_seed(op_seed)


def _set_global_seed(self: Any, seed: Any) -> None:
    if _generators.may_exist or _generators.are_in_functions:
        _original_set_global_seed(self, seed)
        _generators.may_exist = False
        return
    self._seed = seed
    self._rng = random.Random(seed if seed is None else int(seed))  # noqa: S311 - the seed of an experiment
