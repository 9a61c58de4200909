"""Servers that several contract tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from contract.bao_server import Bao, RaftBao
from contract.store_stage import StoreStage, new_path


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    """A running OpenBao; tests use paths, policies and roles of their own."""
    server = Bao(tmp_path_factory.mktemp("bao"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def raft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaftBao]:
    """The same on raft storage."""
    server = RaftBao(tmp_path_factory.mktemp("raft"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["dev", "raft"])
def server(request: pytest.FixtureRequest) -> Bao:
    """Each of both, one after the other."""
    found = request.getfixturevalue("bao" if request.param == "dev" else "raft")
    assert isinstance(found, Bao)
    return found


@pytest.fixture
def stage() -> Iterator[StoreStage]:
    """Makes stores; they are closed at the end."""
    with closing(StoreStage()) as made:
        yield made


@pytest.fixture
def path() -> str:
    """A path that no other test uses."""
    return new_path()
