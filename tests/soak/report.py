"""What a run came to, as plain text for a terminal and for docs/reliability.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.soak.run import Outcome
from tests.soak.system import System

#: Violations that are printed; the first few tell what is wrong.
SHOWN_VIOLATIONS = 30


def lines(outcome: Outcome, system: System) -> Iterator[str]:
    """Return the lines of the report."""
    yield from _facts(outcome, system)
    yield ""
    yield from _table(("fault", "times", "next result, median s", "worst s"), _faults(outcome))
    yield ""
    yield from _table(("people's action", "times", "refused by a broken part"), _actions(outcome))
    yield ""
    again = [
        (recovery.kind, len(recovery.seconds), f"{recovery.median:.1f}", f"{recovery.worst:.1f}")
        for recovery in outcome.tried_again
    ]
    yield from _table(("attempt ended as", "times", "runs again, median s", "worst s"), again)
    yield ""
    growths = [
        (growth.what, f"{growth.first:.1f}", f"{growth.last:.1f}", f"{growth.minutes:.0f}")
        for growth in sorted(outcome.growths, key=lambda growth: growth.what)
    ]
    yield from _table(("growth (MB or number)", "first third", "last third", "over minutes"), growths)
    yield ""
    yield f"violations   {len(outcome.violations)}"
    for violation in outcome.violations[:SHOWN_VIOLATIONS]:
        yield f"  {violation}"
    if len(outcome.violations) > SHOWN_VIOLATIONS:
        yield f"  … and {len(outcome.violations) - SHOWN_VIOLATIONS} more"


def _facts(outcome: Outcome, system: System) -> Iterator[str]:
    totals = outcome.totals
    facts = {
        "seed": outcome.seed,
        "minutes of faults": f"{outcome.minutes:.1f}",
        "seconds to rest": f"{outcome.seconds_to_rest:.1f}",
        "database": "PostgreSQL" if system.postgresql else "SQLite",
        "faults injected": f"{len(outcome.injected)} ({outcome.skipped} more found nothing to break)",
        "started again": ", ".join(f"{name} {times}×" for name, times in outcome.restarts.items()),
        "searches": f"{totals.searches} ({outcome.refused} were refused while a part was down)",
        "trials": f"{sum(totals.trials.values())}: {_counts(totals.trials)}",
        "attempts": f"{sum(totals.attempts.values())}: {_counts(totals.attempts)}",
        "budget used up": f"{totals.trials.get('failed', 0) - totals.attempts.get('failed', 0)} of the failed trials; "
        "the fits or scores of the others fail on purpose",
        "reused": f"{totals.reused} trials took the results of others",
        "refits": f"{totals.models} best models",
        "lost": totals.lost,
        "doubled": totals.doubled,
    }
    for name, value in facts.items():
        yield f"{name:<18} {value}"


def _faults(outcome: Outcome) -> Iterator[tuple[Any, ...]]:
    times = Counter(fault.kind for fault in outcome.injected)
    for recovery in outcome.recoveries:
        median, worst = (f"{recovery.median:.1f}", f"{recovery.worst:.1f}") if recovery.seconds else ("-", "-")
        yield recovery.kind, times[recovery.kind], median, worst


def _actions(outcome: Outcome) -> Iterator[tuple[Any, ...]]:
    for action in sorted({*outcome.done, *outcome.refused_actions}):
        yield action, outcome.done.get(action, 0), outcome.refused_actions.get(action, 0)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items(), key=lambda item: -item[1]))


def _table(head: Sequence[str], rows: Iterator[tuple[Any, ...]] | Sequence[tuple[Any, ...]]) -> Iterator[str]:
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        first, *others = (
            f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others])
