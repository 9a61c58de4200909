"""docs/providers.md says what the code says: its table is made of the abilities that the providers state."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from provider_site import built
from rotator.model import Abilities, Strategy
from rotator.ports import Choosing, Deactivating, Deleting, InPlace, Metered, Provider, Provisioning, Replacing, Watched
from rotator.providers import PROVIDERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "providers.md").read_text()
SECRETS = {"SECRET": "made-up", "OLD_KEY": "wayscloud_iot_prod_made-up", "NEW_KEY": "wayscloud_api_made-up"}
SECRET = {"env": "SECRET"}
WAYS: dict[str, object] = {"kind": "wayscloud", "token": {"env": "NEW_KEY"}}
ISHARE: dict[str, object] = {"kind": "ishareradio", "token": SECRET}
IOT: dict[str, object] = {"kind": "iotistica", "url": "http://127.0.0.1:1", "email": "a@b.example", "password": SECRET}
# How the page calls it → the least section of the configuration that is one.
SECTIONS: dict[str, dict[str, object]] = {
    "`haltian`": {
        "kind": "haltian",
        "url": "http://127.0.0.1:1",
        "organization": "acme",
        "email": "a@b.example",
        "password": SECRET,
    },
    "`ishareradio`, publishers": ISHARE,
    "`ishareradio`, subscribers": {**ISHARE, "resource": "subscribers"},
    "`iotistica`, api-keys": {**IOT, "resource": "api-keys"},
    "`iotistica`, mqtt-users": {**IOT, "resource": "mqtt-users"},
    "`iotistica`, device-keys": {**IOT, "resource": "device-keys", "mqtt": {"host": "127.0.0.1"}},
    "`iotistica`, provisioning-keys": {**IOT, "resource": "provisioning-keys"},
    "`wayscloud`, old API": {**WAYS, "generation": "old", "token": {"env": "OLD_KEY"}},
    "`wayscloud`, new API": {**WAYS, "generation": "new"},
    "`wayscloud`, `allow_outage`": {**WAYS, "generation": "new", "allow_outage": True},
    "`losant`": {"kind": "losant", "application": "0123456789abcdef01234567", "token": SECRET},
    "`mosquitto`": {"kind": "mosquitto", "host": "127.0.0.1", "username": "admin", "password": SECRET},
    "`rabbitmq`": {"kind": "rabbitmq", "url": "http://127.0.0.1:1", "username": "admin", "password": SECRET},
}
# What they can do is what their configuration says: docs/http-provider.md.
IN_CONFIGURATION = {"http", "graphql"}
COLUMNS = (
    "provider",
    "a new secret",
    "old one dead at once",
    "names an expiry",
    "lists",
    "pauses",
    "makes keys",
    "deletes",
    "also",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n| {' | '.join('---' for _ in COLUMNS)} |\n"
VERBS: dict[Strategy, type] = {Strategy.IN_PLACE: InPlace, Strategy.REPLACE: Replacing, Strategy.CHOSEN: Choosing}


def provider(name: str) -> Provider:
    section = dict(SECTIONS[name])
    made = built(str(section.pop("kind")), "acme", section, secrets=SECRETS)
    made.close()
    return made


def row(name: str, can: Abilities) -> str:
    """One line of the table."""
    said = [can.kills_old, can.expires, can.lists, can.pauses, can.creates, can.deletes]
    also = [word for word in ("checks", "evicts", "needs_current", "recreates") if getattr(can, word)]
    if can.propagation:
        also.append(f"caches for {can.propagation.total_seconds():.0f} s")
    cells = [name, can.strategy.value.replace("_", " "), *("yes" if each else "no" for each in said), ", ".join(also)]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |") + "\n"


def table() -> str:
    """The whole table of abilities."""
    return HEAD + "".join(row(name, provider(name).abilities) for name in SECTIONS)


def test_the_table_is_what_the_code_states() -> None:
    """Run this file to print it anew."""
    assert table() in PAGE


def test_every_kind_has_its_place() -> None:
    """A provider that nobody wrote down is noticed."""
    written = {str(section["kind"]) for section in SECTIONS.values()}
    assert set(PROVIDERS) == written | IN_CONFIGURATION
    for kind in PROVIDERS:
        assert f"## `{kind}`" in PAGE or kind in IN_CONFIGURATION


@pytest.mark.parametrize("name", SECTIONS)
def test_what_is_stated_is_there(name: str) -> None:
    """Each ability is a port that the provider has, and none is left unsaid."""
    made = provider(name)
    can = made.abilities
    assert made.strategy is can.strategy
    assert isinstance(made, VERBS[can.strategy])
    assert not can.pauses or isinstance(made, Deactivating)
    assert not can.deletes or isinstance(made, Deleting)
    assert can.creates == isinstance(made, Provisioning)
    assert not can.checks or hasattr(made, "check")
    assert not can.evicts or hasattr(made, "evict")
    assert not can.recreates or (hasattr(made, "describe") and hasattr(made, "remember"))


def test_who_is_watched_and_metered() -> None:
    """iShareRadio's token and Iotistica's licence end; WAYSCloud has quotas."""
    watched = {name for name in SECTIONS if isinstance(provider(name), Watched)}
    metered = {name for name in SECTIONS if isinstance(provider(name), Metered)}
    assert {name for name in SECTIONS if name.startswith(("`ishareradio`", "`iotistica`"))} <= watched
    assert {name for name in SECTIONS if name.startswith("`wayscloud`")} == metered


@pytest.mark.parametrize("example", range(PAGE.count("```yaml")))
def test_the_sections_on_the_page_are_sections(example: int) -> None:
    """What a reader copies is accepted."""
    text = PAGE.split("```yaml")[example + 1].split("```")[0]
    for section in yaml.safe_load(text)["providers"].values():
        PROVIDERS[section["kind"]].settings(**section)


if __name__ == "__main__":
    sys.stdout.write(table())
