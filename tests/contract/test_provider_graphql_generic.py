"""`kind: graphql` over real sockets: the example of config/ on the sandbox's Haltian platform, and a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import pytest
from graphql import build_schema, parse, validate

from contract.generic_examples import HALTIAN_PASSWORD, HALTIAN_USER, provider_for, section
from contract.graphql_double import Call, GraphqlDouble, Scripted, data, errors, login
from provider_site import built
from rotator.clock import SystemClock
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import ExpirySource, Identity, Secret, Strategy
from rotator.ports import Choosing, Evicting, InPlace, Replacing
from rotator.reasons import Reason
from rotator.sandbox.faults import Answer, Cut, Faults
from rotator.sandbox.haltian import HaltianPlatform

KEY = "c6f7b103-81df-4e73-8218-4f671056aee2"
SECRET = "a-secret-of-the-platform"
WHO = Identity(id=KEY, username=KEY)
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
def platform() -> Iterator[HaltianPlatform]:
    """An organization with its manager, and no keys."""
    with HaltianPlatform() as running:
        running.create_user(HALTIAN_USER, HALTIAN_PASSWORD, running.create_organization("acme"))
        yield running


@pytest.fixture
def double() -> Iterator[GraphqlDouble]:
    """A scripted endpoint whose login works."""
    with GraphqlDouble() as served:
        yield served


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes providers of a platform, or of a scripted endpoint, and closes them."""
    made: list[Any] = []

    def build(where: HaltianPlatform | GraphqlDouble, **more: Any) -> Any:
        if isinstance(where, HaltianPlatform):
            made.append(provider_for(where, **more))
        else:
            own = section("haltian-graphql") | {"url": where.url, **more}
            own["auth"]["login"]["password"] = {"env": "SECRET"}
            own.pop("kind")
            made.append(built("graphql", "p", own, secrets={"SECRET": HALTIAN_PASSWORD}))
        return made[-1]

    yield build
    for provider in made:
        provider.close()


def add_key(platform: HaltianPlatform, **more: Any) -> tuple[str, str]:
    """A key of the one organization."""
    (organization,) = platform.state._organizations.values()
    return platform.add_key("building-a", organization, **more)


def raised(call: Callable[[], object]) -> RotatorError:
    """The error of a call that must fail."""
    with pytest.raises(RotatorError) as caught:
        call()
    return caught.value


def issued(**token: object) -> Scripted:
    """A scripted answer to `issue`."""
    return data(refreshApiKeyToken={"id": KEY, "token": {"token": SECRET, **token}})


# --- on the platform -----------------------------------------------------------------------------------------------


def test_the_example_s_documents_fit_the_platform_s_schema() -> None:
    """Each parses and validates by graphql-core."""
    schema = build_schema(files("rotator.sandbox").joinpath("haltian.graphql").read_text(encoding="utf-8"))
    own = section("haltian-graphql")
    login_part = own["auth"]["login"]
    steps = [login_part["request"], login_part["renew"], *own["documents"].values()]
    assert 5 == len(steps)
    assert [[]] * 5 == [validate(schema, parse(step["document"])) for step in steps]


def test_keys_are_listed_with_what_the_list_shows(platform: HaltianPlatform, make: Make) -> None:
    """Names, times, and what can't serve as a credential."""
    provider = make(platform)
    assert [] == list(provider.list_keys())
    id, _ = add_key(platform)
    add_key(platform, role=False)
    revoked, _ = add_key(platform)
    platform.state.revoke_key(revoked)
    listed = provider.list_keys()
    assert (id, "building-a", ExpirySource.ANSWER) == (listed[0].id, listed[0].name, listed[0].expiry_source)
    assert timedelta(days=90) == listed[0].expires_at - listed[0].issued_at
    assert [None, Reason.KEY_INACTIVE, Reason.KEY_INACTIVE] == [key.problem for key in listed]


def test_a_token_is_issued_in_place(platform: HaltianPlatform, make: Make) -> None:
    """The old one is dead, the answer's times are read, and it is one request."""
    id, old = add_key(platform, issued_ago=timedelta(days=80))
    provider = make(platform)
    assert isinstance(provider, InPlace)
    assert not isinstance(provider, Evicting | Replacing | Choosing)
    made = provider.issue(provider.identity(id))
    assert platform.current_token(id) == made.secret.reveal() != old
    assert made.issued_at is not None
    assert made.issued_at + timedelta(days=90) == made.expires_at
    assert (1, 1) == (platform.count("login"), platform.count("refreshApiKeyToken"))


def test_a_key_is_deleted_once_and_again(platform: HaltianPlatform, make: Make) -> None:
    """Absent is success; a key that is gone gets no token; what is not configured is an ability that is not there."""
    id, _ = add_key(platform)
    provider = make(platform)
    for _ in range(2):
        provider.delete(id)
    assert [] == list(provider.list_keys())
    assert Reason.KEY_UNKNOWN is raised(lambda: provider.issue(provider.identity(id))).reason
    assert Reason.PROVIDER_UNABLE is raised(lambda: provider.deactivate(WHO)).reason
    abilities = provider.abilities
    assert (True, True, False) == (abilities.deletes, abilities.expires, abilities.pauses)
    assert (Strategy.IN_PLACE, Strategy.IN_PLACE) == (abilities.strategy, provider.strategy)


def test_a_login_is_renewed_and_made_anew(platform: HaltianPlatform, make: Make) -> None:
    """By the refresh token and the organization's id before it ends, by the password once it is refused."""
    clock = AheadClock()
    platform.now = clock.now
    provider = make(platform, clock=clock)
    provider.list_keys()
    clock.ahead = timedelta(seconds=870)
    provider.list_keys()
    clock.ahead = timedelta(seconds=1740)
    provider.list_keys()
    assert (1, 2) == (platform.count("login"), platform.count("refreshToken"))
    platform.state.end_sessions()  # which nobody told us of
    provider.list_keys()
    assert (2, 2, 5) == (platform.count("login"), platform.count("refreshToken"), platform.count("apiKeys"))


def test_a_wrong_password_is_named(platform: HaltianPlatform, make: Make) -> None:
    """PROVIDER_AUTH, one login, and no password in the message."""
    platform.faults = Faults(refuse_login=True)
    error = raised(make(platform).list_keys)
    assert (Permanent, Reason.PROVIDER_AUTH) == (type(error), error.reason)
    assert (1, 0) == (platform.count("login"), platform.count("apiKeys"))
    assert HALTIAN_PASSWORD not in error.message


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (Answer.NULL, BadAnswer, Reason.NO_SECRET),
        (Answer.TOKEN_NULL, BadAnswer, Reason.NO_SECRET),
        (Answer.EMPTY_TOKEN, BadAnswer, Reason.EMPTY_SECRET),
        (Answer.ERRORS, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
    ],
)
def test_an_answer_without_a_token_is_named(
    platform: HaltianPlatform, make: Make, answer: Answer, kind: type[RotatorError], reason: Reason
) -> None:
    """HTTP 200 each time, and the raw answer goes to the journal."""
    id, _ = add_key(platform)
    provider = make(platform)
    platform.faults = Faults(answer=answer)
    error = raised(lambda: provider.issue(provider.identity(id)))
    assert (kind, reason) == (type(error), error.reason)
    assert error.body


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        (Answer.NO_EXPIRES_AT, ExpirySource.JWT),
        (Answer.OPAQUE_TOKEN, ExpirySource.ANSWER),
        (Answer.NOTHING_TO_DERIVE_FROM, None),
    ],
)
def test_an_expiry_comes_from_where_it_is(
    platform: HaltianPlatform, make: Make, answer: Answer, source: ExpirySource | None
) -> None:
    """The answer, the token's own `exp`, or nowhere; the secret is kept in any case."""
    id, _ = add_key(platform)
    platform.faults = Faults(answer=answer)
    provider = make(platform)
    assert source == provider.issue(provider.identity(id)).expiry_source


@pytest.mark.parametrize(
    ("faults", "kind", "effect"),
    [
        (Faults(status=429, retry_after="7"), Transient, False),
        (Faults(status=503), UnknownOutcome, False),
        (Faults(status=502, status_after_effect=True), UnknownOutcome, True),
        (Faults(cut=Cut.BEFORE_EFFECT), UnknownOutcome, False),
        (Faults(cut=Cut.AFTER_EFFECT), UnknownOutcome, True),
        (Faults(truncate=True), UnknownOutcome, True),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_a_fault_of_the_call_that_issues_is_named(
    platform: HaltianPlatform, make: Make, faults: Faults, kind: type[RotatorError], effect: bool
) -> None:
    """What may have been done is unknown, and the way is clear again afterwards."""
    id, old = add_key(platform)
    provider = make(platform)
    faults.times = 1
    platform.faults = faults
    error = raised(lambda: provider.issue(provider.identity(id)))
    assert kind is type(error)
    assert effect == (platform.current_token(id) != old)
    made = provider.issue(provider.identity(id))
    assert platform.current_token(id) == made.secret.reveal()
    assert 2 == platform.count("refreshApiKeyToken")


# --- scripted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (errors("no such key", "not-found"), Permanent, Reason.KEY_UNKNOWN),
        (errors("slow down", "rate-limited"), Transient, Reason.PROVIDER_RATE_LIMITED),
        (errors("the flux is low", "flux"), Permanent, Reason.PROVIDER_REFUSED),
        (errors("boom", "internal-error"), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (errors("boom", "flux", data=None), Permanent, Reason.PROVIDER_REFUSED),
        (Scripted(body={"data": None}), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (Scripted(body={"data": [1]}), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (Scripted(body=[]), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (Scripted(body=b"<html>"), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (Scripted(status=400, body={"errors": [{"message": "no such key"}]}), Permanent, Reason.KEY_UNKNOWN),
        (Scripted(status=400, body=b"odd"), Permanent, Reason.PROVIDER_REFUSED),
        (Scripted(status=403, body={"errors": [{"message": "no"}]}), Permanent, Reason.PROVIDER_AUTH),
        (Scripted(status=500, body={"errors": [{"message": "no such key"}]}), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (data(refreshApiKeyToken={"id": "other", "token": {"token": SECRET}}), BadAnswer, None),
        (data(refreshApiKeyToken="text"), BadAnswer, Reason.NO_SECRET),
    ],
    ids=lambda value: str(value)[:70],
)
def test_what_errors_and_statuses_mean(
    double: GraphqlDouble, make: Make, answer: Scripted, kind: type[RotatorError], reason: Reason | None
) -> None:
    """As for Haltian's own kind; a gateway's 500 proves nothing, whatever it says."""
    double.script["refreshApiKeyToken"] = [answer]
    error = raised(lambda: make(double).issue(WHO))
    assert (kind, reason or Reason.PROVIDER_ANSWER_UNREADABLE) == (type(error), error.reason)
    assert SECRET not in error.message
    assert 1 == double.count("refreshApiKeyToken")


@pytest.mark.parametrize(
    "refusal",
    [errors("jwt expired", "invalid-jwt"), Scripted(status=401), errors("x", "401", data={"a": None})],
    ids=str,
)
def test_a_refused_login_is_made_anew_once(double: GraphqlDouble, make: Make, refusal: Scripted) -> None:
    """Inside a 200 as well as by status; a second refusal is the answer."""
    double.script["refreshApiKeyToken"] = [refusal, issued()]
    provider = make(double)
    assert SECRET == provider.issue(WHO).secret.reveal()
    assert (2, 2) == (double.count("login"), double.count("refreshApiKeyToken"))
    double.script["refreshApiKeyToken"] = [refusal]
    error = raised(lambda: provider.issue(WHO))
    assert (Permanent, Reason.PROVIDER_AUTH) == (type(error), error.reason)
    assert 4 == double.count("refreshApiKeyToken")


def test_a_secret_counts_more_than_the_errors_beside_it(double: GraphqlDouble, make: Make) -> None:
    """Rule 1; and a refused login beside data is no reason to ask for another secret."""
    answer = {"data": {"refreshApiKeyToken": {"id": KEY, "token": {"token": SECRET}}}}
    double.script["refreshApiKeyToken"] = [errors("jwt expired", "invalid-jwt", **answer)]
    assert SECRET == make(double).issue(WHO).secret.reveal()
    assert 1 == double.count("refreshApiKeyToken")


@pytest.mark.parametrize(
    "answer",
    [
        data(login=None),
        data(login={"accessToken": 5}),
        login(access="two words"),
        Scripted(body={"data": {}}),
        errors("unknown user", "not-found"),
        Scripted(status=500),
    ],
    ids=str,
)
def test_a_login_that_gives_no_token_is_a_named_error(double: GraphqlDouble, make: Make, answer: Scripted) -> None:
    """Nothing is issued then."""
    double.script["login"] = [answer]
    error = raised(lambda: make(double).issue(WHO))
    assert isinstance(error, Transient | Permanent)
    assert 0 == double.count("refreshApiKeyToken")


def test_pages_are_asked_for_by_variables(double: GraphqlDouble, make: Make) -> None:
    """A cursor is text, a size is a number; beside the step's own variables."""

    def answer(call: Call) -> Scripted:
        asked.append(dict(call.variables))
        at = int(call.variables.get("after") or 0)
        entries = [{"id": str(number)} for number in range(at, min(at + 2, 5))]
        return data(apiKeys={"nodes": entries, "next": str(at + 2) if at + 2 < 5 else None})

    asked: list[dict[str, Any]] = []
    double.script["apiKeys"] = [answer]
    document = (
        "query K($first: Int!, $after: String, $kind: String!) "
        "{ apiKeys(first: $first, after: $after, kind: $kind) { nodes { id } next } }"
    )
    documents = section("haltian-graphql")["documents"]
    documents["list"] = {
        "document": document,
        "variables": {"kind": "mqtt"},
        "paging": {"kind": "cursor", "param": "after", "next": "apiKeys.next", "size_param": "first", "size": 2},
        "result": {"items": "apiKeys.nodes", "id": "id"},
    }
    assert list("01234") == [key.id for key in make(double, documents=documents).list_keys()]
    expected = [{"kind": "mqtt", "first": 2}, {"kind": "mqtt", "first": 2, "after": "2"}]
    assert expected == asked[:2]


def test_a_second_key_is_made_of_the_original(double: GraphqlDouble, make: Make) -> None:
    """Strategy replace: whole JSON of the original in a variable, and the marker in its name."""

    def answer(call: Call) -> Scripted:
        if "create" in call.document:
            asked.append(dict(call.variables))
            return data(apiKeysCreate={"id": "new", "secret": SECRET, "user": "u2"})
        return data(apiKeysOne={"name": "lift rotator-aaaaaaaaaaaa-3", "rights": [{"a": 1}]})

    asked: list[dict[str, Any]] = []
    double.script["apiKeys"] = [answer]
    result = {"id": "apiKeysCreate.id", "secret": "apiKeysCreate.secret", "username": "apiKeysCreate.user"}
    documents = {
        "list": {"document": "{ apiKeys { id } }", "result": {"items": "apiKeys", "id": "id"}},
        "get": {
            "document": "query G($id: ID!) { apiKeysOne(id: $id) { name rights } }",
            "variables": {"id": "{id}"},
            "result": {"name": "apiKeysOne.name"},
        },
        "create": {
            "document": "mutation create($n: String!, $r: [R!]!) { apiKeysCreate(n: $n, r: $r) { id secret user } }",
            "variables": {"n": "{name} {marker}", "r": {"$from": "apiKeysOne.rights"}},
            "result": result,
        },
        "delete": {"document": "mutation D($id: ID!) { apiKeysDelete(id: $id) }", "variables": {"id": "{id}"}},
    }
    provider = make(double, strategy="replace", documents=documents)
    assert isinstance(provider, Replacing)
    made = provider.create(WHO, "rotator-0123456789ab-1")
    assert ("new", "u2", SECRET) == (made.identity.id, made.identity.username, made.secret.reveal())
    assert [{"n": "lift rotator-0123456789ab-1", "r": [{"a": 1}]}] == asked


def test_a_chosen_secret_is_sent_as_a_variable(double: GraphqlDouble, make: Make) -> None:
    """Strategy chosen: success is what `when` says, and a no is named."""
    answers = [data(apiKeysSet={"ok": True}), data(apiKeysSet={"ok": False}), errors("unknown key")]
    double.script["apiKeys"] = [*answers]
    documents = {
        "set": {
            "document": "mutation S($id: ID!, $p: String!) { apiKeysSet(id: $id, p: $p) { ok } }",
            "variables": {"id": "{id}", "p": "{secret}"},
            "success": {"when": "apiKeysSet.ok"},
        }
    }
    provider = make(double, strategy="chosen", documents=documents)
    assert isinstance(provider, Choosing)
    secret = Secret(SECRET)
    assert (WHO, secret) == ((made := provider.set_secret(WHO, secret)).identity, made.secret)
    assert SECRET == double.calls[-1].variables["p"]
    assert UnknownOutcome is type(raised(lambda: provider.set_secret(WHO, secret)))
    assert Reason.KEY_UNKNOWN is raised(lambda: provider.set_secret(WHO, secret)).reason


def test_absence_can_be_told_without_an_error(double: GraphqlDouble, make: Make) -> None:
    """`data` with a null where the key would be, by `absent.when`: success for a deletion, KEY_UNKNOWN for the rest."""
    documents = section("haltian-graphql")["documents"]
    documents["delete"] |= {
        "absent": {"when": "!deleteApiKey"},
        "document": "mutation D($apiKeyId: ID!) { apiKeys(a: $apiKeyId) }",
    }
    documents["issue"]["absent"] = {"when": "!refreshApiKeyToken"}
    provider = make(double, documents=documents)
    double.script["apiKeys"] = [data(deleteApiKey=None)]
    provider.delete(KEY)
    double.script["refreshApiKeyToken"] = [data(refreshApiKeyToken=None)]
    assert Reason.KEY_UNKNOWN is raised(lambda: provider.issue(WHO)).reason


def test_times_of_issue_are_aware(double: GraphqlDouble, make: Make) -> None:
    """A timestamp without a zone is UTC."""
    double.script["refreshApiKeyToken"] = [issued(issuedAt="2026-03-24 12:00:00")]
    assert datetime(2026, 3, 24, 12, tzinfo=UTC) == make(double).issue(WHO).issued_at
