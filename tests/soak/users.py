"""What people do with their searches meanwhile: cancel them and go on, delete, rename, tag and prefer some."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import Row, or_, select
from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage import searches as stored
from gridfleet.storage.database.times import now
from gridfleet.storage.deletions import NAMING_PAYLOADS, delete_search
from gridfleet.storage.errors import GridfleetError, SearchInUseError, SearchNotFoundError
from gridfleet.storage.renaming import rename_search
from gridfleet.storage.schema import Search, Tag, Trial
from gridfleet.storage.tags import change_tags
from tests.history import Gone
from tests.soak.data import TAG
from tests.soak.scripts import Scripts
from tests.soak.searches import Searches
from tests.soak.system import System

#: Seconds between two actions.
GAP_S = (0.5, 3.0)
#: Seconds after which somebody goes on with what was cancelled.
COME_BACK_S = (0.0, 8.0)
#: Seconds between tries of what something is in the way of.
AGAIN_S = 1.0
#: The share of searches that are to go before they have ended.
CONDEMNED_EARLY = 0.5
PRIORITIES = range(-2, 3)
MOODS = ("calm", "eager", None)
#: Columns of a search that name payloads.
PAYLOADS = [column.name for column in NAMING_PAYLOADS if column.table is Search.__table__]
#: What an action may raise that meets a fault: its transaction did not commit, or nobody knows.
IN_THE_WAY = (SQLAlchemyError, RedisError, ConnectionError)

_OF_USERS = (
    select(Search.id, Search.name, Tag.value.label("number"))
    .join(Tag, (Tag.search_id == Search.id) & (Tag.key == TAG))
    .where(Search.deleted_at.is_(None))
    .order_by(Search.id)
)


@dataclass(slots=True)
class Condemned:
    """A search that is to be deleted, and what was found of it before."""

    search_id: int
    next_at: float = 0.0
    n_tries: int = 0
    search_ids: set[int] = field(default_factory=set)
    trial_ids: set[int] = field(default_factory=set)
    payloads: set[str] = field(default_factory=set)


class Users:
    """Draws an action every second or two, and brings to an end what it has begun.

    Parameters
    ----------
    system : System
        Where scripts run.
    fleet : Fleet
        A client of it.
    searches : Searches
        What was submitted.
    seed : int
        The same seed draws the same actions.
    """

    def __init__(self, system: System, fleet: Fleet, searches: Searches, seed: int) -> None:
        self._fleet = fleet
        self._database = fleet.database
        self._searches = searches
        self._random = random.Random(f"{seed}: users")
        self._scripts = Scripts(system, searches, seed)
        self._next_at = time.monotonic()
        #: when somebody goes on with a search, by its id
        self._returns: dict[int, float] = {}
        self._condemned: dict[int, Condemned] = {}
        self._n_renamed = 0
        self._violations: list[str] = []
        self.gone = Gone()
        self.done = self._scripts.done
        #: by a part that was broken
        self.refused: Counter[str] = Counter()

    def tick(self) -> None:
        """Do something if it is time."""
        self._scripts.tick()
        if time.monotonic() >= self._next_at:
            action = self._random.choice(list(ACTIONS))
            # a generator of its own for each action, so that what it draws does not shift those that follow
            chance = random.Random(self._random.random())
            self._try(action, lambda: ACTIONS[action](self, chance))
            self._next_at = time.monotonic() + self._random.uniform(*GAP_S)
        self._go_on()

    def tick_at_peace(self) -> None:
        """Begin nothing, and bring to an end what was begun."""
        self._scripts.tick_at_peace()
        self._go_on()

    def are_idle(self) -> bool:
        """Whether nothing is left of what was begun."""
        return not self._returns and not self._condemned and self._scripts.are_idle()

    def violations(self) -> list[str]:
        """Tell what went wrong, and what did not come to its end."""
        left = [f"search {search_id} could not be deleted" for search_id in self._condemned]
        left += [f"search {search_id} could not be gone on with" for search_id in self._returns]
        return [*self._violations, *left, *self._scripts.violations()]

    def cancel_and_come_back(self, chance: random.Random) -> None:
        """Cancel an open search, and have somebody go on with it in a moment."""
        row = self._pick(chance, Search.finished_at.is_(None))
        if row is not None and stored.cancel_search(self._database, row.id):
            self._returns[row.id] = time.monotonic() + chance.uniform(*COME_BACK_S)
            self.done["search cancelled, to be resumed"] += 1

    def submit_again(self, chance: random.Random) -> None:
        """Go on with a search, whatever it came to."""
        row = self._pick(chance)
        if row is not None:
            self._resume(row)

    def condemn(self, chance: random.Random) -> None:
        """Delete a search, as soon as that is possible."""
        is_open = Search.finished_at.is_(None)
        row = self._pick(chance, is_open if chance.random() < CONDEMNED_EARLY else ~is_open, of_scripts=True)
        if row is not None:
            self._condemned[row.id] = Condemned(row.id)

    def rename(self, chance: random.Random) -> None:
        """Give a search another name."""
        row = self._pick(chance)
        if row is None:
            return
        self._n_renamed += 1
        name, signer = f"soak-{row.number}-renamed-{self._n_renamed}", self._fleet.settings.signer()
        self._tell(row.id, "name", name, lambda: rename_search(self._database, row.id, name, signer=signer))
        self.done["search renamed"] += 1

    def tag(self, chance: random.Random) -> None:
        """Set tags of a search, or remove one."""
        row = self._pick(chance, of_scripts=True)
        if row is None:
            return
        tags = {"mood": chance.choice(MOODS), "seen": str(chance.randint(0, 9))}
        self._tell(row.id, "tags", tags, lambda: change_tags(self._database, row.id, tags))
        self.done["search tagged"] += 1

    def prefer(self, chance: random.Random) -> None:
        """Let an open search go before others, or after them."""
        row = self._pick(chance, Search.finished_at.is_(None), of_scripts=True)
        if row is None:
            return
        priority = chance.choice(PRIORITIES)

        def prefer() -> None:
            if not stored.set_priority(self._database, row.id, priority):
                raise ConnectionError("it has just ended")

        self._tell(row.id, "priority", priority, prefer)
        self.done["priority changed"] += 1

    def _tell(self, search_id: int, what: str, value: Any, change: Callable[[], object]) -> None:
        """Change something of a search; where that fails, nobody knows what it is."""
        told = self._searches.told.setdefault(search_id, {})
        told.pop(what, None)
        change()
        told[what] = value

    def _go_on(self) -> None:
        """Go on with what was cancelled, and delete what is to go."""
        for search_id in [search_id for search_id, due in self._returns.items() if due <= time.monotonic()]:
            self._returns[search_id] = time.monotonic() + AGAIN_S
            self._try("search resumed", lambda: self._return(search_id))  # noqa: B023 - called at once
        for one in [one for one in self._condemned.values() if one.next_at <= time.monotonic()]:
            self._try("search deleted", lambda: self._delete(one))  # noqa: B023 - called at once
            one.next_at = time.monotonic() + AGAIN_S

    def _return(self, search_id: int) -> None:
        if search_id not in self._condemned and search_id not in self.gone.search_ids:
            with self._database.read() as connection:
                row = connection.execute(_OF_USERS.where(Search.id == search_id)).one()
            self._resume(row)
        del self._returns[search_id]

    def _resume(self, row: Row[Any]) -> None:
        one = self._searches.submitted[int(row.number) - 1]
        found = self._searches.resume(one, row.name)
        self.done["search resumed"] += 1
        if found != row.id:
            self._violations.append(f"search {row.id} ({row.name!r}) was gone on with, and became search {found}")

    def _delete(self, one: Condemned) -> None:
        """Delete a search that has ended; one that runs is refused, and cancelled for the next try."""
        self._look_at(one)
        try:
            one.n_tries += 1
            delete_search(self._database, one.search_id)
        except SearchInUseError:
            one.n_tries -= 1
            self.done["deletion refused, as its trials are open"] += 1
            stored.cancel_search(self._database, one.search_id)
            return
        except SearchNotFoundError:  # an earlier try had removed it
            if one.n_tries == 1:
                raise
        del self._condemned[one.search_id]
        self.gone.search_ids.update(one.search_ids)
        self.gone.trial_ids.update(one.trial_ids)
        with self._database.read() as connection:
            deleted_at = connection.execute(select(now())).scalar_one()
        for digest in one.payloads:
            if one.n_tries == 1:
                self.gone.payloads[digest] = deleted_at
            else:  # interrupted between search and payload it leaves that to the next deletion, a day later
                self.gone.payloads.pop(digest, None)
        self.done["search deleted"] += 1

    def _look_at(self, one: Condemned) -> None:
        """Note what is there of a search, before it is deleted."""
        mine = or_(Search.id == one.search_id, Search.refit_of == one.search_id)
        digests = [getattr(Search, column) for column in PAYLOADS]
        with self._database.read() as connection:
            for row in connection.execute(select(Search.id, *digests).where(mine)):
                one.search_ids.add(row.id)
                one.payloads.update(digest for digest in row[1:] if digest is not None)
            trials = select(Trial.id).join(Search, Search.id == Trial.search_id).where(mine)
            one.trial_ids.update(connection.execute(trials).scalars())

    def _pick(self, chance: random.Random, *conditions: Any, of_scripts: bool = False) -> Row[Any] | None:
        """Choose one of the searches that are to stay."""
        with self._database.read() as connection:
            rows = connection.execute(_OF_USERS.where(*conditions)).all()
        free = [
            row
            for row in rows
            if row.id not in self._condemned
            and (of_scripts or not self._searches.submitted[int(row.number) - 1].is_script)
        ]
        return free[int(chance.random() * len(free))] if free else None

    def _try(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except IN_THE_WAY:
            self.refused[what] += 1
        except GridfleetError as error:
            self._violations.append(f"{what}: {type(error).__name__}: {error}")


#: Every action, by what it is called where a broken part refuses it.
ACTIONS: dict[str, Callable[[Users, random.Random], None]] = {
    "search cancelled, to be resumed": Users.cancel_and_come_back,
    "search resumed": Users.submit_again,
    "search chosen to be deleted": Users.condemn,
    "search renamed": Users.rename,
    "search tagged": Users.tag,
    "priority changed": Users.prefer,
}
