"""Scripts of tests, forked of one process that has imported what most import: a fresh interpreter takes 3 s to.

What a script imports from the current folder or `tests`, and TensorFlow, it imports itself. How the interpreter itself
starts (its warnings, its hash seed, the modules that it finds) is tested of scripts that it does run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from tests.warm_workers import ONE_THREAD, WarmWorker, forked

REPOSITORY = Path(__file__).parents[1]
#: The command, as it is installed: a script.
COMMAND = Path(sys.executable).with_name("gridfleet")


class WarmScripts:
    """The process of which scripts are forked, seen from the tests."""

    def __init__(self, *, hash_seed: int = 1) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_scripts", str(theirs.fileno())],
            cwd=REPOSITORY,
            env={**os.environ, **ONE_THREAD, "PYTHONHASHSEED": str(hash_seed)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def start(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        terminal: int | None = None,
    ) -> WarmScript:
        """Start a script: its file, and its arguments; what it writes is the caller's, or goes to a terminal."""
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(os.environ if env is None else env),
            "folder": str(cwd or Path.cwd()),
        }
        outputs = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - they are the script's to write
        writes_to = [output.fileno() for output in outputs] if terminal is None else [terminal, terminal]
        ended, ending = os.pipe()
        socket.send_fds(self._connection, [json.dumps(request).encode()], [*writes_to, ending])
        os.close(ending)
        return WarmScript(request["arguments"], int(self._connection.recv(32)), ended, outputs)

    def run(self, *arguments: str | Path, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        with self.start(*arguments, **options) as script:
            output, errors = script.communicate(timeout)
        return subprocess.CompletedProcess(script.args, script.wait(), output, errors)

    def close(self) -> None:
        """End it; its scripts are gone by now."""
        self._connection.close()
        self._process.wait()


@cache
def warm_scripts() -> WarmScripts:
    """Start the process of which scripts are forked, once; it ends with this process."""
    return WarmScripts()


@contextmanager
def two_hash_seeds() -> Iterator[list[Callable[[Path], subprocess.CompletedProcess[str]]]]:
    """Return what runs scripts whose sets have one order, and what runs scripts whose sets have another one."""
    with closing(WarmScripts(hash_seed=2)) as other:
        yield [warm_scripts().run, other.run]


class WarmScript(WarmWorker):
    """A script that runs, with what the tests use of `subprocess.Popen`."""

    def __init__(self, arguments: list[str], pid: int, ended: int, outputs: Sequence[IO[bytes]]) -> None:
        super().__init__(pid, ended)
        self.args = arguments
        self._outputs = outputs

    def __enter__(self) -> WarmScript:
        return self

    def __exit__(self, error: object, *_: Any) -> None:
        if error is not None:
            self.kill()
        self.wait()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; returns what it wrote."""
        self.wait(timeout)
        written = []
        for output in self._outputs:
            output.seek(0)
            written.append(output.read().decode())
        return written[0], written[1]


def main() -> str:
    """Fork scripts for as long as the tests ask; in such a process, returns the script."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    import gridfleet.scheduler.cli.main
    import gridfleet.scheduler.search_cv
    import gridfleet.scheduler.submission.run
    import gridfleet.scheduler.submit  # noqa: F401

    request, (output, errors) = forked(connection, n_outputs=2)
    return be_interpreter(request, output, errors)


def be_interpreter(request: dict[str, Any], output: int, errors: int) -> str:
    """Be as an interpreter that was started with a script; returns its code's file."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for fd, number in ((output, 1), (errors, 2)):
        os.dup2(fd, number)
    for fd in {output, errors}:
        os.close(fd)
    # those of before remember whether they are files
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    np.random.seed()  # noqa: NPY002 - what scripts draw without a seed is not what others draw
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    return sys.argv[0]


if __name__ == "__main__":
    script = main()
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__dict__.update(__file__=script, __builtins__=__builtins__)
    exec(compile(Path(script).read_text(), script, "exec"), module.__dict__)
