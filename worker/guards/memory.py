"""How much memory one worker process may take, so that a model that wants too much hurts nobody else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from gridfleet.storage.outcome import Outcome
from gridfleet.storage.settings import PREFIX
from gridfleet.storage.trial_results import TrialResult

#: MB below which no process's share of the machine is taken for its limit: TensorFlow training a small network
#: takes 700 of what counts, with few threads.
MIN_DEFAULT_MB = 2_000

MB = 1_000_000

#: Bytes of a thread's stack where `ulimit -s` sets no limit (pthread_create(3), x86-64).
GLIBC_STACK = 2 * 1024 * 1024
#: Variables that libraries read at import for the number of their threads.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


def default_limit_mb(n_processes: int) -> int:
    """Return one process's share of the memory that this machine or its control group has."""
    return max(MIN_DEFAULT_MB, _memory_bytes() // n_processes // MB)


def bound_memory(limit_mb: int | None) -> None:
    """Let this process get no more memory than that, where the system can.

    What counts is what could be written to: TensorFlow reserves much more of the address space than it uses, and
    data that is mapped from a file is shared. Stacks of threads count whole, though next to nothing of them is used, so
    there is room for those besides.
    """
    if limit_mb is None or sys.platform != "linux":  # macOS does not heed it
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = limit_mb * MB + _stack_bytes(resource.getrlimit(resource.RLIMIT_STACK)[0])
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def make_room(n_bytes: int) -> None:
    """Let this process get so many bytes more, or less, than it may: for data that is mapped and shared.

    The system counts a private map, of which nothing is copied until it is written to, as this process's own.
    """
    if sys.platform != "linux":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        wanted = max(soft + n_bytes, 0)
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _stack_bytes(of_one: int) -> int:
    """Return what the stacks of all pools of threads take; `of_one` is the soft limit of a stack, -1 for none."""
    return sum(int(os.environ.get(variable, 0)) for variable in THREAD_VARIABLES) * max(of_one, GLIBC_STACK)


def explain_memory_error(result: TrialResult, limit_mb: int | None) -> TrialResult:
    """Return a result whose error, if it is of memory, says so in our words; NumPy has a class of its own."""
    if result.error is None or not (result.error_type or "").endswith("MemoryError"):
        return result
    return replace(result, error_type=Outcome.OUT_OF_MEMORY, error=f"{result.error.rstrip()}\n{too_much(limit_mb)}")


def too_much(limit_mb: int | None) -> str:
    """Return the sentence about a process that got no memory."""
    limit = "" if limit_mb is None else f"; a worker process may take {limit_mb} MB ({PREFIX}MEMORY_LIMIT_MB)"
    return f"the model wanted more memory than there is{limit}"


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_control_group_limits()])


def _control_group_limits(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return the limits of this process's control group and of those around it, of both versions of the kernel's."""
    limits = []
    for file in _limit_files(root, groups):
        with suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(file.read_text()))
    return limits


def _limit_files(root: Path, groups: Path) -> Iterator[Path]:
    if not groups.exists():
        return
    for line in groups.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            folder, file = root, "memory.max"
        elif "memory" in controllers.split(","):
            folder, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(name.lstrip("/"))
        # in a container the file system shows its own group as the root
        for around in (group, *group.parents):
            yield folder / around / file
