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
            sys.stdout.flush()
            heavy = [name for name in json.loads(sys.orig_argv[-1]) if name in sys.modules]
            print(json.dumps([status, heavy]), file=sys.__stderr__, flush=True)
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as output:
        text = output.read()
    os.waitpid(child, 0)
    print(json.dumps(text), file=sys.stderr, flush=True)
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
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    ends_and_texts = [json.loads(line) for line in done.stderr.splitlines()]
    found = zip(commands, ends_and_texts[::2], ends_and_texts[1::2], strict=True)
    return {tuple(command): Help(status, text, imported) for command, (status, imported), text in found}
