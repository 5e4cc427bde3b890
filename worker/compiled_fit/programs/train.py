"""Keras' loops over batches and epochs as functions inside the graph, for any model of the same structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from copy import copy
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.eligibility import NotEligibleError
from gridfleet.worker.compiled_fit.programs.variables import variables_of
from gridfleet.worker.compiled_fit.xla_policy import (
    CHECKED_OUTSIDE_XLA,
    DIFFERS_IN_XLA,
    NOT_DETERMINISTIC_IN_XLA,
    XLA_MAY_FAIL,
    bucket,
    same_random_numbers,
    without_grappler,
)

#: Operations whose numbers depend on where they stand in the graph: another loop gives others under a seed.
STATEFUL_RANDOM = frozenset(
    (
        "RandomUniform",
        "RandomUniformInt",
        "RandomStandardNormal",
        "TruncatedNormal",
        "ParameterizedTruncatedNormal",
        "RandomGamma",
        "RandomPoisson",
        "RandomPoissonV2",
        "RandomShuffle",
        "Multinomial",
    )
)

#: Scores and results travel as doubles, which hold every float32 exactly.
RESULT = tf.float64


class TrainProgram:
    """Epochs of training and validation of one model, and of all others of its structure.

    The model's own ``train_step`` and ``test_step`` are traced once; a program runs them for another model by
    handing it the handles of that model's variables in place of its own, so nothing is copied or traced anew.

    Parameters
    ----------
    model : keras.Model
        Compiled; variables that are not made yet, the steps make as they are traced, as in Keras.
    train : Batches
        What it is trained on; only types and structure count.
    validation : Batches or None
        What it is validated on after an epoch.
    for_xla : bool
        Whether the steps are to be traced so that XLA draws the same random numbers.
    """

    def __init__(self, model: Any, train: Batches, validation: Batches | None, *, for_xla: bool) -> None:
        with same_random_numbers() if for_xla else nullcontext():
            # XLA takes splits whose sizes differ by one in one program
            size = None if for_xla else train.fixed_batch_size
            self._train_step = _Step(model, model.train_step, train, batch_size=size)
            size = None if for_xla or validation is None else validation.fixed_batch_size
            self._test_step = None if validation is None else _Step(model, model.test_step, validation, batch_size=size)
        self.has_validation = validation is not None
        self.metric_names = self._train_step.result_names
        self.validation_names = [] if self._test_step is None else [f"val_{n}" for n in self._test_step.result_names]
        self._reset = _traced_reset(model)
        self._variables = _trained(model)  # only now, for the steps make those that are missing
        self._train = train.without_rows()  # the program outlives the data
        self._runs: dict[Any, _Function] = {}
        operations = _operations(self._train_step.traced)
        #: Whether XLA needs the step traced for batches of a fixed size: recurrent layers do, others by trying.
        self.xla_wants_fixed_batches = any("While" in name for name in operations)
        self.why_no_xla = self._train_step.why_no_xla() if for_xla else "it was not traced for XLA"
        #: Whether a step fails at an index out of range, where XLA would go on.
        self.checks_indices = _checks_indices(self._train_step.traced)
        #: Whether a step's time is that of convolutions, for which TensorFlow's own kernels beat XLA's.
        self.convolves = any("Conv" in name for name in operations)

    @property
    def steps(self) -> list[Any]:
        """The traced steps."""
        return [self._reset, *(step.traced for step in (self._train_step, self._test_step) if step is not None)]

    @property
    def told(self) -> Any:
        """What the graphs of the steps do not show."""
        return self._variables.types, self._variables.captured_by(self.steps), self.metric_names, self.validation_names

    @property
    def is_shareable(self) -> bool:
        """Whether all that the steps captured are variables, which another model can stand in for."""
        return all(self._variables.knows(step.captured_inputs) for step in self.steps)

    @property
    def n_operations(self) -> int:
        """Operations of a training step's graph."""
        return len(self._train_step.traced.graph.get_operations())

    def prepare(self, model: Any, *, watches_for_nan: bool, xla_batch_size: int | None) -> Any:
        """Trace a loop, unless it was traced before.

        Parameters
        ----------
        model : keras.Model
            Of the program's structure; it is not kept.
        watches_for_nan : bool
            Whether an epoch ends at the first batch after which the loss is not finite.
        xla_batch_size : int or None
            Rows of the batches that XLA is to loop over; None: no XLA.

        Returns
        -------
        hashable
            Names the loop, for `run`.
        """
        key = (watches_for_nan, xla_batch_size, self.xla_wants_fixed_batches)
        if key not in self._runs:
            self._runs[key] = self._trace(model, watches_for_nan, xla_batch_size)
        return key

    def run(
        self,
        key: Any,
        model: Any,
        train: Batches,
        validation: Batches | None,
        *,
        orders: npt.NDArray[np.int64],
        validate: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.float64], int]:
        """Train a model for some epochs; its metrics were reset before the first one.

        Parameters
        ----------
        key : hashable
            From `prepare`.
        model : keras.Model
            Of the same structure as the one that the program was made with.
        train, validation : Batches
            The data.
        orders : ndarray of shape (1, n_samples) or (n_epochs, n_samples)
            In which order the rows are fed; one row: the same in all epochs.
        validate : ndarray of shape (n_epochs,)
            After which epochs to validate.

        Returns
        -------
        results : ndarray of shape (n_epochs, n_results)
            The metrics, then those of the validation (zeros where there was none).
        n_steps : int
            Batches of the last epoch; fewer than there are if it was ended by a loss that is not finite.
        """
        arguments = [
            *train.tensors,
            *([] if validation is None else validation.tensors),
            tf.constant(orders),
            tf.constant(validate),
            *_sizes(train),
            tf.constant(bucket(train.n_samples)),
            *(_sizes(validation) if validation is not None else (tf.constant(0), tf.constant(1))),
        ]
        results, n_steps = self._runs[key](arguments, _trained(model))
        return results.numpy(), int(n_steps)

    def _trace(self, model: Any, watches_for_nan: bool, xla_batch_size: int | None) -> _Function:
        variables = _trained(model)
        train = self._train_step.on(variables, traced_with=self._variables)
        test = None if self._test_step is None else self._test_step.on(variables, traced_with=self._variables)
        over_batches = (
            _graph_loop(model, train, watches_for_nan)
            if xla_batch_size is None
            else _xla_loop(train, self._step_for_xla(model, train, xla_batch_size), xla_batch_size)
        )
        validate_loop = None if test is None else _graph_loop(model, test, False)

        def epochs(*arguments: Any) -> Any:
            rows, arguments = list(arguments[: train.n_inputs]), arguments[train.n_inputs :]
            validation_rows = list(arguments[: test.n_inputs]) if test is not None else []
            orders, validate, n, batch_size, n_padded, n_validation, validation_batch_size = arguments[
                len(validation_rows) :
            ]

            def validation_results() -> Any:
                model.reset_metrics()
                _, logs = validate_loop(  # type: ignore[misc]
                    validation_rows, None, n_validation, validation_batch_size, n_validation
                )
                return test.results(model, logs)  # type: ignore[union-attr]

            def reset() -> Any:
                model.reset_metrics()
                return tf.constant(0)

            def epoch(number: Any, _: Any, history: Any) -> Any:
                # the first one's were reset before its callbacks, which may have used them since
                tf.cond(number > 0, reset, lambda: tf.constant(0))
                order = orders[tf.minimum(number, tf.shape(orders)[0] - 1)]
                n_steps, logs = over_batches(rows, order, n, batch_size, n_padded)
                row = train.results(model, logs)
                if test is not None:
                    width = len(test.result_names)
                    validated = tf.cond(validate[number], validation_results, lambda: tf.zeros((width,), RESULT))
                    row = tf.concat([row, validated], 0)
                return number + 1, n_steps, history.write(number, row)

            n_epochs = tf.shape(validate)[0]
            width = len(train.result_names) + (0 if test is None else len(test.result_names))
            history = tf.TensorArray(RESULT, size=n_epochs, element_shape=(width,))
            _, n_steps, history = tf.while_loop(
                lambda number, *_: number < n_epochs,
                epoch,
                [tf.constant(0), tf.constant(0), history],
                parallel_iterations=1,
            )
            return history.stack(), n_steps

        scalar = tf.TensorSpec((), tf.int32)
        signature = [
            *train.specs,
            *([] if test is None else test.specs),
            tf.TensorSpec((None, None), tf.int64),
            tf.TensorSpec((None,), tf.bool),
            scalar,
            scalar,
            scalar,
            scalar,
            scalar,
        ]
        # validation stays in the graph, and may be much
        return _Function(epochs, signature, variables, uses_grappler=xla_batch_size is None or test is not None)

    def _step_for_xla(self, model: Any, step: _Step, batch_size: int) -> _Step:
        if not self.xla_wants_fixed_batches:
            return step
        with same_random_numbers():
            return _Step(model, model.train_step, self._train, batch_size=batch_size)


class EvaluateProgram:
    """Keras' ``evaluate``: one pass of ``test_step`` over data."""

    def __init__(self, model: Any, data: Batches) -> None:
        step = _Step(model, model.test_step, data, batch_size=data.fixed_batch_size)
        self.steps = [_traced_reset(model), step.traced]
        self._variables = _evaluated(model)  # only now, for the step makes those that are missing
        self.metric_names = step.result_names
        loop = _graph_loop(model, step, False)

        def evaluate(*arguments: Any) -> Any:
            *rows, n, batch_size = arguments
            model.reset_metrics()
            _, logs = loop(rows, None, n, batch_size, n)
            return step.results(model, logs)

        scalar = tf.TensorSpec((), tf.int32)
        self._function = _Function(evaluate, [*step.specs, scalar, scalar], self._variables)

    @property
    def is_shareable(self) -> bool:
        """Whether all that the step captured are variables."""
        return all(self._variables.knows(step.captured_inputs) for step in self.steps)

    @property
    def told(self) -> Any:
        """What the graphs of the steps do not show."""
        return self._variables.types, self._variables.captured_by(self.steps), self.metric_names

    def run(self, model: Any, data: Batches) -> dict[str, float]:
        """Return the metrics of a model on data."""
        results = self._function([*data.tensors, *_sizes(data)], _evaluated(model)).numpy()
        return dict(zip(self.metric_names, map(float, results), strict=True))


class PredictProgram:
    """Keras' ``predict``: one pass of ``predict_step`` over data, batch by batch as there."""

    def __init__(self, model: Any, data: Batches) -> None:
        self._variables = _predicted(model)

        # as Keras does: the first batch's step knows its size, another one takes the shorter last batch
        full = _predict_step(model, data, data.first_batch_size)
        rest = _predict_step(model, data, None) if data.has_remainder else None
        self.steps = [step for step in (full, rest) if step is not None]
        self._structure = full.structured_outputs
        outputs = keras.tree.flatten(self._structure)
        for output in outputs:
            if not isinstance(output, tf.Tensor) or output.shape.rank in (None, 0) or None in output.shape[1:]:
                raise NotEligibleError("an output of the model has rows of varying shape")

        def predict(*arguments: Any) -> Any:
            *rows, n, _ = arguments
            size = data.first_batch_size
            n_full = n // size

            def write(step: Any, number: Any, count: Any, parts: Iterable[Any]) -> list[Any]:
                predicted = keras.tree.flatten(step(*(_some_rows(row, number * size, count) for row in rows)))
                return [part.write(number, one) for part, one in zip(parts, predicted, strict=True)]

            parts = [
                tf.TensorArray(
                    output.dtype,
                    size=n_full + int(data.has_remainder),
                    infer_shape=False,
                    element_shape=(None, *output.shape[1:]),
                )
                for output in outputs
            ]
            _, *parts = tf.while_loop(
                lambda number, *_: number < n_full,
                lambda number, *parts: (number + 1, *write(full, number, size, parts)),
                [tf.constant(0), *parts],
                parallel_iterations=1,
            )
            if rest is not None:
                parts = write(rest, n_full, n - n_full * size, parts)
            return [part.concat() for part in parts]

        scalar = tf.TensorSpec((), tf.int32)
        self._function = _Function(predict, [*data.specs, scalar, scalar], self._variables)

    @property
    def is_shareable(self) -> bool:
        """Whether all that the step captured are variables."""
        return all(self._variables.knows(step.captured_inputs) for step in self.steps)

    @property
    def told(self) -> Any:
        """What the graphs of the steps do not show."""
        structure = keras.tree.map_structure(lambda _: 0, self._structure)
        return self._variables.types, self._variables.captured_by(self.steps), structure

    def run(self, model: Any, data: Batches) -> Any:
        """Return the predictions of a model, as arrays in the structure of its outputs."""
        flat = self._function([*data.tensors, *_sizes(data)], _predicted(model))
        return keras.tree.pack_sequence_as(self._structure, [output.numpy() for output in flat])


def _predict_step(model: Any, data: Batches, batch_size: int | None) -> Any:
    def predict_step(*batch: Any) -> Any:
        return model.predict_step(keras.tree.pack_sequence_as(data.structure, list(batch)))

    traced = tf.function(
        predict_step,
        autograph=False,
        input_signature=[tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype) for spec in data.specs],
        jit_compile=True if model.jit_compile else None,
    ).get_concrete_function()
    _check_random(traced)
    return traced


class _Variables:
    """Variables that a program runs on, each once, in an order that equal models share."""

    def __init__(self, variables: Iterable[Any]) -> None:
        self.resources: list[Any] = []
        self._places: dict[int, int] = {}
        for variable in variables:
            resource = variable.value if isinstance(variable, keras.Variable) else variable
            if id(resource.handle) not in self._places:
                self._places[id(resource.handle)] = len(self.resources)
                self.resources.append(resource)
        self.types = [(tuple(resource.shape), resource.dtype) for resource in self.resources]

    def knows(self, captured: list[Any]) -> bool:
        return all(id(tensor) in self._places for tensor in captured)

    def captured_by(self, functions: list[Any]) -> list[Any]:
        return [self.places(function.captured_inputs) for function in functions]

    def places(self, captured: list[Any]) -> list[Any]:
        """Return the place of each captured variable, or what was captured if it is none of these."""
        return [self._places.get(id(tensor), tensor) for tensor in captured]

    def at(self, places: list[Any]) -> list[Any]:
        """Return what to hand to a function in place of what it captured."""
        return [self.resources[place].handle if isinstance(place, int) else place for place in places]


def _traced_reset(model: Any) -> Any:
    return tf.function(model.reset_metrics, autograph=False).get_concrete_function()


def _trained(model: Any) -> _Variables:
    return _Variables(variables_of(model))


def _evaluated(model: Any) -> _Variables:
    return _Variables(variables_of(model, trains=False))


def _predicted(model: Any) -> _Variables:
    return _Variables(model.variables)


class _Function:
    """A traced function that runs on the variables of any model of the same structure."""

    def __init__(
        self, function: Callable[..., Any], signature: list[Any], variables: _Variables, *, uses_grappler: bool = True
    ) -> None:
        self._traced = tf.function(function, autograph=False, input_signature=signature).get_concrete_function()
        _check_random(self._traced)
        self._types = variables.types
        self._captured = variables.places(self._traced.captured_inputs)
        self._uses_grappler = uses_grappler

    def __call__(self, arguments: list[Any], variables: _Variables) -> Any:
        if variables.types != self._types:  # a defect of the cache's key: never train with the wrong program
            raise RuntimeError("the model's variables are not those of the program's structure")
        with nullcontext() if self._uses_grappler else without_grappler():
            return self._traced._call_flat(arguments, variables.at(self._captured))


class _Step:
    """A model's ``train_step`` or ``test_step``, traced once for batches of any size."""

    def __init__(self, model: Any, step: Callable[..., Any], data: Batches, *, batch_size: int | None = None) -> None:
        self.specs = data.specs
        self.batch_size = batch_size
        self.n_inputs = len(self.specs)
        batch_specs = [tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype) for spec in self.specs]

        def one_batch(*batch: Any) -> Any:
            return step(keras.tree.pack_sequence_as(data.structure, list(batch)))

        self.traced = tf.function(
            one_batch, autograph=False, input_signature=batch_specs, jit_compile=True if model.jit_compile else None
        ).get_concrete_function()
        _check_random(self.traced)
        self._captured = self.traced.captured_inputs
        logs = self.traced.structured_outputs
        metrics = model.get_metrics_result()
        if not isinstance(logs, dict):
            raise NotEligibleError("the model's step returns no dict of metrics")
        #: Whether results are read off the metrics; otherwise they are what the last batch's step returned.
        self.reads_metrics = set(logs) == set(metrics)
        results = metrics if self.reads_metrics else logs
        if any(isinstance(value, dict) or getattr(value, "shape", None) != () for value in results.values()):
            raise NotEligibleError("a metric's result is not a single number")
        self.result_names = list(results)

    def results(self, model: Any, logs: Any) -> Any:
        """Return the results of a pass as one vector, inside the graph."""
        if not self.reads_metrics:
            return logs
        return _vector(model.get_metrics_result(), self.result_names)

    def on(self, variables: _Variables, *, traced_with: _Variables) -> _Step:
        """Return the step as it runs on another model's variables.

        The loop around it must capture these alone: TensorFlow keeps what reads a variable behind what writes it
        only if both captured it once.
        """
        step = copy(self)
        step._captured = variables.at(traced_with.places(self.traced.captured_inputs))
        return step

    def call(self, batch: list[Any]) -> Any:
        """Run it inside the graph; returns its logs as a vector where they are wanted."""
        logs = self.traced._call_flat(batch, self._captured)
        return tf.zeros((0,), RESULT) if self.reads_metrics else _vector(logs, self.result_names)

    @property
    def no_logs(self) -> Any:
        """What the logs are before the first batch."""
        return tf.zeros((0 if self.reads_metrics else len(self.result_names),), RESULT)

    def why_no_xla(self) -> str | None:
        """Return why the step can't be compiled to something with the same result, or None."""
        if not self.reads_metrics:
            return "its results are those of the last batch"
        operations = _operations(self.traced)
        for name in sorted(operations & (DIFFERS_IN_XLA | XLA_MAY_FAIL)):
            return f"{name} is another in XLA" if name in DIFFERS_IN_XLA else f"XLA has no {name}"
        if is_op_determinism_enabled():  # by scikeras, for an estimator with a random_state
            for name in sorted(operations & NOT_DETERMINISTIC_IN_XLA):
                return f"XLA has no deterministic {name}"
        return None


def _graph_loop(model: Any, step: _Step, watches_for_nan: bool) -> Callable[..., Any]:
    def over_batches(rows: list[Any], order: Any, n: Any, batch_size: Any, _n_padded: Any) -> Any:
        n_steps = (n + batch_size - 1) // batch_size

        def is_going_on(number: Any, goes_on: Any, _: Any) -> Any:
            return tf.logical_and(number < n_steps, goes_on)

        def body(number: Any, goes_on: Any, _: Any) -> Any:
            first = number * batch_size
            count = tf.minimum(batch_size, n - first) if step.batch_size is None else step.batch_size
            if order is None:
                batch = [_some_rows(row, first, count) for row in rows]
            else:
                places = _some_rows(order, first, count)
                batch = [tf.gather(row, places) for row in rows]
            logs = step.call(batch)
            if watches_for_nan:
                goes_on = tf.math.is_finite(tf.cast(_loss(model, step, logs), RESULT))
            return number + 1, goes_on, logs

        n_done, _, logs = tf.while_loop(
            is_going_on, body, [tf.constant(0), tf.constant(True), step.no_logs], parallel_iterations=1
        )
        return n_done, logs

    return over_batches


def _some_rows(rows: Any, first: Any, count: Any) -> Any:
    """Return as many rows from the first on; their number is known to the graph if it is a Python number."""
    return tf.slice(rows, [first, *([0] * (rows.shape.rank - 1))], [count, *rows.shape[1:]])


def _loss(model: Any, step: _Step, logs: Any) -> Any:
    if "loss" not in step.result_names:
        return tf.constant(0.0)
    return step.results(model, logs)[step.result_names.index("loss")]


def _xla_loop(step: _Step, full_step: _Step, batch_size: int) -> Callable[..., Any]:
    """Loop over the full batches in XLA; the shorter last one runs in the graph, which spares a second compilation."""

    def full_batches(n_full: Any, *rows: Any) -> Any:
        def body(number: Any) -> Any:
            first = number * batch_size
            full_step.call(
                [tf.slice(row, [first, *([0] * (row.shape.rank - 1))], [batch_size, *row.shape[1:]]) for row in rows]
            )
            return (number + 1,)

        return tf.while_loop(lambda number: number < n_full, body, [tf.constant(0)], parallel_iterations=1)

    compiled = tf.function(full_batches, autograph=False, jit_compile=True)

    def over_batches(rows: list[Any], order: Any, n: Any, _: Any, n_padded: Any) -> Any:
        n_full = n // batch_size
        n_steps = (n + batch_size - 1) // batch_size
        # rows of splits that differ by one are padded to one shape, which XLA compiles once
        shuffled = [tf.gather(row, tf.pad(order, [[0, n_padded - n]])) for row in rows]
        compiled(n_full, *shuffled)

        def last_batch() -> Any:
            step.call([row[n_full * batch_size : n] for row in shuffled])
            return tf.constant(0)

        tf.cond(n_full < n_steps, last_batch, lambda: tf.constant(0))
        return n_steps, step.no_logs

    return over_batches


def _vector(results: dict[str, Any], names: list[str]) -> Any:
    return tf.stack([tf.cast(results[name], RESULT) for name in names]) if names else tf.zeros((0,), RESULT)


def _sizes(data: Batches) -> tuple[Any, Any]:
    return tf.constant(data.n_samples), tf.constant(data.batch_size)


def _operations(function: Any) -> set[str]:
    graph = function.graph.as_graph_def()
    nodes = [node.op for node in graph.node]
    return set(nodes).union(*({node.op for node in one.node_def} for one in graph.library.function))


def _checks_indices(function: Any) -> bool:
    graph = function.graph.as_graph_def()
    for nodes in (graph.node, *(one.node_def for one in graph.library.function)):
        kinds = {node.name: node.op for node in nodes}
        for node in nodes:
            if node.op in CHECKED_OUTSIDE_XLA:
                looked_up, index = (kinds.get(name.partition(":")[0]) for name in node.input[:2])
                # constants are in range, or tracing had failed; the gradient of a mean looks up the axes of a shape
                if index != "Const" and looked_up != "Shape":
                    return True
    return False


def _check_random(function: Any) -> None:
    for name in sorted(_operations(function) & STATEFUL_RANDOM):
        raise NotEligibleError(f"the model draws random numbers with TensorFlow's stateful {name}")
