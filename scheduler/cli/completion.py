"""Completion in a shell: of commands, options and the names of searches.

The shell calls the hidden ``gridfleet __complete WORDS…``, which prints one candidate a line.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

#: The hidden command that a shell calls.
COMPLETE = "__complete"

_SCRIPTS = {
    "bash": f"""_gridfleet() {{
  local IFS=$'\\n'
  COMPREPLY=($(gridfleet {COMPLETE} "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null))
}}
complete -o default -F _gridfleet gridfleet
""",
    "zsh": f"""#compdef gridfleet
_gridfleet() {{
  local -a found
  found=(${{(f)"$(gridfleet {COMPLETE} "${{(@)words[2,CURRENT]}}" 2>/dev/null)"}})
  if (( $#found )); then compadd -Q -- $found; else _files; fi
}}
compdef _gridfleet gridfleet
""",
    "fish": f"""complete -c gridfleet -a '(gridfleet {COMPLETE} (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}


class Shell(StrEnum):
    """The shells that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell that reads the script.")]) -> None:
    """Print what lets a shell complete commands and names.

    In ~/.bashrc: eval "$(gridfleet completion bash)"; in ~/.zshrc the same with zsh; in fish:
    gridfleet completion fish | source
    """
    typer.echo(_SCRIPTS[shell], nl=False)


def candidates(app: typer.Typer, words: Sequence[str]) -> list[str]:
    """Return what the last of some words may become, quoted as a shell needs it.

    Parameters
    ----------
    app : Typer
        The command.
    words : sequence of str
        What was typed behind ``gridfleet``; the last one is not complete.
    """
    *before, incomplete = words or [""]
    command: Any = typer.main.get_command(app)
    while before and before[0] in getattr(command, "commands", {}):
        command = command.commands[before.pop(0)]
    if incomplete.startswith("-"):
        found = [name for option in _options(command) for name in option.opts]
    elif hasattr(command, "commands"):
        found = [name for name, inner in command.commands.items() if not inner.hidden]
    else:
        found = _values(command, before, incomplete)
    return [shlex.quote(one) for one in found if one.lower().startswith(incomplete.lower())]


def _options(command: Any) -> list[Any]:
    return [option for option in command.get_params(_context(command)) if option.param_type_name == "option"]


def _values(command: Any, before: Sequence[str], incomplete: str) -> list[str]:
    """Return the values of the option that waits for one, or of the argument whose turn it is."""
    takes_value = {name: option for option in _options(command) if not option.is_flag for name in option.opts}
    n_arguments, waits = 0, None
    for word in before:
        if waits is None and word.startswith("-"):
            waits = takes_value.get(word)
        elif waits is not None:
            waits = None
        else:
            n_arguments += 1
    arguments = [one for one in command.get_params(_context(command)) if one.param_type_name == "argument"]
    if waits is None and arguments:
        is_last_a_list = arguments[-1].nargs == -1
        waits = next(iter(arguments[n_arguments:]), arguments[-1] if is_last_a_list else None)
    return [] if waits is None else [item.value for item in waits.shell_complete(_context(command), incomplete)]


def _context(command: Any) -> Any:
    return command.make_context(command.name, [], resilient_parsing=True)
