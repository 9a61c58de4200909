"""Copied into a folder of its own as `sitecustomize.py`, this runs inside the daemon and its commands.

It notes every token and body that comes by in the file `noted`, and raises from inside hvac's and httpx's libraries
while `crash` is there: with all of that in the frames' variables, and with nothing of it in the text.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import requests
from requests.adapters import HTTPAdapter

FOLDER = Path(os.environ["NOWHERE_FOLDER"])
# What stands under these names in an answer of Vault is secret; `token` and `password` are the managed ones, as well.
NAMES = frozenset({"client_token", "secret_id", "token", "password"})
_lock = threading.Lock()
_noted: set[str] = set()


def note(name: str, value: object) -> None:
    """Append it to the list, once."""
    if not isinstance(value, str) or len(value) < 8:
        return
    with _lock:
        if value not in _noted:
            _noted.add(value)
            with (FOLDER / "noted").open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, value]) + "\n")


def named(value: Any) -> Iterator[tuple[str, object]]:
    """Whatever stands under a telling name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in NAMES:
                yield name, inner
            yield from named(inner)


def crash_wanted(where: str) -> bool:
    """Whether to raise now."""
    return (FOLDER / f"crash-{where}").exists()


def watch_requests() -> None:
    """Stand where hvac's session hands a request over."""
    real = HTTPAdapter.send

    def send(adapter: HTTPAdapter, request: requests.PreparedRequest, **more: Any) -> requests.Response:
        token, body = request.headers.get("X-Vault-Token"), request.body
        note("a Vault token that was sent", token)
        response = real(adapter, request, **more)
        content = response.content
        try:
            for name, value in named(json.loads(content)):
                note(f"{name} of an answer of Vault", value)
        except ValueError:
            pass
        if crash_wanted("requests"):
            raise KeyError(f"crash-requests: {len(token or '')} of a token, {body is not None}, {len(content)} bytes")
        return response

    HTTPAdapter.send = send  # type: ignore[assignment,method-assign]


def watch_httpx() -> None:
    """Stand where a provider's client hands a request over."""
    real = httpx.Client.send

    def send(client: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        authorization, body = request.headers.get("Authorization", ""), request.read()
        note("a token that a provider was shown", authorization.rpartition(" ")[2])
        if authorization and crash_wanted("httpx"):
            raise KeyError(f"crash-httpx: {len(authorization)} characters of a token, {len(body)} bytes out")
        return real(client, request, **more)

    httpx.Client.send = send  # type: ignore[method-assign,assignment]


watch_requests()
watch_httpx()
