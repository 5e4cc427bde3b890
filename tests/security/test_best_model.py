"""A best model is loaded only if the fleet's workers signed it for that search; to write the database is not enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.svm import SVC
from sqlalchemy import select, update

from gridfleet import GridSearchCV, SearchHandle, open_search, submit
from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.storage import models
from gridfleet.storage.errors import BestModelError, PayloadSignatureError
from gridfleet.storage.payloads.digest import digest_of
from gridfleet.storage.payloads.format import dump, size_of
from gridfleet.storage.refits import find_refit
from gridfleet.storage.schema import BestModel, BestModelChunk, Search
from gridfleet.storage.settings import Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.trial_results import ModelResult, TrialResult
from gridfleet.storage.trials import transitions
from gridfleet.storage.trials.held import Held
from tests.faults.support import X, Y
from tests.storage.conftest import result_of
from tests.stored_searches import claim, switch_triggers_off

Change = Callable[[Fleet, Path], None]


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def packed(obj: Any) -> tuple[list[memoryview], str, int]:
    content = dump("model", (None, obj), what="a model")
    return content, digest_of(content), size_of(content)


def store(fleet: Fleet, name: str, obj: Any, *, signer: Signer | None = None) -> SearchHandle:
    """Store a search, and its best model, as a worker with this key does."""
    handle = submit(GridSearchCV(SVC(), {"C": [1, 2]}, cv=2, verbose=0), X, Y, name=name)
    for number, score in enumerate((0.5, 0.75)):
        claimed = claim(fleet.database, handle.id, number, "node/1")
        assert transitions.record(fleet.database, Held(claimed.trial_id, claimed.token), result_of(score))
    refit = find_refit(fleet.database, handle.id)
    assert refit is not None
    held = claim(fleet.database, refit.search_id, 0, "node/1")
    content, digest, size = packed(obj)
    facts = {"number": 1, "digest": digest, "size": size}
    signature = models.sign(
        signer or fleet.settings.for_workers().model_signer(), refit.search_id, held.trial_id, **facts
    )
    result = TrialResult(splits=[], mean_fit_time=1.0, model=ModelResult(content, signature=signature, **facts))
    assert transitions.record(fleet.database, Held(held.trial_id, held.token), result)
    return handle


def set_rows(fleet: Fleet, table: Any, condition: Any = True, **values: Any) -> None:
    with fleet.database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(update(table).where(condition).values(**values))


def set_content(fleet: Fleet, obj: Any, **signed: Any) -> None:
    content, digest, size = packed(obj)
    set_rows(fleet, BestModelChunk, content=b"".join(content))
    set_rows(fleet, BestModel, digest=digest, size=size, **signed)


def resign(fleet: Fleet, signer: Signer, model_key: str | None = None) -> None:
    """Sign the model that is there, as whoever has another key can."""
    with fleet.database.read() as connection:
        model = connection.execute(select(*BestModel.__table__.columns)).one()
        refit = connection.execute(select(Search.id).where(Search.refit_of.is_not(None))).scalar_one()
    facts = {"number": model.number, "digest": model.digest, "size": model.size}
    set_rows(fleet, BestModel, signature=models.sign(signer, refit, model.trial_id, **facts))
    if model_key is not None:
        set_rows(fleet, Search, Search.refit_of.is_not(None), model_key=model_key)


def other_content(fleet: Fleet, bomb: Path) -> None:
    content, _, _ = packed(Bomb(bomb))
    set_rows(fleet, BestModelChunk, content=b"".join(content))


def other_content_and_digest(fleet: Fleet, bomb: Path) -> None:
    set_content(fleet, Bomb(bomb))


def signed_with_a_key_of_ones_own(fleet: Fleet, bomb: Path) -> None:
    set_content(fleet, Bomb(bomb))
    resign(fleet, Signer(b"the key of somebody else"))


def signed_with_a_key_of_ones_own_that_the_table_names(fleet: Fleet, bomb: Path) -> None:
    set_content(fleet, Bomb(bomb))
    signer = Signer(b"the key of somebody else")
    resign(fleet, signer, signer.public_key)


def signed_with_the_public_key(fleet: Fleet, bomb: Path) -> None:
    set_content(fleet, Bomb(bomb))
    resign(fleet, Signer((fleet.settings.for_workers().public_key or "").encode()))


def another_number(fleet: Fleet, bomb: Path) -> None:
    set_rows(fleet, BestModel, number=0)


def the_name_of_another_search(fleet: Fleet, bomb: Path) -> None:
    store(fleet, "other", Bomb(bomb))
    set_rows(fleet, Search, Search.name == "pima", name="pima-before")
    set_rows(fleet, Search, Search.name == "other", name="pima")


CHANGES: list[Change] = [
    other_content,
    other_content_and_digest,
    signed_with_a_key_of_ones_own,
    signed_with_a_key_of_ones_own_that_the_table_names,
    signed_with_the_public_key,
    another_number,
    the_name_of_another_search,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_was_forged_or_altered_is_not_loaded(fleet: Fleet, tmp_path: Path, change: Change) -> None:
    store(fleet, "pima", "the model")
    assert open_search("pima").best_estimator_ == "the model"

    change(fleet, tmp_path / "bomb")

    with pytest.raises(PayloadSignatureError):
        _ = open_search("pima").best_estimator_
    assert not (tmp_path / "bomb").exists()


def test_who_has_the_public_key_only_loads_models_and_signs_none(
    fleet: Fleet, use_fleet: Callable[[Settings], None]
) -> None:
    store(fleet, "pima", "the model")
    use_fleet(fleet.settings.for_workers().replace(worker_key=None))

    assert open_search("pima").best_estimator_ == "the model"


def test_a_model_of_another_release_of_keras_gets_a_sentence(fleet: Fleet) -> None:
    store(fleet, "pima", Unloadable())
    set_rows(fleet, BestModel, keras_version="2.99.1", python_version="3.0.0")

    with pytest.raises(BestModelError) as refused:
        _ = open_search("pima").best_estimator_

    said = str(refused.value)
    assert said.startswith(
        "the best model of search 'pima' can't be loaded here (Unrecognized keyword arguments: ['seed_generator']); "
        "it was fitted with Keras 2.99.1, here "
    )
    assert "with Python 3.0.0, here" in said
    assert "\n" not in said


class Unloadable:
    """What another release of Keras saved."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _deserialize, ({"seed_generator": 1},)


def _deserialize(config: dict[str, Any]) -> None:
    raise ValueError(f"Unrecognized keyword arguments: {list(config)}\n\nconfig={config}")
