"""Providers made as the program makes them: from a section of the configuration, through the registry."""

from __future__ import annotations

from collections.abc import Mapping

from rotator.clock import SystemClock
from rotator.config_base import HttpPart
from rotator.model import RequestDone
from rotator.ports import Clock, OnRequest, Provider, Reveal
from rotator.providers import Site, kinds, make_client, make_tls
from rotator.secret_refs import EnvRef, SecretRef


def ignore(_: RequestDone) -> None:
    """Nobody asks for the requests."""


def built(
    kind: str,
    name: str,
    section: Mapping[str, object],
    *,
    secrets: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    on_request: OnRequest = ignore,
) -> Provider:
    """The provider of `section`; close it afterwards, which closes its client.

    Args:
        secrets: what `{env: NAME}` stands for.
    """
    known = secrets or {}

    def reveal(ref: SecretRef) -> Reveal:
        assert isinstance(ref, EnvRef), "a test names its secrets by {env: …}"
        return lambda: known[ref.env]

    def client(wanted: HttpPart):  # type: ignore[no-untyped-def]  # httpx stays in the providers' rooms
        tls = make_tls(ca_file=wanted.ca_file, client_cert=wanted.client_cert, client_key=wanted.client_key)
        return make_client(verify=tls, proxy=wanted.proxy)

    site = Site(name=name, clock=clock or SystemClock(), on_request=on_request, reveal=reveal, client=client)
    wanted = kinds()[kind]
    return wanted.build(site, wanted.settings(**{"kind": kind, **section}))  # type: ignore[arg-type]
