"""Everything that a rotation acts on, wired: the clock, Vault, the broker's probe, the journal and its seal."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from rotator.claims import ClockSkew
from rotator.journal.seal import Fingerprints, Seal
from rotator.journal.sqlite import SqliteJournal
from rotator.ports import Clock, Prober, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that the steps act on."""

    clock: Clock
    store: Store
    prober: Prober
    journal: SqliteJournal
    seal: Seal
    fingerprints: Fingerprints
    stop: threading.Event  # set when the grace of a shutdown is over
    on_conflict_take_over: bool = False
    skew: ClockSkew = field(default_factory=ClockSkew)
