"""What the Publisher sends is a message, as Celery itself would send it; nothing else is."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import kombu.utils.json
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.virtual import Channel, Message

from gridfleet.storage.settings import Settings
from gridfleet.worker.broker.app import create_app
from gridfleet.worker.broker.message import TASK, new_message, why_malformed
from tests.conftest import KEYS
from tests.malformed_messages import malformed_messages

MALFORMED = malformed_messages(7, KEYS.queue, Path("/nowhere"))


@pytest.mark.parametrize("trial_id", [1, 2**31, 2**63 - 1])
def test_a_new_message_is_one(trial_id: int) -> None:
    assert why_malformed(new_message(trial_id, KEYS.queue), KEYS.queue) is None


def test_a_new_message_says_what_celery_itself_would_say() -> None:
    envelope = json.loads(new_message(7, KEYS.queue))
    app = create_app(Settings(database_url="sqlite:///unused.db", broker_url="redis://unused"), KEYS)
    theirs = app.amqp.as_task_v2(
        envelope["headers"]["id"], TASK, args=(7,), kwargs={}, ignore_result=True, origin="gridfleet"
    )

    assert envelope["headers"] == theirs.headers
    assert json.loads(base64.b64decode(envelope["body"])) == json.loads(json.dumps(theirs.body))
    assert envelope["properties"].items() >= theirs.properties.items()


def test_a_message_that_kombu_pushed_back_is_still_one() -> None:
    message = Message(json.loads(new_message(7, KEYS.queue)), channel=_NoChannel())

    pushed_back = {**message.serializable(), "redelivered": True}

    assert why_malformed(kombu.utils.json.dumps(pushed_back).encode(), KEYS.queue) is None


class _NoChannel:
    """What kombu's messages need of a channel."""

    decode_body = Channel.decode_body
    encode_body = Channel.encode_body
    codecs = Channel.codecs
    body_encoding = Channel.body_encoding


@pytest.mark.parametrize("name", MALFORMED)
def test_anything_else_is_refused_with_the_reason(name: str) -> None:
    element, reason = MALFORMED[name]

    found = why_malformed(element, KEYS.queue)

    assert found is not None
    assert found.startswith(reason)
    assert found.isprintable()
    assert len(found) < 400


@given(st.integers(0, len(new_message(7, KEYS.queue)) - 1), st.integers(0, 255))
def test_a_damaged_message_is_refused_or_harmless(place: int, byte: int) -> None:
    damaged = bytearray(new_message(7, KEYS.queue))
    damaged[place] = byte

    if why_malformed(bytes(damaged), KEYS.queue) is None:
        envelope = kombu.utils.json.loads(bytes(damaged))
        (args, kwargs, options) = kombu.utils.json.loads(base64.b64decode(envelope["body"]))
        assert envelope["headers"]["task"] == TASK
        assert envelope["headers"]["timelimit"] == [None, None]
        assert [type(arg) for arg in args] == [int]
        assert kwargs == {}
        assert set(options.values()) == {None}


@given(st.binary(max_size=300))
def test_no_bytes_make_the_check_fail(element: bytes) -> None:
    assert why_malformed(element, KEYS.queue) is not None
