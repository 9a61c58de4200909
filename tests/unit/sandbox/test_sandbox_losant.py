"""The Losant simulator's rules: what a body may hold, what is shown, who may come in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from rotator.sandbox.losant_state import (
    PATCH_FIELDS,
    POST_FIELDS,
    LosantAnswer,
    LosantState,
    Refusal,
    new_id,
    validated,
)

DEVICE = "575ecf887ae143cd83dc4aa2"


@pytest.fixture
def told() -> list[dict[str, str]]:
    """What the broker heard."""
    return []


@pytest.fixture
def state(told: list[dict[str, str]]) -> LosantState:
    """A platform without keys."""

    def listen(live: Mapping[str, str]) -> None:
        told.append(dict(live))

    return LosantState(now=lambda: datetime(2026, 3, 24, 12, tzinfo=UTC), on_change=listen)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"status": "active"},
        {"expires": "2030"},
        {"deviceIds": [DEVICE] * 1001},
        {"deviceIds": ["x"]},
        {"deviceTags": [{"key": "a"}] * 101},
        {"deviceTags": [{"name": "a"}]},
        {"deviceTags": [{"key": "a b"}]},
        {"filterType": "some"},
        {"pubTopics": ["$SYS/x"]},
        {"subTopics": ["losant/x/state"]},
        {"subTopics": ["a/#/b"]},
        {"addressFilterType": "none"},
        {"addresses": ["10.0.0.1"] * 101},
        {"addresses": ["example"]},
        {"name": ""},
        {"name": None},
        {"description": "x" * 32768},
    ],
)
def test_a_body_that_is_not_allowed_makes_nothing(state: LosantState, body: object) -> None:
    """400, and the list stays empty."""
    with pytest.raises(Refusal) as caught:
        state.create(body)
    assert 400 == caught.value.status
    assert [] == state.all_shown()


def test_only_the_making_call_shows_the_secret(state: LosantState) -> None:
    """Not the list, not the key itself, not a change."""
    made = state.create({"deviceIds": [DEVICE], "subTopics": ["a/#"], "filterType": "whitelist"})
    secret = made["secret"]
    assert {made["key"]: secret} == state.live()
    assert {name: value for name, value in made.items() if name != "secret"} == state.shown(state.key(made["id"]))
    assert secret not in str(state.page({})) + str(state.patch(made["id"], {"name": "x"}))


def test_status_is_changed_by_patch_alone(state: LosantState, told: list[dict[str, str]]) -> None:
    """An inactive key lets nobody in, an active one does again; device restrictions never change."""
    made = state.create({"deviceIds": [DEVICE]})
    login = {"deviceId": DEVICE, "key": made["key"], "secret": made["secret"]}
    assert DEVICE == state.authenticate_device(login)["deviceId"]
    state.patch(made["id"], {"status": "inactive"})
    with pytest.raises(Refusal):
        state.authenticate_device(login)
    state.patch(made["id"], {"status": "active"})
    state.delete(made["id"])
    on = {made["key"]: made["secret"]}
    assert [on, {}, on, {}] == told
    for name in ("deviceIds", "deviceTags"):
        assert name in POST_FIELDS
        with pytest.raises(Refusal):
            validated({name: []}, PATCH_FIELDS)


def test_another_device_is_not_let_in(state: LosantState) -> None:
    """`POST /auth/device` looks at the device, the key and the secret."""
    made = state.create({"deviceIds": [DEVICE]})
    good = {"deviceId": DEVICE, "key": made["key"], "secret": made["secret"]}
    for wrong in ({"deviceId": new_id()}, {"key": "x"}, {"secret": "x"}):
        with pytest.raises(Refusal) as caught:
            state.authenticate_device({**good, **wrong})
        assert 401 == caught.value.status


def test_a_tag_lets_a_device_in_while_it_has_it(state: LosantState) -> None:
    """The page's own example, `type=thermostat`: a device gains and loses access with its tag."""
    made = state.create({"deviceTags": [{"key": "type", "value": "thermostat"}]})
    login = {"deviceId": DEVICE, "key": made["key"], "secret": made["secret"]}
    for tags, admitted in (
        ({"type": "thermostat"}, True),
        ({}, False),
        ({"type": "gateway"}, False),
        ({"kind": "thermostat"}, False),
        ({"floor": "2", "type": "thermostat"}, True),
    ):
        state.device_tags[DEVICE] = tags
        assert admitted == state.admits(state.key(made["id"]), DEVICE)
        if admitted:
            assert DEVICE == state.authenticate_device(login)["deviceId"]
        else:
            with pytest.raises(Refusal):
                state.authenticate_device(login)


def test_an_unusable_secret_is_not_the_brokers(state: LosantState) -> None:
    """The answer looks well all the same."""
    made = state.create({}, LosantAnswer.UNUSABLE_SECRET)
    assert made["secret"] not in state.live().values()


def test_pages_are_as_long_as_the_platform_likes(state: LosantState) -> None:
    """Newest first unless sorted; `perPage` is what was given, `totalCount` what there is."""
    made = [state.create({"name": str(number)})["id"] for number in range(3)]
    state.page_limit = 2
    first = state.page({"sortField": "creationDate", "sortDirection": "asc", "perPage": "100"})
    last = state.page({"sortDirection": "asc", "page": "1"})
    assert made == [item["id"] for item in first["items"] + last["items"]]
    assert (2, 3, 2, 0) == tuple(first[name] for name in ("count", "totalCount", "perPage", "page"))
    assert made[::-1][:2] == [item["id"] for item in state.page({})["items"]]
    for query in ({"page": "-1"}, {"sortField": "secret"}, {"sortDirection": "up"}):
        with pytest.raises(Refusal):
            state.page(query)
