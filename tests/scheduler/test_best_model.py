"""A best model as files and in the report, and what a search with refit_on refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sqlalchemy import delete

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet, connect
from gridfleet.storage import searches
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.refits import find_refit
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.searches import check_signature
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from tests.security.test_best_model import store
from tests.storage.conftest import result_of
from tests.stored_searches import claim, switch_triggers_off

X = np.random.default_rng(5).normal(size=(20, 3))
Y = (X[:, 0] > 0).astype(int)
COLUMNS = ["age", "weight", "dose"]


@pytest.fixture
def fleet(fleet: Settings) -> Fleet:
    return connect()


@pytest.mark.parametrize(
    # a program for rows without names: tests/end_to_end/test_best_model.py
    "named",
    [pytest.param(False, marks=pytest.mark.complete), True],
    ids=["array", "frame"],
)
def test_an_estimator_of_scikit_learn_is_saved_with_a_program_that_uses_it(
    fleet: Fleet, gridfleet: Callable[..., tuple[int, str, str]], tmp_path: Path, named: bool
) -> None:
    rows = pd.DataFrame(X, columns=COLUMNS) if named else X
    model = make_pipeline(StandardScaler(), SVC()).fit(rows, Y)
    store(fleet, "pima", model)
    folder = tmp_path / "deep" / "saved"

    status, printed, said = gridfleet("best", "pima", "--save", str(folder))

    assert status == 0
    assert printed.startswith("pima  score 0.7500")
    assert said == f"gridfleet: {folder} has the best model: MODEL.md, estimator.joblib, predict.py\n"
    assert {file.name for file in folder.iterdir()} == {"MODEL.md", "estimator.joblib", "predict.py"}
    np.testing.assert_array_equal(joblib.load(folder / "estimator.joblib").predict(rows), model.predict(rows))
    told = (folder / "MODEL.md").read_text()
    assert "| mean test score | 0.750000 ± 0.000000 |" in told
    assert "| params (trial 1) | C=2 |" in told
    assert "Keras" not in told.partition("## How")[2]
    if named:
        rows.to_csv(tmp_path / "rows.csv", index=False)
    else:
        np.savetxt(tmp_path / "rows.csv", rows, delimiter=",")
    used = subprocess.run(
        [sys.executable, "-P", str(folder / "predict.py"), str(tmp_path / "rows.csv")], capture_output=True, text=True
    )
    assert (used.returncode, used.stderr) == (0, "")
    assert list(map(int, used.stdout.split())) == list(model.predict(rows))
    assert len((folder / "predict.py").read_text().splitlines()) <= 12


def test_a_folder_that_is_not_new_is_refused_and_left_as_it_is(
    fleet: Fleet, gridfleet: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    store(fleet, "pima", "the model")
    full, file, link = (tmp_path / name for name in ("full", "file", "link"))
    full.mkdir()
    for path in (full / "mine", file):
        path.write_text("mine")
    link.symlink_to(tmp_path / "elsewhere")

    for folder, sentence in (
        (full, f"{full} is not empty; name another folder for --save, or empty it"),
        (file, f"{file} is there already, and is no folder; name another one for --save"),
        (link, f"{link} is there already, and is no folder; name another one for --save"),
        (file / "below", f"{file / 'below'} can't be written (File exists); name another folder"),
    ):
        assert gridfleet("best", "pima", "--save", str(folder)) == (1, "", f"gridfleet: {sentence}\n")
    assert [path.name for path in full.iterdir()] == ["mine"]
    assert not list(tmp_path.glob(".*-*"))


def test_the_report_tells_of_the_best_model(fleet: Fleet, gridfleet: Callable[..., tuple[int, str, str]]) -> None:
    def told(name: str) -> str:
        lines = gridfleet("report", name)[1].splitlines()
        return next(line.partition("best model")[2].strip() for line in lines if "best model" in line)

    store(fleet, "stored", "the model")
    assert told("stored").startswith("stored ")
    assert told("stored").endswith(" s ago, refit 1.0 s")

    waiting = submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, verbose=0), X, Y, name="waiting")
    assert told("waiting") == "fitted on the fleet when the trials are done"
    claimed = claim(fleet.database, waiting.id, 0, "node/1")
    assert transitions.record(fleet.database, Held(claimed.trial_id, claimed.token), result_of(0.5))
    assert told("waiting") == "its refit is queued"
    assert searches.cancel_search(fleet.database, waiting.id)
    assert told("waiting") == "none: its refit was cancelled"
    status, printed, said = gridfleet("best", "waiting", "--save", "nowhere")
    assert (status, printed, said.count("\n")) == (1, "", 1)
    assert "search 'waiting' has no best model: its refit was cancelled" in said

    submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, verbose=0, refit=False), X, Y, name="none")
    assert "best model" not in gridfleet("report", "none")[1]


def test_a_search_that_is_gone_on_with_gets_the_refit_that_it_was_stored_without(fleet: Fleet) -> None:
    asked = GridSearchCV(SVC(), {"C": [1]}, cv=2, verbose=0)
    handle = submit(asked, X, Y, name="resumed")
    refit = find_refit(fleet.database, handle.id)
    assert refit is not None
    with fleet.database.write() as connection:  # as fit does that refits in its script
        switch_triggers_off(connection)
        connection.execute(delete(Trial).where(Trial.search_id == refit.search_id))
        connection.execute(delete(Search).where(Search.id == refit.search_id))
    claimed = claim(fleet.database, handle.id, 0, "node/1")
    assert transitions.record(fleet.database, Held(claimed.trial_id, claimed.token), result_of(0.5))

    for _ in range(2):
        assert submit(asked, X, Y, name="resumed", load_if_exists=True).id == handle.id

    added = find_refit(fleet.database, handle.id)
    assert added is not None
    assert (added.is_waiting, added.is_finished) == (False, False)
    of_refit = claim(fleet.database, added.search_id, 0, "node/1")
    check_signature(fleet.settings.verifier(), added.search_id, asdict(of_refit))


def test_who_waits_for_a_refit_is_told_that_it_begins_unless_nothing_is_to_be_shown(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = submit(GridSearchCV(SVC(), {"C": [1]}, cv=2, verbose=0), X, Y, name="refitted")
    claimed = claim(fleet.database, handle.id, 0, "node/1")
    assert transitions.record(fleet.database, Held(claimed.trial_id, claimed.token), result_of(0.5))

    for verbose in (0, 1):
        capsys.readouterr()
        with pytest.raises(TimeoutError, match="the best model of search 'refitted' is not fitted yet"):
            handle.wait(timeout=0, verbose=verbose)  # no worker is there that could be quicker
        said = capsys.readouterr().err
        assert said.count("refitted: fitting the best params on all data\n") == verbose


@pytest.mark.parametrize("place", ["here", None, True])
def test_a_refit_is_on_the_script_or_on_the_fleet(fleet: Fleet, place: Any) -> None:
    search = GridSearchCV(SVC(), {"C": [1]}, refit_on=place)

    with pytest.raises(
        InvalidSearchError, match=f"^refit_on={place!r} is no place for the refit; give 'script' or 'fleet'$"
    ):
        search.fit(X, Y)
    assert clone(search).get_params()["refit_on"] == place
