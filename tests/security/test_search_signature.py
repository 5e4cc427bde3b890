"""What a search combines is signed as one: whoever writes the table without the key changes nothing of it unnoticed."""

from __future__ import annotations

import hmac
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import insert, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import PayloadSignatureError
from gridfleet.storage.schema import Payload, Search, Trial
from gridfleet.storage.searches import SIGNED_COLUMNS, check_signature, sign_search
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import SIGNATURE_LENGTH, Signer, Verifier
from gridfleet.storage.trials.uncertain_commits import claim_of
from tests.storage.conftest import StoredSearch, store_refit, store_search
from tests.stored_searches import switch_triggers_off

OTHER_DIGEST = "1" * 64
#: A value for each kind of column that no search of these tests has.
OTHERS: dict[str, Any] = {
    **dict.fromkeys(SIGNED_COLUMNS, "other"),
    **{column: OTHER_DIGEST for column in SIGNED_COLUMNS if column.endswith("_digest")},
    "n_trials": 4,
    "n_splits": 1,
    "fit_mode": "keras",
    "seed": 7,
    "lookahead": 7,
    "asks_in_order": True,
}


PROPOSED: dict[str, Any] = {
    "space": "[]",
    "sampler": "{}",
    "seed": 3,
    "lookahead": 2,
    "asks_in_order": False,
    "pruner": "{}",
    "monitor": "score",
}


@pytest.fixture
def signer(database_settings: Settings) -> Signer:
    return Signer(database_settings.key())


@pytest.fixture
def signed(database: Database, signer: Signer) -> StoredSearch:
    """A search as `submit` stores it, and a payload that it does not name."""
    with database.write() as connection:
        connection.execute(insert(Payload).values(digest=OTHER_DIGEST, kind="X", size=1, signature="0" * 64))
    return store_search(database, 3, signer=signer)


def check(search: StoredSearch, signer: Signer) -> None:
    claim = search.claim()
    assert claim is not None
    check_signature(Verifier(signer.public_key), claim.search_id, asdict(claim))


def set_search(search: StoredSearch, **values: Any) -> None:
    with search.database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Search).where(Search.id == search.id).values(**values))


def test_a_search_is_what_was_submitted(signed: StoredSearch, signer: Signer) -> None:
    check(signed, signer)


def test_a_claim_whose_answer_was_lost_is_as_good(signed: StoredSearch, signer: Signer, database: Database) -> None:
    signed.claim(worker_id="node/7")
    claim = claim_of(database, "node/7")
    assert claim is not None

    check_signature(Verifier(signer.public_key), claim.search_id, asdict(claim))


@pytest.mark.parametrize("column", SIGNED_COLUMNS)
def test_a_search_of_which_a_column_was_changed_is_refused(column: str, signed: StoredSearch, signer: Signer) -> None:
    set_search(signed, **{column: OTHERS[column]})

    with pytest.raises(PayloadSignatureError, match=f"search {signed.id} was changed after it was submitted"):
        check(signed, signer)


@pytest.mark.parametrize("column", PROPOSED)
def test_what_a_search_proposes_its_trials_by_is_signed(column: str, signed: StoredSearch, signer: Signer) -> None:
    set_search(signed, **PROPOSED)
    claim = signed.claim()
    assert claim is not None
    with pytest.raises(PayloadSignatureError):
        check_signature(Verifier(signer.public_key), claim.search_id, asdict(claim))
    facts = {**asdict(claim), "signature": sign_search(signer, claim.search_id, asdict(claim))}
    check_signature(Verifier(signer.public_key), claim.search_id, facts)

    for other in (None, OTHERS[column]):
        with pytest.raises(PayloadSignatureError, match="was changed after it was submitted"):
            check_signature(Verifier(signer.public_key), claim.search_id, {**facts, column: other})


@pytest.mark.parametrize("change", [{"refit_of": None}, {"model_key": "ed25519:" + "0" * 64}, {"refit_of": 2}])
def test_what_a_refit_is_of_and_who_may_sign_its_model_is_signed(
    change: dict[str, Any], signed: StoredSearch, signer: Signer, database: Database
) -> None:
    other = store_search(database, 1, signer=signer)
    refit = store_refit(signed, signer)
    with database.write() as connection:  # without which nothing of it is claimed
        connection.execute(update(Search).where(Search.id == refit.id).values(paused_at=None))
    assert (signed.id, other.id) == (1, 2)
    claim = refit.claim()
    assert claim is not None
    check_signature(Verifier(signer.public_key), claim.search_id, asdict(claim))

    with pytest.raises(PayloadSignatureError, match=f"search {refit.id} was changed after it was submitted"):
        check_signature(Verifier(signer.public_key), claim.search_id, {**asdict(claim), **change})


def test_a_search_is_no_refit_because_the_table_says_so(signed: StoredSearch, signer: Signer) -> None:
    set_search(signed, refit_of=signed.id, model_key=signer.public_key)

    with pytest.raises(PayloadSignatureError, match=f"search {signed.id} was changed after it was submitted"):
        check(signed, signer)


def test_columns_that_change_while_a_search_runs_are_not_signed(signed: StoredSearch, signer: Signer) -> None:
    set_search(signed, priority=3, error="stopped", search_timeout=5.0)

    check(signed, signer)


def test_the_signature_of_one_search_is_none_of_another(signed: StoredSearch, signer: Signer) -> None:
    twin = store_search(signed.database, 3, name="twin", signer=signer)
    set_search(signed, name="was " + signed.name)
    set_search(twin, name=signed.name, signature=signed.row().signature)

    with pytest.raises(PayloadSignatureError, match=f"search {twin.id} was changed"):
        check(twin, signer)


def test_a_search_that_was_signed_with_another_key_is_refused(signed: StoredSearch) -> None:
    with pytest.raises(PayloadSignatureError, match="give GRIDFLEET_SECRET_KEY the same value"):
        check(signed, Signer(b"the key of somebody else"))


def test_a_search_of_an_older_release_is_refused(database: Database, signer: Signer) -> None:
    search = store_search(database, 1)

    with pytest.raises(PayloadSignatureError, match=r"is not signed: an older release .*submit it again"):
        check(search, signer)


def test_a_signature_that_workers_could_make_is_an_older_release_s(signed: StoredSearch, signer: Signer) -> None:
    set_search(signed, signature=hmac.new(b"a key", b"facts", "sha256").hexdigest())

    with pytest.raises(PayloadSignatureError, match=r"is not signed: an older release .*submit it again"):
        check(signed, signer)


def test_a_trial_that_is_put_into_another_search_has_no_signature_there(signed: StoredSearch, signer: Signer) -> None:
    stranger = store_search(signed.database, 1)
    with signed.database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(Trial).where(Trial.id == signed.trial_ids[0]).values(search_id=stranger.id, number=7))

    with pytest.raises(PayloadSignatureError, match=f"search {stranger.id} is not signed"):
        check(signed, signer)


@pytest.mark.parametrize(
    "facts", [("ab", "c"), ("a", "bc"), ("a", "b", "c"), ('a","b', "c"), (None, "c"), ("None", "c")]
)
def test_no_other_facts_have_the_same_signature(facts: tuple[str | None, ...]) -> None:
    signer = Signer(b"0123456789abcdef")
    verifier = Verifier(signer.public_key)
    signature = signer.sign("search", 1, *facts)

    assert len(signature) == SIGNATURE_LENGTH
    assert verifier.is_signed(signature, "search", 1, *facts)
    assert not verifier.is_signed(signature, "payload", 1, *facts)
    assert not verifier.is_signed(signature, "search", "1", *facts)
    assert not verifier.is_signed(signature, "search", 1, *facts, None)
    assert not verifier.is_signed(signature, "search", 1, "abc")
    for none in ("é" * 64, "", signature[:-2], signature + "00", "0" * SIGNATURE_LENGTH):
        assert not verifier.is_signed(none, "search", 1, *facts)
