"""Why trials failed: the sentence of an error that says it, and failures with the same one together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from gridfleet.scheduler.reports.trial_reader import FailedTrial

#: Characters of a cause; what follows stands in the traceback.
SHOWN = 300
#: A line that names an error: at the left edge of a traceback, ended by the name or a colon.
_NAMES_AN_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Warning|Exit|Interrupt|Iteration|Failure)(?=:|$)")
#: Colours, which Keras puts into its messages.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
#: Where an object lies in memory.
_ADDRESS = re.compile(r"\b0x[0-9a-f]+\b")
#: Lines that say where, and not what: Keras' and TensorFlow's.
_WHERE = re.compile(
    r"Exception encountered when calling .*|Graph execution error:|Detected at node .*|<stack traces unavailable>"
    r'|File ".*|\[\[\{\{node .*'
)


def cause(error: str | None, error_type: str | None = None) -> str:
    """Return what an error says, in one line: its type, and the first paragraph that says what was wrong.

    Parameters
    ----------
    error : str or None
        A traceback, or a sentence.
    error_type : str, optional
        The name of the exception, where it is known.
    """
    lines = _ADDRESS.sub("0x…", _COLOURS.sub("", error or "")).strip().splitlines()
    if not lines:
        return error_type or ""
    start = next((i for i in reversed(range(len(lines))) if _begins_error(lines[i], error_type)), None)
    if start is None:
        return _short(lines[-1])
    name, _, rest = lines[start].partition(":")
    name = name.rpartition(".")[2]
    message = _first_paragraph([rest, *lines[start + 1 :]])
    return _short(f"{name}: {message}" if message else name)


def _begins_error(line: str, error_type: str | None) -> bool:
    return line.partition(":")[0] == error_type or _NAMES_AN_ERROR.match(line) is not None


def _first_paragraph(lines: Sequence[str]) -> str:
    """Return the first paragraph that says what is wrong, with the next one if it ends in a colon."""
    said = (line.strip() for line in lines)
    paragraphs = (
        " ".join(group)
        for is_said, group in groupby(said, key=lambda line: line and not _WHERE.fullmatch(line))
        if is_said
    )
    found = next(paragraphs, "")
    return f"{found} {next(paragraphs, '')}".rstrip() if found.endswith(":") else found


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1].rstrip()}…"


@dataclass(frozen=True)
class Failures:
    """Trials that failed for the same reason.

    Parameters
    ----------
    cause : str
        The reason, in one line.
    trials : list of FailedTrial
        By number.
    """

    cause: str
    trials: list[FailedTrial]

    @property
    def numbers(self) -> str:
        """The trials' numbers, as ranges: ``0-3, 7``."""
        return ranges([trial.number for trial in self.trials])

    @property
    def workers(self) -> str:
        """The names of the workers that had them, at most three."""
        names = list(dict.fromkeys(trial.worker_id for trial in self.trials if trial.worker_id is not None))
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def by_cause(failed: Iterable[FailedTrial]) -> list[Failures]:
    """Put failures with the same cause together, the most frequent first."""
    found: dict[str, list[FailedTrial]] = {}
    # most have the same traceback, of some thousand characters, that is looked through once
    cause_of = lru_cache(maxsize=None)(cause)
    for trial in failed:
        found.setdefault(cause_of(trial.error, trial.error_type), []).append(trial)
    together = [Failures(text, trials) for text, trials in found.items()]
    return sorted(together, key=lambda one: (-len(one.trials), one.trials[0].number))


def ranges(numbers: Sequence[int], *, limit: int = 5) -> str:
    """Write ascending numbers as ranges.

    Parameters
    ----------
    numbers : sequence of int
        Ascending.
    limit : int, default=5
        Ranges at most; the others are counted.

    Examples
    --------
    >>> ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = [str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts[:limit]]
    n_more = sum(len(part) for part in parts[limit:])
    return ", ".join(shown) + (f" and {n_more} more" if n_more else "")
