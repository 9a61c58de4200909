"""A platform's list as entries of the configuration: names, YAML, what counts as managed."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeClock, FakePlatform
from rotator.config_types import NAME_PATTERN
from rotator.discovery import as_yaml, called, find, managed_ids, name_for, taken_names, write_new
from rotator.errors import Permanent
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import KeyRecord
from rotator.model import Identity, Strategy, UpstreamKey
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.settings import load

NOW = datetime(2026, 11, 21, tzinfo=UTC)
MARKER = "rotator-0123456789ab-3"
CONFIG = """
state: {{url: "sqlite:///{folder}/state/rotator.db"}}
vault: {{url: https://vault.example:8200, auth: {{method: token, token: {{env: TOKEN}}}}}}
providers:
  acme: {{kind: haltian, url: https://p.example/v1, organization: o, email: a@b.example, password: {{env: TOKEN}}}}
keys:
  a: {{provider: acme, id: id-a, vault: {{path: mqtt/b, fields: {{password: "{{secret}}"}}}}}}
  sites:
    provider: acme
    discover: {{match: "s*", template: {{vault: {{path: "x/{{name}}", fields: {{p: "{{secret}}"}}}}}}}}
"""
PLATFORM = FakePlatform(FakeClock())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Building A", "building-a"),
        ("Gebäude/7 (Süd)", "gebaude-7-sud"),
        ("__x..y__", "x..y"),
        ("工場", "the-id"),
        ("", "the-id"),
        ("a" * 80, "a" * 63),
        (f"site-a {MARKER}", "site-a"),
        (f"site-a ({MARKER}) west", "site-a-west"),
        (MARKER, "the-id"),
    ],
)
def test_names(name: str, expected: str) -> None:
    """Lower case, accents dropped, no marker of ours; the id where nothing is left."""
    assert expected == name_for(UpstreamKey(id="The ID", name=name), ())


def test_a_name_that_is_taken() -> None:
    """The id, and then a number."""
    key = UpstreamKey(id="7", name="x")
    assert ["7", "x-2", "x-3"] == [name_for(key, taken) for taken in ({"x"}, {"x", "7"}, {"x", "7", "x-2"})]


TEXTS = st.text(max_size=100)
KEYS = st.builds(
    UpstreamKey,
    id=st.text(min_size=1, max_size=100),
    name=TEXTS,
    expires_at=st.none() | st.just(NOW),
    problem=st.none() | st.just(Reason.KEY_REVOKED),
)


@given(st.lists(KEYS, max_size=8))
def test_whatever_the_names_are_the_yaml_holds_the_entries(keys: list[UpstreamKey]) -> None:
    """No name ends a comment or a string; all names differ, and can be used."""
    found = list(find(PLATFORM, keys, "*", {"a"}))
    assert len(keys) == len(found)
    aged = {"rotate": {"max_age": "90d"}}
    expected = {each.name: {**each.entry, **({} if each.upstream.expires_at else aged)} for each in found}
    assert expected == yaml.safe_load(as_yaml(found))["keys"]
    assert [] == [each.name for each in found if not re.match(NAME_PATTERN, each.name) or each.name == "a"]


def test_what_the_list_says_is_a_comment() -> None:
    """Expiry, problem, and an age where there is no expiry."""
    keys = [UpstreamKey(id="1", name="a", expires_at=NOW, problem=Reason.KEY_REVOKED), UpstreamKey(id="2", name="b")]
    text = as_yaml(list(find(PLATFORM, keys, "*", ())))
    assert [
        "keys:",
        "  # a; expires 2026-11-21T00:00:00+00:00; key_revoked",
        "  a:",
        "    provider: acme",
        "    id: '1'",
        "    vault:",
        "      path: mqtt/a",
        "      fields: {username: '{username}', password: '{secret}'}",
        "  # b; no expiry listed",
    ] == text.splitlines()[:9]
    assert "    rotate: {max_age: 90d}  # the list names no expiry" in text.splitlines()[-1]
    assert {"keys": {}} == yaml.safe_load(as_yaml([]))


def test_patterns_are_of_the_name_without_the_marker() -> None:
    """A key that a rotation made is called as before."""
    keys = [UpstreamKey(id="1", name=f"site-a {MARKER}"), UpstreamKey(id="site-2"), UpstreamKey(id="3", name="other")]
    assert ["1", "site-2"] == [each.upstream.id for each in find(PLATFORM, keys, "site-?", ())]
    assert "site-a" == called(keys[0])


def test_what_is_managed(tmp_path: Path) -> None:
    """By the configuration, and by the journal: current ids, and both of a key that is being replaced."""
    (tmp_path / "rotator.yaml").write_text(CONFIG.format(folder=tmp_path))
    settings = load(tmp_path / "rotator.yaml", {"TOKEN": "t"})
    assert {("acme", "id-a"): "a"} == managed_ids(settings)
    assert not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir()
    journal = SqliteJournal(settings.state.url)
    records = (
        KeyRecord(name="a", provider="acme", id="id-b", ids=("id-a", "id-b")),
        KeyRecord(name="site-1", provider="acme", id="s1", listed_as="site-1"),
        KeyRecord(name="gone", provider="acme", id="g1", listed_as="gone"),
        KeyRecord(name="old", provider="acme", id="o1"),
    )
    for record in records:
        journal.save(key=record.name, change=lambda _old, record=record: record)  # type: ignore[misc]
    identity = Identity(id="s1", username="s1")
    rotation = Rotation(
        id="0" * 32,
        key="site-1",
        provider="acme",
        identity=identity,
        new_identity=Identity(id="s2", username="s2"),
        strategy=Strategy.REPLACE,
        trigger=Reason.NEAR_EXPIRY,
        started_at=NOW,
        step_since=NOW,
    )
    journal.save(rotation=rotation)
    journal.close()
    managed = managed_ids(settings)
    expected = {"id-a": "a", "id-b": "a", "s1": "site-1", "s2": "site-1"}
    assert {("acme", id): name for id, name in expected.items()} == managed
    assert {"a", "b", "sites", "site-1"} == taken_names(settings, managed), "mqtt/b is the place of `a`"


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """And one that is there stays."""
    path = tmp_path / "found.yaml"
    write_new(path, "keys: {}\n")
    assert ("keys: {}\n", 0o644) == (path.read_text(), path.stat().st_mode & 0o777)
    with pytest.raises(Permanent, match="is there already"):
        write_new(path, "x")
    assert ("keys: {}\n", [path]) == (path.read_text(), list(tmp_path.iterdir()))
    with pytest.raises(FileNotFoundError):
        write_new(tmp_path / "no" / "x.yaml", "x")


def test_an_expired_key_is_still_listed() -> None:
    """What to do about it is its owner's business."""
    past = UpstreamKey(id="1", name="a", expires_at=NOW - timedelta(days=1))
    assert ["a"] == [each.name for each in find(PLATFORM, [past], "*", ())]
