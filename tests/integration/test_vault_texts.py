"""What docs/vault.md and the examples' README show of rotator's configuration is what this version takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rotator.errors import ConfigError
from rotator.settings import load

ROOT = Path(__file__).parents[2]
EXAMPLES = (ROOT / "deploy" / "vault" / "examples" / "README.md").read_text()
PAGE = (ROOT / "docs" / "vault.md").read_text()
MADE_UP = {"env": "MADE_UP"}


def shown(page: str, section: str) -> list[str]:
    """The page's YAML blocks that begin with a section's name."""
    return re.findall(rf"^```yaml\n({section}:.*?)^```", page, re.DOTALL | re.MULTILINE)


def refused(folder: Path, **sections: Any) -> str:
    """What `rotator check` says against a small configuration with these sections; "" where it takes them."""
    provider = {
        "kind": "haltian",
        "url": "https://haltian.example/v1/graphql",
        "organization": "acme",
        "email": "rotator@acme.example",
        "password": MADE_UP,
    }
    key = {
        "provider": "haltian",
        "id": "c6f7b103-81df-4e73-8218-4f671056aee2",
        "vault": {"path": "mqtt/building-a", "fields": {"username": "{id}", "password": "{secret}"}},
        "verify": {"host": "broker.example"},
        "consumers": list(sections.get("consumers", {})),
    }
    whole = {
        "vault": {"url": "https://vault.example:8200", "auth": {"method": "token", "token": MADE_UP}},
        "providers": {"haltian": provider},
        "keys": {"building-a": key},
    }
    (folder / "rotator.yaml").write_text(yaml.safe_dump(whole | sections))
    try:
        load(folder / "rotator.yaml", {"MADE_UP": "made-up"}, secrets=False)
    except ConfigError as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize("text", shown(EXAMPLES, "consumers"))
def test_consumers_of_the_readme_are_accepted(text: str, tmp_path: Path) -> None:
    """Each consumer that the README shows."""
    assert refused(tmp_path, **yaml.safe_load(text)) == ""


@pytest.mark.parametrize(
    "consumer",
    [
        {"kind": "systemd", "unit": "ingest.service", "deliver": "{delay: 65s}"},
        {"kind": "none", "deliver": "direct", "timeout": "2m", "confirm": {"broker": {"client_id": "ingest-*"}}},
    ],
)
def test_consumers_that_the_readme_tells_of_are_accepted(consumer: dict[str, Any], tmp_path: Path) -> None:
    """What stands in the text and in no block of its own."""
    deliver = consumer["deliver"]

    assert f"`{deliver}`" in EXAMPLES or f"`deliver: {deliver}`" in EXAMPLES
    assert f"`kind: {consumer['kind']}`" in EXAMPLES or consumer["kind"] == "systemd"
    assert refused(tmp_path, consumers={"ingest": consumer | {"deliver": yaml.safe_load(deliver)}}) == ""


@pytest.mark.parametrize("text", shown(PAGE, "auth"))
def test_logins_of_the_page_are_accepted(text: str, tmp_path: Path) -> None:
    """Each login that docs/vault.md shows; `cert` with the files that the text beside it names."""
    auth = yaml.safe_load(text)["auth"]
    files = {"client_cert": "tls.crt", "client_key": "tls.key"} if auth["method"] == "cert" else {}

    assert refused(tmp_path, vault={"url": "https://vault.example:8200", "auth": auth} | files) == ""


def test_every_login_is_shown() -> None:
    """The page has each method once, and AppRole also wrapped."""
    methods = [yaml.safe_load(text)["auth"]["method"] for text in shown(PAGE, "auth")]

    assert sorted(methods) == ["approle", "approle", "cert", "jwt", "kubernetes", "token"]


def test_vault_section_of_the_page_is_accepted(tmp_path: Path) -> None:
    """With several addresses, a namespace, an authority and a client certificate."""
    (text,) = shown(PAGE, "vault")

    assert refused(tmp_path, **yaml.safe_load(text)) == ""


def test_wrapping_excludes_the_transit_seal(tmp_path: Path) -> None:
    """As the page says."""
    auth = {"method": "approle", "role_id": "made-up", "secret_id": MADE_UP, "wrapped": True}
    state = {"seal": {"kind": "vault-transit", "mount": "transit", "key": "rotator"}}

    assert (
        refused(tmp_path, vault={"url": "https://vault.example:8200", "auth": auth}, state=state).count("wrapped") > 0
    )
    assert refused(tmp_path, vault={"url": "https://vault.example:8200", "auth": auth}) == ""


def test_links_lead_somewhere() -> None:
    """Every relative link of the page and of the README is a file that is there."""
    for page, place in ((PAGE, ROOT / "docs"), (EXAMPLES, ROOT / "deploy" / "vault" / "examples")):
        for link in re.findall(r"\]\(([^)#]+)", page):
            assert (place / link).exists(), link
