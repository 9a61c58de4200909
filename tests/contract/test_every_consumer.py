"""One table, kind by case: the test that shows what a kind does there, or why it can't get into the case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest

from contract.consumer_cases import ConsumerCases
from contract.test_consumer_systemd import TESTS as RUN_INSIDE
from rotator.consumers import KINDS


@dataclass(frozen=True)
class No:
    """The kind has no such case."""

    why: str


# The cases of the suite that every kind runs, by the name of their test there.
SUITE = {
    "restart": "test_restart",
    "the same order twice": "test_repeated",
    "confirm": "test_confirm",
    "confirm a repetition": "test_confirmed_again",
    "slow": "test_slow",
    "too slow": "test_too_slow",
    "failing": "test_failing",
    "missing": "test_missing",
    "forbidden": "test_forbidden",
    "crash-looping": "test_crash_looping",
    "half of the replicas down": "test_half_down",
    "confirmed on the old version": "test_confirmed_on_another_version",
    "no answer": "test_no_answer",
    "the daemon stops": "test_the_daemon_stops",
}
# Where the kind's own run of the suite is. systemd has three: what is restarted, reloaded, and sent a signal.
CLASSES = {
    "systemd": "systemd_inside.TestRestart",
    "systemd, reload": "systemd_inside.TestReload",
    "systemd, kill": "systemd_inside.TestSignal",
    "kubernetes": "test_consumer_kubernetes_cases.TestKubernetes",
    "mqtt": "test_consumer_mqtt.TestMqtt",
    "command": "test_consumer_command.TestCommand",
    "webhook": "test_consumer_webhook.TestWebhook",
    "none": "test_consumer_none.TestNone",
}
NO_START = No("a signal starts no process; one that it ends is `comes_back_from_the_signal` in systemd_case")
ONE_PROCESS = No("a unit has one main process; several instances are several consumers")
NO_JOB = No("a signal has no job: nobody says how long what it began takes, or that it failed")
NOTHING = No("nothing is called at a restart that could be slow, fail, be missing, be forbidden or be cut short")
# What is not the suite's own test: another one, as `module.name` or `module.Class.name`, or why there is none.
OTHERS: Mapping[str, Mapping[str, str | No]] = {
    "systemd": {"half of the replicas down": ONE_PROCESS},
    "systemd, reload": {
        "crash-looping": No("a reload starts no process; one that it ends is `reload_kills` in systemd_case"),
        "half of the replicas down": ONE_PROCESS,
    },
    "systemd, kill": {
        "crash-looping": NO_START,
        "half of the replicas down": ONE_PROCESS,
        **dict.fromkeys(("slow", "too slow", "failing", "the daemon stops"), NO_JOB),
    },
    "kubernetes": {},
    "mqtt": {},
    "command": {
        "half of the replicas down": No("one program has one exit code; what counts replicas is that program"),
    },
    "webhook": {
        "half of the replicas down": No("one URL gives one answer; what counts replicas is behind it"),
        "the daemon stops": "test_consumer_webhook.test_stopped_between_two_tries",
    },
    "none": {
        "half of the replicas down": No("it has one proof, and no parts that are known"),
        **dict.fromkeys(("slow", "too slow", "failing", "missing", "forbidden", "the daemon stops"), NOTHING),
    },
}
CELLS = [(kind, case) for kind in CLASSES for case in SUITE]


def found(path: str) -> Any:
    """What stands there; None where nothing does."""
    module, *names = path.split(".")
    at: Any = import_module(f"contract.{module}")
    for name in names:
        at = getattr(at, name, None)
    return at


def cell(kind: str, case: str) -> str | No:
    """A test, or the reason why there is none."""
    return OTHERS[kind].get(case, f"{CLASSES[kind]}.{SUITE[case]}")


def test_every_kind_has_its_row() -> None:
    """A new kind of consumer has to be entered here, with its run of the suite; no row names a case that is not one."""
    assert all(row.keys() <= SUITE.keys() for row in OTHERS.values())
    assert KINDS.keys() == {kind.partition(",")[0] for kind in CLASSES}
    assert CLASSES.keys() == OTHERS.keys()
    assert all(issubclass(found(path), ConsumerCases) for path in CLASSES.values())


def test_every_test_of_the_suite_has_its_column() -> None:
    """A new test of the suite is a new case of every kind."""
    assert {name for name in dir(ConsumerCases) if name.startswith("test_")} == set(SUITE.values())


@pytest.mark.parametrize(("kind", "case"), CELLS, ids=lambda each: str(each).replace(" ", "-"))
def test_every_cell_is_filled(kind: str, case: str) -> None:
    """By a test that exists and runs, or by a reason; a case of the suite is left out just where a reason stands."""
    entry = cell(kind, case)
    left_out = found(f"{CLASSES[kind]}.{SUITE[case]}") is None
    assert left_out == (case in OTHERS[kind])
    if isinstance(entry, No):
        assert len(entry.why.split()) >= 5
        return
    assert callable(found(entry))
    module, _, name = entry.partition(".")
    assert name.rpartition(".")[2].startswith("test_")
    assert module.startswith("test_") or name in RUN_INSIDE  # a file that pytest finds, or one that the sandbox runs


def test_reasons_name_cases_that_exist() -> None:
    """A reason that sends the reader to a case of systemd_case.py names one that is there."""
    case = import_module("integration.systemd_case")
    reasons = [each.why for row in OTHERS.values() for each in row.values() if isinstance(each, No)]
    named = [name for why in reasons for name in re.findall(r"`(\w+)` in systemd_case", why)]
    assert 2 == len(named)
    assert all(callable(getattr(case, name, None)) for name in named)
