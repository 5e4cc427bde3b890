"""The best model, fitted on the fleet: equal to scikit-learn's own refit, there for any process, and for good."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scikeras.wrappers import KerasClassifier
from sklearn import model_selection
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gridfleet import GridSearchCV, open_search, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.errors import BestModelError, SearchNotFinishedError
from gridfleet.storage.settings import Settings
from tests.end_to_end.models import create_model
from tests.warm_scripts import COMMAND, warm_scripts

RANDOM = np.random.default_rng(7)
FEATURES = RANDOM.normal(size=(64, 8)).astype("float32")
CLASSES = np.where(FEATURES[:, 0] + RANDOM.normal(size=64) > 0, "yes", "no")


def of_keras() -> Any:
    model = KerasClassifier(model=create_model, epochs=2, batch_size=16, verbose=0, random_state=3)
    return make_pipeline(StandardScaler(), model)


GRID = {"kerasclassifier__model__units": [2, 4], "kerasclassifier__model__optimizer": ["adam"]}


def test_the_best_keras_model_is_that_of_the_script_to_the_last_bit(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured)
    weights = np.linspace(0.5, 1.5, len(FEATURES))
    fit_params = {"kerasclassifier__sample_weight": weights}
    here = GridSearchCV(of_keras(), GRID, cv=2, name="here", verbose=0).fit(FEATURES, CLASSES, **fit_params)

    handle = submit(GridSearchCV(of_keras(), GRID, cv=2, verbose=0), FEATURES, CLASSES, name="there", **fit_params)
    handle.wait(120)
    there = open_search("there")

    assert there.best_params_ == here.best_params_
    np.testing.assert_array_equal(there.predict_proba(FEATURES), here.predict_proba(FEATURES))
    np.testing.assert_array_equal(there.predict(FEATURES), here.predict(FEATURES))
    assert there.score(FEATURES, CLASSES) == here.score(FEATURES, CLASSES)
    ours, theirs = there.best_estimator_[-1], here.best_estimator_[-1]
    assert ours.history_ == theirs.history_
    np.testing.assert_array_equal(ours.classes_, ["no", "yes"])
    ours_state, theirs_state = ours.model_.optimizer.variables, theirs.model_.optimizer.variables
    assert len(ours_state) == len(theirs_state) > 2
    for one, other in zip(ours_state, theirs_state, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert there.refit_time_ > 0
    # it can go on with its training where it stopped
    np.testing.assert_array_equal(
        ours.partial_fit(FEATURES, CLASSES).predict_proba(FEATURES),
        theirs.partial_fit(FEATURES, CLASSES).predict_proba(FEATURES),
    )


def of_shapes(estimator: Any) -> tuple[int, int]:
    """Choose the last of the combinations: a function of the script, which runs on the worker."""
    return int(len(estimator["params"]) - 1)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_whatever_scikit_learn_s_refit_is_the_fleet_s_is(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    start_worker(configured)
    space = {"C": [0.01, 1.0, 100.0]}
    model = LogisticRegression(random_state=0)
    of_several = {"scoring": ["accuracy", "neg_log_loss"], "refit": "neg_log_loss"}
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "a function": {"refit": of_shapes},
        "several scorers": of_several,
    }
    for name, option in options.items():
        theirs = model_selection.GridSearchCV(model, space, cv=2, **option).fit(FEATURES, CLASSES)
        ours = GridSearchCV(model, space, cv=2, verbose=1, refit_on="fleet", name=name, **option)
        ours.fit(FEATURES, CLASSES)

        assert ours.get_params()["refit_on"] == "fleet"
        assert ours.refit == theirs.refit
        assert set(vars(ours)) - set(ours.get_params(deep=False)) - {"_ran_as"} == set(vars(theirs)) - set(
            theirs.get_params(deep=False)
        )
        for attribute in ("best_index_", "best_params_", "n_features_in_", "multimetric_"):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        np.testing.assert_array_equal(ours.best_estimator_.coef_, theirs.best_estimator_.coef_)
        np.testing.assert_array_equal(ours.predict(FEATURES), theirs.predict(FEATURES))
        found = open_search(name)
        np.testing.assert_array_equal(found.best_estimator_.coef_, theirs.best_estimator_.coef_)
        assert found.score(FEATURES, CLASSES) == theirs.score(FEATURES, CLASSES)
        with pytest.raises(AttributeError, match="transform"):
            found.transform(FEATURES)

    _without_a_best_model(fleet)


def _without_a_best_model(fleet: Fleet) -> None:
    """Each search that has no best model says why."""
    refused = submit(GridSearchCV(NeverAll(), {"value": [1, 2]}, cv=2, verbose=0), FEATURES, CLASSES, name="refused")
    with pytest.raises(SearchNotFinishedError, match=r"'refused' is not done: .*; call wait"):
        _ = refused.best_estimator_
    refused.wait(60)
    with pytest.raises(
        BestModelError, match="the refit of search 'refused' failed: ValueError: not all of them"
    ) as failed:
        refused.predict(FEATURES)
    assert str(failed.value.__cause__) == "not all of them"

    without = submit(GridSearchCV(NeverAll(), {"value": [1]}, cv=2, verbose=0, refit=False), FEATURES, CLASSES)
    with pytest.raises(BestModelError, match=r"has no best model on the fleet: .*or it has refit=False"):
        _ = without.wait(60).best_estimator_

    search = GridSearchCV(NeverAll(), {"value": [-1]}, cv=2, verbose=0)
    none = submit(search, FEATURES, CLASSES, name="none").wait(60)
    with pytest.raises(BestModelError, match="'none' has no best model: no trial of the search was completed"):
        _ = none.best_estimator_


class NeverAll(LogisticRegression):
    """Fits parts of the data, and never all."""

    def __init__(self, value: int = 0) -> None:
        super().__init__()
        self.value = value

    def fit(self, X: Any, y: Any) -> NeverAll:
        if len(X) == len(FEATURES) or self.value < 0:
            raise ValueError("not all of them")
        return super().fit(X, y)  # type: ignore[no-any-return]


SCRIPT = """
    import keras
    import numpy as np
    from scikeras.wrappers import KerasClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    from gridfleet import GridSearchCV, submit
    import layers


    @keras.saving.register_keras_serializable()
    def own_loss(y_true, y_pred):
        return keras.losses.binary_crossentropy(y_true, y_pred) * 2


    class Own(keras.Model):
        pass


    def create(units=2):
        inputs = keras.Input((3,))
        model = Own(inputs, keras.layers.Dense(1, activation="sigmoid")(layers.Doubling(units)(inputs)))
        model.compile(loss=own_loss, optimizer="adam")
        return model


    rows = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    model = KerasClassifier(model=create, epochs=1, verbose=0, random_state=1)
    search = GridSearchCV(
        make_pipeline(FunctionTransformer(layers.scaled), model), {"kerasclassifier__model__units": [2]}, cv=2
    )
    handle = submit(search, rows, (rows[:, 0] > 0).astype(int), name="own").wait()
    np.save("rows.npy", rows)
    np.savetxt("rows.csv", rows, delimiter=",")
    np.savetxt("predicted.txt", handle.predict(rows), fmt="%d")
"""
LAYERS = """
import keras


@keras.saving.register_keras_serializable()
class Doubling(keras.layers.Layer):
    def __init__(self, units, **options):
        super().__init__(**options)
        self.units, self.dense = units, keras.layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        return 2 * self.dense(inputs)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def scaled(rows):
    return rows * 0.5
"""


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_model_is_opened_and_saved_where_its_script_is_not(
    fleet: Fleet,
    configured: Settings,
    start_worker: Callable[..., Any],
    run_script: Callable[..., Any],
    tmp_path: Path,
) -> None:
    start_worker(configured)
    folder = tmp_path / "of_the_script"
    folder.mkdir()
    (folder / "layers.py").write_text(LAYERS)
    done = run_script(folder, SCRIPT)
    assert done.returncode == 0, done.stderr
    rows, predicted = np.load(folder / "rows.npy"), np.loadtxt(folder / "predicted.txt")

    np.testing.assert_array_equal(open_search("own").predict(rows), predicted)
    saved = tmp_path / "saved"
    command = warm_scripts().run(COMMAND, "best", "own", "--save", saved)
    assert command.returncode == 0, command.stderr
    assert {file.name for file in saved.iterdir()} == {"MODEL.md", "estimator.joblib", "model.keras", "predict.py"}
    told = (saved / "MODEL.md").read_text()
    for part in ("kerasclassifier__model__units=2", "| Keras | 3.", "python predict.py rows.csv", "model.keras"):
        assert part in told
    # nothing of gridfleet, of the fleet, and of the script
    program = saved.rename(tmp_path / "elsewhere") / "predict.py"
    used = subprocess.run(
        [sys.executable, "-P", str(program), str(folder / "rows.csv")], cwd=tmp_path, capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr
    assert [int(line) for line in used.stdout.splitlines()] == list(predicted)
    assert len(program.read_text().splitlines()) <= 12
