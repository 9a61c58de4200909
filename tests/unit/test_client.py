"""The commands' client over the daemon's own application: what it waits for, and what it says instead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from rotator.client import Client
from rotator.errors import Permanent, Transient
from rotator.journal.database import driver_of
from rotator.model import Secret, Strategy
from rotator.reasons import Reason
from rotator.web.application import make_application
from rotator.web.server import Listener, bind_tcp
from unit.control_stage import ControlStage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ControlStage]:
    """One key; nobody works on it but the test."""
    stage = ControlStage(tmp_path, Strategy.IN_PLACE)
    yield stage
    stage.journal.close()


@pytest.fixture
def client(stage: ControlStage) -> Iterator[Client]:
    """As over the Unix socket."""
    application = make_application(
        stage.control, CollectorRegistry(), alive=lambda: True, admin_token=None, trusted=True
    )
    sock = bind_tcp("127.0.0.1", 0)
    listener = Listener([(application, sock)])
    listener.start()
    with Client.over_url(f"http://127.0.0.1:{sock.getsockname()[1]}", Secret("")) as client:
        yield client
    listener.close()


def test_checks_are_read_though_the_daemon_is_not_ready(stage: ControlStage, client: Client) -> None:
    """503 is an answer as well."""
    assert {"ok": True} == client.checks()["vault"]
    stage.on("vault.ready", "", Transient("Vault says 503", reason=Reason.VAULT_SEALED))
    stage.look()
    check = client.checks()["vault"]
    assert (False, "vault_sealed", "Vault says 503") == (check["ok"], check["reason"], check["detail"])


def test_nobody_waits_for_a_journal_that_takes_nothing(stage: ControlStage, client: Client) -> None:
    """The request was taken, the disk is full since: said at once, by its name, and not after all of the timeout."""
    assert stage.journal._writer is not None
    poke = stage.control.poke

    def full() -> None:
        """Right after the request is in the journal."""
        poke()
        with stage.journal._writer.between() as connection:  # type: ignore[union-attr]
            driver_of(connection).execute("PRAGMA query_only=ON")
        with pytest.raises(Exception, match="journal"):
            stage.journal.try_writing()

    object.__setattr__(stage.control, "poke", full)
    began = time.monotonic()
    with pytest.raises(Transient, match=r"key-0 .* the journal can't be written") as caught:
        client.ask_and_wait("key-0", "rotate", {"now": True}, timeout=30)
    assert (Reason.JOURNAL_UNWRITABLE, True) == (caught.value.reason, time.monotonic() - began < 10)


def test_the_history_of_a_key_that_never_was(client: Client) -> None:
    """By its name, as `status` has it."""
    assert [] == client.rotations("key-0")
    with pytest.raises(Permanent, match="nobody") as caught:
        client.rotations("nobody")
    assert Reason.NO_SUCH_KEY is caught.value.reason
