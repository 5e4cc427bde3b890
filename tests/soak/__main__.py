"""A fleet under faults: ``python -m tests.soak --minutes 30 [--seed 7] [--database sqlite]``.

Exit status 0 if nothing was lost, nothing done twice and no invariant violated, 1 otherwise, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import random
import sys

from gridfleet.storage.settings import PREFIX
from tests.soak.system import be_quiet, heed_signals, running, use_fleet

START_METHOD = f"{PREFIX}START_METHOD"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="how long faults are injected")
    parser.add_argument("--seed", type=int, default=None, help="draws faults and searches; default: a new one")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--pooler", action="store_true", help="PgBouncer in transaction mode before PostgreSQL")
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs")
    options = parser.parse_args()
    if options.pooler and options.database != "postgresql":
        parser.error("--pooler is for PostgreSQL")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    method = os.environ.get(START_METHOD, "fork")
    print(f"soak: seed {seed}, {options.minutes:g} minutes on {options.database}, start method {method}", flush=True)
    _forget_variables()
    be_quiet()
    heed_signals()
    with running(options.database, pooler=options.pooler, keep=options.keep) as system:
        from tests.soak import report, run  # after the services have begun: it imports TensorFlow

        outcome = run.soak(system, use_fleet(system.settings), seed=seed, minutes=options.minutes)
        print("\n".join(report.lines(outcome, system)), flush=True)
        if outcome.violations:
            print(system.last_words(), file=sys.stderr)
    return 1 if outcome.violations or outcome.totals.lost or outcome.totals.doubled else 0


def _forget_variables() -> None:
    """Forget the fleet of the shell that runs this, but for how its processes start."""
    for name in [name for name in os.environ if name.startswith(PREFIX) and name != START_METHOD]:
        del os.environ[name]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("soak: stopped; nothing of it is left", file=sys.stderr)
        sys.exit(130)
