"""Keras' ``fit``, ``evaluate`` and ``predict`` with their loops inside the graph.

Each method is Keras' own of the same name (keras/src/backend/tensorflow/trainer.py), step by step, but for the loop
over batches. `KerasTakesOverError` says that Keras' own has to run; what callbacks did, stays done then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from keras.src import optimizers as keras_optimizers
from keras.src.backend.tensorflow.trainer import TFEpochIterator
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.utils.python_utils import pythonify_logs

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.callbacks import (
    acts_before_first_batch,
    acts_in_validation,
    callback_list,
    flat_callbacks,
    handing_over_callbacks,
    may_stop,
    training_callback_list,
)
from gridfleet.worker.compiled_fit.data.batches import Batches, make_batches
from gridfleet.worker.compiled_fit.data.keras_functions import (
    as_traced,
    is_as_it_was_traced,
    is_traced_by_keras,
    traced,
    traced_predict_sizes,
    unnoted_if_it_fails,
)
from gridfleet.worker.compiled_fit.data.row_order import epoch_orders
from gridfleet.worker.compiled_fit.data.stream import Stream, is_dataset, make_stream
from gridfleet.worker.compiled_fit.eligibility import check_arrays, check_callbacks, check_model, is_overridden
from gridfleet.worker.compiled_fit.epoch_runner import EpochRunner, FitData, FitPrograms, restored_if_it_fails
from gridfleet.worker.compiled_fit.errors import (
    BatchByBatchError,
    NotEligibleError,
    preparing_a_program,
    running_a_program,
)
from gridfleet.worker.compiled_fit.programs.building import (
    build_variables,
    check_optimizer,
    has_convolutions,
    is_recurrent,
    n_trained_numbers,
    tracks_losses,
    unbuilt_if_it_fails,
)
from gridfleet.worker.compiled_fit.programs.evaluate import EvaluateProgram
from gridfleet.worker.compiled_fit.programs.found import Found, find_once
from gridfleet.worker.compiled_fit.programs.inputs import PassInputs, StreamInputs
from gridfleet.worker.compiled_fit.programs.predict import PredictProgram
from gridfleet.worker.compiled_fit.programs.train import TrainProgram
from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.proof import prove
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.sharing.cache import ProgramCache
from gridfleet.worker.compiled_fit.sharing.lookup import find_or_trace
from gridfleet.worker.compiled_fit.sharing.structure import structure_of
from gridfleet.worker.compiled_fit.stream_runner import StreamRunner
from gridfleet.worker.compiled_fit.training import Schedule, train_epochs
from gridfleet.worker.compiled_fit.types import (
    ArrayLike,
    Callback,
    CallbackList,
    Callbacks,
    Logs,
    Model,
    Orders,
    Shuffle,
    Structure,
)
from gridfleet.worker.compiled_fit.watched import Watch, Watching
from gridfleet.worker.compiled_fit.xla_policy import surely_repays


@dataclass(frozen=True)
class _Prepared:
    """A fit whose data are converted.

    Parameters
    ----------
    data : FitData
        The rows.
    programs : FitPrograms
        Which are made when they are needed.
    waits : bool
        Whether a callback may change the model before Keras would trace it.
    """

    data: FitData
    programs: FitPrograms
    waits: bool


class CompiledCalls:
    """Runs Keras' loops in one mode, with one cache, and reports on them.

    Parameters
    ----------
    mode : FitMode
        ``exact``, ``xla`` or ``auto``.
    cache : ProgramCache
        Where programs are kept.
    report : FitReport
        How each call ran.
    n_fits : int
        How many fits of this structure the trial has, for ``auto``.
    untested : str or None, default=None
        The release of Keras or TensorFlow that was not tested; None: both were. Otherwise only fits run compiled, as
        ``exact``, each program once its first batches were equal to Keras' own.
    watching : callable, default=None
        Returns who looks at the epochs of a fit; None: nobody does.
    """

    def __init__(
        self,
        mode: FitMode,
        cache: ProgramCache,
        report: FitReport,
        *,
        n_fits: int,
        untested: str | None = None,
        watching: Watching | None = None,
    ) -> None:
        self.mode = FitMode.EXACT if untested and mode in (FitMode.XLA, FitMode.AUTO) else mode
        self._asked_for = mode
        self._untested = untested
        self.report = report
        self._cache = cache
        self._n_fits = self._n_fits_to_come = n_fits
        self._watching = watching

    def watch(self, model: Model) -> Watch | None:
        """Return who looks at a fit of a model; the same one where Keras takes it over."""
        return None if self._watching is None else self._watching(model)

    @property
    def is_tested(self) -> bool:
        """Whether the releases of Keras and TensorFlow are those that programs were tested with."""
        return self._untested is None

    def fit(
        self,
        model: Model,
        x: ArrayLike = None,
        y: ArrayLike = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Callbacks = None,
        validation_split: float = 0.0,
        validation_data: ArrayLike = None,
        shuffle: Shuffle = True,
        class_weight: Any = None,
        sample_weight: ArrayLike = None,
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
        self._n_fits_to_come = max(self._n_fits_to_come - 1, 0)
        check_model(model, "train")
        check_callbacks(callbacks, "train", steps_per_execution=model.steps_per_execution)
        if epochs <= initial_epoch:
            raise NotEligibleError("there are no epochs to train")
        if not is_dataset(x):
            check_arrays((x, y, sample_weight))
            if validation_split and validation_data is None:
                (x, y, sample_weight), validation_data = array_slicing.train_validation_split(
                    (x, y, sample_weight), validation_split=validation_split
                )
        elif validation_split:
            raise NotEligibleError("validation_split of a Dataset")  # Keras says so
        validation = _ValidationData.of(validation_data, validation_batch_size or batch_size, validation_steps)
        is_apart = validation is not None and (self._untested or _is_apart(model, validation, callbacks))
        apart = validation if is_apart else None

        def make_train() -> Batches | Stream:
            options = {"batch_size": batch_size, "class_weight": class_weight}
            if is_dataset(x) or steps_per_epoch:
                options |= {"steps_per_epoch": steps_per_epoch, "shuffle": shuffle}
                return make_stream(model, x, y, sample_weight, **options)
            return make_batches(x, y, sample_weight, **options)

        def make_validation() -> Batches | None:
            return None if validation is None or apart else validation.batches(model)

        with unnoted_if_it_fails(model, "train"):
            # Keras traces at the first batch: what callbacks change until then counts
            waits = acts_before_first_batch(flat_callbacks(callbacks), is_built=model.built)
            with nullcontext() if waits else _as_before_if_a_callback_fails(model):
                prepared = self._prepare(
                    model,
                    make_train,
                    make_validation,
                    # of all fits of the trial; a callback may stop each of them soon
                    n_epochs=1 if callbacks else (epochs - initial_epoch) * max(self._n_fits, 1),
                    waits=waits,
                )
                train = prepared.data.train
                draw_orders = _draw_orders(train, shuffle)  # before a callback may set another seed
                container = training_callback_list(
                    callbacks, model, verbose=verbose, n_epochs=epochs, n_steps=train.n_steps
                )
                epochs_to_run = _begin_training(model, container, initial_epoch, epochs, resets=prepared.waits)
            schedule = Schedule(
                epochs=epochs_to_run,
                draw_orders=draw_orders,
                should_validate=_validation_rule(model, validation, validation_freq),
                n_fits_to_come=self._n_fits_to_come,
                may_stop=may_stop(flat_callbacks(callbacks)),
                watch=self.watch(model),
            )
            validate = partial(_validate, model, apart, container) if apart else None
            return self._train(model, prepared, container, schedule, given_callbacks=callbacks, validate=validate)

    def _prepare(
        self,
        model: Model,
        make_train: Callable[[], Batches | Stream],
        make_validation: Callable[[], Batches | None],
        *,
        n_epochs: int,
        waits: bool,
    ) -> _Prepared:
        with preparing_a_program():
            train: Batches | Stream = as_traced(model, "train", make_train())
            data = FitData(train, make_validation())
            # where XLA is not going to compile, the program that Keras' step is traced for is the first one
            mode = FitMode.EXACT if isinstance(train, Stream) or has_convolutions(model) else self.mode
            find = partial(self._train_program, model, data, n_epochs=n_epochs)
            is_sure = (
                model.built
                and isinstance(train, Batches)
                and surely_repays(
                    n_epochs * train.n_steps,
                    n_trained_numbers(model) * train.batch_size,
                    is_recurrent=is_recurrent(model),
                )
            )
            programs = FitPrograms(mode, find, surely_repays=is_sure)
            if not waits:
                model.reset_metrics()  # now, for Keras leaves those alone that are not built yet
                programs.first()
            if self._untested:
                self._prove(model, train, programs, waits=waits)
        return _Prepared(data, programs, waits)

    def _prove(self, model: Model, train: Batches | Stream, programs: FitPrograms, *, waits: bool) -> None:
        try:
            if waits:
                raise NotEligibleError("a callback may change the model before the first batch")
            prove(model, train, programs.get(for_xla=False))
        except NotEligibleError as error:
            raise NotEligibleError(f"not tested with {self._untested}: {error}") from None

    def _train(
        self,
        model: Model,
        prepared: _Prepared,
        container: CallbackList,
        schedule: Schedule,
        *,
        given_callbacks: Callbacks,
        validate: Callable[[], Logs] | None,
    ) -> Any:
        """Run the epochs of a fit that has begun; returns its History."""
        model._eval_epoch_iterator = None
        with handing_over_callbacks(container):
            runner = self._runner(model, prepared, flat_callbacks(given_callbacks))
            may_fail = isinstance(prepared.data.train, Stream) or runner.program.may_fail
            with restored_if_it_fails(model, may_fail=may_fail) as copies, _reporting_if_it_is_stopped(runner):
                logs = train_epochs(runner, container, schedule, validate, after_first_run=copies.free)
        del model._eval_epoch_iterator
        if isinstance(model.optimizer, keras_optimizers.Optimizer):
            model.optimizer.finalize_variable_values(model.trainable_weights)
        container.on_train_end(logs=logs)
        runner.report_mode()
        return model.history

    def _runner(self, model: Model, prepared: _Prepared, callbacks: list[Callback]) -> EpochRunner | StreamRunner:
        train, validation, programs = prepared.data.train, prepared.data.validation, prepared.programs
        if self._untested and self._asked_for is FitMode.XLA:
            self.report.fell_back(f"not in XLA: not tested with {self._untested}")
        if isinstance(train, Stream):
            if self.mode is FitMode.XLA:
                self.report.fell_back("not in XLA: its batches come out of an iterator")
            return StreamRunner(model, train, validation, programs, report=self.report, callbacks=callbacks)
        return EpochRunner(model, train, validation, programs, mode=self.mode, report=self.report, callbacks=callbacks)

    def _train_program(self, model: Model, data: FitData, *, for_xla: bool, n_epochs: int) -> Found[TrainProgram]:
        train, validation = data.train, data.validation
        fixes_size = for_xla and tracks_losses(model)
        signature = (
            "train",
            for_xla,
            *(_signature(one, knows_size=not for_xla or fixes_size) for one in (train, validation)),
        )
        kept = traced(model, "train").programs

        def find() -> Found[TrainProgram]:
            structure = structure_of(model, trains=True) if build_variables(model, train, trains=True) else None
            is_known = is_as_it_was_traced(model, train, structure)
            is_known = structure is not None and is_known and not is_traced_by_keras(model, "test", validation)
            options = {"for_xla": for_xla, "fixes_size": fixes_size, "is_known": is_known}
            entry = find_or_trace(
                self._cache,
                structure=structure if is_known else None,
                signature=signature,
                trace=lambda: TrainProgram(model, train, validation, **options),
            )
            program = entry.program
            stays_in_graph = self.mode is FitMode.EXACT or program.xla_obstacle is not None
            if is_known and stays_in_graph and not self._untested:
                program.update_at_once(model, entry.n_graph_steps + n_epochs * train.n_steps)
            return Found(entry, program.variables_of(model))

        if signature not in kept:
            check_optimizer(model)
        with self.report.timed("trace"), unbuilt_if_it_fails(model):
            return find_once(kept, signature, find)

    def evaluate(
        self,
        model: Model,
        x: ArrayLike = None,
        y: ArrayLike = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: ArrayLike = None,
        steps: int | None = None,
        callbacks: Callbacks = None,
        return_dict: bool = False,
        **keywords: Any,
    ) -> Any:
        """Evaluate a model as ``keras.Model.evaluate`` does; the parameters are its own."""
        model._assert_compile_called("evaluate")
        self._check_release()
        is_in_fit = keywords.pop("_use_cached_eval_dataset", False)  # then the callbacks are those of the fit
        check_model(model, "test")
        check_callbacks(callbacks.callbacks if is_in_fit else callbacks, "test")
        if keywords:
            raise NotEligibleError("an argument is not known")  # Keras says so
        if not is_dataset(x):
            check_arrays((x, y, sample_weight))
        with unnoted_if_it_fails(model, "test"), self.report.timed("trace"), preparing_a_program():
            given: Batches | Stream
            if is_dataset(x) or steps:
                source = model._eval_epoch_iterator if is_in_fit else None
                options = {"batch_size": batch_size, "steps_per_epoch": steps, "shuffle": False}
                given = make_stream(model, x, y, sample_weight, source=source, **options)
            else:
                given = make_batches(x, y, sample_weight, batch_size=batch_size)
            data = as_traced(model, "test", given)
            model.reset_metrics()  # now, for Keras leaves those alone that are not built yet
            found = self._evaluate_program(model, data)
        container = callbacks if is_in_fit else callback_list(callbacks, model, verbose=verbose, n_steps=data.n_steps)
        logs = _evaluate(found, model, data, container)
        return logs if return_dict else model._flatten_metrics_in_order(logs)

    def _evaluate_program(self, model: Model, data: Batches | Stream) -> Found[EvaluateProgram]:
        signature = "evaluate", data.fixed_batch_size, data.signature, isinstance(data, Stream)
        kept = traced(model, "test").programs

        def find() -> Found[EvaluateProgram]:
            is_known = build_variables(model, data, trains=False) and not is_traced_by_keras(model, "test", data)
            entry = find_or_trace(
                self._cache,
                structure=structure_of(model) if is_known else None,
                signature=signature,
                trace=lambda: EvaluateProgram(model, data),
            )
            return Found(entry, VariableSet.of_evaluation(model))

        with unbuilt_if_it_fails(model):
            return find_once(kept, signature, find)

    def predict(
        self,
        model: Model,
        x: ArrayLike,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Callbacks = None,
    ) -> Structure:
        """Predict as ``keras.Model.predict`` does; the parameters are its own."""
        self._check_release()
        check_model(model, "predict")
        check_callbacks(callbacks, "predict")
        check_arrays((x,))
        if steps:
            raise BatchByBatchError("steps is set")
        if model.steps_per_execution > 1:
            raise NotEligibleError("steps_per_execution is set")  # Keras predicts as many batches in one graph
        with unnoted_if_it_fails(model, "predict"), self.report.timed("trace"), preparing_a_program():
            data = make_batches(x, batch_size=batch_size)
            found = self._predict_program(model, data)
        container = callback_list(callbacks, model, verbose=verbose, n_steps=data.n_steps)
        return _predict(found, model, data, container)

    def _check_release(self) -> None:
        """Leave what nobody compares to Keras."""
        if self._untested:
            raise NotEligibleError(f"not tested with {self._untested}: predict and evaluate are Keras' own")

    def _predict_program(self, model: Model, data: Batches) -> Found[PredictProgram]:
        sizes = traced_predict_sizes(model, data)
        signature = "predict", sizes, data.signature
        kept = traced(model, "predict").programs

        def find() -> Found[PredictProgram]:
            entry = find_or_trace(
                self._cache,
                structure=structure_of(model, predicts=True),
                signature=signature,
                trace=lambda: PredictProgram(model, data, sizes),
            )
            return Found(entry, VariableSet.of_prediction(model))

        return find_once(kept, signature, find)


@dataclass(frozen=True)
class _ValidationData:
    """What a fit validates on.

    Parameters
    ----------
    x, y, sample_weight : nested structure of array-like, or a Dataset as `x`
        As for Keras' ``fit``.
    batch_size, steps : int or None
        As for Keras' ``evaluate``.
    """

    x: ArrayLike
    y: ArrayLike
    sample_weight: ArrayLike
    batch_size: int | None
    steps: int | None

    @classmethod
    def of(cls, validation_data: ArrayLike, batch_size: int | None, steps: int | None) -> _ValidationData | None:
        """Return what the arguments of a fit say, or None."""
        if validation_data is None:
            return None
        if isinstance(validation_data, (tuple, list)) and not 1 <= len(validation_data) <= 3:
            raise NotEligibleError("validation_data has too many parts")  # Keras says so
        x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(validation_data)
        return cls(x, y, sample_weight, batch_size, steps)

    @property
    def is_stream(self) -> bool:
        """Whether the batches come out of an iterator."""
        return is_dataset(self.x) or bool(self.steps)

    def batches(self, model: Model) -> Batches:
        """Return the rows to validate on in the program of the fit."""
        check_arrays((self.x, self.y, self.sample_weight))
        data = make_batches(self.x, self.y, self.sample_weight, batch_size=self.batch_size)
        return as_traced(model, "test", data)


def _is_apart(model: Model, validation: _ValidationData, callbacks: Callbacks) -> bool:
    """Whether a validation is to run as an evaluation of its own: the program of the fit can't do it."""
    has_own_methods = any(is_overridden(model, method) for method in ("evaluate", "make_test_function"))
    return validation.is_stream or acts_in_validation(callbacks) or has_own_methods


def _validate(model: Model, data: _ValidationData, container: CallbackList) -> Logs:
    """Validate a model apart from the program of its fit, as Keras does: by the model's own ``evaluate``."""
    if model._eval_epoch_iterator is None:
        model._eval_epoch_iterator = TFEpochIterator(
            x=data.x,
            y=data.y,
            sample_weight=data.sample_weight,
            batch_size=data.batch_size,
            distribute_strategy=model.distribute_strategy,
            steps_per_execution=model.steps_per_execution,
            steps_per_epoch=data.steps,
            shuffle=False,
        )
    logs: Logs = model.evaluate(
        x=data.x,
        y=data.y,
        sample_weight=data.sample_weight,
        batch_size=data.batch_size,
        steps=data.steps,
        callbacks=container,
        return_dict=True,
        _use_cached_eval_dataset=True,
    )
    return logs


@contextmanager
def _reporting_if_it_is_stopped(runner: EpochRunner | StreamRunner) -> Iterator[None]:
    """Report how a fit was trained that is stopped in its middle, and not by an error."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        runner.report_mode()
        raise


def _draw_orders(train: Batches | Stream, shuffle: Shuffle) -> Callable[[int], Orders]:
    if isinstance(train, Stream):
        return lambda _: np.zeros((1, 0), np.int64)
    return epoch_orders(train.n_samples, train.batch_size, shuffle)


@contextmanager
def _as_before_if_a_callback_fails(model: Model) -> Iterator[None]:
    """Leave a model as Keras does where a callback fails before the first batch: nothing is built or traced then."""
    with unnoted_if_it_fails(model, "train", "test", failure=Exception), unbuilt_if_it_fails(model, Exception):
        yield


def _begin_training(model: Model, container: CallbackList, initial_epoch: int, n_epochs: int, *, resets: bool) -> range:
    """Call the callbacks of the beginning, also of the first epoch; returns the epochs to run."""
    model.stop_training = False
    container.on_train_begin()
    epochs = range(model._initial_epoch or initial_epoch, n_epochs)
    if epochs:
        if resets:
            model.reset_metrics()
        container.on_epoch_begin(epochs.start)
    return epochs


def _evaluate(found: Found[EvaluateProgram], model: Model, data: Batches | Stream, container: CallbackList) -> Logs:
    model.stop_evaluating = False
    container.on_test_begin()
    with running_a_program():
        logs = _evaluate_stream(found, model, data) if isinstance(data, Stream) else _evaluate_rows(found, model, data)
    container.on_test_end(logs)
    result: Logs = pythonify_logs(logs)
    return result


def _evaluate_rows(found: Found[EvaluateProgram], model: Model, data: Batches) -> Logs:
    rows = data.first_execution(model.steps_per_execution) if model.stop_evaluating else data
    return found.program.run(found.variables, PassInputs.of(rows))[0]


def _evaluate_stream(found: Found[EvaluateProgram], model: Model, data: Stream) -> Logs:
    stops = bool(model.stop_evaluating)

    def run(iterator: Any, limit: int) -> tuple[Logs, int]:
        inputs = StreamInputs.of(iterator, model.steps_per_execution if stops else limit)
        return found.program.run(found.variables, inputs)

    return data.one_pass(run, is_cut=lambda _: stops)[0]


def _predict(found: Found[PredictProgram], model: Model, data: Batches, container: CallbackList) -> Structure:
    model.stop_predicting = False
    container.on_predict_begin()
    with running_a_program():
        predicted = found.program.run(found.variables, data)
    if model.stop_predicting:
        predicted = keras.tree.map_structure(lambda rows: rows[: data.first_batch_size], predicted)
    container.on_predict_end()
    return predicted


def _validation_rule(model: Model, validation: _ValidationData | None, validation_freq: Any) -> Callable[[int], bool]:
    if validation is None:
        return lambda _: False
    return lambda epoch: bool(model._should_eval(epoch, validation_freq))


def _signature(data: Batches | Stream | None, *, knows_size: bool) -> Any:
    if data is None:
        return None
    return data.fixed_batch_size if knows_size else None, data.signature, isinstance(data, Stream)
