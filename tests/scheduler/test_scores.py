"""From what a worker recorded back to what scikit-learn expects."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import traceback

import pytest
from sklearn.exceptions import NotFittedError

from gridfleet.scheduler.results.scores import rebuild_exception
from gridfleet.storage.errors import TrialFailedError


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


def test_a_table_makes_no_package_import_what_it_was_not_asked_for() -> None:
    script = """
        import sys, scipy
        from gridfleet.scheduler.results.scores import rebuild_exception
        assert "scipy.odr" not in sys.modules and "odr" in dir(scipy)
        print(type(rebuild_exception("scipy.odr", "the message")).__name__, "scipy.odr" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["TrialFailedError", "False"]
