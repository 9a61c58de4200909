"""The bad-input table of the main job: the daemon as a process, real servers around it, looked at from outside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from acceptance.daemon_process import RotatorProcess, run_rotator, running, stays, tell, until
from acceptance.daemon_proxy import EditingProxy
from acceptance.daemon_site import NO_POLICY, POLICY, Site, SiteKey, open_site, sealed_rows
from rotator.sandbox.haltian import Answer, Faults
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.processes import free_port
from rotator.sandbox.vault import VaultServer

pytestmark = pytest.mark.acceptance

NEVER = timedelta(days=1)  # issued this long ago, a token of 90 days is far from due


@pytest.fixture(scope="module")
def shared_vault() -> Iterator[VaultServer]:
    """A Vault on files, which can be stopped and sealed, for the whole module."""
    with VaultServer(dev=False) as server:
        yield server


@pytest.fixture
def vault(shared_vault: VaultServer) -> Iterator[VaultServer]:
    """That Vault, running and unsealed again whatever the test did to it."""
    yield shared_vault
    shared_vault.start()
    shared_vault.unseal()


@pytest.fixture(scope="module")
def broker() -> Iterator[MosquittoBroker]:
    """One Mosquitto for the module; every test has usernames of its own."""
    with MosquittoBroker() as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, vault: VaultServer, broker: MosquittoBroker) -> Iterator[Site]:
    """A platform with tokens of 90 days, and the configuration to go with it."""
    with open_site(tmp_path, vault, broker) as made:
        yield made


# --- Vault away at the moment of promote --------------------------------------------------------------------------


def stop(site: Site) -> None:
    """Vault is down."""
    site.vault.stop()


def seal(site: Site) -> None:
    """Vault is up and sealed."""
    site.vault.seal()


def deny(site: Site) -> None:
    """Vault answers 403, since the policy is taken away."""
    site.vault.request("PUT", f"sys/policies/acl/{site.policy}", {"policy": NO_POLICY})


def start(site: Site) -> None:
    """Vault is back."""
    site.vault.start()


def unseal(site: Site) -> None:
    """Vault is unsealed."""
    site.vault.unseal()


def allow(site: Site) -> None:
    """The policy is back."""
    site.vault.request("PUT", f"sys/policies/acl/{site.policy}", {"policy": POLICY})


@pytest.mark.parametrize(
    ("away", "back", "reason"),
    [(stop, start, "vault_unreachable"), (seal, unseal, "vault_sealed"), (deny, allow, "vault_denied")],
    ids=["unreachable", "sealed", "denied"],
)
def test_vault_away_at_promote(
    site: Site, away: Callable[[Site], None], back: Callable[[Site], None], reason: str
) -> None:
    """The secret waits sealed, in clear nowhere, and is in Vault within 5 s of Vault's return."""
    key = site.add_key("building-a", issued_ago=NEVER)
    with site.daemon() as daemon:
        until(lambda: daemon.ready()[0] == 200, "ready")
        site.platform.faults = Faults(latency_after=2.0)
        daemon.ask_to_rotate(key.name)
        until(lambda: site.refreshes() == 1, "the issue call is on its way")
        away(site)
        until(lambda: daemon.metric("rotator_sealed_secrets") == 1, "rotator_sealed_secrets is 1")
        until(lambda: daemon.key(key.name)["reason"] == reason, f"the status says {reason}")
        fresh = site.platform.current_token(key.id)
        view = daemon.key(key.name)
        assert (True, "promote") == (view["sealed"], view["rotation"]["step"])
        assert daemon.metric("rotator_sealed_secret_oldest_timestamp_seconds") > time.time() - 60
        assert daemon.metric("rotator_rotation_steps_total", step="promote", reason=reason) >= 1
        assert [(True, False)] == sealed_rows(daemon)
        assert (False, False) == tuple(token.encode() in daemon.all_output() for token in (fresh, key.token))
        assert key.token != fresh
        # The worst case: it has been away long enough for the backoff to be at its longest.
        before = daemon.metric("rotator_rotation_steps_total", step="promote", reason=reason)
        until(
            lambda: daemon.metric("rotator_rotation_steps_total", step="promote", reason=reason) >= before + 2,
            "it is tried again and again",
            30,
        )
        back(site)
        returned = time.monotonic()
        until(lambda: site.held(key) == fresh, "Vault holds the new secret", 15)
        took = time.monotonic() - returned
        tell(f"{reason}: in Vault {took:.2f} s after Vault's return")
        assert took < 5
        ended = daemon.ended(key.name)
        assert ("succeeded", 1, 0) == (ended["result"], site.refreshes(), daemon.metric("rotator_sealed_secrets"))
        assert [(False, True)] == sealed_rows(daemon)


# --- the configuration --------------------------------------------------------------------------------------------

BROKEN = """\
state: {{url: "sqlite:///{folder}/state/rotator.db", seal: {{kind: file, path: {folder}/state/seal.key}}}}
http: {{listen: 127.0.0.1:0}}
vault: {{url: http://127.0.0.1:1, auth: {{method: token, token: {{file: {folder}/token}}}}}}
provders: {{}}  # wrong: `provders` | `providers`
providers:
  haltian:
    kind: haltian
    url: http://127.0.0.1:1/
    organisation: acme  # wrong: organisation | organization
    organization: acme
    email: operator@acme.example
    password: {{file: {folder}/token}}
consumers:
  ingest: {{kind: command, argv: [/bin/true], timeout: 30x}}  # wrong: consumers.ingest.timeout | 90s
  other: {{kind: command, argv: [/bin/true], canary: perhaps}}  # wrong: consumers.other.canary | true or false
keys:
  building-a:
    provider: haltian
    id: one
    max_attempts: many  # wrong: keys.building-a.max_attempts | whole number
    rotate:
      windows:
        - cron: "99 2 * * *"  # wrong: cron | cron
          duration: 1h
    vault: {{path: mqtt/a, fields: {{password: "{{secret}}"}}}}
  building-b:
    provider: haltain  # wrong: `haltain` | haltian
    id: two
    vault: {{path: mqtt/b, fields: {{password: "{{secret}}"}}}}
    consumers: [ingst]  # wrong: `ingst` | ingest
  building-a:  # wrong: building-a | first
    provider: haltian
    id: three
    vault: {{path: mqtt/c, fields: {{password: "{{secret}}"}}}}
"""


@pytest.mark.parametrize("command", ["run", "check"])
def test_all_faults_of_the_configuration_at_once(tmp_path: Path, command: str) -> None:
    """Exit 2; wrong key, type, duration, cron, duplicate and references, each with file, line and a suggestion."""
    (tmp_path / "token").write_text("made-up")
    (tmp_path / "token").chmod(0o600)
    file = tmp_path / "rotator.yaml"
    text = BROKEN.format(folder=tmp_path)
    file.write_text(text)
    done = run_rotator(command, "--config", str(file))
    said = done.stderr.splitlines()
    wanted: list[tuple[int, str, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if "# wrong: " in line:
            what, _, hint = line.partition("# wrong: ")[2].partition(" | ")
            wanted.append((number, what, hint))
    missing = [
        (number, what, hint)
        for number, what, hint in wanted
        if not any(f"rotator.yaml:{number}:" in one and what in one and hint in one for one in said)
    ]
    assert (2, []) == (done.returncode, missing), done.stderr
    faults = [line for line in said if line.startswith("rotator.yaml:")]
    assert [number for number, *_ in wanted] == [int(line.split(":")[1]) for line in faults], done.stderr
    assert [] == [line for line in faults if not line.endswith(")")], "a fault without a suggestion"
    assert f"{len(wanted)} faults" in done.stderr


@pytest.mark.parametrize(
    ("fault", "command"),
    [("missing", "run"), ("empty", "run"), ("world-readable", "run"), ("world-readable", "check")],
)
def test_secret_file(tmp_path: Path, fault: str, command: str) -> None:
    """Missing, empty or readable by everybody: exit 2 naming the file, never its content."""
    file, content = tmp_path / "vault.token", "made-up-content"
    if fault != "missing":
        file.write_text("" if fault == "empty" else content)
        file.chmod(0o644 if fault == "world-readable" else 0o600)
    process = RotatorProcess(tmp_path, vault_only(file))
    done = process.command(command)
    assert (2, True, False) == (done.returncode, str(file) in done.stderr, content in done.stdout + done.stderr)
    assert "rotator.yaml:" in done.stderr


def test_allow_insecure_files(tmp_path: Path) -> None:
    """A world-readable secret file is taken when the configuration says so, by `check` and by the daemon."""
    file = tmp_path / "vault.token"
    file.write_text("made-up-content")
    file.chmod(0o644)
    process = RotatorProcess(tmp_path, {**vault_only(file), "allow_insecure_files": True})
    assert 0 == process.command("check").returncode
    with process:
        assert 200 == process.get("/livez").status_code


def vault_only(token: Path) -> dict[str, object]:
    """A configuration without keys, at a Vault that is not there."""
    return {"vault": {"url": "http://127.0.0.1:1", "auth": {"method": "token", "token": {"file": str(token)}}}}


# --- the provider -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_login_refused_while_another_provider_works(
    tmp_path: Path, vault: VaultServer, broker: MosquittoBroker
) -> None:
    """`provider_auth`, few login attempts, no new rotation of that key; the other key is rotated all the while."""
    with open_site(tmp_path, vault, broker, lifetime=timedelta(seconds=8)) as site:
        good = site.add_provider("good")
        refused, other = site.add_key("refused"), site.add_key("other", provider="good")
        with site.daemon() as daemon:
            daemon.ended(refused.name)
            site.platform.faults = Faults(refuse_login=True)
            site.platform.state.end_sessions()
            attempts = site.platform.count("login")
            until(lambda: daemon.key(refused.name)["reason"] == "provider_auth", "the status says provider_auth")
            assert daemon.metric("rotator_rotation_steps_total", provider="haltian", reason="provider_auth") >= 1
            issued, rotated = site.refreshes(), good.count("refreshApiKeyToken")
            until(lambda: good.count("refreshApiKeyToken") >= rotated + 1, "the other key is rotated", 20)
            logins = site.platform.count("login") - attempts + site.platform.count("refreshToken")
            tell(f"provider_auth: {logins} login attempts until the next rotation of the other key")
            assert logins <= 3
            status, checks = daemon.ready()
            assert (503, "provider_auth", True) == (status, checks["haltian"]["reason"], checks["good"]["ok"])
            assert issued == site.refreshes()
            assert "Check the login of this provider" in daemon.key(refused.name)["advice"]
            site.platform.faults = Faults()
            asked = daemon.command("rotate", refused.name, "--now")
            assert (0, issued + 1) == (asked.returncode, site.refreshes()), asked.stdout
            assert site.held(other) == good.current_token(other.id)


def test_login_refused_from_the_start(site: Site) -> None:
    """The daemon runs, /readyz and `status` say `provider_auth`, and the platform is left alone."""
    key = site.add_key("building-a")
    site.platform.faults = Faults(refuse_login=True)
    with site.daemon(watch="1s") as daemon:
        until(lambda: daemon.ready()[1]["haltian"].get("reason") == "provider_auth", "/readyz says provider_auth")
        stays(lambda: site.platform.count("login") <= 2, True, 3)
        status = daemon.command("status", "--json")
        assert "provider_auth" == json.loads(status.stdout)["keys"][0]["reason"], status.stdout
        assert key.token == site.held(key)


def test_answers_without_a_secret(site: Site) -> None:
    """`refreshApiKeyToken: null`, a token that is null or "": named, sealed in the journal, Vault as it was.

    The next try after the fault succeeds, and log and state folder hold neither token nor password in clear.
    """
    key = site.add_key("building-a")
    answers = {Answer.NULL: "no_secret", Answer.TOKEN_NULL: "no_secret", Answer.EMPTY_TOKEN: "empty_secret"}
    with site.daemon() as daemon:
        for answer, reason in answers.items():
            refused(site, daemon, key, answer, {reason})
            assert [(True, False)] == sealed_rows(daemon)[-1:], f"{answer}: the journal holds what came"
            mended(site, daemon, key)
        found = daemon.all_output()
        secrets = (key.token, site.platform.current_token(key.id), "made-up-password", site.vault.root_token)
        assert [False] * 4 == [secret.encode() in found for secret in secrets]


def test_answer_with_errors(site: Site) -> None:
    """HTTP 200 with `errors`: named, sealed in the journal, Vault as it was; the next try after the fault succeeds."""
    key = site.add_key("building-a")
    with site.daemon() as daemon:
        refused(site, daemon, key, Answer.ERRORS, {"provider_refused", "outcome_unknown"})
        rows = sealed_rows(daemon)
        mended(site, daemon, key)
    assert [(True, False)] == rows, "the journal holds what came"


def refused(site: Site, daemon: RotatorProcess, key: SiteKey, answer: Answer, reasons: set[str]) -> None:
    """An issue call with this answer: one of these reasons is named, and Vault stays as it is."""
    before = site.vault.read(key.path)
    site.platform.faults = Faults(answer=answer)
    daemon.ask_to_rotate(key.name)
    named = until(lambda: daemon.key(key.name)["rotation"] and daemon.key(key.name)["reason"], "a reason is named")
    assert named in reasons
    assert 1 <= daemon.metric("rotator_rotation_steps_total", step="issue", result="failed", reason=named)
    assert before == site.vault.read(key.path)


def mended(site: Site, daemon: RotatorProcess, key: SiteKey) -> None:
    """The next try, without the fault, succeeds."""
    site.platform.faults = Faults()
    daemon.ask_to_rotate(key.name)
    assert "succeeded" == daemon.ended(key.name, 30)["result"]
    assert site.platform.current_token(key.id) == site.held(key) != key.token
    assert 0 == daemon.metric("rotator_sealed_secrets")


def vault_version(site: Site, path: str) -> int:
    """The current version at a path."""
    return site.vault.read(path)[0]


# --- the expiry ---------------------------------------------------------------------------------------------------


def test_expiry_absent(site: Site) -> None:
    """Without `expiresAt` the JWT's `exp` counts; without that, `issuedAt` + lifetime."""
    by_jwt, by_lifetime = site.add_key("by-jwt"), site.add_key("by-lifetime")

    def without_expiry(answer: dict[str, Any]) -> None:
        data = answer.get("data")
        refreshed = data.get("refreshApiKeyToken") if isinstance(data, dict) else None
        if refreshed:
            refreshed["token"]["expiresAt"] = None

    with EditingProxy(site.platform.url, without_expiry) as proxy:
        site.config["providers"]["haltian"].update(url=proxy.url, lifetime="100d")  # the platform's own are 90
        with site.daemon() as daemon:
            daemon.ask_to_rotate(by_jwt.name)
            daemon.ended(by_jwt.name)
            site.platform.faults = Faults(answer=Answer.OPAQUE_TOKEN)
            daemon.ask_to_rotate(by_lifetime.name)
            daemon.ended(by_lifetime.name)
            views = [daemon.key(key.name) for key in (by_jwt, by_lifetime)]
            lives = [(daemon.metric("rotator_key_expiration_timestamp_seconds", key=view["name"])
                      - daemon.metric("rotator_key_issued_timestamp_seconds", key=view["name"])) / 86400
                     for view in views]  # fmt: skip
    assert ["jwt", "lifetime"] == [view["expiry_source"] for view in views]
    assert [90, 100] == lives
    assert [False, False] == [view["expiry_implausible"] for view in views]


def test_implausible_expiry_with_an_accepted_secret(site: Site) -> None:
    """In the past, or nothing to derive it from: promoted once the broker accepts it, and told."""
    keys = {
        Answer.EXPIRES_IN_THE_PAST: site.add_key("past"),
        Answer.NOTHING_TO_DERIVE_FROM: site.add_key("nothing"),
    }
    with site.daemon() as daemon:
        for count, (answer, key) in enumerate(keys.items(), start=1):
            site.platform.faults = Faults(answer=answer)
            daemon.ask_to_rotate(key.name)
            ended = daemon.ended(key.name)
            assert ("succeeded", "expiry_implausible") == (ended["result"], ended["reason"])
            assert site.platform.current_token(key.id) == site.held(key) != key.token
            assert count == daemon.metric("rotator_rotation_steps_total", step="issue", reason="expiry_implausible")
            view = daemon.key(key.name)
            assert (True, "expiry_implausible") == (view["expiry_implausible"], view["reason"])
            assert 0 == daemon.metric("rotator_key_expiration_timestamp_seconds", key=key.name)
        assert 2 == len(daemon.log("step", step="issue", reason="expiry_implausible"))
        stays(site.refreshes, 2, 2)


@pytest.mark.long
def test_implausible_expiry_without_the_brokers_word(site: Site) -> None:
    """Refused by the broker, no broker to ask, or one that can't be reached: not promoted, no refresh loop."""
    refused = site.add_key("refused", verify={"password": "not-{secret}", "propagation": "1s"})
    unproven = site.add_key("unproven", verify={"host": ""})
    silent = site.add_key("silent", verify={"port": free_port(), "timeout": "1s", "propagation": "1s"})
    keys = (refused, unproven, silent)
    site.platform.faults = Faults(answer=Answer.EXPIRES_IN_THE_PAST)
    with site.daemon() as daemon:
        for key in keys:
            daemon.ask_to_rotate(key.name)
        until(lambda: daemon.key(refused.name)["quarantined"], "the refused one is quarantined", 30)
        until(lambda: daemon.key(unproven.name)["quarantined"], "the unproven one is quarantined")
        until(lambda: daemon.key(silent.name)["reason"] == "broker_unreachable", "the silent one waits")
        reasons = [daemon.key(key.name)["reason"] for key in keys]
        assert ["secret_refused", "expiry_implausible", "broker_unreachable"] == reasons
        assert 1 <= daemon.metric("rotator_rotation_steps_total", step="issue", reason="expiry_implausible")
        # the refused one twice ("then issues once more"), the others once, and never again
        stays(site.refreshes, 4, 3)
        assert [(1, key.token) for key in keys] == [(vault_version(site, key.path), site.held(key)) for key in keys]
        status = daemon.command("status", "--json")
        people = {view["name"]: view["needs_a_person"] for view in json.loads(status.stdout)["keys"]}
        assert (3, True, True) == (status.returncode, bool(people["refused"]), bool(people["unproven"]))


# --- the key upstream ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_key_that_cannot_serve(site: Site) -> None:
    """Unknown, revoked, without the role: said in `status` (exit 3) and in the log, once per change."""
    roleless, revoked = site.add_key("roleless", role=False), site.add_key("revoked")
    unknown = site.add_key("unknown")
    site.platform.state.revoke_key(revoked.id)
    site.platform.state.delete_key(unknown.id)
    wanted = {"roleless": "role_missing", "revoked": "key_revoked", "unknown": "key_unknown"}
    with site.daemon(watch="1s") as daemon:
        until(lambda: len(daemon.log("problem")) >= 3, "three problems are told")
        looks = site.platform.count("apiKeys")
        until(lambda: site.platform.count("apiKeys") >= looks + 2, "two more looks at the list")
        status = daemon.command("status", "--json")
        views = {view["name"]: view for view in json.loads(status.stdout)["keys"]}
        assert 3 == status.returncode
        assert wanted == {name: view["reason"] for name, view in views.items()}
        assert wanted == {name: view["needs_a_person"] for name, view in views.items()}
        told = [(line["key"], line["reason"], line["level"]) for line in daemon.log("problem")]
        assert sorted((name, reason, "warning") for name, reason in wanted.items()) == sorted(told)
        words = {"role_missing": "MqttIntegrator", "key_revoked": "revoked", "key_unknown": "id"}
        for name, reason in wanted.items():
            advice = (views[name]["advice"], daemon.log("problem", key=name)[0]["advice"])
            assert all(words[reason] in each for each in advice), advice
        organization = site.platform.state.key(roleless.id).organization_id
        site.platform.state.assign_role(roleless.id, organization, "MqttIntegrator")
        until(lambda: daemon.key(roleless.name)["state"] == "ok", "the role's return is seen")
        site.platform.state.remove_role(roleless.id)
        until(lambda: daemon.key(roleless.name)["state"] == "blocked", "its loss is seen again")
        looks = site.platform.count("apiKeys")
        until(lambda: site.platform.count("apiKeys") >= looks + 2, "two more looks at the list")
        story = [line.get("reason") for line in daemon.log("problem", key="roleless")]
        assert ["role_missing", None, "role_missing"] == story
        assert 5 == len(daemon.log("problem"))
        assert 0 == site.refreshes()


def test_asked_rotation_of_a_key_that_cannot_serve(site: Site) -> None:
    """`rotate --now` says the same words, issues nothing, and leaves Vault alone."""
    key = site.add_key("building-a")
    site.platform.state.revoke_key(key.id)
    with running(site.daemon()) as daemon:  # never started: the command takes the lock itself
        done = daemon.command("rotate", key.name, "--now", "--json", "--timeout", "5")
        assert (1, "key_revoked") == (done.returncode, json.loads(done.stdout)["reason"]), done.stderr
        assert (0, key.token) == (site.refreshes(), site.held(key))


# --- Vault's other fields -----------------------------------------------------------------------------------------


def test_foreign_fields_in_vault(site: Site) -> None:
    """Strings, numbers and nested objects that others wrote are kept as they are; only the mapped fields change."""
    foreign = {
        "note": "ask Ada",
        "empty": "",
        "port": 8883,
        "ratio": 0.1,
        "flag": True,
        "nothing": None,
        "nested": {"list": [1, "two", {"three": None}]},
    }
    beside, alone = site.add_key("beside", held=foreign), site.add_key("alone", held=foreign, in_vault=False)
    with site.daemon() as daemon:
        for key in (beside, alone):
            daemon.ask_to_rotate(key.name)
            assert "succeeded" == daemon.ended(key.name)["result"]
            ours = {"username": key.id, "password": site.platform.current_token(key.id)}
            assert (2, {**foreign, **ours}) == site.vault.read(key.path)
        assert key.token != site.held(key)
