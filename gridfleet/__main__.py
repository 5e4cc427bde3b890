"""``python -m gridfleet``: the command, where its script is not on the PATH."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, whose files would stand in for packages of the same names

from gridfleet.scheduler.cli.main import main

if __name__ == "__main__":
    main()
