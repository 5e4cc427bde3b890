"""A real worker of a test: started, waited for, stopped and killed."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gridfleet.storage.settings import Settings
from tests.warm_workers import WarmWorker, WarmWorkers

#: Seconds that a process may take to come up before a test fails; a busy machine imports TensorFlow in 20 s.
READY_S = 90
#: Seconds that a process gets to end before it is killed.
STOP_S = 30


@dataclass(frozen=True)
class RunningWorker:
    """A real worker: Celery's main process and its children."""

    process: WarmWorker
    node: str
    log: Path

    @property
    def pid(self) -> int:
        """The main process."""
        return self.process.pid

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def kill(self) -> None:
        """End the main process without notice; its children follow it."""
        self.stop(signal.SIGKILL)


@contextlib.contextmanager
def workers_in(folder: Path, warm_workers: WarmWorkers) -> Iterator[Callable[..., RunningWorker]]:
    """Start real workers whose logs are in a folder."""
    from gridfleet.worker.trial.process import NODE_VARIABLE

    started: list[RunningWorker] = []

    def start(settings: Settings, concurrency: int = 1, **variables: str) -> RunningWorker:
        node = f"test{len(started)}-{secrets.token_hex(3)}"
        health = folder / f"{node}.health"
        environment = {
            **settings.replace(health_file=health).worker_environment(),
            NODE_VARIABLE: node,
            **variables,
        }
        log = folder / f"{node}.log"
        process = warm_workers.start(concurrency, environment, log)
        worker = RunningWorker(process, node, log)
        started.append(worker)
        until = time.monotonic() + READY_S
        while not health.exists():
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"the worker did not become ready:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        return worker

    try:
        yield start
    finally:
        for worker in started:
            worker.stop()
