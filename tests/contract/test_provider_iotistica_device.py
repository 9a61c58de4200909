"""The Iotistica provider's device keys, whose new ones are told over MQTT alone: a real Mosquitto beside the sandbox's
cloud, and the document's own examples."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from contract.iotistica_stage import MARKER, UUID, Cloud, Stage
from integration.broker_fixture import Broker, until
from rotator.errors import BadAnswer, Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import Identity, Secret, Strategy, Verdict
from rotator.ports import Checking, Deleting, InPlace, Provisioning
from rotator.reasons import Reason
from rotator.sandbox.iotistica import Cut, Faults, Generation, IotisticaAnswer, IotisticaPlatform, rotation_topic
from rotator.sandbox.processes import free_port
from rotator.verify import MqttProber

PUBLISHER = "publisher-password"


class Speaker:
    """Publishes what the platform says, as its own client of the broker, and follows who may come in."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.before: Callable[[str], None] = lambda topic: None  # run before each message
        self._known: set[str] = set()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="platform")
        self._client.username_pw_set("platform", PUBLISHER)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def publish(self, topic: str, payload: str, *, retain: bool = False) -> None:
        """Returns when the broker has it."""
        self.before(topic)
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(5)

    def follow(self, live: dict[str, str]) -> None:
        """Make the broker's clients those that are live."""
        for username in live.keys() - self._known:
            self.broker.client(username, live[username], role="keys")
        for username in self._known - live.keys():
            self.broker.control("deleteClient", username)
        self._known = set(live)

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Mosquitto on which the topics of new keys may be read and written."""
    started = Broker(tmp_path_factory.mktemp("broker"))
    started.control("createRole", "keys")
    for acl in ("subscribePattern", "publishClientSend"):
        started.control("addRoleACL", "keys", acl, "agent/#", "allow")
    started.client("platform", PUBLISHER, role="keys")
    started.client("listener", "listener-password", role="keys")
    started.client("deaf", "deaf-password", role=None)
    yield started
    started.stop()


@pytest.fixture
def speaker(broker: Broker) -> Iterator[Speaker]:
    """The platform's client."""
    made = Speaker(broker)
    yield made
    made.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Makes providers."""
    made = Stage()
    made.secrets["MQTT"] = "listener-password"
    yield made
    made.close()


@pytest.fixture(params=list(Generation))
def platform(request: pytest.FixtureRequest, speaker: Speaker) -> Iterator[IotisticaPlatform]:
    """A cloud of each generation."""
    with IotisticaPlatform(generation=request.param, publish=speaker.publish) as running:
        yield running


def listener(port: int, **more: object) -> dict[str, object]:
    """The section `mqtt` for a login of its own."""
    return {"host": "127.0.0.1", "port": port, "username": "listener", "password": {"env": "MQTT"}, **more}


def identity(uuid: str) -> Identity:
    """An agent's key."""
    return Identity(id=uuid, username=f"agent-{uuid}", client_id=f"agent-{uuid}")


# --- what works ----------------------------------------------------------------------------------------------------


def test_it_says_what_it_can(stage: Stage) -> None:
    """In place, by whoever shows the current key; no deleting; the cache's time."""
    provider = stage.at(Cloud({}), "device-keys", mqtt=listener(1883))
    assert all(isinstance(provider, each) for each in (InPlace, Checking, Provisioning))
    assert not isinstance(provider, Deleting)
    abilities = provider.abilities
    assert (Strategy.IN_PLACE, True, True) == (provider.strategy, abilities.kills_old, abilities.needs_current)
    assert (True, timedelta(seconds=300)) == (abilities.checks, abilities.propagation)
    assert identity(UUID) == provider.identity(UUID)


def test_a_new_key_is_heard(stage: Stage, platform: IotisticaPlatform, broker: Broker) -> None:
    """One call; the message's key is the platform's; the old one is refused; its end is the answer's."""
    agent, old = platform.add_agent("gateway-01")
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port))
    issued = provider.issue(provider.identity(agent.uuid), Secret(old))
    assert {issued.secret.reveal(): agent.mqtt_password} == platform.live()
    assert ["rotate_key"] == [seen.operation for seen in platform.seen]
    assert abs(issued.expires_at - agent.key_expires_at) < timedelta(milliseconds=2)
    assert identity(agent.uuid) == issued.identity
    again = provider.issue(issued.identity, issued.secret)
    assert {again.secret.reveal(): agent.mqtt_password} == platform.live()


def test_the_current_key_is_the_login(stage: Stage, speaker: Speaker, broker: Broker) -> None:
    """Without a username of its own, as the agent connects; the new key connects then, and the old one does not."""
    with IotisticaPlatform(publish=speaker.publish, on_change=speaker.follow) as platform:  # type: ignore[arg-type]
        agent, old = platform.add_agent("gateway-01")
        stage.secrets["MQTT"] = agent.mqtt_password
        mqtt = {
            "host": "127.0.0.1",
            "port": broker.port,
            "password": {"env": "MQTT"},
            "client_id": f"agent-{agent.uuid}",
        }
        provider = stage.on(platform, "device-keys", mqtt=mqtt)
        new = provider.issue(provider.identity(agent.uuid), Secret(old)).secret.reveal()
        topic = rotation_topic(agent.uuid)
        verdicts = [
            MqttProber().probe(broker.target(key, agent.mqtt_password, subscribe=topic)).verdict for key in (new, old)
        ]
        assert [Verdict.ACCEPTED, Verdict.REFUSED] == verdicts
        speaker.follow({})


def test_it_listens_before_it_asks(stage: Stage, platform: IotisticaPlatform, broker: Broker) -> None:
    """No message is kept for who comes late, so a broker that is away means that nothing is asked for."""
    agent, old = platform.add_agent("gateway-01")
    for mqtt in (listener(free_port()), listener(broker.port, username="deaf"), listener(broker.port, username="x")):
        stage.secrets["MQTT"] = "deaf-password"
        with pytest.raises(RotatorError) as caught:
            stage.on(platform, "device-keys", mqtt=mqtt).issue(identity(agent.uuid), Secret(old))
        assert not isinstance(caught.value, UnknownOutcome)
        assert caught.value.reason in (Reason.BROKER_UNREACHABLE, Reason.PROVIDER_AUTH)
    assert [] == platform.seen


def test_an_old_message_is_not_the_new_key(
    stage: Stage, platform: IotisticaPlatform, speaker: Speaker, broker: Broker
) -> None:
    """One that the broker kept from another rotation comes with the subscription and is passed over."""
    agent, old = platform.add_agent("gateway-01")
    speaker.publish(rotation_topic(agent.uuid), json.dumps({"new_api_key": "an-older-one"}), retain=True)
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port))
    assert provider.issue(identity(agent.uuid), Secret(old)).secret.reveal() in platform.live()
    speaker.publish(rotation_topic(agent.uuid), "", retain=True)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(cut=Cut.AFTER_EFFECT),
        Faults(status=500, status_after_effect=True),
        Faults(truncate=True),
        Faults(latency_after=0.3),
    ],
    ids=["cut", "status", "half", "late"],
)
def test_the_message_counts_more_than_the_answer(
    stage: Stage, platform: IotisticaPlatform, broker: Broker, faults: Faults
) -> None:
    """A key that was told is the key, whatever became of the HTTP call."""
    agent, old = platform.add_agent("gateway-01")
    platform.faults = replace(faults, operations=frozenset({"rotate_key"}))
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port))
    assert provider.issue(identity(agent.uuid), Secret(old)).secret.reveal() in platform.live()


# --- what does not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [Faults(), Faults(cut=Cut.AFTER_EFFECT), Faults(cut=Cut.BEFORE_EFFECT)])
def test_silence_is_an_unknown_outcome(
    stage: Stage, platform: IotisticaPlatform, broker: Broker, faults: Faults
) -> None:
    """An answer without a message, or neither: within the issue deadline, and never a second call."""
    agent, old = platform.add_agent("gateway-01")
    platform.answer = IotisticaAnswer.SILENT
    platform.faults = replace(faults, operations=frozenset({"rotate_key"}))
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port), timeout="200ms")
    with pytest.raises(UnknownOutcome):
        provider.issue(identity(agent.uuid), Secret(old))
    assert 1 == platform.count("rotate_key")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (IotisticaAnswer.NO_SECRET, Reason.NO_SECRET),
        (IotisticaAnswer.EMPTY_SECRET, Reason.EMPTY_SECRET),
        (IotisticaAnswer.GARBLED, Reason.PROVIDER_ANSWER_UNREADABLE),
    ],
)
def test_a_message_without_a_key_is_kept(
    stage: Stage, platform: IotisticaPlatform, broker: Broker, answer: IotisticaAnswer, reason: Reason
) -> None:
    """For the journal to seal, after the time in which a better one may come."""
    agent, old = platform.add_agent("gateway-01")
    platform.answer = answer
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port), timeout="200ms")
    with pytest.raises(BadAnswer) as caught:
        provider.issue(identity(agent.uuid), Secret(old))
    assert reason is caught.value.reason
    assert caught.value.body


def test_a_better_message_after_a_bad_one_is_taken(
    stage: Stage, platform: IotisticaPlatform, speaker: Speaker, broker: Broker
) -> None:
    """Somebody else may write to the topic."""
    agent, old = platform.add_agent("gateway-01")
    topic = rotation_topic(agent.uuid)

    def noise(_: str) -> None:
        speaker.before = lambda _: None
        for payload in ("{", "[]", '{"new_api_key": 5}', '{"new_api_key": "\\ud800"}', "[" * 100_000):
            speaker.publish(topic, payload)

    speaker.before = noise
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port))
    assert provider.issue(identity(agent.uuid), Secret(old)).secret.reveal() in platform.live()


@pytest.mark.parametrize(
    ("faults", "error", "reason"),
    [
        (Faults(status=429, retry_after="30"), Transient, Reason.PROVIDER_RATE_LIMITED),
        (Faults(status=401), Permanent, Reason.PROVIDER_AUTH),
        (Faults(status=403), Permanent, Reason.PROVIDER_AUTH),
        (Faults(status=404), Permanent, Reason.PROVIDER_REFUSED),
    ],
)
def test_a_refusal_is_not_waited_for(
    stage: Stage, platform: IotisticaPlatform, broker: Broker, faults: Faults, error: type[RotatorError], reason: Reason
) -> None:
    """Nothing was issued, and that is known at once."""
    agent, old = platform.add_agent("gateway-01")
    platform.faults = replace(faults, operations=frozenset({"rotate_key"}))
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port), timeout="60s")
    with pytest.raises(error) as caught:
        provider.issue(identity(agent.uuid), Secret(old))
    assert reason is caught.value.reason
    assert {old: agent.mqtt_password} == platform.live()


def test_a_wrong_current_key_is_refused(stage: Stage, platform: IotisticaPlatform, broker: Broker) -> None:
    """By the platform, or before anything is sent; an agent that is not there is KEY_UNKNOWN."""
    agent, old = platform.add_agent("gateway-01")
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port))
    cases = [
        (agent.uuid, "wrong", Reason.PROVIDER_AUTH),
        (UUID, old, Reason.KEY_UNKNOWN),
        ("../x", old, Reason.KEY_UNKNOWN),
        (agent.uuid, "two words", Reason.PROVIDER_AUTH),
        (agent.uuid, "ключ", Reason.PROVIDER_AUTH),
        (agent.uuid, None, Reason.PROVIDER_UNABLE),
    ]
    for uuid, current, reason in cases:
        with pytest.raises(Permanent) as caught:
            provider.issue(identity(uuid), Secret(current) if current is not None else None)
        assert reason is caught.value.reason
        assert current is None or current not in str(caught.value)
    assert 2 == len(platform.seen)


def test_five_rotations_in_a_quarter_of_an_hour(stage: Stage, platform: IotisticaPlatform, broker: Broker) -> None:
    """The sixth is not sent, and says how long to wait; after that time it goes."""
    agent, key = platform.add_agent("gateway-01")
    platform.turnstile.limits = {}
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port))
    current = Secret(key)
    for _ in range(5):
        current = provider.issue(identity(agent.uuid), current).secret
    with pytest.raises(Transient) as caught:
        provider.issue(identity(agent.uuid), current)
    assert (Reason.PROVIDER_RATE_LIMITED, 5) == (caught.value.reason, platform.count("rotate_key"))
    assert timedelta(minutes=14) < caught.value.retry_after <= timedelta(minutes=15)  # type: ignore[operator]
    stage.clock.ahead += 900
    assert provider.issue(identity(agent.uuid), current).secret.reveal() in platform.live()


def test_two_devices_at_once_hear_their_own(stage: Stage, platform: IotisticaPlatform, broker: Broker) -> None:
    """Each listens on a topic and a connection of its own."""
    agents = [platform.add_agent(name) for name in ("a", "b", "c")]
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port))
    heard: dict[str, str] = {}

    def rotate(uuid: str, key: str) -> None:
        heard[uuid] = provider.issue(identity(uuid), Secret(key)).secret.reveal()

    threads = [threading.Thread(target=rotate, args=(agent.uuid, key)) for agent, key in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {agent.uuid: True for agent, _ in agents} == {
        uuid: platform.state.accepts(uuid, heard[uuid]) for uuid in heard
    }


def test_a_cache_that_lags_is_seen_by_the_check(stage: Stage, platform: IotisticaPlatform, broker: Broker) -> None:
    """The old key is still accepted and the new one refused; after the cache's time it is the other way round."""
    platform.state.device_key_cache = 0.5
    agent, old = platform.add_agent("gateway-01")
    provider = stage.on(platform, "device-keys", mqtt=listener(broker.port))
    new = provider.issue(identity(agent.uuid), Secret(old)).secret
    checks = [provider.check(identity(agent.uuid), key).verdict for key in (Secret(old), new)]
    assert [Verdict.ACCEPTED, Verdict.REFUSED] == checks
    until(lambda: provider.check(identity(agent.uuid), new).verdict is Verdict.ACCEPTED, "the cache ran out")
    assert Verdict.REFUSED is provider.check(identity(agent.uuid), Secret(old)).verdict


# --- the list, the check, a new agent ------------------------------------------------------------------------------


def test_agents_are_listed_page_by_page(stage: Stage, platform: IotisticaPlatform) -> None:
    """However short the pages; the dates of keys where the platform tells them."""
    agents = [platform.add_agent(f"gateway-{number}")[0] for number in range(5)]
    platform.api.page = 2
    provider = stage.on(platform, "device-keys", mqtt=listener(1883))
    listed = provider.list_keys()
    assert [(agent.uuid, agent.name, None, None) for agent in agents] == [
        (key.id, key.name, key.issued_at, key.expires_at) for key in listed
    ]
    assert [identity(agent.uuid) for agent in agents] == [key.identity for key in listed]
    platform.api.lists_key_dates = True
    dated = provider.list_keys()[0]
    assert abs(dated.expires_at - agents[0].key_expires_at) < timedelta(milliseconds=2)
    assert abs(dated.issued_at - agents[0].created_at) < timedelta(milliseconds=2)


def test_the_documents_list_and_state(stage: Stage) -> None:
    """`GET /api/v1/agents` with the bearer token, `GET /api/v1/device/:uuid/state` with the key alone."""
    cloud = Cloud({"GET /agents": {"agents": []}, f"GET /device/{UUID}/state": {}})
    provider = stage.at(cloud, "device-keys", mqtt=listener(1883))
    assert [] == list(provider.list_keys())
    assert "Bearer eyJhbGci..." == cloud.last("GET /agents").headers["Authorization"]
    result = provider.check(identity(UUID), Secret("iotsk_live_abc123..."))
    shown = cloud.last(f"GET /device/{UUID}/state").headers
    assert (Verdict.ACCEPTED, "iotsk_live_abc123...") == (result.verdict, shown["X-Device-API-Key"])
    assert "Authorization" not in shown


@pytest.mark.parametrize("faults", [Faults(status=503), Faults(cut=Cut.BEFORE_EFFECT), Faults(status=429)])
def test_a_check_that_can_not_be_made_refuses_nothing(
    stage: Stage, platform: IotisticaPlatform, faults: Faults
) -> None:
    """UNREACHABLE, without an exception; a key that no header can hold as well."""
    agent, key = platform.add_agent("gateway-01")
    provider = stage.on(platform, "device-keys", mqtt=listener(1883))
    platform.faults = replace(faults, operations=frozenset({"device_state"}))
    results = [provider.check(identity(agent.uuid), Secret(each)) for each in (key, "two words")]
    results.append(provider.check(identity("nobody"), Secret(key)))
    assert [Verdict.UNREACHABLE] * 3 == [result.verdict for result in results]
    assert not any(key in result.detail for result in results)


def test_the_documents_registration(stage: Stage) -> None:
    """Its body and answer as they are printed; no login is shown, since the provisioning key is one."""
    cloud = Cloud({"GET /agents": {"agents": []}})
    cloud.script["POST /provision/keys"] = lambda _: (200, b'{ "key": "prov_abc123", "expiresAt": "..." }')
    cloud.script["POST /provision/agent"] = lambda _: (
        200,
        b'{ "apiKey": "iotsk_live_xyz...", "agentUuid": "..." }',
    )
    issued = stage.at(cloud, "device-keys", mqtt=listener(1883)).provision("gateway-01", {}, MARKER)
    example = json.loads('{ "key": "prov_abc123", "agentName": "gateway-01" }')
    assert example == cloud.body("POST /provision/agent")
    assert "Authorization" not in cloud.last("POST /provision/agent").headers
    assert ("iotsk_live_xyz...", "...") == (issued.secret.reveal(), issued.identity.id)


def test_an_agent_is_provisioned_once(stage: Stage, platform: IotisticaPlatform) -> None:
    """Its key is live; a second of its name is refused, since only the agent itself can change its key."""
    provider = stage.on(platform, "device-keys", mqtt=listener(1883))
    issued = provider.provision("gateway-01", {"type": "gateway"}, MARKER)
    assert platform.state.accepts(issued.identity.id, issued.secret.reveal())
    with pytest.raises(Permanent, match="gateway-01") as caught:
        provider.provision("gateway-01", {}, MARKER)
    assert Reason.PROVIDER_REFUSED is caught.value.reason
    assert 1 == platform.count("register")
    platform.state.device_limit = 1
    with pytest.raises(Permanent) as caught:
        provider.provision("gateway-02", {}, MARKER)
    assert Reason.PROVIDER_QUOTA is caught.value.reason


ODD: dict[str, Any] = {
    "html": b"<html>sign in</html>",
    "deep": b"[" * 100_000,
    "wrong types": {"agents": [{"uuid": 5}], "apiKey": 5, "key": 5},
    "empty": {"agents": [{}], "apiKey": "", "key": " "},
    "surrogate": b'{"agents": [{"uuid": "\\ud800"}], "apiKey": "\\ud800", "key": "\\ud800"}',
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("line", ["GET /agents", "POST /provision/keys", "POST /provision/agent"])
def test_odd_answers_are_named_errors(stage: Stage, line: str, odd: str) -> None:
    """What can't be read never ends in another exception."""
    cloud = Cloud({"GET /agents": {"agents": []}, "POST /provision/keys": {"key": "prov_abc123"}})
    cloud.script[line] = lambda _: (200, ODD[odd])
    with pytest.raises(RotatorError) as caught:
        stage.at(cloud, "device-keys", mqtt=listener(1883)).provision("gateway-01", {}, MARKER)
    expected = (UnknownOutcome, BadAnswer) if line.startswith("POST") else Transient
    assert isinstance(caught.value, expected)


def test_tls_to_the_broker(stage: Stage, platform: IotisticaPlatform, broker: Broker) -> None:
    """With the authority's file it is trusted, with none it is not, and then nothing is asked for."""
    agent, old = platform.add_agent("gateway-01")
    trusted = listener(broker.tls_port, tls=True, ca_file=broker.ca_file)
    provider = stage.on(platform, "device-keys", mqtt=trusted)
    assert provider.issue(identity(agent.uuid), Secret(old)).secret.reveal() in platform.live()
    with pytest.raises(Transient) as caught:
        stage.on(platform, "device-keys", mqtt=listener(broker.tls_port, tls=True)).issue(
            identity(agent.uuid), Secret(old)
        )
    assert (Reason.BROKER_UNREACHABLE, 1) == (caught.value.reason, platform.count("rotate_key"))
