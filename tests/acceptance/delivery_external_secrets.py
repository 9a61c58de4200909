"""A double of External Secrets that takes its time, over the double of the API server."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from acceptance.delivery_records import note, write_copy
from contract.consumer_kube_double import KubeDouble
from rotator.sandbox.consumer import read_vault
from rotator.sandbox.vault import VaultServer

LOOK = 0.1  # seconds


class LateExternalSecrets:
    """The controller: it fetches an ExternalSecret `delay` seconds after its annotations were changed.

    In the place of the Secret it writes a file, the copy, and notes `handed`; what it has at its start is fetched at
    once. A context manager.
    """

    def __init__(self, double: KubeDouble, vault: VaultServer, delay: float, records: Path) -> None:
        self._double, self._vault, self._delay, self._records = double, vault, delay, records
        self._copies: dict[tuple[str, str, str], tuple[str, Path]] = {}
        self._fetched: dict[tuple[str, str, str], str] = {}
        self._due: dict[tuple[str, str, str], tuple[str, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="external-secrets")

    def add(self, namespace: str, name: str, path: str, copy: Path) -> None:
        """An ExternalSecret of this name, fetched once from this path in Vault. Before it is started."""
        where = ("externalsecrets", namespace, name)
        with self._double.lock:
            self._double.state.create(where, {"metadata": {}, "spec": {"refreshInterval": "1h"}})
            self._double.state.frozen.add(where)  # its controller is this one
        self._copies[where] = (path, copy)
        self._fetch(where)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)

    def _run(self) -> None:
        while not self._stop.wait(LOOK):
            for where in self._copies:
                with self._double.lock:
                    annotations = self._annotations(where)
                if annotations == self._fetched[where]:
                    continue
                if self._due.get(where, ("", 0.0))[0] != annotations:
                    self._due[where] = (annotations, time.monotonic() + self._delay)
                if time.monotonic() >= self._due[where][1]:
                    self._fetch(where)

    def _fetch(self, where: tuple[str, str, str]) -> None:
        path, copy = self._copies[where]
        with self._double.lock:
            annotations = self._annotations(where)
        held = read_vault(self._vault.url, self._vault.root_token, path)
        note(self._records, "handed", path, held)
        write_copy(copy, held)
        status: dict[str, Any] = {
            "refreshTime": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "conditions": [{"type": "Ready", "status": "True", "reason": "SecretSynced"}],
            "syncedResourceVersion": f"1-{annotations}",
        }
        with self._double.lock:
            self._double.state.objects[where]["status"] = status
        self._fetched[where] = annotations

    def _annotations(self, where: tuple[str, str, str]) -> str:
        return str(self._double.state.objects[where]["metadata"].get("annotations", {}))
