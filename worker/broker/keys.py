"""The keys of one fleet on its broker, whose database other fleets and applications may use too."""

from __future__ import annotations

from dataclasses import dataclass

#: How the keys of all fleets begin; deploy/broker/users.acl lets workers at these.
FAMILY = "gridfleet:"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a fleet.

    Names of our own, and not kombu's ``global_keyprefix``: of all that kombu keeps on a broker a fleet uses the queue
    only, and the prefix would be kombu's to add and to take away in each of its commands.

    Parameters
    ----------
    fleet_id : str
        Of `gridfleet.storage.identity`.
    """

    fleet_id: str

    @property
    def prefix(self) -> str:
        """How they begin."""
        return f"{FAMILY}{self.fleet_id}:"

    @property
    def queue(self) -> str:
        """The list of messages, and Celery's name of the queue."""
        return f"{self.prefix}queue"

    @property
    def told(self) -> str:
        """The list on which workers tell that a trial has ended, for whoever proposes the next ones."""
        return f"{self.prefix}told"

    @property
    def dead_letters(self) -> str:
        """The list of what was found in the queue and is not a message."""
        return f"{self.prefix}dead"
