"""A daemon at DEBUG that goes through everything that handles secrets, and all that can be seen of it from outside."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from acceptance.daemon_process import ENVIRONMENT, RotatorProcess, running, until
from acceptance.daemon_site import EMAIL, ORGANIZATION, POLICY, Site, SiteKey
from acceptance.kill_upstreams import ChosenUpstream
from acceptance.world_outside import family_of
from rotator.sandbox.faults import Faults
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.processes import spawn
from rotator.sandbox.vault import VaultServer

INSIDE = Path(__file__).with_name("nowhere_inside.py")
LOGINS = ("token file", "approle", "approle, wrapped")
# A restart that says who it is, and waits until it was looked at.
RESTART = 'echo "$NOTE" >&2; echo $$ >> restarting; while [ ! -e looked ]; do sleep 0.05; done'
# What needs escaping in a URL, in JSON, in HTML and in base64's last place is told from its plain form.
ODD = 'a/b+c?"d\\e<f>&ü~'


class LoudProcess(RotatorProcess):
    """The daemon at DEBUG, and its commands, with `nowhere_inside` in them."""

    def __init__(self, folder: Path, config: Mapping[str, object]) -> None:
        super().__init__(folder, config)
        (folder / "inside").mkdir()
        (folder / "inside" / "sitecustomize.py").write_bytes(INSIDE.read_bytes())
        self.environment = {
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join([str(folder / "inside"), ENVIRONMENT.get("PYTHONPATH", "")]).rstrip(
                os.pathsep
            ),
            "NOWHERE_FOLDER": str(folder),
            "ROTATOR_LOG": "debug",
        }

    def start(self) -> Self:
        """As the daemon starts elsewhere, but for its environment."""
        argv = [sys.executable, "-m", "rotator", "run", "--config", str(self.config_file)]
        self._process = spawn(argv, self.log_file, environment=self.environment)
        self.url = f"http://{until(self._listens, 'the daemon listens', 20)}"
        until(self._lives, "the daemon lives", 20)
        return self

    def said(self, *arguments: str) -> bytes:
        """All that a command prints."""
        argv = [sys.executable, "-m", "rotator", *arguments, "--config", str(self.config_file)]
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60, env=self.environment)
        return done.stdout + done.stderr


class Scene:
    """One daemon with one login, and what was seen of it.

    Attributes:
        places: name → all that was ever seen there.
        secrets: name → secret; those that answers bring along come to it at the end.
        name: the first key's, the folder's, and a variable's: what is no secret, and is seen everywhere.
    """

    def __init__(self, folder: Path, vault: VaultServer, broker: MosquittoBroker, login: str) -> None:
        self.vault, self.broker, self.login = vault, broker, login
        self.places: dict[str, bytes] = {}
        self.secrets: dict[str, str] = {}
        self.name = f"planted-{secrets.token_hex(6)}"
        self.folder = folder / self.name
        self.folder.mkdir()
        self.site = Site(self.folder, vault, broker)
        self._set_password()
        self._set_login()
        self.first = self._key(self.name, argv=["/bin/sh", "-c", RESTART, self.name])
        self.overwritten = self._key("building-b")
        self.failing = self._key("building-c", argv=["/bin/sh", "-c", "echo no >&2; exit 3"], max_attempts=1)
        self.chosen = self._chosen_key()
        self.daemon = LoudProcess(self.folder, self.site.config)

    # --- how it is built --------------------------------------------------------------------------------------------

    def _keep(self, name: str, value: str) -> dict[str, str]:
        """A reference to a secret in a file."""
        self.secrets[name] = value
        return self.site.secret(name.replace(" ", "-"), value)

    def _set_password(self) -> None:
        platform, password = self.site.platform, secrets.token_urlsafe(9) + ODD
        user = platform.state._users[EMAIL, ORGANIZATION]
        platform.create_user(EMAIL, password, platform.state.organization(user.organization_id))
        self.site.config["providers"]["haltian"]["password"] = self._keep("password of haltian", password)

    def _set_login(self) -> None:
        if self.login == "token file":
            self.secrets["Vault token"] = Path(self.site.config["vault"]["auth"]["token"]["file"]).read_text().strip()
            return
        role_id, secret_id = self.vault.enable_approle(POLICY, role=self.site.policy)
        auth: dict[str, Any] = {"method": "approle", "role_id": self._keep("role id", role_id)}
        if self.login == "approle":
            auth["secret_id"] = self._keep("secret id", secret_id)
        else:
            auth |= {"secret_id": self._keep("wrapping token", self._wrapped()), "wrapped": True}
        self.site.config["vault"]["auth"] = auth

    def _wrapped(self) -> str:
        assert self.vault._client is not None
        headers = {"X-Vault-Token": self.vault.root_token, "X-Vault-Wrap-TTL": "120s"}
        answer = self.vault._client.post(f"/v1/auth/approle/role/{self.site.policy}/secret-id", headers=headers)
        return str(answer.raise_for_status().json()["wrap_info"]["token"])

    def _key(self, name: str, *, argv: list[str] | None = None, **settings: Any) -> SiteKey:
        consumers = []
        if argv is not None:
            env = {"NOTE": self.name}
            self.site.add_consumer(f"reader-{name}", *argv, cwd=str(self.folder), env=env, timeout="20s")
            consumers = [f"reader-{name}"]
        key = self.site.add_key(name, held={"note": "somebody's"}, consumers=consumers, **settings)
        self.secrets[f"first secret of {name}"] = key.token
        return key

    def _chosen_key(self) -> SiteKey:
        upstream = ChosenUpstream(self.broker)
        password = self._keep("password of mosquitto", str(upstream.provider["password"]))
        self.site.config["providers"]["mosquitto"] = {**upstream.provider, "password": password}
        login, path = upstream.add("chosen"), f"mqtt/{self.site.policy}-chosen"
        self.vault.write(path, {"username": login.username, "password": login.secret})
        self.secrets["first secret of chosen"] = login.secret
        self.site.config["keys"]["chosen"] = {
            "provider": "mosquitto",
            "id": login.id,
            "vault": {"path": path, "fields": {"username": "{username}", "password": "{secret}"}},
            **upstream.key,
        }
        return SiteKey(name="chosen", id=login.id, token=login.secret, path=path)

    # --- how it goes ------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Everything, one after the other; every place is looked at after each."""
        with running(self.daemon):
            self.daemon.start()
            until(lambda: self.daemon.ready()[0] == 200, f"ready: {self.daemon.ready()}")
            for part in (self._in_place, self._choose, self._conflict, self._fail, self._crash, self._refuse):
                part()
                self._look()
            self._look_by_commands()
        self._look_at_files()
        self._collect_secrets()

    def _in_place(self) -> None:
        self.daemon.ask_to_rotate(self.first.name)
        until((self.folder / "restarting").exists, "the restart has begun")
        self._look_at_processes()
        (self.folder / "looked").touch()
        self._ended(self.first, "succeeded")

    def _choose(self) -> None:
        self.daemon.ask_to_rotate(self.chosen.name)
        self._ended(self.chosen, "succeeded")

    def _conflict(self) -> None:
        """Somebody else writes the same fields while the answer is on its way."""
        self.site.platform.faults = Faults(latency_after=1.0, times=1)
        before = self.site.refreshes()
        self.daemon.ask_to_rotate(self.overwritten.name)
        until(lambda: self.site.refreshes() > before, "it is issued")
        self.secrets["somebody's"] = secrets.token_urlsafe(24)
        self.vault.write(self.overwritten.path, {"username": "me", "password": self.secrets["somebody's"]})
        self.daemon.ended(self.overwritten.name)

    def _fail(self) -> None:
        """The consumer does not come back."""
        self.daemon.ask_to_rotate(self.failing.name)
        until(lambda: self.daemon.log("step", key=self.failing.name, step="restart", result="failed"), "it fails")

    def _crash(self) -> None:
        """What no adapter foresees is raised inside the libraries: in the daemon, and in a command."""
        for where in ("requests", "httpx"):
            crash = self.folder / f"crash-{where}"
            crash.touch()
            self.daemon.ask_to_rotate(self.overwritten.name)
            self._wait_for_traceback(crash.name)
            self._see("/readyz", self.daemon.get("/readyz").content)
            if where == "requests":
                self._see("check --online, which crashes", self.daemon.said("check", "--online"))
            crash.unlink()

    def _wait_for_traceback(self, text: str) -> None:
        until(lambda: any(text in str(line.get("exception")) for line in self.daemon.log()), f"{text} is logged")

    def _refuse(self) -> None:
        """The login is refused, and what it hangs on is gone."""
        if self.login == "token file":
            self.vault.request("POST", "auth/token/revoke", {"token": self.secrets["Vault token"]})
        else:
            self.vault.request("DELETE", f"auth/approle/role/{self.site.policy}")
            self.vault.request("PUT", "sys/leases/revoke-prefix/auth/approle/login")
        self.daemon.ask_to_rotate(self.first.name)
        until(lambda: self.daemon.log(reason="vault_auth"), "the refusal is logged")
        self._see("check --online, refused", self.daemon.said("check", "--online"))

    def _ended(self, key: SiteKey, result: str) -> None:
        ended = self.daemon.ended(key.name)
        assert result == ended["result"], ended

    # --- what is seen -----------------------------------------------------------------------------------------------

    def _see(self, place: str, content: bytes) -> None:
        self.places[place] = self.places.get(place, b"") + b"\n" + content

    def _look(self) -> None:
        keys = (self.first, self.chosen, self.overwritten, self.failing)
        paths = ["/metrics", "/", "/livez", "/readyz", "/api/keys", "/api/rotations"]
        for path in [*paths, *(f"/api/keys/{key.name}" for key in keys)]:
            self._see(path, self.daemon.get(path).content)
        self._look_at_files()
        self._look_at_processes()

    def _look_by_commands(self) -> None:
        for command in (["status", "--json"], ["history"]):
            self._see(" ".join(command), self.daemon.said(*command))

    def _look_at_files(self) -> None:
        self._see("stdout, stderr and log", self.daemon.log_file.read_bytes())
        for file in self.daemon.state.rglob("*"):
            if file.is_file() and file.name != "seal.key":
                self._see(f"state/{file.relative_to(self.daemon.state)}", file.read_bytes())

    def _look_at_processes(self) -> None:
        for process, look in family_of(self.daemon.pid).items():
            whose = "the daemon" if process.pid == self.daemon.pid else "its children"
            self._see(f"cmdline of {whose}", look.cmdline)
            self._see(f"environ of {whose}", look.environ)

    def _collect_secrets(self) -> None:
        """What Vault has kept of each key, and what the daemon has sent and been sent."""
        for key in (self.first, self.chosen, self.overwritten, self.failing):
            newest, _ = self.vault.read(key.path)
            for version in range(1, newest + 1):
                data = self.vault.read(key.path, version)[1] or {}
                self.secrets[f"version {version} of {key.name}"] = str(data["password"])
        for number, line in enumerate((self.folder / "noted").read_text(encoding="utf-8").splitlines()):
            name, value = json.loads(line)
            self.secrets[f"{name} ({number})"] = value
