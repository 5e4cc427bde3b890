"""The commands that keep house: tags, names, what may go, and another secret key."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from gridfleet.scheduler.cli.connected import choose_search, find_search, open_results, stored_settings
from gridfleet.scheduler.cli.output import fail, say, show
from gridfleet.scheduler.cli.which_search import WholeName
from gridfleet.scheduler.cli.which_search import names as offered

if TYPE_CHECKING:
    from gridfleet.scheduler.reports.reader import SearchSummary
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.rekeying import Rekeyed

#: Seconds of the units in which an age is given.
UNITS = {"m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
#: Seconds since which no worker was seen where SQLite's file may be written anew.
QUIET_S = 60


class Ended(StrEnum):
    """The states of searches that may go."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


def tag(
    name: WholeName,
    tags: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE sets a tag, KEY= removes it.", show_default=False)
    ] = None,
) -> None:
    """Set or remove tags of a search, or show them."""
    from gridfleet.scheduler.reports.tables import shown_tags
    from gridfleet.storage import tags as stored

    changes: dict[str, str | None] = {}
    for one in tags or ():
        key, has_value, value = one.partition("=")
        if not has_value or not stored.is_key(key):
            raise typer.BadParameter(f"{one!r} is no tag; write KEY=VALUE, as in dataset=pima, or KEY= to remove it")
        changes[key] = stored.check_tags({key: value})[key] if value else None
    search, database = find_search(name)
    if changes:
        stored.change_tags(database, search.id, changes)
    left = stored.tags_of(database, [search.id]).get(search.id, {})
    show(f"search {search.name} has the tags {shown_tags(left)}" if left else f"search {search.name} has no tags")


def rename(
    name: WholeName,
    new_name: Annotated[str, typer.Argument(help="The name from now on.", show_default=False)],
) -> None:
    """Give a search another name; its view follows."""
    from gridfleet.scheduler.submission.checks import check_name
    from gridfleet.storage.renaming import rename_search

    check_name(new_name)
    fleet = open_results()
    search = choose_search(fleet.database, name, whole=True)
    rename_search(fleet.database, search.id, new_name, signer=fleet.settings.signer())
    show(f"search {search.name} is called {new_name} now")


def delete(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Searches: whole names, ids, or @latest.", show_default=False, autocompletion=offered),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Those that ended so long ago, as 90d; also m, h and w.", metavar="<age>", show_default=False
        ),
    ] = None,
    state: Annotated[
        Ended | None, typer.Option(help="With --older-than: only those in this state.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove searches that have ended, with all that is theirs.

    Shows what would go, and asks.
    """
    from gridfleet.scheduler.reports import tables
    from gridfleet.scheduler.reports.figures import count
    from gridfleet.storage import deletions, room
    from gridfleet.storage.errors import SearchInUseError

    ended_for_s = None if older_than is None else _seconds(older_than)
    if bool(names) == (ended_for_s is not None):
        raise typer.BadParameter("name searches, or say --older-than")
    if state is not None and ended_for_s is None:
        raise typer.BadParameter("--state goes with --older-than")
    database = open_results().database
    chosen = _chosen(database, names or (), ended_for_s, state)
    for search in chosen:
        if not search.is_finished:
            raise SearchInUseError(deletions.why_not_yet(search.name, search.shown_state))
    if not chosen:
        show("no search ended so long ago")
        return
    rooms = room.room_of_searches(database, [search.id for search in chosen])
    tables.print_rooms(rooms)
    n_trials = sum(search.n_trials for search in chosen)
    what = f"{count(len(chosen), 'search')} with {count(n_trials, 'trial')}"
    if not yes and not sys.stdin.isatty():
        fail(f"{what} would be removed for good; nobody can be asked here, so --yes has to say that it is meant")
    if not yes and not typer.confirm(f"Remove {what} for good?", err=True):
        fail("nothing was removed")
    deletions.remove_what_was_left(database)
    removed = [deletions.delete_search(database, search.id) for search in chosen]
    n_bytes = sum(one.payload_bytes for one in removed)
    show(f"{what} removed, and payloads of {tables.megabytes(n_bytes)} MB")
    _give_back(database)


def rekey() -> None:
    """Sign all that is stored with a new secret key.

    No worker may run meanwhile. The new key is GRIDFLEET_NEW_SECRET_KEY; the fleet of a folder makes one itself.
    """
    from gridfleet.storage import rekeying
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.settings import PREFIX, load_settings

    loaded = load_settings()
    if loaded.is_embedded and loaded.secret_key is None and loaded.new_secret_key is None:
        _show_rekeyed(_rekey_folder())
        return
    settings = stored_settings()
    old, new = settings.signer(), settings.new_signer()
    database = Database(settings)
    database.check()
    model_key = settings.replace(secret_key=settings.new_secret_key).model_signer().public_key
    _show_rekeyed(rekeying.rekey(database, old, new, model_key=model_key))
    show(
        f"now give {PREFIX}SECRET_KEY the value of {PREFIX}NEW_SECRET_KEY wherever searches are submitted, take the "
        f"latter away, and give the workers {PREFIX}PUBLIC_KEY={new.public_key} and, as {PREFIX}WORKER_KEY, what "
        "`gridfleet worker-key` prints then"
    )


def _rekey_folder() -> Rekeyed:
    """Give the fleet of this folder a key that nobody else knows."""
    from gridfleet.scheduler.fleet.local import client
    from gridfleet.scheduler.fleet.local.folder import Folder
    from gridfleet.storage import migrations, rekeying
    from gridfleet.storage.database.connection import Database
    from gridfleet.storage.errors import RekeyError
    from gridfleet.storage.settings import load_settings

    loaded = load_settings()
    folder = Folder(loaded.home)
    if not client.has_database(loaded):
        raise RekeyError(f"no search was ever run in {folder.home}; there is nothing to sign")
    folder.prepare(rekeys=True)
    settings = folder.settings(loaded, None)
    with folder.owned() as is_ours:  # no fleet starts meanwhile
        if not is_ours:
            raise RekeyError(f"a fleet runs in {folder.home}; `gridfleet down` stops it")
        new = settings.replace(secret_key=folder.make_new_key())
        database = Database(settings)
        migrations.upgrade(database)
        model_key = new.model_signer().public_key
        done = rekeying.rekey(database, settings.signer(), new.signer(), model_key=model_key)
        folder.take_new_key()
    return done


def _show_rekeyed(done: Rekeyed) -> None:
    from gridfleet.scheduler.reports.figures import count

    show(f"{count(done.n_payloads, 'payload')} and {count(done.n_searches, 'search')} are signed with the new key")
    if done.n_left:
        say(f"{done.n_left} of them were signed by an older release or with another key, and stay unreadable")


def _chosen(
    database: Database, names: Sequence[str], ended_for_s: float | None, state: Ended | None
) -> list[SearchSummary]:
    from gridfleet.scheduler.reports import reader

    if ended_for_s is not None:
        return reader.list_searches(database, limit=None, ended_for_s=ended_for_s, state=state)
    found = [choose_search(database, name, whole=True) for name in names]
    return list({search.id: search for search in found}.values())


def _seconds(age: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([mhdw])", age)
    if found is None:
        raise typer.BadParameter(f"--older-than {age!r} is no age; write a number with m, h, d or w, as in 90d")
    return int(found[1]) * UNITS[found[2]]


def _give_back(database: Database) -> None:
    from gridfleet.storage import deletions, workers

    is_quiet = not workers.names_there(database, within_s=QUIET_S)
    if not deletions.give_back_room(database, may_rewrite=is_quiet):
        say(
            "the file of the database is of an older release, and stays as large as it is while workers use it; what "
            "comes next uses the room again, and a deletion while no fleet runs gives it back"
        )
