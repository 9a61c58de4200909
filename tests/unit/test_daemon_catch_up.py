"""The daemon's job of every hour that makes up for restarts which never went through."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from rotator.frozen import replace
from rotator.keys import RESTART, ConsumerFacts
from rotator.ports import Watch
from unit.test_daemon import DAY, Fleet


def unwatched(*_: object) -> Watch:
    """Nobody is restarted here."""
    raise AssertionError


@pytest.mark.parametrize(
    ("facts", "requested"),
    [(ConsumerFacts(version=1), RESTART), (ConsumerFacts(version=2, confirmed_version=1), "")],
    ids=["never restarted", "restarted"],
)
def test_who_was_never_restarted_is_tried_every_hour(tmp_path: Path, facts: ConsumerFacts, requested: str) -> None:
    """Without a start of the daemon; who was restarted and proved nothing is left alone."""
    one = Fleet(tmp_path, 1)
    try:
        (name,) = one.names
        one.due(one.clock.now() + DAY)
        key = one.engine.keys[name]
        provable = tuple(replace(link, open_watch=unwatched) for link in key.consumers)
        one.engine.keys[name] = replace(key, consumers=provable)
        before = one.journal.key(name)
        assert before is not None
        behind = replace(before, vault_version=2, consumers={"ingest": facts})
        one.journal.save(key=name, change=lambda _: behind)
        (job,) = (job for job in one.daemon._jobs() if job.name == "catch_up")
        job.run()
        record = one.journal.key(name)
        assert record is not None
        assert (timedelta(hours=1), requested) == (job.every, record.requested)
    finally:
        one.end()
