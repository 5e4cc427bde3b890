"""Every setting, from its variable and its secret file; wrong ones are named; passwords are never shown."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from urllib.parse import unquote

import pytest
from sqlalchemy.engine import make_url

from gridfleet.storage.described_settings import describe_settings
from gridfleet.storage.errors import SettingsError
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.settings import Settings, load_settings

PASSWORD = "correct-horse"
KEY = "0123456789abcdef"
#: Of that key: the same in every release, or fleets that are set up would not start after an upgrade.
PUBLIC_KEY = "ed25519:92fea0338920bff6edeb5e9351b4db96b5a5fbbf2890f2c6ae94aed3fa3de357"
WORKER_KEY = "worker:4827de4590d977de50ad43142f90d9668d2c52bf93d01dd278faff89ae9ee83b"

#: Each setting as text, and as what it is read.
VALUES = {
    "home": ("/somewhere/else", Path("/somewhere/else")),
    "database_url": ("postgresql+psycopg://user@host/name", "postgresql+psycopg://user@host/name"),
    "database_password": (PASSWORD, PASSWORD),
    "broker_url": ("redis://host:6379/0", "redis://host:6379/0"),
    "broker_password": (PASSWORD, PASSWORD),
    "secret_key": (KEY, KEY),
    "public_key": (PUBLIC_KEY, PUBLIC_KEY),
    "worker_key": (WORKER_KEY, WORKER_KEY),
    "new_secret_key": (f"new {KEY}", f"new {KEY}"),
    "cache_dir": ("/somewhere/cache", Path("/somewhere/cache")),
    "cache_size_mb": ("17", 17),
    "payloads_size_mb": ("19", 19),
    "model_size_mb": ("21", 21),
    "health_file": ("/somewhere/health", Path("/somewhere/health")),
    "linger_s": ("600", 600.0),
    "lease_s": ("90.5", 90.5),
    "heartbeat_s": ("0.5", 0.5),
    "reconcile_s": ("2", 2.0),
    "republish_s": ("3", 3.0),
    "max_failures": ("5", 5),
    "max_runtime_s": ("3600", 3600.0),
    "fit_mode": ("xla", FitMode.XLA),
    "max_memory_mb": ("500", 500),
    "memory_limit_mb": ("6000", 6000),
    "start_method": ("spawn", "spawn"),
    "log_level": ("debug", "DEBUG"),
    "log_format": ("json", "json"),
    "progress": ("plain", "plain"),
    "page_address": ("192.0.2.7", "192.0.2.7"),
    "page_password": (PASSWORD, PASSWORD),
    "page_names": ("grid.example, other.example", "grid.example, other.example"),
    "webhook_url": ("https://hooks.example.org/a-token", "https://hooks.example.org/a-token"),
    "notify_urls": ("tgram://a-token/1", "tgram://a-token/1"),
    "webhook_allow_http": ("true", True),
    "allow_root": ("true", True),
}
NUMBERS = [name for name, (_, value) in VALUES.items() if isinstance(value, (int, float)) and value is not True]

pytestmark = pytest.mark.usefixtures("no_variables")


@pytest.fixture
def secrets_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("GRIDFLEET_SECRETS_DIR", str(folder))
    return folder


def plain(value: object) -> object:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def test_every_setting_is_tested_here() -> None:
    assert set(VALUES) == set(Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_is_read_from_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, expected = VALUES[name]
    assert plain(getattr(load_settings(), name)) != expected

    monkeypatch.setenv(f"GRIDFLEET_{name.upper()}", written)

    assert plain(getattr(load_settings(), name)) == expected


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_is_read_from_its_secret_file(name: str, secrets_dir: Path) -> None:
    written, expected = VALUES[name]

    (secrets_dir / f"gridfleet_{name}").write_text(f"{written}\n")

    assert plain(getattr(load_settings(), name)) == expected


def test_a_variable_wins_over_a_secret_file(secrets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets_dir / "gridfleet_max_failures").write_text("5")
    monkeypatch.setenv("GRIDFLEET_MAX_FAILURES", "7")

    assert load_settings().max_failures == 7


@pytest.mark.parametrize("name", ["missing", "a_file"])
def test_a_secrets_folder_that_is_none_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("GRIDFLEET_SECRETS_DIR", str(tmp_path / name))

    with pytest.raises(SettingsError, match=rf"GRIDFLEET_SECRETS_DIR=.*/{name} is no folder; name the one"):
        load_settings()


def test_a_child_process_may_be_told_to_look_into_no_secrets_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDFLEET_SECRETS_DIR", os.devnull)

    assert load_settings().secret_key is None


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("wrong", ["many", "0", "-1", ""])
def test_a_wrong_number_is_named(name: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GRIDFLEET_{name.upper()}", wrong)
    if (name, wrong) == ("linger_s", "0"):
        assert load_settings().linger_s == 0
        return

    with pytest.raises(SettingsError, match=f"GRIDFLEET_{name.upper()}={wrong!r} is not valid: "):
        load_settings()


def test_settings_can_not_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().lease_s = 1


def test_without_addresses_the_fleet_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().is_embedded

    monkeypatch.setenv("GRIDFLEET_BROKER_URL", "redis://host")

    assert not load_settings().is_embedded


@pytest.mark.parametrize(
    ("given", "missing"),
    [({"broker_url": "redis://host"}, "DATABASE_URL"), ({"database_url": "sqlite:///a.db"}, "BROKER_URL")],
)
def test_half_a_fleet_is_refused(given: dict[str, str], missing: str) -> None:
    settings = Settings(**given)

    read = settings.database if missing == "DATABASE_URL" else settings.broker
    with pytest.raises(SettingsError, match=f"GRIDFLEET_{missing} is not set but GRIDFLEET_"):
        read()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("host:5432", "is not a URL"),
        ("mysql://user@host/name", "names the database 'mysql'"),
        ("oracle://host", "speaks postgresql and sqlite"),
    ],
)
def test_a_wrong_database_url_is_named(url: str, reason: str) -> None:
    with pytest.raises(SettingsError, match="GRIDFLEET_DATABASE_URL") as refused:
        Settings(database_url=url).database()

    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("url", "reason"), [("host:6379", "is not a URL"), ("amqp://host", "begins with 'amqp'"), ("http://host", "rediss")]
)
def test_a_wrong_broker_url_is_named(url: str, reason: str) -> None:
    with pytest.raises(SettingsError, match="GRIDFLEET_BROKER_URL") as refused:
        Settings(broker_url=url).broker()

    assert reason in str(refused.value)


def test_postgresql_means_psycopg() -> None:
    assert Settings(database_url="postgresql://host/name").database().drivername == "postgresql+psycopg"


def test_passwords_kept_apart_are_put_into_the_urls() -> None:
    odd = "a@b:c/d%e #f"
    settings = Settings(
        database_url="postgresql://user@host/name",
        database_password=odd,
        broker_url="redis://user@host:6379/1",
        broker_password=odd,
    )

    assert settings.database().password == odd
    from redis import Redis

    with Redis.from_url(settings.broker()) as client:
        arguments = client.connection_pool.connection_kwargs
    assert (arguments["username"], arguments["password"], arguments["db"]) == ("user", odd, 1)


def test_a_password_in_the_url_wins() -> None:
    settings = Settings(database_url=f"postgresql://user:{PASSWORD}@host/name", database_password="other")

    assert settings.database().password == PASSWORD


@pytest.mark.parametrize("key", ["", "short", "             spaces             "])
def test_a_short_key_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match=f"GRIDFLEET_SECRET_KEY has {len(key.strip())} characters"):
        Settings(secret_key=key).key()


def test_a_missing_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="GRIDFLEET_SECRET_KEY is not set"):
        Settings().key()


def test_a_key_is_read_without_the_line_end_of_its_file() -> None:
    assert Settings(secret_key=f"{KEY}\n").key() == KEY.encode()
    assert Settings(public_key=f"{PUBLIC_KEY}\n").verifier().public_key == PUBLIC_KEY


def test_a_public_key_checks_and_does_not_sign() -> None:
    settings = Settings(public_key=PUBLIC_KEY)

    assert settings.verifier().is_signed(Settings(secret_key=KEY).signer().sign("facts", 1), "facts", 1)
    with pytest.raises(SettingsError, match="GRIDFLEET_SECRET_KEY is not set, and searches are signed with it"):
        settings.signer()


@pytest.mark.parametrize(
    "public_key", ["", "short", "0" * 64, PUBLIC_KEY[:-1], PUBLIC_KEY + "0", PUBLIC_KEY.upper(), f"ed25519:{'é' * 64}"]
)
def test_what_is_no_public_key_is_refused_and_not_shown(public_key: str) -> None:
    # a secret key in its place, by mistake, would be on every worker
    with pytest.raises(SettingsError, match=r"GRIDFLEET_PUBLIC_KEY is no public key, for it is not ed25519") as refused:
        Settings(public_key=public_key).verifier()

    assert not public_key or public_key not in str(refused.value)


def test_a_public_key_of_another_secret_key_is_refused() -> None:
    assert Settings(secret_key=KEY, public_key=PUBLIC_KEY).verifier().public_key == PUBLIC_KEY
    for use in (Settings.signer, Settings.verifier):
        with pytest.raises(SettingsError, match="GRIDFLEET_PUBLIC_KEY is not the one of GRIDFLEET_SECRET_KEY"):
            use(Settings(secret_key="another key of a fleet", public_key=PUBLIC_KEY))


def test_no_key_at_all_is_refused() -> None:
    with pytest.raises(SettingsError, match="neither GRIDFLEET_PUBLIC_KEY nor GRIDFLEET_SECRET_KEY is set"):
        Settings().verifier()


def test_the_workers_key_is_that_of_the_secret_key_and_signs_models_only() -> None:
    submitter = Settings(secret_key=KEY)
    worker = submitter.for_workers()

    assert worker.worker_key.get_secret_value() == WORKER_KEY
    assert worker.for_workers() == worker
    assert worker.model_signer().public_key == submitter.model_signer().public_key
    assert worker.model_signer().public_key != PUBLIC_KEY


@pytest.mark.parametrize("worker_key", ["short", KEY * 4, PUBLIC_KEY, WORKER_KEY[:-1], WORKER_KEY.upper()])
def test_what_is_no_workers_key_is_refused_and_not_shown(worker_key: str) -> None:
    with pytest.raises(
        SettingsError, match=r"GRIDFLEET_WORKER_KEY is no worker's key, for it is not worker:"
    ) as refused:
        Settings(worker_key=worker_key).model_signer()

    assert worker_key not in str(refused.value)


def test_without_a_workers_key_it_is_said_which_one_to_set() -> None:
    with pytest.raises(SettingsError, match=r"GRIDFLEET_WORKER_KEY is not set, .*`gridfleet worker-key` prints"):
        Settings(public_key=PUBLIC_KEY).model_signer()


@pytest.mark.parametrize("show", [repr, str, "{}".format, lambda settings: repr([settings])])
def test_no_password_is_shown(show: object) -> None:
    settings = Settings(
        database_url=f"postgresql://user:{PASSWORD}@host/name",
        database_password=PASSWORD,
        broker_url=f"redis://:{PASSWORD}@host:6379/0",
        broker_password=PASSWORD,
        secret_key=PASSWORD,
    )

    shown = show(settings)

    assert PASSWORD not in shown
    assert "host:6379" in shown
    assert "user" in shown


def test_no_password_is_shown_of_a_url_that_is_none() -> None:
    assert PASSWORD not in repr(Settings(database_url=f"{PASSWORD}@host", broker_url=f"redis//{PASSWORD}@host"))


def test_a_child_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(**{name: written for name, (written, _) in VALUES.items()})

    for name, value in settings.as_variables().items():
        monkeypatch.setenv(name, value)

    assert load_settings() == settings


def test_settings_can_be_handed_to_another_process() -> None:
    settings = Settings(secret_key=KEY, lease_s=1)

    assert pickle.loads(pickle.dumps(settings)) == settings


def test_replace_leaves_the_original_alone() -> None:
    settings = Settings(lease_s=1)

    assert settings.replace(lease_s=2.0).lease_s == 2
    assert settings.lease_s == 1


def test_the_health_file_is_by_default_in_the_folder_of_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert Settings().health_path == tmp_path / "gridfleet" / "health"
    assert Settings(health_file="/a/b").health_path == Path("/a/b")


@pytest.mark.parametrize("above", ["open", "link", "missing", "relative", ""])
def test_there_is_no_health_file_by_default_where_others_may_put_one(
    above: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "relative").mkdir(mode=0o700)
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("own")
    monkeypatch.setenv("XDG_RUNTIME_DIR", above if above in ("relative", "") else str(tmp_path / above))

    assert Settings().health_path is None
    assert list(tmp_path.rglob("gridfleet")) == []


def test_relative_paths_are_those_of_the_folder_where_they_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cache_dir", "health_file"):
        monkeypatch.setenv(f"GRIDFLEET_{name.upper()}", f"somewhere/{name}")
    monkeypatch.setenv("GRIDFLEET_DATABASE_URL", "sqlite:///fleet.db")
    monkeypatch.setenv("GRIDFLEET_BROKER_URL", "rediss://host/0?ssl_ca_certs=ca.pem&ssl_keyfile=/own.key")
    (tmp_path / "before").mkdir()
    monkeypatch.chdir(tmp_path / "before")
    settings = load_settings()
    monkeypatch.chdir(tmp_path)

    before = tmp_path / "before"
    assert settings.home == before / ".gridfleet"
    assert settings.cache_dir == before / "somewhere/cache_dir"
    assert settings.health_path == before / "somewhere/health_file"
    assert settings.database().database == str(before / "fleet.db")
    query = make_url(settings.broker()).query
    assert (query["ssl_ca_certs"], query["ssl_keyfile"]) == (str(before / "ca.pem"), "/own.key")


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:////a/b.db", "postgresql://h/relative", "redis://h/0", "no url"]
)
def test_urls_without_relative_paths_stay_as_they_are(url: str) -> None:
    assert Settings(database_url=url).database_url == url


def test_a_broker_may_listen_at_a_socket() -> None:
    socket = "redis+socket:///tmp/a%20b/c%25d.sock"
    assert unquote(Settings(broker_url=socket).broker()) == unquote(socket)
    assert Settings(broker_url="redis+socket:///a/b", broker_password="p/w").broker() == "redis+socket://:p%2Fw@/a/b"
    for wrong in ("redis+socket://a/b", "redis+socket://"):
        with pytest.raises(SettingsError, match=r"names no socket; write redis\+socket:///path/to/socket"):
            Settings(broker_url=wrong).broker()


def test_a_broker_with_tls_has_to_show_a_valid_certificate_unless_the_url_says_otherwise() -> None:
    assert Settings(broker_url="rediss://host:6380/0").broker() == "rediss://host:6380/0?ssl_cert_reqs=required"
    assert Settings(broker_url="rediss://host/0?ssl_cert_reqs=none").broker() == "rediss://host/0?ssl_cert_reqs=none"


# told to people


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("GRIDFLEET_HEARTBEATS", r"did you mean GRIDFLEET_HEARTBEAT_S\?"),
        ("GRIDFLEET_COLOUR_OF_THE_SKY", "`gridfleet settings` lists them"),
    ],
)
def test_a_variable_that_is_no_setting_is_named(variable: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "3")

    with pytest.warns(UserWarning, match=f"{variable} is no setting of gridfleet; {remedy}"):
        load_settings()


@pytest.mark.parametrize("word", ["CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE", "required", "none"])
def test_celery_s_words_for_certificates_are_known(word: str) -> None:
    url = Settings(broker_url=f"rediss://host:6379/0?ssl_cert_reqs={word}").broker()

    assert make_url(url).query["ssl_cert_reqs"] == word.removeprefix("CERT_").lower()


def test_every_setting_is_described_with_its_value_and_where_that_comes_from(
    secrets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets_dir / "gridfleet_broker_password").write_text(PASSWORD)
    monkeypatch.setenv("GRIDFLEET_DATABASE_URL", f"postgresql://user:{PASSWORD}@host/name")
    monkeypatch.setenv("GRIDFLEET_LEASE_S", "90")

    described = {one.variable: one for one in describe_settings(load_settings())}

    assert list(described) == [f"GRIDFLEET_{name.upper()}" for name in Settings.model_fields]
    assert all(one.description.endswith(".") or "://" in one.description for one in described.values())
    assert described["GRIDFLEET_DATABASE_URL"].value == "postgresql://user@host/name"
    assert (described["GRIDFLEET_LEASE_S"].value, described["GRIDFLEET_LEASE_S"].origin) == ("90.0", "environment")
    assert (described["GRIDFLEET_BROKER_PASSWORD"].value, described["GRIDFLEET_BROKER_PASSWORD"].origin) == (
        "***",
        "secret file",
    )
    assert (described["GRIDFLEET_CACHE_SIZE_MB"].value, described["GRIDFLEET_CACHE_SIZE_MB"].origin) == (
        "4096",
        "default",
    )
    assert PASSWORD not in repr(list(described.values()))
