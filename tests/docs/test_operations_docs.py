"""docs/operations.md has a row for every setting, with its default and what it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gridfleet.storage.described_settings import describe_settings
from gridfleet.storage.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text()
#: What containers have of it is in the compose file and the image, or is a secret, or is an embedded fleet's.
OF_THE_COMPOSE_FILE = {
    f"GRIDFLEET_{name}"
    for name in (
        "HOME", "DATABASE_URL", "DATABASE_PASSWORD", "BROKER_URL", "BROKER_PASSWORD", "SECRET_KEY", "PUBLIC_KEY",
        "WORKER_KEY", "NEW_SECRET_KEY", "PAGE_PASSWORD", "CACHE_DIR", "HEALTH_FILE", "LINGER_S", "ALLOW_ROOT",
    )
}  # fmt: skip


@pytest.mark.usefixtures("no_variables")
def test_every_setting_is_documented_as_the_command_describes_it() -> None:
    documented = [line for line in TEXT.splitlines() if line.startswith("| `GRIDFLEET_") and line.endswith(". |")]

    for one in describe_settings(Settings()):
        assert f"| `{one.variable}` | {one.default or '-'} | {one.description} |" in documented


def test_the_compose_file_passes_on_every_setting_but_its_own() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    passed_on = {name for service in services.values() for name in service.get("environment", {})}

    ours = {f"GRIDFLEET_{name.upper()}" for name in Settings.model_fields} - OF_THE_COMPOSE_FILE
    assert ours - passed_on == set()
