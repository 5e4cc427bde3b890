"""Which pruners there are, what may be set, and which searches they can prune: one sentence for what is wrong."""

from __future__ import annotations

import inspect
from typing import Any

import optuna
import pytest
from scikeras.wrappers import KerasClassifier
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gridfleet.scheduler.proposals.pruners import SETTINGS, check_pruned, given_pruner
from gridfleet.scheduler.proposals.spaces import given_space
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.pruner import Pruner, sign_of

KERAS = KerasClassifier(lambda: None, epochs=30, validation_split=0.2)
SPACE = {"C": stats.loguniform(0.1, 10)}


def given(
    pruner: Any, *, estimator: Any = KERAS, space: Any = SPACE, n_splits: int = 3, **options: Any
) -> Pruner | None:
    """Return a search's pruner, checked as `fit` checks it."""
    options = {"monitor": "score", "min_resource": 1, **options}
    found = given_pruner(pruner, estimator=estimator, space=given_space(space).space, **options)
    if found is not None:
        check_pruned(found, options["monitor"], estimator=estimator, names=list(space), n_splits=n_splits)
    return found


def test_a_name_is_enough() -> None:
    assert given(None) is None
    assert given("asha") == Pruner("asha")
    assert given("asha", min_resource=3) == given({"name": "asha", "min_resource": 3}) == Pruner("asha", 3)
    assert given("percentile") == Pruner("percentile", 1, {"percentile": 25.0})
    assert given({"name": "hyperband", "reduction_factor": 4}) == Pruner(
        "hyperband", 1, {"reduction_factor": 4, "max_resource": 30}
    )
    assert given({"name": "median", "n_startup_trials": 0}, monitor="val_loss") is not None
    assert given("wilcoxon", n_splits=5) == Pruner("wilcoxon")


def test_the_epochs_of_a_pipeline_s_last_step_and_of_the_space_count() -> None:
    assert given("hyperband", estimator=make_pipeline(StandardScaler(), KERAS)).settings == {"max_resource": 30}
    assert given("asha", estimator=make_pipeline(StandardScaler(), KERAS), n_splits=1) is not None
    assert given("asha", space={"epochs": [3, 9]}, n_splits=1) is not None
    assert given("asha", space={"validation_split": [0.1]}, monitor="val_loss") is not None


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_those_of_optuna_s_class(name: str) -> None:
    classes = {"asha": "SuccessiveHalvingPruner"}
    theirs = getattr(optuna.pruners, classes.get(name, f"{name.capitalize()}Pruner"))

    assert set(SETTINGS[name]) == set(inspect.signature(theirs).parameters) - {"min_resource"}


@pytest.mark.parametrize(
    ("monitor", "sign"),
    [
        ("loss", -1),
        ("val_loss", -1),
        ("val_mean_squared_error", -1),
        ("val_mae", -1),
        ("accuracy", 1),
        ("val_auc", 1),
        ("val_f1_score", 1),
        ("val_out", None),
    ],
)
def test_a_curve_s_name_says_which_values_are_better(monitor: str, sign: int | None) -> None:
    assert sign_of(monitor) == sign


@pytest.mark.parametrize(
    ("pruner", "options", "sentence"),
    [
        ("ashaa", {}, "pruner='ashaa' is unknown; did you mean 'asha'"),
        (3, {}, "pruner=3 must be a name, as 'asha', or a dict"),
        (optuna.pruners.NopPruner(), {}, "must be a name, as 'asha', or a dict"),
        ({"name": "asha", "reduction": 3}, {}, "'reduction' is no setting of 'asha'; did you mean 'reduction_factor'"),
        ({"name": "asha", "reduction_factor": 1}, {}, "reduction_factor=1 must be a whole number from 2 on"),
        ({"name": "asha", "min_resource": "auto"}, {}, "min_resource='auto' must be a whole number of epochs"),
        ({"name": "percentile", "percentile": 101}, {}, "percentile=101 must be a number from 0 to 100"),
        ({"name": "wilcoxon", "min_resource": 2}, {}, "'min_resource' is no setting of 'wilcoxon'"),
        (None, {"min_resource": 0}, "min_resource=0 must be a whole number of epochs, 1 or more"),
        ({"name": "asha", "min_resource": 2}, {"min_resource": 3}, "are one thing; give one of them"),
        ("asha", {"monitor": "val_los"}, "monitor='val_los' does not say whether more .* did you mean 'val_loss'"),
        ("asha", {"monitor": 3}, "monitor=3 must be 'score', or the name of a learning curve"),
        (
            "asha",
            {"monitor": "val_loss", "estimator": LogisticRegression()},
            "a learning curve, which LogisticRegression has not, for it has no epochs; give monitor='score'",
        ),
        (
            "asha",
            {"monitor": "val_loss", "estimator": KerasClassifier(lambda: None)},
            "monitor='val_loss' is a curve of the validation, and validation_split is 0; set it, as to 0.2",
        ),
        (
            "asha",
            {"estimator": LogisticRegression(), "n_splits": 1},
            "LogisticRegression has no epochs, and cv gives one split; give a cv of two or more",
        ),
        ("wilcoxon", {}, "compares scores split by split, and can tell nothing before .* give a cv of 5 or more"),
        ({"name": "wilcoxon", "p_threshold": 0.3}, {"n_splits": 2}, "give a cv of 3 or more"),
        (
            "hyperband",
            {"space": {"epochs": [3, 9]}},
            "pruner='hyperband' has to know how many epochs a trial has; give",
        ),
        ("hyperband", {"estimator": LogisticRegression()}, "has to know how many epochs a trial has; give"),
        ("hyperband", {"min_resource": 31}, "max_resource=30 is less than min_resource=31"),
    ],
)
def test_what_can_not_prune_is_refused_in_a_sentence(pruner: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidSearchError, match=sentence) as raised:
        given(pruner, **options)
    assert "\n" not in str(raised.value)
