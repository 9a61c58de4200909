"""What commands do when no daemon runs: the same engine, in this process, until what was asked for has ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rotator.app import App
from rotator.control import NoSuchKey
from rotator.errors import Permanent
from rotator.keys import Hold, decide, resting
from rotator.model import Result, Secret
from rotator.reasons import Reason
from rotator.views import iso, rotation_view

# How often a waiting rotation is looked at, in seconds.
_GLANCE = 0.05


def run_once(app: App) -> bool:
    """Rotate what is due; True when a peer or a rotation failed.

    What is issued is followed to its end for at most `shutdown_grace`; the next run resumes the rest.
    """
    _look(app)
    world = app.engine.world
    deadline = world.clock.monotonic() + app.settings.shutdown_grace.total_seconds()
    started = world.clock.now()
    for name in app.engine.keys:
        _follow(app, name, deadline)
    ended = [r for r in world.journal.recent_rotations(limit=1000) if r.finished_at and r.finished_at >= started]
    unfinished = [
        name
        for name, rotation in world.journal.open_rotations().items()
        if name in app.engine.keys and not resting(rotation)
    ]
    failed = any(rotation.result is not Result.SUCCEEDED for rotation in ended) or bool(unfinished)
    return failed or any(health.reason is not None for health in app.watcher.health().values())


def rotate_here(app: App, name: str, body: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Rotate one key in this process; what the daemon's client returns as well.

    Raises: NoSuchKey; JournalFailed.
    """
    key = app.engine.keys.get(name)
    if key is None:
        raise NoSuchKey(name)
    _look(app)
    world = app.engine.world
    app.control.rotate(name, now=body.get("now") is True, compromised=body.get("compromised") is True)
    _follow(app, name, world.clock.monotonic() + timeout)
    _refuse_unwritten(app)
    record = world.journal.key(name)
    if record is not None and record.requested:
        decision = decide(record, key.policy, world.clock.now(), observe=False, adopt_rotates=key.adopt_rotates)
        if isinstance(decision, Hold):
            return {"held": {"reason": decision.reason.value, "until": iso(decision.until)}}
    return _latest(app, name)


def roll_back_here(app: App, name: str, timeout: float) -> dict[str, Any]:
    """Take a rotation back in this process.

    Raises: NoSuchKey, Permanent, JournalFailed.
    """
    _look(app)
    app.control.rollback(name)
    _follow(app, name, app.engine.world.clock.monotonic() + timeout)
    _refuse_unwritten(app)
    return _latest(app, name)


def _latest(app: App, name: str) -> dict[str, Any]:
    latest = app.engine.world.journal.recent_rotations(key=name, limit=1)
    return rotation_view(latest[0]) if latest else {}


def act_here(app: App, name: str, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Pause, resume, confirm or adopt without a daemon.

    Raises: NoSuchKey, Permanent, Transient.
    """
    match action:
        case "pause":
            return app.control.pause(name)
        case "resume":
            return app.control.resume(name)
        case "confirm":
            return app.control.confirm(name, str(body.get("consumer", "")))
        case "adopt":
            return app.control.adopt(name, Secret(str(body.get("secret", ""))))
        case _:
            raise Permanent(f"no such action: {action}", reason=Reason.UNFORESEEN)


def _look(app: App) -> None:
    """What the daemon's jobs do at their first turn."""
    app.watcher.keep_vault_login()
    app.watcher.look_at_providers()
    app.watcher.look_at_vault()


def _refuse_unwritten(app: App) -> None:
    """Raise JournalFailed where what was asked for could not be written down."""
    failed = app.journal.unwritable
    if failed is not None:
        raise failed


def _follow(app: App, name: str, deadline: float) -> None:
    """Work on one key until its rotation has ended, or waits for longer than the deadline."""
    world = app.engine.world
    while True:
        app.engine.work(name)
        rotation = world.journal.open_rotation(name)
        record = world.journal.key(name)
        if rotation is None or record is None or world.clock.monotonic() >= deadline:
            return
        if world.journal.unwritable is not None and rotation.issues == 0:
            return  # nothing was begun that an answer would be lost of
        left = timedelta(seconds=deadline - world.clock.monotonic())
        if record.wake_at is not None and record.wake_at - world.clock.now() > left:
            return
        if resting(rotation):
            return  # the consumers are proven; the old key's end is the next run's work
        if rotation.issues == 0 and rotation.reason is not None:
            return  # preflight refused: nothing was begun, and waiting here would not mend it
        world.stop.wait(_GLANCE)
