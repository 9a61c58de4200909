"""`rotator demo`, which is what `make run` starts, as a person would meet it: everything is looked at from outside.

The story is told of its default platform; what is peculiar to the others is that a rotation succeeds there.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest

from acceptance.world_demo import WITHIN, Demo, Story, Teller
from acceptance.world_outside import BAD_CREDENTIAL, VaultReader, answer_to, leaks, poll, scrape

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """One demo from its start to Ctrl-C."""
    demo = Demo(tmp_path_factory.mktemp("demo"))
    try:
        with ExitStack() as stack:
            yield Teller(demo, stack).story()
    finally:
        demo.kill()


def test_refreshed_in_time(story: Story) -> None:
    """Within 90 s of the start a key has a new version with another password in Vault, and all the rest is well."""
    print(f"after {story.took:.1f} s: {story.key} has version {story.current.number}")  # noqa: T201 - the figures
    assert story.current.number >= 2, story.tell
    assert story.first.username == story.current.username
    assert story.first.password != story.current.password
    assert story.took < WITHIN, story.tell


def test_only_the_new_password_opens_the_broker(story: Story) -> None:
    """The old password, which was good before, is refused by the broker, and the new one is accepted."""
    assert "Success" == story.first_answer_before
    assert story.first_answer in BAD_CREDENTIAL, story.tell
    assert "Success" == story.current_answer, story.tell


def test_consumers_run_on_the_new_password(story: Story) -> None:
    """Both consumers are new processes, print the new version, and messages that were published after the switch."""
    assert 2 == len(story.consumers)
    assert story.numbers.intersection(*(seen.numbers for seen in story.consumers.values())), story.tell
    for name, seen in story.consumers.items():
        assert seen.pid_before != seen.pid_after, name
        assert story.current.number <= seen.version, name


def test_broker_saw_the_consumers(story: Story) -> None:
    """The broker's log has each consumer cut off by the new password, and then connected anew as the key."""
    for name, client_id in story.client_ids.items():
        kick = f"Client {client_id} been disconnected by administrative action."
        kicks = [number for number, line in enumerate(story.broker_lines) if line.endswith(kick)]
        assert kicks, (name, story.broker_lines)
        later = story.broker_lines[kicks[0] :]
        wanted = (f" as {client_id} (", f"u'{story.username}'")
        connects = [line for line in later if "New client connected" in line and all(part in line for part in wanted)]
        assert connects, (name, story.broker_lines)


def test_metrics(story: Story) -> None:
    """`/metrics` counts the rotation and its gaps, shows nothing sealed, and the key in one state: ok."""
    assert story.scrape is not None, story.tell
    value = story.scrape.total
    gaps = value("rotator_credential_gap_seconds_count") or 0
    seconds = value("rotator_credential_gap_seconds_sum") or 0
    print(f"{gaps:.0f} gaps, {seconds:.3f} s together")  # noqa: T201 - the figures
    assert (value("rotator_rotations_total", result="succeeded") or 0) >= 1, story.tell
    assert 0 == value("rotator_rotations_total", result="failed"), story.tell
    assert 0 == value("rotator_sealed_secrets"), story.tell
    assert gaps >= 1, story.tell
    assert 0 < seconds < gaps * 30, story.tell
    assert ["ok"] == story.scrape.state_of(story.key), story.tell


def test_no_secret_is_shown(story: Story) -> None:
    """No secret stands in what the demo and the daemon print, answer, keep, or are started with."""
    everywhere = {"all of them": "\n".join(story.secrets.values()).encode()}
    searched = leaks(everywhere, story.secrets)
    assert len(story.secrets) >= 10
    assert {f"{name} in all of them" for name in story.secrets} <= set(searched), "the search itself finds nothing"
    assert {"rotator.log", "/metrics", "/api/keys", "the demo's output", "state/rotator.db"} <= story.places.keys()
    assert sum(name.startswith("the command line of") for name in story.places) >= 5
    assert sum(name.startswith("the environment of") for name in story.places) >= 2  # a child of the daemon as well

    shown = leaks(story.places, story.secrets)
    assert [] == shown


def test_interrupted(story: Story) -> None:
    """Ctrl-C ends the demo well, within 20 s, and no process of it is left."""
    print(f"ended {story.stopped_in:.1f} s after Ctrl-C")  # noqa: T201 - the figures
    assert 0 == story.exit_code, story.tell
    assert story.stopped_in < 20
    assert [] == story.survivors


def test_interrupted_twice(tmp_path: Path) -> None:
    """A second Ctrl-C ends at once a demo whose daemon hangs, and leaves no process."""
    demo = Demo(tmp_path)
    try:
        daemon = demo.facts()["daemon"]
        poll(lambda: scrape(daemon["metrics"]), "the daemon's metrics", timeout=30, because=demo.tell)
        os.kill(daemon["pid"], signal.SIGSTOP)  # the first Ctrl-C would wait for 25 s
        demo.interrupt()
        poll(lambda: "stopping:" in demo.output.read_text(), "an orderly end that began", timeout=10, because=demo.tell)
        assert demo.process.poll() is None
        began = time.monotonic()
        demo.interrupt()
        code, _ = demo.ended(5)
        print(f"ended {time.monotonic() - began:.2f} s after the second Ctrl-C")  # noqa: T201 - the figures
        assert 128 + signal.SIGINT == code
        assert len(demo.seen) >= 5
        assert [] == demo.survivors()
    finally:
        demo.kill()


def test_interrupted_twice_in_a_restart(tmp_path: Path) -> None:
    """A second Ctrl-C leaves no process either when consumers are being restarted and don't come back."""
    demo = Demo(tmp_path)
    try:
        consumers = demo.facts()["consumers"].values()
        for consumer in consumers:
            file = Path(consumer["pid_file"])
            poll(file.exists, "the consumers' pid files", timeout=20, because=demo.tell)
            os.kill(int(file.read_text()), signal.SIGSTOP)  # now nothing ends it but SIGKILL
        poll(lambda: demo.runs("rotator.sandbox.restart"), "a restart that hangs", timeout=60, because=demo.tell)
        demo.interrupt()
        poll(lambda: "stopping:" in demo.output.read_text(), "an orderly end that began", timeout=10, because=demo.tell)
        demo.interrupt()
        code, _ = demo.ended(5)
        assert 128 + signal.SIGINT == code
        assert [] == demo.survivors()
    finally:
        demo.kill()


# --- the other platforms

# keys that are rotated by age: after 4 s instead of 10
QUICK = ("--lifetime", "24")
PLATFORMS = ("ishareradio", "iotistica", "wayscloud", "losant", "mosquitto", "rabbitmq", "http", "graphql")
SIMULATED = ("haltian", "ishareradio", "iotistica", "wayscloud", "losant")


@pytest.mark.long
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_rotation_succeeds_on_each_platform(tmp_path: Path, platform: str) -> None:
    """Its first rotation succeeds: a new secret, on which both consumers read events, and the old one is refused."""
    demo = Demo(tmp_path, "--platform", platform, *QUICK)
    try:
        facts = demo.facts()
        key, took = first_success(demo)
        path = facts["keys"][key]["vault_path"]
        token = Path(facts["vault"]["token_file"]).read_text().strip()
        with closing(VaultReader(facts["vault"]["url"], token)) as vault:
            first, current = vault.read(path, 1), vault.read(path)
        assert first.password != current.password
        assert 2 <= current.number, demo.tell()
        broker, topic = facts["brokers"][facts["keys"][key]["broker"]], facts["keys"][key]["topic"]
        old = (first.username, first.password)
        assert answer_to(broker["host"], broker["port"], old, topic) in BAD_CREDENTIAL
        greeting = rf"subscribed to: {re.escape(topic)} \(Vault version {current.number}\)\n"
        event = re.escape(topic.removesuffix("#")) + "temperature: "
        for consumer in facts["consumers"].values():
            log = Path(consumer["log"])
            poll(
                partial(_says, log, rf"{greeting}(.*\n)*?{event}"),
                f"events in {log.name}",
                timeout=15,
                because=demo.tell,
            )
        print(f"{platform}: {took:.1f} s until the first rotation had succeeded")  # noqa: T201 - the figures
        assert ends_well(demo)
    finally:
        demo.kill()


@pytest.mark.long
def test_all_platforms_at_once(tmp_path: Path) -> None:
    """One key of each platform is managed, those of the simulators at one broker, and a rotation succeeds."""
    demo = Demo(tmp_path, "--platform", "all")
    try:
        facts = demo.facts()
        _, took = first_success(demo)
        left_out = {line.split()[0] for line in facts["left_out"]}
        expected = {*SIMULATED, *{"mosquitto", "rabbitmq"} - left_out}
        assert expected == {*facts["platforms"]} == {*facts["keys"]}
        assert {"amqtt"} == {facts["keys"][name]["broker"] for name in SIMULATED}
        text = demo.output.read_text()
        assert [] == [name for name in expected if not re.search(rf"{name} +Vault holds version \d", text)]
        print(f"all: {took:.1f} s until the first rotation had succeeded")  # noqa: T201 - the figures
        assert ends_well(demo)
    finally:
        demo.kill()


def test_a_platform_that_there_is_not(tmp_path: Path) -> None:
    """It is named, with those that there are, and nothing is started."""
    demo = Demo(tmp_path, "--platform", "nobody")
    try:
        code, _ = demo.ended(30)
        assert 2 == code
        assert [] == [name for name in ("nobody", *PLATFORMS, *SIMULATED, "all") if name not in demo.output.read_text()]
        assert not demo.home.exists()
    finally:
        demo.kill()


def first_success(demo: Demo) -> tuple[str, float]:
    """The key of the first rotation that ended well, and after how many seconds; none may have ended otherwise."""
    (first, *_) = poll(
        lambda: demo.events("rotation_ended"), "the end of a rotation", timeout=demo.left(), because=demo.tell
    )
    assert "succeeded" == first["result"], demo.tell()
    return first["key"], time.monotonic() - demo.started


def ends_well(demo: Demo) -> bool:
    """Ctrl-C: exit code 0, and no process is left."""
    demo.interrupt()
    code, _ = demo.ended(30)
    return code == 0 and demo.survivors() == []


def _says(log: Path, pattern: str) -> bool:
    return re.search(pattern, log.read_text()) is not None
