"""Run a script on a fleet of two worker processes, whatever this machine's cores: what `make demo` does.

python examples/on_two_workers.py SCRIPT [ARGUMENT ...]

Its searches with n_jobs=-1 would have one worker process per core. The fleet ends with the script. A fleet that runs
in this folder already, or is configured by GRIDFLEET_* variables, is used as it is.
"""

import os
import runpy
import sys
from pathlib import Path

from gridfleet.scheduler.fleet.local.client import ensure_running
from gridfleet.storage.settings import load_settings
from gridfleet.worker.guards.quiet_tensorflow import quiet_tensorflow

# TensorFlow's own lines about this machine's processor would hide the search's
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
quiet_tensorflow()

settings = load_settings()
if settings.is_embedded:
    ensure_running(settings, n_workers=2)

del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
runpy.run_path(sys.argv[0], run_name="__main__")
