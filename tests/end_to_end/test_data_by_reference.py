"""Searches whose data stay where they are: the scores of the data themselves, and nothing of them in the database."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import model_selection
from sklearn.datasets import load_iris
from sklearn.svm import SVC
from sqlalchemy import func, select, update

import gridfleet
from gridfleet import DataRef, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.errors import InvalidSearchError, NameTakenError
from gridfleet.storage.schema import Attempt, Payload, Trial
from gridfleet.storage.settings import Settings
from tests.faults.support import wait_for
from tests.running_worker import RunningWorker
from tests.same_results import assert_same_results

X, Y = load_iris(return_X_y=True)
FRAME = load_iris(as_frame=True).frame
FEATURES = list(FRAME.columns[:-1])
GROUPS = np.arange(150) % 7
WEIGHTS = np.linspace(0.1, 2, 150)
GRID = {"C": [0.01, 1]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the data in all formats."""
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.savez(tmp_path / "more.npz", groups=GROUPS, weights=WEIGHTS)
    FRAME.to_csv(tmp_path / "iris.csv", index=False)
    FRAME.to_parquet(tmp_path / "iris.parquet")
    return tmp_path


def cases(folder: Path) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any], dict[str, Any], Any]]:
    """Yield data by reference, the data themselves, parameters of fit likewise, and splits."""
    yield (DataRef(folder / "X.npy"), Y), (X, Y), {}, {}, 3
    more = {"sample_weight": "weights", "groups": "groups"}
    by_row = {name: DataRef(folder / "more.npz", key=key) for name, key in more.items()}
    splits = model_selection.GroupKFold(3)
    yield (
        (DataRef(folder / "X.npy"), DataRef(folder / "y.npy")),
        (X, Y),
        by_row,
        {"sample_weight": WEIGHTS, "groups": GROUPS},
        splits,
    )
    read = pd.read_csv(folder / "iris.csv")
    for name in ("iris.csv", "iris.parquet"):
        refs = DataRef(folder / name, columns=FEATURES), DataRef(folder / name, columns="target")
        yield refs, (read[FEATURES], read["target"]), {}, {}, 3


def test_scores_are_those_of_the_data_themselves(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., RunningWorker], folder: Path
) -> None:
    start_worker(configured)
    model = SVC(kernel="linear")
    for number, (refs, data, params, given, cv) in enumerate(cases(folder)):
        refit = number % 2 == 0  # where it is not, rows of X and weights are only counted here
        ours = gridfleet.GridSearchCV(model, GRID, cv=cv, verbose=0, refit=refit).fit(*refs, **params)
        theirs = model_selection.GridSearchCV(model, GRID, cv=cv, refit=refit).fit(*data, **given)

        assert_same_results(ours.cv_results_, theirs.cv_results_)
        if refit:
            np.testing.assert_array_equal(ours.best_estimator_.coef_, theirs.best_estimator_.coef_)
            assert list(getattr(ours, "feature_names_in_", [])) == list(getattr(theirs, "feature_names_in_", []))

    with fleet.database.read() as connection:
        largest = select(func.max(Payload.size)).where(Payload.kind == "X")
        assert connection.execute(largest).scalar() < 1_000  # X has 4,800 bytes


def test_a_host_without_the_file_hands_the_trial_back_and_goes_on_when_it_is_there(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., RunningWorker], folder: Path
) -> None:
    refs = DataRef(folder / "X.npy"), DataRef(folder / "y.npy")
    handle = submit(gridfleet.GridSearchCV(SVC(), {"C": [1]}, refit=False), *refs)
    (folder / "X.npy").rename(folder / "away.npy")
    start_worker(configured)

    wait_for(lambda: attempts(fleet, handle.id), "the trial is handed back")
    (folder / "away.npy").rename(folder / "X.npy")

    def is_over() -> bool:
        fleet.reconciler().once()
        return handle.progress().is_finished

    wait_for(is_over, "the search ends")

    first, *_, last = attempts(fleet, handle.id)
    assert (first.outcome, last.outcome) == ("handed_back", "completed")
    assert f"lacks data that the trial needs: {folder / 'X.npy'} can't be read here: No such file" in first.error
    with fleet.database.read() as connection:
        assert connection.execute(select(Trial.failures).where(Trial.search_id == handle.id)).scalar() == 0


def attempts(fleet: Fleet, search_id: int) -> list[Any]:
    ended = (
        select(Attempt.outcome, Attempt.error)
        .join(Trial, Trial.id == Attempt.trial_id)
        .where(Trial.search_id == search_id, Attempt.ended_at.is_not(None))
        .order_by(Attempt.attempt)
    )
    with fleet.database.read() as connection:
        return list(connection.execute(ended))


def test_a_wrong_file_fails_its_search_and_stops_no_worker(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., RunningWorker], folder: Path
) -> None:
    right, cut = (folder / "X.npy").read_bytes(), (folder / "X.npy").read_bytes()[:-8]
    search = gridfleet.GridSearchCV(SVC(), {"C": [1]}, error_score=0, refit=False)
    changed, damaged = (
        submit(search, DataRef(folder / "X.npy", sha256=digest), Y)
        for digest in ("a" * 64, hashlib.sha256(cut).hexdigest())
    )
    (folder / "X.npy").write_bytes(cut)
    start_worker(configured)

    def are_over() -> bool:
        with fleet.database.write() as connection:  # lest each attempt waits longer than the one before
            connection.execute(update(Trial).values(not_before=None))
        fleet.reconciler().once()
        return changed.progress().is_finished and damaged.progress().is_finished

    wait_for(are_over, "both searches end")
    (folder / "X.npy").write_bytes(right)
    good = submit(search, DataRef(folder / "X.npy"), Y)
    wait_for(lambda: good.progress().is_finished, "the next search ends")

    assert [attempt.outcome for attempt in attempts(fleet, changed.id)] == ["handed_back"] * 3
    assert [attempt.outcome for attempt in attempts(fleet, damaged.id)] == ["failed"]
    assert [attempt.outcome for attempt in attempts(fleet, good.id)] == ["completed"]
    wrong = f"has the digest {hashlib.sha256(cut).hexdigest()} here, the search wants {'a' * 64}"
    for handle, sentence in ((changed, wrong), (damaged, "says that it has 4800 bytes, but 4792 are there")):
        with fleet.database.read() as connection:
            error = connection.execute(select(Trial.error).where(Trial.search_id == handle.id)).scalar_one()
        assert sentence in error


@pytest.mark.usefixtures("fleet")
def test_of_x_nothing_but_its_header_is_read_where_the_digest_is_given(folder: Path) -> None:
    """A terabyte that takes no room on the disk, nor time."""
    with (folder / "huge.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (150, 833_333_333)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 150 * 833_333_333 * 8)

    handle = submit(gridfleet.GridSearchCV(SVC(), GRID, cv=3), DataRef(folder / "huge.npy", sha256="a" * 64), Y)

    assert handle.progress().total == 2


@pytest.mark.usefixtures("fleet")
def test_a_search_is_found_again_by_the_digest(folder: Path) -> None:
    search = gridfleet.GridSearchCV(SVC(), GRID)
    first = submit(search, DataRef(folder / "X.npy"), Y, name="large")

    assert submit(search, DataRef(folder / "X.npy"), Y, name="large", load_if_exists=True).id == first.id
    np.save(folder / "X.npy", X + 1)
    with pytest.raises(NameTakenError, match="differs in X;"):
        submit(search, DataRef(folder / "X.npy"), Y, name="large", load_if_exists=True)


class LooksAtX(model_selection.KFold):
    """A splitter that looks at the rows, as none of scikit-learn's does."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Any:
        """Look at the first."""
        assert X[0] is not None
        return super().split(X, y, groups)


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(
    ("arguments", "cv", "sentence"),
    [
        ((("none.npy", {}), Y), 3, "X: .*none.npy can't be read here: No such file"),
        ((("more.npz", {"key": "X"}), Y), 3, "X: .*has no array 'X'"),
        ((("X.npy", {}), ("iris.csv", {"columns": "kind"})), 3, "y: .*has no column 'kind'"),
        ((("X.npy", {"sha256": "a" * 64}), Y[:-1]), 3, "inconsistent numbers of samples"),
        ((("iris.csv", {"columns": FEATURES}), Y), LooksAtX(3), "X is data by reference"),
    ],
)
def test_what_can_be_seen_here_is_refused_before_anything_is_stored(
    arguments: tuple[Any, ...], cv: Any, sentence: str, folder: Path
) -> None:
    given = [DataRef(folder / value[0], **value[1]) if isinstance(value, tuple) else value for value in arguments]

    with pytest.raises(ValueError, match=sentence):
        submit(gridfleet.GridSearchCV(SVC(), GRID, cv=cv), *given)


@pytest.mark.usefixtures("fleet")
def test_a_fit_that_reads_x_for_its_refit_compares_the_digest_first(folder: Path) -> None:
    with pytest.raises(InvalidSearchError, match=r"X: .* has the digest"):
        gridfleet.GridSearchCV(SVC(), GRID).fit(DataRef(folder / "X.npy", sha256="a" * 64), Y)
