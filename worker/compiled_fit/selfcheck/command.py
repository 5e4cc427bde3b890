"""Whether compiled fits still equal Keras' own: a tool to run against a new release of Keras or TensorFlow.

``python -m gridfleet.worker.compiled_fit.selfcheck`` trains each model family with each optimizer and each option of
``fit``, in pairs, and every activation, optimizer, loss and metric that Keras has, twice from one seed, by Keras itself
and inside `compiled_fit`, and compares all that can be seen of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.selfcheck.cases import (
    Case,
    data_cases,
    joint_registry_cases,
    other_cases,
    registry_cases,
)
from gridfleet.worker.compiled_fit.selfcheck.comparison import check


def main(arguments: Sequence[str] | None = None) -> int:
    """Check cases and print a line for each.

    Parameters
    ----------
    arguments : sequence of str, default=None
        Instead of those of the command line.

    Returns
    -------
    int
        The exit status: 1 if a case differs from Keras or fell back to it, else 0.
    """
    chosen = _parse(arguments)
    registry = joint_registry_cases() if chosen.quick else registry_cases()
    cases = [
        case
        for case in (*data_cases(), *other_cases(), *registry)
        if case.family.name in chosen.family and case.optimizer in chosen.optimizer
    ]
    return _run(cases, FitMode(chosen.mode))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gridfleet.worker.compiled_fit.selfcheck", description=__doc__)
    cases = [*data_cases(), *registry_cases(), *joint_registry_cases()]
    families = list(dict.fromkeys(case.family.name for case in cases))
    optimizers = list(dict.fromkeys(case.optimizer for case in cases))
    parser.add_argument("--mode", choices=["exact", "xla"], default="exact", help="default: exact")
    parser.add_argument("--family", nargs="+", metavar="NAME", choices=families, default=families)
    parser.add_argument("--optimizer", nargs="+", metavar="NAME", choices=optimizers, default=optimizers)
    parser.add_argument("--quick", action="store_true", help="activations, losses and metrics together")
    return parser.parse_args(arguments)


def _run(cases: Iterable[Case], mode: FitMode) -> int:
    started, counts = time.monotonic(), {"ok": 0, "differ": 0, "fell back": 0}
    for case in cases:
        verdict = check(case, mode)
        counts["differ" if verdict.differs else "fell back" if verdict.fell_back else "ok"] += 1
        _print(f"{case.family.name:38} {case.optimizer:18} {case.option.name:24} {verdict}")
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    _print(f"{summary} ({mode}, {versions}, {time.monotonic() - started:.0f} s)")
    return 0 if counts["ok"] == sum(counts.values()) else 1


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
