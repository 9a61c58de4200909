"""The configurations that deploy/ shows load, with made-up secrets in the places that they name."""

import re
from pathlib import Path

import pytest
import yaml

from rotator.settings import FileSeal, load, notices

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRETS = ("vault-role-id", "vault-secret-id", "haltian-password")


def secrets(folder: Path) -> Path:
    """A folder with the three secrets, readable by their owner alone."""
    folder.mkdir()
    for name in SECRETS:
        file = folder / name
        file.touch(mode=0o600)
        file.write_text("made-up\n")
    return folder


def test_kubernetes_config_loads(tmp_path: Path) -> None:
    """The ConfigMap's rotator.yaml is a whole configuration."""
    found = yaml.safe_load_all((DEPLOY / "kubernetes" / "rotator.yaml").read_text())
    (text,) = (item["data"]["rotator.yaml"] for item in found if item["kind"] == "ConfigMap")
    moved = text.replace("/run/secrets/rotator", str(secrets(tmp_path / "secrets")))
    assert moved.count(str(tmp_path)) == len(SECRETS)
    file = tmp_path / "rotator.yaml"
    file.write_text(moved)

    settings = load(file, {})

    assert list(settings.keys) == ["building-a"]
    assert settings.http.listen == "0.0.0.0:9109"  # what a pod must listen on


def test_systemd_config_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rotator.yaml of deploy/README.md is whole, its credentials are those of the unit's drop-in, and nothing in it
    is warned of, also not at the second start, when the seal key and the journal are there."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    (text,) = (block for block in blocks if "providers:" in block)
    drop_in = (DEPLOY / "systemd" / "rotator.service.d" / "credentials.conf").read_text()
    file = tmp_path / "rotator.yaml"
    file.write_text(text)

    settings = load(file, {"CREDENTIALS_DIRECTORY": str(secrets(tmp_path / "credentials"))})

    assert list(settings.consumers) == ["ingest"]
    assert isinstance(settings.state.seal, FileSeal)
    monkeypatch.chdir(tmp_path)
    for made in (settings.state.path, Path(settings.state.seal.path)):
        made.parent.mkdir(exist_ok=True)
        made.touch()
    assert notices(settings) == []
    named = re.findall(r"\{credential: ([\w-]+)\}", text)
    assert sorted(named) == sorted(re.findall(r"^LoadCredential=([\w-]+):", drop_in, re.MULTILINE))
