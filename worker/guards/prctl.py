"""What only Linux lets a process ask for itself; other systems ignore it."""

from __future__ import annotations

import ctypes
import sys

#: prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int | bytes) -> None:
    """Call prctl(2), where there is one."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def name_process(name: str) -> None:
    """Set the name of this process that ``ps -o comm`` and ``top`` show: at most 15 characters."""
    prctl(PR_SET_NAME, name.encode())
