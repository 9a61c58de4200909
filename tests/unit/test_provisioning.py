"""A new key and its secret: what is refused before anything is made, and who holds the answer until Vault does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rotator.errors import Conflict, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.journal.seal import Seal
from rotator.journal.spool import RESERVED_BYTES
from rotator.model import MARKER, Abilities, Identity, Issued, Secret, StoredSecret, Strategy, UpstreamKey
from rotator.ports import Judge
from rotator.provisioning import Answer, Wanted, provision, retire
from rotator.reasons import Reason

ENDS = datetime(2027, 1, 1, tzinfo=UTC)
FIELDS = {"username": "{username}", "password": "{secret}", "end": "{expires_at}"}
WANTED = Wanted(name="Site A/1", path="mqtt/a", fields=FIELDS)


@dataclass
class Platform:
    """Makes keys; the one of a name that is there already gets a new secret."""

    name: str = "acme"
    strategy: Strategy = Strategy.IN_PLACE
    abilities: Abilities = Abilities(  # noqa: RUF009  frozen
        strategy=Strategy.IN_PLACE, kills_old=True, expires=True, creates=True, deletes=True, pauses=True
    )
    keys: dict[str, str] = field(default_factory=dict)  # id → name
    secrets: list[str] = field(default_factory=list)
    markers: list[str] = field(default_factory=list)
    fails: RotatorError | None = None
    after: RotatorError | None = None
    inactive: list[str] = field(default_factory=list)
    options: Mapping[str, str] = field(default_factory=dict)

    def identity(self, id: str) -> Identity:
        return Identity(id=id, username=f"u-{id}")

    def list_keys(self) -> Sequence[UpstreamKey]:
        return [UpstreamKey(id=id, name=name) for id, name in self.keys.items()]

    def provision(self, name: str, options: Mapping[str, str], marker: str) -> Issued:
        self.markers.append(marker)
        if self.fails is not None:
            raise self.fails
        id = next((id for id, called in self.keys.items() if called == name), f"id-{len(self.keys)}")
        self.keys[id] = name
        self.secrets.append(f"made-up-{len(self.secrets)}")
        if self.after is not None:
            raise self.after
        return Issued(identity=self.identity(id), secret=Secret(self.secrets[-1]), expires_at=ENDS)

    def deactivate(self, identity: Identity) -> None:
        self.inactive.append(identity.username)

    def reactivate(self, identity: Identity) -> None:
        raise AssertionError("nobody asked for this")

    def delete(self, id: str) -> None:
        del self.keys[id]

    @property
    def issue_deadline(self) -> object:
        raise AssertionError("nobody asked for this")

    def close(self) -> None:
        """Nothing to give back."""


@dataclass
class Vault:
    """One path; `down` is raised by writes, `unready` by the preflight."""

    held: dict[str, str] | None = None
    down: RotatorError | None = None
    unready: RotatorError | None = None
    writes: int = 0

    def preflight(self, path: str, *, lasting: timedelta = timedelta(0), versions: int = 1) -> StoredSecret:
        if self.unready is not None:
            raise self.unready
        return self.read(path)

    def read(self, path: str, version: int | None = None) -> StoredSecret:
        return StoredSecret(version=self.writes, data=self.held)

    def put(self, path: str, fields: Mapping[str, str], *, judge: Judge | None = None, known: int | None = None) -> int:
        if self.down is not None:
            raise self.down
        held = self.held or {}
        if any(held.get(name) != value for name, value in fields.items()):
            if judge is not None:
                judge(StoredSecret(version=self.writes, data=self.held))
            self.held, self.writes = {**held, **fields}, self.writes + 1
        return self.writes

    def undelete(self, path: str, version: int) -> None:
        raise AssertionError("nobody asked for this")

    def annotate(self, path: str, facts: Mapping[str, str]) -> None:
        """Nobody reads it."""

    def ready(self) -> None:
        raise AssertionError("nobody asked for this")

    def renew(self) -> None:
        raise AssertionError("nobody asked for this")

    def close(self) -> None:
        """Nothing to give back."""


@dataclass
class Stage:
    """A platform, a Vault, a folder, a seal."""

    folder: Path
    platform: Platform = field(default_factory=Platform)
    vault: Vault = field(default_factory=Vault)
    seal: Seal = field(default_factory=lambda: Seal(b"k" * 32))
    managed: dict[tuple[str, str], str] = field(default_factory=dict)

    def run(self, **changes: object) -> tuple[str, int, bool]:
        """One run of the command: the id, Vault's version, whether an earlier run had the secret."""
        done = provision(
            replace(WANTED, **changes),  # type: ignore[arg-type]
            provider=self.platform,  # type: ignore[arg-type]  # properties of Protocols are attributes here
            store=self.vault,
            seal=self.seal,
            folder=self.folder,
            managed=self.managed,
        )
        assert ENDS == done.expires_at
        return done.identity.id, done.version, done.resumed

    def left(self) -> set[str]:
        """What lies in the folder: the endings of its files."""
        return {path.suffix for path in self.folder.iterdir()} - {""} if self.folder.exists() else set()

    def holds(self, secret: str) -> bool:
        """Whether Vault holds this secret, and all else that belongs to it."""
        return self.vault.held == {"username": "u-id-0", "password": secret, "end": ENDS.isoformat()}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Nothing is there yet."""
    return Stage(tmp_path / "provision")


def test_made_once_and_brought_to_vault(stage: Stage) -> None:
    """And nothing is left behind."""
    assert ("id-0", 1, False) == stage.run()
    assert stage.holds("made-up-0")
    assert (set(), 1) == (stage.left(), len(stage.platform.secrets))
    assert MARKER.fullmatch(stage.platform.markers[0])


@pytest.mark.parametrize(
    "down",
    [Transient("sealed", reason=Reason.VAULT_SEALED), Permanent("denied", reason=Reason.VAULT_DENIED)],
)
def test_an_answer_waits_sealed_for_vault(stage: Stage, down: RotatorError) -> None:
    """The next run brings it, by another process too, and makes nothing."""
    stage.vault.down = down
    for _ in range(2):
        with pytest.raises(type(down)):
            stage.run()
        assert {".sealed", ".begun"} == stage.left()
    assert b"made-up" not in b"".join(path.read_bytes() for path in stage.folder.iterdir())
    stage.vault.down, stage.seal = None, Seal(b"k" * 32)
    assert ("id-0", 1, True) == stage.run()
    assert (True, set(), 1) == (stage.holds("made-up-0"), stage.left(), len(stage.platform.secrets))


def test_a_crash_behind_the_write(stage: Stage) -> None:
    """Vault holds it already: no second version."""
    stage.vault.down = Transient("sealed", reason=Reason.VAULT_SEALED)
    with pytest.raises(Transient):
        stage.run()
    stage.vault = Vault(held={"username": "u-id-0", "password": "made-up-0", "end": ENDS.isoformat()}, writes=7)
    assert ("id-0", 7, True) == stage.run()


def test_nobody_is_overwritten(stage: Stage) -> None:
    """Somebody wrote one of the fields while the answer waited: theirs stays, and ours waits on."""
    stage.vault.down = Transient("sealed", reason=Reason.VAULT_SEALED)
    with pytest.raises(Transient):
        stage.run()
    stage.vault = Vault(held={"password": "theirs"}, writes=1)
    with pytest.raises(Conflict):
        stage.run()
    assert ({"password": "theirs"}, {".sealed", ".begun"}) == (stage.vault.held, stage.left())


def test_a_sealed_answer_opens_for_its_own_key_alone(stage: Stage) -> None:
    """Neither under another name, nor for another provider, nor by another seal; and it stays."""
    stage.vault.down = Transient("sealed", reason=Reason.VAULT_SEALED)
    with pytest.raises(Transient):
        stage.run()
    sealed = Answer(stage.folder, "acme", WANTED.name).sealed
    for provider, name in (("acme", "other"), ("other", WANTED.name)):
        stranger = Answer(stage.folder, provider, name)
        assert stranger.waiting(stage.seal) is None
        stranger.sealed.write_bytes(sealed.read_bytes())
        with pytest.raises(Permanent) as caught:
            stranger.waiting(stage.seal)
        assert Reason.SEAL_BROKEN is caught.value.reason
    stage.seal = Seal(b"x" * 32)
    with pytest.raises(Permanent, match="was sealed by") as caught:
        stage.run()
    assert (Reason.SEAL_BROKEN, True) == (caught.value.reason, sealed.exists())
    sealed.write_bytes(b"{}")
    with pytest.raises(Permanent, match="remove it"):
        stage.run()


def test_what_may_have_been_made_is_found_again(stage: Stage) -> None:
    """After a lost answer the same marker is used, and the key that is there is ours to give a new secret."""
    stage.platform.after = UnknownOutcome("cut")
    with pytest.raises(UnknownOutcome):
        stage.run()
    assert {".begun", ".reserved"} == stage.left()
    stage.platform.after = None
    assert ("id-0", 1, False) == stage.run()
    assert (1, ["id-0"], True) == (
        len(set(stage.platform.markers)),
        list(stage.platform.keys),
        stage.holds("made-up-1"),
    )


def test_room_is_there_before_the_call(stage: Stage) -> None:
    """So that a full disk can't take the answer."""
    sizes: list[int] = []
    plain = stage.platform.provision

    def look(name: str, options: Mapping[str, str], marker: str) -> Issued:
        sizes.extend(path.stat().st_blocks * 512 for path in stage.folder.glob("*.reserved"))
        return plain(name, options, marker)

    stage.platform.provision = look  # type: ignore[method-assign]
    stage.run()
    assert [True] == [size >= RESERVED_BYTES for size in sizes]


def test_a_disk_that_refuses(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the call Vault takes the answer at once; before it, nothing is made."""

    def full(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Answer, "keep", full)
    assert ("id-0", 1, False) == stage.run()
    assert (True, set()) == (stage.holds("made-up-0"), stage.left())
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Transient, match="No space left") as caught:
        stage.run(name="b", fields={"p": "{secret}"})
    assert (Reason.JOURNAL_UNWRITABLE, 1) == (caught.value.reason, len(stage.platform.secrets))


def test_it_does_not_end_before_somebody_holds_the_answer(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither disk nor Vault take it at first; Ctrl-C waits as well."""
    keep, tries = Answer.keep, 0
    stage.vault.down = Transient("away", reason=Reason.VAULT_UNREACHABLE)

    def later(self: Answer, seal: Seal, data_key: bytes, issued: Issued) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            raise OSError(5, "Input/output error")
        stage.vault.down = None
        keep(self, seal, data_key, issued)

    monkeypatch.setattr(Answer, "keep", later)
    monkeypatch.setattr("rotator.provisioning._AGAIN", 0.001)
    assert ("id-0", 1, False) == stage.run()
    assert (2, True) == (tries, stage.holds("made-up-0"))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("existing", [False, True])
def test_a_key_of_that_name(stage: Stage, existing: bool) -> None:
    """Somebody may use its secret: only who says so gives it a new one; never one that an entry manages."""
    stage.platform.keys["id-0"] = WANTED.name
    if not existing:
        with pytest.raises(Permanent, match="--existing") as caught:
            stage.run()
        assert (Reason.BAD_REQUEST, set(), []) == (caught.value.reason, stage.left(), stage.platform.markers)
        return
    stage.managed["acme", "id-0"] = "mine"
    with pytest.raises(Permanent, match=r"keys\.mine manages id-0"):
        stage.run(existing=True)
    assert [] == stage.platform.markers
    stage.managed.clear()
    assert ("id-0", 1, False) == stage.run(existing=True)


@pytest.mark.parametrize("held", [{"password": "x"}, {"username": "y", "other": "z"}])
def test_a_place_that_is_taken(stage: Stage, held: dict[str, str]) -> None:
    """Nothing is made where Vault holds one of the fields; what else is there stays."""
    stage.vault.held = dict(held)
    with pytest.raises(Permanent, match=r"holds .* at mqtt/a already"):
        stage.run()
    assert (held, []) == (stage.vault.held, stage.platform.markers)
    stage.vault.held = {"other": "z"}
    assert ("id-0", 1, False) == stage.run()
    assert "z" == stage.vault.held["other"]


def test_what_comes_first(stage: Stage) -> None:
    """Vault's preflight, and the ability, before anything is noted."""
    stage.vault.unready = Permanent("denied", reason=Reason.VAULT_DENIED)
    with pytest.raises(Permanent, match="denied"):
        stage.run()
    stage.platform.abilities = replace(stage.platform.abilities, creates=False)
    with pytest.raises(Permanent, match="can't make keys") as caught:
        stage.run()
    assert (Reason.PROVIDER_UNABLE, set(), []) == (caught.value.reason, stage.left(), stage.platform.markers)


def test_one_at_a_time(stage: Stage) -> None:
    """A second run while one is at work is refused."""
    refused: list[RotatorError] = []
    plain = stage.platform.provision

    def second() -> None:
        try:
            stage.run()
        except RotatorError as exc:
            refused.append(exc)

    def look(name: str, options: Mapping[str, str], marker: str) -> Issued:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(10)
        return plain(name, options, marker)

    stage.platform.provision = look  # type: ignore[method-assign]
    assert ("id-0", 1, False) == stage.run()
    assert ([Reason.JOURNAL_LOCKED], 1) == ([exc.reason for exc in refused], len(stage.platform.secrets))


# --- retire


def end(stage: Stage, id: str, *, keep: bool = False) -> None:
    """One run of `retire`."""
    retire(stage.platform, id, keep=keep, managed=stage.managed)  # type: ignore[arg-type]  # as above


def test_retired(stage: Stage) -> None:
    """First useless, and then gone; `keep` leaves it at that."""
    stage.platform.keys |= {"a": "A", "b": "B"}
    end(stage, "a", keep=True)
    assert ({"a", "b"}, ["u-a"]) == (set(stage.platform.keys), stage.platform.inactive)
    end(stage, "b")
    assert ({"a"}, ["u-a", "u-b"]) == (set(stage.platform.keys), stage.platform.inactive)


@pytest.mark.parametrize(
    ("abilities", "keep", "id", "reason"),
    [
        ({"pauses": False}, True, "a", Reason.PROVIDER_UNABLE),
        ({"deletes": False}, False, "a", Reason.PROVIDER_UNABLE),
        ({}, False, "mine", Reason.BAD_REQUEST),
        ({}, True, "mine", Reason.BAD_REQUEST),
        ({}, False, "unknown", Reason.KEY_UNKNOWN),
    ],
)
def test_what_is_not_retired(stage: Stage, abilities: Mapping[str, bool], keep: bool, id: str, reason: Reason) -> None:
    """What the platform can't, what an entry manages, and what is not there: refused, and nothing is touched."""
    stage.platform.keys |= {"a": "A", "mine": "M"}
    stage.managed["acme", "mine"] = "mine"
    stage.platform.abilities = replace(stage.platform.abilities, **abilities)  # type: ignore[arg-type]
    with pytest.raises(Permanent) as caught:
        end(stage, id, keep=keep)
    assert (reason, {"a", "mine"}, []) == (caught.value.reason, set(stage.platform.keys), stage.platform.inactive)
