"""The configuration that the demo writes is one that the daemon takes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from rotator.sandbox.demo_config import DemoKey, KeyEntry, put_secret, rotator_yaml
from rotator.settings import load

KEY = DemoKey(
    name="building-a",
    id="c6f7b103-81df-4e73-8218-4f671056aee2",
    username="c6f7b103-81df-4e73-8218-4f671056aee2",
    password="made-up",
    topic="haltian-iot/events/31efcae6/{username}",
)
OLD = DemoKey(
    name="building-b",
    id="b",
    username="b",
    password="made-up",
    topic="telemetry/building-b",
    max_age=timedelta(seconds=1.5),
    grace=timedelta(seconds=4),
)


def written(tmp_path: Path) -> Path:
    """A demo's directory with configuration and secrets; the folder's name needs quoting in YAML."""
    directory = tmp_path / "a: folder's {name}"
    (directory / "secrets").mkdir(parents=True)
    for name in ("role-id", "secret-id", "admin.token", "haltian"):
        put_secret(directory / "secrets", name, "made-up")
    consumers = ("dashboards", "alarms")
    login = {"email": "a@acme.example", "password": {"file": str(directory / "secrets" / "haltian")}}
    text = rotator_yaml(
        directory,
        listen="127.0.0.1:9109",
        vault_url="http://127.0.0.1:2",
        providers={"haltian-demo": {"kind": "haltian", "url": "http://127.0.0.1:4", "organization": "acme", **login}},
        consumers={name: {"settle": "1s", "confirm": {"heartbeat": f"heartbeat/{name}"}} for name in consumers},
        keys=[
            KeyEntry(key=key, provider="haltian-demo", consumers=consumers, host="127.0.0.1", port=3)
            for key in (KEY, OLD)
        ],
    )
    path = directory / "rotator.yaml"
    path.write_text(text)
    return path


def test_the_daemon_takes_the_demo_configuration(tmp_path: Path) -> None:
    """It loads without a fault, with the key, both consumers and the times of the demo."""
    settings = load(written(tmp_path), {})
    key = settings.keys["building-a"]
    expected = (["alarms", "dashboards"], KEY.id, ("dashboards", "alarms"), "mqtt/building-a")
    assert expected == (sorted(settings.consumers), key.id, tuple(key.consumers), key.vault.path)


def test_times_are_written_to_the_millisecond(tmp_path: Path) -> None:
    """A second and a half stays one; a key without an age has none."""
    keys = load(written(tmp_path), {}).keys
    found = keys["building-b"]
    assert (timedelta(seconds=1.5), timedelta(seconds=4)) == (found.rotate.max_age, found.grace)
    assert keys["building-a"].rotate.max_age is None


def test_secret_files_are_ours_alone(tmp_path: Path) -> None:
    """Mode 0600, whatever the umask, so that the daemon does not refuse them."""
    assert put_secret(tmp_path, "a", "made-up").stat().st_mode & 0o777 == 0o600


def test_the_filter_keeps_its_template() -> None:
    """The username is filled in by the daemon, not by the demo."""
    assert KEY.filter == "haltian-iot/events/31efcae6/{username}/#"
