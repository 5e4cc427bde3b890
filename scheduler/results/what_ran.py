"""What a search ran: where its code is from, on what it was evaluated, its packages and source text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports.plain import plain, plain_lines
from gridfleet.storage.errors import GridfleetError, first_line
from gridfleet.storage.schema import Search, Trial
from gridfleet.storage.sources.archive import unpack
from gridfleet.storage.texts import sources_of, text_of
from gridfleet.worker.trial.sources import KIND as SOURCES


@dataclass(frozen=True, slots=True)
class WhatRan:
    """What is recorded of the code of a search, and of what evaluated it.

    Parameters
    ----------
    git_commit, git_dirty
        Of the script's folder, as in ``searches``.
    environments : sequence of (int, str or None)
        How many trials were evaluated on what, as a worker told it (JSON); the most frequent first.
    packages : str or None
        Those where it was submitted, a line each.
    sources : mapping of str to str or None
        Source texts of functions and classes that travelled, by name; None where it could not be had.
    modules : mapping of str to str, or None
        The script's own modules, by their file; None where they can't be read.
    why_no_modules : str, default=""
        Why not.
    """

    git_commit: str | None
    git_dirty: bool | None
    environments: Sequence[tuple[int, str | None]]
    packages: str | None
    sources: Mapping[str, str | None]
    modules: Mapping[str, str] | None
    why_no_modules: str = ""

    def lines(self) -> list[str]:
        """Return it for people, line by line."""
        lines = [f"# commit: {_commit(self.git_commit, self.git_dirty)}"]
        for n_trials, environment in self.environments:
            lines += [f"# {n_trials} trials were evaluated on", *_indented(environment)]
        lines += ["# packages where it was submitted", *_indented(self.packages)]
        for name, text in self.sources.items():
            lines += ["", f"# source: {plain(name)}", *plain_lines(text or "# not to be had").splitlines()]
        for name, text in (self.modules or {}).items():
            lines += ["", f"# module: {plain(name)}", *plain_lines(text).splitlines()]
        if self.modules is None:
            lines += [
                "",
                f"# the script's modules travelled too, which can't be read here: {plain(self.why_no_modules)}",
            ]
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON types; what workers told is read where it is JSON, as it is where it is not."""
        return {
            "git_commit": self.git_commit,
            "git_dirty": self.git_dirty,
            "environments": [{"n_trials": n, "environment": _parsed(text)} for n, text in self.environments],
            "packages": None if self.packages is None else self.packages.splitlines(),
            "sources": dict(self.sources),
            "modules": None if self.modules is None else dict(self.modules),
        }


def what_ran(fleet: Fleet, search_id: int) -> WhatRan:
    """Read what a search ran."""
    database = fleet.database
    environment = Trial.environment_digest
    evaluated = select(environment, func.count().label("n")).where(
        Trial.search_id == search_id, environment.is_not(None)
    )
    columns = (Search.git_commit, Search.git_dirty, Search.packages_digest, Search.sources_digest)
    with database.read() as connection:
        search = connection.execute(select(*columns).where(Search.id == search_id)).one()
        machines = connection.execute(evaluated.group_by(environment).order_by(func.count().desc())).all()
    modules, why_no_modules = _modules(fleet, search.sources_digest)
    return WhatRan(
        search.git_commit,
        search.git_dirty,
        [(row.n, text_of(database, row.environment_digest)) for row in machines],
        text_of(database, search.packages_digest),
        sources_of(database, search_id),
        modules,
        why_no_modules,
    )


def _modules(fleet: Fleet, digest: str | None) -> tuple[dict[str, str] | None, str]:
    """Return the source of the script's own modules, out of their payload, or None and why they can't be read."""
    if digest is None:
        return {}, ""
    try:
        archive, _ = fleet.payloads.get(SOURCES, digest)
        files = unpack(archive)
    except (GridfleetError, DBAPIError) as error:  # a reader's role may read no payloads, and has no key
        return None, first_line(error)
    return {name: files[name].decode(errors="replace") for name in sorted(files) if name.endswith(".py")}, ""


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:  # a worker may have told anything
        return text


def _commit(commit: str | None, is_dirty: bool | None) -> str:
    if commit is None:
        return "none: the script's folder is in no git repository, or git did not say"
    state = {True: ", and tracked files were changed since", False: ", and no tracked file was changed", None: ""}
    return plain(commit) + state[is_dirty]


def _indented(text: str | None) -> list[str]:
    return [f"#   {line}" for line in plain_lines(text or "not known").splitlines()]
