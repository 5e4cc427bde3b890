"""Simulate seeds: ``make simulate SEEDS=5000``; of a single one, ``make simulate SEED=123``, print the log."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path

from tests.simulation.simulation import Simulation, seeds
from tests.simulation.turns import InvariantError
from tests.simulation.world import World


def main() -> None:
    """Simulate what the variables ask for."""
    logging.disable(logging.CRITICAL)
    asked = seeds()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, World(Path(folder)).installed() as world:
        for seed in asked:
            try:
                log = Simulation(world, seed).run()
            except InvariantError as error:
                sys.exit(str(error))
            if len(asked) == 1:
                print("\n".join(log))
    seconds = time.perf_counter() - began
    print(f"{len(asked)} simulations, seeds {asked[0]} to {asked[-1]}: no invariant broken, {seconds:.0f} s")


if __name__ == "__main__":
    main()
