"""What others say, on its way into messages and logs: with stars for what may be a secret (rule 6)."""

from __future__ import annotations

import time

import pytest

from rotator.consumers.shown import shown, starred


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("exec: /nope: no such file", "exec: /nope: no such file"),
        ("login failed: password=hunter2", "login failed: password=***"),
        ("MQTT_PASSWORD: hunter2 is wrong", "MQTT_PASSWORD: *** is wrong"),
        ('{"token": "hunter2"}', '{"token": ***'),
        ("mqtt://me:hunter2@broker", "mqtt://***@broker"),
        ("refused 0123456789abcdefghij", "refused ***"),
        ("+ mosquitto_sub -u dev -P hunter2 -p 1883", "+ mosquitto_sub -u dev -P *** -p 1883"),
        ("+ restart --mqtt-password hunter2 now", "+ restart --mqtt-password *** now"),
        ("+ curl -u me:hunter2 broker", "+ curl -u me:*** broker"),
        ("> Authorization: Bearer hunter2", "> Authorization: *** ***"),
        ("no such key building-a", "no such key building-a"),
        ("a\nb\x1b[1m\tc", "a b [1m c"),
        ("x y " * 100, ("x y " * 30) + "…"),
    ],
)
def test_what_others_say_is_shown_with_care(said: str, expected: str) -> None:
    """On one line, not long, and with stars for what may be a secret."""
    assert expected == shown(said)


def test_a_word_that_was_cut_in_two_is_not_shown() -> None:
    """Its end alone is not known for the end of a secret."""
    assert "hunter2" not in starred("password=hunter2" + " x" * 998)
    assert starred("password=hunter2" + " x" * 998).endswith("x x")
    assert "***" == starred("hunter2" * 1000)


@pytest.mark.parametrize("said", ["a-" * 50_000, "password" * 20_000, "-" * 100_000, "//" * 50_000])
def test_no_words_take_long(said: str) -> None:
    """The patterns see the end of what is very long."""
    began = time.monotonic()
    starred(said)
    assert time.monotonic() - began < 2
