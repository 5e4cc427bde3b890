"""How commands are told which search is meant, and how a shell completes its name."""

from __future__ import annotations

from typing import Annotated

import typer

#: Names that a shell is offered.
OFFERED = 100
#: What an argument says of itself that names a search.
ANY = "The search: its name, the beginning of it, its id, or @latest"
WHOLE = "The search: its whole name, its id, or @latest."


def names(incomplete: str) -> list[str]:
    """Return the names that begin so, the newest first; a shell shows no errors, so there are none."""
    try:
        from gridfleet.scheduler.fleet.connection import read_only
        from gridfleet.scheduler.reports import reader

        searches = reader.list_searches(read_only().database, limit=OFFERED)
    except Exception:  # noqa: BLE001 - no fleet, no database, wrong settings: nothing to offer
        return []
    return [search.name for search in searches if search.name.lower().startswith(incomplete.lower())]


#: For what only reads: the latest search if none is named.
AnySearch = Annotated[
    str | None, typer.Argument(help=f"{ANY}; default: the latest.", show_default=False, autocompletion=names)
]
#: For what only reads and has further arguments.
NamedSearch = Annotated[str, typer.Argument(help=f"{ANY}.", show_default=False, autocompletion=names)]
#: For what changes something: nobody cancels a search by the beginning of its name.
WholeName = Annotated[str, typer.Argument(help=WHOLE, show_default=False, autocompletion=names)]
