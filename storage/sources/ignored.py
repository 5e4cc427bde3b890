"""What ``.gitignore`` leaves out of a project."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pathspec import GitIgnoreSpec


class Ignored:
    """The ``.gitignore`` files of a folder and of those around it, up to the root of its repository."""

    def __init__(self) -> None:
        self._spec = cache(_spec_of)

    def matches(self, path: Path, *, is_folder: bool) -> bool:
        """Whether git would leave a path out. As there, what lies in a folder that is left out is not asked for."""
        for folder in path.parents:  # the nearest file decides
            spec = self._spec(folder)
            if spec is not None:
                name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
                decided = spec.check_file(name).include
                if decided is not None:
                    return bool(decided)
            if (folder / ".git").exists():
                break
        return False


def _spec_of(folder: Path) -> GitIgnoreSpec | None:
    try:
        lines = (folder / ".gitignore").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return GitIgnoreSpec.from_lines(lines)
