"""docs/operations.md has a row for every setting, with its default and what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridfleet.storage.described_settings import describe_settings
from gridfleet.storage.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


@pytest.mark.usefixtures("no_variables")
def test_every_setting_is_documented_as_the_command_describes_it() -> None:
    documented = [line for line in TEXT.splitlines() if line.startswith("| `GRIDFLEET_") and line.endswith(". |")]

    for one in describe_settings(Settings()):
        default = ".gridfleet" if one.variable == "GRIDFLEET_HOME" else one.default or "-"
        assert f"| `{one.variable}` | {default} | {one.description} |" in documented
