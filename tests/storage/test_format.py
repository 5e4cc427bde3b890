"""What can't be loaded here is refused with a reason."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gridfleet.storage.errors import PayloadError
from gridfleet.storage.payloads.format import _PYTHON, MAGIC, dump, load
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
