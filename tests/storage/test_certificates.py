"""`sslrootcert=system` finds the certificate authorities of this system, against a real server with TLS."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from gridfleet.storage.database import certificates
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import DatabaseUnreachableError, SettingsError
from gridfleet.storage.settings import Settings
from tests import pooler
from tests.certificates import self_signed
from tests.conftest import PostgresqlServer, free_port

HOST = "127.0.0.1"


@pytest.mark.skipif(pooler.PROGRAM is None, reason=pooler.MISSING)  # the PostgreSQL of tests has no TLS
def test_a_server_is_trusted_whose_authority_the_system_trusts(
    make_settings: Callable[..., Settings],
    postgresql_server: PostgresqlServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, port = self_signed(HOST), str(free_port())
    authorities, others = tmp_path / "authorities.crt", tmp_path / "others.crt"
    authorities.write_bytes(files["server.crt"])
    others.write_bytes(self_signed(HOST)["server.crt"])
    tls = {"client_tls_sslmode": "require", "client_tls_key_file": "server.key", "client_tls_cert_file": "server.crt"}
    settings = make_settings("postgresql")
    name = settings.database().database
    with pooler.pgbouncer(postgresql_server, "session", files, listen_addr=HOST, listen_port=port, **tls):
        url = f"postgresql+psycopg://postgres@{HOST}:{port}/{name}?sslrootcert=system"
        monkeypatch.setattr(certificates.ssl, "get_default_verify_paths", lambda: _Paths(None))
        monkeypatch.setattr(certificates, "BUNDLES", (str(others),))
        with (
            closing(Database(settings.replace(database_url=url))) as database,
            pytest.raises(
                DatabaseUnreachableError,
                match=r"certificate verify failed.*name the file of its authority",
            ),
        ):
            database.check()

        monkeypatch.setattr(certificates, "BUNDLES", ("/nowhere.crt", str(authorities)))
        with closing(Database(settings.replace(database_url=url))) as database:
            database.check()
            with database.read() as connection:
                assert connection.connection.driver_connection.pgconn.ssl_in_use


class _Paths:
    def __init__(self, cafile: str | None) -> None:
        self.cafile = cafile


@pytest.mark.parametrize("asked", ["?sslrootcert=system", "?sslmode=verify-full&sslrootcert=system", ""])
def test_the_file_of_the_system_stands_in_for_its_name(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.crt"
    bundle.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    if not asked:
        monkeypatch.setenv("PGSSLROOTCERT", "system")

    found = certificates.of_the_system(make_url(f"postgresql://host/name{asked}").query)

    assert found == {"sslrootcert": str(bundle), "sslmode": "verify-full"}


@pytest.mark.parametrize("asked", ["", "?sslrootcert=/a/ca.crt", "?sslmode=require&sslrootcert=system"])
def test_whatever_else_is_asked_stays_as_it_is(asked: str) -> None:
    assert certificates.of_the_system(make_url(f"postgresql://host/name{asked}").query) == {}


def test_a_system_without_authorities_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates.ssl, "get_default_verify_paths", lambda: _Paths("/nowhere.pem"))
    monkeypatch.setattr(certificates, "BUNDLES", ())

    with pytest.raises(SettingsError, match="install its package ca-certificates"):
        Database(Settings(database_url="postgresql://host/name?sslrootcert=system"))
