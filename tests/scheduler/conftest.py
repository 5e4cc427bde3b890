"""The command ``gridfleet`` in this process, and a fleet for it with a finished search."""

import os
from unittest.mock import patch

import pytest

from gridfleet.scheduler.cli import main
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
