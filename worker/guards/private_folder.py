"""Folders that no other user of the host can write to."""

from __future__ import annotations

import os
from pathlib import Path


def make_private_folder(folder: Path) -> bool:
    """Make a folder, with those above it; returns whether only this user can write to it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stat = folder.stat()
    return stat.st_uid == os.geteuid() and not stat.st_mode & 0o022
