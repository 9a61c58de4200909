"""The wire of Mosquitto's dynamic security (mosquitto_ctrl_dynsec(1)): commands on one topic, answers on another.

An answer goes to everybody who subscribed, at QoS 0, so each command carries a mark (`correlationData`) that its
answer repeats. A login that may not read the answers, and a broker without the plugin, are known by silence alone.
Tried on 2.0.11.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rotator.errors import Permanent, RotatorError, Transient, UnknownOutcome
from rotator.model import ProbeTarget
from rotator.mqtt import BAD_CREDENTIAL, FAILURE, TURN, Link, mapped, quick, session, words
from rotator.reasons import Reason

COMMANDS: Final = "$CONTROL/dynamic-security/v1"
ANSWERS: Final = f"{COMMANDS}/response"
SILENCE: Final = 1.0  # seconds without an answer after the broker took a command: it answers within its next turn
LONGEST_WORDS: Final = 200  # characters of the plugin's error that are told

Command = Mapping[str, object]
Answer = Mapping[str, object]


class LoginRefused(Permanent):
    """The broker refused the admin's username or password; another password may be the right one."""


@dataclass(slots=True, kw_only=True)
class _Exchange:
    """One command on its way, and what came back so far."""

    mark: str
    message: int = 0  # the packet identifier of its PUBLISH
    taken_at: float | None = None  # when its PUBACK came, of `time.monotonic()`
    code: Any = None  # the PUBACK's, where it is a refusal
    answer: Answer | None = None

    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.answer is not None or self.code is not None


class ControlLink(Link):
    """One connection on which commands go out, one at a time. Not thread safe.

    Args:
        name: the provider's name, with which every error begins.
        target: the broker, and the login that may send commands.
    """

    def __init__(self, name: str, target: ProbeTarget) -> None:
        # `rotator-`: the watches on the broker's log don't take this client for a consumer. MQTT 5, which every
        # Mosquitto with this plugin speaks: its PUBACK says when this login may not publish; 3.1.1 says nothing.
        client_id = f"rotator-ctl-{secrets.token_hex(4)}"
        super().__init__(target, client_id=client_id, on_message=self._heard, version_5=True)
        self._client.on_publish = self._taken
        self._name = name
        self._exchange = _Exchange(mark="")

    def subscribe(self, topic_filter: str) -> None:
        """As `Link.subscribe`, with QoS 1: should a later Mosquitto answer with more than QoS 0, none is lost."""
        self.suback = None
        with mapped(topic_filter):
            self._client.subscribe(topic_filter, qos=1)
            quick(self._client.socket())

    def ask(self, command: Command, *, deadline: float, changes: bool) -> Answer:
        """Send one command and wait for its answer.

        Args:
            command: with its name under "command".
            deadline: of `time.monotonic()`, in seconds; after it, nothing is sent.
            changes: whether the command changes something at the broker.

        Raises:
            Transient: it had no effect: PROVIDER_UNREACHABLE, PROVIDER_UNAVAILABLE.
            Permanent: it had no effect: KEY_UNKNOWN, PROVIDER_REFUSED, PROVIDER_AUTH.
            UnknownOutcome: `changes`, and the command may have had its effect.
        """
        what = f"{self._name}: {command['command']}"
        if self._client.socket() is None or time.monotonic() >= deadline:
            raise _unreachable(f"{what}: not sent: the connection is gone, or no time is left")
        self._exchange = exchange = _Exchange(mark=secrets.token_hex(8))
        payload = json.dumps({"commands": [{**command, "correlationData": exchange.mark}]})
        problem = self._carry(exchange, payload, deadline)
        if exchange.answer is None:
            raise _unanswered(what, problem, exchange, changes=changes)
        error = exchange.answer.get("error")
        if error is not None:
            raise refusal(what, _shown(error, command), changes=changes)
        return exchange.answer

    def _carry(self, exchange: _Exchange, payload: str, deadline: float) -> str:
        """Send a command and take turns until its exchange is over; returns why it is not, '' where it is."""
        try:
            with mapped(COMMANDS):
                exchange.message = self._client.publish(COMMANDS, payload, qos=1).mid
                quick(self._client.socket())
            while not exchange.over():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return "no answer came in time"
                self.turn(min(remaining, TURN))
        except Transient as exc:
            exchange.taken_at = None  # a broker that leaves does not say by its silence that it has no answer
            return "" if exchange.over() else exc.message  # its last bytes may still have brought the answer
        return ""

    def _taken(self, _client: Any, _data: Any, message: int, code: Any, _properties: Any) -> None:
        """The PUBACK; 0x87 where this login may not publish commands."""
        if message == self._exchange.message:
            self._exchange.taken_at = time.monotonic()
            self._exchange.code = code if code.value >= FAILURE else None

    def _heard(self, _topic: str, payload: bytes, _retained: bool) -> None:
        """One message on the answers' topic; what is not the answer that is waited for belongs to another admin."""
        try:
            message = json.loads(payload)
        except (ValueError, RecursionError):
            return
        answers = message.get("responses") if isinstance(message, Mapping) else None
        for answer in answers if isinstance(answers, list) else ():
            if isinstance(answer, Mapping) and answer.get("correlationData") == self._exchange.mark:
                self._exchange.answer = answer


@contextlib.contextmanager
def control(name: str, target: ProbeTarget, deadline: float) -> Iterator[ControlLink]:
    """A connection on which answers arrive, until the block's end.

    Raises:
        Transient: PROVIDER_UNREACHABLE.
        LoginRefused: PROVIDER_AUTH: the login was refused.
        Permanent: PROVIDER_AUTH: it may not read the answers.
    """
    with contextlib.ExitStack() as stack:
        try:
            link = stack.enter_context(contextlib.closing(ControlLink(name, target)))
            session(link, ANSWERS, deadline)
        except Permanent as exc:
            if exc.reason is Reason.SECRET_REFUSED:
                raise LoginRefused(f"{name}: login: {exc.message}", reason=Reason.PROVIDER_AUTH) from exc
            raise Permanent(f"{name}: reading answers: {exc.message}", reason=Reason.PROVIDER_AUTH) from exc
        except Transient as exc:
            raise _unreachable(f"{name}: {exc.message}") from exc
        yield link


def _unanswered(what: str, problem: str, exchange: _Exchange, *, changes: bool) -> RotatorError:
    if exchange.code is not None and exchange.code.value in BAD_CREDENTIAL:
        return Permanent(f"{what}: {COMMANDS}: {words(exchange.code)}", reason=Reason.PROVIDER_AUTH)
    if exchange.code is not None:
        problem = words(exchange.code)
    if changes:
        return UnknownOutcome(f"{what}: {problem}: the command may have taken effect")
    if exchange.code is not None:
        return Transient(f"{what}: {problem}", reason=Reason.PROVIDER_UNAVAILABLE)
    if exchange.taken_at is not None and time.monotonic() >= exchange.taken_at + SILENCE:
        return Permanent(
            f"{what}: the broker took the command and nobody answered: this login may not publish to {COMMANDS},"
            f" or not read {ANSWERS}, or the broker has no dynamic security plugin",
            reason=Reason.PROVIDER_AUTH,
        )
    return _unreachable(f"{what}: {problem}")


def refusal(what: str, error: str, *, changes: bool) -> RotatorError:
    """What the plugin's error says about a command.

    Its texts are those of plugins/dynamic-security of Mosquitto 2.0. All but those about a fault of its own stand
    before any change.
    """
    told = f"{what}: {error}"
    match error.lower():
        case "client not found":
            return Permanent(told, reason=Reason.KEY_UNKNOWN)
        case "internal error" | "out of memory" if changes:  # the new salt may be there already, and the hash not
            return UnknownOutcome(f"{told}: the command may have taken effect")
        case "internal error" | "out of memory":
            return Transient(told, reason=Reason.PROVIDER_UNAVAILABLE)
        case _:
            return Permanent(told, reason=Reason.PROVIDER_REFUSED)


def _shown(error: object, command: Command) -> str:
    """The plugin's words on one line, unless they repeat the password."""
    told = " ".join(str(error).split())
    password = command.get("password")
    if isinstance(password, str) and (password in told or password in str(error)):
        return "an error that is not shown, since it holds the password"
    return told[:LONGEST_WORDS]


def _unreachable(message: str) -> Transient:
    return Transient(message, reason=Reason.PROVIDER_UNREACHABLE)
