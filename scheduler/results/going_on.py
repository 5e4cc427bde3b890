"""What somebody is told of a search that they leave before its end: whether it goes on, and what to do next."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.plain import plain
from gridfleet.storage.errors import GridfleetError
from gridfleet.storage.search_states import ShownState

#: Searches of which this process said at Ctrl-C what becomes of them, by their ids.
_said: set[int] = set()


def stopped_waiting(fleet: Fleet, search_id: int, name: str) -> KeyboardInterrupt:
    """Return what Ctrl-C raises while a search is waited for: Python shows its words last, a notebook only them."""
    words = f"stopped waiting; {what_goes_on(fleet, search_id, name)}"
    _said.add(search_id)
    return _interrupt(words)


@contextmanager
def nothing_stored_yet() -> Iterator[None]:
    """Let Ctrl-C say, as above, that nothing is stored: a fleet that starts takes some seconds."""
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupt("stopped before anything was stored") from None


def _interrupt(words: str) -> KeyboardInterrupt:
    interrupt = KeyboardInterrupt(words)  # and no class of its own, or Python would not end as after Ctrl-C
    interrupt._render_traceback_ = words.splitlines  # type: ignore[attr-defined]
    return interrupt


def what_goes_on(fleet: Fleet, search_id: int, name: str, *, in_script: bool = True) -> str:
    """Say whether a search goes on without this process, and how to follow it, stop it or go on with it.

    Parameters
    ----------
    fleet : Fleet
        Where it is.
    search_id : int
        Its id.
    name : str
        Its name.
    in_script : bool, default=True
        Whether a script waits for it, and not a command.
    """
    progress = None
    with suppress(GridfleetError, SQLAlchemyError):  # the database may be why somebody does not want to wait
        progress = reader.progress(fleet.database, search_id)
    what = plain(name)
    if progress is not None and progress.is_finished:
        what = f"the refit of {what}"
    done = "" if progress is None else f" ({progress.scored:,}/{progress.total:,})"
    quoted = plain(shlex.quote(name))
    watch, cancel = f"gridfleet watch {quoted}", f"gridfleet cancel {quoted}"
    if _is_interactive() and in_script:
        opened = f"import gridfleet; gridfleet.open_search({name!r})"
        watch, cancel = f"{opened}.wait(verbose=1)", f"{opened}.cancel()"
    ways = {"to follow it": watch, "to stop it": cancel}
    if progress is not None and progress.is_paused:
        return _text(f"{what} is paused{done}", {"to go on with it": f"gridfleet resume {quoted}"})
    if not fleet.is_embedded and progress is not None and progress.state == ShownState.WAITING:
        return _text(f"{what} waits on the fleet, which has no worker now{done}", ways)
    stops, until = _end_of_fleet(fleet)
    if not stops:
        return _text(f"{what} still runs {'here' if fleet.is_embedded else 'on the fleet'}{done}{until}", ways)
    if not in_script:
        return _text(f"{what} {until}{done}", {"to go on with it": "gridfleet up"})
    again = f"name={name!r}, load_if_exists=True"
    return _text(f"{what} {until}{done}", {"to go on in a script": again, "to go on without one": "gridfleet up"})


def _end_of_fleet(fleet: Fleet) -> tuple[bool, str]:
    """Return whether a search stops now, and until when else the fleet is there that has it."""
    if not fleet.is_embedded:
        return False, ""
    owner = client.owner(fleet.settings)
    if owner is None:
        return True, "waits for a fleet"
    if fleet.settings.linger_s:
        return False, f", for {fleet.settings.linger_s:g} s after the last script"
    if owner == client.UP:
        return False, ""
    if owner != os.getpid():
        return False, ", until the script ends that started the fleet"
    return (False, ", until this Python ends") if _is_interactive() else (True, "stops with this process")


def _is_interactive() -> bool:
    """Whether this is a notebook or a console, which does not end at Ctrl-C; IPython sets it as Python does."""
    return hasattr(sys, "ps1")


def _text(sentence: str, ways: dict[str, str]) -> str:
    width = max(map(len, ways)) + 1
    return "\n".join([sentence, *(f"  {f'{label}:':<{width}}  {command}" for label, command in ways.items())])


def say_at_exit_if_it_stops(fleet: Fleet, search_id: int, name: str, goes_on: Callable[[], bool]) -> None:
    """Let this process say at its end that a search, which it submitted and did not wait for, stops with it."""
    process_id = os.getpid()

    def say() -> None:
        if os.getpid() != process_id or search_id in _said or client.owner(fleet.settings) != process_id:
            return
        with suppress(GridfleetError, SQLAlchemyError):  # at its end, what can't be read is nobody's concern
            if goes_on():
                words = what_goes_on(fleet, search_id, name)
                print(f"gridfleet: {words}", file=sys.stderr)  # noqa: T201 - for whoever waits at the terminal

    if fleet.is_embedded and not fleet.settings.linger_s:
        atexit.register(say)
