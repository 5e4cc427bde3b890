"""What fits and scores warned of on the workers, given in the script: each once, with its number."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import joblib
import sklearn

from gridfleet.scheduler.reports import trial_reader
from gridfleet.scheduler.reports.plain import plain_lines
from gridfleet.storage.database.connection import Database
from gridfleet.storage.exceptions import imported_class_of, rebuild

#: Different warnings that are given; the table has the others.
MAX_SHOWN = 50
#: Folders of those that call each other between the script and here, as beginnings of file names.
_NOT_THE_SCRIPT = tuple(
    f"{folder}/" for folder in (Path(__file__).parents[2], Path(sklearn.__file__).parent, Path(joblib.__file__).parent)
)


def give_warnings(database: Database, search_id: int, *, n_fits: int) -> None:
    """Warn in this process of what the fits of a search warned of, under this process's own filters.

    Parameters
    ----------
    database : Database
        The fleet's.
    search_id : int
        Its id in ``searches``.
    n_fits : int
        Trials times splits.
    """
    found = trial_reader.trial_warnings(database, search_id, limit=MAX_SHOWN + 1)
    filename, lineno, module = _place_in_the_script()
    for given in found[:MAX_SHOWN]:
        # filters by module were asked on the worker; here they get the same answer
        warnings.warn_explicit(_warning(given, n_fits), UserWarning, filename, lineno, module=given.module or module)
    if len(found) > MAX_SHOWN:
        rest = f"the fits gave more than these {MAX_SHOWN} warnings; the table trial_warnings has them all"
        warnings.warn_explicit(rest, UserWarning, filename, lineno, module=module)


def _warning(given: trial_reader.GivenWarning, n_fits: int) -> Warning:
    text = f"{plain_lines(given.message)} (in {given.n_fits} of {n_fits} fits)"
    kind = imported_class_of(given.category, Warning)
    try:
        warning = rebuild(kind or UserWarning, [text])
        is_shown = kind is not None and str(warning) == text
    except Exception:  # noqa: BLE001 - its own __str__ may want more than a text
        is_shown = False
    return warning if is_shown else UserWarning(f"{plain_lines(given.category)}: {text}")


def _place_in_the_script() -> tuple[str, int, str]:
    """Return file, line and module of who called us, scikit-learn and joblib: never a name out of SQL."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_SCRIPT):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno, str(frame.f_globals.get("__name__", "__main__"))
