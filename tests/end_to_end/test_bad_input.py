"""Bad input gets one clear sentence and leaves nothing behind."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from scikeras.wrappers import KerasClassifier, KerasRegressor
from sklearn.dummy import DummyClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.impute import SimpleImputer
from sklearn.model_selection import HalvingGridSearchCV, KFold
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, SVR
from sqlalchemy import func, select, text

from gridfleet import GridfleetError, GridSearchCV, RandomizedSearchCV, submit
from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NotPicklableError
from gridfleet.storage.schema import Payload, Search, Trial
from gridfleet.storage.settings import Settings
from tests.end_to_end.models import Touching, create_model

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2


def stored(database: Database) -> tuple[int, int]:
    """Count the searches and their trials, without those that fit the best models."""
    of_no_refit = select(Search.id).where(Search.refit_of.is_(None))
    with database.read() as connection:
        return (
            connection.execute(select(func.count()).where(Search.refit_of.is_(None))).scalar_one(),
            connection.execute(select(func.count()).where(Trial.search_id.in_(of_no_refit))).scalar_one(),
        )


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "an unknown hyperparameter": (
        lambda: submit(GridSearchCV(SVC(), {"gama": [1]}), X, Y),
        r"'gama' is not a parameter of SVC; did you mean 'gamma'\?$",
    ),
    "an unknown hyperparameter of a Keras model": (
        lambda: submit(GridSearchCV(KerasClassifier(model=create_model), {"optimiser": ["adam"]}), X, Y),
        r"'optimiser' is not a parameter of KerasClassifier; did you mean 'optimizer'\?$",
    ),
    "an argument of a Keras model's function without its prefix": (
        lambda: submit(
            GridSearchCV(
                make_pipeline(StandardScaler(), KerasClassifier(build_fn=create_model)),
                {"kerasclassifier__units": [2, 4]},
            ),
            X,
            Y,
        ),
        r"'kerasclassifier__units' is not a parameter of Pipeline; did you mean 'kerasclassifier__model__units'\?$",
    ),
    "an argument that the function of a Keras model has not": (
        lambda: submit(GridSearchCV(KerasClassifier(model=create_model), {"model__unit": [1]}), X, Y),
        r"'model__unit': create_model has no argument 'unit'; did you mean 'units'\?$",
    ),
    "such an argument in a pipeline": (
        lambda: submit(
            GridSearchCV(
                make_pipeline(StandardScaler(), KerasClassifier(model=create_model)),
                {"kerasclassifier__model__depth": [1]},
            ),
            X,
            Y,
        ),
        "'kerasclassifier__model__depth': create_model has no argument 'depth'; there are optimizer, units$",
    ),
    "such an argument of a function that the search puts in": (
        lambda: submit(GridSearchCV(KerasClassifier(), {"model": [create_model], "model__unit": [1]}), X, Y),
        "'model__unit': create_model has no argument 'unit'",
    ),
    "a hyperparameter's value that can't be copied": (
        lambda: submit(GridSearchCV(SVC(), {"C": [threading.Lock()]}), X, Y),
        "a hyperparameter's value can't be copied or pickled, .* C is a lock",
    ),
    "an empty list of grids": (lambda: submit(GridSearchCV(SVC(), []), X, Y), r"param_grid=\[\] is an empty space"),
    "a hyperparameter without values": (
        lambda: submit(GridSearchCV(SVC(), {"C": []}), X, Y),
        "'C' need to be a non-empty sequence",
    ),
    "a distribution without values": (
        lambda: submit(RandomizedSearchCV(SVC(), {"C": []}), X, Y),
        "'C' need to be a non-empty sequence",
    ),
    "a halving search": (
        lambda: submit(HalvingGridSearchCV(SVC(), {"C": [1, 2]}), X, Y),
        "search is a HalvingGridSearchCV, whose combinations are not all known",
    ),
    "an estimator in place of a search": (lambda: submit(SVC(), X, Y), "search is a SVC"),
    "X and y of different length": (
        lambda: submit(GridSearchCV(SVC(), {"C": [1]}), X, Y[:-1]),
        r"inconsistent numbers of samples: \[12, 11\]",
    ),
    "a dict of arrays": (
        lambda: submit(GridSearchCV(KerasClassifier(model=create_model), {"epochs": [1]}), {"a": X, "b": X}, Y),
        "X is a dict of 'a', 'b', of which scikit-learn can't take rows; put the arrays side by side",
    ),
    "a dict of arrays, by fit": (
        lambda: GridSearchCV(SVC(), {"C": [1]}).fit({"a": X, "b": X}, Y),
        "X is a dict of 'a', 'b', of which scikit-learn can't take rows",
    ),
    "NaN": (
        lambda: submit(GridSearchCV(SVC(), {"C": [1]}), np.where(X == 3, np.nan, X), Y),
        "X has 1 NaN values, which SVC does not take",
    ),
    "NaN in lists": (
        lambda: submit(GridSearchCV(SVC(), {"C": [1]}), np.where(X == 3, np.nan, X).tolist(), Y),
        "X has 1 NaN values, which SVC does not take",
    ),
    "NaN in y": (
        lambda: submit(GridSearchCV(SVR(), {"C": [1]}), X, np.where(Y == 0, np.nan, Y)),
        "y has 6 NaN values, which SVR does not take; drop these rows of X and y",
    ),
    "NaN in the y of a Keras model": (
        lambda: submit(
            GridSearchCV(KerasRegressor(model=create_model), {"epochs": [1]}), X, np.where(Y == 0, np.nan, Y)
        ),
        "y has 6 NaN values, which KerasRegressor does not take",
    ),
    "X that can't be pickled": (
        lambda: submit(GridSearchCV(Touching(), {"value": [1]}), np.array([[threading.Lock()]] * 12), Y),
        "X can't be pickled, so it can't travel to the workers: it is a ndarray",
    ),
    "y that can't be pickled": (
        lambda: submit(GridSearchCV(Touching(), {"value": [1]}), X, [threading.Lock()] * 12),
        "y can't be pickled, so it can't travel to the workers: it is a lock",
    ),
    "a name that is no name": (
        lambda: submit(GridSearchCV(SVC(), {"C": [1]}), X, Y, name="1; DROP TABLE trials"),
        "can't be a search's name",
    ),
    "a name of gridfleet's own": (
        lambda: submit(GridSearchCV(SVC(), {"C": [1]}), X, Y, name="Trials"),
        "name='Trials' is a name of gridfleet's own",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_a_sentence_and_nothing_is_stored(fleet: Fleet, case: str) -> None:
    call, sentence = BAD[case]

    with pytest.raises((ValueError, NotPicklableError), match=sentence) as refused:
        call()

    assert "\n" not in str(refused.value)

    assert stored(fleet.database) == (0, 0)
    assert count(fleet.database, Payload) == 0
    assert fleet.publisher.queue_length() == 0


class Unpicklable(Touching):
    """Keeps its lock through ``clone``."""

    def __sklearn_clone__(self) -> Unpicklable:
        return self


def test_an_estimator_that_cannot_be_pickled_names_the_attribute(fleet: Fleet) -> None:
    estimator = Unpicklable()
    estimator.connection = threading.Lock()

    with pytest.raises(TypeError, match="connection is a lock"):
        submit(GridSearchCV(estimator, {"value": [1]}), X, Y)

    assert stored(fleet.database) == (0, 0)
    assert count(fleet.database, Payload) == 0


class Logging:
    """A callback that keeps a file open."""

    def __init__(self) -> None:
        self.file = sys.__stderr__


NOT_COPIED: dict[str, tuple[Callable[[], Any], dict[str, list[Any]], str]] = {
    "a lock": (lambda: Touching(folder=threading.Lock()), {"value": [1]}, "Touching .*: folder is a lock"),
    "a callback with an open file": (
        lambda: KerasClassifier(model=create_model, callbacks=[Logging()]),
        {"epochs": [1]},
        "KerasClassifier .*: callbacks.file is a TextIOWrapper",
    ),
    "a step of a pipeline": (
        lambda: make_pipeline(StandardScaler(), Touching(folder=[threading.Lock()])),
        {"touching__value": [1]},
        "Pipeline .*: steps.folder is a lock",
    ),
}


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("case", NOT_COPIED)
@pytest.mark.parametrize("start", [submit, GridSearchCV.fit])
def test_an_estimator_that_scikit_learn_cannot_clone_names_the_attribute(
    fleet: Fleet, case: str, start: Callable[..., Any]
) -> None:
    make, space, sentence = NOT_COPIED[case]

    with pytest.raises(GridfleetError, match=f"the estimator {sentence}.*; make it in the function"):
        start(GridSearchCV(make(), space), X, Y)

    assert stored(fleet.database) == (0, 0)


def test_a_taken_name_is_refused_and_the_first_search_stays(fleet: Fleet) -> None:
    submit(GridSearchCV(SVC(), {"C": [1]}), X, Y, name="pima")

    with pytest.raises(
        GridfleetError,
        match=r"name 'Pima' is taken \(waiting \(no fleet\), 0/1 scored, 1 queued\).*open_search\('pima'\)",
    ):
        submit(GridSearchCV(SVC(), {"C": [1]}), X, Y, name="Pima")

    assert stored(fleet.database) == (1, 1)


def test_a_hyperparameter_that_scikeras_keeps_from_the_model_is_warned_of(fleet: Fleet) -> None:
    keras = KerasClassifier(model=create_model, epochs=1, verbose=0)

    with pytest.warns(UserWarning, match="search over 'model__optimizer' instead") as warned:
        submit(GridSearchCV(keras, {"optimizer": ["adam", "rmsprop"]}), np.ones((12, 8)), Y)

    assert warned[0].filename == __file__  # the line to change is not one of gridfleet's, scikit-learn's or joblib's


TAKES_NAN: dict[str, tuple[Any, dict[str, list[Any]]]] = {
    "an imputer": (make_pipeline(SimpleImputer(), SVC()), {"svc__C": [1]}),
    "a function": (make_pipeline(FunctionTransformer(np.nan_to_num), SVC()), {"svc__C": [1]}),
    "a union": (make_pipeline(FeatureUnion([("a", SimpleImputer())]), SVC()), {"svc__C": [1]}),
    "a pipeline in a pipeline": (make_pipeline(make_pipeline(SimpleImputer()), SVC()), {"svc__C": [1]}),
    "a step that the search replaces": (
        Pipeline([("prepare", StandardScaler()), ("svc", SVC())]),
        {"prepare": [SimpleImputer()]},
    ),
    "an estimator that looks at nothing": (DummyClassifier(), {"strategy": ["prior"]}),
    "an estimator of the user's": (Touching(), {"value": [1]}),
}


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("case", TAKES_NAN)
def test_nan_is_accepted_where_the_estimator_may_take_it(fleet: Fleet, case: str) -> None:
    estimator, space = TAKES_NAN[case]

    submit(GridSearchCV(estimator, space), np.where(X == 3, np.nan, X), Y)

    assert stored(fleet.database) == (1, 1)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_nan_is_accepted_in_rows_that_no_split_uses(fleet: Fleet) -> None:
    unlabelled = np.where(np.arange(12) < 10, X[:, 0], np.nan)
    walk_forward = [(np.arange(end), np.arange(end, end + 2)) for end in (4, 6, 8)]

    submit(GridSearchCV(SVR(), {"C": [1]}, cv=walk_forward, refit=False), X, unlabelled)
    with pytest.raises(GridfleetError, match="y has 2 NaN values"):  # the refit would use them
        submit(GridSearchCV(SVR(), {"C": [1]}, cv=walk_forward), X, unlabelled)

    assert stored(fleet.database) == (1, 1)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_splits_may_come_from_a_generator(fleet: Fleet) -> None:
    submit(GridSearchCV(SVC(), {"C": [1]}, cv=KFold(3).split(X, Y)), X, Y)

    assert stored(fleet.database) == (1, 1)


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"broker_url": "redis://127.0.0.1:1/0"},
            "the broker redis://127.0.0.1:1 does not answer.*GRIDFLEET_BROKER_URL",
        ),
        (
            {"database_url": "postgresql+psycopg://nobody:hidden@127.0.0.1:1/none"},
            r"127.0.0.1:1/none does not answer.*GRIDFLEET_DATABASE_URL",
        ),
        ({"database_url": "mysql://localhost/x"}, "names the database 'mysql'; gridfleet speaks postgresql and sqlite"),
        ({"broker_url": "amqp://localhost"}, "GRIDFLEET_BROKER_URL begins with 'amqp'"),
        ({"secret_key": None}, "GRIDFLEET_SECRET_KEY is not set"),
        (
            {"secret_key": None, "public_key": f"ed25519:{'0' * 64}"},
            "GRIDFLEET_SECRET_KEY is not set, and searches are signed with it",
        ),
        ({"public_key": f"ed25519:{'0' * 64}"}, "GRIDFLEET_PUBLIC_KEY is not the one of GRIDFLEET_SECRET_KEY"),
        ({"secret_key": SecretStr("short")}, "GRIDFLEET_SECRET_KEY has 5 characters; it needs at least 16"),
        ({"heartbeat_s": 50}, "GRIDFLEET_HEARTBEAT_S=50 must be at most half of GRIDFLEET_LEASE_S=60"),
        ({"broker_url": None}, "GRIDFLEET_BROKER_URL is not set but GRIDFLEET_DATABASE_URL is"),
    ],
)
def test_wrong_settings_are_named(
    database_settings: Settings,
    use_fleet: Callable[[Settings], None],
    change: dict[str, Any],
    sentence: str,
) -> None:
    use_fleet(database_settings.replace(**change))

    with pytest.raises(GridfleetError, match=sentence) as refused:
        submit(GridSearchCV(SVC(), {"C": [1]}), X, Y)

    assert "hidden" not in str(refused.value)


def test_another_secret_key_is_refused_when_submitting_and_when_working(
    fleet: Fleet, configured: Settings, use_fleet: Callable[[Settings], None], start_worker: Callable[..., Any]
) -> None:
    submit(GridSearchCV(SVC(), {"C": [1]}), X, Y)
    other = configured.replace(secret_key=SecretStr("another key, long enough"), cache_dir=configured.home / "other")

    with pytest.raises(pytest.fail.Exception, match="were not signed with this process's key"):
        start_worker(other)
    use_fleet(other)
    with pytest.raises(GridfleetError, match="GRIDFLEET_SECRET_KEY"):
        submit(GridSearchCV(SVC(), {"C": [2]}), X, Y)

    assert stored(fleet.database) == (1, 1)


def test_a_changed_payload_is_not_run(fleet: Fleet, configured: Settings, start_worker: Callable[..., Any]) -> None:
    start_worker(configured.replace(max_failures=1))
    assert count(fleet.database, Payload) == 0
    fleet.publish = lambda _: True  # the payload is changed before anybody looks at it
    handle = submit(GridSearchCV(SVC(), {"C": [1]}, refit=False), X, Y)
    with fleet.database.write() as connection:
        connection.execute(
            text(
                "UPDATE payload_chunks SET content = :other "
                "WHERE digest IN (SELECT digest FROM payloads WHERE kind = 'X')"
            ),
            {"other": b"not what was signed"},
        )
    del fleet.publish

    fleet.publish([1])
    handle.wait(60)

    with fleet.database.read() as connection:
        trial = connection.execute(select(Trial.state, Trial.error).where(Trial.search_id == handle.id)).one()
    assert trial.state == "failed"
    assert "damaged" in trial.error


def test_a_newer_schema_is_refused(configured: Settings) -> None:
    database = Database(configured)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(GridfleetError, match="9999, which is newer than this release"):
        fleets.connect()

    database.close()
