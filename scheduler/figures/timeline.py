"""Who did what when: each attempt as a bar, on the line of its worker, coloured by what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, func, select

from gridfleet.scheduler.figures.style import COLOURS, graph_objects, shortened, text, titled
from gridfleet.scheduler.figures.trials import MOST
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.causes import cause
from gridfleet.scheduler.reports.figures import count, rounded
from gridfleet.scheduler.reports.plain import plain
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.times import now, seconds_between
from gridfleet.storage.errors import NothingToDrawError
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import Attempt, Lease, Search, Trial

if TYPE_CHECKING:
    import plotly.graph_objects

_BLUE, _VERMILLION, _GREEN, _PURPLE, _ORANGE, _SKY, _GREY = COLOURS
#: What attempts are called that share a colour, and which outcomes they have; None: they run.
KINDS: dict[str, tuple[str, frozenset[str | None]]] = {
    "completed": (_BLUE, frozenset({Outcome.COMPLETED})),
    "running": (_SKY, frozenset({None})),
    "failed": (_VERMILLION, frozenset({Outcome.FAILED, Outcome.PAYLOAD_ERROR})),
    "lost": (_PURPLE, frozenset({Outcome.WORKER_LOST, Outcome.LEASE_EXPIRED, Outcome.OUT_OF_MEMORY})),
    "timed out": ("#000000", frozenset({Outcome.TIMEOUT})),
    "handed back": (_ORANGE, frozenset({Outcome.RELEASED, Outcome.HANDED_BACK, "worker_error"})),
    "stopped": (_GREY, frozenset({Outcome.CANCELLED, Outcome.PRUNED})),
}
#: Height of the line of a worker.
LINE_HEIGHT = 26


def timeline(database: Database, search_id: int, *, most: int = MOST) -> plotly.graph_objects.Figure:
    """Draw the attempts at the trials of a search, on a line for each worker process.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id.
    most : int, default=2000
        Attempts that are drawn at most: those at the trials that started last.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    NothingToDrawError
        If no trial was started yet.
    """
    search = reader.find_search(database, search_id)
    newest = (
        select(Trial.id)
        .where(Trial.search_id == search_id, Trial.started_at.is_not(None))
        .order_by(Trial.started_at.desc())
        .limit(most)
    )
    query = _attempts(database).where(Attempt.trial_id.in_(newest))
    rows = _read(database, query.order_by(Attempt.started_at.desc()).limit(most))
    if not rows:
        raise NothingToDrawError(f"no trial of search {search.name!r} was started yet")
    note = f"the newest {len(rows):,}" if len(rows) >= most else count(len(rows), "attempt")
    return _drawn(rows, f"Attempts at trials of {text(search.name)}", note)


def fleet_timeline(database: Database, *, last_s: float = 3_600, most: int = MOST) -> plotly.graph_objects.Figure:
    """Draw what the workers did in the last hour, and what they do now.

    Parameters
    ----------
    database : Database
        The fleet's.
    last_s : float, default=3600
        Seconds to look back.
    most : int, default=2000
        Attempts that are drawn at most: the newest.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    NothingToDrawError
        If nothing ran in that time.
    """
    # in the order of an index, for there may be a hundred thousand of an hour
    ended = _attempts(database).where(Attempt.ended_at > now(-last_s)).order_by(Attempt.ended_at.desc()).limit(most)
    running = _attempts(database).where(Attempt.ended_at.is_(None), Attempt.trial_id.in_(select(Lease.trial_id)))
    rows = sorted([*_read(database, ended), *_read(database, running.limit(most))], key=lambda row: row.started_at)
    if not rows:
        raise NothingToDrawError(f"no worker did anything in the last {rounded(last_s)}")
    note = f"the newest {len(rows):,}" if len(rows) >= most else count(len(rows), "attempt")
    return _drawn(rows[-most:], f"The last {rounded(last_s)}", note)


def _attempts(database: Database) -> Select[Any]:
    seconds = seconds_between(database.dialect, Attempt.started_at, func.coalesce(Attempt.ended_at, now()))
    return (
        select(
            Search.name,
            Trial.number,
            Attempt.attempt,
            Attempt.worker_id,
            Attempt.started_at,
            Attempt.outcome,
            func.substr(Attempt.error, func.length(Attempt.error) - 999).label("error"),
            seconds.label("seconds"),
        )
        .join(Trial, Trial.id == Attempt.trial_id)
        .join(Search, Search.id == Trial.search_id)
    )


def _read(database: Database, query: Select[Any]) -> Sequence[Any]:
    with database.read() as connection:
        return connection.execute(query).all()


def _drawn(rows: Sequence[Any], title: str, note: str) -> plotly.graph_objects.Figure:
    go = graph_objects()
    workers = {worker: place for place, worker in enumerate(sorted({row.worker_id for row in rows}, reverse=True))}
    figure = go.Figure()
    for kind, (colour, outcomes) in KINDS.items():
        of_kind = [row for row in rows if row.outcome in outcomes]
        if of_kind:
            figure.add_bar(
                orientation="h",
                base=[row.started_at.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] for row in of_kind],
                x=[max(float(row.seconds), 0.05) * 1_000 for row in of_kind],
                y=[workers[row.worker_id] for row in of_kind],
                marker={"color": colour, "line": {"width": 0.5, "color": "white"}},
                name=kind,
                hovertext=list(map(_hover, of_kind)),
                hoverinfo="text",
            )
    figure.update_xaxes(type="date", title_text="time (UTC)")
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(workers.values()),
        ticktext=[text(worker, 30) for worker in workers],
        title_text="worker process",
    )
    titled(figure, title, f"{note} by {count(len(workers), 'worker process')}")
    return figure.update_layout(barmode="overlay", height=max(300, LINE_HEIGHT * len(workers) + 170))


def _hover(row: Any) -> str:
    what = f"{text(row.name, 40)}, trial {row.number}"
    tried = f", attempt {row.attempt}" if row.attempt > 1 else ""
    why = f"<br>{text(shortened(plain(cause(row.error)), 120), 120)}" if row.error else ""
    return f"{what}{tried}: {text(row.outcome or 'running')}, {float(row.seconds):.3g} s{why}"
