"""What a worker makes of a refit in this process: the best combination by the rows, fitted, or why it is not stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sqlalchemy import update

from gridfleet.storage import models
from gridfleet.storage.database.connection import Database
from gridfleet.storage.payloads.format import load
from gridfleet.storage.schema import Search
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer, Verifier
from gridfleet.storage.trial_results import TrialResult
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.recorded import SearchGoesOnError
from gridfleet.worker.trial.cross_validation import Candidates, Evaluation
from gridfleet.worker.trial.refit import refit
from tests.storage.conftest import N_SPLITS, StoredSearch, result_of, store_refit, store_search

X, Y = np.random.default_rng(3).normal(size=(20, 2)), np.arange(20) % 2
SPLITS: list[Any] = [None] * N_SPLITS
PARAMS = [{"C": 0.1}, {"C": 1.0}, {"C": 10.0}]
SCORES = (0.5, 0.75, 0.75)


class Takes(BaseEstimator):
    """Takes the parameters of the search, and fits nothing."""

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def fit(self, X: Any, y: Any) -> Takes:
        return self


class Unpicklable(Takes):
    def fit(self, X: Any, y: Any) -> Takes:
        self.lock_ = threading.Lock()
        return self


class Large(Takes):
    def fit(self, X: Any, y: Any) -> Takes:
        self.weights_ = np.ones(250_000)
        return self


@pytest.fixture
def search(database: Database, database_settings: Settings) -> StoredSearch:
    """Return a search that has ended."""
    stored = store_search(database, PARAMS, signer=Signer(database_settings.key()))
    for number, score in enumerate(SCORES):
        assert transitions.record(database, stored.held(number), result_of(score))
    return stored


@pytest.fixture
def fit(search: StoredSearch, database_settings: Settings) -> Callable[..., TrialResult]:
    """Claim the refit of the search and do it."""
    claim = store_refit(search, Signer(database_settings.key()))
    with search.database.write() as connection:
        connection.execute(update(Search).values(paused_at=None))
    claimed = claim.claim()
    assert claimed is not None

    def fit(estimator: Any = None, *, choice: Any = True, fit_params: Any = None, **changes: Any) -> TrialResult:
        candidates = Candidates(PARAMS, choice, "score", False, np.nan, None)
        evaluation = Evaluation(estimator or LogisticRegression(), {"fit_params": fit_params, "scorer": None})
        settings = database_settings.for_workers().replace(**changes)
        return refit(settings, search.database, claimed, evaluation, candidates, X, Y, splits=SPLITS)

    return fit


def loaded(result: TrialResult) -> Any:
    assert result.error is None
    assert result.model is not None
    return load(memoryview(b"".join(result.model.content)))[1][1]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_best_combination_is_fitted_as_scikit_learn_does(
    fit: Callable[..., TrialResult], search: StoredSearch, database_settings: Settings
) -> None:
    weights = np.linspace(0, 1, len(X))
    result = fit(fit_params={"sample_weight": weights})
    model = loaded(result)

    expected = LogisticRegression(C=1.0).fit(X, Y, sample_weight=weights)
    np.testing.assert_array_equal(model.coef_, expected.coef_)
    assert result.model is not None
    assert (result.model.number, result.splits) == (1, [])
    assert (result.mean_fit_time or 0) > 0
    signed = (search.id + 1, len(PARAMS) + 1, 1, result.model.digest, result.model.size)
    verifier = Verifier(database_settings.model_signer().public_key)
    assert verifier.is_signed(result.model.signature, models.SIGNED_AS, *signed)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_function_of_the_script_chooses(fit: Callable[..., TrialResult]) -> None:
    assert loaded(fit(choice=lambda results: int(results["rank_test_score"].argmax()))).C == 0.1
    raised = fit(choice=lambda results: 7)
    assert (raised.error_type, raised.model) == ("IndexError", None)
    assert "best_index_ index out of range" in (raised.error or "")


@pytest.mark.parametrize("backend", ["sqlite"])
def test_what_is_not_stored_is_said_in_a_sentence(fit: Callable[..., TrialResult]) -> None:
    for result, sentence in (
        (
            fit(Large(), model_size_mb=1),
            "the best model takes 2.0 MB, above GRIDFLEET_MODEL_SIZE_MB=1 of its worker; raise it there",
        ),
        (fit(Unpicklable()), "the fitted Unpicklable can't be pickled, so it can't be stored: "),
        (fit(worker_key=None), "GRIDFLEET_WORKER_KEY is not set, and workers sign with it the models that they fit"),
    ):
        assert (result.error_type, result.model) == ("model_not_stored", None)
        assert (result.error or "").startswith(sentence)
        assert "\n" not in (result.error or "")


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_search_that_was_opened_again_is_not_refitted(fit: Callable[..., TrialResult], search: StoredSearch) -> None:
    with search.database.write() as connection:
        connection.execute(update(Search).where(Search.id == search.id).values(finished_at=None))

    with pytest.raises(SearchGoesOnError):
        fit()
