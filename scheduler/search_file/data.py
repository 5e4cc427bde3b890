"""From a data file (CSV, Parquet, npz) to X and y; one sentence for what is wrong with it."""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictBool, StrictInt, StrictStr, Tag, model_validator
from pydantic_core import PydanticCustomError

from gridfleet.scheduler.search_file.npz import read_arrays
from gridfleet.scheduler.search_file.parquet_pages import Contents, read_contents
from gridfleet.storage.errors import InvalidSearchError, first_line
from gridfleet.storage.references.data_ref import DataRef
from gridfleet.storage.suggestion import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, Any]

#: Bytes of a data file, and of an array that is made of it; larger data go to `submit` in Python.
MAX_BYTES = 8 * 1024**3
#: Rows times columns of a CSV or Parquet file: numbers of 8 bytes, and several times that while they are parsed.
MAX_CELLS = 100_000_000
#: Bytes of the first line of a CSV file, which says how many columns there are.
MAX_FIRST_LINE = 1_000_000
#: Bytes read at once to count lines.
BLOCK = 1024 * 1024

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_LINE_END = re.compile(rb"[\r\n]")


class Reference(BaseModel):
    """Data by reference in a search file: what a `DataRef` has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: StrictStr = Field(description="An .npy, .npz, .parquet or .csv file that the workers see too, or its URL.")
    sha256: StrictStr | None = Field(None, description="The file's digest; default: it is read for it.")
    key: StrictStr | None = Field(None, description="Name of the array in an .npz file.")
    columns: StrictStr | list[StrictStr] | None = Field(None, description="Columns of a Parquet or CSV file.")

    def data_ref(self, folder: Path) -> DataRef:
        """Return the reference; its path is relative to the search file's folder."""
        location = self.path if _URL.match(self.path) else folder / self.path
        columns = self.columns if isinstance(self.columns, str | None) else tuple(self.columns)
        return DataRef(location, sha256=self.sha256, key=self.key, columns=columns)  # type: ignore[arg-type]


#: Chosen by what is given, so that a mistake in a reference is not called a wrong name.
NameOrReference = Annotated[
    Annotated[StrictStr, Tag("name")] | Annotated[Reference, Tag("reference")],
    Discriminator(lambda given: "reference" if isinstance(given, (Mapping, Reference)) else "name"),
]


class DataFile(BaseModel):
    """The part ``data`` of a search file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = Field(None, description="A .csv, .parquet or .npz file, relative to the search file.")
    target: StrictInt | StrictStr | None = Field(None, description="Column of y: name, or index (-1 for the last).")
    header: StrictBool | None = Field(None, description="Whether the first line of a CSV file names the columns.")
    X: NameOrReference | None = Field(None, description="Name of the array X in an .npz file, or a reference.")
    y: NameOrReference | None = Field(None, description="Name of the array y in an .npz file, or a reference.")
    groups: Reference | None = Field(None, description="A reference, for splitters that need groups.")
    sample_weight: Reference | None = Field(None, description="A reference; the estimator's fit gets it.")

    @property
    def references(self) -> dict[str, Reference]:
        """What is given by reference; empty if all is in `file`."""
        given = {name: getattr(self, name) for name in ("X", "y", "groups", "sample_weight")}
        return {name: value for name, value in given.items() if isinstance(value, Reference)}

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if self.file is None and not {"X", "y"} <= set(self.references):
            raise _problem("file", "is missing; it is: A .csv, .parquet or .npz file, relative to the search file.")
        beside = [name for name in ("file", "target", "header") if getattr(self, name) is not None]
        if self.references and beside:
            raise _problem(beside[0], f"has no meaning beside `data.{next(iter(self.references))}` by reference")
        return self


def _problem(key: str, sentence: str) -> PydanticCustomError:
    return PydanticCustomError("gridfleet", sentence, {"place": ("data", key)})


def read_data(data: DataFile, folder: Path) -> tuple[Array, Array]:
    """Read a data file.

    What it declares (sizes, shapes, rows and columns) is compared with its real size and with bounds before memory is
    taken for it.

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
    path = folder / (data.file or "")
    kind = path.suffix.lower()
    with _opened(data.file or "", path) as file:
        if kind == ".npz":
            _refuse_keys(data, path, "target", "header")
            X, y = _read_npz(file, path, str(data.X or "X"), str(data.y or "y"))
        elif kind in (".csv", ".parquet"):
            _refuse_keys(data, path, "X", "y", *(["header"] if kind == ".parquet" else []))
            X, y = _read_table(file, path, data)
        else:
            raise InvalidSearchError(f"`data.file`: {path} is none of .csv, .parquet and .npz")
    if len(X) != len(y):
        raise InvalidSearchError(f"`data`: {path} has {len(X)} rows in X and {len(y)} in y; they must be as many")
    if not len(X):
        raise InvalidSearchError(f"`data.file`: {path} has no rows")
    return X, y


def _opened(name: str, path: Path) -> IO[bytes]:
    """Open a regular file once: what was looked at is what is read."""
    if _URL.match(name):
        raise InvalidSearchError(
            f"`data.file` is {name!r}; gridfleet reads files of this machine, so download it first"
        )
    try:
        # a FIFO without a writer would block
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InvalidSearchError(f"`data.file`: {_not_opened(path, error)}") from error
    found = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(found.st_mode):
        problem = "is no regular file"
    elif found.st_size > MAX_BYTES:
        problem = f"has {found.st_size} bytes; {_too_large(f'{MAX_BYTES} bytes')}"
    if problem is not None:
        os.close(descriptor)
        raise InvalidSearchError(f"`data.file`: {path} {problem}")
    return os.fdopen(descriptor, "rb")


def _not_opened(path: Path, error: OSError | ValueError) -> str:
    number = getattr(error, "errno", None)
    if number == errno.ELOOP:
        return f"{path} is a symbolic link; name the file that it leads to"
    if number in (errno.ENOENT, errno.ENOTDIR, None):
        return f"there is no file {path}"
    return f"{path} can't be opened: {getattr(error, 'strerror', None) or error}"


def _too_large(bound: str) -> str:
    return f"a search file's data may have {bound}, load larger ones in Python and call `submit`"


def _refuse_keys(data: DataFile, path: Path, *keys: str) -> None:
    for key in keys:
        if getattr(data, key) is not None:
            raise InvalidSearchError(f"`data.{key}` has no meaning for {path.name}; leave it out")


def _read_npz(file: IO[bytes], path: Path, *names: str) -> tuple[Array, Array]:
    X, y = read_arrays(file, path, dict(zip("Xy", names, strict=True)), max_bytes=MAX_BYTES)
    if X.dtype.kind not in "fiub":
        raise InvalidSearchError(f"`data.X`: the array {names[0]!r} of {path} holds {X.dtype}, not numbers")
    if y.dtype.kind not in "fiubUS":
        raise InvalidSearchError(f"`data.y`: the array {names[1]!r} of {path} holds {y.dtype}, not numbers or texts")
    return X, _without_missing(y, path)


def _read_table(file: IO[bytes], path: Path, data: DataFile) -> tuple[Array, Array]:
    if data.target is None:
        raise InvalidSearchError(f"`data.target` is missing: name the column of {path.name} that is y, or its index")
    has_header = data.header is not False
    if path.suffix.lower() == ".csv":
        frame = _read_csv(file, path, has_header=has_header)
    else:
        frame = _read_parquet(file, path, data.target)
    position = _position(data.target, list(frame.columns), path)
    _check_columns(list(frame.columns), path)
    if frame.empty:
        raise InvalidSearchError(f"`data.file`: {path} has no rows")
    y = frame.iloc[:, position]
    features = frame.drop(columns=frame.columns[position])
    return _numbers(features, path, first_line=1 + has_header), _target(y, path)


def _read_csv(file: IO[bytes], path: Path, *, has_header: bool) -> pd.DataFrame:
    import pandas as pd

    lines, columns, commas = _count(file, path)
    _check_cells(path, lines, columns)
    _check_cells(path, commas + lines, 1)  # a single line may have them all
    try:
        with warnings.catch_warnings():
            # a line that is too long is cut with a warning only
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                file, header=0 if has_header else None, index_col=False, low_memory=False, compression=None
            )
    except pd.errors.EmptyDataError as error:
        raise InvalidSearchError(f"`data.file`: {path} is empty") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError, OSError) as error:
        raise InvalidSearchError(f"`data.file`: {path} is no CSV file that can be read: {first_line(error)}") from error
    if has_header and len(frame.columns) and all(map(_is_number, frame.columns)):
        raise InvalidSearchError(
            f"`data.header`: the first line of {path} holds numbers and no names; write `header: false`"
        )
    return frame


def _count(file: IO[bytes], path: Path) -> tuple[int, int, int]:
    """Count lines, columns of the first one, and all commas: pandas takes memory for each before it sees an error."""
    start = file.read(MAX_FIRST_LINE)
    first = _LINE_END.split(start, 1)[0]
    if len(first) == MAX_FIRST_LINE:
        raise InvalidSearchError(
            f"`data.file`: {path} is no CSV file that can be read: its first line has {MAX_FIRST_LINE} bytes or more"
        )
    file.seek(0)
    found = {b"\n": 1, b"\r": 1, b",": 0}
    while block := file.read(BLOCK):
        for sign in found:
            found[sign] += block.count(sign)
    file.seek(0)
    return max(found[b"\n"], found[b"\r"]), 1 + first.count(b","), found[b","]


def _check_columns(columns: Sequence[Any], path: Path) -> None:
    if len(columns) < 2:
        number = "a single column" if columns else "no column"
        hint = "the columns must be separated by commas" if path.suffix.lower() == ".csv" else "it needs one beside y's"
        raise InvalidSearchError(f"`data.file`: {path} has {number}; {hint}")
    name, times = Counter(columns).most_common(1)[0]
    if times > 1:
        raise InvalidSearchError(f"`data.file`: {path} has the column {str(name)!r} more than once")


def _check_cells(path: Path, rows: int, columns: int) -> None:
    if rows * columns > MAX_CELLS:
        raise InvalidSearchError(
            f"`data.file`: {path} has {rows} rows of {columns} columns; {_too_large(f'{MAX_CELLS} cells')}"
        )


def _read_parquet(file: IO[bytes], path: Path, target: int | str) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        contents = read_contents(file)
        file.seek(0)
        schema = pq.ParquetFile(file).schema_arrow
        columns = _columns(schema)
        _check_columns(columns, path)
        _check_contents(contents, len(columns), path)
        _check_types(schema, columns, columns[_position(target, columns, path)], path)
        # as a dictionary: a text of megabytes may stand there once and be meant a million times
        texts = [name for name in columns if _is_text(schema.field(name).type)]
        table = pq.ParquetFile(file, read_dictionary=texts).read(columns=columns)
        frame: pd.DataFrame = table.to_pandas()
    except InvalidSearchError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise InvalidSearchError(
            f"`data.file`: {path} is no Parquet file that can be read: {first_line(error)}"
        ) from error
    return frame


def _columns(schema: Any) -> list[str]:
    """Return the names of the columns, without those that pandas wrote as the frame's index."""
    known = schema.pandas_metadata
    index = known.get("index_columns") if isinstance(known, dict) else None
    return [name for name in schema.names if not isinstance(index, list) or name not in index]


def _check_contents(contents: Contents, n_columns: int, path: Path) -> None:
    _check_cells(path, contents.n_rows, n_columns)
    if contents.n_bytes > MAX_BYTES:
        raise InvalidSearchError(
            f"`data.file`: {path} would unpack to {contents.n_bytes} bytes; {_too_large(f'{MAX_BYTES} bytes')}"
        )
    if contents.repeats_beginnings:
        raise InvalidSearchError(
            f"`data.file`: {path} is encoded as DELTA_BYTE_ARRAY, which may unpack to any size; write it with pandas"
        )


def _check_types(schema: Any, columns: Sequence[str], target: str, path: Path) -> None:
    from pyarrow import types

    for name in columns:
        kind = schema.field(name).type
        if name != target and not _is_flat(kind):
            raise InvalidSearchError(f"`data.file`: column {name!r} of {path} is not numeric, it holds {kind}")
        if not any(is_one(kind) for is_one in (_is_flat, _is_text, _is_category, types.is_temporal, types.is_decimal)):
            raise InvalidSearchError(
                f"`data.target`: column {name!r} of {path} holds neither numbers nor texts, but {kind}"
            )


def _is_flat(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return any(
        is_one(kind)
        for is_one in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
        )
    )


def _is_category(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_dictionary(kind)) and (_is_text(kind.value_type) or _is_flat(kind.value_type))


def _position(target: int | str, columns: Sequence[Any], path: Path) -> int:
    names = [str(column) for column in columns]
    if isinstance(target, str):
        if target not in names:
            raise InvalidSearchError(f"`data.target`: {path} has no column {target!r}; {did_you_mean(target, names)}")
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
    _check_texts(column, path)
    values = column.to_numpy()
    return values.astype(str) if values.dtype.kind not in "fiub" else values


def _check_texts(column: pd.Series[Any], path: Path) -> None:
    """Refuse a text that an array can't repeat: there each takes as much as the longest."""
    import pandas as pd

    texts = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    longest = 0 if pd.api.types.is_numeric_dtype(texts) else max(map(len, map(str, texts)))
    if 4 * longest * len(column) > MAX_BYTES:
        raise InvalidSearchError(
            f"`data.target`: column {str(column.name)!r} of {path} has a text of {longest} characters in {len(column)} "
            f"rows; {_too_large(f'{MAX_BYTES} bytes')}"
        )


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
