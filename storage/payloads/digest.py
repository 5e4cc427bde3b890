"""The names of payloads: SHA-256 of their content, as 64 hexadecimal digits and in no other form."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from gridfleet.storage.errors import PayloadError

_DIGEST = re.compile("[0-9a-f]{64}")


def digest_of(content: Sequence[memoryview]) -> str:
    """Return the digest of a payload's content."""
    sha = hashlib.sha256()
    for part in content:
        sha.update(part)
    return sha.hexdigest()


def is_digest(name: str) -> bool:
    """Whether a name is one that a payload can have."""
    return _DIGEST.fullmatch(name) is not None


def check_digest(digest: str) -> None:
    """Refuse a name out of SQL that is no digest, before it becomes the name of a file.

    Raises
    ------
    PayloadError
        With the name, shortened.
    """
    if not is_digest(digest):
        raise PayloadError(
            f"{digest[:80]!r} can't be the digest of a payload, which has 64 hexadecimal digits; somebody else than "
            "gridfleet wrote it into the database"
        )
