"""``python -m gridfleet``: the command, where its script is not on the PATH."""

from gridfleet.scheduler.cli.main import main

if __name__ == "__main__":
    main()
