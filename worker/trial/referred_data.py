"""Puts the data of this host in the place of the references that a search names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gridfleet.storage.references.data_ref import DataRef
from gridfleet.storage.references.host_data import HostData
from gridfleet.worker.trial.cross_validation import PARAMS_OF_ROWS, Evaluation


def with_data(data: HostData, evaluation: Evaluation, X: Any, y: Any) -> tuple[Evaluation, Any, Any]:
    """Return what a trial fits, X and y, with the data that references mean; without any, the same objects.

    Raises
    ------
    DataNotThereError
        If this host has not these data.
    InvalidDataError
        If nobody has them.
    """
    params = [evaluation.arguments.get(name) or {} for name in PARAMS_OF_ROWS]
    values = [X, y, *(value for of_rows in params for value in of_rows.values())]
    read = data.keep({value for value in values if isinstance(value, DataRef)})
    if not read:
        return evaluation, X, y

    def found(value: Any) -> Any:
        return read[value] if isinstance(value, DataRef) else value

    arguments: Mapping[str, Any] = {
        name: {key: found(value) for key, value in argument.items()}
        if name in PARAMS_OF_ROWS and isinstance(argument, Mapping)
        else argument
        for name, argument in evaluation.arguments.items()
    }
    return replace(evaluation, arguments=arguments), found(X), found(y)
