"""Runs of epochs of one fit, in the graph or in XLA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import tensorflow as tf

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.callbacks import acts_between_epochs, watches_for_nan
from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.errors import (
    ProgramFailedError,
    StepChangedError,
    in_words,
    preparing_a_program,
    running_a_program,
)
from gridfleet.worker.compiled_fit.patches.code_generator import older_code_generator
from gridfleet.worker.compiled_fit.programs.building import n_trained_numbers
from gridfleet.worker.compiled_fit.programs.found import Found
from gridfleet.worker.compiled_fit.programs.inputs import EpochInputs
from gridfleet.worker.compiled_fit.programs.train import Loop, LoopOptions, TrainProgram
from gridfleet.worker.compiled_fit.programs.variables import variables_of
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.types import Callback, Model, Orders, Results, ValidationPlan
from gridfleet.worker.compiled_fit.xla_policy import XlaPolicy

#: Of variables, where nothing in a step can fail for their values: 18 million parameters with Adam are 216 MB.
MAX_COPIED_MB = 64
#: Results of each epoch, and batches of the last one.
Outcome: TypeAlias = tuple[Results, int]


@dataclass(frozen=True)
class FitData:
    """The rows of a fit.

    Parameters
    ----------
    train : Batches or Stream
        To train on.
    validation : Batches or None
        To validate on after an epoch, in the same program.
    """

    train: Batches | Stream
    validation: Batches | None


class FitPrograms:
    """The programs of a fit, each made when it is first needed.

    Parameters
    ----------
    mode : FitMode
        ``exact``, ``xla`` or ``auto``.
    find : callable
        Returns the program for XLA, or the one that is traced as Keras traces.
    surely_repays : bool, default=False
        Whether it is sure that XLA's compilation repays, in ``auto``.

    Attributes
    ----------
    starts_in_xla : bool
        Whether the program for XLA is the first one.
    """

    def __init__(self, mode: FitMode, find: Callable[..., Found[TrainProgram]], *, surely_repays: bool = False) -> None:
        self.starts_in_xla = mode is FitMode.XLA or (mode is FitMode.AUTO and surely_repays)
        self._find = find
        self._found: dict[bool, Found[TrainProgram]] = {}

    def get(self, *, for_xla: bool) -> Found[TrainProgram]:
        """Return the program for XLA, or the other one."""
        if for_xla not in self._found:
            self._found[for_xla] = self._find(for_xla=for_xla)
        return self._found[for_xla]

    def made(self, *, for_xla: bool) -> Found[TrainProgram] | None:
        """Return the program for XLA, or the other one, if it was needed already."""
        return self._found.get(for_xla)

    def first(self) -> TrainProgram:
        """Return the program that is made before the first epoch: whatever runs, its results have the same names."""
        return self.get(for_xla=self.starts_in_xla).program


class EpochRunner:
    """Runs epochs of one fit, each run where `XlaPolicy` says.

    Parameters
    ----------
    model : keras.Model
        To be trained.
    train, validation : Batches
        What on, and what to validate on in the same program; None: nothing.
    programs : FitPrograms
        Which are run.
    mode : FitMode
        ``exact``, ``xla`` or ``auto``.
    report : FitReport
        Where the time goes.
    callbacks : sequence of Callback
        The user's.

    Attributes
    ----------
    used : FitMode
        ``xla`` as soon as a run was XLA's, else ``exact``.
    """

    def __init__(
        self,
        model: Model,
        train: Batches,
        validation: Batches | None,
        programs: FitPrograms,
        *,
        mode: FitMode,
        report: FitReport,
        callbacks: Sequence[Callback],
    ) -> None:
        self.model = model
        self.program = programs.first()
        self.used = FitMode.EXACT
        self.watches_for_nan = watches_for_nan(callbacks)
        self._all_rows = train
        self._train = train  # the rows of the next run
        self._validation = validation
        self._programs = programs
        self._mode = mode
        self._report = report
        self._has_checked_indices = not self.program.checks_indices
        # XLA makes NaN of what TensorFlow's ReLU and maxima make zero
        self._is_finite = mode is FitMode.EXACT or train.is_finite()
        self._has_run = False
        self._shape = (train.batch_size, train.n_padded)
        self._train_function = model.train_function
        self._may_change = acts_between_epochs(callbacks)
        if self._may_change and self._policy().may_come_to_use_xla:
            self._loop(use_xla=True)  # traced apart, and nobody may have touched the model before

    def epochs_of_next_run(self, n_epochs: int) -> int:
        """Return how many of the epochs to come the next run should do."""
        return self._policy().epochs_of_next_run(n_epochs, is_first=not self._has_run)

    def select_rows(self) -> int:
        """Return how many rows the next run trains on.

        All; or those of the first batches, as in Keras, if a callback stopped the model before the epoch.
        """
        self._train = self._all_rows
        if self.model.stop_training:
            self._train = self._all_rows.first_execution(self.model.steps_per_execution)
        return self._train.n_samples

    def check_step(self, epoch: int) -> None:
        """Make sure that Keras would go on with the step that it began with.

        Parameters
        ----------
        epoch : int
            The next one, whose callbacks were called.

        Raises
        ------
        StepChangedError
            If a callback had it made anew.
        TypeError
            If a callback took it away, by compiling the model; Keras calls it then.
        """
        check_step(self.model, self._train_function, epoch)

    def run(self, orders: Orders, plan: ValidationPlan, *, n_more: int, is_one_by_one: bool = False) -> Outcome:
        """Run epochs.

        Parameters
        ----------
        orders : ndarray
            The order of the selected rows in each epoch, or in all.
        plan : ndarray of bool
            After which to validate.
        n_more : int
            Epochs that are to come after these, in this fit and in those that follow.
        is_one_by_one : bool, default=False
            Whether all runs of the fit are of one epoch.

        Returns
        -------
        results : ndarray of shape (n_epochs, n_results)
        n_steps : int
            Batches of the last epoch.
        """
        if self._policy().uses_xla(n_more + len(plan)):
            outcome = self._try_in_xla(orders, plan)
            if outcome is not None:
                return outcome
        outcome = self._run(orders, plan, use_xla=False, is_one_by_one=is_one_by_one)
        self._has_checked_indices = self._has_checked_indices or self._train is self._all_rows
        return outcome

    def report_mode(self) -> None:
        """Report how the fit was trained, and why not as it was asked to."""
        self._report.modes.append(self.used)
        if self._mode is FitMode.XLA and self.used is not FitMode.XLA:
            reason = (
                ("the model is compiled with jit_compile" if self.model.jit_compile else self._obstacle)
                or self._slower
                or "no full batch, TerminateOnNaN, or one epoch whose indices are checked"
            )
            self._report.fell_back(f"not in XLA: {reason}")

    def _policy(self) -> XlaPolicy:
        first, graph, xla = self.program, self._programs.made(for_xla=False), self._programs.made(for_xla=True)
        return XlaPolicy(
            mode=self._mode,
            obstacle=self._obstacle,
            has_checked_indices=self._has_checked_indices,
            watches_for_nan=self.watches_for_nan,
            keras_uses_xla=bool(self.model.jit_compile),
            has_full_batch=self._train.n_samples >= self._train.batch_size,
            is_compiled=self._is_compiled,
            n_operations=first.n_operations,
            n_multiplications=n_trained_numbers(self.model) * self._train.batch_size,
            steps_per_epoch=self._train.n_steps,
            n_graph_steps=graph.entry.n_graph_steps if graph else 0,
            graph_step_s=graph.entry.graph_step_s if graph else None,
            xla_step_s=xla.entry.xla_step_s if xla else None,
            starts_in_xla=self._programs.starts_in_xla,
        )

    @property
    def _obstacle(self) -> str | None:
        """Why XLA can't compile the step to something with the same result, or not to something faster; or None."""
        xla = self._programs.made(for_xla=True)
        known = self.program.xla_obstacle or (xla.program.xla_obstacle if xla else None)
        return known or (None if self._is_finite else "the data are not finite")

    @property
    def _slower(self) -> str | None:
        """That XLA was measured to be slower, or None."""
        return "its steps were slower there" if self._policy().is_slower_in_xla else None

    @property
    def _is_compiled(self) -> bool:
        found = self._programs.made(for_xla=True)
        return found is not None and self._shape in found.entry.compiled_shapes

    def _try_in_xla(self, orders: Orders, plan: ValidationPlan) -> Outcome | None:
        """Run epochs in XLA; returns None, and has changed nothing, if it can't compile them."""
        program = self._programs.get(for_xla=True).program
        if program.xla_obstacle is not None:
            return None
        if self._is_compiled:
            return self._run(orders, plan, use_xla=True)
        wants_fixed_batches = program.xla_wants_fixed_batches
        obstacle = None
        for fixed in dict.fromkeys((wants_fixed_batches, True)):
            if fixed and not wants_fixed_batches and self._may_change and self._has_run:
                return None  # the step would have to be traced anew, of a model that a callback may have changed
            program.xla_wants_fixed_batches = fixed
            try:
                with restored_if_it_fails(self.model):
                    return self._run(orders, plan, use_xla=True)
            except ProgramFailedError as error:
                obstacle = in_words(str(error))
        program.xla_obstacle = obstacle
        return None

    def _run(self, orders: Orders, plan: ValidationPlan, *, use_xla: bool, is_one_by_one: bool = False) -> Outcome:
        found = self._programs.get(for_xla=use_xla)
        loop = self._loop(use_xla=use_xla, is_one_by_one=is_one_by_one)
        compiles = use_xla and not self._is_compiled
        started = time.perf_counter()
        with (
            self._report.timed("compile" if compiles else "train"),
            older_code_generator() if compiles else nullcontext(),
            running_a_program(),
        ):
            inputs = EpochInputs.of(self._train, self._validation, orders=orders, plan=plan)
            outcome = found.program.run(loop, found.variables, inputs)
        self._note(time.perf_counter() - started, len(plan) * self._train.n_steps, use_xla=use_xla)
        self._has_run = True
        return outcome

    def _loop(self, *, use_xla: bool, is_one_by_one: bool = False) -> Loop:
        options = LoopOptions(
            watches_for_nan=self.watches_for_nan,
            xla_batch_size=self._train.batch_size if use_xla else None,
            is_one_epoch=is_one_by_one and not use_xla,  # XLA would compile its part of another loop anew
        )
        found = self._programs.get(for_xla=use_xla)
        with self._report.timed("trace"), preparing_a_program():
            return found.program.loop(self.model, found.variables, options)

    def _note(self, seconds: float, n_steps: int, *, use_xla: bool) -> None:
        """Note what a run cost; a program's first run includes what TensorFlow, or XLA, does to its graph."""
        entry = self._programs.get(for_xla=use_xla).entry
        if use_xla:
            self.used = FitMode.XLA
            if self._is_compiled:
                entry.xla_step_s = seconds / n_steps
            entry.compiled_shapes.add(self._shape)
            return
        if entry.n_graph_steps:
            entry.graph_step_s = seconds / n_steps
        entry.n_graph_steps += n_steps


def check_step(model: Model, train_function: object, epoch: int) -> None:
    """Make sure that Keras would go on with the step that it began with; see `EpochRunner.check_step`."""
    if model.train_function is None:
        raise TypeError("'NoneType' object is not callable")
    if model.train_function is not train_function:
        error = StepChangedError("a callback made the model's train_function anew")
        error.epoch = epoch
        raise error


class Copies:
    """The values of a model's variables, to put them back.

    Parameters
    ----------
    model : keras.Model
        Whose variables may change.
    """

    def __init__(self, model: Model) -> None:
        self._variables = variables_of(model)
        self._values = [tf.identity(variable.value) for variable in self._variables]

    @property
    def are_free(self) -> bool:
        """Whether they are gone."""
        return not self._values

    @property
    def size_mb(self) -> float:
        """Megabytes that they take once the variables have changed."""
        return float(sum(value.dtype.size * value.shape.num_elements() for value in self._values) / 2**20)

    def free(self) -> None:
        """Give their memory back: what has run once will not fail for a reason that Keras' own loop does not have."""
        self._variables, self._values = [], []

    def put_back(self) -> None:
        """Give the variables the values that they had."""
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)


@contextmanager
def restored_if_it_fails(model: Model, *, may_fail: bool = True) -> Iterator[Copies]:
    """Put the model's variables back if TensorFlow fails, for Keras' own fit starts from them.

    Once the copies are free, the error is the user's, as that of Keras' own loop is.

    Parameters
    ----------
    model : keras.Model
        To be trained.
    may_fail : bool, default=True
        Whether it is known that TensorFlow may; else variables of more than `MAX_COPIED_MB` are not copied.

    Yields
    ------
    Copies
        To be freed as soon as nothing can fail.
    """
    copies = Copies(model)
    if not may_fail and copies.size_mb > MAX_COPIED_MB:
        copies.free()
    try:
        yield copies
    except ProgramFailedError as error:
        if copies.are_free and error.__cause__ is not None:
            raise error.__cause__ from None
        copies.put_back()
        raise
