"""The best model as files: for programs without gridfleet, for colleagues, for later."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from sklearn.base import BaseEstimator

from gridfleet.scheduler.fleet.connection import Fleet
from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.results.best_model import RELEASES, BestModel, opened
from gridfleet.scheduler.results.handle import SearchHandle
from gridfleet.storage.errors import BestModelError
from gridfleet.storage.plain import plain
from gridfleet.storage.sources.local import is_installed

#: The whole estimator, as joblib.load reads it.
ESTIMATOR = "estimator.joblib"
#: The program that loads and uses it.
PROGRAM = "predict.py"


@dataclass(frozen=True, slots=True)
class _Rows:
    """How a program reads the rows that a model predicts."""

    imports: str
    file: str
    read: str
    what: str


_NAMED = _Rows(
    "import pandas as pd",
    "rows.csv",
    "pd.read_csv(sys.argv[1])",
    "a CSV file with the columns that it was fitted on",
)
_CSV = _Rows(
    "import numpy as np",
    "rows.csv",
    'np.loadtxt(sys.argv[1], delimiter=",", ndmin=2)',
    "a CSV file of numbers without a header, a line for each row",
)
_NPY = _Rows("import numpy as np", "rows.npy", "np.load(sys.argv[1])", "an array, as numpy.save writes it")


def save_best_model(fleet: Fleet, name: str | int, folder: Path) -> list[str]:
    """Write the best model of a search into a new folder.

    The model is loaded for it, so that what is in it runs (`best_model.opened`).

    Parameters
    ----------
    fleet : Fleet
        With the public or the secret key.
    name : str or int
        The search's name, or its id.
    folder : Path
        Not there yet, or empty. It has all files in the end, or stays as it is.

    Returns
    -------
    list of str
        The names of the files.

    Raises
    ------
    BestModelError
        If there is no model, or no such folder can be made.
    """
    _require_new(folder)
    search = reader.find_search(fleet.database, name)
    handle = SearchHandle(fleet, search.id, search.name)
    with opened(fleet, search, handle._stored_refit(search)) as model:
        trial = trial_reader.trial_of(fleet.database, search.id, model.number)
        with _made_at_once(folder) as made:
            keras_files = _save_keras(model.estimator, made)
            with _by_value(), (made / ESTIMATOR).open("wb") as file:
                cloudpickle.dump(_Saved(model) if keras_files else model.estimator, file)
            rows = _rows_of(model.estimator)
            (made / PROGRAM).write_text(_program(search.name, rows))
            (made / "MODEL.md").write_text(_description(search, model, trial, keras_files, rows))
    return sorted(file.name for file in folder.iterdir())


class _Saved:
    """A model that registers what it needs with Keras where it is loaded, and is the estimator there."""

    def __init__(self, model: BestModel) -> None:
        self._model = model

    def __reduce__(self) -> tuple[Any, ...]:
        # one by one, for whoever loads it may have some of them
        objects = {name: cloudpickle.dumps(obj) for name, obj in self._model.keras_objects.items()}
        return _load, (objects, cloudpickle.dumps(self._model.estimator))


def _load(objects: dict[str, bytes], estimator: bytes) -> Any:
    """Load a Keras model in an estimator; travels by value, so that gridfleet is not needed."""
    import pickle

    import keras
    from keras.src.backend.common import global_state
    from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

    registered = keras.saving.get_custom_objects()
    for name, pickled in objects.items():
        if name not in registered:
            registered[name] = pickle.loads(pickled)  # noqa: S301 - a part of what is loaded
            if ">" in name:
                GLOBAL_CUSTOM_NAMES[registered[name]] = name
    before = global_state.get_global_attribute("safe_mode_saving")
    keras.config.enable_unsafe_deserialization()  # of a pickle it keeps nothing out
    try:
        return pickle.loads(estimator)  # noqa: S301 - likewise
    finally:
        global_state.set_global_attribute("safe_mode_saving", before)


def _require_new(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BestModelError(f"{folder} is there already, and is no folder; name another one for --save")
    if folder.exists() and any(folder.iterdir()):
        raise BestModelError(f"{folder} is not empty; name another folder for --save, or empty it")


@contextmanager
def _made_at_once(folder: Path) -> Iterator[Path]:
    """Have a folder in a block that becomes another one at its end, and is gone after an error."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            yield made
            made.replace(folder)  # an empty folder is replaced
    except OSError as error:
        raise BestModelError(f"{folder} can't be written ({error.strerror or error}); name another folder") from error


@contextmanager
def _by_value() -> Iterator[None]:
    """Pickle what is in the script's own modules by value in a block: who loads it has no such modules."""
    own = [
        module
        for name, module in list(sys.modules.items())
        if "." not in name
        and name not in ("__main__", "gridfleet")
        and (file := getattr(module, "__file__", None)) is not None
        and not is_installed(file)
    ]
    with ExitStack() as stack:
        for module in (*own, sys.modules[__name__]):
            cloudpickle.register_pickle_by_value(module)
            stack.callback(cloudpickle.unregister_pickle_by_value, module)
        yield


def _save_keras(estimator: Any, folder: Path) -> list[str]:
    """Save each Keras model in an estimator as Keras does; returns the names of the files."""
    found = keras_models_in(estimator)
    names = ["model.keras"] if len(found) == 1 else [f"model-{number}.keras" for number in range(1, len(found) + 1)]
    for name, model in zip(names, found, strict=True):
        model.save(folder / name)
    return names


def keras_models_in(estimator: Any) -> list[Any]:
    """Return the Keras models in an estimator: its own, or those of the steps and estimators that it is made of."""
    keras = sys.modules.get("keras")
    return [] if keras is None else [part for part in _parts(estimator) if isinstance(part, keras.Model)]


def _parts(estimator: Any) -> list[Any]:
    """Return an estimator, and what is in its attributes, in theirs, and in lists and dicts of these."""
    found: dict[int, Any] = {}

    def look(part: Any) -> None:
        if id(part) in found:
            return
        found[id(part)] = part
        if isinstance(part, BaseEstimator):
            inner: Any = vars(part).values()
        else:
            inner = part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else ()
        for each in inner:
            look(each)

    look(estimator)
    return list(found.values())


def _rows_of(estimator: Any) -> _Rows:
    shapes = [getattr(model, "input_shape", None) for model in keras_models_in(estimator)]
    is_table = all(isinstance(shape, tuple) and len(shape) == 2 for shape in shapes)
    rows = _NAMED if hasattr(estimator, "feature_names_in_") else _CSV if is_table else _NPY
    # scikeras takes nothing but what it was fitted on, and a file of numbers is read as float64
    dtypes = [part.X_dtype_ for part in _parts(estimator) if hasattr(part, "X_dtype_")]
    cast = next((f'.astype("{dtype}")' for dtype in dtypes if np.dtype(dtype).kind in "fiu"), "")
    return replace(rows, read=rows.read + cast)


def _program(name: str, rows: _Rows) -> str:
    return f'''"""Predict with the best model of the search {name}: python {PROGRAM} {rows.file}"""

import sys
from pathlib import Path

import joblib
{rows.imports}

estimator = joblib.load(Path(__file__).with_name("{ESTIMATOR}"))
X = {rows.read}  # {rows.what}
print(*estimator.predict(X), sep="\\n")
'''


def _description(
    search: reader.SearchSummary,
    model: BestModel,
    trial: trial_reader.RankedTrial | None,
    keras_files: list[str],
    rows: _Rows,
) -> str:
    score = "none" if trial is None else f"{trial.mean_test_score:.6f}"
    if trial is not None and trial.std_test_score is not None:
        score += f" ± {trial.std_test_score:.6f}"
    params = {} if trial is None else trial.params
    versions = {**RELEASES, "gridfleet_version": "gridfleet"}
    counts = f"{search.n_trials} trials of {search.n_splits} splits"
    facts = {
        "search": f"{search.name}, id {search.id}: {search.strategy}, {counts}",
        "submitted": f"{search.created_at:%Y-%m-%d %H:%M} UTC by {search.submitted_by}",
        "estimator": search.estimator,
        "scoring": search.scoring or "the estimator's own score",
        f"mean test {search.refit_metric}": score,
        f"params (trial {model.number})": ", ".join(f"{name}={value}" for name, value in params.items()),
        "X, all of it": f"payload with the SHA-256 {search.x_digest}",
        "y": f"payload with the SHA-256 {search.y_digest}",
        "refit": f"{model.refit_time or 0:.1f} s",
        **{release: version for column, release in versions.items() if (version := model.versions[column]) is not None},
    }
    lines = [
        f"# The best model of the search {plain(search.name)}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(fact)} | {_cell(value)} |" for fact, value in facts.items()),
        "",
        "## How to load it",
        "",
        f"`{ESTIMATOR}` is the whole estimator, with what stands before and behind the model (scaling, classes). It",
        "needs the releases above, but not gridfleet:",
        "",
        "```sh",
        f"python {PROGRAM} {rows.file}   # {rows.what}",
        "```",
        "",
        "A joblib file is a pickle, and runs what is in it: load it only where you trust whoever could write to this",
        "folder, and the fleet that fitted it.",
    ]
    if keras_files:
        lines += [
            "",
            f"`{'`, `'.join(keras_files)}` is the Keras model alone, with weights and the state of its optimizer:",
            "",
            "```python",
            f'keras.saving.load_model("{keras_files[0]}")',
            "```",
        ]
    if keras_files and model.keras_objects:
        names = ", ".join(f"`{_cell(name)}`" for name in sorted(model.keras_objects))
        lines += ["", f"For that, {names} of the script must be registered with Keras; `{ESTIMATOR}` has them."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Show a text that anybody stored as a cell of a table."""
    return plain(text).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
