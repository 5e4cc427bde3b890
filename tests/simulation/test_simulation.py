"""Thousands of lives of a fleet, each drawn from a seed: nothing is lost, nothing counted twice, everything ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gridfleet.worker.trial import task
from tests.simulation.simulation import SEED_VARIABLE, SEEDS_VARIABLE, Simulation, seeds
from tests.simulation.stories import STORIES, ScriptedSimulation
from tests.simulation.world import World

#: A run of ten minutes has a fault at each thirty-second statement of a story, a complete one at each.
EVERY = 32


def test_nothing_is_lost_and_nothing_twice_whatever_a_seed_draws(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = seeds()
    with capsys.disabled():
        print(f" seeds {asked[0]} to {asked[-1]} ", end="", flush=True)

    for seed in asked:
        Simulation(world, seed).run()


@pytest.mark.parametrize("first", [1, *(pytest.param(n, marks=pytest.mark.complete) for n in range(2, EVERY + 1))])
@pytest.mark.parametrize("kind", ["crash", "outage"])
@pytest.mark.parametrize("story", STORIES)
def test_a_fault_at_any_statement_of_a_life_loses_nothing(story: str, kind: str, first: int, world: World) -> None:
    n, struck = first - EVERY, True
    while struck:
        n += EVERY
        simulation = ScriptedSimulation(world, story, n, kind)
        simulation.run()
        struck = simulation.was_struck()

    assert n > 50, "the story has hardly a statement"


@pytest.mark.parametrize("because", ["its time is over", "it took too much memory", None])
def test_a_process_goes_on_to_the_next_trial_without_a_message_unless(
    because: str | None, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if because == "its time is over":
        monkeypatch.setattr(task, "GO_ON_S", 1)
    elif because is not None:
        monkeypatch.setattr(task, "own_memory_kb", lambda: 10**9)

    simulation = ScriptedSimulation(world, "a search that has fewer processes than trials", n=10**6, kind="crash")
    log = simulation.run()

    at_messages = len([line for line in log if "claims" in line and "attempt" in line])
    assert len([line for line in log if "evaluates" in line]) == 4
    assert at_messages == 4 if because else at_messages < 4


def test_a_seed_always_tells_the_same_story(world: World) -> None:
    log = "\n".join(Simulation(world, 7).run())
    Simulation(world, 8).run()

    assert "\n".join(Simulation(world, 7).run()) == log
    environment = {**os.environ, "PYTHONHASHSEED": "1", SEED_VARIABLE: "7", SEEDS_VARIABLE: "1"}
    command = [sys.executable, "-m", "tests.simulation"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert printed.stdout.rpartition("\n1 simulations")[0] == log
