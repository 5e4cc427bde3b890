"""Prints the table of recovery times of docs/reliability.md: ``python -m tests.faults.recoveries FILE``.

The file is what the tests of faults append to when GRIDFLEET_RECOVERIES names it, over as many runs as one likes.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def main(file: Path) -> None:
    """Print median and worst of each row."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for line in file.read_text().splitlines():
        noted = json.loads(line)
        seconds[noted["row"]].append(noted["seconds"])
    print("| fault | times seen | median, s | worst, s |\n|---|---|---|---|")
    for row, found in sorted(seconds.items()):
        print(f"| {row} | {len(found)} | {statistics.median(found):.1f} | {max(found):.1f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
