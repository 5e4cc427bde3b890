"""The private names of scikit-learn, joblib and Optuna that gridfleet leans on, and what it expects of them."""

from __future__ import annotations

import inspect

import joblib
import optuna
import pytest
import sklearn
from joblib.parallel import ParallelBackendBase
from optuna.samplers import QMCSampler
from sklearn.callback._callback_context import CallbackContext
from sklearn.model_selection import _search, _search_successive_halving, _validation
from sklearn.utils import metaestimators, parallel, validation

EXPECTED = {
    _validation._fit_and_score: [
        *("estimator", "X", "y", "scorer", "train", "test", "verbose", "parameters", "fit_params", "score_params"),
        *("return_train_score", "return_parameters", "return_n_test_samples", "return_times", "return_estimator"),
        *("split_progress", "candidate_progress", "error_score", "caller", "callback_ctx"),
    ],
    _validation._score: ["estimator", "X_test", "y_test", "scorer", "score_params", "error_score"],
    _validation._insert_error_scores: ["results", "error_score"],
    _search.BaseSearchCV._format_results: ["self", "candidate_params", "n_splits", "out", "more_results"],
    _search.BaseSearchCV._select_best_index: ["refit", "refit_metric", "results"],
    _search.GridSearchCV._run_search: ["self", "evaluate_candidates", "callback_ctx"],
    _search_successive_halving._top_k: ["results", "k", "itr"],
    _search_successive_halving.BaseSuccessiveHalving._run_search: ["self", "evaluate_candidates", "callback_ctx"],
    _search_successive_halving.BaseSuccessiveHalving._select_best_index: ["refit", "refit_metric", "results"],
    _search_successive_halving.HalvingGridSearchCV._generate_candidate_params: ["self"],
    _search_successive_halving.HalvingRandomSearchCV._generate_candidate_params: ["self"],
    metaestimators._safe_split: ["estimator", "X", "y", "indices", "train_indices"],
    validation._check_method_params: ["X", "params", "indices"],
    CallbackContext.call_on_fit_task_begin: ["self", "estimator", "X", "y", "metadata", "reconstruction_attributes"],
}


@pytest.mark.parametrize("function", EXPECTED, ids=lambda function: function.__qualname__)
def test_a_private_function_has_the_parameters_that_we_use(function) -> None:
    assert list(inspect.signature(function).parameters) == EXPECTED[function], (
        f"scikit-learn {sklearn.__version__} changed {function.__module__}.{function.__qualname__}"
    )


def test_scikit_learn_hands_its_fits_to_joblib_in_a_wrapper_with_its_configuration() -> None:
    call, _, _ = parallel.delayed(len)()

    assert call.function is len, f"scikit-learn {sklearn.__version__} wraps calls in another way"
    assert call.with_config_and_warning_filters({"assume_finite": True}, []).config == {"assume_finite": True}


def test_optuna_asks_its_sobol_sequence_for_the_number_of_a_point() -> None:
    found = list(inspect.signature(QMCSampler._find_sample_id).parameters)
    assert found == ["self", "study", "search_space"], f"Optuna {optuna.__version__} changed QMCSampler._find_sample_id"
    assert "_find_sample_id" in QMCSampler._sample_qmc.__code__.co_names, "it is called no more"


@pytest.mark.parametrize("method", ["configure", "effective_n_jobs", "start_call", "submit", "retrieve_result"])
def test_joblib_calls_the_methods_of_a_backend_that_we_define(method: str) -> None:
    assert hasattr(ParallelBackendBase, method), f"joblib {joblib.__version__} has no ParallelBackendBase.{method}"
