"""For which sizes of batches Keras would have traced a model's steps by now."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary, ref

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.types import Model

Kind: TypeAlias = Literal["train", "test"]
#: Sizes of batches, by the kind of step and the data's signature; None stands for any size.
_Sizes: TypeAlias = dict[tuple[Kind, Hashable], list[int | None]]

#: For models that were trained or evaluated: a reference to their ``compile`` of then, and the sizes since.
_traced_sizes: WeakKeyDictionary[Model, tuple[Callable[[], Any], _Sizes]] = WeakKeyDictionary()


def as_traced(model: Model, kind: Kind, data: Batches) -> Batches:
    """Return batches as Keras' step sees them, and note that it was traced for them.

    Between two ``compile`` the steps that Keras traced stay. For a second size of batches TensorFlow traces one for any
    number of rows (``reduce_retracing``), which takes all sizes but the first from then on.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    kind : {"train", "test"}
        Which step.
    data : Batches
        What it is to run on.

    Returns
    -------
    Batches
    """
    traced = _sizes_since_compile(model).setdefault((kind, data.signature), [])
    size = data.fixed_batch_size
    if size not in traced:
        size = None if traced else size
        if size not in traced:
            traced.append(size)
    return data if size == data.fixed_batch_size else replace(data, knows_size=False)


def was_trained(model: Model) -> bool:
    """Whether a model was trained here since it was compiled, so that Keras would go on with the step of then."""
    return any(kind == "train" for kind, _ in _sizes_since_compile(model))


def _sizes_since_compile(model: Model) -> _Sizes:
    compiled, sizes = _traced_sizes.get(model, (lambda: None, {}))
    if compiled() is not model._compile_config:
        compiled, sizes = ref(model._compile_config), {}
        _traced_sizes[model] = compiled, sizes
    return sizes
