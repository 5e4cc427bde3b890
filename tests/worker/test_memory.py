"""What one worker process may take, and what does not count: data that it shares with others."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from billiard import pool

from gridfleet.worker.guards.peak_memory import replace_by_own_memory

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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is a process's own")
def test_data_that_are_read_do_not_make_a_process_one_that_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "mem_rss", pool.mem_rss)  # to be put back
    (tmp_path / "data").write_bytes(bytes(200_000_000))
    replace_by_own_memory()
    before = pool.mem_rss()

    with (tmp_path / "data").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        assert numpy.frombuffer(mapped, numpy.uint8).sum() == 0
        shared = pool.mem_rss() - before
        copied = numpy.ones(200_000_000, numpy.uint8)
        own = pool.mem_rss() - before

    assert copied.all()
    assert shared < 100_000
    assert own > 100_000
