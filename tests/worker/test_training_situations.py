"""Situations drawn from seeds come out as in Keras: a search for what nobody thought of."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from tensorflow.python.framework import config as tensorflow_config

from tests.worker.training_situations import forget, judge

#: Situations of a complete run, and how many one process lives through: TensorFlow keeps what it once prepared.
N_SITUATIONS, PER_PROCESS = 500, 40
#: With Datasets, and with errors after which people go on.
N_SITUATIONS_WITH_DATASETS = 160
#: In XLA, which takes seconds to compile each.
N_SITUATIONS_IN_XLA = 80
#: Trained in every run, by option: of those that take least, at most 3 s of the processor each, what has between
#: them most kinds of models and calls, each kind of callback, fits and none, errors, and each optimizer that no other
#: test of every run compares (Adam and its kin: test_compiled_fit_equality.py, test_compiled_fit_joint_update.py).
QUICK_SEEDS = {
    "--mode=exact": (277, 235, 388, 306, 342, 314, 198, 72, 255, 380, 282, 211),
    "--datasets": (25, 36),
    "--mode=xla": (24, 26),
}


def verdicts(first: int, count: int, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.worker.training_situations", str(first), str(count), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.complete
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("option", "first"),
    [
        *(("--mode=exact", first) for first in range(1, N_SITUATIONS, PER_PROCESS)),
        *(("--datasets", first) for first in range(1, N_SITUATIONS_WITH_DATASETS, PER_PROCESS)),
        *(("--mode=xla", first) for first in range(1, N_SITUATIONS_IN_XLA, PER_PROCESS)),
    ],
)
def test_situations_come_out_as_in_keras(option: str, first: int) -> None:
    found = verdicts(first, PER_PROCESS, option)

    assert [one["seed"] for one in found] == list(range(first, first + PER_PROCESS))
    assert [one for one in found if one["verdict"] == "differs"] == []
    if option == "--mode=xla":
        assert sum("xla" in one.get("modes", []) for one in found) >= len(found) / 3


@pytest.mark.parametrize(("option", "seed"), [(option, seed) for option in QUICK_SEEDS for seed in QUICK_SEEDS[option]])
def test_some_situations_come_out_as_in_keras(option: str, seed: int) -> None:
    try:
        found = judge(seed, "xla" if "xla" in option else "exact", with_datasets=option == "--datasets")
    finally:
        forget()
        tensorflow_config.disable_op_determinism()  # which scikeras and seeds of Keras leave on

    assert found["verdict"] == "equal", found
