"""The command ``gridfleet`` in this process, and a fleet for it with a finished search."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from gridfleet.scheduler.cli import main
from gridfleet.scheduler.fleet.local.folder import Folder
from tests.stored_searches import store_pima


@pytest.fixture
def gridfleet(capsys):
    """Run the command in this process: ``gridfleet("best", "pima")`` gives status, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        # a worker that is refused late has set variables of this process
        with patch.dict(os.environ), pytest.raises(SystemExit) as left:
            main.main(list(arguments))
        return (left.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def fleet(database_settings, database, monkeypatch):
    """Configure a fleet by its variables, as a shell would."""
    for name, value in database_settings.as_variables().items():
        monkeypatch.setenv(name, value)
    return database_settings


@pytest.fixture
def pima(fleet, database):
    """Store the finished search ``pima``."""
    return store_pima(fleet, database)


@pytest.fixture
def announce(embedded_home: Path, broker_url: str) -> Iterator[Callable[..., None]]:
    """Let this process be the fleet of a folder, with a broker and without workers, whoever owns it."""
    folder = Folder(embedded_home / ".gridfleet")
    folder.prepare()
    folder.make_database()
    with ExitStack() as stack:
        assert stack.enter_context(folder.owned())
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        path = folder.home / "s"
        listener.bind(str(path))
        path.chmod(0o600)

        def write(**state: Any) -> None:
            of_fleet = {"pid": os.getpid(), "broker_url": broker_url, "socket": str(path), "linger_s": 0}
            folder.announce({**of_fleet, "owner": None, "n_workers": 0, **state})

        write()
        yield write
