"""The Iotistica provider's login, API keys, MQTT users and provisioning keys: on the sandbox's cloud of each
generation, with the document's own examples, and with answers that no document has."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from contract.iotistica_stage import LATER, MARKER, UUID, Cloud, Stage
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Credential, Identity, Secret, Strategy
from rotator.ports import Choosing, Deleting, Provisioning, Replacing, Watched
from rotator.providers import PROVIDERS
from rotator.reasons import Reason
from rotator.sandbox.iotistica import Cut, Faults, Generation, IotisticaAnswer, IotisticaPlatform
from rotator.sandbox.iotistica_rows import User

DOCUMENT, SOURCE = Generation.DOCUMENT, Generation.SOURCE
# The document's examples, as it prints them.
LOGIN = '{\n"email": "user@example.com",\n"password": "your-password"\n}'
TOKENS = '{\n"accessToken": "eyJhbGci...",\n"refreshToken": "eyJhbGci...",\n"expiresIn": 3600\n}'
REFRESH = '{\n"refreshToken": "eyJhbGci..."\n}'
API_KEY = '{\n"name": "factory-gateway-01",\n"agentUuid": "550e8400-e29b-41d4-a716-446655440000"\n}'
PROVISIONING_KEY = '{ "key": "prov_abc123", "expiresAt": "..." }'

ROWS = {"keys": [{"id": 1, "name": "a", "is_active": True, "agentUuid": UUID}]}
USERS = {"users": [{"id": 1, "username": "a", "is_active": True, "is_superuser": False}]}


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Makes providers."""
    made = Stage()
    yield made
    made.close()


@pytest.fixture(params=list(Generation))
def platform(request: pytest.FixtureRequest) -> Iterator[IotisticaPlatform]:
    """A cloud of each generation, with one agent."""
    with IotisticaPlatform(generation=request.param) as running:
        running.add_agent("gateway-01", uuid_=UUID)
        yield running


@pytest.fixture
def source() -> Iterator[IotisticaPlatform]:
    """A cloud of the source's generation."""
    with IotisticaPlatform(generation=SOURCE) as running:
        yield running


@pytest.fixture
def document() -> Iterator[IotisticaPlatform]:
    """A cloud of the document's generation."""
    with IotisticaPlatform(generation=DOCUMENT) as running:
        yield running


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "protocol", "strategy"),
    [
        ("api-keys", Replacing, Strategy.REPLACE),
        ("mqtt-users", Choosing, Strategy.CHOSEN),
        ("provisioning-keys", Replacing, Strategy.REPLACE),
    ],
)
def test_each_resource_says_what_it_can(stage: Stage, resource: str, protocol: type, strategy: Strategy) -> None:
    """Abilities and Protocols agree; an issue call may take three times the timeout."""
    provider = stage.at(Cloud({}), resource, timeout="4s")
    assert all(isinstance(provider, each) for each in (protocol, Deleting, Provisioning, Watched))
    assert strategy is provider.strategy is provider.abilities.strategy
    assert (True, True, True) == (provider.abilities.creates, provider.abilities.deletes, provider.abilities.lists)
    assert (False, False) == (provider.abilities.pauses, getattr(provider, "deactivates", False))
    assert ("plant", timedelta(seconds=12)) == (provider.name, provider.issue_deadline)
    assert "your-password" not in repr(provider)


def test_the_settings_have_the_documents_limits() -> None:
    """300 requests a minute, 10 logins; what does not fit together is refused with its place."""
    settings = PROVIDERS["iotistica"].settings
    usual = {"kind": "iotistica", "url": "https://cloud.example", "password": {"env": "X"}, "resource": "api-keys"}
    made: Any = settings.model_validate({**usual, "email": "a@b"})
    assert (300, 10, timedelta(minutes=1)) == (
        made.rate_limit.requests,
        made.login_rate_limit.requests,
        made.login_rate_limit.per,
    )
    for wrong in ({}, {"email": "a@b", "resource": "device-keys"}, {"email": "a@b", "resource": "keys"}):
        with pytest.raises(ValidationError):
            settings.model_validate({**usual, **wrong})


# --- the document's examples ---------------------------------------------------------------------------------------


def test_the_documents_login_and_refresh(stage: Stage) -> None:
    """Their bodies go out as the document prints them, and its tokens come back in each request."""
    cloud = Cloud({"GET /auth/mqtt-users": {"users": []}})
    cloud.script["POST /auth/login"] = cloud.script["POST /auth/refresh"] = lambda _: (200, TOKENS.encode())
    provider = stage.at(cloud, "mqtt-users")
    provider.list_keys()
    assert json.loads(LOGIN) == cloud.body("POST /auth/login")
    shown = cloud.last("GET /auth/mqtt-users").headers
    assert ("Bearer eyJhbGci...", "application/json") == (shown["Authorization"], shown["Accept"])
    assert "application/json" == cloud.last("POST /auth/login").headers["Content-Type"]
    stage.clock.ahead += 3600 - 59
    provider.list_keys()
    assert json.loads(REFRESH) == cloud.body("POST /auth/refresh")
    assert 1 == cloud.seen().count("POST /auth/login")


@pytest.mark.parametrize(
    "answer", [{"apiKey": "iotsk_live_abc123...", "id": 7}, {"key": "iotsk_live_abc123...", "id": 7}]
)
def test_the_documents_api_key(stage: Stage, answer: object) -> None:
    """Its body, but for the marker; the key is the secret, the client id is `agent-{uuid}`."""
    cloud = Cloud({"GET /auth/api-keys": {"keys": []}, "POST /auth/api-keys": answer})
    provider = stage.at(cloud, "api-keys")
    issued = provider.provision("factory-gateway-01", {"agent": UUID}, MARKER)
    example = json.loads(API_KEY)
    assert {**example, "name": f"{example['name']} {MARKER}"} == cloud.body("POST /auth/api-keys")
    assert "Bearer eyJhbGci..." == cloud.last("POST /auth/api-keys").headers["Authorization"]
    assert Identity(id="7", username=f"agent-{UUID}", client_id=f"agent-{UUID}") == issued.identity
    assert "iotsk_live_abc123..." == issued.secret.reveal()


def test_the_documents_provisioning_key(stage: Stage) -> None:
    """Made without a body; it has no id, so the marker stands for it; "..." is no time."""
    cloud = Cloud({"POST /provision/keys": lambda _: (200, PROVISIONING_KEY.encode())})
    issued = stage.at(cloud, "provisioning-keys").provision("gateway-01", {}, MARKER)
    assert b"" == cloud.last("POST /provision/keys").content
    assert ("prov_abc123", MARKER, None) == (issued.secret.reveal(), issued.identity.id, issued.expires_at)


# --- the login -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 422])
def test_the_login_that_works_is_found_and_remembered(stage: Stage, source: IotisticaPlatform, status: int) -> None:
    """The document's first, then the source's; after that only the one that worked."""
    source.desk.refusal_status, source.desk.gives_refresh = status, False
    provider = stage.on(source, "api-keys")
    provider.list_keys()
    assert ["email", "username"] == [next(iter(_body(seen.body))) for seen in source.seen if seen.operation == "login"]
    source.end_sessions()
    provider.list_keys()
    assert "username" in _body([seen for seen in source.seen if seen.operation == "login"][-1].body)
    assert 3 == source.count("login")


def _body(body: object) -> dict[str, object]:
    assert isinstance(body, dict)
    return body


def test_a_generation_that_is_set_is_the_only_one(stage: Stage, source: IotisticaPlatform) -> None:
    """No second try; a refusal is told with the platform's words."""
    with pytest.raises(Permanent, match="Username and password are required"):
        stage.on(source, "api-keys", generation="document").list_keys()
    assert 1 == source.count("login")
    stage.on(source, "api-keys", generation="source").list_keys()
    assert 2 == source.count("login")


@pytest.mark.parametrize("pair", [True, False])
def test_a_session_is_refreshed_before_it_ends(stage: Stage, platform: IotisticaPlatform, pair: bool) -> None:
    """By a pair or by an access token alone, again and again, without a second login."""
    platform.desk.refresh_pair = pair
    provider = stage.on(platform, "api-keys")
    for _ in range(4):
        provider.list_keys()
        stage.clock.ahead += platform.desk.access_life.total_seconds() - 30
    assert (3, 1 if platform.generation is DOCUMENT else 2) == (platform.count("refresh"), platform.count("login"))


def test_a_life_that_nobody_names_is_a_quarter_of_an_hour(stage: Stage) -> None:
    """An opaque token without `expiresIn`: renewed a minute before the source's usual end, and not before."""
    cloud = Cloud({"GET /auth/mqtt-users": {"users": []}})
    provider = stage.at(cloud, "mqtt-users")
    for ahead, logins in ((0, 1), (835, 1), (10, 2)):
        stage.clock.ahead += ahead
        provider.list_keys()
        assert logins == cloud.seen().count("POST /auth/login")


def test_a_life_that_only_the_token_names_is_kept(stage: Stage, source: IotisticaPlatform) -> None:
    """The source names no life, but its token's `exp` does: not renewed before a minute from that."""
    source.desk.access_life = timedelta(hours=2)
    provider = stage.on(source, "api-keys")
    for ahead, refreshes in ((0, 0), (7000, 0), (141, 1)):
        stage.clock.ahead += ahead
        provider.list_keys()
        assert refreshes == source.count("refresh")


def test_a_refresh_that_is_refused_is_a_new_login(stage: Stage, platform: IotisticaPlatform) -> None:
    """Sessions that somebody ended: the call goes on."""
    provider = stage.on(platform, "api-keys")
    provider.list_keys()
    platform.end_sessions()
    stage.clock.ahead += platform.desk.access_life.total_seconds()
    assert [] == list(provider.list_keys())
    assert 1 == platform.count("refresh")


def test_a_session_that_died_early_is_made_anew_once(stage: Stage, platform: IotisticaPlatform) -> None:
    """401, a new login, the call again; a second 401 is the answer."""
    provider = stage.on(platform, "api-keys")
    provider.list_keys()
    platform.end_sessions()
    assert [] == list(provider.list_keys())
    platform.faults = Faults(operations=frozenset({"list_api_keys"}), status=401)
    before = platform.count("list_api_keys")
    with pytest.raises(Permanent) as caught:
        provider.list_keys()
    assert (Reason.PROVIDER_AUTH, 2) == (caught.value.reason, platform.count("list_api_keys") - before)


def test_a_wrong_password_is_provider_auth(stage: Stage, platform: IotisticaPlatform) -> None:
    """It is shown nowhere, and not tried in the other generation's way when this one's was understood."""
    provider = stage.on(platform, "api-keys")
    stage.secrets["PASSWORD"] = "not-it-at-all"
    with pytest.raises(Permanent) as caught:
        provider.list_keys()
    assert Reason.PROVIDER_AUTH is caught.value.reason
    assert "not-it-at-all" not in repr(caught.value)
    assert (1 if platform.generation is DOCUMENT else 2) == platform.count("login")


def test_who_is_no_admin_is_told(stage: Stage, platform: IotisticaPlatform) -> None:
    """403 is PROVIDER_AUTH as well."""
    platform.desk.users[0] = User(
        username=platform.username, email=platform.email, password=platform.password, role="viewer"
    )
    with pytest.raises(Permanent) as caught:
        stage.on(platform, "mqtt-users").list_keys()
    assert Reason.PROVIDER_AUTH is caught.value.reason


@pytest.mark.parametrize("header", [True, False])
def test_a_limit_names_its_delay(stage: Stage, platform: IotisticaPlatform, header: bool) -> None:
    """By the header, or by the text in the body alone."""
    platform.retry_after_header = header
    platform.faults = Faults(operations=frozenset({"list_api_keys"}), status=429, retry_after="37 seconds")
    with pytest.raises(Transient) as caught:
        stage.on(platform, "api-keys").list_keys()
    assert (Reason.PROVIDER_RATE_LIMITED, timedelta(seconds=37)) == (caught.value.reason, caught.value.retry_after)


def test_logins_are_paced_apart_from_calls(stage: Stage, platform: IotisticaPlatform) -> None:
    """Ten a minute, five at once: the next one is not sent, and what the limit leaves is."""
    provider = stage.on(platform, "mqtt-users", timeout="100ms")
    username = platform.add_mqtt_user("u", "old").username
    for _ in range(4 if platform.generation is SOURCE else 5):
        provider.set_secret(provider.identity(username), Secret("x"))
        platform.end_sessions()
    with pytest.raises(Transient) as caught:
        provider.set_secret(provider.identity(username), Secret("y"))
    assert Reason.PROVIDER_RATE_LIMITED is caught.value.reason
    assert "nothing was sent" in str(caught.value)


# --- API keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nested", "flat_name", "names_id"), [(True, "", True), (False, "apiKey", False), (False, "key", True)]
)
def test_an_api_key_is_replaced(
    stage: Stage, platform: IotisticaPlatform, nested: bool, flat_name: str, names_id: bool
) -> None:
    """Both live until the old one is revoked; the id is found in the list where the answer does not name it."""
    platform.api.nested_key, platform.api.flat_name, platform.api.names_id = nested, flat_name, names_id
    old = platform.add_key("building-a rotator-aaaaaaaaaaaa-3", agent=UUID)
    provider = stage.on(platform, "api-keys", agents={"building-a": UUID})
    listed = provider.list_keys()
    assert ["rotator-aaaaaaaaaaaa-3"] == [key.marker for key in listed]
    issued = provider.create(listed[0].identity, MARKER)
    new = issued.secret.reveal()
    assert {old.key, new} <= platform.live().keys()
    after = {key.id: key for key in provider.list_keys()}
    assert (MARKER, "building-a") == (after[issued.identity.id].marker, after[issued.identity.id].name)
    assert issued.identity == after[issued.identity.id].identity
    assert (f"agent-{UUID}", f"agent-{UUID}") == (issued.identity.username, issued.identity.client_id)
    assert issued.issued_at is not None
    assert issued.issued_at == after[issued.identity.id].issued_at
    for _ in range(2):
        provider.delete(str(old.id))
        assert old.key not in platform.live()
    provider.delete("999")
    dead = next(key for key in provider.list_keys() if key.id == str(old.id))
    assert (Reason.KEY_INACTIVE, "") == (dead.problem, dead.marker)
    assert 1 == platform.count("create_api_key")


def test_the_source_keeps_description_and_life(stage: Stage, source: IotisticaPlatform) -> None:
    """A key that lived a week has a successor that does; times without a zone are UTC."""
    now = source.now()
    source.add_key("a", description="the lifts", expires_at=now + timedelta(days=7))
    provider = stage.on(source, "api-keys")
    [old] = provider.list_keys()
    issued = provider.create(old.identity, MARKER)
    made = source.state.api_keys[int(issued.identity.id)]
    assert ("the lifts", f"a {MARKER}") == (made.description, made.name)
    assert abs(made.expires_at - now - timedelta(days=7)) < timedelta(seconds=10)  # type: ignore[operator]
    assert abs(issued.expires_at - made.expires_at) < timedelta(milliseconds=2)
    assert abs(issued.issued_at - made.created_at) < timedelta(milliseconds=2)
    assert UTC is issued.expires_at.tzinfo
    longer = stage.on(source, "api-keys", lifetime="30d")
    assert longer.abilities.expires
    again = longer.create(issued.identity, LATER)
    assert abs(again.expires_at - now - timedelta(days=30)) < timedelta(seconds=10)
    assert f"a {LATER}" == source.state.api_keys[int(again.identity.id)].name


def test_the_documents_cloud_wants_an_agent(stage: Stage, document: IotisticaPlatform) -> None:
    """Named by the list, or by `agents` under the key's name or id; else nothing is sent that makes a key."""
    document.add_agent("gateway-01", uuid_=UUID)
    bare = document.add_key("bare")
    provider = stage.on(document, "api-keys", generation="document")
    with pytest.raises(Permanent, match="agents") as caught:
        provider.create(provider.identity(str(bare.id)), MARKER)
    assert (Reason.PROVIDER_REFUSED, 0) == (caught.value.reason, document.count("create_api_key"))
    for number, name in enumerate((str(bare.id), "bare"), 1):
        provider = stage.on(document, "api-keys", agents={name: UUID})
        issued = provider.create(provider.identity(str(bare.id)), f"rotator-0123456789ab-{number}")
        assert f"agent-{UUID}" == issued.identity.client_id


def test_a_revoked_or_absent_key_has_no_successor(stage: Stage, platform: IotisticaPlatform) -> None:
    """Nothing is made."""
    key = platform.add_key("a", agent=UUID)
    platform.state.revoke_api_key(key.id)
    provider = stage.on(platform, "api-keys")
    for id, reason in ((str(key.id), Reason.KEY_INACTIVE), ("999", Reason.KEY_UNKNOWN), ("..", Reason.KEY_UNKNOWN)):
        with pytest.raises(Permanent) as caught:
            provider.create(provider.identity(id), MARKER)
        assert reason is caught.value.reason
    assert 0 == platform.count("create_api_key")


def test_an_id_leads_nowhere_else(stage: Stage, platform: IotisticaPlatform) -> None:
    """`..`, a slash, a query: one part of a path, of something that is not there."""
    provider = stage.on(platform, "api-keys")
    for id in ("..", "1?x=1", "%2e%2e", "\ud800"):
        provider.delete(id)
    with pytest.raises(Permanent):  # the simulator reads the slash
        provider.delete("1/../../mqtt-users/1")
    assert {"login", "revoke_api_key", ""} == {seen.operation for seen in platform.seen}


def test_a_key_can_be_provisioned_once(stage: Stage, platform: IotisticaPlatform) -> None:
    """A second one of the name is refused with what to do; after the first's end there may be one again."""
    provider = stage.on(platform, "api-keys")
    assert {"agent", "description"} == provider.options.keys()
    issued = provider.provision("building-b", {"agent": UUID}, MARKER)
    assert issued.secret.reveal() in platform.live()
    with pytest.raises(Permanent, match=r"id 1.*retire") as caught:
        provider.provision("building-b", {"agent": UUID}, LATER)
    assert Reason.PROVIDER_REFUSED is caught.value.reason
    provider.delete(issued.identity.id)
    provider.provision("building-b", {"agent": UUID}, LATER)


def test_a_key_can_not_be_paused(stage: Stage, platform: IotisticaPlatform) -> None:
    """A revoked key stays so, and old keys are honoured for a minute."""
    provider = stage.on(platform, "api-keys")
    for verb in (provider.deactivate, provider.reactivate):
        with pytest.raises(Permanent) as caught:
            verb(provider.identity("1"))
        assert Reason.PROVIDER_UNABLE is caught.value.reason
    assert timedelta(seconds=60) == provider.abilities.propagation


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(IotisticaAnswer.NO_SECRET, Reason.NO_SECRET), (IotisticaAnswer.EMPTY_SECRET, Reason.EMPTY_SECRET)],
)
def test_an_answer_without_its_key_is_kept(
    stage: Stage, platform: IotisticaPlatform, answer: IotisticaAnswer, reason: Reason
) -> None:
    """For the journal to seal."""
    key = platform.add_key("a", agent=UUID)
    platform.answer = answer
    provider = stage.on(platform, "api-keys")
    with pytest.raises(BadAnswer) as caught:
        provider.create(provider.list_keys()[0].identity, MARKER)
    assert reason is caught.value.reason
    assert caught.value.body is not None
    assert MARKER.encode() in caught.value.body
    assert key.key in platform.live()


@pytest.mark.parametrize(
    ("faults", "error", "made"),
    [
        (Faults(status=503), UnknownOutcome, 0),
        (Faults(status=500, status_after_effect=True), UnknownOutcome, 1),
        (Faults(status=429), Transient, 0),
        (Faults(status=403), Permanent, 0),
        (Faults(cut=Cut.BEFORE_EFFECT), UnknownOutcome, 0),
        (Faults(cut=Cut.AFTER_EFFECT), UnknownOutcome, 1),
        (Faults(truncate=True), UnknownOutcome, 1),
        (Faults(latency_after=1.5), UnknownOutcome, 1),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value))[-40:] if isinstance(value, Faults) else None,
)
def test_faults_under_a_new_key(
    stage: Stage, platform: IotisticaPlatform, faults: Faults, error: type[RotatorError], made: int
) -> None:
    """What may have happened is unknown, and then found by its marker; asked for once, in one way."""
    platform.add_key("a", agent=UUID)
    provider = stage.on(platform, "api-keys", timeout="400ms")
    [old] = provider.list_keys()
    platform.faults = replace(faults, operations=frozenset({"create_api_key"}))
    with pytest.raises(error) as caught:
        provider.create(old.identity, MARKER)
    assert type(caught.value) is error
    assert 1 == platform.count("create_api_key")
    assert [MARKER] * made == [key.marker for key in provider.list_keys() if key.marker]


def test_a_page_instead_of_an_answer_is_an_unknown_outcome(stage: Stage, platform: IotisticaPlatform) -> None:
    """A proxy's page, with 200: the key was made, and is found by its marker."""
    platform.add_key("a", agent=UUID)
    provider = stage.on(platform, "api-keys")
    [old] = provider.list_keys()
    platform.html = frozenset({"create_api_key"})
    with pytest.raises(UnknownOutcome):
        provider.create(old.identity, MARKER)
    assert [MARKER] == [key.marker for key in provider.list_keys() if key.marker]
    platform.html = frozenset({"list_api_keys"})
    with pytest.raises(Transient) as caught:
        provider.list_keys()
    assert Reason.PROVIDER_ANSWER_UNREADABLE is caught.value.reason


@pytest.mark.parametrize("listed", [(503, {}), (200, {"keys": []})])
def test_an_id_that_can_not_be_found_keeps_the_answer(stage: Stage, listed: tuple[int, object]) -> None:
    """The answer holds the key and no id, and the list does not help: nothing is lost, and nothing is shown."""
    lists = [(200, ROWS), listed]
    cloud = Cloud({"GET /auth/api-keys": lambda _: lists.pop(0), "POST /auth/api-keys": {"apiKey": "new-key"}})
    provider = stage.at(cloud, "api-keys")
    with pytest.raises(BadAnswer) as caught:
        provider.create(provider.identity("1"), MARKER)
    assert b'{"apiKey": "new-key"}' == caught.value.body
    assert "new-key" not in str(caught.value)


def test_no_list_is_ever_told(
    stage: Stage, platform: IotisticaPlatform, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The full keys of the list, the tokens and the password are in no log, no repr and no error."""
    caplog.set_level(logging.DEBUG)
    key = platform.add_key("a", agent=UUID)
    provider = stage.on(platform, "api-keys")
    listed = provider.list_keys()
    issued = provider.create(listed[0].identity, MARKER)
    written = caplog.text + "".join(capsys.readouterr()) + repr((listed, issued, provider, stage.done))
    for secret in (key.key, issued.secret.reveal(), platform.password):
        assert secret not in written


# --- MQTT users ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, {"is_superuser": True}, {"is_active": False}])
def test_a_password_is_set_and_nothing_else(stage: Stage, platform: IotisticaPlatform, flags: dict[str, bool]) -> None:
    """Both flags are sent as they were; the old password is dead; it may be repeated."""
    user = platform.add_mqtt_user(f"agent_{UUID}", "old", **flags)
    before = (user.is_superuser, user.is_active)
    provider = stage.on(platform, "mqtt-users")
    [listed] = provider.list_keys()
    assert Identity(id=user.username, username=user.username, client_id=f"agent-{UUID}") == listed.identity
    assert (None if user.is_active else Reason.KEY_INACTIVE) is listed.problem
    secret = provider.choose()
    for _ in range(2):
        issued = provider.set_secret(provider.identity(user.username), secret)
        assert (secret, listed.identity) == (issued.secret, issued.identity)
        assert (secret.reveal(), before) == (user.password, (user.is_superuser, user.is_active))
    put = [seen.body for seen in platform.seen if seen.operation == "update_mqtt_user"][-1]
    assert {"password", "is_active", "is_superuser"} == _body(put).keys()
    assert re.fullmatch(r"[A-Za-z0-9]{43}", secret.reveal())


def test_an_mqtt_user_that_is_not_there_is_not_made(stage: Stage, platform: IotisticaPlatform) -> None:
    """KEY_UNKNOWN, also when it goes between the look and the change."""
    provider = stage.on(platform, "mqtt-users")
    with pytest.raises(Permanent) as caught:
        provider.set_secret(provider.identity("agent_x"), Secret("new"))
    assert Reason.KEY_UNKNOWN is caught.value.reason
    users = {"users": [{"id": 1, "username": "u", "is_active": True, "is_superuser": False}]}
    gone = (404, {"error": "Not Found", "message": "MQTT user not found"})
    cloud = Cloud({"GET /auth/mqtt-users": users, "PUT /auth/mqtt-users/1": lambda _: gone})
    with pytest.raises(Permanent) as caught:
        stage.at(cloud, "mqtt-users").set_secret(Identity(id="u", username="u"), Secret("new"))
    assert Reason.KEY_UNKNOWN is caught.value.reason


def test_flags_that_are_not_told_stop_the_change(stage: Stage) -> None:
    """A superuser could become none, or somebody who was shut out come in."""
    cloud = Cloud({"GET /auth/mqtt-users": [{"id": 1, "username": "u", "is_active": True}]})
    with pytest.raises(Permanent, match="superuser"):
        stage.at(cloud, "mqtt-users").set_secret(Identity(id="u", username="u"), Secret("new"))
    assert "PUT /auth/mqtt-users/1" not in cloud.seen()


def test_an_mqtt_user_is_provisioned_and_deleted(stage: Stage, platform: IotisticaPlatform) -> None:
    """Run twice it is one user with a new password; both verbs may be repeated."""
    provider = stage.on(platform, "mqtt-users")
    platform.faults = Faults(operations=frozenset({"add_access"}), status=503, times=1)
    with pytest.raises(Transient):
        provider.provision("lift", {"superuser": "true", "read": "lifts/#"}, MARKER)
    first = provider.provision("lift", {"read": "lifts/#, all/+", "write": "all/+"}, MARKER)
    second = provider.provision("lift", {"read": "lifts/#"}, LATER)
    assert first.secret != second.secret
    [user] = platform.state.mqtt_users.values()
    assert (second.secret.reveal(), True) == (user.password, user.is_superuser)
    assert [("lifts/#", 1), ("all/+", 3)] == [(rule["topic"], rule["access"]) for rule in user.acls]
    assert {"lift": second.secret.reveal(), **platform.live()} == platform.live()
    for _ in range(2):
        provider.delete("lift")
        assert "lift" not in platform.live()
    with pytest.raises(Permanent, match="true or false"):
        provider.provision("lift", {"superuser": "yes"}, MARKER)


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (Faults(status=503), UnknownOutcome),
        (Faults(cut=Cut.AFTER_EFFECT), UnknownOutcome),
        (Faults(truncate=True), UnknownOutcome),
        (Faults(status=429), Transient),
        (Faults(status=409), Permanent),
    ],
)
def test_faults_under_a_new_password(
    stage: Stage, platform: IotisticaPlatform, faults: Faults, error: type[RotatorError]
) -> None:
    """Repeated with the same secret, it ends well."""
    user = platform.add_mqtt_user("u", "old")
    platform.faults = replace(faults, operations=frozenset({"update_mqtt_user"}), times=1)
    provider, secret = stage.on(platform, "mqtt-users"), Secret("the-new-password")
    with pytest.raises(error) as caught:
        provider.set_secret(provider.identity("u"), secret)
    assert type(caught.value) is error
    assert secret.reveal() not in str(caught.value)
    provider.set_secret(provider.identity("u"), secret)
    assert secret.reveal() == user.password


# --- provisioning keys ---------------------------------------------------------------------------------------------


def test_a_provisioning_key_is_replaced(stage: Stage, source: IotisticaPlatform) -> None:
    """For one agent, as long as the old one; its end is watched; a revoked one is no orphan."""
    source.api.fleet = "6a1e9a53-0000-4000-8000-000000000001"
    old = source.state.create_provisioning_key(days=7, max_devices=1, description="hall rotator-aaaaaaaaaaaa-1")
    provider = stage.on(source, "provisioning-keys", fleet=source.api.fleet)
    issued = provider.create(provider.identity(old.id), MARKER)
    made = source.state.provisioning_keys[issued.identity.id]
    assert (made.key, f"hall {MARKER}", 1) == (issued.secret.reveal(), made.description, made.max_devices)
    assert abs(issued.expires_at - made.expires_at) < timedelta(milliseconds=2)
    assert timedelta(days=7) == made.expires_at - made.created_at
    assert ["hall", "hall"] == [credential.name for credential in provider.credentials()]
    for _ in range(2):
        provider.delete(old.id)
    listed = {key.id: (key.marker, key.problem) for key in provider.list_keys()}
    assert {made.id: (MARKER, None), old.id: ("", Reason.KEY_INACTIVE)} == listed
    assert [made.id] == [key.id for key in source.state.provisioning_keys.values() if key.is_active]
    source.state.spend(made.key)
    assert [] == list(provider.credentials())
    with pytest.raises(Permanent) as caught:
        provider.create(provider.identity("nobody"), LATER)
    assert Reason.KEY_UNKNOWN is caught.value.reason


def test_a_provisioning_key_is_provisioned_once(stage: Stage, source: IotisticaPlatform) -> None:
    """With the days that were asked for, in a cloud that asks for no fleet."""
    provider = stage.on(source, "provisioning-keys")
    issued = provider.provision("hall", {"days": "3"}, MARKER)
    assert abs(issued.expires_at - source.now() - timedelta(days=3)) < timedelta(seconds=10)
    with pytest.raises(Permanent, match="retire"):
        provider.provision("hall", {}, LATER)
    for days in ("0", "x", "4000"):
        with pytest.raises(Permanent, match="days"):
            provider.provision("other", {"days": days}, LATER)
    assert 1 == len(source.state.provisioning_keys)


def test_a_cloud_that_is_said_to_be_the_documents_is_taken_at_its_word(stage: Stage) -> None:
    """Its provisioning keys are neither listed nor deleted."""
    abilities = stage.at(Cloud({}), "provisioning-keys", generation="document").abilities
    assert (False, False, True) == (abilities.lists, abilities.deletes, abilities.creates)


def test_the_documents_cloud_only_makes_them(stage: Stage, document: IotisticaPlatform) -> None:
    """It lists and deletes none: that is said, and they end by themselves."""
    provider = stage.on(document, "provisioning-keys")
    issued = provider.create(provider.identity("anything"), MARKER)
    [made] = document.state.provisioning_keys.values()
    assert (made.key, MARKER) == (issued.secret.reveal(), issued.identity.id)
    assert abs(issued.expires_at - made.expires_at) < timedelta(milliseconds=2)
    assert [] == list(provider.credentials())
    for verb in (provider.list_keys, lambda: provider.delete(MARKER)):
        with pytest.raises(Permanent) as caught:
            verb()
        assert Reason.PROVIDER_UNABLE is caught.value.reason
    for verb in (provider.deactivate, provider.reactivate):
        with pytest.raises(Permanent) as caught:
            verb(issued.identity)
        assert Reason.PROVIDER_UNABLE is caught.value.reason


def test_a_full_licence_is_a_quota(stage: Stage) -> None:
    """Named by itself, since a second try changes nothing."""
    full = (403, {"error": "Agent limit exceeded", "message": "Your plan allows a maximum of 5 agents."})
    cloud = Cloud({"GET /provisioning-keys": {"keys": []}, "POST /provisioning-keys": lambda _: full})
    with pytest.raises(Permanent, match="maximum of 5") as caught:
        stage.at(cloud, "provisioning-keys", generation="source").provision("hall", {}, MARKER)
    assert Reason.PROVIDER_QUOTA is caught.value.reason


# --- the licence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", ["api-keys", "mqtt-users"])
def test_the_licences_end_is_watched(stage: Stage, platform: IotisticaPlatform, resource: str) -> None:
    """Read anew each time, without a request; without one there is nothing to watch."""
    assert [] == list(stage.on(platform, resource).credentials())
    provider = stage.on(platform, resource, licence={"env": "LICENCE"})
    for year in (2027, 2030):
        platform.state.licence_ends_at = datetime(year, 3, 24, tzinfo=UTC)
        stage.secrets["LICENCE"] = platform.licence() + "\n"
        assert [Credential(name="licence", expires_at=datetime(year, 3, 24, tzinfo=UTC))] == list(
            provider.credentials()
        )
    stage.secrets["LICENCE"] = "eyJhbGci..."
    with pytest.raises(Permanent):
        provider.credentials()
    assert [] == platform.seen


# --- answers that no document has ----------------------------------------------------------------------------------

CALLS: dict[str, tuple[str, str, Callable[[Any], object]]] = {
    "login": ("mqtt-users", "POST /auth/login", lambda p: p.list_keys()),
    "list_api_keys": ("api-keys", "GET /auth/api-keys", lambda p: p.list_keys()),
    "list_mqtt_users": ("mqtt-users", "GET /auth/mqtt-users", lambda p: p.list_keys()),
    "list_provisioning": ("provisioning-keys", "GET /provision/keys", lambda p: p.list_keys()),
    "create": ("api-keys", "POST /auth/api-keys", lambda p: p.create(p.identity("1"), MARKER)),
    "set_secret": ("mqtt-users", "PUT /auth/mqtt-users/1", lambda p: p.set_secret(p.identity("a"), Secret("new"))),
    "provisioning": ("provisioning-keys", "POST /provision/keys", lambda p: p.create(p.identity("1"), MARKER)),
    "revoke": ("api-keys", "DELETE /auth/api-keys/1", lambda p: p.delete("1")),
}
ODD: dict[str, object] = {
    "html": b"<html>sign in</html>",
    "empty": b"",
    "no utf-8": b'{"key": "\xff\xfe"}',
    "deep": b"[" * 100_000,
    "cut": b'{"accessToken": "eyJ',
    "null": None,
    "list": [1, None, "x", {"id": []}],
    "number": 7,
    "wrong types": {"accessToken": 5, "keys": {"a": 1}, "users": "x", "key": {"key": 5, "id": 1}, "apiKey": []},
    "wrong rows": {"keys": [{"id": None}], "users": [{"id": True, "username": 7}], "key": 12, "data": []},
    "surrogate": b'{"accessToken": "\\ud800", "keys": [{"id": "\\ud800"}], "key": "\\ud800", "users": [5]}',
    "huge number": b'{"accessToken": 1e999, "keys": [1e999], "users": [], "expiresIn": 1e999, "key": 1e999}',
}


# some of each are answers all the same: an empty list, a yes with more to it
READABLE = {("list_mqtt_users", "huge number")}
READABLE |= {("revoke", odd) for odd in ("wrong types", "wrong rows", "surrogate", "huge number")}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("call", CALLS)
def test_odd_answers_are_named_errors(stage: Stage, call: str, odd: str) -> None:
    """Whatever comes with a 200: an error of ours, or an answer that may be read so; never another exception."""
    resource, line, act = CALLS[call]
    content = ODD[odd]
    cloud = Cloud({"GET /auth/api-keys": ROWS, "GET /auth/mqtt-users": USERS, "GET /provision/keys": ROWS})
    cloud.script[line] = lambda _: (200, content)
    provider = stage.at(cloud, resource)
    if (call, odd) in READABLE:
        act(provider)
        return
    with pytest.raises(RotatorError) as caught:
        act(provider)
    changing = call in ("create", "set_secret", "provisioning")
    expected = (UnknownOutcome, BadAnswer) if changing else (Transient, Permanent)
    assert isinstance(caught.value, expected)
    if changing and not isinstance(content, dict) and odd not in ("surrogate", "huge number"):
        assert isinstance(caught.value, UnknownOutcome)
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 408, 409, 418, 422, 429, 500, 502, 503])
@pytest.mark.parametrize("call", CALLS)
def test_statuses_are_named_errors(stage: Stage, call: str, status: int) -> None:
    """A gateway's page with any status, which says nothing of a key."""
    resource, line, act = CALLS[call]
    cloud = Cloud({"GET /auth/api-keys": ROWS, "GET /auth/mqtt-users": USERS, "GET /provision/keys": ROWS})
    cloud.script[line] = lambda _: (status, b"<html>no</html>")
    with pytest.raises(RotatorError) as caught:
        act(stage.at(cloud, resource))
    changing = call in ("create", "set_secret", "provisioning")
    if changing and (status == 408 or status >= 500):
        assert isinstance(caught.value, UnknownOutcome)
    elif changing:
        assert not isinstance(caught.value, UnknownOutcome)
    assert Reason.KEY_UNKNOWN is not caught.value.reason


def test_a_secret_beside_an_error_is_not_lost(stage: Stage) -> None:
    """An issued key counts more than the status that came with it."""
    answer = (500, {"error": "Internal Server Error", "key": {"id": 2, "key": "new-key"}})
    cloud = Cloud({"GET /auth/api-keys": ROWS, "POST /auth/api-keys": lambda _: answer})
    provider = stage.at(cloud, "api-keys")
    assert "new-key" == provider.create(provider.identity("1"), MARKER).secret.reveal()


def test_requests_are_reported(stage: Stage, platform: IotisticaPlatform) -> None:
    """Each with its operation and status."""
    stage.on(platform, "mqtt-users").list_keys()
    logins = [("login", "200")] if platform.generation is DOCUMENT else [("login", "400"), ("login", "200")]
    assert [*logins, ("list_keys", "200")] == [(each.operation, each.code) for each in stage.done]
    assert {"plant"} == {each.peer for each in stage.done}


def test_a_long_name_leaves_room_for_the_marker(stage: Stage) -> None:
    """As long as the platform takes, the new marker at its end and older ones gone."""
    name = "x" * 255
    rows = {"keys": [{"id": 1, "name": f"{name} {LATER}", "is_active": True}]}
    cloud = Cloud({"GET /auth/api-keys": rows, "POST /auth/api-keys": {"key": {"id": 2, "key": "k"}}})
    provider = stage.at(cloud, "api-keys", generation="source", username="admin")
    provider.create(provider.identity("1"), MARKER)
    sent = cloud.body("POST /auth/api-keys")["name"]
    assert (255, True, False) == (len(sent), sent.endswith(f"x {MARKER}"), LATER in sent)
