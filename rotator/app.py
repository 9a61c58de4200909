"""The composition root: settings in, wired parts out, everything opened here closed by one ExitStack."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry
from starlette.applications import Starlette

from rotator.clock import SystemClock
from rotator.config_base import HttpPart
from rotator.confirmation import Confirmations
from rotator.consuming import Clusters, make_consumers
from rotator.control import Control
from rotator.daemon import Daemon
from rotator.engine import Engine
from rotator.journal.spool import Spool
from rotator.journal.sqlite import SqliteJournal, database_path, locked
from rotator.kept_secret_id import KeptSecretId, make_auth
from rotator.keymaking import KeyMaker, ReadRef
from rotator.logs import EventLog, log_request
from rotator.managed import ManagedKey
from rotator.metrics import Metrics, StateCollector
from rotator.model import RequestDone, Strategy
from rotator.ports import Choosing, Clock, Consumer, InPlace, OnRequest, Provider, Replacing, Store
from rotator.providers import Site, kinds, make_client, make_tls
from rotator.sealing import open_seal
from rotator.secret_refs import SecretRef, reveal
from rotator.selections import MakeKey, Selections, remembered
from rotator.settings import Settings
from rotator.stores.vault import VaultStore
from rotator.stores.vault_wrapped import Keep
from rotator.taking_up import introduce, take_back
from rotator.verify import MqttProber
from rotator.watcher import Watcher
from rotator.web.application import make_application
from rotator.web.server import Listener, bind_tcp, bind_unix
from rotator.world import World

# What the engine calls, by strategy: a provider of somebody else's may lack some of it.
VERBS: Mapping[Strategy, type] = {Strategy.IN_PLACE: InPlace, Strategy.REPLACE: Replacing, Strategy.CHOSEN: Choosing}


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """The wired parts that the commands use."""

    settings: Settings
    journal: SqliteJournal
    engine: Engine
    watcher: Watcher
    metrics: Metrics
    store: Store
    providers: Mapping[str, Provider]
    consumers: Mapping[str, Consumer]
    daemon: Daemon
    control: Control


def socket_path(settings: Settings) -> Path:
    """Where the daemon's Unix socket is: beside the journal."""
    return database_path(settings.state.url).with_name("rotator.sock")


def build(settings: Settings, stack: ExitStack) -> App:
    """Wire everything; what is opened is closed by `stack`, in the reverse order.

    Raises: JournalLocked, JournalFailed, Permanent.
    """
    clock = SystemClock()
    journal = hold_journal(settings, stack)
    spool = Spool(journal.path.with_name("spool"))
    # before anything connects, since it may refuse; it asks Vault for nothing until `parts` are there
    seal, fingerprints = open_seal(settings.state.seal, journal, lambda: parts.store)

    registry = CollectorRegistry()
    requests = _LateRequests()
    stop = threading.Event()
    parts = wire(settings, stack, clock, requests, stop, keep=KeptSecretId(journal=journal, seal=seal))
    store, providers, consumers = parts.store, parts.providers, parts.consumers
    keys = {**parts.keys, **{key.name: key for key in remembered(settings, journal, parts.make)}}
    metrics = Metrics(registry, {**keys, **parts.patterns})
    world = World(
        clock=clock,
        store=store,
        prober=MqttProber(),
        journal=journal,
        seal=seal,
        fingerprints=fingerprints,
        stop=stop,
        on_conflict_take_over=settings.on_conflict == "take_over",
    )
    introduce(journal, keys, clock)
    engine = Engine(
        keys,
        world,
        observers=(EventLog(), metrics),
        spool=spool,
        observe_only=settings.mode == "observe",
        max_due_share=settings.max_due_share.of_life,
    )
    requests.targets = [metrics.request, engine.skew.seen, log_request]
    selections = Selections(settings, engine, parts.make)
    watcher = Watcher(
        engine,
        providers,
        watch=settings.watch,
        drift_interval=settings.drift_interval,
        restore=settings.on_drift == "restore",
        follow=selections.follow,
    )
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    registry.register(StateCollector(journal, engine.keys, clock, lambda: watcher.token_ends_at, lambda: watcher.facts))
    daemon = Daemon(engine, watcher, metrics, shutdown_grace=settings.shutdown_grace)
    metrics.reloaded.set(1)
    return App(
        settings=settings,
        journal=journal,
        engine=engine,
        watcher=watcher,
        metrics=metrics,
        store=store,
        providers=providers,
        consumers=consumers,
        daemon=daemon,
        control=Control(engine=engine, watcher=watcher, poke=daemon.poke),
    )


def hold_journal(settings: Settings, stack: ExitStack) -> SqliteJournal:
    """The journal, this process's alone until `stack` ends, with what was spooled taken back.

    Raises: JournalLocked, JournalFailed.
    """
    path = database_path(settings.state.url)
    stack.enter_context(locked(path))
    journal = SqliteJournal(settings.state.url)
    stack.callback(journal.close)
    take_back(Spool(path.with_name("spool")), journal)
    return journal


def listen(app: App, stack: ExitStack) -> tuple[str, int]:
    """Serve HTTP on TCP and on the Unix socket; returns the TCP address that was bound."""
    tcp = bind_tcp(app.settings.http.host, app.settings.http.port)
    unix = bind_unix(socket_path(app.settings))
    token = app.settings.http.admin_token
    read_ref = _reader(app.settings, app.store)

    def application(trusted: bool) -> Starlette:
        read_token = (lambda: read_ref(token)) if token is not None else None
        return make_application(
            app.control, app.metrics.registry, alive=app.daemon.alive, admin_token=read_token, trusted=trusted
        )

    listener = Listener([(application(False), tcp), (application(True), unix)])
    stack.callback(socket_path(app.settings).unlink, missing_ok=True)
    stack.callback(listener.close)
    listener.start()
    bound: tuple[str, int] = tcp.getsockname()[:2]
    return bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The adapters, wired from the settings; they need neither journal nor lock."""

    store: VaultStore
    providers: Mapping[str, Provider]
    consumers: Mapping[str, Consumer]
    keys: Mapping[str, ManagedKey]
    make: MakeKey
    patterns: Mapping[str, ManagedKey]  # of each selection a key that is not there: what its keys will have in common


def reach(
    settings: Settings, stack: ExitStack, clock: Clock, on_request: OnRequest, keep: Keep | None = None
) -> tuple[VaultStore, Mapping[str, Provider]]:
    """The store and the providers alone."""
    store = make_store(settings, on_request, clock, keep)
    stack.callback(store.close)
    return store, _providers(settings, on_request, clock, _reader(settings, store), stack)


def wire(
    settings: Settings,
    stack: ExitStack,
    clock: Clock,
    on_request: OnRequest,
    stop: threading.Event | None = None,
    keep: Keep | None = None,
) -> Parts:
    """Make the adapters and the keys that use them; only the observers of broker logs connect already."""
    store, providers = reach(settings, stack, clock, on_request, keep)
    read_ref = _reader(settings, store)
    confirmations = Confirmations(clock=clock, read_ref=read_ref)
    stack.callback(confirmations.close)
    tls = make_tls(ca_file=None, client_cert=None, client_key=None)
    client = stack.enter_context(make_client(verify=tls))  # for webhooks, and for proof over HTTP
    clusters = Clusters()
    stack.callback(clusters.close)
    consumers = make_consumers(
        settings.consumers,
        clock=clock,
        stop=stop,
        client=client,
        clusters=clusters,
        confirmations=confirmations,
        read_ref=read_ref,
    )

    make = KeyMaker(
        settings=settings,
        providers=providers,
        consumers=consumers,
        confirmations=confirmations,
        clusters=clusters,
        client=client,
        clock=clock,
        read_ref=read_ref,
    ).make
    keys = {name: make(name, key) for name, key in settings.keys.items()}
    patterns = {
        name: make(name, selection.discover.template.key(name, selection.provider, name), name)
        for name, selection in settings.selections.items()
    }
    confirmations.listen_early()  # keys that are found later have their consumers in common with these
    return Parts(store=store, providers=providers, consumers=consumers, keys=keys, make=make, patterns=patterns)


class _LateRequests:
    """Adapters are made before the metrics that count their requests."""

    def __init__(self) -> None:
        self.targets: list[OnRequest] = []

    def __call__(self, done: RequestDone) -> None:
        for target in self.targets:
            target(done)


def make_store(settings: Settings, on_request: OnRequest, clock: Clock, keep: Keep | None = None) -> VaultStore:
    """The store of the settings; it logs in when it is first asked for something.

    Args:
        keep: where the process that holds the journal's lock keeps an unwrapped secret id; none is unwrapped without.
    """
    vault = settings.vault
    certificate = (vault.client_cert, vault.client_key) if vault.client_cert and vault.client_key else None
    return VaultStore(
        urls=vault.url,
        mount=vault.mount,
        namespace=vault.namespace,
        auth=make_auth(settings, keep),
        ca_file=vault.ca_file,
        client_cert=certificate,
        timeout=vault.timeout,
        clock=clock,
        on_request=on_request,
    )


def _reader(settings: Settings, store: Store | None) -> ReadRef:
    """What reads a secret reference when it is needed; without a store, `{vault: …}` can't be read."""

    def read_vault(path: str, field: str) -> str:
        data = store.read(path).data if store is not None else None
        return str((data or {}).get(field, ""))

    return lambda ref: reveal(ref, allow_insecure_files=settings.allow_insecure_files, vault=read_vault)


def _providers(
    settings: Settings,
    on_request: OnRequest,
    clock: Clock,
    read_ref: ReadRef,
    stack: ExitStack,
) -> dict[str, Provider]:
    def reveal_later(ref: SecretRef) -> Callable[[], str]:
        return partial(read_ref, ref)

    def client(wanted: HttpPart) -> httpx.Client:
        tls = make_tls(ca_file=wanted.ca_file, client_cert=wanted.client_cert, client_key=wanted.client_key)
        return stack.enter_context(make_client(verify=tls, proxy=wanted.proxy))

    providers: dict[str, Provider] = {}
    for name, wanted in settings.providers.items():
        site = Site(name=name, clock=clock, on_request=on_request, reveal=reveal_later, client=client)
        provider = kinds()[wanted.kind].build(site, wanted)
        stack.callback(provider.close)
        if not isinstance(provider, VERBS[provider.strategy]):
            raise TypeError(f"a provider of kind {wanted.kind} lacks verbs of its strategy {provider.strategy.value}")
        providers[name] = provider
    return providers
