"""The HTTP application over a real listener: what it answers, to whom, and how it refuses."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from fakes import Stage
from rotator.control import Control
from rotator.errors import Permanent, RotatorError, Transient
from rotator.journal.database import driver_of
from rotator.metrics import Metrics, StateCollector
from rotator.model import Verdict
from rotator.ports import Reveal
from rotator.reasons import ADVICE, Reason
from rotator.watcher import Watcher
from rotator.web.application import make_application
from rotator.web.server import Listener, bind_tcp

TOKEN = "the-admin-token"
ACTIONS = ("rotate", "pause", "resume", "adopt")
BEARER = {"authorization": f"Bearer {TOKEN}"}


class Served(Stage):
    """A stage behind a listener; `open` starts one more with other ways in."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory)
        self.stack = stack
        self.pokes = threading.Semaphore(0)
        self.alive = True
        self.watcher = Watcher(
            self.engine, {"acme": self.platform}, watch=timedelta(minutes=5), drift_interval=timedelta(hours=1)
        )
        self.registry = CollectorRegistry()
        Metrics(self.registry, self.engine.keys)
        self.registry.register(StateCollector(self.journal, self.engine.keys, self.clock, lambda: None))
        self.control = Control(engine=self.engine, watcher=self.watcher, poke=self.pokes.release)

    def open(self, *, admin_token: Reveal | None = lambda: TOKEN, trusted: bool = False) -> httpx.Client:
        application = make_application(
            self.control, self.registry, alive=lambda: self.alive, admin_token=admin_token, trusted=trusted
        )
        sock = bind_tcp("127.0.0.1", 0)
        listener = Listener([(application, sock)])
        listener.start()
        self.stack.callback(listener.close)
        client = httpx.Client(base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", timeout=10, trust_env=False)
        return self.stack.enter_context(client)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Served]:
    with ExitStack() as stack:
        stage = Served(tmp_path, stack)
        stack.callback(stage.shut_down)
        stage.introduce()
        yield stage


@pytest.fixture
def client(stage: Served) -> httpx.Client:
    return stage.open()


# --- reading -----------------------------------------------------------------------------------------------------


def test_metrics_in_both_formats(client: httpx.Client) -> None:
    """Prometheus' own text, and OpenMetrics where it is asked for."""
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert 'rotator_key_state{key="building-a",state="due"} 1.0' in plain.text
    modern = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")


def test_livez_says_whether_the_scheduler_runs(stage: Served, client: httpx.Client) -> None:
    """200 or 503, so that a supervisor restarts it."""
    assert (200, {"alive": True}) == ((answer := client.get("/livez")).status_code, answer.json())
    stage.alive = False
    assert (503, {"alive": False}) == ((answer := client.get("/livez")).status_code, answer.json())


def test_readyz_says_why_not(stage: Served, client: httpx.Client) -> None:
    """Not before the first look, not while a peer is away; each with its reason and words."""
    assert 503 == client.get("/readyz").status_code
    stage.watcher.keep_vault_login()
    stage.watcher.look_at_providers()
    well = {"ok": True}
    assert (200, {"ready": True, "checks": {"acme": well, "vault": well, "journal": well}}) == (
        (answer := client.get("/readyz")).status_code,
        answer.json(),
    )
    stage.store.down = Transient("Vault says 503", reason=Reason.VAULT_SEALED)
    stage.clock.pass_time(timedelta(minutes=1))
    stage.watcher.keep_vault_login()
    answer = client.get("/readyz")
    advice = ADVICE[Reason.VAULT_SEALED]
    assert (503, {"ok": False, "reason": "vault_sealed", "detail": "Vault says 503", "advice": advice}) == (
        answer.status_code,
        answer.json()["checks"]["vault"],
    )


def test_readyz_says_that_the_journal_takes_nothing(stage: Served, client: httpx.Client) -> None:
    """From a write that failed to the next one that is durable: 503, the name, and what to do; a metric as well."""
    stage.watcher.keep_vault_login()
    stage.watcher.look_at_providers()
    read_only(stage, "ON")
    assert 503 == client.post("/api/keys/building-a/pause", headers=BEARER).status_code
    answer = client.get("/readyz")
    check = answer.json()["checks"]["journal"]
    assert (503, False, "journal_unwritable") == (answer.status_code, check["ok"], check["reason"])
    assert ("the journal can't be written" in check["detail"], ADVICE[Reason.JOURNAL_UNWRITABLE]) == (
        True,
        check["advice"],
    )
    assert "rotator_journal_last_write_successful 0.0" in client.get("/metrics").text
    read_only(stage, "OFF")
    assert 200 == client.post("/api/keys/building-a/pause", headers=BEARER).status_code
    assert 200 == client.get("/readyz").status_code
    assert "rotator_journal_last_write_successful 1.0" in client.get("/metrics").text


def test_readyz_says_that_an_answer_would_have_no_room(
    stage: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk where the journal itself still has some: nothing is issued, so the daemon is not ready."""
    stage.watcher.keep_vault_login()
    stage.watcher.look_at_providers()

    def full(*_anything: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "posix_fallocate", full)
        stage.work()
    answer = client.get("/readyz")
    check = answer.json()["checks"]["journal"]
    assert (503, "journal_unwritable", 0) == (answer.status_code, check["reason"], stage.platform.issued)
    assert "No space left on device" in check["detail"]
    stage.engine.spool.try_reserving()
    assert 200 == client.get("/readyz").status_code


def read_only(stage: Served, value: str) -> None:
    """Whether SQLite refuses what the journal writes: ON or OFF."""
    assert stage.journal._writer is not None
    with stage.journal._writer.between() as connection:
        driver_of(connection).execute(f"PRAGMA query_only={value}")


def test_a_held_provider_is_not_ready(stage: Served, client: httpx.Client) -> None:
    """A refused login shows up with its advice and the next try."""
    stage.platform.list_failures = [Permanent("bad password", reason=Reason.PROVIDER_AUTH)]
    stage.watcher.look_at_providers()
    check = client.get("/readyz").json()["checks"]["acme"]
    assert (False, "provider_auth", ADVICE[Reason.PROVIDER_AUTH]) == (check["ok"], check["reason"], check["advice"])
    assert check["next_try_at"] is not None


def test_keys_and_one_key(stage: Served, client: httpx.Client) -> None:
    """The list, one with its history and what holds it."""
    assert ["building-a"] == [key["name"] for key in client.get("/api/keys").json()["keys"]]
    stage.introduce(paused=True)
    one = client.get("/api/keys/building-a").json()
    assert ({"reason": "paused", "until": None}, []) == (one["held"], one["history"])
    stage.introduce()
    stage.work()
    one = client.get("/api/keys/building-a").json()
    assert "rotation_ended" == one["history"][0]["name"]


def test_rotations_by_key(stage: Served, client: httpx.Client) -> None:
    """All, or those of one key."""
    stage.work()
    (rotation,) = client.get("/api/rotations").json()["rotations"]
    assert ("building-a", "succeeded") == (rotation["key"], rotation["result"])
    assert [rotation] == client.get("/api/rotations", params={"key": "building-a"}).json()["rotations"]
    answer = client.get("/api/rotations", params={"key": "building-b"})
    assert (404, "no_such_key") == (answer.status_code, answer.json()["error"])
    del stage.engine.keys["building-a"]  # what was taken out of the configuration keeps its history
    assert [rotation] == client.get("/api/rotations", params={"key": "building-a"}).json()["rotations"]


def test_the_page_escapes_what_others_wrote(stage: Served, client: httpx.Client) -> None:
    """A provider's message is text, not markup; the page is not kept by caches."""
    stage.introduce(failures=1, last_reason=Reason.PROVIDER_REFUSED, last_detail="<script>alert(1)</script>")
    page = client.get("/")
    assert "no-store" == page.headers["cache-control"]
    assert "<script>" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text


def test_no_answer_holds_a_secret(stage: Served, client: httpx.Client) -> None:
    """After a rotation, on every page."""
    stage.work()
    pages = ["/", "/metrics", "/readyz", "/api/keys", "/api/keys/building-a", "/api/rotations"]
    text = "".join(client.get(page).text for page in pages)
    assert (False, False, False) == ("secret-0" in text, "secret-1" in text, TOKEN in text)


# --- who may act -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": "Bearer tök€n".encode()},
        {"cookie": f"token={TOKEN}"},
    ],
    ids=str,
)
def test_without_the_token_nothing_is_done(stage: Served, client: httpx.Client, headers: dict[str, str]) -> None:
    """401 with a challenge, before a word about whether the key exists."""
    for path in (f"{name}/{action}" for name in ("building-a", "unknown") for action in ACTIONS):
        answer = client.post(f"/api/keys/{path}", headers=headers, json={"now": True})
        assert (401, "Bearer") == (answer.status_code, answer.headers["www-authenticate"])
    assert (False, "") == (stage.record.paused, stage.record.requested)


def test_no_token_configured_means_no_posts(stage: Served) -> None:
    """Reading goes on."""
    client = stage.open(admin_token=None)
    for headers in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer None"}):
        assert 401 == client.post("/api/keys/building-a/pause", headers=headers).status_code
    assert 200 == client.get("/api/keys").status_code


def test_an_empty_token_opens_nothing(stage: Served) -> None:
    """A token file that somebody emptied must not let in everybody."""
    client = stage.open(admin_token=lambda: "")
    for header in ("Bearer", "bearer"):
        assert 401 == client.post("/api/keys/building-a/pause", headers={"authorization": header}).status_code
    assert stage.record.paused is False


def test_a_token_that_can_not_be_read_is_named(stage: Served) -> None:
    """Refused with the reason, not let through."""

    def unreadable() -> str:
        raise Permanent("secret file /x is empty", reason=Reason.SECRET_REFERENCE)

    answer = stage.open(admin_token=unreadable).post("/api/keys/building-a/pause", headers=BEARER)
    assert (422, "secret_reference", False) == (answer.status_code, answer.json()["error"], stage.record.paused)


def test_a_token_that_was_replaced_counts_at_once(stage: Served) -> None:
    """It is read at every request."""
    tokens = ["first"]
    client = stage.open(admin_token=lambda: tokens[-1])
    assert 200 == client.post("/api/keys/building-a/pause", headers={"authorization": "bearer first"}).status_code
    tokens.append("second")
    assert 401 == client.post("/api/keys/building-a/pause", headers={"authorization": "Bearer first"}).status_code
    assert 200 == client.post("/api/keys/building-a/pause", headers={"authorization": "Bearer second"}).status_code


def test_the_unix_socket_needs_no_token(stage: Served) -> None:
    """Its file mode says who may ask."""
    assert 200 == stage.open(trusted=True).post("/api/keys/building-a/pause").status_code


# --- acting ------------------------------------------------------------------------------------------------------


def test_rotate_is_journaled_before_it_is_answered(stage: Served, client: httpx.Client) -> None:
    """Accepted, the engine poked, and nothing issued yet."""
    answer = client.post("/api/keys/building-a/rotate", headers=BEARER, json={"now": True})
    assert (202, {"key": "building-a", "requested": "now", "previous": None}) == (answer.status_code, answer.json())
    assert ("now", 0, True) == (stage.record.requested, stage.platform.issued, stage.pokes.acquire(blocking=False))


def test_now_is_only_what_says_so(stage: Served, client: httpx.Client) -> None:
    """Anything but `true` obeys the windows."""
    for body in (b"", b"{}", b'{"now": false}', b'{"now": false, "compromised": false}'):
        stage.introduce()
        answer = client.post("/api/keys/building-a/rotate", headers=BEARER, content=body)
        assert (202, "window") == (answer.status_code, stage.record.requested)


@pytest.mark.parametrize(
    ("action", "body", "named"),
    [
        ("rotate", {"compromized": True}, "compromized"),
        ("rotate", {"now": True, "compromized": True}, "compromized"),
        ("rotate", {"now": "true"}, "now"),
        ("rotate", {"now": 1}, "now"),
        ("rotate", {"compromised": None}, "compromised"),
        ("pause", {"until": "tomorrow"}, "until"),
        ("resume", {"force": True}, "force"),
        ("rollback", {"now": True}, "now"),
        ("confirm", {"consumers": "ingest"}, "consumers"),
        ("confirm", {"consumer": ["ingest"]}, "consumer"),
        ("confirm", {}, "consumer"),
        ("adopt", {"password": "secret-0"}, "password"),
        ("adopt", {}, "secret"),
    ],
    ids=str,
)
def test_a_field_that_is_not_meant_so_is_refused_by_name(
    stage: Served, client: httpx.Client, action: str, body: dict[str, object], named: str
) -> None:
    """Who writes `compromized` must not get a rotation that leaves the old secret alive."""
    before = stage.record
    answer = client.post(f"/api/keys/building-a/{action}", headers=BEARER, json=body)
    assert (422, "bad_request") == (answer.status_code, answer.json()["error"])
    assert f"`{named}`" in answer.json()["message"]
    assert (before, []) == (stage.record, stage.journal.history())


def test_pause_and_resume(stage: Served, client: httpx.Client) -> None:
    """Resume takes back a quarantine as well, and wakes the key."""
    stage.introduce(quarantine=Reason.SECRET_REFUSED)
    assert {"key": "building-a", "paused": True} == client.post("/api/keys/building-a/pause", headers=BEARER).json()
    assert stage.record.paused is True
    assert {"key": "building-a", "paused": False} == client.post("/api/keys/building-a/resume", headers=BEARER).json()
    assert (False, None) == (stage.record.paused, stage.record.quarantine)
    assert stage.record.wake_at is not None
    assert ["resumed", "paused"] == [event["name"] for event in stage.journal.history()]


def test_adopt_proves_and_promotes(stage: Served, client: httpx.Client) -> None:
    """The secret is in Vault, and nowhere in the answer or the history."""
    stage.store.versions.clear()
    answer = client.post("/api/keys/building-a/adopt", headers=BEARER, json={"secret": "secret-0"})
    expected = {"key": "building-a", "vault": {"path": "mqtt/building-a", "version": 1}, "proven": True}
    assert (200, expected) == (answer.status_code, answer.json())
    assert ("secret-0", True, 1) == (stage.current, stage.record.adopted, stage.record.vault_version)
    assert "secret-0" not in str(stage.journal.history())


@pytest.mark.parametrize(
    ("verdict", "status", "error"),
    [
        (Verdict.REFUSED, 422, "secret_refused"),
        (Verdict.SUBSCRIPTION_REFUSED, 422, "subscription_refused"),
        (Verdict.UNREACHABLE, 503, "broker_unreachable"),
    ],
)
def test_adopt_puts_nothing_unproven_into_vault(
    stage: Served, client: httpx.Client, verdict: Verdict, status: int, error: str
) -> None:
    """Rule 2."""
    stage.broker.verdicts = [verdict]
    answer = client.post("/api/keys/building-a/adopt", headers=BEARER, json={"secret": "hunter2"})
    assert (status, error, 1) == (answer.status_code, answer.json()["error"], len(stage.store.versions))
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("secret", ["", None, 0, ["secret-0"], {"value": "secret-0"}, True])
def test_adopt_takes_only_a_text(stage: Served, client: httpx.Client, secret: object) -> None:
    """Python's notation of a list is nobody's password, even where no broker could say so."""
    stage.with_verify = False
    stage.engine.keys["building-a"] = stage._managed()
    answer = client.post("/api/keys/building-a/adopt", headers=BEARER, json={"secret": secret})
    assert (422, 1) == (answer.status_code, len(stage.store.versions))


# --- refusing ----------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_404_with_its_name(client: httpx.Client) -> None:
    """For reading and for acting."""
    answers = [client.get("/api/keys/nobody")] + [
        client.post(f"/api/keys/nobody/{action}", headers=BEARER, json={"secret": "x"} if action == "adopt" else {})
        for action in ACTIONS
    ]
    assert [(404, "no_such_key")] * 5 == [(answer.status_code, answer.json()["error"]) for answer in answers]
    assert {"there is no key 'nobody' in the configuration"} == {answer.json()["message"] for answer in answers}


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'"now"', b"7", b"\xff\xfe", b'{"now":' + b" " * 70_000 + b"true}", b"[" * 60_000],
    ids=["cut", "list", "text", "number", "binary", "large", "deep"],
)
def test_a_body_that_is_no_object_is_the_callers_fault(stage: Served, client: httpx.Client, body: bytes) -> None:
    """4xx with a name of its own; the request is not done, and it is not called a fault in rotator."""
    answer = client.post("/api/keys/building-a/rotate", headers=BEARER, content=body)
    assert 400 <= answer.status_code < 500
    assert "" == stage.record.requested
    assert "unforeseen" != answer.json()["error"]


def test_the_wrong_method_or_path_is_refused(client: httpx.Client) -> None:
    """A GET never acts; nothing else is there."""
    assert 405 == client.get("/api/keys/building-a/rotate", headers=BEARER).status_code
    assert 405 == client.delete("/api/keys/building-a", headers=BEARER).status_code
    assert 404 == client.post("/api/keys/building-a/delete", headers=BEARER).status_code
    assert 404 == client.get("/docs").status_code
    assert 404 == client.get("/api/keys/..%2f..%2fetc").status_code


def test_errors_carry_the_next_step(stage: Served, client: httpx.Client) -> None:
    """A store that is away while adopting: 503, its name, its words, its advice."""
    stage.store.down = Transient("gone", reason=Reason.VAULT_UNREACHABLE)
    answer = client.post("/api/keys/building-a/adopt", headers=BEARER, json={"secret": "secret-0"})
    expected: RotatorError = stage.store.down
    assert (503, {"error": "vault_unreachable", "message": "gone", "advice": expected.advice}) == (
        answer.status_code,
        answer.json(),
    )
