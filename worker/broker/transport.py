"""Celery's way to the broker, which lets nothing but messages of ours into a worker.

Celery pops an element from the queue, and one that it can't read ends the worker, some after they were put
back for the next one. Here whatever is not a message is set aside in a list on the broker, `Keys.dead_letters`.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import celery.app.amqp
import kombu.connection
import kombu.transport.redis
import redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from gridfleet.worker.broker.keys import Keys
from gridfleet.worker.broker.message import MAX_BYTES, why_malformed

logger = logging.getLogger(__name__)

#: Elements of `Keys.dead_letters`, the newest first; older ones are dropped.
MAX_DEAD_LETTERS = 1_000
#: Seconds between attempts to reach a broker that is down; kombu would let them grow to 30.
RECONNECT_S = 5
#: Seconds between questions to a broker that answers with an error: full disk, no replicas, a replica itself.
REFUSED_S = 1
#: Characters of a malformed element that the log shows.
LOGGED = 100


class Client(redis.Redis):
    """Takes messages from the queue; of malformed elements and refusals Celery sees nothing."""

    _refusal = ""

    def __init__(self, *arguments: Any, keys: Keys, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._keys = keys

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """Read a reply."""
        if command_name != "BRPOP":
            return super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        try:
            reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        except NoPermissionError:
            raise
        except ResponseError as error:
            self._wait(str(error))
            return None
        self._refusal = ""
        reason = why_malformed(reply[1], self._keys.queue) if reply else None
        if reason is not None:
            self._set_aside(reply[1], reason)
            return None
        return reply

    def _wait(self, refusal: str) -> None:
        """Wait a moment: an error in reply ends a Celery worker, and with it the trials that run."""
        if refusal != self._refusal:
            logger.error("the broker gives no messages, trying on: %s", refusal)
            self._refusal = refusal
        if refusal.startswith("WRONGTYPE"):
            logger.error("removing the key %s, which is no list", self._keys.queue)
            self.delete(self._keys.queue)
        time.sleep(REFUSED_S)

    def _set_aside(self, element: bytes, reason: str) -> None:
        escaped = repr(element[:MAX_BYTES])[2:-1][:MAX_BYTES]
        logger.error("malformed message set aside in %s: %s: %s", self._keys.dead_letters, reason, escaped[:LOGGED])
        letter = {"time": datetime.now(UTC).isoformat(), "reason": reason, "element": escaped}
        try:
            with self.pipeline() as pipeline:
                pipeline.lpush(self._keys.dead_letters, json.dumps(letter))
                pipeline.ltrim(self._keys.dead_letters, 0, MAX_DEAD_LETTERS - 1)
                pipeline.execute()
        except RedisError as error:  # a full broker: the element is in the log
            logger.warning("it could not be kept on the broker: %s", error)


class Channel(kombu.transport.redis.Channel):
    """kombu's channel with a client that checks, and nothing in the broker but the queue."""

    fleet_id = ""
    from_transport_options = (*kombu.transport.redis.Channel.from_transport_options, "fleet_id")  # type: ignore[assignment]

    def _get_client(self) -> Callable[..., redis.Redis]:
        return functools.partial(Client, keys=Keys(self.fleet_id))

    def _queue_bind(self, *_: Any) -> None:
        # messages are pushed to the queue itself; a full broker would refuse to note a binding, which ends a worker
        pass


class Transport(kombu.transport.redis.Transport):
    """kombu's transport with a channel whose client checks."""

    Channel = Channel


class Connection(kombu.connection.Connection):
    """A connection over our transport, which is soon back when the broker is."""

    def get_transport_cls(self) -> type[Transport]:
        """Return our transport; the scheme of the URL stays Redis' for everything else."""
        return Transport

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """Connect, and try again until it worked."""
        options = {"interval_max": RECONNECT_S, **options}
        return super().ensure_connection(*args, **options)  # type: ignore[no-untyped-call]


class AMQP(celery.app.amqp.AMQP):
    """What a Celery app makes its connections of."""

    Connection = Connection
