"""The sandbox's ThingsBoard is strict about what its API says, asked over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from rotator.jwt import unverified_expiry
from rotator.sandbox.thingsboard import ThingsBoard

NOW = datetime(2026, 3, 24, 12, tzinfo=UTC)


@pytest.fixture
def board() -> Iterator[ThingsBoard]:
    """A tenant with one device."""
    with ThingsBoard(now=lambda: NOW) as running:
        running.add_key("lift")
        yield running


def ask(board: ThingsBoard, method: str, path: str, token: str = "", **more: Any) -> tuple[int, Any]:
    """Status and JSON."""
    headers = {"X-Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.request(method, board.api + path, headers=headers, **more)
    return answer.status_code, answer.json()


def login(board: ThingsBoard) -> dict[str, Any]:
    """What a login answers."""
    status, body = ask(board, "POST", "/auth/login", json={"username": board.username, "password": board.password})
    assert 200 == status
    return dict(body)


def test_a_login_gives_a_jwt_and_a_refresh_token_for_one_use(board: ThingsBoard) -> None:
    """The access token says itself when it ends."""
    granted = login(board)
    assert NOW + board.token_life == unverified_expiry(granted["token"])
    refresh = {"refreshToken": granted["refreshToken"]}
    status, again = ask(board, "POST", "/auth/token", json=refresh)
    assert (200, True) == (status, again["token"] != granted["token"])
    assert 401 == ask(board, "POST", "/auth/token", json=refresh)[0]


def test_tokens_end(board: ThingsBoard) -> None:
    """By their time, which has a code of its own, or because the platform forgot them."""
    token = login(board)["token"]
    path = "/tenant/devices?pageSize=10&page=0"
    assert 200 == ask(board, "GET", path, token)[0]
    board.now = lambda: NOW + board.token_life + timedelta(seconds=1)
    status, body = ask(board, "GET", path, token)
    assert (401, 401, 11, "Token has expired") == (status, body["status"], body["errorCode"], body["message"])
    board.end_sessions()
    assert 10 == ask(board, "GET", path, token)[1]["errorCode"]
    assert 401 == ask(board, "GET", path)[0]


def test_a_credential_is_replaced_whole(board: ThingsBoard) -> None:
    """What is read is what is written; the broker's view follows."""
    token = login(board)["token"]
    (device,) = ask(board, "GET", "/tenant/devices?pageSize=10&page=0", token)[1]["data"]
    status, shown = ask(board, "GET", f"/device/{device['id']['id']}/credentials", token)
    assert (200, "MQTT_BASIC") == (status, shown["credentialsType"])
    assert {"lift": json.loads(shown["credentialsValue"])["password"]} == board.live()
    shown["credentialsValue"] = json.dumps({"clientId": "c", "userName": "lift", "password": "new"})
    assert (200, shown) == ask(board, "POST", "/device/credentials", token, json=shown)
    assert {"lift": "new"} == board.live()
    shown |= {"credentialsType": "ACCESS_TOKEN", "credentialsId": "tok", "credentialsValue": None}
    assert (200, shown) == ask(board, "POST", "/device/credentials", token, json=shown)
    assert {"tok": "tok"} == board.live()


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"id": {"id": "another"}}, 400, 31),
        ({"deviceId": {"entityType": "DEVICE", "id": "another"}}, 404, 32),
        ({"deviceId": None}, 404, 32),
        ({"credentialsType": None}, 400, 31),
        ({"credentialsType": "ACCESS_TOKEN", "credentialsId": ""}, 400, 31),
        ({"credentialsValue": "no JSON"}, 400, 31),
        ({"credentialsValue": '{"user": "x"}'}, 400, 31),
        ({"credentialsValue": '{"password": "x"}'}, 400, 31),
        ({"Password": "x"}, 400, 31),
    ],
    ids=str,
)
def test_a_credential_that_can_not_be_is_refused(
    board: ThingsBoard, change: dict[str, object], status: int, code: int
) -> None:
    """In ThingsBoard's shape, and nothing changes."""
    token = login(board)["token"]
    (device,) = ask(board, "GET", "/tenant/devices?pageSize=10&page=0", token)[1]["data"]
    before = board.credentials(device["id"]["id"])
    answered, body = ask(board, "POST", "/device/credentials", token, json=before | change)
    assert (status, status, code) == (answered, body["status"], body["errorCode"])
    assert before == board.credentials(device["id"]["id"])


@pytest.mark.parametrize("query", ["", "?page=0", "?pageSize=x&page=0", "?pageSize=0&page=0", "?pageSize=1&page=0&x=1"])
def test_a_list_needs_both_of_its_parameters(board: ThingsBoard, query: str) -> None:
    """And knows no other."""
    assert 400 == ask(board, "GET", f"/tenant/devices{query}", login(board)["token"])[0]


def test_pages(board: ThingsBoard) -> None:
    """Counted from 0, with the total."""
    board.add_key("other")
    token = login(board)["token"]
    status, page = ask(board, "GET", "/tenant/devices?pageSize=1&page=0", token)
    assert (200, 2, 2, True) == (status, page["totalElements"], page["totalPages"], page["hasNext"])
    assert not ask(board, "GET", "/tenant/devices?pageSize=1&page=1", token)[1]["hasNext"]
