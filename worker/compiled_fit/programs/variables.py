"""The variables of a model, its optimizer and its metrics, which Keras makes as late as it can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.trainers.data_adapters import data_adapter_utils

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.sharing.structure import PLAIN_MODELS, is_transparent


def made_variables(model: Any, data: Batches) -> bool:
    """Make the variables of model, optimizer and metrics without tracing a step, where it is known which they are.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    data : Batches
        What it is to be trained or evaluated on.

    Returns
    -------
    bool
        Whether all are made. The steps of other models make them when they are traced, as in Keras: which layers
        a ``call`` of somebody's own uses is seen by calling it, and may depend on ``training``.
    """
    if type(model) not in PLAIN_MODELS or not all(is_transparent(layer) for layer in model._flatten_layers(False)):
        return False
    if model._compile_metrics is not None and not all(map(_is_kerass_metric, _given_metrics(model))):
        return False
    if not _made_with_one_output(model, data):
        model._symbolic_build(data_batch=data.symbolic())
    return True


def variables_of(model: Any, *, trains: bool = True) -> list[Any]:
    """Return the variables that training changes, or an evaluation, as far as they are made."""
    optimizer = model.optimizer.variables if trains and model.optimizer is not None else []
    return [*model.variables, *optimizer, *(variable for metric in model.metrics for variable in metric.variables)]


@contextmanager
def known_to_optimizer(model: Any) -> Iterator[None]:
    """Leave out variables that became trainable after the first fit: Keras goes on with those that it trained then."""
    optimizer = model.optimizer
    known = getattr(optimizer, "_trainable_variables_indices", {})
    late = [one for one in model.trainable_variables if known and optimizer._var_key(one) not in known]
    for variable in late:
        variable.trainable = False
    try:
        yield
    finally:
        for variable in late:
            variable.trainable = True


def _made_with_one_output(model: Any, data: Batches) -> bool:
    """Do it without calling the model, where one output has a loss: 10 ms and not 20; or do nothing."""
    x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(data.symbolic())
    outputs = getattr(model, "outputs", None)
    if not model.built or not outputs or len(outputs) != 1 or keras.tree.is_nested(y) or y is None:
        return False
    loss, metrics = model._compile_loss, model._compile_metrics
    if loss is None or isinstance(getattr(model, "_outputs_struct", None), (dict, list, tuple)):
        return False
    predicted = keras.KerasTensor((None, *outputs[0].shape[1:]), outputs[0].dtype)
    for part in (metrics, loss):
        if part is not None and not part.built:
            part.build(y, predicted)
    if metrics is not None and not all(isinstance(metric, keras.metrics.Mean) for metric in metrics.metrics):
        # others may make variables when they first see data
        keras.src.backend.compute_output_spec(model.compute_metrics, x, y, predicted, sample_weight=sample_weight)
    if model.optimizer is not None and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model._post_build()
    return True


def _given_metrics(model: Any) -> list[Any]:
    metrics = model._compile_metrics
    return list(keras.tree.flatten([metrics._user_metrics, metrics._user_weighted_metrics]))


def _is_kerass_metric(metric: Any) -> bool:
    return not isinstance(metric, keras.Metric) or type(metric).__module__.startswith("keras.src.")
