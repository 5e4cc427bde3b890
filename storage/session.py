"""The session of a search: the Python process that submitted it, and whether that one had imported TensorFlow."""

from __future__ import annotations

import os
import secrets
import sys

#: How a session ends whose process had imported TensorFlow when it submitted.
WITH_TENSORFLOW = "+tensorflow"
#: By process id, for a forked child gets what its parent has.
_ids: dict[int, str] = {}


def this_session() -> str:
    """Return the session of what this process submits now: one as long as it lives, two if it imports TensorFlow."""
    return _ids.setdefault(os.getpid(), secrets.token_hex(8)) + (WITH_TENSORFLOW if "tensorflow" in sys.modules else "")


def has_tensorflow(session: str | None) -> bool:
    """Whether the process of a session had imported TensorFlow."""
    return session is not None and session.endswith(WITH_TENSORFLOW)
