"""One fleet for all of scikit-learn's tests; what can't hold on a fleet is listed in exceptions.py."""

from collections import Counter

import pytest

from tests.running_scheduler import scheduler_of
from tests.scikit_learn.exceptions import COMPLETE, EXCEPTIONS

#: Parameter sets of one test, each of which runs up to ten searches, that every run tries.
OF_ONE_TEST = 1


@pytest.fixture(scope="package", autouse=True)
def fleet_of_the_package(fleet_of_many, tmp_path_factory):
    """Start the fleet, with a scheduler, which adds the rounds of halving searches."""
    with fleet_of_many() as settings, scheduler_of(settings, tmp_path_factory.mktemp("scheduler")):
        yield


def pytest_collection_modifyitems(items):
    """Mark the exceptions: they are expected to fail, and one that passes is an error."""
    n_alike = Counter()
    for item in items:
        if "tests/scikit_learn" not in item.nodeid:
            continue
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # what scikit-learn warns of in its own tests is its own
        n_alike[item.originalname] += 1
        if n_alike[item.originalname] > OF_ONE_TEST or item.originalname in COMPLETE:
            item.add_marker(pytest.mark.complete)
        if item.name in EXCEPTIONS:
            item.add_marker(pytest.mark.xfail(reason=EXCEPTIONS[item.name], strict=True))
