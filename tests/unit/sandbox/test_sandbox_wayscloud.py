"""The WAYSCloud simulator: two generations over the same devices, strict about what each takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import httpx
import pytest

from rotator.sandbox.rest_platform import PasswordAnswer, Refusal
from rotator.sandbox.wayscloud import ERROR_SHAPES, WaysCloudPlatform
from rotator.sandbox.wayscloud_state import WaysCloudState

DEVICES = "/v1/iot/devices"
OLD = {"name": "Smart Thermostat", "type": "actuator"}
NEW = {"device_id": "temp-sensor-01", "name": "Temperature Sensor #1"}


@pytest.fixture
def told() -> list[dict[str, str]]:
    """What the broker heard."""
    return []


@pytest.fixture
def state(told: list[dict[str, str]]) -> WaysCloudState:
    """An account without devices."""

    def listen(live: Mapping[str, str]) -> None:
        told.append(dict(live))

    return WaysCloudState(now=lambda: datetime(2026, 3, 24, 12, tzinfo=UTC), on_change=listen)


@pytest.fixture
def platform() -> Iterator[WaysCloudPlatform]:
    """The platform over HTTP."""
    with WaysCloudPlatform() as running:
        yield running


@pytest.fixture
def old(platform: WaysCloudPlatform) -> Iterator[httpx.Client]:
    """Asks as the old generation."""
    with httpx.Client(base_url=platform.url, headers={"Authorization": f"Bearer {platform.token}"}) as client:
        yield client


@pytest.fixture
def new(platform: WaysCloudPlatform) -> Iterator[httpx.Client]:
    """Asks as the new generation."""
    with httpx.Client(base_url=platform.url, headers={"X-API-Key": platform.new_token}) as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"name": "x" * 3},
        {"type": "sensor"},
        {**OLD, "name": "xy"},
        {**OLD, "name": "x" * 101},
        {**OLD, "type": "ESP32"},
        {**OLD, "metadata": []},
        {**OLD, "device_id": "mine"},
        {**OLD, "device_type": "sensor"},
    ],
)
def test_an_old_body_that_is_not_allowed_makes_nothing(state: WaysCloudState, body: object) -> None:
    """422, and the list stays empty; the new generation's fields are unknown."""
    with pytest.raises(Refusal) as caught:
        state.create(body, new=False)
    assert 422 == caught.value.status
    assert {} == state.live()


@pytest.mark.parametrize(
    "body",
    [
        None,
        {"name": "x"},
        {"device_id": "x"},
        {**NEW, "device_id": "a b"},
        {**NEW, "type": "sensor"},
        {**NEW, "is_active": "yes"},
        {**NEW, "metadata": {"floor": 2}},
        {**NEW, "deviceType": "x"},
    ],
)
def test_a_new_body_that_is_not_allowed_makes_nothing(state: WaysCloudState, body: object) -> None:
    """422, and the list stays empty; metadata are texts."""
    with pytest.raises(Refusal) as caught:
        state.create(body, new=True)
    assert 422 == caught.value.status
    assert {} == state.live()


def test_only_the_call_that_makes_a_device_shows_its_password(state: WaysCloudState) -> None:
    """Nested in the old generation, flat in the new; nowhere else."""
    first = state.create(OLD, new=False)["mqtt_credentials"]["password"]
    second = state.create(NEW, new=True)["mqtt_password"]
    assert {first, second} == set(state.live().values())
    shown = [
        state.page({}, new=False),
        state.page({}, new=True),
        state.credentials(),
        state.patch(NEW["device_id"], {}),
    ]
    assert first not in str(shown)
    assert second not in str(shown)


def test_an_inactive_device_lets_nobody_in(state: WaysCloudState, told: list[dict[str, str]]) -> None:
    """The broker hears of each change; both generations show it."""
    made = state.create(NEW, new=True)
    on = {made["mqtt_username"]: made["mqtt_password"]}
    state.patch(NEW["device_id"], {"is_active": False})
    assert [("inactive", False)] == [
        (before["status"], after["is_active"])
        for before, after in zip(state.page({}, new=False)["devices"], state.page({}, new=True)["devices"], strict=True)
    ]
    state.patch(NEW["device_id"], {"is_active": True})
    state.delete(NEW["device_id"])
    assert [on, {}, on, {}] == told


def test_an_id_is_taken_once(state: WaysCloudState) -> None:
    """409; and, where so switched, for a while after its device was deleted."""
    state.create(NEW, new=True)
    with pytest.raises(Refusal) as caught:
        state.create(NEW, new=True)
    assert 409 == caught.value.status
    state.delete(NEW["device_id"])
    state.conflicts = 1
    with pytest.raises(Refusal):
        state.create(NEW, new=True)
    state.create(NEW, new=True)


def test_one_device_too_many_is_refused(state: WaysCloudState) -> None:
    """With a code that names the limit, and a status that looks like a throttle's."""
    state.plan_limits["max_devices"] = 1
    state.create(OLD, new=False)
    with pytest.raises(Refusal) as caught:
        state.create(NEW, new=True)
    assert (429, "DEVICE_LIMIT_REACHED") == (caught.value.status, caught.value.body["error"]["code"])  # type: ignore[index]  # a JSON object
    assert (1, 100.0) == (state.quota()["usage"]["current_devices"], state.quota()["percentage_used"]["devices"])


def test_an_unusable_password_is_not_the_brokers(state: WaysCloudState) -> None:
    """The answer looks well all the same."""
    made = state.create(NEW, new=True, answer=PasswordAnswer.UNUSABLE_PASSWORD)
    assert made["mqtt_password"] not in state.live().values()


def test_pages_of_at_most_100(state: WaysCloudState) -> None:
    """In either order, with a total; 50 unless asked otherwise."""
    ids = [state.create({**NEW, "device_id": str(number)}, new=True)["device_id"] for number in range(120)]
    state.newest_first = False
    pages = [state.page({"limit": "100", "offset": offset}, new=True) for offset in ("0", "100", "200")]
    assert [100, 20, 0] == [len(page["devices"]) for page in pages]
    assert [120, 120, 120] == [page["total"] for page in pages]
    assert ids == [row["device_id"] for page in pages for row in page["devices"]]
    state.newest_first = True
    assert ids[::-1][:50] == [row["device_id"] for row in state.page({}, new=True)["devices"]]
    state.patch("7", {"is_active": False})
    assert ["7"] == [row["device_id"] for row in state.page({"status": "inactive"}, new=False)["devices"]]
    for query in ({"limit": "101"}, {"limit": "0"}, {"offset": "-1"}, {"page": "1"}):
        with pytest.raises(Refusal):
            state.page(query, new=True)


def test_errors_have_each_of_the_documented_shapes(state: WaysCloudState) -> None:
    """`error` with code and message, or `detail` as text, object or list."""
    found = []
    for state.error_shape in ERROR_SHAPES:
        with pytest.raises(Refusal) as caught:
            state.device("x")
        found.append(caught.value.body)
    text = "Device x not found"
    assert [
        {"error": {"code": "DEVICE_NOT_FOUND", "message": text, "details": {}}},
        {"detail": text},
        {"detail": {"code": "DEVICE_NOT_FOUND", "message": text}},
        {"detail": [{"loc": ["body"], "msg": text, "type": "device_not_found"}]},
    ] == found


def test_a_key_works_in_its_own_generations_header_alone(platform: WaysCloudPlatform) -> None:
    """Old: Bearer. New: X-API-Key, or another kind of token as a Bearer."""
    shown = [
        {"Authorization": f"Bearer {platform.token}"},
        {"X-API-Key": platform.new_token},
        {"Authorization": f"Bearer {platform.bearer_token}"},
        {"X-API-Key": platform.token},
        {"Authorization": f"Bearer {platform.new_token}"},
        {"Authorization": f"bearer {platform.token}"},
        {},
    ]
    statuses = [httpx.get(platform.url + DEVICES, headers=headers).status_code for headers in shown]
    assert [200, 200, 200, 401, 401, 401, 401] == statuses


def test_each_generation_has_its_own_words(old: httpx.Client, new: httpx.Client) -> None:
    """The same device; PATCH is the new one's alone."""
    made = old.post(DEVICES, json=OLD)
    id = made.json()["device_id"]
    assert (201, id, id) == (made.status_code, *[made.json()["mqtt_credentials"][x] for x in ("username", "client_id")])
    assert {"type", "status"} <= old.get(f"{DEVICES}/{id}").json().keys()
    assert {"device_type", "is_active"} <= new.get(f"{DEVICES}/{id}").json().keys()
    assert 405 == old.patch(f"{DEVICES}/{id}", json={"is_active": False}).status_code
    assert not new.patch(f"{DEVICES}/{id}", json={"is_active": False}).json()["is_active"]
    assert (204, b"") == ((gone := new.delete(f"{DEVICES}/{id}")).status_code, gone.content)
    assert [404, 404] == [client.delete(f"{DEVICES}/{id}").status_code for client in (old, new)]


def test_what_one_generation_does_not_serve(platform: WaysCloudPlatform, new: httpx.Client) -> None:
    """A switch, since both are documented for one of them only; the same for a list without a total."""
    platform.not_served = frozenset({"quota", "credentials"})
    platform.bare_list = True
    assert [404, 404] == [new.get(f"/v1/iot/{name}").status_code for name in ("quota", "credentials")]
    assert [] == new.get(DEVICES).json()


def test_the_old_generation_needs_its_content_type(old: httpx.Client, platform: WaysCloudPlatform) -> None:
    """A body that is not declared as JSON is none."""
    assert 422 == old.post(DEVICES, content=b'{"name":"Smart Thermostat","type":"actuator"}').status_code
    assert [] == platform.keys()
