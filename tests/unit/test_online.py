"""`check --online` on a store in memory: what a policy lacks is told, nothing is changed, nothing is used up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fakes import FakeClock, FakePlatform, FakeStore, Stage
from rotator.app import Parts
from rotator.errors import Permanent, RotatorError, Transient
from rotator.managed import ManagedKey
from rotator.model import Identity, ProbeResult, ProbeTarget, StoredSecret, Strategy, UpstreamKey, Verdict
from rotator.online import _broker, _checks, _listed, _tried, _vault_path
from rotator.policy import Policy
from rotator.reasons import Reason
from rotator.stores.vault import Survey
from rotator.stores.vault_policy import Missing
from rotator.stores.vault_wrapped import StillWrapped

UNDELETE = Missing(path="secret/undelete/a", capabilities=("update",), needed=False, purpose="to take a deletion back")


@dataclass
class SurveyedStore(FakeStore):
    """A store that tells what is asked of it."""

    survey_found: Survey = field(default_factory=lambda: Survey(missing=(), policy_lines="", notes=()))
    refuses: RotatorError | None = None
    asked: list[tuple[timedelta, int]] = field(default_factory=list)

    def preflight(self, path: str, *, lasting: timedelta = timedelta(0), versions: int = 1) -> StoredSecret:
        self.asked.append((lasting, versions))
        if self.refuses is not None:
            raise self.refuses
        return super().preflight(path)

    def survey(self, path: str) -> Survey:
        return self.survey_found


class Counter:
    """The stage's key, in front of a store."""

    def __init__(self, stage: Stage) -> None:
        self.key: ManagedKey = stage.key
        self.store = SurveyedStore(versions=[dict(stage.store.versions[0])])
        parts: Mapping[str, Any] = {"providers": {}, "consumers": {}, "keys": {}, "make": None, "patterns": {}}
        self.parts = Parts(store=cast("Any", self.store), **parts)

    def vault_path(self) -> dict[str, Any]:
        return _vault_path(self.key, self.parts)


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    stage = Stage(tmp_path)
    yield Counter(stage)
    stage.shut_down()


def test_a_path_is_looked_at_as_preflight_will(counter: Counter) -> None:
    """For as long as the key's longest rotation, and for as many versions; nothing is written."""
    assert {
        "what": "key building-a: Vault path mqtt/building-a",
        "ok": True,
        "detail": "may be read and written",
        "reason": None,
    } == counter.vault_path()
    # 30 s for the issue call, 5 s of propagation, 5 s for a consumer to come, twice
    assert [(timedelta(seconds=45), 1)] == counter.store.asked
    assert (1, []) == (len(counter.store.versions), counter.store.undeleted)


@pytest.mark.parametrize(
    ("strategy", "neighbours", "versions"),
    [(Strategy.REPLACE, 0, 2), (Strategy.CHOSEN, 2, 4), (Strategy.IN_PLACE, 2, 1)],
)
def test_a_way_back_needs_versions(counter: Counter, strategy: Strategy, neighbours: int, versions: int) -> None:
    """The old one and the new one, and one more for each key that writes into the same secret meanwhile."""

    class Other(FakePlatform):
        @property
        def strategy(self) -> Strategy:
            return strategy

    counter.key = replace(counter.key, provider=Other(clock=FakeClock()), neighbours=neighbours)
    counter.vault_path()
    assert [versions] == [asked for _, asked in counter.store.asked]


def test_what_the_policy_lacks_is_told_with_the_lines_to_add(counter: Counter) -> None:
    """Well, since nothing needs it to rotate; but said, with what to paste."""
    line = 'path "secret/undelete/a" { capabilities = ["update"] }'
    counter.store.survey_found = Survey(missing=(UNDELETE,), policy_lines=line, notes=("this server is old",))
    told = counter.vault_path()
    assert (True, None) == (told["ok"], told["reason"])
    assert told["detail"].startswith("may be read and written; this server is old; the policy lacks `update`")
    assert told["detail"].endswith(f"add: {line}")


@pytest.mark.parametrize(
    "error",
    [
        Permanent("vault: the policy lacks `create`; add: path …", reason=Reason.VAULT_DENIED),
        Permanent("vault: it keeps 1 version", reason=Reason.VAULT_VERSIONS),
        Transient("vault: sealed", reason=Reason.VAULT_SEALED),
    ],
)
def test_what_preflight_would_refuse_is_not_well(counter: Counter, error: RotatorError) -> None:
    """By its name, with what to do."""
    counter.store.refuses = error
    told = counter.vault_path()
    assert (False, error.reason.value) == (told["ok"], told["reason"])
    assert f"{error.message}. {error.advice}" == told["detail"]


def test_a_wrapping_token_is_not_used_up(counter: Counter) -> None:
    """Only the daemon may unwrap it, once: nothing is wrong, and nothing was tried."""
    counter.store.refuses = StillWrapped("the secret id is wrapped", reason=Reason.VAULT_AUTH)
    told = counter.vault_path()
    assert (True, "not tried: the secret id is wrapped", None) == (told["ok"], told["detail"], told["reason"])

    def ready() -> None:
        raise StillWrapped("the secret id is wrapped", reason=Reason.VAULT_AUTH)

    assert (True, None) == (_tried("vault", ready)["ok"], _tried("vault", ready)["reason"])


def test_a_replaced_key_is_proven_as_who_it_is_now(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration names its first id; Vault knows the one that the secret is of."""
    asked: list[tuple[str, str]] = []

    class Prober:
        def probe(self, target: ProbeTarget) -> ProbeResult:
            asked.append((target.username, target.password.reveal()))
            return ProbeResult(verdict=Verdict.ACCEPTED)

    monkeypatch.setattr("rotator.online.MqttProber", Prober)
    counter.store.versions.append({"username": "id-7", "password": "of id-7"})
    assert _broker(counter.key, counter.parts)["ok"] is True
    counter.store.down = Transient("sealed", reason=Reason.VAULT_SEALED)
    _broker(counter.key, counter.parts)
    assert [("id-7", "of id-7"), ("id-1", "")] == asked


def whom(key: ManagedKey, data: Mapping[str, object] | None) -> tuple[str, str]:
    named = key.identity_in(data, Identity(id="id-1", username="known as"))
    return named.id, named.username


@pytest.mark.parametrize(
    ("fields", "data", "named"),
    [
        ({"u": "{username}"}, {"u": "other"}, ("id-1", "other")),
        ({"u": "{username}"}, {"u": "known as"}, ("id-1", "known as")),
        ({"u": "{id}"}, {"u": "id-1"}, ("id-1", "known as")),
        ({"u": "{id}"}, {"u": "id-9"}, ("id-9", "id-9")),
        ({"u": "{id}", "n": "{username}"}, {"u": "id-9", "n": "nine"}, ("id-9", "nine")),
        ({"u": "{username}"}, {"u": 7}, ("id-1", "known as")),
        ({"u": "{username}"}, {"u": ""}, ("id-1", "known as")),
        ({"u": "x-{username}"}, {"u": "x-other"}, ("id-1", "known as")),
        ({"u": "{username}"}, None, ("id-1", "known as")),
    ],
)
def test_whom_the_data_names(
    counter: Counter, fields: dict[str, str], data: dict[str, object] | None, named: Sequence[str]
) -> None:
    """By an id, by a username, by both; else it is the usual one."""
    assert named == whom(replace(counter.key, fields={**fields, "password": "{secret}"}), data)


@pytest.mark.parametrize("value", [7, "", None, ["x"]])
def test_the_secret_is_text(counter: Counter, value: object) -> None:
    """A number, or an empty text, is no secret of ours."""
    assert counter.key.secret_of({"password": value}) is None
    held = counter.key.secret_of({"password": "x"})
    assert held is not None
    assert "x" == held.reveal()


def test_a_consumers_own_way_to_the_secret_is_tried(counter: Counter) -> None:
    """Each delivery by its own preflight, and told by name."""

    class Missing:
        def preflight(self) -> None:
            raise Permanent("no such ExternalSecret", reason=Reason.CONSUMER_MISSING)

    link = replace(counter.key.consumers[0], delivery=cast("Any", Missing()), open_watch=None)
    key = replace(counter.key, consumers=(link,), probe=None)
    parts = replace(counter.parts, keys={key.name: key})
    told = {check["what"]: check for check in _checks(cast("Any", SimpleNamespace(selections={})), parts)}
    check = told[f"key {key.name}: delivery to {link.consumer.name}"]
    assert (False, "consumer_missing") == (check["ok"], check["reason"])


@pytest.mark.parametrize(
    ("max_age", "ends", "told"),
    [
        (None, timedelta(days=9), (True, None, "listed, expires 2")),
        (None, None, (False, "no_expiry", "listed, without an expiry. The provider names no expiry: set")),
        (timedelta(days=60), None, (True, None, "listed, without an expiry: rotated by `max_age`")),
    ],
)
def test_a_key_that_would_never_be_due_is_not_well(
    counter: Counter, max_age: timedelta | None, ends: timedelta | None, told: tuple[bool, str | None, str]
) -> None:
    """The daemon blocks it, so the check must not call it well."""
    key = replace(counter.key, policy=Policy(before_expiry=timedelta(days=10), max_age=max_age))
    now = FakeClock().now()
    upstream = UpstreamKey(id=key.id, issued_at=now, expires_at=now + ends if ends is not None else None)
    ok, reason, words = told
    found = _listed(key, [upstream], counter.parts)
    assert (ok, reason) == (found["ok"], found["reason"])
    assert found["detail"].startswith(words)


def test_an_id_that_is_not_listed_comes_with_a_next_step(counter: Counter) -> None:
    """Where the ids are that there are."""
    found = _listed(counter.key, [], counter.parts)
    assert (False, "key_unknown") == (found["ok"], found["reason"])
    assert "the id id-1 is not listed; `rotator discover acme` prints those that are" == found["detail"]


@pytest.mark.parametrize(
    ("down", "words"),
    [
        (None, "reachable; Vault holds no secret to try"),
        (
            Transient("refused", reason=Reason.VAULT_UNREACHABLE),
            "reachable; no secret was tried, since Vault could not be read",
        ),
    ],
)
def test_what_vault_holds_is_not_guessed(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, down: RotatorError | None, words: str
) -> None:
    """A Vault that can't be read may hold a secret."""

    class Prober:
        def probe(self, target: ProbeTarget) -> ProbeResult:
            return ProbeResult(verdict=Verdict.REFUSED)

    monkeypatch.setattr("rotator.online.MqttProber", Prober)
    counter.store.versions.clear()
    counter.store.down = down
    found = _broker(counter.key, counter.parts)
    assert (True, words) == (found["ok"], found["detail"])


def test_an_observer_that_is_refused_is_named_so(counter: Counter) -> None:
    """Nothing was restarted, so the advice is about its login and not about the consumer."""

    class Blind:
        def healthy(self) -> str:
            return "h: not authorised"

        def close(self) -> None:
            """Nothing to give back."""

    def opened(identity: Identity, secret: object, order: object = None) -> Blind:
        return Blind()

    link = replace(counter.key.consumers[0], open_watch=cast("Any", opened), early=True)
    key = replace(counter.key, consumers=(link,), probe=None)
    parts = replace(counter.parts, keys={key.name: key})
    told = {check["what"]: check for check in _checks(cast("Any", SimpleNamespace(selections={})), parts)}
    check = told[f"key {key.name}: proof of {link.consumer.name}"]
    assert (False, "evidence_unreadable") == (check["ok"], check["reason"])
    assert "restarted but" not in check["detail"]
