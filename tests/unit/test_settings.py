"""The configuration: the example loads, the environment wins, and every fault is told at once with its line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError
from pydantic_core.core_schema import ErrorType

from rotator.config_faults import WORDS
from rotator.durations import Share
from rotator.errors import ConfigError, Fault
from rotator.secret_refs import EnvRef, FileRef
from rotator.settings import (
    AppRoleAuth,
    CommandConsumer,
    Delay,
    Settings,
    SystemdConsumer,
    TokenAuth,
    json_schema,
    load,
    notices,
)

CONFIG = Path(__file__).parents[2] / "config"
PASSWORD = "hunter2-hunter2"
ENVIRON = {"TOKEN": "t", "PASSWORD": PASSWORD}

VAULT = "vault: {url: https://vault.example:8200, auth: {method: token, token: {env: TOKEN}}}"
PROVIDERS = """
providers:
  haltian-eu: {kind: haltian, url: https://p.example/v1, organization: o, email: a@b.example, password: {env: PASSWORD}}
"""
CONSUMERS = """
consumers:
  ingest: {kind: systemd, unit: ingest.service, confirm: {broker: {}}}
  edge: {kind: command, argv: [/bin/true]}
"""
KEY = """
    provider: haltian-eu
    id: c6f7b103
    vault: {path: mqtt/a, fields: {username: "{id}", password: "{secret}"}}
    verify: {host: broker.example}
    min_interval: 0s
    consumers: [ingest]
"""
OTHER = KEY.replace("c6f7b103", "0d2b9d0e").replace("mqtt/a", "mqtt/b")
WHOLE = f"{VAULT}{PROVIDERS}{CONSUMERS}keys:\n  building-a:{KEY}"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Settings]:
    """Load a text as rotator.yaml, with files of keys.d beside it and more environment."""

    def loaded(text: str, environ: Mapping[str, str] | None = None, **keys: str) -> Settings:
        (tmp_path / "rotator.yaml").write_text(text)
        for name, content in keys.items():
            (tmp_path / "keys.d").mkdir(exist_ok=True)
            (tmp_path / "keys.d" / f"{name}.yaml").write_text(content)
        return load(tmp_path / "rotator.yaml", ENVIRON | dict(environ or {}))

    return loaded


def refused(config: Callable[..., Settings], text: str, environ: Mapping[str, str] | None = None) -> tuple[Fault, ...]:
    """The faults of a text that must not load; none of them, nor what is chained to them, shows the password."""
    with pytest.raises(ConfigError) as caught:
        config(text, environ)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert PASSWORD not in str(caught.value)
    assert all(fault.suggestion or "chmod" in fault.message for fault in caught.value.faults), str(caught.value)
    return caught.value.faults


def line_of(text: str, needle: str) -> str:
    """Where `needle` stands in rotator.yaml."""
    (number,) = (number for number, line in enumerate(text.splitlines(), start=1) if needle in line)
    return f"rotator.yaml:{number}"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy of config/ whose secret files are there."""
    folder = tmp_path / "config"
    shutil.copytree(CONFIG, folder)
    path = folder / "rotator.yaml"
    text = path.read_text()
    for name in re.findall(r"\{file: state/([\w.-]+)\}", text):
        file = tmp_path / name
        file.touch(mode=0o600)
        file.write_text("made-up\n")
    path.write_text(re.sub(r"\{file: state/", f"{{file: {tmp_path}/", text))
    return path


def test_example(example: Path) -> None:
    """config/rotator.yaml and keys.d/ load, nothing in them is without effect but what says so, and they show all."""
    settings = load(example, {"HALTIAN_PASSWORD": PASSWORD})

    assert ["building-a", "building-b"] == list(settings.keys)
    key = settings.keys["building-a"]
    assert timedelta(days=14) == key.rotate.before_expiry
    assert timedelta(hours=1) == key.rotate.jitter
    assert "Europe/Helsinki" == key.rotate.windows[0].timezone
    assert isinstance(settings.consumers["ingest"], SystemdConsumer)
    assert isinstance(settings.consumers["edge"], CommandConsumer)
    assert isinstance(settings.vault.auth, AppRoleAuth)
    assert [] == notices(settings)
    assert PASSWORD not in repr(settings)
    text = example.read_text()
    wanted = {*Settings.model_fields, *type(key).model_fields, *SystemdConsumer.model_fields}
    assert [] == [name for name in sorted(wanted) if name not in text]


def test_example_shows_the_defaults(example: Path, config: Callable[..., Settings]) -> None:
    """What the example gives as a default is one."""
    shown, bare = load(example, {"HALTIAN_PASSWORD": PASSWORD}), config(WHOLE)
    for name in Settings.model_fields.keys() - {"defaults", "http", "vault", "providers", "consumers", "keys"}:
        assert getattr(shown, name) == getattr(bare, name), name
    assert shown.http.listen == bare.http.listen
    for name in ("mount", "namespace", "ca_file", "timeout"):
        assert getattr(shown.vault, name) == getattr(bare.vault, name), name
    for name in ("scope", "action", "deliver", "timeout", "settle", "accept", "delay"):
        assert getattr(shown.consumers["ingest"], name) == getattr(bare.consumers["ingest"], name), name
    for name in ("min_interval", "max_attempts", "adopt"):
        assert getattr(shown.keys["building-a"], name) == getattr(bare.keys["building-a"], name), name
    shown_verify, verify = shown.keys["building-a"].verify, bare.keys["building-a"].verify
    for name in ("ca_file", "username", "password", "client_id", "timeout", "propagation", "interval"):
        assert getattr(shown_verify, name) == getattr(verify, name), name


def test_smallest(config: Callable[..., Settings]) -> None:
    """A section that is left out, or empty, has its defaults."""
    settings = config(f"{VAULT}\nkeys:\nhttp:\n")
    assert {} == settings.keys
    assert ("127.0.0.1", 9109) == (settings.http.host, settings.http.port)
    assert Path("state/rotator.db") == settings.state.path
    assert ("https://vault.example:8200",) == settings.vault.url
    assert TokenAuth(method="token", token=EnvRef(env="TOKEN")) == settings.vault.auth
    assert (timedelta(minutes=5), Share(0.1)) == (settings.watch, settings.max_due_share)


def test_frozen(config: Callable[..., Settings]) -> None:
    """Nothing changes after the start."""
    settings = config(WHOLE)
    with pytest.raises(ValidationError):
        settings.mode = "observe"
    with pytest.raises(ValidationError):
        settings.keys["building-a"].id = "x"


@pytest.mark.parametrize(
    ("defaults", "own", "expected"),
    [
        ("{}", "{}", (Share(0.33), None, timedelta(0))),
        ("{before_expiry: 20%, jitter: 1h}", "{}", (Share(0.2), None, timedelta(hours=1))),
        ("{before_expiry: 20%, jitter: 1h}", "{before_expiry: 14d}", (timedelta(days=14), None, timedelta(hours=1))),
        ("{max_age: 60d}", "{jitter: 5m}", (Share(0.33), timedelta(days=60), timedelta(minutes=5))),
        ("{max_age: 60d, jitter: 1h}", "{max_age: null, jitter: null}", (Share(0.33), None, timedelta(0))),
        ("{}", "{before_expiry: null, max_age: 7d}", (None, timedelta(days=7), timedelta(0))),
    ],
)
def test_rotate_is_merged(
    config: Callable[..., Settings], defaults: str, own: str, expected: tuple[object, ...]
) -> None:
    """A key's policy is laid over the defaults name by name; null takes one away; 33% where nobody says anything."""
    settings = config(f"{WHOLE}    rotate: {own}\ndefaults: {{rotate: {defaults}}}\n")
    rotate = settings.keys["building-a"].rotate
    assert expected == (rotate.before_expiry, rotate.max_age, rotate.jitter)


def test_defaults_or_top_level(config: Callable[..., Settings]) -> None:
    """The fleet's settings may stand under `defaults`; the top level wins."""
    settings = config(f"{VAULT}\nwatch: 1m\ndefaults: {{watch: 2m, on_conflict: take_over, drift_interval: 1h}}")
    found = (settings.watch, settings.on_conflict, settings.drift_interval)
    assert (timedelta(minutes=1), "take_over", timedelta(hours=1)) == found


@pytest.mark.parametrize(("verify", "port"), [("", 1883), (", tls: true", 8883), (", tls: true, port: 18883", 18883)])
def test_verify_port(config: Callable[..., Settings], verify: str, port: int) -> None:
    """The port is the usual one of plain or TLS, unless given."""
    settings = config(WHOLE.replace("{host: broker.example}", f"{{host: broker.example{verify}}}"))
    found = settings.keys["building-a"].verify
    assert found is not None
    assert port == found.port


def test_shapes(config: Callable[..., Settings]) -> None:
    """The forms that a setting may take."""
    text = WHOLE.replace("url: https://vault.example:8200", "url: [https://a.example, https://b.example]").replace(
        "argv: [/bin/true]", "argv: [/bin/true], deliver: {delay: 6m}, confirm: {heartbeat: up/edge}"
    )
    settings = config(text)
    edge = settings.consumers["edge"]
    assert ("https://a.example", "https://b.example") == settings.vault.url
    assert Delay(delay=timedelta(minutes=6)) == edge.deliver
    assert (timedelta(minutes=6), timedelta(0)) == (edge.delay, settings.consumers["ingest"].delay)
    assert edge.confirm is not None
    assert edge.confirm.heartbeat is not None
    assert "up/edge" == edge.confirm.heartbeat.topic
    confirm = settings.consumers["ingest"].confirm
    assert confirm is not None
    assert confirm.broker is not None


def test_role_id_may_be_text(config: Callable[..., Settings]) -> None:
    """A role id is no secret; a secret id is one."""
    auth = "auth: {method: approle, role_id: b1946ac9, secret_id: {env: TOKEN}}"
    settings = config(f"vault: {{url: http://127.0.0.1:8200, {auth}}}")
    assert isinstance(settings.vault.auth, AppRoleAuth)
    assert "b1946ac9" == settings.vault.auth.role_id


def test_a_credential_outside_the_service_comes_with_a_way(config: Callable[..., Settings]) -> None:
    """The file may well be there; it is shown to the service alone."""
    text = WHOLE.replace("{env: PASSWORD}", "{credential: haltian}", 1)
    (outside,) = refused(config, text)
    assert ("CREDENTIALS_DIRECTORY is not set" in outside.message, "as_rotator" in (outside.suggestion or "")) == (
        True,
        True,
    )
    (missing,) = refused(config, text, {"CREDENTIALS_DIRECTORY": "/nowhere"})
    assert "put the secret there" in (missing.suggestion or "")


def test_a_key_that_never_expires_needs_an_age(config: Callable[..., Settings]) -> None:
    """Its own or the defaults', for a key and for a selection; nothing else would ever make it due."""
    section = "\n  broker: {kind: mosquitto, host: h, username: admin, password: {env: PASSWORD}}\nconsumers:"
    text = WHOLE.replace("\nconsumers:", section).replace("provider: haltian-eu", "provider: broker")
    (fault,) = refused(config, f"{text}    rotate: {{before_expiry: 10d}}\n")
    assert "keys.building-a has no `rotate.max_age`, and keys of kind mosquitto never expire" == fault.message
    aged = f"defaults: {{rotate: {{max_age: 60d}}}}\n{text}"
    assert timedelta(days=60) == config(aged).keys["building-a"].rotate.max_age
    (fault,) = refused(config, f"{aged}    rotate: {{max_age: null}}\n")
    assert "keys.building-a has no `rotate.max_age`" in fault.message
    template = "{vault: {path: 'b/{name}', fields: {p: '{secret}'}}}"
    (fault,) = refused(
        config,
        f"{WHOLE.replace(chr(10) + 'consumers:', section)}  all:\n    provider: broker\n"
        f"    discover: {{match: '*', template: {template}}}\n",
    )
    assert "keys.all has no `rotate.max_age`, and keys of kind mosquitto never expire" == fault.message


@pytest.mark.parametrize(
    ("reference", "id", "refused_"),
    [
        ("{vault: mqtt/a#password}", "admin", False),
        ("{vault: mqtt/a#username}", "admin", True),
        ("{vault: mqtt/b#password}", "admin", True),
        ("{env: PASSWORD}", "admin", True),
        ("{env: PASSWORD}", "somebody", False),
    ],
)
def test_the_daemons_own_login_is_read_from_where_it_is_written(
    config: Callable[..., Settings], reference: str, id: str, refused_: bool
) -> None:
    """Else the daemon would be locked out by its next start."""
    section = f"\n  broker: {{kind: mosquitto, host: h, username: admin, password: {reference}}}\nconsumers:"
    text = WHOLE.replace("\nconsumers:", section).replace("provider: haltian-eu", "provider: broker")
    text = f"{text}    rotate: {{max_age: 60d}}\n".replace("c6f7b103", id)
    if not refused_:
        assert id == config(text).keys["building-a"].id
        return
    (fault,) = refused(config, text)
    assert "providers.broker.password is what keys.building-a rotates" in fault.message
    assert "{vault: mqtt/a#password}" in (fault.suggestion or "")


def test_a_password_beside_a_secret_username_is_a_reference(config: Callable[..., Settings]) -> None:
    """Iotistica's device keys are usernames; the password beside one is provisioned once and stands elsewhere."""
    settings = config(WHOLE.replace(VERIFY, 'verify: {host: x, username: "{secret}", password: {env: PASSWORD}}'))
    verify = settings.keys["building-a"].verify
    assert verify is not None
    assert ("{secret}", EnvRef(env="PASSWORD")) == (verify.username, verify.password)


def test_notices(config: Callable[..., Settings]) -> None:
    """What is accepted without effect is told, once each."""
    text = WHOLE.replace("unit: ingest.service", "unit: ingest.service, canary: true, max_unavailable: 2")
    found = notices(config(f"{text}    grace: 24h\n    pair: b\nmax_due_share: 20%\n"))
    names = ["grace", "canary", "max_unavailable"]
    assert len(names) == len(found)
    assert all(name in notice for name, notice in zip(names, found, strict=True))


# --- the environment


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("ROTATOR__VAULT__URL", "http://127.0.0.1:1", lambda s: s.vault.url == ("http://127.0.0.1:1",)),
        ("ROTATOR__VAULT__URL", '["http://a", "http://b"]', lambda s: s.vault.url == ("http://a", "http://b")),
        ("ROTATOR__PROVIDERS__HALTIAN-EU__URL", "http://x", lambda s: s.providers["haltian-eu"].url == "http://x"),
        ("ROTATOR__PROVIDERS__HALTIAN_EU__URL", "http://x", lambda s: s.providers["haltian-eu"].url == "http://x"),
        ("rotator__providers__haltian-eu__email", "x", lambda s: s.providers["haltian-eu"].email == "x"),
        ("ROTATOR__SHUTDOWN_GRACE", "5s", lambda s: s.shutdown_grace == timedelta(seconds=5)),
        ("ROTATOR__ALLOW_INSECURE_FILES", "true", lambda s: s.allow_insecure_files is True),
        ("ROTATOR__KEYS__BUILDING_A__ID", "123", lambda s: s.keys["building-a"].id == "123"),
        ("ROTATOR__KEYS__BUILDING_A__VERIFY__PORT", "18883", lambda s: s.keys["building-a"].verify.port == 18883),
        ("ROTATOR__KEYS__BUILDING_A__VERIFY__TLS", "true", lambda s: s.keys["building-a"].verify.port == 8883),
        ("ROTATOR__KEYS__BUILDING_A__CONSUMERS", '["edge"]', lambda s: s.keys["building-a"].consumers == ("edge",)),
        ("ROTATOR__KEYS__BUILDING_A__VAULT__FIELDS__USERNAME", "{key}", lambda s: "{key}" in repr(s)),
        ("ROTATOR__CONSUMERS__INGEST__DELIVER__DELAY", "6m", lambda s: s.consumers["ingest"].delay.seconds == 360),
        ("ROTATOR__CONSUMERS__INGEST__CONFIRM", "null", lambda s: s.consumers["ingest"].confirm is None),
        (
            "ROTATOR__CONSUMERS__MORE",
            '{"kind": "command", "argv": ["x"]}',
            lambda s: "more" in s.consumers,
        ),
        ("ROTATOR__VAULT__AUTH__TOKEN__ENV", "PASSWORD", lambda s: s.vault.auth.token == EnvRef(env="PASSWORD")),
        ("ROTATOR_PORT", "tcp://10.0.0.1:80", lambda s: s.http.port == 9109),
    ],
)
def test_environment_wins(
    config: Callable[..., Settings], variable: str, value: str, read: Callable[[Any], object]
) -> None:
    """Every kind of setting can be overridden; names of the file are found in capitals and with `_` for `-`."""
    assert bool(read(config(WHOLE))) is (variable == "ROTATOR_PORT")  # that one is Kubernetes', and none of ours
    assert read(config(WHOLE, {variable: value}))


def test_environment_share(config: Callable[..., Settings]) -> None:
    """A single setting of a policy that the file does not have at all."""
    settings = config(WHOLE, {"ROTATOR__KEYS__BUILDING_A__ROTATE__BEFORE_EXPIRY": "9%"})
    assert Share(0.09) == settings.keys["building-a"].rotate.before_expiry


def test_environment_replaces_a_reference(config: Callable[..., Settings], tmp_path: Path) -> None:
    """A reference has exactly one kind, so another kind from the environment takes the place of the file's."""
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("t")
    settings = config(WHOLE, {"ROTATOR__VAULT__AUTH__TOKEN__FILE": str(file)})
    assert TokenAuth(method="token", token=FileRef(file=str(file))) == settings.vault.auth


def test_environment_fits_one_name(config: Callable[..., Settings]) -> None:
    """A variable that could mean two keys is refused instead of changing either."""
    text = f"{WHOLE}  building.a:{OTHER}"
    (fault,) = refused(config, text, {"ROTATOR__KEYS__BUILDING_A__ADOPT": "rotate"})
    assert "`building_a` fits building-a and building.a" == fault.message
    settings = config(text, {"ROTATOR__KEYS__BUILDING.A__ADOPT": "rotate"})
    assert ["wait", "rotate"] == [key.adopt for key in settings.keys.values()]


def test_environment_of_a_command(config: Callable[..., Settings]) -> None:
    """The names of a command's own environment keep their case."""
    edge = config(WHOLE, {"ROTATOR__CONSUMERS__EDGE__ENV__LANG": "C"}).consumers["edge"]
    assert isinstance(edge, CommandConsumer)
    assert {"LANG": "C"} == edge.env


def test_environment_alone(config: Callable[..., Settings]) -> None:
    """A section that no file has can come from the environment whole."""
    settings = config(
        "",
        {
            "ROTATOR__VAULT__URL": "http://127.0.0.1:8200",
            "ROTATOR__VAULT__AUTH": '{"method": "token", "token": {"env": "TOKEN"}}',
            "ROTATOR__VAULT__AUTH__TOKEN__ENV": "PASSWORD",
        },
    )
    assert TokenAuth(method="token", token=EnvRef(env="PASSWORD")) == settings.vault.auth


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ROTATOR__VAULT__TIMEOUT", "soon", "vault.timeout: 'soon' is not a duration"),
        ("ROTATOR__VAULT__TIMEOOT", "5s", "unknown name `vault.timeoot`"),
        ("ROTATOR__MOOD", "observe", "unknown name `mood`"),
        ("ROTATOR__KEYS__BUILDING_A__CONSUMERS", "edge", "keys.building-a.consumers: must be a list"),
        ("ROTATOR__KEYS__BUILDING_A__CONSUMERS", '["egde"]', "there is no consumer `egde`"),
        ("ROTATOR__HTTP__ADMIN_TOKEN", PASSWORD, "http.admin_token: a secret never stands in"),
        ("ROTATOR____URL", "x", "holds an empty name"),
    ],
)
def test_environment_faults(config: Callable[..., Settings], variable: str, value: str, said: str) -> None:
    """A fault of the environment names the variable."""
    (fault,) = refused(config, WHOLE, {variable: value})
    assert f"environment {variable}" == fault.where
    assert said in fault.message


# --- faults


VERIFY = "verify: {host: broker.example}"
SPARE = "min_interval: 0s"  # a line that says nothing, in whose place another can stand


@pytest.mark.parametrize(
    ("old", "new", "said", "suggested"),
    [
        # names
        (SPARE, "verifi: {host: broker.example}", "unknown name `keys.building-a.verifi`", "did you mean `verify`?"),
        ("kind: systemd, ", "kind: systemd, untit: x, ", "unknown name `consumers.ingest.untit`", "`unit`"),
        ("confirm: {broker: {}}", "confirm: {broker: {hots: x}}", "`consumers.ingest.confirm.broker.hots`", "`host`"),
        (
            "kind: haltian",
            "kind: haltain",
            "providers.haltian-eu: must be one of graphql, haltian",
            "did you mean `haltian`?",
        ),
        ("kind: systemd", "kind: systemdd", "must be one of systemd, kubernetes", "did you mean `systemd`?"),
        ("kind: systemd, ", "", "consumers.ingest: `kind` is missing", "one of systemd, kubernetes"),
        ("method: token", "method: tokn", "vault.auth: must be one of token, approle", "did you mean `token`?"),
        ("method: token, ", "method: token, mount: x, ", "unknown name `vault.auth.mount`", "method, token"),
        ("argv: [", "deliver: later, argv: [", "consumers.edge.deliver: must be direct or", "{delay: 6m}"),
        # types
        ("argv: [/bin/true]", "argv: /bin/true", "consumers.edge.argv: must be a list", "[first, second]"),
        ("argv: [/bin/true]", "argv: []", "consumers.edge.argv: must not be empty", "[first, second]"),
        ("argv: [/bin/true]", "argv: [/bin/true, 5]", "consumers.edge.argv[1]: must be text", "quotes"),
        ("argv: [", "env: {A: 1}, argv: [", "consumers.edge.env.A: must be text", "quotes"),
        ("argv: [", "canary: maybe, argv: [", "consumers.edge.canary: must be true or false", "quotes"),
        ("argv: [", "max_unavailable: true, argv: [", "max_unavailable: must be a whole number", "10"),
        ("argv: [", "max_unavailable: 0, argv: [", "max_unavailable: is too small", "at least 1"),
        ("argv: [", "accept: hope, argv: [", "accept: must be confirmed or restarted", "one of these"),
        ("argv: [", "confirm: {}, argv: [", "confirm: needs exactly one of broker, heartbeat, http", "TOPIC"),
        ("id: c6f7b103", "id: 12", "keys.building-a.id: must be text", "quotes"),
        ("id: c6f7b103", "max_attempts: 2.5", "keys.building-a.max_attempts: must be a whole number", "10"),
        (VERIFY, "verify: {host: x, port: 70000}", "keys.building-a.verify.port: is too large", "at most 65535"),
        (VERIFY, "verify: {tls: true}", "keys.building-a.verify.host: is missing", "add it"),
        (VERIFY, "verify: broker.example", "keys.building-a.verify: must be a mapping", "name: value"),
        ("consumers: [ingest]", "consumers: [ingest, ingest]", "names `ingest` twice", "once"),
        ("unit: ingest.service", "unit: ingest", "must be the full name of a systemd unit", "`ingest.service`"),
        ("https://p.example/v1", "ftp://p.example", "providers.haltian-eu.url: must be a URL", "https://"),
        ("https://vault.example:8200", "vault.example", "vault.url[0]: must be a URL", "https://"),
        ("https://vault.example:8200", f"https://u:{PASSWORD}@v", "holds no user and no password", "own"),
        ("path: mqtt/a", "path: /mqtt/a", "keys.building-a.vault.path: must be a path below the mount", "mqtt/"),
        # durations
        (VERIFY, "verify: {host: x, timeout: 10}", "verify.timeout: '10' has no unit", "90s"),
        (VERIFY, "verify: {host: x, timeout: 0s}", "verify.timeout: must be more than 0s", "90s"),
        (VERIFY, "verify: {host: x, timeout: [1]}", "verify.timeout: must be text", "90s"),
        (SPARE, "rotate: {before_expiry: soon}", "rotate.before_expiry: 'soon' is not a duration", "33%"),
        (SPARE, "rotate: {before_expiry: 100%}", "rotate.before_expiry: the whole life", "33%"),
        (SPARE, "rotate: {max_age: 33%}", "rotate.max_age: '33%' is not a duration", "14d"),
        # windows
        (SPARE, 'blackouts: [{cron: "0 2 * *", duration: 1h}]', "blackouts[0].cron: a cron expression has", "five"),
        (SPARE, 'blackouts: [{cron: "0 25 * * *", duration: 1h}]', "is not a cron expression: bad hour", "five"),
        (SPARE, 'blackouts: [{cron: "0 0 31 2 *", duration: 1h}]', "cron: ", "five fields"),
        (SPARE, 'blackouts: [{cron: "0 0 30 2 *", duration: 1h}]', "cron: ", "five fields"),
        (SPARE, 'blackouts: [{cron: "0 2 * * *", duration: 1x}]', "blackouts[0].duration: '1x' is not", "90s"),
        (SPARE, 'blackouts: [{cron: "0 2 * * *"}]', "keys.building-a.blackouts[0].duration: is missing", "add it"),
        (
            SPARE,
            'rotate: {windows: [{cron: "0 2 * * *", duration: 1h, timezone: Europe/Helsinky}]}',
            "keys.building-a.rotate.windows[0].timezone: is not a time zone",
            "did you mean `Europe/Helsinki`?",
        ),
        # references
        ("provider: haltian-eu", "provider: haltian", "there is no provider `haltian`", "did you mean `haltian-eu`?"),
        ("consumers: [ingest]", "consumers: [ingset]", "consumers[0]: there is no consumer `ingset`", "`ingest`"),
        ("consumers: [ingest]", "consumers: [xyz]", "there is no consumer `xyz`", "known are ingest, edge"),
        # templates
        ('"{id}"', '"{user}"', "vault.fields.username: {user} is unknown, did you mean {username}?", "{secret}"),
        ('"{secret}"', '"x{secret}"', "vault.fields: no field holds the secret", '"{secret}"'),
        (VERIFY, 'verify: {host: x, subscribe: "a/{secret}"}', "{secret} can't be used here", "{id}"),
        (VERIFY, "verify: {host: x, password: {env: PASSWORD}}", "neither username nor password holds", "{secret}"),
        (VERIFY, 'verify: {host: x, username: "{secret}", password: {env: NOPE}}', "variable NOPE is not set", "put"),
        (VERIFY, "verify: {host: x, password: abc}", "neither username nor password holds {secret}", "{secret}"),
        # secrets
        ("password: {env: PASSWORD}", f"password: {PASSWORD}", "password: a secret never stands in", "{file: PATH}"),
        (
            "password: {env: PASSWORD}",
            f"password: {{{PASSWORD}: }}",
            "password: a reference to a secret",
            "{env: NAME}",
        ),
        ("password: {env: PASSWORD}", "password: {fille: /x}", "password: a reference", "did you mean `file`?"),
        ("password: {env: PASSWORD}", "password: {env: NOPE}", "variable NOPE is not set", "reference"),
        ("password: {env: PASSWORD}", "password: {file: /no/such}", "secret file /no/such: there is no such", "put"),
        ("password: {env: PASSWORD}", "password: {vault: a}", "providers.haltian-eu.password.vault: holds", "compare"),
        ("token: {env: TOKEN}", "token: {vault: a#b}", "vault.auth.token: can't come from the Vault", "env"),
        ("confirm: {broker: {}}", f"confirm: {{broker: {{password: {PASSWORD}}}}}", "a secret never stands", "{file:"),
    ],
)
def test_one_fault(config: Callable[..., Settings], old: str, new: str, said: str, suggested: str) -> None:
    """One thing wrong: its line, what it is, and what may have been meant; and nothing else is blamed."""
    text = WHOLE.replace(old, new)
    assert text != WHOLE
    faults = refused(config, text)
    related = [fault for fault in faults if said in fault.message]
    assert 1 == len(related), [str(fault) for fault in faults]
    (fault,) = related
    assert fault.suggestion is not None
    assert suggested in fault.suggestion
    if new:
        assert line_of(text, new) == fault.where
    others = [str(other) for other in faults if other is not fault and "is missing" not in other.message]
    assert [] == others


@pytest.mark.parametrize(
    ("text", "said", "suggested"),
    [
        ("http: {listen: '9109'}", "http.listen: must be host:port", "127.0.0.1:9109"),
        ("http: {listen: '::1:9109'}", "http.listen: must be host:port", "[::1]:9109"),
        ("http: {listen: 127.0.0.1:99999}", "http.listen: must be host:port", "127.0.0.1:9109"),
        (f"http: {{admin_token: {PASSWORD}}}", "http.admin_token: a secret never stands in", "{credential: NAME}"),
        ("state: {url: 'postgresql+psycopg://rotator@db/rotator'}", "only sqlite is supported by this", "sqlite:///"),
        ("state: {url: 'sqlite:///:memory:'}", "state.url: must be sqlite:///", "sqlite:///"),
        ("mode: managed", "mode: must be manage or observe", "one of these"),
        ("max_due_share: 5", "max_due_share: '5' is not a share", "33%"),
        ("defaults: {on_conflict: pray}", "on_conflict: must be stop or take_over", "one of these"),
        ("defaults: {rotat: {}}", "unknown name `defaults.rotat`", "did you mean `rotate`?"),
        ("_env_file: /etc/passwd", "unknown name `_env_file`", "take it out"),
        ("5: x", "a name must be text", "quotes"),
        ("watch: !python/name:os.system x", "this value can't be read", "quotes"),
        ("watch: 2024-13-45", "this value can't be read", "quotes"),
        ("<<: 5", "`<<` takes a mapping", "<<: *name"),
        ("keys: [a]", "keys: must be a mapping", "name: value"),
        ("keys: {a b: {}}", "keys.a b: is not a name that can be used", "letters, digits"),
        ("keys: {a/b: {}}", "keys.a/b: is not a name that can be used", "letters, digits"),
        ("keys: {a: 5}", "keys.a: must be a mapping", "name: value"),
        ("allow_insecure_files: perhaps", "allow_insecure_files: must be true or false", "quotes"),
    ],
)
def test_faults_of_sections(config: Callable[..., Settings], text: str, said: str, suggested: str) -> None:
    """What can be wrong beside keys, providers and consumers."""
    faults = refused(config, f"{VAULT}\n{text}\n")
    (fault,) = (fault for fault in faults if said in fault.message)
    assert "rotator.yaml:2" == fault.where
    assert suggested in str(fault.suggestion)


def test_everything_at_once(config: Callable[..., Settings]) -> None:
    """Faults of every kind in one go, in the order of the lines, with the environment last."""
    text = f"""{VAULT}
htp: {{}}
mode: managed
{PROVIDERS}
  haltian-eu: {{}}
consumers:
  ingest: {{kind: systemd, unit: ingest.service, timeout: 5}}
keys:
  building-a:
    provider: haltian
    id: 5
    rotate: {{windows: [{{cron: "x", duration: 1h}}]}}
    vault: {{path: mqtt/a, fields: {{password: "{{scret}}"}}}}
    consumers: [ingst]
"""
    faults = refused(config, text, {"ROTATOR__WATCH": "x"})
    found = [(fault.where, fault.message.split("`")[0].split(": ")[0]) for fault in faults]
    expected = [
        (line_of(text, "htp:"), "unknown name "),
        (line_of(text, "mode:"), "mode"),
        (line_of(text, "haltian-eu: {}"), ""),
        (line_of(text, "timeout: 5"), "consumers.ingest.timeout"),
        (line_of(text, "provider: haltian"), "keys.building-a.provider"),
        (line_of(text, "id: 5"), "keys.building-a.id"),
        (line_of(text, "windows:"), "keys.building-a.rotate.windows[0].cron"),
        (line_of(text, "scret"), "keys.building-a.vault.fields.password"),
        (line_of(text, "ingst"), "keys.building-a.consumers[0]"),
        ("environment ROTATOR__WATCH", "watch"),
    ]
    assert expected == found


def test_no_pydantic_words(config: Callable[..., Settings]) -> None:
    """Faults speak of the configuration, not of Python."""
    text = f"{VAULT}\nproviders: []\nconsumers: {{a: [], b: {{kind: []}}}}\nkeys: {{x: {{vault: 1, rotate: 2}}}}"
    told = " ".join(str(fault) for fault in refused(config, text))
    assert re.search(r"pydantic|function-|Input|instance of|dict\b|tuple|None|<\w+>", told) is None


def test_evidence_needs_a_broker(config: Callable[..., Settings]) -> None:
    """Where neither `confirm` nor the key's `verify` names a host, there is nowhere to look."""
    text = WHOLE.replace(VERIFY, "verify: null")
    (fault,) = refused(config, text)
    assert line_of(text, "ingest:") == fault.where
    assert "consumers.ingest.confirm.broker names no host, and keys.building-a has no `verify`" in fault.message
    assert config(text.replace("broker: {}", "broker: {host: x}")).keys["building-a"].verify is None


def test_line_of_a_deep_fault(config: Callable[..., Settings]) -> None:
    """In block style each fault has the line of the very name it is about."""
    text = f"{WHOLE}    rotate:\n      jitter: 1h\n      max_age: long\n      max_agee: 5d\n"
    lines = [fault.where for fault in refused(config, text)]
    assert [line_of(text, "max_age: long"), line_of(text, "max_agee")] == lines


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("vault: {url: [a\nmode: x", "rotator.yaml:2", "is not YAML"),
        ("vault:\n\turl: x", "rotator.yaml:2", "is not YAML"),
        (f"password: *{PASSWORD}", "rotator.yaml:1", "an alias"),
        (f"password: '{PASSWORD}", "rotator.yaml:1", "is not YAML"),
        ("a: 1\n---\nb: 2", "rotator.yaml:2", "is not YAML"),
        ("- a", "rotator.yaml:1", "must be a mapping of names to settings"),
        ("a: \x01", "rotator.yaml", "characters that YAML does not allow"),
        ("[" * 20000, "rotator.yaml", "nested too deeply"),
    ],
)
def test_not_yaml(config: Callable[..., Settings], text: str, where: str, said: str) -> None:
    """What is no YAML is said with its line and without quoting it."""
    (fault,) = refused(config, text)
    assert where == fault.where
    assert said in fault.message


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there, a folder, and bytes that are no text."""
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
    for name, said in (("no.yaml", "there is no such file"), (".", "directory"), ("bytes.yaml", "not UTF-8")):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name, {})
        assert said in str(caught.value).replace("Is a d", "d")


def test_written_twice(config: Callable[..., Settings]) -> None:
    """A name that stands twice is refused at any depth, and both lines are told."""
    text = f"{WHOLE}    id: other\n"
    (fault,) = refused(config, text)
    assert line_of(text, "id: other") == fault.where
    assert "`id` is written twice" == fault.message
    assert f"first at {line_of(text, 'id: c6f7b103')}" == fault.suggestion


def test_merge_keys_and_aliases(config: Callable[..., Settings]) -> None:
    """YAML's own ways to repeat a part work; what a mapping says itself wins, wherever the `<<` stands."""
    text = WHOLE.replace("confirm: {broker: {}}", "confirm: &proof {broker: {port: 1}}, timeout: 9s").replace(
        "argv: [/bin/true]", "argv: [/bin/true], confirm: *proof"
    )
    text = text.replace("  building-a:", "  building-a: &key") + (
        "  building-b:\n    id: other\n    vault: {path: mqtt/b, fields: {p: '{secret}'}}\n    <<: *key\n"
    )
    settings = config(text)
    assert settings.consumers["ingest"].confirm == settings.consumers["edge"].confirm
    assert ("other", ("ingest",)) == (settings.keys["building-b"].id, settings.keys["building-b"].consumers)


def test_endless_alias(config: Callable[..., Settings]) -> None:
    """An alias to what holds it is refused instead of followed for ever."""
    faults = refused(config, f"{VAULT}\nhttp: &h {{listen: *h}}\n")
    assert "an alias leads back into itself" == faults[0].message


# --- keys.d


def test_keys_folder(config: Callable[..., Settings], tmp_path: Path) -> None:
    """Keys of keys.d join those of the main file; hidden and other files are left alone."""
    (tmp_path / "keys.d").mkdir()
    (tmp_path / "keys.d" / ".b.yaml").write_text("[")
    (tmp_path / "keys.d" / "b.yaml~").write_text("[")
    settings = config(WHOLE, b=f"keys:\n  building-b:{OTHER}", empty="keys: {}\n")
    assert ["building-a", "building-b"] == list(settings.keys)
    assert Share(0.33) == settings.keys["building-b"].rotate.before_expiry


def test_keys_folder_alone(config: Callable[..., Settings]) -> None:
    """The main file need not have keys, or may have an empty `keys:`."""
    for main in (f"{VAULT}{PROVIDERS}{CONSUMERS}", f"{VAULT}{PROVIDERS}{CONSUMERS}keys:\n"):
        assert ["building-b"] == list(config(main, b=f"keys:\n  building-b:{OTHER}").keys)


def test_keys_folder_faults(config: Callable[..., Settings]) -> None:
    """Each fault names the file of keys.d and the line in it, and all files' faults come together."""
    wrong = OTHER.replace("ingest", "ingset").replace("mqtt/b", "mqtt/c").replace("0d2b9d0e", "ffff")
    with pytest.raises(ConfigError) as caught:
        config(
            WHOLE,
            a=f"keys:\n  building-a:{OTHER}",
            b=f"keys:\n  building-c:{wrong}",
            c="building-d: {}\n",
            d="keys: [\n",
            e="keys: []\n",
        )
    found = [(fault.where, fault.message, fault.suggestion) for fault in caught.value.faults]
    assert [
        ("keys.d/a.yaml:2", "`building-a` is written twice", f"first at {line_of(WHOLE, 'building-a')}"),
        ("keys.d/b.yaml:8", "keys.building-c.consumers[0]: there is no consumer `ingset`", "did you mean `ingest`?"),
        ("keys.d/c.yaml:1", "unknown name `building-d`", "a file in keys.d holds `keys:` and nothing else"),
    ] == found[:3]
    assert ["keys.d/d.yaml:2", "keys.d/e.yaml:1"] == [where for where, _, _ in found[3:]]


def test_one_key_twice_under_two_names(config: Callable[..., Settings]) -> None:
    """Two entries for one key at the provider, or one field of Vault, would undo each other."""
    faults = refused(config, f"{WHOLE}  building-b:{KEY}")
    assert [
        "keys.building-b.id is the same key as keys.building-a.id",
        "keys.building-b.vault.fields.username writes the same Vault field as keys.building-a.vault.fields.username",
        "keys.building-b.vault.fields.password writes the same Vault field as keys.building-a.vault.fields.password",
    ] == [fault.message for fault in faults]


# --- secret files


def test_secret_file(config: Callable[..., Settings], tmp_path: Path) -> None:
    """A file that everybody can read is refused, unless the configuration or the environment allows it."""
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    file.chmod(0o644)
    text = WHOLE.replace("{env: PASSWORD}", f"{{file: {file}}}")
    (fault,) = refused(config, text)
    assert line_of(text, str(file)) == fault.where
    assert f"{file} is readable by everybody" in fault.message
    assert config(f"{text}allow_insecure_files: true\n").allow_insecure_files
    assert config(text, {"ROTATOR__ALLOW_INSECURE_FILES": "true"}).allow_insecure_files
    file.write_text("")
    file.chmod(0o600)
    (fault,) = refused(config, text)
    assert f"{file} is empty" in fault.message


# --- the JSON Schema


def broken(schema: Mapping[str, Any], value: Any, root: Mapping[str, Any], where: str = "$") -> list[str]:
    """What JSON Schema says of `value`: the words that rotator's schema uses, and no others."""
    known = {"$ref", "anyOf", "oneOf", "type", "properties", "required", "additionalProperties", "patternProperties"}
    known |= {"items", "enum", "const", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems"}
    known |= {"minProperties", "propertyNames", "title", "description", "default", "$defs", "$schema"}
    assert set(schema) <= known, set(schema) - known
    faults = []
    if "$ref" in schema:
        faults += broken(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root, where)
    for word in ("anyOf", "oneOf"):
        fitting = [arm for arm in schema.get(word, []) if not broken(arm, value, root, where)]
        if word in schema and (not fitting or (word == "oneOf" and len(fitting) > 1)):
            faults.append(f"{where}: {len(fitting)} of {word}")
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    if "type" in schema and (
        not isinstance(value, types[schema["type"]]) or (schema["type"] == "integer" and isinstance(value, bool))
    ):
        return [*faults, f"{where}: not {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        faults.append(f"{where}: not in {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        faults.append(f"{where}: not {schema['const']}")
    if isinstance(value, str):
        if "pattern" in schema and re.search(schema["pattern"], value) is None:
            faults.append(f"{where}: does not match {schema['pattern']}")
        if len(value) < schema.get("minLength", 0):
            faults.append(f"{where}: too short")
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        faults.append(f"{where}: out of range")
    if isinstance(value, list):
        for index, item in enumerate(value):
            faults += broken(schema.get("items", {}), item, root, f"{where}[{index}]")
    if isinstance(value, dict):
        faults += broken_members(schema, value, root, where)
    return faults


def broken_members(
    schema: Mapping[str, Any], value: Mapping[str, Any], root: Mapping[str, Any], where: str
) -> list[str]:
    """What JSON Schema says of an object's members."""
    faults = [f"{where}: {name} is missing" for name in schema.get("required", []) if name not in value]
    if len(value) < schema.get("minProperties", 0):
        faults.append(f"{where}: empty")
    for name, member in value.items():
        arms = [schema["properties"][name]] if name in schema.get("properties", {}) else []
        arms += [arm for pattern, arm in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
        if not arms:
            rest = schema.get("additionalProperties", True)
            if rest is False:
                faults.append(f"{where}: {name} is unknown")
            arms = [rest] if isinstance(rest, dict) else []
        for arm in arms:
            faults += broken(arm, member, root, f"{where}.{name}")
    return faults


def test_schema_fits_the_example() -> None:
    """config/ is valid by the schema, which is plain JSON and has its durations as text."""
    schema = json.loads(json.dumps(json_schema()))
    example = yaml.safe_load((CONFIG / "rotator.yaml").read_text())
    assert [] == broken(schema, example, schema)
    more = yaml.safe_load((CONFIG / "keys.d" / "example.yaml").read_text())
    assert [] == broken(schema, example | more, schema)
    assert ("string", "1m") == (
        schema["properties"]["shutdown_grace"]["type"],
        schema["properties"]["shutdown_grace"]["default"],
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mode: manage", "mode: managed"),
        ("shutdown_grace: 60s", "shutdown_grace: 60"),
        ("watch: 5m", "watch: m5"),
        ("max_due_share: 10%", "max_due_share: 10"),
        ("kind: systemd", "kind: kubernetes"),
        ("unit: ingest.service", "unit: ingest"),
        ("max_attempts: 10", "max_attempts: 0"),
        ("password: {env: HALTIAN_PASSWORD}", "password: plain"),
        ("password: {env: HALTIAN_PASSWORD}", "password: {env: X, file: y}"),
        ("listen: 127.0.0.1:9109", "listen: localhost"),
        ("adopt: wait", "adopted: wait"),
        ("port: 8883                    #", "port: 70000 #"),
        ("building-a:", "building a:"),
        ("provider: haltian-eu", "# provider: haltian-eu"),
    ],
)
def test_schema_refuses(old: str, new: str) -> None:
    """The schema finds what an editor can find."""
    text = (CONFIG / "rotator.yaml").read_text()
    assert old in text
    schema = json_schema()
    assert [] != broken(schema, yaml.safe_load(text.replace(old, new, 1)), schema)


def test_words_for_all_errors() -> None:
    """Every error that the words are for is one of pydantic's, so that none is there by a slip of the pen."""
    assert set() == set(WORDS) - set(get_args(ErrorType))


def test_a_command_that_only_asks_needs_no_secret(tmp_path: Path) -> None:
    """Where the secrets are out of reach, the rest of the configuration is still read and checked."""
    config = tmp_path / "rotator.yaml"
    config.write_text(
        "vault: {url: https://vault.example:8200, auth: {method: token, token: {file: nowhere/token}}}\n",
        encoding="utf-8",
    )
    assert "https://vault.example:8200" == load(config, {}, secrets=False).vault.url[0]
    with pytest.raises(ConfigError, match="nowhere/token"):
        load(config, {})


def test_a_ca_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Found now, with its line, and not as a library's error at the first connection."""
    config = tmp_path / "rotator.yaml"
    config.write_text(
        "vault:\n  url: https://vault.example:8200\n  ca_file: nowhere/ca.pem\n"
        "  auth: {method: token, token: {env: MADE_UP}}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        load(config, {"MADE_UP": "made-up"})
    assert [("rotator.yaml:3", True)] == [(f.where, "nowhere/ca.pem" in f.message) for f in caught.value.faults]
