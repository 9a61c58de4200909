"""The Haltian platform over HTTP: the document's examples as printed, a real server's refusals, and the faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from rotator.sandbox.haltian import Answer, Cut, Faults, HaltianPlatform
from rotator.sandbox.haltian_state import Organization
from rotator.sandbox.processes import wait_until

# The documents of "MQTT API Key Management", word by word.
LOGIN = """mutation Login($email: String!, $organizationName: String!, $password: String!) {
login(loginInput: {
email: $email,
organizationName: $organizationName,
password: $password
}) {
accessToken
expiresIn
refreshExpiresIn
refreshToken
organizationId
}
}"""
CREATE_INTEGRATION = """mutation CreateMqttIntegration($description: String) {
createMqttSubscriptionIntegration(object: {
description: $description,
mqttSubscriptionState: "active"
}) {
id
description
mqttSubscriptionState
organizationId
createdAt
updatedAt
}
}"""
CREATE_KEY = """mutation CreateApiKey($name: String!) {
createApiKey(createApiKeyInput: {
name: $name
}) {
id
name
organizationId
createdAt
token {
token
issuedAt
expiresAt
}
}
}"""
ASSIGN_ROLE = """mutation AssignApiKeyRole($apiKeyId: uuid!) {
assignApiKeyOrganizationRole(object: {
roleName: "MqttIntegrator",
apiKeyId: $apiKeyId
}) {
apiKeyId
roleName
organizationId
}
}"""
LINK = """mutation AssignApiKeyToMqttIntegration($mqttSubscriptionId: uuid!, $apiKeyId: uuid!) {
assignMqttSubscriptionIntegrationApiKey(object: {
mqttSubscriptionId: $mqttSubscriptionId,
apiKeyId: $apiKeyId
}) {
mqttSubscriptionId
apiKeyId
}
}"""
REFRESH = """mutation RefreshApiKey($apiKeyId: uuid!) {
refreshApiKeyToken(refreshApiKeyTokenInput: {
apikeyId: $apiKeyId
}) {
id
organizationId
token {
token
issuedAt
expiresAt
}
}
}"""
LIST_KEYS = """query ListApiKeys {
apiKeys {
id
name
createdAt
updatedAt
organization {
id
name
}
token {
issuedAt
expiresAt
revokedAt
}
organizationRoles {
roleName
organizationId
}
}
}"""
LIST_INTEGRATIONS = """query ListMqttIntegrations {
mqttSubscriptionIntegration {
id
description
mqttSubscriptionState
organizationId
createdAt
updatedAt
apiKeys {
apiKeyId
}
}
}"""
DELETE = """mutation DeleteApiKey($apiKeyId: uuid!) {
deleteApiKey(deleteApiKeyInput: {
apikeyId: $apiKeyId
}) {
message
}
}"""
RENEW = """mutation($organizationId: uuid!, $refreshToken: String!) {
refreshToken(refreshTokenInput: {organizationId: $organizationId, refreshToken: $refreshToken}) {
accessToken expiresIn refreshExpiresIn refreshToken
}
}"""
LOGOUT = "mutation { logout { success } }"
USER = {"email": "your-email@example.com", "organizationName": "your-organization", "password": "your-password"}
UNKNOWN = "c6f7b103-81df-4e73-8218-4f671056aee2"


class Recorder:
    """A sink that remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def grant(self, username: str, token: str) -> None:
        self.calls.append(("grant", username, token))

    def revoke(self, username: str) -> None:
        self.calls.append(("revoke", username))


class Operator:
    """A platform with one organization and one user, and a client of it."""

    def __init__(self, platform: HaltianPlatform, sink: Recorder, client: httpx.Client) -> None:
        self.platform, self.sink, self.client = platform, sink, client
        self.organization: Organization = platform.create_organization(USER["organizationName"])
        platform.create_user(USER["email"], USER["password"], self.organization)
        self.token = ""

    def post(self, query: str, variables: dict[str, Any] | None = None) -> httpx.Response:
        """One request, with the session's token once there is one."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return self.client.post(self.platform.url, json={"query": query, "variables": variables or {}}, headers=headers)

    def ask(self, query: str, variables: dict[str, Any] | None = None) -> Any:
        """The `data` of one request; fails where there are errors."""
        answer = self.post(query, variables).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def refused(self, query: str, variables: dict[str, Any] | None = None) -> list[str]:
        """The codes of the errors of one request; fails where it was not HTTP 200 with errors alone."""
        response = self.post(query, variables)
        assert (200, ["errors"]) == (response.status_code, list(response.json()))
        return [error["extensions"]["code"] for error in response.json()["errors"]]

    def login(self) -> Any:
        """Log in, and use the token from now on."""
        session = self.ask(LOGIN, USER)["login"]
        self.token = session["accessToken"]
        return session

    def key(self) -> str:
        """The id of a ready key."""
        return self.platform.add_key("a", self.organization)[0]


@pytest.fixture
def operator() -> Iterator[Operator]:
    """Logged in at a running platform."""
    sink = Recorder()
    with HaltianPlatform(sink=sink) as platform, httpx.Client(timeout=10) as client:
        operator = Operator(platform, sink, client)
        operator.login()
        yield operator


def test_the_five_steps_of_the_document(operator: Operator) -> None:
    """Login, integration, key, role and link answer as printed, and the broker learns the token after the last."""
    integration = operator.ask(CREATE_INTEGRATION, {"description": "Production MQTT streaming"})
    made = integration["createMqttSubscriptionIntegration"]
    key = operator.ask(CREATE_KEY, {"name": "Building Management System"})["createApiKey"]
    role = operator.ask(ASSIGN_ROLE, {"apiKeyId": key["id"]})["assignApiKeyOrganizationRole"]
    link = {"mqttSubscriptionId": made["id"], "apiKeyId": key["id"]}
    assert operator.ask(LINK, link) == {"assignMqttSubscriptionIntegrationApiKey": link}
    organization = operator.organization.id
    assert role == {"apiKeyId": key["id"], "roleName": "MqttIntegrator", "organizationId": organization}
    assert (made["description"], made["mqttSubscriptionState"]) == ("Production MQTT streaming", "active")
    life = datetime.fromisoformat(key["token"]["expiresAt"]) - datetime.fromisoformat(key["token"]["issuedAt"])
    assert life == timedelta(days=90)
    assert operator.sink.calls == [("grant", key["id"], key["token"]["token"])]


def test_refresh_keeps_the_id_and_tells_the_broker_before_it_answers(operator: Operator) -> None:
    """A new token under the same id, with its two times; the old one is dead already."""
    key_id, old = operator.platform.add_key("a", operator.organization)
    answer = operator.ask(REFRESH, {"apiKeyId": key_id})["refreshApiKeyToken"]
    new = answer["token"]["token"]
    assert (answer["id"], answer["organizationId"]) == (key_id, operator.organization.id)
    assert new != old
    assert operator.sink.calls[-1] == ("grant", key_id, new)
    assert operator.platform.current_token(key_id) == new


def test_lists_show_times_and_roles_but_no_token(operator: Operator) -> None:
    """Both queries of the document; asking for `token { token }` in a list is refused."""
    key_id, token = operator.platform.add_key("a", operator.organization, issued_ago=timedelta(days=3))
    response = operator.post(LIST_KEYS)
    key = response.json()["data"]["apiKeys"][0]
    issued = datetime.fromisoformat(key["token"]["issuedAt"])
    assert timedelta(days=3) <= datetime.now(UTC) - issued < timedelta(days=3, seconds=10)
    assert key["token"]["revokedAt"] is None
    assert key["organization"] == {"id": operator.organization.id, "name": "your-organization"}
    assert [role["roleName"] for role in key["organizationRoles"]] == ["MqttIntegrator"]
    assert token not in response.text
    integration = operator.ask(LIST_INTEGRATIONS)["mqttSubscriptionIntegration"][0]
    assert integration["apiKeys"] == [{"apiKeyId": key_id}]
    assert integration["id"] == operator.platform.integration_of(key_id)
    assert operator.refused("{ apiKeys { token { token } } }") == ["validation-failed"]


def test_delete_ends_the_key(operator: Operator) -> None:
    """It leaves the list and the broker."""
    key_id = operator.key()
    message = operator.ask(DELETE, {"apiKeyId": key_id})["deleteApiKey"]["message"]
    assert message
    assert operator.ask(LIST_KEYS) == {"apiKeys": []}
    assert operator.sink.calls[-1] == ("revoke", key_id)


def test_the_session_is_renewed_by_its_refresh_token(operator: Operator) -> None:
    """The new pair works, the old refresh token does not any more."""
    session = operator.login()
    asked = {"organizationId": session["organizationId"], "refreshToken": session["refreshToken"]}
    fresh = operator.ask(RENEW, asked)["refreshToken"]
    assert (fresh["expiresIn"], fresh["refreshExpiresIn"]) == (900, 43200)
    operator.token = fresh["accessToken"]
    assert operator.ask(LIST_KEYS) == {"apiKeys": []}
    assert operator.refused(RENEW, asked) == ["access-denied"]


def test_logout_ends_the_session(operator: Operator) -> None:
    """After it the token is as good as none."""
    assert operator.ask(LOGOUT) == {"logout": {"success": True}}
    assert operator.refused(LIST_KEYS) == ["invalid-jwt"]


@pytest.mark.parametrize(
    ("query", "variables", "codes"),
    [
        (REFRESH.replace("apikeyId:", "apiKeyId:"), {"apiKeyId": UNKNOWN}, {"validation-failed"}),
        (DELETE.replace("apikeyId:", "apiKeyId:"), {"apiKeyId": UNKNOWN}, {"validation-failed"}),
        (ASSIGN_ROLE.replace("apiKeyId:", "apikeyId:"), {"apiKeyId": UNKNOWN}, {"validation-failed"}),
        (REFRESH.replace("organizationId", "organisationId"), {"apiKeyId": UNKNOWN}, {"validation-failed"}),
        (REFRESH, {}, {"validation-failed"}),
        ("mutation {", {}, {"validation-failed"}),
        (REFRESH, {"apiKeyId": UNKNOWN}, {"not-found"}),
        (REFRESH, {"apiKeyId": "no-uuid"}, {"data-exception"}),
        (DELETE, {"apiKeyId": UNKNOWN}, {"not-found"}),
        (LINK, {"mqttSubscriptionId": UNKNOWN, "apiKeyId": UNKNOWN}, {"not-found"}),
        (LOGIN, {**USER, "password": "wrong"}, {"access-denied"}),
        (LOGIN, {**USER, "organizationName": "other"}, {"access-denied"}),
    ],
)
def test_what_is_wrong_is_refused_as_hasura_would(
    operator: Operator, query: str, variables: dict[str, Any], codes: set[str]
) -> None:
    """HTTP 200, `errors` with a code each, and no data."""
    assert set(operator.refused(query, variables)) == codes


def test_role_names_are_case_sensitive(operator: Operator) -> None:
    """`mqttIntegrator` is unknown, and the key stays without the role."""
    key_id, _ = operator.platform.add_key("a", operator.organization, role=False)
    codes = operator.refused(ASSIGN_ROLE.replace('"MqttIntegrator"', '"mqttIntegrator"'), {"apiKeyId": key_id})
    assert codes == ["constraint-violation"]
    assert operator.ask(LIST_KEYS)["apiKeys"][0]["organizationRoles"] == []


@pytest.mark.parametrize(("token", "code"), [("", "invalid-headers"), ("made-up", "invalid-jwt")])
def test_without_a_session_nothing_is_shown(operator: Operator, token: str, code: str) -> None:
    """No token and a wrong one have Hasura's two codes."""
    operator.token = token
    assert operator.refused(LIST_KEYS) == [code]


def test_a_body_that_is_not_json_is_refused(operator: Operator) -> None:
    """And so is one without a query."""
    answers = [operator.client.post(operator.platform.url, content=body).json() for body in (b"{", b"[]", b"{}")]
    codes = [answer["errors"][0]["extensions"]["code"] for answer in answers]
    assert codes == ["invalid-json", "validation-failed", "validation-failed"]


def test_a_user_without_the_managers_role_sees_no_keys(operator: Operator) -> None:
    """Login works, the list does not."""
    operator.platform.create_user(USER["email"], USER["password"], operator.organization, manager=False)
    operator.login()
    assert operator.refused(LIST_KEYS) == ["access-denied"]


def test_another_organizations_key_is_unknown(operator: Operator) -> None:
    """Neither listed nor refreshed."""
    key_id, _ = operator.platform.add_key("b", operator.platform.create_organization("other"))
    assert operator.refused(REFRESH, {"apiKeyId": key_id}) == ["not-found"]
    assert operator.ask(LIST_KEYS) == {"apiKeys": []}


def test_access_tokens_expire() -> None:
    """After `expiresIn` seconds of the platform's clock the token is refused with JWTExpired."""
    moment = datetime(2026, 3, 24, 10, tzinfo=UTC)
    with HaltianPlatform(access_seconds=5, now=lambda: moment) as platform, httpx.Client() as client:
        operator = Operator(platform, Recorder(), client)
        assert operator.login()["expiresIn"] == 5
        operator.ask(LIST_KEYS)
        moment += timedelta(seconds=5)
        response = operator.post(LIST_KEYS)
        assert "JWTExpired" in response.json()["errors"][0]["message"]
        assert parsedate_to_datetime(response.headers["date"]) == moment


def test_a_key_dies_at_its_time() -> None:
    """The broker is told without anybody's asking."""
    sink = Recorder()
    with HaltianPlatform(sink=sink, lifetime=timedelta(seconds=60)) as platform:
        organization = platform.create_organization("acme")
        key_id, _ = platform.add_key("a", organization, issued_ago=timedelta(seconds=59))
        wait_until("the key's death", lambda: sink.calls[-1] == ("revoke", key_id), timeout=5)
    assert [call[0] for call in sink.calls] == ["grant", "revoke"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer.NULL, None),
        (Answer.TOKEN_NULL, {"token": None}),
        (Answer.EMPTY_TOKEN, {"token": ""}),
        (Answer.NO_EXPIRES_AT, {"expiresAt": None}),
        (Answer.NO_ISSUED_AT, {"issuedAt": None}),
        (Answer.NOTHING_TO_DERIVE_FROM, {"issuedAt": None, "expiresAt": None}),
    ],
)
def test_answers_that_lack_something(operator: Operator, answer: Answer, expected: dict[str, Any] | None) -> None:
    """Each switch takes out what its name says."""
    operator.platform.faults = Faults(answer=answer)
    got = operator.ask(REFRESH, {"apiKeyId": operator.key()})["refreshApiKeyToken"]
    if got is not None:
        got = {"token": None} if got["token"] is None else got["token"]
        got = {field: got[field] for field in expected or {}}
    assert got == expected


def test_an_answer_with_errors_and_its_effect(operator: Operator) -> None:
    """By itself nothing happened; with `effect` the old token is dead all the same."""
    key_id, old = operator.platform.add_key("a", operator.organization)
    operator.platform.faults = Faults(answer=Answer.ERRORS)
    assert operator.refused(REFRESH, {"apiKeyId": key_id}) == ["unexpected"]
    assert operator.platform.current_token(key_id) == old
    operator.platform.faults = Faults(answer=Answer.ERRORS, effect=True)
    assert operator.refused(REFRESH, {"apiKeyId": key_id}) == ["unexpected"]
    assert operator.platform.current_token(key_id) != old


def test_an_expiry_in_the_past_and_an_opaque_token(operator: Operator) -> None:
    """Both are live at the broker; only what the answer says about them is odd."""
    key_id = operator.key()
    operator.platform.faults = Faults(answer=Answer.EXPIRES_IN_THE_PAST)
    past = operator.ask(REFRESH, {"apiKeyId": key_id})["refreshApiKeyToken"]["token"]
    assert datetime.fromisoformat(past["expiresAt"]) < datetime.now(UTC)
    assert operator.sink.calls[-1] == ("grant", key_id, past["token"])
    operator.platform.faults.answer = Answer.OPAQUE_TOKEN
    opaque = operator.ask(REFRESH, {"apiKeyId": key_id})["refreshApiKeyToken"]["token"]["token"]
    assert "." not in opaque
    assert operator.sink.calls[-1] == ("grant", key_id, opaque)


@pytest.mark.parametrize(("cut", "happened"), [(Cut.BEFORE_EFFECT, False), (Cut.AFTER_EFFECT, True)])
def test_a_cut_connection(operator: Operator, cut: Cut, happened: bool) -> None:
    """The client gets no answer; whether the refresh happened is the switch's word. The next request works."""
    key_id, old = operator.platform.add_key("a", operator.organization)
    operator.platform.faults = Faults(cut=cut, times=1)
    with pytest.raises(httpx.RemoteProtocolError):
        operator.post(REFRESH, {"apiKeyId": key_id})
    assert (operator.platform.current_token(key_id) != old) == happened
    operator.ask(REFRESH, {"apiKeyId": key_id})
    assert operator.platform.count("refreshApiKeyToken") == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_http_errors(operator: Operator, status: int) -> None:
    """The status and its Retry-After arrive, nothing happened, and other operations go on."""
    key_id, old = operator.platform.add_key("a", operator.organization)
    operator.platform.faults = Faults(status=status, retry_after="7")
    response = operator.post(REFRESH, {"apiKeyId": key_id})
    assert (response.status_code, response.headers["retry-after"]) == (status, "7")
    assert operator.platform.current_token(key_id) == old
    assert len(operator.ask(LIST_KEYS)["apiKeys"]) == 1


def test_an_http_error_after_the_effect(operator: Operator) -> None:
    """As a gateway that gives up on an answer does it."""
    key_id, old = operator.platform.add_key("a", operator.organization)
    operator.platform.faults = Faults(status=503, status_after_effect=True)
    assert operator.post(REFRESH, {"apiKeyId": key_id}).status_code == 503
    assert operator.platform.current_token(key_id) != old


def test_truncated_json(operator: Operator) -> None:
    """A well-framed answer that ends in the middle; the effect took place."""
    key_id, old = operator.platform.add_key("a", operator.organization)
    operator.platform.faults = Faults(truncate=True)
    with pytest.raises(ValueError):
        operator.post(REFRESH, {"apiKeyId": key_id}).json()
    assert operator.platform.current_token(key_id) != old


def test_a_page_instead_of_json(operator: Operator) -> None:
    """A portal in between answers with HTTP 200 and HTML; the effect took place."""
    key_id, old = operator.platform.add_key("a", operator.organization)
    operator.platform.faults = Faults(content_type="text/html")
    answer = operator.post(REFRESH, {"apiKeyId": key_id})
    assert (200, True) == (answer.status_code, answer.headers["content-type"].startswith("text/html"))
    assert operator.platform.current_token(key_id) != old


def test_a_role_is_assigned_once(operator: Operator) -> None:
    """As Hasura's insert does: what is there already is a violation, and nothing changes."""
    key_id, _ = operator.platform.add_key("a", operator.organization)
    document = (
        'mutation { assignApiKeyOrganizationRole(object: {roleName: "MqttIntegrator", apiKeyId: "%s"}) { roleName } }'
    )
    (error,) = operator.post(document % key_id).json()["errors"]
    assert "constraint-violation" == error["extensions"]["code"]
    assert {"MqttIntegrator"} == operator.platform.state.key(key_id).roles


def test_latency_before_and_after_the_effect(operator: Operator) -> None:
    """While the first passes nothing has happened; after it everything has, although no answer is there yet."""
    key_id, old = operator.platform.add_key("a", operator.organization)
    operator.platform.faults = Faults(latency_before=0.3, latency_after=0.3)
    before = time.monotonic()
    request = threading.Thread(target=operator.post, args=(REFRESH, {"apiKeyId": key_id}))
    request.start()
    wait_until("the effect", lambda: operator.platform.current_token(key_id) != old, timeout=5)
    effect = time.monotonic() - before
    unanswered = request.is_alive()
    request.join()
    assert (effect >= 0.3, unanswered, time.monotonic() - before >= 0.6) == (True, True, True)


def test_stopping_does_not_wait_for_a_latency(operator: Operator) -> None:
    """A platform that hangs is stopped at once."""
    operator.platform.faults = Faults(operations=frozenset(), latency_before=60)
    request = threading.Thread(target=operator.post, args=(LIST_KEYS,))
    request.start()
    wait_until("the request", lambda: operator.platform.count("apiKeys") == 1, timeout=5)
    before = time.monotonic()
    operator.platform.stop()
    request.join(10)
    assert (time.monotonic() - before < 5, request.is_alive()) == (True, False)


def test_login_refused(operator: Operator) -> None:
    """Neither the right password nor a refresh token helps."""
    session = operator.login()
    operator.platform.faults.refuse_login = True
    asked = {"organizationId": session["organizationId"], "refreshToken": session["refreshToken"]}
    assert (operator.refused(LOGIN, USER), operator.refused(RENEW, asked)) == (["access-denied"], ["access-denied"])


def test_requests_are_counted_by_operation(operator: Operator) -> None:
    """Also those that were refused."""
    operator.refused(REFRESH, {"apiKeyId": UNKNOWN})
    operator.ask(LIST_KEYS)
    platform = operator.platform
    counts = [platform.count(field) for field in ("login", "refreshApiKeyToken", "apiKeys", "logout")]
    assert (counts, [seen.fields for seen in platform.seen][-1]) == ([1, 1, 1, 0], ("apiKeys",))


def test_stop_and_start_keep_the_address_and_everything_known(operator: Operator) -> None:
    """A platform that was away: connections refused meanwhile, then the same session and key as before."""
    key_id = operator.key()
    url = operator.platform.url
    operator.platform.stop()
    with pytest.raises(httpx.ConnectError):
        operator.post(LIST_KEYS)
    operator.platform.start()
    assert url == operator.platform.url
    assert [key["id"] for key in operator.ask(LIST_KEYS)["apiKeys"]] == [key_id]
