"""The fleets of the end-to-end tests, for those that break them."""

from tests.end_to_end.conftest import configured, fleet, use_fleet

__all__ = ["configured", "fleet", "use_fleet"]
