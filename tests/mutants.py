"""Production code without one of its guards, for tests of what tests are worth."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gridfleet.storage import searches, statements
from gridfleet.storage.trials import claims, fair_share, held, queue, transitions, uncertain_commits

#: Modules that build statements of what those before them hold, as they are imported.
STATEMENTS = (statements, searches, held, fair_share, queue, claims, transitions, uncertain_commits)


@contextmanager
def mutated(module: types.ModuleType, old: str, new: str) -> Iterator[None]:
    """Let a module be another one: all that call it by its name, or build statements of its parts, get the mutant."""
    source = Path(str(module.__file__)).read_text()
    assert source.count(old) == 1, f"{module.__name__} does not contain once: {old}"
    after = STATEMENTS[STATEMENTS.index(module) + 1 :] if module in STATEMENTS else ()
    healthy = [(one, dict(one.__dict__)) for one in (module, *after)]
    try:
        exec(compile(source.replace(old, new), f"mutant of {module.__name__}", "exec"), module.__dict__)
        for one in after:
            exec(compile(Path(str(one.__file__)).read_text(), str(one.__file__), "exec"), one.__dict__)
        yield
    finally:
        for one, names in healthy:
            one.__dict__.clear()
            one.__dict__.update(names)
