"""What a script is told of a search that it leaves before its end."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.storage.errors import GridfleetError


def say_how_to_go_on(fleet: Fleet, handle: SearchHandle) -> None:
    """Say whether a search goes on without this process, and how to get it back."""
    progress = handle.progress()
    done = f"{progress.done} of {progress.total} trials done"
    again = f"from gridfleet import open_search; open_search({handle.name!r}).wait()"
    if fleet.is_embedded and fleet.settings.linger_s:
        said = (
            f"search {handle.name!r} goes on for {fleet.settings.linger_s:g} s after this process ({done}); "
            f"to get it back: {again}; to stop it: `gridfleet down`"
        )
    elif fleet.is_embedded and client.ends_with_this_process(fleet.settings):
        said = f"search {handle.name!r} stops with this process ({done}); to resume it here: {again}, or `gridfleet up`"
    else:
        said = f"search {handle.name!r} goes on on the fleet ({done}); to get it back: {again}"
    print(f"\ngridfleet: {said}", file=sys.stderr)  # noqa: T201 - for whoever waits at the terminal


def say_at_exit_if_it_stops(fleet: Fleet, handle: SearchHandle) -> None:
    """Let this process say at its end that a search, which it submitted and did not wait for, stops with it."""
    process_id = os.getpid()

    def say() -> None:
        if os.getpid() != process_id or not client.ends_with_this_process(fleet.settings):
            return
        with suppress(GridfleetError, SQLAlchemyError):  # at its end, what can't be read is nobody's concern
            if handle._goes_on():
                say_how_to_go_on(fleet, handle)

    if fleet.is_embedded and not fleet.settings.linger_s:
        atexit.register(say)
