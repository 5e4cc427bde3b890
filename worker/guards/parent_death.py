"""No orphans: a process that asks for it dies with its parent, even with one killed by SIGKILL."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from gridfleet.worker.guards.prctl import PR_SET_PDEATHSIG, prctl

#: Seconds between looks at the parent where the kernel does not tell (macOS).
_LOOK_S = 1.0


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """Arrange for this process to end when its parent does.

    Parameters
    ----------
    parent : int
        The parent's process id, taken before it could have died.
    signal_number : int, default=SIGKILL
        What this process gets then.
    """
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, int(signal_number))
    else:
        threading.Thread(target=_watch, args=(parent, signal_number), daemon=True).start()
    if os.getppid() != parent:  # it died before we could ask
        os.kill(os.getpid(), signal_number)


def _watch(parent: int, signal_number: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal_number)
