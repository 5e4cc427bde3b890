"""What holds in this process and not in those of the trials: said once, at submission."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.fleet.local.variables import differences, variables_of_libraries
from gridfleet.scheduler.submission.users_line import users_stacklevel

_said: set[str] = set()


def warn_of_other_variables(fleet: Fleet) -> None:
    """Warn of variables by which libraries compute, and which this folder's fleet was started without.

    Other fleets have variables of their own, which their operator chose.
    """
    there = client.variables(fleet.settings) if fleet.is_embedded else None
    found = [] if there is None else differences(variables_of_libraries(), there)
    if found:
        _warn_once(
            f"the fleet in {fleet.settings.home} was started with other variables than this script: "
            f"{'; '.join(found)}; if that matters, end that fleet with `gridfleet down` and run again"
        )


def warn_of_seed(estimator: Any, candidates: Sequence[dict[str, Any]]) -> None:
    """Warn of a seed that was set for the whole process, where Keras models have no ``random_state``."""
    call, seed = _seed_of_process()
    if seed is None:
        return
    for place, part in {"": estimator, **estimator.get_params(deep=True)}.items():
        key = f"{place}__random_state" if place else "random_state"
        if _is_unseeded(part) and any(params.get(key) is None for params in candidates):
            name = type(part).__name__
            _warn_once(
                f"{call}({seed}) holds in this process only, and trials run in others: scores of {name} may differ "
                f"from run to run unless you give it a seed, as {name}(…, random_state={seed})"
            )


def _is_unseeded(part: Any) -> bool:
    is_wrapper = any(kind.__module__.startswith("scikeras.") for kind in type(part).__mro__)
    return is_wrapper and part.random_state is None


def _seed_of_process() -> tuple[str, int | None]:
    """Return the seed that Keras or TensorFlow were given, and by which function; imports neither."""
    state = sys.modules.get("keras.src.backend.common.global_state")
    seed = getattr(getattr(state, "GLOBAL_STATE_TRACKER", None), "global_random_seed", None)
    if seed is not None:
        return "keras.utils.set_random_seed", seed
    tensorflow = sys.modules.get("tensorflow.python.eager.context")
    context = None if tensorflow is None else tensorflow.context_safe()  # None: nothing was computed or seeded
    return "tf.random.set_seed", getattr(context, "_seed", None)


def _warn_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        warnings.warn(text, UserWarning, stacklevel=users_stacklevel())
