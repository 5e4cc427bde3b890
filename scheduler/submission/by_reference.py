"""Data by reference, as a submission needs them: what scikit-learn is given here, and what travels in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any

from gridfleet.storage.errors import DataNotThereError, InvalidDataError, InvalidSearchError, MissingCodeError
from gridfleet.storage.references import formats, source
from gridfleet.storage.references.data_ref import DataRef
from gridfleet.storage.references.host_data import HostData
from gridfleet.storage.settings import PREFIX, Settings

#: What splitters look at, so that it is read here.
READ_HERE = ("y", "groups")


class UnreadRows:
    """Rows that are not read here: scikit-learn counts them, and draws its splits."""

    def __init__(self, name: str, ref: DataRef, n_rows: int) -> None:
        self._name, self._ref, self._n_rows = name, ref, n_rows

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, rows: Any) -> Any:
        """Refuse to give rows: a splitter of the script's own asks."""
        raise InvalidSearchError(
            f"{self._name} is data by reference, {self._ref.location}, of which only the rows are counted here; what "
            "looks into it, such as a splitter of your own, needs an .npy file of this machine, or the data themselves"
        )


class References:
    """Opens the data of one search; those that are no reference stay what they are.

    Parameters
    ----------
    settings : Settings
        The place and the bound of the cache.
    reads_all : bool
        Whether all rows are needed here too, as for the refit of the best combination.
    """

    def __init__(self, settings: Settings, *, reads_all: bool) -> None:
        self._settings = settings
        self._reads_all = reads_all
        self._data = HostData(settings)
        self._digests: dict[str, str] = {}
        self._remote: dict[str, int] = {}
        # with the object, whose id would be another's one day
        self._sent: dict[int, tuple[Any, DataRef]] = {}

    def opened(self, name: str, value: Any) -> Any:
        """Return what scikit-learn is given for an argument: the data, or what stands for them.

        Parameters
        ----------
        name : str
            The argument's name.
        value : object
            A reference, or anything else, which is returned as it is.

        Raises
        ------
        InvalidSearchError
            One sentence that begins with the argument, if the file is not there or has not what is meant.
        """
        if not isinstance(value, DataRef):
            return value
        try:
            value = self._with_digest(value)
            opened = self._opened(name, value)
        except (DataNotThereError, InvalidDataError, MissingCodeError) as error:
            raise InvalidSearchError(f"{name}: {error}") from error
        self._sent[id(opened)] = opened, value
        return opened

    def all_opened(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return several arguments as `opened`."""
        return {name: self.opened(name, value) for name, value in values.items()}

    def sent(self, value: Any) -> Any:
        """Return what travels to the workers for an object that scikit-learn has: the reference, or itself."""
        return self._sent[id(value)][1] if id(value) in self._sent else value

    def _with_digest(self, ref: DataRef) -> DataRef:
        if ref.sha256 is not None:
            return ref
        if ref.location not in self._digests:
            self._digests[ref.location] = self._data.digest_of(ref)
        return replace(ref, sha256=self._digests[ref.location])

    def _opened(self, name: str, ref: DataRef) -> Any:
        if self._reads_all:
            return self._data.get(ref)
        with source.opened(ref) as file:
            if ref.is_remote:
                self._check_size(ref, file)
            # of a file of this host that is mapped, nothing is read before somebody looks
            if name in READ_HERE or (ref.format == ".npy" and not ref.is_remote):
                return formats.read(ref, file)
            return UnreadRows(name, ref, formats.count_rows(ref, file))

    def _check_size(self, ref: DataRef, file: IO[bytes]) -> None:
        """Refuse what workers would fetch again and again."""
        self._remote[ref.location] = file.seek(0, 2)
        file.seek(0)
        size, bound = sum(self._remote.values()), self._settings.cache_size_mb
        if size > bound * 1_000_000:
            raise InvalidDataError(
                f"the files at URLs have {size / 1e6:,.1f} MB, above {PREFIX}CACHE_SIZE_MB={bound}, what workers keep: "
                "they would fetch them again and again; raise it, here and for the workers"
            )
