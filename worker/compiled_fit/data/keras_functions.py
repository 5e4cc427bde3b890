"""What Keras' own functions of a model would have been traced for by now, and the programs that stand for them.

A model's ``train_function``, ``test_function`` and ``predict_function`` are made anew by ``compile``, or by a callback
that asks for it; what one was traced for is forgotten with it. They are never called here: they only mark it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.types import Model

Data = TypeVar("Data", bound=Batches | Stream)
Kind: TypeAlias = Literal["train", "test", "predict"]
#: The attribute of one of Keras' functions that `Traced` is kept in.
ATTRIBUTE = "_gridfleet_traced"


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
    """

    sizes: dict[Hashable, list[int | None]] = field(default_factory=dict)
    programs: dict[Hashable, Any] = field(default_factory=dict)

    def size_for(self, signature: Hashable, size: int | None) -> int | None:
        """Return for which size of batches the graph is that takes batches of a size, and note that there is one.

        For a second size TensorFlow traces one for any number of rows (``reduce_retracing``), which takes all sizes but
        the first from then on.
        """
        sizes = self.sizes.setdefault(signature, [])
        if size not in sizes:
            size = None if sizes else size
            if size not in sizes:
                sizes.append(size)
        return size


def traced(model: Model, kind: Kind) -> Traced:
    """Return what a model's function of a kind was traced for; makes the function if it is not there, as Keras does."""
    make: Callable[[], Any] = getattr(model, f"make_{kind}_function")
    make()
    function = getattr(model, f"{kind}_function")
    if not hasattr(function, ATTRIBUTE):
        setattr(function, ATTRIBUTE, Traced())
    kept: Traced = getattr(function, ATTRIBUTE)
    return kept


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
    size = traced(model, kind).size_for(data.signature, data.fixed_batch_size)
    return data if size == data.fixed_batch_size else replace(data, knows_size=False)


def traced_predict_sizes(model: Model, data: Batches) -> tuple[int | None, ...]:
    """Return for which sizes Keras' graphs are that predict the full batches, and the shorter last one if another does.

    Keras hands each batch to its function with its size.
    """
    kept = traced(model, "predict")
    rest = [data.n_samples % data.first_batch_size] if data.has_remainder else []
    sizes = tuple(kept.size_for(data.signature, size) for size in (data.first_batch_size, *rest))
    return (None,) if set(sizes) == {None} else sizes
