"""Keras' ``fit``, ``evaluate`` and ``predict`` with their loops inside the graph.

Each function is Keras' own method of the same name (keras/src/backend/tensorflow/trainer.py), step by step,
but for the loop over batches. `NotEligibleError` says that Keras' own has to run; what callbacks did, stays done then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src import callbacks as keras_callbacks
from keras.src import optimizers as keras_optimizers
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit import xla_policy as xla
from gridfleet.worker.compiled_fit.data.batches import Batches, as_traced, make_batches, was_trained
from gridfleet.worker.compiled_fit.data.row_order import epoch_orders
from gridfleet.worker.compiled_fit.eligibility import (
    KerasTakesOverError,
    NotEligibleError,
    acts_before_first_batch,
    acts_between_epochs,
    check_arrays,
    check_callbacks,
    check_model,
    flat_callbacks,
    watches_for_nan,
)
from gridfleet.worker.compiled_fit.programs.train import EvaluateProgram, PredictProgram, TrainProgram
from gridfleet.worker.compiled_fit.programs.variables import known_to_optimizer, made_variables, variables_of
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.sharing.cache import Entry, ProgramCache, find_or_make
from gridfleet.worker.compiled_fit.sharing.structure import graph_digest, structure_of

#: How the lines of TensorFlow's errors begin that say where it failed, and not why.
WHERE_IT_FAILED = ("Graph execution error:", "Detected at node", "File ", "<stack traces", "[[{{node")
#: Seconds after which a run of epochs returns to Python, so that a trial can be stopped.
RETURN_S = 1.0
#: How many times longer than the last run the next one may be, while its speed is not known well.
GROWTH = 8


class ProgramFailedError(KerasTakesOverError):
    """TensorFlow failed inside a program; the model is as it was before."""


class Loops:
    """Runs Keras' loops in one mode, with one cache, and reports on them.

    Parameters
    ----------
    mode : FitMode
        ``exact``, ``xla`` or ``auto``.
    cache : ProgramCache
        Where programs are kept.
    report : FitReport
        What is told of each call.
    n_fits : int
        How many fits of this structure the trial has, for ``auto``.
    """

    def __init__(self, mode: FitMode, cache: ProgramCache, report: FitReport, *, n_fits: int) -> None:
        self.mode = mode
        self._cache = cache
        self.report = report
        self._fits_to_come = n_fits

    def fit(
        self,
        model: Any,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: Any = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
    ) -> Any:
        """Train a model as ``keras.Model.fit`` does; the parameters are its own.

        Raises
        ------
        NotEligibleError, ProgramFailedError
            If Keras' own ``fit`` has to run.
        """
        model._assert_compile_called("fit")
        self._fits_to_come = max(self._fits_to_come - 1, 0)
        check_model(model)
        check_callbacks(
            callbacks,
            validates=bool(validation_split or validation_data is not None),
            steps_per_execution=model.steps_per_execution,
        )
        check_arrays((x, y, sample_weight))
        if steps_per_epoch or validation_steps:
            raise NotEligibleError("steps_per_epoch or validation_steps is set")
        if epochs <= initial_epoch:
            raise NotEligibleError("there are no epochs to train")
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = array_slicing.train_validation_split(
                (x, y, sample_weight), validation_split=validation_split
            )
        with _preparing():
            train = make_batches(x, y, sample_weight, batch_size=batch_size, class_weight=class_weight)
            trains_again = was_trained(model)
            train = as_traced(model, "train", train)
            validation = _validation_batches(model, validation_data, validation_batch_size or batch_size)
            should_validate = _validation_plan(model, validation, validation_freq)
            given = flat_callbacks(callbacks)
            # Keras traces at the first batch: what callbacks change until then counts
            waits = acts_before_first_batch(given)
            entry = None if waits else self._train_program(model, train, validation, again=trains_again)
        orders = epoch_orders(train.n_samples, train.batch_size, shuffle, epochs)
        container = keras_callbacks.CallbackList(
            callbacks,
            add_history=True,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=epochs,
            steps=train.n_steps,
            model=model,
        )
        model.stop_training = False
        container.on_train_begin()
        epochs_to_run = range(model._initial_epoch or initial_epoch, epochs)
        if epochs_to_run:
            model.reset_metrics()
            container.on_epoch_begin(epochs_to_run.start)
        with _goes_on_with(container):
            if entry is None:
                with _preparing():
                    entry = self._train_program(model, train, validation, again=trains_again)
            training = _Training(
                model,
                train,
                validation,
                entry,
                mode=self.mode,
                report=self.report,
                watches_for_nan=watches_for_nan(given),
                may_change=acts_between_epochs(given),
            )
            with training.undone_if_it_fails():
                logs = _run_epochs(training, container, epochs_to_run, orders, should_validate, self._fits_to_come)
        if isinstance(model.optimizer, keras_optimizers.Optimizer):
            model.optimizer.finalize_variable_values(model.trainable_weights)
        container.on_train_end(logs=logs)
        training.tell_of_mode()
        return model.history

    def evaluate(
        self,
        model: Any,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **keywords: Any,
    ) -> Any:
        """Evaluate a model as ``keras.Model.evaluate`` does; the parameters are its own."""
        model._assert_compile_called("evaluate")
        check_model(model)
        check_callbacks(callbacks)
        check_arrays((x, y, sample_weight))
        if steps or keywords:
            raise NotEligibleError("steps is set")
        with self.report.timed("trace"), _preparing():
            data = as_traced(model, "test", make_batches(x, y, sample_weight, batch_size=batch_size))
            entry = find_or_make(
                self._cache,
                structure=structure_of(model) if made_variables(model, data) else None,
                signature=("evaluate", data.fixed_batch_size, data.signature),
                make=lambda: EvaluateProgram(model, data),
                digest=lambda program: graph_digest(program.steps, program.told),
            )
        container = _containing(callbacks, model, verbose, data.n_steps)
        model.stop_evaluating = False
        container.on_test_begin()
        with _failing_as_program():
            logs = entry.program.run(model, _first_execution(data, model) if model.stop_evaluating else data)
        container.on_test_end(logs)
        logs = dict(sorted(logs.items()))  # as Keras' pythonify_logs orders them
        return logs if return_dict else model._flatten_metrics_in_order(logs)

    def predict(
        self,
        model: Any,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """Predict as ``keras.Model.predict`` does; the parameters are its own."""
        check_model(model)
        check_callbacks(callbacks)
        check_arrays((x,))
        if steps:
            raise NotEligibleError("steps is set")
        if model.steps_per_execution > 1:
            raise NotEligibleError("steps_per_execution is set")  # Keras predicts as many batches in one graph
        if not model.built:
            raise NotEligibleError("the model is not built yet")
        with self.report.timed("trace"), _preparing():
            data = make_batches(x, batch_size=batch_size)
            entry = find_or_make(
                self._cache,
                structure=structure_of(model),
                signature=("predict", data.first_batch_size, data.has_remainder, data.signature),
                make=lambda: PredictProgram(model, data),
                digest=lambda program: graph_digest(program.steps, program.told),
            )
        container = _containing(callbacks, model, verbose, data.n_steps)
        model.stop_predicting = False
        container.on_predict_begin()
        with _failing_as_program():
            predicted = entry.program.run(model, data)
        if model.stop_predicting:
            predicted = keras.tree.map_structure(lambda rows: rows[: data.first_batch_size], predicted)
        container.on_predict_end()
        return predicted

    def _train_program(self, model: Any, train: Batches, validation: Batches | None, *, again: bool) -> Entry:
        for_xla = self.mode in (FitMode.XLA, FitMode.AUTO)
        with self.report.timed("trace"), known_to_optimizer(model) if again else nullcontext():
            return find_or_make(
                self._cache,
                structure=structure_of(model, trains=True) if made_variables(model, train) else None,
                signature=("train", for_xla, *(_signature(data, for_xla=for_xla) for data in (train, validation))),
                make=lambda: TrainProgram(model, train, validation, for_xla=for_xla),
                digest=lambda program: graph_digest(program.steps, program.told),
            )


class _Training:
    """One fit: runs of epochs, in the graph or in XLA."""

    def __init__(
        self,
        model: Any,
        train: Batches,
        validation: Batches | None,
        entry: Entry,
        *,
        mode: FitMode,
        report: FitReport,
        watches_for_nan: bool,
        may_change: bool,
    ) -> None:
        self.model = model
        self._train = self._all_rows = train
        self._validation = validation
        self._entry = entry
        self._program: TrainProgram = entry.program
        #: Whether the graph has looked up all the rows' indices, of which XLA does not say that they are out of range.
        self._is_checked = not self._program.checks_indices
        self.report = report
        self.mode = mode
        self._last_run = 0
        self._shape = (train.batch_size, xla.bucket(train.n_samples))
        self.used = FitMode.EXACT
        self.watches_for_nan = watches_for_nan
        self._compiled = model._compile_config
        self._may_change = may_change
        if may_change and self._program.xla_wants_fixed_batches and mode is not FitMode.EXACT:
            self._prepare(use_xla=True)  # its step is traced apart, and nobody may have touched the model before

    def next_run(self, n_epochs: int) -> int:
        """Return how many of the epochs to come the next run should do."""
        seconds_per_step = self._entry.seconds_per_step.get(self._runs_in_xla)
        if self.mode is not FitMode.EXACT and not self._is_checked:
            return 1
        if seconds_per_step is None:
            return 1 if not self._last_run else min(n_epochs, GROWTH)
        affordable = int(RETURN_S / (seconds_per_step * self._train.n_steps))
        return max(1, min(n_epochs, affordable))

    def rows_of_epoch(self, orders: Any) -> Any:
        """Return the rows to train on: the first batches only, as in Keras, if a callback stops it before the epoch."""
        self._train = self._all_rows
        if self.model.stop_training:
            self._train = _first_execution(self._all_rows, self.model)
        return orders[:, : self._train.n_samples]

    def run(self, orders: Any, plan: Any, *, n_more: int) -> tuple[Any, int]:
        """Run epochs.

        Parameters
        ----------
        orders : ndarray
            The rows' order in each, or in all.
        plan : ndarray of bool
            After which to validate.
        n_more : int
            Epochs that are to come after these, in this fit and in those that follow.

        Returns
        -------
        results : ndarray of shape (n_epochs, n_results)
        n_steps : int
            Batches of the last epoch.
        """
        if self._uses_xla(n_more + len(plan)):
            done = self._try_in_xla(orders, plan)
            if done is not None:
                return done
        done = self._run(orders, plan, use_xla=False)
        self._is_checked = self._is_checked or self._train is self._all_rows
        return done

    def _try_in_xla(self, orders: Any, plan: Any) -> tuple[Any, int] | None:
        """Run epochs in XLA; returns None, and has changed nothing, if it can't compile them."""
        if self._shape in self._entry.compiled:
            return self._run(orders, plan, use_xla=True)
        for wants_fixed_batches in dict.fromkeys((self._program.xla_wants_fixed_batches, True)):
            if (
                wants_fixed_batches
                and not self._program.xla_wants_fixed_batches
                and self._may_change
                and self._last_run
            ):
                return None
            self._program.xla_wants_fixed_batches = wants_fixed_batches
            try:
                with self.undone_if_it_fails():
                    return self._run(orders, plan, use_xla=True)
            except ProgramFailedError as error:
                why = str(error)
        self._program.why_no_xla = why
        return None

    def _run(self, orders: Any, plan: Any, *, use_xla: bool) -> tuple[Any, int]:
        if self.model._compile_config is not self._compiled:
            raise ProgramFailedError("a callback compiled the model anew")
        key = self._prepare(use_xla=use_xla)
        is_compiled = use_xla and self._shape in self._entry.compiled
        compiles = use_xla and not is_compiled
        started = time.perf_counter()
        with (
            self.report.timed("compile" if compiles else "train"),
            xla.older_code_generator() if compiles else nullcontext(),
            _failing_as_program(),
        ):
            results = self._program.run(key, self.model, self._train, self._validation, orders=orders, validate=plan)
        seconds = time.perf_counter() - started
        # a program's first run includes what TensorFlow, or XLA, does to its graph
        if is_compiled or (not use_xla and self._entry.steps_without_xla):
            self._entry.seconds_per_step[use_xla] = seconds / (len(plan) * self._train.n_steps)
        if use_xla:
            self.used = FitMode.XLA
            self._entry.compiled.add(self._shape)
        else:
            self._entry.steps_without_xla += len(plan) * self._train.n_steps
        self._last_run = len(plan)
        return results

    def _prepare(self, *, use_xla: bool) -> Any:
        with self.report.timed("trace"), _preparing():
            return self._program.prepare(
                self.model,
                watches_for_nan=self.watches_for_nan,
                xla_batch_size=self._train.batch_size if use_xla else None,
            )

    def logs_of(self, row: Any, is_validated: bool, n_steps: int, container: Any) -> dict[str, float]:
        """Return an epoch's logs, having told of what happened inside it."""
        logs = dict(zip(self._program.metric_names, map(float, row), strict=False))
        if self.watches_for_nan:
            _tell_of_nan(container, n_steps - 1, logs)
        if is_validated:
            logs.update(_validation_logs(container, self._program, row))
        return logs

    def tell_of_mode(self) -> None:
        """Report how it trained, and why not as it was asked to."""
        self.report.modes.append(self.used)
        if self.mode is FitMode.XLA and self.used is not FitMode.XLA:
            why = self._program.why_no_xla or "no full batch, TerminateOnNaN, or one epoch whose indices are checked"
            self.report.fell_back(f"not in XLA: {why}")

    @contextmanager
    def undone_if_it_fails(self) -> Iterator[None]:
        """Put the model's variables back if TensorFlow fails, for Keras' own fit starts from them."""
        variables = variables_of(self.model)
        before = [tf.identity(variable.value) for variable in variables]
        try:
            yield
        except ProgramFailedError:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            raise

    @property
    def _runs_in_xla(self) -> bool:
        return self._can_use_xla and self._shape in self._entry.compiled

    @property
    def _can_use_xla(self) -> bool:
        return (
            self.mode in (FitMode.XLA, FitMode.AUTO)
            and self._is_checked
            and self._program.why_no_xla is None
            and not self.watches_for_nan
            and not self.model.jit_compile
            and self._train.n_samples >= self._train.batch_size
        )

    def _uses_xla(self, epochs_to_come: int) -> bool:
        if not self._can_use_xla:
            return False
        if self.mode is FitMode.XLA:
            return True
        seconds_per_step = self._entry.seconds_per_step.get(False)
        if self._shape in self._entry.compiled:
            in_xla = self._entry.seconds_per_step.get(True)
            return in_xla is None or seconds_per_step is None or in_xla < seconds_per_step
        return (
            seconds_per_step is not None
            and not self._program.convolves
            and xla.repays(
                self._entry.steps_without_xla + epochs_to_come * self._train.n_steps,
                seconds_per_step,
                self._program.n_operations,
            )
        )


def _run_epochs(
    training: _Training,
    container: Any,
    epochs: range,
    orders: Any,
    should_validate: Callable[[int], bool],
    fits_to_come: int,
) -> dict[str, float] | None:
    """Train until the last epoch, or until a callback stops it; returns the last epoch's logs.

    The first epoch has begun: its callbacks are told.
    """
    # with nothing but the History to be told, epochs follow each other inside the graph
    is_told_each_epoch = any(type(callback) is not keras_callbacks.History for callback in container.callbacks)
    logs: dict[str, float] | None = None
    epoch = epochs.start
    while epoch < epochs.stop:
        if epoch > epochs.start:
            container.model.reset_metrics()
            container.on_epoch_begin(epoch)
        rows = training.rows_of_epoch(orders)
        n_epochs = 1 if is_told_each_epoch else training.next_run(epochs.stop - epoch)
        plan = np.array([should_validate(number) for number in range(epoch, epoch + n_epochs)])
        n_more = epochs.stop - epoch - n_epochs + len(epochs) * fits_to_come
        results, n_steps = training.run(_rows(rows, epoch - epochs.start, n_epochs), plan, n_more=n_more)
        for place, (row, is_validated) in enumerate(zip(results, plan, strict=True)):
            if place:
                container.on_epoch_begin(epoch)
            logs = training.logs_of(row, is_validated, n_steps, container)
            container.on_epoch_end(epoch, logs)
            epoch += 1
        if container.model.stop_training:
            break
    return logs


def _signature(data: Batches | None, *, for_xla: bool) -> Any:
    return data and (None if for_xla else data.fixed_batch_size, data.signature)


@contextmanager
def _goes_on_with(container: Any) -> Iterator[None]:
    """Let Keras go on with callbacks that were told of the beginning already, where it has to take over there."""
    try:
        yield
    except KerasTakesOverError as error:
        if not container._history.epoch:
            for hook in ("on_train_begin", "on_epoch_begin"):
                _skip_once(container, hook)
            error.callbacks = container
        raise


def _skip_once(container: Any, hook: str) -> None:
    told = getattr(container, hook)
    setattr(container, hook, lambda *_args, **_keywords: setattr(container, hook, told))


@contextmanager
def _failing_as_program() -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, RuntimeError) as error:
        raise ProgramFailedError(_in_short(error)) from error


@contextmanager
def _preparing() -> Iterator[None]:
    """Leave whatever can't be converted or traced to Keras, which says better what is wrong, or can do it."""
    try:
        yield
    except NotEligibleError:
        raise
    except Exception as error:
        raise ProgramFailedError(_in_short(error)) from error


def _in_short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(WHERE_IT_FAILED)] or lines or [""]
    return f"the program failed with {type(error).__name__}: {told[0][:200]}"


def _first_execution(data: Batches, model: Any) -> Batches:
    """Return the batches that Keras still runs if a callback stopped it beforehand."""
    return replace(data, n_samples=min(data.batch_size * model.steps_per_execution, data.n_samples))


def _validation_batches(model: Any, validation_data: Any, batch_size: int | None) -> Batches | None:
    if validation_data is None:
        return None
    if not isinstance(validation_data, (tuple, list)):
        raise NotEligibleError("validation_data is no tuple of arrays")
    x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(tuple(validation_data))
    check_arrays((x, y, sample_weight))
    return as_traced(model, "test", make_batches(x, y, sample_weight, batch_size=batch_size))


def _validation_plan(model: Any, validation: Batches | None, validation_freq: Any) -> Callable[[int], bool]:
    if validation is None:
        return lambda _: False
    return lambda epoch: bool(model._should_eval(epoch, validation_freq))


def _rows(orders: Any, first: int, count: int) -> Any:
    return orders if len(orders) == 1 else orders[first : first + count]


def _tell_of_nan(container: Any, batch: int, logs: dict[str, float]) -> None:
    """Let TerminateOnNaN do what it does at the batch where the epoch ended."""
    if not np.isfinite(logs.get("loss", 0.0)):
        for callback in container.callbacks:
            if type(callback) is keras_callbacks.TerminateOnNaN:
                callback.on_batch_end(batch, logs)


def _validation_logs(container: Any, program: TrainProgram, row: Any) -> dict[str, float]:
    values = dict(zip(program.validation_names, map(float, row[len(program.metric_names) :]), strict=True))
    container.on_test_begin()
    container.on_test_end({name.removeprefix("val_"): value for name, value in values.items()})
    return values


def _containing(callbacks: Any, model: Any, verbose: Any, n_steps: int) -> Any:
    return keras_callbacks.CallbackList(
        callbacks, add_progbar=verbose != 0, verbose=verbose, epochs=1, steps=n_steps, model=model
    )
