"""How searches are shown at the terminal: the list, the report, the best score."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gridfleet.scheduler.reports import reader, trial_reader
from gridfleet.scheduler.reports.causes import by_cause, cause
from gridfleet.scheduler.reports.fair_sample import sampled
from gridfleet.scheduler.reports.figures import ago, count, metric, params, rounded, score, time, with_deviation
from gridfleet.scheduler.reports.plain import plain, plain_lines
from gridfleet.scheduler.reports.progress import MIN_NAME_WIDTH, shortened
from gridfleet.scheduler.reports.pruning import pruned_facts
from gridfleet.storage.database.connection import Database
from gridfleet.storage.halving import NAME as HALVING
from gridfleet.storage.halving import Halving
from gridfleet.storage.refits import Refit, find_refit
from gridfleet.storage.room import SearchRoom
from gridfleet.storage.search_states import ShownState, described

#: Columns between two of a table.
GAP = 2
#: Columns of output that goes to a file or a pipe: nothing is folded there.
FILE_WIDTH = 10_000
#: More hyperparameters than this share one column.
MAX_PARAM_COLUMNS = 6
#: Rows of a leaderboard, and causes of failures.
SHOWN = 10
#: Failures whose causes are looked at: each has a traceback of some thousand characters.
EXAMINED_FAILURES = 1_000


def shown_tags(tags: Mapping[str, str]) -> str:
    """Show tags as they are written on the command line."""
    return " ".join(f"{key}={value}" for key, value in tags.items())


def print_rooms(rooms: Sequence[SearchRoom]) -> None:
    """Print what searches take of the database, in MB."""
    header = ["search", "state", "payloads", "its own", "curves", "scores", "attempts", "model", "rest", "to be freed"]
    rows = [
        [
            room.name,
            described(room.state),
            *(
                megabytes(size)
                for size in (
                    room.payloads,
                    room.own_payloads,
                    room.curves,
                    room.scores,
                    room.attempts,
                    room.model,
                    room.trials + room.warnings + room.reports,
                    room.freed,
                )
            ),
        ]
        for room in rooms
    ]
    console().print(table_of_lines(header, rows))


def megabytes(size: int) -> str:
    """Show bytes as MB of 1,000,000."""
    return f"{size / 1e6:,.2f}"


def print_report(database: Database, name: str | int) -> None:
    """Print what was searched, how long it took, the best, the leaderboard and the failures.

    Parameters
    ----------
    database : Database
        The fleet's.
    name : str or int
        The search's name, or its id.

    Raises
    ------
    SearchNotFoundError
        If there is none.
    """
    search = reader.find_search(database, name)
    progress = reader.progress(database, search.id)
    ranked = trial_reader.leaderboard(database, search.id, limit=SHOWN)
    failed = trial_reader.failures(database, search.id, limit=EXAMINED_FAILURES)
    out = console()
    out.print(Text(f"{plain(search.name)}: {plain(search.shown_state)}", style="bold"))
    shown = [*(trial.params for trial in ranked), *(trial.params for trial in failed)]
    names = dict.fromkeys(name for params in shown for name in params)
    for label, fact in _facts(search, progress, ranked, names, trial_reader.peak_memory_mb(database, search.id)):
        out.print(Text(f"  {label:<12} {plain(fact)}"))
    refit = find_refit(database, search.id)
    if refit is not None:
        out.print(Text(f"  {'best model':<12} {plain(best_model_fact(refit))}"))
    for fact in reused_facts(search, trial_reader.reused(database, search.id)):
        out.print(Text(f"  {'reused':<12} {plain(fact)}"))
    for fact in pruned_facts(database, search.id, n_pruned=progress.pruned):
        out.print(Text(f"  {'pruned':<12} {fact}"))
    sample = sampled(search.id, search.n_trials)
    of_sample = "" if sample is None else f" (of {count(len(sample), 'trial')} drawn by lot)"
    for fact in training_facts(trial_reader.fit_modes(database, search.id, among=sample)):
        out.print(Text(f"  {'training':<12} {plain(fact)}{of_sample}"))
    if ranked:
        out.print(_leaderboard(ranked))
    if failed:
        for line in _failures(failed, progress.failed):
            out.print(Text(line))
        # shlex: a name may have spaces
        whole = f"gridfleet report {shlex.quote(search.name)} --trial {failed[0].number}"
        out.print(Text(f"one with its traceback: {plain(whole)}"))


def print_best_line(database: Database, name: str | int) -> bool:
    """Print the best score of a search in one line.

    Returns
    -------
    bool
        Whether there is one.
    """
    search = reader.find_search(database, name)
    print(best_line(database, search), flush=True)  # noqa: T201 - the command's output
    return trial_reader.best_trial(database, search.id) is not None


def best_line(database: Database, search: reader.SearchSummary) -> str:
    """Return the line about a search's best score, or why there is none: ``pima  f1 0.7500 ± 0.0156  C=1``."""
    best = trial_reader.best_trial(database, search.id)
    if best is None:
        return f"{plain(search.name)}  no score: {reader.progress(database, search.id).counts}"
    is_usual = search.state == ShownState.COMPLETED or not search.is_finished
    facts = [
        search.name,
        f"{metric_of(search)} {with_deviation(best.mean_test_score, best.std_test_score)}",
        params(best.params),
        "" if is_usual else f"({search.shown_state})",
    ]
    return "  ".join(plain(fact) for fact in facts if fact)


def log_line(database: Database, search: reader.SearchSummary) -> str:
    """Return the line about a search that ended, in the form in which programs look for it in logs."""
    best = trial_reader.best_trial(database, search.id)
    if best is None:
        return best_line(database, search)
    ended = "" if search.state == ShownState.COMPLETED else f", {search.shown_state}"
    values = plain(str(best.params))
    return f"best score: {best.mean_test_score:.6g}, best params: {values} (search {plain(search.name)}{ended})"


def metric_of(search: reader.SearchSummary) -> str:
    """Return the name of the metric that ranks the trials, as scikit-learn's users give it."""
    return metric(search.refit_metric, search.scoring)


def console(out: TextIO | None = None) -> Console:
    """Return a console that interprets nothing in what it prints.

    Parameters
    ----------
    out : text file, default=sys.stdout
        Where it prints.
    """
    out = out or sys.stdout
    return Console(file=out, width=None if out.isatty() else FILE_WIDTH, markup=False, highlight=False, emoji=False)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers_right: bool = True) -> Table:
    """Return a table of plain texts, which may have several lines.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : sequence of sequences
        The cells; None is shown empty.
    numbers_right : bool, default=True
        Whether columns with a number in them are set to the right.
    """
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        is_number = numbers_right and any(_is_number(row[index]) for row in rows)
        made.add_column(Text(plain(name)), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text("" if cell is None else plain_lines(str(cell))) for cell in row))
    return made


def table_of_lines(header: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers_right: bool = True) -> Table:
    """Return a table each row of which is one line: no name that somebody stored looks like another row."""
    lines = [[plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return table(header, lines, numbers_right=numbers_right)


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _failures(failed: Sequence[trial_reader.FailedTrial], n_failed: int) -> list[str]:
    """Say why trials failed, those with the same cause together."""
    causes = by_cause(failed)
    lines = []
    for one in causes[:SHOWN]:
        example = params(one.trials[0].params)
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
    ranked: Sequence[trial_reader.RankedTrial],
    names: Iterable[str],
    peak_memory_mb: int | None,
) -> list[tuple[str, str]]:
    size = f"{count(search.n_trials, 'trial')} of {count(search.n_splits, 'split')}"
    facts = [
        ("searched", f"{search.strategy}, {size}" + _over(names)),
        ("estimator", search.estimator),
        ("scoring", search.scoring or "the estimator's own score"),
        ("submitted", f"{time(search.created_at)} ({ago(search.created_at)}) by {search.submitted_by}"),
        ("trials", progress.counts),
    ]
    if search.sampler is not None:
        facts.append(_proposed_by(search.sampler))
    if progress.waits_for_python is not None:
        facts.append(("waits", str(reader.WaitingForPython(progress.waits_for_python, progress.queued))))
    if peak_memory_mb is not None:
        facts.append(("memory", f"at most {peak_memory_mb:,} MB of a worker process"))
    if search.error is not None:
        facts.append(("ended", search.error))
    if progress.seconds_running is not None:
        # of one that nobody works at, the time since is no time that it ran
        goes_on = search.is_finished or search.state == ShownState.RUNNING
        label = "took" if search.is_finished else "running for" if goes_on else "began"
        facts.append((label, f"{progress.seconds_running:.1f} s" + ("" if goes_on else " ago")))
    if ranked:
        best = ranked[0]
        facts += [
            ("best score", f"{metric_of(search)} {with_deviation(best.mean_test_score, best.std_test_score)}"),
            ("best params", params(best.params)),
        ]
    return facts


def _proposed_by(described: str) -> tuple[str, str]:
    """Say what proposes the trials of a search, or which rounds it has."""
    settings = json.loads(described)
    if settings["name"] != HALVING:
        others = ", ".join(f"{name}={value!r}" for name, value in settings.items() if name != "name")
        return "proposed", f"by {settings['name']}" + (f" with {others}" if others else "")
    rounds = Halving.from_json(described)
    candidates, resources = (", ".join(map(str, of)) for of in (rounds.n_candidates, rounds.n_resources))
    return "rounds", f"{candidates} candidates with {resources} of {rounds.resource}"


def best_model_fact(refit: Refit) -> str:
    """Say how far the refit on the fleet is."""
    if refit.is_stored and refit.is_finished:
        return f"stored {rounded(refit.age_s or 0)} ago, refit {refit.refit_time or 0:.1f} s"
    if refit.is_finished and refit.error_type is not None:
        return f"none, the refit failed: {cause(refit.error, refit.error_type)}"
    if refit.is_finished:
        return f"none: {refit.error or 'its refit was cancelled'}"
    if refit.is_waiting:
        return "fitted on the fleet when the trials are done"
    return f"its refit is {refit.state}"


def reused_facts(search: reader.SearchSummary, counts: Mapping[str, int]) -> list[str]:
    """Say how many results are of other searches, and why others are found by none."""
    facts = [
        f"{count(n_trials, 'result')} of {name or 'a search that is deleted'}" for name, n_trials in counts.items()
    ]
    if search.reuse and search.no_reuse is not None:
        facts.append(f"no results are found for {search.no_reuse}")
    elif search.reuse and not counts:
        facts.append("no results were there")
    return facts


def training_facts(modes: Sequence[trial_reader.FitModeCount]) -> list[str]:
    """Say how Keras models trained, and why some of them as Keras does it."""
    return [
        f"{count(one.n_trials, 'trial')} {one.fit_mode}" + (f": {one.fallback_reason}" if one.fallback_reason else "")
        for one in modes
    ]


def _over(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f", over {listed}" if listed else ""


def _leaderboard(ranked: Sequence[trial_reader.RankedTrial]) -> Table:
    names = list(dict.fromkeys(name for trial in ranked for name in trial.params))
    header = ["rank", "mean_test_score", "std_test_score", "mean_fit_time", "number"]
    if len(names) <= MAX_PARAM_COLUMNS:
        return table_of_lines(
            [*header, *names], [[*_numbers(t), *(_cell(t.params, name) for name in names)] for t in ranked]
        )
    return table_of_lines([*header, "params"], [[*_numbers(trial), params(trial.params)] for trial in ranked])


def _cell(params: dict[str, Any], name: str) -> Any:
    """Return a value, and nothing where the combination has no such hyperparameter."""
    value = params.get(name, "")
    return "None" if value is None else value


def _numbers(trial: trial_reader.RankedTrial) -> list[Any]:
    fit_time = "" if trial.mean_fit_time is None else f"{trial.mean_fit_time:.3f}"
    deviation = with_deviation(trial.mean_test_score, trial.std_test_score).partition(" ± ")[2]
    return [trial.rank, score(trial.mean_test_score), deviation, fit_time, trial.number]


def set_params_line(values: Mapping[str, Any]) -> str:
    """Return the line of Python that gives an estimator hyperparameters, as SQL has them: functions are texts there."""
    if all(map(str.isidentifier, values)):
        return f"estimator.set_params({', '.join(f'{name}={value!r}' for name, value in values.items())})"
    return f"estimator.set_params(**{dict(values)!r})"


def fit(header: Sequence[str], rows: Sequence[list[str]], *, column: int) -> None:
    """Shorten the texts of one column until the lines fit a terminal; what goes to a file has them whole."""
    if not sys.stdout.isatty():
        return
    widths = [max(map(cell_len, texts)) for texts in zip(header, *rows, strict=True)]
    others = sum(width + GAP for width in widths) - widths[column] - GAP
    room = max(console().width - others, MIN_NAME_WIDTH)
    for row in rows:
        row[column] = _fitting(row[column], room)


def _fitting(text: str, room: int) -> str:
    """Shorten a text to as many columns of a terminal; a Chinese or Korean sign takes two."""
    width = room
    while cell_len(fitting := shortened(text, width)) > room:
        width -= 1
    return fitting
