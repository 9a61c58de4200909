"""How a provider is made from its settings: what a kind of provider is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import httpx

from rotator.config_base import HttpPart, ProviderPart
from rotator.ports import Clock, OnRequest, Provider, Reveal
from rotator.providers.http import Peer
from rotator.providers.pace import Pace
from rotator.secret_refs import SecretRef

# An issue call may need a login, the call itself, and after a 401 both once more; `timeout` is what one may take.
REQUESTS_IN_A_CALL: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a provider is built with.

    Args:
        name: the provider's name in the configuration.
        clock: wall clock and monotonic clock.
        on_request: told of each request.
        reveal: a reference to a secret → what reads it when it is needed.
        client: makes the HTTP client that the settings ask for (TLS, proxy); closed with the program.
    """

    name: str
    clock: Clock
    on_request: OnRequest
    reveal: Callable[[SecretRef], Reveal]
    client: Callable[[HttpPart], httpx.Client]

    def pace(self, settings: HttpPart) -> Pace:
        """How fast this platform may be asked."""
        limit = settings.rate_limit
        if limit is None:
            return Pace(self.name, clock=self.clock, concurrency=settings.concurrency)
        return Pace(
            self.name,
            clock=self.clock,
            requests=limit.requests,
            per=limit.per,
            burst=limit.burst,
            concurrency=settings.concurrency,
        )

    def peer(self, settings: HttpPart) -> Peer:
        """What sends requests as the settings say."""
        return Peer(
            self.name,
            client=self.client(settings),
            clock=self.clock,
            on_request=self.on_request,
            pace=self.pace(settings),
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of provider: the section of the configuration that describes one, and what makes it from that.

    A package of somebody else's offers its kinds through the entry point group `rotator.providers`: the entry's name is
    the `kind`, and its object is a `Kind`.

    Args:
        settings: a frozen section with a field `kind`, which is a Literal of the kind's name.
        build: takes a `Site` and such a section.
        lists_connections: what it makes is a `ports.Connected`.
    """

    settings: type[ProviderPart]
    build: Callable[[Site, Any], Provider]
    lists_connections: bool = False


def issue_deadline(settings: HttpPart) -> timedelta:
    """The total time that one issue call may take, login included."""
    return settings.timeout * REQUESTS_IN_A_CALL
