"""Workers of tests, forked of one process that has imported everything: a fresh interpreter takes six seconds to.

What runs then is what `python -m gridfleet.worker` runs. That command itself is what embedded fleets start; the tests
of those, of the deployed fleet and of the containers have it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

#: Variables for linear algebra on one thread, which libraries heed as they are imported: on cores that are busy, the
#: threads of one product wait for each other. A worker of as many processes as there are cores has that too.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
#: Bytes of a request: the variables.
REQUEST_BYTES = 200_000
#: Variable for the seconds in which a process goes on from trial to trial at one message; forked processes have it.
GO_ON_VARIABLE = "TESTS_GO_ON_S"
#: Variable for other values of constants that a test would wait for; forked processes have them.
CONSTANTS_VARIABLE = "TESTS_CONSTANTS"


def with_constants(values: dict[str, float | str]) -> dict[str, str]:
    """Return variables for `start_worker`, of ``{"gridfleet.worker.guards.health_file.HEALTH_S": 1}``."""
    return {CONSTANTS_VARIABLE: json.dumps(values)}


class WarmWorkers:
    """The process of which workers are forked, seen from the tests."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno())],
            env={**os.environ, **ONE_THREAD},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def start(self, concurrency: int, environment: dict[str, str], log: Path) -> WarmWorker:
        """Start a worker in a session of its own."""
        request = {"concurrency": concurrency, "environment": environment, "folder": str(Path.cwd())}
        ended, ending = os.pipe()
        with log.open("wb") as output:
            socket.send_fds(self._connection, [json.dumps(request).encode()], [output.fileno(), ending])
        os.close(ending)
        return WarmWorker(int(self._connection.recv(32)), ended)

    def close(self) -> None:
        """End it; its workers are gone by now."""
        self._connection.close()
        self._process.wait()


class WarmWorker:
    """A worker's main process, with what the tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid = pid
        self._ended = ended
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return how it ended, None if it has not."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            self.returncode = int(os.read(self._ended, 32))
            os.close(self._ended)
        return self.returncode


def main() -> None:
    """Fork workers for as long as the tests ask."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"  # as the worker sets it before billiard is imported
    import celery.bin.worker  # noqa: F401
    import kombu.transport.redis  # noqa: F401

    from gridfleet.worker.main_process import pool, service, template  # noqa: F401

    template.import_in_advance(tensorflow=True)
    request, (log,) = forked(connection, n_outputs=1)
    be_worker(request, log)


def forked(connection: socket.socket, *, n_outputs: int) -> tuple[dict[str, Any], list[int]]:
    """Fork for as long as the tests ask; returns in the forked processes: what each was asked for, and its outputs."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests end first
    endings: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([connection, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            tell_of_ended(endings)
        if connection in readable:
            request, fds, _, _ = socket.recv_fds(connection, REQUEST_BYTES, n_outputs + 1)
            if not request:
                os._exit(0)
            *outputs, ending = fds
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for fd in (woken, wake, ending, *endings.values()):
                    os.close(fd)
                connection.close()
                return json.loads(request), outputs
            for output in outputs:
                os.close(output)
            endings[pid] = ending
            connection.send(str(pid).encode())


def tell_of_ended(endings: dict[int, int]) -> None:
    """Tell the tests of processes that ended."""
    for pid, ending in list(endings.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(BrokenPipeError):  # nobody asks any more
                os.write(ending, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(endings.pop(pid))


def be_worker(request: dict, log: int) -> None:
    """Do what the command does, with its signals, standard streams, variables and folder."""
    status: int | str | None = 1
    try:
        os.setsid()
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for fd in (1, 2):
            os.dup2(log, fd)
        os.close(log)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        from gridfleet.storage.settings import load_settings
        from gridfleet.worker.main_process.service import run_worker
        from gridfleet.worker.trial import task

        task.GO_ON_S = float(os.environ.pop(GO_ON_VARIABLE, task.GO_ON_S))
        for name, value in json.loads(os.environ.pop(CONSTANTS_VARIABLE, "{}")).items():
            module, _, constant = name.rpartition(".")
            assert hasattr(importlib.import_module(module), constant), name
            setattr(importlib.import_module(module), constant, value)
        run_worker(load_settings(), concurrency=request["concurrency"], may_be_root=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    main()
