"""The message of one trial as it lies on the broker, and what is wrong with anything else that lies there.

A Celery worker trusts what it pops: an element that is no message ends it, and one whose headers carry
callbacks or time limits gets them. So there is one form, and what differs from it is refused.
"""

from __future__ import annotations

import base64
import json
import uuid
from reprlib import repr as shown
from typing import Any

TASK = "gridfleet.evaluate"
#: Bytes that a message may have; ours have about 900.
MAX_BYTES = 4096
#: Trial ids are 64-bit integers in SQL.
MAX_ID = 2**63 - 1


def new_message(trial_id: int, queue: str) -> bytes:
    """Return a message that asks a worker to look at a trial, for a fleet's queue."""
    return json.dumps(_envelope(trial_id, queue, str(uuid.uuid4()), str(uuid.uuid4()))).encode()


def why_malformed(raw: bytes, queue: str) -> str | None:
    """Say why an element of the queue is not a message of ours.

    Parameters
    ----------
    raw : bytes
        The element, from whoever could write to the broker.
    queue : str
        Where it was found.

    Returns
    -------
    str or None
        What is wrong, with the value, in printable characters; None for a message.
    """
    if len(raw) > MAX_BYTES:
        return f"it has {len(raw):,} bytes, a message at most {MAX_BYTES:,}"
    try:
        return _why_not_ours(_parse(raw), queue)
    except ValueError as error:
        return str(error)


def trial_of(raw: bytes) -> int | None:
    """Return the trial that a message names; None if it is no message."""
    try:
        envelope = _parse(raw) if len(raw) <= MAX_BYTES else None
        return _trial_id(_body(envelope.get("body"))) if isinstance(envelope, dict) else None
    except ValueError:
        return None


def _why_not_ours(envelope: Any, queue: str) -> str | None:
    if not isinstance(envelope, dict):
        return f"it is {shown(envelope)}, not a JSON object"
    # what a worker that stops adds to messages that it pushes back
    if envelope.get("redelivered") is True:
        del envelope["redelivered"]
    body = _body(envelope.get("body"))
    trial_id = _trial_id(body)
    headers, properties = envelope.get("headers"), envelope.get("properties")
    expected = _envelope(
        trial_id,
        queue,
        _uuid(headers.get("id") if isinstance(headers, dict) else None, "headers.id"),
        _uuid(properties.get("delivery_tag") if isinstance(properties, dict) else None, "properties.delivery_tag"),
    )
    envelope["body"], expected["body"] = body, _content(trial_id)
    return None if envelope == expected else _difference(envelope, expected)


def _envelope(trial_id: int, queue: str, task_id: str, delivery_tag: str) -> dict[str, Any]:
    """Return what Celery's ``as_task_v2`` and kombu's ``prepare_message`` make of a call of the task."""
    return {
        "body": base64.b64encode(json.dumps(_content(trial_id)).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py",
            "task": TASK,
            "id": task_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task_id,
            "parent_id": None,
            "argsrepr": f"({trial_id},)",
            "kwargsrepr": "{}",
            "origin": "gridfleet",
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": delivery_tag,
        },
    }


def _content(trial_id: int) -> list[Any]:
    return [[trial_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


def _parse(text: bytes) -> Any:
    try:
        # as strict as kombu: json.loads would take UTF-16 bytes too, which end a worker
        return json.loads(text.decode(), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # kombu's parser calls decoders for values that a later one of the same key replaces
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _body(encoded: Any) -> Any:
    if not isinstance(encoded, str):
        raise ValueError(f"body is {shown(encoded)}, not base64")
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ValueError(f"body is {shown(encoded)}, not base64") from error
    try:
        return _parse(decoded)
    except ValueError as error:
        raise ValueError(f"body is {shown(decoded)}: {error}") from error


def _trial_id(body: Any) -> int:
    args = body[0] if isinstance(body, list) and body else None
    if isinstance(args, list) and len(args) == 1:
        trial_id = args[0]
        if type(trial_id) is int and 0 < trial_id <= MAX_ID:  # True is an int too
            return trial_id
    raise ValueError(f"body is {shown(body)}, without the id of a trial as its one argument")


def _uuid(value: Any, name: str) -> str:
    try:
        canonical = str(uuid.UUID(value))
    except (ValueError, TypeError, AttributeError):
        canonical = ""
    if not canonical or canonical != value:
        raise ValueError(f"{name} is {shown(value)}, not a UUID")
    return canonical


def _difference(found: Any, expected: Any, name: str = "") -> str:
    """Name the first place where two unequal values differ."""
    if not (isinstance(found, dict) and isinstance(expected, dict)):
        return f"{name} is {shown(found)}, not {shown(expected)}"
    prefix = f"{name}." if name else ""
    for key, value in expected.items():
        if key not in found:
            return f"{prefix}{key} is missing"
        if found[key] != value:
            return _difference(found[key], value, f"{prefix}{key}")
    unknown = next(key for key in found if key not in expected)
    return f"{name or 'the envelope'} has {shown(unknown)}, which does not belong there"
