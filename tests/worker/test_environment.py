"""What a worker's processes inherit: threads and the room for their stacks, and folders where there is no home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import joblib
import pytest

from gridfleet.storage.errors import SettingsError
from gridfleet.storage.payloads.host_cache import HostCache
from gridfleet.storage.settings import Settings, load_settings
from gridfleet.worker.guards import memory
from gridfleet.worker.guards.temporary_folder import temporary_folder
from gridfleet.worker.main_process.environment import threads_per_process, with_cache


@pytest.mark.parametrize(("n_cores", "concurrency", "threads"), [(8, 2, 4), (2, 4, 1), (192, 2, 16), (64, 1, 16)])
def test_a_process_has_its_share_of_the_cores_and_no_more_than_it_can_use(
    monkeypatch: pytest.MonkeyPatch, n_cores: int, concurrency: int, threads: int
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: n_cores)

    assert threads_per_process(concurrency) == threads


def test_stacks_of_threads_have_room_besides_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in memory.THREAD_VARIABLES:
        monkeypatch.setenv(variable, "16")

    assert memory._stack_bytes(8_388_608) == 5 * 16 * 8_388_608
    assert memory._stack_bytes(-1) == 5 * 16 * memory.GLIBC_STACK  # no limit: the default of glibc


def test_a_user_without_a_home_keeps_payloads_in_a_temporary_folder(
    no_variables: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ["HOME"] = "/proc"  # where not even root makes a folder

    settings = with_cache(Settings(database_url="sqlite:////unused.db", broker_url="redis://unused"))

    folder = Path(os.environ["GRIDFLEET_CACHE_DIR"])
    assert "the folder /proc/.cache/gridfleet can't be made" in caplog.text
    assert "GRIDFLEET_CACHE_DIR names another" in caplog.text
    assert load_settings().cache_dir == settings.cache_dir == folder  # of the processes that this one starts
    with HostCache(folder, 10**6).opened("0" * 64, lambda file: file.write(b"content")) as file:
        assert file.read() == b"content"


def test_a_host_without_a_temporary_folder_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])

    with pytest.raises(SettingsError, match="mount one at /tmp, or set TMPDIR"), temporary_folder("work"):
        pass
