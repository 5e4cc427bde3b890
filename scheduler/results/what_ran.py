"""What a search ran, for people: where its code is from, on what it was evaluated, its packages and source text."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.plain import plain, plain_lines
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import GridfleetError, first_line
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.sources.archive import unpack
from gridfleet.storage.texts import sources_of, text_of
from gridfleet.worker.trial.sources import KIND as SOURCES


def print_what_ran(fleet: Fleet, name: str | int) -> None:
    """Print commit, machines, packages and source text of a search.

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    search = reader.find_search(fleet.database, name)
    lines = describe_what_ran(fleet.database, search.id)
    if search.sources_digest is not None:
        lines += _modules(fleet, search.sources_digest)
    for line in lines:
        print(line)  # noqa: T201 - the command's output


def describe_what_ran(database: Database, search_id: int) -> list[str]:
    """Return what a search ran, line by line."""
    environment = Trial.environment_digest
    evaluated = select(environment, func.count().label("n")).where(
        Trial.search_id == search_id, environment.is_not(None)
    )
    with database.read() as connection:
        of_search = select(Search.git_commit, Search.git_dirty, Search.packages_digest).where(Search.id == search_id)
        search = connection.execute(of_search).one()
        machines = connection.execute(evaluated.group_by(environment).order_by(func.count().desc())).all()
    lines = [f"# commit: {_commit(search.git_commit, search.git_dirty)}"]
    for row in machines:
        lines.append(f"# {row.n} trials were evaluated on")
        lines += _indented(text_of(database, row.environment_digest))
    lines.append("# packages where it was submitted")
    lines += _indented(text_of(database, search.packages_digest))
    for name, text in sources_of(database, search_id).items():
        lines += ["", f"# source: {plain(name)}", *plain_lines(text or "# not to be had").splitlines()]
    return lines


def _modules(fleet: Fleet, digest: str) -> list[str]:
    """Return the source of the script's own modules, out of their payload."""
    try:
        archive, _ = fleet.payloads.get(SOURCES, digest)
        files = unpack(archive)
    except (GridfleetError, DBAPIError) as error:  # a reader's role may read no payloads, and has no key
        return ["", f"# the script's modules travelled too, which can't be read here: {plain(first_line(error))}"]
    lines = []
    for name in sorted(files):
        if name.endswith(".py"):
            text = files[name].decode(errors="replace")
            lines += ["", f"# module: {plain(name)}", *plain_lines(text).splitlines()]
    return lines


def _commit(commit: str | None, is_dirty: bool | None) -> str:
    if commit is None:
        return "none: the script's folder is in no git repository, or git did not say"
    state = {True: ", and tracked files were changed since", False: ", and no tracked file was changed", None: ""}
    return plain(commit) + state[is_dirty]


def _indented(text: str | None) -> list[str]:
    return [f"#   {line}" for line in plain_lines(text or "not known").splitlines()]
