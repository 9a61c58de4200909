"""Promote through the store against bare hvac: the same writes to the same server, with the same number of threads.

    make bench
    .venv/bin/python tests/benchmarks/vault.py [--seconds 0.5] [--rounds 9] [--threads 1 4 16] [--profile]

The variants take turns in each round, so that whatever else the machine does falls on all of them alike; a share is
taken within a round, and medians are printed. `ROTATOR_TEST_VAULT_BIN` names another server than the bundled OpenBao.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import hvac
import requests
from requests.adapters import HTTPAdapter

from benchmarks.machine import machine, say
from rotator.clock import SystemClock
from rotator.model import RequestDone
from rotator.sandbox.vault import VaultServer
from rotator.stores import TokenAuth, VaultStore

POLICY = (Path(__file__).parents[2] / "deploy" / "vault" / "rotator-policy.hcl").read_text(encoding="utf-8")
TARGET = 0.8  # of bare hvac's writes per second

Write = Callable[[str, Mapping[str, str], int], int]  # (path, fields, current version) → the version that holds them


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to write, and the bare one that it is compared with."""

    name: str
    write: Write
    bare: Variant | None = None
    rates: list[float] = field(default_factory=list)  # writes per second, one a round
    trips: list[float] = field(default_factory=list)  # requests of the store for one write, one a round


class Secret:
    """One path, written by one thread at a time."""

    def __init__(self, mark: str, number: int) -> None:
        self._path, self._version = f"mqtt/{mark}-{number}", 0

    def write(self, write: Write, until: float) -> int:
        """Write until this moment of `perf_counter`; returns how often."""
        count = 0
        while time.perf_counter() < until:
            # as long as a platform's token
            fields = {"username": "c6f7b103-81df-4e73-8218-4f671056aee2", "password": f"{self._version:0400d}"}
            version = write(self._path, fields, self._version)
            if version != self._version + 1:
                raise SystemExit(f"version {version} followed version {self._version}")
            self._version, count = version, count + 1
        return count


class Bench:
    """The variants on one server; `threads` write at once, and the bare client's pool is as large."""

    def __init__(self, server: VaultServer, threads: int) -> None:
        token = server.create_token(POLICY, name="bench")
        self._requests: list[str] = []  # appending needs no lock
        self._secrets = [Secret(f"bench-{threads}", number) for number in range(threads)]
        self._pool = ThreadPoolExecutor(threads)
        self._store = VaultStore(
            urls=[server.url],
            auth=TokenAuth(token=lambda: token),
            clock=SystemClock(),
            on_request=self._note,
        )
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=threads))
        self._kv = hvac.Client(url=server.url, token=token, session=self._session).secrets.kv.v2
        write = Variant(name="hvac: write", write=self._bare_write)
        merge = Variant(name="hvac: read and write", write=self._bare_merge)
        known = Variant(name="promote, version known", write=self._promote_known, bare=write)
        unknown = Variant(name="promote, version not known", write=self._promote, bare=merge)
        self.variants = (write, known, merge, unknown)

    def measure(self, seconds: float, rounds: int) -> None:
        """Run all variants in turn, every other round backwards; the first round of all is not counted."""
        for number in range(rounds + 1):
            for variant in self.variants if number % 2 else reversed(self.variants):
                rate, trips = self.run(variant, seconds)
                if number:
                    variant.rates.append(rate)
                    variant.trips.append(trips)

    def run(self, variant: Variant, seconds: float) -> tuple[float, float]:
        """Writes per second of all threads together, and the store's requests for one write."""
        self._requests.clear()
        began = time.perf_counter()
        until = began + seconds
        writes = sum(self._pool.map(lambda secret: secret.write(variant.write, until), self._secrets))
        return writes / (time.perf_counter() - began), len(self._requests) / writes

    def close(self) -> None:
        self._pool.shutdown()
        self._store.close()
        self._session.close()

    def _note(self, done: RequestDone) -> None:
        self._requests.append(done.operation)

    def _bare_write(self, path: str, fields: Mapping[str, str], version: int) -> int:
        answer = self._kv.create_or_update_secret(path, dict(fields), cas=version)
        return int(answer["data"]["version"])

    def _bare_merge(self, path: str, fields: Mapping[str, str], version: int) -> int:
        held: dict[str, str] = {}
        if version:
            found = self._kv.read_secret_version(path, raise_on_deleted_version=False)["data"]
            held, version = found["data"], found["metadata"]["version"]
        return self._bare_write(path, {**held, **fields}, version)

    def _promote_known(self, path: str, fields: Mapping[str, str], version: int) -> int:
        return self._store.put(path, fields, known=version)

    def _promote(self, path: str, fields: Mapping[str, str], _version: int) -> int:
        return self._store.put(path, fields)


def report(threads: int, variants: tuple[Variant, ...]) -> bool:
    """Print the medians; returns whether the store reaches its target."""
    good = True
    for variant in variants:
        line = f"  {threads:2} threads  {variant.name:27} {statistics.median(variant.rates):6.0f} writes/s"
        if variant.bare is not None:
            shares = [ours / theirs for ours, theirs in zip(variant.rates, variant.bare.rates, strict=True)]
            share, trips = statistics.median(shares), statistics.median(variant.trips)
            line += f"  {share:.2f} of bare hvac ({min(shares):.2f} to {max(shares):.2f}), {trips:.2f} round trips"
            good = good and share >= TARGET
        say(line)
    return good


def profiled(server: VaultServer, seconds: float) -> None:
    """Print where the time of one thread goes, by function: bare hvac first, then the store."""
    bench = Bench(server, 1)
    for variant in bench.variants[:2]:
        profiler = cProfile.Profile()
        until = time.perf_counter() + seconds
        say(variant.name)
        writes = profiler.runcall(bench._secrets[0].write, variant.write, until)
        say(f"{writes} writes under the profiler")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    bench.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each variant in each round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--profile", action="store_true", help="by function, one thread, dev mode")
    arguments = parser.parse_args()
    binary = os.environ.get("ROTATOR_TEST_VAULT_BIN")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        say(machine(Path(folder)))
        for dev in (True, False):
            say(f"promote against bare hvac, {'dev mode' if dev else 'raft storage'}, {arguments.rounds} rounds")
            with VaultServer(binary=binary, dev=dev) as server:
                if arguments.profile:
                    return profiled(server, arguments.seconds)
                for threads in arguments.threads:
                    bench = Bench(server, threads)
                    bench.measure(arguments.seconds, arguments.rounds)
                    bench.close()
                    good = report(threads, bench.variants) and good
    say(f"target, at least {TARGET} of bare hvac: {'reached' if good else 'MISSED'}")
    return None


if __name__ == "__main__":
    main()
