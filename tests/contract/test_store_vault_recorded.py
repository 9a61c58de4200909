"""The 63 exchanges that were recorded at a Vault 1.8, through hvac's own HTTP session: what each must mean to us.

`Case.plays` is what passes: a note is a recorded exchange whose request must be ours exactly (method, path, body,
token); `answer_of` is one whose answer is given to another request of ours; `stands_in` only helps a case along.
`NOT_OURS` names those that the daemon has no request for. A test proves that nothing is left out and nothing is there
twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contract.store_stage import StoreStage
from contract.vault_replay import Exchange, Tape, answer_of, notes, recorded
from rotator.errors import Conflict, Permanent, RotatorError, Transient
from rotator.model import StoredSecret
from rotator.ports import Judge
from rotator.reasons import Reason
from rotator.stores import AppRoleAuth, TokenAuth, VaultStore
from rotator.stores.transit import Transit
from rotator.stores.vault_auth import Auth
from rotator.stores.vault_kv import Metadata
from rotator.stores.vault_wrapped import WrappedAppRoleAuth

ROOT_LOOKUP = "lookup-self of a root token: ttl 0, never expires"
ROLE_TOKEN = "<opaque-2>"
A, B = "mqtt/a", "mqtt/b"

# What no request of the daemon's asks for, and why.
NOT_OURS = {
    "seal status": "sys/health says it too, and whether the node serves",
    "no cas: allowed while cas_required is false": "every write of ours carries cas",
    "list": "the daemon knows its paths from its configuration",
    "list of an empty folder": "as above",
    "set cas_required and max_versions on one secret": "an operator's doing; we write metadata only from 1.9 on",
    "soft delete of the latest version": "the daemon deletes nothing",
    "destroy version 1": "the daemon destroys nothing",
    "policy for a rotator": "set-up, by deploy/vault",
    "enable approle": "set-up, by deploy/vault",
    "enable approle twice": "set-up, by deploy/vault",
    "role with a short token": "set-up, by deploy/vault",
    "role id": "set-up, by deploy/vault",
    "secret id": "set-up, by deploy/vault",
    "response-wrapped secret id": "set-up, by deploy/vault; we use what it gave",
    "enable transit": "set-up, by an operator",
    "transit encrypt creates the key": "we have data keys made (transit/datakey) and encrypt nothing there",
    "transit encrypt again": "as above",
    "step: seal": "an operator's doing",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Exchanges that pass when `do` is done, and what comes of it: a value, or an error's type, reason and words."""

    plays: tuple[str | Exchange, ...]
    do: Callable[[VaultStore], object]
    gives: object = None
    fails: tuple[type[RotatorError], Reason, str] | None = None
    auth: Callable[[], Auth] = lambda: TokenAuth(token=lambda: "root")
    mount: str = "secret"


class Kept:
    """Keeps an unwrapped secret id in memory."""

    def __init__(self) -> None:
        self._content: bytes | None = None

    def load(self) -> bytes | None:
        return self._content

    def save(self, content: bytes) -> None:
        self._content = content


def token(text: str) -> Callable[[], Auth]:
    """A given token."""
    return lambda: TokenAuth(token=lambda: text)


def role(note: str = "approle login") -> Callable[[], Auth]:
    """The two halves that a recorded login sends."""
    body = recorded(note).body
    assert isinstance(body, dict)
    return lambda: AppRoleAuth(role_id=lambda: str(body["role_id"]), secret_id=lambda: str(body["secret_id"]))


def wrapped() -> Auth:
    """The recorded wrapping token."""
    role_id, given = "<opaque-21>", "<opaque-4>"
    return WrappedAppRoleAuth(role_id=lambda: role_id, wrapping_token=lambda: given, keep=Kept(), unwraps=True)


def stands_in(note: str, **changes: Any) -> Exchange:
    """A recorded answer that is understood in another case."""
    return replace(answer_of(note, **changes), note="")


def looked_up() -> Exchange:
    """What a lookup of the recorded wrapping token says: the recording has none."""
    made = recorded("response-wrapped secret id").answer
    assert isinstance(made, dict)
    info = made["wrap_info"]
    data = {"creation_path": info["creation_path"], "creation_time": info["creation_time"], "creation_ttl": info["ttl"]}
    return Exchange(method="POST", path="/v1/sys/wrapping/lookup", answer={"data": data})


def dead(note: str) -> Exchange:
    """The refusal of `note`, given to the lookup of the token."""
    return stands_in(note, method="GET", path="/v1/auth/token/lookup-self")


def capabilities(granted: dict[str, list[str]]) -> Exchange:
    """Capabilities as 1.8 tells them: below `data`, and beside it."""
    return stands_in("capabilities of oneself", answer={**granted, "data": granted})


def renewed(store: VaultStore) -> bool:
    """Whether the token ends after now, and within the three seconds that the recording has."""
    ends = store.renew()
    return ends is not None and timedelta(0) < ends - datetime.now(UTC) <= timedelta(seconds=3)


def reads(path: str, version: int | None = None) -> Callable[[VaultStore], object]:
    return lambda store: store.read(path, version)


def puts(path: str, known: int, judge: Judge | None = None, **fields: str) -> Callable[[VaultStore], object]:
    return lambda store: store.put(path, fields, known=known, judge=judge)


def unwraps(text: bytes) -> Callable[[VaultStore], object]:
    """Transit's key of the recording, asked to open this."""
    return lambda store: Transit(lambda: store, mount="transit", key="rotator").unwrap(text)


def never(stored: StoredSecret) -> None:
    """Lets nothing be written over."""
    raise Conflict(f"not over version {stored.version}", reason=Reason.VAULT_CONFLICT)


def metadata_of(note: str, **known: Any) -> Metadata:
    """What there is to know of a recorded metadata answer: 1.8 has no `custom_metadata` and no cas for metadata."""
    answer = recorded(note).answer
    assert isinstance(answer, dict)
    versions = answer["data"]["versions"]
    return Metadata(versions=versions, custom=None, revision=None, delete_version_after="0s", **known)


HEALTHY = "health of an active, unsealed server"
MOUNTS = "mounts: which engine and version sits at secret/"
DEAD = "a token that does not exist"
LATEST = StoredSecret(version=3, data={"username": "u1", "password": "p3"})
ALLOWED = ["create", "read", "update"]
READ_B = stands_in("read latest", path="/v1/secret/data/mqtt/b")
SEALED = (Transient, Reason.VAULT_SEALED)
AUTH = (Permanent, Reason.VAULT_AUTH)
PATH = (Permanent, Reason.VAULT_PATH_INVALID)
USED = (Permanent, Reason.VAULT_WRAPPING_TOKEN_USED)

# fmt: off
CASES = [
    # --- health and mounts
    Case(plays=(HEALTHY, ROOT_LOOKUP), do=lambda s: s.ready()),
    Case(plays=("health of a sealed server",), do=lambda s: s.ready(), fails=(*SEALED, "sealed")),
    Case(plays=("read from a sealed server",), do=reads(B), fails=(*SEALED, "Vault is sealed")),
    Case(plays=(stands_in(HEALTHY), MOUNTS, capabilities({"secret/data/mqtt/a": ALLOWED}), stands_in(ROOT_LOOKUP),
                stands_in("read latest")),
         do=lambda s: s.preflight(A, versions=2), gives=LATEST),  # of the metadata the policy says nothing
    Case(plays=(stands_in(HEALTHY), "mounts: a path with no mount",
                stands_in("unsupported path", path="/v1/nowhere/config")),
         do=lambda s: s.preflight("x"), mount="nowhere", fails=(*PATH, "it is not there")),
    Case(plays=(stands_in(HEALTHY), stands_in("mounts: a path with no mount"),
                stands_in("write that the policy forbids", method="GET", path="/v1/nowhere/config"),
                capabilities({"nowhere/data/x": ["deny"]}), stands_in(ROOT_LOOKUP)),
         do=lambda s: s.preflight("x"), mount="nowhere",
         fails=(Permanent, Reason.VAULT_DENIED, 'path "nowhere/data/x" { capabilities = ["create", "read", ')),
    Case(plays=("unsupported path",), do=reads("x"), mount="nowhere", fails=(*PATH, "no handler for route")),
    Case(plays=(answer_of("kv v1 style write to a v2 mount", method="GET", path="/v1/secret/data/mqtt/a"),),
         do=reads(A), fails=(*PATH, "Invalid path for a versioned")),
    # --- reading
    Case(plays=("read of a secret that was never written",), do=reads(A), gives=StoredSecret(version=0, data=None)),
    Case(plays=("read latest",), do=reads(A), gives=LATEST),
    Case(plays=("read version 1",), do=reads(A, 1),
         gives=StoredSecret(version=1, data={"username": "u1", "password": "p1"})),
    Case(plays=("read a version that was never written",), do=reads(A, 99), gives=StoredSecret(version=0, data=None)),
    Case(plays=("read of a soft-deleted latest version",), do=reads(A), gives=StoredSecret(version=3, data=None)),
    Case(plays=("read of a destroyed version",), do=reads(A, 1),
         gives=StoredSecret(version=1, data=None, destroyed=True)),
    # --- writing
    Case(plays=("first write, cas 0",), do=puts(A, 0, username="u1", password="p1"), gives=1),
    Case(plays=("cas 0 again: the secret exists", stands_in("read latest")), do=puts(A, 0, never, password="p2"),
         fails=(Conflict, Reason.VAULT_CONFLICT, "not over version 3")),
    Case(plays=("cas 1",), do=puts(A, 1, username="u1", password="p2"), gives=2),
    Case(plays=("cas too low", stands_in("read latest")), do=puts(A, 1, password="p3"), gives=3),  # it is there
    Case(plays=("write over a soft-deleted version needs cas = current_version still",
                stands_in("read of a soft-deleted latest version"), "and passes with it"),
         do=puts(A, 0, password="p4"), gives=4),
    Case(plays=(answer_of("write without cas where it is required"),), do=puts(A, 3, password="p4"),
         fails=(*PATH, "required")),  # no mismatch: nothing is read again
    Case(plays=(answer_of("write with a body that has no data"),), do=puts(A, 4), fails=(*PATH, "no data provided")),
    Case(plays=(answer_of("malformed JSON is refused"),), do=puts(A, 4), fails=(*PATH, "no data provided")),
    Case(plays=("write that the policy allows",), do=puts(B, 0, password="p1"), auth=token(ROLE_TOKEN), gives=1),
    Case(plays=(answer_of("write that the policy forbids", body={"options": {"cas": 0}, "data": {"password": "p1"}}),
                stands_in(ROOT_LOOKUP)),
         do=puts("other/b", 0, password="p1"), fails=(Permanent, Reason.VAULT_DENIED, "permission denied")),
    # --- metadata
    Case(plays=("metadata",), do=lambda s: s._kv.metadata(A),
         gives=metadata_of("metadata", current=3, max_versions=0, cas_required=False)),
    Case(plays=(stands_in(HEALTHY), stands_in(MOUNTS), capabilities({"secret/data/mqtt/a": ALLOWED,
                "secret/metadata/mqtt/a": ["read", "update"]}), stands_in("metadata")),
         do=lambda s: s.annotate(A, {"key": "a"})),  # it knows no custom_metadata: nothing is written
    Case(plays=("after unseal the data is there",), do=lambda s: s._kv.metadata(A),
         gives=metadata_of("after unseal the data is there", current=4, max_versions=5, cas_required=True)),
    Case(plays=("capabilities of oneself",), auth=token(ROLE_TOKEN),
         do=lambda s: s._kv.capabilities(["secret/data/mqtt/b", "secret/data/other/b", "secret/metadata/mqtt/b"]),
         gives={"secret/data/mqtt/b": frozenset(ALLOWED), "secret/data/other/b": frozenset({"deny"}),
                "secret/metadata/mqtt/b": frozenset({"list", "read"})}),
    # --- tokens and logins
    Case(plays=(answer_of("no token at all"), dead("no token at all")), do=reads(A), fails=(*AUTH, "not accepted")),
    Case(plays=(DEAD, dead(DEAD)), do=reads(A), auth=token("<opaque-1>"), fails=(*AUTH, "not accepted")),
    Case(plays=(stands_in(ROOT_LOOKUP),), do=lambda s: s.renew(), gives=None),  # it never ends
    Case(plays=("lookup-self with the role's token", "renew-self"), do=renewed, auth=token(ROLE_TOKEN), gives=True),
    Case(plays=("approle login", "use of a token that has expired", dead(DEAD),
                "second approle login uses the secret id up", READ_B),
         do=reads(B), auth=role(), gives=LATEST),
    Case(plays=(stands_in("approle login"), dead("renew of a token that has expired"),
                "renew of a token that has expired", stands_in("approle login")),
         do=renewed, auth=role(), gives=True),
    Case(plays=(stands_in("approle login"), dead("renew-self of a root token"),
                answer_of("renew-self of a root token", body={}), stands_in("approle login")),
         do=renewed, auth=role(), gives=True),
    Case(plays=("approle login, wrong secret id",), do=reads(A), auth=role("approle login, wrong secret id"),
         fails=(*AUTH, "invalid secret id")),
    Case(plays=("approle login, wrong role id",), do=reads(A), auth=role("approle login, wrong role id"),
         fails=(*AUTH, "invalid role ID")),
    Case(plays=("third approle login: the secret id is used up",), do=reads(A), auth=role(),
         fails=(*AUTH, "used up")),
    Case(plays=("approle login on a sealed server",), do=reads(B), auth=role("approle login on a sealed server"),
         fails=(*SEALED, "Vault is sealed")),
    Case(plays=(looked_up(), "unwrap", stands_in("approle login", body={"role_id": "<opaque-21>",
                "secret_id": "<opaque-34>"}), READ_B),
         do=reads(B), auth=wrapped, gives=LATEST),
    Case(plays=(looked_up(), "unwrap twice: somebody was here before you"), do=reads(B), auth=wrapped,
         fails=(*USED, "does not exist")),
    # --- transit
    Case(plays=("transit decrypt",), do=unwraps(b"vault:v1:oPgDetG1mh0WLX34xpbEYvcfcLRkBCJnN4DFV4yATqnb"),
         fails=(Permanent, Reason.VAULT_TRANSIT, "no data key of 256 bits")),  # it is read, and says "hello"
    Case(plays=(stands_in("transit decrypt", answer={"data": {"plaintext":
                "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}}),),
         do=unwraps(b"vault:v1:x"), gives=b"01234567890123456789012345678901"),
    Case(plays=("transit decrypt of rubbish",), do=unwraps(b"vault:v1:AAAA"),
         fails=(Permanent, Reason.SEAL_BROKEN, "invalid ciphertext length")),
]
# fmt: on


def noted(case: Case) -> list[str]:
    """The recorded exchanges that a case is about."""
    return [found for each in case.plays if (found := each if isinstance(each, str) else each.note)]


def named(case: Case) -> str:
    """A name for a case."""
    return (noted(case) or ["made up"])[0]


@pytest.mark.parametrize("case", CASES, ids=named)
def test_each_is_understood(stage: StoreStage, case: Case) -> None:
    """The request is the recorded one, and the answer means what it meant there; nothing else is asked."""
    tape = Tape(*(recorded(each) if isinstance(each, str) else each for each in case.plays))
    store = stage.store("http://vault.example:8200", auth=case.auth(), mount=case.mount)
    tape.into(store)
    if case.fails is None:
        given = case.do(store)
        assert case.gives == given
    else:
        kind, reason, words = case.fails
        with pytest.raises(RotatorError) as caught:
            case.do(store)
        assert (kind, reason) == (type(caught.value), caught.value.reason)
        assert words in str(caught.value)
    assert [] == tape.left
    assert noted(case) == [each for each in tape.played if each]


def test_nothing_is_left_out_and_nothing_is_there_twice() -> None:
    """All 63: each in one case, or with the reason why no request of ours is like it."""
    every = notes()
    assert (63, 63) == (len(every), len(set(every)))
    covered = [each for case in CASES for each in noted(case)] + list(NOT_OURS)
    assert sorted(every) == sorted(covered)
    assert all(NOT_OURS.values())


def test_the_tape_plays_only_what_is_asked(stage: StoreStage) -> None:
    """Another path, body or token than the recorded one is no match."""
    wrong = [
        (puts(A, 0, username="u1", password="other"), "root"),
        (puts(B, 0, username="u1", password="p1"), "root"),
        (puts(A, 1, username="u1", password="p1"), "root"),
        (puts(A, 0, username="u1", password="p1"), "another"),
    ]
    for do, given in wrong:
        store = stage.store("http://vault.example:8200", auth=token(given)())
        Tape(recorded("first write, cas 0")).into(store)
        with pytest.raises(AssertionError):
            do(store)
