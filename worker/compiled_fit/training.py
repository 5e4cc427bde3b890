"""The epochs of one fit, with their callbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from keras.src.utils.python_utils import pythonify_logs

from gridfleet.worker.compiled_fit.callbacks import has_listeners, report_nan, report_validation
from gridfleet.worker.compiled_fit.epoch_runner import EpochRunner
from gridfleet.worker.compiled_fit.programs.train import TrainProgram
from gridfleet.worker.compiled_fit.stream_runner import StreamRunner
from gridfleet.worker.compiled_fit.types import CallbackList, Logs, Orders, Results, ValidationPlan
from gridfleet.worker.compiled_fit.watched import Watch


@dataclass(frozen=True)
class Schedule:
    """Which epochs are to be run, and how.

    Parameters
    ----------
    epochs : range
        Their numbers, as callbacks see them.
    draw_orders : callable
        Returns in which orders the next epochs take the rows, as they are needed.
    should_validate : callable
        Whether to validate after an epoch.
    n_fits_to_come : int
        Fits that follow this one, with as many epochs.
    may_stop : bool, default=False
        Whether a callback may end the fit early.
    watch : Watch, default=None
        Who looks at the epochs.
    """

    epochs: range
    draw_orders: Callable[[int], Orders]
    should_validate: Callable[[int], bool]
    n_fits_to_come: int
    may_stop: bool = False
    watch: Watch | None = None

    def next_orders(self, n_epochs: int, *, n_rows: int) -> Orders:
        """Return the orders of the next epochs, of the first rows alone."""
        return self.draw_orders(n_epochs)[:, :n_rows]

    def validation_plan(self, epoch: int, n_epochs: int) -> ValidationPlan:
        """Return after which of some epochs to validate."""
        return np.array([self.should_validate(number) for number in range(epoch, epoch + n_epochs)])

    def n_epochs_until_stop(self, epoch: int, n_epochs: int) -> int:
        """Return how many of some epochs come before somebody wants to act."""
        return n_epochs if self.watch is None else min(n_epochs, self.watch.next_stop(epoch) - epoch)

    def n_epochs_after(self, epoch: int) -> int:
        """Return how many are to come from an epoch on, those of the fits that follow included.

        Of a fit that may end early those are as many as came, for which a compilation is paid at most twice too early.
        """
        stop = min(self.epochs.stop, 2 * epoch - self.epochs.start) if self.may_stop else self.epochs.stop
        return stop - epoch + (stop - self.epochs.start) * self.n_fits_to_come


def train_epochs(
    runner: EpochRunner | StreamRunner,
    container: CallbackList,
    schedule: Schedule,
    validate: Callable[[], Logs] | None = None,
    *,
    after_first_run: Callable[[], None],
) -> Logs | None:
    """Train until the last epoch, or until a callback stops it; returns the last epoch's logs.

    The first epoch has begun: its callbacks were called.

    Parameters
    ----------
    runner : EpochRunner
        Runs the epochs.
    container : CallbackList
        The callbacks.
    schedule : Schedule
        Which epochs.
    validate : callable, default=None
        Validates the model after an epoch; None: the runner does.
    after_first_run : callable
        Called once epochs were run.
    """
    # where nothing but the History listens, epochs follow each other inside the graph
    returns_each_epoch = validate is not None or has_listeners(container)
    is_one_by_one = returns_each_epoch or len(schedule.epochs) == 1
    logs: Logs | None = None
    epoch = schedule.epochs.start
    while epoch < schedule.epochs.stop:
        if epoch > schedule.epochs.start:
            container.model.reset_metrics()
            container.on_epoch_begin(epoch)
            runner.check_step(epoch)
        n_rows = runner.select_rows()
        n_epochs = 1 if returns_each_epoch else runner.epochs_of_next_run(schedule.epochs.stop - epoch)
        n_epochs = schedule.n_epochs_until_stop(epoch, n_epochs)
        plan = schedule.validation_plan(epoch, n_epochs)
        orders = schedule.next_orders(n_epochs, n_rows=n_rows)
        inside = plan if validate is None else np.zeros_like(plan)
        n_more = schedule.n_epochs_after(epoch + n_epochs)
        results, n_steps = runner.run(orders, inside, n_more=n_more, is_one_by_one=is_one_by_one)
        after_first_run()
        for place, (row, is_validated) in enumerate(zip(results, plan, strict=True)):
            if place:
                container.on_epoch_begin(epoch)
            is_validated_inside = is_validated and validate is None
            logs = _report_epoch(runner, container, row, is_validated=is_validated_inside, n_steps=n_steps)
            if is_validated and validate is not None:
                _add_validation(logs, validate(), runner.program)
            container.on_epoch_end(epoch, logs)
            epoch += 1
            if schedule.watch is not None:
                goes_on = epoch < schedule.epochs.stop and not container.model.stop_training
                schedule.watch.epoch_ended(epoch, logs, goes_on=goes_on)
        if container.model.stop_training:
            break
    return logs


def _report_epoch(
    runner: EpochRunner | StreamRunner, container: CallbackList, row: Results, *, is_validated: bool, n_steps: int
) -> Logs:
    """Return an epoch's logs, once callbacks were called for what happened inside it."""
    program = runner.program
    n_results = program.layout.size
    logs = program.layout.unpack(row[:n_results])
    if runner.watches_for_nan:
        report_nan(container, n_steps - 1, logs)
    if is_validated and program.validation_layout is not None:
        validation: Logs = pythonify_logs(program.validation_layout.unpack(row[n_results:]))
        report_validation(container, validation)
        _add_validation(logs, validation, program)
    return logs


def _add_validation(logs: Logs, validation: Logs, program: TrainProgram) -> None:
    logs.update({f"val_{name}": value for name, value in validation.items()})
    logs.update({name: validation[name] for name in program.layout.read_late if name in validation})
