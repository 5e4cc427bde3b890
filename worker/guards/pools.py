"""Pools of processes that a model's own code makes: allowed, as they are in scikit-learn's worker processes."""

from __future__ import annotations

import multiprocessing
from multiprocessing.process import AuthenticationString  # type: ignore[attr-defined]


def allow_pools() -> None:
    """Let this process of Celery's pool have children by ``multiprocessing`` and ``concurrent.futures``.

    Celery marks its processes as daemons, of which Python asserts that they start none. What they leave behind when
    they die is ended by the main process (orphans.py).
    """
    process = multiprocessing.current_process()  # billiard's, which it puts in the place of Python's
    key = AuthenticationString(process.authkey)  # Python's own kind can be sent to a child that is spawned
    process._config = {**process._config, "daemon": False, "authkey": key}  # type: ignore[attr-defined]
    process.__class__ = type(type(process).__name__, (_SeenAsDaemon, type(process)), {})


class _SeenAsDaemon:
    # joblib asks this, and not Python's mark, before it starts processes that nobody asked for by name: with as many
    # of them in each worker process there would be too many
    @property
    def daemon(self) -> bool:
        return True
