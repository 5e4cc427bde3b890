"""The command ``gridfleet``, also as ``python -m gridfleet``, where its script is not on the PATH."""

import os
import sys


def main() -> None:
    """Run the command."""
    _forget_the_current_folder()
    if sys.argv[1:] == ["health"]:  # asked every few seconds, with half a core and a second's time
        from gridfleet.worker.guards.health_file import main as tell_health

        sys.exit(tell_health())
    from gridfleet.scheduler.cli.main import main as run_command

    run_command()


def _forget_the_current_folder() -> None:
    """Import nothing from the current folder: files there would stand in for packages of the same names.

    ``python -m`` puts it first. So does an empty or relative entry of PYTHONPATH, which
    ``PYTHONPATH=$PYTHONPATH:/somewhere`` makes of a variable that was not set.
    """
    if __name__ == "__main__" and not sys.flags.safe_path:
        del sys.path[0]
    if "PYTHONPATH" not in os.environ:
        return
    # without pathlib, which a file of the current folder may stand in for
    entries = os.environ["PYTHONPATH"].split(os.pathsep)
    absolute = [os.path.normpath(entry) for entry in entries if os.path.isabs(entry)]  # noqa: PTH117
    for entry in entries:
        folder = os.path.abspath(entry)  # noqa: PTH100
        if folder not in absolute and folder in sys.path:
            sys.path.remove(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(absolute)  # for the processes that this one starts


if __name__ == "__main__":
    main()
