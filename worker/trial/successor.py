"""Whether a message is for this worker process, or for a fresh one that takes its place.

What the code of one session leaves in a process (imports, patches, the state of modules) must not change the trials of
another, so a process evaluates trials of one session. At a message of another one it ends before it claims anything,
with a status by which its main process gives the message to another process (worker/main_process/pool.py).
"""

from __future__ import annotations

import os
from typing import NoReturn

from billiard.pool import EX_RECYCLE

from gridfleet.storage.session import has_tensorflow
from gridfleet.worker.trial.process import WorkerProcess

#: With what a process ends that hands its message on; billiard's own word for a process that is to be replaced.
HANDED_ON = EX_RECYCLE
#: The same, and its successor needs TensorFlow, which the template has not imported.
HANDED_ON_WITH_TENSORFLOW = 0x9C

_template_lacks_tensorflow = False


class MessageForAnother(Exception):  # noqa: N818 - no error
    """A message that another process has to work on."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def note_template(*, lacks_tensorflow: bool) -> None:
    """Note of what this process was forked."""
    global _template_lacks_tensorflow
    _template_lacks_tensorflow = lacks_tensorflow


def require_own(process: WorkerProcess, session: str | None) -> None:
    """Refuse the message of a trial whose session is not this process's.

    Raises
    ------
    MessageForAnother
        If a fresh process has to take it.
    """
    if has_tensorflow(session) and _template_lacks_tensorflow:
        raise MessageForAnother(HANDED_ON_WITH_TENSORFLOW)
    if session != process.session and process.session is not None:
        raise MessageForAnother(HANDED_ON)


def leave(process: WorkerProcess, status: int) -> NoReturn:
    """End this process, which holds no trial."""
    process.database.close()
    os._exit(status)
