"""Malformed answers at every provider: always a whole result or a named error, in time, without a secret in its text.

The valid answers are the simulators' own (`malformed_scenes`), played from a tape with something malformed in them.
What only a socket can show, how much is read and how much memory that takes, is in the second half.
"""

from __future__ import annotations

import functools
import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.control_double import Command, ControlDouble, Reply, told
from contract.malformed_checks import SLACK as ALLOWED
from contract.malformed_checks import longest, outcome
from contract.malformed_json import ANY_JSON, BODIES, Gone, Raw, changed, mutations, ways, written
from contract.malformed_key_broker import KeyBroker
from contract.malformed_scenes import CASES, CHOSEN, MARKER, PAIRS, VERBS, Take, built, call_of, takes
from contract.malformed_server import BROKEN, INTERIM, LARGE, MEGABYTE, SLACK, RawServer, Redirected
from contract.malformed_tape import Answer, Player, RoundTrips
from rotator.clock import SystemClock
from rotator.errors import RotatorError, Transient
from rotator.providers import PROVIDERS, Mosquitto, make_client
from rotator.providers.http import LONGEST_BODY, HttpAnswer, Peer
from rotator.reasons import Reason

pytestmark = pytest.mark.long
JSON = ("content-type", "application/json")
STATUSES = st.just(200) | st.sampled_from(
    [201, 202, 204, 301, 400, 401, 403, 404, 408, 409, 410, 422, 429, 500, 502, 503]
)
RETRY = st.sampled_from(
    ["-1", "0", "1e400", "NaN", "9" * 400, "Infinity", "Fri, 31 Dec 9999 23:59:59 GMT", "1 Jan 0001 00:00:00 +9999",
     "1 Jan 99999999999999999999", "try again in 30 seconds", "\xff\xfe", "", ",", "99999999999999 hours"]
)  # fmt: skip
ENCODINGS = st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity", "utter nonsense", "\xff", ""])
LOCATIONS = st.sampled_from(["http://[::1", "//", "\x00", "http://a:b/", "http://xn--/", "/\x01", "\xff"])
QUICK = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), max_examples=10
)
NODES = 9  # of an answer, from its root on
WORST: tuple[Any, ...] = (Raw(b"1e400"), Raw(b"9" * 400), None, Raw(b'"\\ud800"'), [], Gone)
LONG = (
    "2026-01-01" + " " * 60_000 + "x", "key " * 20_000, "9" * 60_000, "a" * 60_000, "bearer " * 10_000,
    " " * 60_000 + "+01", "rotator-" * 8_000,
)  # fmt: skip
MOST_MEMORY = 60 * MEGABYTE
# over MQTT, further below
PLAYED = [(name, verb) for name, verb in PAIRS if "device-keys" not in name or verb != "issue"]
played = pytest.mark.parametrize(("name", "verb"), PLAYED, ids=lambda each: each.replace(" ", "-"))


@st.composite
def answers(draw: st.DrawFn, valid: Answer) -> Answer:
    """A valid answer with something malformed in it, or another one altogether."""
    body = valid.body
    kind = draw(st.integers(0, 9))
    if kind < 6 and body:
        body = draw(mutations(body))
    elif kind < 8:
        body = draw(ANY_JSON)
    elif kind < 9:
        body = draw(st.binary(max_size=200) | st.sampled_from(sorted(BODIES.values())))
    status = valid.status if draw(st.booleans()) else draw(STATUSES | st.integers(100, 599))
    headers = [JSON]
    for name, values in (("retry-after", RETRY), ("date", RETRY), ("location", LOCATIONS)):
        if draw(st.booleans()):
            headers.append((name, draw(values)))
    if draw(st.integers(0, 9)) == 0:
        headers.append(("content-encoding", draw(ENCODINGS)))
    return Answer(status=status, headers=headers, body=body)


def always(value: object, _: object) -> object:
    """`value`, whatever stood there."""
    return value


def play(take: Take, verb: str, malformed: dict[int, Answer]) -> object:
    """Do the verb on the tape; its end is checked."""
    provider, player = take.player(malformed)
    start = provider_clock(player)
    result = outcome(verb, lambda: take.call(provider), take.hidden)
    assert provider_clock(player) - start <= longest(verb, provider)
    return result


def provider_clock(player: Any) -> float:
    """Seconds by the clock that the provider sees."""
    now: float = player.clock.monotonic()
    return now


def test_every_kind_has_a_case() -> None:
    """A kind that is added to the registry needs a scene here."""
    with_scene = {takes(name)[case.verbs[0]].kind for name, case in CASES.items()}
    assert set(PROVIDERS) == with_scene | {"mosquitto"}


def outcome_of(verb: str, provider: Any) -> object:
    """What a verb returns or raises."""
    try:
        return call_of(verb, "a", "secret", {})(provider)
    except RotatorError as exc:
        return exc


@pytest.mark.parametrize("name", CASES)
def test_no_verb_is_left_out(name: str) -> None:
    """What a case does not name, its provider has not, refuses as unable, or answers without asking."""
    take = takes(name)[CASES[name].verbs[0]]
    for verb in sorted(set(VERBS) - set(CASES[name].verbs) - {"provision_again"}):
        provider, player = take.player({})
        if not hasattr(provider, verb):
            continue
        unable = Reason.PROVIDER_UNABLE is getattr(outcome_of(verb, provider), "reason", None)
        assert unable or 0 == player.asked, verb


@played
def test_a_valid_answer_is_taken(name: str, verb: str) -> None:
    """The tape itself works, or nothing below would say anything."""
    take = takes(name)[verb]
    assert not isinstance(play(take, verb, {}), RotatorError)


@played
def test_a_body_that_is_none_of_the_document_s(name: str, verb: str) -> None:
    """Each of `BODIES` in the place of each answer, with the answer's status, and in turn with others."""
    take, others = takes(name)[verb], itertools.cycle([200, 404, 409, 500])
    for number, exchange in enumerate(take.tape):
        for body in BODIES.values():
            for status in {exchange.answer.status, next(others)}:
                play(take, verb, {number: Answer(status=status, headers=[JSON], body=body)})


@pytest.mark.parametrize("name", CASES)
def test_each_node_of_each_answer(name: str) -> None:
    """One after the other, each is replaced by what breaks most: a login's once, a verb's own each time."""
    seen: set[tuple[str, str, str]] = set()
    for verb in CASES[name].verbs:
        if (name, verb) not in PLAYED:
            continue
        take = takes(name)[verb]
        for number, exchange in enumerate(take.tape):
            about = (exchange.method, exchange.path, exchange.document)
            if (number == 0 and about in seen) or not exchange.answer.body:
                continue
            seen.add(about)
            tree = json.loads(exchange.answer.body)
            for way in itertools.islice(ways(tree), NODES):
                for value in WORST:
                    body = written(changed(tree, way, functools.partial(always, value)))
                    play(take, verb, {number: Answer(status=exchange.answer.status, headers=[JSON], body=body)})


@played
def test_a_long_text(name: str, verb: str) -> None:
    """Words, blanks and digits by the ten thousand in the place of each: no pattern of ours searches for long."""
    take = takes(name)[verb]
    number = len(take.tape) - 1
    answer = take.tape[number].answer
    if not answer.body:
        return
    tree, texts = json.loads(answer.body), itertools.cycle(LONG)
    for way in itertools.islice(ways(tree), 1, NODES, 2):
        body = written(changed(tree, way, lambda _: next(texts)))
        play(take, verb, {number: Answer(status=answer.status, headers=[JSON], body=body)})
    for text in LONG:
        body = written({"message": text, "error": text, "detail": text, "errors": [{"message": text}], "reason": text})
        for status in (200, 403):
            play(take, verb, {number: Answer(status=status, headers=[JSON], body=body)})


@played
@given(data=st.data())
@QUICK
def test_an_answer_with_something_malformed_in_it(name: str, verb: str, data: st.DataObject) -> None:
    """One answer of the verb's, or two of them."""
    take = takes(name)[verb]
    numbers = data.draw(st.sets(st.integers(0, len(take.tape) - 1), min_size=1, max_size=2))
    play(take, verb, {number: data.draw(answers(take.tape[number].answer)) for number in sorted(numbers)})


@played
@given(id=st.text(max_size=40) | st.sampled_from(["", "..", "\ud800", "a/../b", "\x00"]))
@QUICK
def test_an_id_that_is_none(name: str, verb: str, id: str) -> None:
    """The one that a list or a person told, whatever it is."""
    take = takes(name)[verb]
    provider, _ = take.player({})
    assert provider.identity(id).id == id
    outcome(verb, lambda: call_of(verb, id, "current-secret", {})(provider), take.hidden)


# --- over sockets: how much is read --------------------------------------------------------------------------------


def sent_to(take: Take, verb: str, number: int, script: Callable[[], Iterable[bytes]]) -> tuple[int, int]:
    """Have a server answer the verb's request `number` by these bytes; its end is checked.

    Returns: how many bytes the server got rid of, and the most memory that was in use meanwhile.
    """
    clock = RoundTrips()
    with RawServer() as server:
        server.script = script
        transport = Redirected(Player(take.tape, {}, clock), number, server)
        provider = built(take.kind, {**take.section, **SHORT.get(take.kind, {})}, take.secrets, transport, clock)
        start = clock.monotonic()
        tracemalloc.start()
        try:
            outcome(verb, lambda: take.call(provider), take.hidden)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert clock.monotonic() - start <= longest(verb, provider)
        provider.close()
        return server.sent, most


SHORT: dict[str, dict[str, object]] = {kind: {"timeout": "500ms"} for kind in PROVIDERS}
FORMS = itertools.cycle(sorted(LARGE))


@pytest.mark.parametrize(
    ("name", "verb", "form"),
    [(name, verb, next(FORMS)) for name, verb in PLAYED if verb in ("list_keys", "issue", "create", "set_secret")],
    ids=lambda each: each.replace(" ", "-"),
)
def test_fifty_megabytes(name: str, verb: str, form: str) -> None:
    """Of which ten are read at most, in the place of a verb's last answer; the forms go round the verbs."""
    LARGE[form]()  # what is packed is packed before memory is counted
    take = takes(name)[verb]
    sent, most = sent_to(take, verb, len(take.tape) - 1, LARGE[form])
    assert sent <= LONGEST_BODY + SLACK
    assert most <= MOST_MEMORY


@pytest.mark.parametrize("form", LARGE)
def test_fifty_megabytes_in_each_form(form: str) -> None:
    """At a call that looks and at one that makes a key."""
    LARGE[form]()
    for verb in ("list_keys", "create"):
        take = takes("losant")[verb]
        sent, most = sent_to(take, verb, len(take.tape) - 1, LARGE[form])
        assert sent <= LONGEST_BODY + SLACK
        assert most <= MOST_MEMORY


def test_interim_answers_without_end() -> None:
    """A server that says 103 again and again holds nobody longer than the deadline."""
    sent, _ = sent_to(takes("losant")["create"], "create", 1, lambda: INTERIM)
    assert sent <= LONGEST_BODY + SLACK


def test_the_program_s_own_clients_are_bounded() -> None:
    """What is put on the transports above is on those of `make_client`, a proxy's included."""
    with RawServer() as server:
        server.script = lambda: INTERIM
        for client in (make_client(), make_client(proxy=str(server.url))):
            with client:
                peer = Peer("plant", client=client, clock=SystemClock(), on_request=lambda _: None)
                start = provider_now()
                with pytest.raises(Transient):
                    peer.request(
                        "GET",
                        str(server.url),
                        operation="look",
                        headers={},
                        deadline=start + 0.5,
                        changes=False,
                        read=never,
                    )
                assert provider_now() - start <= 0.5 + ALLOWED


def never(answer: HttpAnswer) -> tuple[str, object]:
    """No whole answer comes."""
    raise AssertionError(answer)


@pytest.mark.parametrize("form", BROKEN)
def test_what_is_no_http(form: str) -> None:
    """Whatever the bytes, at a platform over REST, over GraphQL, and with a login."""
    for name, verb in (("losant", "create"), ("haltian", "issue"), ("iotistica mqtt-users source", "set_secret")):
        take = takes(name)[verb]
        sent_to(take, verb, len(take.tape) - 1, lambda: [BROKEN[form]])


# --- over MQTT -----------------------------------------------------------------------------------------------------

KEYS = ("iotistica device-keys document", "iotistica device-keys source")
MESSAGE = b'{"new_api_key": "0123456789abcdef0123456789abcdef", "expires_at": "2027-01-01T00:00:00Z"}'


@pytest.fixture(scope="module")
def broker() -> Iterator[KeyBroker]:
    """A broker whose every message is its connection's last."""
    with KeyBroker() as running:
        running.ends = True
        yield running


@pytest.mark.parametrize("name", KEYS)
@given(data=st.data())
@settings(QUICK, max_examples=30)
def test_a_device_s_new_key_told_in_a_malformed_message(broker: KeyBroker, name: str, data: st.DataObject) -> None:
    """The message, or the answer to the call, or both."""
    take = takes(name)["issue"]
    message = data.draw(st.just(MESSAGE) | mutations(MESSAGE) | ANY_JSON | st.sampled_from(sorted(BODIES.values())))
    malformed = {0: data.draw(answers(take.tape[0].answer))} if data.draw(st.booleans()) else {}
    clock = RoundTrips()
    player = Player(take.tape, malformed, clock)
    player.on_request = lambda request: broker.publish(topic_of(request.url.path), message)
    section = {**take.section, "timeout": "1s", "mqtt": {**take.section["mqtt"], "port": broker.port}}
    provider = built(take.kind, section, take.secrets, player, clock)
    start = clock.monotonic()
    outcome("issue", lambda: take.call(provider), take.hidden)
    assert clock.monotonic() - start <= longest("issue", provider)


def topic_of(path: str) -> str:
    """The topic on which the key is told that this request asks for."""
    return f"agent/{path.split('/')[-2]}/config/api-key-rotation"


CLIENT = {
    "username": "meter",
    "clientid": "c1",
    "textname": f"a {MARKER}",
    "roles": [{"rolename": "r", "priority": -1}],
}
DATA = {
    "listClients": {"totalCount": 2, "clients": [CLIENT, {"username": "admin", "roles": [], "disabled": False}]},
    "getClient": {"client": CLIENT},
}


COMMANDS = {
    "list_keys": ("listClients",),
    "set_secret": ("getClient", "setClientPassword"),
    "deactivate": ("disableClient",),
    "reactivate": ("enableClient",),
    "delete": ("deleteClient",),
    "provision": ("getClient", "setClientPassword"),
}


def sound(command: Command) -> Any:
    """What the plugin answers."""
    name = command["command"]
    return told(command, **({"data": DATA[name]} if name in DATA else {}))


@pytest.mark.parametrize("verb", COMMANDS)
@given(data=st.data())
@settings(QUICK, max_examples=20)
def test_a_malformed_answer_of_mosquitto_s_plugin(verb: str, data: st.DataObject) -> None:
    """One of the answers of a call; a sound refusal follows it, so that nobody waits for another."""
    turn = data.draw(st.sampled_from(COMMANDS[verb]))
    valid = json.dumps(sound({"command": turn, "correlationData": "MARK"})).encode()
    odd = data.draw(mutations(valid) | mutations(valid) | ANY_JSON | st.sampled_from(sorted(BODIES.values())))

    def answer(command: Command) -> Reply:
        if command["command"] != turn:
            return Reply(said=(sound(command),))
        mark = command["correlationData"].encode()
        return Reply(said=(odd.replace(b"MARK", mark), told(command, error="Client not found")))

    with ControlDouble(script=answer) as double:
        ask_mosquitto(double, verb)


def test_each_node_of_mosquitto_s_list() -> None:
    """As with the answers of the platforms above."""
    valid = sound({"command": "listClients", "correlationData": "MARK"})
    bodies = [written(changed(valid, way, functools.partial(always, value))) for way in ways(valid) for value in WORST]
    turn = iter(bodies)

    def answer(command: Command) -> Reply:
        odd = next(turn, b"{}").replace(b"MARK", command["correlationData"].encode())
        return Reply(said=(odd, told(command, error="Internal error")))

    with ControlDouble(script=answer) as double:
        for _ in bodies:
            ask_mosquitto(double, "list_keys")


def ask_mosquitto(double: ControlDouble, verb: str) -> None:
    """Do the verb at a broker; its end is checked."""
    provider = Mosquitto(
        "plant",
        host="127.0.0.1",
        port=double.port,
        username="the-admin",
        password=lambda: "admin-password",
        timeout=timedelta(seconds=3),
        clock=SystemClock(),
        on_request=lambda _: None,
    )
    start = provider_now()
    outcome(verb, lambda: call_of(verb, "meter", "current-secret", {})(provider), ["admin-password", CHOSEN])
    assert provider_now() - start <= longest(verb, provider)


def provider_now() -> float:
    """Seconds by the clock of a provider that is played no tape."""
    return SystemClock().monotonic()
