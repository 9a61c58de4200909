"""The iShareRadio provider over real sockets: the sandbox's portal, and a scripted endpoint for odd answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from contract.graphql_double import Scripted
from contract.printed_requests import printed, sent
from contract.rest_double import RestCall, RestDouble
from rotator.clock import SystemClock
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Credential, ExpirySource, Identity, RequestDone, Strategy
from rotator.ports import Deactivating, Deleting, InPlace, Provisioning, Replacing, Watched
from rotator.providers import PROVIDERS, Site, make_client
from rotator.providers.ishareradio import IShareRadio, IShareRadioSettings
from rotator.providers.ishareradio_subscribers import IShareRadioSubscribers
from rotator.reasons import Reason
from rotator.sandbox.ishareradio import LIST_SHAPES, Cut, Faults, IShareRadioPlatform, PasswordAnswer
from rotator.secret_refs import EnvRef

TOKEN = "isr_mqtt_rest_made-up"
PASSWORD = "made-up-password-0123456789"
MARKER, NEXT_MARKER = "rotator-0123456789ab-1", "rotator-0123456789ab-2"
ID = "pub-1"
ROTATE = f"/api/v1/subscriber/publishers/{ID}/rotate-credentials"
Build = Callable[..., IShareRadio]
BuildSubscribers = Callable[..., IShareRadioSubscribers]

# "MQTT client management API", as it is printed.
ORIGIN = "https://mqtt.ishareradio.com"
CREATE = """curl -sS -X POST "${PORTAL_ORIGIN}/api/v1/subscriber/publishers" \\
-H "Authorization: Bearer ${TOKEN}" \\
-H "Content-Type: application/json" \\
-d '{"label":"site-alpha-sensor","allow_subscribe":true}'"""
PAUSE = """curl -sS -X POST "${PORTAL_ORIGIN}/api/v1/subscriber/publishers/${CLIENT_ID}/pause" \\
-H "Authorization: Bearer ${TOKEN}\""""
RESUME = """curl -sS -X POST "${PORTAL_ORIGIN}/api/v1/subscriber/publishers/${CLIENT_ID}/resume" \\
-H "Authorization: Bearer ${TOKEN}\""""
REMOVE = """curl -sS -X DELETE "${PORTAL_ORIGIN}/api/v1/subscriber/publishers/${CLIENT_ID}" \\
-H "Authorization: Bearer ${TOKEN}\""""
ROTATE_PRINTED = """curl -sS -X POST "${PORTAL_ORIGIN}/api/v1/subscriber/publishers/${CLIENT_ID}/rotate-credentials" \\
-H "Authorization: Bearer ${TOKEN}\""""


@pytest.fixture
def done() -> list[RequestDone]:
    """What the provider reported of its requests."""
    return []


@pytest.fixture
def platform() -> Iterator[IShareRadioPlatform]:
    """A portal without logins."""
    with IShareRadioPlatform() as running:
        yield running


@pytest.fixture
def double() -> Iterator[RestDouble]:
    """A scripted endpoint that lists one MQTT client."""
    with RestDouble() as served:
        served.script["GET"] = [Scripted(body={"publishers": [{"client_id": ID, "label": "x", "paused": False}]})]
        yield served


@pytest.fixture
def configured(done: list[RequestDone]) -> Iterator[Callable[..., Any]]:
    """Makes providers from their section of the configuration, and closes them."""
    made: list[Any] = []

    def make(where: IShareRadioPlatform | RestDouble, *, token: Callable[[], str] | None = None, **more: Any) -> Any:
        reads = token or (lambda: where.token if isinstance(where, IShareRadioPlatform) else TOKEN)
        site = Site(
            name="radio",
            clock=SystemClock(),
            on_request=done.append,
            reveal=lambda ref: reads,
            client=lambda part: make_client(),
        )
        settings = IShareRadioSettings(kind="ishareradio", url=where.url, token=EnvRef(env="TOKEN"), **more)
        made.append(PROVIDERS["ishareradio"].build(site, settings))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


@pytest.fixture
def build(configured: Callable[..., Any]) -> Build:
    """Makes a provider of MQTT clients."""
    return configured


@pytest.fixture
def subscribers(configured: Callable[..., Any]) -> BuildSubscribers:
    """Makes a provider of read-only logins."""
    return lambda where, **more: configured(where, resource="subscribers", **more)


def identity() -> Identity:
    """The scripted endpoint's client."""
    return Identity(id=ID, username=ID, client_id=ID)


def raised(call: Callable[[], object]) -> RotatorError:
    """The error that a call ends with."""
    with pytest.raises(RotatorError) as caught:
        call()
    return caught.value


# --- the document's examples ---------------------------------------------------------------------------------------


def test_every_request_is_sent_as_the_document_prints_it(double: RestDouble, build: Build) -> None:
    """Create, pause, resume, remove, rotate: method, path, token and body."""
    double.script["GET"] = [Scripted(body=[])]
    device = {"client_id": ID, "password": PASSWORD}

    def post(call: RestCall) -> Scripted:
        verb = call.path.rpartition("/")[2]
        body = {"client_id": ID, "paused": verb == "pause"} if verb in ("pause", "resume") else {"device": device}
        return Scripted(body=body)

    double.script["POST"] = [post]
    double.script["DELETE"] = [Scripted(body={})]
    provider = build(double)
    provider.provision("site-alpha-sensor", {"allow_subscribe": "true"}, MARKER)
    provider.deactivate(identity())
    provider.reactivate(identity())
    provider.delete(ID)
    provider.issue(identity())
    examples = (CREATE, PAUSE, RESUME, REMOVE, ROTATE_PRINTED)
    expected = [printed(each, PORTAL_ORIGIN=ORIGIN, TOKEN=TOKEN, CLIENT_ID=ID) for each in examples]
    assert expected == [call for call in sent(double.calls) if call.method != "GET"]


def test_the_usual_origin_is_the_documents() -> None:
    """And 5000 requests an hour, as its page on tokens says."""
    settings = IShareRadioSettings(kind="ishareradio", token=EnvRef(env="TOKEN"))
    assert ORIGIN == settings.url
    assert settings.rate_limit is not None
    assert (5000, timedelta(hours=1)) == (settings.rate_limit.requests, settings.rate_limit.per)


# --- MQTT clients, on the sandbox's portal -------------------------------------------------------------------------


def test_abilities(platform: IShareRadioPlatform, build: Build) -> None:
    """In place, without expiry; may be paused, made and removed."""
    provider = build(platform)
    for port in (InPlace, Deactivating, Deleting, Provisioning, Watched):
        assert isinstance(provider, port)
    able = provider.abilities
    assert (Strategy.IN_PLACE, True, False) == (able.strategy, able.kills_old, able.expires)
    assert (True, True, True) == (able.pauses, able.creates, able.deletes)
    assert (timedelta(seconds=30), Identity(id="x", username="x", client_id="x")) == (
        provider.issue_deadline,
        provider.identity("x"),
    )


@pytest.mark.parametrize("nested", [True, False])
def test_a_new_password_is_the_brokers(platform: IShareRadioPlatform, build: Build, nested: bool) -> None:
    """Whether the answer holds `device.password` or `password`: one request, and the old one is out."""
    client_id, old = platform.add_key()
    platform.state.rotate_nested = nested
    provider = build(platform)
    issued = provider.issue(provider.identity(client_id))
    assert {client_id: issued.secret.reveal()} == platform.live()
    assert not platform.state.accepts(client_id, old)
    assert ["rotate"] == [seen.operation for seen in platform.seen]
    assert (None, None) == (issued.issued_at, issued.expires_at)


@pytest.mark.parametrize("shape", LIST_SHAPES)
def test_the_list_is_read_in_each_likely_shape(platform: IShareRadioPlatform, build: Build, shape: str) -> None:
    """Undated, since a password may be younger than its client."""
    platform.list_shape = shape
    client_id, _ = platform.add_key("lifts")
    (key,) = build(platform).list_keys()
    assert (client_id, "lifts", None, None) == (key.id, key.name, key.issued_at, key.expires_at)
    assert Identity(id=client_id, username=client_id, client_id=client_id) == key.identity


def test_a_paused_client_is_inactive_and_stays_so(platform: IShareRadioPlatform, build: Build) -> None:
    """A new password does not resume it."""
    client_id, _ = platform.add_key()
    provider = build(platform)
    for _ in range(2):
        provider.deactivate(provider.identity(client_id))
        assert {} == platform.live()
    assert [Reason.KEY_INACTIVE] == [key.problem for key in provider.list_keys()]
    provider.issue(provider.identity(client_id))
    assert {} == platform.live()
    for _ in range(2):
        provider.reactivate(provider.identity(client_id))
        assert {client_id} == platform.live().keys()
    assert [None] == [key.problem for key in provider.list_keys()]


def test_gone_is_success_but_for_who_brings_it_back(platform: IShareRadioPlatform, build: Build) -> None:
    """Delete twice, pause what is gone; resume and rotate name it."""
    client_id, _ = platform.add_key()
    provider = build(platform)
    for _ in range(2):
        provider.delete(client_id)
        assert {} == platform.live()
    provider.deactivate(provider.identity(client_id))
    for call in (provider.reactivate, provider.issue):
        error = raised(partial(call, provider.identity(client_id)))
        assert (Permanent, Reason.KEY_UNKNOWN) == (type(error), error.reason)


def test_provision_makes_a_client_once(platform: IShareRadioPlatform, build: Build) -> None:
    """Run twice, the second finds it by its label and gives it a new password."""
    provider = build(platform)
    first = provider.provision("site-alpha-sensor", {"allow_subscribe": "true"}, MARKER)
    second = provider.provision("site-alpha-sensor", {}, NEXT_MARKER)
    (row,) = platform.state.publishers()
    assert ("site-alpha-sensor", True) == (row["label"], row["allow_subscribe"])
    assert first.identity == second.identity == provider.identity(row["client_id"])
    assert {row["client_id"]: second.secret.reveal()} == platform.live()
    assert first.secret != second.secret


@pytest.mark.parametrize(
    ("name", "options"),
    [("", {}), ("x", {"allow_subscribe": "perhaps"}), ("x", {"colour": "red"}), ("twice", {})],
)
def test_provision_refuses_what_it_can_not_do(
    platform: IShareRadioPlatform, build: Build, name: str, options: dict[str, str]
) -> None:
    """A name of nothing, a value or an option that there is not, a label that two clients have: nothing is made."""
    platform.add_key("twice")
    platform.add_key("twice")
    provider = build(platform)
    before = platform.live()
    assert Reason.PROVIDER_REFUSED is raised(lambda: provider.provision(name, options, MARKER)).reason
    assert before == platform.live()


def test_provision_leaves_a_paused_client_alone(platform: IShareRadioPlatform, build: Build) -> None:
    """It is named, not resumed."""
    client_id, _ = platform.add_key("lifts")
    platform.state.pause(client_id, True)
    assert Reason.KEY_INACTIVE is raised(lambda: build(platform).provision("lifts", {}, MARKER)).reason
    assert ["list"] == [seen.operation for seen in platform.seen]


# --- who asks -------------------------------------------------------------------------------------------------------


def test_an_operators_token_names_its_account(platform: IShareRadioPlatform, build: Build) -> None:
    """With `account` it is sent; without, or for another one, nothing is done."""
    client_id, _ = platform.add_key()
    operator = platform.add_token(operator=True)
    assert [client_id] == [
        key.id for key in build(platform, token=lambda: operator, account=platform.account).list_keys()
    ]
    before = len(platform.seen)
    error = raised(build(platform, token=lambda: operator).list_keys)
    assert (Permanent, Reason.PROVIDER_AUTH, before) == (type(error), error.reason, len(platform.seen))
    assert "an operator's token" in error.message
    other = build(platform, token=lambda: operator, account="11111111-2222-3333-4444-555555555555")
    assert Reason.PROVIDER_REFUSED is raised(other.list_keys).reason


def test_a_token_that_was_replaced_is_tried_once_more(platform: IShareRadioPlatform, build: Build) -> None:
    """After a 401, only where the file holds another token by then."""
    platform.add_key()
    tokens = iter(["isr_mqtt_rest_old"])
    provider = build(platform, token=lambda: next(tokens, platform.token))
    assert 1 == len(provider.list_keys())
    assert 2 == platform.count("list")
    wrong = build(platform, token=lambda: "isr_mqtt_rest_old")
    assert Reason.PROVIDER_AUTH is raised(wrong.list_keys).reason
    assert 3 == platform.count("list")


def test_a_portal_without_the_add_on_says_so(platform: IShareRadioPlatform, build: Build) -> None:
    """403, in the portal's own words."""
    platform.mgmt = False
    error = raised(build(platform).list_keys)
    assert Reason.PROVIDER_AUTH is error.reason
    assert "add-on is not active" in error.message


@pytest.mark.parametrize("told", ["2027-01-31T12:00:00", "2027-01-31T12:00:00Z", "2027-01-31T14:00:00+02:00"])
def test_the_tokens_own_end_is_watched(platform: IShareRadioPlatform, build: Build, told: str) -> None:
    """As the configuration says; a time without a zone is UTC."""
    expected = Credential(name="token", expires_at=datetime(2027, 1, 31, 12, tzinfo=UTC))
    assert [expected] == list(build(platform, token_expires_at=told).credentials())
    assert [] == list(build(platform).credentials())


def test_an_end_that_is_no_time_is_refused() -> None:
    """When the configuration is read."""
    with pytest.raises(ValidationError, match="token_expires_at"):
        IShareRadioSettings(kind="ishareradio", token=EnvRef(env="TOKEN"), token_expires_at="soon")  # type: ignore[arg-type]  # text, as it stands in the file


def test_5000_requests_an_hour_and_no_more(platform: IShareRadioPlatform, build: Build) -> None:
    """The portal's own 429 names the delay."""
    platform.window.most = 1
    provider = build(platform)
    provider.list_keys()
    error = raised(provider.list_keys)
    assert isinstance(error, Transient)
    assert error.retry_after is not None
    assert timedelta(0) < error.retry_after <= timedelta(hours=1)


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "kind", "reason", "effect"),
    [
        (Faults(status=429, retry_after="7"), Transient, Reason.PROVIDER_RATE_LIMITED, False),
        (Faults(status=503), UnknownOutcome, Reason.OUTCOME_UNKNOWN, False),
        (Faults(status=502, status_after_effect=True), UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
        (Faults(cut=Cut.BEFORE_EFFECT), UnknownOutcome, Reason.OUTCOME_UNKNOWN, False),
        (Faults(cut=Cut.AFTER_EFFECT), UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
        (Faults(truncate=True), UnknownOutcome, Reason.OUTCOME_UNKNOWN, True),
    ],
)
def test_a_fault_of_the_call_is_never_taken_for_another(
    platform: IShareRadioPlatform,
    build: Build,
    faults: Faults,
    kind: type[RotatorError],
    reason: Reason,
    effect: bool,
) -> None:
    """What was maybe done is unknown, what was refused at the door is not; nothing is repeated."""
    client_id, old = platform.add_key()
    faults.operations = frozenset({"rotate"})
    platform.faults = faults
    provider = build(platform)
    error = raised(lambda: provider.issue(provider.identity(client_id)))
    assert (kind, reason) == (type(error), error.reason)
    assert effect is (platform.live()[client_id] != old)
    assert 1 == platform.count("rotate")
    if isinstance(error, Transient):
        assert timedelta(seconds=7) == error.retry_after


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(PasswordAnswer.NO_PASSWORD, Reason.NO_SECRET), (PasswordAnswer.EMPTY_PASSWORD, Reason.EMPTY_SECRET)],
)
def test_an_answer_without_a_password_is_refused(
    platform: IShareRadioPlatform, build: Build, answer: PasswordAnswer, reason: Reason
) -> None:
    """And kept whole for the journal."""
    client_id, _ = platform.add_key()
    platform.password_answer = answer
    provider = build(platform)
    error = raised(lambda: provider.issue(provider.identity(client_id)))
    assert (BadAnswer, reason) == (type(error), error.reason)
    assert client_id in (error.body or b"").decode()


@pytest.mark.parametrize(
    "body",
    [
        {"device": {"client_id": ID, "password": PASSWORD}, "password": "another-one"},
        {"device": {"client_id": "pub-2", "password": PASSWORD}},
        {"client_id": "pub-2", "password": PASSWORD},
        {"device": {"client_id": ID, "password": 17}},
        {"password": ["x"]},
    ],
)
def test_an_answer_that_may_mean_something_else_is_refused(double: RestDouble, build: Build, body: object) -> None:
    """Two passwords, another client's, no text."""
    double.script["POST"] = [Scripted(body=body)]
    error = raised(lambda: build(double).issue(identity()))
    assert (BadAnswer, Reason.PROVIDER_ANSWER_UNREADABLE) == (type(error), error.reason)
    assert PASSWORD not in str(error) + repr(error)


def test_a_password_beside_an_error_is_kept(double: RestDouble, build: Build) -> None:
    """An issued secret counts more than the status that came with it."""
    double.script["POST"] = [Scripted(status=500, body={"device": {"client_id": ID, "password": PASSWORD}})]
    assert PASSWORD == build(double).issue(identity()).secret.reveal()


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"", b"[]", b"{"])
def test_a_page_with_status_200_is_no_answer(double: RestDouble, build: Build, body: bytes) -> None:
    """The password may have been made anew: unknown. A list that is a page is unreadable."""
    double.script["POST"] = [Scripted(body=body)]
    assert UnknownOutcome is type(raised(lambda: build(double).issue(identity())))
    double.script["GET"] = [Scripted(body=b"<html>welcome</html>")]
    assert Reason.PROVIDER_ANSWER_UNREADABLE is raised(build(double).list_keys).reason


def test_a_404_that_the_list_denies_is_not_believed(double: RestDouble, build: Build) -> None:
    """A gateway's 404 does not make a login that lives one that is gone."""
    double.script.update(POST=[Scripted(status=404, body={})], DELETE=[Scripted(status=404, body={})])
    provider = build(double)
    for call in (lambda: provider.delete(ID), lambda: provider.deactivate(identity())):
        assert raised(call).reason in (Reason.PROVIDER_ANSWER_UNREADABLE, Reason.PROVIDER_REFUSED)
    assert Reason.PROVIDER_REFUSED is raised(lambda: provider.issue(identity())).reason


def test_paused_already_may_be_a_refusal(double: RestDouble, build: Build) -> None:
    """409 where the list shows the state that was asked for is success; another state is not."""
    double.script["GET"] = [Scripted(body=[{"client_id": ID, "status": "Paused"}])]
    double.script["POST"] = [Scripted(status=409, body={"detail": "already paused"})]
    provider = build(double)
    provider.deactivate(identity())
    assert "already paused" in raised(lambda: provider.reactivate(identity())).message


def test_a_pause_that_did_not_take_place_is_told(double: RestDouble, build: Build) -> None:
    """200, and the list still shows it running."""
    double.script["POST"] = [Scripted(body={"ok": True})]
    assert Reason.PROVIDER_ANSWER_UNREADABLE is raised(lambda: build(double).deactivate(identity())).reason


@pytest.mark.parametrize(
    ("row", "inactive"),
    [
        ({"paused": True}, True),
        ({"is_paused": True}, True),
        ({"active": False}, True),
        ({"enabled": False}, True),
        ({"status": "paused"}, True),
        ({"state": "suspended"}, True),
        ({"paused_at": "2026-03-24T12:00:00Z"}, True),
        ({"paused_at": None}, False),
        ({"status": "online"}, False),
        ({"paused": False, "status": "paused"}, False),
        ({}, False),
    ],
)
def test_a_pause_is_read_in_each_likely_form(
    double: RestDouble, build: Build, row: dict[str, object], inactive: bool
) -> None:
    """The document says "pause state" and shows none; what is not shown accuses nobody."""
    double.script["GET"] = [Scripted(body=[{"client_id": ID, **row}])]
    (key,) = build(double).list_keys()
    assert inactive is (key.problem is Reason.KEY_INACTIVE)


@pytest.mark.parametrize(
    "body",
    [
        {"publishers": {}},
        {"rows": []},
        "x",
        None,
        ["x"],
        [{"client_id": ID}, {"label": "x"}],
        {"publishers": [{"client_id": ID}], "total": 2},
    ],
)
def test_what_is_no_whole_list_is_unreadable(double: RestDouble, build: Build, body: object) -> None:
    """Half a list would make the other half's keys vanish."""
    double.script["GET"] = [Scripted(body=body)]
    assert Reason.PROVIDER_ANSWER_UNREADABLE is raised(build(double).list_keys).reason


@pytest.mark.parametrize("id", ["", ".", "..", "a\ud800"])
def test_what_is_no_id_is_not_sent(double: RestDouble, build: Build, id: str) -> None:
    """ ".." in a path means something else entirely."""
    for call in (build(double).issue, build(double).deactivate):
        error = raised(partial(call, Identity(id=id, username=id)))
        assert Reason.KEY_UNKNOWN is error.reason
    assert [] == double.calls


def test_an_id_is_quoted(double: RestDouble, build: Build) -> None:
    """A vendor's client id may hold a slash."""
    double.script["POST"] = [Scripted(body={"password": PASSWORD})]
    build(double).issue(Identity(id="a/b c", username="a/b c"))
    assert ["/api/v1/subscriber/publishers/a%2Fb%20c/rotate-credentials"] == [call.path for call in double.calls]


def test_no_secret_is_shown(
    double: RestDouble, build: Build, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in errors, reprs, logs or output, even where the portal repeats it."""
    caplog.set_level(logging.DEBUG)
    double.script["GET"] = [Scripted(body=[{"client_id": ID, "label": "x", "password": PASSWORD}])]
    provider = build(double)
    shown = repr(provider) + repr(provider.list_keys())
    for answer in (
        Scripted(status=400, body={"detail": f"no: {TOKEN} {PASSWORD}"}),
        Scripted(status=500, body={"device": {"client_id": ID, "password": PASSWORD}}),
        Scripted(body={"device": {"client_id": "pub-2", "password": PASSWORD}}),
    ):
        double.script["POST"] = [answer]
        try:
            shown += repr(provider.issue(identity()))
        except RotatorError as exc:
            shown += str(exc) + repr(exc)
    shown += caplog.text + "".join(capsys.readouterr())
    assert "HTTP 400" in shown
    assert TOKEN not in shown
    assert PASSWORD not in shown


def test_sixteen_threads_get_sixteen_passwords(platform: IShareRadioPlatform, build: Build) -> None:
    """One provider serves them all; each answer reaches the thread that asked."""
    ids = [platform.add_key(str(number))[0] for number in range(16)]
    provider, issued, gate = build(platform), dict[str, str](), threading.Barrier(16)

    def rotate(id: str) -> None:
        gate.wait(10)
        issued[id] = provider.issue(provider.identity(id)).secret.reveal()

    threads = [threading.Thread(target=rotate, args=(id,)) for id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert platform.live() == issued


# --- read-only logins -----------------------------------------------------------------------------------------------


def test_a_second_login_beside_the_first(platform: IShareRadioPlatform, subscribers: BuildSubscribers) -> None:
    """With the label, the marker in it, and a life in days; both are let in; then the old one is removed."""
    id, username, password = platform.add_subscriber("automation")
    provider = subscribers(platform, expires_in_days=7)
    assert isinstance(provider, Replacing)
    assert (Strategy.REPLACE, False, True) == (provider.strategy, provider.deactivates, provider.abilities.expires)
    first = provider.create(provider.identity(id), MARKER)
    second = provider.create(first.identity, NEXT_MARKER)
    listed = {key.marker: key for key in provider.list_keys()}
    assert ["automation", f"automation {MARKER}", f"automation {NEXT_MARKER}"] == [key.name for key in listed.values()]
    assert second.identity == listed[NEXT_MARKER].identity
    assert (second.expires_at, second.issued_at) == (listed[NEXT_MARKER].expires_at, listed[NEXT_MARKER].issued_at)
    assert second.expires_at is not None
    assert second.issued_at is not None
    assert timedelta(days=7) == second.expires_at - second.issued_at
    assert ExpirySource.ANSWER is second.expiry_source
    assert {username: password, second.identity.username: second.secret.reveal()}.items() <= platform.live().items()
    for _ in range(2):
        provider.delete(id)
        assert username not in platform.live()


def test_a_full_plan_is_named(platform: IShareRadioPlatform, subscribers: BuildSubscribers) -> None:
    """`max_subscribers`, with the portal's figures; nothing is made."""
    id, *_ = platform.add_subscriber()
    platform.state.max_subscribers = 1
    provider = subscribers(platform)
    error = raised(lambda: provider.create(provider.identity(id), MARKER))
    assert (Permanent, Reason.PROVIDER_QUOTA) == (type(error), error.reason)
    assert "max_subscribers reached (1/1)" in error.message
    assert 1 == len(platform.live())


def test_a_portal_that_serves_no_list_of_them_is_unable(
    platform: IShareRadioPlatform, subscribers: BuildSubscribers
) -> None:
    """The list and the removal are not documented: a clear refusal, and nothing is made."""
    id, *_ = platform.add_subscriber()
    platform.serves_subscribers = False
    provider = subscribers(platform)
    for call in (
        provider.list_keys,
        lambda: provider.create(provider.identity(id), MARKER),
        lambda: provider.delete(id),
        lambda: provider.deactivate(provider.identity(id)),
        lambda: provider.reactivate(provider.identity(id)),
    ):
        error = raised(call)
        assert (Permanent, Reason.PROVIDER_UNABLE) == (type(error), error.reason)
    assert 1 == len(platform.live())


def test_a_removal_that_is_not_served_is_told(double: RestDouble, subscribers: BuildSubscribers) -> None:
    """405, and the list still holds it."""
    double.script["GET"] = [Scripted(body=[{"id": 7, "username": "sub-1"}])]
    double.script["DELETE"] = [Scripted(status=405, body={})]
    assert Reason.PROVIDER_UNABLE is raised(lambda: subscribers(double).delete("7")).reason


def test_a_lost_answer_is_found_by_its_marker(platform: IShareRadioPlatform, subscribers: BuildSubscribers) -> None:
    """The login was made, the connection cut."""
    id, *_ = platform.add_subscriber()
    platform.faults = Faults(operations=frozenset({"create_subscriber"}), cut=Cut.AFTER_EFFECT)
    provider = subscribers(platform)
    assert UnknownOutcome is type(raised(lambda: provider.create(provider.identity(id), MARKER)))
    assert [MARKER] == [key.marker for key in provider.list_keys() if key.marker]


def test_an_answer_without_an_end_has_the_one_that_was_asked_for(
    double: RestDouble, subscribers: BuildSubscribers
) -> None:
    """So many days from now; a login that has no id of its own is known by its username."""
    double.script["GET"] = [Scripted(body=[{"username": "sub-1", "label": "x"}])]
    double.script["POST"] = [Scripted(status=201, body={"subscriber": {"username": "sub-2", "password": PASSWORD}})]
    issued = subscribers(double, expires_in_days=3).create(Identity(id="sub-1", username="sub-1"), MARKER)
    assert Identity(id="sub-2", username="sub-2") == issued.identity
    assert issued.expires_at is not None
    assert timedelta(days=3) - timedelta(minutes=1) < issued.expires_at - datetime.now(UTC) <= timedelta(days=3)
    assert ExpirySource.LIFETIME is issued.expiry_source
    body = {"label": f"x {MARKER}", "expires_in_days": 3}
    assert ("/api/v1/subscriber/subscriber-mqtt-passwords", body) == (double.calls[-1].path, double.calls[-1].body)


def test_a_read_only_login_is_provisioned_once(platform: IShareRadioPlatform, subscribers: BuildSubscribers) -> None:
    """Its password can't be had a second time, which is said."""
    provider = subscribers(platform)
    made = provider.provision("automation", {"expires_in_days": "90"}, MARKER)
    assert {made.identity.username: made.secret.reveal()} == platform.live()
    error = raised(lambda: provider.provision("automation", {}, NEXT_MARKER))
    assert Reason.PROVIDER_REFUSED is error.reason
    assert made.identity.id in error.message
    for options in ({"expires_in_days": "0"}, {"expires_in_days": "soon"}, {"colour": "red"}):
        assert Reason.PROVIDER_REFUSED is raised(partial(provider.provision, "y", options, MARKER)).reason
    assert 1 == len(platform.live())
