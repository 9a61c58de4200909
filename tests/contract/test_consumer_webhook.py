"""Consumers that a webhook restarts, and proof over HTTP, against a web server on a real socket."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from contract.consumer_application import Application
from contract.consumer_cases import ORDER, ConsumerCases, confirmed, looked, refused
from contract.consumer_site import Reply, Request, Site
from integration.broker_fixture import until
from rotator.clock import SystemClock
from rotator.confirmation import Confirmations
from rotator.consumers.asking import AskingWatch
from rotator.consumers.exchange import LONGEST
from rotator.consumers.http_evidence import ask_http
from rotator.consumers.webhook import WebhookConsumer
from rotator.errors import Permanent, Stopping, Transient
from rotator.model import Identity, Order
from rotator.ports import Watch
from rotator.providers import make_client
from rotator.reasons import Reason
from rotator.sandbox.processes import free_port

SECRET = "hush-hush"


class WebhookStage:
    """A webhook that restarts an application, which answers its version under /version."""

    kind = "webhook"

    def __init__(self, client: httpx.Client) -> None:
        self.stop, self._client = threading.Event(), client
        self.replies: list[Reply] = []  # of POST, before the usual one
        self.usual = Reply(status=202)
        self._running, self._wanted = 6, None  # type: tuple[int, int | None]
        self.site, self.application = Site(self._answer), Application(lambda: self._running)

    def consumer(self, timeout: float = 10, path: str = "/restart") -> WebhookConsumer:
        """The adapter."""
        return WebhookConsumer(
            "subject",
            url=self.site.url + path,
            secret=lambda: SECRET,
            client=self._client,
            timeout=timedelta(seconds=timeout),
            clock=SystemClock(),
            stop=self.stop,
        )

    def watch(self, order: Order) -> Watch:
        """Asks the application."""
        return self.application.watch(self._client, order)

    def restarts(self) -> list[tuple[str, int]]:
        """Those that were taken."""
        found = [json.loads(request.body) for request in self.site.of("POST") if self.usual.status < 400]
        return [(body["key"], body["version"]) for body in found]

    def told(self) -> int:
        """Questions that the application has answered."""
        return self.application.told()

    def run_on(self, version: int | None) -> None:
        """What the next restart leaves."""
        self._wanted = version

    def slow(self, seconds: float) -> None:
        """The webhook answers late."""
        self.usual = Reply(after=seconds)

    def failing(self) -> None:
        """It says 503."""
        self.usual = Reply(status=503)

    def missing(self) -> None:
        """It says 404."""
        self.usual = Reply(status=404)

    def forbidden(self) -> None:
        """It says 403."""
        self.usual = Reply(status=403)

    def silent(self) -> None:
        """The application hangs up instead of answering its version."""
        self.application.speaks = False

    def half_down(self) -> None:
        """There is no half of a webhook."""
        raise NotImplementedError

    def crashes(self) -> None:
        """The application dies again and again; the webhook is somebody else, and takes the order."""
        self.application.crashes()

    def deaths(self) -> int:
        """How often the application has gone."""
        return self.application.deaths

    def mended(self) -> None:
        """It stays up."""
        self.application.mended()

    def _answer(self, request: Request) -> Reply:
        if request.method == "POST":
            self._running = json.loads(request.body)["version"] if self._wanted is None else self._wanted
            return self.replies.pop(0) if self.replies else self.usual
        return Reply(status=405)


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """The client that the daemon uses."""
    with make_client() as made:
        yield made


@pytest.fixture
def stage(client: httpx.Client) -> Iterator[WebhookStage]:
    """A webhook that does well."""
    made = WebhookStage(client)
    with made.site, made.application:
        yield made


class TestWebhook(ConsumerCases):
    """The suite, over a webhook that is proven over HTTP."""

    test_half_down = None  # type: ignore[assignment]  # one URL, one answer
    test_the_daemon_stops = None  # type: ignore[assignment]  # a request is not cut short; between two it is, below


def test_signature(stage: WebhookStage) -> None:
    """Anybody who has the secret can check the signature, by the words of docs/consumers.md."""
    before = int(time.time())
    stage.consumer().restart(ORDER)
    (request,) = stage.site.of("POST")
    timestamp = request.headers["rotator-timestamp"]
    digest = hmac.new(SECRET.encode(), timestamp.encode() + b"." + request.body, hashlib.sha256).hexdigest()
    assert f"sha256={digest}" == request.headers["rotator-signature"]
    assert before <= int(timestamp) <= time.time()
    assert ORDER.id == request.headers["idempotency-key"]
    body = json.loads(request.body)
    at = datetime.fromisoformat(body.pop("at"))
    assert {"key": "building-a", "version": 7, "id": ORDER.id} == body
    assert timedelta(0) <= datetime.now(UTC) - at < timedelta(seconds=10)
    assert SECRET not in repr(request)


@pytest.mark.parametrize("first", [Reply(status=503), Reply(status=429), Reply(cut=True)], ids=["503", "429", "cut"])
def test_tried_again(stage: WebhookStage, first: Reply) -> None:
    """A failure that may pass is tried again, with the same idempotency key and body and a signature of its own."""
    stage.replies = [first, first]
    stage.consumer().restart(ORDER)
    requests = stage.site.of("POST")
    assert 3 == len(requests)
    assert {ORDER.id} == {request.headers["idempotency-key"] for request in requests}
    assert 1 == len({request.body for request in requests})
    stamps = [int(request.headers["rotator-timestamp"]) for request in requests]
    assert stamps[0] < stamps[2]
    assert len(set(stamps)) == len({request.headers["rotator-signature"] for request in requests})


def test_the_keys_name_in_the_url(stage: WebhookStage) -> None:
    """It is filled in, as in the URL of a proof; the look before it needs none."""
    subject = stage.consumer(path="/restart/{key}")
    subject.preflight()
    subject.restart(ORDER)
    assert ["/restart/building-a"] == [request.path for request in stage.site.of("POST")]
    assert all("{" not in request.path for request in stage.site.of("OPTIONS"))


def test_retry_after_is_kept(stage: WebhookStage) -> None:
    """A delay that fits into the timeout is waited for; one that does not goes on to who asks again later."""
    stage.replies = [Reply(status=429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    stage.consumer().restart(ORDER)
    assert time.monotonic() - began >= 1
    stage.replies = [Reply(status=503, headers={"Retry-After": "77"})]
    with pytest.raises(Transient) as caught:
        stage.consumer().restart(ORDER)
    assert timedelta(seconds=77) == caught.value.retry_after


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, Reason.CONSUMER_FORBIDDEN),
        (403, Reason.CONSUMER_FORBIDDEN),
        (404, Reason.CONSUMER_MISSING),
        (410, Reason.CONSUMER_MISSING),
        (400, Reason.CONSUMER_RESTART_FAILED),
        (422, Reason.CONSUMER_RESTART_FAILED),
        (302, Reason.CONSUMER_RESTART_FAILED),
        (307, Reason.CONSUMER_RESTART_FAILED),
    ],
)
def test_refused(stage: WebhookStage, status: int, expected: Reason) -> None:
    """What another try does not change is asked once; a redirect is not followed: it may lead to anybody."""
    stage.usual = Reply(status=status, headers={"Location": f"{stage.site.url}/elsewhere"})
    assert (Permanent, expected) == refused(stage.consumer().restart, ORDER)
    assert ["/restart"] == [request.path for request in stage.site.requests]


def test_stopped_between_two_tries(stage: WebhookStage) -> None:
    """A daemon that goes down does not wait for the next try."""
    stage.usual = Reply(status=503, headers={"Retry-After": "9"})
    timer = threading.Timer(0.3, stage.stop.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopping):
        stage.consumer(timeout=15).restart(ORDER)
    assert time.monotonic() - began < 8
    timer.join(10)


def test_preflight(stage: WebhookStage, client: httpx.Client) -> None:
    """The look before sends no order; whoever answers is there, and where nobody does, that is told."""
    stage.consumer().preflight()
    assert ["OPTIONS"] == [request.method for request in stage.site.requests]
    nobody = WebhookConsumer(
        "subject",
        url=f"http://127.0.0.1:{free_port()}/",
        secret=lambda: SECRET,
        client=client,
        timeout=timedelta(seconds=2),
        clock=SystemClock(),
    )
    assert (Transient, Reason.CONSUMER_RESTART_FAILED) == refused(nobody.preflight)
    assert (Transient, Reason.CONSUMER_RESTART_FAILED) == refused(nobody.restart, ORDER)


def test_an_unreadable_secret_is_told_before(stage: WebhookStage, client: httpx.Client) -> None:
    """No request goes out unsigned."""

    def unreadable() -> str:
        raise Permanent("subject: no such file", reason=Reason.SECRET_REFERENCE)

    subject = WebhookConsumer(
        "subject",
        url=stage.site.url,
        secret=unreadable,
        client=client,
        timeout=timedelta(seconds=2),
        clock=SystemClock(),
    )
    for call in (subject.preflight, lambda: subject.restart(ORDER)):
        assert (Permanent, Reason.SECRET_REFERENCE) == refused(call)
    assert [] == stage.site.requests


def test_a_trickling_answer(client: httpx.Client) -> None:
    """A server that sends its answer byte by byte holds a restart no longer than its timeout."""
    over = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            for byte in itertools.cycle(b"HTTP/1.1 100 Continue\r\n\r\n"):
                connection.sendall(bytes([byte]))
                if over.wait(0.02):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        subject = WebhookConsumer(
            "subject",
            url=f"http://127.0.0.1:{listener.getsockname()[1]}/",
            secret=lambda: SECRET,
            client=client,
            timeout=timedelta(seconds=0.5),
            clock=SystemClock(),
        )
        began = time.monotonic()
        try:
            assert (Transient, Reason.CONSUMER_TIMEOUT) == refused(subject.restart, ORDER)
            assert time.monotonic() - began < 5
        finally:
            over.set()
            thread.join(10)


def test_a_long_answer(stage: WebhookStage) -> None:
    """An endless answer is not read to its end, and the status counts."""
    stage.usual = Reply(body=b"x" * (2 * LONGEST), headers={"Content-Length": "1000000000"})
    stage.consumer(timeout=3).restart(ORDER)
    assert [("building-a", 7)] == stage.restarts()


# --- proof over HTTP


@pytest.mark.parametrize(
    ("body", "field", "proven"),
    [
        (b'{"version": 7}', "version", True),
        (b'{"version": "7"}', "version", True),
        (b'{"mqtt": {"secret": {"version": 7}}}', "mqtt.secret.version", True),
        (b"7", "version", True),
        (b" 7\n", "version", True),
        (b'"7"', "version", True),
        (b'{"version": 6}', "version", False),
        (b'{"version": 8}', "version", False),
        (b'{"version": 77}', "version", False),
        (b'{"version": 7.5}', "version", None),
        (b'{"version": true}', "version", None),
        (b'{"build": 7}', "version", None),
        (b'{"version": {"version": 7}}', "version", None),
        (b"version 7", "version", None),
        (b"<html>7</html>", "version", None),
        (b"[" * 100_000, "version", None),
        (b"", "version", None),
    ],
)
def test_answers(client: httpx.Client, body: bytes, field: str, proven: bool | None) -> None:
    """What proves version 7, what is another version, and what names none (None), which may be a wrong URL."""
    with Site(lambda _request: Reply(body=body)) as site:
        ask = ask_http("subject", client=client, url=site.url, field=field, headers=dict, order=ORDER)
        if proven is None:
            assert (Permanent, Reason.CONSUMER_NOT_CONFIRMED) == refused(ask)
        else:
            assert ("answered version 7" if proven else None) == ask()


@pytest.mark.parametrize(("status", "blind"), [(200, False), (401, True), (404, True), (500, False), (503, False)])
def test_a_consumer_that_is_down_and_a_question_that_is_wrong(client: httpx.Client, status: int, blind: bool) -> None:
    """Who is down is not confirmed; a URL or a login that can't be right makes the watch blind, and both may pass."""
    replies = {"now": Reply(status=status, body=b"6")}
    with Site(lambda _request: replies["now"]) as site:
        ask = ask_http("subject", client=client, url=site.url, field="version", headers=dict, order=ORDER)
        with closing(AskingWatch("subject", ask=ask, clock=SystemClock(), stop=threading.Event(), pause=0.01)) as watch:
            looked(watch, lambda: len(site.requests) >= 3, "it was asked")
            assert blind == bool(watch.healthy())
            assert () == tuple(watch.sightings())
            replies["now"] = Reply(body=b"7")
            confirmed(watch)
            assert "" == watch.healthy()


def test_headers_and_the_keys_name(client: httpx.Client) -> None:
    """Headers go along, their secrets read for each question; the URL may name the key."""
    read: list[object] = []

    def reveal(ref: object) -> str:
        read.append(ref)
        return f"token-{len(read)}"

    headers: Mapping[str, object] = {"Accept": "text/plain", "Authorization": {"file": "x"}}
    with Site(lambda _request: Reply(body=b"6")) as site:
        maker = Confirmations(clock=SystemClock(), read_ref=reveal).http(
            "subject", client, url=site.url + "/keys/{key}?all", field="version", headers=headers
        )
        with closing(maker.open(Identity(id="a", username="a"), None, ORDER)) as watch:
            looked(watch, lambda: len(site.requests) >= 2, "it was asked twice")
        assert "/keys/building-a?all" == site.requests[0].path
        assert ["token-1", "token-2"] == [request.headers["authorization"] for request in site.requests[:2]]
        assert "text/plain" == site.requests[0].headers["accept"]


def test_nobody_is_asked_while_nobody_looks(client: httpx.Client) -> None:
    """A watch is kept open for a day of grace; it asks only when somebody waits for the answer."""
    with Site(lambda _request: Reply(body=b"7")) as site:
        ask = ask_http("subject", client=client, url=site.url, field="version", headers=dict, order=ORDER)
        with closing(AskingWatch("subject", ask=ask, clock=SystemClock(), stop=threading.Event(), pause=0.01)) as watch:
            confirmed(watch)
            until(lambda: watch._wanted.is_set() is False, "the last question is answered")
            asked = len(site.requests)
            assert not threading.Event().wait(0.3)
            assert len(site.requests) <= asked + 1
            seen = len(watch.sightings())
            looked(watch, lambda: len(watch.sightings()) > seen, "it is proven anew")


def test_a_slow_answer_is_as_old_as_its_question(client: httpx.Client) -> None:
    """What was asked before a restart proves nothing about what came after it."""
    with Site(lambda _request: Reply(body=b"7", after=0.3)) as site:
        ask = ask_http("subject", client=client, url=site.url, field="version", headers=dict, order=ORDER)
        with closing(AskingWatch("subject", ask=ask, clock=SystemClock(), stop=threading.Event(), pause=0.01)) as watch:
            watch.sightings()
            until(lambda: bool(site.requests), "it is asked")
            asked = datetime.now(UTC)
            assert confirmed(watch) <= asked
