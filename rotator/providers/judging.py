"""What an answer means that a platform gives with a status of success, and that is none by the configuration. Pure."""

from __future__ import annotations

from collections.abc import Collection

from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.providers.expressions import Unfit, excess
from rotator.providers.generic_reading import Asked
from rotator.providers.generic_settings import Absent, Result, Step
from rotator.providers.graphql import GraphqlError, Meaning
from rotator.providers.rest import Reply
from rotator.reasons import Reason


def judged(
    reply: Reply,
    value: object,
    step: Step,
    error: GraphqlError | None,
    *,
    changes: bool,
    absent_in: Collection[int] = (404,),
) -> Asked:
    """One answer and its meaning.

    Args:
        value: what expressions look into; None where the answer is no JSON.
        error: what the platform itself says went wrong.
        changes: whether the call changes what can't be done twice. What may have been done is UnknownOutcome.
        absent_in: the statuses in which `absent` is looked for, unless it names its own.
    """
    if problem := excess(value):
        # what is so large is not looked into, and says nothing: not even that it was refused
        return Asked(reply=reply, value=None, failure=_unclear(reply, problem, changes=changes))
    try:
        absent = step.absent is not None and _says_absent(reply, value, step.absent, absent_in)
        failure = _failure(reply, value, step, error, changes=changes)
    except Unfit as exc:
        return Asked(reply=reply, value=value, failure=_unclear(reply, str(exc), changes=changes))
    return Asked(reply=reply, value=value, absent=absent, failure=failure)


def refused(reply: Reply, error: GraphqlError, *, changes: bool) -> RotatorError:
    """What to raise for what the platform says went wrong; it carries the answer of a call that `changes`."""
    text = f"{reply.what}: {error.message}"
    found: RotatorError
    match error.meaning:
        case Meaning.UNSURE if changes:
            found = UnknownOutcome(text)
        case Meaning.UNSURE:
            found = Transient(text, reason=Reason.PROVIDER_UNAVAILABLE, retry_after=reply.retry_after)
        case Meaning.AUTH:
            found = Permanent(text, reason=Reason.PROVIDER_AUTH)
        case Meaning.RATE_LIMITED:
            found = Transient(text, reason=Reason.PROVIDER_RATE_LIMITED, retry_after=reply.retry_after)
        case Meaning.KEY_UNKNOWN:
            found = Permanent(text, reason=Reason.KEY_UNKNOWN)
        case Meaning.REFUSED:
            found = Permanent(text, reason=Reason.PROVIDER_REFUSED)
    found.body = reply.body if changes else None
    return found


def _says_absent(reply: Reply, value: object, absent: Absent, usual: Collection[int]) -> bool:
    statuses = usual if absent.status is None else absent.status
    return reply.status in statuses and (absent.when is None or absent.when.holds(value))


def _failure(
    reply: Reply, value: object, step: Step, error: GraphqlError | None, *, changes: bool
) -> RotatorError | None:
    wanted = step.success.status
    if not (reply.ok if wanted is None else reply.status in wanted):
        return reply.error(changes=changes)
    if step.success.when is not None and not step.success.when.holds(value):
        return reply.error(changes=changes) if error is None else refused(reply, error, changes=changes)
    if value is None and (step.result != Result() or _is_no_answer(reply, step)):
        return reply.error(changes=changes)
    return None


def _is_no_answer(reply: Reply, step: Step) -> bool:
    """Whether something else than the platform spoke, such as a proxy's page, or only half of it arrived."""
    return not step.success.any_body and reply.body.strip() not in (b"", b"null")


def _unclear(reply: Reply, problem: str, *, changes: bool) -> RotatorError:
    if not reply.ok:
        return reply.error(changes=changes)
    if not changes:
        return reply.unreadable(problem)
    error = UnknownOutcome(f"{reply.what}: {problem}")
    error.body = reply.body
    return error
