"""A full quota and a throttle are told apart by their words."""

from __future__ import annotations

import pytest

from rotator.errors import Permanent, Transient, UnknownOutcome
from rotator.providers.quota_words import names_quota, refusal
from rotator.providers.rest import Reply
from rotator.reasons import Reason


def reply(status: int, value: object) -> Reply:
    """An answer with this JSON."""
    return Reply(what="x: create", status=status, body=b"{}", value=value, message="told")


@pytest.mark.parametrize(
    "value",
    [
        {"error": {"code": "DEVICE_LIMIT_REACHED", "message": "no"}},
        {"error": {"code": "QUOTA_EXCEEDED"}},
        {"detail": "Maximum number of devices reached"},
        {"detail": {"code": "max_devices", "message": "upgrade"}},
        {"detail": [{"msg": "Your request exceeds the device limit"}]},
        {"detail": "max_subscribers reached (100/100)"},
        {"message": "too many devices"},
    ],
)
def test_these_speak_of_a_quota(value: object) -> None:
    """By code or by words, in each shape; with each status that platforms use for it, and no other."""
    for status in (402, 403, 409, 429):
        assert names_quota(reply(status, value))
        error = refusal(reply(status, value))
        assert (Permanent, Reason.PROVIDER_QUOTA, b"{}") == (type(error), error.reason, error.body)
    for status in (200, 400, 404, 422, 500):
        assert not names_quota(reply(status, value))


@pytest.mark.parametrize(
    "value",
    [
        {"error": {"code": "RATE_LIMIT_EXCEEDED", "message": "Too many requests"}},
        {"detail": "Rate limit exceeded"},
        {"detail": "API limit exceeded: 1000 requests/minute"},
        {"message": "Request quota exceeded, try again in 30 seconds"},
        {"error": "throttled", "message": "limit"},
        {"message": "slow down"},
        None,
        [],
    ],
)
def test_these_speak_of_requests_that_came_too_fast(value: object) -> None:
    """They go by themselves."""
    assert not names_quota(reply(429, value))
    assert Transient is type(refusal(reply(429, value)))


def test_what_is_neither_means_what_its_status_means() -> None:
    """A server's own failure may have had its effect."""
    assert UnknownOutcome is type(refusal(reply(503, {"message": "limit"})))
