"""The world that all simulations of a run share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.simulation.world import World


@pytest.fixture(scope="module")
def empty_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Make a world in which production code does not live yet."""
    logging.disable(logging.CRITICAL)  # of thousands of faults, each with a warning
    yield World(tmp_path_factory.mktemp("payloads"))
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def world(empty_world: World) -> Iterator[World]:
    """Make a world in which production code lives."""
    with empty_world.installed():
        yield empty_world
