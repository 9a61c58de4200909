"""Every kind of provider at work on its simulator, verb by verb, with the answers taken down."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any, Final

import httpx

from contract.generic_examples import HALTIAN_PASSWORD, HALTIAN_USER, aimed
from contract.malformed_key_broker import KeyBroker
from contract.malformed_tape import Player, Recorder, RoundTrips, Tape
from rotator.model import Issued, Secret
from rotator.ports import Clock, Reveal
from rotator.providers import Site, kinds
from rotator.sandbox.emqx import EmqxBroker
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.iotistica import Generation, IotisticaPlatform
from rotator.sandbox.ishareradio import IShareRadioPlatform
from rotator.sandbox.losant import LosantPlatform, new_id
from rotator.sandbox.thingsboard import ThingsBoard
from rotator.sandbox.wayscloud import WaysCloudPlatform
from rotator.secret_refs import EnvRef, SecretRef

MARKER: Final = "rotator-0123456789ab-1"
CHOSEN: Final = "chosen-0123456789-abcdefghijklmnopqrstuvwxyz"  # the secret that `set_secret` is given
AGENT: Final = "550e8400-e29b-41d4-a716-446655440000"
SECRET: Final = {"env": "SECRET"}

# Fields of valid answers whose text nobody may see.
HIDDEN: Final = frozenset(
    {"token", "accessToken", "refreshToken", "password", "mqtt_password", "secret", "apiKey", "key", "credentialsValue"}
)
SHORTEST: Final = 12  # characters; a shorter text stands in many a message by chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One provider's section of the configuration, and what is at the platform."""

    kind: str
    section: Mapping[str, Any]
    secrets: Mapping[str, str]  # what `{env: NAME}` stands for
    key: Callable[[], tuple[str, str]]  # makes a key by hand: its id and its secret
    options: Mapping[str, str] = field(default_factory=dict)  # of `provision`
    platform: httpx.BaseTransport | None = None  # instead of a socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind (of one resource, of one generation) and its verbs that ask the platform."""

    scene: Callable[[], AbstractContextManager[Scene]]
    verbs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """One verb as it went on the simulator."""

    kind: str
    section: Mapping[str, Any]
    secrets: Mapping[str, str]
    call: Callable[[Any], object]
    tape: Tape
    hidden: frozenset[str]

    def player(self, malformed: Mapping[int, Any]) -> tuple[Any, Player]:
        """A new provider whose platform answers from the tape; it needs no closing."""
        clock = RoundTrips()
        player = Player(self.tape, malformed, clock)
        return built(self.kind, self.section, self.secrets, player, clock), player


def built(
    kind: str, section: Mapping[str, Any], secrets: Mapping[str, str], transport: httpx.BaseTransport, clock: Clock
) -> Any:
    """The provider of a section, whose requests end in `transport`."""

    def reveal(ref: SecretRef) -> Reveal:
        assert isinstance(ref, EnvRef)
        return lambda: secrets[ref.env]

    client = httpx.Client(transport=transport, trust_env=False)
    site = Site(name="plant", clock=clock, on_request=lambda _: None, reveal=reveal, client=lambda _: client)
    wanted = kinds()[kind]
    return wanted.build(site, wanted.settings.model_validate({"kind": kind, "rate_limit": None, **section}))


def call_of(verb: str, id: str, secret: str, options: Mapping[str, str]) -> Callable[[Any], object]:
    """What is done to a provider under a verb's name."""
    calls: Mapping[str, Callable[[Any], object]] = {
        "list_keys": lambda p: p.list_keys(),
        "list_integrations": lambda p: p.list_integrations(),
        "issue": lambda p: p.issue(p.identity(id), Secret(secret)),
        "create": lambda p: p.create(p.identity(id), MARKER),
        "set_secret": lambda p: p.set_secret(p.identity(id), Secret(CHOSEN)),
        "deactivate": lambda p: p.deactivate(p.identity(id)),
        "reactivate": lambda p: p.reactivate(p.identity(id)),
        "delete": lambda p: p.delete(id),
        "provision": lambda p: p.provision("made-up", options, MARKER),
        "provision_again": lambda p: p.provision("made-up", options, MARKER),
        "credentials": lambda p: p.credentials(),
        "quotas": lambda p: p.quotas(),
        "check": lambda p: p.check(p.identity(id), Secret(secret)),
        "evict": lambda p: p.evict(p.identity(id), datetime.now(UTC) + timedelta(hours=1)),
    }
    return calls[verb]


@cache
def takes(name: str) -> Mapping[str, Take]:
    """Every verb of a case, as it goes on the simulator: made once, at the first use."""
    case, found = CASES[name], {}
    with case.scene() as scene:
        for verb in case.verbs:
            id, secret = scene.key()
            recorder = Recorder(scene.platform or httpx.HTTPTransport())
            provider = built(scene.kind, scene.section, scene.secrets, recorder, RoundTrips())
            call = call_of(verb, id, secret, scene.options)
            result = call(provider)
            tape = tuple(recorder.tape)
            provider.close()
            hidden = {*scene.secrets.values(), secret, CHOSEN, *_hidden(tape)}
            if isinstance(result, Issued):
                hidden.add(result.secret.reveal())
            found[verb] = Take(
                kind=scene.kind,
                section=scene.section,
                secrets=scene.secrets,
                call=call,
                tape=tape,
                hidden=frozenset(each for each in hidden if len(each) >= SHORTEST),
            )
    return found


def _hidden(tape: Tape) -> Iterator[str]:
    for exchange in tape:
        try:
            yield from _secrets_in(json.loads(exchange.answer.body))
        except ValueError:
            continue


def _secrets_in(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in HIDDEN and isinstance(value, str):
                yield value
            yield from _secrets_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from _secrets_in(value)


# --- the scenes ----------------------------------------------------------------------------------------------------


@contextmanager
def haltian() -> Iterator[Scene]:
    """An organization with its manager."""
    with _haltian() as (platform, key):
        login = {"organization": "acme", "email": HALTIAN_USER, "password": SECRET}
        yield Scene(
            kind="haltian",
            section={"url": platform.url, **login},
            secrets={"SECRET": HALTIAN_PASSWORD},
            key=key,
        )


@contextmanager
def graphql() -> Iterator[Scene]:
    """The same by the example of `kind: graphql`."""
    with _haltian() as (platform, key):
        section, secret = aimed(platform)
        section.pop("kind")
        yield Scene(kind="graphql", section=section, secrets={"SECRET": secret}, key=key)


@contextmanager
def _haltian() -> Iterator[tuple[HaltianPlatform, Callable[[], tuple[str, str]]]]:
    with HaltianPlatform() as platform:
        acme = platform.create_organization("acme")
        platform.create_user(HALTIAN_USER, HALTIAN_PASSWORD, acme)
        names = itertools.count()
        yield platform, lambda: platform.add_key(f"building-{next(names)}", acme)


@contextmanager
def radio(resource: str) -> Iterator[Scene]:
    """A portal's MQTT clients, or its read-only logins."""
    with IShareRadioPlatform() as platform:

        def subscriber() -> tuple[str, str]:
            id, _, password = platform.add_subscriber()
            return id, password

        yield Scene(
            kind="ishareradio",
            section={
                "url": platform.url,
                "token": SECRET,
                "resource": resource,
                "token_expires_at": "2030-01-01T00:00:00Z",
            },
            secrets={"SECRET": platform.token},
            key=platform.add_key if resource == "publishers" else subscriber,
        )


@contextmanager
def iotistica(resource: str, generation: Generation) -> Iterator[Scene]:
    """A cloud with one agent."""
    with KeyBroker() as broker, IotisticaPlatform(generation=generation, publish=broker.publish, limits=False) as cloud:
        agent, _ = cloud.add_agent("gateway-01", uuid_=AGENT)
        numbers = itertools.count()

        def key() -> tuple[str, str]:
            name = f"key-{next(numbers)}"
            match resource:
                case "api-keys":
                    row = cloud.add_key(name, agent=agent.uuid)
                    return str(row.id), row.key
                case "mqtt-users":
                    cloud.add_mqtt_user(name, password := f"made-up-password-{name}")
                    return name, password
                case "device-keys":
                    made, secret = cloud.add_agent(name)
                    return made.uuid, secret
            spare = cloud.state.create_provisioning_key(days=30, max_devices=1, description=name)
            return spare.id, spare.key

        yield Scene(
            kind="iotistica",
            section={
                "url": cloud.url,
                "email": cloud.email,
                "username": cloud.username,
                "password": SECRET,
                "resource": resource,
                "licence": {"env": "LICENCE"},
                "login_rate_limit": None,
                "mqtt": {"host": "127.0.0.1", "port": broker.port, "username": "listener"},
            },
            secrets={"SECRET": cloud.password, "LICENCE": cloud.licence()},
            key=key,
            options={"api-keys": {"agent": AGENT}, "mqtt-users": {"read": "a/#"}}.get(resource, {}),
        )


@contextmanager
def wayscloud(*, new: bool, allow_outage: bool = False) -> Iterator[Scene]:
    """An account."""
    with WaysCloudPlatform() as platform:
        numbers = itertools.count()

        def key() -> tuple[str, str]:
            if not new:
                return platform.add_key()
            return platform.add_new_key(f"device-{next(numbers)}", device_type="sensor", metadata={"floor": "third"})

        yield Scene(
            kind="wayscloud",
            section={"url": platform.url, "token": SECRET, "allow_outage": allow_outage},
            secrets={"SECRET": platform.new_token if new else platform.token},
            key=key,
            options={"description": "a lift"},
        )


@contextmanager
def losant() -> Iterator[Scene]:
    """An application."""
    with LosantPlatform() as platform:
        yield Scene(
            kind="losant",
            section={"url": platform.url, "application": platform.application, "token": SECRET, "check": True},
            secrets={"SECRET": platform.token},
            key=lambda: _losant_key(platform),
            options={"deviceIds": new_id()},
        )


def _losant_key(platform: LosantPlatform) -> tuple[str, str]:
    made, secret = platform.add_key(name="lift", description="a lift", deviceIds=[new_id()], addresses=["10.0.0.0/8"])
    return made.id, secret


@contextmanager
def http_losant() -> Iterator[Scene]:
    """Replaced by configuration alone."""
    with LosantPlatform() as platform:
        section, secret = aimed(platform)
        section.pop("kind")
        yield Scene(kind="http", section=section, secrets={"SECRET": secret}, key=lambda: _losant_key(platform))


@contextmanager
def http_radio() -> Iterator[Scene]:
    """In place by configuration alone."""
    with IShareRadioPlatform() as platform:
        section, secret = aimed(platform)
        section.pop("kind")
        yield Scene(kind="http", section=section, secrets={"SECRET": secret}, key=platform.add_key)


@contextmanager
def http_emqx() -> Iterator[Scene]:
    """Chosen by the caller by configuration alone, and old sessions kicked."""
    with EmqxBroker() as platform:

        def key() -> tuple[str, str]:
            name, password = platform.add_key()
            platform.connect(name, f"client-of-{name}")
            return name, password

        section, secret = aimed(platform)
        section.pop("kind")
        yield Scene(kind="http", section=section, secrets={"SECRET": secret}, key=key)


@contextmanager
def http_thingsboard() -> Iterator[Scene]:
    """The same with a login."""
    with ThingsBoard() as platform:
        section, secret = aimed(platform)
        section.pop("kind")
        yield Scene(kind="http", section=section, secrets={"SECRET": secret}, key=platform.add_key)


@contextmanager
def http_pages(kind: str) -> Iterator[Scene]:
    """A list over two pages, each of which leads to the next."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, json={"id": "a", "secret": "made-up-0123456789"})
        if request.url.params.get("from") == "b":
            return httpx.Response(200, json={"keys": [{"id": "b", "name": "second"}], "next": None})
        following = "/keys?from=b" if kind == "link" else "b"
        return httpx.Response(200, json={"keys": [{"id": "a", "name": "first"}], "next": following})

    yield Scene(
        kind="http",
        section={
            "url": "https://platform.example",
            "strategy": "in_place",
            "auth": {"token": SECRET},
            "requests": {
                "list": {
                    "method": "GET",
                    "path": "/keys",
                    "paging": {"kind": kind, "next": "next", **({"param": "from"} if kind == "cursor" else {})},
                    "result": {"items": "keys", "id": "id", "name": "name", "expires_at": "ends"},
                },
                "issue": {"method": "POST", "path": "/keys/{id}", "result": {"secret": "secret"}},
            },
        },
        secrets={"SECRET": "the-token-of-the-platform"},
        key=lambda: ("a", ""),
        platform=httpx.MockTransport(answer),
    )


@contextmanager
def rabbitmq() -> Iterator[Scene]:
    """The management API's answers, as Debian's RabbitMQ gives them; it takes too long to start for each test here."""
    user = {"name": "meter", "tags": ["monitoring", "site-7"]}
    connection = {"name": "127.0.0.1:1 -> 127.0.0.1:2", "user": "meter", "connected_at": 1_700_000_000_000}
    answers: Mapping[tuple[str, str], tuple[int, object]] = {
        ("GET", "users"): (200, [user, {"name": "admin", "tags": "administrator"}]),
        ("GET", "users/meter"): (200, user),
        ("PUT", "users/meter"): (204, None),
        ("DELETE", "users/meter"): (204, None),
        ("GET", "users/made-up"): (404, {"error": "Object Not Found", "reason": "Not Found"}),
        ("PUT", "users/made-up"): (201, None),
        ("GET", "vhosts/%2F"): (200, {"name": "/"}),
        ("GET", "permissions/%2F/made-up"): (404, {"error": "Object Not Found", "reason": "Not Found"}),
        ("PUT", "permissions/%2F/made-up"): (201, None),
        ("GET", "connections"): (200, [connection]),
        ("GET", "connections/username/meter"): (200, [connection]),
        ("GET", "overview"): (200, {"disable_stats": False}),
        ("DELETE", "connections/127.0.0.1%3A1%20-%3E%20127.0.0.1%3A2"): (204, None),
    }

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.partition(b"?")[0].decode().removeprefix("/api/")
        status, value = answers[request.method, path]
        return httpx.Response(status, content=b"" if value is None else json.dumps(value).encode())

    yield Scene(
        kind="rabbitmq",
        section={"url": "http://127.0.0.1:15672", "username": "admin", "password": SECRET},
        secrets={"SECRET": "the-password-of-the-admin"},
        key=lambda: ("meter", "old-secret"),
        platform=httpx.MockTransport(answer),
    )


DOCUMENT, SOURCE = Generation.DOCUMENT, Generation.SOURCE
_LIFE: Final = ("deactivate", "reactivate", "delete")
CASES: Final[Mapping[str, Case]] = {
    "haltian": Case(
        scene=haltian,
        verbs=("list_keys", "list_integrations", "issue", "provision", "provision_again", "delete"),
    ),
    "graphql": Case(scene=graphql, verbs=("list_keys", "issue", "delete")),
    "ishareradio publishers": Case(
        scene=lambda: radio("publishers"),
        verbs=("list_keys", "issue", *_LIFE, "provision", "provision_again"),
    ),
    "ishareradio subscribers": Case(
        scene=lambda: radio("subscribers"), verbs=("list_keys", "create", "delete", "provision")
    ),
    **{
        f"iotistica {resource} {generation}": Case(
            scene=partial(iotistica, resource, generation),
            verbs=verbs,
        )
        for generation in Generation
        for resource, verbs in {
            "api-keys": ("list_keys", "create", "delete", "provision"),
            "mqtt-users": ("list_keys", "set_secret", "delete", "provision", "provision_again"),
            "device-keys": ("list_keys", "issue", "check", "provision"),
            "provisioning-keys": (
                ("create", "provision", "credentials")
                if generation is DOCUMENT
                else ("list_keys", "create", "delete", "provision", "credentials")
            ),
        }.items()
    },
    "wayscloud old": Case(
        scene=lambda: wayscloud(new=False), verbs=("list_keys", "create", "delete", "provision", "quotas")
    ),
    "wayscloud new": Case(
        scene=lambda: wayscloud(new=True), verbs=("list_keys", "create", *_LIFE, "provision", "quotas")
    ),
    "wayscloud allow_outage": Case(
        scene=lambda: wayscloud(new=True, allow_outage=True),
        verbs=("list_keys", "issue", *_LIFE, "provision", "quotas"),
    ),
    "losant": Case(scene=losant, verbs=("list_keys", "create", *_LIFE, "provision", "check")),
    "rabbitmq": Case(scene=rabbitmq, verbs=("list_keys", "set_secret", "delete", "provision", "evict")),
    "http losant": Case(scene=http_losant, verbs=("list_keys", "create", *_LIFE)),
    "http ishareradio": Case(scene=http_radio, verbs=("list_keys", "issue", *_LIFE)),
    "http emqx": Case(scene=http_emqx, verbs=("list_keys", "set_secret", "delete", "evict")),
    "http thingsboard": Case(scene=http_thingsboard, verbs=("list_keys", "set_secret")),
    "http by link": Case(scene=lambda: http_pages("link"), verbs=("list_keys", "issue")),
    "http by cursor": Case(scene=lambda: http_pages("cursor"), verbs=("list_keys", "issue")),
}
PAIRS: Final[Sequence[tuple[str, str]]] = [(name, verb) for name, case in CASES.items() for verb in case.verbs]
VERBS: Final[Iterable[str]] = frozenset(verb for _, verb in PAIRS)
