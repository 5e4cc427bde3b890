"""``gridfleet sql``: what it shows, that it changes nothing, and that it ends."""

from __future__ import annotations

import csv
import io
import itertools
import json

import pytest
from sqlalchemy import text

from gridfleet.scheduler.cli import sql
from gridfleet.storage.errors import QueryError


def test_sql_as_table_csv_and_json(gridfleet, pima):
    query = 'SELECT optimizer, batch_size, mean_test_score FROM "pima" WHERE number = 1;'

    assert gridfleet("sql", query)[1].split() == [
        "optimizer", "batch_size", "mean_test_score", "adam", "20", "0.75",
    ]  # fmt: skip
    assert gridfleet("sql", query, "--csv")[1] == "optimizer,batch_size,mean_test_score\nadam,20,0.75\n"
    assert json.loads(gridfleet("sql", query, "--json")[1]) == [
        {"optimizer": "adam", "batch_size": 20, "mean_test_score": 0.75}
    ]
    assert gridfleet("sql", query, "--csv", "--json")[0] == 2


def test_sql_gives_json_times_and_nulls_alike_on_both_databases(gridfleet, pima):
    query = "SELECT params, error_type, created_at, cancel_requested AS c FROM trials WHERE number = 0"

    (row,) = json.loads(gridfleet("sql", query, "--json")[1])

    assert row["params"] == {"optimizer": "adam", "batch_size": 10}
    assert row["error_type"] is None
    assert row["created_at"][10] == " "
    assert row["created_at"].endswith("+00:00")
    assert not row["c"]


def test_percent_signs_in_sql_are_no_placeholders(gridfleet, pima):
    assert gridfleet("sql", "SELECT name FROM searches WHERE name LIKE 'p%s' OR name LIKE '%im%'", "--csv")[:2] == (
        0,
        "name\npima\n",
    )


@pytest.mark.parametrize("text_", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "plain", "it's"])
def test_csv_cells_are_no_formulas_and_numbers_stay_numbers(gridfleet, pima, text_):
    shown = gridfleet("sql", f"SELECT '{text_.replace(chr(39), chr(39) * 2)}' AS t, -1 AS i, -0.5 AS f", "--csv")[1]

    (_, row) = csv.reader(io.StringIO(shown, newline=""))
    assert row[0] == (text_ if text_ in ("plain", "it's") else f"'{text_}")
    assert row[1:] == ["-1", "-0.5"]


CHANGES = (
    "DELETE FROM trials",
    "UPDATE searches SET name = 'x'",
    "INSERT INTO curves VALUES (1, 0, 'x', '{0}')",
    "CREATE TABLE x (y INTEGER)",
    "DROP VIEW leaderboard",
    "SELECT 1; DELETE FROM curves",
    "COMMIT; DELETE FROM curves",
    "COMMIT",
    "WITH gone AS (DELETE FROM curves RETURNING *) SELECT * FROM gone",
    "SET default_transaction_read_only = off",
    "SET TRANSACTION READ WRITE",
    "COPY (SELECT 1) TO PROGRAM 'touch stolen'",
    "COPY (SELECT 1) TO '/tmp/gridfleet-stolen'",
    "DO $$ BEGIN DELETE FROM curves; END $$",
    "SELECT lo_from_bytea(0, 'x')",
    "PRAGMA query_only = OFF",
    "PRAGMA journal_mode = DELETE",
    "ATTACH DATABASE 'stolen.db' AS stolen",
    "VACUUM INTO 'stolen.db'",
    "SELECT load_extension('x')",
    "",
    " ; ",
    "SELECT * FROM nowhere",
)


def test_sql_can_change_nothing(gridfleet, pima, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = _everything(database)

    for query in CHANGES:
        status, shown, said = gridfleet("sql", query)

        assert (status, shown) == (1, ""), query
        assert said.startswith("gridfleet: ")
        assert said.count("\n") == 1
        assert _everything(database) == before, query
        assert not list(tmp_path.glob("stolen*")), query


def _everything(database):
    tables = ("searches", "trials", "split_scores", "curves", "trial_warnings", "attempts", "workers", "payloads")
    with database.read() as connection:
        return {table: connection.execute(text(f"SELECT * FROM {table}")).all() for table in tables}


def test_a_query_that_takes_too_long_is_stopped(pima, database, monkeypatch):
    monkeypatch.setattr("gridfleet.scheduler.reports.query.TIMEOUT_S", 0.05)
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c"

    with pytest.raises(QueryError, match="took longer"), sql.run(database, endless) as result:
        list(result.rows)


def test_all_fetches_of_a_query_together_have_one_time_limit(pima, database, monkeypatch):
    monkeypatch.setattr("gridfleet.scheduler.reports.query.TIMEOUT_S", 0.1)
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"

    with pytest.raises(QueryError, match="took longer"), sql.run(database, endless) as result:
        sum(1 for _ in itertools.islice(result.rows, 5_000_000))


@pytest.mark.parametrize("backend", ["postgresql"])
@pytest.mark.parametrize(
    "lift",
    [
        "set_config('statement_timeout', '0', false)",
        "set_config('statement_timeout', '0', true)",
        # a shorter one switches statement_timeout off where a statement begins
        "CASE g WHEN 1 THEN set_config('transaction_timeout', '900ms', false) "  # noqa: ISC004
        "WHEN 1001 THEN set_config('transaction_timeout', '0', false) END",
    ],
)
def test_a_query_can_not_lift_its_time_limit(pima, database, monkeypatch, lift):
    monkeypatch.setattr("gridfleet.scheduler.reports.query.TIMEOUT_S", 1)
    query = f"SELECT {lift}, CASE WHEN g > 1000 THEN pg_sleep(20) END FROM generate_series(1, 1001) AS g"

    with pytest.raises(QueryError, match="took longer"), sql.run(database, query) as result:
        list(result.rows)
