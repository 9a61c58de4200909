"""What a verb may do with a malformed answer: return a whole result, or raise a named error without secrets."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Credential, Identity, Issued, ProbeResult, Quota, UpstreamKey
from rotator.reasons import Reason

ISSUING: Final = frozenset({"issue", "create", "set_secret", "provision", "provision_again"})
LOOK: Final = 30.0  # seconds; what a call that only looks may take
SLACK: Final = 1.0

Outcome = object | RotatorError


def outcome(verb: str, call: Callable[[], object], hidden: Iterable[str]) -> Outcome:
    """What a verb makes of an answer, which is checked to be what `rotator.ports` allows.

    Args:
        hidden: what stands in no error.
    """
    try:
        result = call()
    except RotatorError as exc:
        check_error(verb, exc, hidden)
        return exc
    check_result(verb, result)
    return result


def check_error(verb: str, error: RotatorError, hidden: Iterable[str]) -> None:
    """It has a name, is one that this verb may raise, can be written down, and shows no secret."""
    assert verb != "check", "a check raises nothing"
    assert Reason.UNFORESEEN is not error.reason, error
    allowed: tuple[type[RotatorError], ...] = (Transient, Permanent)
    assert isinstance(error, (*allowed, UnknownOutcome, BadAnswer) if verb in ISSUING else allowed), repr(error)
    assert not isinstance(error, BadAnswer) or error.body is not None
    delay = error.retry_after if isinstance(error, Transient) else None
    assert delay is None or timedelta(0) <= delay <= timedelta(days=1)
    error.message.encode()
    assert "\n" not in error.message
    assert len(error.message) < 2000
    told = "\n".join(_texts(error))
    for secret in hidden:
        assert secret not in told, f"a secret stands in {error!r}"


def check_result(verb: str, result: Any) -> None:
    """It is of the type that `rotator.ports` names, and all of it can be written down."""
    match verb:
        case "list_keys":
            assert isinstance(result, Sequence)
            for key in result:
                _check_key(key)
        case "issue" | "create" | "set_secret" | "provision" | "provision_again":
            _check_issued(result)
        case "deactivate" | "reactivate" | "delete":
            assert result is None
        case "check":
            assert isinstance(result, ProbeResult)
            _check_text(result.detail)
        case "evict":
            assert isinstance(result, int)
            assert result >= 0
        case "quotas":
            for quota in result:
                assert isinstance(quota, Quota)
                assert math.isfinite(quota.used)
                assert math.isfinite(quota.limit)
        case "credentials":
            for credential in result:
                assert isinstance(credential, Credential)
                _check_text(credential.name, least=1)
                _check_moment(credential.expires_at)
        case "list_integrations":
            for each in result:
                _check_text(each.id, least=1)
                _check_text(each.description)
        case _:
            raise AssertionError(f"nobody says what {verb} returns")


def longest(verb: str, provider: Any) -> float:
    """How many seconds a verb may take, by the provider's clock."""
    issue: float = provider.issue_deadline.total_seconds()
    # `provision` looks for what is there, may delete it, and then issues
    limits: Mapping[str, float] = {"provision": 2 * LOOK + 2 * issue, "provision_again": 2 * LOOK + 2 * issue}
    return SLACK + limits.get(verb, issue if verb in ISSUING else LOOK)


def _texts(error: BaseException) -> Iterable[str]:
    """All that a log or a person could see of an error and of those that led to it."""
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        yield from (str(each), repr(each), *(str(arg) for arg in each.args), *getattr(each, "__notes__", ()))
        yield from traceback.TracebackException.from_exception(each).format_exception_only()
        todo += [each.__cause__, None if each.__suppress_context__ else each.__context__]


def _check_key(key: Any) -> None:
    assert isinstance(key, UpstreamKey)
    _check_text(key.id, least=1)
    _check_text(key.name)
    _check_text(key.marker)
    _check_moment(key.issued_at)
    _check_moment(key.expires_at)
    assert key.problem is None or isinstance(key.problem, Reason)
    if key.identity is not None:
        _check_identity(key.identity)


def _check_issued(issued: Any) -> None:
    assert isinstance(issued, Issued)
    _check_identity(issued.identity)
    _check_text(issued.secret.reveal(), least=1)
    assert issued.secret.reveal().strip()
    _check_moment(issued.issued_at)
    _check_moment(issued.expires_at)


def _check_identity(identity: Identity) -> None:
    _check_text(identity.id, least=1)
    _check_text(identity.username, least=1)
    if identity.client_id is not None:
        _check_text(identity.client_id, least=1)


def _check_text(text: object, *, least: int = 0) -> None:
    assert isinstance(text, str)
    assert len(text) >= least
    assert not [each for each in text if "\ud800" <= each <= "\udfff"], "half a surrogate pair"


def _check_moment(moment: datetime | None) -> None:
    if moment is not None:
        assert moment.utcoffset() == timedelta(0)
