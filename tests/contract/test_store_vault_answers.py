"""Answers that no healthy Vault gives, in place of its own: lost, refused, a proxy's, and with every field wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import requests

from contract.store_stage import StoreStage
from contract.vault_replay import Exchange, Tape, VaultReplay, answer_of, recorded
from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import StoredSecret
from rotator.reasons import Reason
from rotator.stores import AppRoleAuth, VaultStore
from rotator.stores.vault import Survey

READ = "/v1/secret/data/mqtt/b"
BEFORE = recorded("read latest")


def after(version: int, **fields: str) -> Exchange:
    """The recorded reading with other contents."""
    answer = copy.deepcopy(BEFORE.answer)
    assert isinstance(answer, dict)
    answer["data"]["data"].update(fields)
    answer["data"]["metadata"]["version"] = version
    return answer_of("read latest", answer=answer)


# --- lost, and refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [None, 3])
def test_a_write_whose_answer_was_lost_is_found_by_reading(stage: StoreStage, known: int | None) -> None:
    """The cut is Transient; the next put finds that it happened, and no second version is made."""
    read = (answer_of("read latest"),) if known is None else ()
    cut = Exchange(method="POST", path="/v1/secret/data/mqtt/a", cut=True)
    mismatch = (answer_of("cas too low"),) if known is not None else ()
    with VaultReplay(*read, cut, *mismatch, after(4, password="p4")) as vault:
        store = stage.store(vault.url)
        with pytest.raises(Transient) as caught:
            store.put("mqtt/a", {"password": "p4"}, known=known)
        assert Reason.VAULT_UNREACHABLE is caught.value.reason
        assert 4 == store.put("mqtt/a", {"password": "p4"}, known=known)


def test_a_cut_write_at_one_address_is_settled_at_the_next(stage: StoreStage) -> None:
    """The second address answers the same cas with a mismatch, and the reading shows that it had happened."""
    cut = Exchange(method="POST", path="/v1/secret/data/mqtt/a", cut=True)
    with (
        VaultReplay(answer_of("read latest"), cut) as one,
        VaultReplay(answer_of("cas too low"), after(4, password="p4")) as two,
    ):
        assert 4 == stage.store(one.url, two.url).put("mqtt/a", {"password": "p4"})


def test_five_mismatches_are_enough(stage: StoreStage) -> None:
    """A path that changes under every write is given back to the engine, named."""
    pair = (answer_of("read latest"), answer_of("cas too low"))
    with VaultReplay(*pair * 5) as vault, pytest.raises(Transient) as caught:
        stage.store(vault.url).put("mqtt/a", {"password": "p9"})
    assert Reason.VAULT_CONFLICT is caught.value.reason


def get(status: int, answer: object = None, **more: Any) -> Exchange:
    """An answer to a read."""
    return Exchange(method="GET", path=READ, status=status, answer=answer, **more)


@pytest.mark.parametrize(
    ("answer", "kind", "reason", "delay"),
    [
        (get(404, b"<html>not found</html>"), Permanent, Reason.VAULT_PATH_INVALID, None),
        (get(404), Permanent, Reason.VAULT_PATH_INVALID, None),
        (get(404, {"errors": []} | {"warnings": ["x"]}), Permanent, Reason.VAULT_PATH_INVALID, None),
        (get(200, {"data": {"password": "of kv 1"}}), Permanent, Reason.VAULT_PATH_INVALID, None),
        (get(204), Permanent, Reason.VAULT_PATH_INVALID, None),
        (get(429, headers={"Retry-After": "7"}), Transient, Reason.VAULT_RATE_LIMITED, 7),
        (get(429), Transient, Reason.VAULT_RATE_LIMITED, None),
        (get(500, {"errors": ["internal error"]}), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(503, b"none", headers={"Retry-After": "9"}), Transient, Reason.VAULT_UNAVAILABLE, 9),
        (get(502, b"bad"), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(504), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(412), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(472), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(400, {"errors": ["Upgrading from non-versioned"]}), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(200, b"<html>portal</html>"), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(200, [1]), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(200, b"[" * 100_000), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(200, b'{"data": "\xff\xfe"}'), Permanent, Reason.VAULT_PATH_INVALID, None),
        (get(405, {"errors": ["unsupported operation"]}), Permanent, Reason.VAULT_PATH_INVALID, None),
        (get(413, {"errors": ["request body too large"]}), Transient, Reason.VAULT_UNAVAILABLE, None),
        (get(200, cut=True), Transient, Reason.VAULT_UNREACHABLE, None),
    ],
)
def test_every_answer_has_its_error(
    stage: StoreStage, answer: Exchange, kind: type[RotatorError], reason: Reason, delay: float | None
) -> None:
    """Whatever Vault, or a proxy before it, answers to a read is named."""
    with VaultReplay(answer) as vault, pytest.raises(RotatorError) as caught:
        stage.store(vault.url).read("mqtt/b")
    assert (kind, reason) == (type(caught.value), caught.value.reason)
    wanted = None if delay is None else timedelta(seconds=delay)
    assert wanted == getattr(caught.value, "retry_after", None)


def test_a_large_secret_comes_back_whole(stage: StoreStage) -> None:
    """Eight megabytes beside our field, and ten thousand fields: more than Vault takes."""
    fields = {f"f{number}": "x" * 800 for number in range(10_000)}
    with VaultReplay(after(3, **fields)) as vault:
        found = stage.store(vault.url).read("mqtt/a")
    assert {**fields, "username": "u1", "password": "p3"} == found.data


# --- every field wrong ---------------------------------------------------------------------------------------------

WRONG: tuple[Any, ...] = (
    None, True, 0, -1, 7, 1.5, 10**400, "", "x", "\ud800\x00", "x" * 100_000, [], [[]], [None, 1, {}], ["read"], {},
    {"": None}, {"data": {}}, "2026-11-21T08:55:57Z", "9999-99-99T99:99:99Z", "0001-01-01T00:00:00Z",
)  # fmt: skip
MADE_UP = "made-up-value"

# A Vault in which everything is well, by method and start of the path.
WELL: dict[tuple[str, str], tuple[int, Any]] = {
    ("GET", "/v1/sys/health"): (200, {"initialized": True, "sealed": False}),
    ("GET", "/v1/sys/internal/ui/mounts/"): (200, {"data": {"type": "kv", "options": {"version": "2"}}}),
    ("GET", "/v1/secret/data/"): (
        200,
        {
            "data": {
                "data": {"password": MADE_UP, "note": MADE_UP},
                "metadata": {"version": 3, "destroyed": False, "deletion_time": ""},
            }
        },
    ),
    ("POST", "/v1/secret/data/"): (200, {"data": {"version": 4, "destroyed": False}}),
    ("POST", "/v1/secret/undelete/"): (204, None),
    ("POST", "/v1/secret/metadata/"): (204, None),
    ("GET", "/v1/secret/metadata/"): (
        200,
        {
            "data": {
                "current_version": 3,
                "max_versions": 0,
                "cas_required": False,
                "delete_version_after": "0s",
                "current_metadata_version": 2,
                "custom_metadata": {"owner": "ops"},
                "versions": {"3": {"deletion_time": "", "destroyed": False}},
            }
        },
    ),
    ("GET", "/v1/secret/config"): (200, {"data": {"max_versions": 9}}),
    ("POST", "/v1/sys/capabilities-self"): (
        200,
        {"data": {f"secret/{part}/mqtt/a": ["create", "read", "update"] for part in ("data", "metadata", "undelete")}},
    ),
    ("POST", "/v1/auth/approle/login"): (
        200,
        {"auth": {"client_token": "made-up-token", "lease_duration": 3600, "renewable": True}},
    ),
    ("POST", "/v1/auth/token/renew-self"): (200, {"auth": {"lease_duration": 3600, "renewable": True}}),
    ("GET", "/v1/auth/token/lookup-self"): (200, {"data": {"ttl": 3600, "renewable": True}}),
}


class Odd(Tape):
    """Answers each request by its path, as often as it comes; what stands in `instead` differs from `WELL`."""

    def __init__(self, instead: dict[tuple[str, str], tuple[int, Any]]) -> None:
        super().__init__()
        self.asked: set[tuple[str, str]] = set()
        self._answers = {**WELL, **instead}

    def answer(self, request: requests.PreparedRequest) -> Exchange:
        """What stands there for it."""
        for (method, start), (status, body) in self._answers.items():
            if request.method == method and request.path_url.startswith(start):
                self.asked.add((method, start))
                return Exchange(method=method, path=request.path_url, status=status, answer=body)
        raise AssertionError(f"{request.method} {request.path_url} is not a request that the store makes")


def places(body: object, where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every field of an answer, and of the answer itself."""
    yield where
    if isinstance(body, dict):
        for name, value in body.items():
            yield from places(value, (*where, name))


def changed(body: object, where: tuple[str, ...], value: object) -> object:
    """The same with another value there."""
    if not where:
        return value
    assert isinstance(body, dict)
    return {**body, where[0]: changed(body[where[0]], where[1:], value)}


def without(body: object, where: tuple[str, ...]) -> object:
    """The same with nothing there."""
    assert isinstance(body, dict)
    if len(where) == 1:
        return {name: value for name, value in body.items() if name != where[0]}
    return {**body, where[0]: without(body[where[0]], where[1:])}


def is_stored(given: object) -> bool:
    """A version that a write's cas can name, and data or none."""
    return isinstance(given, StoredSecret) and is_version(given.version) and isinstance(given.data, dict | None)


def is_version(given: object) -> bool:
    """A number that Vault could have given."""
    return type(given) is int and given >= 0


VERBS: tuple[tuple[str, Callable[[VaultStore], object], Callable[[object], bool]], ...] = (
    ("ready", lambda store: store.ready(), lambda given: given is None),
    ("preflight", lambda store: store.preflight("mqtt/a", versions=3, lasting=timedelta(hours=1)), is_stored),
    ("survey", lambda store: store.survey("mqtt/a"), lambda given: isinstance(given, Survey)),
    ("read", lambda store: store.read("mqtt/a"), is_stored),
    ("put", lambda store: store.put("mqtt/a", {"password": "made-up-new"}), is_version),
    ("put known", lambda store: store.put("mqtt/a", {"password": "made-up-new"}, known=3), is_version),
    ("annotate", lambda store: store.annotate("mqtt/a", {"key": "a"}), lambda given: given is None),
    ("undelete", lambda store: store.undelete("mqtt/a", 3), lambda given: given is None),
    ("renew", lambda store: store.renew(), lambda given: given is None or isinstance(given, datetime)),
)


def outcome(stage: StoreStage, tape: Odd, name: str) -> str:
    """What a verb makes of it: a value of its kind ("") or an error of ours, whose words are given."""
    verb, right = next((verb, right) for each, verb, right in VERBS if each == name)
    store = stage.store("http://vault", auth=AppRoleAuth(role_id=lambda: "made-up-role", secret_id=lambda: "made-up"))
    tape.into(store)
    try:
        given = verb(store)
    except RotatorError as exc:
        return str(exc)
    assert right(given), (name, given)
    return ""


@pytest.mark.parametrize("name", [name for name, _, _ in VERBS])
def test_nothing_is_wrong_with_the_double(stage: StoreStage, name: str) -> None:
    """Every verb passes where every field is right."""
    assert "" == outcome(stage, Odd({}), name)


@pytest.mark.parametrize("name", [name for name, _, _ in VERBS])
def test_any_field_may_be_wrong(stage: StoreStage, name: str) -> None:
    """Each field of each answer replaced by each wrong value, and left out: a right value or an error of ours, in
    words that a log can hold, that show nothing secret and that are not the answer.
    """
    well = Odd({})
    outcome(stage, well, name)
    for key in well.asked:
        status, body = WELL[key]
        for where in places(body):
            bodies = [changed(body, where, value) for value in WRONG]
            for odd in bodies + ([without(body, where)] if where else []):
                words = outcome(stage, Odd({key: (status, odd)}), name)
                words.encode()  # half of a surrogate pair could be written neither to the journal nor to a log
                assert "made-up" not in words
                assert len(words) < 1500, (key, where)


@pytest.mark.parametrize("name", [name for name, _, _ in VERBS])
@pytest.mark.parametrize("status", [200, 204, 302, 400, 401, 403, 404, 405, 407, 418, 500, 502, 503])
def test_a_proxys_page_in_the_place_of_any_answer(stage: StoreStage, name: str, status: int) -> None:
    """An error of ours, or a right value where the answer was not needed; the page is taken for no answer."""
    page = b"<html><body>made-up page</body></html>"
    for key in WELL:
        assert "made-up" not in outcome(stage, Odd({key: (status, page)}), name)
    assert outcome(stage, Odd(dict.fromkeys(WELL, (status, page))), name)
