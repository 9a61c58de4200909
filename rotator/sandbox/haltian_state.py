"""What a Haltian platform knows: organizations, users, sessions, API keys and integrations, and the rules over them.

Source of the rules: "MQTT API Key Management" (seed 000). Where it is silent on errors, the codes are Hasura's.
"""

from __future__ import annotations

import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from rotator.sandbox.faults import Answer
from rotator.sandbox.token_sink import TokenSink
from rotator.sandbox.tokens import Signer, opaque

MQTT_ROLE = "MqttIntegrator"
ROLES = frozenset({MQTT_ROLE, "Viewer", "Organization Manager"})


class Refusal(Exception):
    """The platform's no. `extensions` goes into the GraphQL error as it is."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.extensions = {"path": "$", "code": code}


@dataclass(frozen=True, kw_only=True, slots=True)
class Organization:
    """Who owns keys and integrations."""

    id: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """Somebody who can log in. Only an Organization Manager may touch keys."""

    email: str
    organization_id: str
    manager: bool
    password: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One login; the rights are those of the moment of login."""

    email: str
    organization_id: str
    manager: bool
    access_expires: datetime
    refresh_expires: datetime
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


@dataclass(kw_only=True, slots=True)
class ApiKey:
    """One key. `live` is the token that the broker was told of."""

    id: str
    name: str
    organization_id: str
    created_at: datetime
    updated_at: datetime
    issued_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    roles: set[str] = field(default_factory=set)
    token: str = field(repr=False, default="")
    live: str | None = field(repr=False, default=None)


@dataclass(kw_only=True, slots=True)
class Integration:
    """One MQTT subscription integration and the keys linked to it."""

    id: str
    organization_id: str
    description: str | None
    state: str
    created_at: datetime
    updated_at: datetime
    keys: list[str] = field(default_factory=list)


def well_formed(identity: str) -> str:
    """The id itself.

    Raises: Refusal with PostgreSQL's words, as a column of type uuid would.
    """
    try:
        return str(uuid.UUID(identity))
    except ValueError as exc:
        raise Refusal("data-exception", f'invalid input syntax for type uuid: "{identity}"') from exc


def seconds_of(moment: datetime) -> datetime:
    """The platform's timestamps have whole seconds, as the document prints them."""
    return moment.astimezone(UTC).replace(microsecond=0)


class PlatformState:
    """All of it, behind one lock: every public method is one transaction, the broker's part included."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        sink: TokenSink,
        lifetime: timedelta,
        access_seconds: int,
        refresh_seconds: int,
    ) -> None:
        self._now, self._sink, self._signer = now, sink, Signer()
        self.lifetime, self.access_seconds, self.refresh_seconds = lifetime, access_seconds, refresh_seconds
        self._lock = threading.RLock()
        self._organizations: dict[str, Organization] = {}
        self._users: dict[tuple[str, str], User] = {}
        self._sessions: list[Session] = []
        self._keys: dict[str, ApiKey] = {}
        self._integrations: dict[str, Integration] = {}

    # --- organizations, users, sessions -------------------------------------------------------------------------

    def create_organization(self, name: str) -> Organization:
        """A new organization."""
        with self._lock:
            organization = Organization(id=str(uuid.uuid4()), name=name)
            self._organizations[organization.id] = organization
            return organization

    def create_user(self, email: str, password: str, organization: Organization, *, manager: bool = True) -> User:
        """A new user, or a new password for one."""
        with self._lock:
            user = User(email=email, password=password, organization_id=organization.id, manager=manager)
            self._users[email, organization.name] = user
            return user

    def organization(self, organization_id: str) -> Organization:
        """The organization of that id."""
        return self._organizations[organization_id]

    def login(self, email: str, organization_name: str, password: str) -> Session:
        """A new session.

        Raises: Refusal.
        """
        with self._lock:
            user = self._users.get((email, organization_name))
            if user is None or not secrets.compare_digest(user.password.encode(), password.encode()):
                raise Refusal("access-denied", "invalid credentials")
            return self._open_session(user)

    def renew_session(self, organization_id: str, refresh_token: str) -> Session:
        """A new session for a refresh token, which is spent by it.

        Raises: Refusal.
        """
        with self._lock:
            for session in self._sessions:
                mine = session.refresh_token == refresh_token and session.organization_id == organization_id
                if mine and self._now() < session.refresh_expires:
                    self._sessions.remove(session)
                    organization = self._organizations[organization_id]
                    return self._open_session(self._users[session.email, organization.name])
            raise Refusal("access-denied", "invalid refresh token")

    def logout(self, session: Session) -> None:
        """End a session: neither of its tokens works any more."""
        with self._lock:
            self._sessions = [other for other in self._sessions if other.access_token != session.access_token]

    def end_sessions(self) -> None:
        """Forget every session, as a platform does that was restarted."""
        with self._lock:
            self._sessions.clear()

    def authenticate(self, authorization: str | None) -> Session:
        """The session that an `Authorization` header names.

        Raises: Refusal, with Hasura's codes `invalid-headers` and `invalid-jwt`.
        """
        if not authorization:
            message = "Missing 'Authorization' or 'Cookie' header in JWT authentication mode"
            raise Refusal("invalid-headers", message)
        scheme, _, token = authorization.partition(" ")
        if scheme != "Bearer" or not token:
            raise Refusal("invalid-headers", "Malformed Authorization header")
        with self._lock:
            for session in self._sessions:
                if session.access_token == token:
                    if self._now() >= session.access_expires:
                        raise Refusal("invalid-jwt", "Could not verify JWT: JWTExpired")
                    return session
        raise Refusal("invalid-jwt", "Could not verify JWT: JWSError JWSInvalidSignature")

    def _open_session(self, user: User) -> Session:
        now = self._now()
        access_expires = now + timedelta(seconds=self.access_seconds)
        claims: dict[str, str | int] = {"sub": user.email, "iat": int(now.timestamp())}
        session = Session(
            email=user.email,
            organization_id=user.organization_id,
            manager=user.manager,
            access_expires=access_expires,
            refresh_expires=now + timedelta(seconds=self.refresh_seconds),
            access_token=self._signer.sign({**claims, "exp": int(access_expires.timestamp())}),
            refresh_token=secrets.token_urlsafe(32),
        )
        self._sessions.append(session)
        return session

    # --- keys ---------------------------------------------------------------------------------------------------

    def keys(self, organization_id: str) -> list[ApiKey]:
        """All keys of an organization, oldest first."""
        with self._lock:
            return [key for key in self._keys.values() if key.organization_id == organization_id]

    def key(self, key_id: str, organization_id: str | None = None) -> ApiKey:
        """One key; None means: of any organization.

        Raises: Refusal with code `not-found`.
        """
        with self._lock:
            key = self._keys.get(well_formed(key_id))
            if key is None or organization_id not in (None, key.organization_id):
                raise Refusal("not-found", f"API key {key_id} not found")
            return key

    def create_key(self, organization_id: str, name: str, *, issued_at: datetime | None = None) -> ApiKey:
        """A new key with its first token, without role and integration."""
        with self._lock:
            moment = seconds_of(issued_at or self._now())
            key = ApiKey(
                id=str(uuid.uuid4()),
                name=name,
                organization_id=organization_id,
                created_at=moment,
                updated_at=moment,
                issued_at=moment,
                expires_at=moment + self.lifetime,
            )
            key.token = self._token(key)
            self._keys[key.id] = key
            return key

    def refresh_key(self, key_id: str, organization_id: str, answer: Answer = Answer.NORMAL) -> ApiKey:
        """A new token; the one before it is dead when this returns.

        Raises: Refusal.
        """
        with self._lock:
            key = self.key(key_id, organization_id)
            if key.revoked_at is not None:
                raise Refusal("not-found", f"API key {key_id} is revoked")
            key.issued_at = key.updated_at = seconds_of(self._now())
            key.expires_at = key.issued_at + self.lifetime
            without_jwt = answer in (Answer.OPAQUE_TOKEN, Answer.NOTHING_TO_DERIVE_FROM)
            key.token = opaque() if without_jwt else self._token(key, in_past=answer is Answer.EXPIRES_IN_THE_PAST)
            self._tell_broker(key, unusable=answer is Answer.UNUSABLE_TOKEN)
            return key

    def revoke_key(self, key_id: str) -> None:
        """As if somebody had revoked it in the portal: it stays in the list, with `revokedAt`."""
        with self._lock:
            key = self.key(key_id)
            key.revoked_at = key.updated_at = seconds_of(self._now())
            self._tell_broker(key)

    def delete_key(self, key_id: str, organization_id: str | None = None) -> None:
        """Gone, and its clients are disconnected.

        Raises: Refusal.
        """
        with self._lock:
            key = self.key(key_id, organization_id)
            del self._keys[key_id]
            for integration in self._integrations.values():
                if key_id in integration.keys:
                    integration.keys.remove(key_id)
            key.live = None
            self._sink.revoke(key_id)

    def assign_role(self, key_id: str, organization_id: str, role: str) -> ApiKey:
        """Give a key a role; names are case-sensitive.

        Raises: Refusal.
        """
        with self._lock:
            key = self.key(key_id, organization_id)
            if role not in ROLES:
                message = f'Foreign key violation. Role "{role}" is not present in table "role"'
                raise Refusal("constraint-violation", message)
            if role in key.roles:
                raise Refusal("constraint-violation", "Uniqueness violation. duplicate key value")
            key.roles.add(role)
            self._tell_broker(key)
            return key

    def remove_role(self, key_id: str, role: str = MQTT_ROLE) -> None:
        """As if somebody had taken the role away in the portal."""
        with self._lock:
            key = self.key(key_id)
            key.roles.discard(role)
            self._tell_broker(key)

    def end_expired(self) -> None:
        """Tell the broker of every token whose time is over."""
        with self._lock:
            for key in self._keys.values():
                if key.live is not None:
                    self._tell_broker(key)

    # --- integrations -------------------------------------------------------------------------------------------

    def integrations(self, organization_id: str) -> list[Integration]:
        """All integrations of an organization, oldest first."""
        with self._lock:
            return [one for one in self._integrations.values() if one.organization_id == organization_id]

    def create_integration(
        self, organization_id: str, description: str | None = None, state: str = "active"
    ) -> Integration:
        """A new integration without keys.

        Raises: Refusal.
        """
        if state not in ("active", "inactive"):
            message = f'Foreign key violation. State "{state}" is not present in table "mqtt_subscription_state"'
            raise Refusal("constraint-violation", message)
        with self._lock:
            moment = seconds_of(self._now())
            integration = Integration(
                id=str(uuid.uuid4()),
                organization_id=organization_id,
                description=description,
                state=state,
                created_at=moment,
                updated_at=moment,
            )
            self._integrations[integration.id] = integration
            return integration

    def link(self, integration_id: str, key_id: str, organization_id: str) -> None:
        """Connect a key to an integration.

        Raises: Refusal.
        """
        with self._lock:
            integration = self._integrations.get(well_formed(integration_id))
            if integration is None or integration.organization_id != organization_id:
                raise Refusal("not-found", f"MQTT subscription integration {integration_id} not found")
            key = self.key(key_id, organization_id)
            if key_id in integration.keys:
                raise Refusal("constraint-violation", "Uniqueness violation. duplicate key value")
            integration.keys.append(key_id)
            self._tell_broker(key)

    # --- the broker's side --------------------------------------------------------------------------------------

    def _token(self, key: ApiKey, *, in_past: bool = False) -> str:
        expires = key.issued_at - timedelta(hours=1) if in_past else key.expires_at
        times = {"iat": int(key.issued_at.timestamp()), "exp": int(expires.timestamp())}
        return self._signer.sign({"sub": key.id, "org": key.organization_id, **times})

    def _tell_broker(self, key: ApiKey, *, unusable: bool = False) -> None:
        linked = any(key.id in one.keys and one.state == "active" for one in self._integrations.values())
        in_time = key.revoked_at is None and self._now() < key.expires_at
        if unusable:
            # the old token is dead and the new one was never made known
            key.live = opaque()
            self._sink.grant(key.id, key.live)
        elif MQTT_ROLE in key.roles and linked and in_time:
            if key.live != key.token:
                key.live = key.token
                self._sink.grant(key.id, key.token)
        elif key.live is not None:
            key.live = None
            self._sink.revoke(key.id)
