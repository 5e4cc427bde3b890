"""docs/cli.md has the help of every command, word by word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from gridfleet.scheduler.cli.main import app
from gridfleet.scheduler.search_file.description import SearchFile
from tests.helps import Help, helps

TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
#: What follows each ``$ gridfleet … --help``.
HELPS = {
    tuple(command.split()): output
    for command, output in re.findall(r"```console\n\$ (.*?)\n(.*?)\n```", TEXT, re.DOTALL)
}


def _commands() -> list[tuple[str, ...]]:
    def walk(command, path):
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))

    return list(walk(get_command(app), ("gridfleet",)))


def test_every_command_is_documented_and_no_other():
    assert {command[:-1] for command in HELPS} == set(_commands())


@pytest.fixture(scope="module")
def printed() -> dict[tuple[str, ...], Help]:
    return helps([command[1:] for command in _commands()], columns=100)


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_the_documented_help_is_what_the_command_prints(command, printed):
    assert printed[command[1:]].status == 0
    assert HELPS[(*command, "--help")] == printed[command[1:]].text.rstrip()


def test_on_a_narrow_terminal_no_help_is_cut():
    for shown in helps([(), ("db",)]).values():
        assert shown.status == 0
        assert [line for line in shown.text.splitlines() if re.search(r"\w\.\.\.$", line)] == []


def test_every_key_of_the_search_file_is_documented():
    table = TEXT.partition("## The search file")[2]
    for key in SearchFile.model_fields:
        assert f"`{key}" in table
