"""Two hosts, shared by a module."""

from collections.abc import Iterator

import pytest

from tests.launch.hosts import Network, hosts_on_this_machine, why_no_hosts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "network" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")
            item.add_marker("processes")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Two hosts behind ssh; a test that breaks one repairs it."""
    reason = why_no_hosts()
    if reason:
        pytest.skip(reason)
    with hosts_on_this_machine(tmp_path_factory.mktemp("hosts")) as made:
        yield made
