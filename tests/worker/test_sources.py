"""The modules of a search's script are there for that search, and for nothing else."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import redis.client

from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import PayloadError
from gridfleet.storage.payloads.digest import digest_of
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.private_folder import why_not_private
from gridfleet.storage.settings import Settings
from gridfleet.storage.sources.archive import pack
from gridfleet.worker.trial import unpacked
from gridfleet.worker.trial.sources import ScriptModules
from gridfleet.worker.trial.unpacked import UnpackedSources
from tests.conftest import give_to_another_user

Import = Callable[..., ModuleType]


def archive_of(**files: str) -> bytes:
    return pack({name.replace("__slash__", "/") + ".py": text.encode() for name, text in files.items()})


@pytest.fixture
def payloads(make_settings: Callable[..., Settings]) -> Iterator[PayloadStore]:
    settings = make_settings("sqlite")
    with contextlib.closing(Database(settings)) as database:
        yield PayloadStore(database, settings)


@pytest.fixture
def modules(payloads: PayloadStore, tmp_path: Path) -> ScriptModules:
    return ScriptModules(payloads, Settings(cache_dir=tmp_path / "cache"))


@pytest.fixture
def import_of(payloads: PayloadStore, modules: ScriptModules, tmp_path: Path) -> Iterator[Import]:
    """Import a module among those of a search, ``import_of(archive, "helpers")``."""

    def import_of(archive: bytes | None, name: str) -> ModuleType:
        digest = None if archive is None else payloads.put("sources", (archive, {}), what="archive")
        with modules.of_search(digest, payloads.get):
            return importlib.import_module(name)

    yield import_of
    assert not any(path.startswith(str(tmp_path / "cache")) for path in sys.path)


def test_modules_are_there_for_their_search_and_gone_afterwards(import_of: Import, tmp_path: Path) -> None:
    archive = archive_of(helpers_x="VALUE = 1")
    module = import_of(archive, "helpers_x")

    assert module.VALUE == 1
    assert Path(str(module.__file__)).parent.parent == tmp_path / "cache" / "sources"
    assert "helpers_x" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        import helpers_x  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        import_of(None, "helpers_x")


@pytest.mark.parametrize("edited", [False, True])
def test_a_module_sees_its_own_place_where_that_is_this_hosts_and_not_edited_since(
    edited: bool, payloads: PayloadStore, modules: ScriptModules, tmp_path: Path
) -> None:
    text = "PLACE = __file__"
    (tmp_path / "project" / "pkg_x").mkdir(parents=True)
    (tmp_path / "project" / "pkg_x" / "a.py").write_text(text + " " * edited)
    archive = archive_of(pkg_x__slash____init__="", pkg_x__slash__a=text)
    digest = payloads.put("sources", (archive, {"pkg_x": str(tmp_path / "project")}), what="archive")

    with modules.of_search(digest, payloads.get):
        module = importlib.import_module("pkg_x.a")

    folder = tmp_path / "cache" / "sources" / digest if edited else tmp_path / "project"
    assert str(folder / "pkg_x" / "a.py") == module.PLACE


def test_the_next_trial_of_the_search_has_the_same_modules(import_of: Import) -> None:
    archive = archive_of(pkg_x__slash____init__="", pkg_x__slash__a="class A: pass")

    assert import_of(archive, "pkg_x.a").A is import_of(archive, "pkg_x.a").A


def test_edited_modules_are_seen_at_once_and_what_was_loaded_with_the_old_ones_is_let_go(
    payloads: PayloadStore, modules: ScriptModules, import_of: Import
) -> None:
    texts = ("VALUE = 1\nclass A: pass", "VALUE = 2\nclass A: pass")
    first, second = (payloads.put("sources", (archive_of(settings_x=text), {}), what="archive") for text in texts)
    with modules.of_search(first, payloads.get):
        of_first = importlib.import_module("settings_x")
        evaluation = payloads.put("evaluation", of_first.A(), what="estimator")
        plain = payloads.put("X", [1.0], what="X")
        loaded = [payloads.get("evaluation", evaluation), payloads.get("X", plain)]
        assert type(loaded[0]) is of_first.A
        assert payloads.get("evaluation", evaluation) is loaded[0]

    with modules.of_search(second, payloads.get):
        of_second = importlib.import_module("settings_x")
        assert (of_first.VALUE, of_second.VALUE) == (1, 2)
        assert type(payloads.get("evaluation", evaluation)) is of_second.A
        assert payloads.get("X", plain) is loaded[1]


def test_a_script_may_have_modules_with_the_names_of_the_workers_own(import_of: Import) -> None:
    archive = archive_of(redis="class Mine: pass", json="VALUE = 'mine'")

    assert import_of(archive, "redis").Mine
    assert import_of(archive, "json").VALUE == "mine"

    assert json.loads("1") == 1
    assert sys.modules["redis"] is redis
    assert redis.client.Redis is redis.Redis


def test_folders_without_an_init_file_may_be_installed_in_part(
    import_of: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "spaces_x").mkdir(parents=True)
    (tmp_path / "site" / "spaces_x" / "installed.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    installed = importlib.import_module("spaces_x.installed")
    both = {"spaces_x__slash__own": "import spaces_x.installed", "alone_x__slash__own": ""}

    for number in (1, 2):
        for name in ("spaces_x.own", "alone_x.own"):
            archive = archive_of(**{**both, name.replace(".", "__slash__"): f"import spaces_x.installed; N = {number}"})
            assert [import_of(archive, name).N for _ in range(2)] == [number, number]

    assert sys.modules["spaces_x"].installed is sys.modules["spaces_x.installed"] is installed
    assert not hasattr(sys.modules["spaces_x"], "own")
    assert not {"spaces_x.own", "alone_x", "alone_x.own"} & sys.modules.keys()
    monkeypatch.delitem(sys.modules, "spaces_x")
    monkeypatch.delitem(sys.modules, "spaces_x.installed")


def with_digest(archive: bytes) -> tuple[str, bytes]:
    return digest_of([memoryview(archive)]), archive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sources"


ARCHIVE = with_digest(archive_of(a="VALUE = 1", pkg__slash__b=""))


def test_what_is_unpacked_is_this_users_alone_and_stays_for_the_next_process(folder: Path) -> None:
    first = UnpackedSources(folder, *ARCHIVE)
    written = (first.path / "a.py").stat().st_mtime_ns

    paths = [first.path, *first.path.rglob("*")]
    assert [why_not_private(path, "folder" if path.is_dir() else "file") for path in paths] == [None] * 4
    assert (UnpackedSources(folder, *ARCHIVE).path / "a.py").stat().st_mtime_ns == written


def plant(path: Path) -> None:
    (path / "planted.py").write_text("1 / 0")


def change(path: Path) -> None:
    (path / "a.py").write_text("VALUE = 2")


def remove(path: Path) -> None:
    (path / "pkg" / "b.py").unlink()


def link(path: Path) -> None:
    (path / "a.py").rename(path.parent / "a.py")
    (path / "a.py").symlink_to(path.parent / "a.py")


def link_folder(path: Path) -> None:
    (path / "more").symlink_to(path.parent)


def let_others_write(path: Path) -> None:
    path.chmod(0o777)


def let_others_write_a_file(path: Path) -> None:
    (path / "a.py").chmod(0o666)


@pytest.mark.parametrize(
    "attack", [plant, change, remove, link, link_folder, let_others_write, let_others_write_a_file]
)
def test_what_was_planted_or_changed_is_replaced(attack: Callable[[Path], None], folder: Path) -> None:
    first = UnpackedSources(folder, *ARCHIVE)
    first.close()
    attack(first.path)

    again = UnpackedSources(folder, *ARCHIVE).path

    assert sorted(path.relative_to(again).as_posix() for path in again.rglob("*")) == ["a.py", "pkg", "pkg/b.py"]
    assert (again / "a.py").read_text() == "VALUE = 1"
    assert not (again / "a.py").is_symlink()
    assert again.stat().st_mode & 0o077 == (again / "a.py").stat().st_mode & 0o077 == 0


def test_a_folder_of_another_user_is_replaced_or_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    (folder / ARCHIVE[0]).symlink_to("/")
    assert not UnpackedSources(folder, *ARCHIVE).path.is_symlink()

    give_to_another_user(folder, monkeypatch)
    with pytest.raises(PayloadError, match=r"folder for sources is not private: .* belongs to another user"):
        UnpackedSources(folder, *ARCHIVE)


def test_folders_that_no_process_uses_go_the_longest_unused_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked, "KEPT", 2)
    archives = [with_digest(archive_of(a=f"VALUE = {number}")) for number in range(4)]
    held = UnpackedSources(folder, *archives[0])
    os.utime(held.path, (1, 1))
    for number, archive in enumerate(archives[1:], start=2):
        one = UnpackedSources(folder, *archive)
        one.close()
        os.utime(one.path, (number, number))

    left = {path.name for path in folder.iterdir()} - {"lock"}

    assert left == {archives[number][0] for number in (0, 2, 3)}
