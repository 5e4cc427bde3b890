"""A search as other programs read it: each form is read back by its own program."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from sqlalchemy import create_engine, inspect

from gridfleet import open_search
from gridfleet.storage.database.connection import Database
from gridfleet.storage.settings import Settings
from tests.figures.searches import HOSTILE, kinds_of_searches, store

Run = Callable[..., tuple[int, str, str]]
SCORES = [0.703125, 0.75, 0.6875, 0.65625]
STATES = optuna.trial.TrialState


def test_a_spreadsheet_gets_a_row_for_each_trial(gridfleet: Run, pima: int, tmp_path: Path) -> None:
    file = tmp_path / "pima.csv"

    assert gridfleet("export", "pima", "--to", "csv", str(file)) == (0, "", f"gridfleet: {file} has 5 trials of pima\n")

    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["number"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [float(row["mean_test_score"]) for row in rows[:4]] == SCORES
    assert (rows[0]["param_optimizer"], rows[0]["param_batch_size"]) == ("adam", "10")
    assert (rows[0]["split0_test_score"], rows[0]["split1_test_score"]) == ("0.6875", "0.71875")
    assert (rows[4]["state"], rows[4]["mean_test_score"], rows[4]["error_type"]) == ("failed", "", "ValueError")


def test_frames_of_parquet_have_numbers_and_times(gridfleet: Run, pima: int, tmp_path: Path) -> None:
    assert gridfleet("export", "pima", "--to", "parquet", str(tmp_path / "a.parquet"))[0] == 0

    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert list(frame["mean_test_score"][:4]) == SCORES
    assert str(frame["param_batch_size"].dtype) == "int64"
    assert str(frame["started_at"].dt.tz) == "UTC"


def test_json_has_what_reports_have_and_all_trials(gridfleet: Run, pima: int, tmp_path: Path) -> None:
    assert gridfleet("export", "pima", "--to", "json", str(tmp_path / "a.json"))[0] == 0

    found = json.loads((tmp_path / "a.json").read_text())
    report = json.loads(gridfleet("report", "pima", "--json")[1])
    assert {key: found[key] for key in found if key in report} == {key: report[key] for key in found if key in report}
    assert found["search"] == "pima"
    assert [trial["mean_test_score"] for trial in found["trials"]] == [*SCORES, None]
    assert found["trials"][0]["split_test_scores"] == {"score": [0.6875, 0.71875]}


def test_optuna_loads_the_study_that_the_handle_has(gridfleet: Run, pima: int, tmp_path: Path) -> None:
    assert gridfleet("export", "pima", "--to", "optuna", str(tmp_path / "a.db"))[0] == 0

    loaded = optuna.load_study(study_name="pima", storage=f"sqlite:///{tmp_path}/a.db")
    ours = open_search("pima").to_optuna()
    assert loaded.best_trial.number == 1
    assert loaded.best_params == {"batch_size": 20, "optimizer": "adam"}
    assert [trial.values for trial in loaded.trials] == [[score] for score in SCORES] + [None]
    assert [trial.state for trial in loaded.trials] == [*[STATES.COMPLETE] * 4, STATES.FAIL]
    for there, here in zip(loaded.trials, ours.trials, strict=True):
        assert there.params == here.params
        assert there.distributions == here.distributions
        assert there.user_attrs == here.user_attrs
        assert (there.datetime_start, there.datetime_complete) == (here.datetime_start, here.datetime_complete)
    # a second one goes beside it, and a second of this name does not
    assert gridfleet("export", "pima", "--to", "optuna", f"sqlite:///{tmp_path}/a.db") == (
        1,
        "",
        "gridfleet: the storage has a study 'pima' already; name another file, or remove it: optuna delete-study\n",
    )
    assert len(optuna.load_study(study_name="pima", storage=f"sqlite:///{tmp_path}/a.db").trials) == 5


def test_mlflow_shows_one_run_a_trial(
    gridfleet: Run, pima: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("alembic").level
    assert gridfleet("export", "pima", "--to", "mlflow", "ml.db") == (
        0,
        "",
        "gridfleet: ml.db has 5 trials of pima\n",
    )
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith("ml")) == ["ml.db"]
    assert logging.getLogger("alembic").level == level

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/ml.db")
    experiment = client.get_experiment_by_name("pima")
    runs = sorted(client.search_runs([experiment.experiment_id]), key=lambda run: int(run.data.tags["number"]))
    assert [run.data.metrics.get("mean_test_score") for run in runs] == [*SCORES, None]
    assert [run.info.status for run in runs] == [*["FINISHED"] * 4, "FAILED"]
    assert runs[1].data.params == {"optimizer": "adam", "batch_size": "20"}
    assert [one.value for one in client.get_metric_history(runs[0].info.run_id, "split_test_score")] == [
        0.6875,
        0.71875,
    ]
    assert runs[4].data.tags["error"].endswith("adan")
    assert runs[0].info.end_time >= runs[0].info.start_time > 1_000_000_000_000
    status, _, said = gridfleet("export", "pima", "--to", "mlflow", "ml.db")
    assert (status, said.partition(";")[0]) == (1, "gridfleet: MLflow has an experiment 'pima' already")


@pytest.mark.parametrize("form", ["csv", "parquet", "json"])
def test_each_kind_of_search_becomes_a_file(
    gridfleet: Run, fleet: Settings, database: Database, tmp_path: Path, form: str
) -> None:
    for kind, search in kinds_of_searches().items():
        store(fleet, database, kind, **search)

        status, _, said = gridfleet("export", kind, "--to", form, str(tmp_path / f"{kind}.{form}"))

        assert status == 0, said
        assert [file.name for file in tmp_path.glob("*.part")] == []


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("optuna", "odd-values"),
        ("mlflow", "hostile"),
        pytest.param("mlflow", "odd-values", marks=pytest.mark.complete),
        pytest.param("mlflow", "queued", marks=pytest.mark.complete),
        pytest.param("optuna", "queued", marks=pytest.mark.complete),
    ],
)
def test_odd_searches_become_studies_and_runs(
    gridfleet: Run, fleet: Settings, database: Database, tmp_path: Path, form: str, kind: str
) -> None:
    store(fleet, database, kind, **kinds_of_searches()[kind])

    status, _, said = gridfleet("export", kind, "--to", form, str(tmp_path / "a.db"))

    assert status == 0, said


@pytest.mark.parametrize("form", ["csv", "parquet", "json"])
def test_a_file_that_is_there_stays_as_it_is(gridfleet: Run, pima: int, tmp_path: Path, form: str) -> None:
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    for target, sentence in (
        ("there", "there is there already; name another file, or remove it"),
        ("link", "link is there already; name another file, or remove it"),
        ("no/folder", "can't be made (No such file or directory); name a file in a folder that can be written"),
        ("", "is there already; name another file, or remove it"),
    ):
        status, output, said = gridfleet("export", "pima", "--to", form, str(tmp_path / target))
        assert (status, output) == (1, "")
        assert sentence in said
        assert said.count("\n") == 1
    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    status, _, said = gridfleet("export", "pima", "--to", form, "sqlite:///a.db")
    assert (status, said) == (
        1,
        "gridfleet: 'sqlite:/a.db' is no file; name one that is not there yet\n",
    ) or status == 1


@pytest.mark.parametrize("form", ["optuna", "mlflow"])
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nowhere/a.db", "there is no folder"),
        ("", "is no file; name one"),
        ("nothing://ada:secret@host/a", "nothing://… is no URL of a database"),
        ("sqlite:////proc/a.db", "can't be opened for"),
        ("garbage.db", "can't be opened for"),
    ],
)
def test_a_database_that_can_not_be_is_said_in_a_sentence(
    gridfleet: Run, pima: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, target: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("garbage.db").write_text("no database, but a text that is long enough to be none" * 40)

    status, _, said = gridfleet("export", "pima", "--to", form, target)

    assert status == 1
    assert sentence in said
    assert said.count("\n") == 1
    assert "secret" not in said


@pytest.mark.parametrize("form", ["optuna", "mlflow"])
def test_the_database_of_a_fleet_gets_no_tables_of_others(
    gridfleet: Run, pima: int, fleet: Settings, database: Database, form: str
) -> None:
    url = fleet.database().render_as_string(hide_password=False)
    before = set(inspect(create_engine(url)).get_table_names())

    status, _, said = gridfleet("export", "pima", "--to", form, url)

    assert status == 1
    assert "is the database of a fleet" in said
    assert set(inspect(create_engine(url)).get_table_names()) == before


def test_an_unknown_search_or_form_writes_nothing(gridfleet: Run, pima: int, tmp_path: Path) -> None:
    assert gridfleet("export", "none", "--to", "csv", str(tmp_path / "a"))[0] == 1
    assert gridfleet("export", "pima", "--to", "xls", str(tmp_path / "a"))[0] == 2
    assert not (tmp_path / "a").exists()


def test_hostile_texts_are_values_in_every_form(
    gridfleet: Run, fleet: Settings, database: Database, tmp_path: Path
) -> None:
    store(fleet, database, "hostile", **kinds_of_searches()["hostile"])
    made: dict[str, Any] = {form: str(tmp_path / f"a.{form}") for form in ("csv", "parquet", "json", "optuna")}
    for form, file in made.items():
        assert gridfleet("export", "hostile", "--to", form, file)[0] == 0

    rows = list(csv.reader(Path(made["csv"]).read_text().splitlines()))
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "@", "+", "\t"))]
    assert '\'=HYPERLINK("http://x";"y")' in {cell for row in rows for cell in row}
    assert list(pd.read_parquet(made["parquet"])["param_k"])[: len(HOSTILE)] == list(HOSTILE)
    text = Path(made["json"]).read_text()
    assert text.replace("\n", "").isprintable()
    assert [trial["params"]["k"] for trial in json.loads(text)["trials"]][: len(HOSTILE)] == list(HOSTILE)
    loaded = optuna.load_study(study_name="hostile", storage=f"sqlite:///{made['optuna']}")
    assert loaded.trials[0].params.keys() == {HOSTILE[0], "k", HOSTILE[0] * 9}
