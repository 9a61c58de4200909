"""A client of the daemon's own API, for the commands: over its Unix socket, or over a URL with the admin token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from rotator.errors import Permanent, RotatorError, Transient
from rotator.journal.sqlite import database_path
from rotator.model import Secret
from rotator.reasons import Reason
from rotator.settings import Settings

_POLL_SECONDS = 0.2


class NoDaemon(RotatorError):
    """Nothing answers where the daemon should."""


class Client:
    """Asks a running daemon."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    @classmethod
    def over_url(cls, url: str, token: Secret) -> Self:
        """A client of a daemon that listens on TCP."""
        headers = {"authorization": f"Bearer {token.reveal()}"} if token else {}
        return cls(httpx.Client(base_url=url, headers=headers, timeout=60))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()

    def ping(self) -> None:
        """Raise NoDaemon where nothing answers."""
        try:
            self._http.get("/livez")
        except httpx.TransportError as exc:
            raise NoDaemon(f"no daemon answers: {exc}", reason=Reason.UNFORESEEN) from exc

    def keys(self) -> list[dict[str, Any]]:
        """All keys."""
        found: list[dict[str, Any]] = self._get("/api/keys")["keys"]
        return found

    def key(self, name: str) -> dict[str, Any]:
        """One key."""
        return self._get(f"/api/keys/{name}")

    def rotations(self, key: str | None = None) -> list[dict[str, Any]]:
        """The last rotations."""
        found: list[dict[str, Any]] = self._get("/api/rotations", {"key": key} if key else {})["rotations"]
        return found

    def checks(self) -> dict[str, Any]:
        """What /readyz says of each peer and of the journal: `ok`, or `reason`, `detail` and `advice`."""
        found: dict[str, Any] = self._answer("GET", "/readyz", unready=True)["checks"]
        return found

    def post(self, key: str, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have the daemon do something to a key."""
        return self._answer("POST", f"/api/keys/{key}/{action}", json=dict(body))

    def ask_and_wait(self, key: str, action: str, body: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        """Ask for a rotation (`rotate`, `rollback`) and wait until it has ended, is held back, only waits for the old
        key's end, or `timeout` seconds are over.

        Raises: Transient STOPPING, JOURNAL_UNWRITABLE where it goes on later, by itself.
        """
        asked = self.post(key, action, body)
        previous = asked["previous"]["id"] if asked["previous"] else None
        was_open = asked["previous"] is not None and asked["previous"]["finished_at"] is None
        deadline = time.monotonic() + timeout
        latest: dict[str, Any] = {}
        while time.monotonic() < deadline:
            try:
                view = self.key(key)  # first: once the request is taken up, what `rotations` says is no longer old
                latest = next(iter(self.rotations(key)), {})
                journal = self.checks().get("journal", {"ok": True})
            except NoDaemon as exc:
                words = "the daemon stopped; the request is in its journal and goes on with its next start"
                raise Transient(words, reason=Reason.STOPPING) from exc
            mine = latest and (latest["id"] != previous or (was_open and not view["requested"]))
            if mine and latest["finished_at"] is not None:
                return latest
            if mine and not view["requested"] and latest["resting"]:
                return latest
            taken_up = mine and not view["requested"]
            if taken_up and latest["step"] == "preflight" and latest["reason"] and latest["finished_at"] is None:
                return latest  # nothing was begun; the daemon goes on trying, and waiting here would not help it
            if not journal["ok"]:
                words = f"{key} is asked for, and does not go on: {journal['detail']}"
                raise Transient(words, reason=Reason.JOURNAL_UNWRITABLE)
            if view.get("held") and view["requested"] and view["held"]["reason"] != "not_due":
                return {"held": view["held"]}
            time.sleep(_POLL_SECONDS)
        return latest

    def _get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self._answer("GET", path, params=dict(params or {}))

    def _answer(self, method: str, path: str, *, unready: bool = False, **request: Any) -> dict[str, Any]:
        """The JSON of an answer; `unready`: also where that is /readyz's 503."""
        try:
            response = self._http.request(method, path, **request)
        except httpx.TransportError as exc:
            raise NoDaemon(f"no daemon answers: {exc}", reason=Reason.UNFORESEEN) from exc
        try:
            body: dict[str, Any] = response.json()
        except ValueError as exc:
            raise Permanent(f"the daemon answered {response.status_code} without JSON") from exc
        if response.is_success or (unready and "checks" in body):
            return body
        known = {reason.value for reason in Reason}
        reason = Reason(body["error"]) if body.get("error") in known else Reason.UNFORESEEN
        kind = Transient if response.status_code == 503 else Permanent
        raise kind(str(body.get("message") or body.get("error") or response.reason_phrase), reason=reason)


@contextmanager
def find_daemon(settings: Settings) -> Iterator[Client]:
    """The daemon behind this configuration's Unix socket.

    Raises: NoDaemon where none listens.
    """
    path = database_path(settings.state.url).with_name("rotator.sock")
    if not path.exists():
        raise NoDaemon("no daemon is running here", reason=Reason.UNFORESEEN)
    transport = httpx.HTTPTransport(uds=str(path))
    with Client(httpx.Client(transport=transport, base_url="http://rotator", timeout=60)) as client:
        client.ping()  # a socket that a killed daemon left behind answers nothing
        yield client
