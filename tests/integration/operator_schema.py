"""What External Secrets Operator's published types (external-secrets.io/v1) allow of the objects that the examples use.

Taken from apis/externalsecrets/v1 of external-secrets/external-secrets (`externalsecret_types.go` at 0126c16c,
`secretstore_vault_types.go` at 0534b97f), which serve v1 from 0.16 and nothing else from 0.17 on. Types that the
examples don't use are not here: a field of theirs counts as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TEXT = str
DURATION = re.compile(r"(\d+(ns|us|µs|ms|s|m|h))+")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")

# A field → its type, a pattern, a set of words, [the type of its items], or another table; `!` marks a required one.
_REMOTE = {
    "key!": TEXT,
    "property": TEXT,
    "version": TEXT,
    "metadataPolicy": {"None", "Fetch"},
    "conversionStrategy": {"Default", "Unicode"},
    "decodingStrategy": {"Auto", "Base64", "Base64URL", "None"},
}
_VAULT = {
    "server!": TEXT,
    "path": TEXT,
    "version": {"v1", "v2"},
    "namespace": TEXT,
    "caBundle": TEXT,
    "caProvider": {"type!": {"Secret", "ConfigMap"}, "name!": NAME, "key": KEY, "namespace": TEXT},
    "auth": {
        "namespace": TEXT,
        "kubernetes": {
            "mountPath!": TEXT,
            "role!": TEXT,
            "serviceAccountRef": {"name!": NAME, "namespace": TEXT, "audiences": [TEXT]},
        },
    },
}
SPECS: Mapping[str, Mapping[str, Any]] = {
    "SecretStore": {"provider!": {"vault": _VAULT}, "controller": TEXT, "refreshInterval": int},
    "ExternalSecret": {
        "refreshPolicy": {"CreatedOnce", "Periodic", "OnChange"},
        "refreshInterval": DURATION,
        "secretStoreRef": {"name": NAME, "kind": {"SecretStore", "ClusterSecretStore"}},
        "target": {
            "name": NAME,
            "creationPolicy": {"Owner", "Orphan", "Merge", "None"},
            "deletionPolicy": {"Delete", "Merge", "Retain"},
            "immutable": bool,
        },
        "data": [{"secretKey!": KEY, "remoteRef!": _REMOTE}],
    },
}


def faults(manifest: Mapping[str, Any]) -> list[str]:
    """What the API server would refuse in one object."""
    found = [] if manifest["apiVersion"] == "external-secrets.io/v1" else ["apiVersion"]
    return found + _faults("spec", manifest["spec"], SPECS[manifest["kind"]])


def _faults(at: str, value: Any, allowed: Any) -> list[str]:
    match allowed:
        case Mapping():
            return _of_object(at, value, allowed)
        case list():
            items = value if isinstance(value, list) else [None]
            return [fault for n, item in enumerate(items) for fault in _faults(f"{at}[{n}]", item, allowed[0])]
        case set():
            well = value in allowed
        case re.Pattern():
            well = isinstance(value, str) and allowed.fullmatch(value) is not None
        case _:
            well = isinstance(value, allowed)
    return [] if well else [f"{at}: {value!r}"]


def _of_object(at: str, value: Any, allowed: Mapping[str, Any]) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{at}: {value!r}"]
    fields = {name.removesuffix("!"): inner for name, inner in allowed.items()}
    missing = [f"{at}.{name[:-1]}: missing" for name in allowed if name.endswith("!") and name[:-1] not in value]
    unknown = [f"{at}.{name}: unknown" for name in value.keys() - fields.keys()]
    inside = [
        fault for name in value.keys() & fields.keys() for fault in _faults(f"{at}.{name}", value[name], fields[name])
    ]
    return missing + unknown + inside
