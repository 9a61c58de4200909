"""Logs: one line an event, and stars wherever a secret might stand."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from rotator.logs import STARS, EventLog, configure, redact
from rotator.model import RotationEvent, Secret, Step
from rotator.reasons import ADVICE, Reason

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJidWlsZGluZy1hIn0.c2lnbmF0dXJl-_x"
VAULT_TOKEN = "hvs.CAESIJ1234567890abcdefghijklmnop"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Logging set up on a stream of the test's own, and put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    before = structlog.get_config()
    stream = io.StringIO()
    configure(stream=stream, level="DEBUG", json_lines=True)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.configure(**before)


@pytest.fixture
def lines(stream: io.StringIO) -> Lines:
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def logger() -> Any:
    return structlog.get_logger("rotator.test")


def redacted(**event: Any) -> dict[str, Any]:
    return dict(redact(None, "info", event))


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "PASSWORD",
        "passwd",
        "secret",
        "secret_id",
        "client_secret",
        "token",
        "access_token",
        "vault_token",
        "Authorization",
        "api_key",
        "apikey",
        "X-Api-Key",
        "credentials",
        "private_key",
        "passphrase",
    ],
)
def test_a_value_under_a_telling_name_is_stars(name: str) -> None:
    """At the top, nested, in lists of mappings, whatever its type is."""
    values: list[object] = ["hunter2", b"hunter2", ["hunter2"], {"value": "hunter2"}, Secret("hunter2")]
    for value in values:
        assert {name: STARS} == redacted(**{name: value})
        assert {"a": {"b": [{name: STARS}]}} == redacted(a={"b": [{name: value}]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", "building-a"),
        ("provider", "acme"),
        ("sealed_secrets", 2),
        ("secret_waiting", "yes"),
        ("apikeyId", "c6f7"),
    ],
)
def test_a_value_under_a_harmless_name_is_shown(name: str, value: object) -> None:
    """A log that hides everything is no log."""
    assert {name: value} == redacted(**{name: value})


@pytest.mark.parametrize(
    "secret",
    [
        JWT,
        JWT.rpartition(".")[0] + ".",
        f"Bearer {JWT}",
        "Bearer abc123def456",
        "bearer abc123",
        VAULT_TOKEN,
        "hvb.AAAAAQJ1234567890",
        "s.abcdefghijklmnopqrstuvwx",
    ],
)
@pytest.mark.parametrize("around", ["{}", "refused: {} at the broker", '{{"x": "{}"}}', "a={},b", "\n{}\n"])
def test_what_looks_secret_is_stars_wherever_it_stands(secret: str, around: str) -> None:
    """In the message, in a field, in bytes' neighbours, in nested values."""
    text = around.format(secret)
    bare = secret.split()[-1]
    for shown in (redacted(event=text), redacted(detail=[text]), redacted(a={"b": (text,)}), redacted(e={"c": {text}})):
        assert bare not in str(shown)
        assert STARS in str(shown)


@pytest.mark.parametrize(
    "text",
    [
        "login failed: password=hunter2",
        "token: hunter2",
        '{"password": "hunter2", "organization": "acme"}',
        "{'secret': 'hunter2'}",
        "POST /login?api_key=hunter2&x=1",
    ],
)
def test_a_secret_behind_its_name_in_a_text_is_stars(text: str) -> None:
    """Key=value pairs, as libraries put them into the messages of their exceptions."""
    assert "hunter2" not in str(redacted(error=text))


def test_ordinary_words_are_left_alone() -> None:
    """Versions, addresses, durations, unit names and a dotted word are no secrets."""
    text = "vault v1.18.2 at 10.0.0.1:8200, ingest.service, building-a.example.com, s.th., 33% in 14d"
    assert {"event": text} == redacted(event=text)


def test_bytes_are_counted_not_shown() -> None:
    """A body is never worth its risk."""
    assert {"body": "<7 bytes>", "more": ["<2 bytes>"]} == redacted(body=b"hunter2", more=[bytearray(b"ab")])


@dataclass
class Plain:
    """A value of a type that the redaction does not know."""

    value: str


@pytest.mark.parametrize("value", [ValueError(f"refused {JWT}"), Plain(JWT), {"nested": Plain(JWT)}, [Plain(JWT)]])
def test_objects_that_print_a_secret_are_cleaned(lines: Lines, stream: io.StringIO, value: object) -> None:
    """An exception passed as a field, an object with a telling repr: the line is what counts."""
    logger().warning("refused", error=value)
    assert JWT not in stream.getvalue()
    assert "refused" == lines()[0]["event"]


def test_tracebacks_are_cleaned(lines: Lines, stream: io.StringIO) -> None:
    """The message of the exception, of its cause, and of a foreign library's logger."""
    try:
        try:
            raise ValueError(f"cause {VAULT_TOKEN}")
        except ValueError as exc:
            raise RuntimeError(f"Bearer {JWT}") from exc
    except RuntimeError:
        logger().exception("unforeseen")
        logging.getLogger("some.library").exception("it said %s", JWT)
    assert [True, True] == [
        "RuntimeError" in line["exception"] and "ValueError" in line["exception"] for line in lines()
    ]
    assert (False, False) == (JWT in stream.getvalue(), VAULT_TOKEN in stream.getvalue())  # fmt: skip


def test_locals_are_not_in_tracebacks(stream: io.StringIO) -> None:
    """A frame's variables hold what the frame works on."""

    def issue(answer: str) -> None:
        raise RuntimeError(f"{len(answer)} bytes came")

    try:
        issue("hunter2" * 2)
    except RuntimeError:
        logger().exception("unforeseen")
    assert "hunter2hunter2" not in stream.getvalue()


def test_a_librarys_own_lines_are_json_and_cleaned(lines: Lines, stream: io.StringIO) -> None:
    """Positional arguments, extra context variables."""
    structlog.contextvars.bind_contextvars(token="hunter2")
    try:
        logging.getLogger("some.library").warning("sent %s to %s", VAULT_TOKEN, "vault")
    finally:
        structlog.contextvars.clear_contextvars()
    assert {"event": f"sent {STARS} to vault", "level": "warning", "token": STARS}.items() <= lines()[0].items()
    assert "hunter2" not in stream.getvalue()


def test_the_readable_form_is_cleaned_too() -> None:
    """Colours on a terminal are no excuse."""
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    stream = io.StringIO()
    try:
        configure(stream=stream, json_lines=False)
        try:
            raise ValueError(f"token {JWT}")
        except ValueError:
            structlog.get_logger("rotator.readable").exception("refused", password="hunter2", detail=JWT)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
        structlog.configure(**before)
    assert "ValueError" in stream.getvalue()
    assert (False, False) == (JWT in stream.getvalue(), "hunter2" in stream.getvalue())


def test_chatty_libraries_are_quiet_and_levels_count(stream: io.StringIO, lines: Lines) -> None:
    """httpx names every URL at INFO, with its query."""
    configure(stream=stream, level="INFO", json_lines=True)
    logging.getLogger("httpx").info("HTTP Request: GET https://vault.example/v1?x=1")
    logging.getLogger("apscheduler.scheduler").info("Added job")
    logging.getLogger("rotator.test").debug("too much")
    logging.getLogger("rotator.test").info("enough")
    assert ["enough"] == [line["event"] for line in lines()]


# --- rotation events ---------------------------------------------------------------------------------------------


def event(name: str, **facts: Any) -> RotationEvent:
    return RotationEvent(
        at=datetime(2026, 3, 24, tzinfo=UTC), key="building-a", provider="acme", name=name, rotation="r1", **facts
    )


def test_a_good_event_is_one_short_line(lines: Lines) -> None:
    """Absent facts are left out; info; a moment in UTC."""
    EventLog()(event("step", step=Step.PROMOTE, result="ok", seconds=0.0123456))
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert {
        "event": "step",
        "level": "info",
        "logger": "rotator.events",
        "key": "building-a",
        "provider": "acme",
        "rotation": "r1",
        "step": "promote",
        "result": "ok",
        "seconds": 0.012,
    } == line


@pytest.mark.parametrize(
    "bad",
    [
        event("step", step=Step.PROMOTE, result="failed", reason=Reason.VAULT_SEALED),
        event("rotation_ended", result="rolled_back", reason=Reason.VAULT_SEALED),
        event("quarantined", reason=Reason.VAULT_SEALED),
        event("waiting", reason=Reason.VAULT_SEALED),
        event("problem", reason=Reason.VAULT_SEALED),
        event("drift", reason=Reason.VAULT_SEALED),
        event("probe", reason=Reason.VAULT_SEALED),
    ],
    ids=lambda bad: bad.name,
)
def test_a_bad_event_is_a_warning_with_its_next_step(bad: RotationEvent, lines: Lines) -> None:
    """Rule 7."""
    EventLog()(bad)
    (line,) = lines()
    assert ("warning", "vault_sealed", ADVICE[Reason.VAULT_SEALED]) == (line["level"], line["reason"], line["advice"])


def test_a_problem_that_is_gone_is_good_news(lines: Lines) -> None:
    """No reason, no warning."""
    EventLog()(event("problem", detail="the problem is gone"))
    assert "info" == lines()[0]["level"]


def test_extra_facts_are_fields_and_cleaned(lines: Lines, stream: io.StringIO) -> None:
    """What an adapter put beside an event."""
    EventLog()(event("restart", result="ok", detail=f"said {JWT}", extra={"consumer": "ingest", "password": "hunter2"}))
    assert {"consumer": "ingest", "password": STARS, "detail": f"said {STARS}"}.items() <= lines()[0].items()
