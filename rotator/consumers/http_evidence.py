"""Proof over HTTP: a URL of the consumer's that answers which version it runs on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import httpx

from rotator.consumers.asking import Ask
from rotator.consumers.exchange import exchange
from rotator.consumers.versions import version_in
from rotator.errors import Permanent, Transient
from rotator.model import Order
from rotator.reasons import Reason
from rotator.templates import render

LIMIT: Final = 5.0  # seconds for one question


def ask_http(
    name: str, *, client: httpx.Client, url: str, field: str, headers: Callable[[], Mapping[str, str]], order: Order
) -> Ask:
    """The question whether `url` answers with the order's version; an older or a newer one is "not yet".

    Args:
        name: the consumer's.
        url: a template that may hold `{key}`.
        headers: reads what is sent along, secrets among them, for each question.
    """
    where = render(url, {"key": order.key})

    def ask() -> str | None:
        deadline = time.monotonic() + LIMIT
        answer = exchange(client, "GET", where, what=name, deadline=deadline, headers=headers())
        if answer.status in (401, 403, 404, 410):
            text = f"{name}: the URL of its proof answered {answer.status}"
            forbidden = answer.status in (401, 403)
            reason = Reason.CONSUMER_FORBIDDEN if forbidden else Reason.CONSUMER_MISSING
            raise Permanent(text, reason=reason)
        if answer.status != 200:
            raise Transient(f"{name}: answered {answer.status}", reason=Reason.CONSUMER_NOT_CONFIRMED)
        found = version_in(answer.body, field)
        if found is None:
            raise Permanent(f"{name}: its answer names no version", reason=Reason.CONSUMER_NOT_CONFIRMED)
        return f"answered version {found}" if found == order.version else None

    return ask
