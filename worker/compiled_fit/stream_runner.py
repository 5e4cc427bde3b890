"""Epochs of one fit whose batches come out of an iterator: in the graph, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.callbacks import watches_for_nan
from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.epoch_runner import FitPrograms, Outcome, check_step
from gridfleet.worker.compiled_fit.errors import preparing_a_program, running_a_program
from gridfleet.worker.compiled_fit.programs.inputs import EpochInputs, StreamInputs
from gridfleet.worker.compiled_fit.programs.train import LoopOptions
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.types import Callback, Model, Orders, Results, ValidationPlan


class StreamRunner:
    """Runs epochs of one fit as `EpochRunner` does, whose methods it has.

    Parameters
    ----------
    model : keras.Model
        To be trained.
    train : Stream
        What on.
    validation : Batches or None
        What to validate on in the same program.
    programs : FitPrograms
        Which are run.
    report : FitReport
        Where the time goes.
    callbacks : sequence of Callback
        The user's.
    """

    def __init__(
        self,
        model: Model,
        train: Stream,
        validation: Batches | None,
        programs: FitPrograms,
        *,
        report: FitReport,
        callbacks: Sequence[Callback],
    ) -> None:
        self.model = model
        self.program = programs.first()
        self.watches_for_nan = watches_for_nan(callbacks)
        self._train = train
        self._validation = validation
        self._found = programs.get(for_xla=False)
        self._report = report
        self._train_function = model.train_function

    def epochs_of_next_run(self, n_epochs: int) -> int:
        """Return one: Keras asks for an iterator at each epoch."""
        return min(1, n_epochs)

    def select_rows(self) -> int:
        """Return how many rows are taken in an order of ours: none."""
        return 0

    def check_step(self, epoch: int) -> None:
        """Make sure that Keras would go on with the step that it began with."""
        check_step(self.model, self._train_function, epoch)

    def run(self, orders: Orders, plan: ValidationPlan, *, n_more: int, is_one_by_one: bool = True) -> Outcome:
        """Run an epoch; the orders are those of no rows."""
        stops = bool(self.model.stop_training)  # a callback has stopped it: Keras still runs the first batches

        def run(iterator: Any, limit: int) -> tuple[Results, int]:
            inputs = StreamInputs.of(iterator, self.model.steps_per_execution if stops else limit)
            return self._run(EpochInputs.of_stream(inputs, self._validation, plan=plan))

        return self._train.one_pass(run, is_cut=lambda results: stops or self._is_ended_by_nan(results))

    def report_mode(self) -> None:
        """Report how the fit was trained."""
        self._report.modes.append(FitMode.EXACT)

    def _run(self, inputs: EpochInputs) -> Outcome:
        options = LoopOptions(watches_for_nan=self.watches_for_nan, xla_batch_size=None, is_one_epoch=True)
        with self._report.timed("trace"), preparing_a_program():
            loop = self._found.program.loop(self.model, self._found.variables, options)
        with self._report.timed("train"), running_a_program():
            return self._found.program.run(loop, self._found.variables, inputs)

    def _is_ended_by_nan(self, results: Results) -> bool:
        place = self.program.layout.place_of("loss")
        return self.watches_for_nan and place is not None and not np.isfinite(results[0, place])
