"""Delivery by a file: it has arrived when the file holds the new secret, however it is written there."""

from __future__ import annotations

import base64
import json
import os
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from rotator.consumers.file_delivery import LONGEST, FileDelivery
from rotator.errors import Permanent, RotatorError, Transient
from rotator.model import Order, Secret
from rotator.reasons import Reason

NEW, OLD = 'n/e+w "s3cr\\et" <&> ü=', 'o/l+d "s3cr\\et" <&> ü='
ORDER = Order(key="building-a", version=7)
SINCE = datetime(2026, 3, 1, tzinfo=UTC)

FORMS: dict[str, Callable[[str], bytes]] = {
    "alone": lambda text: text.encode(),
    "with a newline": lambda text: f"{text}\n".encode(),
    "environment": lambda text: f"USER=a\nPASSWORD={text}\n".encode(),
    "json": lambda text: json.dumps({"username": "a", "password": text}).encode(),
    "json, unescaped": lambda text: json.dumps({"password": text}, ensure_ascii=False, indent=2).encode(),
    "json of Go": lambda text: (
        json.dumps({"password": text}, ensure_ascii=False)
        .replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .encode()
    ),
    "json, escaped slashes": lambda text: json.dumps({"password": text}).replace("/", "\\/").encode(),
    "url": lambda text: f"mqtts://a:{urllib.parse.quote(text, safe='')}@broker".encode(),
    "url with slashes": lambda text: f"x?p={urllib.parse.quote(text)}".encode(),
    "form": lambda text: urllib.parse.urlencode({"password": text}).encode(),
    "base64": lambda text: b"password: " + base64.b64encode(text.encode()),
    "base64 of a line": lambda text: b"password: " + base64.b64encode(f"{text}\n".encode()),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).rstrip(b"="),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the agent will write."""
    return tmp_path / "mqtt.env"


def arrived(file: Path, secret: str = NEW) -> bool:
    """Whether this secret is there."""
    return FileDelivery("ingest", path=str(file)).arrived(ORDER, Secret(secret), SINCE)


@pytest.mark.parametrize("tail", ["", "x", "xy"])  # base64 ends in three ways
@pytest.mark.parametrize("form", FORMS)
def test_arrives(file: Path, form: str, tail: str) -> None:
    """Absent: not yet. The old secret: not yet. The new one: arrived, among other bytes that are no text."""
    delivery = FileDelivery("ingest", path=str(file))
    delivery.preflight()
    delivery.ask(ORDER)
    assert not arrived(file, NEW + tail)
    file.write_bytes(b"\xff\x00 " + FORMS[form](OLD + tail))
    assert not arrived(file, NEW + tail)
    file.write_bytes(b"\xff\x00 " + FORMS[form](NEW + tail))
    assert arrived(file, NEW + tail)
    delivery.preflight()


def test_half_written(file: Path) -> None:
    """A file that is being written does not hold the secret yet."""
    file.write_text(NEW[:-1])
    assert not arrived(file)


def test_an_empty_secret_is_in_no_file(file: Path) -> None:
    """Nothing is in everything."""
    file.write_text("anything")
    assert not arrived(file, "")


def failed(file: Path) -> tuple[type[RotatorError], Reason]:
    """What both verbs say of this file; neither names what is in it."""
    found = set()
    delivery = FileDelivery("ingest", path=str(file))
    for call in (delivery.preflight, lambda: delivery.arrived(ORDER, Secret(NEW), SINCE)):
        with pytest.raises(RotatorError) as caught:
            call()
        assert caught.value.message.startswith("ingest: ")
        assert NEW not in repr(caught.value)
        found.add((type(caught.value), caught.value.reason))
    (both,) = found
    return both


def test_unreadable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that this user may not read needs a person. (root may read all, so the kernel's word is made up.)"""
    file.write_text(NEW)
    real = os.open

    def refusing(path: str, flags: int) -> int:
        if path == str(file):
            raise PermissionError(13, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(os, "open", refusing)
    assert (Permanent, Reason.CONSUMER_FORBIDDEN) == failed(file)


def test_no_file_at_all(file: Path) -> None:
    """A folder, a named pipe, and a path that can't be one are not waited for."""
    file.mkdir()
    assert (Permanent, Reason.CONSUMER_MISSING) == failed(file)
    file.rmdir()
    os.mkfifo(file)
    assert (Permanent, Reason.CONSUMER_MISSING) == failed(file)
    assert (Transient, Reason.CONSUMER_RESTART_FAILED) == failed(file.with_name("a\0b"))


def test_too_long(file: Path) -> None:
    """Up to 1 MiB is read, and no more."""
    file.write_bytes(b"x" * (LONGEST - len(NEW.encode())) + NEW.encode())
    assert arrived(file)
    file.write_bytes(b"x" * LONGEST + NEW.encode())
    assert (Permanent, Reason.CONSUMER_MISSING) == failed(file)


def test_no_folder(file: Path) -> None:
    """A folder that is not there is a wrong path, found by the look before."""
    with pytest.raises(Permanent) as caught:
        FileDelivery("ingest", path=str(file.parent / "nowhere" / "file")).preflight()
    assert Reason.CONSUMER_MISSING is caught.value.reason


def test_nothing_is_logged(file: Path) -> None:
    """Neither the secret nor what else the file holds."""
    file.write_text(f"other {NEW}")
    with capture_logs() as found:
        assert arrived(file)
    assert [] == found
