"""Who adds a trial chooses a point of the space that was submitted, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sklearn.svm import SVC
from sqlalchemy import select, update

from gridfleet import HalvingGridSearchCV, OptunaSearchCV, submit
from gridfleet.scheduler.fleet.asker import Asker
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.schema import Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials.proposed import Proposal, add_proposals
from tests.faults.support import Touching, X, Y
from tests.stored_searches import switch_triggers_off

WRONG: list[Any] = [
    {"branch": 0, "values": {"value": 2}},
    {"branch": 0, "values": {"value": -1}},
    {"branch": 1, "values": {"value": 0}},
    {"branch": 0, "values": {"value": 0, "then": "exit"}},
    "cos\nsystem\n(S'true'\ntR.",
]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_worker_evaluates_no_point_outside_of_what_was_signed(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    search = OptunaSearchCV(Touching(str(tmp_path)), {"value": [1, 2]}, n_trials=6, cv=2, refit=False)
    handle = submit(search, X, Y)
    right = {"branch": 0, "values": {"value": 1}}
    samples = [*WRONG, right]
    ids = add_proposals(fleet.database, handle.id, [Proposal(right, {"value": 2}, []) for _ in samples], n_asked=0)
    assert ids is not None
    with fleet.database.write() as connection:
        switch_triggers_off(connection)
        for trial_id, sample in zip(ids, samples, strict=True):
            connection.execute(update(Trial).where(Trial.id == trial_id).values(sample=sample))
    fleet.publish(ids)

    start_worker(configured.replace(max_failures=1))

    assert handle.wait(60).progress().failed == len(WRONG)
    with fleet.database.read() as connection:
        trials = connection.execute(select(Trial.state, Trial.error).order_by(Trial.id)).all()
    assert [trial.state for trial in trials] == [*["failed"] * len(WRONG), "completed"]
    assert all("is no point of the space that was submitted" in trial.error for trial in trials[:-1])
    began = {file.name.split("-")[1] for file in tmp_path.glob("began-*")}
    assert began == {"2"}, "only the second value, which the right sample names, was ever fitted"


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_worker_evaluates_no_candidate_that_was_not_in_the_first_round(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any]
) -> None:
    grid = {"C": [1, 2, 3, 4]}
    search = HalvingGridSearchCV(
        SVC(), grid, resource="cache_size", max_resources=4, factor=2, cv=2, refit=False, verbose=0
    )
    handle = submit(search, X, Y)
    samples: list[Any] = [{"candidate": 4}, None, {"candidate": 0, "then": "exit"}]
    ids = add_proposals(fleet.database, handle.id, [Proposal({}, {"C": 1}, []) for _ in samples], n_asked=4)
    assert ids is not None
    with fleet.database.write() as connection:
        switch_triggers_off(connection)
        for trial_id, sample in zip(ids, samples, strict=True):
            connection.execute(update(Trial).where(Trial.id == trial_id).values(sample=sample))
    fleet.publish(ids)

    start_worker(configured.replace(max_failures=1))

    assert handle.wait(60).progress().failed == len(samples)
    with fleet.database.read() as connection:
        errors = connection.execute(select(Trial.error).where(Trial.state == "failed").order_by(Trial.id)).scalars()
        assert all("it is none of the candidates of the first round" in error for error in errors)


def test_the_scheduler_reads_json_and_unpickles_nothing(
    database: Any, database_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    from gridfleet.worker.broker.publisher import Publisher
    from tests.conftest import KEYS
    from tests.storage.conftest import store_asking

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for sampler in ("tpe", "random"):
        store_asking(database, sampler=json.dumps({"name": sampler}))
    monkeypatch.setattr(pickle, "loads", refused)
    monkeypatch.setattr(pickle, "load", refused)
    with closing(Publisher(database_settings, KEYS)) as publisher:
        assert Asker(database_settings, database, publisher).ask_all() == 2 + 3


def test_a_space_names_distributions_of_scipy_and_nothing_else() -> None:
    from gridfleet.storage.errors import SampleError
    from gridfleet.storage.spaces import Space

    for name in ("qmc.Sobol", "io", "os", "rv_histogram", "gaussian_kde", "__loader__"):
        described = {"kind": "quantile", "scipy": name, "arguments": [], "keywords": None}
        space = Space.from_json(json.dumps([{"a": described}]))
        with pytest.raises(SampleError):
            space.shown({"branch": 0, "values": {"a": 0.5}})
