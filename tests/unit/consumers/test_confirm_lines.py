"""Mosquitto's log lines, also with client ids that try to pass for something else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.consumers.confirm import LogLine, parse

AT = "1795256982: "


@pytest.mark.parametrize(
    "stamp", [AT, "", "2026-11-21T10:22:04: ", "2026-11-21 10:22:04: ", "2026-11-21T10:22:04+0100: "]
)
def test_stamps(stamp: str) -> None:
    """The time before the line may have any of the formats that brokers are set to."""
    line = f"{stamp}New client connected from 127.0.0.1:38918 as cons (p2, c1, k60, u'u1')."
    assert LogLine(client_id="cons", username="u1") == parse(line)


@pytest.mark.parametrize(
    ("line", "client_id", "username"),
    [
        ("from 127.0.0.1:38918 as cons (p2, c1, k60, u'u1').", "cons", "u1"),
        ("from ::1:38918 as cons (p4, c0, k15, u'o'brien').", "cons", "o'brien"),
        ("from 10.0.0.1 as a b (c) 'd' as e (p5, c1, k60, u'u 1').", "a b (c) 'd' as e", "u 1"),
        ("from 127.0.0.1:1 as cons (p2, c1, k60).", "cons", None),
        (
            "from 127.0.0.1:1 as x (p2, c1, k60, u'victim'). (p2, c1, k60, u'thief').",
            "x (p2, c1, k60, u'victim').",
            "thief",
        ),
        ("from 127.0.0.1:1 as x (p2, c1, k60, u'victim') (p2, c1, k60).", "x (p2, c1, k60, u'victim')", None),
    ],
)
def test_connects(line: str, client_id: str, username: str | None) -> None:
    """Who connected; what a client puts into its client id stays in the client id."""
    assert LogLine(client_id=client_id, username=username) == parse(f"{AT}New client connected {line}")


@pytest.mark.parametrize(
    "how",
    [
        "been disconnected by administrative action",
        "disconnected by administrative action",
        "closed its connection",
        "disconnected",
        "disconnected, not authorised",
        "disconnected: connection closed by client",
        "disconnected due to protocol error",
        "has exceeded timeout, disconnecting",
        "already connected, closing old connection",
    ],
)
@pytest.mark.parametrize(
    "client_id", ["cons", "a b", "victim disconnected: x", "victim [1.2.3.4:5]", "victim disconnected."]
)
def test_ends(client_id: str, how: str) -> None:
    """Whose connection ended, in the broker's words."""
    assert LogLine(client_id=client_id, ended=how) == parse(f"{AT}Client {client_id} {how}.")


@pytest.mark.parametrize(
    "line",
    [
        "New connection from 127.0.0.1:38918 on port 1883.",
        "No will message specified.",
        "Outgoing messages are being dropped for client New client connected from x as y (p2, c1, k60, u'victim').",
        "Client x: New client connected from 1.1.1.1:1 as y (p2, c1, k60, u'victim').",
        "mosquitto version 2.0.11 running",
        "",
    ],
)
def test_other_lines(line: str) -> None:
    """Lines about other things say nothing, even where a client id makes them look like one that does."""
    assert parse(AT + line) is None


@given(st.text(max_size=200))
def test_any_text(line: str) -> None:
    """No text makes the parser raise or hang, and no client id is taken for another's connect."""
    connected = parse(f"{AT}New client connected from 127.0.0.1:1 as {line} (p2, c1, k60, u'me').")
    assert connected is not None
    assert connected.username == "me"
