"""How searches are shown at the terminal: the list, the report, the best score."""

from __future__ import annotations

import ast
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gridfleet.scheduler.reports import reader
from gridfleet.scheduler.reports.causes import by_cause, cause
from gridfleet.scheduler.reports.plain import plain, plain_lines
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import SearchNotFinishedError
from gridfleet.storage.schema import SearchState

#: Columns of output that goes to a file or a pipe: nothing is folded there.
FILE_WIDTH = 10_000
#: More hyperparameters than this share one column.
MAX_PARAM_COLUMNS = 6
#: Rows of a leaderboard, and causes of failures.
SHOWN = 10
#: Failures whose causes are looked at: each has a traceback of some thousand characters.
EXAMINED_FAILURES = 1_000


def print_searches(database: Database, *, limit: int) -> None:
    """Print the newest searches.

    Parameters
    ----------
    database : Database
        The fleet's.
    limit : int
        How many at most.
    """
    searches = reader.list_searches(database, limit=limit)
    if not searches:
        console().print("there are no searches yet")
        return
    counts = reader.count_trials(database, [search.id for search in searches])
    rows = [_listed(search, counts.get(search.id, reader.TrialCounts())) for search in searches]
    header = ["search", "state", "trials", "failed", "best score", "strategy", "submitted (UTC)", "by"]
    console().print(_table_of_lines(header, rows))


def _listed(search: reader.SearchSummary, trials: reader.TrialCounts) -> list[str]:
    return [
        search.name,
        search.state,
        f"{trials.done}/{search.n_trials}",
        str(trials.failed),
        score(trials.best_score),
        search.strategy,
        f"{search.created_at:%Y-%m-%d %H:%M}",
        search.submitted_by,
    ]


def print_report(database: Database, name: str) -> None:
    """Print what was searched, how long it took, the best, the leaderboard and the failures.

    Parameters
    ----------
    database : Database
        The fleet's.
    name : str
        The search's name.

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    search = reader.find_search(database, name)
    progress = reader.progress(database, search.id)
    ranked = reader.leaderboard(database, search.id, limit=SHOWN)
    failed = reader.failures(database, search.id, limit=EXAMINED_FAILURES)
    out = console()
    out.print(Text(f"{plain(search.name)}: {plain(search.state)}", style="bold"))
    shown = [*(trial.params for trial in ranked), *(trial.params for trial in failed)]
    names = dict.fromkeys(name for params in shown for name in params)
    for label, fact in _facts(search, progress, ranked, names, reader.peak_memory_mb(database, search.id)):
        out.print(Text(f"  {label:<12} {plain(fact)}"))
    for fact in _reused(search, reader.reused(database, search.id)):
        out.print(Text(f"  {'reused':<12} {plain(fact)}"))
    for fact in _training(reader.fit_modes(database, search.id)):
        out.print(Text(f"  {'training':<12} {plain(fact)}"))
    if ranked:
        out.print(_leaderboard(ranked))
    if failed:
        for line in _failures(failed, progress.failed):
            out.print(Text(line))
        # shlex: a name may have spaces
        whole = f"gridfleet report {shlex.quote(search.name)} --trial {failed[0].number}"
        out.print(Text(f"one with its traceback: {plain(whole)}"))


def print_attempts(database: Database, name: str) -> None:
    """Print every try at every trial of a search: who, when, how long, and what became of it.

    Parameters
    ----------
    database : Database
        The fleet's.
    name : str
        The search's name.

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    search = reader.find_search(database, name)
    console().print(attempts_table(reader.attempts(database, search.id)))


def attempts_table(attempts: Iterable[reader.AttemptStory]) -> Table:
    """Return a table of attempts, one line each."""
    header = ["trial", "attempt", "outcome", "started", "seconds", "MB", "worker", "error"]
    rows = [
        [
            one.number,
            one.attempt,
            one.outcome or "running",
            f"{one.started_at:%Y-%m-%d %H:%M:%S}",
            f"{one.seconds:.1f}",
            one.peak_memory_mb,
            one.worker_id,
            cause(one.error),
        ]
        for one in attempts
    ]
    return _table_of_lines(header, rows)


def print_best_line(database: Database, name: str) -> bool:
    """Print the best score of a search in one line.

    Returns
    -------
    bool
        Whether there is one.
    """
    search = reader.find_search(database, name)
    print(best_line(database, search), flush=True)  # noqa: T201 - the command's output
    return reader.best_trial(database, search.id) is not None


def best_line(database: Database, search: reader.SearchSummary) -> str:
    """Return the line about a search's best score, or about why there is none."""
    best = reader.best_trial(database, search.id)
    if best is not None:
        params = plain(str(best.params))
        ended = ", cancelled" if search.state == SearchState.CANCELLED else ""
        return f"best score: {best.mean_test_score:f}, best params: {params} (search {plain(search.name)}{ended})"
    progress = reader.progress(database, search.id)
    return (
        f"no score: {progress.failed} of {progress.total} trials failed, {progress.cancelled} were cancelled, "
        f"{progress.total - progress.done} are open (search {plain(search.name)})"
    )


def best_as_json(database: Database, name: str) -> dict[str, Any]:
    """Return the best trial of a search as JSON types.

    Raises
    ------
    SearchNotFinishedError
        If no trial has a score yet.
    """
    search = reader.find_search(database, name)
    best = reader.best_trial(database, search.id)
    if best is None:
        raise SearchNotFinishedError(f"search {search.name!r} has no score yet; it is {search.state}")
    return {
        "search": search.name,
        "state": search.state,
        "metric": _metric(search),
        "best_score": best.mean_test_score,
        "std_test_score": best.std_test_score,
        "best_params": best.params,
        "number": best.number,
    }


def _metric(search: reader.SearchSummary) -> str:
    """Return the name of the metric that ranks the trials, as scikit-learn's users give it."""
    if search.refit_metric != "score" or search.scoring is None:
        return search.refit_metric
    given = search.scoring  # as Python writes it
    return str(ast.literal_eval(given)) if given[0] in "'\"" else given


def console(out: TextIO | None = None) -> Console:
    """Return a console that interprets nothing in what it prints.

    Parameters
    ----------
    out : text file, default=sys.stdout
        Where it prints.
    """
    out = out or sys.stdout
    return Console(file=out, width=None if out.isatty() else FILE_WIDTH, markup=False, highlight=False, emoji=False)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table of plain texts, which may have several lines; numbers are set to the right.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : sequence of sequences
        The cells; None is shown empty.
    """
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        is_number = any(_is_number(row[index]) for row in rows)
        made.add_column(Text(plain(name)), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text("" if cell is None else plain_lines(str(cell))) for cell in row))
    return made


def _table_of_lines(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table each row of which is one line: no name that somebody stored looks like another row."""
    return table(header, [[plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows])


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def score(value: float | None) -> str:
    """Show a score."""
    return "" if value is None else f"{value:.6f}"


def _failures(failed: Sequence[reader.FailedTrial], n_failed: int) -> list[str]:
    """Say why trials failed, those with the same cause together."""
    causes = by_cause(failed)
    lines = []
    for one in causes[:SHOWN]:
        example = _params(one.trials[0].params)
        of_trials = f"trial{'s' if len(one.trials) > 1 else ''} {one.numbers}"
        of_trials += f", e.g. {example}" if example else ""
        of_trials += f"; on {one.workers}" if one.workers else ""
        lines += [plain(f"  {len(one.trials)} × {one.cause}"), plain(f"      {of_trials}")]
    n_left_out = sum(len(one.trials) for one in causes[SHOWN:]) + n_failed - len(failed)
    if n_left_out:
        lines.append(f"  and {n_left_out} more")
    return [f"failed: {n_failed}", *lines]


def _facts(
    search: reader.SearchSummary,
    progress: reader.Progress,
    ranked: Sequence[reader.RankedTrial],
    names: Iterable[str],
    peak_memory_mb: int | None,
) -> list[tuple[str, str]]:
    facts = [
        ("searched", f"{search.strategy}, {search.n_trials} trials of {search.n_splits} splits" + _over(names)),
        ("estimator", search.estimator),
        ("scoring", search.scoring or "the estimator's own score"),
        ("submitted", f"{search.created_at:%Y-%m-%d %H:%M:%S} UTC by {search.submitted_by}"),
        ("trials", _trials(progress)),
    ]
    if progress.waits_for_python is not None:
        facts.append(("waits", str(reader.WaitingForPython(progress.waits_for_python, progress.queued))))
    if peak_memory_mb is not None:
        facts.append(("memory", f"at most {peak_memory_mb:,} MB of a worker process"))
    if search.error is not None:
        facts.append(("ended", search.error))
    if progress.seconds_running is not None:
        facts.append(("took" if search.is_finished else "running for", f"{progress.seconds_running:.1f} s"))
    if ranked:
        best = ranked[0]
        deviation = "" if best.std_test_score is None else f" ± {best.std_test_score:.6f}"
        facts += [("best score", score(best.mean_test_score) + deviation), ("best params", str(best.params))]
    return facts


def _reused(search: reader.SearchSummary, counts: Mapping[str, int]) -> list[str]:
    """Say how many results are of other searches, and why others are found by none."""
    facts = [f"{n_trials} results are of {name or 'a search that is deleted'}" for name, n_trials in counts.items()]
    if search.reuse and search.no_reuse is not None:
        facts.append(f"no results are found for {search.no_reuse}")
    elif search.reuse and not counts:
        facts.append("no results were there")
    return facts


def _training(modes: Sequence[reader.FitModeCount]) -> list[str]:
    """Say how Keras models trained, and why some of them as Keras does it."""
    return [
        f"{one.n_trials} trials {one.fit_mode}" + (f": {one.fallback_reason}" if one.fallback_reason else "")
        for one in modes
    ]


def _over(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f", over {listed}" if listed else ""


def _trials(progress: reader.Progress) -> str:
    counts = [(getattr(progress, state), state) for state in _STATES]
    return f"{progress.done} of {progress.total} done: " + ", ".join(f"{n} {state}" for n, state in counts if n)


_STATES = ("completed", "failed", "pruned", "cancelled", "running", "queued")


def _leaderboard(ranked: Sequence[reader.RankedTrial]) -> Table:
    names = list(dict.fromkeys(name for trial in ranked for name in trial.params))
    header = ["rank", "mean_test_score", "std_test_score", "mean_fit_time", "number"]
    if len(names) <= MAX_PARAM_COLUMNS:
        return _table_of_lines(
            [*header, *names], [[*_numbers(t), *(_cell(t.params, name) for name in names)] for t in ranked]
        )
    return _table_of_lines([*header, "params"], [[*_numbers(trial), _params(trial.params)] for trial in ranked])


def _cell(params: dict[str, Any], name: str) -> Any:
    """Return a value, and nothing where the combination has no such hyperparameter."""
    value = params.get(name, "")
    return "None" if value is None else value


def _numbers(trial: reader.RankedTrial) -> list[Any]:
    fit_time = "" if trial.mean_fit_time is None else f"{trial.mean_fit_time:.3f}"
    return [trial.rank, score(trial.mean_test_score), score(trial.std_test_score), fit_time, trial.number]


def _params(params: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in params.items())
