"""Consumers that somebody else restarts when told so by a signed POST."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Final

import httpx
import structlog

from rotator.consumers.exchange import Answer, exchange
from rotator.errors import Permanent, RotatorError, Stopping, Transient
from rotator.model import Order, Ticket
from rotator.ports import Clock
from rotator.reasons import Reason
from rotator.templates import render
from rotator.timestamps import retry_after

PAUSE: Final = (0.5, 8.0)  # seconds between two tries: the first, and the one at which doubling ends
LOOK: Final = timedelta(seconds=5)  # for the question whether anybody answers there

log = structlog.get_logger(__name__)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """The value of `Rotator-Signature`: HMAC-SHA256 over the timestamp, a dot and the body."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class WebhookConsumer:
    """Restarts by `POST url`; 2xx means *restarted*.

    The body is JSON: `key`, `version`, `id` (the same for each repetition of one restart) and `at` (ISO 8601).
    `Rotator-Timestamp` is in seconds since 1970, fresh for each try; `Idempotency-Key` is the order's id.

    Args:
        name: the name in the configuration.
        url: where to; a template that may hold `{key}`.
        secret: reads what the requests are signed with.
        client: one that follows no redirects.
        timeout: for all tries together.
        clock: the source of times.
    """

    def __init__(
        self,
        name: str,
        *,
        url: str,
        secret: Callable[[], str],
        client: httpx.Client,
        timeout: timedelta,
        clock: Clock,
        stop: threading.Event | None = None,
    ) -> None:
        self._name, self._url, self._secret, self._client = name, url, secret, client
        self._timeout, self._clock, self._stop = timeout, clock, stop or threading.Event()

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._name

    @property
    def kind(self) -> str:
        """`webhook`."""
        return "webhook"

    def preflight(self) -> None:
        """Read the secret, and ask with OPTIONS, which changes nothing: any answer shows that somebody is there.

        Raises: Permanent SECRET_REFERENCE; as `restart` where nobody answers.
        """
        self._secret()
        deadline = self._clock.monotonic() + min(LOOK, self._timeout).total_seconds()
        where = render(self._url, {"key": "-"})  # whichever key: who answers there is the same
        exchange(self._client, "OPTIONS", where, what=self._name, deadline=deadline, headers={})

    def restart(self, order: Order) -> Ticket:
        """Send the order until it is taken, or the time is over.

        Raises:
            Permanent: CONSUMER_FORBIDDEN (401, 403), CONSUMER_MISSING (404, 410), CONSUMER_RESTART_FAILED for every
                other answer that is neither 2xx nor 429 nor 5xx.
            Transient: CONSUMER_RESTART_FAILED, CONSUMER_TIMEOUT, with the delay that the last answer asked for.
        """
        began, deadline = self._clock.now(), self._clock.monotonic() + self._timeout.total_seconds()
        facts = {"key": order.key, "version": order.version, "id": order.id, "at": began.isoformat()}
        body, pause = json.dumps(facts).encode(), PAUSE[0]
        while (failed := self._try(order, body, deadline)) is not None:
            asked = failed.retry_after.total_seconds() if failed.retry_after is not None else 0.0
            wait = max(pause, asked)
            if self._clock.monotonic() + wait >= deadline:
                raise failed
            log.debug("webhook_again", consumer=self._name, seconds=wait, reason=failed.message)
            if self._stop.wait(wait):
                raise Stopping
            pause = min(2 * pause, PAUSE[1])
        return Ticket(consumer=self._name, restarted_at=began)

    def check(self, ticket: Ticket) -> None:
        """Nothing to see: the webhook's answer says nothing of the consumer later on."""

    def _try(self, order: Order, body: bytes, deadline: float) -> Transient | None:
        """One request; None where it was taken, else why another may be."""
        timestamp = str(int(self._clock.now().timestamp()))
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": order.id or f"{order.key}-{order.version}",
            "Rotator-Timestamp": timestamp,
            "Rotator-Signature": signature(self._secret(), timestamp, body),
        }
        try:
            where = render(self._url, {"key": order.key})
            answer = exchange(
                self._client, "POST", where, what=self._name, deadline=deadline, headers=headers, content=body
            )
        except Transient as exc:
            return exc
        failed = self._judged(answer)
        if failed is None or isinstance(failed, Transient):
            return failed
        raise failed

    def _judged(self, answer: Answer) -> RotatorError | None:
        """What a status means; None: taken."""
        status = answer.status
        text = f"{self._name}: the webhook answered {status}{_phrase(status)}"
        if 200 <= status < 300:
            return None
        if status == 429 or status >= 500:
            delay = retry_after(answer.headers.get("retry-after"), self._clock.now())
            return Transient(text, reason=Reason.CONSUMER_RESTART_FAILED, retry_after=delay)
        reason = {
            401: Reason.CONSUMER_FORBIDDEN,
            403: Reason.CONSUMER_FORBIDDEN,
            404: Reason.CONSUMER_MISSING,
            410: Reason.CONSUMER_MISSING,
        }.get(status, Reason.CONSUMER_RESTART_FAILED)
        return Permanent(text, reason=reason)


def _phrase(status: int) -> str:
    return f" ({HTTPStatus(status).phrase})" if status in set(HTTPStatus) else ""
