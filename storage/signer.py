"""Signs and checks, with the fleet's secret key, what only submitters may have written."""

from __future__ import annotations

import hashlib
import hmac
import json


class Signer:
    """Signs facts that belong together: HMAC-SHA-256 over them as JSON, which no other facts give.

    Parameters
    ----------
    key : bytes
        The fleet's secret key, `Settings.key`.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, what: str, *facts: str | int | None) -> str:
        """Return the signature of facts; `what` keeps those of a payload from being taken for those of a search."""
        return hmac.new(self._key, json.dumps([what, *facts]).encode(), hashlib.sha256).hexdigest()

    def is_signed(self, signature: str, what: str, *facts: str | int | None) -> bool:
        """Whether a signature is that of these facts."""
        # as bytes: of texts, compare_digest takes none but ASCII
        return hmac.compare_digest(signature.encode("utf-8", "replace"), self.sign(what, *facts).encode())
