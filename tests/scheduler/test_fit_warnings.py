"""What fits warned of, given in the script: each once, as what it is, under the script's own filters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sklearn.exceptions import ConvergenceWarning

from gridfleet.scheduler.results.fit_warnings import MAX_SHOWN, give_warnings
from gridfleet.storage.database.connection import Database
from gridfleet.storage.trial_results import WarningResult
from gridfleet.storage.trials import transitions
from tests.storage.conftest import result_of, store_search
from tests.warned import all_warnings

CONVERGENCE = "sklearn.exceptions.ConvergenceWarning"


class OwnWarning(UserWarning):
    """As a user's: made of other arguments than a text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class SilentWarning(UserWarning):
    """Can't be made to say a text."""

    def __str__(self) -> str:
        return "nothing"


def given(database: Database, *of_trials: Sequence[WarningResult]) -> list[warnings.WarningMessage]:
    """Return what is given of trials that warned so, of a search with two splits."""
    search = store_search(database, len(of_trials))
    for number, results in enumerate(of_trials):
        transitions.record(database, search.held(number), replace(result_of(0.5), warnings=results))
    with all_warnings() as caught:
        give_warnings(database, search.id, n_fits=2 * len(of_trials))
    return caught


def test_each_is_given_once_with_the_number_of_fits_that_gave_it(database: Database) -> None:
    often, once = WarningResult(CONVERGENCE, "too few", "linear", 2), WarningResult("UserWarning", "mind this", None, 1)

    caught = given(database, [once, often], [often], [])

    assert [(each.category, str(each.message)) for each in caught] == [
        (ConvergenceWarning, "too few (in 4 of 6 fits)"),
        (UserWarning, "mind this (in 1 of 6 fits)"),
    ]
    assert {each.filename for each in caught} == {__file__}


@pytest.mark.parametrize(
    ("category", "kind", "text"),
    [
        (f"{__name__}.OwnWarning", OwnWarning, "it"),
        (f"{__name__}.SilentWarning", UserWarning, f"{__name__}.SilentWarning: it"),
        ("DeprecationWarning", DeprecationWarning, "it"),
        ("not.installed.SomeWarning", UserWarning, "not.installed.SomeWarning: it"),
        ("os.system", UserWarning, "os.system: it"),
        ("KeyError", UserWarning, "KeyError: it"),
        ("", UserWarning, ": it"),
        ("\x1b[2J", UserWarning, r"\x1b[2J: it"),
    ],
)
def test_a_category_is_kept_where_it_is_imported_and_named_where_not(
    database: Database, category: str, kind: Any, text: str
) -> None:
    (only,) = given(database, [WarningResult(category, "it", None, 1)])

    assert (only.category, str(only.message)) == (kind, f"{text} (in 1 of 2 fits)")


def test_the_script_s_own_filters_decide_what_is_shown(database: Database) -> None:
    search = store_search(database, 1)
    results = [
        WarningResult(CONVERGENCE, "too few", "linear", 2),
        WarningResult("UserWarning", "of a module", "some.module", 1),
        WarningResult("UserWarning", "mind this", "__main__", 1),
    ]
    transitions.record(database, search.held(), replace(result_of(0.5), warnings=results))

    with all_warnings() as caught:
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        warnings.filterwarnings("ignore", module=r"some\.")
        give_warnings(database, search.id, n_fits=2)
    assert [str(each.message) for each in caught] == ["mind this (in 1 of 2 fits)"]

    with pytest.raises(ConvergenceWarning, match="too few"):  # under the filters of the tests
        give_warnings(database, search.id, n_fits=2)


def test_more_than_anybody_reads_end_with_the_name_of_the_table(database: Database) -> None:
    trials = [[WarningResult("UserWarning", f"{n} of {trial}", None, 1) for n in range(40)] for trial in range(2)]

    caught = given(database, *trials)

    assert len(caught) == MAX_SHOWN + 1
    assert "the table trial_warnings has them all" in str(caught[-1].message)


def test_no_text_steers_a_terminal_and_no_file_is_read_for_it(database: Database) -> None:
    (only,) = given(database, [WarningResult("UserWarning", "a\x1b]0;title\x07\r\nb", "/etc/passwd", 1)])

    assert str(only.message) == "a\\x1b]0;title\\x07\\r\nb (in 1 of 2 fits)"
    assert only.filename == __file__
