"""The commands that evaluate trials once more, and say whether they are equal."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from gridfleet.scheduler.cli.connected import choose_search, open_results
from gridfleet.scheduler.cli.output import say, show
from gridfleet.scheduler.cli.which_search import AnySearch, NamedSearch

if TYPE_CHECKING:
    from gridfleet.scheduler.fleet.connection import Fleet
    from gridfleet.scheduler.reports.reader import SearchSummary
    from gridfleet.scheduler.results.reproduction import RecordedTrial, Reproduction


class Place(StrEnum):
    """Where a trial is evaluated once more."""

    HERE = "here"
    FLEET = "fleet"


On = Annotated[Place, typer.Option("--on", help="Evaluate it in this process, or on the fleet.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


def reproduce(
    name: NamedSearch,
    number: Annotated[int, typer.Argument(help="The trial's number.", show_default=False)],
    on: On = Place.HERE,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trial once more, and compare it bit by bit.

    Says split by split whether it is equal, and if not, what differs; the exit status is 1 then.
    """
    from gridfleet.scheduler.cli.sql import json_line
    from gridfleet.scheduler.results import reproduction

    fleet, search = _opened(name, on)
    trial = reproduction.recorded_trial(fleet, search.id, number)
    again = _again(fleet, trial, on)
    if as_json:
        typer.echo(json_line(reproduction.as_json(again)))
    else:
        for pair in again.scores:
            then, now = f"{pair.recorded!r} then", "no score now" if pair.again is None else f"{pair.again!r} now"
            show(f"split {pair.split} {pair.metric}: " + ("equal, " + then if pair.is_equal else f"{then}, {now}"))
        _explain(again)
    if not again.is_equal:
        sys.exit(1)


def verify(
    name: AnySearch = None,
    sample: Annotated[int, typer.Option(min=1, help="How many trials, drawn at random.")] = 5,
    on: On = Place.HERE,
    as_json: AsJson = False,
) -> None:
    """Evaluate some trials once more, and give a verdict.

    Of a search that learns, or halves, all proposals are computed once more from its rows and its seed. The exit
    status is 1 if a trial is not equal to the last bit, or a proposal is another one.
    """
    from gridfleet.scheduler.cli.sql import json_line
    from gridfleet.scheduler.results import reproduction
    from gridfleet.scheduler.results.recomputed import recomputed
    from gridfleet.storage.errors import SearchNotFinishedError

    fleet, search = _opened(name, on)
    numbers = reproduction.completed_numbers(fleet, search.id)
    if not numbers:
        raise SearchNotFinishedError(f"search {search.name!r} has no completed trial yet that could be verified")
    drawn = sorted(random.sample(numbers, min(sample, len(numbers))))
    done = []
    for number in drawn:
        again = _again(fleet, reproduction.recorded_trial(fleet, search.id, number), on)
        done.append(again)
        if not as_json:
            show(f"trial {number}: " + ("equal" if again.is_equal else "NOT EQUAL"))
            if not again.is_equal:
                _explain(again)
    verdict = reproduction.verdict(done, n_completed=len(numbers), on=str(on))
    proposals = recomputed(fleet, search.id)
    if as_json:
        trials = [reproduction.as_json(one) for one in done]
        told = {"verdict": verdict, "n_completed": len(numbers), "trials": trials}
        typer.echo(json_line(told if proposals is None else {**told, "proposals": asdict(proposals)}))
    else:
        show(verdict)
        if proposals is not None:
            show(str(proposals))
    if not all(one.is_equal for one in done) or (proposals is not None and proposals.difference is not None):
        sys.exit(1)


def _opened(name: str | None, on: Place) -> tuple[Fleet, SearchSummary]:
    from gridfleet.scheduler.fleet.connection import connect

    search = choose_search(open_results().database, name)
    return (connect() if on is Place.FLEET else open_results()), search


def _again(fleet: Fleet, trial: RecordedTrial, on: Place) -> Reproduction:
    from gridfleet.scheduler.results import reproduction
    from gridfleet.worker.guards.quiet_tensorflow import quiet_tensorflow

    if on is Place.FLEET:
        return reproduction.reproduce_on_fleet(fleet, trial)
    # before TensorFlow is imported, which reads them: results may depend on how work is split
    os.environ.update(trial.thread_variables())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    quiet_tensorflow()
    return reproduction.reproduce_here(fleet, trial)


def _explain(again: Reproduction) -> None:
    if again.seed is not None:
        show(f"with the recorded seed {again.seed}")
    if again.error is not None:
        say(f"trial {again.number} failed now: {again.error.strip().splitlines()[-1]}")
    if again.is_equal:
        show(f"trial {again.number} is equal to the last bit" + ("" if not again.differences else ", though"))
    else:
        show(f"trial {again.number} is NOT equal" + (": what differs is" if again.differences else ""))
    for difference in again.differences:
        show(f"  {difference}")
    if not again.is_equal and not again.differences:
        show("  nothing that was recorded differs: it draws from what no seed reaches, or depends on time or threads")
