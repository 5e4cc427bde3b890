"""A search of the same name: gone on with if it is the same, refused in a sentence if it is not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from threading import Barrier
from typing import Any

import joblib
import numpy as np
import pytest
from scipy import stats
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - as scikit-learn asks for it
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import HalvingRandomSearchCV, KFold, ShuffleSplit, cross_val_score
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC
from sqlalchemy import func, select

from gridfleet import GridSearchCV, RandomizedSearchCV, register_joblib_backend, submit
from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.storage.errors import InvalidSearchError, NameTakenError
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.trial_results import SplitResult, TrialResult
from gridfleet.storage.trials import claims, transitions
from gridfleet.storage.trials.held import Held
from tests.warm_scripts import two_hash_seeds

X, Y = np.arange(48.0).reshape(24, 2), np.arange(24) % 2


@pytest.fixture
def connected(fleet: Settings) -> Fleet:
    """Connect to the fleet; it has no workers."""
    return fleets.connect()


def trials_of(fleet: Fleet, search_id: int) -> list[Any]:
    with fleet.database.read() as connection:
        columns = (Trial.id, Trial.number, Trial.state, Trial.attempt, Trial.mean_test_score)
        return list(connection.execute(select(*columns).where(Trial.search_id == search_id).order_by(Trial.number)))


def record(fleet: Fleet, search_id: int, number: int, *, n_splits: int = 2, error: str | None = None) -> None:
    """Do what a worker does; the score tells of trial and split."""
    trial_id = trials_of(fleet, search_id)[number].id
    claim = claims.claim(fleet.database, trial_id, "node/1", lease_s=60, max_runtime_s=60)
    assert claim is not None
    scores = [number / 8 + split / 64 for split in range(n_splits)]
    splits = [
        SplitResult(split, "score", score, None, fit_time=0.5, score_time=0.25, n_train=12, n_test=12)
        for split, score in enumerate(scores)
    ]
    result = TrialResult(splits, mean_test_score=float(np.mean(scores)), std_test_score=0.0, error=error)
    assert transitions.record(fleet.database, Held(claim.trial_id, claim.token), result)


def finish(fleet: Fleet, search_id: int, *, n_splits: int = 2) -> None:
    for trial in trials_of(fleet, search_id):
        if trial.state == "queued":
            record(fleet, search_id, trial.number, n_splits=n_splits)


def count_searches(fleet: Fleet) -> int:
    with fleet.database.read() as connection:
        return connection.execute(select(func.count()).where(Search.refit_of.is_(None))).scalar_one()


def grid(**options: Any) -> GridSearchCV:
    return GridSearchCV(SVC(), {"C": [1, 2, 3]}, cv=2, verbose=0, refit=False, **options)


def resumed(search: Any, data: Any = X, target: Any = Y) -> SearchHandle:
    return submit(search, data, target, name="pima", load_if_exists=True)


def test_a_cancelled_search_goes_on_where_it_was(connected: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    first = submit(grid(), X, Y, name="pima")
    record(connected, first.id, 0)
    record(connected, first.id, 1, error="it raised")
    first.cancel()

    again = resumed(grid())

    assert (again.id, again.state) == (first.id, "waiting")  # for a worker
    assert [(trial.state, trial.attempt) for trial in trials_of(connected, first.id)] == [
        ("completed", 1),
        ("failed", 1),
        ("queued", 0),
    ]
    assert capsys.readouterr().err == (
        "gridfleet: search 'pima' is there: 2 of 3 trials are done; 1 failed (`gridfleet retry-failed pima` tries them "
        "again)\n"
    )
    assert connected.publisher.room() < 8_000


def test_fit_returns_what_a_search_in_one_go_had_returned(connected: Fleet) -> None:
    whole = submit(grid(), X, Y, name="whole")
    finish(connected, whole.id)
    first = submit(grid(), X, Y, name="pima")
    record(connected, first.id, 1)
    first.cancel()
    resumed(grid())
    finish(connected, first.id)

    found = grid(name="pima", load_if_exists=True).fit(X, Y).cv_results_

    assert found.keys() == whole.cv_results_.keys()
    for name, values in whole.cv_results_.items():
        assert np.array_equal(found[name], values), name
    assert [trial.attempt for trial in trials_of(connected, first.id)] == [1, 1, 1]
    assert count_searches(connected) == 2


def test_scripts_that_begin_at_once_share_one_search(connected: Fleet) -> None:
    barrier = Barrier(4)

    def begin(_: int) -> int:
        barrier.wait()
        return resumed(grid()).id

    with ThreadPoolExecutor(4) as threads:
        ids = set(threads.map(begin, range(4)))

    assert len(ids) == count_searches(connected) == 1


class Red(KFold):
    """A splitter that a terminal would show in red."""

    def __repr__(self) -> str:
        return "\x1b[31m"


DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    "kind": (grid(), RandomizedSearchCV(SVC(), {"C": [1, 2, 3]}, n_iter=3, cv=2, random_state=1), "kind of search: "),
    "estimator": (grid(), GridSearchCV(LogisticRegression(), {"C": [1, 2, 3]}, cv=2), "estimator: SVC there, Logist"),
    "parameter": (grid(), GridSearchCV(SVC(gamma=2), {"C": [1, 2, 3]}, cv=2), "estimator's gamma: 'scale' there, 2 h"),
    "scoring": (grid(), grid(scoring="f1"), "scoring: None there, 'f1' here"),
    "error_score": (grid(), grid(error_score=0.0), "error_score: nan there, 0.0 here"),
    "train scores": (grid(), grid(return_train_score=True), "return_train_score: False there, True here"),
    "cv": (grid(), GridSearchCV(SVC(), {"C": [1, 2, 3]}, cv=3), "cv: 2 there, 3 here"),
    "what a terminal obeys": (
        GridSearchCV(SVC(), {"C": [1]}, cv=Red(2)),
        GridSearchCV(SVC(), {"C": [1]}, cv=3),
        "cv: \\x1b[31m there, 3 here",
    ),
    "seed": (
        GridSearchCV(SVC(), {"C": [1]}, cv=KFold(2, shuffle=True, random_state=1)),
        GridSearchCV(SVC(), {"C": [1]}, cv=KFold(2, shuffle=True, random_state=2)),
        "cv",
    ),
    "sizes": (
        GridSearchCV(SVC(), {"C": [1]}, cv=ShuffleSplit(2, test_size=4)),
        GridSearchCV(SVC(), {"C": [1]}, cv=ShuffleSplit(2, test_size=8)),
        "cv",
    ),
    "combinations": (grid(), GridSearchCV(SVC(), {"C": [1, 2]}, cv=2), "number of combinations: 3 there, 2 here"),
    "combination": (
        grid(),
        GridSearchCV(SVC(), {"C": [1, 5, 3]}, cv=2),
        "combination 1: {'C': 2} there, {'C': 5} here",
    ),
    "space": (
        RandomizedSearchCV(SVC(), {"C": stats.uniform(1, 2)}, n_iter=2, cv=2),
        RandomizedSearchCV(SVC(), {"C": stats.uniform(1, 3)}, n_iter=2, cv=2),
        "combination 0",
    ),
    "refit": (grid(), GridSearchCV(SVC(), {"C": [1, 2, 3]}, cv=2), "refit: False there, True here"),
    "mode": (grid(), grid(fit_mode="keras"), "fit_mode: exact there, keras here"),
    "limit": (grid(), grid(trial_timeout=5), "trial_timeout: None there, 5.0 here"),
}


def test_another_search_is_refused_with_the_first_part_that_differs(connected: Fleet) -> None:
    for number, (what, (first, other, part)) in enumerate(DIFFERENT.items(), start=1):
        taken = submit(first, X, Y, name=what)

        with pytest.raises(NameTakenError) as refused:
            submit(other, X, Y, name=what, load_if_exists=True)

        assert str(refused.value).startswith(f"name={what!r} is taken by search {taken.id}, which differs in {part}")
        assert str(refused.value).endswith("; choose another")
        assert count_searches(connected) == number


def test_other_data_are_refused_with_their_shapes(connected: Fleet) -> None:
    submit(grid(), X, Y, name="pima")

    with pytest.raises(NameTakenError, match=r"differs in X: shape \(24, 2\) there, shape \(24, 1\) here; choose"):
        resumed(grid(), X[:, :1])
    with pytest.raises(NameTakenError, match=r"differs in y; choose"):
        resumed(grid(), X, 1 - Y)


def test_what_was_drawn_without_a_seed_is_taken_from_the_stored_search(
    connected: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn() -> RandomizedSearchCV:
        return RandomizedSearchCV(
            SVC(),
            {"C": stats.loguniform(1, 1_000)},
            n_iter=3,
            cv=KFold(2, shuffle=True),
            verbose=0,
            refit=False,
            name="pima",
            load_if_exists=True,
        )

    first = submit(drawn(), X, Y)
    finish(connected, first.id)
    capsys.readouterr()

    found = drawn().fit(X, Y)

    assert count_searches(connected) == 1
    assert found.cv_results_["params"] == first.cv_results_["params"]
    assert list(found.cv_results_["param_C"]) == list(first.cv_results_["param_C"])
    assert capsys.readouterr().err == (
        "gridfleet: search 'pima' is there: 3 of 3 trials are done; its splits have no fixed seed, so that the stored "
        "ones are used; its combinations have no fixed seed, so that the stored ones are used\n"
    )


def test_halving_goes_on_in_the_middle_of_a_round(connected: Fleet) -> None:
    register_joblib_backend()

    def halving() -> Any:
        search = HalvingRandomSearchCV(
            SVC(), {"C": stats.loguniform(1, 1_000)}, n_candidates=4, factor=2, min_resources=6, cv=2, refit=False
        )
        with joblib.parallel_config(backend="gridfleet", name="half", load_if_exists=True):
            return search.fit(X, Y)

    class KilledError(Exception):
        pass

    def until(rounds_done: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a script go on until its last round is half done, and die then."""

        def wait(handle: SearchHandle, *_: Any, **__: Any) -> Any:
            if handle.name == f"half-round-{rounds_done + 1}" and handle.progress().done == 0:
                record(connected, handle.id, 0)
                raise KilledError
            finish(connected, handle.id)
            return handle.progress()

        monkeypatch.setattr(SearchHandle, "_wait", wait)

    with pytest.MonkeyPatch.context() as patched:
        until(1, patched)
        with pytest.raises(KilledError):
            halving()
        before = count_searches(connected)
        found = halving()

    assert before == 2
    assert found.n_iterations_ >= 2
    with connected.database.read() as connection:
        attempts = connection.execute(select(Trial.attempt)).scalars().all()
        names = connection.execute(select(Search.name).order_by(Search.id)).scalars().all()
    assert set(attempts) == {1}
    assert names == ["half", *(f"half-round-{number}" for number in range(2, found.n_iterations_ + 1))]
    assert [params["C"] for params in found.cv_results_["params"][:4]] == [
        params["C"] for params in SearchHandle(connected, 1, "half").cv_results_["params"]
    ]


def test_each_fold_of_a_cross_validation_goes_on_with_its_own_search(connected: Fleet) -> None:
    def wait(handle: SearchHandle, *_: Any, **__: Any) -> Any:
        finish(connected, handle.id)
        return handle.progress()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SearchHandle, "_wait", wait)
        search = GridSearchCV(SVC(), {"C": [1, 2]}, cv=2, verbose=0, name="inner", load_if_exists=True)
        scores = [cross_val_score(search, X, Y, cv=3) for _ in range(2)]

    assert np.array_equal(*scores)
    with connected.database.read() as connection:
        names = connection.execute(select(Search.name).order_by(Search.id)).scalars().all()
    assert names == ["inner", "inner-2", "inner-3"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"load_if_exists": True}, "load_if_exists=True finds a search by its name; give name=… as well"),
        ({"load_if_exists": "yes", "name": "pima"}, "load_if_exists='yes' must be True or False"),
        ({"reuse": 1}, "reuse=1 must be True or False"),
    ],
)
@pytest.mark.usefixtures("connected")
def test_a_wrong_option_is_refused(options: dict[str, Any], sentence: str) -> None:
    for begin in (lambda: grid(**options).fit(X, Y), lambda: submit(grid(**options), X, Y)):
        with pytest.raises(InvalidSearchError) as refused:
            begin()
        assert str(refused.value) == sentence


SCRIPT = """
import threading
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from gridfleet import GridSearchCV, submit
from gridfleet.storage.errors import NameTakenError

KNOWN = {"alpha", "beta", "gamma", "delta"}

class Own(ClassifierMixin, BaseEstimator):
    names = frozenset(("x", "y", "z"))
    def __init__(self, value=1):
        self.value = value
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self
    def predict(self, X):
        return np.full(len(X), len(KNOWN) % 2 + CHANGE)

X, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
try:
    print(submit(GridSearchCV(Own(), {"value": [1, 2]}, cv=2), X, y, name="own", load_if_exists=True).id)
except NameTakenError as error:
    print(error)
"""


def test_a_class_of_the_script_is_the_same_in_another_process(connected: Fleet, tmp_path: Path) -> None:
    def run(start: Callable[[Path], CompletedProcess[str]], *, change: int = 0) -> str:
        (tmp_path / "script.py").write_text(SCRIPT.replace("CHANGE", str(change)))
        done = start(tmp_path / "script.py")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with two_hash_seeds() as (first, second):
        assert [run(first), run(second)] == ["1", "1"]
        differs = run(second, change=1)
    assert differs == "name='own' is taken by search 1, which differs in code of Own; choose another"


def test_what_can_not_be_seen_into_is_no_reason_to_go_on(connected: Fleet) -> None:
    def transformer(value: Any) -> Any:
        made = eval("lambda X: opened", {"__name__": "__main__", "opened": value})
        return GridSearchCV(FunctionTransformer(made), {"validate": [True]}, cv=2, scoring=scored)

    submit(transformer(_Opaque(1)), X, Y, name="pima")

    with pytest.raises(NameTakenError, match=r"whether that is the same one can't be told, for estimator .*_Opaque"):
        resumed(transformer(_Opaque(2)))


def scored(*_: Any) -> float:
    return 1.0


class _Opaque:
    """Can be pickled by a name of its own making, and by nothing that a reader understands."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol != 5:
            raise TypeError("it takes protocol 5")
        return _Opaque, (self.value,)
