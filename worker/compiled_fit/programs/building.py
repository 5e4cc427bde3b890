"""A model's variables built without tracing a step; Keras itself builds them as late as it can."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy

import keras
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.trainers.data_adapters import data_adapter_utils

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.errors import KerasTakesOverError, NotEligibleError
from gridfleet.worker.compiled_fit.patches.patch import Patch, Replacement
from gridfleet.worker.compiled_fit.sharing.keras_parts import PLAIN_MODELS, is_keras_class, is_transparent
from gridfleet.worker.compiled_fit.types import Metric, Model, Optimizer, Structure

#: Optimizers that give their variables values when they are built: Keras does so as a part of the step.
BUILT_BY_STEPS = frozenset(("ScheduleFreeAdamW",))


def build_variables(model: Model, data: Batches | Stream, *, trains: bool) -> bool:
    """Build the variables of model, optimizer and metrics without tracing a step, where it is known which they are.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    data : Batches or Stream
        What it is to be trained or evaluated on.
    trains : bool
        Whether it is to be trained; an evaluation leaves the optimizer alone.

    Returns
    -------
    bool
        Whether all are built. The steps of other models build them when they are traced, as in Keras: which layers
        a ``call`` of the user's own uses is seen by calling it, and may depend on ``training``.
    """
    if type(model) not in PLAIN_MODELS or not all(is_transparent(layer) for layer in model._flatten_layers(False)):
        return False
    if model._compile_metrics is not None and not all(map(_is_keras_metric, _given_metrics(model))):
        return False
    if trains and any(type(one).__name__ in BUILT_BY_STEPS for one in _with_inner(model.optimizer)):
        return False
    x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(data.symbolic())
    with nullcontext() if trains else _left_alone(model.optimizer):
        if _has_one_known_output(model, y):
            _build_with_one_output(model, x, y, sample_weight)
        else:
            model._symbolic_build(data_batch=data.symbolic())
    return True


def check_optimizer(model: Model) -> None:
    """Make sure that an optimizer is not another model's, and knows what is to be trained; Keras says so best.

    Raises
    ------
    NotEligibleError
        If it does not.
    """
    optimizer = model.optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer) or not optimizer.built:
        return
    known = optimizer._trainable_variables_indices
    if not all(optimizer._var_key(variable) in known for variable in model.trainable_variables):
        raise NotEligibleError("the optimizer was built for other variables")


def has_convolutions(model: Model) -> bool:
    """Whether a layer convolves, as far as its class tells."""
    return any(isinstance(layer, BaseConv) for layer in model._flatten_layers(False))


def is_recurrent(model: Model) -> bool:
    """Whether a layer goes over a sequence step by step, as far as its class tells."""
    return any(isinstance(layer, keras.layers.RNN) for layer in model._flatten_layers(False))


def n_trained_numbers(model: Model) -> int:
    """Return how many numbers the variables have that are trained, as far as there are any yet."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def tracks_losses(model: Model) -> bool:
    """Whether a model has metrics of each output's loss, whose sums Keras weights by the size of a batch if known."""
    return model._compile_loss is not None and bool(model._compile_loss.metrics)


@contextmanager
def unbuilt_if_it_fails(model: Model, failure: type[Exception] = KerasTakesOverError) -> Iterator[None]:
    """Put a model's optimizer, loss and metrics back as they were, not built, if a program can't be made.

    Keras' own loop builds them as it needs them: where it fails too, it has not come to all of them, and the metrics of
    the next call may be built for other targets. What was traced with their variables is forgotten with them.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    failure : type of exception, default=KerasTakesOverError
        What is a failure.
    """
    optimizers = [one for one in _with_inner(model.optimizer) if isinstance(one, keras.optimizers.Optimizer)]
    of_optimizers = [_Kept(one) for one in optimizers if not one.built]
    of_compile = [_Kept(one) for one in _unbuilt_parts_of_compile(model)]
    try:
        yield
    except failure:
        has_built = [one.put_back() for one in of_compile]
        if any(has_built):
            model.test_function = None
        if any([*has_built, *(one.put_back() for one in of_optimizers)]):
            model.train_function = None
        raise


def _unbuilt_parts_of_compile(model: Model) -> Iterator[keras.Loss | Metric]:
    """Yield what ``compile`` left to be built with the first data: loss, list of metrics, and those given to it."""
    loss, metrics = model._compile_loss, model._compile_metrics
    if loss is not None and not loss.built:
        yield loss
    if metrics is not None and not metrics.built:
        yield metrics
        yield from (one for one in _given_metrics(model) if isinstance(one, keras.Metric))


def _with_inner(optimizer: Optimizer | None) -> list[Optimizer | None]:
    """Return an optimizer, and the one inside it if there is one."""
    return [optimizer, getattr(optimizer, "inner_optimizer", None)]


class _Kept:
    """What a part of a model that is not built has, in the same lists, which Keras' tracker goes on to fill.

    Parameters
    ----------
    part : Optimizer, Loss or Metric
        Not built.
    """

    def __init__(self, part: Optimizer | keras.Loss | Metric) -> None:
        self._part = part
        self._attributes = dict(vars(part))
        filled = [*self._attributes.values(), *part._tracker.stored_ids.values()]
        self._contents = [(value, copy(value)) for value in filled if isinstance(value, (list, dict, set))]

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing has built it since."""
        attributes = vars(self._part)
        return (
            attributes.keys() == self._attributes.keys()
            and all(attributes[name] is value for name, value in self._attributes.items())
            and all(len(value) == len(content) for value, content in self._contents)
        )

    def put_back(self) -> bool:
        """Put it back; returns whether it was built meanwhile."""
        if self.is_unchanged:
            return False
        vars(self._part).clear()
        vars(self._part).update(self._attributes)
        for value, content in self._contents:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        return True


def _left_alone(optimizer: Optimizer | None) -> AbstractContextManager[None]:
    """Return a block in which an optimizer passes for built."""
    unbuilt = isinstance(optimizer, keras.optimizers.Optimizer) and not optimizer.built
    return Patch(lambda: [Replacement(optimizer, "built", True)] if unbuilt else []).installed()


def _has_one_known_output(model: Model, y: Structure) -> bool:
    """Whether one output has a loss, so that the model need not be called to build the rest: 10 ms and not 20."""
    outputs = getattr(model, "outputs", None)
    if not model.built or not outputs or len(outputs) != 1 or keras.tree.is_nested(y) or y is None:
        return False
    is_nested = isinstance(getattr(model, "_outputs_struct", None), (dict, list, tuple))
    return model._compile_loss is not None and not is_nested


def _build_with_one_output(model: Model, x: Structure, y: Structure, sample_weight: Structure) -> None:
    loss, metrics = model._compile_loss, model._compile_metrics
    predicted = keras.KerasTensor((None, *model.outputs[0].shape[1:]), model.outputs[0].dtype)
    for part in (metrics, loss):
        if part is not None and not part.built:
            part.build(y, predicted)
    if metrics is not None and not all(isinstance(metric, keras.metrics.Mean) for metric in metrics.metrics):
        # others may make variables when they first see data
        keras.src.backend.compute_output_spec(model.compute_metrics, x, y, predicted, sample_weight=sample_weight)
    if model.optimizer is not None and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model._post_build()


def _given_metrics(model: Model) -> list[Metric]:
    metrics = model._compile_metrics
    return list(keras.tree.flatten([metrics._user_metrics, metrics._user_weighted_metrics]))


def _is_keras_metric(metric: Metric) -> bool:
    return not isinstance(metric, keras.Metric) or is_keras_class(type(metric))
