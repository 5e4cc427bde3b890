"""XLA: where it gives the same result, and when compiling with it pays."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf.config_pb2 import ConfigProto
from tensorflow.python.eager import context
from tensorflow.python.ops import gen_stateless_random_ops_v2 as random_ops

#: Operations whose results XLA makes by another formula.
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
#: Operations that run Python or strings, for which XLA has no kernel, or that it leaves out.
XLA_MAY_FAIL = frozenset(("PyFunc", "EagerPyFunc", "PyFuncStateless", "StringFormat", "PrintV2", "Print", "Assert"))
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
#: Operations that XLA refuses where TensorFlow is told to be deterministic.
NOT_DETERMINISTIC_IN_XLA = frozenset(("MaxPoolGrad",))

#: XLA's older code generator for loops. Its newer one takes a third longer to compile a small model, and computes each
#: random number several times: a step with Dropout took 690 us by it, 39 us by the older one, 154 us without XLA.
OLDER_CODE_GENERATOR = "--xla_cpu_use_fusion_emitters=false"
#: Releases of TensorFlow that have the flag; XLA ends the process at one that it does not know.
HAVE_OLDER_CODE_GENERATOR = ("2.21.",)

#: Seconds that XLA takes for a program, roughly, for each operation of a step.
COMPILE_S_PER_OPERATION = 0.0015
#: Seconds that XLA spares in a step, at most, roughly: the overhead of its operations, and not arithmetic.
OVERHEAD_S = 0.0006
#: The part of that which XLA leaves.
LEFT_BY_XLA = 0.25


_uniform = random_ops.stateless_random_uniform_v2
#: Blocks of `same_random_numbers` that are open, in any thread.
_n_tracing = 0
_lock = threading.Lock()


def bucket(n: int) -> int:
    """Round a number of rows up, so that splits of nearly equal size have one shape.

    Parameters
    ----------
    n : int
        Rows.

    Returns
    -------
    int
        More than `n`, a multiple of an eighth of the power of two below it: at most 12.5 % more.
    """
    grain = 1 << max(0, n.bit_length() - 4)
    return (n // grain + 1) * grain


@contextmanager
def older_code_generator() -> Iterator[None]:
    """Have XLA use its older code generator, unless ``XLA_FLAGS`` says which, if it compiles first in this block.

    XLA reads the variable once in a process; it is put back, for other programs that this process may start.
    """
    before = os.environ.get("XLA_FLAGS")
    flags = before or ""
    is_file_name = bool(flags) and not flags.lstrip().startswith("-")
    name = OLDER_CODE_GENERATOR.partition("=")[0]
    if name in flags or is_file_name or not tf.__version__.startswith(HAVE_OLDER_CODE_GENERATOR):
        yield
        return
    os.environ["XLA_FLAGS"] = f"{flags} {OLDER_CODE_GENERATOR}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before


@contextmanager
def without_grappler() -> Iterator[None]:
    """Run functions as they were traced, in this thread: Grappler would look at them before they run first.

    XLA optimizes what it compiles by itself. For the little that stays around it, Grappler's 0.1 s never come back.
    """
    eager_context = context.context()
    before = eager_context.function_call_options
    config = ConfigProto.FromString(before.config_proto_serialized)
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    eager_context.function_call_options = context.FunctionCallOptions(before.executor_type, config)
    try:
        yield
    finally:
        eager_context.function_call_options = before


def repays(n_steps: int, seconds_per_step: float, n_operations: int) -> bool:
    """Whether the steps still to come repay the compilation.

    Parameters
    ----------
    n_steps : int
        Steps to come for programs of this structure, those that came already included (who rents skis buys
        them once the rent paid is their price).
    seconds_per_step : float
        What one takes without XLA.
    n_operations : int
        Operations of a step's graph.
    """
    spared = n_steps * min(seconds_per_step, OVERHEAD_S) * (1 - LEFT_BY_XLA)
    return spared > COMPILE_S_PER_OPERATION * n_operations


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Trace uniform floats so that XLA and TensorFlow's own kernels draw the same ones.

    Both draw the same 32 bits; TensorFlow makes a float of the low 23, XLA of the high 23. Inside this block
    it is done in the graph, from the low ones (tensorflow/core/lib/random/random_distributions.h).
    """
    global _n_tracing
    with _lock:
        if _n_tracing == 0:
            random_ops.stateless_random_uniform_v2 = _from_low_bits
        _n_tracing += 1
    try:
        yield
    finally:
        with _lock:
            _n_tracing -= 1
            if _n_tracing == 0:
                random_ops.stateless_random_uniform_v2 = _uniform


def _from_low_bits(shape: Any, key: Any, counter: Any, alg: Any, dtype: Any = tf.float32, name: Any = None) -> Any:
    if tf.as_dtype(dtype) != tf.float32:
        return _uniform(shape, key, counter, alg, dtype=dtype, name=name)
    bits = random_ops.stateless_random_uniform_full_int_v2(
        shape, key=key, counter=counter, dtype=tf.uint32, alg=alg, name=name
    )
    mantissa = tf.bitwise.bitwise_and(bits, tf.constant(0x7FFFFF, tf.uint32))
    return tf.bitcast(tf.bitwise.bitwise_or(mantissa, tf.constant(0x3F800000, tf.uint32)), tf.float32) - 1.0
