"""Haltian keys made and deleted, and the guide's own documents, variables and answers through the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.resources import files
from typing import Any

import pytest
from graphql import build_schema, parse, print_ast, validate

from contract.graphql_double import GraphqlDouble, Scripted, data, errors, login
from contract.haltian_guide import ANSWERS, DOCUMENTS, SCRIPTS, VARIABLES
from rotator.clock import SystemClock
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import ExpirySource, RequestDone, Strategy
from rotator.ports import Deactivating, Deleting, InPlace, Provisioning
from rotator.providers import Haltian, haltian_documents, haltian_session, make_client
from rotator.reasons import Reason
from rotator.sandbox.haltian import Cut, Faults, HaltianPlatform
from rotator.sandbox.haltian_state import Organization

MARKER = "rotator-0123456789ab-1"
NAME = "Building Management System"
INTEGRATION = "Production MQTT streaming"
KEY = "c6f7b103-81df-4e73-8218-4f671056aee2"
STEPS = (
    "createMqttSubscriptionIntegration",
    "createApiKey",
    "assignApiKeyOrganizationRole",
    "assignMqttSubscriptionIntegrationApiKey",
)
Build = Callable[[str], Haltian]


class Sink:
    """A broker that remembers who may come in."""

    def __init__(self) -> None:
        self.live: dict[str, str] = {}

    def grant(self, username: str, token: str) -> None:
        self.live[username] = token

    def revoke(self, username: str) -> None:
        self.live.pop(username, None)


@pytest.fixture
def sink() -> Sink:
    """What the broker knows."""
    return Sink()


@pytest.fixture
def platform(sink: Sink) -> Iterator[HaltianPlatform]:
    """A platform that tells the broker."""
    with HaltianPlatform(sink=sink) as running:
        yield running


@pytest.fixture
def acme(platform: HaltianPlatform) -> Organization:
    """The organization, with its manager."""
    organization = platform.create_organization(VARIABLES["login"]["organizationName"])
    platform.create_user(VARIABLES["login"]["email"], VARIABLES["login"]["password"], organization)
    return organization


@pytest.fixture
def double() -> Iterator[GraphqlDouble]:
    """A scripted endpoint, log-in included."""
    with GraphqlDouble() as served:
        yield served


@pytest.fixture
def requests() -> list[RequestDone]:
    """What was reported."""
    return []


@pytest.fixture
def build(requests: list[RequestDone]) -> Iterator[Build]:
    """Makes providers with the guide's login, and closes them."""
    made: list[Haltian] = []

    def make(url: str) -> Haltian:
        provider = Haltian(
            "haltian-eu",
            client=make_client(),
            url=url,
            organization=VARIABLES["login"]["organizationName"],
            email=VARIABLES["login"]["email"],
            password=lambda: VARIABLES["login"]["password"],
            clock=SystemClock(),
            on_request=requests.append,
            issue_deadline=timedelta(seconds=10),
        )
        made.append(provider)
        return provider

    yield make
    for provider in made:
        provider.close()


# --- the guide, as it is printed -----------------------------------------------------------------------------------


def test_the_client_sends_the_guides_documents() -> None:
    """Each of the nine, field by field: what the guide leaves out or adds would show here."""
    sent = {name: text for name, text in vars(haltian_documents).items() if name.isupper() and name != "LOGOUT"}
    sent["LOGIN"] = haltian_session.LOGIN
    assert sorted(print_ast(parse(text)) for text in DOCUMENTS.values()) == sorted(
        print_ast(parse(text)) for text in sent.values()
    )


@pytest.mark.parametrize("document", [*DOCUMENTS.values(), *(document for document, _ in SCRIPTS)])
def test_the_guides_documents_fit_the_simulators_schema(document: str) -> None:
    """They parse and validate, those of the guide's scripts included."""
    schema = build_schema(files("rotator.sandbox").joinpath("haltian.graphql").read_text(encoding="utf-8"))
    assert [] == validate(schema, parse(document))


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        (DOCUMENTS["refreshApiKeyToken"], ("apikeyId:", "apiKeyId:")),
        (DOCUMENTS["deleteApiKey"], ("apikeyId:", "apiKeyId:")),
        (DOCUMENTS["assignApiKeyOrganizationRole"], ("apiKeyId:", "apikeyId:")),
        (DOCUMENTS["assignMqttSubscriptionIntegrationApiKey"], ("apiKeyId:", "apikeyId:")),
    ],
)
def test_the_schema_is_strict_about_the_guides_casing(document: str, wrong: tuple[str, str]) -> None:
    """The trap of this guide: a simulator that took both would hide a client that sends the wrong one."""
    schema = build_schema(files("rotator.sandbox").joinpath("haltian.graphql").read_text(encoding="utf-8"))
    assert validate(schema, parse(document.replace(*wrong)))


def test_the_guides_answers_go_through_the_client_unchanged(double: GraphqlDouble, build: Build) -> None:
    """Steps 1 to 5 with the guide's variables; the secret is the printed one, and so are its dates."""
    organization = "2a749da0-5512-..."
    double.script |= {name: [Scripted(body=ANSWERS[name])] for name in STEPS[:2]}
    double.script |= {"apiKeys": [data(apiKeys=[])], "mqttSubscriptionIntegration": [listed()]}
    role = {**VARIABLES[STEPS[2]], "roleName": "MqttIntegrator", "organizationId": organization}
    double.script[STEPS[2]] = [data(**{STEPS[2]: role})]
    double.script[STEPS[3]] = [data(**{STEPS[3]: VARIABLES[STEPS[3]]})]
    issued = build(double.url).provision(NAME, {"integration": INTEGRATION}, MARKER)
    changes = [call for call in double.calls if call.operation in ("login", *STEPS)]
    assert ["login", *STEPS] == [call.operation for call in changes]
    assert {call.operation: call.variables for call in changes} == {name: VARIABLES[name] for name in ("login", *STEPS)}
    printed = ANSWERS["createApiKey"]["data"]["createApiKey"]
    assert (printed["id"], printed["id"]) == (issued.identity.id, issued.identity.username)
    assert printed["token"]["token"] == issued.secret.reveal()
    assert [printed["token"]["issuedAt"], printed["token"]["expiresAt"]] == [
        moment.isoformat().replace("+00:00", "Z") for moment in (issued.issued_at, issued.expires_at) if moment
    ]
    assert issued.expiry_source is ExpirySource.ANSWER


def test_the_guides_refresh_goes_through_the_client_unchanged(double: GraphqlDouble, build: Build) -> None:
    """Step 6."""
    double.script["refreshApiKeyToken"] = [Scripted(body=ANSWERS["refreshApiKeyToken"])]
    provider = build(double.url)
    issued = provider.issue(provider.identity(KEY))
    assert VARIABLES["refreshApiKeyToken"] == double.calls[-1].variables
    printed = ANSWERS["refreshApiKeyToken"]["data"]["refreshApiKeyToken"]["token"]
    assert printed["token"] == issued.secret.reveal()
    assert [printed["issuedAt"], printed["expiresAt"]] == [
        moment.isoformat().replace("+00:00", "Z") for moment in (issued.issued_at, issued.expires_at) if moment
    ]


def listed(*integrations: object) -> Scripted:
    """The list of integrations."""
    return data(mqttSubscriptionIntegration=list(integrations))


# --- on the sandbox's platform -------------------------------------------------------------------------------------


def test_what_it_can_do_it_says(platform: HaltianPlatform, build: Build) -> None:
    """In place, with an expiry; keys are made and deleted, and never paused."""
    provider = build(platform.url)
    assert [] == [each for each in (InPlace, Provisioning, Deleting) if not isinstance(provider, each)]
    assert not isinstance(provider, Deactivating)
    abilities = provider.abilities
    assert (Strategy.IN_PLACE, True, True) == (abilities.strategy, abilities.kills_old, abilities.expires)
    assert (True, False, True, True) == (abilities.lists, abilities.pauses, abilities.creates, abilities.deletes)


def test_a_key_is_provisioned(platform: HaltianPlatform, acme: Organization, build: Build, sink: Sink) -> None:
    """Four steps in the guide's order, and the broker lets the key in."""
    provider = build(platform.url)
    issued = provider.provision(NAME, {"integration": INTEGRATION}, MARKER)
    assert {issued.identity.username: issued.secret.reveal()} == sink.live
    assert list(STEPS) == [field for seen in platform.seen for field in seen.fields if field in STEPS]
    (integration,) = provider.list_integrations()
    assert (INTEGRATION, True) == (integration.description, integration.active)
    assert {issued.identity.id} == set(integration.keys)
    (key,) = provider.list_keys()
    assert (NAME, None) == (key.name, key.problem)


def test_provisioning_again_repeats_no_step(
    platform: HaltianPlatform, acme: Organization, build: Build, sink: Sink
) -> None:
    """All four are found; the token is refreshed, since nobody has the one that was shown once."""
    provider = build(platform.url)
    first = provider.provision(NAME, {"integration": INTEGRATION}, MARKER)
    second = provider.provision(NAME, {"integration": INTEGRATION}, MARKER)
    assert first.identity == second.identity
    assert {second.identity.username: second.secret.reveal()} == sink.live
    assert [1, 1, 1, 1, 1] == [platform.count(field) for field in (*STEPS, "refreshApiKeyToken")]


@pytest.mark.parametrize("cut", [Cut.AFTER_EFFECT, Cut.BEFORE_EFFECT])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_in_any_step_is_made_good_by_the_next_run(
    platform: HaltianPlatform, acme: Organization, build: Build, sink: Sink, step: str, cut: Cut
) -> None:
    """An unknown outcome; then there is one of everything, and the secret that came back lets the key in."""
    platform.faults = Faults(operations=frozenset({step}), cut=cut, times=1)
    provider = build(platform.url)
    with pytest.raises(UnknownOutcome):
        provider.provision(NAME, {"integration": INTEGRATION}, MARKER)
    issued = provider.provision(NAME, {"integration": INTEGRATION}, MARKER)
    assert {issued.identity.username: issued.secret.reveal()} == sink.live
    (integration,), (key,) = provider.list_integrations(), provider.list_keys()
    assert {key.id} == integration.keys
    assert key.problem is None
    repeated = 1 if cut is Cut.AFTER_EFFECT else 2
    assert [repeated if each == step else 1 for each in STEPS] == [platform.count(each) for each in STEPS]


@pytest.mark.parametrize("by", ["id", "description"])
def test_an_integration_that_is_there_is_used(
    platform: HaltianPlatform, acme: Organization, build: Build, by: str
) -> None:
    """By its id, or by its description; its other keys stay linked."""
    integration = platform.create_integration(acme, INTEGRATION)
    other, _ = platform.add_key("other", acme, integration_id=integration)
    platform.create_integration(acme, "something else")
    provider = build(platform.url)
    wanted = integration if by == "id" else INTEGRATION
    issued = provider.provision(NAME, {"integration": wanted}, MARKER)
    assert {other, issued.identity.id} == {each.id: each for each in provider.list_integrations()}[integration].keys
    assert 2 == len(provider.list_integrations())


def test_without_a_word_the_integration_is_called_like_the_key(
    platform: HaltianPlatform, acme: Organization, build: Build
) -> None:
    """The guide: typically one integration per consumer of data."""
    provider = build(platform.url)
    provider.provision(NAME, {}, MARKER)
    assert [NAME] == [each.description for each in provider.list_integrations()]


def test_what_is_ambiguous_is_left_to_a_person(platform: HaltianPlatform, acme: Organization, build: Build) -> None:
    """Two keys of that name, two integrations of that description, an inactive one, a wrong option: nothing is made."""
    for _ in range(2):
        platform.add_key("twice", acme, integration_id=platform.create_integration(acme, "double"))
    platform.state.create_integration(acme.id, "asleep", "inactive")
    provider = build(platform.url)
    keys = provider.list_keys()
    for name, options, words in (
        ("twice", {"integration": "fresh"}, "2 keys have this name"),
        (NAME, {"integration": "double"}, "2 integrations"),
        (NAME, {"integration": "asleep"}, "not active"),
        (NAME, {"colour": "red"}, "no such option: colour"),
        (" ", {}, "needs a name"),
    ):
        with pytest.raises(Permanent) as caught:
            provider.provision(name, options, MARKER)
        assert Reason.PROVIDER_REFUSED is caught.value.reason
        assert words in caught.value.message
    assert keys == provider.list_keys()
    assert [0, 0, 0, 0] == [platform.count(field) for field in STEPS]


def test_a_revoked_key_of_that_name_is_no_hindrance(
    platform: HaltianPlatform, acme: Organization, build: Build, sink: Sink
) -> None:
    """It is dead for good: a new one is made beside it."""
    revoked, _ = platform.add_key(NAME, acme)
    platform.state.revoke_key(revoked)
    issued = build(platform.url).provision(NAME, {}, MARKER)
    assert issued.identity.id != revoked
    assert {issued.identity.id: issued.secret.reveal()} == sink.live


def test_a_key_is_deleted(platform: HaltianPlatform, acme: Organization, build: Build, sink: Sink) -> None:
    """Its client is out at once; absent is success; what is no id is refused."""
    key, _ = platform.add_key(NAME, acme)
    provider = build(platform.url)
    for _ in range(2):
        provider.delete(key)
    assert {} == sink.live
    assert [] == list(provider.list_keys())
    with pytest.raises(Permanent) as caught:
        provider.delete("no id")
    assert Reason.PROVIDER_REFUSED is caught.value.reason


def test_a_session_that_ends_between_two_steps(platform: HaltianPlatform, acme: Organization, build: Build) -> None:
    """The provider's own login expires in the middle: one new login, and no step twice."""
    key = platform.state.keys

    def forgetful(organization_id: str) -> Any:
        listed = key(organization_id)
        platform.state.end_sessions()
        return listed

    platform.state.keys = forgetful  # type: ignore[method-assign]
    build(platform.url).provision(NAME, {}, MARKER)
    assert 2 == platform.count("login")
    assert [1, 1, 1, 1] == [platform.count(field) for field in STEPS]


# --- by script -----------------------------------------------------------------------------------------------------

DENIED = errors("access denied", "access-denied")


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (errors("nope", "permission-error"), Permanent, Reason.PROVIDER_REFUSED),
        (errors("Rate limit exceeded", "rate-limited"), Transient, Reason.PROVIDER_RATE_LIMITED),
        (errors("internal error", "unexpected"), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (Scripted(status=502, body=b"<html>"), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (Scripted(body=b"<html>"), UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (DENIED, Permanent, Reason.PROVIDER_AUTH),
    ],
)
@pytest.mark.parametrize("step", STEPS)
def test_what_a_failed_step_means(
    double: GraphqlDouble, build: Build, step: str, answer: Scripted, kind: type[RotatorError], reason: Reason
) -> None:
    """Only what was refused did nothing; no later step is tried."""
    double.script |= {name: [data(**{name: VARIABLES[STEPS[3]]})] for name in STEPS}
    double.script |= {name: [Scripted(body=ANSWERS[name])] for name in STEPS[:2]}
    double.script |= {"apiKeys": [data(apiKeys=[])], "mqttSubscriptionIntegration": [listed()]}
    double.script |= {step: [answer], "login": [login()]}
    with pytest.raises(RotatorError) as caught:
        build(double.url).provision(NAME, {}, MARKER)
    assert isinstance(caught.value, kind)
    assert reason is caught.value.reason
    assert [0] * (3 - STEPS.index(step)) == [double.count(later) for later in STEPS[STEPS.index(step) + 1 :]]
    assert (2 if answer is DENIED else 1) == double.count(step)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_answers_with_nothing(double: GraphqlDouble, build: Build, step: str) -> None:
    """`null` without an error: nobody knows; the call that issues keeps its answer for the journal."""
    double.script |= {name: [data(**{name: VARIABLES[STEPS[3]]})] for name in STEPS}
    double.script |= {name: [Scripted(body=ANSWERS[name])] for name in STEPS[:2]}
    double.script |= {"apiKeys": [data(apiKeys=[])], "mqttSubscriptionIntegration": [listed()]}
    double.script[step] = [data(**{step: None})]
    with pytest.raises(BadAnswer if step == "createApiKey" else UnknownOutcome) as caught:
        build(double.url).provision(NAME, {}, MARKER)
    if isinstance(caught.value, BadAnswer):
        assert (Reason.NO_SECRET, b'{"data": {"createApiKey": null}}') == (caught.value.reason, caught.value.body)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"token": {"token": "x"}}, Reason.PROVIDER_ANSWER_UNREADABLE),
        ({"id": 7, "token": {"token": "x"}}, Reason.PROVIDER_ANSWER_UNREADABLE),
        ({"id": KEY, "token": None}, Reason.NO_SECRET),
        ({"id": KEY, "token": {"token": " "}}, Reason.EMPTY_SECRET),
    ],
)
def test_a_new_key_without_a_usable_secret(double: GraphqlDouble, build: Build, answer: object, reason: Reason) -> None:
    """Refused by name; the next run finds the key and refreshes it."""
    double.script |= {"apiKeys": [data(apiKeys=[])], "createApiKey": [data(createApiKey=answer)]}
    double.script["mqttSubscriptionIntegration"] = [listed({"id": "i", "description": NAME, "apiKeys": []})]
    with pytest.raises(BadAnswer) as caught:
        build(double.url).provision(NAME, {}, MARKER)
    assert reason is caught.value.reason
    assert 0 == double.count("assignApiKeyOrganizationRole")


@pytest.mark.parametrize(
    "answer", [data(mqttSubscriptionIntegration=None), data(mqttSubscriptionIntegration={}), listed(7)]
)
def test_a_list_of_integrations_that_is_none(double: GraphqlDouble, build: Build, answer: Scripted) -> None:
    """PROVIDER_ANSWER_UNREADABLE, never a shorter list."""
    double.script["mqttSubscriptionIntegration"] = [answer]
    with pytest.raises(Transient) as caught:
        build(double.url).list_integrations()
    assert Reason.PROVIDER_ANSWER_UNREADABLE is caught.value.reason


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (data(deleteApiKey=None), Transient, Reason.PROVIDER_ANSWER_UNREADABLE),
        (data(deleteApiKey=True), Transient, Reason.PROVIDER_ANSWER_UNREADABLE),
        (errors("nope", data={"deleteApiKey": {"message": "?"}}), Permanent, Reason.PROVIDER_REFUSED),
        (errors("internal error", "unexpected"), Transient, Reason.PROVIDER_UNAVAILABLE),
        (Scripted(status=503), Transient, Reason.PROVIDER_UNAVAILABLE),
        (errors("nope", "permission-error"), Permanent, Reason.PROVIDER_REFUSED),
    ],
)
def test_a_deletion_that_failed(
    double: GraphqlDouble, build: Build, answer: Scripted, kind: type[RotatorError], reason: Reason
) -> None:
    """Never unknown, since it may be repeated; never success."""
    double.script["deleteApiKey"] = [answer]
    with pytest.raises(RotatorError) as caught:
        build(double.url).delete(KEY)
    assert (kind, reason) == (type(caught.value), caught.value.reason)
