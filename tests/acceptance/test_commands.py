"""The commands as a person or a script meets them: exit codes, words, JSON, socket and URL."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from acceptance.daemon_process import RotatorProcess, run_rotator, running, stays, until
from acceptance.daemon_site import NO_POLICY, Site, open_site
from rotator.sandbox.haltian import Answer, Faults
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

pytestmark = pytest.mark.acceptance

DUE = timedelta(days=80)  # issued this long ago, a token of 90 days is due
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultServer]:
    """One Vault in memory for the module; every test has paths and a policy of its own."""
    with VaultServer() as server:
        yield server


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


def parsed(done: Done) -> dict[str, Any]:
    """What `--json` printed: one object and nothing else."""
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def closed_window() -> dict[str, str]:
    """A window of an hour that opens in twelve."""
    opens = datetime.now(UTC) + timedelta(hours=12)
    return {"cron": f"0 {opens.hour} * * *", "duration": "1h"}


# --- who holds the journal ----------------------------------------------------------------------------------------


def test_a_second_daemon(site: Site) -> None:
    """On the same journal it ends with exit 1 and says who holds it; the first one runs on."""
    site.add_key("building-a")
    with site.daemon() as daemon:
        second = daemon.command("run")
        assert (1, True) == (second.returncode, str(daemon.pid) in second.stderr), second.stderr
        assert "Traceback" not in second.stderr
        once = daemon.command("once")
        assert (1, True) == (once.returncode, str(daemon.pid) in once.stderr), once.stderr
        assert 200 == daemon.get("/livez").status_code


def test_socket_and_state_are_private(site: Site) -> None:
    """The socket, the journal and the seal key are for this user alone; the socket goes with the daemon."""
    site.add_key("building-a")
    with running(site.daemon()) as daemon:
        daemon.start()
        socket = daemon.state / "rotator.sock"
        modes = {name: stat.S_IMODE((daemon.state / name).stat().st_mode) for name in ("rotator.sock", "seal.key")}
        assert {"rotator.sock": 0o600, "seal.key": 0o600} == modes
        assert 0 == stat.S_IMODE((daemon.state / "rotator.db").stat().st_mode) & 0o007
        daemon.stop()
        assert not socket.exists()


# --- once ---------------------------------------------------------------------------------------------------------


def test_once(site: Site) -> None:
    """It rotates what is due and leaves the rest: exit 0; a second one finds nothing to do."""
    due, fresh = site.add_key("due", issued_ago=DUE), site.add_key("fresh")
    process = site.daemon()
    first, second = process.command("once", "--json"), process.command("once")
    assert (0, 0) == (first.returncode, second.returncode), first.stderr + second.stderr
    assert {"due": "ok", "fresh": "ok"} == {view["name"]: view["state"] for view in parsed(first)["keys"]}
    assert (1, site.platform.current_token(due.id)) == (site.refreshes(), site.held(due))
    assert fresh.token == site.held(fresh)


def test_once_that_fails(site: Site) -> None:
    """Exit 1 when a rotation could not be brought to its end."""
    key = site.add_key("due", issued_ago=DUE)
    site.platform.faults = Faults(answer=Answer.NULL)
    done = site.daemon(shutdown_grace="1s").command("once", "--json")
    assert (1, "no_secret") == (done.returncode, parsed(done)["keys"][0]["reason"]), done.stderr
    assert key.token == site.held(key)


def test_once_that_needs_a_person(site: Site) -> None:
    """Exit 3 when nothing failed, and a key can't be rotated until somebody acts."""
    site.add_key("roleless", role=False, issued_ago=DUE)
    done = site.daemon().command("once", "--json")
    assert (3, "role_missing") == (done.returncode, parsed(done)["keys"][0]["needs_a_person"]), done.stderr


# --- check --------------------------------------------------------------------------------------------------------


def test_check_online_well(site: Site) -> None:
    """Every login, path, consumer and broker is tried, and nothing is changed."""
    site.add_consumer("ingest", "/bin/true")
    key = site.add_key("building-a", consumers=["ingest"])
    process = site.daemon()
    plain, done = process.command("check"), process.command("check", "--online", "--json")
    answer = parsed(done)
    assert (0, 0, True, 1) == (plain.returncode, done.returncode, answer["ok"], answer["keys"]), done.stdout
    whats = [check["what"] for check in answer["checks"] if check["ok"]]
    wanted = ["provider haltian", "vault", "consumer ingest", "at haltian", "Vault path", "broker"]
    assert [] == [word for word in wanted if not any(word in what for what in whats)]
    assert (0, (1, key.token)) == (site.refreshes(), (site.vault.read(key.path)[0], site.held(key)))
    assert not process.state.exists(), "check must not make a journal"


def test_check_online_bad(site: Site) -> None:
    """Each thing that does not work is named with its reason, and what works is told as well: exit 1."""
    site.add_consumer("gone", "/no/such/program")
    site.add_key("roleless", role=False, consumers=["gone"])
    site.add_key("refused", verify={"password": "not-{secret}"})
    site.vault.request("PUT", f"sys/policies/acl/{site.policy}", {"policy": NO_POLICY})
    done = site.daemon().command("check", "--online", "--json")
    checks = {check["what"]: check for check in parsed(done)["checks"]}
    reasons = {what: check["reason"] for what, check in checks.items() if not check["ok"]}
    assert (1, False) == (done.returncode, parsed(done)["ok"])
    assert "consumer_missing" == reasons["consumer gone"]
    assert "role_missing" == reasons["key roleless: at haltian"]
    assert "vault_denied" == next(why for what, why in reasons.items() if "Vault path" in what)
    assert checks["provider haltian"]["ok"]


def test_check_online_with_a_refused_secret(site: Site) -> None:
    """The broker refuses what Vault holds: told with a reason, like all the others."""
    site.add_key("refused", verify={"password": "not-{secret}"})
    done = site.daemon().command("check", "--online", "--json")
    check = next(check for check in parsed(done)["checks"] if check["what"] == "key refused: broker")
    assert (1, False, "secret_refused") == (done.returncode, check["ok"], check["reason"])


def test_check_online_with_a_refused_login(site: Site) -> None:
    """`provider_auth`, and exit 1."""
    site.add_key("building-a")
    site.platform.faults = Faults(refuse_login=True)
    done = site.daemon().command("check", "--online")
    assert (1, True) == (done.returncode, "provider haltian" in done.stdout), done.stdout
    assert "Check the login of this provider" in done.stdout


# --- status, history, and keys that are not there ------------------------------------------------------------------


def test_status_with_and_without_a_daemon(site: Site) -> None:
    """The same key, the same words, from the daemon and from the journal; history as well."""
    site.add_consumer("ingest", "/bin/true")
    key = site.add_key("building-a", consumers=["ingest"])
    shown = ("name", "id", "state", "expires_at", "rotate_at", "vault", "last_success_at", "needs_a_person")
    with running(site.daemon()) as daemon:
        daemon.start()
        assert 0 == daemon.command("rotate", key.name, "--now").returncode
        live, table = daemon.command("status", key.name, "--json"), daemon.command("status")
        daemon.stop()
        dead, past = daemon.command("status", key.name, "--json"), daemon.command("history", "--json")
    assert (0, 0, 0, 0) == tuple(done.returncode for done in (live, table, dead, past)), dead.stderr
    assert [parsed(live)[name] for name in shown] == [parsed(dead)[name] for name in shown]
    assert ("ok", 2) == (parsed(dead)["state"], parsed(dead)["vault"]["version"])
    assert "building-a" in table.stdout
    assert ["succeeded"] == [rotation["result"] for rotation in parsed(past)["rotations"]]
    assert key.token not in table.stdout + live.stdout + dead.stdout + past.stdout


def test_status_before_the_first_start(site: Site) -> None:
    """There is no journal yet: said in words, without a traceback, and none is made."""
    site.add_key("building-a")
    process = site.daemon()
    done = process.command("status")
    assert (1, False) == (done.returncode, "Traceback" in done.stderr), done.stderr
    assert (True, False) == ("(journal_missing)" in done.stderr, (process.state / "rotator.db").exists())


@pytest.mark.parametrize("running_daemon", [True, False], ids=["daemon", "alone"])
def test_an_unknown_key(site: Site, running_daemon: bool) -> None:
    """Every command that takes a key names the one that is not there, and fails."""
    site.add_key("building-a")
    with running(site.daemon()) as daemon:
        daemon.start()
        if not running_daemon:
            daemon.stop()
        for command in ("status", "history", "rotate", "adopt" if running_daemon else "pause"):
            done = daemon.command(command, "bilding-a", stdin="made-up")
            assert done.returncode in {1, 2}, command
            assert ("bilding-a" in done.stderr, "Traceback" in done.stderr) == (True, False), (command, done.stderr)
    assert 0 == site.refreshes()


def test_status_names_a_peer_that_is_down(site: Site) -> None:
    """Though the keys are well, and nothing is due for months: the name, the words of the peer, the next step."""
    site.add_key("building-a")
    with site.daemon(watch="1s") as daemon:
        until(lambda: daemon.ready()[0] == 200, "ready")
        site.platform.faults = Faults(refuse_login=True)
        site.platform.state.end_sessions()
        until(lambda: daemon.ready()[1]["haltian"].get("reason") == "provider_auth", "/readyz says provider_auth")
        table, answer = daemon.command("status"), parsed(daemon.command("status", "--json"))
        assert "\nhaltian: provider_auth (" in table.stdout, table.stdout
        assert "Check the login of this provider" in table.stdout.splitlines()[-1]
        assert ("ok", "provider_auth") == (answer["keys"][0]["state"], answer["checks"]["haltian"]["reason"])


def test_refusals_that_name_what_would_be_right(site: Site) -> None:
    """A consumer that the key has not, and a backup onto a file that is there: exit 1, and what to do instead."""
    site.add_consumer("ingest", "/bin/true")
    key = site.add_key("building-a", consumers=["ingest"])
    with site.daemon() as daemon:
        stranger = daemon.command("confirm", key.name, "ingets")
        assert (1, True) == (stranger.returncode, "its consumers are ingest" in stranger.stderr), stranger.stderr
        assert "argv" not in stranger.stderr
        there = daemon.command("backup", str(daemon.config_file))
        assert (1, True) == (there.returncode, "name a file that is not there yet" in there.stderr), there.stderr
        assert str(daemon.config_file) in there.stderr


# --- rotate -------------------------------------------------------------------------------------------------------


def test_rotate_obeys_windows(site: Site) -> None:
    """Outside its windows the rotation is asked for and waits; inside it is done at once; `--now` does not wait."""
    opened = {"cron": "* * * * *", "duration": "5m"}
    outside = site.add_key("outside", rotate={"windows": [closed_window()]})
    inside = site.add_key("inside", rotate={"windows": [opened]})
    with site.daemon() as daemon:
        until(lambda: daemon.ready()[0] == 200, "ready")
        waits = daemon.command("rotate", outside.name)
        assert (0, True) == (waits.returncode, "outside_window" in waits.stdout), waits.stdout
        assert ("window", 0) == (daemon.key(outside.name)["requested"], site.refreshes())
        done = daemon.command("rotate", inside.name, "--json")
        assert (0, "succeeded", 1) == (done.returncode, parsed(done)["result"], site.refreshes())
        now = daemon.command("rotate", outside.name, "--now", "--json")
        assert (0, "succeeded", 2) == (now.returncode, parsed(now)["result"], site.refreshes())
        assert None is daemon.key(outside.name)["requested"]
        stays(site.refreshes, 2, 1)


def test_rotate_without_a_daemon(site: Site) -> None:
    """It says that it acts itself, and obeys the windows as the daemon does."""
    key = site.add_key("building-a", rotate={"windows": [closed_window()]})
    process = site.daemon()
    waits = process.command("rotate", key.name, "--json")
    assert (0, "outside_window") == (waits.returncode, parsed(waits)["held"]["reason"]), waits.stderr
    assert "nothing goes on with building-a until one does" in waits.stderr
    now = process.command("rotate", key.name, "--now", "--json")
    assert (0, "succeeded", 1) == (now.returncode, parsed(now)["result"], site.refreshes()), now.stderr
    assert ("no daemon answers" in now.stderr, "nothing goes on" in now.stderr) == (True, False)
    assert site.platform.current_token(key.id) == site.held(key)


def test_min_interval_holds_and_now_does_not_wait(site: Site) -> None:
    """A second rotation within `min_interval` waits, unless it is asked for by `--now`."""
    key = site.add_key("building-a", min_interval="1h")
    with site.daemon() as daemon:
        daemon.ask_to_rotate(key.name)
        daemon.ended(key.name)
        waits = daemon.command("rotate", key.name, "--json")
        assert (0, "min_interval", 1) == (waits.returncode, parsed(waits)["held"]["reason"], site.refreshes())
        daemon.ask_to_rotate(key.name)
        until(lambda: site.refreshes() == 2, "`--now` does not wait")
        assert "succeeded" == daemon.ended(key.name)["result"]


def test_rotate_that_fails(site: Site) -> None:
    """Exit 1, and the reason is said, when the end does not come in time."""
    key = site.add_key("building-a")
    site.platform.faults = Faults(answer=Answer.NULL)
    with site.daemon() as daemon:
        done = daemon.command("rotate", key.name, "--now", "--timeout", "2")
        assert (1, True) == (done.returncode, "no_secret" in done.stdout), done.stdout


# --- adopt --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running_daemon", [True, False], ids=["daemon", "alone"])
def test_adopt(site: Site, running_daemon: bool) -> None:
    """A refused secret: exit 1, Vault untouched. The right one: in Vault, nothing rotated, the key no longer waits."""
    key = site.add_key("building-a", in_vault=False)
    with running(site.daemon()) as daemon:
        if running_daemon:
            daemon.start()
            until(lambda: daemon.key(key.name)["state"] == "waiting", "the key waits for its adoption")
            until(lambda: len(daemon.log("waiting")) == 1, "told once")
        wrong = daemon.command("adopt", key.name, stdin="no-such-token\n")
        assert (1, (0, None)) == (wrong.returncode, site.vault.read(key.path)), wrong.stderr
        assert "secret_refused" in wrong.stderr
        empty = daemon.command("adopt", key.name, stdin="\n")
        assert (1, (0, None)) == (empty.returncode, site.vault.read(key.path)), empty.stderr
        right = daemon.command("adopt", key.name, "--json", stdin=key.token + "\n")
        assert (0, True, 1) == (right.returncode, parsed(right)["proven"], parsed(right)["vault"]["version"])
        assert (1, {"username": key.id, "password": key.token}) == site.vault.read(key.path)
        if running_daemon:
            until(lambda: daemon.key(key.name)["state"] == "ok", "the key is adopted")
        assert key.token not in right.stdout + right.stderr + wrong.stderr
        assert key.token.encode() not in daemon.all_output() if running_daemon else True
    assert 0 == site.refreshes()


def test_first_contact(site: Site) -> None:
    """Without a secret in Vault `adopt: wait` only reports, and `adopt: rotate` rotates at once."""
    waits, rotates = site.add_key("waits", in_vault=False), site.add_key("rotates", in_vault=False, adopt="rotate")
    with site.daemon() as daemon:
        assert "succeeded" == daemon.ended(rotates.name)["result"]
        until(lambda: daemon.key(waits.name)["reason"] == "waiting_for_adoption", "the other one waits")
        assert ({}, (0, None)) == (daemon.rotation(waits.name), site.vault.read(waits.path))
        assert (1, site.platform.current_token(rotates.id)) == (site.refreshes(), site.held(rotates))
        asked = daemon.command("rotate", waits.name)
        assert (0, site.platform.current_token(waits.id)) == (asked.returncode, site.held(waits)), asked.stdout


# --- pause and resume ---------------------------------------------------------------------------------------------


def test_pause_and_resume(site: Site) -> None:
    """A paused key that is due stays as it is, over a restart as well; resumed it is rotated."""
    key = site.add_key("building-a", issued_ago=DUE)
    with running(site.daemon()) as daemon:
        paused = daemon.command("pause", key.name)  # without a daemon
        assert (0, True) == (paused.returncode, "no daemon answers" in paused.stderr)
        daemon.start()
        until(lambda: daemon.ready()[0] == 200, "ready")
        until(lambda: daemon.key(key.name)["state"] == "paused", "it is shown as paused")
        stays(site.refreshes, 0, 1)
        assert "paused" == daemon.key(key.name)["held"]["reason"]
        assert 0 == daemon.command("resume", key.name).returncode
        assert "succeeded" == daemon.ended(key.name)["result"]
        assert 0 == daemon.command("pause", key.name).returncode
        assert daemon.key(key.name)["paused"]


# --- schema -------------------------------------------------------------------------------------------------------


def test_schema_fits_the_configuration(site: Site) -> None:
    """The schema names every setting of a configuration that works, and none that is not in it is allowed."""
    site.add_consumer("ingest", "/bin/true")
    site.add_key("building-a", consumers=["ingest"], rotate={"before_expiry": "14d"})
    schema = parsed(run_rotator("schema"))
    config = yaml.safe_load(site.daemon().config_file.read_text())
    assert [] == list(unknown(config, schema, schema))
    assert ["vualt"] == list(unknown({**config, "vualt": {}}, schema, schema))
    assert [] == [name for name in schema["required"] if name not in config]


def unknown(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    """Names in `value` that no branch of the schema knows: as much of JSON Schema as an editor's completion uses."""
    branches = list(resolved(schema, root))
    if not isinstance(value, dict) or not branches:
        return
    for name, inner in value.items():
        known = [one for branch in branches for one in schemas_of(str(name), branch)]
        if not known:
            yield str(name)
        elif inner is not None:
            yield from min((list(unknown(inner, one, root)) for one in known), key=len)


def schemas_of(name: str, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What an object schema says of one of its names."""
    if name in schema.get("properties", {}):
        yield schema["properties"][name]
    yield from (one for pattern, one in schema.get("patternProperties", {}).items() if re.search(pattern, name))
    if isinstance(schema.get("additionalProperties"), dict):
        yield schema["additionalProperties"]


def resolved(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The object schemas behind references and alternatives."""
    if "$ref" in schema:
        yield from resolved(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    for name in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(name, ()):
            yield from resolved(one, root)
    if not schema.keys().isdisjoint({"properties", "patternProperties", "additionalProperties"}):
        yield schema


# --- over a URL ---------------------------------------------------------------------------------------------------


@pytest.fixture
def listening(site: Site) -> Iterator[tuple[Site, RotatorProcess]]:
    """A daemon with an admin token and one key."""
    site.add_key("building-a")
    admin = site.secret("admin.token", "made-up-admin-token")
    with site.daemon(http={"admin_token": admin}) as daemon:
        until(lambda: daemon.ready()[0] == 200, "ready")
        yield site, daemon


def test_commands_over_a_url(listening: tuple[Site, RotatorProcess]) -> None:
    """With the admin token a key is rotated from afar; without it only reading is allowed."""
    site, daemon = listening
    nothing, token = str(site.folder / "nothing.yaml"), str(site.folder / "admin.token")
    afar = ("--url", daemon.url, "--config", nothing)
    read = run_rotator("status", "--json", *afar)
    assert (0, "building-a") == (read.returncode, parsed(read)["keys"][0]["name"]), read.stderr
    for command in (["rotate", "building-a", "--now"], ["pause", "building-a"]):
        refused = run_rotator(*command, *afar)
        assert (1, 0) == (refused.returncode, site.refreshes()), refused.stderr
        assert ("unauthorised" in refused.stderr, "Traceback" in refused.stderr) == (True, False)
    done = run_rotator("rotate", "building-a", "--now", "--json", *afar, "--token-file", token)
    assert (0, "succeeded", 1) == (done.returncode, parsed(done)["result"], site.refreshes()), done.stderr


def test_admin_api_over_tcp(listening: tuple[Site, RotatorProcess]) -> None:
    """401 without the token, with a wrong one, and with another scheme; 202 with it; 404 for no such key."""
    site, daemon = listening
    url = f"{daemon.url}/api/keys/building-a/rotate"
    given = (None, "Bearer wrong", "Basic made-up-admin-token", "Bearer", "Bearer made-up-admin-token")
    codes = [httpx.post(url, headers={"authorization": one} if one else {}).status_code for one in given]
    assert [401, 401, 401, 401, 202] == codes
    admin = {"authorization": "Bearer made-up-admin-token"}
    assert 404 == httpx.post(f"{daemon.url}/api/keys/no-such/rotate", headers=admin).status_code
    assert 404 == daemon.get("/api/keys/no-such").status_code
    until(lambda: site.refreshes() == 1 or daemon.rotation("building-a"), "the one that was allowed is begun")


def test_a_url_where_nobody_listens(site: Site) -> None:
    """The command does not act on its own then: exit 1, said in words."""
    site.add_key("building-a")
    process = site.daemon()
    for command in (["status"], ["rotate", "building-a", "--now"], ["pause", "building-a"]):
        done = process.command(*command, "--url", "http://127.0.0.1:1")
        assert (1, False) == (done.returncode, "Traceback" in done.stderr), (command, done.stderr)
    assert (0, False) == (site.refreshes(), process.state.exists())


def test_usage(tmp_path: Path) -> None:
    """A command, an option or a file that is not there is a fault of usage: exit 2."""
    cases = (["rotat"], ["status", "--jason"], ["check", "--config", str(tmp_path / "none.yaml")])
    assert [2] * len(cases) == [run_rotator(*case).returncode for case in cases]
