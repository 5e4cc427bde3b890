"""Go on with a search that is stored: what is done counts, what was cancelled or never ran is queued again."""

from __future__ import annotations

import itertools
import shlex
import sys

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.scheduler.submission.options import SearchOptions
from gridfleet.scheduler.submission.publish import publish
from gridfleet.scheduler.submission.request import SearchRequest
from gridfleet.scheduler.submission.same_search import OtherDataError, Same
from gridfleet.scheduler.submission.store import add_refit, find_same, store
from gridfleet.storage import searches
from gridfleet.storage.errors import InvalidSearchError, NameTakenError

#: How often another process may store a search of the name, and somebody rename it, while this one looks.
MAX_RACES_LOST = 20
#: The searches that this process went through, by database and name.
_seen: dict[tuple[object, str], set[int]] = {}


def resume_or_store(
    fleet: Fleet, request: SearchRequest, *, name: str | None, options: SearchOptions, reuse: bool = False
) -> tuple[SearchHandle, bool]:
    """Go on with the search of a name if it is the same, or store it.

    Parameters
    ----------
    fleet : Fleet
        Where.
    request : SearchRequest
        What scikit-learn wants evaluated. Its combinations become the stored ones if they were drawn anew.
    name : str or None
        The search's name.
    options : SearchOptions
        How trials are trained, and how long they may take.
    reuse : bool, default=False
        For `store`.

    Returns
    -------
    handle : SearchHandle
    is_new : bool
        Whether it was stored by this call; `publish` sends its messages then.

    Raises
    ------
    NameTakenError
        If the search of that name is another one, with the first part that differs.
    """
    if name is None:
        raise InvalidSearchError("load_if_exists=True finds a search by its name; give name=… as well")
    for _ in range(MAX_RACES_LOST):
        found = find_same(fleet, request, name=name, options=options)
        if found is not None:
            _go_on(fleet, request, *found)
            return found[0], False
        try:
            return store(fleet, request, name=name, options=options, reuse=reuse), True
        except NameTakenError as error:  # another process was faster
            lost = error
    raise lost


def resume_or_store_in_turn(
    fleet: Fleet, request: SearchRequest, *, name: str | None, options: SearchOptions, reuse: bool = False
) -> tuple[SearchHandle, bool]:
    """Do as `resume_or_store`, for searches of one name that a process makes one after the other.

    So does a cross-validation around a search: each of its folds has other data. They are called ``inner``,
    ``inner-2`` and so on, and the same script finds them again in that order.
    """
    if name is None:
        return resume_or_store(fleet, request, name=name, options=options, reuse=reuse)
    seen = _seen.setdefault((fleet.settings.database_url, name.lower()), set())
    for number in itertools.count(1):
        turn = name if number == 1 else searches.numbered_name(name, f"-{number}")
        try:
            handle, is_new = resume_or_store(fleet, request, name=turn, options=options, reuse=reuse)
        except OtherDataError as other:
            if other.search_id not in seen:
                raise
            continue
        seen.add(handle.id)
        return handle, is_new
    raise AssertionError("there is no last number")


def _go_on(fleet: Fleet, request: SearchRequest, handle: SearchHandle, same: Same) -> None:
    if same.params is not None:
        # scikit-learn's own dicts, of which it makes cv_results_
        for params, stored in zip(request.candidates, same.params, strict=True):
            params.clear()
            params.update(stored)
    if request.refits_on_fleet:
        add_refit(fleet, handle.id)
    searches.open_again(fleet.database, handle.id)
    publish(fleet, handle.id)
    print(f"gridfleet: {_sentence(handle, same)}", file=sys.stderr)  # noqa: T201 - where the progress is shown


def _sentence(handle: SearchHandle, same: Same) -> str:
    progress = handle.progress()
    drawn = {"its splits": same.splits_are_stored, "its combinations": same.params is not None}
    parts = [f"search {handle.name!r} is there: {progress.done} of {progress.total} trials are done"]
    if progress.failed:
        parts.append(f"{progress.failed} failed (`gridfleet retry-failed {shlex.quote(handle.name)}` tries them again)")
    parts += [f"{part} have no fixed seed, so that the stored ones are used" for part, used in drawn.items() if used]
    return "; ".join(parts)
