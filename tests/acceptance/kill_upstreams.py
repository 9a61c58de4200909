"""The three kinds of platform that keys are killed at, each with a real Mosquitto that follows it.

All of them let a key in to `events_topic("kills", username)`, which is what its consumer and its probe subscribe to.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Protocol

from acceptance.daemon_site import EMAIL, ORGANIZATION, PASSWORD
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.losant import LosantAnswer, LosantPlatform, new_id
from rotator.sandbox.mosquitto import MosquittoBroker

GRACE: Final = timedelta(seconds=1)  # of a replaced key
_CONNECTED: Final = re.compile(r"New client connected from \S* as (\S+) \(p\d+, c\d+, k\d+, u'(.*)'\)\.")
_SET: Final = re.compile(r"dynsec: rotator-\S+ \| setClientPassword \| username=(\S+) \|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A key as it is at its platform."""

    id: str
    username: str
    secret: str = field(repr=False)


class BrokerDiary:
    """What Mosquitto's log says of who came, and whose password the daemon has set."""

    def __init__(self, broker: MosquittoBroker) -> None:
        self._file, self._read = broker.log_file, 0
        self._connects: dict[str, str] = {}
        self._sets: Counter[str] = Counter()

    def last_username(self, client_id: str) -> str:
        """With which username a client connected last; '' where it never did."""
        self._catch_up()
        return self._connects.get(client_id, "")

    def on(self, username: str) -> list[str]:
        """The clients whose last connect was with this username; the daemon's own and the tests' don't count."""
        self._catch_up()
        return [client for client, name in self._connects.items() if name == username and "-reader-" in client]

    def passwords_set(self) -> int:
        """How many commands of the daemon have set a password."""
        self._catch_up()
        return self._sets.total()

    def _catch_up(self) -> None:
        with self._file.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            if found := _CONNECTED.search(line):
                self._connects[found[1]] = found[2]
            elif found := _SET.search(line):
                self._sets[found[1]] += 1


class Upstream(Protocol):
    """A platform, seen from its own side."""

    @property
    def provider(self) -> Mapping[str, Any]:
        """The provider's section of the configuration; the value of `password` or `token` is the secret itself."""
        ...

    @property
    def key(self) -> Mapping[str, Any]:
        """What a key of this platform has in the configuration beside the usual."""
        ...

    def add(self, name: str) -> Login:
        """A new key."""
        ...

    def calls(self) -> int:
        """How many issue calls have come in."""
        ...

    def ids(self) -> set[str]:
        """All keys that are there."""
        ...

    def live(self, id: str) -> str | None:
        """The secret that lets this key in, where the platform knows it."""
        ...

    def complaints(self, replaced: str) -> list[str]:
        """What the daemon has done since the last time that it must never do to a key.

        `replaced`: the key whose place was taken by another, or ''.
        """
        ...

    def close(self) -> None: ...


class InPlaceUpstream:
    """Haltian's platform: a refresh kills the old token at once."""

    def __init__(self, broker: MosquittoBroker) -> None:
        self._platform = HaltianPlatform(sink=broker)
        self._organization = self._platform.create_organization(ORGANIZATION)
        self._platform.create_user(EMAIL, PASSWORD, self._organization)
        self._platform.start()
        self.provider = {
            "kind": "haltian",
            "url": self._platform.url,
            "organization": ORGANIZATION,
            "email": EMAIL,
            "password": PASSWORD,
        }
        self.key: Mapping[str, Any] = {}

    def add(self, name: str) -> Login:
        id, token = self._platform.add_key(name, self._organization, issued_ago=timedelta(minutes=1))
        return Login(id=id, username=id, secret=token)

    def calls(self) -> int:
        return self._platform.count("refreshApiKeyToken")

    def ids(self) -> set[str]:
        return {key.id for key in self._platform.state.keys(self._organization.id)}

    def live(self, id: str) -> str | None:
        return self._platform.current_token(id)

    def complaints(self, replaced: str) -> list[str]:
        return []

    def close(self) -> None:
        self._platform.stop()


class ReplaceUpstream:
    """Losant's platform: a key beside the old one, which is deactivated and then deleted."""

    def __init__(self, broker: MosquittoBroker) -> None:
        self._broker, self._diary = broker, BrokerDiary(broker)
        self._let_in: dict[str, str] = {}
        self._complaints: list[str] = []
        self._told: set[str] = set()
        self._platform = LosantPlatform(on_change=self._follow)
        self._platform.start()
        self.provider = {
            "kind": "losant",
            "url": self._platform.url,
            "application": self._platform.application,
            "token": self._platform.token,
        }
        self.key: Mapping[str, Any] = {
            "grace": f"{GRACE.total_seconds():g}s",
            "rotate": {"before_expiry": None, "max_age": "90d"},
        }

    def add(self, name: str) -> Login:
        key, secret = self._platform.add_key(name=name, deviceIds=[new_id()])
        return Login(id=key.id, username=key.key, secret=secret)

    def refuse(self, refused: bool) -> None:
        """Whether the broker is told of another secret than the answer shows."""
        self._platform.answer = LosantAnswer.UNUSABLE_SECRET if refused else LosantAnswer.NORMAL

    def calls(self) -> int:
        return self._platform.count("create")

    def ids(self) -> set[str]:
        return {str(shown["id"]) for shown in self._platform.state.all_shown()}

    def live(self, id: str) -> str | None:
        return self._platform.state.key(id).live

    def complaints(self, replaced: str) -> list[str]:
        inactive = {seen.key_id: seen.at for seen in self._platform.seen if seen.operation == "patch"}
        deleted = {seen.key_id: seen.at for seen in self._platform.seen if seen.operation == "delete"}
        hasty = [
            f"{id} was deleted {(deleted[id] - inactive[id]).total_seconds():.3f} s after its deactivation"
            for id in inactive.keys() & deleted.keys()
            if deleted[id] - inactive[id] < GRACE
        ]
        if replaced and replaced not in inactive:
            hasty.append(f"{replaced} was deleted, and never deactivated")
        fresh = [complaint for complaint in self._complaints + hasty if complaint not in self._told]
        self._told.update(fresh)
        return fresh

    def close(self) -> None:
        self._platform.stop()

    def _follow(self, live: Mapping[str, str]) -> None:
        """Inside each call that changes who may come in: the broker learns of it before the answer goes out."""
        for username, secret in live.items():
            if self._let_in.get(username) != secret:
                self._broker.grant(username, secret)
        for username in self._let_in.keys() - live.keys():
            self._complaints += [
                f"{client} ran on {username} when it was retired" for client in self._diary.on(username)
            ]
            self._broker.revoke(username)
        self._let_in = dict(live)


class ChosenUpstream:
    """Mosquitto's own clients, by dynamic security."""

    def __init__(self, broker: MosquittoBroker) -> None:
        self._broker, self._diary = broker, BrokerDiary(broker)
        self.provider = {
            "kind": "mosquitto",
            "host": broker.host,
            "port": broker.port,
            "username": broker.admin_username,
            "password": broker.admin_password,
        }
        self.key: Mapping[str, Any] = {"rotate": {"before_expiry": None, "max_age": "90d"}}

    def add(self, name: str) -> Login:
        username, secret = f"{name}-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
        self._broker.grant(username, secret)
        return Login(id=username, username=username, secret=secret)

    def calls(self) -> int:
        return self._diary.passwords_set()

    def ids(self) -> set[str]:
        return set(self._broker.command([{"command": "listClients"}])[0]["data"]["clients"])

    def live(self, id: str) -> str | None:
        return None

    def complaints(self, replaced: str) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing runs."""


UPSTREAMS: Final[Mapping[str, Callable[[MosquittoBroker], Upstream]]] = {
    "in place": InPlaceUpstream,
    "replace": ReplaceUpstream,
    "chosen": ChosenUpstream,
}
