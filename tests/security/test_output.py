"""What a trial prints has a bound, however it prints: by file descriptors, in C, by children that outlive it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from gridfleet.worker.guards.output import MAX_BYTES

#: Bytes that each way to print writes, a hundred times what is shown.
MUCH = 100 * MAX_BYTES
#: Seconds that a script may take.
PATIENCE_S = 60

PRELUDE = f"""
import ctypes, os, signal, subprocess, sys, time
from gridfleet.worker.guards import output
from gridfleet.worker.guards.output import bounded_output
MUCH = {MUCH}
"""


def _run(script: str, status: int = 0) -> str:
    """Run a script; returns what it and its children printed, on both descriptors."""
    source = PRELUDE + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S
    )
    printed = done.stdout.decode(errors="replace")
    assert done.returncode == status, printed[-2_000:]
    return printed


@pytest.mark.parametrize(
    "way",
    [
        "print('#' * MUCH)",
        "print('#' * MUCH, file=sys.stderr)",
        "os.write(1, b'#' * MUCH)",
        "os.write(2, b'#' * MUCH)",
        "ctypes.CDLL(None).write(1, b'#' * MUCH, MUCH)",
        "ctypes.PyDLL(None).write(1, b'#' * MUCH, MUCH)",
        "subprocess.run([sys.executable, '-c', f'import os; os.write(1, b\"#\" * {MUCH})'])",
        'os.system(f\'head -c {MUCH} /dev/zero | tr "\\\\0" "#" >&2\')',
    ],
    ids=["print", "to stderr", "descriptor 1", "descriptor 2", "C", "C with the lock", "a child", "a shell"],
)
def test_a_trial_prints_no_more_than_it_may_however_it_prints(way: str) -> None:
    printed = _run(f"""
        with bounded_output():
            {way}
        print("after", flush=True)
        with bounded_output():
            print("the next trial")
    """)

    assert printed.count("#") == MAX_BYTES
    assert f"the trial printed {MUCH}" in printed or f"the trial printed {MUCH + 1}" in printed
    assert printed.endswith("are not shown\nafter\nthe next trial\n")


def test_what_a_trial_may_print_is_printed_as_it_is() -> None:
    printed = _run("""
        with bounded_output():
            print("héllo")
            print("world", file=sys.stderr)
            os.write(1, b"bytes\\n")
        print("after")
    """)

    assert printed == "héllo\nworld\nbytes\nafter\n"


def test_a_child_that_outlives_its_trial_prints_nothing_after_it_and_is_not_ended() -> None:
    printed = _run("""
        told, tell = os.pipe()
        late = f"import os; os.read(0, 1); os.write(1, b'#' * MUCH); os.write({tell}, b'done'); os.read(0, 1)"
        with bounded_output():
            child = subprocess.Popen(
                [sys.executable, "-c", late.replace("MUCH", str(MUCH))], stdin=subprocess.PIPE, pass_fds=[tell]
            )
        child.stdin.write(b"1")
        child.stdin.flush()
        assert os.read(told, 4) == b"done"
        with bounded_output():
            print("the next trial")
        child.kill()
    """)

    assert printed == "the next trial\n"


def test_the_last_words_of_a_process_that_crashes_are_shown() -> None:
    printed = _run(
        """
        with bounded_output():
            os.write(2, b"last words\\n")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        status=-9,
    )

    assert printed == "last words\n"


def test_a_trial_after_one_that_killed_the_reader_prints_as_ever() -> None:
    printed = _run("""
        with bounded_output():
            os.kill(output._reader._process.pid, signal.SIGKILL)
            output._reader._process.wait()
        with bounded_output():
            print("the next trial")
    """)

    assert printed == "the next trial\n"
