"""What `--platform` may say: each simulator's section and keys, the configuration-only ones, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rotator.providers import kinds
from rotator.sandbox import demo_platforms
from rotator.sandbox.demo_config import KeyEntry, put_secret, rotator_yaml
from rotator.sandbox.demo_generic import HALTIAN_BY_GRAPHQL, ISHARERADIO_BY_HTTP
from rotator.sandbox.demo_platforms import ALL, PLATFORMS, DemoPlatform, Ground, start_platforms
from rotator.settings import load

EXAMPLES = Path(__file__).parents[3] / "config" / "examples"
SERVERS = ("mosquitto", "rabbitmq")
SIMULATORS = tuple(name for name in PLATFORMS if name not in SERVERS)


def absent() -> None:
    """As where Debian's package is not installed."""
    raise FileNotFoundError("no such program: install the Debian package of that name")


@pytest.fixture
def without_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Mosquitto nor RabbitMQ is installed."""
    for name in SERVERS:
        choice = replace(PLATFORMS[name], find=absent)
        monkeypatch.setattr(demo_platforms, "PLATFORMS", {**demo_platforms.PLATFORMS, name: choice})


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Where platforms are started."""
    (tmp_path / "secrets").mkdir()
    with ExitStack() as stack:
        yield Ground(tmp_path, stack, 60.0)


def settings_of(platforms: list[DemoPlatform], directory: Path) -> Any:
    """What the daemon makes of a configuration with these platforms."""
    for name in ("role-id", "secret-id", "admin.token"):
        put_secret(directory / "secrets", name, "made-up")
    path = directory / "rotator.yaml"
    text = rotator_yaml(
        directory,
        listen="127.0.0.1:9109",
        vault_url="http://127.0.0.1:2",
        providers={each.name: each.section for each in platforms},
        consumers={"dashboards": platforms[0].broker.consumer("dashboards")},
        keys=[
            KeyEntry(key=key, provider=each.name, consumers=["dashboards"], host="127.0.0.1", port=3)
            for each in platforms
            for key in each.keys
        ],
    )
    path.write_text(text)
    return load(path, {})


@pytest.mark.parametrize("name", SIMULATORS)
def test_the_daemon_takes_each_platform(name: str, ground: Ground, tmp_path: Path) -> None:
    """Its section is of a known kind, loads without a fault, and has two keys that come due."""
    (platform,), left_out = start_platforms(name, ground)
    settings = settings_of([platform], tmp_path)
    assert platform.section["kind"] in kinds()
    assert ([], ["building-a", "building-b"]) == (left_out, list(settings.keys))
    for key in settings.keys.values():
        assert (key.rotate.max_age or key.rotate.before_expiry) is not None


@pytest.mark.parametrize("name", SIMULATORS)
def test_no_secret_stands_in_what_a_platform_tells(name: str, ground: Ground, tmp_path: Path) -> None:
    """Its section and its facts name files; the keys' secrets are in neither, nor in how a key is printed."""
    (platform,), _ = start_platforms(name, ground)
    shown = f"{platform.section}{platform.facts}{platform}"
    known = [file.read_text().strip() for file in (tmp_path / "secrets").iterdir()]
    known += [key.password for key in platform.keys]
    assert len(known) >= 4
    assert [] == [secret for secret in known if secret in shown]


@pytest.mark.parametrize(
    ("text", "example"), [(ISHARERADIO_BY_HTTP, "ishareradio-http"), (HALTIAN_BY_GRAPHQL, "haltian-graphql")]
)
def test_the_examples_are_what_the_demo_runs(text: str, example: str) -> None:
    """The provider in config/examples and the demo's are the same."""
    (found,) = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())["providers"].values()
    assert yaml.safe_load(text) == found


@pytest.mark.usefixtures("without_servers")
def test_all_says_what_it_leaves_out(ground: Ground) -> None:
    """One key of each simulator, all at one broker, and a line with the missing package for each server."""
    platforms, left_out = start_platforms(ALL, ground)
    names = ["haltian", "ishareradio", "iotistica", "wayscloud", "losant"]
    assert names == [each.name for each in platforms]
    assert names == [key.name for each in platforms for key in each.keys]
    assert 1 == len({each.broker.port for each in platforms})
    assert [True, True] == [
        name in line and "Debian package" in line for name, line in zip(SERVERS, left_out, strict=True)
    ]


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.usefixtures("without_servers")
def test_a_missing_server_is_said_before_anything_starts(name: str, ground: Ground, tmp_path: Path) -> None:
    """The package's name, and no folder that was begun."""
    with pytest.raises(FileNotFoundError, match="install the Debian package"):
        start_platforms(name, ground)
    assert not (tmp_path / name).exists()
