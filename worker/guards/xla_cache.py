"""XLA's compiled programs on disk, in a bounded folder that all worker processes of a host share."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from gridfleet.storage.payloads.host_cache import cache_folder
from gridfleet.storage.private_folder import make_private_folder
from gridfleet.storage.settings import Settings

logger = logging.getLogger(__name__)

#: Bytes that the programs may take on this host's disk; one of a small model takes 0.3 MB.
MAX_BYTES = 500_000_000


def share_compiled_programs(settings: Settings) -> None:
    """Have TensorFlow keep what XLA compiles on disk, unless ``TF_XLA_FLAGS`` is set; it reads that at import.

    A program that another process of the host compiled is loaded in half the time.

    Parameters
    ----------
    settings : Settings
        Where the folder is. One that another user can write to is not used, for its programs would run here.
    """
    folder = _folder(settings)
    if "TF_XLA_FLAGS" not in os.environ and make_private_folder(folder):
        os.environ["TF_XLA_FLAGS"] = f"--tf_xla_persistent_cache_directory={folder}"


def bound_compiled_programs(settings: Settings) -> None:
    """Remove the oldest programs beyond `MAX_BYTES`.

    Called as each worker process begins: one that compiles much is replaced for the memory that it takes.

    Parameters
    ----------
    settings : Settings
        Where the folder is; one that another user can write to is left alone.
    """
    folder = _folder(settings)
    try:
        if make_private_folder(folder):
            _remove_oldest(folder)
    except OSError as error:  # no reason not to evaluate trials
        logger.warning("old programs of XLA could not be removed from %s: %s", folder, error)


def _remove_oldest(folder: Path) -> None:
    found = []
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removed it
            found.append((file.stat(), file))
    total = 0
    for stat, file in sorted(found, key=lambda pair: -pair[0].st_mtime):
        total += stat.st_size
        if total > MAX_BYTES:
            file.unlink(missing_ok=True)


def _folder(settings: Settings) -> Path:
    return cache_folder(settings) / "xla"
