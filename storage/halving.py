"""The rounds of a halving search: how many candidates each has, with how many resources, and what of it a trial is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gridfleet.storage.errors import SampleError

#: What ``searches.sampler`` says of a search whose rounds are halved.
NAME = "halving"
#: scikit-learn's name of the resource that is no hyperparameter.
N_SAMPLES = "n_samples"
#: ``error_score`` of a search that ends with the first error.
RAISE = "raise"


@dataclass(frozen=True, slots=True)
class Halving:
    """The rounds of a halving search, which are known before its first trial; which candidates are in them is not.

    The trials of a round follow those of the round before it. A trial of a later round has in its sample which of the
    first round's candidates it is.

    Parameters
    ----------
    resource : str
        ``n_samples``, or the hyperparameter that grows from round to round.
    n_candidates : sequence of int
        Of each round.
    n_resources : sequence of int
        Of each round.
    error_score : str
        What a fit counts that raised: a number's repr, or ``raise``.
    """

    resource: str
    n_candidates: Sequence[int]
    n_resources: Sequence[int]
    error_score: str

    @property
    def n_trials(self) -> int:
        """The trials of all rounds."""
        return sum(self.n_candidates)

    def to_json(self) -> str:
        """Return it as the text that is stored and signed."""
        return json.dumps({"name": NAME, **asdict(self)}, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Halving:
        """Return the rounds that a text is of."""
        described = json.loads(text)
        del described["name"]
        return cls(**described)

    def round_of(self, number: int) -> int:
        """Return the round of a trial, from 0."""
        return next(index for index, end in enumerate(itertools.accumulate(self.n_candidates)) if number < end)

    def first_of(self, index: int) -> int:
        """Return the number of the first trial of a round."""
        return sum(self.n_candidates[:index])

    def params(self, candidates: Sequence[Mapping[str, Any]], number: int, sample: Any) -> dict[str, Any]:
        """Return the hyperparameters of a trial.

        Parameters
        ----------
        candidates : sequence of mapping
            Those of the first round.
        number : int
            The trial's.
        sample : object
            As it was stored: ``{"candidate": 3}``; None in the first round.

        Raises
        ------
        SampleError
            If it is no candidate.
        """
        index = self.round_of(number)
        return self.shown(candidates[number if index == 0 else self._candidate(sample)], index)

    def shown(self, params: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Return the hyperparameters of a candidate in a round."""
        return dict(params) if self.resource == N_SAMPLES else {**params, self.resource: self.n_resources[index]}

    def splits(self, splits: Sequence[Any], number: int) -> Sequence[Any]:
        """Return, of the splits of all rounds, those of a trial."""
        n_splits = len(splits) // len(self.n_candidates)
        index = self.round_of(number)
        return splits[index * n_splits : (index + 1) * n_splits]

    def _candidate(self, sample: Any) -> int:
        candidate = sample.get("candidate") if isinstance(sample, Mapping) and len(sample) == 1 else None
        is_whole = isinstance(candidate, int) and not isinstance(candidate, bool)
        if not is_whole or not 0 <= candidate < self.n_candidates[0]:  # type: ignore[operator]
            raise SampleError("it is none of the candidates of the first round")
        return int(candidate)  # type: ignore[arg-type]
