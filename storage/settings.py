"""Every setting, from ``GRIDFLEET_*`` variables and secret files, typed, with its default."""

from __future__ import annotations

import os
import re
import stat
import sys
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SettingsSourceError
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from gridfleet.storage.errors import SettingsError
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.private_folder import HEALTH_FILE, make_runtime_folder
from gridfleet.storage.signer import WORKER_KEY_PREFIX, Signer, Verifier, worker_key_of
from gridfleet.storage.suggestion import nearest
from gridfleet.storage.urls import is_loopback, parsed, shown_url, with_absolute_paths, with_password

PREFIX = "GRIDFLEET_"
#: How the URL of a broker begins that listens at a UNIX socket: kombu's word, redis-py's is "unix".
SOCKET_SCHEME = "redis+socket"

#: Drivers of the databases that gridfleet speaks.
DRIVERS = ("postgresql+psycopg", "sqlite", "sqlite+pysqlite")
#: What may stand behind the ``?`` of a broker's URL: the options that redis-py and Celery both know, all for TLS.
BROKER_OPTIONS = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile")
#: Settings of which an error shows no value.
MAY_BE_SECRET = (
    *("database_url", "database_password", "broker_url", "broker_password"),
    *("secret_key", "public_key", "worker_key", "new_secret_key", "page_password"),
    *("webhook_url", "notify_urls"),
)
#: Variables with our prefix that are no settings: of processes that this one starts, of docker compose, of tests.
# fmt: off
OTHER_VARIABLES = frozenset({
    "SECRETS_DIR", "NODE", "SIGNS_OF_LIFE", "BROKER_PORT", "DATABASE_PORT", "PAGE_PORT", "WORKER_CONCURRENCY",
    "WORKER_MEMORY", "WORKER_CPUS", "IMAGE_TAG", "PYTHON", "SEED", "SEEDS", "RECOVERIES",
})
# fmt: on
#: What to do where a signature is another key's.
SAME_KEYS = (
    f"give {PREFIX}SECRET_KEY the same value wherever searches are submitted, and the workers the {PREFIX}PUBLIC_KEY "
    "that `gridfleet public-key` prints there"
)
#: How a broker with TLS may be asked for its certificate.
CERTIFICATES = ("required", "optional", "none")


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


#: The folder of an embedded fleet.
HOME = ".gridfleet"


def nearest_home() -> Path:
    """Return the embedded fleet's folder: this folder's, or the nearest one above it, as git finds its own.

    Folders above count that belong to this user and lie on the same file system, as for git.
    """
    here = Path.cwd()
    if os.path.lexists(here / HOME):
        return here / HOME
    of_here = here.stat().st_dev
    for folder in here.parents:
        found = folder / HOME
        try:
            status = found.lstat()
        except OSError:  # not there, or not for this user to see
            continue
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and status.st_dev == of_here:
            return found
    return here / HOME


#: A path that stays the same when a process goes to another folder, and a URL that does.
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
PortableUrl = Annotated[str, AfterValidator(with_absolute_paths)]


class Settings(BaseSettings):
    """The settings of one process.

    Each comes from the variable ``GRIDFLEET_<NAME>`` or, where that is not set, from the file
    ``gridfleet_<name>`` in ``GRIDFLEET_SECRETS_DIR`` (default ``/run/secrets``). With neither
    ``database_url`` nor ``broker_url`` the fleet is embedded: SQLite, a broker and worker processes of
    its own in ``home``.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    home: AbsolutePath = Field(
        default_factory=nearest_home, description="Folder of the embedded fleet, here or in the nearest folder above."
    )
    database_url: PortableUrl | None = Field(None, description="SQLAlchemy URL: postgresql+psycopg://… or sqlite:///….")
    database_password: SecretStr | None = Field(None, description="Password for database_url, kept apart from it.")
    broker_url: PortableUrl | None = Field(None, description="redis://…, rediss://… or redis+socket:///path/to/socket.")
    broker_password: SecretStr | None = Field(None, description="Password for broker_url, kept apart from it.")
    secret_key: SecretStr | None = Field(
        None, description="Signs payloads and searches; the same for all submitters, and no worker has it."
    )
    public_key: str | None = Field(
        None, description="Checks what secret_key signed, where that is not set; `gridfleet public-key` prints it."
    )
    worker_key: SecretStr | None = Field(
        None, description="Signs the models that workers fit; `gridfleet worker-key` prints it where secret_key is set."
    )
    new_secret_key: SecretStr | None = Field(None, description="What `gridfleet rekey` puts in secret_key's place.")
    cache_dir: AbsolutePath | None = Field(
        None, description="Where workers keep payloads; a private folder of this user."
    )
    cache_size_mb: int = Field(4096, ge=1, description="Bound of cache_dir, in MB.")
    payloads_size_mb: int = Field(50_000, ge=1, description="Bound of all stored payloads, in MB; asked at submission.")
    model_size_mb: int = Field(500, ge=1, description="Bound of a best model that a worker stores, in MB.")
    health_file: AbsolutePath | None = Field(None, description="File that a living service touches every 10 s.")
    linger_s: float = Field(0, ge=0, description="Seconds that an embedded fleet outlives the scripts that use it.")
    lease_s: float = Field(60, gt=0, description="Seconds that a claimed trial is held without a heartbeat.")
    heartbeat_s: float = Field(10, gt=0, description="Seconds between heartbeats of a running trial.")
    reconcile_s: float = Field(15, gt=0, description="Seconds between passes of the reconciler.")
    republish_s: float = Field(60, gt=0, description="Seconds after which a message counts as lost.")
    max_failures: int = Field(3, ge=1, description="Deaths, time-outs and lost leases after which a trial fails.")
    max_runtime_s: float = Field(86_400, gt=0, description="Seconds that one attempt at a trial may take.")
    fit_mode: FitMode = Field(FitMode.EXACT, description="How Keras models are trained, unless a search says.")
    max_memory_mb: int = Field(2_000, ge=100, description="A worker process above this is replaced after its trial.")
    memory_limit_mb: int | None = Field(None, ge=500, description="Memory of one worker process; default: its share.")
    start_method: Literal["fork", "spawn"] = Field("fork", description="How worker processes start; macOS: spawn.")
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = Field(
        "INFO", description="What services log at least: DEBUG (with every decision), INFO, WARNING or ERROR."
    )
    log_format: Literal["text", "json"] = Field("text", description="How services log: text or json.")
    progress: Literal["auto", "plain", "quiet"] = Field(
        "auto", description="How those who wait are shown progress: auto (updated in place), plain (lines) or quiet."
    )
    page_address: str = Field("127.0.0.1", description="Where `gridfleet page` listens: an address of this machine.")
    page_password: SecretStr | None = Field(
        None, description="What opens the page, for good; without it, a token that each `gridfleet page` prints."
    )
    page_names: str = Field(
        "", description="Host names under which the page is reached, beside 127.0.0.1 and localhost: NAME,NAME."
    )
    webhook_url: SecretStr | None = Field(
        None, description="Where schedulers and embedded fleets tell of searches that end and of new bests."
    )
    notify_urls: SecretStr | None = Field(
        None, description="The same by apprise, instead of webhook_url: its URLs, separated by spaces."
    )
    webhook_allow_http: bool = Field(False, description="Whether webhook_url may be http:// to another machine.")
    allow_root: bool = Field(False, description="Whether `gridfleet worker` may run as root outside a container.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read variables first, then the files of the secrets folder, if there is one."""
        chosen = os.environ.get(PREFIX + "SECRETS_DIR")
        folder = Path(chosen or "/run/secrets")
        if not folder.is_dir():
            if chosen and chosen != os.devnull:
                raise SettingsError(
                    f"{PREFIX}SECRETS_DIR={chosen} is no folder; name the one that has the secrets, as `make secrets` "
                    "made it, or unset it"
                )
            return init_settings, env_settings
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=folder)

    @property
    def is_embedded(self) -> bool:
        """Whether broker, database and workers are this folder's own."""
        return self.database_url is None and self.broker_url is None

    @property
    def forks_processes(self) -> bool:
        """Whether worker processes are forked from a template, so that a new one costs next to nothing."""
        return self.start_method == "fork" and sys.platform == "linux"

    @property
    def health_path(self) -> Path | None:
        """The health file; without a setting that of this user's running processes, if there is a place for it."""
        if self.health_file is not None:
            return self.health_file
        folder = make_runtime_folder()
        return None if folder is None else folder / HEALTH_FILE

    def database(self) -> URL:
        """Return the database's URL, password included.

        Raises
        ------
        SettingsError
            If ``database_url`` is missing, malformed or of a database that gridfleet does not speak.
        """
        if self.database_url is None:
            raise SettingsError(
                f"{PREFIX}DATABASE_URL is not set but {PREFIX}BROKER_URL is; set both for a fleet, or neither "
                "for an embedded one"
            )
        try:
            url = parsed(self.database_url)
        except (ArgumentError, ValueError):
            raise SettingsError(
                f"{PREFIX}DATABASE_URL is not a URL; write postgresql+psycopg://user@host:5432/name or "
                "sqlite:///path/to/file.db"
            ) from None  # the parser's own error quotes the part that it stumbled over, maybe a password's
        backend = url.get_backend_name()
        if backend not in ("postgresql", "sqlite"):
            raise SettingsError(
                f"{PREFIX}DATABASE_URL names the database {backend!r}; gridfleet speaks postgresql and sqlite"
            )
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        if url.drivername not in DRIVERS:
            raise SettingsError(
                f"{PREFIX}DATABASE_URL begins with {url.drivername!r}; write postgresql+psycopg:// or sqlite://"
            )
        if backend == "sqlite":
            _refuse_options(url, "DATABASE_URL", allowed=())
        if self.database_password is not None and url.password is None:
            url = with_password(url, self.database_password.get_secret_value())
        return url

    def broker(self) -> str:
        """Return the broker's URL, password included.

        Raises
        ------
        SettingsError
            If ``broker_url`` is missing or not a Redis URL.
        """
        if self.broker_url is None:
            raise SettingsError(
                f"{PREFIX}BROKER_URL is not set but {PREFIX}DATABASE_URL is; set both for a fleet, or neither "
                "for an embedded one"
            )
        try:
            url = parsed(self.broker_url)
        except (ArgumentError, ValueError):
            raise SettingsError(f"{PREFIX}BROKER_URL is not a URL; write redis://host:6379/0") from None
        if url.drivername not in ("redis", "rediss", SOCKET_SCHEME):
            raise SettingsError(
                f"{PREFIX}BROKER_URL begins with {url.drivername!r}; write redis://host:6379/0, or rediss:// for TLS"
            )
        if url.drivername == SOCKET_SCHEME:
            if url.host or not url.database:
                raise SettingsError(f"{PREFIX}BROKER_URL names no socket; write {SOCKET_SCHEME}:///path/to/socket")
        elif url.database and not re.fullmatch("[0-9]{1,9}", url.database):
            raise SettingsError(f"{PREFIX}BROKER_URL names the database {url.database!r}; it has a number, as in /0")
        _refuse_options(url, "BROKER_URL", allowed=BROKER_OPTIONS if url.drivername == "rediss" else ())
        if url.drivername == "rediss":
            # Celery's default encrypts without asking whom it talks to; its own words are CERT_REQUIRED and so on
            asked = str(url.query.get("ssl_cert_reqs", "required"))
            requirement = asked.removeprefix("CERT_").lower()
            if requirement not in CERTIFICATES:
                raise SettingsError(f"{PREFIX}BROKER_URL: ssl_cert_reqs is none of {', '.join(CERTIFICATES)}")
            url = url.update_query_dict({"ssl_cert_reqs": requirement})
        if self.broker_password is not None and url.password is None:
            url = with_password(url, self.broker_password.get_secret_value())
        return url.render_as_string(hide_password=False)

    def key(self) -> bytes:
        """Return the secret key.

        Raises
        ------
        SettingsError
            If it is missing or shorter than 16 characters.
        """
        if self.secret_key is None:
            raise SettingsError(
                f"{PREFIX}SECRET_KEY is not set, and searches are signed with it; put the fleet's key there, or into "
                "the file gridfleet_secret_key of the secrets folder"
            )
        return _key("SECRET_KEY", self.secret_key)

    def new_signer(self) -> Signer:
        """Return what signs with the secret key from now on.

        Raises
        ------
        SettingsError
            If there is none, or it is the one of before.
        """
        if self.new_secret_key is None:
            raise SettingsError(
                f"{PREFIX}NEW_SECRET_KEY is not set; put the fleet's key from now on there, or into the file "
                f"gridfleet_new_secret_key of the secrets folder, and leave {PREFIX}SECRET_KEY as it is"
            )
        key = _key("NEW_SECRET_KEY", self.new_secret_key)
        if key == self.key():
            raise SettingsError(f"{PREFIX}NEW_SECRET_KEY is the same as {PREFIX}SECRET_KEY; take another one")
        return Signer(key)

    def signer(self) -> Signer:
        """Return what signs with the secret key.

        Raises
        ------
        SettingsError
            If there is none, or a public key of another one beside it.
        """
        signer = Signer(self.key())
        if self.public_key is not None and self._public_key().public_key != signer.public_key:
            raise SettingsError(
                f"{PREFIX}PUBLIC_KEY is not the one of {PREFIX}SECRET_KEY; leave it out where the secret key is set"
            )
        return signer

    def verifier(self) -> Verifier:
        """Return what checks signatures: with the public key, or with that of the secret key.

        Raises
        ------
        SettingsError
            If there is neither, or one that is none.
        """
        if self.secret_key is not None:
            return Verifier(self.signer().public_key)
        return self._public_key()

    def _public_key(self) -> Verifier:
        if self.public_key is None:
            raise SettingsError(
                f"neither {PREFIX}PUBLIC_KEY nor {PREFIX}SECRET_KEY is set; put what `gridfleet public-key` prints, "
                "where searches are submitted, there or into the file gridfleet_public_key of the secrets folder"
            )
        try:
            return Verifier(self.public_key.strip())
        except ValueError as error:  # not the value: it may be the secret key, by mistake
            raise SettingsError(
                f"{PREFIX}PUBLIC_KEY is no public key, for {error}; `gridfleet public-key` prints it where "
                "searches are submitted"
            ) from None

    def model_signer(self) -> Signer:
        """Return what signs the models that workers fit: with the worker's key, or with that of the secret key.

        Raises
        ------
        SettingsError
            If there is neither, or one that is none.
        """
        if self.secret_key is not None:
            return Signer(worker_key_of(self.key()).encode())
        if self.worker_key is None:
            raise SettingsError(
                f"{PREFIX}WORKER_KEY is not set, and workers sign with it the models that they fit; put what "
                "`gridfleet worker-key` prints, where searches are submitted, there or into the file "
                "gridfleet_worker_key of the secrets folder"
            )
        key = self.worker_key.get_secret_value().strip()
        if re.fullmatch(f"{WORKER_KEY_PREFIX}[0-9a-f]{{64}}", key) is None:  # it may be the secret key, by mistake
            raise SettingsError(
                f"{PREFIX}WORKER_KEY is no worker's key, for it is not {WORKER_KEY_PREFIX} and 64 hexadecimal digits; "
                "`gridfleet worker-key` prints it where searches are submitted"
            )
        return Signer(key.encode())

    def password_of_page(self) -> str | None:
        """Return the password of the page, if it has one.

        Raises
        ------
        SettingsError
            If it is shorter than 16 characters: nobody counts how often it is guessed.
        """
        return (
            None if self.page_password is None else _key("PAGE_PASSWORD", self.page_password).decode(errors="replace")
        )

    def names_of_page(self) -> frozenset[str]:
        """Return the host names under which the page is reached, beside those of the loopback."""
        return frozenset(filter(None, map(str.strip, [*self.page_names.split(","), self.page_address])))

    def webhook(self) -> str | None:
        """Return where events are sent; None: nowhere, or by apprise.

        Raises
        ------
        SettingsError
            If it is no URL of http(s), or one that is not encrypted; without the value, which may hold a token.
        """
        url = "" if self.webhook_url is None else self.webhook_url.get_secret_value().strip()
        if not url:
            return None
        name = f"{PREFIX}WEBHOOK_URL"
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in ("http", "https") and (parts.port is None or parts.port > 0)
        except ValueError:
            is_url = False
        if not is_url or not url.isprintable() or " " in url:
            raise SettingsError(
                f"{name} is not a URL of https; write https://host/path, or {PREFIX}NOTIFY_URLS for one of apprise"
            )
        if not parts.hostname:
            raise SettingsError(f"{name} names no host; write https://host/path")
        if parts.scheme == "http" and not is_loopback(parts.hostname) and not self.webhook_allow_http:
            raise SettingsError(
                f"{name} begins with http://, so whoever is on the way reads it; write https://, or set "
                f"{PREFIX}WEBHOOK_ALLOW_HTTP=true"
            )
        return url

    def apprise_urls(self) -> str | None:
        """Return apprise's URLs, to which events are sent; None: nowhere, or to the webhook.

        Raises
        ------
        SettingsError
            If there is a webhook as well: one that is down would have the others told again and again.
        """
        urls = "" if self.notify_urls is None else self.notify_urls.get_secret_value().strip()
        if urls and self.webhook() is not None:
            raise SettingsError(
                f"{PREFIX}WEBHOOK_URL and {PREFIX}NOTIFY_URLS are both set; set one of them (to apprise a webhook is "
                "jsons://host/path)"
            )
        return urls or None

    def tells_anybody(self) -> bool:
        """Whether anybody is to be told of events."""
        return self.apprise_urls() is not None or self.webhook() is not None

    def as_variables(self) -> dict[str, str]:
        """Return the settings as the variables that a child process reads, secrets included."""
        return {
            PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in self
            if value is not None
        }

    def for_workers(self) -> Settings:
        """Return the settings as workers have them: what checks signatures, and signs models, but no search."""
        worker_key = self.worker_key if self.secret_key is None else SecretStr(worker_key_of(self.key()))
        public_key = self.verifier().public_key
        return self.replace(
            secret_key=None,
            new_secret_key=None,
            webhook_url=None,
            notify_urls=None,
            page_password=None,
            public_key=public_key,
            worker_key=worker_key,
        )

    def worker_environment(self) -> dict[str, str]:
        """Return the whole environment of a worker that this process starts: neither secret key nor webhook."""
        # pydantic reads names in any case
        names = ("SECRET_KEY", "NEW_SECRET_KEY", "WEBHOOK_URL", "NOTIFY_URLS", "PAGE_PASSWORD")
        secret = tuple(f"{PREFIX}{name}" for name in names)
        inherited = {name: value for name, value in os.environ.items() if name.upper() not in secret}
        # and no secrets folder: what it has was read
        return {**inherited, **self.for_workers().as_variables(), f"{PREFIX}SECRETS_DIR": os.devnull}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, shown_url(value) if name in ("database_url", "broker_url") else value

    def replace(self, **changes: Any) -> Settings:
        """Return a copy with some settings changed."""
        return self.model_copy(update=changes)


def _key(name: str, secret: SecretStr) -> bytes:
    # a variable may hold any bytes
    key = secret.get_secret_value().strip().encode(errors="surrogateescape")
    if len(key) < 16:
        raise SettingsError(
            f"{PREFIX}{name} has {len(key)} characters; it needs at least 16 (make one with "
            "`python -c 'import secrets; print(secrets.token_hex(32))'`)"
        )
    return key


def _refuse_options(url: URL, setting: str, *, allowed: Collection[str]) -> None:
    """Refuse an option that would end a process at its first connection; its value may be a secret."""
    unknown = next((name for name in url.query if name not in allowed), None)
    if unknown is None:
        return
    known = f"a {url.drivername}:// URL may have {', '.join(allowed)}" if allowed else "leave it out"
    raise SettingsError(f"{PREFIX}{setting} has the option {unknown!r}, which has no meaning there; {known}")


def load_settings() -> Settings:
    """Read the settings of this process.

    Raises
    ------
    SettingsError
        One sentence that names the first wrong variable, its value and what is expected.
    """
    try:
        settings = Settings()
    except SettingsSourceError as error:  # a secret file that this user can't read, for instance
        raise SettingsError(f"the settings can't be read: {error.__cause__ or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        name, shown = PREFIX + field.upper(), "" if field in MAY_BE_SECRET else f"={first['input']!r}"
        raise SettingsError(f"{name}{shown} is not valid: {first['msg'].lower()}") from (None if not shown else error)
    _warn_unknown_variables()
    if settings.heartbeat_s > settings.lease_s / 2:
        raise SettingsError(
            f"{PREFIX}HEARTBEAT_S={settings.heartbeat_s:g} must be at most half of {PREFIX}LEASE_S="
            f"{settings.lease_s:g}, or trials are taken back from workers that live"
        )
    return settings


def _warn_unknown_variables() -> None:
    known = [name.upper() for name in Settings.model_fields]
    for variable in sorted(os.environ):
        name = variable.removeprefix(PREFIX)
        if name == variable or name in known or name in OTHER_VARIABLES:
            continue
        near = nearest(name, known)
        remedy = f"did you mean {PREFIX}{near}?" if near else "`gridfleet settings` lists them"
        warnings.warn(f"the variable {variable} is no setting of gridfleet; {remedy}", stacklevel=3)
