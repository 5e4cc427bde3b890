"""What was not signed with the fleet's key is never run: tampered payloads on a real worker."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sklearn.base import BaseEstimator, ClassifierMixin
from sqlalchemy import Connection, insert, select, text

from gridfleet import GridSearchCV, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage.payloads.contents import insert_content
from gridfleet.storage.payloads.format import size_of
from gridfleet.storage.payloads.store import SIGNED_AS, PayloadStore
from gridfleet.storage.schema import Attempt, Payload, Trial
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.sources.archive import pack
from tests.faults.support import X, Y
from tests.stored_searches import switch_triggers_off

STRANGE_KEY = "the key of somebody else"


class Bomb(ClassifierMixin, BaseEstimator):
    """Whoever unpickles it makes a file."""

    def __init__(self, file: str = "", value: int = 0) -> None:
        self.file = file
        self.value = value

    def fit(self, X: Any, y: Any) -> Bomb:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.file),)


Tamper = Callable[[Connection, str, Fleet, Path], None]


def search_of(file: Path) -> GridSearchCV:
    return GridSearchCV(Bomb(str(file)), {"value": [1]}, cv=2, refit=False)


def _content(connection: Connection, digest: str) -> bytes:
    query = text("SELECT content FROM payload_chunks WHERE digest = :digest AND position = 0")
    return bytes(connection.execute(query, {"digest": digest}).scalar_one())


def _set_content(connection: Connection, digest: str, content: bytes) -> None:
    statement = text("UPDATE payload_chunks SET content = :content WHERE digest = :digest AND position = 0")
    connection.execute(statement, {"content": content, "digest": digest})


def _facts(connection: Connection, digest: str) -> tuple[str, str, str, int]:
    size = connection.execute(text("SELECT size FROM payloads WHERE digest = :digest"), {"digest": digest}).scalar_one()
    return (SIGNED_AS, "evaluation", digest, size)


def _set_signature(connection: Connection, digest: str, signature: str) -> None:
    statement = text("UPDATE payloads SET signature = :signature WHERE digest = :digest")
    connection.execute(statement, {"signature": signature, "digest": digest})


def _use(connection: Connection, digest: str, other: str) -> None:
    switch_triggers_off(connection)
    statement = text("UPDATE searches SET evaluation_digest = :other WHERE evaluation_digest = :digest")
    connection.execute(statement, {"other": other, "digest": digest})


def _leave(*_: Any) -> None:
    pass


def _flip_a_bit(connection: Connection, digest: str, *_: Any) -> None:
    content = _content(connection, digest)
    _set_content(connection, digest, content[:-1] + bytes([content[-1] ^ 1]))


def _cut_it(connection: Connection, digest: str, *_: Any) -> None:
    _set_content(connection, digest, _content(connection, digest)[:-10])


def _sign_with_another_key(connection: Connection, digest: str, *_: Any) -> None:
    _set_signature(connection, digest, Signer(STRANGE_KEY.encode()).sign(*_facts(connection, digest)))


def _sign_with_what_workers_have(connection: Connection, digest: str, fleet: Fleet, _: Path) -> None:
    # as an older release signed, whose one key workers had
    signed, key = json.dumps(_facts(connection, digest)), fleet.settings.for_workers().public_key
    _set_signature(connection, digest, hmac.new(key.encode(), signed.encode(), hashlib.sha256).hexdigest() * 2)


def _leave_the_signature_out(connection: Connection, digest: str, *_: Any) -> None:
    _set_signature(connection, digest, "")


def _write_no_signature(connection: Connection, digest: str, *_: Any) -> None:
    _set_signature(connection, digest, "é" * 64)


def _call_it_something_else(connection: Connection, digest: str, *_: Any) -> None:
    connection.execute(text("UPDATE payloads SET kind = 'candidates' WHERE digest = :digest"), {"digest": digest})


def _put_another_kind_in_its_place(connection: Connection, digest: str, fleet: Fleet, file: Path) -> None:
    # signed by the fleet, as data of somebody's search
    _use(connection, digest, fleet.payloads.prepare("X", Bomb(str(file)), what="X").digest)


def _put_a_forgery_in_its_place(connection: Connection, digest: str, fleet: Fleet, file: Path) -> None:
    store = PayloadStore(fleet.database, fleet.settings.replace(secret_key=SecretStr(STRANGE_KEY)))
    forged = store.prepare("evaluation", [Bomb(str(file))], what="a forgery")
    # by hand, for our own code stores nothing with a key that is not the fleet's
    facts = {"kind": forged.kind, "size": size_of(forged.content), "signature": forged.signature}
    connection.execute(insert(Payload).values(digest=forged.digest, **facts))
    insert_content(connection, forged.digest, forged.content)
    _use(connection, digest, forged.digest)


def _search_of(digest: str) -> str:
    return f"(SELECT id FROM searches WHERE evaluation_digest = '{digest}')"


def _use_anothers_data(connection: Connection, digest: str, fleet: Fleet, file: Path) -> None:
    # signed by the fleet as what it is, for another search
    other = {"other": fleet.payloads.prepare("X", Bomb(str(file)), what="X").digest}
    connection.execute(text(f"UPDATE searches SET x_digest = :other WHERE id = {_search_of(digest)}"), other)


def _use_other_modules(connection: Connection, digest: str, fleet: Fleet, file: Path) -> None:
    # signed by the fleet as the modules of another script
    planted = pack({"tests/__init__.py": f"open({str(file)!r}, 'w')".encode()})
    other = {"other": fleet.payloads.prepare("sources", (planted, {}), what="modules").digest}
    connection.execute(text(f"UPDATE searches SET sources_digest = :other WHERE id = {_search_of(digest)}"), other)


def _take_its_modules(connection: Connection, digest: str, *_: Any) -> None:
    connection.execute(text(f"UPDATE searches SET sources_digest = NULL WHERE id = {_search_of(digest)}"))


def _use_anothers_signature(connection: Connection, digest: str, *_: Any) -> None:
    other = "(SELECT signature FROM searches WHERE name = 'untouched')"
    connection.execute(text(f"UPDATE searches SET signature = {other} WHERE id = {_search_of(digest)}"))


def _take_the_signature_of_the_search(connection: Connection, digest: str, *_: Any) -> None:
    connection.execute(text(f"UPDATE searches SET signature = NULL WHERE id = {_search_of(digest)}"))


def _number_a_trial_from_the_end(connection: Connection, digest: str, *_: Any) -> None:
    connection.execute(text(f"UPDATE trials SET number = -1 WHERE search_id = {_search_of(digest)}"))


#: How a payload is changed between its submission and the first look of a worker, and what the trial's error says.
TAMPERING: dict[str, tuple[Tamper, str]] = {
    "flipped": (_flip_a_bit, "is damaged: its content has another digest"),
    "cut": (_cut_it, "is damaged: its content has another digest"),
    "another-key": (_sign_with_another_key, "was not signed with this process's key"),
    "workers-key": (_sign_with_what_workers_have, "was not signed with this process's key"),
    "unsigned": (_leave_the_signature_out, "was not signed with this process's key"),
    "no-signature": (_write_no_signature, "was not signed with this process's key"),
    "renamed": (_call_it_something_else, "is a 'candidates', not a 'evaluation'"),
    "another-kind": (_put_another_kind_in_its_place, "was changed after it was submitted"),
    "forged": (_put_a_forgery_in_its_place, "was changed after it was submitted"),
    "anothers-data": (_use_anothers_data, "was changed after it was submitted"),
    "anothers-modules": (_use_other_modules, "was changed after it was submitted"),
    "no-modules": (_take_its_modules, "was changed after it was submitted"),
    "anothers-signature": (_use_anothers_signature, "was changed after it was submitted"),
    "signed-by-nobody": (_take_the_signature_of_the_search, "is not signed: an older release stored it"),
    "no-such-trial": (_number_a_trial_from_the_end, "trial -1 is none of search"),
}


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_worker_runs_nothing_of_a_payload_that_was_tampered_with(
    fleet: Fleet, configured: Settings, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    start_worker(configured.replace(max_failures=1))
    fleet.publish = lambda _: True  # the payloads are changed before anybody looks at them
    handles = {}
    for name, (tamper, _) in {"untouched": (_leave, ""), **TAMPERING}.items():
        file = tmp_path / f"{name}.ran"
        handle = handles[name] = submit(search_of(file), X, Y, name=name)
        # stored beforehand, for it opens a transaction of its own
        fleet.payloads.put("X", Bomb(str(file)), what="X")
        planted = pack({"tests/__init__.py": f"open({str(file)!r}, 'w')".encode()})
        fleet.payloads.put("sources", (planted, {}), what="modules")
        with fleet.database.write() as connection:
            query = text("SELECT evaluation_digest FROM searches WHERE id = :id")
            tamper(connection, connection.execute(query, {"id": handle.id}).scalar_one(), fleet, file)
    del fleet.publish

    with fleet.database.read() as connection:
        fleet.publish(list(connection.execute(select(Trial.id)).scalars()))
    for handle in handles.values():
        handle.wait(90)

    assert [file.name for file in tmp_path.glob("*.ran")] == ["untouched.ran"]
    with fleet.database.read() as connection:
        for name, (_, sentence) in TAMPERING.items():
            query = select(Trial.state, Trial.error_type, Trial.error, Attempt.outcome).join(Attempt)
            trial = connection.execute(query.where(Trial.search_id == handles[name].id)).one()
            assert (trial.state, trial.error_type, trial.outcome) == ("failed", "payload_error", "payload_error")
            assert sentence in trial.error
            assert "\n" not in trial.error
