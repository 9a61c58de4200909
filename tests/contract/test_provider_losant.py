"""The Losant provider over real sockets: the sandbox's platform for what works, a scripted endpoint for odd answers."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contract.graphql_double import Scripted
from contract.rest_double import RestDouble
from provider_site import built
from rotator.clock import SystemClock
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Identity, RequestDone, Secret, Strategy, Verdict
from rotator.ports import Checking, Deactivating, Deleting, Provisioning, Replacing
from rotator.providers import Losant, make_client
from rotator.reasons import Reason
from rotator.sandbox.losant import Cut, Faults, LosantAnswer, LosantPlatform, new_id

APPLICATION, KEY, CLONE = "575ec8687ae143cd83dc4a97", "575ec8687ae143cd83dc4a98", "675ec8687ae143cd83dc4a99"
DEVICE = "575ecf887ae143cd83dc4aa2"
MARKER = "rotator-0123456789ab-1"
TOKEN = "made-up-api-token"
SECRET = "0123456789abcdef" * 4
RESTRICTED: dict[str, object] = {
    "name": "building-a",
    "description": "the lifts rotator-aaaaaaaaaaaa-3",
    "deviceIds": [DEVICE],
    "deviceTags": [{"key": "type", "value": "lift"}],
    "filterType": "whitelist",
    "pubTopics": ["lifts/up"],
    "subTopics": ["lifts/#"],
    "addressFilterType": "whitelist",
    "addresses": ["10.0.0.0/8", "192.0.2.7"],
}
Build = Callable[..., Losant]


class AheadClock(SystemClock):
    """The machine's clock, to which a test may add."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


# what an answer means: to the call that makes a key, and to one that may be repeated
PROBLEM = {"type": "Validation", "message": "no"}
UNKNOWN = (UnknownOutcome, Reason.OUTCOME_UNKNOWN)
AUTH = (Permanent, Reason.PROVIDER_AUTH)
REFUSED = (Permanent, Reason.PROVIDER_REFUSED)
UNAVAILABLE = (Transient, Reason.PROVIDER_UNAVAILABLE)
UNREADABLE = (Transient, Reason.PROVIDER_ANSWER_UNREADABLE)
LIMITED = (Transient, Reason.PROVIDER_RATE_LIMITED)
ANSWERS = [
    (Scripted(status=429), LIMITED, LIMITED),
    (Scripted(status=401, body={"type": "Unauthorized", "message": "no"}), AUTH, AUTH),
    (Scripted(status=403), AUTH, AUTH),
    (Scripted(status=400, body=PROBLEM), REFUSED, REFUSED),
    (Scripted(status=404, body=b"<html>nothing here</html>"), REFUSED, REFUSED),
    (Scripted(status=404, body={}), REFUSED, REFUSED),
    (Scripted(status=302, headers={"Location": "/x"}), REFUSED, REFUSED),
    (Scripted(status=408), UNKNOWN, UNAVAILABLE),
    (Scripted(status=500, body={"type": "InternalServerError", "message": "oops"}), UNKNOWN, UNAVAILABLE),
    (Scripted(status=502, body=b"<html>"), UNKNOWN, UNAVAILABLE),
    (Scripted(status=503), UNKNOWN, UNAVAILABLE),
    (Scripted(body=b"<html>captive portal</html>"), UNKNOWN, UNREADABLE),
    (Scripted(body=b""), UNKNOWN, UNREADABLE),
    (Scripted(body=[1]), UNKNOWN, UNREADABLE),
    (Scripted(body=b"[" * 100_000), UNKNOWN, UNREADABLE),
]


@pytest.fixture
def done() -> list[RequestDone]:
    """What the provider reported of its requests."""
    return []


@pytest.fixture
def clock() -> AheadClock:
    """A clock that can be moved forward."""
    return AheadClock()


@pytest.fixture
def platform() -> Iterator[LosantPlatform]:
    """An application without keys."""
    with LosantPlatform() as running:
        yield running


@pytest.fixture
def double() -> Iterator[RestDouble]:
    """A scripted endpoint that shows one active key."""
    with RestDouble() as served:
        served.script["GET"] = [Scripted(body=original())]
        yield served


@pytest.fixture
def build(done: list[RequestDone], clock: AheadClock) -> Iterator[Build]:
    """Makes providers and closes them."""
    made: list[Losant] = []

    def make(where: LosantPlatform | RestDouble, **more: Any) -> Losant:
        if isinstance(where, LosantPlatform):
            more = {"application": where.application, "token": lambda: where.token, **more}
        more = {"application": APPLICATION, "token": lambda: TOKEN, "issue_deadline": timedelta(seconds=10), **more}
        provider = Losant("lifts", client=make_client(), url=where.url, clock=clock, on_request=done.append, **more)
        made.append(provider)
        return provider

    yield make
    for provider in made:
        provider.close()


def original(**fields: object) -> dict[str, object]:
    """The scripted endpoint's key."""
    own = {"id": KEY, "key": "user-1", "status": "active", "creationDate": "2026-03-24T12:00:00.000Z"}
    return {**RESTRICTED, **own, **fields}


def made(**fields: object) -> Scripted:
    """The scripted endpoint's clone of it, its secret included."""
    body = original(**{"id": CLONE, "key": "user-2", "secret": SECRET, **fields})
    return Scripted(body={name: value for name, value in body.items() if value is not Ellipsis}, status=201)


def identity() -> Identity:
    """The scripted endpoint's key."""
    return Identity(id=KEY, username="user-1", client_id=DEVICE)


# --- what works, on the sandbox's platform -------------------------------------------------------------------------


def test_the_registry_builds_a_replacing_provider(platform: LosantPlatform) -> None:
    """`kind: losant` with its section of the configuration; it works by clones, and can pause a key."""
    settings = {"url": platform.url + "/", "application": platform.application, "token": {"env": "TOKEN"}}
    provider = built("losant", "lifts", settings, secrets={"TOKEN": platform.token})
    assert isinstance(provider, Replacing)
    assert (Strategy.REPLACE, True) == (provider.strategy, provider.deactivates)
    assert [] == [each for each in (Checking, Deactivating, Deleting, Provisioning) if not isinstance(provider, each)]
    abilities = provider.abilities
    assert (False, False) == (abilities.kills_old, abilities.expires)
    assert (True, True, True, False) == (abilities.pauses, abilities.creates, abilities.deletes, abilities.checks)
    assert ("lifts", timedelta(seconds=30)) == (provider.name, provider.issue_deadline)
    assert Identity(id=KEY, username=KEY) == provider.identity(KEY)
    assert [] == list(provider.list_keys())
    provider.close()
    with pytest.raises(Transient):
        provider.list_keys()


def test_secrets_are_checked_where_that_is_asked_for(platform: LosantPlatform) -> None:
    """`check: true`: not by itself, since a key without a device can't be checked."""
    settings = {"url": platform.url, "application": platform.application, "token": {"env": "TOKEN"}, "check": True}
    provider = built("losant", "lifts", settings, secrets={"TOKEN": platform.token})
    assert provider.abilities.checks
    provider.close()


def test_a_clone_may_do_what_its_original_may(platform: LosantPlatform, build: Build) -> None:
    """Two requests; all restrictions, the name and the rest of the description; both keys let their devices in."""
    old, old_secret = platform.add_key(**RESTRICTED)
    provider = build(platform)
    issued = provider.create(provider.identity(old.id), MARKER)
    assert ["get", "create"] == [seen.operation for seen in platform.seen]
    before, after = platform.keys()
    changed = {"id", "applicationKeyId", "key", "creationDate", "lastUpdated", "description"}
    assert changed >= {name for name in before if before[name] != after[name]}
    assert f"the lifts {MARKER}" == after["description"]
    assert Identity(id=after["id"], username=after["key"], client_id=DEVICE) == issued.identity
    assert {old.key: old_secret, issued.identity.username: issued.secret.reveal()} == platform.live()
    assert after["creationDate"] == issued.issued_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")  # type: ignore[union-attr]
    assert (None, None) == (issued.expires_at, issued.expiry_source)


def test_a_clone_of_a_clone_is_listed_by_its_own_marker(platform: LosantPlatform, build: Build) -> None:
    """Each generation shows its own marker, and no older one."""
    old, _ = platform.add_key(name="plain", deviceIds=[DEVICE])
    provider = build(platform)
    first = provider.create(provider.identity(old.id), MARKER)
    second = provider.create(first.identity, "rotator-0123456789ab-2")
    listed = {key.id: key for key in provider.list_keys()}
    assert ["", MARKER, "rotator-0123456789ab-2"] == [key.marker for key in listed.values()]
    assert second.identity == listed[second.identity.id].identity
    assert second.issued_at == listed[second.identity.id].issued_at
    assert [None, None, None] == [key.problem for key in listed.values()]


def test_an_unrestricted_key_has_unrestricted_clones(platform: LosantPlatform, build: Build) -> None:
    """What was allowed to everyone stays so: nothing is lost by it."""
    old, _ = platform.add_key()
    provider = build(platform)
    assert provider.create(provider.identity(old.id), MARKER).identity.client_id is None


def test_a_long_description_leaves_room_for_the_marker(platform: LosantPlatform, build: Build) -> None:
    """Losant takes 32,767 characters and not one more."""
    old, _ = platform.add_key(description="ä" * 32767)
    provider = build(platform)
    issued = provider.create(provider.identity(old.id), MARKER)
    description = platform.key(issued.identity.id)["description"]
    assert (32767, True) == (len(description), description.endswith(f"ä {MARKER}"))


def test_a_key_is_paused_brought_back_and_deleted(platform: LosantPlatform, build: Build) -> None:
    """Each verb may be repeated; gone is success for all but the one that brings a key back."""
    key, secret = platform.add_key(**RESTRICTED)
    provider = build(platform)
    for _ in range(2):
        provider.deactivate(provider.identity(key.id))
        assert {} == platform.live()
        assert [Reason.KEY_INACTIVE] == [each.problem for each in provider.list_keys()]
    for _ in range(2):
        provider.reactivate(provider.identity(key.id))
        assert {key.key: secret} == platform.live()
    for _ in range(2):
        provider.delete(key.id)
        assert [] == platform.keys()
    provider.deactivate(provider.identity(key.id))
    with pytest.raises(Permanent) as caught:
        provider.reactivate(provider.identity(key.id))
    assert Reason.KEY_UNKNOWN is caught.value.reason


def test_the_list_has_all_pages(platform: LosantPlatform, build: Build) -> None:
    """Oldest first, 100 a page."""
    ids = [platform.add_key(deviceIds=[new_id()])[0].id for _ in range(201)]
    assert ids == [key.id for key in build(platform).list_keys()]
    assert 3 == platform.count("list")


def test_pages_shorter_than_asked_for_are_no_end(platform: LosantPlatform, build: Build) -> None:
    """The platform's own count of keys decides."""
    ids = [platform.add_key()[0].id for _ in range(5)]
    platform.state.page_limit = 2
    assert ids == [key.id for key in build(platform).list_keys()]


def test_a_key_made_while_the_list_is_read_hides_no_other(platform: LosantPlatform, build: Build) -> None:
    """Pages don't shift: the new key comes last."""
    ids = [platform.add_key()[0].id for _ in range(4)]
    platform.state.page_limit = 2
    new: list[str] = []
    provider = build(platform, token=between(platform, lambda: new.append(platform.add_key()[0].id), on=1))
    listed = [key.id for key in provider.list_keys()]
    assert 1 == len(new)
    assert [*ids, *new] == listed


def test_a_key_deleted_while_the_list_is_read_hides_no_other(platform: LosantPlatform, build: Build) -> None:
    """Pages shift, so the list is read again."""
    ids = [platform.add_key()[0].id for _ in range(5)]
    platform.state.page_limit = 2
    provider = build(platform, token=between(platform, lambda: platform.state.delete(ids[0]), on=1))
    assert ids[1:] == [key.id for key in provider.list_keys()]


def test_a_list_that_never_holds_still_is_none(platform: LosantPlatform, build: Build) -> None:
    """A key is deleted in each listing: half a list is never taken for a whole one."""
    for _ in range(50):
        platform.add_key()
    platform.state.page_limit = 2
    provider = build(platform, token=between(platform, lambda: platform.state.delete(platform.keys()[0]["id"])))
    with pytest.raises(Transient) as caught:
        provider.list_keys()
    assert Reason.PROVIDER_UNAVAILABLE is caught.value.reason


def between(platform: LosantPlatform, then: Callable[[], object], on: int | None = None) -> Callable[[], str]:
    """Reads the token; before the request after `on` others (each, where None), something happens at the platform."""
    happened: set[int] = set()

    def token() -> str:
        count = len(platform.seen)
        if on in (None, count) and count not in happened:
            happened.add(count)
            then()
        return platform.token

    return token


def test_an_inactive_original_is_not_cloned(platform: LosantPlatform, build: Build) -> None:
    """A paused key stays paused: nothing is made."""
    key, _ = platform.add_key(**RESTRICTED)
    platform.state.patch(key.id, {"status": "inactive"})
    with pytest.raises(Permanent) as caught:
        build(platform).create(Identity(id=key.id, username=key.key), MARKER)
    assert Reason.KEY_INACTIVE is caught.value.reason
    assert 0 == platform.count("create")


@pytest.mark.parametrize("id", [KEY, "..", "", "a/b"])
def test_an_original_that_is_not_there_is_key_unknown(platform: LosantPlatform, build: Build, id: str) -> None:
    """Deleted upstream, or never an id at all: nothing is made, and nothing is asked of another address."""
    provider = build(platform)
    with pytest.raises(Permanent) as caught:
        provider.create(provider.identity(id), MARKER)
    assert Reason.KEY_UNKNOWN is caught.value.reason
    assert [] == [seen for seen in platform.seen if seen.key_id != KEY]
    assert [] == platform.keys()


@pytest.mark.parametrize("verb", ["deactivate", "reactivate", "delete"])
def test_what_is_no_id_goes_into_no_path(platform: LosantPlatform, build: Build, verb: str) -> None:
    """`DELETE …/keys/..` would be about the application."""
    provider = build(platform)
    argument = ".." if verb == "delete" else provider.identity("..")
    with pytest.raises(Permanent) as caught:
        getattr(provider, verb)(argument)
    assert Reason.KEY_UNKNOWN is caught.value.reason
    assert [] == platform.seen


@pytest.mark.parametrize(
    ("token", "requests"), [("wrong", 1), ("", 0), ("two words", 0), ("lïne", 0), ("made-up\n", 0)]
)
def test_a_token_that_is_refused_is_provider_auth(
    platform: LosantPlatform, build: Build, token: str, requests: int
) -> None:
    """By the platform, or because it can't stand in a header; it is shown nowhere."""
    with pytest.raises(Permanent) as caught:
        build(platform, token=lambda: token).list_keys()
    assert Reason.PROVIDER_AUTH is caught.value.reason
    assert requests == len(platform.seen)
    assert not token or token not in repr(caught.value)


def test_the_token_is_read_anew_for_each_request(platform: LosantPlatform, build: Build) -> None:
    """A token that was changed counts at once, and a scope that is missing is told."""
    token = [platform.add_token("applicationKey.*")]
    provider = build(platform, token=lambda: token[0])
    with pytest.raises(Permanent) as caught:
        provider.list_keys()
    assert Reason.PROVIDER_AUTH is caught.value.reason
    assert "scope" in str(caught.value)
    token[0] = platform.token
    assert [] == list(provider.list_keys())


def test_another_application_is_refused(platform: LosantPlatform, build: Build) -> None:
    """Not an empty list."""
    with pytest.raises(Permanent) as caught:
        build(platform, application="no such/application").list_keys()
    assert Reason.PROVIDER_REFUSED is caught.value.reason


# --- a clone that is none ------------------------------------------------------------------------------------------


def test_a_clone_without_its_restrictions_is_deleted_again(platform: LosantPlatform, build: Build) -> None:
    """It would let every device in."""
    old, secret = platform.add_key(**RESTRICTED)
    platform.answer = LosantAnswer.UNRESTRICTED
    with pytest.raises(Permanent) as caught:
        build(platform).create(Identity(id=old.id, username=old.key), MARKER)
    assert Reason.CLONE_DIFFERS is caught.value.reason
    assert "deviceIds, deviceTags" in str(caught.value)
    assert {old.key: secret} == platform.live()
    assert 1 == platform.count("create")


@pytest.mark.parametrize("faults", [{"status": 503}, {"cut": Cut.BEFORE_EFFECT}, {"status": 429}])
def test_a_clone_that_cannot_be_deleted_is_looked_for(
    platform: LosantPlatform, build: Build, faults: dict[str, Any]
) -> None:
    """An unknown outcome: the engine finds it by its marker; what came is kept for the journal."""
    old, _ = platform.add_key(**RESTRICTED)
    platform.answer, platform.faults = LosantAnswer.UNRESTRICTED, Faults(operations=frozenset({"delete"}), **faults)
    provider = build(platform)
    with pytest.raises(UnknownOutcome) as caught:
        provider.create(provider.identity(old.id), MARKER)
    assert caught.value.body is not None
    assert MARKER.encode() in caught.value.body
    assert [MARKER] == [key.marker for key in provider.list_keys() if key.id != old.id]


@pytest.mark.parametrize(
    "fields",
    [
        {"deviceIds": [], "deviceTags": []},
        {"deviceIds": [DEVICE, CLONE]},
        {"filterType": "all"},
        {"subTopics": ["#"]},
        {"addressFilterType": "all", "addresses": []},
        {"status": "inactive"},
    ],
)
def test_any_other_right_is_a_reason_to_delete(double: RestDouble, build: Build, fields: dict[str, object]) -> None:
    """Compared with the answer that made it, without a further look; the clone is deleted, never the original."""
    double.script["POST"], double.script["DELETE"] = [made(**fields)], [Scripted(body={"success": True})]
    with pytest.raises(Permanent) as caught:
        build(double).create(identity(), MARKER)
    assert Reason.CLONE_DIFFERS is caught.value.reason
    assert next(iter(fields)) in str(caught.value)
    assert ["GET", "POST", "DELETE"] == double.methods()
    assert double.calls[-1].path.endswith(f"/keys/{CLONE}")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (made(secret=None), Reason.NO_SECRET),
        (made(secret=...), Reason.NO_SECRET),
        (Scripted(body={}, status=201), Reason.NO_SECRET),
        (made(secret=" \n"), Reason.EMPTY_SECRET),
        (made(secret=7), Reason.PROVIDER_ANSWER_UNREADABLE),
        (made(secret="\ud800" + SECRET), Reason.PROVIDER_ANSWER_UNREADABLE),
        (made(key=None), Reason.PROVIDER_ANSWER_UNREADABLE),
        (made(id=None), Reason.PROVIDER_ANSWER_UNREADABLE),
        (made(id="../.."), Reason.PROVIDER_ANSWER_UNREADABLE),
        (made(id=KEY, deviceIds=[], deviceTags=[]), Reason.PROVIDER_ANSWER_UNREADABLE),
        (made(deviceIds=..., deviceTags=...), Reason.PROVIDER_ANSWER_UNREADABLE),
        (made(deviceIds=None), Reason.PROVIDER_ANSWER_UNREADABLE),
        (made(addresses="everywhere"), Reason.PROVIDER_ANSWER_UNREADABLE),
    ],
)
def test_an_answer_without_a_usable_secret(double: RestDouble, build: Build, answer: Scripted, reason: Reason) -> None:
    """Refused by name, the raw answer kept for the journal; nothing is asked twice, and nothing deleted."""
    double.script["POST"] = [answer]
    with pytest.raises(BadAnswer) as caught:
        build(double).create(identity(), MARKER)
    assert reason is caught.value.reason
    assert answer.payload() == caught.value.body
    assert SECRET not in str(caught.value) + repr(caught.value)
    assert ["GET", "POST"] == double.methods()


def test_restrictions_that_are_not_shown_are_not_guessed(platform: LosantPlatform, build: Build) -> None:
    """The same on the platform: the answer is kept whole, and the key can be found by its marker."""
    old, _ = platform.add_key(**RESTRICTED)
    platform.answer = LosantAnswer.NOTHING_SHOWN
    provider = build(platform)
    with pytest.raises(BadAnswer) as caught:
        provider.create(provider.identity(old.id), MARKER)
    assert json.loads(caught.value.body or b"")["secret"] in platform.live().values()
    assert [MARKER] == [key.marker for key in provider.list_keys() if key.id != old.id]


def test_a_secret_beside_an_error_is_kept(double: RestDouble, build: Build) -> None:
    """No answer is lost (rule 1): an issued secret counts more than the status that came with it."""
    double.script["POST"] = [Scripted(body=made().body, status=500)]
    assert SECRET == build(double).create(identity(), MARKER).secret.reveal()


@pytest.mark.parametrize(
    "fields",
    [{"id": CLONE}, {"deviceIds": None, "deviceTags": None}, {"deviceIds": "all"}, {"filterType": 1}],
)
def test_an_original_that_cannot_be_read_is_not_cloned(
    double: RestDouble, build: Build, fields: dict[str, object]
) -> None:
    """Nothing is made of what is not understood."""
    double.script["GET"] = [Scripted(body=original(**fields))]
    with pytest.raises(Transient) as caught:
        build(double).create(identity(), MARKER)
    assert Reason.PROVIDER_ANSWER_UNREADABLE is caught.value.reason
    assert ["GET"] == double.methods()


# --- a check that disturbs nobody ----------------------------------------------------------------------------------


def test_a_secret_is_checked_without_a_connection(platform: LosantPlatform, build: Build) -> None:
    """The platform's documents: 200 with a token, or 401; and a paused key lets nobody in."""
    key, secret = platform.add_key(deviceIds=[DEVICE])
    provider = build(platform)
    mine = provider.list_keys()[0].identity
    assert mine is not None
    assert Verdict.ACCEPTED == provider.check(mine, Secret(secret)).verdict
    refused = provider.check(mine, Secret("wrong"))
    assert (Verdict.REFUSED, "Unauthorized: Invalid credentials") == (refused.verdict, refused.detail)
    provider.deactivate(mine)
    assert Verdict.REFUSED == provider.check(mine, Secret(secret)).verdict
    login = {"deviceId": DEVICE, "key": key.key, "secret": secret}
    assert [login] == [seen.body for seen in platform.seen if seen.operation == "auth"][:1]


def test_a_key_of_many_devices_is_checked_with_the_first(platform: LosantPlatform, build: Build) -> None:
    """The list knows no single device then, so the key is asked for; so it is where only its id is known."""
    _, secret = platform.add_key(deviceIds=[DEVICE, new_id()])
    provider = build(platform)
    mine = provider.list_keys()[0].identity
    assert mine is not None
    assert Verdict.ACCEPTED == provider.check(mine, Secret(secret)).verdict
    assert Verdict.REFUSED == provider.check(mine, Secret("wrong")).verdict
    assert Verdict.ACCEPTED == provider.check(provider.identity(mine.id), Secret(secret)).verdict
    assert [DEVICE] * 3 == [seen.body["deviceId"] for seen in platform.seen if isinstance(seen.body, dict)]


@pytest.mark.parametrize("fields", [{}, {"deviceTags": [{"key": "type", "value": "thermostat"}]}])
def test_a_key_that_names_no_device_is_not_checked(
    platform: LosantPlatform, build: Build, fields: dict[str, object]
) -> None:
    """Nothing is claimed of it, nor of one that is gone or no id at all."""
    platform.add_key(**fields)
    provider = build(platform)
    mine = provider.list_keys()[0].identity
    assert mine is not None
    for identity_ in (mine, Identity(id=KEY, username="gone"), Identity(id="..", username="no id")):
        assert Verdict.UNREACHABLE == provider.check(identity_, Secret("any")).verdict
    assert 0 == platform.count("auth")


@pytest.mark.parametrize("answer", [answer for answer, _, _ in ANSWERS if answer.status != 401])
def test_a_check_without_a_word_about_the_secret(double: RestDouble, build: Build, answer: Scripted) -> None:
    """Neither accepted nor refused, and never an exception; no token goes to this address."""
    double.script["POST"] = [answer]
    probed = build(double).check(identity(), Secret(SECRET))
    assert Verdict.UNREACHABLE == probed.verdict
    assert SECRET not in probed.detail
    assert [("POST", "/auth/device", None)] == [(call.method, call.path, call.authorization) for call in double.calls]


def test_a_platform_that_is_away_refuses_no_secret(platform: LosantPlatform, build: Build) -> None:
    """Nobody listens: UNREACHABLE."""
    provider = build(platform)
    platform.stop()
    assert Verdict.UNREACHABLE == provider.check(identity(), Secret(SECRET)).verdict


# --- a new key -----------------------------------------------------------------------------------------------------


def test_a_key_is_provisioned(platform: LosantPlatform, build: Build) -> None:
    """With all that was asked for, as the platform's own words for it; the marker is in the description."""
    options = {
        "description": "the lifts",
        "deviceIds": DEVICE,
        "deviceTags": "type=thermostat, floor",
        "filterType": "whitelist",
        "pubTopics": "lifts/up",
        "subTopics": "lifts/#, other/+",
        "addressFilterType": "whitelist",
        "addresses": "10.0.0.0/8,192.0.2.7",
    }
    provider = build(platform)
    assert options.keys() == provider.options.keys()
    issued = provider.provision("building-a", options, MARKER)
    body = platform.seen[-1].body
    assert {
        "name": "building-a",
        "description": f"the lifts {MARKER}",
        "deviceIds": [DEVICE],
        "deviceTags": [{"key": "type", "value": "thermostat"}, {"key": "floor"}],
        "filterType": "whitelist",
        "pubTopics": ["lifts/up"],
        "subTopics": ["lifts/#", "other/+"],
        "addressFilterType": "whitelist",
        "addresses": ["10.0.0.0/8", "192.0.2.7"],
    } == body
    assert {issued.identity.username: issued.secret.reveal()} == platform.live()
    assert DEVICE == issued.identity.client_id


def test_provisioning_again_makes_no_second_key(platform: LosantPlatform, build: Build) -> None:
    """The lost answer of the same call is made good by a new key in its place; another's key of that name is left."""
    provider = build(platform)
    platform.faults = Faults(operations=frozenset({"create"}), cut=Cut.AFTER_EFFECT, times=1)
    with pytest.raises(UnknownOutcome):
        provider.provision("building-a", {"deviceIds": DEVICE}, MARKER)
    issued = provider.provision("building-a", {"deviceIds": DEVICE}, MARKER)
    assert {issued.identity.username: issued.secret.reveal()} == platform.live()
    with pytest.raises(Permanent) as caught:
        provider.provision("building-a", {"deviceIds": DEVICE}, "rotator-0123456789ab-2")
    assert Reason.PROVIDER_REFUSED is caught.value.reason
    assert issued.identity.id in str(caught.value)
    assert 1 == len(platform.keys())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("building-a", {}),
        ("building-a", {"deviceIds": " , "}),
        ("building-a", {"deviceIds": DEVICE, "colour": "red"}),
        ("building-a", {"deviceIds": "no id"}),
        ("building-a", {"deviceIds": DEVICE, "filterType": "some"}),
        (" ", {"deviceIds": DEVICE}),
        ("\ud800", {"deviceIds": DEVICE}),
    ],
)
def test_what_cannot_be_provisioned(platform: LosantPlatform, build: Build, name: str, options: dict[str, str]) -> None:
    """PROVIDER_REFUSED, and nothing is made; least of all a key for every device, by saying nothing."""
    with pytest.raises(Permanent) as caught:
        build(platform).provision(name, options, MARKER)
    assert Reason.PROVIDER_REFUSED is caught.value.reason
    assert [] == platform.keys()


def test_a_key_for_every_device_is_made_on_purpose(platform: LosantPlatform, build: Build) -> None:
    """`deviceIds: all` says so."""
    build(platform).provision("everyone", {"deviceIds": "all"}, MARKER)
    made = platform.keys()
    assert [([], [])] == [(key["deviceIds"], key["deviceTags"]) for key in made]


def test_a_new_key_that_came_out_open_is_deleted_again(platform: LosantPlatform, build: Build) -> None:
    """As with a clone: it would let every device in."""
    platform.answer = LosantAnswer.UNRESTRICTED
    with pytest.raises(Permanent) as caught:
        build(platform).provision("building-a", {"deviceIds": DEVICE}, MARKER)
    assert Reason.CLONE_DIFFERS is caught.value.reason
    assert [] == platform.keys()


# --- refusals and faults -------------------------------------------------------------------------------------------

KIND = tuple[type[RotatorError], Reason]


def told(call: Callable[[], object]) -> KIND:
    """What a call raises."""
    with pytest.raises(RotatorError) as caught:
        call()
    return type(caught.value), caught.value.reason


@pytest.mark.parametrize(("answer", "making", "looking"), ANSWERS)
def test_an_error_of_the_making_call(
    double: RestDouble, build: Build, answer: Scripted, making: KIND, looking: KIND
) -> None:
    """What was maybe done is unknown, a refusal did nothing; one POST, and what came is kept."""
    double.script["POST"] = [answer]
    with pytest.raises(RotatorError) as caught:
        build(double).create(identity(), MARKER)
    assert making == (type(caught.value), caught.value.reason)
    assert answer.payload() == caught.value.body
    assert ["GET", "POST"] == double.methods()


@pytest.mark.parametrize(("answer", "making", "looking"), ANSWERS)
def test_an_error_of_a_call_that_may_be_repeated(
    double: RestDouble, build: Build, answer: Scripted, making: KIND, looking: KIND
) -> None:
    """Never unknown, never success: looks, both changes of status, and the deletion."""
    for method in ("GET", "PATCH", "DELETE"):
        double.script[method] = [answer]
    provider = build(double)
    assert looking == told(provider.list_keys)
    assert looking == told(lambda: provider.create(identity(), MARKER))
    assert looking == told(lambda: provider.deactivate(identity()))
    assert looking == told(lambda: provider.reactivate(identity()))
    assert looking == told(lambda: provider.delete(KEY))
    assert "POST" not in double.methods()


def test_a_status_that_was_not_set_is_no_success(double: RestDouble, build: Build) -> None:
    """An answer that says otherwise, or nothing, is not believed."""
    double.script["PATCH"] = [Scripted(body=original()), Scripted(body={})]
    provider = build(double)
    assert UNREADABLE == told(lambda: provider.deactivate(identity()))
    assert UNREADABLE == told(lambda: provider.reactivate(identity()))
    assert [{"status": "inactive"}, {"status": "active"}] == [call.body for call in double.calls]


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("30", 30),
        ("30 seconds", 30),
        ("Tue, 24 Mar 2026 12:01:00 GMT", 60),
        ("later", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("operation", ["get", "create"])
def test_a_rate_limit_says_when(
    platform: LosantPlatform,
    build: Build,
    clock: AheadClock,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    value: str | None,
    delay: int | None,
) -> None:
    """`Retry-After` in seconds, words or as a date; nothing was made."""
    monkeypatch.setattr(clock, "now", lambda: datetime(2026, 3, 24, 12, tzinfo=UTC))
    old, _ = platform.add_key(**RESTRICTED)
    platform.faults = Faults(operations=frozenset({operation}), status=429, retry_after=value)
    with pytest.raises(Transient) as caught:
        build(platform).create(Identity(id=old.id, username=old.key), MARKER)
    assert Reason.PROVIDER_RATE_LIMITED is caught.value.reason
    assert (None if delay is None else timedelta(seconds=delay)) == caught.value.retry_after
    assert 1 == len(platform.keys())


@pytest.mark.parametrize(
    ("faults", "kind", "keys"),
    [
        ({"cut": Cut.BEFORE_EFFECT}, UNKNOWN, 1),
        ({"cut": Cut.AFTER_EFFECT}, UNKNOWN, 2),
        ({"status": 503}, UNKNOWN, 1),
        ({"status": 503, "status_after_effect": True}, UNKNOWN, 2),
        ({"truncate": True}, UNKNOWN, 2),
        ({"content_type": "text/html"}, UNKNOWN, 2),
        ({"latency_after": 20.0}, UNKNOWN, 2),
        ({"latency_before": 20.0}, UNKNOWN, 1),
        ({"status": 400}, REFUSED, 1),
    ],
)
def test_what_was_maybe_made_is_unknown(
    platform: LosantPlatform, build: Build, faults: dict[str, Any], kind: KIND, keys: int
) -> None:
    """Not repeated inside; what was made can be found by its marker, and half an answer is kept."""
    old, _ = platform.add_key(**RESTRICTED)
    platform.faults = Faults(operations=frozenset({"create"}), **faults)
    provider = build(platform, issue_deadline=timedelta(seconds=1))
    with pytest.raises(RotatorError) as caught:
        provider.create(provider.identity(old.id), MARKER)
    assert kind == (type(caught.value), caught.value.reason)
    assert 1 == platform.count("create")
    assert [MARKER] * (keys - 1) == [key.marker for key in provider.list_keys() if key.id != old.id]
    if "truncate" in faults:
        assert caught.value.body


@pytest.mark.parametrize("cut", [Cut.BEFORE_EFFECT, Cut.AFTER_EFFECT])
def test_the_verbs_that_may_be_repeated_are_transient(platform: LosantPlatform, build: Build, cut: Cut) -> None:
    """A cut connection is tried again by the engine, and the second call is right whatever the first did."""
    key, secret = platform.add_key(**RESTRICTED)
    provider = build(platform)
    mine = provider.identity(key.id)
    verbs: list[tuple[Callable[[], object], dict[str, str]]] = [
        (lambda: provider.deactivate(mine), {}),
        (lambda: provider.reactivate(mine), {key.key: secret}),
        (lambda: provider.delete(key.id), {}),
    ]
    for verb, live in verbs:
        platform.faults = Faults(operations=frozenset(), times=1, cut=cut)
        assert (Transient, Reason.PROVIDER_UNREACHABLE) == told(verb)
        verb()
        assert live == platform.live()


def test_a_platform_that_is_away_made_nothing(platform: LosantPlatform, build: Build) -> None:
    """Nobody listens: certain."""
    provider = build(platform)
    platform.stop()
    assert (Transient, Reason.PROVIDER_UNREACHABLE) == told(lambda: provider.create(identity(), MARKER))


@pytest.mark.parametrize(("seconds", "methods"), [(9, ["GET", "POST"]), (11, ["GET"])])
def test_nothing_is_made_after_the_deadline(
    double: RestDouble, build: Build, clock: AheadClock, seconds: int, methods: list[str]
) -> None:
    """Both requests share one total: where the first left no time, the one that makes a key is not sent."""

    def token() -> str:
        clock.ahead = seconds * len(double.calls)  # passes between the two requests
        return TOKEN

    double.script["POST"] = [made()]
    provider = build(double, token=token)
    if methods == ["GET"]:
        assert (Transient, Reason.PROVIDER_UNREACHABLE) == told(lambda: provider.create(identity(), MARKER))
    else:
        assert SECRET == provider.create(identity(), MARKER).secret.reveal()
    assert methods == double.methods()


@pytest.mark.parametrize(
    "items",
    [None, {}, [7], [{"id": KEY}], [{"key": "user-1"}], [{"id": "..", "key": "user-1"}]],
)
def test_a_list_that_cannot_be_read_is_none(double: RestDouble, build: Build, items: object) -> None:
    """One unreadable entry is enough: a key that is not seen would pass for deleted."""
    double.script["GET"] = [Scripted(body={"items": items, "totalCount": 1})]
    assert UNREADABLE == told(build(double).list_keys)


@pytest.mark.parametrize(
    ("answers", "keys", "requests"),
    [
        ([{"items": [original()]}], 1, 1),
        ([{"items": [original(id=f"{n:024x}") for n in range(100)]}, {"items": []}], 100, 2),
        ([{"items": [original(id=f"{n:024x}") for n in range(100)]}, {"items": [original()]}], 101, 2),
        ([{"items": [], "totalCount": 0}], 0, 1),
        ([{"items": [original()], "totalCount": 7}], None, 2),
        ([{"items": [original()], "totalCount": 2}, {"items": [], "totalCount": 2}], None, 2),
    ],
)
def test_where_a_list_ends(
    double: RestDouble, build: Build, answers: list[dict[str, object]], keys: int | None, requests: int
) -> None:
    """By its count, without one by a short page; a list shorter than its count, or one that repeats itself, is none."""
    double.script["GET"] = [Scripted(body=answer) for answer in answers]
    provider = build(double)
    if keys is None:
        assert UNREADABLE == told(provider.list_keys)
    else:
        assert keys == len(provider.list_keys())
    assert [f"page={number}" for number in range(requests)] == [
        call.path.partition("?")[2].partition("&")[0] for call in double.calls
    ]


# --- what others see -----------------------------------------------------------------------------------------------


def test_each_request_is_reported(platform: LosantPlatform, build: Build, done: list[RequestDone]) -> None:
    """Under its operation, with the status as code; failures by the exception's name."""
    old, _ = platform.add_key(**RESTRICTED)
    provider = build(platform)
    mine = provider.create(provider.identity(old.id), MARKER).identity
    provider.deactivate(mine)
    provider.reactivate(mine)
    provider.delete(mine.id)
    provider.list_keys()
    platform.faults = Faults(operations=frozenset(), cut=Cut.BEFORE_EFFECT)
    told(provider.list_keys)
    assert [
        ("get_key", "200"),
        ("create", "201"),
        ("deactivate", "200"),
        ("reactivate", "200"),
        ("delete", "200"),
        ("list_keys", "200"),
    ] == [(each.operation, each.code) for each in done[:-1]]
    assert ("list_keys", False) == (done[-1].operation, done[-1].code.isdigit())
    assert {"lifts"} == {each.peer for each in done}
    assert all(each.skew is not None and abs(each.skew) < timedelta(seconds=5) for each in done[:-1])


def test_nothing_but_a_post_has_a_body_that_makes_keys(double: RestDouble, build: Build) -> None:
    """GET and DELETE carry none, and every request the token."""
    double.script.update(POST=[made()], DELETE=[Scripted(body={"success": True})])
    provider = build(double)
    provider.create(identity(), MARKER)
    provider.delete(KEY)
    assert [True, False, True] == [call.body is None for call in double.calls]
    assert {f"Bearer {TOKEN}"} == {call.authorization for call in double.calls}
    body = double.calls[1].body
    assert {**RESTRICTED, "description": f"the lifts {MARKER}"} == body


def test_sixteen_threads_make_sixteen_keys(platform: LosantPlatform, build: Build) -> None:
    """One provider serves them all; each answer reaches the thread that asked."""
    old, _ = platform.add_key(**RESTRICTED)
    provider, issued, gate = build(platform), [], threading.Barrier(16)

    def make(number: int) -> None:
        gate.wait(10)
        issued.append((number, provider.create(provider.identity(old.id), f"rotator-0123456789ab-{number}")))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 16 == len(issued)
    for number, each in issued:
        assert platform.key(each.identity.id)["description"].endswith(f"rotator-0123456789ab-{number}")
        assert each.secret.reveal() == platform.live()[each.identity.username]


def test_no_secret_is_shown(
    double: RestDouble, build: Build, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in errors, reprs, logs or output, even where the platform repeats it."""
    caplog.set_level(logging.DEBUG)
    repeated = {"type": "Validation", "message": f"no: {TOKEN} {SECRET}\nof {KEY}"}
    provider = build(double)
    shown = repr(provider)
    for post in (Scripted(body=repeated, status=400), made(key=None), Scripted(body=made().body, status=500)):
        double.script["POST"] = [post]
        try:
            shown += repr(provider.create(identity(), MARKER))
        except RotatorError as exc:
            shown += str(exc) + repr(exc)
    double.script["POST"] = [made(deviceIds=[])]
    double.script["DELETE"] = [Scripted(body=repeated, status=400)]
    with pytest.raises(UnknownOutcome) as caught:
        provider.create(identity(), MARKER)
    shown += str(caught.value) + repr(caught.value) + str(caught.value.__cause__)
    shown += caplog.text + "".join(capsys.readouterr())
    assert KEY in shown
    assert "\nof" not in shown
    for secret in (TOKEN, SECRET):
        assert secret not in shown
