"""A model's variables built without tracing a step; Keras itself builds them as late as it can."""

from __future__ import annotations

from contextlib import AbstractContextManager

import keras
from keras.src.trainers.data_adapters import data_adapter_utils

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.patches.patch import Patch, Replacement
from gridfleet.worker.compiled_fit.sharing.keras_parts import PLAIN_MODELS, is_keras_class, is_transparent
from gridfleet.worker.compiled_fit.types import Metric, Model, Structure


def build_variables(model: Model, data: Batches) -> bool:
    """Build the variables of model, optimizer and metrics without tracing a step, where it is known which they are.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    data : Batches
        What it is to be trained or evaluated on.

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
    x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(data.symbolic())
    if _has_one_known_output(model, y):
        _build_with_one_output(model, x, y, sample_weight)
    else:
        model._symbolic_build(data_batch=data.symbolic())
    return True


def without_late_variables(model: Model) -> AbstractContextManager[None]:
    """Return a block that leaves out variables that became trainable after the first fit.

    Keras goes on with those that it trained then.
    """
    optimizer = model.optimizer
    known = getattr(optimizer, "_trainable_variables_indices", {})
    late = [one for one in model.trainable_variables if known and optimizer._var_key(one) not in known]
    return Patch(lambda: [Replacement(variable, "trainable", False) for variable in late]).installed()


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
