"""Fixtures of the tests that need a real server."""

from collections.abc import Iterator

import pytest

from integration.broker_fixture import Broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Mosquitto that the tests share: each makes clients of its own, and none stops it."""
    started = Broker(tmp_path_factory.mktemp("broker"))
    yield started
    started.stop()


@pytest.fixture
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Mosquitto that one test may stop and start."""
    started = Broker(tmp_path_factory.mktemp("own-broker"))
    yield started
    started.stop()
