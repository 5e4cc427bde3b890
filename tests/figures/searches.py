"""Searches of all kinds as rows, written at once: figures and exports read nothing else."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert, update

from gridfleet.storage.database.connection import Database
from gridfleet.storage.params import params_digest, params_to_json
from gridfleet.storage.schema import Curve, Report, Search, SplitScore, Trial
from gridfleet.storage.settings import Settings
from tests.stored_searches import claim, record, store_search, switch_triggers_off

#: Texts that a browser, a spreadsheet, plotly or a terminal would obey.
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">x</a>',
    "%{customdata} %{x}",
    "</script><script>alert(2)</script>",
    '=HYPERLINK("http://x";"y")',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\x1b[31mred\x1b[0m",
    "Robert'); DROP TABLE trials;--",
    "a\u202eb",
)
BEGAN = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
N_SPLITS = 2


def store(
    settings: Settings,
    database: Database,
    name: str,
    trials: Sequence[tuple[dict[str, Any], float | None]],
    *,
    metrics: Sequence[str] = ("score",),
    state: str = "completed",
    with_curves: bool = False,
    pruned: Mapping[int, tuple[int, int | None, float | None]] | None = None,
    **columns: Any,
) -> int:
    """Store a search whose trials are all in one state, those without a score failed. Returns its id.

    Those in `pruned` were: in a split, after epochs of it or at its end, with a value.
    """
    search_id = store_search(settings, database, name, [{"n": 0}])
    rows: list[dict[str, Any]] = []
    for number, (params, score) in enumerate(trials):
        shown = params_to_json(params)
        is_open = state in ("queued", "running")
        ended = None if is_open else BEGAN + timedelta(seconds=3 * number + 2)
        rows.append(
            {
                "search_id": search_id,
                "number": number,
                "params": shown,
                "params_digest": params_digest(shown),
                "state": "failed" if score is None and state == "completed" else state,
                "token": f"{number}" if state == "running" else None,
                "attempt": 0 if state == "queued" else 1,
                "worker_id": None if state == "queued" else f"host/{number % 3}",
                "started_at": None if state == "queued" else BEGAN + timedelta(seconds=3 * number),
                "finished_at": ended,
                "mean_test_score": None if is_open else score,
                "std_test_score": None if is_open or score is None else 0.01,
                "mean_fit_time": None if score is None else 0.5,
                "train_time": None if score is None else 0.75,
                "score_time": None if score is None else 0.25,
                "error_type": "ValueError" if score is None and not is_open else None,
                "error": "ValueError: =cmd <script>alert(1)</script>" if score is None and not is_open else None,
            }
        )
    for number, (split, epoch, value) in (pruned or {}).items():
        where = {"pruned_split": split, "pruned_epoch": epoch, "pruned_value": value}
        rows[number] |= {"state": "pruned", "error": None, "error_type": None, **where}
    for row in rows:
        row |= {"pruned_split": None, "pruned_epoch": None, "pruned_value": None, **row}
    with database.write() as connection:
        switch_triggers_off(connection)
        connection.execute(Trial.__table__.delete().where(Trial.search_id == search_id))
        ids = list(connection.execute(insert(Trial).returning(Trial.id, sort_by_parameter_order=True), rows).scalars())
        scored = [(one, row) for one, row in zip(ids, rows, strict=True) if row["mean_test_score"] is not None]
        scores = [
            {
                "trial_id": one,
                "split": split,
                "metric": metric,
                "test_score": row["mean_test_score"] + (split - 0.5) / 50,
                "train_score": row["mean_test_score"] + 0.1,
                "fit_time": 0.5,
                "score_time": 0.1,
                "n_train": 10,
                "n_test": 10,
            }
            for one, row in scored
            for split in range(N_SPLITS)
            for metric in metrics
        ]
        if scores:
            connection.execute(insert(SplitScore), scores)
        if with_curves and scored:
            connection.execute(
                insert(Curve),
                [
                    {
                        "trial_id": one,
                        "split": split,
                        "metric": metric,
                        "values": [1.0, 0.75 + split / 20, 0.5, None, 0.25 + split / 10, 0.2],
                    }
                    for one, _ in scored
                    for split in range(N_SPLITS)
                    for metric in ("loss", "val_loss", "accuracy")
                ],
            )
        for number, (split, epoch, value) in (pruned or {}).items():
            place = {"trial_id": ids[number], "split": split, "step": epoch or 0}
            found = {"value": value, "n_compared": 5, "rank": None if value is None else 4, "decision": "pruned"}
            connection.execute(insert(Report), {**place, **found})
            if epoch is not None and with_curves:
                curve = {"trial_id": ids[number], "split": 0, "metric": "loss", "values": [0.9] * epoch}
                connection.execute(insert(Curve), curve)
        connection.execute(
            update(Search)
            .where(Search.id == search_id)
            .values(
                n_trials=len(trials),
                refit_metric=metrics[0],
                started_at=None if state == "queued" else BEGAN,
                **columns,
            )
        )
    return search_id


def run_one(settings: Settings, database: Database, name: str) -> int:
    """Store a search of which one trial is recorded and one runs, by storage's own code. Returns its id."""
    search_id = store_search(settings, database, name, [{"C": 1.0}, {"C": 10.0}])
    record(database, claim(database, search_id, 0, "host/1"), (0.5, 0.75))
    claim(database, search_id, 1, "host/2")
    return search_id


def kinds_of_searches() -> dict[str, dict[str, Any]]:
    """Return the arguments of `store` for searches as different as people have them."""
    chance = random.Random(7)
    values = [0.001 * 1.4**n for n in range(40)]
    return {
        "one-trial": {"trials": [({"C": 1.0}, 0.5)]},
        "no-params": {"trials": [({}, 0.5)]},
        "one-hyperparameter": {"trials": [({"C": value}, value / 900) for value in values]},
        "two-continuous": {"trials": [({"C": value, "g": chance.random()}, chance.random()) for value in values]},
        "forty": {
            "trials": [
                ({f"p{place}": chance.choice([1, 2, 3]) for place in range(40)}, chance.random()) for _ in range(30)
            ]
        },
        "failed": {"trials": [({"C": 1, "k": "rbf"}, None), ({"C": 2, "k": "rbf"}, None)]},
        "some-failed": {"trials": [({"C": n, "k": "ab"[n % 2]}, n / 9 if n % 3 else None) for n in range(9)]},
        "metrics": {
            "trials": [({"C": n, "k": "ab"[n % 2]}, n / 9) for n in range(6)],
            "metrics": ("f1", "accuracy"),
        },
        "odd-values": {
            "trials": [
                ({"layers": layers, "drop": drop, "flag": flag}, 0.5 + place / 100)
                for place, (layers, drop, flag) in enumerate(
                    [
                        ((64, 32), None, True),
                        ((64,), 0.5, False),
                        ("(64,)", 0.25, "True"),
                        ([64], 1, 1),
                        ({"a": [1]}, True, None),
                        (float("nan"), "", 2**62),
                        ("x" * 300 + "a" + "x" * 300, 1.0, 1.0),
                        ("x" * 300 + "b" + "x" * 300, "1", "1"),
                    ]
                )
            ]
        },
        "two-grids": {"trials": [({"k": "rbf", "C": 1}, 0.5), ({"k": "poly", "degree": 2}, 0.6), ({"C": 3}, 0.55)]},
        "negative": {
            "trials": [({"C": n, "k": n % 2}, -1e6 / (n + 1)) for n in range(8)],
            "metrics": ("neg_mean_squared_error",),
        },
        "equal": {"trials": [({"C": n, "k": n % 2}, 0.5) for n in range(4)]},
        "keras": {"trials": [({"C": n, "k": n % 2}, n / 9) for n in range(8)], "with_curves": True},
        "pruned": {
            "trials": [({"C": n, "k": n % 2}, None if n in (3, 5, 6) else n / 9) for n in range(8)],
            "with_curves": True,
            "pruned": {3: (0, 3, 0.2), 5: (1, None, 0.3), 6: (0, 1, None)},
            "pruner": '{"name":"asha","min_resource":1}',
            "monitor": "score",
        },
        "running": {"trials": [({"C": n, "k": n % 2}, None) for n in range(4)], "state": "running"},
        "queued": {"trials": [({"C": n}, None) for n in range(4)], "state": "queued"},
        "cancelled": {"trials": [({"C": n}, None) for n in range(4)], "state": "cancelled"},
        "hostile": {
            "trials": [({text: text, "k": text, text * 9: place}, place / 9) for place, text in enumerate(HOSTILE)]
            + [({"k": HOSTILE[0], "C": 1}, None)],
            "with_curves": True,
            "estimator": HOSTILE[0],
            "submitted_by": HOSTILE[1],
        },
    }
