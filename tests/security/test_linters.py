"""The linter's rules about security hold for all that runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

RUFF = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
#: Started from lists of arguments, never through a shell.
ALLOWED = {"S603"}


def test_all_of_bandit_s_rules_are_on_outside_of_tests_examples_and_benchmarks() -> None:
    off = {rule for rule in RUFF["ignore"] if rule.startswith("S") and rule[1:].isdigit()}
    places = {place for place, rules in RUFF["per-file-ignores"].items() if any(rule.startswith("S") for rule in rules)}

    assert "S" in RUFF["select"]
    assert off <= ALLOWED
    assert places == {"tests/**", "examples/**", "benchmarks/**"}
