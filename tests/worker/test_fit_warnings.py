"""Warning filters that travel, and what of the warnings is noted."""

from __future__ import annotations

import pickle
import re
import sys
import types
import warnings
from typing import Any

import cloudpickle
import pytest

from gridfleet.storage.trial_results import MAX_WARNING, MAX_WARNINGS
from gridfleet.worker.trial.fit_warnings import WarningFilters, WarningNotes


def travelled(*filters: Any) -> list[Any]:
    arrived = pickle.loads(cloudpickle.dumps(WarningFilters(filters)))
    with warnings.catch_warnings():
        arrived.apply()
        return list(warnings.filters)


def test_filters_travel_in_their_order_as_python_keeps_them() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("once", (DeprecationWarning, FutureWarning))
        warnings.filterwarnings("ignore", "a.b", UserWarning, "some_module", 7)
        warnings.filterwarnings("error", category=pytest.PytestWarning)
        given = list(warnings.filters)

    assert given[2][2] == (DeprecationWarning, FutureWarning)
    assert travelled(*given) == [
        given[0],
        given[1],
        ("once", None, DeprecationWarning, None, 0),
        ("once", None, FutureWarning, None, 0),
    ]


def test_a_filter_of_a_package_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_in_the_script")
    module.OwnWarning = type("OwnWarning", (UserWarning,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    pickled = cloudpickle.dumps(WarningFilters([("error", None, module.OwnWarning, None, 0)]))
    assert len(pickle.loads(pickled).filters) == 1

    monkeypatch.delitem(sys.modules, module.__name__)

    assert pickle.loads(pickled).filters == []


def test_a_class_of_the_script_travels_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    own = type("OwnWarning", (UserWarning,), {"__module__": "__main__"})

    (only,) = travelled(("error", re.compile("x", re.I), own, None, 0))

    assert (only[0], only[2].__name__, issubclass(only[2], UserWarning)) == ("error", "OwnWarning", True)


def test_warnings_without_end_are_noted_within_bounds() -> None:
    notes = WarningNotes()

    for fit in range(3):
        with notes.of_a_fit(WarningFilters([("always", None, Warning, None, 0)])):
            warnings.showwarning = notes._note_and_show
            notes._show = lambda *_: None
            for number in range(MAX_WARNINGS + 50):
                warnings.warn(f"{number} in {fit % 2}", stacklevel=1)
            warnings.warn("x" * 1_000_000 + "the end", stacklevel=1)

    results = notes.results()
    assert len(results) == MAX_WARNINGS
    assert {each.n_fits for each in results} == {2}  # the first and the third


def test_of_a_long_text_beginning_and_end_are_noted() -> None:
    notes = WarningNotes()

    notes.note(UserWarning, "Scoring failed" + "x" * 1_000_000 + "the end", None)

    (only,) = notes.results()
    assert only.message.startswith("Scoring failed")
    assert only.message.endswith("the end")
    assert len(only.message) <= MAX_WARNING
