"""The lines of each fit are scikit-learn's own, but for the time that it took."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, check_scoring, make_scorer
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection._validation import _fit_and_score

from gridfleet.scheduler.results.fit_lines import FitLines
from gridfleet.storage.database.connection import Database
from gridfleet.storage.trials import transitions
from gridfleet.worker.trial.cross_validation import Candidates, Evaluation, cross_validate_trial
from tests.storage.conftest import store_search

X, Y = np.arange(16.0).reshape(8, 2), np.arange(8) % 2
SPLITS = [(np.arange(4), np.arange(4, 8)), (np.arange(4, 8), np.arange(4))]
PARAMS: list[dict[str, Any]] = [
    {"strategy": "most_frequent", "random_state": 3},
    {"strategy": "constant", "constant": 1},
]
TWO_METRICS = _MultimetricScorer(
    scorers={"b": make_scorer(accuracy_score), "a": make_scorer(accuracy_score)}, raise_exc=False
)


@pytest.mark.parametrize("verbose", [2, 3, 10])
@pytest.mark.parametrize("scorer", [check_scoring(DummyClassifier(), None), TWO_METRICS], ids=["score", "two metrics"])
@pytest.mark.parametrize("return_train_score", [False, True])
@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_lines_are_those_of_scikit_learn(
    database: Database, capsys: Any, verbose: int, scorer: Any, return_train_score: bool
) -> None:
    arguments = {
        "scorer": scorer,
        "fit_params": {},
        "score_params": {},
        "return_train_score": return_train_score,
        "error_score": np.nan,
    }
    search = store_search(database, PARAMS)
    names = ["b", "a"] if scorer is TWO_METRICS else None
    candidates = Candidates(PARAMS, False, names[0] if names else "score", return_train_score, np.nan, names)
    silent = SimpleNamespace(show=lambda progress: None)
    lines = FitLines(silent, database, search.id, candidates, 2, verbose=verbose)
    for number, params in enumerate(PARAMS):
        for split, (train, test) in enumerate(SPLITS):
            _fit_and_score(
                DummyClassifier(),
                X,
                Y,
                train=train,
                test=test,
                parameters=params,
                verbose=verbose,
                split_progress=(split, 2),
                candidate_progress=(number, 2),
                **arguments,
            )
    theirs = without_times(capsys.readouterr().out)

    for number in (1, 0):  # the second ends first
        evaluation = Evaluation(DummyClassifier(), {**arguments, "verbose": 0})
        result = cross_validate_trial(
            evaluation, X, Y, SPLITS, PARAMS[number], number=number, n_trials=2, refit_metric=candidates.refit_metric
        )
        assert transitions.record(database, search.held(number), result)
        lines.show(SimpleNamespace(done=2 - number, is_finished=number == 0))
    lines.show(SimpleNamespace(done=2, is_finished=True))

    ours = without_times(capsys.readouterr().out)
    assert sorted(ours) == sorted(theirs)
    assert "constant=1" in ours[0]


def without_times(printed: str) -> list[str]:
    return [re.sub("total time=.*", "", line) for line in printed.splitlines()]
