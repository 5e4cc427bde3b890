"""The help of many commands, each of a process of its own: a forked one, for an interpreter takes a third of a s."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from typing import NamedTuple

PROGRAM = """
import json, os, sys
from gridfleet.scheduler.cli.main import main
for command in json.loads(sys.argv[1]):
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(theirs, 1)
        sys.argv, status = ["gridfleet", *command, "--help"], 1
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        finally:
            heavy = [name for name in json.loads(sys.orig_argv[-1]) if name in sys.modules]
            print("\\0", json.dumps([status, heavy]), flush=True)
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as output:
        text = output.read()
    os.waitpid(child, 0)
    print(json.dumps(text))
"""


class Help(NamedTuple):
    """What a command said."""

    status: int
    text: str
    imported: list[str]


def helps(
    commands: Sequence[Sequence[str]], *, columns: int = 80, heavy: Collection[str] = ()
) -> dict[tuple[str, ...], Help]:
    """Ask for the help of each command, and which of some modules it imported."""
    arguments = [json.dumps(commands), json.dumps(list(heavy))]
    environment = {**os.environ, "COLUMNS": str(columns)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    found = {}
    for command, line in zip(commands, done.stdout.splitlines(), strict=True):
        text, _, end = json.loads(line).partition("\0")
        status, imported = json.loads(end)
        found[tuple(command)] = Help(status, text, imported)
    return found
