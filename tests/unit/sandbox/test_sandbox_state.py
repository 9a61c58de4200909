"""The platform's rules: which token is live at the broker at which moment."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest

from rotator.sandbox.faults import Answer
from rotator.sandbox.haltian_state import MQTT_ROLE, ApiKey, Organization, PlatformState, Refusal

START = datetime(2026, 3, 24, 10, 0, 0, 654321, tzinfo=UTC)


class Doors:
    """A sink that remembers which token lets whom in, and that fails when it is told nonsense."""

    def __init__(self) -> None:
        self.open: dict[str, str] = {}

    def grant(self, username: str, token: str) -> None:
        assert token
        assert self.open.get(username) != token, "granted twice"
        self.open[username] = token

    def revoke(self, username: str) -> None:
        self.open.pop(username, None)


class World:
    """A state with its clock, doors and one organization."""

    def __init__(self) -> None:
        self.now, self.doors = START, Doors()
        self.state = PlatformState(
            now=lambda: self.now,
            sink=self.doors,
            lifetime=timedelta(minutes=1),
            access_seconds=900,
            refresh_seconds=43200,
        )
        self.acme: Organization = self.state.create_organization("acme")

    def ready_key(self) -> ApiKey:
        """A key with role and link."""
        key = self.state.create_key(self.acme.id, "a")
        self.state.assign_role(key.id, self.acme.id, MQTT_ROLE)
        self.state.link(self.state.create_integration(self.acme.id).id, key.id, self.acme.id)
        return key


@pytest.fixture
def world() -> World:
    """A fresh world."""
    return World()


def test_a_key_comes_in_only_with_role_and_link(world: World) -> None:
    """Steps 3, 4 and 5 of the document: only after the last is the broker told."""
    key = world.state.create_key(world.acme.id, "a")
    seen = [dict(world.doors.open)]
    world.state.assign_role(key.id, world.acme.id, MQTT_ROLE)
    seen.append(dict(world.doors.open))
    world.state.link(world.state.create_integration(world.acme.id).id, key.id, world.acme.id)
    seen.append(dict(world.doors.open))
    assert [{}, {}, {key.id: key.token}] == seen


def test_an_inactive_integration_lets_nobody_in(world: World) -> None:
    """The link counts only while the integration is active."""
    key = world.state.create_key(world.acme.id, "a")
    world.state.assign_role(key.id, world.acme.id, MQTT_ROLE)
    world.state.link(world.state.create_integration(world.acme.id, None, "inactive").id, key.id, world.acme.id)
    assert world.doors.open == {}


def test_another_role_is_not_enough(world: World) -> None:
    """Only MqttIntegrator opens the broker."""
    key = world.ready_key()
    world.state.remove_role(key.id)
    world.state.assign_role(key.id, world.acme.id, "Viewer")
    assert world.doors.open == {}


def test_a_refresh_replaces_the_token_at_once(world: World) -> None:
    """When the refresh returns, the broker knows the new token and no longer the old one."""
    key = world.ready_key()
    old = key.token
    new = world.state.refresh_key(key.id, world.acme.id).token
    assert (True, {key.id: new}) == (new != old, world.doors.open)


def test_a_token_dies_with_its_time(world: World) -> None:
    """At `expiresAt` the broker forgets the token; a refresh brings the key back."""
    key = world.ready_key()
    world.now = key.expires_at
    world.state.end_expired()
    closed = dict(world.doors.open)
    world.state.refresh_key(key.id, world.acme.id)
    assert ({}, {key.id: key.token}) == (closed, world.doors.open)


def test_deleting_and_revoking_close_the_door(world: World) -> None:
    """Both end the key at the broker; the revoked one stays in the list."""
    deleted, revoked = world.ready_key(), world.ready_key()
    world.state.delete_key(deleted.id)
    world.state.revoke_key(revoked.id)
    assert ({}, [revoked.id]) == (world.doors.open, [key.id for key in world.state.keys(world.acme.id)])


def test_a_revoked_key_is_not_refreshed(world: World) -> None:
    """The platform says no."""
    key = world.ready_key()
    world.state.revoke_key(key.id)
    with pytest.raises(Refusal):
        world.state.refresh_key(key.id, world.acme.id)


def test_an_unusable_token_is_unknown_to_the_broker(world: World) -> None:
    """With that fault both tokens are dead."""
    key = world.ready_key()
    old = key.token
    new = world.state.refresh_key(key.id, world.acme.id, Answer.UNUSABLE_TOKEN).token
    assert not {old, new} & set(world.doors.open.values())


def test_the_token_is_a_jwt_with_the_times_of_the_answer(world: World) -> None:
    """iat and exp are issuedAt and expiresAt in whole seconds, sub is the key's id."""
    key = world.ready_key()
    body = key.token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    expected = (key.id, int(START.timestamp()), int(START.timestamp()) + 60)
    assert expected == (claims["sub"], claims["iat"], claims["exp"])


def test_no_repr_shows_a_token(world: World) -> None:
    """Neither key nor session nor user prints its secret."""
    key = world.ready_key()
    user = world.state.create_user("e", "made-up-password", world.acme)
    session = world.state.login("e", "acme", "made-up-password")
    shown = f"{key!r} {session!r} {user!r}"
    hidden = (key.token, session.access_token, session.refresh_token, "made-up-password")
    assert [secret for secret in hidden if secret in shown] == []


def test_a_refresh_token_works_once(world: World) -> None:
    """It is spent by its use, and so is the access token beside it."""
    world.state.create_user("e", "p", world.acme)
    first = world.state.login("e", "acme", "p")
    world.state.renew_session(world.acme.id, first.refresh_token)
    with pytest.raises(Refusal):
        world.state.renew_session(world.acme.id, first.refresh_token)
    with pytest.raises(Refusal):
        world.state.authenticate(f"Bearer {first.access_token}")


def test_a_refresh_token_ends(world: World) -> None:
    """After `refreshExpiresIn` only a login helps."""
    world.state.create_user("e", "p", world.acme)
    session = world.state.login("e", "acme", "p")
    world.now += timedelta(seconds=43200)
    with pytest.raises(Refusal):
        world.state.renew_session(world.acme.id, session.refresh_token)
