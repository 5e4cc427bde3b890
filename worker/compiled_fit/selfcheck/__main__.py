"""``python -m gridfleet.worker.compiled_fit.selfcheck``."""

from __future__ import annotations

import sys

from gridfleet.worker.compiled_fit.selfcheck.command import main

if __name__ == "__main__":
    sys.exit(main())
