"""What the command says beside its results, and how it fails."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130


def say(sentence: str) -> None:
    """Print a sentence on standard error."""
    typer.echo(f"gridfleet: {sentence}", err=True)


def fail(sentence: str) -> NoReturn:
    """Print a sentence and exit with status 1."""
    say(sentence)
    sys.exit(1)
