"""docs/style.md, "One way of speaking": what all commands have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gridfleet.scheduler.cli.main import app

Gridfleet = Callable[..., tuple[int, str, str]]
#: Commands that show something, and take --json for it; the others do something, and say so.
SHOW = {
    "list",
    "report",
    "best",
    "compare",
    "watch",
    "workers",
    "settings",
    "doctor",
    "ps",
    "sql",
    "reproduce",
    "verify",
}
#: What the commands that take a search need besides.
FURTHER = {
    "reproduce": ["0"],
    "compare": ["pima"],
    "export": ["--to", "csv", "pima.csv"],
    "priority": ["1"],
    "rename": ["other"],
    "delete": ["--yes"],
}


def _commands() -> dict[str, Any]:
    return dict(get_command(app).commands)  # type: ignore[attr-defined]


def _of_a_search() -> list[str]:
    """Name the commands whose first argument is a search."""
    arguments = {
        name: [one for one in command.params if one.param_type_name == "argument"]
        for name, command in _commands().items()
    }
    return sorted(name for name, found in arguments.items() if found and str(found[0].help).startswith("The search:"))


def test_all_that_is_shown_can_be_had_as_json() -> None:
    options = {name: {option for one in command.params for option in one.opts} for name, command in _commands().items()}
    assert {name for name, found in options.items() if "--json" in found} == SHOW


@pytest.mark.parametrize("command", [*_of_a_search(), "delete"])
def test_an_unknown_name_is_1_and_wrong_usage_is_2(gridfleet: Gridfleet, pima: int, command: str) -> None:
    further = FURTHER.get(command, [])

    status, shown, said = gridfleet(command, "primo", *further)
    assert (status, shown) == (1, "")
    assert said.startswith("gridfleet: no search has the name 'primo'; did you mean 'pima'?")
    assert said.count("\n") == 1

    status, shown, said = gridfleet(command, "pima", *further, "--no-such-option")
    assert (status, shown) == (2, "") or command == "priority"  # where -5 is a value, and no option


def test_nothing_to_do_is_0(gridfleet: Gridfleet, pima: int) -> None:
    for command in (["cancel", "pima"], ["pause", "pima"], ["resume", "pima"], ["priority", "pima", "1"]):
        status, shown, said = gridfleet(*command)
        assert (status, said) == (0, "")
        assert shown.count("\n") == 1
    assert gridfleet("delete", "--older-than", "90d", "--yes")[:2] == (0, "no search ended so long ago\n")


def test_results_for_programs_are_all_that_is_on_standard_output(gridfleet: Gridfleet, pima: int) -> None:
    for command in (["list"], ["report"], ["best"], ["workers"], ["settings"], ["compare", "pima", "@latest"]):
        status, shown, _ = gridfleet(*command, "--json")
        assert status == 0
        json.loads(shown)


def test_one_word_stands_for_one_thing() -> None:
    texts = {name: f"{command.help} {[one.help for one in command.params]}" for name, command in _commands().items()}
    texts["docs/cli.md"] = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for name, text in texts.items():
        assert re.findall(r"failed trials?\b|\btries\b", text, re.IGNORECASE) == [], name
