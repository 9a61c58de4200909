"""The Haltian provider over real sockets: the sandbox's platform for what works, a scripted endpoint for faults."""

from __future__ import annotations

import base64
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contract.graphql_double import GraphqlDouble, Scripted, data, errors, login
from provider_site import built
from rotator.clock import SystemClock
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import ExpirySource, Identity, RequestDone
from rotator.providers import Haltian, make_client
from rotator.reasons import Reason
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.haltian_state import Organization

KEY = "c6f7b103-81df-4e73-8218-4f671056aee2"
PASSWORD = "correct-horse-battery"
EMAIL = "operator@acme.example"
ISSUED = "2026-03-24T12:00:00Z"
EXPIRES = "2026-06-22T12:00:00Z"


class Requests:
    """Collects what the provider reports of its requests."""

    def __init__(self) -> None:
        self.done: list[RequestDone] = []

    def __call__(self, done: RequestDone) -> None:
        self.done.append(done)

    def codes(self, operation: str) -> list[str]:
        """The codes of one operation, in order."""
        return [each.code for each in self.done if each.operation == operation]


class AheadClock(SystemClock):
    """The machine's clock, to which a test may add."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@pytest.fixture
def requests() -> Requests:
    """What was reported."""
    return Requests()


@pytest.fixture
def clock() -> AheadClock:
    """A clock that can be moved forward."""
    return AheadClock()


@pytest.fixture
def double() -> Iterator[GraphqlDouble]:
    """A scripted endpoint, log-in included."""
    with GraphqlDouble() as served:
        yield served


Build = Callable[..., Haltian]


@pytest.fixture
def build(requests: Requests, clock: AheadClock) -> Iterator[Build]:
    """Makes providers and closes them."""
    made: list[Haltian] = []

    def make(url: str, password: Callable[[], str] = lambda: PASSWORD, **more: Any) -> Haltian:
        more.setdefault("issue_deadline", timedelta(seconds=10))
        provider = Haltian(
            "haltian-eu",
            client=make_client(),
            url=url,
            organization="acme",
            email=EMAIL,
            password=password,
            clock=clock,
            on_request=requests,
            **more,
        )
        made.append(provider)
        return provider

    yield make
    for provider in made:
        provider.close()


def identity() -> Identity:
    """The key that the guide shows."""
    return Identity(id=KEY, username=KEY)


def issued(**token: object) -> Scripted:
    """A refresh that works, with `token`'s fields over the guide's."""
    fields = {"token": "opaque-new-token", "issuedAt": ISSUED, "expiresAt": EXPIRES, **token}
    return data(refreshApiKeyToken={"id": KEY, "organizationId": "2a74", "token": fields})


def jwt(exp: int) -> str:
    """A token that ends at `exp`."""
    claims = base64.urlsafe_b64encode(json.dumps({"exp": exp}).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{claims}.c2ln"


def moment(text: str) -> datetime:
    """ISO 8601 → datetime."""
    return datetime.fromisoformat(text)


# --- what works, on the sandbox's platform -------------------------------------------------------------------------


@pytest.fixture
def platform() -> Iterator[HaltianPlatform]:
    """A platform that knows nobody."""
    with HaltianPlatform(access_seconds=900) as running:
        yield running


@pytest.fixture
def acme(platform: HaltianPlatform) -> Organization:
    """The organization, with its manager."""
    organization = platform.create_organization("acme")
    platform.create_user(EMAIL, PASSWORD, organization)
    return organization


def test_the_registry_builds_a_provider(platform: HaltianPlatform, acme: Organization, requests: Requests) -> None:
    """`kind: haltian` with its section of the configuration gives a Provider."""
    settings = {"url": platform.url, "organization": "acme", "email": EMAIL, "password": {"env": "HALTIAN_PASSWORD"}}
    provider = built("haltian", "haltian-eu", settings, secrets={"HALTIAN_PASSWORD": PASSWORD}, on_request=requests)
    assert "haltian-eu" == provider.name
    assert timedelta(seconds=30) == provider.issue_deadline
    assert Identity(id=KEY, username=KEY, client_id=None) == provider.identity(KEY)
    assert [] == list(provider.list_keys())
    provider.close()
    assert ["login", "list_keys", "logout"] == [done.operation for done in requests.done]
    assert {"200"} == {done.code for done in requests.done}


def test_a_real_schema_takes_every_document(platform: HaltianPlatform, acme: Organization, build: Build) -> None:
    """List, issue, list again: the new token is the platform's current one and the dates agree."""
    key_id, old = platform.add_key("building-a", acme, issued_ago=timedelta(days=80))
    provider = build(platform.url)
    (before,) = provider.list_keys()
    answer = provider.issue(provider.identity(key_id))
    (after,) = provider.list_keys()
    assert (key_id, "building-a", None) == (before.id, before.name, before.problem)
    assert old != answer.secret.reveal()
    assert platform.current_token(key_id) == answer.secret.reveal()
    assert (answer.issued_at, answer.expires_at) == (after.issued_at, after.expires_at)
    assert before.issued_at is not None
    assert after.issued_at is not None
    assert after.issued_at > before.issued_at
    assert 1 == platform.count("login")
    assert 1 == platform.count("refreshApiKeyToken")


def test_a_key_without_the_role_is_named(platform: HaltianPlatform, acme: Organization, build: Build) -> None:
    """The list says which key can't serve."""
    key_id, _ = platform.add_key("no-role", acme, role=False)
    (listed,) = build(platform.url).list_keys()
    assert (key_id, Reason.ROLE_MISSING) == (listed.id, listed.problem)


def test_the_session_is_renewed_before_it_ends(
    platform: HaltianPlatform, acme: Organization, build: Build, clock: AheadClock
) -> None:
    """Past its margin a session is renewed by its refresh token, again and again, without a second login."""
    provider = build(platform.url)
    provider.list_keys()
    for round_ in range(1, 4):
        clock.ahead += 850
        provider.list_keys()
        assert round_ == platform.count("refreshToken")
    assert 1 == platform.count("login")


def test_a_key_that_is_not_there_is_key_unknown(platform: HaltianPlatform, acme: Organization, build: Build) -> None:
    """A refresh of an unknown id is told as that."""
    with pytest.raises(Permanent) as caught:
        build(platform.url).issue(identity())
    assert Reason.KEY_UNKNOWN is caught.value.reason


def test_a_wrong_password_is_provider_auth(platform: HaltianPlatform, acme: Organization, build: Build) -> None:
    """A refused login names itself, shows no password, and reads the password anew the next time."""
    passwords = ["wrong-one-entirely", PASSWORD]
    provider = build(platform.url, password=lambda: passwords.pop(0))
    with pytest.raises(Permanent) as caught:
        provider.list_keys()
    assert Reason.PROVIDER_AUTH is caught.value.reason
    assert "wrong-one" not in repr(caught.value) + str(caught.value)
    assert [] == list(provider.list_keys())


# --- expiry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "expected", "source"),
    [
        ({}, EXPIRES, ExpirySource.ANSWER),
        ({"token": jwt(1774360000)}, "2026-03-24T13:46:40Z", ExpirySource.JWT),
        ({"token": jwt(4102444800)}, EXPIRES, ExpirySource.ANSWER),
        ({"expiresAt": "2027-01-01T00:00:00Z"}, EXPIRES, ExpirySource.LIFETIME),
        ({"expiresAt": None}, EXPIRES, ExpirySource.LIFETIME),
        ({"expiresAt": "whenever"}, EXPIRES, ExpirySource.LIFETIME),
        ({"expiresAt": None, "issuedAt": None, "token": jwt(1774360000)}, "2026-03-24T13:46:40Z", ExpirySource.JWT),
        ({"expiresAt": None, "issuedAt": None}, None, None),
        ({"expiresAt": "2020-01-01T00:00:00Z"}, "2020-01-01T00:00:00Z", ExpirySource.ANSWER),
        ({"expiresAt": 1774360000000}, "2026-03-24T13:46:40Z", ExpirySource.ANSWER),
        ({"expiresAt": "2026-05-01 10:00:00.123456"}, "2026-05-01T10:00:00.123456Z", ExpirySource.ANSWER),
    ],
)
def test_the_earliest_expiry_wins(
    double: GraphqlDouble, build: Build, token: dict[str, object], expected: str | None, source: ExpirySource | None
) -> None:
    """Of the answer, the JWT and the lifetime the earliest counts, and its source is told."""
    double.script["refreshApiKeyToken"] = [issued(**token)]
    answer = build(double.url).issue(identity())
    assert (moment(expected) if expected else None) == answer.expires_at
    assert source == answer.expiry_source


def test_the_list_falls_back_to_the_lifetime(double: GraphqlDouble, build: Build) -> None:
    """A listed key without expiresAt ends a lifetime after issuedAt; what is not shown accuses nobody."""
    double.script["apiKeys"] = [
        data(
            apiKeys=[
                {"id": "a", "name": "A", "token": {"issuedAt": ISSUED, "expiresAt": None, "revokedAt": None}},
                {"id": "b", "name": None, "token": None, "organizationRoles": [{"roleName": "mqttintegrator"}]},
                {"id": "c", "token": {"revokedAt": ISSUED}, "organizationRoles": []},
                {"id": "d", "token": {"issuedAt": ISSUED}, "organizationRoles": [{"roleName": "MqttIntegrator"}]},
            ]
        )
    ]
    listed = build(double.url, lifetime=timedelta(days=1)).list_keys()
    assert [None, Reason.ROLE_MISSING, Reason.KEY_REVOKED, None] == [key.problem for key in listed]
    assert moment("2026-03-25T12:00:00Z") == listed[0].expires_at
    assert ExpirySource.LIFETIME is listed[0].expiry_source
    assert (None, None) == (listed[1].expires_at, listed[1].expiry_source)


# --- answers without a usable secret -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (data(refreshApiKeyToken=None), Reason.NO_SECRET),
        (data(), Reason.NO_SECRET),
        (Scripted(body={"data": None}), Reason.NO_SECRET),
        (data(refreshApiKeyToken={"id": KEY, "token": None}), Reason.NO_SECRET),
        (data(refreshApiKeyToken={"id": KEY}), Reason.NO_SECRET),
        (issued(token=None), Reason.NO_SECRET),
        (issued(token=""), Reason.EMPTY_SECRET),
        (issued(token=" \t\n"), Reason.EMPTY_SECRET),
        (issued(token=7), Reason.PROVIDER_ANSWER_UNREADABLE),
        (issued(token="\ud800"), Reason.PROVIDER_ANSWER_UNREADABLE),
        (data(refreshApiKeyToken=[1]), Reason.PROVIDER_ANSWER_UNREADABLE),
        (data(refreshApiKeyToken={"id": KEY, "token": "flat"}), Reason.PROVIDER_ANSWER_UNREADABLE),
        (
            data(refreshApiKeyToken={"id": "another", "token": {"token": "made-up-secret"}}),
            Reason.PROVIDER_ANSWER_UNREADABLE,
        ),
    ],
)
def test_an_answer_without_a_usable_secret(
    double: GraphqlDouble, build: Build, answer: Scripted, reason: Reason
) -> None:
    """It is refused by name, the raw answer is kept for the journal, and nothing is asked twice."""
    double.script["refreshApiKeyToken"] = [answer]
    with pytest.raises(BadAnswer) as caught:
        build(double.url).issue(identity())
    assert reason is caught.value.reason
    assert answer.payload() == caught.value.body
    assert "made-up-secret" not in str(caught.value) + repr(caught.value)
    assert 1 == double.count("refreshApiKeyToken")


def test_a_secret_beside_errors_is_kept(double: GraphqlDouble, build: Build) -> None:
    """No answer is lost (rule 1): an issued token counts more than the errors or the status that came with it."""
    body = {"errors": [{"message": "audit failed"}], **json.loads(issued().payload())}
    provider = build(double.url)
    for status in (200, 500):
        double.script["refreshApiKeyToken"] = [Scripted(body=body, status=status)]
        assert "opaque-new-token" == provider.issue(identity()).secret.reveal()


# --- refusals and faults -------------------------------------------------------------------------------------------

RETRY = {"Retry-After": "30 seconds"}
LATER = timedelta(seconds=30)


@pytest.mark.parametrize(
    ("answer", "kind", "reason", "delay"),
    [
        (Scripted(status=429, headers=RETRY), Transient, Reason.PROVIDER_RATE_LIMITED, LATER),
        (errors("slow down", "rate-limited"), Transient, Reason.PROVIDER_RATE_LIMITED, None),
        (Scripted(status=404, body=b"nope"), Permanent, Reason.PROVIDER_REFUSED, None),
        (Scripted(status=302, headers={"Location": "/x"}), Permanent, Reason.PROVIDER_REFUSED, None),
        (Scripted(status=500, body=b"oops"), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(status=502), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(status=503, headers=RETRY), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(status=504), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(status=408), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (errors("internal error", "unexpected"), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (errors("the action timed out"), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (errors("API key not found", "not-found"), Permanent, Reason.KEY_UNKNOWN, None),
        (errors("unknown api key"), Permanent, Reason.KEY_UNKNOWN, None),
        (errors("field 'x' not found in type: 'm'", "validation-failed"), Permanent, Reason.PROVIDER_REFUSED, None),
        (errors("the plan does not allow it", "plan"), Permanent, Reason.PROVIDER_REFUSED, None),
        (errors("no such luck", data={"refreshApiKeyToken": None}), Permanent, Reason.KEY_UNKNOWN, None),
        (Scripted(body=b"<html>captive portal</html>"), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(body=b""), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(body=[1, 2]), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(body={}), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(body=b"[" * 100_000), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(body=issued().payload()[:60]), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(body=issued().body, cut=0), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(body=issued().body, cut=40), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (Scripted(body=b" " * (10 * 1024 * 1024 + 1)), UnknownOutcome, Reason.OUTCOME_UNKNOWN, None),
        (
            Scripted(body=b"not gzip", headers={"Content-Encoding": "gzip"}),
            UnknownOutcome,
            Reason.OUTCOME_UNKNOWN,
            None,
        ),
    ],
)
def test_issue_says_what_its_failure_means(
    double: GraphqlDouble, build: Build, answer: Scripted, kind: type[RotatorError], reason: Reason, delay: timedelta
) -> None:
    """Each fault has its error; what may have taken effect is never called a refusal, and one call is one request."""
    double.script["refreshApiKeyToken"] = [answer]
    with pytest.raises(RotatorError) as caught:
        build(double.url).issue(identity())
    assert (kind, reason) == (type(caught.value), caught.value.reason)
    assert delay == getattr(caught.value, "retry_after", None)
    assert 1 == double.count("refreshApiKeyToken")


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (Scripted(status=429, headers=RETRY), Transient, Reason.PROVIDER_RATE_LIMITED),
        (Scripted(status=503), Transient, Reason.PROVIDER_UNAVAILABLE),
        (Scripted(status=400, body=b"bad"), Permanent, Reason.PROVIDER_REFUSED),
        (errors("internal error", "unexpected"), Transient, Reason.PROVIDER_UNAVAILABLE),
        (Scripted(body=b"<html>"), Transient, Reason.PROVIDER_ANSWER_UNREADABLE),
        (data(apiKeys=None), Transient, Reason.PROVIDER_ANSWER_UNREADABLE),
        (data(apiKeys={"id": 1}), Transient, Reason.PROVIDER_ANSWER_UNREADABLE),
        (data(apiKeys=[{"name": "no id"}]), Transient, Reason.PROVIDER_ANSWER_UNREADABLE),
        (
            Scripted(body=b"not gzip", headers={"Content-Encoding": "gzip"}),
            Transient,
            Reason.PROVIDER_ANSWER_UNREADABLE,
        ),
        (Scripted(cut=0), Transient, Reason.PROVIDER_UNREACHABLE),
    ],
)
def test_a_failed_list_may_be_tried_again(
    double: GraphqlDouble, build: Build, answer: Scripted, kind: type[RotatorError], reason: Reason
) -> None:
    """A call that only looks is never of unknown outcome."""
    double.script["apiKeys"] = [answer]
    with pytest.raises(RotatorError) as caught:
        build(double.url).list_keys()
    assert (kind, reason) == (type(caught.value), caught.value.reason)


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (errors("invalid credentials", "access-denied"), Permanent, Reason.PROVIDER_AUTH),
        (errors("Invalid email or password", "unexpected"), Permanent, Reason.PROVIDER_AUTH),
        (errors("no such organization"), Permanent, Reason.PROVIDER_AUTH),
        (data(login=None), Permanent, Reason.PROVIDER_AUTH),
        (login("has a blank"), Permanent, Reason.PROVIDER_AUTH),
        (Scripted(status=401), Permanent, Reason.PROVIDER_AUTH),
        (Scripted(status=404), Permanent, Reason.PROVIDER_REFUSED),
        (Scripted(status=429, headers=RETRY), Transient, Reason.PROVIDER_RATE_LIMITED),
        (Scripted(status=503), Transient, Reason.PROVIDER_UNAVAILABLE),
        (errors("internal server error", "unexpected"), Transient, Reason.PROVIDER_UNAVAILABLE),
        (Scripted(cut=0), Transient, Reason.PROVIDER_UNREACHABLE),
        (Scripted(body=b"<html>"), Transient, Reason.PROVIDER_ANSWER_UNREADABLE),
    ],
)
def test_a_failed_login_issues_nothing(
    double: GraphqlDouble, build: Build, answer: Scripted, kind: type[RotatorError], reason: Reason
) -> None:
    """Whatever becomes of the login, no refresh is sent and the outcome is not unknown."""
    double.script["login"] = [answer]
    with pytest.raises(RotatorError) as caught:
        build(double.url).issue(identity())
    assert (kind, reason) == (type(caught.value), caught.value.reason)
    assert (1, 0) == (double.count("login"), double.count("refreshApiKeyToken"))


def test_nobody_at_the_address_is_unreachable(build: Build, requests: Requests) -> None:
    """A refused connection issued nothing."""
    with GraphqlDouble() as gone:
        url = gone.url
    with pytest.raises(Transient) as caught:
        build(url).issue(identity())
    assert Reason.PROVIDER_UNREACHABLE is caught.value.reason
    assert ["ConnectError"] == requests.codes("login")


# --- the session ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        Scripted(status=401),
        Scripted(status=403, body=b"forbidden"),
        errors("Could not verify JWT: JWTExpired", "invalid-jwt"),
        errors("Missing 'Authorization' header", "invalid-headers"),
        errors("not allowed", "UNAUTHENTICATED"),
        errors("your access token has expired"),
        Scripted(status=400, body={"errors": [{"message": "invalid token"}]}),
    ],
)
def test_a_refused_token_leads_to_one_login_and_one_more_try(
    double: GraphqlDouble, build: Build, refusal: Scripted
) -> None:
    """A refusal did nothing, so the call is sent again with the new token."""
    double.script["login"] = [login("access-1"), login("access-2")]
    double.script["refreshApiKeyToken"] = [refusal, issued()]
    answer = build(double.url).issue(identity())
    assert "opaque-new-token" == answer.secret.reveal()
    sent = [call.authorization for call in double.calls if call.operation == "refreshApiKeyToken"]
    assert ["Bearer access-1", "Bearer access-2"] == sent
    assert 2 == double.count("login")


def test_a_second_refusal_is_provider_auth(double: GraphqlDouble, build: Build) -> None:
    """After one new login a refusal is final."""
    double.script["refreshApiKeyToken"] = [Scripted(status=403)]
    with pytest.raises(Permanent) as caught:
        build(double.url).issue(identity())
    assert Reason.PROVIDER_AUTH is caught.value.reason
    assert (2, 2) == (double.count("login"), double.count("refreshApiKeyToken"))


def test_the_new_refresh_token_replaces_the_old(double: GraphqlDouble, build: Build, clock: AheadClock) -> None:
    """Each renewal sends what the one before it brought."""
    double.script["apiKeys"] = [data(apiKeys=[])]
    double.script["refreshToken"] = [
        data(
            refreshToken={"accessToken": f"a{n}", "expiresIn": 900, "refreshToken": f"r{n}", "refreshExpiresIn": 43200}
        )
        for n in (2, 3)
    ]
    provider = build(double.url)
    for _ in range(3):
        provider.list_keys()
        clock.ahead += 850
    renewals = [call for call in double.calls if call.operation == "refreshToken"]
    assert ["refresh-1", "r2"] == [call.variables["refreshToken"] for call in renewals]
    assert '"2a749da0-5512-4f3e-9a55-111111111111"' in renewals[1].document
    assert "Bearer a3" == double.calls[-1].authorization


@pytest.mark.parametrize(
    ("renewal", "ahead"),
    [
        (errors("invalid refresh token", "access-denied"), 850),
        (data(refreshToken=None), 850),
        (Scripted(cut=0), 1000),
        (data(refreshToken={"accessToken": "never asked"}), 50_000),
    ],
)
def test_a_refused_renewal_falls_back_to_login(
    double: GraphqlDouble, build: Build, clock: AheadClock, renewal: Scripted, ahead: float
) -> None:
    """A refused, lost or overdue refresh token costs a login, never the call."""
    double.script["apiKeys"] = [data(apiKeys=[])]
    double.script["refreshToken"] = [renewal]
    provider = build(double.url)
    provider.list_keys()
    clock.ahead += ahead
    assert [] == list(provider.list_keys())
    assert 2 == double.count("login")


def test_a_failed_renewal_keeps_a_session_that_is_still_good(
    double: GraphqlDouble, build: Build, clock: AheadClock
) -> None:
    """Within the margin the old token still works; no login is needed because of a 503."""
    double.script["apiKeys"] = [data(apiKeys=[])]
    double.script["refreshToken"] = [Scripted(status=503)]
    provider = build(double.url)
    provider.list_keys()
    clock.ahead += 850
    assert [] == list(provider.list_keys())
    assert (1, 1) == (double.count("login"), double.count("refreshToken"))


def test_many_keys_share_one_login(double: GraphqlDouble, build: Build) -> None:
    """Sixteen threads that start together log in once and each issue once."""
    double.script["refreshApiKeyToken"] = [issued()]
    provider = build(double.url)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: provider.issue(identity()), range(32)))
    assert 32 == len(answers)
    assert (1, 32) == (double.count("login"), double.count("refreshApiKeyToken"))


def test_a_refused_login_is_shared_by_those_who_waited(double: GraphqlDouble, build: Build) -> None:
    """A wrong password is not tried once a key: that would lock the account."""
    together = threading.Event()
    double.script["login"] = [Scripted(status=401, hold=together)]
    provider = build(double.url)
    started = threading.Barrier(9)

    def attempt(_: int) -> RotatorError:
        started.wait(10)
        with pytest.raises(RotatorError) as caught:
            provider.list_keys()
        return caught.value

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(attempt, n) for n in range(8)]
        started.wait(10)
        wait_until(lambda: double.count("login") == 1)
        wait_until(lambda: waiting_in(provider) >= 7)
        together.set()
        failures = [each.result(10) for each in running]
    assert {Reason.PROVIDER_AUTH} == {failure.reason for failure in failures}
    assert 8 == len({id(failure) for failure in failures})
    assert 1 == double.count("login")


def waiting_in(provider: Haltian) -> int:
    """How many threads wait in `Sessions.current`, seen from their frames."""
    frames = sys._current_frames().values()
    return sum(frame.f_code.co_name == "current" and "haltian_session" in frame.f_code.co_filename for frame in frames)


def wait_until(condition: Callable[[], bool], timeout: float = 10) -> None:
    """Poll, with a deadline."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        threading.Event().wait(0.01)


def test_close_logs_out_and_never_raises(double: GraphqlDouble, build: Build) -> None:
    """A refused logout is nobody's trouble; a closed provider can't be reached and says so."""
    double.script["apiKeys"] = [data(apiKeys=[])]
    double.script["logout"] = [Scripted(status=500)]
    provider = build(double.url)
    provider.list_keys()
    provider.close()
    provider.close()
    assert 1 == double.count("logout")
    with pytest.raises(Transient):
        provider.list_keys()


# --- deadlines, metrics, silence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["login", "refreshApiKeyToken"])
def test_the_deadline_is_a_total(double: GraphqlDouble, build: Build, where: str) -> None:
    """A peer that sends a byte now and then is cut off when the whole call's time is over."""
    slow = login() if where == "login" else issued()
    double.script["refreshApiKeyToken"] = [issued()]
    double.script[where] = [Scripted(body=slow.body, drip=0.1)]
    start = time.monotonic()
    with pytest.raises(RotatorError) as caught:
        build(double.url, issue_deadline=timedelta(seconds=1)).issue(identity())
    assert 0.9 < time.monotonic() - start < 2.5
    assert (Transient if where == "login" else UnknownOutcome) is type(caught.value)


def test_a_peer_that_never_answers_is_left_in_time(double: GraphqlDouble, build: Build) -> None:
    """Silence after the request was sent is an unknown outcome, at the deadline."""
    never = threading.Event()
    double.script["refreshApiKeyToken"] = [Scripted(hold=never)]
    start = time.monotonic()
    with pytest.raises(UnknownOutcome):
        build(double.url, issue_deadline=timedelta(seconds=0.5)).issue(identity())
    never.set()
    assert time.monotonic() - start < 2


def test_no_request_is_sent_after_the_deadline(double: GraphqlDouble, build: Build, requests: Requests) -> None:
    """What would come too late does not go out at all: nothing was issued, and that is certain."""
    provider = build(double.url, issue_deadline=timedelta(0))
    with pytest.raises(Transient) as caught:
        provider.issue(identity())
    assert Reason.PROVIDER_UNREACHABLE is caught.value.reason
    assert [] == double.calls


def test_each_request_is_reported_with_its_code_and_the_peers_clock(
    double: GraphqlDouble, build: Build, requests: Requests
) -> None:
    """Codes are the status, the GraphQL code or the exception; skew is the Date header minus our clock."""
    ahead = datetime.now(UTC) + timedelta(minutes=10)
    date = {"Date": ahead.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    double.script["refreshApiKeyToken"] = [
        Scripted(body=issued().body, headers=date),
        Scripted(status=502),
        errors("x", "Weird CODE!"),
        Scripted(cut=0),
    ]
    provider = build(double.url)
    provider.issue(identity())
    for _ in range(3):
        with pytest.raises(RotatorError):
            provider.issue(identity())
    codes = requests.codes("issue")
    assert ["200", "502", "weird-code"] == codes[:3]
    assert codes[3] in {"ReadError", "RemoteProtocolError"}
    (first, *_) = [done for done in requests.done if done.operation == "issue"]
    assert first.skew is not None
    assert timedelta(minutes=9) < first.skew < timedelta(minutes=11)
    assert {"haltian-eu"} == {done.peer for done in requests.done}


def test_nothing_secret_is_logged_or_raised(
    double: GraphqlDouble, build: Build, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Server messages that repeat tokens and passwords come out with stars; logs at DEBUG hold none of them."""
    caplog.set_level(logging.DEBUG)
    double.script["refreshApiKeyToken"] = [
        errors(f"refused: access-1 {jwt(1774360000)} for\nkey {KEY}", "plan"),
        issued(token="made-up-issued-secret"),
    ]
    provider = build(double.url)
    with pytest.raises(Permanent) as caught:
        provider.issue(identity())
    answer = provider.issue(identity())
    assert KEY in str(caught.value)
    assert "\n" not in str(caught.value)
    shown = str(caught.value) + repr(answer) + repr(provider) + caplog.text + "".join(capsys.readouterr())
    for secret in ("access-1", "refresh-1", "eyJ", PASSWORD, "made-up-issued-secret"):
        assert secret not in shown
