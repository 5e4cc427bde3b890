"""A model's step, traced for one batch."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy

import tensorflow as tf
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.python.eager.polymorphic_function.concrete_function import (
    ConcreteFunction as ConcreteTensorFlowFunction,
)
from tensorflow.python.ops.handle_data_util import get_resource_handle_data

from gridfleet.worker.compiled_fit.data.batches import Batches
from gridfleet.worker.compiled_fit.data.keras_functions import Kind, is_traced_by_keras, kept_step, trace_kept_step
from gridfleet.worker.compiled_fit.data.stream import Stream
from gridfleet.worker.compiled_fit.errors import NotEligibleError
from gridfleet.worker.compiled_fit.patches.grappler import STAYS_WHOLE, functions_may_stay_whole, without_grappler
from gridfleet.worker.compiled_fit.programs.operations import (
    adds_constant_to_sum,
    check_random_operations,
    has_swish,
    operations_of,
    xla_obstacle,
)
from gridfleet.worker.compiled_fit.programs.results import RESULT, ResultLayout
from gridfleet.worker.compiled_fit.programs.variables import VariableSet
from gridfleet.worker.compiled_fit.types import ConcreteFunction, Graph, Model, StepFunction, Structure, Tensor

#: Attributes of a function that Grappler, TensorFlow's optimizer of graphs, looks at by itself, and not together with
#: the loop around it.
SEEN_ALONE = {"_noinline": True}
#: Which of Keras' functions of a model runs a method.
_KINDS: dict[str, Kind] = {"train_step": "train", "test_step": "test"}


def trace_step(model: Model, step: StepFunction, data: Batches | Stream, *, batch_size: int | None) -> ConcreteFunction:
    """Trace a method of a model for batches of one size, or of any.

    Parameters
    ----------
    model : keras.Model
        The method's.
    step : callable
        The method.
    data : Batches
        What it takes; only types and structure count.
    batch_size : int or None
        Rows of every batch; None: any.

    Raises
    ------
    NotEligibleError
        If it draws random numbers that another loop would not draw.
    """

    def one_batch(*batch: Tensor) -> Structure:
        return step(data.pack(list(batch)))

    traced = tf.function(
        one_batch,
        autograph=False,
        input_signature=[tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype) for spec in data.specs],
        jit_compile=True if model.jit_compile else None,
    ).get_concrete_function()
    check_random_operations(traced)
    return traced


def trace_as_keras(
    model: Model, step: StepFunction, data: Batches | Stream, *, batch_size: int | None
) -> ConcreteFunction:
    """Trace a method as `trace_step` does, so that Grappler rewrites in it what it rewrites in Keras' own function.

    In a loop it takes swish for other operations than outside of one; with several steps to an execution Keras has a
    loop around it as well. And it puts the terms of a sum in an order of names, of which a constant has that of an
    equal one in the results, which the loop here computes after an epoch only.

    Raises
    ------
    NotEligibleError
        If it is not known how.
    """
    traced = _trace_for_keras(model, step, data, batch_size=batch_size)
    adds_constant = not model.jit_compile and adds_constant_to_sum(traced)  # dice and tversky do
    if model.jit_compile or not (adds_constant or has_swish(traced)):
        return traced
    if model.steps_per_execution == 1 or not has_swish(traced):
        return _seen_alone(traced)
    if adds_constant:
        raise NotEligibleError("with steps_per_execution, silu beside a constant that is added to a sum")
    return traced


def _seen_alone(traced: ConcreteFunction) -> ConcreteFunction:
    """Return a function of the same graph, at which Grappler looks without what calls it, and with all results."""
    _write_shapes_of_variables(traced.graph)
    with functions_may_stay_whole():
        attributes = SEEN_ALONE | STAYS_WHOLE
        alone = ConcreteTensorFlowFunction.from_func_graph(traced.graph, traced.function_type, attributes)
    alone._traced = traced  # which takes its graph along when it goes
    return alone


def _trace_for_keras(
    model: Model, step: StepFunction, data: Batches | Stream, *, batch_size: int | None
) -> ConcreteFunction:
    """Return the graph that Keras would run; traced where its own loop finds it, if another call falls back to that."""
    kind = _KINDS.get(step.__name__)
    traced = kind and (
        kept_step(model, kind, data, batch_size=batch_size) or trace_kept_step(model, kind, data, batch_size=batch_size)
    )
    if not traced:
        return trace_step(model, step, data, batch_size=batch_size)
    check_random_operations(traced)
    return traced


def _write_shapes_of_variables(graph: Graph) -> None:
    """Let Grappler know the variables' shapes, which a function that is called by a graph is not told otherwise."""
    for _, handle in graph.captures:
        data = get_resource_handle_data(handle) if handle.dtype == tf.resource else None
        if data is not None and data.is_set:
            types = AttrValue.ListValue(type=[one.dtype for one in data.shape_and_type])
            shapes = AttrValue.ListValue(shape=[one.shape for one in data.shape_and_type])
            handle.op._set_attr("_handle_dtypes", AttrValue(list=types))
            handle.op._set_attr("_handle_shapes", AttrValue(list=shapes))


def trace_reset(model: Model) -> ConcreteFunction:
    """Trace the reset of a model's metrics."""
    return tf.function(model.reset_metrics, autograph=False).get_concrete_function()


class Step:
    """A model's ``train_step`` or ``test_step``, traced once for batches of any size, or of one.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    step : callable
        Its method.
    data : Batches
        What the step takes; only types and structure count.
    batch_size : int or None, default=None
        Rows of every batch; None: any.
    for_xla : bool, default=False
        Whether XLA is to compile it with the loop around it.
    is_apart : bool, default=False
        Whether Keras' own loop is not to find what is traced.

    Attributes
    ----------
    reads_metrics : bool
        Whether results are read off the metrics; otherwise they are what the last batch's step returned.
    layout : ResultLayout
        Of the results.
    """

    def __init__(
        self,
        model: Model,
        step: StepFunction,
        data: Batches | Stream,
        *,
        batch_size: int | None = None,
        for_xla: bool = False,
        is_apart: bool = False,
    ) -> None:
        self.specs = data.specs
        self.batch_size = batch_size
        trace = trace_step if for_xla or is_apart else trace_as_keras
        self._is_keras = for_xla and is_traced_by_keras(model, _KINDS[step.__name__], data)
        self.traced = trace(model, step, data, batch_size=batch_size)
        self._captured = self.traced.captured_inputs
        logs = self.traced.structured_outputs
        metrics = model.get_metrics_result()
        if not isinstance(logs, dict):
            raise NotEligibleError("the model's step returns no dict of metrics")
        self.reads_metrics = set(logs) == set(metrics)
        self.layout = ResultLayout(metrics if self.reads_metrics else logs)

    def on(self, variables: VariableSet, *, traced_with: VariableSet) -> Step:
        """Return the step as it runs on another model's variables.

        The loop around it must capture these alone: TensorFlow keeps what reads a variable behind what writes it
        only if both captured it once.
        """
        step = copy(self)
        step._captured = variables.handles(traced_with.captures_of(self.traced))
        return step

    def call(self, batch: list[Tensor]) -> Tensor:
        """Run it inside the graph; returns its logs as a vector where they are wanted."""
        logs = self.traced._call_flat(batch, self._captured)
        return tf.zeros((0,), RESULT) if self.reads_metrics else self.layout.vector(logs)

    @property
    def no_logs(self) -> Tensor:
        """What the logs are before the first batch."""
        return tf.zeros((0 if self.reads_metrics else self.layout.size,), RESULT)

    def results(self, model: Model, logs: Tensor) -> Tensor:
        """Return the results of a pass as one vector, inside the graph.

        Keras computes them outside of one, where Grappler does not rewrite them.
        """
        if not self.reads_metrics:
            return logs
        results = tf.function(
            lambda: self.layout.vector(model.get_metrics_result()),
            autograph=False,
            experimental_attributes=SEEN_ALONE,
        )
        with without_grappler():
            return results()

    def loss(self, model: Model, logs: Tensor) -> Tensor:
        """Return the loss among the results, inside the graph."""
        place = self.layout.place_of("loss")
        return tf.constant(0.0) if place is None else self.results(model, logs)[place]

    def xla_obstacle(self, without: Collection[str]) -> str | None:
        """Return why the step can't be compiled to something with the same result, but for some operations, or None."""
        if self._is_keras:
            return "Keras' own loop traced it in an earlier call"
        return xla_obstacle(operations_of(self.traced).difference(without))
