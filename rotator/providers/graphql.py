"""What the `errors` of a GraphQL answer mean for a credential. Pure.

A GraphQL server answers most failures with HTTP 200 and `errors[]`, each with a `message` and often an
`extensions.code` (GraphQL spec, "Errors"; codes as Hasura and Apollo use them). Haltian publishes no catalogue, so
codes come first and words second, and what can't be told is never taken for "nothing happened" when a call changes
something and the server speaks of a fault of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Meaning(StrEnum):
    """What an error says about the call, most cautious first."""

    UNSURE = "unsure"  # the server failed inside: the call may have taken effect
    AUTH = "auth"  # the access token or the login was refused: the call did nothing
    RATE_LIMITED = "rate_limited"
    KEY_UNKNOWN = "key_unknown"
    REFUSED = "refused"  # understood and refused


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphqlError:
    """One error, without anything that looks like a secret."""

    meaning: Meaning
    code: str  # for the metric: short, lower case
    message: str


_CODES: Final[Mapping[str, Meaning]] = {
    # a document the server can't take: "field … not found in type" must not read as a missing key
    **dict.fromkeys(
        ("validation-failed", "parse-failed", "graphql-validation-failed", "graphql-parse-failed"),
        Meaning.REFUSED,
    ),
    **dict.fromkeys(
        (
            "invalid-jwt", "jwt-invalid", "jwt-expired", "jwt-invalid-claims", "jwt-missing-role-claims",
            "invalid-token", "token-expired", "invalid-headers", "access-denied", "permission-denied",
            "unauthenticated", "unauthorized", "forbidden", "invalid-credentials", "401", "403",
        ),
        Meaning.AUTH,
    ),
    **dict.fromkeys(
        (
            "rate-limited", "rate-limit", "rate-limit-exceeded", "too-many-requests", "tenant-limit-exceeded",
            "throttled", "429",
        ),
        Meaning.RATE_LIMITED,
    ),
    **dict.fromkeys(
        ("not-found", "not-exists", "key-not-found", "api-key-not-found", "unknown-key", "404"), Meaning.KEY_UNKNOWN
    ),
    **dict.fromkeys(
        (
            "unexpected", "unexpected-error", "internal-error", "internal-server-error", "server-error", "timeout",
            "time-limit-exceeded", "gateway-timeout", "bad-gateway", "service-unavailable", "unavailable",
            "postgres-error", "500", "502", "503", "504",
        ),
        Meaning.UNSURE,
    ),
}  # fmt: skip

_WORDS: Final[Sequence[tuple[re.Pattern[str], Meaning]]] = tuple(
    (re.compile(pattern, re.IGNORECASE), meaning)
    for pattern, meaning in (
        (r"\bin type\b|cannot query field|unknown argument|syntax error", Meaning.REFUSED),
        (r"time[d]?[ -]?out|internal (server )?error|unexpected|temporarily|try again later", Meaning.UNSURE),
        (r"rate limit|too many requests|throttl", Meaning.RATE_LIMITED),
        (
            r"\b(jwt|access token|bearer|authorization|session)\b.{0,60}\b(expired|invalid|missing|malformed)",
            Meaning.AUTH,
        ),
        (r"\b(expired|invalid|missing|malformed)\b.{0,40}\b(jwt|token|authorization|session)\b", Meaning.AUTH),
        (r"\btoken\b.{0,20}\b(expired|invalid)|jwt ?expired", Meaning.AUTH),
        (r"unauthori[sz]ed|unauthenticated|not (authori[sz]ed|authenticated|logged in)|access denied", Meaning.AUTH),
        (r"\bkeys?\b.{0,80}(not found|does ?n[o']t exist|unknown)|(unknown|no such)( api)? ?key", Meaning.KEY_UNKNOWN),
        (r"\b(not found|does not exist|no such)\b", Meaning.KEY_UNKNOWN),
    )
)

_CAUTION: Final = tuple(Meaning)  # the order of the class
_LONGEST_MESSAGE: Final = 200
_LONGEST_READ: Final = 2000  # characters of a message that are searched for words; ten megabytes would take minutes
_TOKEN_LIKE: Final = re.compile(r"\beyJ[\w-]*(?:\.[\w-]*)*|(?i:\bbearer\s+)\S+|[A-Za-z0-9_+/-]{25,}=*")
_UUID: Final = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# with half of a surrogate pair, which JSON can hold and neither the journal nor a log can write
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def read_errors(errors: object, *, secrets: Iterable[str] = ()) -> GraphqlError | None:
    """The error that decides what the whole answer means, or None where there is none.

    Args:
        errors: the answer's `errors`, whatever the server put there.
        secrets: values that the message must not repeat, beside everything that looks like a token.
    """
    if not errors:
        return None
    known = tuple(secrets)
    found = [_read_one(error, known) for error in (errors if isinstance(errors, list) else [errors])]
    return min(found, key=lambda error: _CAUTION.index(error.meaning))


def _read_one(error: object, secrets: Sequence[str]) -> GraphqlError:
    fields = error if isinstance(error, dict) else {"message": error}
    extensions = fields.get("extensions")
    raw = extensions.get("code") if isinstance(extensions, dict) else None
    if raw is None:
        raw = fields.get("code")
    code = re.sub(r"[^a-z0-9]+", "-", str(raw).lower() if isinstance(raw, str | int) else "").strip("-")[:40]
    message = fields.get("message")
    text = message if isinstance(message, str) else ""
    return GraphqlError(
        meaning=_CODES.get(code) or _by_words(text[:_LONGEST_READ]),
        code=code or "error",
        message=harmless(text, secrets=secrets) or "(no message)",
    )


def _by_words(text: str) -> Meaning:
    return next((meaning for pattern, meaning in _WORDS if pattern.search(text)), Meaning.REFUSED)


def harmless(text: str, *, secrets: Iterable[str] = ()) -> str:
    """`text` as one short line, with `***` for each of `secrets` and for all that looks like a token.

    UUIDs stay: they name the key that a person has to look at.
    """
    for secret in sorted((each for each in secrets if each), key=len, reverse=True):
        text = text.replace(secret, "***")
    line = _TOKEN_LIKE.sub(lambda found: found[0] if _UUID.fullmatch(found[0]) else "***", _CONTROL.sub(" ", text))
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 1] + "…"
