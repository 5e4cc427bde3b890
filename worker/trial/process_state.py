"""After a trial this process is what it was before: nothing that a model's code switched changes the next trial.

What can't be taken back, imported modules and what they patch above all, is not looked at here.
"""

from __future__ import annotations

import decimal
import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from gridfleet.worker.trial import keras_state

#: Variables that TensorFlow, Keras and scikit-learn set when they are imported, and read later: they stay.
SET_BY_IMPORTS = (
    "ENABLE_RUNTIME_UPTIME_TELEMETRY",
    "HDF5_PLUGIN_PATH",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "TF2_BEHAVIOR",
    "TPU_ML_PLATFORM",
    "TPU_ML_PLATFORM_VERSION",
)
#: Signals whose handlers can be set, but those without a name.
SIGNALS = sorted(set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Put back, at the end, what libraries and the interpreter keep for a whole process.

    Seeds end with the block as well, and random generators begin anew: what a trial draws without a seed depends
    neither on the trials before it nor on its process. Costs some 2,000 calls of Python's, most of them for the
    environment: a few tenths of a millisecond. Not to be interrupted: call it around what a signal may interrupt.
    """
    _thread_limits.find_libraries()
    before = [(state, state.read()) for state in _STATES]
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for state, value in before:
                if state.read() != value:
                    state.put_back(value)
            _draw_new_seeds()


@dataclass(frozen=True)
class _State:
    """Something that is kept for a whole process.

    Parameters
    ----------
    read : callable
        Returns it, or None where a library is not imported: it imports none.
    put_back : callable
        Sets it to what `read` returned earlier.
    """

    read: Callable[[], Any]
    put_back: Callable[[Any], object]


def _draw_new_seeds() -> None:
    random.seed()
    np.random.seed()  # noqa: NPY002 - the global one is what models draw from


def _running_timers() -> list[int]:
    return [timer for timer in TIMERS if signal.getitimer(timer)[0]]


def _stop_timers(before: list[Any]) -> None:
    for timer in TIMERS:
        if timer not in before:
            signal.setitimer(timer, 0)


def _signal_handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in SIGNALS}


def _put_back_signal_handlers(before: dict[int, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # Python lets no other thread set them
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:  # None: of C code, which Python can't set
            signal.signal(number, handler)


def _put_back_blocked_signals(before: set[signal.Signals]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _put_back_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys() - set(SET_BY_IMPORTS):
        del os.environ[name]
    os.environ.update(before)
    time.tzset()  # reads TZ


def _current_folder() -> str | None:
    with suppress(OSError):  # a trial removed it
        return os.getcwd()  # noqa: PTH109 - nothing is done with it but going back
    return None


def _go_back(folder: str | None) -> None:
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)


def _umask() -> int:
    mask = os.umask(0o077)  # not 0: other threads may make files meanwhile
    os.umask(mask)
    return mask


def _put_back_path(before: list[str]) -> None:
    sys.path[:] = before


def _put_back_arguments(before: list[str]) -> None:
    sys.argv[:] = before


def _put_back_streams(before: tuple[Any, Any, Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = before


def _put_back_garbage_collection(before: tuple[bool, tuple[int, int, int]]) -> None:
    is_enabled, thresholds = before
    (gc.enable if is_enabled else gc.disable)()
    gc.set_threshold(*thresholds)


def _logging() -> tuple[int, int, list[Any], list[Any]]:
    root = logging.getLogger()
    return logging.root.manager.disable, root.level, list(root.handlers), list(root.filters)


def _put_back_logging(before: tuple[int, int, list[Any], list[Any]]) -> None:
    root = logging.getLogger()
    disabled, level, handlers, filters = before
    logging.disable(disabled)
    root.setLevel(level)
    root.handlers[:], root.filters[:] = handlers, filters


def _put_back_start_method(before: str | None) -> None:
    multiprocessing.set_start_method(before, force=True)


def _numpy_errors() -> tuple[Any, Any, int]:
    return np.geterr(), np.geterrcall(), np.getbufsize()


def _put_back_numpy_errors(before: tuple[Any, Any, int]) -> None:
    modes, call, buffer_size = before
    np.seterr(**modes)
    np.seterrcall(call)
    np.setbufsize(buffer_size)


def _sklearn_config() -> dict[str, Any] | None:
    sklearn = sys.modules.get("sklearn")
    return None if sklearn is None else sklearn.get_config()


def _put_back_sklearn_config(before: dict[str, Any] | None) -> None:
    sklearn = sys.modules["sklearn"]
    sklearn.set_config(**(sklearn._config._global_config if before is None else before))


def _pandas_options() -> dict[str, Any] | None:
    pandas = sys.modules.get("pandas")
    return None if pandas is None else dict(_flat(pandas.options.d))


def _flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _put_back_pandas_options(before: dict[str, Any] | None) -> None:
    pandas = sys.modules["pandas"]
    if before is None:
        before = {name: option.defval for name, option in pandas._config.config._registered_options.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated ones
        for name, value in _flat(pandas.options.d):
            if name in before and before[name] != value:
                pandas.set_option(name, before[name])


def _tensorflow_state() -> tuple[Any, bool, bool] | None:
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return None
    context = sys.modules["tensorflow.python.eager.context"].context_safe()  # None: nothing was computed yet
    is_deterministic = sys.modules["tensorflow.python.framework.config"].is_op_determinism_enabled()
    return getattr(context, "_seed", None), is_deterministic, tensorflow.config.functions_run_eagerly()


def _put_back_tensorflow_state(before: tuple[Any, bool, bool] | None) -> None:
    seed, is_deterministic, runs_eagerly = before or (None, False, False)
    tensorflow = sys.modules["tensorflow"]
    context = sys.modules["tensorflow.python.eager.context"].context_safe()
    if context is not None and context._seed != seed:
        context._set_global_seed(seed)
    config = sys.modules["tensorflow.python.framework.config"]
    (config.enable_op_determinism if is_deterministic else config.disable_op_determinism)()
    tensorflow.config.run_functions_eagerly(runs_eagerly)


class _ThreadLimits:
    """The threads of OpenMP, OpenBLAS and their like, as far as their libraries were loaded before.

    Looking for those goes through every library of the process (330 with TensorFlow), so it is done only where
    something was imported since the last look.
    """

    def __init__(self) -> None:
        self._n_modules = 0
        self._libraries: list[Any] = []

    def find_libraries(self) -> None:
        if len(sys.modules) != self._n_modules:
            self._libraries = ThreadpoolController().lib_controllers
            self._n_modules = len(sys.modules)

    def read(self) -> list[int]:
        return [library.num_threads for library in self._libraries]

    def put_back(self, before: list[int]) -> None:
        for library, n_threads in zip(self._libraries, before, strict=True):
            if library.num_threads != n_threads:
                library.set_num_threads(n_threads)


_thread_limits = _ThreadLimits()

#: In the order in which they are put back: a timer's signal comes to its handler before that one is gone.
_STATES = (
    _State(_running_timers, _stop_timers),
    _State(_signal_handlers, _put_back_signal_handlers),
    _State(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []), _put_back_blocked_signals),
    _State(lambda: dict(os.environ), _put_back_environment),
    _State(_current_folder, _go_back),
    _State(_umask, os.umask),
    _State(lambda: locale.setlocale(locale.LC_ALL), lambda before: locale.setlocale(locale.LC_ALL, before)),
    _State(lambda: list(sys.path), _put_back_path),
    _State(lambda: list(sys.argv), _put_back_arguments),
    _State(lambda: (sys.stdin, sys.stdout, sys.stderr), _put_back_streams),
    _State(sys.getrecursionlimit, sys.setrecursionlimit),
    _State(sys.getswitchinterval, sys.setswitchinterval),
    _State(lambda: (gc.isenabled(), gc.get_threshold()), _put_back_garbage_collection),
    _State(_logging, _put_back_logging),
    _State(socket.getdefaulttimeout, socket.setdefaulttimeout),
    _State(lambda: multiprocessing.get_start_method(allow_none=True), _put_back_start_method),
    _State(lambda: decimal.getcontext().copy(), decimal.setcontext),
    _State(_numpy_errors, _put_back_numpy_errors),
    _State(np.get_printoptions, lambda before: np.set_printoptions(**before)),
    # numpy exports them, but not for type checkers
    _State(np.random.get_bit_generator, np.random.set_bit_generator),  # type: ignore[attr-defined]
    _State(_thread_limits.read, _thread_limits.put_back),
    _State(_sklearn_config, _put_back_sklearn_config),
    _State(_pandas_options, _put_back_pandas_options),
    _State(_tensorflow_state, _put_back_tensorflow_state),
    _State(keras_state.keras_config, keras_state.set_keras_config),
)
