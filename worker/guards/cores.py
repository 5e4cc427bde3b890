"""How many cores this process may use: what ``n_jobs=-1`` and the threads of each worker process go by."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the cores that this process may run on, which ``taskset``, Slurm or a cpuset may make fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
