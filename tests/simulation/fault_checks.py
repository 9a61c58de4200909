"""What must hold when a fault has gone and its rotation has ended; each check says in words what does not."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from datetime import timedelta

from rotator.keys import ISSUE_NOW, needs_a_person, state
from rotator.model import KeyState, Result, Step, Strategy
from rotator.reasons import Reason
from simulation.crash_stage import ORIGINAL, PATH, Stage
from simulation.fault_table import OTHERS, OURS, SPOILED, Plan, Row

GRACE = timedelta(days=1)  # as `world.managed` sets it


def after_the_fault(stage: Stage, row: Row, plan: Plan, *, came_home: bool) -> list[str]:
    """All checks on a stage whose rotation has ended, or waits for a person."""
    broken = issued_for_a_reason(stage, row, plan) + unknown_found(stage, row, plan)
    # what does not work is no reason to keep a secret from Vault that does: the broker settles it
    settled = plan.written is SPOILED and row.step in {Step.PROMOTE, Step.REVERT}
    changed = plan.written in (OURS, SPOILED) and not settled
    if plan.written is OURS:
        broken += written_over(stage, row)
    if changed and (not came_home or not_at_home(stage)):
        broken += asks_for_a_person(stage)
    elif not came_home:
        broken.append(f"not ended: {stage.rotation}")
    elif stage.last.result not in {row.route.result, Result.ROLLED_BACK if changed else row.route.result}:
        broken.append(f"ended {stage.last.result}: {stage.last.reason}")
    broken += not_at_home(stage) + answers_lost(stage, row) + retired_early(stage)
    broken += overwritten(stage, plan) + not_at_rest(stage)
    if not changed:
        broken += the_wrong_secret(stage, row) + out_of_turn(stage, row, plan)
    return stage.tally.broken + broken


def not_at_home(stage: Stage) -> list[str]:
    """Vault holds a live secret, all consumers run on it, and nothing else of the family is left."""
    current = stage.vault.current(PATH)
    held = (current["username"], current["password"])
    broken = [] if stage.platform.accepts(*held) else ["the broker does not accept what Vault holds"]
    broken += [
        f"{consumer.name} does not run on what Vault holds"
        for consumer in stage.consumers
        if not consumer.connected or consumer.runs_on != held
    ]
    family = [key.id for key in stage.platform.family(ORIGINAL)]
    return broken if family == [current["username"]] else [*broken, f"left at the platform: {family}"]


def issued_for_a_reason(stage: Stage, row: Row, plan: Plan) -> list[str]:
    """One secret, and one more for each answer that died; setting the same one again is no second issue."""
    issued, wanted = len(stage.tally.issued), row.route.issued + plan.answers_lost + stage.tally.damaged
    broken = [] if issued == wanted else [f"{issued} secrets issued, not {wanted}"]
    if not row.chosen and stage.platform.calls != issued:
        broken.append(f"{stage.platform.calls} calls for {issued} secrets")
    return broken


def unknown_found(stage: Stage, row: Row, plan: Plan) -> list[str]:
    """An answer that died with the process or on the wire is looked for before anything is issued again (rule 9)."""
    lost = (plan.answers_lost and plan.looked_for) or (stage.tally.damaged and not row.chosen)
    looked = stage.tally.trace.count(Step.LOOK) > row.route.steps[: row.index].count(Step.LOOK)
    return ["a lost answer was not looked for"] if lost and not looked else []


def the_wrong_secret(stage: Stage, row: Row) -> list[str]:
    """After success a new secret is current, after a way back the old one; a refused one never was (rule 2)."""
    current, back = stage.vault.current(PATH), row.route.result is Result.ROLLED_BACK
    broken = []
    if (current["username"] == ORIGINAL and current["password"] == stage.old_secret) is not back:
        broken.append("the wrong one of the old and the new secret is current")
    refused = stage.tally.issued[0] if stage.broker_refuses_first else None
    if stage.variant.strategy is Strategy.REPLACE and refused in _ever_current(stage):
        broken.append("a refused secret was promoted")
    return broken


def answers_lost(stage: Stage, row: Row) -> list[str]:
    """What journal or spool took became Vault's version, unless it was taken back (rule 1)."""
    if row.route.result is Result.ROLLED_BACK or row.chosen:
        return []
    lost = set(stage.tally.kept) - _ever_current(stage)
    return [f"kept answers that never reached Vault: {sorted(lost)}"] if lost else []


def retired_early(stage: Stage) -> list[str]:
    """The old one goes last, by true time (rule 5)."""
    tally, broken = stage.tally, []
    useless, gone = tally.useless.get(ORIGINAL), tally.deleted.get(ORIGINAL)
    if useless is not None and (tally.proven is None or useless < tally.proven):
        broken.append("deactivated before the consumers were proven")
    if gone is not None:
        since = useless if stage.variant.deactivates else tally.proven
        grace = gone - since if since is not None else timedelta(0)
        broken += [] if grace >= GRACE else [f"deleted after a grace of {grace}"]
    return broken


def out_of_turn(stage: Stage, row: Row, plan: Plan) -> list[str]:
    """In the order laid down, nobody left out, and nobody repeated whose restart and proof were written down.

    After the old key's retirement everybody may be restarted to prove itself again: that is not looked at.
    """
    turns, seen = row.route.turns, stage.tally.restarts
    if not turns:
        return []
    most = Counter(turns)
    last = row.route.steps[: row.index + 1].count(Step.RESTART) - 1  # whose restart the fault struck, or came before it
    if row.step in {Step.RESTART, Step.CONFIRM, Step.SETTLE}:
        most[turns[last]] += plan.times
    if plan.unproven and last > 0:
        most[turns[last - 1]] += 1
    in_order = list(dict.fromkeys(seen)) == list(dict.fromkeys(turns))
    counted = Counter(seen)
    enough = all(times <= counted[name] <= most[name] for name, times in Counter(turns).items())
    return [] if in_order and enough else [f"restarted: {seen}, not {turns}"]


def overwritten(stage: Stage, plan: Plan) -> list[str]:
    """Nobody's fields are lost (rule 3)."""
    usual = {} if stage.variant.alone else {"theirs": "kept"}
    wanted = plan.written if plan.written is OTHERS else usual
    lost = {name for name, value in wanted.items() if stage.vault.current(PATH).get(name) != value}
    return [f"fields of somebody else overwritten: {sorted(lost)}"] if lost else []


def written_over(stage: Stage, row: Row) -> list[str]:
    """What somebody wrote into our fields stands until a person speaks, but where the base is taken anew."""
    current = stage.vault.current(PATH)
    if all(current[name] == value for name, value in OURS.items()) or _takes_a_new_base(row):
        return []
    return ["what somebody wrote into our fields was written over without a person's word"]


def _takes_a_new_base(row: Row) -> bool:
    """A preflight comes before the next write; or, in place, Vault holds what a lost answer killed, or that answer."""
    ahead = row.route.steps[row.index :]
    until = ahead[: ahead.index(Step.PROMOTE)] if Step.PROMOTE in ahead else ahead
    lost = row.step is Step.LOOK or Step.LOOK in row.route.steps[: row.index]
    return Step.PREFLIGHT in until or (row.route.variant.strategy is Strategy.IN_PLACE and lost)


def asks_for_a_person(stage: Stage) -> list[str]:
    """Somebody else's value stands in our fields: the state says so by name, nothing is issued, a person goes on."""
    broken: list[str] = []
    stage.look()
    issued, rotation = len(stage.tally.issued), stage.rotation
    if needs_a_person(stage.record, state(stage.record, rotation, stage.clock.now())) is None:
        broken.append("a person is needed, and the state does not say so")
    if stage.last.quarantine is Reason.ROLLBACK_FAILED:
        stage.person_deletes(stage.last.new_identity)  # neither key was retired: a person says which one goes
    stage.person_asks(ISSUE_NOW)
    if not stage.go_on():
        broken.append("a person's word did not end it")
    if len(stage.tally.issued) > issued + 1:
        broken.append(f"{len(stage.tally.issued) - issued} secrets issued at one word of a person")
    return broken


def not_at_rest(stage: Stage) -> list[str]:
    """Nothing begins again by itself, and after success the key is shown as well."""
    stage.wake()
    broken = ["another rotation began"] if stage.rotation is not None else []
    if stage.last.result is Result.SUCCEEDED:
        stage.look()
        shown = state(stage.record, stage.rotation, stage.clock.now())
        if shown is not KeyState.OK or stage.record.drift is not None:
            broken.append(f"the key is shown as {shown.value}: {stage.record.drift or stage.record.problem}")
    return broken


def left_on_the_disk(stage: Stage) -> list[str]:
    """No blob in the journal, nothing in the spool, no secret in clear in any file of any process (rule 6)."""
    with closing(sqlite3.connect(stage.directory / "rotator.db")) as connection:
        (sealed,) = connection.execute("SELECT count(*) FROM rotations WHERE sealed IS NOT NULL").fetchone()
    broken = [f"{sealed} sealed blobs left"] if sealed else []
    if stage.tally.kills and any(stage.directory.glob("spool/*.reserved")):
        stage.boot()  # room that a process which died had set aside is given back by the next start
        stage.close()
    spooled = sorted(path.name for path in stage.directory.glob("spool/*") if not path.name.startswith("idle-"))
    broken += [f"left in the spool: {spooled}"] if spooled else []
    files = [path for path in stage.directory.parent.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    return broken + [f"in clear on the disk: {secret}" for secret in secrets_of(stage) if secret.encode() in content]


def secrets_of(stage: Stage) -> list[str]:
    """All that ever let somebody in."""
    return [stage.old_secret, *stage.tally.issued]


def _ever_current(stage: Stage) -> set[str]:
    return {version["password"] for version in stage.vault.paths[PATH]}
