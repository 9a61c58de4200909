"""Losant's REST API, as far as the access keys of one application go: the requests, the list, and what a 404 means.

Errors are `{"type", "message"}`. A Losant application token (`Authorization: Bearer`) needs no login.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

from rotator.errors import Transient
from rotator.model import Secret, UpstreamKey
from rotator.ports import Reveal
from rotator.providers.http import Peer
from rotator.providers.losant_keys import AccessKey, upstream
from rotator.providers.rest import LOOK_DEADLINE, Fixed, Reply, Rest
from rotator.reasons import Reason

PAGE: Final = 100  # keys in one answer, the most that Losant gives
LISTINGS: Final = 3  # times that a list is read which changes while it is read


class LosantApi:
    """Asks for the keys of one application. Thread safe.

    Args:
        peer: sends the requests.
        url: the API's base, such as `https://api.losant.com`.
        application: the application's id.
        token: an API token with the scopes `applicationKeys.*` and `applicationKey.*`, read for each request.
    """

    def __init__(self, peer: Peer, *, url: str, application: str, token: Reveal) -> None:
        self._name = peer.name
        base = url.rstrip("/")
        keys = f"{base}/applications/{quote(application, safe='')}/keys"
        self._keys = Rest(peer, url=keys, auth=Fixed(peer.name, token))
        self._devices = Rest(peer, url=base, auth=None)

    def deadline(self, total: timedelta = LOOK_DEADLINE) -> float:
        """When a call that begins now must have ended, in monotonic seconds."""
        return self._keys.deadline(total)

    def ask(self, method: str, path: str = "", **more: Any) -> Reply:
        """`Rest.ask` about what follows `…/keys` in the URL."""
        return self._keys.ask(method, path, **more)

    def authenticate_device(self, device: str, username: str, secret: Secret) -> Reply:
        """`POST /auth/device`, which connects no device and ends no session.

        Raises: Transient.
        """
        return self._devices.ask(
            "POST",
            "/auth/device",
            operation="check",
            body={"deviceId": device, "key": username, "secret": secret.reveal()},
            deadline=self.deadline(),
            secrets=[secret.reveal()],
        )

    def list_keys(self) -> Sequence[UpstreamKey]:
        """All access keys of the application, oldest first.

        Raises:
            Transient, Permanent: no list, or not the whole of it; PROVIDER_ANSWER_UNREADABLE where it isn't what Losant
                documents, PROVIDER_UNAVAILABLE where it did not hold still.
        """
        deadline = self.deadline()
        for _ in range(LISTINGS):
            keys = self._listed(deadline)
            if keys is not None:
                return keys
        text = f"{self._name}: list_keys: keys were deleted while they were listed"
        raise Transient(text, reason=Reason.PROVIDER_UNAVAILABLE)

    def _listed(self, deadline: float) -> Sequence[UpstreamKey] | None:
        """All pages; None where a key was deleted meanwhile, which moved others to a page that was read already."""
        found: dict[str, UpstreamKey] = {}
        total: int | None = None
        number = 0
        while True:
            # oldest first, so that a key made meanwhile comes last and moves no other
            order = {"sortField": "creationDate", "sortDirection": "asc"}
            params = {"page": str(number), "perPage": str(PAGE), **order}
            reply = self.ask("GET", operation="list_keys", params=params, deadline=deadline)
            page, now_total = _page(reply)
            before = len(found)
            found.update((key.id, key) for key in page)
            if total is not None and now_total is not None and now_total < total:
                return None
            total, number = now_total, number + 1
            if (len(page) < PAGE) if total is None else (len(found) >= total):
                return list(found.values())
            if len(found) == before:
                raise reply.unreadable(f"the list ends after {before} of {total} keys")


def shown(reply: Reply) -> AccessKey | None:
    """The object that a successful answer holds; None where it is no success, or holds none."""
    value: Mapping[str, object] | None = reply.value if reply.ok and isinstance(reply.value, dict) else None
    return value


def absent(reply: Reply) -> bool:
    """The platform itself says that there is no such thing; a gateway's 404 says nothing of a key."""
    return reply.status == 404 and isinstance(reply.fields.get("type"), str)


def _page(reply: Reply) -> tuple[Sequence[UpstreamKey], int | None]:
    answer = shown(reply)
    if answer is None:
        raise reply.error(changes=False)
    items, total = answer.get("items"), answer.get("totalCount")
    if not isinstance(items, list):
        raise reply.unreadable("the answer holds no items")
    page: list[UpstreamKey] = []
    for item in items:
        key = upstream(item) if isinstance(item, dict) else None
        if key is None:
            raise reply.unreadable("an entry has no id or no key")
        page.append(key)
    return page, total if isinstance(total, int) and not isinstance(total, bool) else None
