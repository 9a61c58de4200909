"""What Haltian's answers say of API keys and integrations, as facts. Pure, but for what is odd being logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from rotator.errors import BadAnswer
from rotator.jwt import unverified_expiry
from rotator.model import ExpirySource, Identity, Issued, Secret, UpstreamKey
from rotator.providers.haltian_session import Reply
from rotator.providers.rest import is_text
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

ROLE: Final = "MqttIntegrator"  # case-sensitive, the guide's step 4

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Integration:
    """One MQTT subscription integration, and the ids of the API keys that are linked to it."""

    id: str
    description: str = ""
    active: bool = True
    keys: frozenset[str] = frozenset()


class KeyReader:
    """Reads the keys of one provider.

    Args:
        name: the provider's name in the configuration.
        lifetime: how long a token lives after `issuedAt` where nothing else says so.
    """

    def __init__(self, name: str, lifetime: timedelta) -> None:
        self._name = name
        self._lifetime = lifetime

    def upstream(self, entry: object) -> UpstreamKey | None:
        """One entry of the list; None where it has no id."""
        if not isinstance(entry, Mapping) or not is_text(entry.get("id")):
            return None
        token = entry.get("token")
        if not isinstance(token, Mapping):
            token = {}
        issued_at = parse_timestamp(token.get("issuedAt"))
        expires_at, source = self._expiry(issued_at, token.get("expiresAt"), None)
        name = entry.get("name")
        return UpstreamKey(
            id=entry["id"],
            name=_writable(name),
            issued_at=issued_at,
            expires_at=expires_at,
            expiry_source=source,
            problem=_problem(token, entry.get("organizationRoles")),
        )

    def issued(self, reply: Reply, field: str, id: str | None) -> Issued:
        """Read the one answer that holds a secret; its body goes to the journal where it can't be used.

        Args:
            field: the asked field, for messages.
            id: the key that it must be about; None for a new one.

        Raises: BadAnswer NO_SECRET (null), EMPTY_SECRET (blank), PROVIDER_ANSWER_UNREADABLE (another key's id, or not
            the guide's shape).
        """
        if reply.value is None:
            raise _bad(reply, f"{field} is null", Reason.NO_SECRET)
        if not isinstance(reply.value, Mapping):
            raise _bad(reply, f"{field} is no object", Reason.PROVIDER_ANSWER_UNREADABLE)
        token = reply.value.get("token")
        if token is None:
            raise _bad(reply, "the answer holds no token", Reason.NO_SECRET)
        if not isinstance(token, Mapping):
            raise _bad(reply, "token is no object", Reason.PROVIDER_ANSWER_UNREADABLE)
        secret = _secret(reply, token.get("token"))
        answered = reply.value.get("id")
        if id is not None and answered is not None and str(answered).lower() != id.lower():
            raise _bad(reply, "the answer is about another key", Reason.PROVIDER_ANSWER_UNREADABLE)
        if id is None and not is_text(answered):
            raise _bad(reply, "the answer names no new key", Reason.PROVIDER_ANSWER_UNREADABLE)
        known = id or str(answered)
        issued_at = parse_timestamp(token.get("issuedAt"))
        expires_at, source = self._expiry(issued_at, token.get("expiresAt"), secret)
        return Issued(
            identity=Identity(id=known, username=known),
            secret=Secret(secret),
            issued_at=issued_at,
            expires_at=expires_at,
            expiry_source=source,
        )

    def _expiry(
        self, issued_at: datetime | None, answered: object, secret: str | None
    ) -> tuple[datetime | None, ExpirySource | None]:
        """The earliest of what the answer, the JWT and the lifetime say; on a tie the one named first here."""
        found: list[tuple[datetime, ExpirySource]] = []
        if (at := parse_timestamp(answered)) is not None:
            found.append((at, ExpirySource.ANSWER))
        if secret is not None and (at := unverified_expiry(secret)) is not None:
            found.append((at, ExpirySource.JWT))
        if issued_at is not None:
            try:
                found.append((issued_at + self._lifetime, ExpirySource.LIFETIME))
            except OverflowError:
                _log.warning("issuedAt lies beyond all calendars", provider=self._name)
        return min(found, key=lambda each: each[0]) if found else (None, None)


def holds_secret(value: object) -> bool:
    """Whether an answer to a call that issues holds something that may be the secret."""
    token = value.get("token") if isinstance(value, Mapping) else None
    secret = token.get("token") if isinstance(token, Mapping) else None
    return isinstance(secret, str) and bool(secret.strip())


def has_role(entry: Mapping[str, object]) -> bool:
    """Whether a listed key has the role that MQTT needs."""
    roles = entry.get("organizationRoles")
    return isinstance(roles, list) and any(isinstance(each, Mapping) and each.get("roleName") == ROLE for each in roles)


def is_revoked(entry: Mapping[str, object]) -> bool:
    """Whether a listed key was revoked, which is for good."""
    token = entry.get("token")
    return isinstance(token, Mapping) and token.get("revokedAt") is not None


def integration_of(entry: object) -> Integration | None:
    """One entry of the list of integrations; None where it has no id. A state that is not shown accuses nobody."""
    if not isinstance(entry, Mapping) or not is_text(entry.get("id")):
        return None
    description, linked = entry.get("description"), entry.get("apiKeys")
    ids = [each.get("apiKeyId") for each in linked if isinstance(each, Mapping)] if isinstance(linked, list) else []
    return Integration(
        id=entry["id"],
        description=_writable(description),
        active=entry.get("mqttSubscriptionState") in (None, "active"),
        keys=frozenset(id for id in ids if isinstance(id, str)),
    )


def _secret(reply: Reply, value: object) -> str:
    if value is None:
        raise _bad(reply, "the answer's token is null", Reason.NO_SECRET)
    if not isinstance(value, str):
        raise _bad(reply, "the answer's token is no text", Reason.PROVIDER_ANSWER_UNREADABLE)
    if not value.strip():
        raise _bad(reply, "the answer's token is empty", Reason.EMPTY_SECRET)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _bad(reply, "the answer's token is no text", Reason.PROVIDER_ANSWER_UNREADABLE)
    return value


def _writable(value: object) -> str:
    """What people wrote; empty where it is no text, without halves of surrogate pairs."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _bad(reply: Reply, what: str, reason: Reason) -> BadAnswer:
    return BadAnswer(f"{reply.what}: {what}", reason=reason, body=reply.body)


def _problem(token: Mapping[str, object], roles: object) -> Reason | None:
    """Why a listed key can't serve as an MQTT credential. A list that shows no roles at all accuses nobody."""
    if token.get("revokedAt") is not None:
        return Reason.KEY_REVOKED
    if isinstance(roles, list) and not has_role({"organizationRoles": roles}):
        return Reason.ROLE_MISSING
    return None
