"""`state.seal`: a key file or Vault's transit engine, and the notice of a key that lies beside the journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from rotator.errors import ConfigError
from rotator.settings import FileSeal, Settings, TransitSeal, json_schema, load, notices

VAULT = "vault: {url: https://vault.example:8200, auth: {method: token, token: {env: TOKEN}}}\n"


def settings(folder: Path, text: str = "") -> Settings:
    """A whole configuration with this `state` section."""
    path = folder / "rotator.yaml"
    path.write_text(VAULT + text)
    return load(path, {"TOKEN": "made-up"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", FileSeal(path="state/seal.key")),
        ("state: {seal: {kind: file}}", FileSeal(path="state/seal.key")),
        ("state: {seal: {kind: file, path: /etc/rotator/seal.key}}", FileSeal(path="/etc/rotator/seal.key")),
        ("state: {seal: {kind: vault-transit}}", TransitSeal(kind="vault-transit", mount="transit", key="rotator")),
        (
            "state: {seal: {kind: vault-transit, mount: team/transit, key: mqtt}}",
            TransitSeal(kind="vault-transit", mount="team/transit", key="mqtt"),
        ),
    ],
)
def test_kinds(tmp_path: Path, text: str, expected: FileSeal | TransitSeal) -> None:
    """Both kinds with their defaults."""
    assert expected == settings(tmp_path, text).state.seal


@pytest.mark.parametrize(
    ("seal", "words"),
    [
        ("{kind: hsm}", "must be one of file, vault-transit"),
        ("{path: seal.key}", "`kind` is missing"),
        ("{kind: vault-transit, path: seal.key}", "unknown name `state.seal.path`"),
        ("{kind: file, mount: transit}", "unknown name `state.seal.mount`"),
        ("{kind: vault-transit, key: a b}", "state.seal.key: is not a name that can be used"),
        ("{kind: vault-transit, mount: ''}", "state.seal.mount"),
    ],
)
def test_faults(tmp_path: Path, seal: str, words: str) -> None:
    """Named where they stand, without the names of our own unions."""
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, f"state: {{seal: {seal}}}")
    (fault,) = caught.value.faults
    assert words in str(fault)
    assert "<" not in str(fault)


def test_schema_knows_both() -> None:
    """Editors offer both kinds."""
    text = str(json_schema())
    assert ("FileSeal" in text, "TransitSeal" in text, "vault-transit" in text) == (True,) * 3


def test_a_key_beside_the_journal_is_noticed(tmp_path: Path) -> None:
    """As soon as it is there, however its path is written; a key elsewhere, or in Vault, is well."""
    state = tmp_path / "state"
    state.mkdir()
    text = (
        f"state: {{url: 'sqlite:///{state}/rotator.db', seal: {{kind: file, path: '{tmp_path}/x/../state/seal.key'}}}}"
    )
    (tmp_path / "x").mkdir()
    assert [] == notices(settings(tmp_path, text))
    (state / "seal.key").touch()
    (notice,) = notices(settings(tmp_path, text))
    assert "beside the journal" in notice
    (tmp_path / "x" / "seal.key").touch()
    assert [] == notices(settings(tmp_path, text.replace("/../state/", "/")))
    transit = f"state: {{url: 'sqlite:///{state}/rotator.db', seal: {{kind: vault-transit}}}}"
    assert [] == notices(settings(tmp_path, transit))
