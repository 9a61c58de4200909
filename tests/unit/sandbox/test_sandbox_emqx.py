"""The sandbox's EMQX is strict about what its API says, asked over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from rotator.sandbox.emqx import EmqxBroker

USERS = "/authentication/password_based%3Abuilt_in_database/users"


@pytest.fixture
def told() -> list[dict[str, str]]:
    """What the broker was told."""
    return []


@pytest.fixture
def emqx(told: list[dict[str, str]]) -> Iterator[EmqxBroker]:
    """A broker with one superuser."""
    with EmqxBroker(on_change=lambda live: told.append(dict(live))) as running:
        running.add_key("root", is_superuser=True)
        yield running


def ask(emqx: EmqxBroker, method: str, path: str, **more: Any) -> tuple[int, Any]:
    """Status and JSON; None for an empty body."""
    own = {"auth": (emqx.api_key, emqx.api_secret), **more}
    answer = httpx.request(method, emqx.api + path, **own)
    return answer.status_code, answer.json() if answer.content else None


def test_a_put_resets_what_it_does_not_name(emqx: EmqxBroker, told: list[dict[str, str]]) -> None:
    """The trap: a superuser is none any more; and the broker hears of it inside the call."""
    assert (200, {"user_id": "root", "is_superuser": True}) == ask(emqx, "GET", f"{USERS}/root")
    shown = {"user_id": "root", "is_superuser": False}
    assert (200, shown) == ask(emqx, "PUT", f"{USERS}/root", json={"password": "new"})
    assert {"root": "new"} == emqx.live() == told[-1]


@pytest.mark.parametrize(
    ("method", "path", "more", "status", "code"),
    [
        ("GET", USERS, {"auth": None}, 401, "BAD_API_KEY_OR_SECRET"),
        ("GET", USERS, {"auth": ("a", "b")}, 401, "BAD_API_KEY_OR_SECRET"),
        ("GET", f"{USERS}/nobody", {}, 404, "NOT_FOUND"),
        ("PUT", f"{USERS}/nobody", {"json": {"password": "x"}}, 404, "NOT_FOUND"),
        ("PUT", f"{USERS}/root", {"json": {"password": "x", "isSuperuser": True}}, 400, "BAD_REQUEST"),
        ("PUT", f"{USERS}/root", {"json": {"password": "x", "is_superuser": "yes"}}, 400, "BAD_REQUEST"),
        ("PUT", f"{USERS}/root", {"json": {"is_superuser": True}}, 400, "BAD_REQUEST"),
        ("PUT", f"{USERS}/root", {"content": b"{"}, 400, "BAD_REQUEST"),
        ("POST", USERS, {"json": {"user_id": "root", "password": "x"}}, 409, "ALREADY_EXISTS"),
        ("DELETE", "/clients/nobody", {}, 404, "CLIENTID_NOT_FOUND"),
        ("GET", f"{USERS}?limit=0", {}, 400, "BAD_REQUEST"),
        ("GET", f"{USERS}?size=1", {}, 400, "BAD_REQUEST"),
        ("GET", f"{USERS}?page=x", {}, 400, "BAD_REQUEST"),
    ],
)
def test_what_is_wrong_is_refused(
    emqx: EmqxBroker, method: str, path: str, more: dict[str, Any], status: int, code: str
) -> None:
    """In EMQX's shape, and nothing changes."""
    before = emqx.live(), emqx.user("root")
    answered, body = ask(emqx, method, path, **more)
    assert (status, code) == (answered, body["code"])
    assert before == (emqx.live(), emqx.user("root"))


def test_pages_and_sessions() -> None:
    """`hasnext` is true but on the last page; a kick ends one session and tells the broker."""
    kicked: list[str] = []
    with EmqxBroker(on_kick=kicked.append) as emqx:
        assert (201, {"user_id": "a", "is_superuser": False}) == ask(
            emqx, "POST", USERS, json={"user_id": "a", "password": "x"}
        )
        emqx.add_key("b")
        emqx.connect("a", "c/1")
        emqx.connect("b", "c2")
        status, body = ask(emqx, "GET", f"{USERS}?page=1&limit=1")
        assert (200, [{"user_id": "a", "is_superuser": False}]) == (status, body["data"])
        assert {"page": 1, "limit": 1, "count": 2, "hasnext": True} == body["meta"]
        assert not ask(emqx, "GET", f"{USERS}?page=2&limit=1")[1]["meta"]["hasnext"]
        (session,) = ask(emqx, "GET", "/clients?username=a")[1]["data"]
        assert ("c/1", "a", True) == (session["clientid"], session["username"], session["connected"])
        assert (204, None) == ask(emqx, "DELETE", "/clients/c%2F1")
        assert (["c/1"], ["c2"]) == (kicked, emqx.sessions())
        assert (204, None) == ask(emqx, "DELETE", f"{USERS}/a")
        assert None is emqx.user("a")
