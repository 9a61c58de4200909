"""The consumers' sections: what each kind, delivery and proof may say, what is refused and where, and the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from rotator.errors import ConfigError, Fault
from rotator.secret_refs import EnvRef, FileRef
from rotator.settings import (
    ExternalSecretDeliver,
    FileDeliver,
    KubernetesConsumer,
    MqttConsumer,
    NoneConsumer,
    Settings,
    SystemdConsumer,
    WebhookConsumer,
    json_schema,
    load,
    notices,
)
from unit.test_settings import broken

EXAMPLES = Path(__file__).parents[2] / "config" / "examples"
HEAD = """
vault: {url: https://vault.example:8200, auth: {method: token, token: {env: TOKEN}}}
providers: {p: {kind: haltian, url: https://p.example/v1, organization: o, email: a@b.example, password: {env: TOKEN}},
  rabbit: {kind: rabbitmq, url: "https://r.example", username: a, password: {env: TOKEN}}}
consumers:
"""
WHOLE = """
  fleet:   {kind: mqtt, host: broker.example, port: 8883, tls: true, username: rotator, password: {env: TOKEN},
            topic: fleet/control, retain: false, payload: '{{"key": "{key}", "version": {version}}}', ack: fleet/ack/+,
            expect: [a, b]}
  hook:    {kind: webhook, url: "https://hook.example/", secret: {env: TOKEN}, confirm: {http: "https://h.example/v"}}
  edge:    {kind: command, argv: [restart, "{key}"], cwd: /, env: {A: b}, timeout: 30s,
            confirm: {argv: [is-it-on, "{version}"]}}
  watcher: {kind: none, confirm: {heartbeat: {topic: up, host: broker.example}}}
  dash:    {kind: kubernetes, namespace: iot, deployment: dash}
  ingest:  {kind: systemd, unit: ingest.service, action: kill, signal: SIGHUP}
"""

Config = Callable[..., Settings]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Load consumers, and a key that uses some of them."""

    def loaded(consumers: str, used: str = "[]", more: str = "", **environ: str) -> Settings:
        key = "{provider: p, id: a, vault: {path: a, fields: {p: '{secret}'}}, consumers: %s}"
        text = f"{HEAD}{consumers}\nkeys:\n  building-a: {key % used}\n{more}"
        (tmp_path / "rotator.yaml").write_text(text)
        return load(tmp_path / "rotator.yaml", {"TOKEN": "t", **environ})

    return loaded


def refused(config: Config, consumers: str, **environ: str) -> Fault:
    """The one fault of consumers that must not load."""
    with pytest.raises(ConfigError) as caught:
        config(consumers, **environ)
    (fault,) = caught.value.faults
    return fault


def test_every_kind(config: Config) -> None:
    """The sections of the contract load, with what they leave out."""
    found = config(WHOLE).consumers
    fleet, hook, dash, ingest = found["fleet"], found["hook"], found["dash"], found["ingest"]
    assert isinstance(fleet, MqttConsumer)
    assert (("a", "b"), "fleet/ack/+", 8883) == (fleet.expect, fleet.ack, fleet.port)
    assert isinstance(hook, WebhookConsumer)
    assert EnvRef(env="TOKEN") == hook.secret
    assert hook.confirm is not None
    assert hook.confirm.http is not None
    assert ("https://h.example/v", "version", {}) == (
        hook.confirm.http.url,
        hook.confirm.http.field,
        hook.confirm.http.headers,
    )
    assert found["edge"].confirm is not None
    assert ("is-it-on", "{version}") == found["edge"].confirm.argv
    assert isinstance(found["watcher"], NoneConsumer)
    assert isinstance(dash, KubernetesConsumer)
    assert ("deployment", "dash") == dash.workload
    assert isinstance(ingest, SystemdConsumer)
    assert "SIGHUP" == ingest.signal
    assert [] == notices(config(WHOLE))


def test_short_forms(config: Config) -> None:
    """A URL and a list stand for the proof that they can only be; the port is MQTT's own; a number of acks will do."""
    found = config(
        """
  fleet: {kind: mqtt, host: h, topic: t, ack: a, expect: 3}
  hook: {kind: webhook, url: "http://h.example", secret: {env: TOKEN}, confirm: "https://h.example/{key}"}
  edge: {kind: command, argv: [restart], confirm: [is-it-on]}
  dash: {kind: kubernetes, namespace: iot, selector: "app in (a, b)", confirm: {http: {url: "http://h.example",
         field: a.b, headers: {Accept: text/plain, Authorization: {env: TOKEN}}}}}
"""
    ).consumers
    fleet = found["fleet"]
    assert isinstance(fleet, MqttConsumer)
    assert (3, 1883, '{{"key": "{key}", "version": {version}}}') == (fleet.expect, fleet.port, fleet.payload)
    assert found["hook"].confirm is not None
    assert found["hook"].confirm.http is not None
    assert "https://h.example/{key}" == found["hook"].confirm.http.url
    assert found["edge"].confirm is not None
    assert ("is-it-on",) == found["edge"].confirm.argv
    dash = found["dash"]
    assert isinstance(dash, KubernetesConsumer)
    assert (None, "app in (a, b)") == (dash.workload, dash.selector)
    assert dash.confirm is not None
    assert dash.confirm.http is not None
    assert {"Accept": "text/plain", "Authorization": EnvRef(env="TOKEN")} == dash.confirm.http.headers


def test_deliveries(config: Config) -> None:
    """All forms, for any kind."""
    base = "kind: command, argv: [x]"
    found = config(
        f"\n  a: {{{base}, deliver: direct}}\n  b: {{{base}, deliver: {{delay: 6m}}}}\n"
        f"  c: {{{base}, deliver: {{file: /run/mqtt.env, timeout: 2m}}}}\n"
        f"  d: {{{base}, deliver: {{external_secret: {{namespace: iot, name: mqtt}}}}}}\n"
    ).consumers
    assert ("direct", timedelta(minutes=6)) == (found["a"].deliver, found["b"].delay)
    assert FileDeliver(file="/run/mqtt.env", timeout=timedelta(minutes=2)) == found["c"].deliver
    deliver = found["d"].deliver
    assert isinstance(deliver, ExternalSecretDeliver)
    assert ("iot", "mqtt", timedelta(minutes=10)) == (
        deliver.external_secret.namespace,
        deliver.external_secret.name,
        deliver.timeout,
    )
    assert timedelta(0) == found["c"].delay == found["d"].delay


@pytest.mark.parametrize(
    ("section", "said", "suggested"),
    [
        # kinds
        ("kind: webhok, url: 'http://h.example'", "must be one of systemd, kubernetes, mqtt", "`webhook`"),
        ("kind: none", "consumers.x.confirm: is missing", "add it"),
        # names
        ("kind: mqtt, host: h, topic: t, acks: a", "unknown name `consumers.x.acks`", "`ack`"),
        (
            "kind: webhook, url: 'http://h.example', secrets: 1, secret: {env: TOKEN}",
            "`consumers.x.secrets`",
            "`secret`",
        ),
        ("kind: none, confirm: {htttp: x}", "unknown name `consumers.x.confirm.htttp`", "`http`"),
        (
            "kind: none, confirm: {http: {url: 'http://h.example', fild: a}}",
            "`consumers.x.confirm.http.fild`",
            "`field`",
        ),
        ("kind: command, argv: [x], deliver: {fil: /x}", "consumers.x.deliver: needs exactly one of", "`file`"),
        ("kind: command, argv: [x], deliver: {file: /x, timout: 1m}", "`consumers.x.deliver.timout`", "`timeout`"),
        (
            "kind: command, argv: [x], deliver: {external_secret: {namespac: iot, namespace: iot, name: a}}",
            "`consumers.x.deliver.external_secret.namespac`",
            "`namespace`",
        ),
        # what belongs together
        ("kind: mqtt, host: h, topic: t, ack: a", "`ack` and `expect` belong together", "expect: [a, b]"),
        ("kind: mqtt, host: h, topic: t, expect: 2", "`ack` and `expect` belong together", "expect: [a, b]"),
        (
            "kind: mqtt, host: h, topic: t, ack: a, expect: 2, confirm: 'http://h.example'",
            "is confirmed by its acks",
            "take one",
        ),
        ("kind: systemd, unit: a.service, signal: SIGHUP", "`action: kill` and `signal` belong together", "SIGHUP"),
        ("kind: systemd, unit: a.service, action: kill", "`action: kill` and `signal` belong together", "SIGHUP"),
        ("kind: kubernetes, namespace: iot", "needs exactly one of deployment, statefulset", "{deployment:"),
        (
            "kind: kubernetes, namespace: iot, deployment: a, selector: b",
            "needs exactly one of deployment",
            "{deployment:",
        ),
        (
            "kind: command, argv: [x], confirm: {broker: {host: h}, http: 'http://h.example'}",
            "exactly one of broker",
            "TOPIC",
        ),
        ("kind: command, argv: [x], deliver: {file: /x, delay: 1m}", "needs exactly one of delay, file", "{delay: 6m}"),
        # values
        ("kind: mqtt, host: h, topic: fleet/+", "consumers.x.topic: must be a topic to publish to", "fleet/control"),
        (
            "kind: mqtt, host: h, topic: t, ack: 'a/#/b', expect: 1",
            "consumers.x.ack: is not an MQTT filter",
            "fleet/ack/+",
        ),
        (
            "kind: mqtt, host: h, topic: t, ack: 'a+', expect: 1",
            "consumers.x.ack: is not an MQTT filter",
            "fleet/ack/+",
        ),
        ("kind: mqtt, host: h, topic: t, ack: a, expect: []", "consumers.x.expect: must not be empty", "[first"),
        ("kind: mqtt, host: h, topic: t, ack: a, expect: 0", "consumers.x.expect: is too small", "at least 1"),
        ("kind: mqtt, host: h, topic: t, ack: a, expect: true", "consumers.x.expect: must be a whole number", "10"),
        ("kind: mqtt, host: h, topic: t, ack: a, expect: [a, a]", "consumers.x.expect: names `a` twice", "once"),
        ("kind: mqtt, host: h, topic: t, port: 0", "consumers.x.port: is too small", "at least 1"),
        ("kind: systemd, unit: a.service, action: kill, signal: SIGHPU", "signal: is not a signal", "`SIGHUP`"),
        (
            "kind: kubernetes, namespace: IoT, deployment: a",
            "namespace: holds characters that are not allowed",
            "config",
        ),
        ("kind: webhook, url: 'ftp://h.example', secret: {env: TOKEN}", "consumers.x.url: must be a URL", "https://"),
        (
            "kind: none, confirm: {broker: {provider: p}}",
            "consumers.x.confirm.broker.provider: `p` has no list of connections",
            "of kind rabbitmq",
        ),
        ("kind: none, confirm: {broker: {provider: rabit}}", "there is no provider `rabit`", "`rabbit`"),
        (
            "kind: none, confirm: {broker: {provider: rabbit, host: h}}",
            "`host` has no place beside it",
            "take one of them out",
        ),
        ("kind: none, confirm: {url: 'http://h.example'}", "consumers.x.confirm: knows no `url`", "{http: {url: "),
        (
            "kind: systemd, unit: a.service, action: reload_or_restart",
            "consumers.x.action: must be one of restart",
            "`reload-or-restart`",
        ),
        ("kind: systemd, unit: a.service, action: 1", "consumers.x.action: must be restart", "one of"),
        ("kind: kubernetes, namespace: iot, selector: {app: d}", "consumers.x.selector: must be text", "app=dash"),
        ("kind: webhook, url: 'http://h.example/{version}', secret: {env: TOKEN}", "{version} is unknown", "{key}"),
        ("kind: none, confirm: hope", "consumers.x.confirm.http.url: must be a URL", "https://"),
        ("kind: none, confirm: []", "consumers.x.confirm.argv: must not be empty", "[first"),
        # templates
        (
            "kind: mqtt, host: h, topic: t, payload: '{secret}'",
            "payload: {secret} can't be used here",
            "{key} and {version}",
        ),
        ("kind: mqtt, host: h, topic: t, payload: '{\"v\": {version}}'", "consumers.x.payload: ", "{{ for a brace"),
        ("kind: command, argv: [x, '{secret}']", "consumers.x.argv[1]: {secret} can't be used here", "{key}"),
        ("kind: command, argv: [x], confirm: ['{secret}']", "confirm.argv[0]: {secret} can't be used here", "{key}"),
        ("kind: none, confirm: 'http://h.example/{version}'", "http.url: {version} is unknown", "{key}"),
        # secrets and files
        ("kind: webhook, url: 'http://h.example', secret: hush", "consumers.x.secret: a secret never stands", "{file:"),
        ("kind: webhook, url: 'http://h.example', secret: {env: NOPE}", "variable NOPE is not set", "put"),
        ("kind: mqtt, host: h, topic: t, password: {env: NOPE}", "variable NOPE is not set", "put"),
        ("kind: none, confirm: {http: {url: 'http://h.example', headers: {A: {env: NOPE}}}}", "NOPE is not set", "put"),
        ("kind: mqtt, host: h, topic: t, ca_file: /no/such", "consumers.x.ca_file: there is no readable file", ""),
        ("kind: kubernetes, namespace: a, deployment: a, kubeconfig: /no", "kubeconfig: there is no readable file", ""),
    ],
)
def test_faults(config: Config, section: str, said: str, suggested: str) -> None:
    """Each fault is the only one, names its place and line, and says what to do."""
    fault = refused(config, f"  x: {{{section}}}")
    assert said in fault.message, fault.message
    assert suggested in (fault.suggestion or ""), fault.suggestion
    assert re.fullmatch(r"rotator\.yaml:6", fault.where), fault.where


def test_proof_without_a_broker_needs_no_host(config: Config) -> None:
    """A key without `verify` may have consumers that are proven over HTTP, by a command, by acks; but no heartbeat."""
    for section in ("confirm: 'http://h.example'", "confirm: [x]", "confirm: {http: {url: 'http://h.example'}}"):
        assert ("x",) == config(f"  x: {{kind: command, argv: [x], {section}}}", "[x]").keys["building-a"].consumers
    config("  x: {kind: mqtt, host: h, topic: t, ack: a, expect: 1}", "[x]")
    with pytest.raises(ConfigError, match="heartbeat names no host"):
        config("  x: {kind: none, confirm: {heartbeat: up}}", "[x]")


def test_proof_by_a_list_of_connections(config: Config, tmp_path: Path) -> None:
    """Of the provider that is named, or of the key's own; neither needs a host, and other kinds have no list."""
    text = "  x: {kind: command, argv: [x], confirm: {broker: {provider: %s}}}"
    assert ("x",) == config(text % "rabbit", "[x]").keys["building-a"].consumers
    with pytest.raises(ConfigError, match="broker names no host"):
        config("  x: {kind: command, argv: [x], confirm: {broker: {client_id: a}}}", "[x]")
    path = tmp_path / "rotator.yaml"
    text = path.read_text().replace("{provider: p, id: a,", "{provider: rabbit, id: meter, rotate: {max_age: 60d},")
    path.write_text(text)
    found = load(path, {"TOKEN": "t"})
    assert "rabbit" == found.keys["building-a"].provider


def test_the_environment_wins(config: Config, tmp_path: Path) -> None:
    """Also over a reference of another kind, and in a header."""
    text = """
  hook: {kind: webhook, url: "http://h.example", secret: {env: NOPE}, confirm: "http://h.example"}
  fleet: {kind: mqtt, host: h, topic: t, password: {env: NOPE}, ack: a, expect: [a]}
"""
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_text("s")
    found = config(
        text,
        ROTATOR__CONSUMERS__HOOK__SECRET__FILE=str(path),
        ROTATOR__CONSUMERS__FLEET__PASSWORD__ENV="TOKEN",
        ROTATOR__CONSUMERS__FLEET__EXPECT='["b", "c"]',
        ROTATOR__CONSUMERS__HOOK__URL="https://other.example",
    ).consumers
    assert isinstance(found["hook"], WebhookConsumer)
    assert isinstance(found["hook"].secret, FileRef)
    assert "https://other.example" == found["hook"].url
    assert isinstance(found["fleet"], MqttConsumer)
    assert (EnvRef(env="TOKEN"), ("b", "c")) == (found["fleet"].password, found["fleet"].expect)


@pytest.mark.parametrize("proof", ["http: 'http://h.example'", "argv: [is-it-on]"])
def test_a_version_that_other_keys_move_proves_little(config: Config, proof: str) -> None:
    """Keys that share a path in Vault share its numbers; a proof at the broker knows no versions."""
    text = f"  x: {{kind: command, argv: [x], confirm: {{{proof}}}}}"
    other = "  b: {provider: p, id: b, vault: {path: %s, fields: {q: '{secret}'}}}"
    (found,) = notices(config(text, "[x]", other % "a"))
    assert "consumers.x" in found
    assert "keys.building-a" in found
    assert [] == notices(config(text, "[x]", other % "elsewhere"))
    heartbeat = "  x: {kind: command, argv: [x], confirm: {heartbeat: {topic: up, host: h}}}"
    assert [] == notices(config(heartbeat, "[x]", other % "a"))


def test_windows_that_contradict_one_another_are_refused(config: Config) -> None:
    """A key that takes its consumers down is rotated in their windows only."""
    consumer = '  x: {kind: command, argv: [x], windows: [{cron: "0 2 * * *", duration: 3h}]}'
    start = "  b: {provider: p, id: i, vault: {path: p, fields: {p: '{secret}'}}, consumers: [x]"
    inside = start + ", rotate: {windows: [{cron: '0 3 * * *', duration: 1h}]}}"
    assert config(consumer, more=inside).keys["b"].rotate.windows
    for wrong in (inside.replace("0 3", "0 4").replace("1h", "2h"), start + "}"):
        with pytest.raises(ConfigError) as caught:
            config(consumer, more=wrong)
        (fault,) = caught.value.faults
        assert "keys.b takes x down when it is rotated, and may be outside consumers.x.windows" in fault.message


def test_a_fleet_of_several_keys_must_name_them(config: Config) -> None:
    """A number alone could be another key's version; with one key, it can't."""
    text = "  x: {kind: mqtt, host: h, topic: t, ack: a, expect: 1}"
    more = "  b: {provider: p, id: b, vault: {path: b, fields: {p: '{secret}'}}, consumers: [x]}"
    template = "{vault: {path: 'c/{name}', fields: {p: '{secret}'}}, consumers: [x]}"
    discover = f"  c: {{provider: p, discover: {{match: '*', template: {template}}}}}"
    assert "x" not in config(text, "[x]").shared_consumers()
    for second in (more, discover):
        settings = config(text, "[x]", second)
        assert "x" in settings.shared_consumers()
        assert ["consumers.x serves several keys: an ack counts only where it names its key as `key`"] == notices(
            settings
        )


# --- the schema and the examples


def test_schema(config: Config) -> None:
    """The sections of the contract, short forms included, are valid by the schema."""
    schema = json.loads(json.dumps(json_schema()))
    short = """
  a: {kind: mqtt, host: h, topic: t, ack: a, expect: 3}
  b: {kind: webhook, url: "http://h.example", secret: {env: TOKEN}, confirm: "https://h.example/{key}"}
  c: {kind: command, argv: [restart], confirm: [is-it-on], deliver: {file: /x, timeout: 1m}}
  d: {kind: none, confirm: {http: "https://h.example"}, deliver: {external_secret: {namespace: a, name: b}}}
  e: {kind: none, confirm: {http: {url: "https://h.example", headers: {A: b, C: {env: TOKEN}}}}}
"""
    for text in (WHOLE, short):
        config(text)
        assert [] == broken(schema, yaml.safe_load(HEAD + text), schema)


@pytest.mark.parametrize(
    "section",
    [
        "kind: none",
        "kind: webhook, url: 'http://h.example'",
        "kind: webhook, url: ftp, secret: {env: A}",
        "kind: mqtt, host: h",
        "kind: mqtt, host: h, topic: t, expect: 0",
        "kind: mqtt, host: h, topic: t, qos: 1",
        "kind: kubernetes, deployment: a",
        "kind: kubernetes, namespace: A, deployment: a",
        "kind: systemd, unit: a.service, action: stop",
        "kind: command, argv: [x], deliver: {file: 5}",
        "kind: command, argv: [x], deliver: later",
        "kind: none, confirm: {http: {field: a}}",
    ],
)
def test_schema_refuses(section: str) -> None:
    """The schema finds what an editor can find."""
    schema: dict[str, Any] = json_schema()
    assert [] != broken(schema, yaml.safe_load(f"{HEAD}  x: {{{section}}}"), schema)


@pytest.mark.parametrize("name", ["docker-compose", "mqtt-fleet"])
def test_examples(name: str, tmp_path: Path) -> None:
    """The examples load, nothing in them is without effect, and the schema takes them."""
    text = (EXAMPLES / f"{name}.yaml").read_text()
    for path in re.findall(r"\{file: (secrets/[\w.-]+)\}", text):
        (tmp_path / "secrets").mkdir(exist_ok=True)
        (tmp_path / path).touch(mode=0o600)
        (tmp_path / path).write_text("made-up")
    moved = text.replace("{file: secrets/", f"{{file: {tmp_path}/secrets/")
    (tmp_path / "rotator.yaml").write_text(moved)
    assert [] == notices(load(tmp_path / "rotator.yaml", {}))
    schema = json.loads(json.dumps(json_schema()))
    assert [] == broken(schema, yaml.safe_load(moved), schema)
