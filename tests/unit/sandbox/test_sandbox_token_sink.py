"""A broker follows a platform that tells all its logins at each change."""

from __future__ import annotations

from rotator.sandbox.token_sink import Follower


class Heard:
    """A `TokenSink` that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def grant(self, username: str, token: str) -> None:
        """See `TokenSink`."""
        self.calls.append(("grant", username, token))

    def revoke(self, username: str) -> None:
        """See `TokenSink`."""
        self.calls.append(("revoke", username))

    def taken(self) -> list[tuple[str, ...]]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


def test_only_what_changed_is_told() -> None:
    """New and changed logins are granted, missing ones revoked, and those that stayed keep their sessions."""
    heard = Heard()
    follow = Follower(heard)
    follow({"a": "1", "b": "1"})
    assert [("grant", "a", "1"), ("grant", "b", "1")] == heard.taken()
    follow({"b": "2", "c": "1"})
    assert [("revoke", "a"), ("grant", "b", "2"), ("grant", "c", "1")] == heard.taken()
    follow({"b": "2", "c": "1"})
    assert [] == heard.taken()


def test_followers_of_one_broker_leave_each_other_alone() -> None:
    """What one platform does not name is not revoked where another one named it."""
    heard = Heard()
    one, other = Follower(heard), Follower(heard)
    one({"a": "1"})
    other({"b": "1"})
    one({})
    assert [("grant", "a", "1"), ("grant", "b", "1"), ("revoke", "a")] == heard.taken()


def test_a_change_in_the_platforms_own_map_is_seen() -> None:
    """The follower keeps a copy, so a platform may tell the same dict again."""
    heard, live = Heard(), {"a": "1"}
    follow = Follower(heard)
    follow(live)
    live["a"] = "2"
    follow(live)
    assert [("grant", "a", "1"), ("grant", "a", "2")] == heard.taken()
