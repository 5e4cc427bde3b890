"""What can't be loaded here is refused with a reason."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gridfleet.storage.errors import PayloadError
from gridfleet.storage.payloads.format import _PYTHON, MAGIC, dump, load, pickle_of
from gridfleet.storage.payloads.store import PayloadStore


def test_code_that_is_not_installed_here_is_named(
    store: PayloadStore, another_store: Callable[..., PayloadStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("a_package_of_the_submitter")
    exec("class Layer: pass\nclass Other: pass", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    layer = store.put("evaluation", module.Layer(), what="estimator")
    other = store.put("evaluation", module.Other(), what="estimator")
    del module.Other

    with pytest.raises(PayloadError, match="Other"):
        another_store().get("evaluation", other)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(PayloadError, match="a_package_of_the_submitter"):
        another_store().get("evaluation", layer)


def test_bytecode_of_another_python_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    by_value = b"".join(dump("X", lambda: 1, what="X"))
    data_only = b"".join(dump("X", np.arange(3), what="X"))
    assert _PYTHON.encode() not in data_only[:200]
    foreign = by_value.replace(f'"python": "{_PYTHON}"'.encode(), b'"python": "2.07"'.ljust(16))

    with pytest.raises(PayloadError, match=r"ran on Python 2\.07, whose bytecode this Python .* can't run"):
        load(memoryview(foreign))


def test_a_payload_of_an_older_release_is_refused_before_it_is_loaded() -> None:
    # its pickle names modules that are gone, such as worker.cross_validation
    before = b"".join(dump("X", np.arange(3), what="X")).replace(MAGIC, b"gridfleet1", 1)

    with pytest.raises(PayloadError, match="not a payload of gridfleet, or one of another version"):
        load(memoryview(before))


def test_cached_and_dispatching_functions_of_a_script_travel() -> None:
    defined: dict[str, object] = {"__name__": "__main__"}
    exec(
        "import functools\n"
        "@functools.lru_cache(maxsize=3)\ndef cached(n):\n    return n if n < 2 else cached(n - 1) + cached(n - 2)\n"
        "@functools.singledispatch\ndef kind(value):\n    return 'any'\n"
        "@kind.register\ndef _(value: int):\n    return 'int'\n",
        defined,
    )
    content = memoryview(b"".join(dump("evaluation", [defined["cached"], defined["kind"]], what="functions")))

    _, (cached, kind) = load(content)

    assert (cached(30), cached.cache_parameters()["maxsize"]) == (832040, 3)
    assert (kind(1), kind("1")) == ("int", "any")


class Labelled(np.ndarray):
    """An array class of a user."""


def _mapped(folder: Path) -> np.ndarray:
    np.save(folder / "X.npy", np.arange(30_000.0).reshape(100, 300))
    return np.load(folder / "X.npy", mmap_mode="r")


@pytest.mark.parametrize(
    ("make", "arrives_as"),
    [
        (_mapped, np.ndarray),
        (lambda folder: _mapped(folder)[::2, ::3], np.ndarray),
        (lambda _: np.arange(30_000.0).reshape(100, 300).view(Labelled)[:, ::2], Labelled),
        (lambda _: np.ones(3_000, dtype=[("a", "f8"), ("b", "i4")]).view(np.recarray), np.recarray),
    ],
    ids=["memmap", "part of a memmap", "a class of the user's", "recarray"],
)
def test_arrays_of_every_class_travel_beside_the_pickle_and_not_in_it(
    make: Callable[[Path], np.ndarray], arrives_as: type, tmp_path: Path
) -> None:
    array = make(tmp_path)

    content = memoryview(b"".join(dump("X", array, what="X")))

    _, arrived = load(content)
    assert type(arrived) is arrives_as
    assert np.array_equal(np.asarray(arrived), np.asarray(array))
    assert len(pickle_of(content)) < 2_000


def test_a_masked_array_keeps_its_mask() -> None:
    array = np.ma.masked_less(np.arange(6.0), 3)

    _, arrived = load(memoryview(b"".join(dump("X", array, what="X"))))

    assert arrived.mask.tolist() == array.mask.tolist()
