"""Celery's pool of processes, with processes that a template forks instead of fresh interpreters."""

from __future__ import annotations

import io
import json
import logging
import os
from contextlib import suppress
from typing import Any

from billiard import context, popen_spawn_posix, reduction, semaphore_tracker, spawn
from billiard.pool import RUN
from celery.concurrency import asynpool, prefork

from gridfleet.worker.main_process.template import LENGTH_BYTES, Template
from gridfleet.worker.trial.successor import HANDED_ON, HANDED_ON_WITH_TENSORFLOW

logger = logging.getLogger(__name__)

_template: Template


def fork_from(template: Template) -> None:
    """Let a template fork the processes of this process's pool; to be called before it starts."""
    global _template
    _template = template


class _Popen(popen_spawn_posix.Popen):
    """Starts a process: one that the template forks gets the instructions that billiard has for one that it spawns."""

    def _launch(self, process: Any) -> None:
        tracker = semaphore_tracker.getfd()
        instructions = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process._name), instructions)
            reduction.dump(process, instructions)
        finally:
            context.set_spawning_popen(None)
        environment = json.dumps(dict(os.environ)).encode()
        alive_r, alive_w = os.pipe()
        instructions_r, instructions_w = os.pipe()
        with os.fdopen(instructions_w, "wb") as pipe:
            try:
                self.pid = _template.fork([instructions_r, tracker, alive_w, *set(self._fds)])
            except OSError:
                os.close(alive_r)
                raise
            finally:
                os.close(instructions_r)
                os.close(alive_w)
            self.sentinel = alive_r
            with suppress(BrokenPipeError):  # dead already, as the pool will see
                pipe.write(len(environment).to_bytes(LENGTH_BYTES, "big") + environment + instructions.getvalue())
                pipe.flush()


class Process(context.SpawnProcess):
    """A process of the pool."""

    @staticmethod
    def _Popen(process: Any) -> popen_spawn_posix.Popen:  # noqa: N802 - billiard's name
        try:
            return _Popen(process)
        except OSError as error:
            logger.warning("no process can be forked, so a new interpreter is started, which takes longer: %s", error)
            return popen_spawn_posix.Popen(process)


class _Pool(asynpool.AsynPool):
    def Process(self, *args: Any, **kwargs: Any) -> Process:  # noqa: N802 - billiard's name
        return Process(*args, **kwargs)

    def _join_exited_workers(self, shutdown: bool = False) -> Any:
        for process in self._pool:
            if process.exitcode == HANDED_ON_WITH_TENSORFLOW:
                _template.has_tensorflow = True
                process._controlled_termination = True  # no line in the log
        return super()._join_exited_workers(shutdown=shutdown)

    def on_job_process_lost(self, job: Any, pid: int, exitcode: int) -> None:
        """Give a message that a process handed on to another one, the first that is free."""
        # of a pool that closes, for its worker ends, nobody takes another message: the reconciler sends it again
        if exitcode not in (HANDED_ON, HANDED_ON_WITH_TENSORFLOW) or self._state != RUN:
            super().on_job_process_lost(job, pid, exitcode)
            return
        if job._on_timeout_cancel is not None:
            job._on_timeout_cancel(job)
        # as if nobody had accepted it
        job._accepted = False
        job._worker_pid = job._time_accepted = job._write_to = job._scheduled_for = None
        self._put_back(job)


class TaskPool(prefork.TaskPool):
    """Celery's prefork pool."""

    Pool = _Pool
