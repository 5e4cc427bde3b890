"""Elements of the broker's list that are no messages of ours, and the beginning of the reason for each."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

from gridfleet.worker.broker.message import new_message


def malformed_messages(trial_id: int, queue: str, proof: Path) -> dict[str, tuple[bytes, str]]:
    """Return elements by name, with the reasons; those that could run a task would run this trial.

    Parameters
    ----------
    trial_id : int
        Of a queued trial.
    queue : str
        Where they are to lie.
    proof : Path
        A file that is made if a pickle is loaded.
    """
    message = new_message(trial_id, queue)

    def changed(**changes: Any) -> bytes:
        return json.dumps({**json.loads(message), **changes}).encode()

    def with_headers(**changes: Any) -> bytes:
        return changed(headers={**json.loads(message)["headers"], **changes})

    def with_properties(**changes: Any) -> bytes:
        return changed(properties={**json.loads(message)["properties"], **changes})

    def with_body(content: Any) -> bytes:
        return changed(body=base64.b64encode(json.dumps(content).encode()).decode())

    def with_encoded(content: bytes, content_type: str = "application/json", **headers: str) -> bytes:
        headers = {**json.loads(message)["headers"], **headers}
        body = base64.b64encode(content).decode()
        return changed(**{"body": body, "content-type": content_type, "headers": headers})

    options = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    call = {"task": "gridfleet.evaluate", "args": [trial_id], "kwargs": {}, "options": {}}
    not_a_trial = "body is [["
    return {
        "garbage": (b"garbage", "it is not JSON"),
        "control characters": (b"\x1b[31m\n[ERROR] forged\r\x00", "it is not JSON"),
        "no UTF-8": (b"\x80\x04\x95\xff", "it is not JSON"),
        "UTF-16": (message.decode().encode("utf-16"), "it is not JSON"),
        "nested": (b"[" * 4000, "it is not JSON"),
        "an empty element": (b"", "it is not JSON"),
        "a scalar": (b"42", "it is 42, not a JSON object"),
        "a list": (b"[1, 2]", "it is [1, 2], not a JSON object"),
        "an empty object": (b"{}", "body is None, not base64"),
        "a key twice": (
            message.replace(b'"stamps": {}', b'"stamps": {"__type__": "uuid", "__value__": 5}, "stamps": {}'),
            "it is not JSON: a key occurs twice",
        ),
        "a body of 20 MB": (changed(body="A" * 20_000_000), "it has 20,00"),
        "a body that is not base64": (changed(body="%%% no base64 %%%"), "body is '%%%"),
        "a body that is not JSON": (with_encoded(b"[["), "body is b'[['"),
        "a pickle": (with_encoded(_pickle(proof), "application/x-python-serialize"), "body is b'"),
        "a pickle by name only": (changed(**{"content-type": "application/x-python-serialize"}), "content-type is"),
        "a bomb": (with_encoded(zlib.compress(bytes(1_000_000)), compression="application/x-gzip"), "body is b'"),
        "compression": (with_headers(compression="application/x-gzip"), "headers has 'compression'"),
        "no headers": (changed(headers=None), "headers.id is None"),
        "no properties": (changed(properties=[]), "properties.delivery_tag is None"),
        "an id that is not one": (with_headers(id="../../\n"), "headers.id is '../../\\n', not a UUID"),
        "a time limit of strings": (with_headers(timelimit=["x", "y"]), "headers.timelimit is ['x', 'y'], not"),
        "a time limit of its own": (with_headers(timelimit=[9e9, 9e9]), "headers.timelimit is"),
        "a far ETA": (with_headers(eta="2999-01-01T00:00:00+00:00"), "headers.eta is '2999"),
        "an ETA that is no time": (with_headers(eta="tomorrow"), "headers.eta is 'tomorrow', not None"),
        "expired": (with_headers(expires="2001-01-01T00:00:00+00:00"), "headers.expires is '2001"),
        "retries": (with_headers(retries=3), "headers.retries is 3, not 0"),
        "an unknown task": (with_headers(task="os.system"), "headers.task is 'os.system'"),
        "a task of Celery": (with_headers(task="celery.chain"), "headers.task is 'celery.chain'"),
        "no arguments": (with_body([[], {}, options]), not_a_trial),
        "two arguments": (with_body([[trial_id, 2], {}, options]), not_a_trial),
        "NaN": (with_body([[float("nan")], {}, options]), not_a_trial),
        "true": (with_body([[True], {}, options]), not_a_trial),
        "zero": (with_body([[0], {}, options]), not_a_trial),
        "a fraction": (with_body([[1.0], {}, options]), not_a_trial),
        "more than 64 bits": (with_body([[2**63], {}, options]), not_a_trial),
        "a keyword": (with_body([[trial_id], {"a": 1}, options]), "body is [["),
        "callbacks": (with_body([[trial_id], {}, {**options, "callbacks": [call]}]), "body is [["),
        "errbacks": (with_body([[trial_id], {}, {**options, "errbacks": [call]}]), "body is [["),
        "a chain": (with_body([[trial_id], {}, {**options, "chain": [call]}]), "body is [["),
        "a chord": (with_body([[trial_id], {}, {**options, "chord": call}]), "body is [["),
        "callbacks in the headers": (with_headers(callbacks=[call]), "headers has 'callbacks'"),
        "a reply": (with_properties(reply_to="celery"), "properties.reply_to is 'celery', not ''"),
        "another queue": (
            with_properties(delivery_info={"exchange": "", "routing_key": "other"}),
            "properties.delivery_info.routing_key is 'other'",
        ),
        "of another application": (
            with_properties(delivery_info={"exchange": "", "routing_key": "celery"}),
            f"properties.delivery_info.routing_key is 'celery', not {queue!r}",
        ),
        "no priority": (
            changed(properties={k: v for k, v in json.loads(message)["properties"].items() if k != "priority"}),
            "properties.priority is missing",
        ),
    }


class _TouchesAtLoad:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._file),)


def _pickle(proof: Path) -> bytes:
    return pickle.dumps(_TouchesAtLoad(proof))
