"""The Iotistica simulator alone, by plain HTTP: strict about both generations, its clocks and caches its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from rotator.jwt import unverified_expiry
from rotator.sandbox.iotistica import Cut, Faults, Generation, IotisticaAnswer, IotisticaPlatform, rotation_topic

NOON = datetime(2026, 3, 24, 12, tzinfo=UTC)


class Cloud(IotisticaPlatform):
    """A platform at a time that a test moves, with a client of its own."""

    def __init__(self, generation: Generation) -> None:
        self.at = NOON
        self.told: list[dict[str, str]] = []
        self.published: list[tuple[str, str]] = []
        super().__init__(
            generation=generation,
            now=lambda: self.at,
            on_change=lambda live: self.told.append(dict(live)),
            publish=lambda topic, payload: self.published.append((topic, payload)),
        )
        self.client = httpx.Client()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of one call."""
        shown = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.client.request(method, f"{self.url}/api/v1{path}", json=body, headers=shown)
        return answer.status_code, answer.json()

    def as_admin(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """The same with a new login."""
        _, answer = self.ask("POST", "/auth/login", self.credentials())
        token = answer.get("data", answer)["accessToken"]
        return self.ask(method, path, body, Authorization=f"Bearer {token}")

    def credentials(self) -> dict[str, str]:
        """The body of a login of its generation."""
        name = "email" if self.generation is Generation.DOCUMENT else "username"
        return {name: self.login, "password": self.password}


@pytest.fixture(params=list(Generation))
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """A cloud of each generation."""
    with Cloud(request.param) as running:
        yield running
        running.client.close()


@pytest.fixture
def document() -> Iterator[Cloud]:
    """A cloud as the document has it."""
    with Cloud(Generation.DOCUMENT) as running:
        yield running
        running.client.close()


@pytest.fixture
def source() -> Iterator[Cloud]:
    """A cloud as the server's source has it."""
    with Cloud(Generation.SOURCE) as running:
        yield running
        running.client.close()


def test_each_generation_has_its_own_login(document: Cloud, source: Cloud) -> None:
    """The document's answer is flat and names a life; the source's is not and does not."""
    status, flat = document.ask("POST", "/auth/login", document.credentials())
    assert (200, {"accessToken", "refreshToken", "expiresIn"}, 3600) == (status, flat.keys(), flat["expiresIn"])
    status, nested = source.ask("POST", "/auth/login", source.credentials())
    assert (200, {"message", "data"}) == (status, nested.keys())
    assert {"accessToken", "refreshToken", "mustChangePassword", "user"} == nested["data"].keys()
    assert unverified_expiry(nested["data"]["accessToken"]) == NOON + timedelta(minutes=15)
    assert unverified_expiry(nested["data"]["refreshToken"]) == NOON + timedelta(days=7)
    for cloud, other in ((document, source), (source, document)):
        status, refused = cloud.ask("POST", "/auth/login", other.credentials())
        assert (400, {"error", "message"}) == (status, refused.keys())


def test_a_wrong_password_is_refused(cloud: Cloud) -> None:
    """401, as for a user that does not exist; more fields than there are is 400."""
    assert 401 == cloud.ask("POST", "/auth/login", cloud.credentials() | {"password": "x"})[0]
    assert 400 == cloud.ask("POST", "/auth/login", cloud.credentials() | {"remember": True})[0]
    assert 400 == cloud.ask("POST", "/auth/login")[0]


def test_a_refresh_gives_a_pair_or_an_access_token(document: Cloud, source: Cloud) -> None:
    """The document's old refresh token is spent; the source's serves again."""
    for cloud, given, again in (
        (document, {"accessToken", "refreshToken", "expiresIn"}, 401),
        (source, {"accessToken"}, 200),
    ):
        _, answer = cloud.ask("POST", "/auth/login", cloud.credentials())
        token = answer.get("data", answer)["refreshToken"]
        status, answer = cloud.ask("POST", "/auth/refresh", {"refreshToken": token})
        assert (200, given) == (status, answer.get("data", answer).keys())
        assert again == cloud.ask("POST", "/auth/refresh", {"refreshToken": token})[0]
        assert 401 == cloud.ask("POST", "/auth/refresh", {"refreshToken": token[:-2]})[0]
        cloud.at += timedelta(days=8)
        assert (
            401
            == cloud.ask(
                "POST", "/auth/refresh", {"refreshToken": answer.get("data", answer).get("refreshToken", token)}
            )[0]
        )


def test_an_access_token_ends(cloud: Cloud) -> None:
    """Forged, ended, a refresh token in its place, of somebody who is no admin: refused."""
    _, answer = cloud.ask("POST", "/auth/login", cloud.credentials())
    tokens = answer.get("data", answer)
    access = tokens["accessToken"]
    head, _, signature = access.rpartition(".")
    assert 200 == cloud.ask("GET", "/auth/api-keys", Authorization=f"Bearer {access}")[0]
    for wrong in (f"{head}.{signature[::-1]}", tokens["refreshToken"], "x"):
        assert 401 == cloud.ask("GET", "/auth/api-keys", Authorization=f"Bearer {wrong}")[0]
    assert 401 == cloud.ask("GET", "/auth/api-keys")[0]
    cloud.desk.users[0].role = "viewer"
    assert 403 == cloud.as_admin("GET", "/auth/api-keys")[0]
    cloud.at += cloud.desk.access_life
    assert 401 == cloud.ask("GET", "/agents", Authorization=f"Bearer {access}")[0]


def test_api_keys_are_made_listed_and_revoked(cloud: Cloud) -> None:
    """The list shows whole keys and times without a zone; a name counts once; a revoked key stays in the list."""
    agent, device_key = cloud.add_agent("gateway-01")
    body = {"name": "a", "agentUuid": agent.uuid} if cloud.generation is Generation.DOCUMENT else {"name": "a"}
    status, made = cloud.as_admin("POST", "/auth/api-keys", body)
    row = made["key"] if cloud.generation is Generation.SOURCE else made
    key = row["key"] if cloud.generation is Generation.SOURCE else row["apiKey"]
    assert (201, "2026-03-24T12:00:00.000") == (status, row["created_at"])
    assert {device_key, key} == cloud.live().keys() == cloud.told[-1].keys()
    assert 400 == cloud.as_admin("POST", "/auth/api-keys", body)[0]
    _, listed = cloud.as_admin("GET", "/auth/api-keys")
    assert [(key, True)] == [(each["key"], each["is_active"]) for each in listed["keys"]]
    assert 200 == cloud.as_admin("DELETE", f"/auth/api-keys/{row['id']}")[0]
    assert {device_key} == cloud.live().keys()
    _, listed = cloud.as_admin("GET", "/auth/api-keys")
    assert [False] == [each["is_active"] for each in listed["keys"]]
    assert 404 == cloud.as_admin("DELETE", "/auth/api-keys/99")[0]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/auth/api-keys", {"Name": "a"}),
        ("POST", "/auth/api-keys", {}),
        ("POST", "/auth/api-keys", {"name": 1}),
        ("POST", "/auth/api-keys", []),
        ("POST", "/auth/mqtt-users", {"username": "a"}),
        ("POST", "/auth/mqtt-users", {"username": "a", "password": "b", "isActive": True}),
        ("PUT", "/auth/mqtt-users/1", {}),
        ("PUT", "/auth/mqtt-users/1", {"password": ""}),
        ("PUT", "/auth/mqtt-users/1", {"is_active": "true"}),
    ],
)
def test_bodies_are_checked(cloud: Cloud, method: str, path: str, body: object) -> None:
    """Unknown fields, wrong casing, missing and mistyped ones: 400 with `error` and `message`."""
    cloud.add_mqtt_user("user", "old")
    status, answer = cloud.as_admin(method, path, body)
    assert (400, {"error", "message"}) == (status, answer.keys())
    assert {"user": "old"} == cloud.live()


def test_what_is_no_route_is_404(document: Cloud, source: Cloud) -> None:
    """Each generation knows only its own paths for provisioning; the document has no list of keys there."""
    assert 404 == document.as_admin("GET", "/provision/keys")[0]
    assert 404 == document.as_admin("POST", "/provisioning-keys", {})[0]
    assert 404 == source.as_admin("POST", "/provision/keys")[0]
    assert 404 == source.as_admin("PATCH", "/auth/mqtt-users/1", {})[0]


def test_mqtt_users_change_their_password(cloud: Cloud) -> None:
    """A PUT without the flags resets them, or keeps them, by the switch; who is inactive does not come in."""
    user = cloud.add_mqtt_user("agent_1", "old", is_superuser=True)
    cloud.as_admin("PUT", f"/auth/mqtt-users/{user.id}", {"password": "new", "is_superuser": True, "is_active": True})
    assert ({"agent_1": "new"}, True) == (cloud.live(), user.is_superuser)
    cloud.as_admin("PUT", f"/auth/mqtt-users/{user.id}", {"password": "newer"})
    assert user.is_superuser is False
    cloud.state.put_forgets_flags = False
    cloud.as_admin("PUT", f"/auth/mqtt-users/{user.id}", {"is_active": False})
    cloud.as_admin("PUT", f"/auth/mqtt-users/{user.id}", {"password": "newest"})
    assert {} == cloud.live()
    rule = {"topic": "lifts/#", "access": 1}
    assert 201 == cloud.as_admin("POST", f"/auth/mqtt-users/{user.id}/acls", rule)[0]
    assert 400 == cloud.as_admin("POST", f"/auth/mqtt-users/{user.id}/acls", {**rule, "access": 4})[0]
    assert [rule] == [
        {name: each[name] for name in rule} for each in cloud.as_admin("GET", "/auth/mqtt-users")[1]["users"][0]["acls"]
    ]
    assert 200 == cloud.as_admin("DELETE", f"/auth/mqtt-users/{user.id}")[0]
    assert 404 == cloud.as_admin("DELETE", f"/auth/mqtt-users/{user.id}")[0]


def test_a_device_key_is_told_over_mqtt_alone(cloud: Cloud) -> None:
    """The answer holds dates and no key; the message holds it; the old key is refused at once."""
    agent, old = cloud.add_agent("gateway-01")
    status, answer = cloud.ask("POST", f"/device/{agent.uuid}/rotate-key", X_Device_API_Key=old)
    (topic, payload) = cloud.published[0]
    new = json.loads(payload)["new_api_key"]
    assert (200, {"expires_at", "grace_period_ends", "old_key_valid_until"}) == (status, answer["data"].keys())
    assert (rotation_topic(agent.uuid), False) == (topic, new in json.dumps(answer))
    assert {new: agent.mqtt_password} == cloud.live()
    assert 401 == cloud.ask("GET", f"/device/{agent.uuid}/state", X_Device_API_Key=old)[0]
    assert 200 == cloud.ask("GET", f"/device/{agent.uuid}/state", X_Device_API_Key=new)[0]
    assert 401 == cloud.ask("GET", f"/device/{agent.uuid}/state")[0]
    assert 404 == cloud.ask("GET", "/device/nobody/state", X_Device_API_Key=new)[0]


def test_a_sixth_rotation_in_a_quarter_of_an_hour_is_refused(cloud: Cloud) -> None:
    """429, with the delay as text; another device has a count of its own."""
    agents = [cloud.add_agent(name)[0] for name in ("a", "b")]
    statuses = []
    for _ in range(6):
        key = next(each.key for each in reversed(cloud.state.passes) if each.agent == agents[0].uuid)
        status, answer = cloud.ask("POST", f"/device/{agents[0].uuid}/rotate-key", X_Device_API_Key=key)
        statuses.append(status)
        cloud.at += timedelta(seconds=10)
    assert ([200] * 5 + [429], "850") == (statuses, answer["retryAfter"])
    other = next(each.key for each in cloud.state.passes if each.agent == agents[1].uuid)
    assert 200 == cloud.ask("POST", f"/device/{agents[1].uuid}/rotate-key", X_Device_API_Key=other)[0]


def test_a_cache_keeps_the_old_and_refuses_the_new(cloud: Cloud) -> None:
    """For as long as the switch says, at the broker and over HTTP."""
    cloud.state.device_key_cache, cloud.state.api_key_cache = 300.0, 60.0
    agent, old = cloud.add_agent("gateway-01")
    api_key = cloud.add_key("a", agent=agent.uuid)
    cloud.ask("POST", f"/device/{agent.uuid}/rotate-key", X_Device_API_Key=old)
    cloud.state.revoke_api_key(api_key.id)
    new = json.loads(cloud.published[0][1])["new_api_key"]
    assert {old, api_key.key} == cloud.live().keys()
    assert 401 == cloud.ask("GET", f"/device/{agent.uuid}/state", X_Device_API_Key=new)[0]
    cloud.at += timedelta(seconds=60)
    assert {old} == cloud.live().keys()
    cloud.at += timedelta(seconds=240)
    assert {new} == cloud.live().keys()
    cloud.state.announce()
    assert {new} == cloud.told[-1].keys()


def test_an_agent_registers_itself_once(document: Cloud, source: Cloud) -> None:
    """A provisioning key is good for one agent, before it ends, in the limits of the licence."""
    status, made = document.as_admin("POST", "/provision/keys")
    assert (201, {"key", "expiresAt"}) == (status, made.keys())
    body = {"key": made["key"], "agentName": "gateway-01"}
    status, agent = document.ask("POST", "/provision/agent", body)
    assert (200, {"apiKey", "agentUuid"}) == (status, agent.keys())
    assert agent["apiKey"] in document.live()
    assert 401 == document.ask("POST", "/provision/agent", body)[0]
    source.api.fleet = "f"
    assert 400 == source.as_admin("POST", "/provisioning-keys", {"maxDevices": 1})[0]
    _, made = source.as_admin("POST", "/provisioning-keys", {"maxDevices": 1, "expiresInDays": 1, "fleetUuid": "f"})
    device = {"uuid": "u", "deviceName": "n", "deviceType": "t", "deviceApiKey": "k"}
    assert 401 == source.ask("POST", "/agent/register", device)[0]
    source.state.device_limit = 0
    assert 403 == source.ask("POST", "/agent/register", device, X_Provisioning_Key=made["key"])[0]
    source.state.device_limit = 1
    _, made = source.as_admin("POST", "/provisioning-keys", {"maxDevices": 1, "expiresInDays": 1, "fleetUuid": "f"})
    assert 200 == source.ask("POST", "/agent/register", device, X_Provisioning_Key=made["key"])[0]
    assert {"k", "agent_u"} == source.live().keys()


def test_the_licence_ends(cloud: Cloud) -> None:
    """It is a JWT; from its `exp` on nothing new is registered."""
    assert NOON + timedelta(days=365) == unverified_expiry(cloud.licence())
    cloud.at += timedelta(days=365)
    with pytest.raises(Exception, match="license"):
        cloud.add_agent("late")


def test_logins_have_a_limit_of_their_own(cloud: Cloud) -> None:
    """Ten a minute; the header can be left out, so that only the text in the body says how long."""
    statuses = [cloud.ask("POST", "/auth/login", cloud.credentials())[0] for _ in range(11)]
    assert [200] * 10 + [429] == statuses
    cloud.retry_after_header = False
    answer = cloud.client.post(f"{cloud.url}/api/v1/auth/login", json=cloud.credentials())
    assert ("60", None) == (answer.json()["retryAfter"], answer.headers.get("Retry-After"))
    cloud.at += timedelta(seconds=60)
    assert 200 == cloud.ask("POST", "/auth/login", cloud.credentials())[0]


def test_faults_come_before_or_after_the_effect(cloud: Cloud) -> None:
    """Cut, status, half an answer; only the operation that is named, and only so often."""
    agent, key = cloud.add_agent("gateway-01")
    path, headers = f"/device/{agent.uuid}/rotate-key", {"X_Device_API_Key": key}
    cloud.faults = Faults(operations=frozenset({"rotate_key"}), status=503, times=1)
    with pytest.raises(json.JSONDecodeError):
        cloud.ask("POST", path, **headers)
    assert [] == cloud.published
    cloud.faults = Faults(operations=frozenset({"rotate_key"}), cut=Cut.AFTER_EFFECT, times=1)
    with pytest.raises(httpx.TransportError):
        cloud.ask("POST", path, **headers)
    assert 1 == len(cloud.published)
    assert 2 == cloud.count("rotate_key")
    cloud.faults = Faults(operations=frozenset({"device_state"}), truncate=True, times=1)
    headers = {"X_Device_API_Key": json.loads(cloud.published[0][1])["new_api_key"]}
    with pytest.raises(json.JSONDecodeError):
        cloud.ask("GET", f"/device/{agent.uuid}/state", **headers)
    assert 200 == cloud.ask("GET", f"/device/{agent.uuid}/state", **headers)[0]


@pytest.mark.parametrize("answer", [IotisticaAnswer.UNUSABLE_SECRET, IotisticaAnswer.SILENT, IotisticaAnswer.GARBLED])
def test_what_is_told_of_a_new_key_can_be_switched(cloud: Cloud, answer: IotisticaAnswer) -> None:
    """The old key is dead in each case."""
    agent, key = cloud.add_agent("gateway-01")
    cloud.answer = answer
    assert 200 == cloud.ask("POST", f"/device/{agent.uuid}/rotate-key", X_Device_API_Key=key)[0]
    assert key not in cloud.live()
    assert (answer is IotisticaAnswer.SILENT) == (not cloud.published)
    assert (
        not any(new in payload for new in cloud.live() for _, payload in cloud.published)
        or answer is IotisticaAnswer.SILENT
    )
