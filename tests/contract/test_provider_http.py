"""`kind: http` over real sockets: the examples of config/ on the sandbox's platforms, a scripted endpoint for the rest.

EMQX and ThingsBoard show secrets that the caller chooses, iShareRadio those that are made in place, Losant those of a
second key beside the first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from contract.generic_examples import provider_for, section
from contract.graphql_double import Scripted
from contract.rest_double import RestCall, RestDouble
from provider_site import built
from rotator.clock import SystemClock
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Identity, RequestDone, Secret, Strategy
from rotator.ports import Choosing, Evicting, InPlace, Replacing
from rotator.reasons import Reason
from rotator.sandbox.emqx import EmqxBroker
from rotator.sandbox.faults import Cut, Faults
from rotator.sandbox.ishareradio import LIST_SHAPES, IShareRadioPlatform
from rotator.sandbox.losant import LosantPlatform, new_id
from rotator.sandbox.thingsboard import ThingsBoard

MARKER = "rotator-0123456789ab-1"
SECRET = "a-secret-of-the-platform"
LATER = timedelta(seconds=60)
OPTIONAL_RIGHTS = {"$from": "rights", "$optional": True}
Make = Callable[..., Any]


class AheadClock(SystemClock):
    """The machine's clock, to which a test may add."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead.total_seconds()


@pytest.fixture
def emqx() -> Iterator[EmqxBroker]:
    """A broker without users."""
    with EmqxBroker() as running:
        yield running


@pytest.fixture
def board() -> Iterator[ThingsBoard]:
    """A tenant without devices."""
    with ThingsBoard() as running:
        yield running


@pytest.fixture
def radio() -> Iterator[IShareRadioPlatform]:
    """An account without clients."""
    with IShareRadioPlatform() as running:
        yield running


@pytest.fixture
def losant() -> Iterator[LosantPlatform]:
    """An application without keys."""
    with LosantPlatform() as running:
        yield running


@pytest.fixture
def double() -> Iterator[RestDouble]:
    """A scripted endpoint."""
    with RestDouble() as served:
        yield served


@pytest.fixture
def make() -> Iterator[Make]:
    """`provider_for`, closed afterwards."""
    made: list[Any] = []

    def build(*args: Any, **more: Any) -> Any:
        made.append(provider_for(*args, **more))
        return made[-1]

    yield build
    for provider in made:
        provider.close()


@pytest.fixture
def in_place(double: RestDouble) -> Iterator[Make]:
    """Makes providers of the scripted endpoint that issue in place, and closes them."""
    made: list[Any] = []

    def build(**changes: Any) -> Any:
        made.append(built("http", "p", scripted(double, **changes), secrets={"T": "the-api-token"}))
        return made[-1]

    yield build
    for provider in made:
        provider.close()


def scripted(double: RestDouble, **changes: Any) -> dict[str, Any]:
    """The section of such a provider."""
    requests: dict[str, Any] = {
        "list": {"method": "GET", "path": "/keys", "result": {"id": "id", "expires_at": "until"}},
        "issue": {
            "method": "POST",
            "path": "/keys/{id}/secret",
            "result": {"id": "id", "secret": "secret", "issued_at": "at", "expires_at": "until"},
            "absent": {"when": "error.code == 'no_key'"},
        },
        **changes.pop("requests", {}),
    }
    return {"url": double.url, "strategy": "in_place", "auth": {"token": {"env": "T"}}, "requests": requests, **changes}


def raised(call: Callable[[], object]) -> RotatorError:
    """The error of a call that must fail."""
    with pytest.raises(RotatorError) as caught:
        call()
    return caught.value


# --- EMQX: chosen by the caller, old sessions kicked ---------------------------------------------------------------


def test_emqx_sets_a_password_and_keeps_what_it_does_not_name(emqx: EmqxBroker, make: Make) -> None:
    """The flag of a superuser survives the PUT that would reset it; the old password is dead at once."""
    name, old = emqx.add_key("lift 1/ä", is_superuser=True)
    provider = make(emqx)
    assert isinstance(provider, Choosing)
    assert isinstance(provider, Evicting)
    secret = provider.choose()
    for _ in range(2):  # safe to repeat
        issued = provider.set_secret(provider.identity(name), secret)
    assert {name: secret.reveal()} == emqx.live() != {name: old}
    assert {"user_id": name, "is_superuser": True} == emqx.user(name)
    assert (Identity(id=name, username=name), secret, None) == (issued.identity, issued.secret, issued.expires_at)
    assert ["get", "set"] * 2 == [seen.operation for seen in emqx.seen]


def test_an_original_that_lacks_what_is_kept_changes_nothing(emqx: EmqxBroker, make: Make) -> None:
    """A PUT without the flag would reset it."""
    name, old = emqx.add_key(is_superuser=True)
    requests = section("emqx")["requests"]
    requests["set"]["body"]["is_superuser"] = {"$from": "is_a_superuser"}
    provider = make(emqx, requests=requests)
    error = raised(lambda: provider.set_secret(provider.identity(name), provider.choose()))
    assert (Transient, Reason.PROVIDER_ANSWER_UNREADABLE) == (type(error), error.reason)
    assert {name: old} == emqx.live()


def test_emqx_creates_nobody(emqx: EmqxBroker, make: Make) -> None:
    """A user that is not there is KEY_UNKNOWN, and stays away."""
    provider = make(emqx)
    for id in ("nobody", "..", ".", "", "\ud800"):
        error = raised(partial(provider.set_secret, provider.identity(id), Secret("x" * 20)))
        assert (Permanent, Reason.KEY_UNKNOWN) == (type(error), error.reason)
    assert {} == emqx.live()
    assert 0 == emqx.count("set")


def test_emqx_users_are_listed_page_by_page(emqx: EmqxBroker, make: Make) -> None:
    """However short the pages are."""
    names = [emqx.add_key(f"user-{number:03}")[0] for number in range(25)]
    emqx.page_limit = 10
    assert names == [key.id for key in make(emqx).list_keys()]
    assert 3 == emqx.count("list")


def test_emqx_kicks_who_came_before(emqx: EmqxBroker, make: Make) -> None:
    """All sessions of that username, over several pages, but for those that began later; who left is no error."""
    emqx.page_limit = 2
    for number in range(5):
        emqx.connect("lift", f"old-{number}")
    emqx.connect("other", "o")
    before = datetime.now(UTC) + LATER
    emqx.now = lambda: before + LATER
    emqx.connect("lift", "new")
    provider = make(emqx)
    assert 5 == provider.evict(Identity(id="lift", username="lift"), before)
    assert ["o", "new"] == emqx.sessions()
    assert 0 == provider.evict(Identity(id="lift", username="lift"), before)


def test_an_odd_session_protects_no_other(emqx: EmqxBroker, make: Make) -> None:
    """A client id that can't stand in a URL is told of when all others are gone."""
    for id in ("a", "..", "b"):
        emqx.connect("lift", id)
    error = raised(lambda: make(emqx).evict(Identity(id="lift", username="lift"), datetime.now(UTC) + LATER))
    assert (Permanent, [".."]) == (type(error), emqx.sessions())
    assert "'..' can't stand in a URL" in error.message


def test_emqx_deletes_once_and_again(emqx: EmqxBroker, make: Make) -> None:
    """Absent on delete is success."""
    name, _ = emqx.add_key()
    for _ in range(2):
        make(emqx).delete(name)
    assert {} == emqx.live()


def test_a_wrong_login_is_named_and_not_told(emqx: EmqxBroker, make: Make) -> None:
    """PROVIDER_AUTH with the platform's words, without the password in any form."""
    provider = make(emqx, auth={"basic": {"username": "nobody", "password": {"env": "SECRET"}}})
    error = raised(provider.list_keys)
    assert (Permanent, Reason.PROVIDER_AUTH) == (type(error), error.reason)
    assert "BAD_API_KEY_OR_SECRET: Check api_key/api_secret" in error.message
    assert emqx.api_secret not in error.message


# --- ThingsBoard: chosen by the caller, one credential a device ----------------------------------------------------


def test_thingsboard_changes_the_password_and_nothing_else(board: ThingsBoard, make: Make) -> None:
    """The whole credential goes back with another password in the JSON that is a text inside of it."""
    id, old = board.add_key('lift "1"', client_id="c\\1")
    provider = make(board)
    (key,) = provider.list_keys()
    assert (id, 'lift "1"', 'lift "1"') == (key.id, key.name, key.identity.username)
    before = board.credentials(id)
    secret = provider.choose()
    provider.set_secret(key.identity, secret)
    assert {'lift "1"': secret.reveal()} == board.live() != {'lift "1"': old}
    after = board.credentials(id)
    assert {"clientId": "c\\1", "userName": 'lift "1"', "password": secret.reveal()} == json.loads(
        after.pop("credentialsValue")
    )
    before.pop("credentialsValue")
    assert before == after


def test_thingsboard_s_access_tokens_are_managed_too(board: ThingsBoard, make: Make) -> None:
    """The example's comment: another body, and the token is id and username at once."""
    id, _ = board.add_key(kind="ACCESS_TOKEN")
    requests = {
        "get": {"method": "GET", "path": "/device/{id}/credentials"},
        "set": {
            "method": "POST",
            "path": "/device/credentials",
            "body": {"$from": "@", "credentialsId": "{secret}"},
        },
    }
    provider = make(board, requests=requests)
    secret = provider.choose()
    provider.set_secret(provider.identity(id), secret)
    assert {secret.reveal(): secret.reveal()} == board.live()
    assert (False, False) == (provider.abilities.lists, isinstance(provider, Evicting))
    assert Reason.PROVIDER_UNABLE is raised(provider.list_keys).reason


def test_a_device_that_is_gone_is_unknown(board: ThingsBoard, make: Make) -> None:
    """Told by the platform's own code, and nothing is set."""
    id, _ = board.add_key()
    board.remove(id)
    provider = make(board)
    assert Reason.KEY_UNKNOWN is raised(lambda: provider.set_secret(provider.identity(id), provider.choose())).reason
    assert 0 == board.count("set")


def test_a_login_is_renewed_before_it_ends_and_made_anew_after_a_401(board: ThingsBoard, make: Make) -> None:
    """By the token's own `exp`, since the answer names no life; a refresh token that is spent leads to a new login."""
    clock = AheadClock()
    board.now = clock.now
    provider = make(board, clock=clock)
    provider.list_keys()
    assert (1, 0) == (board.count("login"), board.count("token"))
    clock.ahead = board.token_life - timedelta(seconds=30)
    provider.list_keys()
    assert (1, 1) == (board.count("login"), board.count("token"))
    board.end_sessions()  # which nobody told us of
    provider.list_keys()
    assert (2, 1, 4) == (board.count("login"), board.count("token"), board.count("list"))
    clock.ahead += board.refresh_life + LATER
    provider.list_keys()
    assert (3, 2) == (board.count("login"), board.count("token"))


def test_a_refused_login_is_asked_once(board: ThingsBoard, make: Make) -> None:
    """PROVIDER_AUTH, and no request of ours behind it."""
    provider = make(board)
    board.password = "changed"
    error = raised(provider.list_keys)
    assert (Permanent, Reason.PROVIDER_AUTH) == (type(error), error.reason)
    assert (1, 0) == (board.count("login"), board.count("list"))


# --- iShareRadio: in place -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", LIST_SHAPES)
def test_ishareradio_lists_in_every_shape(radio: IShareRadioPlatform, make: Make, shape: str) -> None:
    """One expression for all; an empty list is one, too."""
    radio.list_shape = shape
    provider = make(radio)
    assert [] == list(provider.list_keys())
    id, _ = radio.add_key("site")
    radio.state.pause(radio.add_key("paused")[0], True)
    first, second = provider.list_keys()
    assert (id, "site", None, None) == (first.id, first.name, first.problem, first.expires_at)
    assert Reason.KEY_INACTIVE is second.problem


@pytest.mark.parametrize("nested", [True, False])
def test_ishareradio_rotates_in_place(radio: IShareRadioPlatform, make: Make, nested: bool) -> None:
    """Wherever the answer holds the password; one request."""
    radio.state.rotate_nested = nested
    id, old = radio.add_key()
    provider = make(radio)
    assert isinstance(provider, InPlace)
    issued = provider.issue(provider.identity(id))
    assert {id: issued.secret.reveal()} == radio.live() != {id: old}
    assert ["rotate"] == [seen.operation for seen in radio.seen]


def test_ishareradio_pauses_resumes_and_deletes(radio: IShareRadioPlatform, make: Make) -> None:
    """Each may be repeated; what is gone can't be brought back, and gets no new secret."""
    id, secret = radio.add_key()
    provider = make(radio)
    who = provider.identity(id)
    for _ in range(2):
        provider.deactivate(who)
        assert {} == radio.live()
    for _ in range(2):
        provider.reactivate(who)
        assert {id: secret} == radio.live()
    for _ in range(2):
        provider.delete(id)
    provider.deactivate(who)
    for call in (provider.reactivate, provider.issue):
        assert Reason.KEY_UNKNOWN is raised(partial(call, who)).reason


# --- Losant: replace -----------------------------------------------------------------------------------------------


def test_a_clone_is_made_of_the_original_and_marked(losant: LosantPlatform, make: Make) -> None:
    """Whole lists of the original travel as they are; an older marker gives way to the new one."""
    device = new_id()
    restricted = {
        "name": "lift",
        "description": f"the lifts {MARKER.replace('-1', '-7')}",
        "deviceIds": [device],
        "deviceTags": [{"key": "type", "value": "lift"}],
        "pubTopics": ["lifts/up"],
        "filterType": "whitelist",
    }
    old, old_secret = losant.add_key(**restricted)
    provider = make(losant)
    assert isinstance(provider, Replacing)
    assert (Strategy.REPLACE, True) == (provider.strategy, provider.deactivates)
    issued = provider.create(Identity(id=old.id, username=old.key), MARKER)
    first, second = losant.keys()
    different = {name for name in first if first[name] != second[name]}
    assert {"id", "applicationKeyId", "key", "creationDate", "lastUpdated", "description"} >= different
    assert f"the lifts {MARKER}" == second["description"]
    assert Identity(id=second["id"], username=second["key"], client_id=device) == issued.identity
    assert {old.key: old_secret, issued.identity.username: issued.secret.reveal()} == losant.live()
    listed = provider.list_keys()
    assert [MARKER.replace("-1", "-7"), MARKER] == [key.marker for key in listed]
    assert issued.identity == listed[1].identity
    assert issued.issued_at == listed[1].issued_at


def test_a_paused_original_is_not_cloned(losant: LosantPlatform, make: Make) -> None:
    """Its clone would be let in."""
    old, _ = losant.add_key(deviceIds=[new_id()])
    provider = make(losant)
    who = Identity(id=old.id, username=old.key)
    provider.deactivate(who)
    assert Reason.KEY_INACTIVE is raised(lambda: provider.create(who, MARKER)).reason
    provider.delete(old.id)
    assert Reason.KEY_UNKNOWN is raised(lambda: provider.create(who, MARKER)).reason
    assert 0 == losant.count("create")


def test_keys_that_are_made_meanwhile_hide_no_other(losant: LosantPlatform, make: Make) -> None:
    """Page by page, newest first, while one comes with each page."""
    ids = {losant.add_key()[0].id for _ in range(9)}
    losant.state.page_limit = 4
    provider = make(losant)
    made: list[str] = []
    plain = losant.state.page

    def page(query: Any) -> Any:
        shown = plain({**query, "sortDirection": "desc"})
        if len(made) < 2:
            made.append(losant.add_key()[0].id)
        return shown

    losant.state.page = page  # type: ignore[method-assign]
    listed = {key.id for key in provider.list_keys()}
    assert 2 == len(made)
    assert ids | set(made) == listed


# --- faults --------------------------------------------------------------------------------------------------------

FAULTS = [
    (Faults(status=429, retry_after="7"), Transient, Reason.PROVIDER_RATE_LIMITED, False),
    (Faults(status=429), Transient, Reason.PROVIDER_RATE_LIMITED, False),
    (Faults(status=403), Permanent, Reason.PROVIDER_AUTH, False),
    (Faults(status=500), UnknownOutcome, Reason.OUTCOME_UNKNOWN, False),
    (Faults(status=503, status_after_effect=True), UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
    (Faults(cut=Cut.BEFORE_EFFECT), UnknownOutcome, Reason.OUTCOME_UNKNOWN, False),
    (Faults(cut=Cut.AFTER_EFFECT), UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
    (Faults(truncate=True), UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
    (Faults(latency_before=5.0), UnknownOutcome, Reason.OUTCOME_UNKNOWN, False),
]


@pytest.mark.parametrize(("faults", "kind", "reason", "effect"), FAULTS, ids=lambda value: str(value)[:60])
def test_a_fault_of_the_call_that_issues_is_named(
    radio: IShareRadioPlatform,
    make: Make,
    faults: Faults,
    kind: type[RotatorError],
    reason: Reason,
    effect: bool,
) -> None:
    """What may have been done is unknown; what was refused at the door is not; the way is clear again afterwards."""
    id, old = radio.add_key()
    provider = make(radio, timeout="500ms")
    faults.operations, faults.times = frozenset({"rotate"}), 1
    radio.faults = faults
    error = raised(lambda: provider.issue(provider.identity(id)))
    assert (kind, reason) == (type(error), error.reason)
    assert effect == (radio.live() != {id: old})
    if faults.retry_after:
        assert isinstance(error, Transient)
        assert timedelta(seconds=7) == error.retry_after
    radio.faults = Faults()
    issued = provider.issue(provider.identity(id))
    assert {id: issued.secret.reveal()} == radio.live()


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (Faults(status=500), Reason.PROVIDER_UNAVAILABLE),
        (Faults(cut=Cut.AFTER_EFFECT), Reason.PROVIDER_UNREACHABLE),
        (Faults(truncate=True), Reason.PROVIDER_ANSWER_UNREADABLE),
    ],
    ids=str,
)
def test_a_fault_of_a_look_is_worth_another(emqx: EmqxBroker, make: Make, faults: Faults, reason: Reason) -> None:
    """Transient, for the list and for the look at the original; nothing was set by then."""
    name, old = emqx.add_key()
    provider = make(emqx)
    faults.operations = frozenset({"list", "get"})
    emqx.faults = faults
    for call in (provider.list_keys, lambda: provider.set_secret(provider.identity(name), provider.choose())):
        error = raised(call)
        assert (Transient, reason) == (type(error), error.reason)
    assert {name: old} == emqx.live()


@pytest.mark.parametrize(
    ("status", "body", "headers", "seconds"),
    [
        (429, {}, {"Retry-After": "30"}, 30),
        (429, {"wait": "40 seconds"}, {}, 40),
        (429, {"wait": 50}, {"Retry-After": "1"}, 50),
        (429, {"wait": None}, {}, None),
        (503, {"wait": "2m"}, {}, 120),
    ],
)
def test_a_delay_is_read_where_the_platform_has_it(
    double: RestDouble,
    in_place: Make,
    status: int,
    body: object,
    headers: dict[str, str],
    seconds: float | None,
) -> None:
    """The header, or what `errors.retry_after` finds in the body."""
    double.script["GET"] = [Scripted(status=status, body=body, headers=headers)]
    error = raised(in_place(errors={"retry_after": "wait"}).list_keys)
    assert isinstance(error, Transient)
    assert (timedelta(seconds=seconds) if seconds is not None else None) == error.retry_after


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"id": "k", "secret": None}, Reason.NO_SECRET),
        ({"id": "k"}, Reason.NO_SECRET),
        ([], Reason.NO_SECRET),
        ({"id": "k", "secret": " "}, Reason.EMPTY_SECRET),
        ({"id": "k", "secret": 5}, Reason.PROVIDER_ANSWER_UNREADABLE),
        ({"id": "k", "secret": "\ud800"}, Reason.PROVIDER_ANSWER_UNREADABLE),
        ({"id": "other", "secret": SECRET}, Reason.PROVIDER_ANSWER_UNREADABLE),
    ],
    ids=str,
)
def test_an_answer_without_a_usable_secret_is_kept(
    double: RestDouble, in_place: Make, body: object, reason: Reason
) -> None:
    """BadAnswer, with the raw answer for the journal and none of it in the message."""
    double.script["POST"] = [Scripted(body=body)]
    error = raised(lambda: in_place().issue(Identity(id="k", username="k")))
    assert (BadAnswer, reason) == (type(error), error.reason)
    assert json.dumps(body).encode() == error.body
    assert SECRET not in str(error)


@pytest.mark.parametrize(
    ("body", "until", "source"),
    [
        ({"secret": SECRET, "at": "2026-03-24T12:00:00", "until": 1782000000}, "2026-06-21T00:00:00+00:00", "answer"),
        ({"secret": SECRET, "at": "2026-03-24T12:00:00Z", "until": None}, "2026-04-23T12:00:00+00:00", "lifetime"),
        ({"secret": SECRET, "at": ["odd"], "until": {"odd": 1}}, None, None),
    ],
    ids=str,
)
def test_an_expiry_is_read_or_derived(
    double: RestDouble, in_place: Make, body: object, until: str | None, source: str | None
) -> None:
    """Timestamps in all their habits, else `lifetime`; odd ones never cost the secret."""
    double.script["POST"] = [Scripted(body=body)]
    lifetime = "120d" if source == "answer" else "30d"
    issued = in_place(lifetime=lifetime).issue(Identity(id="k", username="k"))
    assert SECRET == issued.secret.reveal()
    assert (until, source) == (issued.expires_at and issued.expires_at.isoformat(), issued.expiry_source)


def test_an_issued_secret_counts_more_than_the_status_beside_it(double: RestDouble, in_place: Make) -> None:
    """Rule 1: the old one is dead already."""
    double.script["POST"] = [Scripted(status=500, body={"id": "K", "secret": SECRET})]
    assert SECRET == in_place().issue(Identity(id="k", username="k")).secret.reveal()


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (200, b"<html>hello</html>", UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (200, {"ok": False}, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (200, {"ok": False, "error": {"text": "the flux is low"}}, Permanent, Reason.PROVIDER_REFUSED),
        (200, {"ok": False, "error": {"text": "rate limit"}}, Transient, Reason.PROVIDER_RATE_LIMITED),
        (200, {"ok": False, "error": {"text": "internal error"}}, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (404, {"error": {"code": "no_key"}}, Permanent, Reason.KEY_UNKNOWN),
        (404, {"error": {"text": "no such path"}}, Permanent, Reason.PROVIDER_REFUSED),
        (404, b"a gateway's own page", Permanent, Reason.PROVIDER_REFUSED),
        (302, {}, Permanent, Reason.PROVIDER_REFUSED),
        (201, {"ok": True, "secret": SECRET}, None, None),
    ],
    ids=str,
)
def test_success_is_what_the_configuration_says(
    double: RestDouble,
    in_place: Make,
    status: int,
    body: object,
    kind: type[RotatorError] | None,
    reason: Reason | None,
) -> None:
    """By status and `when`; a no inside a 200 is a no where the platform says why, else nobody knows."""
    double.script["POST"] = [Scripted(status=status, body=body)]
    issue = {
        "method": "POST",
        "path": "/keys/{id}/secret",
        "result": {"secret": "secret"},
        "success": {"when": "ok"},
        "absent": {"when": "error.code == 'no_key'"},
    }
    provider = in_place(requests={"issue": issue}, errors={"message": "error.text"})
    if kind is None:
        assert SECRET == provider.issue(Identity(id="k", username="k")).secret.reveal()
        return
    error = raised(lambda: provider.issue(Identity(id="k", username="k")))
    assert (kind, reason) == (type(error), error.reason)


@pytest.mark.parametrize(
    "body",
    [
        {"id": "k"},
        [{"name": "k"}],
        [{"id": None}],
        [{"id": ["k"]}],
        [{"id": "k" * 2000}],
        [[]],
        "k",
        None,
        b"\xff",
        b"",
    ],
    ids=str,
)
def test_a_list_that_is_none_is_unreadable(double: RestDouble, in_place: Make, body: object) -> None:
    """Transient: the platform, or something before it, is not itself."""
    double.script["GET"] = [Scripted(body=body)]
    error = raised(in_place().list_keys)
    assert (Transient, Reason.PROVIDER_ANSWER_UNREADABLE) == (type(error), error.reason)


def test_an_answer_that_is_too_deep_or_too_long_is_unreadable(double: RestDouble, in_place: Make) -> None:
    """Bounded, whatever comes: nested as deep as JSON can be, and longer than anybody reads."""
    provider = in_place()
    for body in (b"[" * 200 + b"]" * 200, b"[" * 100_000, b"[" + b"1," * 1_500_000 + b"1]", b" " * 50_000_000 + b"[]"):
        double.script["GET"] = double.script["POST"] = [Scripted(body=body)]
        assert Reason.PROVIDER_ANSWER_UNREADABLE is raised(provider.list_keys).reason
        error = raised(lambda: provider.issue(Identity(id="k", username="k")))
        assert UnknownOutcome is type(error)


# --- what is sent --------------------------------------------------------------------------------------------------


def test_the_current_secret_is_shown_where_the_platform_asks_for_it(double: RestDouble, in_place: Make) -> None:
    """`{current}` makes `needs_current` an ability; without the secret nothing is sent."""
    double.script["POST"] = [Scripted(body={"secret": SECRET})]
    issue = {
        "method": "POST",
        "path": "/keys/{id}",
        "body": {"old": "{current}", "times": 1, "id": "{id}"},
        "result": {"secret": "secret"},
    }
    provider = in_place(requests={"issue": issue})
    assert provider.abilities.needs_current
    assert Reason.PROVIDER_REFUSED is raised(lambda: provider.issue(Identity(id="7", username="7"))).reason
    assert [] == double.calls
    provider.issue(Identity(id="7", username="7"), Secret("old-one"))
    assert {"old": "old-one", "times": 1, "id": "7"} == double.calls[0].body
    assert "Bearer the-api-token" == double.calls[0].authorization


@pytest.mark.parametrize("id", ["a/b", "../x", "a?b=c", "a#b", "ä %41", "a\\b"])
def test_an_id_stays_one_part_of_the_path(double: RestDouble, in_place: Make, id: str) -> None:
    """Quoted whole, so that it can't become another path or a parameter."""
    double.script["POST"] = [Scripted(body={"secret": SECRET})]
    in_place().issue(Identity(id=id, username="k"))
    (path,) = [call.path for call in double.calls]
    assert path.startswith("/keys/")
    assert path.endswith("/secret")
    assert 3 == path.count("/")
    assert not set("?#") & set(path)


def test_links_to_the_next_page_are_followed_at_home_only(double: RestDouble, in_place: Make) -> None:
    """Absolute, or relative to the page; the token goes to no other place."""
    listed = {
        "method": "GET",
        "path": "/keys",
        "query": {"deep": "yes"},
        "paging": {"kind": "link", "next": "next"},
        "result": {"items": "keys", "id": "id"},
    }
    pages = [
        {"keys": [{"id": 1}], "next": f"{double.url}/keys?page=2"},
        {"keys": [{"id": 2}], "next": "?page=3"},
        {"keys": [{"id": 3}], "next": "/keys?page=4"},
        {"keys": [{"id": "4"}], "next": None},
    ]
    double.script["GET"] = [Scripted(body=page) for page in pages]
    provider = in_place(requests={"list": listed})
    assert ["1", "2", "3", "4"] == [key.id for key in provider.list_keys()]
    assert ["/keys?deep=yes", "/keys?page=2", "/keys?page=3", "/keys?page=4"] == [call.path for call in double.calls]
    for link in ("https://elsewhere.example/keys", f"{double.url}@elsewhere.example/", "//elsewhere.example/keys"):
        double.script["GET"] = [Scripted(body={"keys": [], "next": link})]
        error = raised(provider.list_keys)
        assert (Transient, Reason.PROVIDER_ANSWER_UNREADABLE) == (type(error), error.reason)
        assert "elsewhere than `url`" in error.message


def test_headers_are_sent_with_every_request(double: RestDouble, in_place: Make) -> None:
    """The provider's own, and those of a request with their templates."""
    shown: list[str] = []

    def answer(call: RestCall) -> Scripted:
        shown.append(call.path)
        return Scripted(body={"secret": SECRET})

    double.script["POST"] = [answer]
    issue = {
        "method": "POST",
        "path": "/keys",
        "query": {"who": "{username}", "what": "a&b"},
        "headers": {"X-Key": "{id}"},
        "result": {"secret": "secret"},
    }
    provider = in_place(requests={"issue": issue}, headers={"X-Account": "acme"})
    provider.issue(Identity(id="k", username="u&x"))
    assert ["/keys?who=u%26x&what=a%26b"] == shown
    error = raised(lambda: provider.issue(Identity(id="k\r\nX-Other: 1", username="u")))
    assert (Permanent, 1) == (type(error), len(shown))


def test_nothing_secret_is_logged(emqx: EmqxBroker, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Not the API's password, nor the secret that is set, at any level, even where the platform repeats it."""
    caplog.set_level(logging.DEBUG)
    name, _ = emqx.add_key()
    done: list[RequestDone] = []
    provider = make(emqx, on_request=done.append)
    secret = provider.choose()
    provider.set_secret(provider.identity(name), secret)
    assert ["get_key", "issue"] == [each.operation for each in done]
    told = caplog.text + repr(provider) + repr(done)
    assert emqx.api_secret not in told
    assert secret.reveal() not in told


def test_a_platform_that_repeats_a_secret_is_not_quoted(double: RestDouble) -> None:
    """Errors carry the platform's words, without what was sent."""
    chosen = "short-one-2"
    double.script["POST"] = [Scripted(status=422, body={"message": f"{chosen} is too short for the-api-token"})]
    own = {
        "url": double.url,
        "strategy": "chosen",
        "auth": {"token": {"env": "T"}},
        "requests": {"set": {"method": "POST", "path": "/{id}", "body": {"password": "{secret}"}}},
    }
    provider = built("http", "p", own, secrets={"T": "the-api-token"})
    assert isinstance(provider, Choosing)
    error = raised(lambda: provider.set_secret(Identity(id="k", username="k"), Secret(chosen)))
    provider.close()
    assert (Permanent, Reason.PROVIDER_REFUSED) == (type(error), error.reason)
    assert "*** is too short for ***" in error.message


@pytest.mark.parametrize(
    ("body", "success", "done"),
    [
        (b"", {}, True),
        (b"null", {}, True),
        ({"any": 1}, {}, True),
        (b"OK", {"any_body": True}, True),
        (b"OK", {}, False),
        (b"<html>log in to the network</html>", {}, False),
        (b'{"hal', {}, False),
        (b"", {"when": "ok"}, False),
    ],
    ids=str,
)
def test_a_page_with_a_200_is_no_success(
    double: RestDouble, body: object, success: dict[str, object], done: bool
) -> None:
    """Of a request from whose answer nothing is read: an empty body or JSON, unless the configuration allows any."""
    double.script["POST"] = double.script["DELETE"] = [Scripted(body=body)]
    requests = {
        "set": {"method": "POST", "path": "/{id}", "body": {"password": "{secret}"}, "success": success},
        "delete": {"method": "DELETE", "path": "/{id}", "success": success},
    }
    provider: Any = built("http", "p", {"url": double.url, "strategy": "chosen", "requests": requests})
    chosen = partial(provider.set_secret, Identity(id="k", username="k"), provider.choose())
    calls: list[Callable[[], object]] = [chosen, partial(provider.delete, "k")]
    if done:
        for call in calls:
            call()
    else:
        assert [UnknownOutcome, Transient] == [type(raised(call)) for call in calls]
    provider.close()


# --- a second key, and a login, by script --------------------------------------------------------------------------


@pytest.fixture
def replacing(double: RestDouble) -> Iterator[Make]:
    """Makes providers of the scripted endpoint that make a second key, and closes them."""
    made: list[Any] = []
    requests: dict[str, Any] = {
        "list": {"method": "GET", "path": "/keys", "result": {"id": "id"}},
        "get": {"method": "GET", "path": "/keys/{id}"},
        "create": {
            "method": "POST",
            "path": "/keys",
            "body": {"label": "{name} {marker}"},
            "result": {"id": "id", "secret": "secret", "username": "user"},
            "success": {"when": "ok"},
        },
        "delete": {"method": "DELETE", "path": "/keys/{id}"},
    }

    def build(body: dict[str, object] | None = None, **changes: Any) -> Any:
        if body is None:
            requests["get"]["result"] = {"name": "label"}
        else:
            requests["create"]["body"] = body
        own = {
            "url": double.url,
            "strategy": "replace",
            "requests": requests,
            "errors": {"message": "error"},
            **changes,
        }
        made.append(built("http", "p", own, secrets={"T": "the-api-token"}))
        return made[-1]

    yield build
    for provider in made:
        provider.close()


@pytest.mark.parametrize("body", [b"<html>", b"", b'{"label": "li', b"[" * 5000], ids=str)
@pytest.mark.parametrize(
    "sent", [{"label": "{name} {marker}"}, {"label": "{marker}", "rights": OPTIONAL_RIGHTS}], ids=str
)
def test_no_key_is_made_of_an_original_that_can_not_be_read(
    double: RestDouble, replacing: Make, body: bytes, sent: dict[str, object]
) -> None:
    """Its name, or its rights, would be lost without a word."""
    double.script["GET"] = [Scripted(body=body)]
    provider = replacing(sent)
    error = raised(lambda: provider.create(Identity(id="k", username="u"), MARKER))
    assert (Transient, Reason.PROVIDER_ANSWER_UNREADABLE) == (type(error), error.reason)
    assert ["GET"] == double.methods()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"ok": True, "id": 8, "secret": SECRET, "user": "u8"}, None),
        ({"ok": True, "id": "K", "secret": SECRET, "user": "u8"}, BadAnswer),
        ({"ok": True, "secret": SECRET}, BadAnswer),
        ({"ok": True, "id": {"a": 1}, "secret": SECRET}, BadAnswer),
        ({"ok": True, "id": "8", "secret": SECRET, "user": ["u"]}, BadAnswer),
        ({"ok": False, "error": "the-api-token is out of flux"}, Permanent),
    ],
    ids=str,
)
def test_a_new_key_is_named_by_its_answer(
    double: RestDouble, replacing: Make, body: dict[str, Any], kind: type[RotatorError] | None
) -> None:
    """An id that is another than the original's, and a username; else the answer is kept for a person."""
    double.script["GET"] = [Scripted(body={"label": f"lift {MARKER}"})]
    double.script["POST"] = [Scripted(body=body)]
    provider = replacing(auth={"token": {"env": "T"}})
    who = Identity(id="k", username="u")
    if kind is None:
        assert Identity(id="8", username="u8") == provider.create(who, "rotator-aaaaaaaaaaaa-2").identity
        assert {"label": "lift rotator-aaaaaaaaaaaa-2"} == double.calls[-1].body
        return
    error = raised(lambda: provider.create(who, MARKER))
    assert kind is type(error)
    assert json.dumps(body).encode() == error.body
    assert "the-api-token" not in error.message


def test_a_refresh_token_serves_again_where_the_renewal_gives_none(double: RestDouble, make: Make) -> None:
    """Some platforms renew the access token alone; lives may be digits in a text."""
    clock = AheadClock()

    def answer(call: RestCall) -> Scripted:
        asked.append(call.body)
        first = {"refresh": "r1", "org": 7} if call.path == "/login" else {}
        return Scripted(body={"access": f"a{len(asked)}", "life": "100", **first})

    asked: list[object] = []
    double.script["POST"] = [answer]
    double.script["GET"] = [Scripted(body=[])]
    auth = {
        "login": {
            "username": "me",
            "password": {"env": "T"},
            "request": {"method": "POST", "path": "/login", "body": {"u": "{username}", "p": "{password}"}},
            "renew": {"method": "POST", "path": "/renew", "body": {"r": "{refresh}", "o": "{org}"}},
            "access": "access",
            "refresh": "refresh",
            "expires_in": "life",
            "keep": {"org": "org"},
        }
    }
    provider = built("http", "p", scripted(double, auth=auth), secrets={"T": "pass"}, clock=clock)
    for _ in range(3):
        provider.list_keys()
        provider.list_keys()
        clock.ahead += timedelta(seconds=90)
    provider.close()
    assert [{"u": "me", "p": "pass"}, {"r": "r1", "o": "7"}, {"r": "r1", "o": "7"}] == asked
    shown = [call.authorization for call in double.calls if call.method == "GET"]
    assert ["Bearer a1", "Bearer a1", "Bearer a2", "Bearer a2", "Bearer a3", "Bearer a3"] == shown
