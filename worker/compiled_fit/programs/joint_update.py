"""An optimizer's update of all variables at once, laid end to end, with the numbers of Keras' updates one by one.

Half of a small model's step are the optimizer's operations, a dozen of a microsecond for each variable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from gridfleet.worker.compiled_fit.errors import NotEligibleError
from gridfleet.worker.compiled_fit.patches.patch import Patch, Replacement
from gridfleet.worker.compiled_fit.types import Model, Optimizer, Resource, Tensor

#: Optimizers whose update makes the same of a number wherever it stands, and their variables for each one of the model.
#: Not RMSprop: TensorFlow makes a reciprocal square root of its division, and kernels compute that otherwise at the end
#: of an array than inside of it. Divided variable by variable its steps took 0.85 to 0.98 of the time; Adam's take 0.64
#: to 0.82. Not SGD, which has few operations.
KEPT_FOR_EACH = {
    keras.optimizers.Adam: ("_momentums", "_velocities", "_velocity_hats"),
    keras.optimizers.AdamW: ("_momentums", "_velocities", "_velocity_hats"),
    keras.optimizers.Nadam: ("_momentums", "_velocities"),
}
#: Numbers in all variables together; of more, a step's time is that of its arithmetic.
MAX_NUMBERS = 50_000
#: Updates of one variable that an update at once has to replace before it repays another trace of the step: it spares
#: about 8 us of each, and a trace takes 0.1 s.
MIN_UPDATES = 20_000


def may_update_at_once(model: Model, n_steps: int) -> bool:
    """Whether an update of all variables at once is known to give the same, and repays its trace.

    Parameters
    ----------
    model : keras.Model
        Compiled, its optimizer built.
    n_steps : int
        Steps that are to come.
    """
    optimizer, variables = model.optimizer, model.trainable_variables
    if type(optimizer) not in KEPT_FOR_EACH or model.jit_compile:
        return False
    if len(variables) < 2 or n_steps * len(variables) < MIN_UPDATES:
        return False
    are_floats = all(variable.dtype == "float32" for variable in variables)
    return are_floats and sum(_size(variable) for variable in variables) <= MAX_NUMBERS


class JointState:
    """What an optimizer keeps for a model's variables, laid end to end while a program runs.

    Parameters
    ----------
    model : keras.Model
        Compiled, its optimizer built.

    Attributes
    ----------
    variables : list of tf.Variable
        One for each list of the optimizer's.
    n_updates : int
        How often an update was traced.
    """

    def __init__(self, model: Model) -> None:
        optimizer = model.optimizer
        self._trained = model.trainable_variables
        self._kept = {
            name: [vars(optimizer)[name][optimizer._get_variable_index(variable)] for variable in self._trained]
            for name in KEPT_FOR_EACH[type(optimizer)]
            if vars(optimizer).get(name)
        }
        n_numbers = sum(map(_size, self._trained))
        self.variables = [tf.Variable(tf.zeros((n_numbers,)), trainable=False) for _ in self._kept]
        self.n_updates = 0

    def around(self, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a function that reads the optimizer's variables before it runs another, and writes them after."""

        def run_at_once(inputs: Any) -> Any:
            for joint, kept in zip(self.variables, self._kept.values(), strict=True):
                joint.assign(_end_to_end([one.value for one in kept]))
            results = run(inputs)
            for joint, kept in zip(self.variables, self._kept.values(), strict=True):
                for one, part in zip(kept, _split(joint.read_value(), kept), strict=True):
                    one.value.assign(tf.reshape(part, one.shape))
            return results

        return run_at_once

    @contextmanager
    def replacing(self, optimizer: Optimizer) -> Iterator[None]:
        """Open a block in which the optimizer is traced with an update of all variables at once."""
        attributes = vars(optimizer)
        places = {**attributes["_trainable_variables_indices"], _AllVariables.unique_id: 0}
        replaced = {
            "_distributed_tf_update_step": partial(self._update, optimizer),
            "_trainable_variables_indices": places,
            **{name: [joint] for name, joint in zip(self._kept, self.variables, strict=True)},
        }
        with Patch(lambda: [Replacement(attributes, *one) for one in replaced.items()]).installed():
            yield

    def _update(
        self, optimizer: Optimizer, _distribution: Any, pairs: Sequence[tuple[Tensor, Resource]], learning_rate: Tensor
    ) -> None:
        """Do what the method of the same name does in Keras, once for all."""
        gradients, variables = zip(*pairs, strict=True)
        if len(variables) != len(self._trained) or any(
            one is not other.value for one, other in zip(variables, self._trained, strict=True)
        ):
            raise NotEligibleError("a variable has no gradient")
        if any(not isinstance(one, tf.Tensor) or one.dtype != tf.float32 for one in gradients):
            raise NotEligibleError("a gradient is sparse")
        self.n_updates += 1
        optimizer.update_step(_end_to_end(gradients), _AllVariables(variables), learning_rate)


class _AllVariables:
    """A model's variables, as the one that an optimizer's ``update_step`` changes."""

    unique_id = _unique_id = "all variables"
    dtype = tf.float32

    def __init__(self, variables: Sequence[Resource]) -> None:
        self._variables = variables

    def assign_sub(self, value: Tensor) -> None:
        """Take a part of the value away from each."""
        for variable, part in zip(self._variables, _split(value, self._variables), strict=True):
            variable.assign_sub(tf.reshape(part, variable.shape))


def _size(variable: Any) -> int:
    return math.prod(variable.shape)


def _end_to_end(tensors: Sequence[Any]) -> Tensor:
    return tf.concat([tf.reshape(one, (-1,)) for one in tensors], 0)


def _split(joint: Tensor, variables: Sequence[Any]) -> list[Tensor]:
    """Return the part of each variable of what lies end to end."""
    parts: list[Tensor] = tf.split(joint, [_size(variable) for variable in variables])
    return parts
