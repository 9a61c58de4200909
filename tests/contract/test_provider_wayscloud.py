"""The WAYSCloud provider over real sockets: the sandbox's platform, and a scripted endpoint for odd answers."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from contract.graphql_double import Scripted
from contract.printed_requests import printed, sent
from contract.rest_double import RestCall, RestDouble
from rotator.clock import SystemClock
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Identity, Quota, RequestDone, Strategy
from rotator.ports import Deleting, InPlace, Metered, Provisioning, Replacing
from rotator.providers import PROVIDERS, Site, make_client
from rotator.providers.wayscloud import WaysCloudSettings
from rotator.reasons import Reason
from rotator.sandbox.wayscloud import ERROR_SHAPES, Cut, Faults, PasswordAnswer, WaysCloudPlatform
from rotator.secret_refs import EnvRef

OLD_TOKEN, NEW_TOKEN = "wayscloud_iot_prod_YOUR_API_KEY", "wayscloud_api_made-up"
PASSWORD = "mqtt_secure_password_xyz_0123456789"
MARKER, NEXT_MARKER = "rotator-0123456789ab-1", "rotator-0123456789ab-2"
METADATA = {"location": "living_room", "model": "DHT22"}
ID = "iot_dev_abc123"
Build = Callable[..., Any]

# "MQTT Credentials", as it is printed.
GET_CREDENTIALS = """curl -X GET https://api.wayscloud.services/v1/iot/credentials \\
-H "Authorization: Bearer wayscloud_iot_prod_YOUR_API_KEY\""""
CREDENTIALS = b"""{
"broker": "mqtt.wayscloud.services",
"ports": {
"mqtt": 1883,
"mqtts": 8883,
"ws": 8083,
"wss": 8084
},
"protocols": ["mqtt", "mqtts", "ws", "wss"],
"mqtt_versions": ["3.1.1", "5.0"],
"devices": [
{
"device_id": "iot_dev_abc123",
"name": "Temperature Sensor 01",
"username": "iot_dev_abc123",
"client_id": "iot_dev_abc123",
"status": "active"
},
{
"device_id": "iot_dev_xyz789",
"name": "Smart Thermostat",
"username": "iot_dev_xyz789",
"client_id": "iot_dev_xyz789",
"status": "active"
}
]
}"""
GET_QUOTA = """curl -X GET https://api.wayscloud.services/v1/iot/quota \\
-H "Authorization: Bearer wayscloud_iot_prod_YOUR_API_KEY\""""
QUOTA = b"""{
"plan": "professional",
"limits": {
"max_devices": 1000,
"max_messages_per_month": 10000000,
"max_bandwidth_gb": 100,
"max_message_size_kb": 1024,
"messages_per_second_per_device": 100
},
"usage": {
"current_devices": 42,
"messages_this_month": 1523456,
"bandwidth_used_gb": 12.5
},
"percentage_used": {
"devices": 4.2,
"messages": 15.2,
"bandwidth": 12.5
},
"reset_date": "2025-12-01T00:00:00Z"
}"""


@pytest.fixture
def done() -> list[RequestDone]:
    """What the provider reported of its requests."""
    return []


@pytest.fixture
def platform() -> Iterator[WaysCloudPlatform]:
    """An account without devices."""
    with WaysCloudPlatform() as running:
        yield running


@pytest.fixture
def double() -> Iterator[RestDouble]:
    """A scripted endpoint with one device, room for more, and nothing else."""
    with RestDouble() as served:
        answers = {
            "devices": Scripted(body={"devices": [row()], "total": 1, "limit": 100, "offset": 0}),
            ID: Scripted(body=row()),
            "quota": Scripted(body=QUOTA),
            "credentials": Scripted(body=CREDENTIALS),
        }

        def get(call: RestCall) -> Scripted:
            return answers.get(call.path.partition("?")[0].rpartition("/")[2], Scripted(status=404, body={}))

        served.script["GET"] = [get]
        yield served


@pytest.fixture
def build(done: list[RequestDone]) -> Iterator[Build]:
    """Makes providers from their section of the configuration, and closes them."""
    made: list[Any] = []

    def make(where: WaysCloudPlatform | RestDouble, token: str | Callable[[], str] = "", **more: Any) -> Any:
        usual = where.token if isinstance(where, WaysCloudPlatform) else OLD_TOKEN
        site = Site(
            name="ways",
            clock=SystemClock(),
            on_request=done.append,
            reveal=lambda ref: token if callable(token) else lambda: token or usual,
            client=lambda part: make_client(),
        )
        settings = WaysCloudSettings(kind="wayscloud", url=where.url, token=EnvRef(env="TOKEN"), **more)
        made.append(PROVIDERS["wayscloud"].build(site, settings))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


def row(**fields: object) -> dict[str, object]:
    """The scripted endpoint's device, as the old generation's list shows it."""
    usual = {"device_id": ID, "name": "Temperature Sensor 01", "type": "sensor", "status": "active"}
    return {**usual, "metadata": METADATA, "created_at": "2025-11-01T10:00:00Z", **fields}


def identity(id: str = ID) -> Identity:
    """Who a device usually is."""
    return Identity(id=id, username=id, client_id=id)


def raised(call: Callable[[], object]) -> RotatorError:
    """The error that a call ends with."""
    with pytest.raises(RotatorError) as caught:
        call()
    return caught.value


# --- the document's examples ---------------------------------------------------------------------------------------


def test_the_credentials_are_read_as_the_document_prints_them(double: RestDouble, build: Build) -> None:
    """Each device's login is what the document's own programs connect with."""
    rows = [row(), row(device_id="iot_dev_xyz789", name="Smart Thermostat")]
    answers = {
        "/v1/iot/credentials": CREDENTIALS,
        "/v1/iot/devices": json.dumps({"devices": rows, "total": 2}).encode(),
    }
    double.script["GET"] = [lambda call: Scripted(body=answers[call.path.partition("?")[0]])]
    assert [identity("iot_dev_abc123"), identity("iot_dev_xyz789")] == [
        key.identity for key in build(double).list_keys()
    ]
    assert printed(GET_CREDENTIALS) == sent(double.calls)[-1]


def test_the_quota_is_read_as_the_document_prints_it(double: RestDouble, build: Build) -> None:
    """Used and limit of devices, messages and bandwidth."""
    expected = [
        Quota(name="devices", used=42, limit=1000),
        Quota(name="messages", used=1523456, limit=10000000),
        Quota(name="bandwidth_gb", used=12.5, limit=100),
    ]
    assert expected == list(build(double).quotas())
    assert [printed(GET_QUOTA)] == sent(double.calls)


def test_the_simulator_answers_what_the_document_prints(platform: WaysCloudPlatform) -> None:
    """The same fields, for the same devices; figures are its own."""
    platform.state.newest_first = False
    for number, name in enumerate(["Temperature Sensor 01", "Smart Thermostat"]):
        platform.add_new_key(["iot_dev_abc123", "iot_dev_xyz789"][number], name)
    assert json.loads(CREDENTIALS) == platform.state.credentials()
    usage = {"current_devices": 42, "messages_this_month": 1523456, "bandwidth_used_gb": 12.5}
    percentages = {"devices": 4.2, "messages": 15.2, "bandwidth": 12.5}
    assert json.loads(QUOTA) == {**platform.state.quota(), "usage": usage, "percentage_used": percentages}


def test_the_usual_settings_are_the_documents(platform: WaysCloudPlatform) -> None:
    """1000 requests a minute and 200 more in a burst."""
    settings = WaysCloudSettings(kind="wayscloud", token=EnvRef(env="TOKEN"))
    assert "https://api.wayscloud.services" == settings.url
    assert settings.rate_limit is not None
    limit = settings.rate_limit
    assert (1000, timedelta(minutes=1), 200) == (limit.requests, limit.per, limit.burst)
    assert 1200 == platform.window.most


# --- replace --------------------------------------------------------------------------------------------------------


def test_abilities_of_both_generations(platform: WaysCloudPlatform, build: Build) -> None:
    """Only the new one pauses a device; the key's prefix tells them apart, unless the configuration does."""
    for provider, pauses in (
        (build(platform), False),
        (build(platform, platform.new_token), True),
        (build(platform, platform.bearer_token), True),
        (build(platform, platform.new_token, generation="old"), False),
        (build(platform, generation="new"), True),
    ):
        for port in (Replacing, Deleting, Provisioning, Metered):
            assert isinstance(provider, port)
        assert not isinstance(provider, InPlace)
        able = provider.abilities
        assert (Strategy.REPLACE, False, False, pauses) == (able.strategy, able.kills_old, able.expires, able.pauses)
        assert pauses is provider.deactivates


def test_old_a_second_device_beside_the_first(platform: WaysCloudPlatform, build: Build) -> None:
    """The same name, type, description and metadata, and the marker in the metadata; both are let in."""
    id, password = platform.add_key(metadata=METADATA, description="Living room sensor")
    provider = build(platform)
    first = provider.create(provider.identity(id), MARKER)
    second = provider.create(first.identity, NEXT_MARKER)
    original, _, clone = platform.keys()
    assert {**METADATA, "rotator": NEXT_MARKER} == clone.metadata
    assert (original.name, original.type, original.description) == (clone.name, clone.type, clone.description)
    assert {id: password, second.identity.username: second.secret.reveal()}.items() <= platform.live().items()
    listed = {key.id: key for key in provider.list_keys()}
    assert {id: "", first.identity.id: MARKER, second.identity.id: NEXT_MARKER} == {
        key.id: key.marker for key in listed.values()
    }
    assert (second.identity, second.issued_at) == (
        listed[second.identity.id].identity,
        listed[second.identity.id].issued_at,
    )
    assert ["get", "quota", "create"] == [seen.operation for seen in platform.seen][:3]


def test_new_a_second_device_beside_the_first(platform: WaysCloudPlatform, build: Build) -> None:
    """The marker stands in the id, in the place of an older one; its MQTT username may be another."""
    platform.state.own_usernames = True
    username, password = platform.add_new_key("temp-sensor-01", device_type="ESP32", metadata=METADATA)
    provider = build(platform, platform.new_token)
    first = provider.create(provider.identity("temp-sensor-01"), MARKER)
    second = provider.create(first.identity, NEXT_MARKER)
    id = f"temp-sensor-01-{NEXT_MARKER}"
    assert Identity(id=id, username=f"mqtt-{id}", client_id=id) == second.identity
    clone = platform.key(id)
    assert ("ESP32", METADATA, True) == (clone.type, clone.metadata, clone.active)
    assert {username: password, f"mqtt-{id}": second.secret.reveal()}.items() <= platform.live().items()
    listed = {key.marker: key.identity for key in provider.list_keys()}
    assert {"", MARKER, NEXT_MARKER} == listed.keys()
    assert (second.identity, username) == (listed[NEXT_MARKER], listed[""].username)


def test_a_long_id_leaves_room_for_the_marker(platform: WaysCloudPlatform, build: Build) -> None:
    """64 characters and not one more."""
    platform.add_new_key("x" * 100)
    made = build(platform, platform.new_token).create(identity("x" * 100), MARKER)
    assert (64, True) == (len(made.identity.id), made.identity.id.endswith(f"x-{MARKER}"))


def test_new_a_device_is_paused_and_brought_back(platform: WaysCloudPlatform, build: Build) -> None:
    """Each verb may be repeated; gone is success for all but the one that brings a device back."""
    username, password = platform.add_new_key("a")
    provider = build(platform, platform.new_token)
    for _ in range(2):
        provider.deactivate(identity("a"))
        assert {} == platform.live()
    assert [Reason.KEY_INACTIVE] == [key.problem for key in provider.list_keys()]
    assert Reason.KEY_INACTIVE is raised(lambda: provider.create(identity("a"), MARKER)).reason
    for _ in range(2):
        provider.reactivate(identity("a"))
        assert {username: password} == platform.live()
    for _ in range(2):
        provider.delete("a")
        assert {} == platform.live()
    provider.deactivate(identity("a"))
    assert Reason.KEY_UNKNOWN is raised(lambda: provider.reactivate(identity("a"))).reason
    assert Reason.KEY_UNKNOWN is raised(lambda: provider.create(identity("a"), MARKER)).reason


def test_old_a_device_can_only_be_deleted(platform: WaysCloudPlatform, build: Build) -> None:
    """To pause it is refused clearly, and nothing is asked."""
    id, _ = platform.add_key()
    provider = build(platform)
    for call in (provider.deactivate, provider.reactivate):
        error = raised(partial(call, identity(id)))
        assert (Permanent, Reason.PROVIDER_UNABLE) == (type(error), error.reason)
    assert [] == platform.seen
    for _ in range(2):
        provider.delete(id)
        assert {} == platform.live()


# --- the list -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest_first", [True, False])
def test_the_list_has_all_pages(platform: WaysCloudPlatform, build: Build, newest_first: bool) -> None:
    """100 a page, and the logins in one more request."""
    platform.state.newest_first = newest_first
    ids = {platform.add_key()[0] for _ in range(200)}
    assert ids == {key.id for key in build(platform).list_keys()}
    assert (2, 1) == (platform.count("list"), platform.count("credentials"))


def test_a_bare_list_ends_with_an_empty_page(platform: WaysCloudPlatform, build: Build) -> None:
    """Without a total, a short page may only be one of a server with shorter pages."""
    platform.bare_list = True
    for number in range(101):
        platform.add_new_key(f"d{number}")
    assert 101 == len(build(platform, platform.new_token).list_keys())
    assert 6 == platform.count("list")  # twice, since nothing says how many there are


@pytest.mark.parametrize("change", ["add", "delete"])
def test_pages_of_a_bare_list_may_shift_unseen(platform: WaysCloudPlatform, build: Build, change: str) -> None:
    """It is read until two looks in a row agree."""
    platform.bare_list = True
    for number in range(150):
        platform.add_new_key(f"d{number}")

    def token() -> str:
        if platform.count("list") == 1 and len(platform.keys()) == 150:
            platform.add_new_key("new") if change == "add" else platform.state.delete("d149")
        return platform.new_token

    listed = {key.id for key in build(platform, token).list_keys()}
    there = platform.keys()
    assert {device.id for device in there} == listed
    assert 150 != len(listed)


def test_a_list_that_knows_no_pages_is_read_once(double: RestDouble, build: Build) -> None:
    """It is the same again, whatever the offset."""
    rows = [row(device_id=str(number)) for number in range(3)]
    double.script["GET"] = [lambda call: Scripted(body=rows if "devices" in call.path else json.loads(CREDENTIALS))]
    assert ["0", "1", "2"] == [key.id for key in build(double).list_keys()]


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("change", ["add", "delete"])
def test_pages_that_shift_hide_no_device(
    platform: WaysCloudPlatform, build: Build, newest_first: bool, change: str
) -> None:
    """A device comes or goes while the list is read: it is read again."""
    platform.state.newest_first = newest_first
    ids = [platform.add_key()[0] for _ in range(150)]

    def token() -> str:
        if platform.count("list") == 1 and len(platform.keys()) == 150:
            platform.add_key() if change == "add" else platform.state.delete(ids[149 if newest_first else 0])
        return platform.token

    listed = [key.id for key in build(platform, token).list_keys()]
    there = platform.keys()
    assert sorted(device.id for device in there) == sorted(listed)
    assert 150 != len(listed)


def test_a_list_that_never_holds_still_is_none(platform: WaysCloudPlatform, build: Build) -> None:
    """A device is made before each page: half a list is never taken for a whole one."""
    for _ in range(150):
        platform.add_key()

    def token() -> str:
        platform.add_key()
        return platform.token

    error = raised(build(platform, token).list_keys)
    assert (Transient, Reason.PROVIDER_UNAVAILABLE) == (type(error), error.reason)


def test_logins_that_are_not_told_are_the_usual_ones(platform: WaysCloudPlatform, build: Build) -> None:
    """Where a generation serves no `credentials`, the username is the id."""
    platform.not_served = frozenset({"credentials"})
    platform.add_new_key("a")
    assert [identity("a")] == [key.identity for key in build(platform, platform.new_token).list_keys()]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>welcome</html>",
        {"devices": {}},
        {"devices": [{"name": "x"}], "total": 1},
        {"devices": [row(metadata=[])], "total": 1},
        {"devices": ["x"], "total": 1},
        7,
    ],
)
def test_what_is_no_list_of_devices_is_unreadable(double: RestDouble, build: Build, body: object) -> None:
    """One entry that can't be read makes the whole of it so."""
    double.script["GET"] = [Scripted(body=body)]
    error = raised(build(double).list_keys)
    assert (Transient, Reason.PROVIDER_ANSWER_UNREADABLE) == (type(error), error.reason)


# --- quotas and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ERROR_SHAPES)
def test_a_full_quota_is_named_before_anything_is_made(platform: WaysCloudPlatform, build: Build, shape: str) -> None:
    """With its figures."""
    platform.state.error_shape = shape
    id, _ = platform.add_key()
    platform.state.plan_limits["max_devices"] = 1
    error = raised(lambda: build(platform).create(identity(id), MARKER))
    assert (Permanent, Reason.PROVIDER_QUOTA) == (type(error), error.reason)
    assert "1 of 1 devices" in error.message
    assert 0 == platform.count("create")


@pytest.mark.parametrize("shape", ERROR_SHAPES)
@pytest.mark.parametrize("status", [429, 403, 409])
@pytest.mark.parametrize("new", [True, False])
def test_a_resource_limit_is_no_throttle(
    platform: WaysCloudPlatform, build: Build, shape: str, status: int, new: bool
) -> None:
    """A quota that is not told beforehand, refused in each shape and with each likely status."""
    platform.add_new_key("a", device_type="sensor")
    platform.not_served = frozenset({"quota"})
    platform.state.plan_limits["max_devices"] = 1
    platform.state.error_shape, platform.state.quota_status = shape, status
    provider = build(platform, platform.new_token if new else platform.token)
    error = raised(lambda: provider.create(identity("a"), MARKER))
    assert (Permanent, Reason.PROVIDER_QUOTA) == (type(error), error.reason)
    assert "Device limit reached: 1 of 1 devices" in error.message
    assert [] == list(provider.quotas())


@pytest.mark.parametrize("shape", ERROR_SHAPES)
@pytest.mark.parametrize("retry_after", ["7", "try again in 7 seconds"])
def test_a_throttle_is_no_quota(platform: WaysCloudPlatform, build: Build, shape: str, retry_after: str) -> None:
    """429 with a delay: nothing was made, and it goes by itself."""
    id, _ = platform.add_key()
    platform.state.error_shape = shape
    platform.faults = Faults(operations=frozenset({"create"}), status=429, retry_after=retry_after)
    error = raised(lambda: build(platform).create(identity(id), MARKER))
    assert isinstance(error, Transient)
    assert (Reason.PROVIDER_RATE_LIMITED, timedelta(seconds=7)) == (error.reason, error.retry_after)
    assert 1 == platform.count("create")


def test_the_platforms_own_rate_limit(platform: WaysCloudPlatform, build: Build) -> None:
    """1000 requests a minute and 200 more: 429 with what is left of the minute."""
    platform.window.most = 1
    error = raised(build(platform).list_keys)
    assert isinstance(error, Transient)
    assert error.retry_after is not None
    assert timedelta(0) < error.retry_after <= timedelta(minutes=1)


@pytest.mark.parametrize(
    "quota",
    [
        {"limits": {"max_devices": None}, "usage": {"current_devices": 5}},
        {"limits": {"max_devices": -1}, "usage": {"current_devices": 5}},
        {"limits": {"max_devices": 0}, "usage": {"current_devices": 5}},
        {"limits": {"max_devices": "many"}, "usage": {"current_devices": 5}},
        {"limits": {"max_devices": 10**400}, "usage": {"current_devices": 5}},
        {"limits": {"max_devices": True}, "usage": {"current_devices": 5}},
        {"limits": [], "usage": {}},
        {"plan": "free"},
    ],
)
def test_a_limit_that_is_none_keeps_nobody(double: RestDouble, build: Build, quota: object) -> None:
    """The call itself decides then."""
    double.script["GET"] = [lambda call: Scripted(body=quota if "quota" in call.path else row())]
    double.script["POST"] = [made()]
    assert PASSWORD == build(double).create(identity(), MARKER).secret.reveal()


@pytest.mark.parametrize("status", [500, 429])
def test_a_quota_that_can_not_be_read_makes_nothing(double: RestDouble, build: Build, status: int) -> None:
    """What can't be undone is checked first."""
    double.script["GET"] = [lambda call: Scripted(status=status if "quota" in call.path else 200, body=row())]
    assert Transient is type(raised(lambda: build(double).create(identity(), MARKER)))
    assert ["GET", "GET"] == double.methods()


@pytest.mark.parametrize("shape", ERROR_SHAPES)
def test_the_platforms_words_are_told(platform: WaysCloudPlatform, build: Build, shape: str) -> None:
    """In each shape of an error."""
    platform.state.error_shape = shape
    id, _ = platform.add_key()
    platform.key(id).name = "x"  # shorter than the old API takes now
    error = raised(lambda: build(platform).create(identity(id), MARKER))
    assert (Permanent, Reason.PROVIDER_REFUSED) == (type(error), error.reason)
    assert "name has a value that is not allowed" in error.message


@pytest.mark.parametrize("shape", ERROR_SHAPES)
def test_a_wrong_key_is_told_as_such(platform: WaysCloudPlatform, build: Build, shape: str) -> None:
    """Revoked, or shown as the other generation's."""
    platform.state.error_shape = shape
    for provider in (build(platform, "wayscloud_api_revoked"), build(platform, platform.new_token, generation="old")):
        error = raised(provider.list_keys)
        assert (Permanent, Reason.PROVIDER_AUTH) == (type(error), error.reason)
        assert "Invalid API key" in error.message


def test_a_key_that_was_replaced_is_tried_once_more(platform: WaysCloudPlatform, build: Build) -> None:
    """After a 401, where the file holds another one by then, of another generation even."""
    tokens = iter([platform.token] * 2)
    platform.drop_token(platform.token)
    assert [] == list(build(platform, lambda: next(tokens, platform.new_token)).list_keys())
    assert 2 == platform.count("list")


# --- the call that makes a device -----------------------------------------------------------------------------------


def made(**fields: object) -> Scripted:
    """The scripted endpoint's second device, its password included."""
    login = {"username": "iot_dev_2", "password": PASSWORD, "client_id": "iot_dev_2", "broker": "x", "port": 8883}
    body = row(device_id="iot_dev_2", mqtt_credentials=login)
    return Scripted(
        status=201, body={name: value for name, value in {**body, **fields}.items() if value is not Ellipsis}
    )


@pytest.mark.parametrize(
    ("faults", "kind", "reason", "effect"),
    [
        (Faults(status=503), UnknownOutcome, Reason.OUTCOME_UNKNOWN, False),
        (Faults(status=504, status_after_effect=True), UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
        (Faults(cut=Cut.BEFORE_EFFECT), UnknownOutcome, Reason.OUTCOME_UNKNOWN, False),
        (Faults(cut=Cut.AFTER_EFFECT), UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
        (Faults(truncate=True), UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
    ],
)
@pytest.mark.parametrize("new", [True, False])
def test_a_device_that_may_be_there_is_found_by_its_marker(
    platform: WaysCloudPlatform,
    build: Build,
    faults: Faults,
    kind: type[RotatorError],
    reason: Reason,
    effect: bool,
    new: bool,
) -> None:
    """The call is not repeated; the list shows what it did."""
    platform.add_new_key("a", device_type="sensor")
    faults.operations = frozenset({"create"})
    platform.faults = faults
    provider = build(platform, platform.new_token if new else platform.token)
    error = raised(lambda: provider.create(identity("a"), MARKER))
    assert (kind, reason) == (type(error), error.reason)
    assert 1 == platform.count("create")
    assert effect is (MARKER in [key.marker for key in provider.list_keys()])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(PasswordAnswer.NO_PASSWORD, Reason.NO_SECRET), (PasswordAnswer.EMPTY_PASSWORD, Reason.EMPTY_SECRET)],
)
@pytest.mark.parametrize("new", [True, False])
def test_an_answer_without_a_password_is_refused(
    platform: WaysCloudPlatform, build: Build, answer: PasswordAnswer, reason: Reason, new: bool
) -> None:
    """And kept whole for the journal; the device can be found by its marker."""
    platform.add_new_key("a", device_type="sensor")
    platform.password_answer = answer
    provider = build(platform, platform.new_token if new else platform.token)
    error = raised(lambda: provider.create(identity("a"), MARKER))
    assert (BadAnswer, reason) == (type(error), error.reason)
    assert MARKER in (error.body or b"").decode()
    assert MARKER in [key.marker for key in provider.list_keys()]


@pytest.mark.parametrize(
    "fields",
    [{"device_id": ID}, {"device_id": ...}, {"device_id": 7}, {"mqtt_credentials": {"password": 7, "username": "x"}}],
)
def test_an_answer_that_may_mean_something_else_is_refused(
    double: RestDouble, build: Build, fields: dict[str, object]
) -> None:
    """No id, the original's id, a password that is no text."""
    double.script["POST"] = [made(**fields)]
    error = raised(lambda: build(double).create(identity(), MARKER))
    assert (BadAnswer, Reason.PROVIDER_ANSWER_UNREADABLE) == (type(error), error.reason)
    assert PASSWORD not in str(error) + repr(error)


def test_a_password_beside_an_error_is_kept(double: RestDouble, build: Build) -> None:
    """An issued secret counts more than the status that came with it; a flat answer is read as well."""
    double.script["POST"] = [Scripted(status=500, body=row(device_id="b", mqtt_username="u", mqtt_password=PASSWORD))]
    issued = build(double).create(identity(), MARKER)
    assert (PASSWORD, Identity(id="b", username="u", client_id="b")) == (issued.secret.reveal(), issued.identity)


def test_an_id_that_is_taken_may_be_our_own(double: RestDouble, build: Build) -> None:
    """409 for an id that was new: where it is there, something sent our request twice."""
    double.script["POST"] = [Scripted(status=409, body={"error": {"code": "DEVICE_EXISTS", "message": "exists"}})]
    provider = build(double, NEW_TOKEN)
    assert (Permanent, Reason.PROVIDER_REFUSED) == _kind(raised(lambda: provider.create(identity(), MARKER)))
    clone = Scripted(body=row(device_id=f"{ID}-{MARKER}"))
    usual = double.script["GET"][0]
    assert callable(usual)
    double.script["GET"] = [lambda call: clone if MARKER in call.path else usual(call)]
    assert UnknownOutcome is type(raised(lambda: provider.create(identity(), MARKER)))


def _kind(error: RotatorError) -> tuple[type[RotatorError], Reason]:
    return type(error), error.reason


def test_an_answer_about_another_device_is_refused(double: RestDouble, build: Build) -> None:
    """A clone of it would have another's name and metadata."""
    double.script["GET"] = [Scripted(body=row(device_id="iot_dev_xyz789"))]
    assert Reason.PROVIDER_ANSWER_UNREADABLE is raised(lambda: build(double).create(identity(), MARKER)).reason
    assert ["GET"] == double.methods()


@pytest.mark.parametrize("status", [404, 405])
def test_an_original_that_is_only_in_the_list_is_cloned_from_there(
    double: RestDouble, build: Build, status: int
) -> None:
    """A generation may not serve single devices."""
    listed = Scripted(body={"devices": [row()], "total": 1})
    answers = {"/v1/iot/devices": listed, "/v1/iot/quota": Scripted(body=QUOTA)}
    double.script["GET"] = [lambda call: answers.get(call.path.partition("?")[0], Scripted(status=status, body={}))]
    double.script["POST"] = [made()]
    build(double).create(identity(), MARKER)
    expected = {"name": "Temperature Sensor 01", "type": "sensor", "metadata": {**METADATA, "rotator": MARKER}}
    assert expected == double.calls[-1].body


def test_a_404_that_the_list_denies_is_not_believed(double: RestDouble, build: Build) -> None:
    """A gateway's 404, or a page, does not make a device that lives one that is gone."""
    for answer in (Scripted(status=404, body={"message": "no route"}), Scripted(body=b"<html>welcome</html>")):
        double.script["DELETE"] = [answer]
        assert Reason.PROVIDER_ANSWER_UNREADABLE is raised(lambda: build(double).delete(ID)).reason
    double.script["PATCH"] = [Scripted(body={"ok": True})]
    error = raised(lambda: build(double, NEW_TOKEN).deactivate(identity()))
    assert Reason.PROVIDER_ANSWER_UNREADABLE is error.reason


def test_a_device_without_a_type_is_not_cloned_by_the_old_api(double: RestDouble, build: Build) -> None:
    """Nothing is guessed, and nothing made."""
    double.script["GET"] = [Scripted(body=row(type=None))]
    assert Reason.PROVIDER_ANSWER_UNREADABLE is raised(lambda: build(double).create(identity(), MARKER)).reason
    assert ["GET"] == double.methods()


@pytest.mark.parametrize("id", ["", ".", "..", "a\ud800"])
def test_what_is_no_id_is_not_sent(double: RestDouble, build: Build, id: str) -> None:
    """ ".." in a path means something else entirely."""
    for call in (lambda: build(double).delete(id), lambda: build(double).create(identity(id), MARKER)):
        assert Reason.KEY_UNKNOWN is raised(call).reason
    assert [] == double.calls


def test_no_secret_is_shown(
    double: RestDouble, build: Build, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in errors, reprs, logs or output, even where the platform repeats it."""
    caplog.set_level(logging.DEBUG)
    provider = build(double)
    shown = repr(provider)
    for post in (Scripted(status=400, body={"detail": f"no: {OLD_TOKEN} {PASSWORD}"}), made(), made(device_id=ID)):
        double.script["POST"] = [post]
        try:
            shown += repr(provider.create(identity(), MARKER))
        except RotatorError as exc:
            shown += str(exc) + repr(exc)
    shown += caplog.text + "".join(capsys.readouterr())
    assert "HTTP 400" in shown
    assert OLD_TOKEN not in shown
    assert PASSWORD not in shown


def test_sixteen_threads_make_sixteen_devices(platform: WaysCloudPlatform, build: Build) -> None:
    """One provider serves them all; each answer reaches the thread that asked."""
    id, _ = platform.add_key()
    provider, issued, gate = build(platform), dict[str, Any](), threading.Barrier(16)

    def make(marker: str) -> None:
        gate.wait(10)
        issued[marker] = provider.create(identity(id), marker)

    threads = [threading.Thread(target=make, args=(f"rotator-0123456789ab-{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 16 == len(issued)
    for marker, each in issued.items():
        assert marker == platform.key(each.identity.id).metadata["rotator"]
        assert each.secret.reveal() == platform.live()[each.identity.username]


# --- provision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [True, False])
def test_provision_makes_a_device_once(platform: WaysCloudPlatform, build: Build, new: bool) -> None:
    """With what was asked for; its password can't be had a second time, which is said."""
    provider = build(platform, platform.new_token if new else platform.token)
    options = {"type": "gateway", "description": "hall", "metadata": '{"floor": "2"}'}
    issued = provider.provision("Hall 1", options, MARKER)
    (device,) = platform.keys()
    assert {device.username: issued.secret.reveal()} == platform.live()
    assert ("Hall 1", "gateway", "hall", "2") == (
        device.name,
        device.type,
        device.description,
        device.metadata["floor"],
    )
    assert ("Hall-1" if new else MARKER) == (device.id if new else device.metadata["rotator"])
    error = raised(lambda: provider.provision("Hall 1", {}, NEXT_MARKER))
    assert Reason.PROVIDER_REFUSED is error.reason
    assert device.id in error.message


@pytest.mark.parametrize(
    "options", [{"colour": "red"}, {"metadata": "x"}, {"metadata": "[]"}, {"device_id": "mine"}, {"type": "lamp"}]
)
def test_provision_refuses_what_it_can_not_do(
    platform: WaysCloudPlatform, build: Build, options: dict[str, str]
) -> None:
    """By the old API: an option that there is not, metadata that are no object, an id, an unknown type."""
    error = raised(lambda: build(platform).provision("Hall 1", options, MARKER))
    assert (Permanent, Reason.PROVIDER_REFUSED) == (type(error), error.reason)
    assert [] == platform.keys()


def test_provision_looks_at_the_quota(platform: WaysCloudPlatform, build: Build) -> None:
    """A full one is named, nothing is asked."""
    platform.add_key()
    platform.state.plan_limits["max_devices"] = 1
    assert Reason.PROVIDER_QUOTA is raised(lambda: build(platform).provision("Hall 1", {}, MARKER)).reason
    assert 0 == platform.count("create")


# --- allow_outage: deleted and made again ---------------------------------------------------------------------------


@pytest.fixture
def recreating(platform: WaysCloudPlatform, build: Build) -> Any:
    """A provider that may take a device down, and one device with everything."""
    platform.add_new_key("a", "Sensor", device_type="ESP32", metadata=METADATA, description="hall")
    return build(platform, platform.new_token, allow_outage=True)


def test_a_device_is_made_again_under_its_id(platform: WaysCloudPlatform, recreating: Any) -> None:
    """All of it comes back but the password."""
    assert isinstance(recreating, InPlace)
    assert not isinstance(recreating, Replacing)
    able = recreating.abilities
    assert (Strategy.IN_PLACE, True, True) == (able.strategy, able.kills_old, able.recreates)
    before = platform.key("a")
    issued = recreating.issue(identity("a"))
    after = platform.key("a")
    assert {"a": issued.secret.reveal()} == platform.live()
    assert before.password != after.password
    assert identity("a") == issued.identity
    for name in ("name", "type", "metadata", "description", "active"):
        assert getattr(before, name) == getattr(after, name)
    assert ["get", "quota", "delete", "create"] == [seen.operation for seen in platform.seen]


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        (Faults(status=429), Transient),
        (Faults(status=503), UnknownOutcome),
        (Faults(cut=Cut.BEFORE_EFFECT), UnknownOutcome),
        (Faults(cut=Cut.AFTER_EFFECT), UnknownOutcome),
    ],
)
def test_what_died_in_between_is_made_by_the_next_call(
    platform: WaysCloudPlatform, recreating: Any, faults: Faults, kind: type[RotatorError]
) -> None:
    """The device is gone, and the provider still knows what it was."""
    faults.operations, faults.times = frozenset({"create"}), 1
    platform.faults = faults
    error = raised(lambda: recreating.issue(identity("a")))
    assert kind is type(error)
    if kind is Transient:
        assert "a is deleted, and lets nobody in until it is made again" in error.message
        assert [] == list(recreating.list_keys())
    issued = recreating.issue(identity("a"))
    assert {"a": issued.secret.reveal()} == platform.live()
    assert (METADATA, "ESP32", "hall") == (
        platform.key("a").metadata,
        platform.key("a").type,
        platform.key("a").description,
    )


def test_after_a_crash_the_device_is_what_was_journaled(platform: WaysCloudPlatform, build: Build) -> None:
    """Another process makes it from what `describe` said; from its id alone where nobody says anything."""
    platform.add_new_key("a", "Sensor", metadata=METADATA)
    platform.add_new_key("b", "Sensor", metadata=METADATA)
    first, second = (build(platform, platform.new_token, allow_outage=True) for _ in range(2))
    described = json.loads(json.dumps(first.describe(identity("a"))))
    platform.state.delete("a")
    platform.state.delete("b")
    second.remember(identity("a"), described)
    for id in ("a", "b"):
        issued = second.issue(identity(id))
        assert issued.secret.reveal() == platform.live()[id]
    assert ("Sensor", METADATA) == (platform.key("a").name, platform.key("a").metadata)
    assert ("b", {}) == (platform.key("b").name, platform.key("b").metadata)
    for wrong in (described, {"name": "x"}):
        assert Reason.PROVIDER_REFUSED is raised(partial(second.remember, identity("b"), wrong)).reason
    assert Reason.KEY_UNKNOWN is raised(lambda: second.describe(identity("c"))).reason


def test_a_delete_that_did_not_go_through_leaves_the_device(platform: WaysCloudPlatform, recreating: Any) -> None:
    """Nothing is made after a refusal, or after an answer that never came."""
    before = platform.live()
    for faults, kind in (
        (Faults(status=429, retry_after="3"), Transient),
        (Faults(status=403), Permanent),
        (Faults(cut=Cut.BEFORE_EFFECT), UnknownOutcome),
    ):
        faults.operations = frozenset({"delete"})
        platform.faults = faults
        error = raised(lambda: recreating.issue(identity("a")))
        assert kind is type(error)
        assert "is deleted" not in error.message
    assert before == platform.live()
    assert 0 == platform.count("create")


def test_an_id_that_is_not_free_yet_is_waited_for(platform: WaysCloudPlatform, recreating: Any) -> None:
    """409 after the delete: another call makes it."""
    platform.state.conflicts = 1
    error = raised(lambda: recreating.issue(identity("a")))
    assert (Transient, Reason.PROVIDER_UNAVAILABLE) == (type(error), error.reason)
    assert {"a": recreating.issue(identity("a")).secret.reveal()} == platform.live()


def test_what_would_not_come_back_is_not_deleted(platform: WaysCloudPlatform, build: Build, recreating: Any) -> None:
    """A paused device, a plan with fewer devices than there are, the old API."""
    before = platform.live()
    platform.add_new_key("b")
    platform.state.plan_limits["max_devices"] = 1
    assert Reason.PROVIDER_QUOTA is raised(lambda: recreating.issue(identity("a"))).reason
    platform.state.plan_limits["max_devices"] = 2
    recreating.issue(identity("b"))
    recreating.deactivate(identity("b"))
    assert Reason.KEY_INACTIVE is raised(lambda: recreating.issue(identity("b"))).reason
    old = build(platform, allow_outage=True)
    assert Reason.PROVIDER_UNABLE is raised(lambda: old.issue(identity("a"))).reason
    assert before == platform.live()


def test_a_device_that_came_back_as_another_is_refused(double: RestDouble, build: Build) -> None:
    """The answer names another id than the one that was deleted."""
    double.script.update(POST=[made()], DELETE=[Scripted(status=200, body={})])
    error = raised(lambda: build(double, NEW_TOKEN, allow_outage=True).issue(identity()))
    assert (BadAnswer, Reason.PROVIDER_ANSWER_UNREADABLE) == (type(error), error.reason)


def test_an_outage_that_can_not_keep_the_id_is_refused_at_the_start() -> None:
    """When the configuration is read."""
    with pytest.raises(ValidationError, match="chooses a device's id itself"):
        WaysCloudSettings(kind="wayscloud", token=EnvRef(env="TOKEN"), generation="old", allow_outage=True)
