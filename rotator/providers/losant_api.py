"""Losant's REST endpoint for the access keys of one application: one request, one `Reply`, one meaning for each status.

Errors are `{"type", "message"}`. A Losant application token (`Authorization: Bearer`) needs no login.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import quote

import httpx

from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.ports import Clock, OnRequest, Reveal
from rotator.providers.graphql import harmless
from rotator.providers.http import HttpAnswer, Peer
from rotator.providers.pace import Pace
from rotator.reasons import Reason
from rotator.timestamps import retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer, whatever its status, and the raw body for the journal."""

    what: str  # "provider: operation", the start of each message
    status: int
    body: bytes = field(repr=False)
    value: Mapping[str, object] | None = field(repr=False)  # None where the body is no JSON object
    message: str = ""  # the platform's own words, fit to be logged
    retry_after: timedelta | None = None

    @property
    def ok(self) -> bool:
        """A status of success, with an object."""
        return 200 <= self.status < 300 and self.value is not None

    @property
    def absent(self) -> bool:
        """The platform itself says that there is no such thing; a gateway's 404 says nothing of a key."""
        return self.status == 404 and self.value is not None and isinstance(self.value.get("type"), str)

    def error(self, *, changes: bool) -> RotatorError:
        """What an answer that can't be used means for a call that `changes` something or not.

        | status | for a call that changes something | else |
        | --- | --- | --- |
        | 429 | Transient PROVIDER_RATE_LIMITED: refused at the door | the same |
        | 401, 403 | Permanent PROVIDER_AUTH: refused at the door | the same |
        | 408, 5xx | UnknownOutcome: a gateway may speak for a server that did it | Transient PROVIDER_UNAVAILABLE |
        | 2xx | UnknownOutcome: not the document's shape | Transient PROVIDER_ANSWER_UNREADABLE |
        | other | Permanent PROVIDER_REFUSED | the same |

        An error of a call that changes something carries the answer, for the journal to seal.
        """
        text = f"{self.what}: HTTP {self.status}" + (f": {self.message}" if self.message else "")
        error: RotatorError
        match self.status:
            case 429:
                error = Transient(text, reason=Reason.PROVIDER_RATE_LIMITED, retry_after=self.retry_after)
            case 401 | 403:
                error = Permanent(text, reason=Reason.PROVIDER_AUTH)
            case status if status == 408 or status >= 500 or status < 300:
                error = UnknownOutcome(text) if changes else self._looked(text)
            case _:
                error = Permanent(text, reason=Reason.PROVIDER_REFUSED)
        error.body = self.body if changes else None
        return error

    def unreadable(self, problem: str) -> Transient:
        """For an answer to a look that is not what Losant documents."""
        return Transient(f"{self.what}: {problem}", reason=Reason.PROVIDER_ANSWER_UNREADABLE)

    def _looked(self, text: str) -> Transient:
        if self.status < 300:
            return self.unreadable(f"HTTP {self.status} with a body that is not the document's")
        return Transient(text, reason=Reason.PROVIDER_UNAVAILABLE, retry_after=self.retry_after)


class LosantApi:
    """Asks for the keys of one application. Thread safe.

    Args:
        name: the provider's name in the configuration.
        client, clock, on_request: as `Peer` takes them.
        url: the API's base, such as `https://api.losant.com`.
        application: the application's id.
        token: an API token with the scopes `applicationKeys.*` and `applicationKey.*`, read for each request.
    """

    def __init__(
        self,
        name: str,
        *,
        client: httpx.Client,
        clock: Clock,
        on_request: OnRequest,
        url: str,
        application: str,
        token: Reveal,
        pace: Pace | None = None,
    ) -> None:
        self.name = name
        self._clock = clock
        self._token = token
        self._keys = f"{url.rstrip('/')}/applications/{quote(application, safe='')}/keys"
        self._peer = Peer(name, client=client, clock=clock, on_request=on_request, pace=pace)

    def ask(
        self,
        method: str,
        path: str = "",
        *,
        operation: str,
        deadline: float,
        body: Mapping[str, object] | None = None,
        changes: bool = False,
    ) -> Reply:
        """Send one request and return its answer, whatever the status.

        Args:
            path: what follows `…/keys` in the URL.
            operation: the metric's label.
            deadline: on the clock's monotonic scale, in seconds.
            body: sent as JSON.
            changes: whether the call changes what can't be done twice.

        Raises:
            Permanent: PROVIDER_AUTH, nothing was sent, since the token can't stand in a header.
            Transient, UnknownOutcome: no whole answer came; see `Peer.request`.
        """
        what, token = f"{self.name}: {operation}", self._token()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise Permanent(f"{what}: the API token can't stand in a header", reason=Reason.PROVIDER_AUTH)

        def read(answer: HttpAnswer) -> tuple[str, Reply]:
            return str(answer.status), self._read(answer, what, token)

        return self._peer.request(
            method,
            self._keys + path,
            operation=operation,
            json=body,
            headers={"Accept": "application/json", "Authorization": f"Bearer {token}"},
            deadline=deadline,
            changes=changes,
            read=read,
        )

    def _read(self, answer: HttpAnswer, what: str, token: str) -> Reply:
        try:
            payload = json.loads(answer.body)
        except (ValueError, RecursionError):
            payload = None
        value = payload if isinstance(payload, dict) else None
        told = [value.get(name) for name in ("type", "message")] if value is not None and answer.status >= 300 else []
        return Reply(
            what=what,
            status=answer.status,
            body=answer.body,
            value=value,
            message=harmless(": ".join(text for text in told if isinstance(text, str)), secrets=[token]),
            retry_after=retry_after(answer.headers.get("retry-after"), self._clock.now()),
        )
