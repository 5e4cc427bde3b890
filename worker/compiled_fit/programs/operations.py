"""The operations of a traced step, and what they mean for a loop in the graph or in XLA."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from gridfleet.worker.compiled_fit.errors import NotEligibleError
from gridfleet.worker.compiled_fit.types import ConcreteFunction

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
#: Operations whose results XLA computes by another formula.
DIFFERS_IN_XLA = frozenset(
    (
        "StatelessRandomNormal",
        "StatelessRandomNormalV2",
        "StatelessRandomUniform",
        "StatelessRandomUniformV2",
        "StatelessTruncatedNormal",
        "StatelessTruncatedNormalV2",
        "StatelessMultinomial",
        "StatelessRandomBinomial",
        "StatelessRandomGammaV2",
        "StatelessRandomGammaV3",
        "StatelessRandomPoisson",
        "StatelessParameterizedTruncatedNormal",
        # not random, but of another order or sign
        "Unique",
        "UniqueV2",
        "UniqueWithCounts",
        "UniqueWithCountsV2",
        "TopKV2",
        "SelfAdjointEigV2",
        "Svd",
    )
)
#: Operations that run Python or strings, for which XLA has no kernel, or that it leaves out, or whose failure it does.
XLA_MAY_FAIL = frozenset(
    (
        "PyFunc",
        "EagerPyFunc",
        "PyFuncStateless",
        "StringFormat",
        "PrintV2",
        "Print",
        "Assert",
        "CheckNumerics",
        "CheckNumericsV2",
        "MatrixInverse",
        "MatrixSolve",
        "Cholesky",
        "ScatterNd",
        "TensorScatterAdd",
        "TensorScatterUpdate",
    )
)
#: Operations that fail if their second input has an index out of range, where XLA takes another row, or NaN.
CHECKED_OUTSIDE_XLA = frozenset(
    (
        "Gather",
        "GatherV2",
        "GatherNd",
        "ResourceGather",
        "ResourceGatherNd",
        "SparseSoftmaxCrossEntropyWithLogits",
        "UnsortedSegmentMax",
        "UnsortedSegmentMin",
        "UnsortedSegmentProd",
        "UnsortedSegmentSum",
    )
)
#: Sums of two.
SUMS = frozenset(("Add", "AddV2"))
#: Operations that make constants of constants.
FOLDED = frozenset(("Cast", "Identity", "Log", "Mul", "Neg", "RealDiv", "Sqrt", "Sub", *SUMS))
#: A CNN of two layers on 32x32 pixels: 0.4 s a fit in the graph, 11 s in XLA, whose kernels are not oneDNN's.
SLOW_CONVOLUTIONS = "XLA's convolutions are slower on a CPU"
#: Operations that XLA refuses where TensorFlow has to be deterministic.
NOT_DETERMINISTIC_IN_XLA = frozenset(("MaxPoolGrad",))


@dataclass(frozen=True)
class _Findings:
    """What is looked for in a graph and the functions that it calls; a graph is read out once, for that takes a while.

    Parameters
    ----------
    kinds : frozenset of str
        Of operations.
    seeded_random : str or None
        One of `STATEFUL_RANDOM` that has a seed.
    looks_up_unknown_index : bool
        Whether an operation fails at an index out of range that is no constant.
    has_swish : bool
        Whether the graph itself multiplies something with its sigmoid.
    """

    kinds: frozenset[str]
    seeded_random: str | None
    looks_up_unknown_index: bool
    has_swish: bool

    @classmethod
    def of(cls, function: ConcreteFunction) -> _Findings:
        """Return what was found in a function's graph, or look into it now."""
        if function not in _found:
            graphs = list(_graphs_of(function))
            # without a seed Keras' numbers are others in each run
            seeded = (
                node.op
                for nodes in graphs
                for node in nodes
                if node.op in STATEFUL_RANDOM and (node.attr["seed"].i or node.attr["seed2"].i)
            )
            _found[function] = cls(
                frozenset(node.op for nodes in graphs for node in nodes),
                next(seeded, None),
                any(map(_looks_up_unknown_index, graphs)),
                _has_swish(graphs[0]),
            )
        return _found[function]


#: What was found in functions that are there still.
_found: WeakKeyDictionary[ConcreteFunction, _Findings] = WeakKeyDictionary()


def operations_of(function: ConcreteFunction) -> frozenset[str]:
    """Return the kinds of operations in a graph and in the functions that it calls."""
    return _Findings.of(function).kinds


def check_random_operations(function: ConcreteFunction) -> None:
    """Make sure that a graph draws no random numbers that depend on a seed and on their place in it.

    Raises
    ------
    NotEligibleError
        That names the operation.
    """
    name = _Findings.of(function).seeded_random
    if name is not None:
        raise NotEligibleError(f"the model draws random numbers with TensorFlow's stateful {name}")


def checks_indices(function: ConcreteFunction) -> bool:
    """Whether a graph fails at an index out of range, where XLA would go on."""
    return _Findings.of(function).looks_up_unknown_index


def may_fail(function: ConcreteFunction) -> bool:
    """Whether a graph may fail for the values that it is given, and not for their shapes alone."""
    return checks_indices(function) or may_fail_later(function)


def may_fail_later(function: ConcreteFunction) -> bool:
    """Whether a graph may fail for the values of variables, also once it has gone over all data."""
    operations = operations_of(function)
    return bool(operations & XLA_MAY_FAIL) or any("While" in name for name in operations)


def has_swish(function: ConcreteFunction) -> bool:
    """Whether a graph multiplies something with its sigmoid, outside of loops."""
    return _Findings.of(function).has_swish


def _has_swish(graph: Any) -> bool:
    nodes = {node.name: node for node in graph}
    return any(_is_swish(node, nodes) for node in nodes.values() if node.op == "Mul")


def adds_constant_to_sum(function: ConcreteFunction) -> bool:
    """Whether a graph adds a constant to a sum of others on the way to what it changes.

    TensorFlow makes one operation of such sums, and puts their terms in an order of names.
    """
    nodes = {node.name: node for node in function.graph.as_graph_def().node}

    def inputs_of(node: Any) -> list[Any]:
        return [nodes.get(name.lstrip("^").partition(":")[0]) for name in node.input]

    def is_constant(node: Any) -> bool:
        if node is None or node.op == "Const":
            return node is not None
        return node.op in FOLDED and all(map(is_constant, inputs_of(node)))

    def is_sum_of_others(node: Any) -> bool:
        return node is not None and node.op in SUMS and not any(map(is_constant, inputs_of(node)))

    def is_found(node: Any) -> bool:
        both = inputs_of(node) if node.op in SUMS else []
        return any(map(is_constant, both)) and any(map(is_sum_of_others, both))

    seen: set[str] = set()
    ahead = [nodes[operation.name] for operation in function.graph.control_outputs]
    while ahead:
        node = ahead.pop()
        if is_found(node):
            return True
        for before in inputs_of(node):
            if before is not None and before.name not in seen:
                seen.add(before.name)
                ahead.append(before)
    return False


def _is_swish(product: Any, nodes: dict[str, Any]) -> bool:
    factors = list(product.input[:2])
    for one, other in (factors, factors[::-1]):
        sigmoid = nodes.get(other)
        if sigmoid is not None and sigmoid.op == "Sigmoid":
            scaled = nodes.get(sigmoid.input[0])
            if one in (sigmoid.input[0], *(scaled.input if scaled is not None and scaled.op == "Mul" else ())):
                return True
    return False


def xla_obstacle(operations: Set[str]) -> str | None:
    """Return why operations can't be compiled to the same result, or not to a faster program; or None."""
    for name in sorted(operations & (DIFFERS_IN_XLA | XLA_MAY_FAIL)):
        return f"{name} is another in XLA" if name in DIFFERS_IN_XLA else f"XLA has no {name}"
    if is_op_determinism_enabled():  # by scikeras, for an estimator with a random_state
        for name in sorted(operations & NOT_DETERMINISTIC_IN_XLA):
            return f"XLA has no deterministic {name}"
    if any("Conv" in name for name in operations) and not tf.config.list_physical_devices("GPU"):
        return SLOW_CONVOLUTIONS
    return None


def _looks_up_unknown_index(nodes: Any) -> bool:
    kinds = {node.name: node.op for node in nodes}
    for node in nodes:
        if node.op in CHECKED_OUTSIDE_XLA:
            looked_up, index = (kinds.get(name.partition(":")[0]) for name in node.input[:2])
            # constants are in range, or tracing had failed; the gradient of a mean looks up the axes of a shape
            if index != "Const" and looked_up != "Shape":
                return True
    return False


def _graphs_of(function: ConcreteFunction) -> Iterator[Any]:
    """Yield the nodes of the graph, then those of each function in its library."""
    graph = function.graph.as_graph_def()
    yield graph.node
    for one in graph.library.function:
        yield one.node_def
