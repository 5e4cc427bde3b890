"""``cv_results_`` of one search compared with those of another, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_same_results(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare ``cv_results_``: keys and their order, dtypes, and all values that are no times."""
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        if isinstance(expected, np.ndarray):
            assert ours[key].dtype == expected.dtype, key
        if not key.endswith("_time"):
            np.testing.assert_array_equal(np.ma.getmaskarray(ours[key]), np.ma.getmaskarray(expected), err_msg=key)
            # what a combination does not have is masked, and anything may lie under the mask
            values = [np.ma.masked_array(results[key]).compressed() for results in (ours, theirs)]
            np.testing.assert_array_equal(*values, err_msg=key)
            if values[0].dtype.kind == "f":  # -0.0 equals 0.0
                np.testing.assert_array_equal(*map(np.signbit, values), err_msg=key)
