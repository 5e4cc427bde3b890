"""Scores, ages and counts as people read them; programs get all digits, as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

#: Digits of a score that people see.
DIGITS = 4
#: Outside of these, a score is written with an exponent.
SMALLEST, LARGEST = 1e-4, 1e6
#: How Python writes the name of a scorer; what else a search may be scored by shows itself in words of its own.
_NAME = re.compile(r"(['\"])([^'\"\\]+)\1")


def score(value: float | None) -> str:
    """Write a score with four significant digits.

    Examples
    --------
    >>> score(0.75), score(-1.8512e-30)
    ('0.7500', '-1.851e-30')
    """
    if value is None:
        return ""
    return f"{value:.{DIGITS - 1}e}" if (places := _places(value)) is None else f"{value:.{places}f}"


def with_deviation(mean: float | None, deviation: float | None) -> str:
    """Write a score and how far its splits are from each other, with as many decimal places.

    Examples
    --------
    >>> with_deviation(0.75, 0.015625), with_deviation(-1.8512e-30, 7.2e-31)
    ('0.7500 ± 0.0156', '-1.851e-30 ± 7.2e-31')
    """
    if mean is None or deviation is None:
        return score(mean)
    places = _places(mean)
    is_lost = places is None or 0 < abs(deviation) < 10**-places
    return f"{score(mean)} ± {f'{deviation:.1e}' if is_lost else f'{deviation:.{places}f}'}"


def _places(value: float) -> int | None:
    """Return the decimal places of a score; None: it is written with an exponent."""
    if value == 0:
        return DIGITS
    if not SMALLEST <= abs(value) < LARGEST:
        return None
    return max(0, DIGITS - 1 - math.floor(math.log10(abs(value))))


def ago(at: datetime, now: datetime | None = None) -> str:
    """Say how long ago something was: ``16 min ago``."""
    return f"{rounded(((now or datetime.now(UTC)) - at).total_seconds())} ago"


def rounded(seconds: float) -> str:
    """Write how long ago something was, in one unit: ``40 s``, ``12 min``, ``5 h``, ``3 days``."""
    for unit, size, least in (("days", 86_400, 172_800), ("h", 3_600, 5_400), ("min", 60, 90)):
        if seconds >= least:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def count(number: int, noun: str) -> str:
    """Write how many there are of something: ``1 search``, ``2 searches``."""
    plural = f"{noun}es" if noun.endswith(("ch", "s")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def time(at: datetime) -> str:
    """Write a time to the second, with its zone."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def params(values: Mapping[str, Any]) -> str:
    """Write hyperparameters in one line: ``optimizer=adam, batch_size=20``."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def metric(refit_metric: str, scoring: str | None) -> str:
    """Return the name of the metric that ranks trials, as scikit-learn's users give it.

    Parameters
    ----------
    refit_metric : str
        As stored; ``score`` where there is one metric only.
    scoring : str or None
        As stored: its `repr`, maybe shortened; None: the estimator's own score.

    Examples
    --------
    >>> metric("score", "'roc_auc'"), metric("score", "make_scorer(f1_score)"), metric("f1", "['f1', 'accuracy']")
    ('roc_auc', 'make_scorer(f1_score)', 'f1')
    """
    if refit_metric != "score" or not scoring:
        return refit_metric
    name = _NAME.fullmatch(scoring)
    return scoring if name is None else name[2]
