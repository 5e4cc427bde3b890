"""Scripts that go on with a search after they, their fleet, or both were killed in the middle of it."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - as scikit-learn asks for it
from sklearn.model_selection import GridSearchCV as SklearnGridSearchCV
from sklearn.model_selection import HalvingGridSearchCV
from sqlalchemy import select

from gridfleet import open_search
from gridfleet.storage.schema import Trial
from tests.end_to_end.conftest import start_script
from tests.end_to_end.models import Touching
from tests.end_to_end.test_embedded import processes_of
from tests.faults.support import X, Y, wait_for

SCRIPT = """
    import json
    import numpy
    from gridfleet import GridSearchCV
    import models

    class Mine(models.Touching):
        known = {{"alpha", "beta", "gamma"}}

    space = [{{"value": [1, 2]}}, {{"value": [3, 4], "then": ["wait"]}}]
    options = {{"cv": 2, "refit": False, "name": "mine", "load_if_exists": True}}
    found = GridSearchCV(Mine({folder!r}), space, n_jobs=2, **options).fit(numpy.zeros((12, 2)), numpy.arange(12) % 2)
    print(json.dumps({{name: list(values) for name, values in found.cv_results_.items() if "test_score" in name}},
                     default=int))
"""
#: What is lost is noticed at once, and not after a minute.
SOON = {
    "GRIDFLEET_LEASE_S": "6",
    "GRIDFLEET_HEARTBEAT_S": "1",
    "GRIDFLEET_RECONCILE_S": "0.5",
    "GRIDFLEET_REPUBLISH_S": "3",
}


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param("the script", marks=pytest.mark.complete),
        pytest.param("the fleet", marks=pytest.mark.complete),
        "both",
    ],
)
def test_a_search_goes_on_after_a_kill_and_ends_as_in_one_go(embedded_home: Path, killed: str) -> None:
    (embedded_home / "models.py").write_text(Path(Touching.fit.__code__.co_filename).read_text())
    code = SCRIPT.format(folder=str(embedded_home))
    home = embedded_home / ".gridfleet"
    with start_script(embedded_home, code, **SOON) as first:
        wait_for(lambda: len(list(embedded_home.glob("began-[34]-*"))) == 2, "the last two trials began")
        family = processes_of(home)
        if killed != "the fleet":
            first.send_signal(signal.SIGKILL)
        if killed != "the script":
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        if killed != "the fleet":
            first.communicate(timeout=60)
            wait_for(lambda: not processes_of(home), "nothing is left of the fleet")
            assert open_search("mine").progress().completed == 2
        (embedded_home / "go").touch()

        with start_script(embedded_home, code, **SOON) as second:
            output, errors = second.communicate(timeout=240)
        assert second.returncode == 0, errors
        outputs = [output]
        if killed == "the fleet":  # the script starts another one, which both use
            outputs.append(first.communicate(timeout=240)[0])

    assert "gridfleet: search 'mine' is there: 2 of 4 trials are done" in errors
    space = [{"value": [1, 2]}, {"value": [3, 4], "then": ["wait"]}]
    in_one_go = SklearnGridSearchCV(Touching(str(embedded_home)), space, cv=2, refit=False)
    began = sorted(path.name for path in embedded_home.glob("began-[12]-*"))
    in_one_go.fit(X, Y)
    for found in map(json.loads, outputs):
        assert found.keys() == {name for name in in_one_go.cv_results_ if "test_score" in name}
        for name, values in found.items():
            np.testing.assert_array_equal(values, in_one_go.cv_results_[name])
    # what was done was not done again
    assert began == ["began-1-0", "began-1-1", "began-2-0", "began-2-1"]
    handle = open_search("mine")
    assert handle.progress().completed == 4
    with handle._fleet.database.read() as connection:
        attempts = connection.execute(select(Trial.attempt).order_by(Trial.number)).scalars().all()
    assert attempts == [1, 1, 2, 2]


HALVING = """
    import json
    import joblib
    import numpy
    from gridfleet import register_joblib_backend
    from sklearn.experimental import enable_halving_search_cv
    from sklearn.model_selection import HalvingGridSearchCV
    import models

    class Mine(models.Touching):
        def fit(self, X, y):
            # the last fits of the second round, which has twice as many rows
            self.then = "wait" if len(X) > 4 and self.value == 3 else ""
            return super().fit(X, y)

    register_joblib_backend()
    search = HalvingGridSearchCV(
        Mine({folder!r}), {{"value": [1, 2, 3, 4]}}, factor=2, min_resources=8, cv=2, refit=False, random_state=0
    )
    with joblib.parallel_config(backend="gridfleet", n_jobs=2, name="half", load_if_exists=True):
        search.fit(numpy.zeros((16, 2)), numpy.arange(16) % 2)
    print(json.dumps({{name: numpy.asarray(search.cv_results_[name]).tolist() for name in
                      ("iter", "n_resources", "param_value", "split0_test_score", "split1_test_score")}}))
"""


@pytest.mark.complete
def test_halving_goes_on_in_the_middle_of_a_round_after_its_script_was_killed(embedded_home: Path) -> None:
    (embedded_home / "models.py").write_text(Path(Touching.fit.__code__.co_filename).read_text())
    code = HALVING.format(folder=str(embedded_home))
    home = embedded_home / ".gridfleet"
    with start_script(embedded_home, code, **SOON) as first:
        # both rounds fit two splits: of the second round one trial is done, and the other one waits
        wait_for(lambda: len(list(embedded_home.glob("began-4-*"))) == 4, "the trials of the second round")
        wait_for(lambda: len(list(embedded_home.glob("began-3-*"))) == 3, "the trial that waits")
        wait_for(lambda: open_search("half-round-2").progress().completed == 1, "one of the second round is done")
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
        wait_for(lambda: not processes_of(home), "nothing is left of the fleet")
    (embedded_home / "go").touch()

    with start_script(embedded_home, code, **SOON) as second:
        output, errors = second.communicate(timeout=240)

    assert second.returncode == 0, errors
    assert "search 'half' is there: 4 of 4 trials are done" in errors
    assert "search 'half-round-2' is there: 1 of 2 trials are done" in errors
    in_one_go = HalvingGridSearchCV(
        Touching(str(embedded_home / "elsewhere")),
        {"value": [1, 2, 3, 4]},
        factor=2,
        min_resources=8,
        cv=2,
        refit=False,
        random_state=0,
    )
    began = {value: len(list(embedded_home.glob(f"began-{value}-*"))) for value in (1, 2, 3, 4)}
    (embedded_home / "elsewhere").mkdir()
    in_one_go.fit(np.zeros((16, 2)), np.arange(16) % 2)
    for name, values in json.loads(output).items():
        np.testing.assert_array_equal(values, in_one_go.cv_results_[name])
    # two splits in each round; of all that was fitted, only what was not done when the script was killed runs once more
    assert began == {1: 2, 2: 2, 3: 5, 4: 4}
    with open_search("half")._fleet.database.read() as connection:
        attempts = connection.execute(select(Trial.attempt).order_by(Trial.search_id, Trial.number)).scalars().all()
    assert attempts == [1, 1, 1, 1, 2, 1]
