"""scikit-learn's own tests of its own halving searches, inside ``joblib.parallel_config(backend="gridfleet")``."""

from importlib import import_module

import joblib
import pytest

from gridfleet import register_joblib_backend

# every run has these tests with our classes, and such a search in tests/scheduler/estimators
pytestmark = pytest.mark.complete

register_joblib_backend()
_module = import_module("sklearn.model_selection.tests.test_successive_halving")
globals().update({name: value for name, value in vars(_module).items() if name.startswith("test_")})


@pytest.fixture(autouse=True)
def on_the_fleet():
    """Run every search of a test on the fleet, without a change to it."""
    with joblib.parallel_config(backend="gridfleet"):
        yield
