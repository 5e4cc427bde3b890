"""A digest of traced functions, for models whose configs do not determine their graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from gridfleet.worker.compiled_fit.sharing.settings import global_settings
from gridfleet.worker.compiled_fit.types import ConcreteFunction, Graph


def graph_digest(functions: Sequence[ConcreteFunction], fingerprint: object) -> str:
    """Return a digest of traced functions, their constants included.

    Parameters
    ----------
    functions : sequence of ConcreteFunction
        Traced from one model.
    fingerprint : object
        What their graphs do not show: which variable is captured where, names of results. Equal ones have equal
        representations.

    Returns
    -------
    str
        Equal only for functions that compute the same from the same variables.
    """
    sha = hashlib.sha256(json.dumps(global_settings()).encode())
    sha.update(repr(fingerprint).encode())
    for function in functions:
        graph = function.graph.as_graph_def(add_shapes=False)
        _forget_unique_names(graph)
        sha.update(graph.SerializeToString(deterministic=True))
        sha.update(str([(tensor.shape, tensor.dtype) for tensor in function.captured_inputs]).encode())
    return sha.hexdigest()


def _forget_unique_names(graph: Graph) -> None:
    """Name functions by their place, for TensorFlow gives every traced one a name of its own."""
    library = graph.library
    names = {function.signature.name: f"f{place}" for place, function in enumerate(library.function)}
    nodes = [*graph.node, *(node for function in library.function for node in function.node_def)]
    for node in nodes:
        _rename_functions_of(node, names)
    for function in library.function:
        function.signature.name = names[function.signature.name]
    for gradient in library.gradient:
        gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)


def _rename_functions_of(node: Any, names: dict[str, str]) -> None:
    node.op = names.get(node.op, node.op)
    if "_gradient_op_type" in node.attr:  # a number of its own, and of no meaning once the gradient is in the graph
        del node.attr["_gradient_op_type"]
    for attribute in node.attr.values():
        functions = [attribute.func] if attribute.HasField("func") else attribute.list.func
        for function in functions:
            function.name = names.get(function.name, function.name)
