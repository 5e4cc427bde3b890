"""docs/sql.md: its queries run on both databases, its outputs and its reference are true."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from gridfleet.scheduler.cli import sql
from gridfleet.storage.outcome import Outcome
from gridfleet.storage.schema import VIEWS, Base
from tests.stored_searches import prune_two, store_pima

TEXT = (Path(__file__).parents[2] / "docs" / "sql.md").read_text()
#: Title, query and output of each example.
EXAMPLES = re.findall(r"^### \d+\. (.*?)\n.*?```sql\n(.*?)\n```\n\n```text\n(.*?)\n```", TEXT, re.DOTALL | re.MULTILINE)


def _columns_in_docs(name: str) -> list[str]:
    section = TEXT.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
    if name in VIEWS:
        return re.findall(r"`(\w+)`", section.partition("Columns:")[2])
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_there_are_eleven_queries():
    assert len(EXAMPLES) == TEXT.count("```sql") == 11


@pytest.mark.parametrize(("title", "query", "output"), EXAMPLES, ids=[title for title, _, _ in EXAMPLES])
def test_each_query_runs_and_prints_what_the_docs_show(title, query, output, database, database_settings):
    search_id = store_pima(database_settings, database)
    if "reports" in query:
        prune_two(database, search_id)

    with sql.run(database, query) as result:
        printed = io.StringIO()
        sql.write(result, printed, style="table")

    lines = [" ".join(line.split()) for line in printed.getvalue().splitlines()]
    documented = [" ".join(line.split()) for line in output.splitlines()]
    # the docs' own database has a second, running search; jsonb orders keys by their length
    documented = [line for line in documented if "pima-wide" not in line]
    assert list(map(_sorted_json, lines)) == list(map(_sorted_json, documented))


def _sorted_json(line: str) -> str:
    return re.sub(r"\{(.*?)\}", lambda found: "{" + ", ".join(sorted(found[1].split(", "))) + "}", line)


def test_each_outcome_of_an_attempt_has_its_sentence():
    listed = re.findall(
        r"^\| `(\w+)` \|", TEXT.partition("| outcome | the attempt |")[2].partition("\n```")[0], re.MULTILINE
    )

    assert listed == [str(outcome) for outcome in Outcome]


def test_the_reference_has_every_column_of_every_table(database):
    for table in Base.metadata.sorted_tables:
        assert _columns_in_docs(table.name) == [column.name for column in table.columns], table.name


@pytest.mark.parametrize("view", VIEWS)
def test_the_reference_has_every_column_of_every_view(view, database):
    with database.read() as connection:
        columns = connection.execute(text(f"SELECT * FROM {view}")).keys()

    assert _columns_in_docs(view) == list(columns)


def test_the_reference_names_every_view_of_the_schema(database):
    with database.read() as connection:
        assert set(inspect(connection).get_view_names()) == set(VIEWS)
