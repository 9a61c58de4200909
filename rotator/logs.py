"""Structured logs: JSON when nobody watches, colours on a terminal; an observer of rotation events among equals.

The redaction processor is the last line of defence (rule 6), not the first: secrets are kept out of events by
`model.Secret`, which prints as stars.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog

from rotator.model import RequestDone, RotationEvent, Secret
from rotator.reasons import ADVICE

STARS = "**********"
_SENSITIVE = re.compile(r"(?i)(pass(word|wd)?|secret(_id)?|token|authorization|api[-_]?key$|credential|private|cookie)")
# Things that are secret wherever they stand: JWTs, bearer headers, Vault tokens, and key=value pairs of those names.
_LOOKS_SECRET = re.compile(
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)?"
    r"|(?i:bearer)\s+[^\s\"',]+"
    r"|\bhv[sbr]\.[A-Za-z0-9_-]{8,}|\b[sbr]\.[A-Za-z0-9]{24,}"
)
# `password=…`, `"token": "…"`, `?api_key=…` inside a text: the name stays, the value goes.
_NAMED = re.compile(
    r"""(?i)((?:pass(?:word|wd)?|secret(?:_id)?|token|authorization|cookie|api[-_]?key)["']?\s*[=:]\s*["']?)([^\s"'&,}]+)"""
)
# `(b'Set-Cookie', b'…')`: how httpcore shows an answer's headers, once somebody sets its logger to DEBUG.
_HEADER = re.compile(
    r"""(?i)(["'][\w-]*(?:cookie|token|authorization|secret|password|api[-_]?key)[\w-]*["'],\s*b?["'])((?:[^"'\\]|\\.)+)"""
)
_QUIET = ("sealed_secrets", "secret_refused", "secret_waiting")


def configure(*, stream: TextIO | None = None, level: str = "INFO", json_lines: bool | None = None) -> None:
    """Set up structlog and the standard library's logging on one stream (stderr).

    Args:
        stream: where lines go.
        level: the lowest level that is written.
        json_lines: None means: JSON unless the stream is a terminal.
    """
    stream = stream or sys.stderr
    readable = stream.isatty() if json_lines is None else not json_lines
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
    ]
    renderer: Any = structlog.dev.ConsoleRenderer(colors=True) if readable else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # "maximum number of running instances reached" is how a job looks whose peer is slow; that is told elsewhere
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    for chatty in ("httpx", "httpcore", "httpx2", "httpcore2", "alembic", "urllib3", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,  # not cached: a module's logger would outlive this configuration
    )


def log_uncaught() -> None:
    """Have exceptions that nobody catches, in any thread, logged as all others are; Python would print them as is."""

    def uncaught(kind: type[BaseException], exc: BaseException | None, trace: TracebackType | None) -> None:
        if issubclass(kind, SystemExit):
            return  # a thread's own way to end
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, exc or kind(), trace)
            return
        structlog.get_logger("rotator").critical("uncaught", exc_info=(kind, exc or kind(), trace))

    sys.excepthook = uncaught
    threading.excepthook = lambda args: uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put stars in place of values that are, or look, secret."""
    for name, value in event.items():
        if name != "advice":  # a constant of ours, which speaks of secrets and holds none
            event[name] = STARS if _is_sensitive(name, value) else _clean(value)
    return event


def _is_sensitive(name: str, value: object) -> bool:
    plain = isinstance(value, bool | int | float | None)
    return bool(_SENSITIVE.search(name)) and not plain and name not in _QUIET


def _clean(value: object) -> object:
    match value:
        case str():
            return _HEADER.sub(rf"\1{STARS}", _NAMED.sub(rf"\1{STARS}", _LOOKS_SECRET.sub(STARS, value)))
        case Secret():
            return STARS
        case bytes() | bytearray():
            return f"<{len(value)} bytes>"
        case Mapping():
            return {k: STARS if _is_sensitive(str(k), v) else _clean(v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in value]
        case None | bool() | int() | float():
            return value
        case _:
            return _clean(repr(value))  # what the renderer would make of it, but before redaction and not after


class EventLog:
    """Writes one line for each rotation event (ports.Observer)."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("rotator.events")

    def __call__(self, event: RotationEvent) -> None:
        if event.repeated:
            return
        bad = event.result in {"failed", "rolled_back"} or event.name in {"quarantined", "waiting"}
        bad = bad or (event.name in {"problem", "drift", "probe"} and event.reason is not None)
        fields: dict[str, Any] = {
            "key": event.key,
            "provider": event.provider,
            "rotation": event.rotation,
            "step": event.step.value if event.step else None,
            "result": event.result or None,
            "reason": event.reason.value if event.reason else None,
            "seconds": round(event.seconds, 3) if event.seconds is not None else None,
            "detail": event.detail or None,
            "advice": ADVICE[event.reason] if bad and event.reason else None,
            **event.extra,
        }
        write = self._log.warning if bad else self._log.info
        write(event.name, **{name: value for name, value in fields.items() if value is not None})


def log_request(done: RequestDone) -> None:
    """One request of an adapter (ports.OnRequest), without anything of what was asked or answered."""
    given = {"request_id": done.request_id} if done.request_id else {}
    structlog.get_logger("rotator.requests").debug(
        "request",
        peer=done.peer,
        operation=done.operation,
        code=done.code,
        seconds=round(done.seconds, 3),
        **given,
    )
