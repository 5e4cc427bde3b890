"""Messages to the broker: one per trial, ids only, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from gridfleet.storage.errors import BrokerUnreachableError
from gridfleet.storage.settings import PREFIX, SOCKET_SCHEME, Settings
from gridfleet.worker.broker.keys import Keys
from gridfleet.worker.broker.message import new_message, trial_of

#: Messages in one LPUSH, about 1 MB.
BATCH = 1_000
#: Messages that may wait: with them the broker takes 9 MB. A message is a hint: any of a search leads to any of its
#: trials, so that more than forty for each of two hundred processes bring nothing. 290,000 filled a broker of 256 MB.
MAX_MESSAGES = 8_000
#: Seconds that the broker may take to answer; with the second try, no call takes longer than twice that.
ANSWER_S = 3
#: Seconds for which a hint is waited for at a time; less than the broker may take to answer.
TELLING_S = 2
#: Bytes of a dead letter that are worth a line.
SHOWN = 300


class Publisher:
    """Sends trials to the workers.

    Celery's own ``send_task`` waits for the broker's answer to every message (1,100 a second); here they are
    pushed many at a time.

    Parameters
    ----------
    settings : Settings
        Where the broker is.
    keys : Keys
        Those of the fleet.
    """

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self._keys = keys
        self._url = settings.broker()
        self._redis = redis.Redis.from_url(
            self._url.replace(f"{SOCKET_SCHEME}://", "unix://", 1),
            socket_timeout=ANSWER_S,
            socket_connect_timeout=ANSWER_S,
            client_name="gridfleet",
        )

    def check(self) -> None:
        """Make sure that the broker answers.

        Raises
        ------
        BrokerUnreachableError
            With the address (never the password) and the setting to change.
        """
        parts = urlsplit(self._url)
        place = parts.path if parts.scheme == SOCKET_SCHEME else f"{parts.hostname}:{parts.port or 6379}"
        address = f"{parts.scheme}://{place}"
        try:
            _twice(self._redis.ping)
        except AuthenticationError as error:
            raise BrokerUnreachableError(
                f"the broker {address} refuses user or password; set {PREFIX}BROKER_URL and {PREFIX}BROKER_PASSWORD"
            ) from error
        except ResponseError as error:
            raise BrokerUnreachableError(f"the broker {address} refuses to work: {error}") from error
        except RedisError as error:
            remedy = f"start it, or set {PREFIX}BROKER_URL"
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                remedy = f"name the file of its authority in {PREFIX}BROKER_URL: ssl_ca_certs=/path/ca.crt"
            raise BrokerUnreachableError(f"the broker {address} does not answer ({error}); {remedy}") from error

    def publish(self, trial_ids: Sequence[int]) -> None:
        """Send one message per trial.

        Raises
        ------
        redis.exceptions.RedisError
            If the broker fails; some messages may have been sent, which harms nothing.
        """
        for start in range(0, len(trial_ids), BATCH):
            messages = [new_message(trial_id, self._keys.queue) for trial_id in trial_ids[start : start + BATCH]]
            _twice(self._redis.lpush, self._keys.queue, *messages)

    def tell(self) -> None:
        """Tell whoever proposes trials that there may be something to propose: a hint, which may be lost."""
        _twice(self._redis.lpush, self._keys.told, b"")
        _twice(self._redis.ltrim, self._keys.told, 0, 0)

    def wait_until_told(self) -> bool:
        """Wait a moment until somebody tells; all that was told until then is one hint."""
        return _twice(self._redis.brpop, [self._keys.told], TELLING_S) is not None

    def queue_length(self) -> int:
        """Return how many messages wait."""
        return int(_twice(self._redis.llen, self._keys.queue))

    def room(self) -> int:
        """Return how many more messages may wait."""
        return max(0, MAX_MESSAGES - self.queue_length())

    def oldest(self) -> int | None:
        """Return the trial of the message that has waited longest; None if none waits, 0 if that one is no message."""
        found = _twice(self._redis.lrange, self._keys.queue, -1, -1)
        return (trial_of(found[0]) or 0) if found else None

    def count_dead_letters(self) -> int:
        """Return how many malformed messages are kept that workers found and set aside."""
        return int(_twice(self._redis.llen, self._keys.dead_letters))

    def newest_dead_letter(self) -> str:
        """Return the beginning of the last one: the time and the reason, escaped; empty if there is none."""
        newest = _twice(self._redis.lrange, self._keys.dead_letters, 0, 0)
        return repr(newest[0][:SHOWN])[2:-1] if newest else ""

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def _twice(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call once more over a new connection if the old one turns out to be dead: it may have been for hours."""
    try:
        return call(*arguments)
    except (redis.ConnectionError, redis.TimeoutError):
        return call(*arguments)
