"""Entries of `keys` that have `discover` in the place of `id`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from rotator.errors import ConfigError
from rotator.settings import Settings, json_schema, load

HEAD = """
vault: {url: https://vault.example:8200, auth: {method: token, token: {env: TOKEN}}}
providers:
  acme: {kind: haltian, url: https://p.example/v1, organization: o, email: a@b.example, password: {env: TOKEN}}
consumers: {edge: {kind: command, argv: [/bin/true], confirm: {broker: {}}}}
defaults: {rotate: {jitter: 1h}}
keys:
  one: {provider: acme, id: i, vault: {path: mqtt/one, fields: {p: "{secret}"}}, verify: {host: h}}
"""
TEMPLATE = """
  sites:
    provider: acme
    discover:
      match: "site-*"
      exclude: [site-x]
      template:
        vault: {path: "mqtt/{name}", fields: {p: "{secret}", n: "{key}"}}
        rotate: {max_age: 60d}
        verify: {host: broker.example, subscribe: "{key}/#"}
        consumers: [edge]
"""


def loaded(folder: Path, text: str) -> Settings:
    """A configuration of this text."""
    (folder / "rotator.yaml").write_text(text)
    return load(folder / "rotator.yaml", {"TOKEN": "t"})


def test_a_selection(tmp_path: Path) -> None:
    """It is no key; its template makes keys, with the defaults laid below."""
    settings = loaded(tmp_path, HEAD + TEMPLATE)
    assert (["one"], ["sites"]) == (list(settings.keys), list(settings.selections))
    selection = settings.selections["sites"]
    key = selection.discover.template.key("site-1", "acme", "id-1")
    assert ("acme", "id-1", "mqtt/site-1") == (key.provider, key.id, key.vault.path)
    assert (timedelta(days=60), timedelta(hours=1), ("edge",)) == (key.rotate.max_age, key.rotate.jitter, key.consumers)
    assert {"p": "{secret}", "n": "{key}"} == key.vault.fields
    assert key.verify is not None


@pytest.mark.parametrize(
    ("provider", "name", "expected"),
    [
        ("acme", "site-1", True),
        ("acme", "site-x", False),
        ("acme", "Site-1", False),
        ("acme", "a site-1", False),
        ("other", "site-1", False),
    ],
)
def test_what_it_covers(tmp_path: Path, provider: str, name: str, expected: bool) -> None:
    """Names of its own provider, whole, case and all, but for those that are excluded."""
    assert expected is (loaded(tmp_path, HEAD + TEMPLATE).selection_of(provider, name) is not None)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"mqtt/{name}"', "mqtt/all", "keys.sites.discover.template.vault.path: all keys of the selection would share"),
        ('"mqtt/{name}"', '"mqtt/{name}/{id}"', "only {name} may stand in braces here"),
        (
            "provider: acme\n    discover",
            "provider: acm\n    discover",
            "keys.sites.provider: there is no provider `acm`",
        ),
        ("consumers: [edge]", "consumers: [egde]", "template.consumers[0]: there is no consumer `egde`"),
        ("        verify:", "        verfy:", "unknown name `keys.sites.discover.template.verfy`"),
        ("      match:", "      mach:", "keys.sites.discover.match: is missing"),
        ("    discover:", "    id: x\n    discover:", "unknown name `keys.sites.id`"),
        ('n: "{key}"', 'n: "{name}"', "{name} is unknown"),
        ("max_age: 60d", "max_age: x", "keys.sites.discover.template.rotate.max_age"),
        (
            "{host: broker.example,",
            "{host: h, ca_file: /no/such, ",
            "verify.ca_file: there is no readable file /no/such",
        ),
        (
            "{host: broker.example,",
            "{host: h, username: '{secret}', password: {env: UNSET}, ",
            "keys.sites.discover.template.verify.password",
        ),
        ("        verify:", "        # verify:", "keys.sites has no `verify` to take it from"),
    ],
)
def test_faults_name_the_place(tmp_path: Path, old: str, new: str, fault: str) -> None:
    """Where the template stands, in the words of any other key."""
    text = HEAD + TEMPLATE
    assert old in text
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text.replace(old, new))
    assert [each for each in caught.value.faults if fault in str(each)], str(caught.value)


def test_two_selections_with_one_place(tmp_path: Path) -> None:
    """The same template of a path would lead two keys of one name to one place."""
    with pytest.raises(
        ConfigError, match=r"keys\.more\.discover\.template\.vault\.fields\.p writes the same Vault field"
    ):
        loaded(tmp_path, HEAD + TEMPLATE + TEMPLATE.replace("sites:", "more:"))


def test_editors_know_it() -> None:
    """The schema has both kinds of entry."""
    text = str(json_schema())
    assert ("'discover'" in text, "'exclude'" in text) == (True, True)
