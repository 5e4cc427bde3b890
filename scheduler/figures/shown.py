"""What hovering over a trial says of it."""

from __future__ import annotations

from gridfleet.scheduler.figures.style import text
from gridfleet.scheduler.figures.trials import DrawnTrial
from gridfleet.scheduler.reports.figures import score, with_deviation
from gridfleet.scheduler.reports.pruning import place

#: Hyperparameters that are named; the page of the trial has all, and a figure of 2,000 trials stays below 1 MB.
MOST_PARAMS = 6


def trial(one: DrawnTrial) -> str:
    """Return a trial's number, score and hyperparameters, as plotly may show them."""
    lines = [f"trial {one.number}: {with_deviation(one.mean_test_score, one.std_test_score) or one.state}"]
    if one.pruned_split is not None:
        value = "" if one.pruned_value is None else f", with {score(one.pruned_value)}"
        lines[0] += f" {place(one.pruned_split, one.pruned_epoch)}{value}"
    lines += [f"{text(name, 30)}={text(value, 30)}" for name, value in list(one.params.items())[:MOST_PARAMS]]
    lines += ["…"] if len(one.params) > MOST_PARAMS else []
    return "<br>".join(lines)
