"""The GraphQL face of the platform: one document in, one JSON object out.

graphql-core parses, validates and executes against `haltian.graphql`. Errors look as a Hasura server's: HTTP 200,
`{"errors": [{"message", "extensions": {"path", "code"}}]}`, and no `data` beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    GraphQLResolveInfo,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from rotator.sandbox.faults import Answer, Faults
from rotator.sandbox.haltian_state import ApiKey, Integration, PlatformState, Refusal, Session

Json = dict[str, Any]
Info = GraphQLResolveInfo[Any]


def error(code: str, message: str) -> Json:
    """One error, as Hasura writes it."""
    return {"errors": [{"message": message, "extensions": {"path": "$", "code": code}}]}


def stamp(moment: datetime | None) -> str | None:
    """`2026-03-24T10:00:00Z`, as the document prints it."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _schema() -> GraphQLSchema:
    return build_schema(files("rotator.sandbox").joinpath("haltian.graphql").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A document that was parsed and found valid, with the names of the root fields that it asks for."""

    document: DocumentNode
    fields: tuple[str, ...]
    variables: Mapping[str, Any]
    operation_name: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    authorization: str | None
    faults: Faults


class HaltianApi:
    """Answers questions from a state."""

    def __init__(self, state: PlatformState) -> None:
        self._state = state
        self._schema = _schema()
        self._root: dict[str, Callable[..., Any]] = {
            "login": self._login,
            "refreshToken": self._refresh_token,
            "logout": self._logout,
            "createMqttSubscriptionIntegration": self._create_integration,
            "createApiKey": self._create_key,
            "assignApiKeyOrganizationRole": self._assign_role,
            "assignMqttSubscriptionIntegrationApiKey": self._link,
            "refreshApiKeyToken": self._refresh_key,
            "deleteApiKey": self._delete_key,
            "apiKeys": self._keys,
            "mqttSubscriptionIntegration": self._integrations,
        }

    def read(self, payload: Any) -> Question | Json:
        """The question in a request's body, or the error that it gets."""
        if not isinstance(payload, dict) or not isinstance(payload.get("query"), str):
            return error("validation-failed", "the body must be an object with the text field 'query'")
        variables = payload.get("variables") or {}
        if not isinstance(variables, dict):
            return error("validation-failed", "'variables' must be an object")
        try:
            document = parse(payload["query"])
        except GraphQLSyntaxError as exc:
            return error("validation-failed", f"not a valid graphql query: {exc.message}")
        faults = validate(self._schema, document)
        if faults:
            found = [error("validation-failed", fault.message)["errors"][0] for fault in faults]
            return {"errors": found}
        name = payload.get("operationName")
        return Question(document=document, fields=_fields(document, name), variables=variables, operation_name=name)

    def answer(self, question: Question, *, authorization: str | None, faults: Faults) -> Json:
        """Execute, effects included."""
        result = execute_sync(
            self._schema,
            question.document,
            root_value=self._root,
            context_value=_Request(authorization=authorization, faults=faults),
            variable_values=dict(question.variables),
            operation_name=question.operation_name,
        )
        if not isinstance(result, ExecutionResult):
            raise TypeError("the sandbox's schema has no asynchronous resolvers")
        if result.errors:
            return {"errors": [_as_hasura(fault) for fault in result.errors]}
        return {"data": result.data}

    # --- sessions -----------------------------------------------------------------------------------------------

    def _login(self, info: Info, *, loginInput: Json) -> Json:
        if info.context.faults.refuse_login:
            raise Refusal("access-denied", "invalid credentials")
        session = self._state.login(loginInput["email"], loginInput["organizationName"], loginInput["password"])
        return {**self._session_fields(session), "organizationId": session.organization_id}

    def _refresh_token(self, info: Info, *, refreshTokenInput: Json) -> Json:
        if info.context.faults.refuse_login:
            raise Refusal("access-denied", "invalid refresh token")
        asked = refreshTokenInput
        return self._session_fields(self._state.renew_session(asked["organizationId"], asked["refreshToken"]))

    def _logout(self, info: Info) -> Json:
        self._state.logout(self._state.authenticate(info.context.authorization))
        return {"success": True}

    def _session_fields(self, session: Session) -> Json:
        return {
            "accessToken": session.access_token,
            "expiresIn": self._state.access_seconds,
            "refreshToken": session.refresh_token,
            "refreshExpiresIn": self._state.refresh_seconds,
        }

    def _manager(self, info: Info) -> Session:
        session = self._state.authenticate(info.context.authorization)
        if not session.manager:
            raise Refusal("access-denied", "the role Organization Manager is required")
        return session

    # --- keys ---------------------------------------------------------------------------------------------------

    def _keys(self, info: Info) -> list[Json]:
        session = self._manager(info)
        return [self._listed(key) for key in self._state.keys(session.organization_id)]

    def _create_key(self, info: Info, *, createApiKeyInput: Json) -> Json:
        session = self._manager(info)
        key = self._state.create_key(session.organization_id, createApiKeyInput["name"])
        return {**_key_fields(key), "token": _secret_fields(key)}

    def _refresh_key(self, info: Info, *, refreshApiKeyTokenInput: Json) -> Json | None:
        session, faults = self._manager(info), info.context.faults
        key_id, answer = refreshApiKeyTokenInput["apikeyId"], faults.answer
        if faults.takes_effect():
            key = self._state.refresh_key(key_id, session.organization_id, answer)
        else:
            key = self._state.key(key_id, session.organization_id)
        if answer is Answer.ERRORS:
            raise Refusal("unexpected", "internal error while refreshing the token")
        return _refreshed(key, answer)

    def _delete_key(self, info: Info, *, deleteApiKeyInput: Json) -> Json:
        session = self._manager(info)
        self._state.delete_key(deleteApiKeyInput["apikeyId"], session.organization_id)
        return {"message": "API key deleted"}

    def _assign_role(self, info: Info, *, object: Json) -> Json:
        session = self._manager(info)
        self._state.assign_role(object["apiKeyId"], session.organization_id, object["roleName"])
        return {**object, "organizationId": session.organization_id}

    def _listed(self, key: ApiKey) -> Json:
        organization = self._state.organization(key.organization_id)
        return {
            **_key_fields(key),
            "organization": {"id": organization.id, "name": organization.name},
            "token": {**_times(key), "revokedAt": stamp(key.revoked_at)},
            "organizationRoles": [
                {"apiKeyId": key.id, "roleName": role, "organizationId": key.organization_id}
                for role in sorted(key.roles)
            ],
        }

    # --- integrations -------------------------------------------------------------------------------------------

    def _create_integration(self, info: Info, *, object: Json) -> Json:
        session = self._manager(info)
        state = object.get("mqttSubscriptionState") or "active"
        return _integration_fields(
            self._state.create_integration(session.organization_id, object.get("description"), state)
        )

    def _integrations(self, info: Info) -> list[Json]:
        session = self._manager(info)
        return [_integration_fields(one) for one in self._state.integrations(session.organization_id)]

    def _link(self, info: Info, *, object: Json) -> Json:
        session = self._manager(info)
        self._state.link(object["mqttSubscriptionId"], object["apiKeyId"], session.organization_id)
        return object


def _fields(document: DocumentNode, operation_name: str | None) -> tuple[str, ...]:
    for node in document.definitions:
        if isinstance(node, OperationDefinitionNode):
            named = node.name.value if node.name else None
            if operation_name in (None, named):
                selected = node.selection_set.selections
                return tuple(field.name.value for field in selected if isinstance(field, FieldNode))
    return ()


def _as_hasura(fault: GraphQLError) -> Json:
    extensions = dict(fault.extensions or {})
    if "code" not in extensions:
        # A variable that does not fit its type is a fault of the request; anything else is ours.
        extensions = {"path": "$", "code": "unexpected" if fault.path else "validation-failed"}
        cause = getattr(fault.original_error, "extensions", None)
        if isinstance(cause, dict) and "code" in cause:
            extensions = cause
    return {"message": fault.message, "extensions": extensions}


def _key_fields(key: ApiKey) -> Json:
    return {
        "id": key.id,
        "name": key.name,
        "organizationId": key.organization_id,
        "createdAt": stamp(key.created_at),
        "updatedAt": stamp(key.updated_at),
    }


def _times(key: ApiKey) -> Json:
    return {"issuedAt": stamp(key.issued_at), "expiresAt": stamp(key.expires_at)}


def _secret_fields(key: ApiKey) -> Json:
    return {"token": key.token, **_times(key)}


def _refreshed(key: ApiKey, answer: Answer) -> Json | None:
    if answer is Answer.NULL:
        return None
    token: Json | None = _secret_fields(key)
    assert token is not None
    match answer:
        case Answer.TOKEN_NULL:
            token = None
        case Answer.EMPTY_TOKEN:
            token["token"] = ""
        case Answer.NO_EXPIRES_AT:
            token["expiresAt"] = None
        case Answer.NO_ISSUED_AT:
            token["issuedAt"] = None
        case Answer.NOTHING_TO_DERIVE_FROM:
            token["issuedAt"] = token["expiresAt"] = None
        case Answer.EXPIRES_IN_THE_PAST:
            token["expiresAt"] = stamp(key.issued_at - timedelta(hours=1))
        case _:
            pass
    return {**_key_fields(key), "token": token}


def _integration_fields(integration: Integration) -> Json:
    return {
        "id": integration.id,
        "description": integration.description,
        "mqttSubscriptionState": integration.state,
        "organizationId": integration.organization_id,
        "createdAt": stamp(integration.created_at),
        "updatedAt": stamp(integration.updated_at),
        "apiKeys": [{"mqttSubscriptionId": integration.id, "apiKeyId": key_id} for key_id in integration.keys],
    }
