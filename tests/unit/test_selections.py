"""Keys that a `discover` entry stands for: which are taken on, under which name, and what is known after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from rotator.config_models import KeySettings
from rotator.errors import UnknownOutcome
from rotator.managed import Fleet, ManagedKey
from rotator.model import Strategy, UpstreamKey
from rotator.reasons import Reason
from rotator.selections import Selections, remembered
from rotator.settings import Settings, load
from simulation.world import AFTER, managed
from unit.control_stage import ControlStage

CONFIG = """
vault: {url: https://vault.example:8200, auth: {method: token, token: {env: TOKEN}}}
providers:
  acme: {kind: haltian, url: https://p.example/v1, organization: o, email: a@b.example, password: {env: TOKEN}}
  other: {kind: haltian, url: https://o.example/v1, organization: o, email: a@b.example, password: {env: TOKEN}}
keys:
  key-0: {provider: acme, id: id-0, vault: {path: mqtt/key-0, fields: {username: "{id}", password: "{secret}"}}}
  sites:
    provider: acme
    discover:
      match: "site*"
      exclude: ["site-secret*"]
      template: {vault: {path: "mqtt/{name}", fields: {username: "{id}", password: "{secret}"}}}
"""


class Stage(ControlStage):
    """The small world with `key-0` in the configuration, and a selection of all names that begin with `site`."""

    def __init__(self, directory: Path, text: str = CONFIG) -> None:
        self.settings = settings_of(directory, text)
        super().__init__(directory, Strategy.REPLACE)
        self.selections = Selections(self.settings, self.engine, self.make)

    def make(self, name: str, key: KeySettings, listed_as: str) -> ManagedKey:
        """A key of this world, as `app` would wire it."""
        made = managed(name, key.id, self.platform, [])
        return replace(made, path=key.vault.path, fields=key.vault.fields, listed_as=listed_as)

    def follow(self, *listed: UpstreamKey) -> list[str]:
        """One look at a list; the names of the keys that are managed afterwards, beside `key-0`."""
        self.selections.follow("acme", listed)
        return self.names()

    def names(self) -> list[str]:
        """The selected keys."""
        return [name for name in self.engine.keys if name != "key-0"]


def settings_of(directory: Path, text: str) -> Settings:
    """A configuration, loaded."""
    (directory / "rotator.yaml").write_text(text)
    return load(directory / "rotator.yaml", {"TOKEN": "t"})


def upstream(id: str, name: str = "", **more: object) -> UpstreamKey:
    """A key as a list has it."""
    return replace(UpstreamKey(id=id, name=name), **more)  # type: ignore[arg-type]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """One static key, nothing selected yet."""
    return Stage(tmp_path)


def test_what_matches_is_taken_on_once(stage: Stage) -> None:
    """With a record, an event, and its place in Vault; what does not match, or is excluded, is nobody's."""
    listed = (upstream("a1", "Site A"), upstream("a2", "site-secret-b"), upstream("a3", "else"), upstream("site-4"))
    assert ["site-4"] == stage.follow(*listed), "patterns are of the platform's own names, and know case"
    assert ["site-4"] == stage.follow(*listed)
    record = stage.record("site-4")
    assert ("acme", "site-4", "site-4") == (record.provider, record.id, record.listed_as)
    assert record.wake_at is not None
    assert ["discovered"] == [event.name for event in stage.events if event.key == "site-4"]
    assert "mqtt/site-4" == stage.engine.keys["site-4"].path


def test_another_providers_list(stage: Stage) -> None:
    """It says nothing of this selection."""
    stage.selections.follow("other", [upstream("b1", "site-b")])
    assert [] == stage.names()


def test_names_are_unique(stage: Stage) -> None:
    """Two of one name: the second is called by its id; and nobody's place in Vault is taken twice."""
    assert ["site-a", "b2"] == stage.follow(upstream("b1", "site a"), upstream("b2", "site-a"))
    taken = settings_of(
        stage.directory, CONFIG.replace("mqtt/{name}", "mqtt/key-{name}").replace('match: "site*', 'match: "*')
    )
    stage.selections = Selections(taken, stage.engine, stage.make)
    assert ["site-a", "b2", "b3"] == stage.follow(upstream("b3", "0")), "mqtt/key-0 is another key's"


def test_one_that_cannot_serve_waits(stage: Stage) -> None:
    """Told once, and taken on when it is well."""
    ill = upstream("a1", "site-a", problem=Reason.KEY_REVOKED)
    with capture_logs() as logs:
        assert [] == stage.follow(ill)
        assert [] == stage.follow(ill)
    assert [("discover_skipped", "key_revoked")] == [(line["event"], line["reason"]) for line in logs]
    assert ["site-a"] == stage.follow(upstream("a1", "site-a"))


def test_an_entry_of_its_own_comes_first(stage: Stage) -> None:
    """The selection leaves its key alone, and says so once."""
    with capture_logs() as logs:
        assert [] == stage.follow(upstream("id-0", "site-zero"))
        assert [] == stage.follow(upstream("id-0", "site-zero"))
    assert ["keys.key-0 manages it already"] == [line["detail"] for line in logs]


@pytest.mark.parametrize("lost", [False, True], ids=["answered", "answer lost"])
def test_what_a_rotation_makes_is_never_a_new_key(stage: Stage, lost: bool) -> None:
    """Neither while the replacement is under way, nor afterwards; an orphan is its rotation's to clean up."""
    stage.platform.add("site-1", age=timedelta(days=80))
    stage.vault.paths["mqtt/site-1"] = [{"username": "site-1", "password": stage.platform.keys["site-1"].secret}]
    assert ["site-1"] == stage.follow(*named(stage.platform.list_keys()))
    counts = set()

    def hook(point: str, when: str, whose: str) -> None:
        if (point, when) == ("provider.issue", AFTER):
            counts.add(len(stage.follow(*named(stage.platform.list_keys()))))
            if lost:
                stage.world.hook = lambda point, when, whose: None
                raise UnknownOutcome("cut")

    stage.world.hook = hook
    stage.look()
    stage.control.rotate("site-1", now=True)
    stage.work("site-1", until=timedelta(hours=3))
    assert {1} == counts
    assert ["site-1"] == stage.follow(*named(stage.platform.list_keys()))
    assert "site-1" != stage.record("site-1").id, "it was replaced"


def test_an_orphan_of_a_rotation_under_way_is_not_ours_to_name(stage: Stage) -> None:
    """Whatever the platform calls it: its marker says whose it is."""
    stage.on("provider.issue", "id-0", UnknownOutcome("cut"))
    stage.control.rotate("key-0", now=True)
    stage.engine.work("key-0")
    rotation = stage.rotation("key-0")
    assert rotation is not None
    assert [] == stage.follow(upstream("c9", "site-z", marker=f"{rotation.marker_stem}-1"))
    assert ["site-z"] == stage.follow(upstream("c9", "site-z", marker="rotator-0123456789ab-1"))


def named(listed: Sequence[UpstreamKey]) -> list[UpstreamKey]:
    """The world's platform has no names: here a copy has the name of its original, as at Losant."""
    return [replace(each, name=each.id.split(".")[0]) for each in listed]


def test_beside_its_copy_the_original_is_the_key(stage: Stage) -> None:
    """With the journal lost in the middle of a replacement, whatever the order of the list."""
    copy = upstream("c2", "site-a rotator-0123456789ab-1", marker="rotator-0123456789ab-1")
    assert ["site-a"] == stage.follow(copy, upstream("c1", "site-a"))
    assert "c1" == stage.record("site-a").id


def test_a_copy_alone_is_a_key(stage: Stage) -> None:
    """Its original is gone, and the journal lost: under the name without the marker."""
    copy = upstream("c2", "site-a (rotator-0123456789ab-1)", marker="rotator-0123456789ab-1")
    assert ["site-a"] == stage.follow(copy)


def test_the_journal_remembers(stage: Stage) -> None:
    """The same names after a restart, in whatever order; not those that were excluded, or have an entry now."""
    stage.follow(upstream("a1", "site-a"), upstream("a2", "site a"), upstream("a3", "site-c"), upstream("a4", "site-d"))
    text = CONFIG.replace('"site-secret*"', '"site-c"') + KEY_OF_ITS_OWN
    found = remembered(settings_of(stage.directory, text), stage.journal, stage.make)
    assert {"site-a": "a1", "a2": "a2"} == {key.name: key.id for key in found}
    assert [] == list(
        remembered(
            settings_of(stage.directory, CONFIG.replace("sites:", "x: &x").replace('match: "site', 'match: "no')),
            stage.journal,
            stage.make,
        )
    )


KEY_OF_ITS_OWN = """
  d: {provider: acme, id: a4, vault: {path: mqtt/d, fields: {username: "{id}", password: "{secret}"}}}
"""


def test_a_fleet_may_grow_under_a_walk(stage: Stage) -> None:
    """Who walks over it sees it as it was; the next one sees all."""
    fleet = Fleet({"a": stage.engine.keys["key-0"]})
    seen = []
    for name, key in fleet.items():
        seen.append(name)
        fleet["b"] = key
    assert (["a"], ["a", "b"], 2) == (seen, list(fleet), len(fleet))
    del fleet["a"]
    assert ["b"] == list(fleet)
