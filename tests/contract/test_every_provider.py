"""Every provider on its platform, by the real engine: list, rotate, crash and resume, retire, provision, each fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from contract.provider_cases import CASES, FAULTS, PATIENCE, SLOW, TIMEOUT, Case, Fault, Start
from contract.provider_place import Place, Servers
from contract.provider_places import iotistica
from contract.provider_stage import AFTER_CALL, DEATHS, MovedClock, Stage, blank_journal, provider_at
from rotator.errors import Permanent, Transient
from rotator.model import Issued, Strategy, Verdict
from rotator.ports import Checking, Choosing, Deactivating, Deleting, Evicting, InPlace, Provisioning, Replacing
from rotator.reasons import Reason
from rotator.sandbox.iotistica import Generation
from rotator.sandbox.wayscloud import WaysCloudPlatform

pytestmark = pytest.mark.long
MARKER, LATER = "rotator-0123456789ab-1", "rotator-0123456789ab-2"
PORTS: dict[Strategy, Any] = {Strategy.IN_PLACE: InPlace, Strategy.REPLACE: Replacing, Strategy.CHOSEN: Choosing}
Set = Callable[..., Stage]


class Grounds:
    """The platforms, each started when it is first asked for and shared by all tests: each makes keys of its own."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack = stack
        self._servers = stack.enter_context(closing(Servers(directory)))
        self._running: dict[str, tuple[Place, MovedClock]] = {}

    def of(self, name: str, start: Start) -> tuple[Place, MovedClock]:
        """A platform and its clock."""
        if name not in self._running:
            clock = MovedClock()
            self._running[name] = self._stack.enter_context(start(clock, self._servers)), clock
        return self._running[name]


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grounds]:
    """The platforms."""
    with ExitStack() as stack:
        yield Grounds(stack, tmp_path_factory.mktemp("servers"))


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty journal."""
    return blank_journal(tmp_path_factory.mktemp("blank"))


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """Each provider."""
    found: Case = request.param
    return found


@pytest.fixture
def play(grounds: Grounds, blank: Path, tmp_path: Path) -> Iterator[Set]:
    """Sets the stage for a case."""
    with ExitStack() as stack:

        def made(case: Case, **settings: Any) -> Stage:
            place, clock = grounds.of(case.name, case.start)
            return stack.enter_context(closing(Stage(tmp_path, blank, place, clock, **settings)))

        yield made


@pytest.fixture
def stage(play: Set, case: Case) -> Stage:
    """A key of each provider, made by hand."""
    return play(case)


def test_the_key_is_listed(stage: Stage) -> None:
    """It is there, can be used and has no marker; it has an expiry only where the platform is said to name one."""
    listed, abilities = stage.listed(stage.id), stage.provider.abilities
    assert abilities.lists
    assert (None, "") == (listed.problem, listed.marker)
    assert abilities.expires or listed.expires_at is None
    assert Verdict.ACCEPTED is stage.verdict(stage.old, stage.old_secret)
    assert stage.old_secret.reveal() not in repr(listed)


def test_a_rotation(stage: Stage) -> None:
    """The new secret is let in; the old one is refused at once, or after its grace; nothing else is left."""
    stage.rotate()
    assert stage.old_secret != stage.new_secret
    assert Verdict.ACCEPTED is stage.verdict(stage.new, stage.new_secret)
    dead = stage.provider.abilities.kills_old
    assert (Verdict.REFUSED if dead else Verdict.ACCEPTED) is stage.verdict(stage.old, stage.old_secret)
    stage.finish()
    assert Verdict.ACCEPTED is stage.verdict(stage.new, stage.new_secret)
    assert Verdict.REFUSED is stage.verdict(stage.old, stage.old_secret)
    assert ([None], 1) == (stage.calls.raised, stage.keys)
    assert stage.provider.abilities.expires is (stage.record.expires_at is not None)


@pytest.mark.parametrize("death", DEATHS)
def test_a_crash(stage: Stage, case: Case, death: str) -> None:
    """Another process ends what the dead one began: one secret that works, no key that nobody uses."""
    stage.calls.die = death
    if case.loses and death == AFTER_CALL:
        # nobody can have another secret issued: a person has to make the key anew, and is told
        stage.begin()
        rotation = stage.go_on(lambda each: each.quarantine is not None, "quarantined")
        assert Reason.CURRENT_LOST is rotation.quarantine
        assert (stage.old_secret, 1) == (stage.new_secret, stage.keys)
        return
    stage.rotate()
    stage.finish()
    assert ("", DEATHS[death]) == (stage.calls.die, len(stage.calls.raised))
    assert Verdict.ACCEPTED is stage.verdict(stage.new, stage.new_secret)
    assert Verdict.REFUSED is stage.verdict(stage.old, stage.old_secret)
    assert 1 == stage.keys


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name == "wayscloud-outage"], ids=lambda case: case.name
)
def test_a_crash_between_two_requests(stage: Stage) -> None:
    """A key that is deleted and made again is made as it was, though the process dies in between."""
    platform = stage.place.platform
    assert isinstance(platform, WaysCloudPlatform)
    before = platform.key(stage.id)
    stage.calls.die = "after the request delete"
    stage.rotate()
    assert ("", [None]) == (stage.calls.die, stage.calls.raised)
    after = platform.key(stage.id)
    assert (before.name, before.type, {"floor": "2"}) == (after.name, after.type, after.metadata)
    assert Verdict.ACCEPTED is stage.verdict(stage.new, stage.new_secret)
    assert Verdict.REFUSED is stage.verdict(stage.old, stage.old_secret)


def test_retiring(stage: Stage) -> None:
    """Deactivated, a key is refused, until it is brought back; deleted, for good. What can't be done is said so."""
    provider, abilities = stage.real, stage.real.abilities
    if abilities.pauses:
        assert isinstance(provider, Deactivating)
        for _ in range(2):  # already so is success
            provider.deactivate(stage.old)
            assert Verdict.REFUSED is stage.verdict(stage.old, stage.old_secret)
            assert Reason.KEY_INACTIVE is stage.listed(stage.id).problem
        for _ in range(2):
            provider.reactivate(stage.old)
            assert Verdict.ACCEPTED is stage.verdict(stage.old, stage.old_secret)
            assert None is stage.listed(stage.id).problem
    else:
        refuses(provider, Deactivating, "deactivate", stage.old)
        refuses(provider, Deactivating, "reactivate", stage.old)
    if abilities.deletes:
        assert isinstance(provider, Deleting)
        for _ in range(2):  # absent is success
            provider.delete(stage.id)
            assert Verdict.REFUSED is stage.verdict(stage.old, stage.old_secret)
        assert 0 == stage.keys
        assert stage.id not in [each.id for each in stage.real.list_keys() if each.problem is None]
    else:
        refuses(provider, Deleting, "delete", stage.id)
    if abilities.pauses and abilities.deletes:
        provider.deactivate(stage.old)  # gone is success


def test_provisioning(stage: Stage) -> None:
    """A key that was not there is made and let in; a second run makes no second one."""
    provider = stage.real
    if not stage.provider.abilities.creates:
        refuses(provider, Provisioning, "provision", "hall-7", {}, MARKER)
        return
    assert isinstance(provider, Provisioning)
    assert stage.place.options.keys() <= provider.options.keys()
    made = provider.provision("hall-7", stage.place.options, MARKER)
    assert Verdict.ACCEPTED is stage.verdict(made.identity, made.secret)
    assert (2, None) == (stage.keys, stage.listed(made.identity.id).problem)
    again = _or_refused(lambda: provider.provision("hall-7", stage.place.options, LATER)) or made
    assert made.identity == again.identity
    assert Verdict.ACCEPTED is stage.verdict(again.identity, again.secret)
    assert 2 == stage.keys
    with pytest.raises(Permanent) as failed:
        provider.provision("hall-8", {"no such option": "x"}, MARKER)
    assert (Reason.PROVIDER_REFUSED, 2) == (failed.value.reason, stage.keys)


def test_abilities(stage: Stage) -> None:
    """It has the verbs of its strategy and of no other; it says of each ability whether it has it."""
    provider, abilities = stage.real, stage.real.abilities
    assert abilities.strategy is provider.strategy
    assert [abilities.strategy] == [each for each, port in PORTS.items() if isinstance(provider, port)]
    assert abilities.pauses is getattr(provider, "deactivates", abilities.pauses)
    assert not abilities.pauses or isinstance(provider, Deactivating)
    assert not abilities.deletes or isinstance(provider, Deleting)
    assert abilities.creates is isinstance(provider, Provisioning)
    assert abilities.evicts is isinstance(provider, Evicting)
    assert not abilities.checks or isinstance(provider, Checking)
    assert provider.issue_deadline > timedelta(0)


@pytest.mark.parametrize("case", [case for case in CASES if case.keeps_sessions], ids=lambda case: case.name)
def test_old_sessions_end(stage: Stage) -> None:
    """A broker that keeps sessions after a change of password is told to end them, once the new one is proven."""
    assert stage.place.session is not None
    with stage.place.session(stage.old, stage.old_secret) as there:
        assert there()
        stage.rotate()
        stage.finish()
        assert not there()


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        pytest.param(case, fault, id=f"{case.name}-{fault.name}")
        for case in CASES
        for fault in FAULTS
        if fault.name in case.faults
    ],
)
def test_a_fault(play: Set, case: Case, fault: Fault) -> None:
    """The issue call ends in the error that it should, and the rotation comes to its end all the same."""
    hurried = {"timeout": TIMEOUT} if fault.name in (SLOW, *case.hurried) else {}
    stage = play(case, **hurried)
    stage.place.strike(fault.switches(stage.clock.now()))
    stage.rotate()
    stage.finish()
    assert stage.place.struck
    first = stage.calls.raised[0]
    assert case.said.get(fault.name, fault.said) == ((type(first), first.reason) if first is not None else None)
    if fault.asks:
        assert isinstance(first, Transient)
        assert first.retry_after is not None
        assert abs(first.retry_after - PATIENCE) < timedelta(seconds=2)
    assert len(stage.calls.raised) <= 2
    assert Verdict.ACCEPTED is stage.verdict(stage.new, stage.new_secret)
    assert Verdict.REFUSED is stage.verdict(stage.old, stage.old_secret)
    assert 1 == stage.keys


def test_a_cloud_that_lists_no_provisioning_keys(grounds: Grounds) -> None:
    """By Iotistica's document they are made, and neither listed nor deleted: both are refused by name."""
    start = partial(iotistica, resource="provisioning-keys", generation=Generation.DOCUMENT)
    place, clock = grounds.of("provisioning-keys by the document", start)
    with closing(provider_at(place, clock, generation="document")) as provider:
        assert (False, False) == (provider.abilities.lists, provider.abilities.deletes)
        secret = provider.provision("line-1", {}, MARKER).secret
        assert place.admits(secret)
        unable(provider.list_keys)
        unable(lambda: provider.delete(MARKER))


def _or_refused(verb: Callable[[], Issued]) -> Issued | None:
    """What it returns; None where it is refused, as by a platform that shows a secret just once."""
    try:
        return verb()
    except Permanent as exc:
        if exc.reason is not Reason.PROVIDER_REFUSED:
            raise
        return None


def refuses(provider: Any, port: type, verb: str, *args: object) -> None:
    """The provider has no such ability, and says so: it lacks the verb, or refuses by name."""
    if isinstance(provider, port):
        unable(lambda: getattr(provider, verb)(*args))
    else:
        assert not hasattr(provider, verb)


def unable(verb: Callable[[], object]) -> None:
    """It is refused by name."""
    with pytest.raises(Permanent) as failed:
        verb()
    assert Reason.PROVIDER_UNABLE is failed.value.reason
