"""What a Losant access key may do, how a clone of it is asked for, and when a clone is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.model import MARKER, Identity, marker_in
from rotator.providers.losant_keys import (
    LONGEST_DESCRIPTION,
    Malformed,
    clone_of,
    differences,
    identity_of,
    is_id,
    is_text,
    marked,
    upstream,
)
from rotator.reasons import Reason

ID = "575ec8687ae143cd83dc4a97"
DEVICE, OTHER = "575ecf887ae143cd83dc4aa2", "675ecf887ae143cd83dc4aab"
MARKER_1, MARKER_2 = "rotator-0123456789ab-1", "rotator-0123456789ab-12"
ORIGINAL = {
    "id": ID,
    "key": "7f1e4f2c-4f6c-4a61-a1a7-d27b0fa5b3ac",
    "status": "active",
    "creationDate": "2026-03-24T12:00:00.000Z",
    "name": "building-a",
    "description": "the lifts",
    "deviceIds": [DEVICE],
    "deviceTags": [{"key": "type", "value": "lift"}],
    "filterType": "whitelist",
    "pubTopics": ["a/b"],
    "subTopics": ["c/#"],
    "addressFilterType": "blacklist",
    "addresses": ["10.0.0.0/8"],
}


# --- the marker ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", MARKER_2),
        ("the lifts", f"the lifts {MARKER_2}"),
        (f"the lifts {MARKER_1}", f"the lifts {MARKER_2}"),
        (MARKER_1, MARKER_2),
        (f"{MARKER_1} and {MARKER_1}\nmore", f" and\nmore {MARKER_2}"),
        ("x" * LONGEST_DESCRIPTION, "x" * (LONGEST_DESCRIPTION - len(MARKER_2) - 1) + f" {MARKER_2}"),
    ],
)
def test_the_marker_takes_the_place_of_older_ones(before: str, after: str) -> None:
    """The rest of the description stays, as far as there is room."""
    assert after == marked(before, MARKER_2)


@given(description=st.lists(st.sampled_from([MARKER_1, "lifts", " ", "rotator-", "x" * 20000])).map("".join))
def test_a_description_has_one_marker_and_room_for_it(description: str) -> None:
    """Whatever was in it, and however often it is marked: the marker that a list shows is the last one."""
    once = marked(description, MARKER_1)
    twice = marked(once, MARKER_2)
    assert [MARKER_2] == MARKER.findall(twice)
    assert MARKER_2 == marker_in(twice)
    assert len(twice) <= LONGEST_DESCRIPTION


# --- the clone -----------------------------------------------------------------------------------------------------


def test_a_clone_asks_for_everything_that_may_be_asked_for() -> None:
    """All restrictions and the name, no status, and nothing that only Losant writes."""
    body = clone_of({**ORIGINAL, "lastUpdated": "x", "_links": {}}, MARKER_1)
    own = {"id", "key", "status", "creationDate"}
    assert {name: value for name, value in ORIGINAL.items() if name not in own} | {
        "description": f"the lifts {MARKER_1}"
    } == body


def test_a_clone_leaves_out_what_the_original_has_not() -> None:
    """An absent or null field is not made up; half a surrogate pair in a text is no reason to stop."""
    body = clone_of({"deviceIds": [], "name": None, "description": "\ud800!"}, MARKER_1)
    assert {"deviceIds": [], "description": f"?! {MARKER_1}"} == body


@pytest.mark.parametrize(
    "wrong",
    [
        {"deviceIds": None, "deviceTags": None},
        {"deviceIds": DEVICE},
        {"deviceIds": [7]},
        {"deviceTags": ["type"]},
        {"deviceTags": {"type": "lift"}},
        {"pubTopics": "a"},
        {"filterType": 7},
        {"addresses": {}},
    ],
)
def test_an_original_that_cannot_be_read_is_not_cloned(wrong: dict[str, object]) -> None:
    """Before anything is made; a key whose device restrictions are not shown is not taken for one without any."""
    with pytest.raises(Malformed):
        clone_of({**ORIGINAL, **wrong}, MARKER_1)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"id": OTHER, "key": "k", "name": "x", "description": MARKER_1, "secret": "s"}, []),
        ({"deviceIds": [DEVICE.upper(), DEVICE]}, []),
        ({"status": None}, []),
        ({"status": "inactive"}, ["status"]),
        ({"deviceIds": [], "deviceTags": []}, ["deviceIds", "deviceTags"]),
        ({"deviceIds": []}, ["deviceIds"]),
        ({"deviceIds": [DEVICE, OTHER]}, ["deviceIds"]),
        ({"deviceTags": [{"key": "type"}]}, ["deviceTags"]),
        ({"deviceTags": [{"value": "lift", "key": "type"}]}, []),
        ({"filterType": "all"}, ["filterType", "pubTopics", "subTopics"]),
        ({"filterType": "blacklist"}, ["filterType"]),
        ({"pubTopics": ["A/b"]}, ["pubTopics"]),
        ({"subTopics": []}, ["subTopics"]),
        ({"addressFilterType": "all"}, ["addressFilterType", "addresses"]),
        ({"addresses": ["0.0.0.0/0"]}, ["addresses"]),
    ],
)
def test_a_clone_that_may_do_other_things_is_told(change: dict[str, object], found: list[str]) -> None:
    """Field by field, by what takes effect; names, descriptions and order say nothing."""
    assert sorted(found) == sorted(differences(ORIGINAL, {**ORIGINAL, **change}))


@pytest.mark.parametrize(
    "name", ["deviceIds", "deviceTags", "filterType", "pubTopics", "addressFilterType", "addresses"]
)
def test_a_clone_that_does_not_show_its_restrictions_is_not_judged(name: str) -> None:
    """Neither true nor false: nothing may be said of it."""
    with pytest.raises(Malformed):
        differences(ORIGINAL, {**ORIGINAL, name: None})


def test_lists_without_effect_are_not_compared() -> None:
    """Topics under `none` and addresses under `all` restrict nothing, and are still cloned."""
    original = {**ORIGINAL, "filterType": "none", "addressFilterType": "all"}
    assert [] == differences(original, {**original, "pubTopics": [], "subTopics": None, "addresses": []})
    assert ["a/b"] == clone_of(original, MARKER_1)["pubTopics"]


def test_absent_is_the_default() -> None:
    """A key from before the filters, cloned today: no more topics than its own, from anywhere."""
    original = {"deviceIds": [DEVICE]}
    defaults = {"deviceTags": [], "filterType": "none", "addressFilterType": "all", "addresses": []}
    assert [] == differences(original, {**original, **defaults})
    assert ["filterType"] == differences(original, {**original, "filterType": "all"})


# --- who it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "client_id"), [([DEVICE], DEVICE), ([DEVICE, OTHER], None), ([], None), (None, None), ([7], None)]
)
def test_the_client_id_is_the_only_device(devices: object, client_id: str | None) -> None:
    """Known where the key names exactly one."""
    identity = identity_of({**ORIGINAL, "deviceIds": devices})
    assert Identity(id=ID, username=str(ORIGINAL["key"]), client_id=client_id) == identity


@pytest.mark.parametrize("wrong", [{"id": None}, {"id": "../x"}, {"key": ""}, {"key": 7}, {"key": "\ud800"}])
def test_a_key_without_id_or_username_is_nobody(wrong: dict[str, object]) -> None:
    """None, in a list as well."""
    assert identity_of({**ORIGINAL, **wrong}) is None
    assert upstream({**ORIGINAL, **wrong}) is None


@pytest.mark.parametrize(
    ("fields", "marker"),
    [
        ({}, ""),
        ({"description": f"the lifts {MARKER_2}"}, MARKER_2),
        ({"name": f"lift {MARKER_1}"}, MARKER_1),
        ({"name": f"lift {MARKER_1}", "description": MARKER_2}, MARKER_2),
        ({"name": None, "description": None}, ""),
    ],
)
def test_a_listed_key_shows_its_marker(fields: dict[str, object], marker: str) -> None:
    """From the description, else from the name."""
    key = upstream({**ORIGINAL, **fields})
    assert key is not None
    assert marker == key.marker


@pytest.mark.parametrize(("status", "problem"), [("active", None), (None, None), ("inactive", Reason.KEY_INACTIVE)])
def test_an_inactive_key_is_named(status: str | None, problem: Reason | None) -> None:
    """What somebody paused can't serve."""
    key = upstream({**ORIGINAL, "status": status})
    assert key is not None
    assert (problem, None) == (key.problem, key.expires_at)


@pytest.mark.parametrize("text", ["", "..", ".", "a/b", "a?b", "a b", "a" * 65, "ä", None, 7])
def test_what_would_lead_elsewhere_is_no_id(text: object) -> None:
    """It would stand in the path of a DELETE."""
    assert not is_id(text)
    assert is_id(ID)


@pytest.mark.parametrize("text", ["", " \n", "\ud800", None, 7])
def test_what_cannot_be_written_down_is_no_text(text: object) -> None:
    """Blank, half a surrogate pair, not a text at all."""
    assert not is_text(text)
    assert is_text("ä")
