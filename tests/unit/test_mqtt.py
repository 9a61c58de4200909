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
from rotator.mqtt import LONGEST_PACKET, Link, Subscription, one_line, quick, tls_context, words
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


@pytest.mark.parametrize(("longer", "heard"), [(0, 1), (1, 0)], ids=["the longest", "longer"])
def test_a_packet_that_is_too_long_is_not_read(longer: int, heard: int) -> None:
    """Its head says how long it is: the connection is given up before the rest is read."""
    length = LONGEST_PACKET + longer
    digits = bytes((length >> shift & 127) | (128 if length >> shift + 7 else 0) for shift in (0, 7, 14, 21))
    packet = b"\x30" + digits.rstrip(b"\0") + b"\0\1t" + bytes(length - 3)
    sent: list[int] = []

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(b"\x20\2\0\0")  # CONNACK
            for start in range(0, len(packet), 1 << 16):
                try:
                    connection.sendall(packet[start : start + (1 << 16)])
                except OSError:
                    return
                sent.append(start)

    messages: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        target = ProbeTarget(host="127.0.0.1", port=server.getsockname()[1])
        link = Link(target, client_id="c", on_message=lambda topic, payload, retained: messages.append(len(payload)))
        with pytest.raises(Transient) as failed:  # noqa: PT012 - some turns go well
            link.open()
            while True:
                link.turn(5)
        link.close()
        thread.join(20)
    assert Reason.BROKER_UNREACHABLE is failed.value.reason
    assert [length - 3] * heard == messages
    assert heard or (len(sent) << 16) < LONGEST_PACKET
