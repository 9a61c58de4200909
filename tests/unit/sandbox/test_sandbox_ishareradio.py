"""The iShareRadio simulator: strict about what the document says, with a switch for what it leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from rotator.sandbox.ishareradio import IShareRadioPlatform
from rotator.sandbox.ishareradio_state import IShareRadioState
from rotator.sandbox.rest_platform import PasswordAnswer, Refusal

PUBLISHERS = "/api/v1/subscriber/publishers"
SUBSCRIBERS = "/api/v1/subscriber/subscriber-mqtt-passwords"


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = datetime(2026, 3, 24, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def time() -> Time:
    """The portal's clock."""
    return Time()


@pytest.fixture
def told() -> list[dict[str, str]]:
    """What the broker heard."""
    return []


@pytest.fixture
def state(time: Time, told: list[dict[str, str]]) -> IShareRadioState:
    """A portal without logins."""

    def listen(live: Mapping[str, str]) -> None:
        told.append(dict(live))

    return IShareRadioState(now=time, on_change=listen)


@pytest.fixture
def platform(time: Time) -> Iterator[IShareRadioPlatform]:
    """The portal over HTTP."""
    with IShareRadioPlatform(now=time) as running:
        yield running


@pytest.fixture
def ask(platform: IShareRadioPlatform) -> Iterator[httpx.Client]:
    """Asks with the account's token."""
    with httpx.Client(base_url=platform.url, headers={"Authorization": f"Bearer {platform.token}"}) as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"allow_subscribe": True},
        {"label": ""},
        {"label": 7},
        {"label": "x", "allow_subscribe": 1},
        {"label": "x", "allowSubscribe": True},
        {"Label": "x"},
    ],
)
def test_a_body_that_is_not_allowed_makes_nothing(state: IShareRadioState, body: object) -> None:
    """422, and the list stays empty; wrong casing is an unknown field."""
    with pytest.raises(Refusal) as caught:
        state.create(body)
    assert 422 == caught.value.status
    assert [] == state.publishers()


@pytest.mark.parametrize(
    "body",
    [
        {"label": "x"},
        {"expires_in_days": 3},
        {"label": "x", "expires_in_days": 0},
        {"label": "x", "expires_in_days": True},
    ],
)
def test_a_read_only_login_needs_a_label_and_a_life(state: IShareRadioState, body: object) -> None:
    """Both fields, and at least a day."""
    with pytest.raises(Refusal):
        state.create_subscriber(body)
    assert {} == state.live()


def test_only_the_calls_that_make_a_password_show_it(state: IShareRadioState) -> None:
    """Neither the list nor a pause does."""
    made = state.create({"label": "site-alpha-sensor", "allow_subscribe": True})
    device = made["device"]
    assert f"{state.account}/{device['client_id']}/#" == made["publish_topic"]
    assert {device["client_id"]: device["password"]} == state.live()
    shown = str(state.publishers()) + str(state.pause(device["client_id"], True))
    assert device["password"] not in shown
    reader = state.create_subscriber({"label": "automation", "expires_in_days": 30})
    assert reader["password"] not in str(state.subscribers())


def test_a_pause_survives_a_new_password(state: IShareRadioState, told: list[dict[str, str]]) -> None:
    """The broker hears of each change."""
    id = state.create({"label": "x"})["device"]["client_id"]
    state.pause(id, True)
    password = state.rotate(id)["device"]["password"]
    state.pause(id, False)
    state.remove(id)
    assert [{id}, set(), set(), {id}, set()] == [set(live) for live in told]
    assert password == told[3][id]


def test_an_old_password_may_live_on(state: IShareRadioState) -> None:
    """The document does not say that it dies at once; the one before that is out in any case."""
    device = state.create({"label": "x"})["device"]
    id, first = device["client_id"], device["password"]
    second = state.rotate(id)["device"]["password"]
    assert [False, True] == [state.accepts(id, each) for each in (first, second)]
    state.old_password_lives = True
    assert [True, True] == [state.accepts(id, each) for each in (first, second)]
    state.rotate(id)
    assert [False, True] == [state.accepts(id, each) for each in (first, second)]
    state.pause(id, True)
    assert not state.accepts(id, second)


def test_a_read_only_login_ends_by_itself(state: IShareRadioState, time: Time) -> None:
    """And makes room in the plan by that."""
    state.max_subscribers = 1
    state.create_subscriber({"label": "x", "expires_in_days": 2})
    with pytest.raises(Refusal):
        state.create_subscriber({"label": "y", "expires_in_days": 2})
    time.at += timedelta(days=2)
    assert {} == state.live()
    state.create_subscriber({"label": "y", "expires_in_days": 2})


def test_an_unusable_password_is_not_the_brokers(state: IShareRadioState) -> None:
    """The answer looks well all the same."""
    made = state.create({"label": "x"}, PasswordAnswer.UNUSABLE_PASSWORD)
    assert made["device"]["password"] not in state.live().values()


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic x"}, {"X-API-Key": "x"}]
)
def test_who_shows_no_token_gets_nothing(platform: IShareRadioPlatform, headers: dict[str, str]) -> None:
    """401, whatever is asked."""
    with httpx.Client(base_url=platform.url, headers=headers) as client:
        answers = [client.get(PUBLISHERS), client.post(PUBLISHERS, json={"label": "x"})]
    assert [401, 401] == [answer.status_code for answer in answers]
    assert {} == platform.live()


def test_a_token_ends(platform: IShareRadioPlatform, ask: httpx.Client, time: Time) -> None:
    """After the days that were chosen for it."""
    assert 200 == ask.get(PUBLISHERS).status_code
    time.at += timedelta(days=90)
    assert {"detail": "Token expired"} == ask.get(PUBLISHERS).json()


def test_an_operators_token_needs_an_account(platform: IShareRadioPlatform) -> None:
    """400 without one, 404 for one that is not there."""
    headers = {"Authorization": f"Bearer {platform.add_token(operator=True)}"}
    accounts: list[dict[str, str]] = [{}, {"X-ISR-Account-Id": "x"}, {"X-ISR-Account-Id": platform.account}]
    statuses = [httpx.get(platform.url + PUBLISHERS, headers={**headers, **more}).status_code for more in accounts]
    assert [400, 404, 200] == statuses


def test_paths_and_methods_that_there_are_not(platform: IShareRadioPlatform, ask: httpx.Client) -> None:
    """404 and 405 as JSON; read-only logins' list and removal only where they are served."""
    assert [404, 405] == [ask.get("/api/v1/publishers").status_code, ask.put(PUBLISHERS).status_code]
    assert {"detail": "Not Found"} == ask.get("/x").json()
    assert 200 == ask.get(SUBSCRIBERS).status_code
    platform.serves_subscribers = False
    assert [405, 404] == [ask.get(SUBSCRIBERS).status_code, ask.delete(f"{SUBSCRIBERS}/x").status_code]


def test_a_body_that_is_not_declared_as_json_is_none(platform: IShareRadioPlatform, ask: httpx.Client) -> None:
    """The document's own header is needed."""
    content = b'{"label":"site-alpha-sensor","allow_subscribe":true}'
    assert 422 == ask.post(PUBLISHERS, content=content).status_code
    answer = ask.post(PUBLISHERS, content=content, headers={"Content-Type": "application/json"})
    assert (201, "site-alpha-sensor") == (answer.status_code, platform.state.publishers()[0]["label"])
    assert answer.json()["device"]["password"] in platform.live().values()


def test_one_hour_has_5000_requests(platform: IShareRadioPlatform, ask: httpx.Client, time: Time) -> None:
    """Each token has its own; the delay leads to the next hour."""
    platform.window.most = 1
    time.at += timedelta(minutes=45)
    statuses = [ask.get(PUBLISHERS).status_code, (late := ask.get(PUBLISHERS)).status_code]
    assert ([200, 429], "900") == (statuses, late.headers["Retry-After"])
    other = {"Authorization": f"Bearer {platform.add_token()}"}
    assert 200 == ask.get(PUBLISHERS, headers=other).status_code
    time.at += timedelta(minutes=15)
    assert 200 == ask.get(PUBLISHERS).status_code


def test_requests_are_recorded(platform: IShareRadioPlatform, ask: httpx.Client) -> None:
    """What was asked of which login, refused ones included, and the clock's date."""
    answer = ask.post(f"{PUBLISHERS}/pub-1/rotate-credentials")
    ask.post(PUBLISHERS, json={"label": "x"})
    assert (404, "Tue, 24 Mar 2026 12:00:00 GMT") == (answer.status_code, answer.headers["Date"])
    assert [("rotate", "pub-1", None), ("create", "", {"label": "x"})] == [
        (seen.operation, seen.key_id, seen.body) for seen in platform.seen
    ]
