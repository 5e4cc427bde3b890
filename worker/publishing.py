"""Messages to the broker: one per trial, ids only, in batches over one pipeline."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

import redis
from redis.exceptions import AuthenticationError, RedisError

from storage.errors import BrokerUnreachableError
from storage.settings import PREFIX, Settings
from worker.celery_app import QUEUE, TASK, create_app

#: Messages in one LPUSH, about 1 MB.
BATCH = 1_000


class Publisher:
    """Sends trials to the workers.

    Celery's own ``send_task`` waits for the broker's answer to every message (1,100 a second); here Celery
    and kombu only write the messages, and they are pushed many at a time.

    Parameters
    ----------
    settings : Settings
        Where the broker is.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.broker()
        self._app = create_app(settings)
        self._redis = redis.Redis.from_url(
            self._url, socket_timeout=3, socket_connect_timeout=3, health_check_interval=5, client_name="gridfleet"
        )

    def check(self) -> None:
        """Make sure that the broker answers.

        Raises
        ------
        BrokerUnreachableError
            With the address (never the password) and the setting to change.
        """
        parts = urlsplit(self._url)
        address = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}"
        try:
            self._redis.ping()
        except AuthenticationError as error:
            raise BrokerUnreachableError(
                f"the broker {address} refuses user or password; set {PREFIX}BROKER_URL and {PREFIX}BROKER_PASSWORD"
            ) from error
        except RedisError as error:
            raise BrokerUnreachableError(
                f"the broker {address} does not answer ({error}); start it, or set {PREFIX}BROKER_URL"
            ) from error

    def publish(self, trial_ids: Sequence[int]) -> None:
        """Send one message per trial.

        Raises
        ------
        redis.exceptions.RedisError
            If the broker fails; some messages may have been sent, which harms nothing.
        """
        for start in range(0, len(trial_ids), BATCH):
            self._redis.lpush(QUEUE, *map(self._message, trial_ids[start : start + BATCH]))

    def queue_length(self) -> int:
        """Return how many messages wait."""
        return int(self._redis.llen(QUEUE))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._app.close()

    def _message(self, trial_id: int) -> str:
        task_id = str(uuid.uuid4())
        message = self._app.amqp.as_task_v2(task_id, TASK, args=(trial_id,), kwargs={}, ignore_result=True)
        # the envelope of kombu's Redis transport (kombu.transport.virtual.Channel.prepare_message)
        envelope = {
            "body": base64.b64encode(json.dumps(message.body).encode()).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": message.headers,
            "properties": {
                **message.properties,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "delivery_tag": str(uuid.uuid4()),
                "priority": 0,
                "body_encoding": "base64",
            },
        }
        return json.dumps(envelope)
