"""The files that a demo's daemon and consumers are given: configuration, policies, secrets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]

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
    """One key of the demo, as somebody made it by hand.

    Args:
        name: in the configuration.
        id: the platform's.
        username, password: with which it comes in.
        topic: below which its events are published; `{username}` is to be filled in.
        max_age: of its secret; None where the platform lets it expire.
        grace: for which a key that was replaced stays; None where keys are not replaced.
    """

    name: str
    id: str
    username: str
    password: str = field(repr=False)
    topic: str
    max_age: timedelta | None = None
    grace: timedelta | None = None

    @property
    def path(self) -> str:
        """Its secret's path below `secret/`."""
        return f"mqtt/{self.name}"

    @property
    def filter(self) -> str:
        """The topic filter of its events, with `{username}` to be filled in."""
        return f"{self.topic}/#"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyEntry:
    """A key, and what its entry in the configuration names: provider, consumers, the broker's host and port."""

    key: DemoKey
    provider: str
    consumers: Sequence[str]
    host: str
    port: int


def put_secret(directory: Path, name: str, value: str) -> Path:
    """A file that only we can read; returns its path."""
    path = directory / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(value + "\n")
    return path


def rotator_yaml(
    directory: Path,
    *,
    listen: str,
    vault_url: str,
    providers: Mapping[str, Json],
    consumers: Mapping[str, Json],
    keys: Sequence[KeyEntry],
) -> str:
    """`rotator.yaml` of the demo.

    Args:
        directory: the demo's; secrets lie in `secrets/`, pid files in `consumers/`.
        listen: the daemon's `host:port`.
        vault_url: of Vault.
        providers: name → section.
        consumers: names of supervised programs → how it is proven that each is back (`settle`, `confirm`).
        keys: all of them.
    """
    state = {
        "url": f"sqlite:///{directory / 'state' / 'rotator.db'}",
        "seal": {"kind": "file", "path": str(directory / "state" / "seal.key")},
    }
    secret = {name: {"file": str(directory / "secrets" / name)} for name in ("admin.token", "role-id", "secret-id")}
    auth = {"method": "approle", "role_id": secret["role-id"], "secret_id": secret["secret-id"]}
    lines = [
        "# Written by `rotator demo`. Times are short, so that something happens; a real one says 14d, not 33% of 60s.",
        f"state: {json.dumps(state)}",
        "http:",
        *_fields({"listen": listen, "admin_token": secret["admin.token"]}, indent=2),
        "vault:",
        *_fields({"url": vault_url, "mount": "secret", "auth": auth}, indent=2),
        "providers:",
        *_entries(providers),
        "consumers:",
        *_entries({name: _consumer(name, directory, proof) for name, proof in consumers.items()}),
        "defaults: {rotate: {before_expiry: 33%, jitter: 0s}}",
        "keys:",
        *_entries({entry.key.name: _key(entry) for entry in keys}),
        "watch: 5s",
        "shutdown_grace: 10s",
        "mode: manage",
    ]
    return "\n".join(lines) + "\n"


def _entries(entries: Mapping[str, Json]) -> Iterator[str]:
    for name, fields in entries.items():
        yield f"  {name}:"
        yield from _fields(fields, indent=4)


def _fields(fields: Json, *, indent: int) -> Iterator[str]:
    """One line each; all JSON is YAML."""
    for name, value in fields.items():
        yield f"{' ' * indent}{name}: {json.dumps(value)}"


def _consumer(name: str, directory: Path, proof: Json) -> Json:
    argv = [sys.executable, "-m", "rotator.sandbox.restart", name, "--dir", str(directory / "consumers")]
    return {"kind": "command", "argv": argv, "deliver": "direct", "timeout": "20s", **proof}


def _key(entry: KeyEntry) -> Json:
    key = entry.key
    fields: dict[str, Any] = {"provider": entry.provider, "id": key.id}
    if key.max_age is not None:
        fields["rotate"] = {"max_age": _duration(key.max_age)}
    if key.grace is not None:
        fields["grace"] = _duration(key.grace)
    return {
        **fields,
        "vault": {"path": key.path, "fields": {"username": "{username}", "password": "{secret}"}},
        "verify": {"host": entry.host, "port": entry.port, "tls": False, "subscribe": key.filter},
        "consumers": list(entry.consumers),
    }


def _duration(span: timedelta) -> str:
    return f"{round(span.total_seconds() * 1000)}ms"
