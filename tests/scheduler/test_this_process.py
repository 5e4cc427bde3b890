"""What is said once at submission, since trials run in other processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scikeras.wrappers import KerasClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sqlalchemy import select

from gridfleet import submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.scheduler.fleet.local.variables import differences, variables_of_libraries
from gridfleet.scheduler.submission import this_process
from gridfleet.scheduler.submission.this_process import warn_of_other_variables, warn_of_seed
from gridfleet.storage.database.connection import Database
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.schema import Search
from gridfleet.storage.settings import Settings
from gridfleet.worker.trial.process_state import unchanged_process
from tests.warned import all_warnings


@pytest.fixture(autouse=True)
def _nothing_said_or_seeded() -> Iterator[None]:
    this_process._said.clear()
    keras.utils.clear_session()  # forgets a seed
    with unchanged_process():
        tf.random.set_seed(None)
        yield
    keras.utils.clear_session()


def said(estimator: Any, *candidates: dict[str, Any]) -> list[str]:
    with all_warnings() as caught:
        for _ in range(2):
            warn_of_seed(estimator, candidates or [{}])
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("seed", "call"),
    [(keras.utils.set_random_seed, "keras.utils.set_random_seed"), (tf.random.set_seed, "tf.random.set_seed")],
)
def test_a_seed_of_the_process_is_no_seed_of_trials(seed: Any, call: str) -> None:
    seed(42)

    for estimator in (KerasClassifier(print), make_pipeline(StandardScaler(), KerasClassifier(print))):
        this_process._said.clear()
        (sentence,) = said(estimator)
        assert sentence.startswith(f"{call}(42) holds in this process only")
        assert sentence.endswith("as KerasClassifier(…, random_state=42)")


def test_nothing_is_said_of_seeds_where_there_is_none_or_every_model_has_one() -> None:
    assert said(KerasClassifier(print)) == []
    keras.utils.set_random_seed(42)
    assert said(KerasClassifier(print, random_state=0)) == []
    assert said(LogisticRegression()) == []
    assert said(KerasClassifier(print), {"random_state": 1}, {"random_state": 2}) == []
    assert len(said(KerasClassifier(print), {"random_state": 1}, {"random_state": None})) == 1


def test_variables_are_those_by_which_libraries_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables_of_libraries():
        monkeypatch.delenv(name)
    chosen = ["CUDA_VISIBLE_DEVICES", "KERAS_BACKEND", "OMP_NUM_THREADS", "PYTHONHASHSEED", "TF_ENABLE_ONEDNN_OPTS"]
    for name in [*chosen, "TF_CPP_MIN_LOG_LEVEL", "AWS_SECRET_ACCESS_KEY", "GRIDFLEET_SECRET_KEY"]:
        monkeypatch.setenv(name, "1")

    assert sorted(variables_of_libraries()) == chosen


def test_differences_name_both_values() -> None:
    assert differences({"A": "1", "B": "2", "C": "3"}, {"A": "1", "B": "", "D": "\n" + "x" * 100}) == [
        "B is '2' here and '' there",
        "C is '3' here and not set there",
        "D is not set here and '\\n" + "x" * 78 + "\\u2026' there",
    ]


def test_the_configuration_of_keras_is_stored_with_the_search(fleet: Settings) -> None:
    keras.config.set_floatx("float64")
    handle = submit(GridSearchCV(LogisticRegression(), {"C": [1]}, cv=2), np.eye(4), [0, 1, 0, 1])

    with closing(Database(fleet)) as database:
        with database.read() as connection:
            digest = connection.scalar(select(Search.evaluation_digest).where(Search.id == handle.id))
        evaluation = PayloadStore(database, fleet).get("evaluation", digest)

    assert evaluation.keras_config["floatx"] == "float64"


def test_a_fleet_with_other_variables_is_told_once(embedded_home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(embedded_home / ".gridfleet")
    folder.prepare()
    fleet = Fleet(folder.settings(Settings(home=folder.home), None), is_embedded=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    there = variables_of_libraries()
    folder.broker.mkdir(mode=0o700)
    warnings.simplefilter("error")

    with folder.owned():
        folder.announce({"socket": str(folder.broker / "valkey.sock"), "variables": there})
        warn_of_other_variables(fleet)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        with pytest.warns(UserWarning, match="OMP_NUM_THREADS is '1' here and '3' there; .*`gridfleet down`"):
            warn_of_other_variables(fleet)
        warn_of_other_variables(fleet)
        folder.announce({"socket": str(folder.broker / "valkey.sock")})  # of an older release
        this_process._said.clear()
        warn_of_other_variables(fleet)
