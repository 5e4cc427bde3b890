"""How a trial stands against the others of its search while it is evaluated: between epochs, and behind each split.

The first split is raced by epochs, the others by the mean of the scores so far. Where a trial is pruned, its evaluation
ends by an exception that no code of users catches.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import patiently
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.pruner import SCORE, WILCOXON, Pruner, sign_of
from gridfleet.storage.suggestion import did_you_mean
from gridfleet.storage.trial_results import CurveResult, PrunedResult
from gridfleet.storage.trials.held import Claim, Held
from gridfleet.storage.trials.reports import AT_THE_END, Racer, report, report_beside_best
from gridfleet.worker.trial.interrupter import TrialInterrupted


class RaceEnded(BaseException):
    """The trial is not to be evaluated any further: it was pruned, or can't be compared.

    Not an ``Exception``, for scikit-learn and users' code catch those and would go on.
    """


class Race:
    """One trial among the others of its search.

    Parameters
    ----------
    database : Database
        Where it reports.
    claim : Claim
        The trial, of a search with a pruner.
    patience_s : float
        Seconds for which a database that is away is waited for.

    Attributes
    ----------
    pruned : PrunedResult or None
        Where it was stopped.
    error : InvalidSearchError or None
        Why it can't be compared.
    """

    def __init__(self, database: Database, claim: Claim, *, patience_s: float) -> None:
        pruner = Pruner.from_json(claim.pruner or "")
        newest = claim.number - (claim.lookahead or 0) if claim.asks_in_order else None
        self._racer = Racer(claim.search_id, claim.number, pruner, newest)
        self._monitor = claim.monitor or SCORE
        self._held = Held(claim.trial_id, claim.token)
        self._database = database
        self._patience_s = patience_s
        self._has_reported = False
        self._split: _SplitRace | None = None
        self.pruned: PrunedResult | None = None
        self.error: InvalidSearchError | None = None

    @property
    def is_over(self) -> bool:
        """Whether the trial is not to be evaluated any further."""
        return self.pruned is not None or self.error is not None

    @contextmanager
    def on_split(self, split: int, estimator: Any, score: Callable[[], float]) -> Iterator[None]:
        """Fit an estimator on a split; `score` returns what it scores as it is then."""
        is_raced = split == 0 and self._racer.pruner.compares_epochs
        self._split = _SplitRace(self, estimator, score) if is_raced else None
        try:
            yield
        finally:
            if self._split is not None:
                self._split.forget()
        if self.is_over:  # users' code caught it and went on
            raise RaceEnded

    def watching(self, model: Any) -> _SplitRace | None:
        """Return who looks at the epochs of a model; None: it is not the one of the estimator that is raced."""
        if self._split is None or getattr(final_step(self._split.estimator), "model_", None) is not model:
            return None
        return self._split

    def curves(self) -> list[CurveResult]:
        """Return what was noted of a fit that was stopped."""
        history: Mapping[str, list[Any]] = {} if self._split is None else self._split.history
        return [CurveResult(0, name, values) for name, values in history.items()]

    def split_ended(self, scores: Sequence[float], *, metric: str, is_last: bool) -> bool:
        """Report the scores of the splits so far, of which the last has just ended; returns whether the trial goes on.

        Parameters
        ----------
        scores : sequence of float
            Finite ones.
        metric : str
            Whose they are.
        is_last : bool
            Whether no split follows: there is nothing to decide then.
        """
        if len(scores) == 1 and self._racer.pruner.compares_epochs and self._monitor != SCORE:
            self._require_monitor()
        if self.error is not None or is_last:
            return self.error is None
        split, mean = len(scores) - 1, float(np.average(scores))
        if self._racer.pruner.name == WILCOXON:
            goes_on = self._ask(partial(report_beside_best, scores=list(map(float, scores)), metric=metric))
        else:
            goes_on = self._ask(partial(report, split=split, step=AT_THE_END, value=mean, best=mean))
        if not goes_on:
            self.pruned = PrunedResult(split, None, mean)
        return goes_on

    def epoch_ended(self, epoch: int, value: float | None, best: float | None) -> None:
        """Report a value of split 0 after some epochs; ends the evaluation where the trial is pruned."""
        if not self._ask(partial(report, split=0, step=epoch, value=value, best=best)):
            self.pruned = PrunedResult(0, epoch, value)
            raise RaceEnded

    def cannot_compare(self, names: Sequence[str]) -> None:
        """End the evaluation of a model that has not the curve that is monitored."""
        self._note_wrong_monitor(names)
        raise RaceEnded

    def _require_monitor(self) -> None:
        history = {} if self._split is None else self._split.history
        if self._monitor not in history:
            self._note_wrong_monitor(list(history))

    def _note_wrong_monitor(self, names: Sequence[str]) -> None:
        if not names:
            reason = "this estimator has none, or is not the one whose model trains; give monitor='score'"
        elif self._monitor.startswith("val_") and not any(name.startswith("val_") for name in names):
            reason = f"these are {', '.join(sorted(names))}; set validation_split, or give monitor='score'"
        else:
            reason = did_you_mean(self._monitor, [*names, SCORE])
        self.error = InvalidSearchError(f"monitor={self._monitor!r} is no learning curve of this model; {reason}")

    def _ask(self, ask: Callable[..., bool | None]) -> bool:
        def once() -> bool | None:
            return ask(self._database, self._held, self._racer, is_first=not self._has_reported)

        goes_on = patiently(once, patience_s=self._patience_s)
        if goes_on is None:
            raise TrialInterrupted("lease_lost")
        self._has_reported = True
        return goes_on


class _SplitRace:
    """The epochs of one fit: a `Watch`."""

    def __init__(self, race: Race, estimator: Any, score: Callable[[], float]) -> None:
        self.estimator = estimator
        self.history: dict[str, list[Any]] = {}
        self._race = race
        self._score: Callable[[], float] | None = score
        self._last = 0  # the epoch that was reported last
        self._best: float | None = None

    def forget(self) -> None:
        """Hold no model any more."""
        self.estimator = self._score = None

    def next_stop(self, epoch: int) -> int:
        """Return the next rung."""
        racer = self._race._racer
        return racer.pruner.next_rung(max(epoch, self._last), racer.number)

    def epoch_ended(self, epoch: int, logs: Mapping[str, Any], *, goes_on: bool) -> None:
        """Note what callbacks are told, and report at a rung; not behind the last epoch, where the split ends."""
        name_of = _names_of(final_step(self.estimator))
        for name, value in logs.items():
            self.history.setdefault(name_of(name), []).append(_number(value))
        if not goes_on or epoch != self.next_stop(epoch - 1):
            return
        value, is_known = self._value()
        if not is_known:
            return
        self._last = epoch
        if value is not None:
            self._best = value if self._best is None else max(self._best, value)
        self._race.epoch_ended(epoch, value, self._best)

    def _value(self) -> tuple[float | None, bool]:
        """Return what is compared, and whether there is anything to compare."""
        monitor = self._race._monitor
        if monitor == SCORE:
            return self._scored()
        values = self.history.get(monitor)
        if values is None:
            names = list(self.history)
            # before the first validation there is nothing of it
            if not monitor.startswith("val_") or any(name.startswith("val_") for name in names):
                self._race.cannot_compare(names)
            return None, False
        last = values[-1]
        return (None if last is None or not math.isfinite(last) else (sign_of(monitor) or 1) * last), True

    def _scored(self) -> tuple[float | None, bool]:
        # whatever the scorer draws: training goes on as if it had not been called
        drawn, drawn_by_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - users' code draws from it
        try:
            value = math.nan if self._score is None else self._score()
        except Exception:  # noqa: BLE001 - the scorer's: it says so when it is called at the end of the fit
            return None, False
        finally:
            random.setstate(drawn)
            np.random.set_state(drawn_by_numpy)  # noqa: NPY002 - as above
        return (value if math.isfinite(value) else None), True


def final_step(estimator: Any) -> Any:
    """Return the estimator that learns: the last step of a pipeline."""
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator


def _names_of(estimator: Any) -> Callable[[str], str]:
    """Return how an estimator calls metrics in its ``history_``: scikeras has long names for Keras' short ones."""
    scikeras = sys.modules.get("scikeras.wrappers")
    if scikeras is None or not isinstance(estimator, scikeras.BaseWrapper):
        return str

    def long_name(name: str) -> str:
        if name == "loss" or name.startswith("val_"):
            return name
        try:
            return str(scikeras.metric_name(name))
        except ValueError:
            return name

    return long_name


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float, np.number)) else None
