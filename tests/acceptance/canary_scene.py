"""One *replace* key, twelve consumers of all kinds that can run on any machine, and the daemon that restarts them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from acceptance.canary_consumers import Cluster, Follower, Member, Service
from acceptance.canary_reader import AWAY, LOST, ON, TOLD, Diary, Entry, Place, Reader
from acceptance.daemon_process import RotatorProcess, until
from acceptance.daemon_site import Site
from acceptance.world_outside import VaultReader, Version
from contract.consumer_kube_double import ADMIN, kubeconfig
from contract.consumer_kube_stage import KubeStage
from contract.consumer_site import Reply, Request
from contract.consumer_site import Site as WebSite
from rotator.sandbox.losant import LosantPlatform, new_id
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.supervisor import Supervisor
from rotator.sandbox.token_sink import Follower as TokenFollower
from rotator.sandbox.vault import VaultServer

KEY, CANARY, WATCHER = "building-a", "canary", "watcher"
EDGES, HOOKS = ("edge-1", "edge-2", "edge-3"), ("hook-1", "hook-2", "hook-3")
FLEETS, DASHES = ("fleet-1", "fleet-2"), ("dash-1", "dash-2")
# In this order, after the canary; both of Kubernetes in one batch, so that they are restarted at the same moment.
RESTARTED = (*EDGES, *HOOKS, *DASHES, *FLEETS)
EVERYBODY = (CANARY, *RESTARTED, WATCHER)
OTHERS = tuple(name for name in EVERYBODY if name != CANARY)
MEMBERS = ("a", "b")  # of each fleet
MAX_UNAVAILABLE = 3
GRACE = 1.0  # seconds
TELEMETRY = f"telemetry/{KEY}"
CONTROL = "fleet"  # the account of the control channel
TESTS = Path(__file__).parents[1]


class Scene:
    """All of it; the consumers run on the first secret when this is made.

    Attributes:
        platform: Losant's; it tells the broker whom to let in.
        config: the daemon's, but for what `RotatorProcess` adds.
    """

    def __init__(self, folder: Path, vault: VaultServer, broker: MosquittoBroker, stack: ExitStack) -> None:
        self.folder, self.broker = folder, broker
        self._stack, self._diaries = stack, dict[str, Diary]()
        self._site = Site(folder, vault, broker, haltian=False)
        self.config = self._site.config
        self.platform = stack.enter_context(LosantPlatform(on_change=TokenFollower(broker)))
        fields: dict[str, Any] = {"deviceIds": [new_id()], "filterType": "whitelist", "subTopics": [f"{TELEMETRY}/#"]}
        made, secret = self.platform.add_key(name=KEY, **fields)
        self.first_id, self._path = made.id, f"mqtt/{made.id}"
        vault.write(self._path, {"username": made.key, "password": secret})
        self._vault = VaultReader(vault.url, vault.root_token)
        stack.callback(self._vault.close)
        self._place = Place(
            vault=vault.url, token=vault.root_token, path=self._path, host=broker.host, port=broker.port
        )
        self._token = self._site.secret("consumers.token", vault.root_token)["file"]
        password = self._site.secret("observer.password", broker.observer_password)
        self._observer = {"username": broker.observer_username, "password": password}
        self._broken = folder / "the-only-username"
        self._add_processes()
        self._add_services()
        self._add_fleets()
        self._add_watcher()
        self._configure(made.id)

    # --- the daemon's side --------------------------------------------------------------------------------------

    def daemon(self) -> RotatorProcess:
        """A process on this configuration, not started yet."""
        return RotatorProcess(self.folder, self.config)

    def held(self, version: int = 0) -> Version:
        """What Vault holds for the key: now, or under that version."""
        return self._vault.read(self._path, version)

    def _configure(self, id: str) -> None:
        self.config["providers"]["losant"] = {
            "kind": "losant",
            "url": self.platform.url,
            "application": self.platform.application,
            "token": self._site.secret("losant.token", self.platform.token),
        }
        self.config |= {"watch": "1s", "drift_interval": "1s"}
        self.config["keys"][KEY] = {
            "provider": "losant",
            "id": id,
            "rotate": {"before_expiry": None, "max_age": "90d"},
            "grace": f"{GRACE:g}s",
            "max_attempts": 1,
            "vault": {"path": self._path, "fields": {"username": "{username}", "password": "{secret}"}},
            "verify": {"host": self.broker.host, "port": self.broker.port, "subscribe": f"{TELEMETRY}/#"},
            "consumers": list(EVERYBODY),
        }

    def _consumer(self, name: str, kind: str, **settings: Any) -> None:
        usual = {"settle": "300ms", "timeout": "20s", "max_unavailable": MAX_UNAVAILABLE}
        self.config["consumers"][name] = {"kind": kind, **usual, **settings}

    # --- the consumers ------------------------------------------------------------------------------------------

    def diary(self, name: str) -> Diary:
        """Of a consumer, or of a member of a fleet."""
        return self._diaries.setdefault(name, Diary(self.folder / f"{name}.diary"))

    def _reader(self, name: str) -> Reader:
        return Reader(name, self.diary(name), self._place)

    def _add_processes(self) -> None:
        """Commands over real processes, proven by the broker's log; the last one by a command."""
        folder = self.folder / "consumers"
        folder.mkdir()
        supervisor = Supervisor(folder, delay=0.2)
        self._stack.callback(supervisor.stop)
        for name in (CANARY, *EDGES):
            place, diary = self._place, self.folder / f"{name}.diary"
            argv = [sys.executable, "-m", "acceptance.canary_reader", "--name", name, "--diary", str(diary)]
            argv += ["--vault", place.vault, "--token-file", self._token, "--path", place.path]
            argv += ["--broker", f"{place.host}:{place.port}"]
            broken = ["--broken", str(self._broken)] if name == CANARY else []
            supervisor.add(name, [*argv, *broken], {**os.environ, "PYTHONPATH": str(TESTS)})
            restart = [sys.executable, "-m", "rotator.sandbox.restart", name, "--dir", str(folder)]
            proof: object = {"broker": {**self._observer, "client_id": f"{name}-*"}}
            if name == EDGES[-1]:
                proof = ["/bin/grep", "-q", '"what": "on", "version": {version}', str(diary)]
            own = {"canary": True, "timeout": "5s"} if name == CANARY else {}
            self._consumer(name, "command", argv=restart, confirm=proof, **own)
        for name in (CANARY, *EDGES):
            until(lambda name=name: self.diary(name).times(ON), f"{name} is up")  # type: ignore[misc]

    def _add_services(self) -> None:
        """Services behind webhooks, and workloads of Kubernetes; both answer their version over HTTP."""
        services: dict[str, Service] = {}
        cluster = self._stack.enter_context(Cluster())

        def answer(request: Request) -> Reply:
            name = request.path.strip("/")
            return services[name].answer(request) if name in services else cluster.version(name)

        web = self._stack.enter_context(WebSite(answer))
        for name in HOOKS:
            secret = f"made-up-secret-of-{name}"
            services[name] = Service(self.diary(name), self._reader(name), secret)
            self._stack.callback(services[name].close)
            reference, url = self._site.secret(f"{name}.secret", secret), f"{web.url}/{name}"
            self._consumer(name, "webhook", url=url, secret=reference, confirm=url)
        config = kubeconfig(self.folder / "kubeconfig", cluster.url, {"token": ADMIN})
        stage = KubeStage(config, self.folder, cluster)
        self._stack.callback(stage.close)
        for name in DASHES:
            stage.make("deployment", name, replicas=2)
            cluster.diaries[name] = self.diary(name)
            self.diary(name).note(ON, self.held().number)
            where = {"namespace": stage.namespace, "deployment": name, "kubeconfig": config}
            self._consumer(name, "kubernetes", **where, confirm=f"{web.url}/{name}")

    def _add_fleets(self) -> None:
        """Fleets of two, with a control channel of their own, proven by their acks."""
        acls = [
            {"acltype": kind, "topic": f"{CONTROL}/#", "allow": True}
            for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")
        ]
        role, password = {"command": "createRole", "rolename": CONTROL, "acls": acls}, "made-up-control-password"
        account = {"command": "createClient", "username": CONTROL, "password": password}
        self.broker.command([role, {**account, "roles": [{"rolename": CONTROL}]}])
        self._stack.callback(
            self.broker.command,
            [{"command": "deleteClient", "username": CONTROL}, {"command": "deleteRole", "rolename": CONTROL}],
        )
        reference = self._site.secret("control.password", password)
        for fleet in FLEETS:
            root = f"{CONTROL}/{fleet}"
            for each in MEMBERS:
                name, login = f"{fleet}.{each}", (CONTROL, password)
                member = Member(each, self.diary(name), self._reader(name), root, login, self.broker.port)
                self._stack.callback(member.close)
            where = {"host": self.broker.host, "port": self.broker.port, "username": CONTROL, "password": reference}
            talk = {"topic": f"{root}/control", "ack": f"{root}/ack/+", "expect": list(MEMBERS)}
            self._consumer(fleet, "mqtt", **where, **talk)

    def _add_watcher(self) -> None:
        """One that needs no restart, proven by its heartbeat."""
        follower = Follower(WATCHER, self._reader(WATCHER))
        self._stack.callback(follower.close)
        heartbeat = {"topic": f"heartbeat/{WATCHER}", **self._observer}
        self._consumer(WATCHER, "none", confirm={"heartbeat": heartbeat})

    def break_canary(self) -> None:
        """From now on the canary comes up only on the secret that is current now."""
        self._broken.write_text(self.held().username)

    def mend_canary(self) -> None:
        """From now on it comes up on any."""
        self._broken.unlink()

    # --- what the consumers themselves say ----------------------------------------------------------------------

    def told(self, since: float = 0.0) -> dict[str, int]:
        """How often each consumer was told to restart, by name; a fleet, each of its members."""
        return {name: len([at for at in self.diary(name).times(TOLD) if at >= since]) for name in self._diaries}

    def runs_on(self) -> dict[str, int | None]:
        """The version that each is on; None for one that is away."""
        last = {name: self._steps(name)[-1:] for name in self._diaries}
        return {name: found[0].version if found and found[0].what == ON else None for name, found in last.items()}

    def lost(self) -> list[str]:
        """Whose session ended without their doing."""
        return [name for name in self._diaries if self.diary(name).times(LOST)]

    def first_told(self, name: str, since: float) -> float:
        """When a consumer was told for the first time since then."""
        names = [f"{name}.{each}" for each in MEMBERS] if name in FLEETS else [name]
        return min(at for each in names for at in self.diary(each).times(TOLD) if at >= since)

    def away_at_once(self, since: float) -> int:
        """How many consumers were away at the same moment, at most; a fleet is one, away as soon as a member is."""
        changes = [
            (entry.at, entry.what == ON, name)
            for name in self._diaries
            for entry in self._steps(name)
            if entry.at >= since
        ]
        away: set[str] = set()
        most = 0
        for _at, back, name in sorted(changes):
            (away.discard if back else away.add)(name)
            most = max(most, len({each.partition(".")[0] for each in away}))
        return most

    def _steps(self, name: str) -> list[Entry]:
        return [entry for entry in self.diary(name).entries() if entry.what in {ON, AWAY, LOST}]


@contextmanager
def open_scene(folder: Path, vault: VaultServer, broker: MosquittoBroker) -> Iterator[Scene]:
    """A scene whose consumers have ended afterwards."""
    with ExitStack() as stack:
        yield Scene(folder, vault, broker, stack)


def answered(process: RotatorProcess, *arguments: str) -> tuple[int, Any]:
    """A command's exit code, and its JSON."""
    done = process.command(*arguments, "--json")
    return done.returncode, json.loads(done.stdout)


def by_consumer(consumers: list[Mapping[str, Any]], fact: str) -> dict[str, Any]:
    """One fact of each consumer of a view."""
    return {str(each["name"]): each[fact] for each in consumers}
