"""What Keras' own functions of a model would have been traced for by now, and the programs that stand for them.

A model's ``train_function``, ``test_function`` and ``predict_function`` are made anew by ``compile``, or by a callback
that asks for it; what one was traced for is forgotten with it. Programs never call them: they mark them, and trace
steps as parts of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar

import keras
import tensorflow as tf

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.keras_traces import (
    find_function,
    find_step,
    trace_for,
    trace_step_of,
    traced_batches,
    types_signature,
)
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.errors import KerasTakesOverError
from gridfleet.worker.compiled_fit.types import ConcreteFunction, Model, Structure

Data = TypeVar("Data", bound=Batches | Stream)
Kind: TypeAlias = Literal["train", "test", "predict"]
#: Which of Keras' functions a method runs.
_RUN_BY: dict[str, tuple[Kind, ...]] = {"fit": ("train", "test"), "evaluate": ("test",), "predict": ("predict",)}
#: The attribute of one of Keras' functions that `Traced` is kept in, and the one that says that its first call failed.
ATTRIBUTE, FAILED_AT_FIRST = "_gridfleet_traced", "_gridfleet_failed_at_first"


@dataclass
class Traced:
    """What one of Keras' functions would have been traced for.

    Attributes
    ----------
    sizes : dict
        Sizes of batches, by the data's signature; None stands for any size.
    programs : dict
        Programs with the variables that they run on, by what they were traced for: as Keras, a model goes on with
        what it was traced as.
    own_steps : list of ConcreteFunction
        Graphs in Keras' function that were traced for programs.
    structure : str or None
        The digest of the model's structure when the first program was made.
    """

    sizes: dict[Hashable, list[int | None]] = field(default_factory=dict)
    programs: dict[Hashable, Any] = field(default_factory=dict)
    own_steps: list[ConcreteFunction] = field(default_factory=list)
    structure: str | None = None
    _types: dict[Hashable, Structure] = field(default_factory=dict)

    def size_for(self, signature: Hashable, size: int | None, types: Structure) -> int | None:
        """Return for which size of batches the graph is that takes batches of a size, and note that there is one.

        For a second size TensorFlow traces one for any number of rows (``reduce_retracing``), which takes all sizes but
        the first from then on.
        """
        self._types.setdefault(signature, types)
        sizes = self.sizes.setdefault(signature, [])
        if size not in sizes:
            size = None if sizes else size
            if size not in sizes:
                sizes.append(size)
        return size

    def batches(self) -> list[Structure]:
        """Return the types of the batches that there is a graph for."""
        return [_sized(self._types[one], size) for one, sizes in self.sizes.items() for size in sizes]


def traced(model: Model, kind: Kind) -> Traced:
    """Return what a model's function of a kind was traced for; makes the function if it is not there, as Keras does."""
    make: Callable[[], Any] = getattr(model, f"make_{kind}_function")
    make()
    function = getattr(model, f"{kind}_function")
    if not hasattr(function, ATTRIBUTE):
        setattr(function, ATTRIBUTE, Traced())
    kept: Traced = getattr(function, ATTRIBUTE)
    for batch in traced_batches(function):  # in calls that Keras' own loop ran
        leaves = keras.tree.flatten(batch)
        kept.size_for(types_signature(batch, leaves), leaves[0].shape[0], batch)
    return kept


@contextmanager
def unnoted_if_it_fails(model: Model, *kinds: Kind, failure: type[Exception] = KerasTakesOverError) -> Iterator[None]:
    """Forget what a call has noted that no program runs after all: what Keras' own loop traces is seen by itself.

    Where that fails too, nothing was traced, and the next call's batches are the first ones.
    """
    before = {kind: _sizes_of(model, kind) for kind in kinds}
    try:
        yield
    except failure:
        for kind, (function, sizes) in before.items():
            kept: Traced | None = getattr(getattr(model, f"{kind}_function", None), ATTRIBUTE, None)
            if kept is not None:
                is_same = getattr(model, f"{kind}_function") is function
                kept.sizes = {one: list(known) for one, known in sizes.items()} if is_same else {}
        raise


def _sizes_of(model: Model, kind: Kind) -> tuple[Any, dict[Hashable, list[int | None]]]:
    function = getattr(model, f"{kind}_function", None)
    kept: Traced | None = getattr(function, ATTRIBUTE, None)
    return function, {} if kept is None else {one: list(sizes) for one, sizes in kept.sizes.items()}


def note_failure(model: Model, method: str) -> None:
    """Note that Keras' own loop failed, in the first call of one of its functions if nothing was traced.

    TensorFlow lets a function make variables in its first call alone, so that Keras fails in the next ones as well.
    """
    for kind in _RUN_BY[method]:
        function = getattr(model, f"{kind}_function", None)
        if function is not None and not traced_batches(function):
            with suppress(AttributeError):  # of a loop that is not Keras' own
                setattr(function, FAILED_AT_FIRST, True)


def has_failed_at_first(model: Model, kind: Kind) -> bool:
    """Whether the first call of one of Keras' functions failed."""
    return hasattr(getattr(model, f"{kind}_function", None), FAILED_AT_FIRST)


def trace_what_keras_would_have(model: Model, method: str) -> None:
    """Trace Keras' own functions of a model for what it would have traced them for in the calls that programs ran.

    Parameters
    ----------
    model : keras.Model
    method : {"fit", "evaluate", "predict"}
        What Keras' own loop is about to run.
    """
    for kind in _RUN_BY[method]:
        trace_noted(model, kind)


def trace_noted(model: Model, kind: Kind) -> None:
    """Trace one of Keras' own functions of a model for what it would have been traced for in the calls so far."""
    function: Any = getattr(model, f"{kind}_function", None)
    kept: Traced | None = getattr(function, ATTRIBUTE, None)
    for batch in [] if kept is None else kept.batches():
        with suppress(Exception):  # Keras is about to say what is wrong
            trace_for(function, batch)


def kept_function(model: Model, kind: Kind, data: Stream) -> ConcreteFunction | None:
    """Return what Keras' own function was traced as that it would run on batches now; or None."""
    return find_function(getattr(model, f"{kind}_function"), _sized(_types_of(data), data.fixed_batch_size))


def note_step(model: Model, kind: Kind, data: Stream, structure: str) -> None:
    """Note that the graph of a step which Keras would run is that of a structure."""
    step, kept = kept_step(model, kind, data, batch_size=data.fixed_batch_size), traced(model, kind)
    if step is not None and kept.structure in (None, structure):
        kept.own_steps.append(step)
        kept.structure = structure


def kept_step(model: Model, kind: Kind, data: Batches | Stream, *, batch_size: int | None) -> ConcreteFunction | None:
    """Return the graph of a step that Keras would run now, traced by a program or by its own loop before; or None."""
    return find_step(getattr(model, f"{kind}_function"), _sized(_types_of(data), batch_size))


def trace_kept_step(
    model: Model, kind: Kind, data: Batches | Stream, *, batch_size: int | None
) -> ConcreteFunction | None:
    """Trace a step so that Keras' own loop finds it later; None: it has to be traced apart."""
    step = trace_step_of(getattr(model, f"{kind}_function"), _sized(_types_of(data), batch_size))
    if step is not None:
        traced(model, kind).own_steps.append(step)
    return step


def is_traced_by_keras(model: Model, kind: Kind, data: Batches | Stream | None) -> bool:
    """Whether Keras would run a step that its own loop has traced in an earlier call, whatever the model is now."""
    step = data and kept_step(model, kind, data, batch_size=data.fixed_batch_size)
    return step is not None and not any(step is one for one in traced(model, kind).own_steps)


def is_as_it_was_traced(model: Model, train: Batches | Stream, structure: str | None) -> bool:
    """Whether the step that Keras would train with is that of the structure that the model has now.

    Parameters
    ----------
    model : keras.Model
    train : Batches
        What it is to be trained on.
    structure : str or None
        The digest of its structure; None if that is not known.
    """
    kept = traced(model, "train")
    if kept_step(model, "train", train, batch_size=train.fixed_batch_size) is None:
        kept.structure = structure
    return kept.structure == structure and not is_traced_by_keras(model, "train", train)


def _types_of(data: Batches | Stream) -> Structure:
    return data.pack(data.specs)


def _sized(types: Structure, size: int | None) -> Structure:
    return keras.tree.map_structure(lambda one: tf.TensorSpec((size, *one.shape[1:]), one.dtype), types)


def as_traced(model: Model, kind: Kind, data: Data) -> Data:
    """Return batches as Keras' step sees them, and note that it was traced for them.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    kind : {"train", "test"}
        Which step.
    data : Batches or Stream
        What it is to run on.

    Returns
    -------
    Batches or Stream
    """
    size = traced(model, kind).size_for(data.signature, data.fixed_batch_size, _types_of(data))
    return data if size == data.fixed_batch_size else replace(data, knows_size=False)


def traced_predict_sizes(model: Model, data: Batches) -> tuple[int | None, ...]:
    """Return for which sizes Keras' graphs are that predict the full batches, and the shorter last one if another does.

    Keras hands each batch to its function with its size.
    """
    kept = traced(model, "predict")
    rest = [data.n_samples % data.first_batch_size] if data.has_remainder else []
    types = _types_of(data)
    sizes = tuple(kept.size_for(data.signature, size, types) for size in (data.first_batch_size, *rest))
    return (None,) if set(sizes) == {None} else sizes
