"""Celery's way to the broker, which lets nothing but messages of ours into a worker.

Celery pops an element from the queue, and one that it can't read ends the worker, some after they were put
back for the next one. Here whatever is not a message is set aside in a list on the broker, `DEAD_LETTERS`.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

import celery.app.amqp
import kombu.connection
import kombu.transport.redis
import redis
from redis.exceptions import RedisError, ResponseError

from worker.envelope import DEAD_LETTERS, MAX_BYTES, QUEUE, why_malformed

logger = logging.getLogger(__name__)

#: Elements of `DEAD_LETTERS`, the newest first; older ones are dropped.
MAX_DEAD_LETTERS = 1_000
#: Seconds between attempts to reach a broker that is down; kombu would let them grow to 30.
RECONNECT_S = 5
#: Characters of a malformed element that the log shows.
LOGGED = 100


class Client(redis.Redis):
    """Takes messages from the queue; malformed elements are as if nothing had come."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """Read a reply."""
        try:
            reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if command_name != "BRPOP" or not str(error).startswith("WRONGTYPE"):
                raise
            self._remove_queue(error)
            return None
        reason = why_malformed(reply[1]) if command_name == "BRPOP" and reply else None
        if reason is not None:
            self._set_aside(reply[1], reason)
            return None
        return reply

    def _set_aside(self, element: bytes, reason: str) -> None:
        escaped = repr(element[:MAX_BYTES])[2:-1][:MAX_BYTES]
        logger.error("malformed message set aside in %s: %s: %s", DEAD_LETTERS, reason, escaped[:LOGGED])
        letter = {"time": datetime.now(UTC).isoformat(), "reason": reason, "element": escaped}
        try:
            with self.pipeline() as pipeline:
                pipeline.lpush(DEAD_LETTERS, json.dumps(letter))
                pipeline.ltrim(DEAD_LETTERS, 0, MAX_DEAD_LETTERS - 1)
                pipeline.execute()
        except RedisError as error:  # a full broker: the element is in the log
            logger.warning("it could not be kept on the broker: %s", error)

    def _remove_queue(self, error: ResponseError) -> None:
        logger.error("removed the key %s from the broker, which was no list: %s", QUEUE, error)
        self.delete(QUEUE)


class Channel(kombu.transport.redis.Channel):
    """kombu's channel with a client that checks."""

    def _get_client(self) -> type[redis.Redis]:
        return Client


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
