"""Which search a worker takes its next trial of: a function of the rows of searches, leases and trials.

A higher priority is first. Of searches with the same one, that comes first which has the fewest running trials for its
weight: the searches of one user share the weight of one, so that two users get half of a busy fleet each, whoever
submits more. Where that is equal, as on fleets of fewer processes than searches, the one is next that waits longest
since a trial of its user, and then one of its own, has started.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, String, and_, bindparam, case, func, literal_column, or_, select

from gridfleet.storage.database.times import now
from gridfleet.storage.schema import Lease, Search, Trial
from gridfleet.storage.statements import ONE, QUEUED

#: Running trials by which another session's search has to be behind before a worker process leaves its own. A process
#: evaluates trials of one session, and a new one loads its data and traces its programs again: without this, two
#: processes that record at the same moment would change places.
AHEAD = 2
#: Seconds without a new trial after which another session's search has waited long enough for that.
WAITED_S = 10

#: Whether a search can be evaluated by a minor version of Python: bytecode that travels is of one.
IS_FOR_PYTHON = or_(Search.needs_python.is_(None), Search.needs_python == bindparam("python", type_=String))

_NONE, _AHEAD, _WAITED = (literal_column(str(number), Integer) for number in (0, AHEAD, -WAITED_S))
_IS_DUE = or_(Trial.not_before.is_(None), Trial.not_before <= now(_NONE))
_running = select(Lease.search_id, func.count().label("n")).group_by(Lease.search_id).subquery("running")
# from the index's end; trials that run or ran keep the time at which they started last
_served_at = (
    select(Trial.started_at)
    .where(Trial.search_id == Search.id, Trial.started_at.is_not(None))
    .order_by(Trial.started_at.desc())
    .limit(ONE)
    .scalar_subquery()
)
_open = (
    select(
        Search.id,
        Search.session,
        Search.priority,
        Search.submitted_by,
        func.coalesce(_running.c.n, _NONE).label("n_running"),
        _served_at.label("served_at"),
    )
    .outerjoin(_running, _running.c.search_id == Search.id)
    .where(Search.finished_at.is_(None), Search.paused_at.is_(None), IS_FOR_PYTHON)
    .offset(_NONE)  # or PostgreSQL would look for each time once more wherever it is named below
    .subquery("open_searches")
)
_of_user: Any = {"partition_by": (_open.c.priority, _open.c.submitted_by)}
_is_elsewhere = and_(_open.c.session != bindparam("own_session", type_=String), _open.c.served_at > now(_WAITED))
_ranked = select(
    _open.c.id,
    _open.c.session,
    _open.c.priority,
    (_open.c.n_running * func.count().over(**_of_user) + case((_is_elsewhere, _AHEAD), else_=_NONE)).label("load"),
    func.max(_open.c.served_at).over(**_of_user).label("user_served_at"),
    _open.c.served_at,
).subquery("ranked")


def _in_turn(searches: Any) -> tuple[Any, ...]:
    of = searches.c
    return of.priority.desc(), of.load, of.user_served_at.nulls_first(), of.served_at.nulls_first(), of.id


_sorted = select(_ranked).order_by(*_in_turn(_ranked)).subquery("in_turn")
# a value and no EXISTS, which PostgreSQL would join with all that is queued; asked of one search after the other, until
# the first that has a trial. From the index's end: at its beginning PostgreSQL keeps what was claimed for as long as
# anybody's snapshot is older
_is_waiting = (Trial.search_id == _sorted.c.id, Trial.state == QUEUED, _IS_DUE)
_waiting = select(Trial.id).where(*_is_waiting).order_by(Trial.id.desc()).limit(ONE)
_has_work = _waiting.correlate(_sorted).scalar_subquery().is_not(None)
#: The search that is next for a process of a session (NULL: of none yet) and a Python; no row where nothing waits.
NEXT_SEARCH = select(_sorted.c.id, _sorted.c.session).where(_has_work).order_by(*_in_turn(_sorted)).limit(ONE)
