"""How Keras models are trained: a choice of a search, and what became of it in a trial."""

from __future__ import annotations

import enum


class FitMode(enum.StrEnum):
    """How Keras models are trained."""

    #: Keras' loop over batches inside the graph: bit for bit Keras' own result.
    EXACT = "exact"
    #: The same, compiled with XLA: equal to about 1e-6.
    XLA = "xla"
    #: XLA where the steps to come repay its compilation.
    AUTO = "auto"
    #: Keras' own ``fit``.
    KERAS = "keras"
