"""The files that a demo's daemon and consumers are given: configuration, policies, secrets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROTATOR_POLICY = """\
# Its keys' secrets, and nothing else.
path "secret/data/mqtt/*" { capabilities = ["create", "read", "update"] }
path "secret/metadata/mqtt/*" { capabilities = ["read"] }
# To see, before anything is issued, that it could be stored.
path "sys/internal/ui/mounts/secret" { capabilities = ["read"] }
path "sys/internal/ui/mounts/secret/*" { capabilities = ["read"] }
path "sys/capabilities-self" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
"""
CONSUMER_POLICY = 'path "secret/data/mqtt/*" { capabilities = ["read"] }\n'


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoKey:
    """One key of the demo."""

    name: str
    id: str
    integration: str

    @property
    def path(self) -> str:
        """Its secret's path below `secret/`."""
        return f"mqtt/{self.name}"

    @property
    def filter(self) -> str:
        """The topic filter of its events, with `{username}` to be filled in."""
        return f"haltian-iot/events/{self.integration}/{{username}}/#"


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoints:
    """Where everything listens, for the configuration."""

    listen: str
    platform_url: str
    organization: str
    email: str
    vault_url: str
    broker_host: str
    broker_port: int
    observer: str


def put_secret(directory: Path, name: str, value: str) -> Path:
    """A file that only we can read; returns its path."""
    path = directory / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(value + "\n")
    return path


def _file(path: Path) -> str:
    return f"{{file: {json.dumps(str(path))}}}"


def rotator_yaml(
    at: Endpoints, keys: Mapping[str, DemoKey], consumers: tuple[str, ...], directory: Path, lifetime: float
) -> str:
    """`rotator.yaml` of the demo.

    Args:
        at: the addresses.
        keys: name → key.
        consumers: names of supervised programs, each of which reads every key.
        directory: the demo's; secrets lie in `secrets/`, pid files in `consumers/`.
        lifetime: of a key, in seconds.
    """
    secrets = directory / "secrets"
    state = json.dumps(f"sqlite:///{directory / 'state' / 'rotator.db'}")
    confirm = (
        f"{{host: {at.broker_host}, port: {at.broker_port}, username: {at.observer}, "
        f"password: {_file(secrets / 'observer.password')}"
    )
    lines = [
        "# Written by `rotator demo`. Times are short, so that something happens; a real one says 14d, not 33% of 60s.",
        f"state: {{url: {state}, seal: {{kind: file, path: {json.dumps(str(directory / 'state' / 'seal.key'))}}}}}",
        f"http: {{listen: {json.dumps(at.listen)}, admin_token: {_file(secrets / 'admin.token')}}}",
        "vault:",
        f"  url: {json.dumps(at.vault_url)}",
        "  mount: secret",
        "  auth:",
        "    method: approle",
        f"    role_id: {_file(secrets / 'role-id')}",
        f"    secret_id: {_file(secrets / 'secret-id')}",
        "providers:",
        "  haltian-demo:",
        "    kind: haltian",
        f"    url: {json.dumps(at.platform_url)}",
        f"    organization: {at.organization}",
        f"    email: {json.dumps(at.email)}",
        f"    password: {_file(secrets / 'haltian.password')}",
        f"    lifetime: {lifetime:.0f}s",
        "consumers:",
    ]
    for name in consumers:
        argv = [sys.executable, "-m", "rotator.sandbox.restart", name, "--dir", str(directory / "consumers")]
        lines += [
            f"  {name}:",
            "    kind: command",
            f"    argv: {json.dumps(argv)}",
            "    deliver: direct",
            "    timeout: 20s",
            "    settle: 1s",
            f"    confirm: {{broker: {confirm}, client_id: {json.dumps(name + '-*')}}}}}",
        ]
    lines += ["defaults: {rotate: {before_expiry: 33%, jitter: 0s}}", "keys:"]
    for key in keys.values():
        lines += [
            f"  {key.name}:",
            "    provider: haltian-demo",
            f"    id: {key.id}",
            f'    vault: {{path: {key.path}, fields: {{username: "{{username}}", password: "{{secret}}"}}}}',
            f"    verify: {{host: {at.broker_host}, port: {at.broker_port}, tls: false, "
            f"subscribe: {json.dumps(key.filter)}}}",
            f"    consumers: [{', '.join(consumers)}]",
        ]
    lines += ["watch: 5s", "shutdown_grace: 10s", "mode: manage"]
    return "\n".join(lines) + "\n"
