"""One request each to KV version 2: what goes out, and what is read from an answer. No server is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from contract.store_stage import StoreStage
from contract.vault_replay import Exchange, Tape
from rotator.errors import Permanent, Transient
from rotator.reasons import Reason
from rotator.stores.vault_kv import Kv, Metadata, deletion_of

METADATA = "/v1/secret/metadata/mqtt/a"
DATA = "/v1/secret/data/mqtt/a"
WRITTEN = {"data": {"version": 4}}


class Headers(Tape):
    """A tape that keeps the consistency headers of each request."""

    def __init__(self, *exchanges: Exchange) -> None:
        super().__init__(*exchanges)
        self.seen: list[tuple[object, object]] = []

    def answer(self, request: requests.PreparedRequest) -> Exchange:
        """The next one, and what the request asked for."""
        self.seen.append((request.headers.get("X-Vault-Index"), request.headers.get("X-Vault-Inconsistent")))
        return super().answer(request)


@pytest.fixture
def stage() -> Iterator[StoreStage]:
    """Makes stores; they are closed at the end."""
    with closing(StoreStage()) as made:
        yield made


def kv(stage: StoreStage, tape: Tape) -> Kv:
    """A mount whose requests go to the tape."""
    store = stage.store("http://vault")
    tape.into(store)
    return store._kv


def known(**more: Any) -> Metadata:
    """What the metadata of a secret may say."""
    facts: dict[str, Any] = {
        "max_versions": 7,
        "cas_required": True,
        "delete_version_after": "3h",
        "custom": {"a": "b"},
    }
    return Metadata(**{"current": 3, "versions": {}, **facts, **more})


def reading(**data: object) -> Exchange:
    """An answer to the metadata's reading."""
    return Exchange(method="GET", path=METADATA, answer={"data": {"versions": {}, **data}})


# --- metadata ------------------------------------------------------------------------------------------------------


def test_all_that_is_known_goes_back(stage: StoreStage) -> None:
    """hvac's own call, where the server has no cas for metadata; with the cas where it has."""
    settings = {"max_versions": 7, "cas_required": True, "delete_version_after": "3h", "custom_metadata": {"c": "d"}}
    old = Exchange(method="POST", path=METADATA, body=settings, status=204)
    new = Exchange(method="POST", path=METADATA, body={**settings, "metadata_cas": 5}, status=204)
    mount = kv(stage, Tape(old, new))
    assert mount.annotate("mqtt/a", known(), {"c": "d"})
    assert mount.annotate("mqtt/a", known(revision=5), {"c": "d"})


@pytest.mark.parametrize(
    ("data", "custom"),
    [({}, None), ({"custom_metadata": None}, {}), ({"custom_metadata": {"a": "b"}}, {"a": "b"}),
     ({"custom_metadata": ["a"]}, None)],
)  # fmt: skip
def test_whether_the_server_knows_custom_metadata(
    stage: StoreStage, data: dict[str, object], custom: dict[str, str] | None
) -> None:
    """Absent before 1.9; null where nothing was ever written."""
    found = kv(stage, Tape(reading(**data))).metadata("mqtt/a")
    assert found is not None
    assert custom == found.custom
    assert (0, 0, False, "0s", None) == (
        found.current,
        found.max_versions,
        found.cas_required,
        found.delete_version_after,
        found.revision,
    )


@pytest.mark.parametrize(
    "wrong", [{"max_versions": "7"}, {"cas_required": 1}, {"delete_version_after": 3}, {"versions": []}]
)
def test_settings_that_could_not_be_put_back_are_no_metadata(stage: StoreStage, wrong: dict[str, object]) -> None:
    """A setting of a wrong type would be reset by the write that follows: it is refused instead."""
    with pytest.raises(Permanent) as caught:
        kv(stage, Tape(reading(**wrong))).metadata("mqtt/a")
    assert Reason.VAULT_PATH_INVALID is caught.value.reason


def test_when_a_version_ends() -> None:
    """As its metadata says; nothing, nonsense and another version are never."""
    ends = datetime(2026, 11, 21, 8, 55, 57, tzinfo=UTC)
    about = {"1": {"deletion_time": "2026-11-21T08:55:57Z"}, "2": {"deletion_time": ""}, "3": {"deletion_time": "soon"}}
    told = known(versions={**about, "4": None, "5": {}})
    assert [ends, None, None, None, None, None] == [deletion_of(told, version) for version in range(1, 7)]


# --- the mount -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "answer", "versions"),
    [
        (200, {"data": {"max_versions": 3}}, 3),
        (200, {"data": {"max_versions": 0}}, 0),
        (200, {"data": {"max_versions": "3"}}, 0),
        (403, {"errors": ["permission denied"]}, 0),
        (404, {"errors": []}, 0),
    ],
)
def test_how_many_versions_a_mount_keeps(stage: StoreStage, status: int, answer: object, versions: int) -> None:
    """None named where it says nothing, or may not be asked; no lookup follows the refusal."""
    tape = Tape(Exchange(method="GET", path="/v1/secret/config", status=status, answer=answer))
    assert versions == kv(stage, tape).mount_versions()


@pytest.mark.parametrize(
    ("status", "about", "refused"),
    [
        (200, {"type": "kv", "options": {"version": "2"}}, ""),
        (200, {"type": "generic", "options": {"version": "2"}}, ""),
        (200, {"type": "kv", "options": {"version": "1"}}, "KV version 1"),
        (200, {"type": "kv", "options": None}, "KV version 1"),
        (200, {"type": "kv"}, "KV version 1"),
        (200, {"type": "transit"}, "is a transit engine"),
        (200, {}, ""),
        (200, {"type": 5}, ""),
    ],
)
def test_what_an_engine_is(stage: StoreStage, status: int, about: dict[str, object], refused: str) -> None:
    """Refused where it is known to be no KV version 2; where nothing is known, the capabilities will tell."""
    tape = Tape(
        Exchange(method="GET", path="/v1/sys/internal/ui/mounts/secret/mqtt/a", status=status, answer={"data": about})
    )
    mount = kv(stage, tape)
    if not refused:
        mount.check_engine("mqtt/a")
        return
    with pytest.raises(Permanent, match=refused) as caught:
        mount.check_engine("mqtt/a")
    assert Reason.VAULT_PATH_INVALID is caught.value.reason
    assert "vault kv enable-versioning secret" in str(caught.value)


@pytest.mark.parametrize(("config", "refused"), [(200, False), (403, False), (404, True)])
@pytest.mark.parametrize("status", [403, 404])
def test_a_mount_that_may_not_be_described(stage: StoreStage, status: int, config: int, refused: bool) -> None:
    """From a parent namespace, for example: its configuration tells, which KV version 1 has none of."""
    asked = Exchange(method="GET", path="/v1/sys/internal/ui/mounts/secret/mqtt/a", status=status, answer={})
    tape = Tape(asked, Exchange(method="GET", path="/v1/secret/config", status=config, answer={"data": {}}))
    mount = kv(stage, tape)
    if not refused:
        mount.check_engine("mqtt/a")
        assert [] == tape.left
        return
    with pytest.raises(Permanent, match=r"it is not there .* or not KV version 2") as caught:
        mount.check_engine("mqtt/a")
    assert Reason.VAULT_PATH_INVALID is caught.value.reason
    assert "vault kv enable-versioning secret" in str(caught.value)


# --- a control group -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["read", "write", "metadata"])
def test_an_answer_that_a_control_group_holds_back(stage: StoreStage, verb: str) -> None:
    """200 with a wrapping token in its place: the policy is what a person has to change. The token is not shown."""
    held = {"data": None, "wrap_info": {"token": "hvs.CONTROLGROUP", "creation_path": "secret/data/mqtt/a"}}
    method, path = {"read": ("GET", DATA), "write": ("POST", DATA), "metadata": ("GET", METADATA)}[verb]
    mount = kv(stage, Tape(Exchange(method=method, path=path, answer=held)))
    verbs: dict[str, Callable[[], object]] = {
        "read": lambda: mount.read("mqtt/a"),
        "write": lambda: mount.write("mqtt/a", {"a": "b"}, cas=3),
        "metadata": lambda: mount.metadata("mqtt/a"),
    }
    with pytest.raises(Permanent, match="control group") as caught:
        verbs[verb]()
    assert Reason.VAULT_DENIED is caught.value.reason
    assert "CONTROLGROUP" not in str(caught.value)


# --- reads come after our writes -----------------------------------------------------------------------------------


def write(index: str | None, status: int = 200, answer: object = WRITTEN) -> Exchange:
    """An answer to a write, with the storage's index where the server tells it."""
    headers = {} if index is None else {"X-Vault-Index": index}
    return Exchange(method="POST", path=DATA, status=status, answer=answer, headers=headers)


def read(status: int = 200, index: str = "") -> Exchange:
    """An answer to a read."""
    answer: object = {"data": {"data": {}, "metadata": {"version": 4}}} if status == 200 else {"errors": []}
    return Exchange(method="GET", path=DATA, status=status, answer=answer, headers={"X-Vault-Index": index})


def test_a_read_asks_for_our_latest_write(stage: StoreStage) -> None:
    """Nothing before the first write; then its index, until the next. A read's own index, or a refusal's, is no write
    of ours.
    """
    mismatch = {"errors": ["check-and-set parameter did not match the current version"]}
    tape = Headers(
        read(index="r1"), write("w1"), read(index="r2"), write("w2", 400, mismatch), read(), write("w3"), read()
    )
    mount = kv(stage, tape)
    for verb in "rwrwrwr":
        if verb == "r":
            mount.read("mqtt/a")
        else:
            mount.write("mqtt/a", {"a": "b"}, cas=3)
    asked = [None, None, "w1", "w1", "w1", "w1", "w3"]
    assert [(each, each and "forward-active-node") for each in asked] == tape.seen


def test_a_server_without_an_index_is_asked_for_none(stage: StoreStage) -> None:
    """Vault's free edition: its standbys forward everything."""
    tape = Headers(write(None), read())
    mount = kv(stage, tape)
    mount.write("mqtt/a", {"a": "b"}, cas=3)
    mount.read("mqtt/a")
    assert [(None, None)] * 2 == tape.seen


def test_a_server_that_forwards_for_nobody(stage: StoreStage) -> None:
    """Vault Enterprise, as it comes, refuses to be asked to forward: asked once, then by the index alone."""
    words = "forwarding via header X-Vault-Inconsistent=forward-active-node disabled in configuration"
    refusal = Exchange(method="GET", path=DATA, status=400, answer={"errors": [words]})
    tape = Headers(write("w1"), refusal, read(), read(), write("w2"), read())
    mount = kv(stage, tape)
    mount.write("mqtt/a", {"a": "b"}, cas=3)
    assert [4, 4] == [mount.read("mqtt/a").version for _ in range(2)]
    mount.write("mqtt/a", {"a": "c"}, cas=4)
    assert 4 == mount.read("mqtt/a").version
    alone = [("w1", None)] * 3 + [("w2", None)]
    assert [(None, None), ("w1", "forward-active-node"), *alone] == tape.seen


def test_a_node_that_can_not_pass_it_on(stage: StoreStage) -> None:
    """412 says that the write has not arrived and that the node will not forward: Transient, and not asked again."""
    tape = Headers(write("w1"), read(412), read())
    mount = kv(stage, tape)
    mount.write("mqtt/a", {"a": "b"}, cas=3)
    with pytest.raises(Transient) as caught:
        mount.read("mqtt/a")
    assert Reason.VAULT_UNAVAILABLE is caught.value.reason
    assert 4 == mount.read("mqtt/a").version
    assert [None, "w1", None] == [index for index, _ in tape.seen]


# --- wrong numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, 0, -1, True, "4", 4.0, 2**63])
def test_a_version_counts_from_one(stage: StoreStage, version: object) -> None:
    """Anything else is no answer of KV version 2: it would be journaled, and be the cas of the next write."""
    answer = {"data": {"data": {}, "metadata": {"version": version}, "version": version}}
    verbs: dict[str, Callable[[Kv], object]] = {
        "GET": lambda mount: mount.read("mqtt/a"),
        "POST": lambda mount: mount.write("mqtt/a", {"a": "b"}, cas=3),
    }
    for method, verb in verbs.items():
        with pytest.raises(Permanent) as caught:
            verb(kv(stage, Tape(Exchange(method=method, path=DATA, answer=answer))))
        assert Reason.VAULT_PATH_INVALID is caught.value.reason
