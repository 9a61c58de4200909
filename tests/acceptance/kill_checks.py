"""What must hold after a kill, seen from outside only: Vault, broker, platform, consumers, the API, files as bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from acceptance.kill_process import PATIENCE
from acceptance.kill_scene import Before, Held, Scene
from acceptance.world_outside import BAD_CREDENTIAL

Broken = list[str]
NEWEST = 16  # secrets that are looked for each time: a thousand in ten megabytes would take longer than a kill


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How a rotation is to end.

    Attributes:
        result: of the rotation.
        versions: how many versions Vault has more than before.
        calls: how many issue calls the platform may have seen.
    """

    result: str = "succeeded"
    versions: int = 1
    calls: Collection[int] = field(default=(1,))


def broken(scene: Scene, before: Before, expected: Expected) -> Broken:
    """Wait for the end of a rotation and look at everything; returns what does not hold."""
    rotation = _ended(scene, before)
    found: Broken = []
    _require(found, rotation.get("result") == expected.result, f"the rotation ended as {_told(rotation)}")
    now = scene.held(before.key)
    versions = now.version - before.held.version
    _require(found, versions == expected.versions, f"{versions} new versions in Vault, not {expected.versions}")
    others = {name: scene.held(name).version for name in before.others}
    _require(found, others == before.others, f"other keys moved in Vault: {before.others} → {others}")
    calls = scene.upstream.calls() - before.calls
    _require(found, calls in expected.calls, f"{calls} issue calls, not {sorted(expected.calls)}")
    _check_platform(scene, before, now, expected, found)
    _check_consumer(scene, before, now, found)
    _check_daemon(scene, before, now, expected, found)
    _check_files(scene, rotation, found)
    return found


def _ended(scene: Scene, before: Before) -> dict[str, Any]:
    """The rotation that was asked for, once it has ended; it must be the only new one."""
    deadline = time.monotonic() + PATIENCE
    newest: dict[str, Any] = {}
    while time.monotonic() < deadline:
        rotations = scene.daemon.api(f"/api/rotations?key={before.key}")["rotations"]
        newest = rotations[0] if rotations else {}
        if newest.get("finished_at") and newest["id"] != before.rotation:
            older = rotations[1]["id"] if len(rotations) > 1 else ""
            return newest if older == before.rotation else {"result": "two rotations", **newest}
        time.sleep(0.05)
    return {**newest, "result": f"not within {PATIENCE:g} s"}


def _told(rotation: dict[str, Any]) -> str:
    return str({name: rotation.get(name) for name in ("result", "step", "reason", "detail", "attempts")})


def _check_platform(scene: Scene, before: Before, now: Held, expected: Expected, found: Broken) -> None:
    """The secret in Vault is the live one, the old one is useless, and nothing that nobody uses was left behind."""
    old, new = before.held.login, now.login
    kept = expected.result == "rolled_back"
    _require(found, (old == new) is kept, "Vault holds the old secret" if old == new else "Vault holds another secret")
    live = scene.upstream.live(new.id)
    _require(found, live in {None, new.secret}, "Vault does not hold the platform's live secret")
    said = scene.broker_says(new)
    _require(found, said == "Success", f"the broker's word to Vault's secret: {said}")
    if not kept:
        said = scene.broker_says(old)
        _require(found, said in BAD_CREDENTIAL, f"the broker's word to the old secret: {said}")
    left, should = scene.upstream.ids(), set(before.ids) - {old.id} | {new.id}
    _require(found, left == should, f"left at the platform: {sorted(left - should)}; missing: {sorted(should - left)}")
    found += scene.upstream.complaints("" if kept or old.id == new.id else old.id)


def _check_consumer(scene: Scene, before: Before, now: Held, found: Broken) -> None:
    """It runs, on the version in Vault, and hears what only the live secret may hear."""
    key, version = before.key, f"(Vault version {now.version})"
    _within(found, lambda: scene.reads(key).endswith(version), lambda: f"the consumer said last: {scene.reads(key)!r}")
    on = scene.connected_on(key)
    _require(found, on == now.login.username, f"the consumer's last connect was as {on}")
    _within(found, lambda: scene.runs(key), lambda: "the consumer hears nothing")


def _check_daemon(scene: Scene, before: Before, now: Held, expected: Expected, found: Broken) -> None:
    """It says so itself, and nothing waits any more."""
    daemon, key = scene.daemon, before.key
    states = {"ok"} if expected.result == "succeeded" else {"quarantined"}
    _within(found, lambda: daemon.key(key)["state"] in states, lambda: f"its state is {_state(scene, key)}")
    view = daemon.key(key)
    consumer = view["consumers"][0]
    facts = {
        "vault": (view["vault"]["version"], now.version),
        "confirmed": (consumer["confirmed_version"], now.version),
        "lag": (consumer["lag"], 0),
        "id": (view["id"], now.login.id),
        "drift": (view["drift"], None),
        "problem": (view["problem"], None),
        "requested": (view["requested"], None),
        "gap": (view["gap_started_at"], None),
        "a sealed secret": (daemon.metric("rotator_sealed_secrets"), 0),
        "the state's metric": (sum(daemon.metric("rotator_key_state", key=key, state=one) for one in states), 1),
        "the drift's metric": (daemon.metric("rotator_drift_detected", key=key), 0),
        "the lag's metric": (daemon.metric("rotator_consumer_version_lag", key=key), 0),
    }
    if now.version == 1:
        del facts["confirmed"]  # nobody has restarted it yet
    for what, (is_now, should) in facts.items():
        _require(found, is_now == should, f"the daemon's word on {what}: {is_now}, not {should}")


def _state(scene: Scene, key: str) -> str:
    view = scene.daemon.key(key)
    return str({name: view[name] for name in ("state", "reason", "detail", "problem", "rotation")})


def _check_files(scene: Scene, rotation: Mapping[str, Any], found: Broken) -> None:
    """No secret in clear in any file or line, no blob and no spooled answer left."""
    sealed = scene.daemon.sealed()
    _require(found, not sealed, f"sealed blobs are left in the journal: {sealed}")
    # The room that a process which died had set aside for this rotation is given back by the next start.
    own = f"{rotation.get('id')}.reserved"
    left = sorted(name for name in scene.daemon.spool() if name != own and not name.startswith("idle-"))
    _require(found, not left, f"files are left in the spool: {left}")
    written = scene.daemon.all_output()
    shown = [secret for secret in list(scene.secrets)[-NEWEST:] if secret.encode() in written]
    _require(found, not shown, f"{len(shown)} secrets are to be seen in the daemon's files")


def _require(found: Broken, holds: bool, words: str) -> None:
    if not holds:
        found.append(words)


def _within(found: Broken, look: Callable[[], bool], words: Callable[[], str]) -> None:
    """What need not be there at once, but must come."""
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            found.append(words())
            return
        time.sleep(0.05)
