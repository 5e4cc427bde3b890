"""Each transition of a trial and its refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, event, select, text, update

from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.schema import Search, SplitScore, Trial, TrialWarning
from gridfleet.storage.trial_results import (
    MAX_ERROR,
    MAX_WARNING,
    MAX_WARNINGS,
    CurveResult,
    SplitResult,
    TrialResult,
    WarningResult,
    score_of,
)
from gridfleet.storage.trials import claims, transitions
from gridfleet.storage.trials.held import Claim, Held, expired
from tests.storage.conftest import (
    DIGEST,
    OLD_TOKEN,
    StoredSearch,
    ago,
    attempts_of,
    reap,
    result_of,
    set_trial,
    store_search,
)
from tests.stored_searches import switch_triggers_off

# claim


def test_a_claim_gives_the_trial_to_one_worker_and_tells_what_to_load(search: StoredSearch) -> None:
    claim = search.claim(1, worker_id="node/7")

    assert (claim.trial_id, claim.number, claim.attempt) == (search.trial_ids[1], 1, 1)
    assert (claim.search_id, claim.n_splits, claim.refit_metric) == (search.id, 2, "score")
    assert claim.evaluation_digest == claim.candidates_digest == DIGEST
    row = search.trial(1)
    assert (row.state, row.token, row.worker_id, row.attempt) == ("running", claim.token, "node/7", 1)
    assert row.lease_expires_at < row.deadline_at
    assert (row.lease_expires_at - row.started_at).total_seconds() == pytest.approx(60, abs=1)


def test_the_first_claim_starts_the_search(search: StoredSearch) -> None:
    assert search.row().state == "queued"

    search.held(0)
    started_at = search.row().started_at
    search.held(1)

    assert search.row().state == "running"
    assert started_at is not None
    assert search.row().started_at == started_at


def test_each_claim_has_a_token_of_its_own(search: StoredSearch) -> None:
    assert search.held(0).token != search.held(1).token


def test_a_running_trial_can_not_be_claimed(search: StoredSearch) -> None:
    held = search.held()

    assert search.claim(worker_id="other/1") is None
    assert search.trial().token == held.token
    assert len(attempts_of(search.database, held.trial_id)) == 1


def test_a_trial_of_another_session_can_not_be_claimed(search: StoredSearch) -> None:
    with search.database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == search.id).values(session="a"))

    def claim(number: int, session: str | None) -> Any:
        options = {"lease_s": 1, "max_runtime_s": 1, "session": session}
        return claims.claim(search.database, search.trial_ids[number], "node/1", **options)

    assert claim(0, "b") is None
    assert attempts_of(search.database, search.trial_ids[0]) == []
    assert claim(0, "a").session == "a"
    assert claim(1, None).session == "a"


def test_a_trial_that_is_not_there_can_not_be_claimed(search: StoredSearch) -> None:
    assert claims.claim(search.database, 10**9, "node/1", lease_s=1, max_runtime_s=1) is None


@pytest.mark.parametrize("end", ["recorded", "failed", "cancelled", "lost for good"])
def test_a_final_trial_can_not_be_claimed(search: StoredSearch, end: str) -> None:
    held = search.held()
    if end == "recorded":
        transitions.record(search.database, held, result_of(0.5))
    elif end == "failed":
        transitions.record(search.database, held, result_of(0.5, error="it raised"))
    elif end == "cancelled":
        searches.cancel_search(search.database, search.id)
        transitions.cancel(search.database, held)
    else:
        reap(search.database, held, max_failures=1)
    before = search.trial()

    assert search.claim() is None
    assert search.trial() == before


def test_a_trial_that_backs_off_can_be_claimed_only_afterwards(search: StoredSearch) -> None:
    set_trial(search.database, search.trial_ids[0], not_before=ago(-60))
    assert search.claim() is None

    set_trial(search.database, search.trial_ids[0], not_before=ago(1))
    assert search.claim() is not None


# heartbeat


def test_a_heartbeat_prolongs_the_lease_by_the_database_s_clock(search: StoredSearch) -> None:
    held = search.held(lease_s=5)
    before = search.trial()

    assert transitions.heartbeat(search.database, held, lease_s=600) is False

    after = search.trial()
    assert (after.lease_expires_at - before.lease_expires_at).total_seconds() == pytest.approx(595, abs=5)
    assert after.deadline_at == before.deadline_at


def test_a_heartbeat_tells_of_a_cancellation(search: StoredSearch) -> None:
    held = search.held()
    searches.cancel_search(search.database, search.id)

    assert transitions.heartbeat(search.database, held, lease_s=60) is True


def test_a_heartbeat_of_a_lost_trial_says_so_and_changes_nothing(search: StoredSearch) -> None:
    held = search.held()
    transitions.release(search.database, held)
    search.held(worker_id="other/1")
    before = search.trial()

    assert transitions.heartbeat(search.database, held, lease_s=6_000) is None
    assert search.trial() == before


# record


def test_a_result_is_recorded_with_its_scores_and_curves(search: StoredSearch) -> None:
    held = search.held()
    result = TrialResult(
        splits=[
            SplitResult(0, "score", 0.25, 0.5, fit_time=1.5, score_time=0.25, n_train=8, n_test=4),
            SplitResult(1, "score", 0.75, 1.0, fit_time=2.5, score_time=0.25, n_train=8, n_test=4),
        ],
        curves=[CurveResult(0, "loss", [0.7, math.nan, math.inf, None, 0.1 + 0.2])],
        mean_test_score=0.5,
        std_test_score=0.25,
        mean_fit_time=2.0,
    )

    assert transitions.record(search.database, held, result)

    row = search.trial()
    assert (row.state, row.token, row.lease_expires_at, row.deadline_at) == ("completed", None, None, None)
    assert (row.mean_test_score, row.std_test_score, row.mean_fit_time) == (0.5, 0.25, 2.0)
    assert row.worker_id == "node/1"
    assert row.finished_at >= row.started_at
    with search.database.read() as connection:
        splits = connection.execute(
            select(SplitScore.split, SplitScore.test_score, SplitScore.train_score, SplitScore.fit_time)
        ).all()
        epochs = connection.execute(text("SELECT split, epoch, metric, value FROM epochs")).all()
    assert sorted(splits) == [(0, 0.25, 0.5, 1.5), (1, 0.75, 1.0, 2.5)]
    assert sorted(epochs, key=lambda epoch: epoch.epoch) == [
        (0, epoch, "loss", value) for epoch, value in enumerate([0.7, None, None, None, 0.1 + 0.2])
    ]
    (attempt,) = attempts_of(search.database, held.trial_id)
    assert (attempt.outcome, attempt.worker_id) == ("completed", "node/1")
    assert attempt.ended_at >= attempt.started_at


def test_the_row_of_a_trial_is_written_once_and_after_its_scores(search: StoredSearch) -> None:
    held = search.held()
    written: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        verb, *words = statement.split()
        if verb in ("INSERT", "UPDATE"):
            written.append(f"{verb} {words[verb == 'INSERT']}")

    event.listen(search.database.engine, "before_cursor_execute", note)
    transitions.record(search.database, held, replace(result_of(0.5), curves=[CurveResult(0, "loss", [0.7])]))

    assert written == ["INSERT split_scores", "INSERT curves", "UPDATE trials", "UPDATE attempts"]
    assert search.trial().record_time > 0


def test_warnings_are_recorded_in_number_and_size_within_bounds(search: StoredSearch) -> None:
    first = WarningResult("sklearn.exceptions.ConvergenceWarning", "half a pair \ud83d, a NUL \x00", None, 2)
    others = [WarningResult("UserWarning", f"{number}" * 9_999, "module", 1) for number in range(MAX_WARNINGS + 9)]

    transitions.record(search.database, search.held(), replace(result_of(0.5), warnings=[first, *others]))

    with search.database.read() as connection:
        columns = (TrialWarning.category, TrialWarning.message, TrialWarning.module, TrialWarning.n_fits)
        stored = connection.execute(select(*columns).order_by(TrialWarning.position)).all()
    assert stored[0] == ("sklearn.exceptions.ConvergenceWarning", "half a pair \\ud83d, a NUL \\x00", None, 2)
    assert len(stored) == MAX_WARNINGS
    assert {len(row.message) for row in stored[1:]} == {MAX_WARNING}


@pytest.mark.parametrize(("score", "reason"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_score_that_is_not_finite_is_null_with_its_reason(search: StoredSearch, score: float, reason: str) -> None:
    transitions.record(search.database, search.held(), result_of(score, error="the score is not finite"))

    assert search.trial().mean_test_score is None
    with search.database.read() as connection:
        row = connection.execute(select(SplitScore.test_score, SplitScore.test_score_reason)).first()
    assert tuple(row) == (None, reason)


@pytest.mark.parametrize("score", [-0.0, 0.0, 0.5, -math.inf])
def test_a_score_comes_back_with_its_sign(search: StoredSearch, score: float) -> None:
    transitions.record(search.database, search.held(), result_of(score))

    with search.database.read() as connection:
        row = connection.execute(select(SplitScore.test_score, SplitScore.test_score_reason)).first()
    assert row is not None
    assert str(score_of(*row)) == str(score)
    assert (row.test_score == score) is math.isfinite(score)  # in SQL, too, it is the number


def test_the_database_itself_refuses_infinite_scores(search: StoredSearch) -> None:
    from sqlalchemy.exc import IntegrityError

    transitions.record(search.database, search.held(), result_of(0.5))

    infinite = update(Trial).where(Trial.id == search.trial_ids[0]).values(mean_test_score=math.inf)
    with search.database.write() as connection:
        switch_triggers_off(connection)
        with pytest.raises(IntegrityError, match="mean_test_score_finite"):
            connection.execute(infinite)
        connection.rollback()


def test_an_error_fails_the_trial_and_keeps_error_score(search: StoredSearch) -> None:
    transitions.record(search.database, search.held(), result_of(-1.0, error="Traceback …\nValueError: no"))

    row = search.trial()
    assert (row.state, row.mean_test_score, row.error_type) == ("failed", -1.0, "ValueError")
    assert row.error.endswith("ValueError: no")
    assert row.failures == 0


@pytest.mark.parametrize("message", ["a NUL \x00 in it", "half a surrogate pair \ud83d", "x" * 100_000 + "the end"])
def test_an_error_of_any_text_can_be_stored(search: StoredSearch, message: str) -> None:
    assert transitions.record(search.database, search.held(), result_of(0.0, error=message))

    stored = search.trial().error
    assert len(stored) <= MAX_ERROR
    assert stored[-5:] == message.encode("utf-8", "backslashreplace").decode()[-5:]


def test_a_result_with_an_old_token_is_refused_and_leaves_nothing(search: StoredSearch) -> None:
    old = search.held()
    reap(search.database, old)
    new = search.held(worker_id="other/1")
    before = search.trial()

    assert not transitions.record(search.database, old, result_of(0.9))
    assert search.trial() == before

    assert transitions.record(search.database, new, result_of(0.4))
    assert not transitions.record(search.database, old, result_of(0.9))
    assert not transitions.record(search.database, new, result_of(0.9))  # said twice
    assert search.trial().mean_test_score == 0.4
    assert [attempt.outcome for attempt in attempts_of(search.database, old.trial_id)] == ["worker_lost", "completed"]


def test_a_result_that_can_not_be_stored_leaves_the_trial_running(search: StoredSearch) -> None:
    from sqlalchemy.exc import IntegrityError

    held = search.held()
    twice = result_of(0.5).splits[0]

    with pytest.raises(IntegrityError):
        transitions.record(search.database, held, TrialResult(splits=[twice, twice], mean_test_score=0.5))

    assert search.trial().state == "running"
    assert transitions.record(search.database, held, result_of(0.5))


# record and claim the next one


def go_on(search: StoredSearch, claim: Claim, **options: Any) -> tuple[bool, Claim | None]:
    """Record a trial as a worker process does that goes on to the next one."""
    limits = {"lease_s": 60, "max_runtime_s": 3_600, **options}
    return transitions.record_and_claim(search.database, claim, result_of(0.5), "node/1", **limits)


def test_a_result_and_the_claim_of_the_next_trial_are_one_transaction(search: StoredSearch) -> None:
    claim, facts = search.claim(0), search.claim(2)
    transactions: list[Any] = []
    event.listen(search.database.engine, "begin", transactions.append)

    is_recorded, following = go_on(search, claim)

    assert len(transactions) == 1
    assert is_recorded
    assert search.trial(0).state == "completed"
    row = search.trial(1)
    assert (row.state, row.attempt, row.token, row.worker_id) == ("running", 1, following.token, "node/1")
    assert row.lease_expires_at < row.deadline_at
    own = {"trial_id": row.id, "number": 1, "token": row.token, "structure_digest": row.structure_digest}
    assert following == replace(facts, **own)
    (attempt,) = attempts_of(search.database, row.id)
    assert (attempt.token, attempt.worker_id, attempt.outcome) == (row.token, "node/1", None)


def test_a_result_that_is_refused_claims_nothing(search: StoredSearch) -> None:
    claim = search.claim(0)
    reap(search.database, Held(claim.trial_id, claim.token))

    assert go_on(search, claim) == (False, None)

    assert [search.trial(number).state for number in range(3)] == ["queued"] * 3
    assert search.trial(0).mean_test_score is None


def test_the_next_trial_is_one_behind_the_one_that_was_recorded(search: StoredSearch) -> None:
    _, following = go_on(search, search.claim(1))

    assert following is not None
    assert following.number == 2
    assert go_on(search, following) == (True, None)
    assert search.trial(0).state == "queued"
    assert search.row().state == "running"


@pytest.mark.parametrize("why", ["paused", "cancelled", "backs off", "was tried before", "of another structure"])
def test_the_next_trial_is_not_claimed_if_it(why: str, search: StoredSearch) -> None:
    other = store_search(search.database, 1)
    claim = search.claim(0)
    search.held(2)
    options: dict[str, Any] = {}
    if why == "paused":
        searches.pause_search(search.database, search.id)
    elif why == "cancelled":
        searches.cancel_search(search.database, search.id)
    elif why == "backs off":
        set_trial(search.database, search.trial_ids[1], not_before=ago(-60))
    elif why == "was tried before":  # it may have to run alone in its worker
        transitions.release(search.database, search.held(1))
    else:
        options["structures"] = [search.trial(0).structure_digest]
    before = search.trial(1)

    assert go_on(search, claim, **options) == (True, None)

    assert search.trial(0).state == "completed"
    assert search.trial(1) == before
    assert other.trial().state == "queued"


def test_a_process_that_goes_on_stays_with_the_structures_that_it_has_programs_for(database: Database) -> None:
    candidates = [{"units": units, "learning_rate": rate} for rate, units in enumerate([8, 12, 8])]
    search = store_search(database, candidates)
    claim = search.claim(0)

    _, following = go_on(search, claim, structures=[claim.structure_digest])

    assert following is not None
    assert following.number == 2


def test_the_last_result_finishes_the_search_also_where_a_next_trial_is_asked_for(search: StoredSearch) -> None:
    claim = search.claim(0)
    while claim is not None:
        assert search.row().finished_at is None
        _, claim = go_on(search, claim)

    assert search.row().state == "completed"


# release


def test_a_release_gives_the_trial_back_without_a_failure(search: StoredSearch) -> None:
    held = search.held()

    assert transitions.release(search.database, held)

    row = search.trial()
    assert (row.state, row.failures, row.token, row.worker_id) == ("queued", 0, None, None)
    assert [attempt.outcome for attempt in attempts_of(search.database, held.trial_id)] == ["released"]
    assert search.claim().attempt == 2


def test_deploys_do_not_use_up_the_budget(search: StoredSearch) -> None:
    for _ in range(10):
        transitions.release(search.database, search.held())

    row = search.trial()
    assert (row.state, row.failures, row.attempt) == ("queued", 0, 10)


def test_a_released_trial_of_a_cancelled_search_is_cancelled(search: StoredSearch) -> None:
    held = search.held()
    searches.cancel_search(search.database, search.id)

    assert transitions.release(search.database, held)
    assert search.trial().state == "cancelled"
    assert search.row().finished_at is not None


# reap


def test_failures_back_off_and_end_with_the_budget(search: StoredSearch) -> None:
    waits = []
    for _ in range(3):
        held = search.held()
        assert reap(search.database, held, max_failures=4)
        row = search.trial()
        waits.append(round((row.not_before - attempts_of(search.database, held.trial_id)[-1].ended_at).total_seconds()))
        set_trial(search.database, held.trial_id, not_before=ago(1))
    assert waits == [0, 10, 30]
    assert (row.state, row.failures, row.error_type) == ("queued", 3, "worker_lost")

    reap(search.database, search.held(), max_failures=4)

    row = search.trial()
    assert (row.state, row.failures, row.not_before) == ("failed", 4, None)
    assert row.worker_id == "node/1"  # of the last attempt
    assert row.error == "the process died"
    assert search.claim() is None


def test_the_backoff_is_bounded_however_large_the_budget(search: StoredSearch) -> None:
    set_trial(search.database, search.trial_ids[0], failures=70)

    assert reap(search.database, search.held(), max_failures=1_000)

    row = search.trial()
    assert row.state == "queued"
    assert ago(0) < row.not_before < ago(-2 * 3_600)


def test_a_reaped_trial_of_a_cancelled_search_is_cancelled(search: StoredSearch) -> None:
    held = search.held()
    searches.cancel_search(search.database, search.id)

    assert reap(search.database, held)
    assert search.trial().state == "cancelled"


def test_a_trial_reaped_twice_counts_once(search: StoredSearch) -> None:
    held = search.held()

    assert reap(search.database, held)
    assert not reap(search.database, held)
    assert search.trial().failures == 1


@pytest.mark.parametrize("column", ["lease_expires_at", "deadline_at"])
def test_the_reaper_takes_back_what_is_over_and_nothing_else(search: StoredSearch, column: str) -> None:
    dead, living = search.held(0), search.held(1)
    assert expired(search.database) == []
    assert not reap(search.database, dead, expired_only=True)

    set_trial(search.database, dead.trial_id, **{column: ago(1)})

    assert expired(search.database) == [dead]
    assert reap(search.database, dead, expired_only=True)
    assert not reap(search.database, living, expired_only=True)
    assert expired(search.database) == []


def test_a_trial_that_was_lost_before_its_time_was_over_is_not_overdue_however_late_the_reaper_looks(
    search: StoredSearch,
) -> None:
    lost, overdue = search.held(0), search.held(1)
    set_trial(search.database, lost.trial_id, lease_expires_at=ago(50), deadline_at=ago(10))
    set_trial(search.database, overdue.trial_id, deadline_at=ago(10))

    assert {held.trial_id: held.is_overdue for held in expired(search.database)} == {
        lost.trial_id: False,
        overdue.trial_id: True,
    }


def test_a_heartbeat_after_the_reaper_looked_saves_the_trial(search: StoredSearch) -> None:
    held = search.held()
    set_trial(search.database, held.trial_id, lease_expires_at=ago(1))
    (seen,) = expired(search.database)

    transitions.heartbeat(search.database, held, lease_s=60)

    assert not reap(search.database, seen, expired_only=True)
    assert search.trial().state == "running"


# cancel


def test_a_cancel_with_an_old_token_is_refused(search: StoredSearch) -> None:
    search.held()

    assert not transitions.cancel(search.database, Held(search.trial_ids[0], OLD_TOKEN))
    assert search.trial().state == "running"


# what the tables refuse


def test_no_trial_can_be_deleted_from_under_its_story(search: StoredSearch) -> None:
    from sqlalchemy.exc import IntegrityError

    search.held()

    with pytest.raises(IntegrityError), search.database.write() as connection:
        connection.execute(delete(Trial))
