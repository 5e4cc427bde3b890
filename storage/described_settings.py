"""Every setting, told to people: its value, where that comes from, its default and what it does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from gridfleet.storage.settings import HOME, PREFIX, Settings
from gridfleet.storage.urls import shown_url


@dataclass(frozen=True, slots=True)
class DescribedSetting:
    """One setting, for people.

    Parameters
    ----------
    variable : str
        Its name in the environment.
    value : str
        What it is; of a secret, stars; empty where it is not set.
    origin : str
        "environment", "secret file" or "default".
    default : str
        What it is where nobody sets it; empty: nothing.
    description : str
        What it does.
    """

    variable: str
    value: str
    origin: str
    default: str
    description: str


def describe_settings(settings: Settings) -> list[DescribedSetting]:
    """Describe every setting, in the order in which they are declared."""
    return [
        DescribedSetting(
            PREFIX + name.upper(),
            _shown_value(name, getattr(settings, name)),
            _origin(name, settings),
            _shown_default(field.get_default(call_default_factory=True)),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _shown_default(default: Any) -> str:
    return "" if default is None else HOME if isinstance(default, Path) else str(default)


def _origin(name: str, settings: Settings) -> str:
    if name not in settings.model_fields_set:
        return "default"
    # pydantic reads them without regard to case
    return "environment" if (PREFIX + name).lower() in map(str.lower, os.environ) else "secret file"


def _shown_value(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in ("database_url", "broker_url"):
        return shown_url(value) or ""
    return "***" if isinstance(value, SecretStr) else str(value)
