"""Processes that are forked of one that has imported everything: what it must not have, what they must not share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import GridSearchCV

from gridfleet import submit
from gridfleet.storage.settings import Settings
from gridfleet.worker.main_process.template import TEMPLATE_NAME
from gridfleet.worker.trial.task import PROCESS_NAME
from tests.faults.support import wait_for

X = np.linspace(0, 1, 20).reshape(10, 2)
Y = np.arange(10) % 2


def search(estimator: Any, numbers: list[int]) -> GridSearchCV:
    """Return a search of one split."""
    return GridSearchCV(estimator, {"number": numbers}, cv=[([0, 1], [2, 3])], refit=False)


class Drawer(ClassifierMixin, BaseEstimator):
    """Writes into a folder what it draws without a seed, and in which process."""

    def __init__(self, folder: str = "", number: int = 0, leaves: bool = False) -> None:
        self.folder = folder
        self.number = number
        self.leaves = leaves

    def fit(self, X: np.ndarray, y: np.ndarray) -> Drawer:
        import random

        import keras
        import tensorflow as tf

        self.classes_ = np.unique(y)
        drawn = {
            "numpy": np.random.random(),  # noqa: NPY002 - the global one is meant
            "random": random.random(),
            "tensorflow": float(tf.random.uniform([])),
            "keras": float(keras.random.uniform(())),
        }
        if self.leaves:
            left = subprocess.Popen(["sleep", "600"])
            Path(self.folder, "left").write_text(str(left.pid))
        Path(self.folder, f"{os.getpid()}-{self.number}").write_text(json.dumps(drawn))
        wait_for(lambda: len(processes(self.folder)) == 2 or self.leaves, "both processes")
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.zeros(len(X))


def processes(folder: str) -> set[str]:
    return {name.partition("-")[0] for name in os.listdir(folder) if "-" in name}  # noqa: PTH208 - names


def children(pid: int, name: str) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if child.name() == name]


def test_what_is_imported_in_advance_starts_no_thread_and_no_device() -> None:
    script = """if True:
        import os
        from gridfleet.worker.main_process import template
        template.import_in_advance(tensorflow=True)
        from tensorflow.python.eager import context
        if os.fork() == 0:
            print(len(os.listdir("/proc/self/task")), context.context_safe())
        else:
            os.wait()
    """
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert found.stdout == "1 None\n"
    assert found.stderr == ""


def test_the_template_has_one_thread_and_no_connection(configured: Settings, start_worker: Callable[..., Any]) -> None:
    worker = start_worker(configured)

    (template,) = children(worker.pid, TEMPLATE_NAME)

    assert template.num_threads() == 1
    files = {str(file.readlink()) for file in Path(f"/proc/{template.pid}/fd").iterdir()}
    assert [file for file in files if ".db" in file] == []
    # the one to the main process: a database may have a socket in a folder, too
    assert len([file for file in files if file.startswith("socket:")]) == 1


def test_processes_draw_different_numbers_without_a_seed(
    fleet: Any, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "drawn"
    folder.mkdir()
    start_worker(configured, concurrency=2)

    submit(search(Drawer(str(folder)), [1, 2]), X, Y).wait(60)

    first, second = (json.loads(file.read_text()) for file in folder.iterdir())
    assert [name for name in first if first[name] == second[name]] == []


def test_what_a_models_code_leaves_running_ends_with_its_process(
    fleet: Any, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "drawn"
    folder.mkdir()
    worker = start_worker(configured)
    drawer = Drawer(str(folder), leaves=True)

    def leave() -> psutil.Process:
        submit(search(drawer, [1]), X, Y).wait(60)
        return psutil.Process(int((folder / "left").read_text()))

    left = leave()
    (process,) = children(worker.pid, PROCESS_NAME)
    process.kill()
    wait_for(lambda: not left.is_running(), "what a killed process left")

    left = leave()
    worker.stop()
    assert not left.is_running()


@pytest.mark.parametrize("method", ["spawn", pytest.param("fork without a template", marks=pytest.mark.complete)])
def test_processes_start_as_fresh_interpreters_too(
    method: str, fleet: Any, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "drawn"
    folder.mkdir()
    worker = start_worker(configured.replace(start_method=method.partition(" ")[0]))
    if method != "spawn":
        (template,) = children(worker.pid, TEMPLATE_NAME)
        template.send_signal(signal.SIGKILL)
        (process,) = children(worker.pid, PROCESS_NAME)
        process.kill()

    handle = submit(search(Drawer(str(folder), leaves=True), [1]), X, Y)
    handle.wait(60)

    assert handle.progress().completed == 1
    os.kill(int((folder / "left").read_text()), signal.SIGKILL)
    if method != "spawn":
        assert "no process can be forked" in worker.log.read_text()


class Switcher(ClassifierMixin, BaseEstimator):
    """Writes down how its process is set, and sets it otherwise."""

    def __init__(self, folder: str = "", number: int = 0) -> None:
        self.folder = folder
        self.number = number

    def fit(self, X: np.ndarray, y: np.ndarray) -> Switcher:
        import random
        import signal
        import warnings

        import keras
        import sklearn

        found = {
            "process": os.getpid(),
            "errors": np.geterr(),
            "filters": str(warnings.filters),
            "scikit-learn": sklearn.get_config(),
            "environment": dict(os.environ),
            "folder": str(Path.cwd()),
            "handlers": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)],
            "floatx": keras.config.floatx(),
        }
        drawn = [random.random(), np.random.random()]  # noqa: NPY002 - the global one is meant
        Path(self.folder, str(self.number)).write_text(json.dumps([found, drawn]))
        np.seterr(all="raise")
        warnings.simplefilter("error")
        sklearn.set_config(enable_metadata_routing=True)
        os.environ.update(OMP_NUM_THREADS="7", OTHER="1")
        os.chdir("/")
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        keras.utils.set_random_seed(7)
        keras.config.set_floatx("float64")
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.zeros(len(X))


def test_a_trial_finds_its_process_as_the_one_before_it_did(
    fleet: Any, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)

    for number in range(3):
        submit(search(Switcher(str(tmp_path)), [number]), X, Y).wait(60)

    (first, drawn), *others = (json.loads((tmp_path / str(number)).read_text()) for number in range(3))
    assert first["handlers"][2] != str(signal.SIG_IGN)
    for found, others_drawn in others:
        assert found == first
        assert set(drawn).isdisjoint(others_drawn)
    assert others[0][1] != others[1][1]
