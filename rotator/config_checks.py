"""What no model of one section can see: names that lead to other sections, secrets and files that must be there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from rotator.config_base import CERTIFICATES
from rotator.config_faults import dotted
from rotator.config_file import Tree, Where, walk
from rotator.config_models import LISTING, PROVIDER_FILES, PROVIDER_SECRETS
from rotator.config_types import nearest
from rotator.config_vault import SERVICE_ACCOUNT_TOKEN
from rotator.secret_refs import CredentialRef, FileRef, SecretRef, check

# The kinds of provider whose own login is one of the keys that they list.
OWN_LOGINS: Final = frozenset({"mosquitto", "rabbitmq"})
# Where the settings of a selection's keys stand, below its name.
TEMPLATE: Final = ("discover", "template")
JWT: Final = ("vault", "auth", "jwt")
SECRET_ID, WRAPPED = ("vault", "auth", "secret_id"), ("vault", "auth", "wrapped")
# Where files of certificates stand; `*` is any name.
CA_POSITIONS: Final[tuple[Where, ...]] = (
    *(("vault", name) for name in CERTIFICATES),
    *(("providers", "*", *below) for below in PROVIDER_FILES),
    ("keys", "*", "verify", "ca_file"),
    ("keys", "*", *TEMPLATE, "verify", "ca_file"),
    ("consumers", "*", "ca_file"),
    ("consumers", "*", "kubeconfig"),
    ("consumers", "*", "confirm", "broker", "ca_file"),
    ("consumers", "*", "confirm", "heartbeat", "ca_file"),
)
# Where secret references stand; `*` is any name.
SECRET_POSITIONS: Final[tuple[Where, ...]] = (
    ("http", "admin_token"),
    ("vault", "auth", "token"),
    ("vault", "auth", "role_id"),
    ("vault", "auth", "secret_id"),
    JWT,
    *(("providers", "*", *below) for below in PROVIDER_SECRETS),
    ("keys", "*", "verify", "password"),
    ("keys", "*", *TEMPLATE, "verify", "password"),
    ("consumers", "*", "password"),
    ("consumers", "*", "secret"),
    ("consumers", "*", "confirm", "broker", "password"),
    ("consumers", "*", "confirm", "heartbeat", "password"),
    ("consumers", "*", "confirm", "http", "headers", "*"),
)


def check_references(tree: Tree) -> None:
    """Every provider and consumer that is named must be there."""
    for consumer, settings in tree.table("consumers").items():
        _check_lister(tree, consumer, settings)
    for key, entry in _keys(tree):
        provider = entry.get("provider")
        if isinstance(provider, str):
            _check_known(tree, ("keys", key, "provider"), provider, "provider")
        where, settings = _settings_of(key, entry)
        consumers = settings.get("consumers")
        for index, name in enumerate(consumers if isinstance(consumers, list) else []):
            if isinstance(name, str):
                _check_known(tree, (*where, "consumers", index), name, "consumer")
            if settings.get("verify") is None:
                _check_evidence(tree, key, name, lists=_lists(tree, provider))


def _check_lister(tree: Tree, consumer: str, settings: object) -> None:
    """The provider whose list of connections is the proof must have one."""
    where: Where = ("consumers", consumer, "confirm", "broker", "provider")
    provider = tree.get(where)
    if not isinstance(provider, str):
        return
    _check_known(tree, where, provider, "provider")
    if provider in tree.table("providers") and not _lists(tree, provider):
        text = f"{dotted(where)}: `{provider}` has no list of connections"
        tree.fault(tree.place(where), text, f"name a provider of kind {' or '.join(sorted(LISTING))}")


def _lists(tree: Tree, provider: object) -> bool:
    """Whether a provider lists who is connected."""
    return tree.get(("providers", str(provider), "kind")) in LISTING


def _check_evidence(tree: Tree, key: str, consumer: object, *, lists: bool) -> None:
    """Evidence is looked for at a broker, and only `verify` or `confirm` itself can say at which."""
    settings = tree.table("consumers").get(consumer) if isinstance(consumer, str) else None
    confirm = settings.get("confirm") if isinstance(settings, dict) else None
    for kind, evidence in confirm.items() if isinstance(confirm, dict) else ():
        if kind not in ("broker", "heartbeat"):
            continue  # which need no broker
        listed = kind == "broker" and isinstance(evidence, dict) and (lists or evidence.get("provider") is not None)
        if isinstance(evidence, str) or (isinstance(evidence, dict) and evidence.get("host") is None and not listed):
            where = ("consumers", str(consumer), "confirm", kind)
            text = f"{dotted(where)} names no host, and keys.{key} has no `verify` to take it from"
            tree.fault(tree.place(where), text, "give one of them a `host`")


def _check_known(tree: Tree, where: Where, name: str, what: str) -> None:
    known = tree.table(f"{what}s")
    if name not in known:
        hint = nearest(name, known) or (f"known are {', '.join(known)}" if known else f"there are no {what}s at all")
        tree.fault(tree.place(where), f"{dotted(where)}: there is no {what} `{name}`", hint)


def _is_gone(ref: SecretRef) -> bool:
    return isinstance(ref, FileRef) and not os.path.lexists(ref.file)


def check_secrets(tree: Tree, environ: Mapping[str, str]) -> None:
    """Every reference to a secret must be readable; those that are no references were refused by the models."""
    allow = _is_true(tree.root.get("allow_insecure_files"))
    adapter: TypeAdapter[SecretRef] = TypeAdapter(SecretRef)
    in_kubernetes = tree.get(("vault", "auth", "method")) == "kubernetes"
    usual = [(JWT, {"file": SERVICE_ACCOUNT_TOKEN})] if in_kubernetes and tree.get(JWT) is None else []
    for where, value in [*walk(tree, SECRET_POSITIONS), *usual]:
        try:
            ref = adapter.validate_python(value)
        except ValidationError:
            continue
        # the kubelet chooses the mode of a service account's token: often one that everybody in the container can read
        insecure = allow or (where == JWT and in_kubernetes)
        if where == SECRET_ID and _is_true(tree.get(WRAPPED)) and _is_gone(ref):
            continue  # a wrapping token may be taken away once it has served: what it wrapped is kept
        if (fault := check(ref, environ=environ, allow_insecure_files=insecure)) is not None:
            hint = None if "chmod" in fault else "put the secret there, or correct the reference"
            if isinstance(ref, CredentialRef) and not environ.get("CREDENTIALS_DIRECTORY"):
                hint = "outside the service, run the command as deploy/README.md does: `as_rotator check`"
            tree.fault(tree.place(where), f"{dotted(where)}: {fault}", hint)


def check_ca_files(tree: Tree) -> None:
    """A CA file that is not there would be found at the first connection only, as an error of some library."""
    for where, value in walk(tree, CA_POSITIONS):
        if isinstance(value, str) and value and not os.access(value, os.R_OK):
            tree.fault(tree.place(where), f"{dotted(where)}: there is no readable file {value}", None)


def check_wrapping(tree: Tree) -> None:
    """An unwrapped secret id is kept under the seal, so the seal must not need the login that it opens."""
    where = WRAPPED
    if _is_true(tree.get(where)) and tree.get(("state", "seal", "kind")) == "vault-transit":
        text = "vault.auth.wrapped: the secret id is kept under the seal, which `state.seal` has Vault open: a circle"
        tree.fault(tree.place(where), text, "use `state.seal: {kind: file}`, or a secret id that is not wrapped")


def check_shared(tree: Tree) -> None:
    """Two entries must not be one key at the provider, nor write one field of Vault: each would undo the other."""
    identities: dict[tuple[str, str], Where] = {}
    fields: dict[tuple[str, str], Where] = {}
    for key, entry in _keys(tree):
        provider, identity = entry.get("provider"), entry.get("id")
        if isinstance(provider, str) and isinstance(identity, str):
            _check_first(tree, identities, (provider, identity), ("keys", key, "id"), "is the same key as")
        above, settings = _settings_of(key, entry)
        vault = settings.get("vault")
        if not isinstance(vault, dict) or not isinstance(vault.get("path"), str):
            continue
        if isinstance(provider, str) and isinstance(identity, str):
            _check_own_login(tree, key, provider, identity, vault)
        for field in vault["fields"] if isinstance(vault.get("fields"), dict) else ():
            where = (*above, "vault", "fields", field)
            _check_first(tree, fields, (vault["path"], field), where, "writes the same Vault field as")


def _check_own_login(tree: Tree, key: str, provider: str, identity: str, vault: dict[str, Any]) -> None:
    """A key that is its provider's own login has to be read from where it is written: else a restart locks us out."""
    section = tree.table("providers").get(provider)
    if not isinstance(section, dict) or section.get("kind") not in OWN_LOGINS or section.get("username") != identity:
        return
    fields = vault.get("fields")
    written = fields.items() if isinstance(fields, dict) else ()
    places = [f"{vault['path']}#{field}" for field, template in written if template == "{secret}"]
    reference = section.get("password")
    if not isinstance(reference, dict) or reference.get("vault") not in places:
        where = ("providers", provider, "password")
        text = f"{dotted(where)} is what keys.{key} rotates, so it must be read from where that writes it"
        tree.fault(tree.place(where), text, f"write {{vault: {places[0] if places else 'PATH#FIELD'}}}")


def _is_true(value: object) -> bool:
    """Whether a setting is on, as YAML or the environment write that."""
    return str(value).lower() in ("true", "1", "yes", "on", "t", "y")


def _check_first(
    tree: Tree, seen: dict[tuple[str, str], Where], what: tuple[str, str], where: Where, text: str
) -> None:
    first = seen.setdefault(what, where)
    if first != where:
        tree.fault(tree.place(where), f"{dotted(where)} {text} {dotted(first)}", f"first at {tree.place(first)}")


def _keys(tree: Tree) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, key) for name, key in tree.table("keys").items() if isinstance(key, dict))


def _settings_of(key: str, entry: dict[str, Any]) -> tuple[Where, dict[str, Any]]:
    """Where a key's settings stand, and what they are: its own, or the template of a selection."""
    if "discover" not in entry:
        return ("keys", key), entry
    discover = entry["discover"]
    template = discover.get("template") if isinstance(discover, dict) else None
    return ("keys", key, *TEMPLATE), template if isinstance(template, dict) else {}
