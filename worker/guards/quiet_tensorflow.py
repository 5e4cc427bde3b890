"""TensorFlow's import without the lines that its C++ prints before any log level holds."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: The file descriptor of standard error, to which C++ writes past sys.stderr.
STDERR = 2


def quiet_tensorflow() -> None:
    """Let TensorFlow be imported in silence, by whatever imports it first in this process; imports nothing itself.

    ``TF_CPP_MIN_LOG_LEVEL`` comes too late for absl's "All log messages before absl::InitializeLog() is called are
    written to STDERR" and for oneDNN's line that follows it. Errors of the import are raised as ever.
    """
    if "tensorflow" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds TensorFlow as the other finders do, and puts silence around its first import."""

    def __init__(self) -> None:
        self._is_asked = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow" or self._is_asked:
            return None
        self._is_asked = True
        spec = importlib.util.find_spec(fullname)  # asks this finder again, and then the others
        if spec is not None and spec.loader is not None:
            self._silence(spec.loader)
        return spec

    def _silence(self, loader: object) -> None:
        execute = loader.exec_module  # type: ignore[attr-defined]

        def execute_in_silence(module: ModuleType) -> None:
            with _silent_stderr():
                execute(module)
            sys.meta_path.remove(self)

        # on the loader itself, and not a loader around it: importlib.resources and inspect ask it for more
        loader.exec_module = execute_in_silence  # type: ignore[attr-defined]


@contextmanager
def _silent_stderr() -> Iterator[None]:
    kept = os.dup(STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(nowhere)
        os.close(kept)
