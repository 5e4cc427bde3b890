"""Situations drawn from seeds come out as in Keras: a search for what nobody thought of."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from tensorflow.python.framework import config as tensorflow_config

from tests.thinning import some_of
from tests.worker.training_situations import forget, judge

#: Situations of a complete run, and how many one process lives through: TensorFlow keeps what it once prepared.
N_SITUATIONS, PER_PROCESS = 500, 40
#: Of small models, each kind of them, with most of what is drawn between them; each fifth is trained in every run.
QUICK_SEEDS = (
    30, 14, 19, 28, 33, 36, 35, 38, 40, 48, 45, 66, 67, 70, 73,
    99, 103, 105, 422, 441, 408, 458, 461, 467, 472, 452, 476, 483, 488, 498,
)  # fmt: skip
#: With Datasets, and with errors after which people go on.
N_SITUATIONS_WITH_DATASETS = 160
QUICK_SEEDS_WITH_DATASETS = (1, 2, 3, 4)
#: In XLA, which takes seconds to compile each.
N_SITUATIONS_IN_XLA = 80


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


@pytest.mark.parametrize(
    ("seed", "with_datasets"),
    [
        *some_of([(seed, False) for seed in QUICK_SEEDS], every=5),
        *some_of([(seed, True) for seed in QUICK_SEEDS_WITH_DATASETS], every=4),
    ],
)
def test_some_situations_come_out_as_in_keras(seed: int, with_datasets: bool) -> None:
    try:
        found = judge(seed, with_datasets=with_datasets)
    finally:
        forget()
        tensorflow_config.disable_op_determinism()  # which scikeras and seeds of Keras leave on

    assert found["verdict"] == "equal", found
