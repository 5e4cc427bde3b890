"""The addresses of searches and trials: a name may hold any character, a slash among them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Scope

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.reader import SearchSummary
from gridfleet.storage.errors import SearchNotFoundError, TrialNotFoundError

#: Larger numbers than PostgreSQL's integers have no trial.
MAX_NUMBER = 2**31 - 1


class _Name(Convertor[str]):
    """One segment of a path as it was sent, with its slashes and spaces still encoded."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value, errors="replace")

    def to_string(self, value: str) -> str:
        return quote(value, safe="")


register_url_convertor("name", _Name())


class SearchRoute(Route):
    """A route with ``{search:name}``, compared with the path as it was sent: decoded, a name's slash is like any."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Compare the path."""
        sent = scope.get("raw_path")
        if sent:
            scope = {**scope, "path": sent.decode("ascii", "replace").partition("?")[0]}
        return super().matches(scope)


def search_url(name: str) -> str:
    """Return the address of a search's page."""
    return f"/searches/{quote(name, safe='')}"


def trial_url(name: str, number: int) -> str:
    """Return the address of a trial's page."""
    return f"{search_url(name)}/trials/{number}"


def figure_url(search: str, kind: str, /, **parameters: Any) -> str:
    """Return the address of a search's figure."""
    given = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in parameters.items() if value is not None)
    return f"{search_url(search)}/figures/{kind}.json" + (f"?{given}" if given else "")


def asked_search(request: Request) -> SearchSummary:
    """Return the search whose name, or whose id, stands in the address.

    Raises
    ------
    SearchNotFoundError
        If there is none; its sentence has the nearest name.
    """
    name = request.path_params["search"]
    return find(request, name)


def find(request: Request, name: str) -> SearchSummary:
    """Return a search by its name or its id; raises as `asked_search` does."""
    database = request.app.state.database
    # ids, for proxies that decode a name's slashes; names that `submit` takes begin with a letter
    if name.isascii() and name.isdecimal() and len(name) < len(str(reader.MAX_ID)):
        try:
            return reader.find_search(database, int(name))
        except SearchNotFoundError:
            pass
    return reader.find_search(database, name)


def asked_number(request: Request, search: SearchSummary) -> int:
    """Return the number of the trial that stands in the address.

    Raises
    ------
    TrialNotFoundError
        If it is none that a trial can have.
    """
    asked = request.path_params["number"]
    if asked.isascii() and asked.isdecimal() and len(asked) <= len(str(MAX_NUMBER)) and int(asked) <= MAX_NUMBER:
        return int(asked)
    last = search.n_trials - 1
    raise TrialNotFoundError(f"search {search.name} has no trial {asked[:40]}; its trials are 0 to {last}")
