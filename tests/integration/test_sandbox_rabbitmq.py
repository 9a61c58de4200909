"""The sandbox's RabbitMQ: a real one, which lives and ends with its object and touches nothing of the host's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.broker_fixture import until
from rotator.model import ProbeTarget, Secret, Verdict
from rotator.sandbox import rabbitmq
from rotator.sandbox.rabbitmq import RabbitmqBroker
from rotator.verify import MqttProber


def verdict(broker: RabbitmqBroker, password: str) -> Verdict:
    """What the broker says to the user `meter`."""
    return (
        MqttProber()
        .probe(ProbeTarget(host=broker.host, port=broker.port, username="meter", password=Secret(password)))
        .verdict
    )


def belongs_to(folder: str) -> list[int]:
    """The ids of all processes whose environment names `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if folder.encode() in environment:
                found.append(int(entry.name))
    return found


@pytest.mark.long
def test_it_keeps_ports_and_users_and_leaves_nothing_behind() -> None:
    """A change outlives a stop, on the same ports; after `close`, folder and processes are gone."""
    broker = RabbitmqBroker()
    folder = str(broker.log_file.parent)
    try:
        broker.start()
        ports = (broker.port, broker.management_port)
        broker.add_user("meter", "first", tags="monitoring")
        broker.call("PUT", "users/meter", {"password": "second", "tags": "other"})
        assert broker.start() is broker  # it runs already
        assert broker.pid in belongs_to(folder)
        broker.stop()
        assert Verdict.UNREACHABLE == verdict(broker, "second")
        until(lambda: not belongs_to(folder), "its processes are gone")
        broker.start()
        assert ports == (broker.port, broker.management_port)
        assert [Verdict.REFUSED, Verdict.ACCEPTED] == [verdict(broker, each) for each in ("first", "second")]
        assert ["other"] == broker.user("meter")["tags"]
    finally:
        broker.close()
    until(lambda: not belongs_to(folder), "its processes are gone")
    assert not Path(folder).exists()


def test_without_the_package_it_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the Debian package."""
    monkeypatch.setattr(rabbitmq, "SERVER", tmp_path / "rabbitmq-server")
    with pytest.raises(FileNotFoundError, match="Debian package rabbitmq-server"), RabbitmqBroker(tmp_path):
        pass


def test_a_server_that_ends_is_told_with_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting for one that is not there any more; the port mapper goes as well."""
    program = tmp_path / "rabbitmq-server"
    program.write_text("#!/bin/sh\necho no room at all\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(rabbitmq, "SERVER", program)
    with pytest.raises(RuntimeError, match="no room at all"):
        RabbitmqBroker(tmp_path).start()
    until(lambda: not belongs_to(str(tmp_path)), "the port mapper is gone")
