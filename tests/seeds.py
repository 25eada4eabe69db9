"""Seeds of random tests: fixed, or given by `TEST_SEED`, which `make test-nightly` sets to the date."""

import os

from hypothesis import settings

SEED = int(os.environ.get("TEST_SEED", "1"))
IS_NIGHTLY = "TEST_SEED" in os.environ
_NIGHTLY_FACTOR = 10

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("nightly", deadline=None, max_examples=100 * _NIGHTLY_FACTOR)
settings.load_profile("nightly" if IS_NIGHTLY else "fixed")


def examples(count: int) -> settings:
    """Set the number of examples of a hypothesis test; the nightly run has ten times as many."""
    return settings(max_examples=count * (_NIGHTLY_FACTOR if IS_NIGHTLY else 1))
