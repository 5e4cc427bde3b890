"""From a data file (CSV, Parquet, npz) to X and y; one sentence for what is wrong with it."""

from __future__ import annotations

import difflib
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from storage.errors import InvalidSearchError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, Any]

#: What numpy raises, depending on where an .npz file is damaged: the archive, its compression, an array's header.
DAMAGED_NPZ = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class DataFile(BaseModel):
    """The part ``data`` of a search file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(description="A .csv, .parquet or .npz file, relative to the search file.")
    target: StrictInt | StrictStr | None = Field(None, description="Column of y: name, or index (-1 for the last).")
    header: StrictBool | None = Field(None, description="Whether the first line of a CSV file names the columns.")
    X: StrictStr | None = Field(None, description="Name of the array X in an .npz file.")
    y: StrictStr | None = Field(None, description="Name of the array y in an .npz file.")


def read_data(data: DataFile, folder: Path) -> tuple[Array, Array]:
    """Read a data file.

    Parameters
    ----------
    data : DataFile
        Which file and which columns.
    folder : Path
        What the file's path is relative to.

    Returns
    -------
    X : ndarray of shape (n_samples, ...)
        Numbers.
    y : ndarray of shape (n_samples, ...)
        Numbers or texts, none missing.

    Raises
    ------
    InvalidSearchError
        One sentence that begins with the key that is wrong.
    """
    path = folder / data.file
    if not path.is_file():
        raise InvalidSearchError(f"`data.file`: there is no file {path}")
    kind = path.suffix.lower()
    if kind == ".npz":
        _refuse_keys(data, path, "target", "header")
        X, y = _read_npz(path, data.X or "X", data.y or "y")
    elif kind in (".csv", ".parquet"):
        _refuse_keys(data, path, "X", "y", *(["header"] if kind == ".parquet" else []))
        X, y = _read_table(path, data)
    else:
        raise InvalidSearchError(f"`data.file`: {path} is none of .csv, .parquet and .npz")
    if len(X) != len(y):
        raise InvalidSearchError(f"`data`: {path} has {len(X)} rows in X and {len(y)} in y; they must be as many")
    if not len(X):
        raise InvalidSearchError(f"`data.file`: {path} has no rows")
    return X, y


def _refuse_keys(data: DataFile, path: Path, *keys: str) -> None:
    for key in keys:
        if getattr(data, key) is not None:
            raise InvalidSearchError(f"`data.{key}` has no meaning for {path.name}; leave it out")


def _read_npz(path: Path, *names: str) -> tuple[Array, Array]:
    import numpy as np

    if not zipfile.is_zipfile(path):  # numpy would take it for a pickle, and advise to load it as one
        raise InvalidSearchError(f"`data.file`: {path} is no .npz file; write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            X, y = (_array(file, path, key, name) for key, name in zip("Xy", names, strict=True))
    except InvalidSearchError:
        raise
    except DAMAGED_NPZ as error:
        raise InvalidSearchError(
            f"`data.file`: {path} is no .npz file that can be read: {_first_line(error)}"
        ) from error
    if X.dtype.kind not in "fiub":
        raise InvalidSearchError(f"`data.X`: the array {names[0]!r} of {path} holds {X.dtype}, not numbers")
    return X, _without_missing(y, path)


def _array(file: Any, path: Path, key: str, name: str) -> Array:
    if name not in file.files:
        raise InvalidSearchError(f"`data.{key}`: {path} has no array {name!r}; {_nearest(name, file.files)}")
    try:
        array: Array = file[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise InvalidSearchError(
            f"`data.{key}`: the array {name!r} of {path} holds Python objects, which could run code when loaded; "
            "save it with a dtype of numbers or texts"
        ) from error
    if array.ndim == 0:
        raise InvalidSearchError(f"`data.{key}`: the array {name!r} of {path} is a single value")
    return array


def _read_table(path: Path, data: DataFile) -> tuple[Array, Array]:
    if data.target is None:
        raise InvalidSearchError(f"`data.target` is missing: name the column of {path.name} that is y, or its index")
    has_header = data.header is not False
    frame = _read_csv(path, has_header=has_header) if path.suffix.lower() == ".csv" else _read_parquet(path)
    position = _position(data.target, list(frame.columns), path)
    if len(frame.columns) < 2:
        raise InvalidSearchError(f"`data.file`: {path} has a single column; the columns must be separated by commas")
    if frame.empty:
        raise InvalidSearchError(f"`data.file`: {path} has no rows")
    y = frame.iloc[:, position]
    features = frame.drop(columns=frame.columns[position])
    return _numbers(features, path, first_line=1 + has_header), _target(y, path)


def _read_csv(path: Path, *, has_header: bool) -> pd.DataFrame:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            # a line that is too long is cut with a warning only
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, header=0 if has_header else None, index_col=False, low_memory=False)
    except pd.errors.EmptyDataError as error:
        raise InvalidSearchError(f"`data.file`: {path} is empty") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError, OSError) as error:
        raise InvalidSearchError(
            f"`data.file`: {path} is no CSV file that can be read: {_first_line(error)}"
        ) from error
    if has_header and len(frame.columns) and all(map(_is_number, frame.columns)):
        raise InvalidSearchError(
            f"`data.header`: the first line of {path} holds numbers and no names; write `header: false`"
        )
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd
    from pyarrow import ArrowException

    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        raise InvalidSearchError(
            f"`data.file`: {path} is no Parquet file that can be read: {_first_line(error)}"
        ) from error


def _position(target: int | str, columns: Sequence[Any], path: Path) -> int:
    names = [str(column) for column in columns]
    if isinstance(target, str):
        if target not in names:
            raise InvalidSearchError(f"`data.target`: {path} has no column {target!r}; {_nearest(target, names)}")
        return names.index(target)
    if not -len(names) <= target < len(names):
        raise InvalidSearchError(
            f"`data.target`: {path} has {len(names)} columns, so {target} is no index of one; "
            f"use 0 to {len(names) - 1}, or -1 for the last"
        )
    return target % len(names)


def _numbers(features: pd.DataFrame, path: Path, *, first_line: int) -> Array:
    import numpy as np
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    for name, column in features.items():
        if is_numeric_dtype(column) or is_bool_dtype(column):
            continue
        row, value = next(((row, value) for row, value in enumerate(column) if not _is_number(value)), (None, None))
        problem = f"it holds {column.dtype}" if row is None else f"row {row + 1} has {value!r}"
        hint = "; the first line seems to name the columns, leave out `header: false`" if row == 1 - first_line else ""
        raise InvalidSearchError(f"`data.file`: column {str(name)!r} of {path} is not numeric, {problem}{hint}")
    return features.to_numpy(dtype=np.float64, na_value=np.nan)


def _target(column: pd.Series[Any], path: Path) -> Array:
    import numpy as np

    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise InvalidSearchError(
            f"`data.target`: column {str(column.name)!r} of {path} has {len(missing)} missing values, "
            f"the first in row {missing[0] + 1}"
        )
    values = column.to_numpy()
    return values.astype(str) if values.dtype.kind not in "fiub" else values


def _without_missing(y: Array, path: Path) -> Array:
    import numpy as np

    if y.dtype.kind == "f" and np.isnan(y).any():
        raise InvalidSearchError(f"`data.y`: {path} has {int(np.isnan(y).sum())} NaN values in y")
    return y


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, names[:20]))}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
