"""What a block warns of, whatever the filters of the tests say."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def all_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Catch every warning but `ResourceWarning`, which comes when somebody else's garbage happens to be collected."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)
        yield caught
