"""A search on a real worker whose estimator has no seed: what ran is told, and its trials are evaluated once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.cli import main
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.results import reproduction
from gridfleet.storage.schema import SplitScore, StoredText, Trial
from gridfleet.storage.settings import Settings
from gridfleet.worker.guards.memory import THREAD_VARIABLES
from tests.faults.support import PATIENCE_S
from tests.stored_searches import switch_triggers_off

SCRIPT = """
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from gridfleet import GridSearchCV, submit
    import beside

    def doubled(X):
        return 2 * beside.same(X)  # what the script says

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), rng.integers(0, 2, 60)
    forest = RandomForestClassifier(n_estimators=3, max_features=1)
    grid = GridSearchCV(make_pipeline(FunctionTransformer(doubled), forest),
                        {"randomforestclassifier__max_depth": [1, 2, 3]}, cv=2, refit=False, keep_curves=False)
    submit(grid, X, y, name="unseeded", tags={"dataset": "made"})
"""


@pytest.fixture
def run(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command in this process, which knows nothing of the script: ``run("report", "unseeded")``."""
    monkeypatch.chdir(project)

    def run_main(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main(list(arguments))
        return subprocess.CompletedProcess(arguments, left.value.code or 0, *capsys.readouterr())

    return run_main


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a folder in a git repository, with a module beside the script, and a change that was not committed."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "beside.py").write_text("def same(X):\n    return X\n")
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        subprocess.run(["git", *command], cwd=folder, check=True, env={**os.environ, **identity})
    (folder / "beside.py").write_text("def same(X):\n    return X + 0\n")
    return folder


def test_what_ran_is_told_and_comes_out_again(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], project: Path, run: Callable[..., Any]
) -> None:
    start_worker(configured)
    subprocess.run([sys.executable, "script.py"], cwd=project, check=True)
    assert run("report", "unseeded", "--wait").returncode == 0
    search = reader.find_search(fleet.database, "unseeded")
    with fleet.database.read() as connection:
        seeds = connection.execute(select(Trial.seed).where(Trial.search_id == search.id)).scalars().all()
    assert None not in seeds
    assert len(set(seeds)) == 3

    told = run("report", "unseeded", "--source").stdout
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True).stdout.strip()
    assert f"# commit: {head}, and tracked files were changed since\n" in told
    assert "# source: doubled\ndef doubled(X):\n    return 2 * beside.same(X)  # what the script says\n" in told
    assert "# module: beside.py\ndef same(X):\n    return X + 0\n" in told
    assert "# 3 trials were evaluated on" in told
    assert '"cpu_flags":' in told
    assert '"OMP_NUM_THREADS": "' in told
    assert "#   scikit-learn==" in told

    # in a process of its own, as the users' is
    command = [sys.executable, "-P", "-m", "gridfleet", "reproduce", "unseeded", "1"]
    again = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("split 0 score: equal, ")
    assert f"with the recorded seed {seeds[1]}\ntrial 1 is equal to the last bit\n" in again.stdout

    verified = run("verify", "unseeded", "--sample", "2", "--json")
    assert verified.returncode == 0, verified.stderr
    verdict = json.loads(verified.stdout)
    assert verdict["verdict"].startswith(
        "all of 2 trials, drawn at random from 3 completed ones, were equal to the last bit in each of their splits "
        "(4 scores compared), evaluated again on "
    )
    assert [trial["is_equal"] for trial in verdict["trials"]] == [True, True]

    # the fleet evaluates one as a search of its own, which leaves nothing
    on_fleet = run("reproduce", "unseeded", "2", "--on", "fleet", "--json")
    assert on_fleet.returncode == 0, on_fleet.stderr
    assert json.loads(on_fleet.stdout)["is_equal"]
    assert [one.name for one in reader.list_searches(fleet.database)] == ["unseeded"]

    # what does not come out again is said, with what differs
    with fleet.database.write() as connection:
        switch_triggers_off(connection)
        of_trial = select(Trial.id).where(Trial.search_id == search.id, Trial.number == 0).scalar_subquery()
        connection.execute(
            update(SplitScore).where(SplitScore.trial_id == of_trial, SplitScore.split == 1).values(test_score=0.123)
        )
        digest = connection.execute(select(Trial.environment_digest).where(Trial.id == of_trial)).scalar_one()
        connection.execute(update(Trial).where(Trial.id == of_trial).values(environment_digest=None))
        assert connection.execute(select(StoredText.content).where(StoredText.digest == digest)).scalar_one()
    differs = run("reproduce", "unseeded", "0")
    assert differs.returncode == 1
    lines = differs.stdout.splitlines()
    assert lines[0].startswith("split 0 score: equal, ")
    assert lines[1].startswith("split 1 score: 0.123 then, 0.")
    assert lines[-2:] == ["trial 0 is NOT equal: what differs is", "  on what it was evaluated was not recorded"]
    assert run("verify", "unseeded", "--sample", "3").stdout.splitlines()[-1].startswith("2 of 3 trials, drawn")

    for arguments, sentence in (
        (("reproduce", "unseeded", "3"), "search 'unseeded' has no trial 3; its numbers are 0 to 2"),
        (("reproduce", "nothing", "0"), "no search has the name 'nothing'"),
    ):
        refused = run(*arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert sentence in refused.stderr


def create_dense_model() -> Any:
    """Build a model whose sums are long enough to be made by several threads."""
    from keras import Input, Sequential
    from keras.layers import Dense

    layers = [Input((200,)), Dense(300, activation="relu"), Dense(300, activation="relu"), Dense(1)]
    model = Sequential(layers)
    model.compile(loss="mse", optimizer="adam")
    return model


def threads(number: int) -> dict[str, str]:
    return dict.fromkeys(THREAD_VARIABLES, str(number))


@pytest.mark.complete
@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_verdict_on_a_keras_trial_names_other_numbers_of_threads(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    from scikeras.wrappers import KerasRegressor

    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 200)).astype("float32")
    y = X[:, :50].sum(axis=1) + rng.normal(size=400)
    one = start_worker(configured, **threads(1))
    model = KerasRegressor(model=create_dense_model, epochs=4, batch_size=100, verbose=0)
    search = GridSearchCV(model, {"random_state": [1]}, cv=2, scoring="r2", refit=False, verbose=0)
    submit(search, X, y, name="threads").wait(PATIENCE_S)
    one.stop()
    start_worker(configured, **threads(2))
    trial = reproduction.recorded_trial(fleet, reader.find_search(fleet.database, "threads").id, 0)
    assert trial.thread_variables() == threads(1)

    again = reproduction.reproduce_on_fleet(fleet, trial)

    assert again.error is None
    assert {f"threads by {name}: 1 then, 2 now" for name in THREAD_VARIABLES} <= set(again.differences)
    assert not [told for told in again.differences if "threads" not in told and "tensorflow" not in told]
    for pair in again.scores:  # whether or not they are equal to the last bit, they are of the same training
        assert pair.again == pytest.approx(pair.recorded, abs=0.01)

    # here it gets the threads that were recorded, whatever this process has
    here = subprocess.run(
        [sys.executable, "-P", "-m", "gridfleet", "reproduce", "threads", "0"],
        cwd=tmp_path,
        env={**os.environ, **threads(2)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert here.returncode == 0, here.stdout + here.stderr
    assert "trial 0 is equal to the last bit\n" in here.stdout
    assert "threads by" not in here.stdout
