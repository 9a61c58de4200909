"""The parts of rotator.mqtt that need no broker; test_verify.py and test_confirm.py have the rest."""

import os
import socket
import ssl
import threading
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from rotator.errors import Transient
from rotator.model import ProbeTarget, Secret
from rotator.mqtt import Link, Subscription, one_line, quick, tls_context, words
from rotator.reasons import Reason


def test_contexts_are_made_once() -> None:
    """Making a TLS context is dear, so the same authorities get the same one, which checks host names."""
    context = tls_context(None)
    assert context is tls_context(None)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_missing_authority_file(tmp_path: Path) -> None:
    """A CA file that can't be read is an OSError, and is not remembered."""
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            tls_context(str(tmp_path / "ca.pem"))


def test_quick_sets_both_options() -> None:
    """Nagle's delay is off on a TCP socket; a socket that is none, or closed, or no socket at all, is let be."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        quick(client)
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
    quick(client)
    one, other = socket.socketpair()
    with one, other:
        quick(one)
    quick(None)


def test_words() -> None:
    """A code is shown in the broker's words, and an error on one line, or by its name."""
    assert words(ReasonCode(PacketTypes.CONNACK, "Bad user name or password")) == "Bad user name or password (code 134)"
    assert one_line(OSError("a\n  b")) == "a b"
    assert one_line(TimeoutError()) == "TimeoutError"


def test_a_link_that_was_never_opened() -> None:
    """It can't be turned, and closing it, also twice, leaves no file behind."""
    before = len(os.listdir("/proc/self/fd"))
    link = Link(ProbeTarget(host="127.0.0.1", port=1, password=Secret("x")), client_id="c")
    with pytest.raises(Transient) as failed:
        link.turn(0)
    assert failed.value.reason is Reason.BROKER_UNREACHABLE
    link.close()
    link.close()
    link.cancel()
    assert before == len(os.listdir("/proc/self/fd"))


def test_a_subscription_that_was_never_started() -> None:
    """It is not connected, and closes."""
    subscription = Subscription(
        ProbeTarget(host="127.0.0.1", port=1), "#", on_message=lambda *_: None, on_change=lambda: None
    )
    assert subscription.state() == ("not connected yet", 0)
    before = threading.active_count()
    subscription.close()
    assert before == threading.active_count()
