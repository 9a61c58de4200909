"""The configuration that the demo writes is one that the daemon takes."""

from __future__ import annotations

from pathlib import Path

from rotator.sandbox.demo_config import DemoKey, Endpoints, put_secret, rotator_yaml
from rotator.settings import load

AT = Endpoints(
    listen="127.0.0.1:9109",
    platform_url="http://127.0.0.1:1/v1/graphql",
    organization="acme",
    email="operator@acme.example",
    vault_url="http://127.0.0.1:2",
    broker_host="127.0.0.1",
    broker_port=3,
    observer="observer",
)
KEY = DemoKey(name="building-a", id="c6f7b103-81df-4e73-8218-4f671056aee2", integration="31efcae6")


def written(tmp_path: Path) -> Path:
    """A demo's directory with configuration and secrets; the folder's name needs quoting in YAML."""
    directory = tmp_path / "a: folder's {name}"
    (directory / "secrets").mkdir(parents=True)
    for name in ("role-id", "secret-id", "observer.password", "admin.token", "haltian.password"):
        put_secret(directory / "secrets", name, "made-up")
    path = directory / "rotator.yaml"
    path.write_text(rotator_yaml(AT, {KEY.name: KEY}, ("dashboards", "alarms"), directory, 60))
    return path


def test_the_daemon_takes_the_demo_configuration(tmp_path: Path) -> None:
    """It loads without a fault, with the key, both consumers and the times of the demo."""
    settings = load(written(tmp_path), {})
    key = settings.keys["building-a"]
    expected = (["alarms", "dashboards"], KEY.id, ("dashboards", "alarms"), "mqtt/building-a")
    assert expected == (sorted(settings.consumers), key.id, tuple(key.consumers), key.vault.path)


def test_secret_files_are_ours_alone(tmp_path: Path) -> None:
    """Mode 0600, whatever the umask, so that the daemon does not refuse them."""
    assert put_secret(tmp_path, "a", "made-up").stat().st_mode & 0o777 == 0o600


def test_the_filter_keeps_its_template() -> None:
    """The username is filled in by the daemon, not by the demo."""
    assert KEY.filter == "haltian-iot/events/31efcae6/{username}/#"
