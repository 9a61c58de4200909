"""What can go wrong at a platform, as switches that a test sets while the platform runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PAGE = b"<!doctype html><title>Sign in</title>"  # what a portal in between answers


class Answer(StrEnum):
    """What `refreshApiKeyToken` answers."""

    NORMAL = "normal"
    NULL = "null"  # HTTP 200, `refreshApiKeyToken: null`, no errors
    ERRORS = "errors"  # HTTP 200, `errors` with code `unexpected`
    TOKEN_NULL = "token_null"  # the key without its token
    EMPTY_TOKEN = "empty_token"  # token ""
    NO_EXPIRES_AT = "no_expires_at"
    EXPIRES_IN_THE_PAST = "expires_in_the_past"
    NO_ISSUED_AT = "no_issued_at"
    OPAQUE_TOKEN = "opaque_token"  # not a JWT, so no `exp` to read
    NOTHING_TO_DERIVE_FROM = "nothing_to_derive_from"  # opaque, neither issuedAt nor expiresAt
    UNUSABLE_TOKEN = "unusable_token"  # looks well, but the broker was never told of it


WITHOUT_EFFECT = frozenset({Answer.NULL, Answer.ERRORS, Answer.TOKEN_NULL, Answer.EMPTY_TOKEN})


class Cut(StrEnum):
    """When the connection is reset instead of answered."""

    NEVER = "never"
    BEFORE_EFFECT = "before_effect"
    AFTER_EFFECT = "after_effect"


@dataclass(kw_only=True, slots=True)
class Faults:
    """All switches of the platform; the default is a platform without faults.

    Attributes:
        answer: what `refreshApiKeyToken` answers.
        effect: whether that answer's refresh takes place (old token dead, new one live). None: as the kind of answer
            suggests; see `WITHOUT_EFFECT`.
        refuse_login: `login` and `refreshToken` are refused as with a wrong password.
        operations: root fields that the transport's faults below hit; empty means every request.
        times: how many requests the transport's faults still hit; None means all. Counts down.
        latency_before, latency_after: seconds between the request and its effect, between effect and answer.
        status: HTTP status instead of an answer (429, 500, 503, …).
        status_after_effect: the effect takes place although `status` is answered.
        retry_after: the header's text beside `status`.
        cut: reset the connection.
        truncate: send half of the JSON, well framed.
        content_type: the effect takes place, and the answer is a page of this type instead of JSON.
    """

    answer: Answer = Answer.NORMAL
    effect: bool | None = None
    refuse_login: bool = False
    operations: frozenset[str] = frozenset({"refreshApiKeyToken"})
    times: int | None = None
    latency_before: float = 0.0
    latency_after: float = 0.0
    status: int | None = None
    status_after_effect: bool = False
    retry_after: str | None = None
    cut: Cut = Cut.NEVER
    truncate: bool = False
    content_type: str | None = None

    def takes_effect(self) -> bool:
        """Whether a refresh that gets `answer` changes the key."""
        return self.answer not in WITHOUT_EFFECT if self.effect is None else self.effect


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportFault:
    """The part of `Faults` that hits one request, taken at its start so that a test may change the switches."""

    latency_before: float = 0.0
    latency_after: float = 0.0
    status: int | None = None
    status_after_effect: bool = False
    retry_after: str | None = None
    cut: Cut = Cut.NEVER
    truncate: bool = False
    content_type: str | None = None

    @classmethod
    def of(cls, faults: Faults) -> TransportFault:
        """A frozen copy."""
        return cls(
            latency_before=faults.latency_before,
            latency_after=faults.latency_after,
            status=faults.status,
            status_after_effect=faults.status_after_effect,
            retry_after=faults.retry_after,
            cut=faults.cut,
            truncate=faults.truncate,
            content_type=faults.content_type,
        )

    @property
    def prevents_effect(self) -> bool:
        """Whether the request is turned away before anything happens."""
        return self.cut is Cut.BEFORE_EFFECT or (self.status is not None and not self.status_after_effect)
