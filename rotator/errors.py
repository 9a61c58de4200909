"""The tree of errors. An error says what to do; adapters raise only these, `from` the library's own.

    RotatorError
    ├── Transient        try again, after `retry_after` when the other side named a delay
    ├── Permanent        trying again changes nothing until somebody acts
    ├── Conflict         somebody else wrote: read, compare, decide
    ├── UnknownOutcome   the call may or may not have happened: look, then decide
    ├── BadAnswer        an answer came, and it holds no usable secret
    ├── Stopping         the daemon is going down: leave the step unrecorded
    ├── ConfigError      the configuration is wrong: exit 2
    ├── JournalLocked    another daemon holds the journal: exit 1
    └── JournalFailed    the journal can't be read or written

Messages never hold a secret, a token or a body (rule 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rotator.reasons import ADVICE, Reason


class RotatorError(Exception):
    """Base of all errors that rotator raises on purpose.

    Args:
        message: one line for a person, without any secret.
        reason: the name it is counted, logged and shown under.
    """

    # The raw answer to an issue call that failed, where there was one: to be sealed in the journal, never logged.
    body: bytes | None = None

    def __init__(self, message: str, *, reason: Reason = Reason.UNFORESEEN) -> None:
        # half a surrogate pair, from somebody's JSON, could be written neither to the journal nor to the log
        message = message.encode(errors="replace").decode()
        super().__init__(message)
        self.message = message
        self.reason = reason

    @property
    def advice(self) -> str:
        """What a person does next."""
        return ADVICE[self.reason]


class Transient(RotatorError):
    """Worth another try; `retry_after` is the delay that the other side asked for, if it did."""

    def __init__(self, message: str, *, reason: Reason, retry_after: timedelta | None = None) -> None:
        super().__init__(message, reason=reason)
        self.retry_after = retry_after


class Permanent(RotatorError):
    """Another try changes nothing until somebody mends it."""


class Conflict(RotatorError):
    """Somebody else wrote what we were about to write (a `cas` mismatch in our own fields)."""


class UnknownOutcome(RotatorError):
    """The request may have reached the other side and its answer never came (rule 9)."""

    def __init__(self, message: str, *, reason: Reason = Reason.OUTCOME_UNKNOWN) -> None:
        super().__init__(message, reason=reason)


class BadAnswer(RotatorError):
    """The issue call was answered, but without a usable secret.

    `body` is the raw answer, to be sealed in the journal and never logged.
    """

    def __init__(self, message: str, *, reason: Reason, body: bytes) -> None:
        super().__init__(message, reason=reason)
        self.body = body

    def __repr__(self) -> str:
        return f"BadAnswer({self.message!r}, reason={self.reason.value!r})"


class Stopping(RotatorError):
    """The daemon is stopping and this wait was cut short; the step is not recorded and runs again."""

    def __init__(self) -> None:
        super().__init__("the daemon is stopping", reason=Reason.STOPPING)


class Fault:
    """One fault of the configuration: where it stands, what is wrong, and what may have been meant."""

    __slots__ = ("message", "suggestion", "where")

    def __init__(self, where: str, message: str, suggestion: str | None = None) -> None:
        self.where, self.message, self.suggestion = where, message, suggestion

    def __str__(self) -> str:
        hint = f" ({self.suggestion})" if self.suggestion else ""
        return f"{self.where}: {self.message}{hint}"


class ConfigError(RotatorError):
    """The configuration can't be used; all faults at once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in faults), reason=Reason.SECRET_REFERENCE)


class JournalLocked(RotatorError):
    """Another process holds the journal's lock file."""


class JournalFailed(RotatorError):
    """The journal can't be opened, read or written."""
