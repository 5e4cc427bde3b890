"""Keras' configuration and names around a fit."""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common import global_state
from scikeras.wrappers import KerasClassifier
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge
from sklearn.metrics import check_scoring

from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.trial_results import TrialResult
from gridfleet.worker.trial.cross_validation import Evaluation, cross_validate_trial
from gridfleet.worker.trial.keras_state import (
    ATTRIBUTES,
    VARIABLES,
    any_model_loads,
    keras_config,
    names_numbered_anew,
    set_keras_config,
)
from tests.end_to_end.models import create_model
from tests.thinning import some_of

X, Y = np.linspace(0, 1, 64).reshape(8, 8), np.arange(8) % 2
SPLITS = [(np.arange(4), np.arange(4, 8)), (np.arange(4, 8), np.arange(4))]


@pytest.fixture(autouse=True)
def _own_configuration() -> Iterator[None]:
    before = keras_config()
    set_keras_config({**before, "dtype_policy": None})  # as in a fresh process; whoever asked for it settled it
    yield
    set_keras_config(before)


def test_every_setting_of_keras_config_is_known() -> None:
    getters = {*VARIABLES, "dtype_policy", "is_flash_attention_enabled"}
    getters |= {"is_interactive_logging_enabled", "is_traceback_filtering_enabled"}
    setters = {*VARIABLES.values(), "set_dtype_policy", "enable_unsafe_deserialization"} - {"set_nnx_enabled"}
    setters |= {f"{verb}_flash_attention" for verb in ("enable", "disable")}
    setters |= {f"{verb}_interactive_logging" for verb in ("enable", "disable")}
    setters |= {f"{verb}_traceback_filtering" for verb in ("enable", "disable")}
    #: of the process that imports Keras, for good
    backend = {"backend", "set_backend"}
    functions = {name for name in dir(keras.config) if callable(getattr(keras.config, name))}

    assert functions == getters | setters | backend, f"Keras {keras.__version__} has other functions in keras.config"


CHANGES = {
    "floatx": lambda: keras.config.set_floatx("float64"),
    "epsilon": lambda: keras.config.set_epsilon(1e-3),
    "image_data_format": lambda: keras.config.set_image_data_format("channels_first"),
    "max_epochs": lambda: keras.config.set_max_epochs(3),
    "max_steps_per_epoch": lambda: keras.config.set_max_steps_per_epoch(4),
    "dtype_policy": lambda: keras.config.set_dtype_policy("mixed_bfloat16"),
    "flash_attention": keras.config.disable_flash_attention,
    "safe_mode_saving": keras.config.enable_unsafe_deserialization,
    "interactive_logging": keras.config.disable_interactive_logging,
    "traceback_filtering": keras.config.disable_traceback_filtering,
    "run_eagerly": lambda: tf.config.run_functions_eagerly(True),
}


def test_each_setting_travels() -> None:
    before = keras_config()
    assert set(CHANGES) | {"is_nnx_enabled"} == set(before) == {*VARIABLES, *ATTRIBUTES, "run_eagerly"}
    for change in CHANGES.values():
        change()
    changed = keras_config()
    assert {name for name in changed if changed[name] != before[name]} == set(CHANGES)

    set_keras_config(before)
    assert keras_config() == before
    set_keras_config(pickle.loads(pickle.dumps(changed)))

    assert keras_config() == changed
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_looking_at_the_configuration_does_not_settle_the_dtype_policy() -> None:
    keras_config()
    keras.config.set_floatx("float64")

    assert keras.config.dtype_policy().name == "float64"


def evaluate(
    estimator: BaseEstimator,
    config: dict[str, Any] | None = None,
    *,
    fit_mode: FitMode = FitMode.EXACT,
    n_splits: int = 2,
) -> TrialResult:
    shared = {
        "scorer": check_scoring(estimator, None),
        "fit_params": {},
        "score_params": {},
        "return_train_score": False,
        "error_score": "raise",
        "verbose": 0,
    }
    evaluation = Evaluation(estimator, shared, {}, config or {})
    return cross_validate_trial(
        evaluation, X, Y, SPLITS[:n_splits], {}, number=0, n_trials=1, refit_metric="score", fit_mode=fit_mode
    )


def model() -> KerasClassifier:
    return KerasClassifier(model=create_model, epochs=2, batch_size=2, verbose=0, random_state=1)


def losses(result: TrialResult) -> list[float]:
    assert result.error is None, result.error
    return [loss for curve in result.curves if curve.metric == "loss" for loss in curve.values]


@pytest.mark.parametrize("setting", some_of(["floatx", "dtype_policy"]))
def test_a_trial_trains_in_the_floats_of_its_search_and_the_next_one_in_its_own(setting: str) -> None:
    stock = keras_config()
    CHANGES[setting]()
    config = keras_config()
    set_keras_config(stock)

    first = losses(evaluate(model(), n_splits=1))
    others = losses(evaluate(model(), config, n_splits=1))
    by_keras = losses(evaluate(model(), config, fit_mode=FitMode.KERAS, n_splits=1))
    again = losses(evaluate(model(), n_splits=1))

    assert others == by_keras
    assert others != first == again
    if setting == "floatx":
        assert float(np.float32(others[0])) != others[0]
    assert keras_config() == stock


def test_a_model_with_a_function_of_python_trains_where_its_script_allows_that() -> None:
    layers = [keras.Input((8,)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(1, activation="sigmoid")]
    with_lambda = keras.Sequential(layers)
    with_lambda.compile("sgd", "binary_crossentropy")
    estimator = KerasClassifier(with_lambda, verbose=0, random_state=1)
    keras.config.enable_unsafe_deserialization()
    config, payload = keras_config(), pickle.dumps(estimator)
    set_keras_config({**config, "safe_mode_saving": None})

    with any_model_loads():
        loaded = pickle.loads(payload)

    with pytest.raises(ValueError, match="Lambda"):
        pickle.loads(payload)
    assert "Lambda" in str(evaluate(loaded, n_splits=1).error)
    assert evaluate(loaded, config, n_splits=1).error is None


class NamesOfLayers(BaseEstimator):
    """Keeps the names that Keras gives in each fit, and asks for one more that is given already."""

    names: list[str] = []  # noqa: RUF012 - shared by the clones

    def fit(self, X, y):
        self.names.append(keras.layers.Dense(1).name)
        return self

    def score(self, X, y):
        return 0.0


def test_names_begin_anew_in_each_fit() -> None:
    keras.layers.Dense(1)
    NamesOfLayers.names.clear()

    evaluate(NamesOfLayers())

    assert NamesOfLayers.names == ["dense", "dense"]


def test_names_that_a_block_numbered_anew_are_not_given_again_after_it() -> None:
    keras.utils.clear_session()
    before = [keras.layers.Dense(1).name for _ in range(2)]
    with names_numbered_anew():
        within = [keras.layers.Dense(1).name for _ in range(3)]
        keras.layers.Dropout(0.5)

    assert (before, within) == (["dense", "dense_1"], ["dense", "dense_1", "dense_2"])
    assert (keras.layers.Dense(1).name, keras.layers.Dropout(0.5).name) == ("dense_3", "dropout_1")


def test_a_block_that_clears_the_session_may_do_so() -> None:
    keras.layers.Dense(1)
    with names_numbered_anew():
        keras.utils.clear_session()

    assert keras.layers.Dense(1).name == "dense"


def collections(estimator: BaseEstimator) -> int:
    """Count how often all of Python's objects are looked at, but not because there are many new ones."""
    found = 0

    def count(phase: str, info: dict[str, int]) -> None:
        nonlocal found
        found += phase == "start" and info["generation"] == 2

    gc.callbacks.append(count)
    gc.disable()
    try:
        evaluate(estimator)
    finally:
        gc.enable()
        gc.callbacks.remove(count)
    return found


def test_garbage_is_collected_only_where_a_keras_model_was_made() -> None:
    assert "keras" in sys.modules
    evaluate(model(), n_splits=1)

    assert collections(Ridge()) == 0
    assert collections(NamesOfLayers()) == 2
    assert not hasattr(global_state.GLOBAL_STATE_TRACKER, "object_name_uids")
