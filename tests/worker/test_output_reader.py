"""The process that reads what trials print ends quietly with its worker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from gridfleet.worker.guards import output_reader


def test_a_worker_that_is_killed_before_it_hears_an_answer_leaves_no_traceback_in_the_log() -> None:
    ours, theirs = socket.socketpair()
    source, pipe = os.pipe()
    # it said that a trial has ended, and was killed: so the answer meets a closed end
    ours.sendall(output_reader.END)
    ours.close()

    with theirs:
        ended = subprocess.run(
            [sys.executable, "-I", "-S", output_reader.__file__, str(source), "100"],
            stdin=theirs.fileno(),
            pass_fds=[source],
            capture_output=True,
            text=True,
        )
    os.close(source)
    os.close(pipe)

    assert (ended.returncode, ended.stderr) == (0, "")
