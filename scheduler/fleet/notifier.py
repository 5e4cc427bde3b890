"""Tells people of events, in a thread of its own: a receiver that does not answer holds nothing else up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import RowMapping, select, text
from sqlalchemy.exc import SQLAlchemyError

from gridfleet.scheduler.fleet import webhook
from gridfleet.storage import events
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import WebhookError, first_line
from gridfleet.storage.identity import fleet_id
from gridfleet.storage.plain import plain
from gridfleet.storage.schema import EventKind, Search, Trial
from gridfleet.storage.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between looks for events, and those that the last ones of an embedded fleet get as it ends.
LOOK_S = 2.0
LAST_S = 5.0
#: What a chat would take for a mention, a link or an entity, and what stands there instead.
_HARMLESS = str.maketrans({"<": "‹", ">": "›", "&": "+", "@": "＠"})
_FACTS = text(
    "SELECT b.search, b.state, b.metric, b.best_score, b.std_test_score, b.number, b.trial_id, "
    "p.total, p.completed, p.failed, p.cancelled "
    "FROM best_trials b JOIN search_progress p ON p.search_id = b.search_id WHERE b.search_id = :search_id"
)


class Notifier:
    """Sends events until the process ends.

    Parameters
    ----------
    settings : Settings
        Where to.
    database : Database
        Where the events are.

    Raises
    ------
    SettingsError
        If nothing can be sent there.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._sender = webhook.sender_of(settings)
        self._database = database
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if anybody is to be told."""
        if self._sender is not None:
            self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Send what there is, and end; what is not sent by then is sent by the next one."""
        if self._thread is not None:
            self._end.set()
            self._thread.join(LAST_S)

    def send_due(self) -> int:
        """Send all events that are due; returns how many were taken by their receiver."""
        n_sent = 0
        while self._sender is not None and (event := events.take_due(self._database)) is not None:
            n_sent += self._send(self._sender, event)
        return n_sent

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._end.wait(LOOK_S)
            try:
                self.send_due()
            except SQLAlchemyError as error:
                logger.warning("notifier: %s: %s", type(error).__name__, first_line(error))
            except Exception as error:  # noqa: BLE001 - of a service that apprise knows; its text may quote the URL
                logger.warning("notifier: %s", type(error).__name__)

    def _send(self, sender: Callable[[dict[str, Any]], None], event: events.TakenEvent) -> bool:
        message = describe(self._database, event)
        if message is None:  # its search was deleted just now
            return False
        try:
            sender(message)
        except WebhookError as error:
            again = "it is sent again later" if event.n_tries < events.MAX_TRIES else "it is given up"
            logger.warning("the webhook did not take event %d, and %s: %s", event.id, again, error)
            events.note_error(self._database, event, str(error))
            return False
        events.mark_sent(self._database, event)
        logger.debug("the webhook took event %d", event.id)
        return True


def describe(database: Database, event: events.TakenEvent) -> dict[str, Any] | None:
    """Return what is sent of an event, as JSON has it; None if its search is not there any more."""
    with database.read() as connection:
        facts = connection.execute(_FACTS, {"search_id": event.search_id}).mappings().one_or_none()
        if facts is None:
            return None
        # of a new best its own trial, for another one may be the best by now
        trial = connection.execute(
            select(Trial.number, Trial.params, Trial.mean_test_score, Trial.std_test_score).where(
                Trial.id == (event.trial_id or facts["trial_id"])
            )
        ).one_or_none()
        submitted_by = connection.execute(
            select(Search.submitted_by).where(Search.id == event.search_id)
        ).scalar_one_or_none()
    best = {
        "best_score": None if trial is None else trial.mean_test_score,
        "std_test_score": None if trial is None else trial.std_test_score,
        "best_params": None if trial is None else trial.params,
        "number": None if trial is None else trial.number,
    }
    state = event.state or facts["state"]
    return {
        "text": _text(event, facts, best, state),
        "id": f"{fleet_id(database)}-{event.id}",
        "event": event.kind,
        "search": facts["search"],
        "state": state,
        "metric": facts["metric"],
        **best,
        **{name: int(facts[name]) for name in ("total", "completed", "failed", "cancelled")},
        "submitted_by": submitted_by,
    }


def _text(event: events.TakenEvent, facts: RowMapping, best: Mapping[str, Any], state: str) -> str:
    parts = ["new best" if event.kind == EventKind.BEST else state]
    if best["best_score"] is not None:
        deviation = "" if best["std_test_score"] is None else f" ± {best['std_test_score']:.2g}"
        parts.append(f"{facts['metric']} {best['best_score']:.4g}{deviation} (trial {best['number']})")
    parts.append(f"{facts['completed']}/{facts['total']} scored")
    if facts["failed"]:
        parts.append(f"{facts['failed']} failed")
    return plain(f"{facts['search']}: {', '.join(parts)}").translate(_HARMLESS)
