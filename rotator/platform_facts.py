"""What platforms say of themselves beside their keys: their own tokens that end, and their quotas. For the metrics."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import structlog

from rotator.errors import RotatorError
from rotator.model import Credential, Quota
from rotator.ports import Metered, Provider, Watched

log = structlog.get_logger(__name__)


class PlatformFacts:
    """The last answers of each provider that has any. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._credentials: dict[str, tuple[Credential, ...]] = {}
        self._quotas: dict[str, tuple[Quota, ...]] = {}

    def ask(self, provider: Provider) -> None:
        """Look anew. What can't be had now stays as it was, and is logged: no rotation hangs on it."""
        try:
            if isinstance(provider, Watched):
                credentials = tuple(provider.credentials())
                with self._lock:
                    self._credentials[provider.name] = credentials
            if isinstance(provider, Metered):
                quotas = tuple(provider.quotas())
                with self._lock:
                    self._quotas[provider.name] = quotas
        except RotatorError as exc:
            log.warning("platform_facts", provider=provider.name, reason=exc.reason.value, error=exc.message)

    def note(self, name: str, credentials: Sequence[Credential]) -> None:
        """What somebody who is no platform, such as the store, hangs on."""
        with self._lock:
            self._credentials[name] = tuple(credentials)

    @property
    def credentials(self) -> Mapping[str, Sequence[Credential]]:
        """By provider."""
        with self._lock:
            return dict(self._credentials)

    @property
    def quotas(self) -> Mapping[str, Sequence[Quota]]:
        """By provider."""
        with self._lock:
            return dict(self._quotas)
