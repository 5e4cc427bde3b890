"""Keras' own loops, where Python is called at every batch or makes it, with functions of a batch that models share.

Keras makes and traces such a function anew for each model, which takes as long as hundreds of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import keras
import tensorflow as tf

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.data.keras_functions import (
    Kind,
    as_traced,
    is_as_it_was_traced,
    is_traced_by_keras,
    kept_function,
    note_failure,
    note_step,
    trace_noted,
    traced,
    unnoted_if_it_fails,
)
from gridfleet.worker.compiled_fit.data.stream import Stream, check_types
from gridfleet.worker.compiled_fit.errors import KerasTakesOverError, NotEligibleError, preparing_a_program
from gridfleet.worker.compiled_fit.programs.batch import BatchProgram
from gridfleet.worker.compiled_fit.programs.building import build_variables, check_optimizer, unbuilt_if_it_fails
from gridfleet.worker.compiled_fit.programs.found import Found
from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.sharing.cache import ProgramCache
from gridfleet.worker.compiled_fit.sharing.structure import structure_of
from gridfleet.worker.compiled_fit.types import Model, Structure

#: Which of Keras' functions a method calls at every batch.
_KINDS: dict[str, Kind] = {"fit": "train", "evaluate": "test", "predict": "predict"}
_VARIABLES_OF: dict[Kind, Callable[[Model], VariableSet]] = {
    "train": VariableSet.of_training,
    "test": VariableSet.of_evaluation,
    "predict": VariableSet.of_prediction,
}


def run_batch_by_batch(
    original: Callable[..., Any],
    model: Model,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    cache: ProgramCache,
    report: FitReport,
) -> Any:
    """Run a method of Keras' own, with another model's function of a batch where there is one.

    Parameters
    ----------
    original : callable
        Keras' ``fit``, ``evaluate`` or ``predict``.
    model : keras.Model
    arguments : tuple
        Those by position, and by name.
    cache : ProgramCache
        Where functions are kept.
    report : FitReport
        How a fit ran: ``exact`` where models of its structure share the function.
    """
    args, keywords = arguments
    function = SharedFunctionOfBatch(model, _KINDS[original.__name__], cache)
    try:
        with function.in_place():
            if original.__name__ != "fit":
                return original(model, *args, **keywords)
            with report.timed("train"):
                result = original(model, *args, **keywords)
    except Exception:
        if function.has_run_own:
            note_failure(model, original.__name__)
        raise
    report.modes.append(FitMode.EXACT if function.is_shared else FitMode.KERAS)
    return result


class SharedFunctionOfBatch:
    """Stands in for one of Keras' functions of a model while Keras' own loop calls it.

    It is called when Keras would trace its own, so that whatever callbacks changed until then counts.

    Parameters
    ----------
    model : keras.Model
        Compiled, but for ``predict``.
    kind : {"train", "test", "predict"}
        Which function.
    cache : ProgramCache
        Where functions are kept.

    Attributes
    ----------
    is_shared : bool
        Whether another model's was run, or this model's is kept for others.
    has_run_own : bool
        Whether the model's own was called.
    """

    def __init__(self, model: Model, kind: Kind, cache: ProgramCache) -> None:
        self.is_shared = self.has_run_own = False
        self._model = model
        self._kind = kind
        self._cache = cache
        self._own = self._keras_function()
        self._types: Structure = None
        self._found: Found[BatchProgram] | None = None
        self._key: tuple[str, Hashable] | None = None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Stand in for Keras' function in a block; one that a callback has made anew in it stays."""
        self._put(self)
        try:
            yield
        finally:
            if getattr(self._model, self._name) is self:
                self._put(self._own)

    def __call__(self, source: Any) -> Any:
        """Do what Keras' function does: take the next batch of an iterator, or predict the one of a list."""
        types = self._types_of(source)
        if types is None:  # of a loop that is not Keras'
            return self._run_own(source)
        if types != self._types:
            self._found = self._find(types)
            self._types = types
            if self._found is None:
                return self._run_and_keep_own(source, types)
        if self._found is None:
            return self._run_own(source)
        return self._run(self._found, source)

    @property
    def _name(self) -> str:
        return f"{self._kind}_function"

    def _put(self, function: Any) -> None:
        setattr(self._model, self._name, function)

    def _keras_function(self) -> Callable[..., Any]:
        getattr(self._model, f"make_{self._kind}_function")()
        function: Callable[..., Any] = getattr(self._model, self._name)
        return function

    @contextmanager
    def _own_in_place(self) -> Iterator[None]:
        """Let Keras' function be seen; it may be made anew."""
        self._put(self._own)
        try:
            yield
        finally:
            self._own = self._keras_function()
            self._put(self)

    def _types_of(self, source: Any) -> Structure:
        if self._kind != "predict":
            return source.element_spec if isinstance(source, tf.data.Iterator) else None
        if len(source) != 1 or not all(map(tf.is_tensor, keras.tree.flatten(source))):
            return None
        return keras.tree.map_structure(lambda one: tf.TensorSpec(one.shape, one.dtype), source[0])

    def _run(self, found: Found[BatchProgram], source: Any) -> Any:
        if self._kind == "predict":
            return found.program.run(found.variables, tf.nest.flatten(source))
        results = found.program.run(found.variables, [source._iterator_resource])
        if not results.has_value():
            raise StopIteration
        return results.get_value()

    def _run_own(self, source: Any) -> Any:
        if not self.has_run_own:
            with self._own_in_place():
                trace_noted(self._model, self._kind)
        self.has_run_own = True
        return self._own(source)

    def _run_and_keep_own(self, source: Any, types: Structure) -> Any:
        """Run the model's own function, which traces it, and keep what it traced for others if they may run it."""
        results = self._run_own(source)
        with self._own_in_place(), suppress(KerasTakesOverError):
            self._keep_own(types)
        return results

    def _find(self, types: Structure) -> Found[BatchProgram] | None:
        """Return the program for batches of some types; None: the model's own function has to run."""
        self._key = None
        model = self._model
        with (
            self._own_in_place(),
            suppress(KerasTakesOverError),
            unnoted_if_it_fails(model, self._kind),  # what is traced is seen by itself
            unbuilt_if_it_fails(model),
            preparing_a_program(),
        ):
            found = self._find_program(as_traced(model, self._kind, _stream(types)))
            self.is_shared = True
            return found
        return None

    def _find_program(self, data: Stream) -> Found[BatchProgram]:
        kept = traced(self._model, self._kind).programs
        signature = self._signature(data)
        if signature in kept:
            found: Found[BatchProgram] = kept[signature]
            return found
        structure = self._structure(data)
        if structure is None or kept_function(self._model, self._kind, data) is not None:
            raise NotEligibleError("nobody knows what the function depends on, or Keras has traced it before")
        self._key = structure, signature
        entry = self._cache.get(self._key)
        if entry is None:
            raise NotEligibleError("no model has left its function yet")
        if isinstance(entry.program, NotEligibleError):
            raise NotEligibleError(str(entry.program))
        kept[signature] = Found(entry, _VARIABLES_OF[self._kind](self._model))
        return self._find_program(data)

    def _keep_own(self, types: Structure) -> None:
        """Keep what the model's own function was traced as, for others of its structure."""
        data = as_traced(self._model, self._kind, _stream(types))
        function = kept_function(self._model, self._kind, data)
        if self._key is None or function is None or self._key[1] != self._signature(data):
            return
        variables = _VARIABLES_OF[self._kind](self._model)
        try:
            program = BatchProgram(function, variables)
        except NotEligibleError as error:
            self._cache.put(self._key, error)
            return
        if program.is_shareable:
            entry = self._cache.put(self._key, program)
            traced(self._model, self._kind).programs[self._key[1]] = Found(entry, variables)
            note_step(self._model, self._kind, data, self._key[0])
            self.is_shared = True

    def _signature(self, data: Stream) -> Hashable:
        unrolled = getattr(self._model, "unrolled_steps_per_execution", 1)
        return "batch", self._kind, data.fixed_batch_size, data.signature, unrolled

    def _structure(self, data: Stream) -> str | None:
        """Return the digest of what Keras would trace the function for now; None: it is not known."""
        model = self._model
        if self._kind == "predict":
            return structure_of(model, predicts=True)
        trains = self._kind == "train"
        if trains:
            check_optimizer(model)
        structure = structure_of(model, trains=trains) if build_variables(model, data, trains=trains) else None
        is_new = is_as_it_was_traced(model, data, structure) if trains else not is_traced_by_keras(model, "test", data)
        return structure if is_new else None


def _stream(types: Structure) -> Stream:
    check_types(types)
    return Stream(None, types)
