"""The Vault store on real servers, in dev mode and on raft storage: read and put, and nobody overwritten."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from contract.bao_server import ROOT_TOKEN, Bao, server_binary
from contract.store_stage import Role, StoreStage, held
from rotator.errors import Conflict, Permanent, RotatorError, Transient
from rotator.model import StoredSecret
from rotator.ports import Store
from rotator.promoting import only_over
from rotator.reasons import Reason
from rotator.stores import VaultStore


def retried(store: VaultStore, path: str, fields: Mapping[str, str]) -> int:
    """A put by a caller that comes again where the path never rests, as the engine does."""
    while True:
        try:
            return store.put(path, fields)
        except Transient as exc:
            if exc.reason is not Reason.VAULT_CONFLICT:
                raise


def test_a_binary_that_is_not_there_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`ROTATOR_TEST_VAULT_BIN` is used as it is named: nothing else is taken, and nothing is skipped."""
    monkeypatch.setenv("ROTATOR_TEST_VAULT_BIN", str(tmp_path / "vault"))
    with pytest.raises(FileNotFoundError):
        Bao(tmp_path).start()
    program = tmp_path / "vault"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert str(program) == server_binary()


# --- read and put --------------------------------------------------------------------------------------------------


def test_the_first_put_and_all_that_follow(server: Bao, stage: StoreStage, path: str) -> None:
    """Never written is version 0; each put makes the next version; the same put again makes none."""
    store: Store = stage.store(server.url, auth=Role(server).auth)
    assert StoredSecret(version=0, data=None) == store.read(path)
    fields = {"username": "u1", "password": "p1"}
    assert 1 == store.put(path, fields)
    assert 1 == store.put(path, fields)
    assert 2 == store.put(path, {**fields, "password": "p2"})
    assert StoredSecret(version=2, data={"username": "u1", "password": "p2"}) == store.read(path)
    assert StoredSecret(version=1, data=fields) == store.read(path, 1)
    assert StoredSecret(version=0, data=None) == store.read(path, 3)


def test_every_write_carries_cas(server: Bao, stage: StoreStage) -> None:
    """A mount that takes no write without `cas` takes all of ours, the first one and those with a known version."""
    mount = f"cas-{uuid.uuid4()}"
    server.engine(mount, cas_required=True)
    assert 400 == server.api("POST", f"{mount}/data/a", {"data": {"password": "p"}})[0]
    store = stage.store(server.url, mount=mount)
    assert [1, 2, 3] == [
        store.put("a", {"password": "p1"}),
        store.put("a", {"password": "p2"}),
        store.put("a", {"password": "p3"}, known=2),
    ]


def test_what_others_keep_there_stays_as_it_is(server: Bao, stage: StoreStage, path: str) -> None:
    """Foreign fields of every JSON type are read and kept as they are."""
    foreign = {
        "port": 8883,
        "big": 2**53 - 1,
        "tls": True,
        "off": False,
        "ratio": 0.5,
        "none": None,
        "empty": "",
        "text": 'ö"\\\n\u2028\U0001f511',
        "tags": ["a", {"b": None}, [], 1],
        "deep": {"a": {"b": {"c": [1, "2", None]}}, "": {}},
    }
    server.must("POST", f"secret/data/{path}", {"data": {**foreign, "password": "old"}})
    store = stage.store(server.url, auth=Role(server).auth)
    assert 2 == store.put(path, {"password": "new"}, judge=only_over(path, {"password": "old"}, {"password": None}))
    shown = store.read(path).data
    assert {**foreign, "password": "new"} == held(server, path) == shown
    assert shown is not None
    assert [type(each) for each in foreign.values()] == [type(shown[name]) for name in foreign]


def test_a_field_of_ours_that_is_no_text_is_not_ours_yet(server: Bao, stage: StoreStage, path: str) -> None:
    """The number 5 and the text "5" are two things: the put writes."""
    server.must("POST", f"secret/data/{path}", {"data": {"pin": 5}})
    store = stage.store(server.url)
    assert 2 == store.put(path, {"pin": "5"})
    assert {"pin": "5"} == held(server, path)


def test_keys_that_share_a_path(server: Bao, stage: StoreStage, path: str) -> None:
    """Sixteen keys with two fields each at one path, three rotations each at once: nobody loses anything."""
    auth = Role(server).auth
    stores = [stage.store(server.url, auth=auth) for _ in range(2)]  # two daemons
    begin = threading.Barrier(16)

    def rotate(number: int) -> None:
        begin.wait(30)
        for turn in range(3):
            fields = {f"username{number}": f"u{turn}", f"password{number}": f"p{turn}"}
            retried(stores[number % 2], path, fields)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(rotate, range(16)))
    wanted = {f"username{number}": "u2" for number in range(16)} | {f"password{number}": "p2" for number in range(16)}
    stored = stores[0].read(path)
    assert wanted == stored.data
    assert 48 == stored.version  # each write made one version, and none was made twice


def test_odd_paths_and_values_come_back_whole(server: Bao, stage: StoreStage, path: str) -> None:
    """Blanks, percent signs, question marks and umlauts in the path, anything in the value."""
    store = stage.store(server.url)
    odd = f"/{path}/ä b%20c?d#e+f&g/"
    value = 'ö"\\\n\u2028{}' + "x" * 200_000
    assert 1 == store.put(odd, {"password": value})
    assert {"password": value} == store.read(odd.strip("/")).data
    assert 1 == store.preflight(odd).version


@pytest.mark.parametrize("bad", ["", "/", "a//b", "../x", "a/./b", "a/..", "a\nb", "a\x7fb", "a\u2028b", "a\ud800b"])
def test_a_path_that_a_url_would_swallow_is_refused(stage: StoreStage, bad: str) -> None:
    """No request is made for it, by any verb."""
    store = stage.store("http://127.0.0.1:9")
    verbs = (
        lambda: store.read(bad),
        lambda: store.put(bad, {}),
        lambda: store.preflight(bad),
        lambda: store.survey(bad),
        lambda: store.undelete(bad, 1),
        lambda: store.annotate(bad, {}),
    )
    for verb in verbs:
        with pytest.raises(Permanent) as caught:
            verb()
        assert Reason.VAULT_PATH_INVALID is caught.value.reason
    assert [] == stage.done


# --- the judge, and a version that is known ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "seen", "conflict"),
    [
        ({"password": "old", "note": "x"}, {"password": "old"}, False),
        ({"password": "new"}, {"password": "old"}, False),
        ({"password": "theirs"}, {"password": "old"}, True),
        ({"password": "theirs"}, {}, True),
        ({"note": "x"}, {}, False),
        ({"note": "x"}, {"password": "old"}, True),
        ({"password": "theirs"}, None, False),
        ({"password": 5}, {"password": 5}, False),
        ({"password": 5}, {"password": "5"}, True),
    ],
)
def test_nobody_is_overwritten(
    bao: Bao,
    stage: StoreStage,
    path: str,
    there: dict[str, object],
    seen: dict[str, object] | None,
    conflict: bool,
) -> None:
    """Our field must hold what was last seen there, or already what is to be written (rule 3)."""
    bao.must("POST", f"secret/data/{path}", {"data": there})
    store = stage.store(bao.url)
    judge = None if seen is None else only_over(path, seen, {"password": "new"})
    if not conflict:
        store.put(path, {"password": "new"}, judge=judge)
        assert {**there, "password": "new"} == held(bao, path)
        return
    with pytest.raises(Conflict) as caught:
        store.put(path, {"password": "new"}, judge=judge)
    assert Reason.VAULT_CONFLICT is caught.value.reason
    assert "theirs" not in str(caught.value)
    assert StoredSecret(version=1, data=there) == store.read(path)


def test_the_judge_sees_every_version_that_is_written_over(server: Bao, stage: StoreStage, path: str) -> None:
    """Somebody writes between our reading and our writing: the judge is shown that version too, and may refuse it."""
    store = stage.store(server.url)
    store.put(path, {"password": "p1"})
    shown: list[StoredSecret] = []

    def judge(stored: StoredSecret) -> None:
        shown.append(stored)
        if len(shown) <= 2:  # another writer, faster than we are
            server.must("POST", f"secret/data/{path}", {"data": {"password": "p1", "turn": len(shown)}})

    assert 4 == store.put(path, {"password": "p2"}, judge=judge)
    assert [
        StoredSecret(version=1, data={"password": "p1"}),
        StoredSecret(version=2, data={"password": "p1", "turn": 1}),
        StoredSecret(version=3, data={"password": "p1", "turn": 2}),
    ] == shown
    assert {"password": "p2", "turn": 2} == held(server, path)

    def refuse(stored: StoredSecret) -> None:
        raise Conflict(f"not over {stored.version}", reason=Reason.VAULT_CONFLICT)

    stage.operations()
    with pytest.raises(Conflict, match="not over 4"):
        store.put(path, {"password": "p3"}, judge=refuse)
    assert [("read", "200")] == stage.operations()
    assert StoredSecret(version=4, data={"password": "p2", "turn": 2}) == store.read(path)


def test_what_is_there_already_needs_no_judge(server: Bao, stage: StoreStage, path: str) -> None:
    """A put that was made before the answer was lost is found, whatever the judge would say of it."""
    store = stage.store(server.url)
    store.put(path, {"password": "p1"})

    def refuse(stored: StoredSecret) -> None:
        raise AssertionError("asked")

    assert 1 == store.put(path, {"password": "p1"}, judge=refuse)


def test_a_known_version_is_written_over_with_one_request(server: Bao, stage: StoreStage, path: str) -> None:
    """One request while it is current; else it is read, judged, merged and written as without."""
    store = stage.store(server.url, auth=Role(server).auth)
    assert 1 == store.put(path, {"password": "p1"}, known=0)
    stage.operations()
    assert 2 == store.put(path, {"password": "p2"}, known=1)
    assert [("write", "200")] == stage.operations()
    server.must("POST", f"secret/data/{path}", {"data": {"password": "p2", "note": "theirs"}})
    shown: list[StoredSecret] = []
    assert 4 == store.put(path, {"password": "p3"}, known=2, judge=shown.append)
    assert [("write", "400"), ("read", "200"), ("write", "200")] == stage.operations()
    assert [StoredSecret(version=3, data={"password": "p2", "note": "theirs"})] == shown
    assert {"password": "p3", "note": "theirs"} == held(server, path)
    assert 4 == store.put(path, {"password": "p3"}, known=2)  # as after a lost answer
    assert [("write", "400"), ("read", "200")] == stage.operations()


def test_taking_a_put_back_keeps_what_others_changed_since(server: Bao, stage: StoreStage, path: str) -> None:
    """The way back writes our fields alone over the current version, and only while they are what we put."""
    store = stage.store(server.url, auth=Role(server).auth)
    before = {"username": "u1", "password": "p1"}
    store.put(path, before)
    ours = {"username": "u2", "password": "p2"}
    store.put(path, ours)
    later = {**ours, "note": "new", "port": 1883}
    server.must("POST", f"secret/data/{path}", {"data": later})
    back = {name: str(value) for name, value in (store.read(path, 1).data or {}).items()}
    assert 4 == store.put(path, back, judge=only_over(path, ours, ours))
    assert {**later, **before} == held(server, path)
    with pytest.raises(Conflict):
        store.put(path, ours, judge=only_over(path, ours, ours))
    assert 4 == store.read(path).version


# --- what is told of it --------------------------------------------------------------------------------------------


def test_requests_are_reported_with_the_servers_clock(server: Bao, stage: StoreStage, path: str) -> None:
    """Peer, operation, code, seconds and skew of each request."""
    stage.store(server.url).preflight(path)
    for each in stage.done:
        assert "vault" == each.peer
        assert each.skew is not None
        assert abs(each.skew) < timedelta(seconds=2)
        assert 0 < each.seconds < 5
    assert [("health", "200"), ("mounts", "200"), ("capabilities", "200"), ("lookup", "200"), ("read", "404")] == (
        stage.operations()
    )


def test_sealed_and_unsealed_again(tmp_path: Path, stage: StoreStage) -> None:
    """Sealed is Transient and named by every verb; after the unseal the same store goes on; gone is unreachable."""
    server = Bao(tmp_path)
    server.start()
    try:
        store = stage.store(server.url)
        store.put("mqtt/a", {"password": "p1"})
        key = server.unseal_key()
        server.must("PUT", "sys/seal", {})
        for verb in (
            store.ready,
            lambda: store.preflight("mqtt/a"),
            lambda: store.survey("mqtt/a"),
            lambda: store.read("mqtt/a"),
            lambda: store.put("mqtt/a", {"password": "p2"}),
            lambda: store.put("mqtt/a", {"password": "p2"}, known=1),
            lambda: store.annotate("mqtt/a", {"key": "a"}),
            lambda: store.undelete("mqtt/a", 1),
            store.renew,
        ):
            with pytest.raises(Transient) as caught:
                verb()
            assert Reason.VAULT_SEALED is caught.value.reason
        server.must("PUT", "sys/unseal", {"key": key})
        server.wait_for(200)
        store.ready()
        assert 2 == store.put("mqtt/a", {"password": "p2"})
    finally:
        server.stop()
    with pytest.raises(Transient) as caught:
        store.ready()
    assert Reason.VAULT_UNREACHABLE is caught.value.reason


def test_nothing_secret_is_shown(
    bao: Bao, stage: StoreStage, path: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither reprs nor logs at DEBUG nor errors hold a value, of ours or of others, or a token."""
    caplog.set_level(logging.DEBUG)
    bao.must("POST", f"secret/data/{path}", {"data": {"note": "made-up-foreign-value"}})
    store = stage.store(bao.url)
    store.put(path, {"password": "made-up-value"})
    found = store.read(path)
    with pytest.raises(RotatorError) as caught:
        store.put(path, {"password": "made-up-value-2"}, judge=only_over(path, {}, {"password": "made-up-value-2"}))
    shown = repr(store) + repr(found) + repr(caught.value) + caplog.text + "".join(capsys.readouterr())
    assert "made-up" not in shown
    assert ROOT_TOKEN not in shown
