"""The parts of the Mosquitto provider that need no broker; contract/test_provider_mosquitto.py has the rest."""

from __future__ import annotations

import string
from datetime import timedelta

import pytest

from rotator.clock import SystemClock
from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Identity, RequestDone, Secret, Strategy
from rotator.ports import Choosing, Deactivating, Deleting, Evicting, Provisioning
from rotator.providers import PROVIDERS, Kind, Mosquitto
from rotator.providers.dynamic_security import refusal
from rotator.providers.mosquitto import MosquittoSettings
from rotator.reasons import Reason


def unused() -> str:
    """Where a login must not even begin."""
    raise AssertionError("the admin's password was read")


@pytest.fixture
def told() -> list[RequestDone]:
    """What `on_request` was told."""
    return []


@pytest.fixture
def provider(told: list[RequestDone]) -> Mosquitto:
    """A provider that must not connect."""
    return Mosquitto(
        "broker",
        host="192.0.2.1",
        port=1883,
        username="admin",
        password=unused,
        timeout=timedelta(seconds=7),
        clock=SystemClock(),
        on_request=told.append,
    )


def test_it_is_a_provider_whose_caller_chooses(provider: Mosquitto) -> None:
    """Registry, strategy and deadline say what the engine needs."""
    assert PROVIDERS["mosquitto"] == Kind(MosquittoSettings, Mosquitto.configured)
    assert [] == [each for each in (Choosing, Deactivating, Deleting, Provisioning) if not isinstance(provider, each)]
    assert not isinstance(provider, Evicting)  # Mosquitto ends the sessions itself
    abilities = provider.abilities
    assert (True, False) == (abilities.kills_old, abilities.expires)
    assert (True, True, True) == (abilities.pauses, abilities.creates, abilities.deletes)
    assert ("broker", Strategy.CHOSEN) == (provider.name, provider.strategy)
    assert timedelta(seconds=7) == provider.issue_deadline
    assert Identity(id="meter-1", username="meter-1") == provider.identity("meter-1")
    provider.close()
    provider.close()


def test_chosen_secrets_are_long_plain_and_new(provider: Mosquitto) -> None:
    """43 letters and digits (256 bits), all 62 of them used, and never the same twice."""
    chosen = [provider.choose().reveal() for _ in range(200)]
    assert 200 == len(set(chosen))
    assert {43} == {len(each) for each in chosen}
    assert set(string.ascii_letters + string.digits) == set("".join(chosen))


@pytest.mark.parametrize(
    ("id", "username", "problem"),
    [
        ("admin", "admin", "is rotated only where its password is read from {vault: PATH#FIELD}"),
        ("admin", "x", "is rotated only where its password is read from {vault: PATH#FIELD}"),
        ("x", "admin", "its id is another's"),
    ],
)
def test_its_own_admin_is_refused(
    provider: Mosquitto, told: list[RequestDone], id: str, username: str, problem: str
) -> None:
    """A password from a file would be dead after it: refused before anything is sent or even read."""
    with pytest.raises(Permanent) as failed:
        provider.set_secret(Identity(id=id, username=username), Secret("hush"))
    assert failed.value.reason is Reason.PROVIDER_REFUSED
    assert failed.value.message.startswith("broker: issue: the ")
    assert failed.value.message.endswith(problem)
    assert [] == told


@pytest.mark.parametrize("id", ["admin", "", "half\0"])
def test_its_own_admin_is_never_taken_away(provider: Mosquitto, told: list[RequestDone], id: str) -> None:
    """Not by any verb; nor what a C string would read as another client."""
    verbs = (
        lambda: provider.deactivate(Identity(id=id, username=id)),
        lambda: provider.reactivate(Identity(id=id, username=id)),
        lambda: provider.delete(id),
        lambda: provider.provision(id, {}, "rotator-0123456789ab-1"),
    )
    for verb in verbs:
        with pytest.raises(Permanent) as failed:
            verb()
        assert failed.value.reason is Reason.PROVIDER_REFUSED
    assert [] == told


@pytest.mark.parametrize(
    ("id", "secret"),
    [
        ("meter", ""),
        ("meter", "half\0lost"),
        ("meter", "half\ud800lost"),
        ("", "half"),
        ("admin\0x", "half"),  # to a C string, this is the admin
        ("m\udfff", "half"),
    ],
)
def test_what_would_not_arrive_whole_is_refused(provider: Mosquitto, id: str, secret: str) -> None:
    """A NUL would end the text inside the plugin, which would call half of it success."""
    with pytest.raises(Permanent) as failed:
        provider.set_secret(Identity(id=id, username=id), Secret(secret))
    assert failed.value.reason is Reason.PROVIDER_REFUSED
    assert "half" not in failed.value.message


@pytest.mark.parametrize(
    ("error", "changes", "kind", "reason"),
    [
        ("Client not found", True, Permanent, Reason.KEY_UNKNOWN),
        ("Client not found", False, Permanent, Reason.KEY_UNKNOWN),
        ("Empty password is not allowed", True, Permanent, Reason.PROVIDER_REFUSED),
        ("Invalid/missing password", True, Permanent, Reason.PROVIDER_REFUSED),
        ("Unknown command", False, Permanent, Reason.PROVIDER_REFUSED),
        ("Internal error", True, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        ("Internal error", False, Transient, Reason.PROVIDER_UNAVAILABLE),
        ("Out of memory", True, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
    ],
)
def test_what_the_plugin_says(error: str, changes: bool, kind: type[RotatorError], reason: Reason) -> None:
    """Only its own faults leave open whether a change took effect."""
    meant = refusal("broker: command", error, changes=changes)
    assert (kind, reason) == (type(meant), meant.reason)
    assert meant.message.startswith(f"broker: command: {error}")
