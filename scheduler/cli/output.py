"""What the command says beside its results, and how it fails."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from gridfleet.scheduler.reports.plain import plain

#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130


def show(line: str) -> None:
    """Print a line of the command's output; it may hold texts that anybody stored."""
    typer.echo(plain(line))


def say(sentence: str) -> None:
    """Print a sentence on standard error; it may quote texts that anybody stored or gave."""
    typer.echo(f"gridfleet: {plain(sentence)}", err=True)


def fail(sentence: str, *, status: int = 1) -> NoReturn:
    """Print a sentence and exit with a status."""
    say(sentence)
    sys.exit(status)
