"""``python -m gridfleet.worker N``: a worker of N processes, as the embedded fleet starts it.

With ``--without-tensorflow`` it imports TensorFlow only when a search needs it.
"""

import sys

from gridfleet.storage.errors import UnfitWorkerError
from gridfleet.storage.settings import load_settings
from gridfleet.worker.main_process.service import run_worker

if __name__ == "__main__":
    try:
        run_worker(
            load_settings(),
            concurrency=int(sys.argv[1]),
            may_be_root=True,
            tensorflow="--without-tensorflow" not in sys.argv[2:],
        )
    except UnfitWorkerError as error:
        sys.stderr.write(f"gridfleet: {error}\n")
        sys.exit(error.exit_status)
