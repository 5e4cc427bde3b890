"""How the fits of a trial ran, and where their time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from gridfleet.storage.fit_mode import FitMode


@dataclass
class FitReport:
    """How the Keras calls of a trial ran, as it is recorded with the trial.

    Attributes
    ----------
    modes : list of FitMode
        How each ``fit`` ran: ``exact``, ``xla`` or ``keras``.
    fallback_reason : str or None
        Why the first call that fell back to Keras' own loop did.
    trace_time, compile_time, train_time : float
        Seconds of tracing programs, of compiling them with XLA, of training.
    """

    modes: list[FitMode] = field(default_factory=list)
    fallback_reason: str | None = None
    trace_time: float = 0.0
    compile_time: float = 0.0
    train_time: float = 0.0

    @property
    def mode(self) -> FitMode | None:
        """How the trial trained: ``keras`` if any fit fell back, ``xla`` if any used it; None: no Keras model."""
        for mode in (FitMode.KERAS, FitMode.XLA, FitMode.EXACT):
            if mode in self.modes:
                return mode
        return None

    def fell_back(self, reason: str) -> None:
        """Note why a call ran as Keras runs it."""
        if self.fallback_reason is None:
            self.fallback_reason = reason

    @contextmanager
    def timed(self, phase: Literal["trace", "compile", "train"]) -> Iterator[None]:
        """Add the seconds of a block to ``<phase>_time``."""
        name = f"{phase}_time"
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + (time.perf_counter() - started))
