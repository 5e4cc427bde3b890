"""TensorFlow's own optimizer of graphs, Grappler, left out, or kept from what it does to functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from tensorflow.core.protobuf.config_pb2 import ConfigProto
from tensorflow.python.eager import context
from tensorflow.python.eager.polymorphic_function import attributes

from gridfleet.worker.compiled_fit.patches.patch import Patch, Replacement

#: Attributes of a function of which Grappler drops no output that its caller does not use: a function without outputs
#: has no ends that are known, and Grappler then merges and folds less in it.
STAYS_WHOLE = {"_nospecialize": True}


def functions_may_stay_whole() -> AbstractContextManager[None]:
    """Return a block in which TensorFlow's Python takes the attributes `STAYS_WHOLE`, which it does not know."""
    return _attributes_taken.installed()


def without_grappler() -> AbstractContextManager[None]:
    """Return a block that runs functions as they were traced: Grappler would look at them before they run first.

    XLA optimizes what it compiles by itself. For the little that stays around it, Grappler's 0.1 s never come back.
    """
    return Patch(_replacements).installed()  # a patch for each block, for TensorFlow keeps the options by thread


def _replacements() -> Iterator[Replacement]:
    eager_context = context.context()
    before = eager_context.function_call_options
    config = ConfigProto.FromString(before.config_proto_serialized)
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    yield Replacement(eager_context, "function_call_options", context.FunctionCallOptions(before.executor_type, config))


def _more_attributes() -> Iterator[Replacement]:
    known = attributes.MONOMORPHIC_FUNCTION_ALLOWLIST
    yield Replacement(attributes, "MONOMORPHIC_FUNCTION_ALLOWLIST", known | STAYS_WHOLE.keys())


_attributes_taken = Patch(_more_attributes)
