"""Why a scorer failed: scikit-learn puts ``error_score`` in its place, and says why in a warning only."""

from __future__ import annotations

import copy
from traceback import format_exc
from typing import Any

from sklearn.metrics._scorer import _MultimetricScorer


class ScoreErrors(dict[str | None, str]):
    """The traceback of each metric's scorer that raised while one split was scored; None: of the only one."""


def noting(scorer: Any, errors: ScoreErrors) -> Any:
    """Return a scorer that does the same and notes what is raised in it.

    Parameters
    ----------
    scorer : callable
        The argument ``scorer`` of scikit-learn's ``_fit_and_score``.
    errors : ScoreErrors
        Where it is noted.
    """
    if isinstance(scorer, _MultimetricScorer):
        noted = copy.copy(scorer)
        noted.__class__ = _NotingMultimetricScorer
        noted.errors = errors
        return noted
    return _NotingScorer(scorer, errors)


class _NotingScorer:
    def __init__(self, scorer: Any, errors: ScoreErrors) -> None:
        self._scorer = scorer
        self._errors = errors

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        try:
            return self._scorer(*args, **keywords)
        except Exception:
            self._errors.setdefault(None, format_exc())
            raise

    def __repr__(self) -> str:  # in scikit-learn's own errors
        return repr(self._scorer)


class _NotingMultimetricScorer(_MultimetricScorer):
    errors: ScoreErrors

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        scores = super().__call__(*args, **keywords)
        for name, score in scores.items():
            if isinstance(score, str):  # the traceback, which _score replaces
                self.errors.setdefault(name, score)
        return scores
