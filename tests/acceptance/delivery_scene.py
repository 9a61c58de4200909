"""Readers of copies, what copies for them, and the configuration that says so."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from acceptance.daemon_process import until
from acceptance.daemon_site import Site, SiteKey
from acceptance.delivery_records import Record, records
from contract.consumer_kube_double import ADMIN, KubeDouble, kubeconfig
from rotator.sandbox.processes import end, spawn, tail
from rotator.sandbox.supervisor import Supervisor

HERE, NAMESPACE = Path(__file__).parent, "iot"
# The programs of this folder are run as files, and import one another as the tests do.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent)}


class Copies:
    """A folder with copies and records, and the processes around it; all has ended when `stack` has."""

    def __init__(self, site: Site, stack: ExitStack) -> None:
        self.site, self._stack = site, stack
        self.folder = site.folder / "copies"
        self.folder.mkdir()
        self.records_file = self.folder / "records"
        self.supervisor = Supervisor(self.folder, delay=0.1)
        stack.callback(self.supervisor.stop)
        observer = site.secret("observer", site.broker.observer_password)
        self.observer = {"username": site.broker.observer_username, "password": observer}

    def copy(self, name: str) -> Path:
        """The copy that a reader reads."""
        return self.folder / f"{name}.json"

    def records(self, what: str, name: str, **fields: Any) -> list[Record]:
        """What was noted, the oldest first."""
        return records(self.records_file, what, name, **fields)

    def copier(self, paths: dict[str, str], delay: float) -> None:
        """Start a process that copies: name of the reader → path; returns when the first version is handed on."""
        token = self.site.secret("copier.token", self.site.vault.root_token)["file"]
        argv = [sys.executable, str(HERE / "delivery_copier.py"), "--delay", str(delay), "--token-file", token]
        argv += ["--records", str(self.records_file), *(f"{path}={self.copy(name)}" for name, path in paths.items())]
        log = self.folder / "copier.log"
        process = spawn(argv, log, environment={**ENVIRONMENT, "VAULT_ADDR": self.site.vault.url})
        self._stack.callback(end, process)
        until(lambda: self._copied(paths, process, log), "the first versions are copied")

    def reader(self, name: str, *options: str) -> None:
        """Start a reader of its copy; returns when the broker has let it in."""
        argv = [sys.executable, str(HERE / "delivery_reader.py"), name, str(self.copy(name)), *options]
        argv += ["--broker", f"{self.site.broker.host}:{self.site.broker.port}", "--records", str(self.records_file)]
        self.supervisor.add(name, argv, ENVIRONMENT)
        until(lambda: self.records("connected", name), f"{name} is let in")

    def restarted(self, name: str, **settings: Any) -> None:
        """A consumer in the configuration: restarted by a command that notes it, proven at the broker."""
        argv = [sys.executable, str(HERE / "delivery_restart.py"), name, str(self.copy(name))]
        argv += [str(self.records_file), str(self.folder)]
        usual = {"confirm": {"broker": {**self.observer, "client_id": name}}, "timeout": "30s", "settle": "1s"}
        environment = {"PYTHONPATH": ENVIRONMENT["PYTHONPATH"]}
        self.site.add_consumer(name, *argv, env=environment, **{**usual, **settings})

    def _copied(self, paths: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> bool:
        assert process.poll() is None, f"the copier ended:\n{tail(log)}"
        return all(self.copy(name).exists() for name in paths)


def open_cluster(site: Site, stack: ExitStack) -> tuple[KubeDouble, str]:
    """A double of the API server, and the kubeconfig of its administrator."""
    double = stack.enter_context(KubeDouble())
    return double, kubeconfig(site.folder / "kubeconfig", double.url, {"token": ADMIN})


def key_of(site: Site, name: str, **settings: Any) -> SiteKey:
    """A key of the usual kind, rotated on request alone."""
    return site.add_key(name, consumers=[name], **settings)
