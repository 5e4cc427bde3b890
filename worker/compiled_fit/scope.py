"""The block of code inside which Keras' loops run compiled; nothing of it stays behind."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.sharing.cache import ProgramCache

logger = logging.getLogger(__name__)

#: The programs of this process, shared by all trials.
programs = ProgramCache()

#: What runs the loops of this thread, a `calls.Loops`; other threads' models go on as they are.
_loops: ContextVar[Any] = ContextVar("gridfleet_loops", default=None)
_METHODS = ("fit", "evaluate", "predict")
#: Blocks that are open, in any thread: the first one puts our methods in place, the last one Keras' own.
_n_open = 0
_originals: dict[str, Any] = {}
_lock = threading.Lock()


@contextmanager
def compiled_fit(mode: FitMode | str = FitMode.EXACT, *, n_fits: int = 1) -> Iterator[FitReport]:
    """Run Keras' loops inside the graph, in this block and this thread.

    Where Keras is not imported yet, nothing is done: an estimator of scikit-learn's own does not need it.

    Parameters
    ----------
    mode : FitMode or str, default="exact"
        How; ``keras`` changes nothing and only reports.
    n_fits : int, default=1
        How many models of one structure are going to be fitted in the block, for ``auto``.

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
    from gridfleet.worker.compiled_fit.calls import Loops
    from gridfleet.worker.compiled_fit.patches.kernels import kept_kernels

    token = _loops.set(Loops(mode, programs, report, n_fits=n_fits))
    try:
        with _patched(), kept_kernels():
            yield report
    finally:
        _loops.reset(token)


@contextmanager
def _patched() -> Iterator[None]:
    global _n_open
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    from gridfleet.worker.compiled_fit.calls import Loops

    with _lock:
        if _n_open == 0:
            _originals.update({name: vars(TensorFlowTrainer)[name] for name in _METHODS})
            for name, original in _originals.items():
                setattr(TensorFlowTrainer, name, _compiled(original, getattr(Loops, name)))
        _n_open += 1
    try:
        yield
    finally:
        with _lock:
            _n_open -= 1
            if _n_open == 0:
                for name, original in _originals.items():
                    setattr(TensorFlowTrainer, name, original)


def _compiled(original: Callable[..., Any], loop: Callable[..., Any]) -> Callable[..., Any]:
    from gridfleet.worker.compiled_fit.calls import ProgramFailedError
    from gridfleet.worker.compiled_fit.eligibility import KerasTakesOverError

    signature = inspect.signature(loop)

    @functools.wraps(original)
    def method(model: Any, *args: Any, **keywords: Any) -> Any:
        loops = _loops.get()
        if loops is None:
            return original(model, *args, **keywords)
        if loops.mode is not FitMode.KERAS and _fits(signature, loops, model, args, keywords):
            try:
                return loop(loops, model, *args, **keywords)
            except KerasTakesOverError as error:
                if isinstance(error, ProgramFailedError):
                    logger.warning("%s falls back to Keras: %s", original.__name__, error)
                loops.report.fell_back(str(error))
                if error.callbacks is not None:
                    call = inspect.signature(original).bind(model, *args, **keywords)
                    call.arguments["callbacks"] = error.callbacks
                    args, keywords = call.args[1:], call.kwargs
        return _as_keras(original, model, args, keywords, loops.report)

    return method


def _fits(signature: inspect.Signature, *arguments: Any) -> bool:
    loops, model, args, keywords = arguments
    try:
        signature.bind(loops, model, *args, **keywords)
    except TypeError:  # Keras says best which argument it does not know
        return False
    return True


def _as_keras(
    original: Callable[..., Any], model: Any, args: tuple[Any, ...], keywords: dict[str, Any], report: FitReport
) -> Any:
    token = _loops.set(None)  # Keras' fit calls its own evaluate
    try:
        if original.__name__ == "fit":
            report.modes.append(FitMode.KERAS)
            with report.timed("train"):
                return original(model, *args, **keywords)
        return original(model, *args, **keywords)
    finally:
        _loops.reset(token)
