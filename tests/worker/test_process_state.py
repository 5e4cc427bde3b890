"""What a trial leaves behind in its process, and what the next one finds."""

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
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import sklearn
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.eager import context
from tensorflow.python.framework import config as tensorflow_config
from threadpoolctl import threadpool_info, threadpool_limits

from gridfleet.worker.trial.process_state import unchanged_process


def umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def change_time_zone() -> None:
    os.environ["TZ"] = "Pacific/Kiritimati"
    time.tzset()


def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})


def attribute(name: str) -> Any:
    return getattr(global_state.GLOBAL_STATE_TRACKER, name, None)


def tensorflow_seed() -> int | None:
    return getattr(context.context_safe(), "_seed", None)


#: What a model's code does, and what shows that it did.
LEFTOVERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "errors of numpy": (lambda: np.seterr(all="raise"), np.geterr),
    "error callback of numpy": (lambda: np.seterrcall(print), np.geterrcall),
    "print options of numpy": (lambda: np.set_printoptions(precision=2, legacy="1.13"), np.get_printoptions),
    "bit generator of numpy": (
        lambda: np.random.set_bit_generator(np.random.PCG64()),
        lambda: type(np.random.get_bit_generator()),
    ),
    "warning filters": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "showwarning": (lambda: setattr(warnings, "showwarning", print), lambda: warnings.showwarning),
    "a new variable": (lambda: os.environ.update(NEW="1"), lambda: os.environ.get("NEW")),
    "a changed variable": (lambda: os.environ.update(PATH="/nowhere"), lambda: os.environ["PATH"]),
    "a removed variable": (lambda: os.environ.pop("PATH"), lambda: os.environ.get("PATH")),
    "time zone": (change_time_zone, lambda: time.tzname),
    "current folder": (lambda: os.chdir("/"), Path.cwd),
    "locale": (lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"), lambda: locale.setlocale(locale.LC_ALL)),
    "umask": (lambda: os.umask(0o123), umask),
    "a signal's handler": (
        lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGUSR2),
    ),
    "blocked signals": (block_signals, lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "a timer": (
        lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 600),
        lambda: bool(signal.getitimer(signal.ITIMER_VIRTUAL)[0]),
    ),
    "sys.path": (lambda: sys.path.insert(0, "/nowhere"), lambda: list(sys.path)),
    "sys.argv": (lambda: setattr(sys, "argv", ["other"]), lambda: list(sys.argv)),
    "standard output": (lambda: setattr(sys, "stdout", sys.__stderr__), lambda: sys.stdout),
    "recursion limit": (lambda: sys.setrecursionlimit(12_345), sys.getrecursionlimit),
    "switch interval": (lambda: sys.setswitchinterval(0.5), sys.getswitchinterval),
    "garbage collection": (gc.disable, gc.isenabled),
    "thresholds of garbage collection": (lambda: gc.set_threshold(9, 9, 9), gc.get_threshold),
    "level of the root logger": (lambda: logging.getLogger().setLevel(1), lambda: logging.getLogger().level),
    "handlers of the root logger": (
        lambda: logging.getLogger().addHandler(logging.NullHandler()),
        lambda: list(logging.getLogger().handlers),
    ),
    "disabled loggers": (logging.disable, lambda: logging.root.manager.disable),
    "default timeout of sockets": (lambda: socket.setdefaulttimeout(1), socket.getdefaulttimeout),
    "start method of multiprocessing": (
        lambda: multiprocessing.set_start_method("forkserver", force=True),
        lambda: multiprocessing.get_start_method(allow_none=True),
    ),
    "decimal context": (lambda: setattr(decimal.getcontext(), "prec", 3), lambda: decimal.getcontext().prec),
    "threads of a library": (
        lambda: threadpool_limits(1 + max(library["num_threads"] for library in threadpool_info())),
        lambda: [library["num_threads"] for library in threadpool_info()],
    ),
    "options of scikit-learn": (
        lambda: sklearn.set_config(enable_metadata_routing=True, assume_finite=True),
        sklearn.get_config,
    ),
    "options of pandas": (lambda: pd.set_option("display.precision", 2), lambda: pd.get_option("display.precision")),
    "seed of TensorFlow": (lambda: tf.random.set_seed(7), tensorflow_seed),
    "determinism of TensorFlow": (
        tf.config.experimental.enable_op_determinism,
        tensorflow_config.is_op_determinism_enabled,
    ),
    "eager functions": (lambda: tf.config.run_functions_eagerly(True), tf.config.functions_run_eagerly),
    "floatx of Keras": (lambda: keras.config.set_floatx("float64"), keras.config.floatx),
    "dtype policy of Keras": (
        lambda: keras.config.set_dtype_policy("mixed_bfloat16"),
        lambda: attribute("dtype_policy"),
    ),
    "unsafe deserialization": (keras.config.enable_unsafe_deserialization, lambda: attribute("safe_mode_saving")),
}


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_what_a_trial_leaves_behind_is_gone_after_it(leftover: str) -> None:
    change, look = LEFTOVERS[leftover]
    with unchanged_process():  # what was loaded meanwhile is known
        before = look()

    with unchanged_process():
        change()
        changed = look()

    assert changed != before
    assert look() == before


def test_it_is_gone_after_a_fit_that_raises_too() -> None:
    before = np.geterr()

    @unchanged_process()
    def fit() -> None:
        np.seterr(all="raise")
        raise KeyError

    with pytest.raises(KeyError):
        fit()

    assert np.geterr() == before


def test_options_of_a_library_that_a_trial_imports_first_end_as_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = {name: sys.modules[name] for name in ("pandas", "sklearn", "tensorflow", "keras")}
    for name in imported:
        monkeypatch.delitem(sys.modules, name)

    with unchanged_process():
        sys.modules.update(imported)
        pd.set_option("display.precision", 2)
        sklearn.set_config(assume_finite=True)
        tf.random.set_seed(7)

    assert pd.get_option("display.precision") == 6
    assert not sklearn.get_config()["assume_finite"]
    assert tensorflow_seed() is None


def test_a_folder_that_a_trial_removes_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    for _ in range(2):
        with unchanged_process():
            os.chdir("/")
            folder.rmdir() if folder.exists() else None


def test_variables_that_imports_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF2_BEHAVIOR", raising=False)

    with unchanged_process():
        os.environ["TF2_BEHAVIOR"] = "1"

    assert os.environ["TF2_BEHAVIOR"] == "1"


def test_draws_without_a_seed_differ_from_trial_to_trial_whatever_was_seeded() -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.random(), float(tf.random.uniform([]))]  # noqa: NPY002 - the global one

    drawn = []
    for _ in range(2):
        with unchanged_process():
            drawn += draw()
            keras.utils.set_random_seed(7)
    drawn += draw()
    with unchanged_process():
        keras.utils.set_random_seed(7)
        drawn += draw()

    assert len(set(drawn)) == 12


def test_it_costs_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in [name for name in os.environ if name != "PYTEST_CURRENT_TEST"]:
        monkeypatch.delenv(name)

    def count(_frame: object, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            calls.append(event)

    for _ in range(2):
        calls.clear()
        sys.setprofile(count)
        try:
            with unchanged_process():
                pass
        finally:
            sys.setprofile(None)

    assert len(calls) < 2_000  # a look at the loaded libraries: 40,000
