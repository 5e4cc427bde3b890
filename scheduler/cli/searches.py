"""The commands that queue a search and steer it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gridfleet.scheduler.cli.connected import ProgressOption, choose_progress, find_search, open_results
from gridfleet.scheduler.cli.output import INTERRUPTED, say, show
from gridfleet.scheduler.cli.which_search import WholeName

if TYPE_CHECKING:
    from gridfleet.scheduler.results.handle import SearchHandle


def submit(
    file: Annotated[Path, typer.Argument(help="The search file (YAML).", show_default=False)],
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and the best score.")] = False,
    exist_ok: Annotated[bool, typer.Option("--exist-ok", help="Do nothing if the name is taken already.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search of that name, if it is the same.")
    ] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Take the results of trials that were computed before.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="The search's name instead of the file's.", show_default=False)
    ] = None,
    progress: ProgressOption = None,
) -> None:
    """Queue the search that a YAML file describes."""
    from gridfleet.scheduler.search_file import submit as file_submission

    choose_progress(progress)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    submitted = file_submission.submit_file(file, name=name, exist_ok=exist_ok, resume=resume, reuse=reuse)
    handle = submitted.handle
    if submitted.is_new:
        show(f"search {handle.name} is queued: {handle.progress().total} trials")
    else:
        from gridfleet.storage.search_states import described

        show(f"search {handle.name} is there already: {described(handle.state)}")
    if wait:
        _wait(handle)
    elif submitted.stops_with_us:
        say("no fleet runs in this folder; `gridfleet up` starts one and the search with it, --wait runs it here")


def cancel(name: WholeName) -> None:
    """Cancel a search.

    Queued trials end at once, running ones as soon as their workers see it.
    """
    from gridfleet.storage import searches

    search, database = find_search(name)
    if searches.cancel_search(database, search.id):
        show(f"search {search.name} is cancelled")
    else:
        show(f"search {search.name} has ended already ({search.shown_state}); nothing to cancel")


def pause(name: WholeName) -> None:
    """Pause a search.

    None of its trials starts any more; those that run go on to their end.
    """
    from gridfleet.storage import searches

    search, database = find_search(name)
    if searches.pause_search(database, search.id):
        show(f"search {search.name} is paused; `gridfleet resume {shlex.quote(search.name)}` goes on with it")
    else:
        show(f"search {search.name} is {search.shown_state} already; nothing to pause")


def resume(name: WholeName) -> None:
    """Go on with a paused search."""
    from gridfleet.storage import searches

    search, database = find_search(name)
    if searches.resume_search(database, search.id):
        show(f"search {search.name} goes on")
    else:
        show(f"search {search.name} is {search.shown_state}, not paused; nothing to resume")


def priority(
    name: WholeName,
    value: Annotated[int, typer.Argument(metavar="PRIORITY", help="From -1000 to 1000.", show_default=False)],
) -> None:
    """Let a search start before those with a lower priority.

    From the next claim on; what runs goes on to its end. A search has 0 unless it was given another one. Those with the
    same priority share the fleet.
    """
    from gridfleet.storage import searches

    searches.check_priority(value)
    search, database = find_search(name)
    if searches.set_priority(database, search.id, value):
        show(f"search {search.name} has the priority {value}")
    else:
        show(f"search {search.name} has ended already ({search.shown_state}); its priority stays")


def retry_failed(name: WholeName) -> None:
    """Queue the trials of a search that failed once more.

    They begin anew, with their whole budget of failures; the story of their attempts stays.
    """
    from gridfleet.storage import searches

    search, database = find_search(name)
    n_trials = searches.retry_failed(database, search.id)
    if n_trials:
        queued = "1 trial that failed is" if n_trials == 1 else f"{n_trials:,} trials that failed are"
        show(f"search {search.name}: {queued} queued again")
    else:
        show(f"search {search.name} is {search.shown_state} and has no trial to try again")


def _wait(handle: SearchHandle) -> None:
    from gridfleet.scheduler.reports import tables as reports
    from gridfleet.scheduler.results.going_on import what_goes_on

    try:
        handle.wait(verbose=1)
    except KeyboardInterrupt:
        words = what_goes_on(handle._fleet, handle.id, handle.name, in_script=False)
        typer.echo(f"gridfleet: stopped waiting; {words}", err=True)
        sys.exit(INTERRUPTED)
    if not reports.print_best_line(open_results().database, handle.id):
        sys.exit(1)
