"""The variables that libraries read: a fleet that runs has those of its own start, and not those of each script."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: How the names of variables begin by which libraries compute, or choose where: threads, devices, kernels, backends.
BEGINNINGS = (
    "BLIS_",
    "CUDA_",
    "JAX_",
    "KERAS_",
    "MKL_",
    "NUMEXPR_",
    "OMP_",
    "OPENBLAS_",
    "PYTHONHASHSEED",
    "TF_",
    "XLA_",
)
#: Those that say how much is logged.
OF_LOGS = ("TF_CPP_",)


def variables_of_libraries() -> dict[str, str]:
    """Return those of this process."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(BEGINNINGS) and not name.startswith(OF_LOGS)
    }


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Return what differs, in words.

    Parameters
    ----------
    here, there : mapping of str to str
        The variables of this process, and of the fleet.

    Returns
    -------
    list of str
        Such as ``OMP_NUM_THREADS is '1' here and not set there``.
    """
    return [
        f"{name} is {_shown(here.get(name))} here and {_shown(there.get(name))} there"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]


def _shown(value: str | None) -> str:
    if value is None:
        return "not set"
    return ascii(value if len(value) <= 80 else value[:79] + "…")
