"""The daemon rotates its own login at real brokers, and reads it from Vault: it never locks itself out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract.provider_place import Place, Servers, at, fresh
from contract.provider_stage import DEATHS, NAME, PATH, MovedClock, Stage, blank_journal
from provider_site import ignore
from rotator.model import Result, Secret, Verdict
from rotator.ports import Reveal
from rotator.providers import Site, kinds, make_client
from rotator.secret_refs import SecretRef, VaultRef


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Brokers that are started when they are asked for."""
    made = Servers(tmp_path_factory.mktemp("servers"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty journal."""
    return blank_journal(tmp_path_factory.mktemp("blank"))


# The requests are let through to the real brokers as they are.
NO_FAULTS: dict[str, Any] = {"platform": SimpleNamespace(), "operation": ""}


class OwnStage(Stage):
    """A stage whose key is the provider's own login, which it reads from Vault at each login."""

    def build(self) -> Any:
        section = {**self.place.section, "username": self.id, "password": {"vault": f"{PATH}#password"}}
        kind = kinds()[str(section["kind"])]
        site = Site(
            name="acme",
            clock=self.clock,
            on_request=ignore,
            reveal=self._reveal,
            client=lambda _: make_client(),
        )
        return kind.build(site, kind.settings(**section))

    def _reveal(self, ref: SecretRef) -> Reveal:
        assert isinstance(ref, VaultRef)
        return lambda: self.store.versions[-1]["password"] if self.store.versions else self.old_secret.reveal()


def mosquitto(servers: Servers) -> Place:
    """Another admin of dynamic security; Mosquitto ends its session before it answers the change."""
    broker, mine = servers.mosquitto, fresh("own")

    def add() -> tuple[str, Secret]:
        broker.client(mine, "old-secret", role="admin")
        return mine, Secret("old-secret")

    section = {"kind": "mosquitto", "host": "127.0.0.1", "port": broker.port}
    return Place(section=section, secrets={}, add=add, count=lambda: 0, target=at(broker.port), **NO_FAULTS)


def rabbitmq(servers: Servers) -> Place:
    """Another administrator."""
    broker, mine = servers.rabbitmq, fresh("own")

    def add() -> tuple[str, Secret]:
        broker.add_user(mine, "old-secret", tags="administrator")
        return mine, Secret("old-secret")

    section = {"kind": "rabbitmq", "url": broker.url}
    return Place(section=section, secrets={}, add=add, count=lambda: 0, target=at(broker.port), **NO_FAULTS)


@pytest.mark.parametrize("death", ["", *DEATHS])
@pytest.mark.parametrize("place", [mosquitto, rabbitmq])
def test_it_lets_itself_in_again(
    servers: Servers, blank: Path, tmp_path: Path, place: Callable[[Servers], Place], death: str
) -> None:
    """Twice, wherever the process died beside the first change: the new password counts, the old ones are dead."""
    with closing(OwnStage(tmp_path / "own", blank, place(servers), MovedClock())) as stage:
        stage.calls.die = death
        stage.begin()
        done = stage.go_on(lambda each: each.result is Result.SUCCEEDED, "succeeded")
        first = stage.new_secret
        stage.begin()
        stage.go_on(lambda each: each.id != done.id and each.result is Result.SUCCEEDED, "succeeded again")
        verdicts = [stage.verdict(stage.old, each) for each in (stage.old_secret, first, stage.new_secret)]
        assert [Verdict.REFUSED, Verdict.REFUSED, Verdict.ACCEPTED] == verdicts
        assert "" == stage.calls.die
        assert stage.journal.open_rotation(NAME) is None
        fresh_one = stage.build()  # as after a restart: Vault is all that it has
        assert stage.id in {key.id for key in fresh_one.list_keys()}
        fresh_one.close()
