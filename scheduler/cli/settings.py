"""The command that shows the settings."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gridfleet.scheduler.cli.output import show


def settings(
    as_json: Annotated[bool, typer.Option("--json", help="One list of objects instead.")] = False,
) -> None:
    """Show every setting, its value and its origin.

    Secrets are shown as stars. A value comes from a variable of the environment, from a file of the
    secrets folder, or is the default.
    """
    from dataclasses import asdict

    from gridfleet.storage.described_settings import describe_settings
    from gridfleet.storage.settings import load_settings

    described = describe_settings(load_settings())
    if as_json:
        show(json.dumps([asdict(one) for one in described]))
        return
    widths = [max(len(one.variable) for one in described), max(len(one.value) for one in described)]
    for one in described:
        show(f"{one.variable:<{widths[0]}}  {one.value:<{widths[1]}}  {one.origin:<11}  {one.description}")
