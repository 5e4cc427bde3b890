"""What a script registered with Keras: there for a trial, and gone afterwards."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
from keras import layers, saving
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

from gridfleet.worker.trial import keras_objects
from gridfleet.worker.trial.cross_validation import Evaluation
from gridfleet.worker.trial.keras_objects import (
    KerasObjects,
    keras_objects_of_the_script,
    registered_for_a_trial,
)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave Keras' names as they were; what tests of scripts registered in this process is none of a trial's."""
    monkeypatch.setattr(keras_objects, "_replaced", {})
    objects, names = dict(saving.get_custom_objects()), dict(GLOBAL_CUSTOM_NAMES)
    yield
    for table, before in ((saving.get_custom_objects(), objects), (GLOBAL_CUSTOM_NAMES, names)):
        table.clear()
        table.update(before)


def own_loss(y_true: Any, y_pred: Any) -> Any:
    return y_pred - y_true


def as_unpickled_elsewhere(objects: KerasObjects) -> bytes:
    """Return a payload, and forget what it holds."""
    pickled = cloudpickle.dumps(Evaluation(None, {}, keras_objects=objects))
    for name in objects.objects:
        GLOBAL_CUSTOM_NAMES.pop(saving.get_custom_objects().pop(name, None), None)
    return pickled


def test_only_what_no_installed_package_registered_is_of_the_script() -> None:
    saving.register_keras_serializable("tests")(own_loss)
    saving.get_custom_objects()[">Dense"] = layers.Dense  # as scikeras does

    found = keras_objects_of_the_script()

    assert found.objects["tests>own_loss"] is own_loss
    assert ">Dense" not in found.objects


def test_a_payload_registers_what_it_brings_until_its_trial_is_over() -> None:
    saving.register_keras_serializable("tests")(own_loss)
    saving.get_custom_objects()["plain"] = own_loss
    objects = KerasObjects({name: saving.get_custom_objects()[name] for name in ("tests>own_loss", "plain")})
    pickled = as_unpickled_elsewhere(objects)

    for _ in range(2):
        with registered_for_a_trial():
            evaluation = pickle.loads(pickled)
            assert saving.get_registered_object("tests>own_loss") is own_loss
            assert saving.get_registered_object("plain") is own_loss
            assert saving.get_registered_name(own_loss) == "tests>own_loss"

        assert saving.get_registered_object("tests>own_loss") is None
        assert saving.get_registered_object("plain") is None
        assert own_loss not in GLOBAL_CUSTOM_NAMES

    with registered_for_a_trial():  # a payload that this process has unpickled already
        evaluation.keras_objects.register()
        assert saving.get_registered_object("tests>own_loss") is own_loss
    assert saving.get_registered_object("tests>own_loss") is None


def test_what_a_package_of_the_worker_registered_under_such_a_name_comes_back() -> None:
    pickled = as_unpickled_elsewhere(KerasObjects({"tests>own_loss": own_loss}))
    saving.get_custom_objects()["tests>own_loss"] = abs

    with registered_for_a_trial():
        pickle.loads(pickled)
        assert saving.get_registered_object("tests>own_loss") is own_loss

    assert saving.get_registered_object("tests>own_loss") is abs


class NotPicklable:
    """Stops no search that does not use it."""

    def __reduce__(self) -> Any:
        raise RuntimeError


def test_what_can_not_be_pickled_is_left_out() -> None:
    pickled = as_unpickled_elsewhere(KerasObjects({"bad": NotPicklable(), "tests>own_loss": own_loss}))

    with registered_for_a_trial():
        assert list(pickle.loads(pickled).keras_objects.objects) == ["tests>own_loss"]


class Needs:
    """Can be unpickled only where the loss is registered, as a model that uses it."""

    def __reduce__(self) -> Any:
        return _needed, ()


def _needed() -> Any:
    assert saving.get_registered_object("tests>own_loss") is own_loss
    return Needs()


def test_it_is_registered_before_the_estimator_is_unpickled() -> None:
    pickled = cloudpickle.dumps(Evaluation(Needs(), {}, keras_objects=KerasObjects({"tests>own_loss": own_loss})))

    with registered_for_a_trial():
        assert isinstance(pickle.loads(pickled).estimator, Needs)
