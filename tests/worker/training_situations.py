"""Training situations drawn from seeds, each run by Keras and compiled, and compared.

``python -m tests.worker.training_situations 1 40`` prints a line for each of 40 seeds; ``--mode xla`` compares in XLA,
``--datasets`` draws a ``tf.data.Dataset`` in place of most arrays, and goes on after an error.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import time
import warnings
from typing import Any

import keras
from tensorflow.python.framework.ops import gradient_registry

from gridfleet.worker.compiled_fit.selfcheck.comparison import difference
from tests.worker.drawn_situations import Drawn

#: What XLA may differ by in a situation, relative to values above one: steps of optimizers that divide by the size of a
#: gradient, where that is rounding noise, differ by parts of the learning rate.
XLA_TOLERANCE = 2e-2


def largest_difference(expected: dict[str, Any], found: dict[str, Any]) -> tuple[float, str]:
    """Return by how much two runs differ at most, and where; infinite where names, shapes or errors differ."""
    if expected.get("error") != found.get("error"):
        return float("inf"), f"error: {expected.get('error')} / {found.get('error')}"
    if list(expected) != list(found):
        return float("inf"), "what is there"
    worst, where = 0.0, ""
    for name in expected:
        one, other = keras.tree.flatten(expected[name]), keras.tree.flatten(found[name])
        keys = [list(run[name]) if isinstance(run[name], dict) else None for run in (expected, found)]
        if len(one) != len(other) or keys[0] != keys[1]:
            return float("inf"), name
        for a, b in zip(one, other, strict=True):
            if not isinstance(a, str) and (gap := difference(a, b)) > worst:
                worst, where = gap, name
    return worst, where


def judge(seed: int, mode: str = "exact", *, with_datasets: bool = False) -> dict[str, Any]:
    """Return how a situation came out.

    Parameters
    ----------
    seed : int
    mode : str, default="exact"
        ``exact``, ``xla`` or ``auto``; the last two have situations of their own.
    with_datasets : bool, default=False
        Whether to draw a situation with Datasets; those are others too.

    Returns
    -------
    dict
        Whose "verdict" is "equal", "differs", or "not deterministic", where Keras differs from itself as well, and
        whose "processor_s" tells what it cost.
    """
    begun_at = time.process_time()
    situation = Drawn(seed, for_xla=mode != "exact", with_datasets=with_datasets)
    tolerance = 0.0 if mode == "exact" else XLA_TOLERANCE
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, _ = situation.run("keras")
        found, report = situation.run(mode)
        gap, where = largest_difference(expected, found)
        verdict = "equal" if gap <= tolerance else "differs"
        if verdict == "differs" and largest_difference(expected, situation.run("keras")[0])[0]:
            verdict = "not deterministic"
    return {
        "seed": seed,
        "verdict": verdict,
        "gap": gap,
        "where": where,
        "modes": [str(one) for one in report.modes],
        "reason": report.fallback_reason,
        "error": expected.get("error"),
        "notes": situation.notes,
        "processor_s": round(time.process_time() - begun_at, 2),
    }


def forget() -> None:
    """Drop what TensorFlow keeps for ever of custom gradients: a graph each."""
    keras.utils.clear_session(free_memory=False)
    registry = gradient_registry._registry
    for name in [name for name in registry if name.startswith("CustomGradient-")]:
        del registry[name]


def main() -> None:
    """Print a line of JSON for each seed from the first one on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--mode", default="exact", choices=["exact", "xla", "auto"])
    parser.add_argument("--datasets", action="store_true")
    chosen = parser.parse_args()
    for seed in range(chosen.first, chosen.first + chosen.count):
        sys.stdout.write(f"{json.dumps(judge(seed, chosen.mode, with_datasets=chosen.datasets))}\n")
        sys.stdout.flush()
        forget()
        gc.collect()


if __name__ == "__main__":
    main()
