"""Run a script on a fleet of two worker processes, whatever this machine's cores: what `make demo` does.

python examples/on_two_workers.py SCRIPT [ARGUMENT ...]

Its searches with n_jobs=-1 would have one worker process per core. Exits with the script's status; the fleet ends
with it. A fleet that runs in this folder already, or is configured by GRIDFLEET_* variables, is used as it is.
"""

import subprocess
import sys

from gridfleet.scheduler.fleet.local.client import ensure_running
from gridfleet.storage.settings import load_settings

settings = load_settings()
if settings.is_embedded:
    ensure_running(settings, n_workers=2)
try:
    status = subprocess.call([sys.executable, *sys.argv[1:]])
except KeyboardInterrupt:  # the script was interrupted too, and has said what becomes of its search
    status = 130
sys.exit(status)
