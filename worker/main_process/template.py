"""The process of which worker processes are forked: it has imported what they need and computed nothing.

TensorFlow may be forked as long as it was only imported: it has no threads and no devices then. A process that is
forked is there at once, and shares the memory of what was imported with the others, where a fresh interpreter imports
for seconds and takes a few hundred MB of its own. The template is forked of the main process before that one has
threads or connections, and forks twice for each process that it is asked for: its child ends at once, and so the
grandchild becomes the main process's own child, which learns how it ended as of any other.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress

import numpy as np
from billiard import semaphore_tracker, spawn

from gridfleet.worker.guards.orphans import adopt_orphans, children, end_orphans
from gridfleet.worker.guards.parent_death import die_with_parent
from gridfleet.worker.guards.prctl import name_process
from gridfleet.worker.guards.quiet_tensorflow import quiet_tensorflow
from gridfleet.worker.trial.successor import note_template
from gridfleet.worker.trial.task import PROCESS_NAME

logger = logging.getLogger(__name__)

#: What evaluating a trial imports.
MODULES = ("gridfleet.worker.trial.task", "gridfleet.worker.trial.cross_validation")
#: What evaluating a trial of a Keras model imports besides; what is not installed here is left out.
KERAS_MODULES = ("tensorflow", "keras", "scikeras.wrappers")
#: What ``ps -o comm`` shows of the template process: the kernel keeps 15 characters.
TEMPLATE_NAME = "gridfleet-templ"
#: File descriptors that one message can carry on Linux.
MAX_FDS = 253
#: Longer than a message to the template or from it.
MESSAGE_BYTES = 4096
#: Of the environment, which goes before what billiard has pickled.
LENGTH_BYTES = 8


def import_in_advance(*, tensorflow: bool) -> None:
    """Import what worker processes need, so that those that are forked have it; collect no garbage of it.

    Parameters
    ----------
    tensorflow : bool
        Whether they need TensorFlow and Keras, which take 5 s and 280 MB.
    """
    for module in MODULES:
        importlib.import_module(module)
    if tensorflow:
        _import_keras()
    gc.collect()
    gc.freeze()  # a collection in a child would write to the pages that it shares


def _import_keras() -> None:
    quiet_tensorflow()
    for module in KERAS_MODULES:
        try:
            importlib.import_module(module)
        except ImportError as error:  # the trials that need it will say so
            logger.info("%s is not imported in advance: %s", module, error)


class Template:
    """The template process, seen from the main process.

    Call it while this process has a single thread, and neither connections nor devices.

    Parameters
    ----------
    tensorflow : bool
        Whether the first process that it forks has TensorFlow already.
    """

    def __init__(self, *, tensorflow: bool) -> None:
        import_in_advance(tensorflow=tensorflow)
        #: Whether the processes that it forks from now on have TensorFlow.
        self.has_tensorflow = tensorflow
        adopt_orphans()
        main_process = os.getpid()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            try:
                self._connection.close()
                die_with_parent(main_process)
                _serve(theirs, has_tensorflow=tensorflow)
            finally:
                os._exit(1)
        theirs.close()
        semaphore_tracker.ensure_running()
        self._own = children()

    def fork(self, fds: Sequence[int]) -> int:
        """Return the id of a new process, a child of this one, that does what is written for it into a pipe.

        Parameters
        ----------
        fds : sequence of int
            What it gets of this process's file descriptors, under the same numbers: the end of the pipe that is
            read, billiard's tracker of semaphores, and others.

        Raises
        ------
        OSError
            If the template process is gone, or could not fork.
        """
        # it imports TensorFlow when it is first asked for it, and this process waits those seconds, once
        request = {"fds": list(fds), "tensorflow": self.has_tensorflow}
        socket.send_fds(self._connection, [json.dumps(request).encode()], list(fds))
        answer = self._connection.recv(32)
        if not answer:
            raise BrokenPipeError("the template process is gone")
        pid = int(answer)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def end_orphans(self, own: Collection[int]) -> None:
        """Kill what dead worker processes left behind; `own` are those that live, or whose end is not known yet."""
        end_orphans({*self._own, *own})


def _serve(connection: socket.socket, *, has_tensorflow: bool) -> None:
    """Fork for as long as somebody asks."""
    name_process(TEMPLATE_NAME)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the main process's
    while True:
        message, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, MAX_FDS)
        if not message:
            return
        request = json.loads(message)
        if request["tensorflow"] and not has_tensorflow:
            import_in_advance(tensorflow=True)
            has_tensorflow = True  # or it is not there, and the trials that need it say so
        note_template(lacks_tensorflow=not has_tensorflow)
        try:
            pid = _fork_twice(connection, dict(zip(request["fds"], fds, strict=True)))
        except OSError as error:
            pid = -(error.errno or errno.EAGAIN)
        for fd in fds:
            os.close(fd)
        connection.send(str(pid).encode())


def _fork_twice(connection: socket.socket, fds: dict[int, int]) -> int:
    answer, answering = os.pipe()
    waiting, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            grandchild = os.fork()
        except OSError as error:
            grandchild = -(error.errno or errno.EAGAIN)
        if grandchild == 0:
            for fd in (answer, answering, go):
                os.close(fd)
            connection.close()
            _run(waiting, fds)
        os.write(answering, str(grandchild).encode())
        os._exit(0)
    os.close(answering)
    os.close(waiting)
    try:
        os.waitpid(child, 0)
        pid = int(os.read(answer, MESSAGE_BYTES))
        if pid > 0:
            os.write(go, b"!")  # now the main process is its parent
        return pid
    finally:
        os.close(answer)
        os.close(go)


def _run(waiting: int, fds: dict[int, int]) -> None:
    """Be a worker process, as one that billiard spawns is."""
    code = 1
    try:
        name_process(PROCESS_NAME)
        is_child_of_main_process = os.read(waiting, 1)
        os.close(waiting)
        if is_child_of_main_process:
            pipe, tracker, *_ = _renumbered(fds)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            np.random.seed()  # noqa: NPY002 - the one that is there already: all would draw the same from it
            environment = json.loads(_read(pipe, int.from_bytes(_read(pipe, LENGTH_BYTES), "big")))
            os.environ.clear()
            os.environ.update(environment)
            semaphore_tracker._semaphore_tracker._fd = tracker
            code = spawn._main(pipe)
    except BaseException:  # noqa: BLE001 - nobody is above
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _renumbered(fds: dict[int, int]) -> list[int]:
    """Give file descriptors the numbers that they have in the main process: billiard's messages name them."""
    above = max(fds) + 1
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for number, fd in fds.items()}
    for fd in fds.values():
        os.close(fd)
    for number, fd in moved.items():
        os.dup2(fd, number, inheritable=False)
        os.close(fd)
    return list(fds)


def _read(fd: int, n_bytes: int) -> bytes:
    parts = []
    while n_bytes:
        part = os.read(fd, n_bytes)
        if not part:
            raise EOFError("the main process is gone")
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)
