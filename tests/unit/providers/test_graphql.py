"""What the errors of a GraphQL answer are taken for, and what is left of their texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.providers.graphql import Meaning, harmless, read_errors

KEY = "c6f7b103-81df-4e73-8218-4f671056aee2"


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ({"message": "x", "extensions": {"code": "invalid-jwt"}}, Meaning.AUTH),
        ({"message": "x", "extensions": {"code": "ACCESS_DENIED"}}, Meaning.AUTH),
        ({"message": "x", "extensions": {"code": 401}}, Meaning.AUTH),
        ({"message": "x", "code": "FORBIDDEN"}, Meaning.AUTH),
        ({"message": "Could not verify JWT: JWTExpired"}, Meaning.AUTH),
        ({"message": "Malformed Authorization header"}, Meaning.AUTH),
        ({"message": "You are not authenticated"}, Meaning.AUTH),
        ({"message": "x", "extensions": {"code": "RATE_LIMITED"}}, Meaning.RATE_LIMITED),
        ({"message": "Too many requests"}, Meaning.RATE_LIMITED),
        ({"message": "x", "extensions": {"code": "unexpected"}}, Meaning.UNSURE),
        ({"message": "x", "extensions": {"code": "INTERNAL_SERVER_ERROR"}}, Meaning.UNSURE),
        ({"message": "the operation timed out"}, Meaning.UNSURE),
        ({"message": f"api key {KEY} not found", "extensions": {"code": "not-found"}}, Meaning.KEY_UNKNOWN),
        ({"message": f"API key {KEY} does not exist", "extensions": {"code": "BAD_USER_INPUT"}}, Meaning.KEY_UNKNOWN),
        (
            {
                "message": "field 'refreshApiKeyToken' not found in type: 'mutation_root'",
                "extensions": {"code": "validation-failed"},
            },
            Meaning.REFUSED,
        ),
        ({"message": "field 'apiKeyId' not found in type: 'X'"}, Meaning.REFUSED),
        ({"message": "something else"}, Meaning.REFUSED),
        ({}, Meaning.REFUSED),
        ("plain text: unauthorized", Meaning.AUTH),
        (17, Meaning.REFUSED),
    ],
)
def test_an_error_is_read(error: object, meaning: Meaning) -> None:
    """Codes first, words second, and a document that the server can't take is never an unknown key."""
    found = read_errors([error])
    assert found is not None
    assert meaning is found.meaning


def test_the_most_cautious_error_decides() -> None:
    """With several errors, one that leaves the outcome open outweighs the refusals."""
    found = read_errors([{"message": "not found"}, {"message": "internal error"}, {"message": "jwt expired"}])
    assert found is not None
    assert Meaning.UNSURE is found.meaning


@pytest.mark.parametrize("errors", [None, [], {}, "", 0])
def test_no_errors_are_none(errors: object) -> None:
    """Absent, null and empty are no error."""
    assert read_errors(errors) is None


def test_the_code_is_fit_for_a_label() -> None:
    """A server can't write what it likes into a metric's label."""
    found = read_errors([{"message": "", "extensions": {"code": "A b\n{c}" + "x" * 99}}])
    assert found is not None
    assert "a-b-c-" + "x" * 34 == found.code
    assert "(no message)" == found.message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token eyJhbGciOiJub25lIn0.eyJleHAiOjF9.c2ln is bad", "token *** is bad"),
        ("Bearer abc.def refused", "*** refused"),
        ("isr_mqtt_rest_0123456789abcdef", "***"),
        (f"key {KEY} unknown", f"key {KEY} unknown"),
        (f"id={KEY}, gone", f"id={KEY}, gone"),
        ("a\nb\x00c\u2028d", "a b c d"),
        ("password hunter2 is wrong", "password *** is wrong"),
    ],
)
def test_messages_are_made_harmless(text: str, shown: str) -> None:
    """One line, no tokens, no known secret; a key's id stays readable."""
    assert shown == harmless(text, secrets=["hunter2", ""])


@given(text=st.text(max_size=600))
def test_a_message_is_one_short_line(text: str) -> None:
    """Whatever the server sends."""
    line = harmless(text)
    assert len(line) <= 200
    assert len(line.splitlines()) <= 1
