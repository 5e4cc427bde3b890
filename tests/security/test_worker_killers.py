"""A model that ends its whole worker fails in the end; the trials beside it don't."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Attempt, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.trials import claims, lost_together, transitions
from gridfleet.storage.trials.held import Held
from tests.end_to_end.models import Touching
from tests.faults.support import X, Y, wait_for, wait_for_file
from tests.faults.support import search as waiting_search
from tests.running_worker import RunningWorker
from tests.storage.conftest import StoredSearch, ago, attempts_of, set_trial, store_search


@pytest.fixture
def search(configured: Settings) -> Iterator[StoredSearch]:
    with contextlib.closing(Database(configured)) as database:
        yield store_search(database, 3)


def reconcile(configured: Settings) -> None:
    Fleet(configured, is_embedded=False).reconciler().once()


def expire(search: StoredSearch, number: int) -> None:
    set_trial(search.database, search.trial_ids[number], lease_expires_at=ago(1))


def story(search: StoredSearch, number: int) -> tuple[str, int, list[str | None]]:
    row = search.trial(number)
    return row.state, row.failures, [attempt.outcome for attempt in attempts_of(search.database, row.id)]


def test_trials_that_went_with_their_worker_are_tried_again_and_not_charged(
    configured: Settings, search: StoredSearch
) -> None:
    search.held(0, worker_id="node/1")
    search.held(1, worker_id="node/2")
    search.held(2, worker_id="another/1")

    expire(search, 0)
    set_trial(search.database, search.trial_ids[1], lease_expires_at=ago(-9))  # its last heartbeat was a bit later
    reconcile(configured)
    assert [story(search, number) for number in (0, 1)] == [("queued", 0, ["released"]), ("running", 0, [None])]
    expire(search, 1)
    reconcile(configured)

    assert [story(search, number) for number in (0, 1)] == [("queued", 0, ["released"])] * 2
    assert attempts_of(search.database, search.trial_ids[0])[0].error == lost_together.REASON
    assert search.trial(2).state == "running"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_of_a_worker_that_died_as_a_whole_the_heaviest_trial_is_charged_and_its_neighbours_are_not(
    configured: Settings, search: StoredSearch, order: tuple[int, ...]
) -> None:
    for number, memory_mb in enumerate((300, 1_900, 1_200)):
        held = search.held(number, worker_id=f"node/{number}")
        transitions.heartbeat(search.database, held, lease_s=9, memory_mb=memory_mb)
    for number in order:  # the leases end one after the other
        expire(search, number)
        reconcile(configured)

    assert [story(search, number) for number in range(3)] == [
        ("queued", 0, ["released"]),
        ("queued", 1, ["lease_expired"]),
        ("queued", 0, ["released"]),
    ]


def test_a_small_model_outlives_a_big_one_that_ends_its_worker_again_and_again(
    configured: Settings, search: StoredSearch
) -> None:
    for again in range(configured.max_failures):
        for number, memory_mb in ((0, 300), (1, 1_900)):
            set_trial(search.database, search.trial_ids[number], not_before=None)
            held = search.held(number, worker_id=f"node{again}/{number}")
            transitions.heartbeat(search.database, held, lease_s=9, memory_mb=memory_mb)
        for number in (0, 1):
            expire(search, number)
        reconcile(configured)
        if lost_together.runs_alone(search.database, search.trial_ids[0]):
            break

    assert story(search, 0) == ("queued", 0, ["released"] * 2)
    assert search.trial(1).failures == 2


@pytest.mark.parametrize("neighbour", ["none", "alive", "done", "of another worker"])
def test_a_trial_that_was_lost_alone_is_charged(configured: Settings, search: StoredSearch, neighbour: str) -> None:
    search.held(0, worker_id="node/1")
    if neighbour != "none":
        other = search.held(1, worker_id="node_/2" if neighbour == "of another worker" else "node/2")
        if neighbour == "done":
            transitions.release(search.database, other)
        if neighbour == "of another worker":
            expire(search, 1)
    expire(search, 0)

    reconcile(configured)

    assert story(search, 0) == ("queued", 1, ["lease_expired"])


def test_a_trial_that_is_lost_with_others_again_and_again_has_to_run_alone_and_is_charged_then(
    configured: Settings, search: StoredSearch
) -> None:
    killer = search.trial_ids[0]
    for again in range(lost_together.FREE_LOSSES + configured.max_failures):
        assert lost_together.runs_alone(search.database, killer) == (again >= lost_together.FREE_LOSSES)
        set_trial(search.database, killer, not_before=None)
        search.held(0, worker_id=f"node{again}/1")
        neighbour = store_search(search.database, 1)
        neighbour.held(0, worker_id=f"node{again}/2")
        expire(search, 0)
        expire(neighbour, 0)
        reconcile(configured)
        assert neighbour.trial().failures == 0

    assert story(search, 0) == ("failed", 3, ["released"] * 2 + ["lease_expired"] * 3)


NEIGHBOUR = """
import sys
from pathlib import Path
from gridfleet.worker.guards import neighbours
neighbours.os.getppid = lambda: 1  # that of all of them
with getattr(neighbours.Neighbours(Path(sys.argv[1])), sys.argv[2])():
    print("inside", flush=True)
    sys.stdin.read(1)
"""


def test_one_process_of_a_worker_can_be_alone(tmp_path: Path) -> None:
    with contextlib.ExitStack() as ended:

        def start(how: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", NEIGHBOUR, str(tmp_path), how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            ended.callback(process.__exit__, None, None, None)
            ended.callback(process.kill)
            return process

        def is_inside(process: subprocess.Popen[str]) -> bool:
            assert process.stdout is not None
            return process.stdout.readline() == "inside\n"

        first, second = start("beside"), start("beside")
        assert is_inside(first)
        assert is_inside(second)
        alone = start("alone")
        wait_for(lambda: n_waiting(tmp_path) == 1, "the one that wants to be alone")
        late = start("beside")
        wait_for(lambda: n_waiting(tmp_path) == 2, "the one that comes after it")

        first.kill()  # locks go with their process
        second.communicate("x")
        assert is_inside(alone)
        # it has come through the door, and waits in it
        wait_for(lambda: n_waiting(tmp_path) == 1, "the one that comes after it, once more")
        alone.communicate("x")
        assert is_inside(late)


def n_waiting(folder: Path) -> int:
    """Count the processes that wait for a lock of the file in a folder, as the kernel tells."""
    (file,) = folder.iterdir()
    inode = f":{file.stat().st_ino} "
    return sum(" -> " in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_worker_evaluates_a_suspect_when_its_other_processes_have_ended_their_trials(
    configured: Settings, start_worker: Callable[..., RunningWorker], tmp_path: Path
) -> None:
    fleet = Fleet(configured, is_embedded=False)
    neighbour = submit(waiting_search(tmp_path, [1], then="wait"), X, Y)
    handle = submit(waiting_search(tmp_path, [2]), X, Y)
    with fleet.database.read() as connection:
        suspect = connection.execute(select(Trial.id).where(Trial.search_id == handle.id)).scalar_one()
    for _ in range(lost_together.FREE_LOSSES):
        claim = claims.claim(fleet.database, suspect, "gone/1", lease_s=60, max_runtime_s=60)
        assert claim is not None
        transitions.release(fleet.database, Held(suspect, claim.token), error=lost_together.REASON)
    set_trial(fleet.database, suspect, not_before=ago(-3_600))
    start_worker(configured, concurrency=2)
    wait_for_file(tmp_path, "began-1-0")

    set_trial(fleet.database, suspect, not_before=None)
    fleet.publish([suspect])
    wait_for(lambda: n_released(fleet, suspect) == 3, "the third time that the suspect is let go of")
    (tmp_path / "go").touch()
    neighbour.wait(60)
    handle.wait(60)

    with fleet.database.read() as connection:
        others = connection.execute(select(Attempt.ended_at).where(Attempt.trial_id != suspect)).scalar_one()
    *before, last = attempts_of(fleet.database, suspect)
    assert [one.outcome for one in before] == ["released"] * 3
    assert (last.outcome, last.attempt) == ("completed", 4)
    assert last.started_at >= others


def n_released(fleet: Fleet, trial_id: int) -> int:
    return [one.outcome for one in attempts_of(fleet.database, trial_id)].count("released")


@pytest.mark.complete
@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("n_killers", [1, 3])
def test_models_that_kill_their_worker_fail_and_the_one_beside_them_completes(
    n_killers: int, configured: Settings, start_worker: Callable[..., RunningWorker], tmp_path: Path
) -> None:
    settings = configured.replace(lease_s=2.0, heartbeat_s=0.3, max_failures=1)
    fleet = Fleet(settings, is_embedded=False)
    grid = [{"value": list(range(100, 100 + n_killers)), "then": ["kill the worker"]}, {"value": [1], "then": ["wait"]}]
    handle = submit(GridSearchCV(Touching(str(tmp_path)), grid, cv=2, refit=False), X, Y)
    worker = start_worker(settings, concurrency=2)

    def has_ended() -> bool:
        nonlocal worker
        if worker.process.poll() is not None:
            (tmp_path / "go").touch()  # the innocent one has been hit
            worker = start_worker(settings, concurrency=2)
        fleet.reconciler().once()
        return handle.progress().is_finished

    wait_for(has_ended, "the end of all trials", patience_s=240)

    with fleet.database.read() as connection:
        rows = connection.execute(select(Trial.state, Trial.failures, Trial.error_type).order_by(Trial.number)).all()
    assert [tuple(row) for row in rows] == [("failed", 1, "lease_expired")] * n_killers + [("completed", 0, None)]
