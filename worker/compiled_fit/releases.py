"""Which releases of Keras and TensorFlow programs were compared with."""

from __future__ import annotations

import functools
import logging
from importlib import import_module

logger = logging.getLogger(__name__)

#: Their results were compared with those of programs; the selfcheck compares any other.
TESTED_RELEASES = {"keras": "3.15.", "tensorflow": "2.21."}


def untested_release() -> str | None:
    """Return which of the installed releases programs were not compared with; None: they were with both.

    It is told once in a process.
    """
    releases = {name: str(import_module(name).__version__) for name in TESTED_RELEASES}
    untested = [f"{name} {one}" for name, one in releases.items() if not one.startswith(TESTED_RELEASES[name])]
    if not untested:
        return None
    _warn_of(named := " and ".join(untested))
    return named


@functools.cache
def _warn_of(named: str) -> None:
    logger.warning(
        "compiled training was not tested with %s: each program's first batches are compared with Keras' own, XLA, "
        "predict and evaluate are left to Keras; `python -m gridfleet.worker.compiled_fit.selfcheck` compares them all",
        named,
    )
