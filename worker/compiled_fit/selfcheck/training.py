"""One training of the self-check, by Keras itself or compiled, and all that it leaves behind."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tensorflow.python.framework.ops import gradient_registry

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.scope import compiled_fit
from gridfleet.worker.compiled_fit.selfcheck.cases import Case, make_optimizer
from gridfleet.worker.compiled_fit.selfcheck.options import N_ROWS
from gridfleet.worker.compiled_fit.types import Model

#: Every training starts from it.
SEED = 3
#: As few epochs as show ``validation_freq=2``.
EPOCHS, BATCH_SIZE = 3, 16
#: Times in the lines that Keras prints.
PRINTED_TIMES = re.compile(r"\b\d+(s|ms|us)(/step|/epoch)?\b")


@dataclass(frozen=True)
class Outcome:
    """All that a training leaves behind.

    Parameters
    ----------
    values : dict of str to ndarray
        Variables of model and optimizer, History, predictions, results of ``evaluate``, numbers in files.
    texts : tuple of str
        Keys of the History in their order, names of files, printed lines: equal or not.
    report : FitReport
        How it ran.
    """

    values: dict[str, Any]
    texts: tuple[str, ...]
    report: FitReport


def train(case: Case, mode: FitMode) -> Outcome:
    """Train a model from `SEED`, predict with it and evaluate it.

    Parameters
    ----------
    case : Case
    mode : FitMode
        ``keras`` leaves Keras as it is.

    Returns
    -------
    Outcome
    """
    printed, data = io.StringIO(), case.family.draw(np.random.default_rng(SEED), N_ROWS)
    with _session(case.option.policy), tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(printed):
        folder = Path(name)
        is_keras, compiled = mode is FitMode.KERAS, partial(compiled_fit, mode, trusts_any_release=True)
        with contextlib.nullcontext(FitReport()) if is_keras else compiled() as report:
            keras.utils.set_random_seed(SEED)
            model = _compiled_model(case)
            arguments = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "verbose": 0}
            history = model.fit(data.x, data.y, **(arguments | case.option.fit_arguments(data, folder))).history
            values = _values_of_fit(model, history)
            values["predict"] = model.predict(data.x, batch_size=BATCH_SIZE, verbose=0)
            values["evaluate"] = model.evaluate(data.x, data.y, batch_size=BATCH_SIZE, verbose=0, return_dict=True)
        files = sorted(folder.iterdir())
        values |= {path.name: _numbers_in(path, model) for path in files}
    texts = (*history, *(path.name for path in files), PRINTED_TIMES.sub("", printed.getvalue()))
    return Outcome(_flat(values), texts, report)


@contextlib.contextmanager
def _session(policy: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    _forget_models()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _forget_models() -> None:
    """Start the numbers in names anew, and drop what is kept of models that are gone.

    TensorFlow registers traced custom gradients by name for ever; each holds a whole graph, 4 MB a fit.
    """
    keras.utils.clear_session(free_memory=False)
    registry = gradient_registry._registry
    for name in [name for name in registry if name.startswith("CustomGradient-")]:
        del registry[name]


def _compiled_model(case: Case) -> Model:
    settings = _made(case.family.compile_arguments) | _made(case.option.compile_arguments)
    model = (case.option.build or case.family.build)()
    model.compile(make_optimizer(case.optimizer, case.option.optimizer_arguments()), **settings)
    return model


def _made(arguments: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    return dict(arguments() if callable(arguments) else arguments)


def _values_of_fit(model: Model, history: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "variable": {
            f"{place}": keras.ops.convert_to_numpy(variable) for place, variable in enumerate(model.variables)
        },
        "optimizer": {
            f"{place}": keras.ops.convert_to_numpy(variable) for place, variable in enumerate(model.optimizer.variables)
        },
        "history": {name: np.array(values) for name, values in history.items()},
        "metric": model.get_metrics_result(),
    }


def _numbers_in(path: Path, model: Model) -> Any:
    if path.suffix == ".csv":
        return np.genfromtxt(path, delimiter=",", skip_header=1)
    model.load_weights(path)
    return {f"{place}": np.asarray(weight) for place, weight in enumerate(model.get_weights())}


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Return nested values by the path to each."""
    if not isinstance(values, dict):
        return {name: np.asarray(values)}
    return {
        path: value for key, part in values.items() for path, value in _flat(part, f"{name} {key}".lstrip()).items()
    }
