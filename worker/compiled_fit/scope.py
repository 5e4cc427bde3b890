"""The block of code inside which Keras' loops run compiled; nothing of it stays behind."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.patches.patch import Patch, Replacement
from gridfleet.worker.compiled_fit.releases import untested_release
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.sharing.cache import ProgramCache

if TYPE_CHECKING:
    from gridfleet.worker.compiled_fit.calls import CompiledCalls
    from gridfleet.worker.compiled_fit.errors import KerasTakesOverError
    from gridfleet.worker.compiled_fit.types import Model
    from gridfleet.worker.compiled_fit.watched import Watching

# Imports inside the functions of this file are those that import Keras and TensorFlow, which an estimator of
# scikit-learn's own does not need: they take seconds.

logger = logging.getLogger(__name__)

#: The programs of this process, shared by all trials.
programs = ProgramCache()

#: What runs the calls of this thread; other threads' models are trained by Keras.
_calls: ContextVar[CompiledCalls | None] = ContextVar("gridfleet_compiled_calls", default=None)
#: Arguments of a call by position, and by name.
_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def compiled_fit(
    mode: FitMode | str = FitMode.EXACT,
    *,
    n_fits: int = 1,
    trusts_any_release: bool = False,
    watching: Watching | None = None,
) -> Iterator[FitReport]:
    """Run Keras' loops inside the graph, in this block and this thread.

    Where Keras is not imported yet, nothing is done: an estimator of scikit-learn's own does not need it.

    Parameters
    ----------
    mode : FitMode or str, default="exact"
        How; ``keras`` changes nothing and only reports.
    n_fits : int, default=1
        How many models of one structure are going to be fitted in the block, for ``auto``.
    trusts_any_release : bool, default=False
        Whether programs run as they are in a release of Keras or TensorFlow that was not tested. Otherwise a fit is
        compared with Keras' own in its first batches, and ``evaluate`` and ``predict`` are Keras'.
    watching : callable, default=None
        Is asked at each fit, and returns who looks at its epochs (`Watch`), or None.

    Yields
    ------
    FitReport
        Of the calls in the block.

    Examples
    --------
    >>> from gridfleet.worker.compiled_fit import compiled_fit
    >>> with compiled_fit() as report:  # doctest: +SKIP
    ...     model.fit(x, y, epochs=100, verbose=0)
    >>> report.mode  # doctest: +SKIP
    <FitMode.EXACT: 'exact'>
    """
    mode = FitMode(mode)
    report = FitReport()
    keras = sys.modules.get("keras")
    if keras is None:
        yield report
        return
    if keras.backend.backend() != "tensorflow":
        report.fell_back(f"Keras runs on {keras.backend.backend()}, not on TensorFlow")
        yield report
        return
    from gridfleet.worker.compiled_fit.calls import CompiledCalls
    from gridfleet.worker.compiled_fit.patches.kernels import kept_kernels

    untested = None if mode is FitMode.KERAS or trusts_any_release else untested_release()
    calls = CompiledCalls(mode, programs, report, n_fits=n_fits, untested=untested, watching=watching)
    token = _calls.set(calls)
    try:
        with _methods.installed(), kept_kernels():
            yield report
    finally:
        _calls.reset(token)


def _replaced_methods() -> Iterator[Replacement]:
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    from gridfleet.worker.compiled_fit.calls import CompiledCalls

    for name in ("fit", "evaluate", "predict"):
        original = vars(TensorFlowTrainer)[name]
        yield Replacement(TensorFlowTrainer, name, _compiled_or_keras(original, getattr(CompiledCalls, name)))


_methods = Patch(_replaced_methods)


def _compiled_or_keras(original: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a model that runs compiled where it can, and as Keras' own where it can't."""
    from gridfleet.worker.compiled_fit.batch_by_batch import run_batch_by_batch
    from gridfleet.worker.compiled_fit.errors import BatchByBatchError, KerasTakesOverError

    signature = inspect.signature(compiled)

    @functools.wraps(original)
    def method(model: Model, *args: Any, **keywords: Any) -> Any:
        calls = _calls.get()
        if calls is None:
            return original(model, *args, **keywords)
        if calls.mode is not FitMode.KERAS and _is_accepted(signature, (calls, model, *args), keywords):
            try:
                return compiled(calls, model, *args, **keywords)
            except KerasTakesOverError as error:
                _report_fallback(error, original.__name__, calls.report)
                args, keywords = _with_callbacks_of(error, original, model, (args, keywords))
                args, keywords = _watched(calls, original, model, (args, keywords))
                if isinstance(error, BatchByBatchError) and calls.is_tested:
                    return run_batch_by_batch(original, model, (args, keywords), cache=programs, report=calls.report)
        else:
            args, keywords = _watched(calls, original, model, (args, keywords))
        return _run_by_keras(original, model, (args, keywords), calls.report)

    return method


def _is_accepted(signature: inspect.Signature, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **keywords)
    except TypeError:  # Keras says best which argument it does not know
        return False
    return True


def _report_fallback(error: KerasTakesOverError, method: str, report: FitReport) -> None:
    from gridfleet.worker.compiled_fit.errors import ProgramFailedError

    if isinstance(error, ProgramFailedError):
        logger.warning("%s falls back to Keras: %s", method, error)
    report.fell_back(str(error))


def _with_callbacks_of(
    error: KerasTakesOverError, original: Callable[..., Any], model: Model, arguments: _Arguments
) -> _Arguments:
    """Return the arguments for Keras' own method: with the callbacks that the compiled call has already begun."""
    if error.callbacks is None:
        return arguments
    args, keywords = arguments
    call = inspect.signature(original).bind(model, *args, **keywords)
    call.arguments["callbacks"] = error.callbacks
    if error.epoch is not None:
        call.arguments["initial_epoch"] = error.epoch
        if model._initial_epoch:  # Keras prefers it
            model._initial_epoch = error.epoch
    return call.args[1:], call.kwargs


def _watched(calls: CompiledCalls, original: Callable[..., Any], model: Model, arguments: _Arguments) -> _Arguments:
    """Return the arguments for Keras' own ``fit``: with a callback for whoever looks at its epochs."""
    watch = calls.watch(model) if original.__name__ == "fit" else None
    if watch is None:
        return arguments
    from gridfleet.worker.compiled_fit.watched import with_watch

    args, keywords = arguments
    try:
        call = inspect.signature(original).bind(model, *args, **keywords)
    except TypeError:  # Keras says so
        return arguments
    call.arguments["callbacks"] = with_watch(call.arguments.get("callbacks"), watch)
    return call.args[1:], call.kwargs


def _run_by_keras(original: Callable[..., Any], model: Model, arguments: _Arguments, report: FitReport) -> Any:
    from gridfleet.worker.compiled_fit.data.keras_functions import note_failure, trace_what_keras_would_have

    args, keywords = arguments
    trace_what_keras_would_have(model, original.__name__)
    token = _calls.set(None)  # Keras' fit calls its own evaluate
    try:
        if original.__name__ == "fit":
            report.modes.append(FitMode.KERAS)
            with report.timed("train"):
                return original(model, *args, **keywords)
        return original(model, *args, **keywords)
    except Exception:
        note_failure(model, original.__name__)
        raise
    finally:
        _calls.reset(token)
