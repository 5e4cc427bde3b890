"""What one worker process may take, and what does not count: data that it shares with others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: A process that may take 600 MB maps a payload of 1,500, and lets go of it.
SCRIPT = """
import resource, sys
from gridfleet.storage.database.connection import Database
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.settings import Settings
from gridfleet.worker.guards.memory import bound_memory, make_room

settings = Settings(database_url="sqlite://", secret_key="0" * 64)
store = PayloadStore(Database(settings), settings, make_room)
bound_memory(600)
limit = resource.getrlimit(resource.RLIMIT_DATA)

def is_refused(n_bytes):
    try:
        bytearray(n_bytes)
    except MemoryError:
        return True
    return False

with open(sys.argv[1], "rb") as file:
    mapped = store._map(file)
assert mapped.nbytes == 1_500_000_000
mapped[0] = 1  # a copy of its page
assert is_refused(700_000_000)  # as without data
assert not is_refused(100_000_000)
del mapped
assert resource.getrlimit(resource.RLIMIT_DATA) == limit
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds what a process may write to")
def test_data_that_are_mapped_do_not_count(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with data.open("wb") as file:
        file.truncate(1_500_000_000)

    done = subprocess.run([sys.executable, "-c", SCRIPT, str(data)], capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
