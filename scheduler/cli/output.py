"""What the command says beside its results, and how it fails."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Any, NoReturn

import typer

from gridfleet.scheduler.reports.plain import plain

#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130


#: What stands for our own signs on a terminal that has no Unicode.
_SIGNS = {"…": "...", "━": "-", "±": "+-", "×": "x", "–": "-", "→": "->"}
#: Under this name Python's codecs find what to write instead of a sign that they have not.
_INSTEAD = "gridfleet.instead"


def print_anywhere() -> None:
    """Let nothing fail for a sign that the terminal's encoding (C, ASCII, cp949) has not: its escape is printed."""
    codecs.register_error(_INSTEAD, _instead)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_INSTEAD)


def _instead(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_SIGNS.get(sign) or ascii(sign)[1:-1] for sign in signs), error.end


def flush_what_is_read() -> None:
    """Write what is left of the output, unless nobody reads any more: ``gridfleet list | head -1``."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(line: str) -> None:
    """Print a line of the command's output; it may hold texts that anybody stored."""
    typer.echo(plain(line))


def show_json(value: Any) -> None:
    """Print a value as one line of strict JSON."""
    from gridfleet.scheduler.cli.sql import json_line

    typer.echo(json_line(value))


def say(sentence: str) -> None:
    """Print a sentence on standard error; it may quote texts that anybody stored or gave."""
    typer.echo(f"gridfleet: {plain(sentence)}", err=True)


def fail(sentence: str, *, status: int = 1) -> NoReturn:
    """Print a sentence and exit with a status."""
    say(sentence)
    sys.exit(status)
