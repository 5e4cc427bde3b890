"""Learning curves of before 0016, a row for each point, become arrays: batch by batch, and on from where it ended."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import retried
from gridfleet.storage.errors import SchemaVersionError

#: Trials of the first batch, and of the largest.
FIRST_BATCH = 200
LARGEST_BATCH = 10_000
#: Seconds of a batch above which the next one is half as large, and below which it is twice as large.
SLOW_S = 3.0
QUICK_S = 1.0
#: Seconds between two words on how far it is.
SAY_S = 5.0

_METADATA = sa.MetaData()
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TRIALS = sa.Table("trials", _METADATA, sa.Column("id", _ID, primary_key=True), sa.Column("state", sa.String()))
_EPOCHS = sa.Table(
    "epochs", _METADATA, *(sa.Column(name) for name in ("trial_id", "split", "epoch", "metric", "value"))
)
_CURVES = sa.Table(
    "curves",
    _METADATA,
    sa.Column("trial_id", _ID, sa.ForeignKey("trials.id", name="fk_curves_trial_id"), autoincrement=False),
    sa.Column("split", sa.Integer(), autoincrement=False),
    sa.Column("metric", sa.Text()),
    sa.Column(
        "values",
        sa.JSON().with_variant(postgresql.ARRAY(sa.Double()), "postgresql"),
        nullable=False,
        comment="one an epoch, from 0 on; NULL: not finite",
    ),
    sa.PrimaryKeyConstraint("trial_id", "split", "metric", name="pk_curves"),
)

# the rare curve with a gap, where Keras noted something that is no number, gets a NULL there
_CONVERT = sa.text("""
INSERT INTO curves (trial_id, split, metric, values)
SELECT trial_id, split, metric,
       CASE WHEN last_epoch + 1 = n THEN found ELSE (
            SELECT array_agg(e.value ORDER BY every.epoch)
              FROM generate_series(0, last_epoch) AS every(epoch)
              LEFT JOIN epochs e
                ON (e.trial_id, e.split, e.epoch, e.metric) = (c.trial_id, c.split, every.epoch, c.metric)
       ) END
  FROM (SELECT trial_id, split, metric,
               max(epoch) AS last_epoch, count(*) AS n, array_agg(value ORDER BY epoch) AS found
          FROM epochs WHERE trial_id = ANY(:trial_ids) GROUP BY trial_id, split, metric) c
""")
_VIEWS_OF_EPOCHS = sa.text("""
SELECT DISTINCT view.oid::regclass::text
  FROM pg_depend
  JOIN pg_rewrite ON pg_rewrite.oid = pg_depend.objid
  JOIN pg_class view ON view.oid = pg_rewrite.ev_class
 WHERE pg_depend.classid = 'pg_rewrite'::regclass AND pg_depend.refobjid = 'epochs'::regclass
 ORDER BY 1
""")


def convert_completed(database: Database, lock: Callable[[sa.Connection], None], *, say: Callable[[str], None]) -> None:
    """Convert the curves of completed trials, which change no more, while ``epochs`` is still a table of rows.

    Each batch is a transaction of its own: whoever is interrupted goes on where it ended, and may go back to the
    release of before. Migration 0016 converts what is left.

    Parameters
    ----------
    database : Database
        Of any revision.
    lock : callable
        Lets one process migrate at a time, until the end of a transaction.
    say : callable
        Is told how far it is, where that takes its time.

    Raises
    ------
    SchemaVersionError
        If somebody's view, in PostgreSQL, shows the table that is to go.
    """
    after, n_trials, said_at = 0, FIRST_BATCH, time.monotonic()
    while True:
        began = time.monotonic()
        done = _next_batch(database, lock, after, n_trials)
        if done is None:
            return
        after, last = done
        ended = time.monotonic()
        if ended - said_at > SAY_S:
            say(f"learning curves become arrays: those of {after:,} of {last:,} trials")
            said_at = ended
        n_trials = _next_size(n_trials, ended - began)


@retried
def _next_batch(
    database: Database, lock: Callable[[sa.Connection], None], after: int, n_trials: int
) -> tuple[int, int] | None:
    """Convert some trials behind those that are done; returns the last one's id and the greatest; None at the end."""
    with database.write() as connection:
        lock(connection)
        if "epochs" not in sa.inspect(connection).get_table_names():  # none yet, or another process was quicker
            return None
        if after == 0:
            _make_table(connection)
        done = connection.execute(sa.select(sa.func.max(_CURVES.c.trial_id))).scalar() or 0
        completed = (
            sa.select(_TRIALS.c.id)
            .where(_TRIALS.c.id > max(after, done), _TRIALS.c.state == "completed")
            .order_by(_TRIALS.c.id)
            .limit(n_trials)
        )
        trial_ids = connection.execute(completed).scalars().all()
        if not trial_ids:
            return None
        _convert(connection, trial_ids)
        return trial_ids[-1], connection.execute(sa.select(sa.func.max(_TRIALS.c.id))).scalar_one()


def convert_rest(connection: sa.Connection) -> None:
    """Convert all curves that are not converted yet, in the transaction that replaces the table ``epochs``."""
    _make_table(connection)
    after, n_trials = 0, FIRST_BATCH
    while True:
        began = time.monotonic()
        is_converted = sa.select(_CURVES.c.trial_id).where(_CURVES.c.trial_id == _TRIALS.c.id).exists()
        left = sa.select(_TRIALS.c.id).where(_TRIALS.c.id > after, ~is_converted).order_by(_TRIALS.c.id)
        trial_ids = connection.execute(left.limit(n_trials)).scalars().all()
        if not trial_ids:
            return
        _convert(connection, trial_ids)
        after = trial_ids[-1]
        n_trials = _next_size(n_trials, time.monotonic() - began)


def _next_size(n_trials: int, seconds: float) -> int:
    """Return how many trials the next batch has: a statement ends after 60 s, and others wait for its lock."""
    if seconds > SLOW_S:
        return max(1, n_trials // 2)
    return min(LARGEST_BATCH, 2 * n_trials) if seconds < QUICK_S else n_trials


def _convert(connection: sa.Connection, trial_ids: Sequence[int]) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(_CONVERT, {"trial_ids": list(trial_ids)})
        return
    # not by json_group_array, which writes 15 digits of a number
    points = (
        sa.select(*(_EPOCHS.c[name] for name in ("trial_id", "split", "metric", "epoch", "value")))
        .where(_EPOCHS.c.trial_id.in_(trial_ids))
        .order_by(_EPOCHS.c.trial_id, _EPOCHS.c.split, _EPOCHS.c.metric, _EPOCHS.c.epoch)
    )
    rows = [
        {"trial_id": trial_id, "split": split, "metric": metric, "values": _without_gaps(of_curve)}
        for (trial_id, split, metric), of_curve in itertools.groupby(connection.execute(points), lambda row: row[:3])
    ]
    if rows:
        connection.execute(sa.insert(_CURVES), rows)


def _without_gaps(points: Any) -> list[float | None]:
    values: list[float | None] = []
    for point in points:
        values += [None] * (point.epoch - len(values))  # where Keras noted something that is no number
        values.append(point.value)
    return values


def _make_table(connection: sa.Connection) -> None:
    _refuse_views(connection)
    if "curves" not in sa.inspect(connection).get_table_names():
        _make_room(connection)
        _CURVES.create(connection, checkfirst=False)


def _make_room(connection: sa.Connection) -> None:
    """Give the view of a search that is called as the new table is the name of one without a name."""
    views = (view for view in sa.inspect(connection).get_view_names() if view.lower() == "curves")
    view = next((view for view in views if view == "curves" or connection.dialect.name == "sqlite"), None)
    if view is None:
        return
    search_id = connection.execute(sa.text("SELECT id FROM searches WHERE lower(name) = 'curves'")).scalar()
    if search_id is None:
        raise SchemaVersionError(f"the view {view} is in the way of a new table; give it another name, and run again")
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f'ALTER VIEW curves RENAME TO "search-{search_id}"')
        return
    made = sa.text("SELECT sql FROM sqlite_master WHERE type = 'view' AND name = :view")
    query = connection.execute(made, {"view": view}).scalar_one().partition(" AS ")[2]
    connection.exec_driver_sql(f'DROP VIEW "{view}"')
    connection.exec_driver_sql(f'CREATE VIEW "search-{search_id}" AS {query}')


def _refuse_views(connection: sa.Connection) -> None:
    """Refuse to begin where somebody's view hangs on the table: nothing would be lost but the time until it fails."""
    if connection.dialect.name == "sqlite":  # there a view finds what it shows by its name
        return
    views = connection.execute(_VIEWS_OF_EPOCHS).scalars().all()
    if views:
        raise SchemaVersionError(
            f"the table epochs becomes a view of the same columns, and {', '.join(views)} shows it; drop that, run "
            "`gridfleet db upgrade`, and make it again"
        )
