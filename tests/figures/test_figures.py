"""Each figure draws each kind of search, or says in a sentence why there is nothing to draw."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gridfleet.scheduler.figures import rank as ranks
from gridfleet.scheduler.figures import slices as slicing
from gridfleet.scheduler.figures import trials as drawn_trials
from gridfleet.scheduler.figures.best_so_far import best_so_far
from gridfleet.scheduler.figures.curves import curves
from gridfleet.scheduler.figures.distribution import distribution
from gridfleet.scheduler.figures.folds import folds
from gridfleet.scheduler.figures.heatmap import heatmap
from gridfleet.scheduler.figures.history import history
from gridfleet.scheduler.figures.importances import importances
from gridfleet.scheduler.figures.parallel import parallel
from gridfleet.scheduler.figures.slices import slices
from gridfleet.scheduler.figures.time_spent import time_spent
from gridfleet.scheduler.figures.timeline import fleet_timeline, timeline
from gridfleet.scheduler.figures.values import axis, labels_of
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import NothingToDrawError
from gridfleet.storage.settings import Settings
from tests.figures.searches import HOSTILE, kinds_of_searches, run_one, store
from tests.stored_searches import store_pima

FIGURES: dict[str, Callable[[Database, int], Any]] = {
    "history": history,
    "parallel": parallel,
    "slices": slices,
    "heatmap": heatmap,
    "rank": ranks.rank,
    "importances": importances,
    "curves": curves,
    "folds": folds,
    "time_spent": time_spent,
    "timeline": timeline,
    "distribution": lambda database, search_id: distribution(database, [search_id]),
    "best over trials": lambda database, search_id: best_so_far(database, [search_id]),
    "best over time": lambda database, search_id: best_so_far(database, [search_id], over="time"),
}
#: What plotly fills in, which nothing of a user's is part of.
TEMPLATES = {"%{text}", slicing.HOVER, ranks.HOVER}
#: Who draws something of which kind of search.
DRAWN = {
    "one-trial": {"history", "folds", "time_spent", "distribution", "best over trials", "best over time"},
    "failed": set(),
    "two-continuous": set(FIGURES) - {"curves", "timeline"},
    "some-failed": set(FIGURES) - {"curves", "timeline"},
    "one-hyperparameter": set(FIGURES) - {"curves", "timeline", "importances", "heatmap", "rank"},
    "keras": set(FIGURES) - {"timeline"},
    "pruned": set(FIGURES) - {"timeline"},
    "forty": set(FIGURES) - {"curves", "timeline"},
    "odd-values": set(FIGURES) - {"curves", "timeline"},
    "negative": set(FIGURES) - {"curves", "timeline"},
    "metrics": set(FIGURES) - {"curves", "timeline"},
    "equal": set(FIGURES) - {"curves", "timeline", "importances"},
    "two-grids": set(FIGURES) - {"curves", "timeline", "importances"},
    "running": set(),
    "queued": set(),
    "cancelled": set(),
}


def drawn_by(database: Database, search_id: int) -> dict[str, Any]:
    """Return the figures that there are of a search; what the others say has to be a sentence."""
    found: dict[str, Any] = {}
    said: list[str] = []
    for name, draw in FIGURES.items():
        try:
            found[name] = draw(database, search_id)
        except NothingToDrawError as nothing:
            said.append(str(nothing))
    assert all(re.fullmatch(r"\w.* \w.+", sentence) for sentence in said)
    return found


def texts_of(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Return all texts of a figure's JSON, each with its key."""
    if isinstance(value, dict):
        return [text for key, one in value.items() for text in texts_of(one, key)]
    if isinstance(value, list):
        return [text for one in value for text in texts_of(one, key)]
    return [(key, value)] if isinstance(value, str) else []


def test_each_figure_draws_each_kind_of_search_or_says_why_not(database_settings: Settings, database: Database) -> None:
    for kind, search in kinds_of_searches().items():
        found = drawn_by(database, store(database_settings, database, kind, **search))

        # fewer where there are, by chance, no two hyperparameters that all trials have
        assert kind not in DRAWN or found.keys() - {"timeline"} == DRAWN[kind] - {"timeline"}, kind
        for name, figure in found.items():
            shown = json.loads(figure.to_json())
            assert shown["data"], (kind, name)
            assert shown["layout"]["title"]["text"], (kind, name)
            assert len(figure.to_json()) < 400_000, (kind, name)
            # plotly takes these for HTML, and in its templates what is in braces for values
            texts = [(key, text) for key, text in texts_of(shown) if text not in TEMPLATES]
            assert not [text for _, text in texts if re.search("<(?!br>)", text)], (kind, name)
            assert not [text for key, text in texts if key.endswith("template")], (kind, name)


def test_a_search_of_storages_own_code_is_drawn(database_settings: Settings, database: Database) -> None:
    pima = drawn_by(database, store_pima(database_settings, database))

    assert pima.keys() == FIGURES.keys()
    assert {bar.name for bar in pima["timeline"].data} == {"completed", "lost", "failed"}
    assert pima["history"].layout.title.subtitle.text == "5 trials, 1 failed"
    assert list(pima["history"].data[1].y) == [0.703125, 0.75, 0.75, 0.75]
    assert list(pima["heatmap"].data[0].x) == ["adam", "rmsprop"]
    assert [list(row) for row in pima["heatmap"].data[0].z] == [[0.703125, 0.6875], [0.75, 0.65625]]
    winner = {line.name: line for line in pima["curves"].data if line.line.width == 2}
    assert winner.keys() == {"training"}
    assert next(list(line.y) for line in pima["curves"].data if line.line.width == 2) == pytest.approx(
        [0.875, 0.4375, 0.875 / 3]
    )
    assert list(pima["folds"].layout.xaxis.ticktext) == ["1", "0", "2", "3"]
    assert list(pima["folds"].data[0].y) == [0.734375, 0.6875, 0.65625, 0.625]


def test_what_runs_is_on_the_timeline_of_the_fleet(database_settings: Settings, database: Database) -> None:
    with pytest.raises(NothingToDrawError, match="no worker did anything in the last 60 min"):
        fleet_timeline(database)
    run_one(database_settings, database, "svc")

    figure = fleet_timeline(database)

    assert [bar.name for bar in figure.data] == ["completed", "running"]
    assert list(figure.layout.yaxis.ticktext) == ["host/2", "host/1"]


def test_of_many_trials_the_best_and_a_fair_sample_are_drawn(database_settings: Settings, database: Database) -> None:
    # the last hyperparameter of a grid has the same value at each tenth number
    trials = [({"C": number // 10, "k": number % 10}, (number * 37 % 1_000) / 1_000) for number in range(1_000)]
    search_id = store(database_settings, database, "large", trials)

    found = drawn_trials.drawn(database, search_id, most=100)

    numbers = [trial.number for trial in found.trials]
    assert numbers == sorted(set(numbers))
    assert 90 <= len(numbers) <= 100
    best = sorted(range(1_000), key=lambda number: -trials[number][1])[:50]
    assert set(best) <= set(numbers)
    assert len(found.fair) == 50
    assert {trial.params["k"] for trial in found.fair} == set(range(10))
    assert max(b.number - a.number for a, b in zip(found.fair, found.fair[1:], strict=False)) < 40
    assert drawn_trials.drawn(database, search_id, most=100) == found
    assert history(database, search_id, most=100).layout.title.subtitle.text == (
        f"{len(numbers)} of 1,000 trials: the best, and a fair sample by number"
    )
    assert max(history(database, search_id, most=100).data[1].y) == 0.999
    assert importances(database, search_id, most=100).data


def test_hyperparameters_are_found_by_their_names(database_settings: Settings, database: Database) -> None:
    search_id = store(database_settings, database, "svc", **kinds_of_searches()["forty"])

    assert heatmap(database, search_id, "p7", "p3").layout.xaxis.title.text == "p7"
    assert slices(database, search_id, name="p9").layout.xaxis.title.text == "p9"
    with pytest.raises(NothingToDrawError, match="has no hyperparameter 'q'"):
        heatmap(database, search_id, "q")
    with pytest.raises(NothingToDrawError, match="has no hyperparameter 'q'"):
        slices(database, search_id, name="q")
    with pytest.raises(NothingToDrawError, match="has no metric 'f1'; it has 'score'"):
        folds(database, search_id, metric="f1")


def test_one_trial_has_figures_of_its_own(database_settings: Settings, database: Database) -> None:
    search_id = store(database_settings, database, "keras", **kinds_of_searches()["keras"])

    assert curves(database, search_id, number=2).data
    assert list(folds(database, search_id, number=2).layout.xaxis.ticktext) == ["2"]
    assert time_spent(database, search_id, number=2).layout.title.subtitle.text == "1 s of 1 trial"
    with pytest.raises(NothingToDrawError, match="trial 99 of search 'keras' has no learning curves"):
        curves(database, search_id, number=99)


def test_several_searches_are_compared(database_settings: Settings, database: Database) -> None:
    kinds = kinds_of_searches()
    ids = [store(database_settings, database, kind, **kinds[kind]) for kind in ("keras", "negative", "queued")]

    over_time = best_so_far(database, ids, over="time")

    assert [line.name for line in over_time.data] == ["keras", "negative"]
    assert "their metrics differ" in over_time.layout.title.subtitle.text
    assert [line.name for line in distribution(database, ids).data] == ["keras", "negative"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([True, "True", None, [64, 32], "adam"], ["True", "'True'", "None", "[64, 32]", "adam"]),
        (["1", 1, 1.0], ["'1'", "1", "1.0"]),
        (
            ["x" * 99 + "a" + "x" * 99, "x" * 99 + "b" + "x" * 99],
            [f"{'x' * 20}…{'x' * 19}", f"{'x' * 20}…{'x' * 19} (2)"],
        ),
        (["", " "], ["''", "' '"]),
    ],
)
def test_values_that_differ_have_texts_that_differ(values: list[Any], labels: list[str]) -> None:
    assert list(labels_of(values).values()) == labels


def test_powers_are_on_a_logarithmic_axis() -> None:
    assert axis("C", [{"C": value} for value in (0.01, 1, 100)]).is_log
    assert axis("units", [{"units": value} for value in (16, 32, 64, 128, 256)]).is_log
    assert axis("rate", [{"rate": value} for value in (0.0003, 0.001, 0.003, 0.01)]).is_log
    assert not axis("C", [{"C": value} for value in (1, 2, 3)]).is_log
    assert not axis("C", [{"C": value} for value in range(1, 41)]).is_log
    assert not axis("C", [{"C": value} for value in (0, 1, 1_000)]).is_log
    assert not axis("C", [{"C": value} for value in (1, 10, "x")]).is_numeric


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((0.0003, 0.01, 0.001, 0.003), ["0.0003", "0.001", "0.003", "0.01"]),
        ([0.0007 * 1.1**n for n in range(35)], ["0.001", "0.002", "0.005", "0.01"]),
        ([1e-6 * 2**n for n in range(24)], ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]),
        ([10.0**n for n in range(-15, 16)], ["1e-15", "1e-11", "1e-07", "0.001", "10", "100000", "1e+09", "1e+13"]),
    ],
)
def test_ticks_of_powers_are_values_or_round_numbers_and_few(
    database_settings: Settings, database: Database, values: Sequence[float], texts: list[str]
) -> None:
    trials = [({"rate": value, "k": number % 2}, number / 99) for number, value in enumerate(values)]
    search_id = store(database_settings, database, "rates", trials)

    (rate,) = [one for one in parallel(database, search_id).data[0].dimensions if one.label == "rate"]

    assert list(rate.ticktext) == texts
    assert [10**tick for tick in rate.tickvals] == pytest.approx([float(text) for text in texts])
    assert slices(database, search_id, name="rate").layout.xaxis.type == "log"


def test_ranks_go_by_scores_and_equal_scores_share_one(database_settings: Settings, database: Database) -> None:
    trials = [({"C": number % 3, "k": "ab"[number % 2]}, score) for number, score in enumerate((0.5, 0.25, 0.5, 0.75))]

    points, best = ranks.rank(database, store(database_settings, database, "svc", trials), "k", "C").data

    assert dict(points.customdata.tolist()) == {3: 1, 0: 2, 2: 2, 1: 4}
    assert {round(x) for x in points.x} == {0, 1}
    assert (round(best.x[0]), round(best.y[0])) == (1, 0)  # k="b", C=0
    assert "trial 3" in best.hovertext[0]


def test_hostile_texts_are_shown_as_they_are() -> None:
    hostile = axis(HOSTILE[0], [{HOSTILE[0]: text} for text in HOSTILE])

    assert hostile.title == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert hostile.shown[1] == "&lt;img src=x onerror=alert(1)&gt;"
    assert hostile.shown[7] == "\\x1b[31mred\\x1b[0m"


def test_pruned_trials_have_another_mark(database_settings: Settings, database: Database) -> None:
    search_id = store(database_settings, database, "pruned", **kinds_of_searches()["pruned"])

    of_history = {trace.name: trace for trace in history(database, search_id).data}["pruned"]
    of_curves = [trace for trace in curves(database, search_id).data if trace.name == "pruned"]

    assert (list(of_history.x), list(of_history.y)) == ([3, 5, 6], [0.2, 0.3, 0.0])
    assert of_history.marker.symbol == "x-thin"
    assert of_history.hovertext[0].startswith("trial 3: pruned after 3 epochs of split 0, with 0.2000")
    assert of_history.hovertext[1].startswith("trial 5: pruned at the end of split 1, with 0.3000")
    assert [list(trace.y) for trace in of_curves] == [[0.9] * 3, [0.9]]
    assert [trace.marker.size[-1] for trace in of_curves] == [7, 7]
    assert "3 pruned" in history(database, search_id).layout.title.subtitle.text
