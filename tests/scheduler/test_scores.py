"""From what a worker recorded back to what scikit-learn expects."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import traceback
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from gridfleet.scheduler.reports.trial_reader import has_raised
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import TrialFailedError
from gridfleet.storage.exceptions import exception_to_json, qualified_name
from gridfleet.storage.trials import transitions
from gridfleet.worker.trial.cross_validation import Candidates
from gridfleet.worker.trial.scores import fit_and_score_rows, rebuild_exception
from tests.storage.conftest import result_of, store_search


def recorded(error: Exception) -> str:
    try:
        raise error
    except Exception:
        return traceback.format_exc()


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("one line"), "ValueError"),
        (RuntimeError("two\nlines: with a colon"), "RuntimeError"),
        (NotFittedError("of a library"), "sklearn.exceptions.NotFittedError"),
    ],
)
def test_an_error_of_a_worker_is_raised_as_itself(error: Exception, name: str) -> None:
    rebuilt = rebuild_exception(name, recorded(error))

    assert type(rebuilt) is type(error)
    assert str(rebuilt) == str(error)
    assert "Traceback" in str(rebuilt.__cause__)


@pytest.mark.parametrize(
    "name", ["not.installed.Error", "os.system", "builtins.KeyboardInterrupt", "UnicodeDecodeError"]
)
def test_an_error_that_can_not_be_made_here_is_told_in_full(name: str) -> None:
    rebuilt = rebuild_exception(name, "Traceback …\nthe message")

    assert type(rebuilt) is TrialFailedError
    assert "the message" in str(rebuilt)


class OfTwoError(Exception):
    """As users write them."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code = code


@pytest.mark.parametrize("error", [KeyError("missing"), OfTwoError(3, "home")], ids=repr)
def test_an_error_that_was_described_is_raised_with_what_it_holds(error: Exception) -> None:
    rebuilt = rebuild_exception(qualified_name(type(error)), recorded(error), exception_to_json(error))

    assert (type(rebuilt), rebuilt.args, vars(rebuilt)) == (type(error), error.args, vars(error))
    assert "Traceback" in str(rebuilt.__cause__)


def test_no_traceback_steers_a_terminal() -> None:
    rebuilt = rebuild_exception("ValueError\x1b[2J", "Traceback\x1b]0;title\x07\nthe message")

    assert "ValueError\\x1b[2J on a worker:\nTraceback\\x1b]0;title\\x07\nthe message" in str(rebuilt)


@pytest.mark.parametrize("error_score", [np.nan, 0.0, "raise"])
def test_what_scikit_learn_lets_out_is_raised_whatever_error_score_is(database: Database, error_score: Any) -> None:
    search = store_search(database, 2)
    error = ValueError("scoring must return a number, got None")
    result = replace(result_of(0.5, error=recorded(error), n_splits=0), exception=exception_to_json(error))
    transitions.record(database, search.held(0), result_of(0.5))
    transitions.record(database, search.held(1), result)
    candidates = Candidates([{}, {}], True, "score", False, error_score, None)

    assert has_raised(database, search.id, any_error=False)
    with pytest.raises(ValueError, match=r"^scoring must return a number, got None$"):
        fit_and_score_rows(database, search.id, candidates, 2)


def test_a_fit_that_raised_is_let_out_under_error_score_raise_only(database: Database) -> None:
    search = store_search(database, 1)
    transitions.record(database, search.held(0), result_of(-1.0, error=recorded(ValueError("no fit"))))

    assert [has_raised(database, search.id, any_error=any_error) for any_error in (True, False)] == [True, False]
    rows = fit_and_score_rows(database, search.id, Candidates([{}], True, "score", False, -1.0, None), 2)
    assert [row["test_scores"] for row in rows] == [-1.0, -1.0]
    with pytest.raises(ValueError, match="no fit"):
        fit_and_score_rows(database, search.id, Candidates([{}], True, "score", False, "raise", None), 2)


def test_a_table_makes_no_package_import_what_it_was_not_asked_for() -> None:
    script = """
        import sys, scipy
        from gridfleet.worker.trial.scores import rebuild_exception
        assert "scipy.odr" not in sys.modules and "odr" in dir(scipy)
        print(type(rebuild_exception("scipy.odr", "the message")).__name__, "scipy.odr" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["TrialFailedError", "False"]
