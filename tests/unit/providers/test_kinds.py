"""Kinds of providers: ours stand in the registry, somebody else's come through the entry point group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rotator.providers import PROVIDERS

PACKAGE = '''
from datetime import timedelta
from typing import Literal

from rotator.config_base import HttpPart
from rotator.model import Abilities, Identity, Secret, Strategy
from rotator.providers import Kind
from rotator.secret_refs import SecretRef


class AcmeSettings(HttpPart):
    """An Acme cloud."""

    kind: Literal["acme"]
    token: SecretRef


class Acme:
    strategy = Strategy.CHOSEN
    abilities = Abilities(strategy=strategy, kills_old=True, expires=False)
    issue_deadline = timedelta(seconds=30)

    def __init__(self, site, settings):
        self.name, self.peer, self.token = site.name, site.peer(settings), site.reveal(settings.token)

    def identity(self, id):
        return Identity(id=id, username=id)

    def list_keys(self):
        return []

    def choose(self):
        return Secret("made-up")

    def set_secret(self, identity, secret):
        raise NotImplementedError

    def close(self):
        self.peer.close()


KIND = Kind(AcmeSettings, Acme)
'''
CONFIG = """
vault: {url: http://127.0.0.1:1, auth: {method: token, token: {env: TOKEN}}}
providers: {cloud: {kind: acme, token: {env: TOKEN}}}
keys:
  building-a:
    {provider: cloud, id: a, rotate: {max_age: 30d}, vault: {path: mqtt/a, fields: {password: "{secret}"}}}
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an installed package that offers the kind `acme`."""
    (tmp_path / "acme_rotator.py").write_text(PACKAGE)
    info = tmp_path / "acme_rotator-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-rotator\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rotator.providers]\nacme = acme_rotator:KIND\n")
    return tmp_path


def check(package: Path, config: str) -> subprocess.CompletedProcess[str]:
    path = package / "rotator.yaml"
    path.write_text(config)
    environ = {**os.environ, "PYTHONPATH": str(package), "TOKEN": "made-up"}
    argv = [sys.executable, "-m", "rotator", "check", "--config", str(path)]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_somebody_elses_kind_is_one_of_ours(package: Path) -> None:
    """Its section is checked like any other, by line and with the nearest name."""
    good = check(package, CONFIG)
    assert 0 == good.returncode, good.stdout + good.stderr
    bad = check(package, CONFIG.replace("kind: acme, token", "kind: acme, tokne"))
    assert 2 == bad.returncode
    assert "did you mean `token`?" in bad.stdout + bad.stderr


def test_an_entry_that_is_no_kind_says_so(package: Path) -> None:
    """A package that offers something else is named."""
    (package / "acme_rotator.py").write_text("KIND = 5\n")
    done = check(package, CONFIG)
    assert 0 != done.returncode
    assert "acme_rotator:KIND" in done.stderr


def test_nobody_takes_the_name_of_ours(package: Path) -> None:
    """`haltian` stays ours, whatever a package says."""
    (package / "acme_rotator-1.0.dist-info" / "entry_points.txt").write_text(
        "[rotator.providers]\nhaltian = acme_rotator:KIND\n"
    )
    said = "import rotator.providers as p; print(p.kinds()['haltian'] is p.PROVIDERS['haltian'])"
    environ = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", said], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert "True" == done.stdout.strip()


def test_the_registry_names_each_kind_as_its_section_does() -> None:
    """`kind: x` is read by the section that says `Literal["x"]`."""
    assert {name: (name,) for name in PROVIDERS} == {
        name: kind.settings.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
        for name, kind in PROVIDERS.items()
    }
