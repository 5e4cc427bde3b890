"""Submitters sign; what a worker has checks signatures, and makes none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from sklearn.base import BaseEstimator, ClassifierMixin
from sqlalchemy import delete, select

from gridfleet import GridSearchCV, submit
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import PayloadSignatureError, SettingsError
from gridfleet.storage.payloads.store import KEY_CHECK, PayloadStore
from gridfleet.storage.schema import Payload
from gridfleet.storage.settings import Settings, load_settings
from gridfleet.worker.main_process.service import run_worker
from tests.faults.support import X, Y
from tests.storage.conftest import count


@pytest.fixture
def of_worker(database_settings: Settings) -> Settings:
    """The settings of a worker: those of the submitter, but for the key."""
    return database_settings.for_workers()


def test_a_worker_loads_what_was_signed_and_signs_nothing(
    database: Database, database_settings: Settings, of_worker: Settings
) -> None:
    digest = PayloadStore(database, database_settings).put("X", np.arange(3), what="X")
    worker = PayloadStore(database, of_worker)

    worker.check_key()
    assert worker.get("X", digest).tolist() == [0, 1, 2]
    with pytest.raises(SettingsError, match="GRIDFLEET_SECRET_KEY is not set, and searches are signed with it"):
        worker.put("X", np.arange(4), what="X")
    with pytest.raises(SettingsError, match="GRIDFLEET_SECRET_KEY is not set"):  # which `create_search` asks for
        of_worker.signer()
    assert count(database, Payload) == 1


def test_a_worker_can_t_make_its_own_key_the_fleet_s(
    database: Database, database_settings: Settings, of_worker: Settings
) -> None:
    PayloadStore(database, database_settings).put("X", np.arange(3), what="X")
    with database.write() as connection:
        connection.execute(delete(Payload).where(Payload.digest == KEY_CHECK))
        with pytest.raises(SettingsError, match="GRIDFLEET_SECRET_KEY is not set"):
            PayloadStore(database, of_worker)._insert_key_check(connection)
        assert connection.execute(select(Payload).where(Payload.digest == KEY_CHECK)).all() == []


def test_the_public_key_in_the_place_of_the_secret_one_signs_nothing_that_others_take(
    database: Database, database_settings: Settings, of_worker: Settings
) -> None:
    PayloadStore(database, database_settings).put("X", np.arange(3), what="X")
    forger = PayloadStore(database, of_worker.replace(secret_key=SecretStr(of_worker.public_key), public_key=None))

    with pytest.raises(PayloadSignatureError, match="were not signed with this process's key"):
        forger.check_key()
    with pytest.raises(PayloadSignatureError, match="was not signed with this process's key"):
        forger.prepare("X", np.arange(3), what="X")


class Forger(ClassifierMixin, BaseEstimator):
    """A model that tries to sign; its score is 1 if it can."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def fit(self, X: Any, y: Any) -> Forger:
        self.classes_ = np.unique(y)
        try:
            load_settings().signer().sign("payload", "evaluation", "0" * 64, 1)
        except SettingsError:
            self.can_sign_ = False
        else:
            self.can_sign_ = True
        return self

    def score(self, X: Any, y: Any) -> float:
        return float(self.can_sign_)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_model_that_wants_to_sign_finds_no_key_on_a_worker(
    configured: Settings, start_worker: Callable[..., Any]
) -> None:
    start_worker(configured)  # of the submitter's settings, in the submitter's environment

    handle = submit(GridSearchCV(Forger(), {"value": [1]}, cv=2, refit=False), X, Y).wait(90)

    assert handle.best_score_ == 0
    assert Forger().fit(X, Y).score(X, Y) == 1  # where searches are submitted


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("place", ["variable", "file"])
def test_a_worker_does_not_start_with_the_secret_key(
    place: str, database_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in database_settings.for_workers().as_variables().items():
        monkeypatch.setenv(name, value)
    key = database_settings.key().decode()
    if place == "variable":
        monkeypatch.setenv("gridfleet_secret_key", key)
    else:
        (tmp_path / "gridfleet_secret_key").write_text(key)
        monkeypatch.setenv("GRIDFLEET_SECRETS_DIR", str(tmp_path))

    with pytest.raises(SettingsError) as refused:
        run_worker(load_settings(), concurrency=1, may_be_root=True)

    assert f"set GRIDFLEET_PUBLIC_KEY={database_settings.for_workers().public_key}" in str(refused.value)
    assert "SECRET_KEY is set, or in the secrets folder, where a worker starts" in str(refused.value)
    assert key not in str(refused.value)


@pytest.mark.parametrize("variable", ["GRIDFLEET_SECRET_KEY", "gridfleet_secret_key", "Gridfleet_Secret_Key"])
def test_a_worker_that_is_started_inherits_no_way_to_the_secret_key_nor_the_password_of_the_page(
    variable: str, no_variables: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "a key that is nobody's business"
    monkeypatch.setenv(variable, key)
    monkeypatch.setenv("GRIDFLEET_LEASE_S", "77")
    of_page = "PAGE_PASSWORD" if variable.isupper() else "Page_Password"
    monkeypatch.setenv(variable[:10] + of_page, "of the people who look on")
    (tmp_path / "gridfleet_page_password").write_text("of the people who look on")
    (tmp_path / "gridfleet_secret_key").write_text(key)
    (tmp_path / "gridfleet_database_password").write_text("of the worker")
    monkeypatch.setenv("GRIDFLEET_SECRETS_DIR", str(tmp_path))

    environment = load_settings().worker_environment()

    assert key not in str(environment)
    assert "of the people who look on" not in str(environment)
    with monkeypatch.context() as inside:
        inside.delenv(variable)
        for name, value in environment.items():
            inside.setenv(name, value)
        of_worker = load_settings()
    assert of_worker.secret_key is None
    assert of_worker.verifier().public_key == load_settings().signer().public_key
    assert of_worker.lease_s == 77
    assert of_worker.database_password.get_secret_value() == "of the worker"
