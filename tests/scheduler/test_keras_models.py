"""What of a Keras model can't be made again on a worker, said by its name."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from keras import Input, Sequential, layers, losses, metrics, optimizers, saving
from scikeras.wrappers import KerasClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gridfleet.scheduler.submission.checks import check_can_travel
from gridfleet.scheduler.submission.fingerprint import NotSeenError, fingerprint
from gridfleet.scheduler.submission.keras_models import check_keras_models
from gridfleet.storage.errors import NotPicklableError


class Bare(layers.Layer):
    """Not registered."""

    def call(self, inputs):
        return inputs


@saving.register_keras_serializable("tests")
class Registered(Bare):
    """As it should be."""


def locked() -> layers.Layer:
    """Return a layer whose class travels by value, as those of a script do, and has what can't be pickled."""

    @saving.register_keras_serializable("tests")
    class Locked(Bare):
        lock = threading.Lock()

    return Locked()


@saving.register_keras_serializable("tests")
class WithoutConfig(Bare):
    """Has an argument that its configuration lacks."""

    def __init__(self, factor, **others):
        super().__init__(**others)
        if not isinstance(factor, int):
            raise TypeError("factor is to be a number")
        self.factor = factor

    def get_config(self):
        return {**super().get_config(), "factor": str(self.factor)}


def own_activation(inputs):
    """Return them; not registered."""
    return inputs


def model_with(layer: Any, activation: Any = "sigmoid") -> Sequential:
    model = Sequential([Input((2,)), layer, layers.Dense(1, activation=activation)])
    model.compile("sgd", "mse")
    return model


def check(estimator: Any) -> None:
    """Look at an estimator as `fit` does before anything is stored."""
    check_can_travel(estimator)
    check_keras_models(estimator, [])


@pytest.mark.parametrize(
    ("layer", "activation", "sentence"),
    [
        (Bare, "sigmoid", r"has the layer or other class Bare, which is not registered; put @keras.saving.register"),
        (lambda: layers.Dense(1), own_activation, "has the function own_activation, which is not registered"),
        (lambda: WithoutConfig(2), "sigmoid", "factor is to be a number; a layer of your own needs a get_config"),
        (locked, "sigmoid", r"is a model with Locked \(registered as 'tests>Locked'\), which can't be pickled"),
    ],
    ids=["not registered", "a function", "no config", "a lock"],
)
def test_what_of_a_model_can_not_travel_is_named(layer: Any, activation: Any, sentence: str) -> None:
    estimator = make_pipeline(StandardScaler(), KerasClassifier(model_with(layer(), activation)))

    with pytest.raises(NotPicklableError, match=sentence) as refused:
        check(estimator)

    saving.get_custom_objects().pop("tests>Locked", None)  # what is registered goes along with every later search
    assert str(refused.value).startswith("kerasclassifier__model is a model")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_every_model_among_the_combinations_is_looked_at() -> None:
    good, bad = model_with(Registered()), model_with(Bare())

    check_keras_models(KerasClassifier(), [{"model": good}])
    with pytest.raises(NotPicklableError, match=r"^model is a model that Keras can't make again"):
        check_keras_models(KerasClassifier(), [{"model": good}, {"model": bad}])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: losses.Huber(1.0), lambda: losses.Huber(2.0)),
        (lambda: losses.BinaryCrossentropy(), lambda: losses.BinaryCrossentropy(from_logits=True)),
        (lambda: optimizers.Adam(0.1), lambda: optimizers.Adam(0.2)),
        (lambda: optimizers.SGD, lambda: optimizers.Adam),
        (lambda: Bare, lambda: Registered),
    ],
)
def test_a_loss_and_an_optimizer_are_known_again_by_what_they_do(one: Any, other: Any) -> None:
    digests = [fingerprint(made, "it") for made in (one(), one(), other())]

    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("made", [lambda: metrics.AUC(), lambda: Bare(), lambda: Sequential()])
def test_what_keras_saves_as_a_file_is_not_seen_into(made: Any) -> None:
    with pytest.raises(NotSeenError, match="object can't be seen into; give its name or its class"):
        fingerprint(made(), "it")
