"""The samplers by their names: which there are, what may be set, and a fresh one for each proposal."""

from __future__ import annotations

import importlib.util
import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gridfleet.scheduler.proposals.spaces import combinations
from gridfleet.storage.errors import InvalidSearchError
from gridfleet.storage.spaces import Space
from gridfleet.storage.suggestion import did_you_mean

#: What may be set of each, as Optuna's class of that sampler calls it. Objects are none: a name fits a search file, and
#: who asks for proposals loads none.
SETTINGS: dict[str, tuple[str, ...]] = {
    "tpe": (
        *("n_startup_trials", "n_ei_candidates", "prior_weight", "consider_magic_clip", "consider_endpoints"),
        *("multivariate", "group", "constant_liar"),
    ),
    "random": (),
    "grid": (),
    "qmc": ("qmc_type", "scramble"),
    "cmaes": ("n_startup_trials", "sigma0", "popsize", "with_margin", "lr_adapt", "use_separable_cma"),
    "gp": ("n_startup_trials", "deterministic_objective"),
}
#: Where they differ from Optuna's: trials run beside each other, and two seeds are to give two sequences.
DEFAULTS: dict[str, dict[str, Any]] = {"tpe": {"constant_liar": True}, "qmc": {"scramble": True}}
#: Those whose proposals are the same whatever was scored.
LEARN_NOTHING = ("random", "grid", "qmc")


@dataclass(frozen=True)
class Sampler:
    """A sampler by name, with its settings."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def learns(self) -> bool:
        """Whether its proposals depend on scores."""
        return self.name not in LEARN_NOTHING

    def to_json(self) -> str:
        """Return it as the text that is stored and signed."""
        return json.dumps({"name": self.name, **self.settings}, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Sampler:
        """Return the sampler that a text is of."""
        settings = json.loads(text)
        return cls(settings.pop("name"), settings)


def given_sampler(given: Any, space: Space) -> Sampler:
    """Return the sampler that a user names.

    Parameters
    ----------
    given : str or mapping
        A name, or a dict with ``name`` and settings.
    space : Space
        For which it is.

    Returns
    -------
    Sampler

    Raises
    ------
    InvalidSearchError
        One sentence: an unknown name or setting, or one that this space does not go with.
    """
    settings = {"name": given} if isinstance(given, str) else given
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise InvalidSearchError(
            f"sampler={given!r} must be a name, as 'tpe', or a dict, as {{'name': 'tpe', 'n_startup_trials': 20}}"
        )
    settings = dict(settings)
    name = settings.pop("name")
    if name not in SETTINGS:
        raise InvalidSearchError(f"sampler={name!r} is unknown; {did_you_mean(name, SETTINGS)}")
    for setting, value in settings.items():
        if setting not in SETTINGS[name]:
            known = f"; {did_you_mean(str(setting), SETTINGS[name])}" if SETTINGS[name] else ", which has none"
            raise InvalidSearchError(f"sampler: {setting!r} is no setting of {name!r}{known}")
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise InvalidSearchError(f"sampler: {setting}={value!r} must be a number, a text, True or False")
    _require_installed(name)
    if name == "grid" and combinations(space) is None:
        raise InvalidSearchError(
            "sampler='grid' tries all combinations, and a distribution has no end of them; give lists, or "
            "distributions with steps"
        )
    sampler = Sampler(name, settings)
    if name != "grid":
        try:
            fresh_sampler(sampler, seed=0, number=0, distributions={})
        except Exception as error:
            raise InvalidSearchError(f"sampler={given!r} is refused by Optuna: {error}") from error
    return sampler


def _require_installed(name: str) -> None:
    if name != "grid" and importlib.util.find_spec("optuna") is None:
        raise InvalidSearchError(f"sampler={name!r} needs Optuna; run `pip install 'gridfleet[optuna]'`")
    if name == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise InvalidSearchError("sampler='cmaes' needs the package cmaes; run `pip install 'gridfleet[optuna]'`")
    if name == "gp" and importlib.util.find_spec("torch") is None:
        raise InvalidSearchError(
            "sampler='gp' needs PyTorch here and where the scheduler runs; run `pip install torch`, or take 'tpe'"
        )


def fresh_sampler(sampler: Sampler, *, seed: int, number: int, distributions: Mapping[str, Any]) -> Any:
    """Return Optuna's sampler for one proposal.

    Parameters
    ----------
    sampler : Sampler
        Which, and its settings.
    seed : int
        Of this proposal; for ``qmc``, of the search.
    number : int
        The proposal's.
    distributions : mapping
        Optuna's distributions of all that may be asked.
    """
    from optuna import samplers

    kinds = {
        "tpe": samplers.TPESampler,
        "random": samplers.RandomSampler,
        "cmaes": samplers.CmaEsSampler,
        "gp": samplers.GPSampler,
    }
    settings: dict[str, Any] = {**DEFAULTS.get(sampler.name, {}), **sampler.settings, "seed": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some settings are experimental
        if sampler.name == "qmc":
            return _sobol()(number, distributions, **settings)
        if "warn_independent_sampling" in inspect.signature(kinds[sampler.name]).parameters:
            settings["warn_independent_sampling"] = False
        return kinds[sampler.name](**settings)


def _sobol() -> Any:
    from optuna.samplers import QMCSampler

    class Sobol(QMCSampler):  # type: ignore[misc, unused-ignore]
        """Gives a proposal the point of its own number; Optuna's counts on in an attribute of the study."""

        def __init__(self, number: int, distributions: Mapping[str, Any], **settings: Any) -> None:
            super().__init__(**settings, warn_independent_sampling=False)
            self._number = number
            self._all = dict(distributions)

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return self._all

        def _find_sample_id(self, study: Any, search_space: dict[str, Any]) -> int:
            return self._number

    return Sobol
