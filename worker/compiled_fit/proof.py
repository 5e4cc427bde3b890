"""A short comparison of a program with Keras' own loop, where the release of Keras or TensorFlow was not tested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras.src.backend.tensorflow.trainer import TFEpochIterator
from keras.src.trainers.data_adapters import data_adapter_utils
from keras.src.utils.python_utils import pythonify_logs

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.epoch_runner import Copies
from gridfleet.worker.compiled_fit.errors import NotEligibleError, running_a_program
from gridfleet.worker.compiled_fit.programs.found import Found
from gridfleet.worker.compiled_fit.programs.inputs import EpochInputs
from gridfleet.worker.compiled_fit.programs.train import LoopOptions, TrainProgram
from gridfleet.worker.compiled_fit.programs.variables import variables_of
from gridfleet.worker.compiled_fit.types import Logs, Model

#: Full batches that both train on; a shorter last one follows them where the data have one.
N_BATCHES = 3
_LIMITS = LoopOptions(watches_for_nan=False, xla_batch_size=None)


def prove(model: Model, train: Batches | Stream, found: Found[TrainProgram]) -> None:
    """Train on the first batches by Keras' own loop and by a program, once in its life, and put the model back.

    Parameters
    ----------
    model : keras.Model
        About to be trained.
    train : Batches or Stream
        What on.
    found : Found
        The program.

    Raises
    ------
    NotEligibleError
        If weights, the optimizer's variables or results differ in a bit, or if nothing can be compared.
    """
    if isinstance(train, Stream):  # Keras would take batches out of it that the fit is to have
        raise NotEligibleError("batches of an iterator can't be compared with Keras' own")
    if found.entry.is_equal is None:
        found.entry.is_equal = _is_equal(model, _first_batches(train), found)
    if not found.entry.is_equal:
        raise NotEligibleError("the first batches came out otherwise than in Keras")


def _is_equal(model: Model, train: Batches, found: Found[TrainProgram]) -> bool:
    copies = Copies(model)

    def outcome(results: Logs) -> list[Any]:
        return [np.asarray(one) for one in (*keras.tree.flatten(results), *(v.value for v in variables_of(model)))]

    try:
        expected = outcome(_by_keras(model, train))
        copies.put_back()
        got = outcome(_by_program(model, train, found))
    finally:
        copies.put_back()
    return len(expected) == len(got) and all(
        np.array_equal(one, other, equal_nan=np.issubdtype(one.dtype, np.floating))
        for one, other in zip(expected, got, strict=True)
    )


def _first_batches(train: Batches) -> Batches:
    """Return few batches, of which the last one is shorter if that of the data is."""
    n_full = min(N_BATCHES, train.n_samples // train.batch_size)
    n_rows = n_full * train.batch_size + train.n_samples % train.batch_size
    tensors = [tensor[:n_rows] for tensor in train.tensors]
    return replace(train, structure=train.pack(tensors), tensors=tensors, n_samples=n_rows)


def _by_keras(model: Model, train: Batches) -> Logs:
    """Train as ``fit`` does, without what is around its loop."""
    x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(train.structure)
    batches = TFEpochIterator(
        x=x,
        y=y,
        sample_weight=sample_weight,
        batch_size=train.batch_size,
        shuffle=False,
        distribute_strategy=model.distribute_strategy,
        steps_per_execution=model.steps_per_execution,
    )
    logs = None
    with batches.catch_stop_iteration():
        for _, _, iterator in batches:
            logs = model.train_function(iterator)
    results: Logs = pythonify_logs(model._get_metrics_result_or_logs(logs))
    return results


def _by_program(model: Model, train: Batches, found: Found[TrainProgram]) -> Logs:
    loop = found.program.loop(model, found.variables, _LIMITS)
    order = np.arange(train.n_samples, dtype=np.int64)[None]
    inputs = EpochInputs.of(train, None, orders=order, plan=np.array([False]))
    with running_a_program():
        results, _ = found.program.run(loop, found.variables, inputs)
    return found.program.layout.unpack(results[0])
