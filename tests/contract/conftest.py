"""Servers that several contract tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from contract.bao_server import Bao


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    """A running OpenBao; tests use paths, policies and roles of their own."""
    server = Bao(tmp_path_factory.mktemp("bao"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
