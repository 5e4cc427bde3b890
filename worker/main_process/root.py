"""No code of other people runs as root."""

from __future__ import annotations

import os
from pathlib import Path

from gridfleet.storage.errors import SettingsError
from gridfleet.storage.settings import PREFIX, Settings

#: What container engines put into each container.
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def refuse_root(settings: Settings) -> None:
    """Refuse to evaluate other people's code as root, unless a container is around it or the settings say so.

    Raises
    ------
    SettingsError
        With what to do.
    """
    if os.geteuid() != 0 or settings.allow_root or _is_in_container():
        return
    raise SettingsError(
        "a worker runs the code of everybody who may submit, so it does not run as root outside a container; start "
        f"it as a user of its own, or set {PREFIX}ALLOW_ROOT=true"
    )


def _is_in_container() -> bool:
    # systemd-nspawn, podman and lxc set the variable
    return "container" in os.environ or any(mark.exists() for mark in CONTAINER_MARKS)
