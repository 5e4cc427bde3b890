"""The examples of searches that learn, as they are in their files but for fewer and shorter trials."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import gridfleet

REPOSITORY = Path(__file__).parents[2]


def shortened(name: str, folder: Path, changes: dict[str, str]) -> str:
    """Return an example's code with fewer trials, whose file lies where its data is found."""
    code = (REPOSITORY / "examples" / name).read_text()
    changes = {"Path(__file__).parent.parent": f"Path({str(REPOSITORY)!r})", **changes}
    for there, instead in changes.items():
        assert there in code
        code = code.replace(there, instead)
    return code


def test_the_example_of_optuna(
    embedded_home: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    changes = {"epochs=20": "epochs=1", "n_trials=20": "n_trials=5", "cv=3": "cv=2"}

    done = run_script(embedded_home, shortened("pima_optuna.py", embedded_home, changes))

    assert done.returncode == 0, done.stderr
    assert "best score: 0." in done.stdout
    assert "score on the held-out part: 0." in done.stdout
    handle = gridfleet.open_search("pima-tpe")
    assert handle.progress().counts == "5/5 scored"
    assert {"optimizer", "optimizer__learning_rate", "model__units"} == set(handle.best_params_)


@pytest.mark.complete  # test_halving.py has such a search in every run
def test_the_example_of_halving(
    embedded_home: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    changes = {
        "max_resources=54": "max_resources=2",
        "min_resources=2": "min_resources=1",
        "factor=3": "factor=2",
        "cv=3": "cv=2",
        'optimizer=["adam", "rmsprop", "sgd"]': 'optimizer=["adam"]',
        "batch_size=[16, 32, 64]": "batch_size=[64]",
    }

    done = run_script(embedded_home, shortened("pima_halving.py", embedded_home, changes))

    assert done.returncode == 0, done.stderr
    assert "candidates in each round: [3, 2], their epochs: [1, 2]\nbest score: 0." in done.stdout
    assert gridfleet.open_search("pima-halved").best_params_["epochs"] == 2
