"""A booted systemd with the shipped `rotator.service` and a consumer that is a unit, and the story of one rotation.

Platform, broker, Vault and whoever looks are outside; the network is shared. Inside, everything is installed as
deploy/README.md says, with two differences that the place asks for: the virtual environment is bound to /opt/rotator
instead of made there, and a drop-in says where Python's library and the package lie and adds one credential.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import shlex
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from acceptance.world_inside import ROOT, Inside
from acceptance.world_outside import Guest, Line, Scrape, VaultReader, Version, answer_to, poll, scrape
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.processes import free_port
from rotator.sandbox.token_sink import events_topic
from rotator.sandbox.vault import VaultServer

EMAIL, ORGANIZATION, PATH = "operator@acme.example", "acme", "mqtt/building-a"
LIFETIME, BEFORE = timedelta(hours=1), timedelta(minutes=10)  # so it is due once, and not again in this test
# From when the key is made until it is due: time for the consumer and the daemon to start, on a slow machine as well.
DUE_AFTER_AT_LEAST, BOOTS = 9.0, 5.0
CLIENT_ID = "ingest-building-a"
KICK = f"Client {CLIENT_ID} been disconnected by administrative action."
CONNECT = re.compile(rf"New client connected from \S+ as {CLIENT_ID} \(.*u'(?P<user>[^']*)'\)\.")

# The interpreter may lie in a home that the unit hides, so it is shown under /opt, where an installed one is.
INSTALL = """
mkdir -p /opt/python /opt/rotator/bin /opt/rotator/lib /opt/src/rotator /etc/rotator/secrets /etc/polkit-1/rules.d
mount --bind "$BASE" /opt/python
mount --bind "$VENV/lib" /opt/rotator/lib
mount --bind "$ROOT/rotator" /opt/src/rotator
ln -s "/opt/python/bin/$PYTHON" /opt/rotator/bin/python
echo 'home = /opt/python/bin' >/opt/rotator/pyvenv.cfg
sed '1s|.*|#!/opt/rotator/bin/python|' "$VENV/bin/rotator" >/opt/rotator/bin/rotator
chmod 755 /opt/rotator/bin/rotator
systemd-sysusers "$ROOT/deploy/systemd/rotator.sysusers.conf"
install -Dm644 "$ROOT"/deploy/systemd/rotator.service -t /etc/systemd/system
install -Dm644 "$ROOT"/deploy/systemd/rotator.service.d/credentials.conf -t /etc/systemd/system/rotator.service.d
install -m644 "$ROOT"/deploy/systemd/50-rotator.rules -t /etc/polkit-1/rules.d
install -m600 secrets/vault-role-id secrets/vault-secret-id secrets/haltian-password secrets/observer-password \
  /etc/rotator/secrets
install -m644 rotator.yaml -t /etc/rotator
install -m644 test.conf -t /etc/systemd/system/rotator.service.d
install -m644 ingest.service -t /etc/systemd/system
systemctl daemon-reload
"""
DROP_IN = """\
[Service]
Environment=LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/src
LoadCredential=observer-password:/etc/rotator/secrets/observer-password
"""


class Surroundings:
    """Platform, broker and Vault outside, with one key, and the files that go inside."""

    def __init__(self, folder: Path, stack: ExitStack, due_in: timedelta) -> None:
        self.folder = folder
        self.broker = stack.enter_context(MosquittoBroker())
        self.platform = stack.enter_context(HaltianPlatform(sink=self.broker, lifetime=LIFETIME))
        self.vault = stack.enter_context(VaultServer())
        acme = self.platform.create_organization(ORGANIZATION)
        password = secrets.token_urlsafe(18)
        self.platform.create_user(EMAIL, password, acme)
        policies = ROOT / "deploy" / "vault"
        role_id, secret_id = self.vault.enable_approle((policies / "rotator-policy.hcl").read_text())
        reader = self.vault.create_token((policies / "consumer-policy.hcl").read_text(), name="consumer")
        self.secrets = {
            "vault-role-id": role_id,
            "vault-secret-id": secret_id,
            "haltian-password": password,
            "observer-password": self.broker.observer_password,
            "consumer-token": reader,
        }
        (folder / "secrets").mkdir(mode=0o700)
        for name, secret in self.secrets.items():
            (folder / "secrets" / name).touch(mode=0o600)
            (folder / "secrets" / name).write_text(secret + "\n")
        age = LIFETIME - BEFORE - due_in
        self.key_id, token = self.platform.add_key("building-a", acme, issued_ago=age)
        self.vault.write(PATH, {"username": self.key_id, "password": token}, cas=0)
        self.topic = events_topic(self.platform.integration_of(self.key_id), self.key_id)
        self.listen = f"127.0.0.1:{free_port()}"
        self.consumer_log = folder / "ingest.log"
        (folder / "rotator.yaml").write_text(self._configuration())
        (folder / "test.conf").write_text(DROP_IN)
        (folder / "ingest.service").write_text(self._consumer())

    def _configuration(self) -> str:
        """As in deploy/README.md, with what a test needs: short times, and the broker's observer."""
        at = f"host: {self.broker.host}, port: {self.broker.port}"
        observer = f"{at}, username: {self.broker.observer_username}, password: {{credential: observer-password}}"
        return f"""\
state:
  url: sqlite:///state/rotator.db
  seal: {{kind: file, path: state/seal.key}}
http: {{listen: "{self.listen}"}}
vault:
  url: {self.vault.url}
  mount: secret
  auth: {{method: approle, role_id: {{credential: vault-role-id}}, secret_id: {{credential: vault-secret-id}}}}
providers:
  haltian-eu:
    kind: haltian
    url: {self.platform.url}
    organization: {ORGANIZATION}
    email: {EMAIL}
    password: {{credential: haltian-password}}
consumers:
  ingest:
    kind: systemd
    unit: ingest.service
    settle: 1s
    timeout: 30s
    confirm: {{broker: {{{observer}, client_id: "ingest-*"}}}}
keys:
  building-a:
    provider: haltian-eu
    id: {self.key_id}
    rotate: {{before_expiry: {BEFORE.total_seconds():.0f}s}}
    vault: {{path: {PATH}, fields: {{username: "{{id}}", password: "{{secret}}"}}}}
    verify: {{{at}, subscribe: "{self.topic}/#"}}
    consumers: [ingest]
"""

    def _consumer(self) -> str:
        """The consumer's unit. systemd starts it anew by itself only after a while: the daemon is to be the first."""
        argv = ["/opt/rotator/bin/python", "-m", "rotator.sandbox.consumer", "--name", "ingest"]
        argv += ["--broker", f"{self.broker.host}:{self.broker.port}"]
        argv += ["--token-file", str(self.folder / "secrets" / "consumer-token")]
        argv += ["--secret", f"{PATH}={self.topic}/#"]
        return f"""\
[Unit]
Description=a consumer
[Service]
ExecStart={shlex.join(argv)}
Environment=LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/src VAULT_ADDR={self.vault.url}
StandardOutput=append:{self.consumer_log}
StandardError=append:{self.consumer_log}
Restart=on-failure
RestartSec=20s
"""


@dataclass(kw_only=True)
class Story:
    """What was seen of one rotation, and how the daemon ended."""

    unit_started: Mapping[str, str]  # rotator.service, as systemd tells it
    before: Mapping[str, str]  # ingest.service before and after
    after: Mapping[str, str]
    key_id: str
    first: Version
    current: Version
    first_answer_before: str
    first_answer: str
    current_answer: str
    published: int  # after the switch
    received: list[int]  # by the consumer, as it printed them
    printed_versions: list[int]
    broker_lines: list[Line] = field(repr=False)
    metrics_before: Scrape
    metrics: Scrape
    places: dict[str, bytes] = field(repr=False)
    secrets: dict[str, str] = field(repr=False)
    unit_stopped: Mapping[str, str]
    tell: str = field(repr=False)

    def kicked_at(self) -> float:
        """When the broker cut the consumer's old session off."""
        kicks = [line.at for line in self.broker_lines if line.text.endswith(KICK)]
        assert len(kicks) == 1, self.broker_lines
        return kicks[0]

    def connects(self) -> list[Line]:
        """The consumer's connects after that."""
        kicked = self.kicked_at()
        return [line for line in self.broker_lines if line.at > kicked and CONNECT.search(line.text)]

    def gap(self) -> float:
        """Seconds from the kick to the first connect with the new token, by the broker's log."""
        connects = self.connects()
        assert connects, self.broker_lines
        return connects[0].at - self.kicked_at()


class Teller:
    """Starts everything, watches one rotation, and stops the daemon."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        began = time.monotonic()
        self._inside = Inside(folder)
        stack.callback(self._inside.close)
        self._inside.run("systemctl is-system-running", may_fail=True)
        due_in = max(DUE_AFTER_AT_LEAST, BOOTS * (time.monotonic() - began))
        self._world = Surroundings(folder, stack, timedelta(seconds=due_in))
        self._vault = VaultReader(self._world.vault.url, self._world.vault.root_token)
        stack.callback(self._vault.close)
        self._broker = (self._world.broker.host, self._world.broker.port)
        self._metrics_url = f"http://{self._world.listen}/metrics"

    def story(self) -> Story:
        """From the boot to the daemon's orderly end."""
        world, inside = self._world, self._inside
        observer = (world.broker.observer_username, world.broker.observer_password)
        witness = self._stack.enter_context(Guest(*self._broker, observer, "$SYS/broker/log/#"))
        first = self._vault.read(PATH)
        first_answer_before = self._answer(first)
        inside.run(INSTALL)
        inside.run("systemctl start ingest.service")
        poll(lambda: self._versions() == [1], "the consumer on the first token", timeout=30, because=self.tell)
        before = inside.show("ingest.service", "MainPID", "NRestarts", "ActiveState")
        inside.run("systemctl start rotator.service || { journalctl --no-pager -o cat -u rotator; false; }")
        unit_started = inside.show(
            "rotator.service", "Type", "User", "ActiveState", "MainPID", "StatusText", "NRestarts"
        )
        metrics_before = poll(self._scrape, "the daemon's metrics", timeout=20, because=self.tell)

        poll(lambda: self._vault.read(PATH).number >= 2, "a version 2 in Vault", timeout=60, because=self.tell)
        current = self._vault.read(PATH)
        guest = self._stack.enter_context(Guest(*self._broker, (current.username, current.password), self._filter()))
        poll(lambda: self._versions()[-1] == 2, "the consumer on the new token", timeout=60, because=self.tell)
        poll(lambda: self._publish() in self._received(), "a message at the consumer", timeout=30, because=self.tell)
        metrics = self._settled()
        places, known = self._places(unit_started["MainPID"]), self._known()
        inside.run("systemctl stop rotator.service", timeout=120)
        return Story(
            unit_started=unit_started,
            before=before,
            after=inside.show("ingest.service", "MainPID", "NRestarts", "ActiveState"),
            key_id=world.key_id,
            first=first,
            current=current,
            first_answer_before=first_answer_before,
            first_answer=self._answer(first),
            current_answer=guest.answer,
            published=self._number,
            received=self._received(),
            printed_versions=self._versions(),
            broker_lines=witness.lines(),
            metrics_before=metrics_before,
            metrics=metrics,
            places={**places, "the daemon's log": inside.journal("rotator.service").encode()},
            secrets=known,
            unit_stopped=inside.show("rotator.service", "ActiveState", "Result", "ExecMainStatus"),
            tell=self.tell(),
        )

    def tell(self) -> str:
        """The ends of the daemon's log and of the consumer's output, for a failure's text."""
        daemon = self._inside.journal("rotator.service")[-5000:]
        consumer = self._world.consumer_log.read_text()[-1500:] if self._world.consumer_log.exists() else "(none)"
        return f"--- the daemon's log\n{daemon}\n--- the consumer's output\n{consumer}"

    _number = 0

    def _publish(self) -> int:
        """One more message to the key's topic; returns its number."""
        self._number += 1
        self._world.broker.publish(f"{self._world.topic}/temperature", json.dumps({"number": self._number}))
        time.sleep(0.05)  # the pace of publishing, not a wait for it: `poll` looks
        return self._number

    def _filter(self) -> str:
        return f"{self._world.topic}/#"

    def _consumer_text(self) -> str:
        file = self._world.consumer_log
        return file.read_text() if file.exists() else ""

    def _versions(self) -> list[int]:
        """The Vault versions that the consumer printed at its connects; 0 before the first."""
        return [int(number) for number in re.findall(r"\(Vault version (\d+)\)$", self._consumer_text(), re.M)] or [0]

    def _received(self) -> list[int]:
        return [int(number) for number in re.findall(r'"number": (\d+)', self._consumer_text())]

    def _scrape(self) -> Scrape | None:
        return scrape(self._metrics_url)

    def _settled(self) -> Scrape:
        """The scrape that shows the rotation ended; the last one, when none does."""
        deadline = time.monotonic() + 30
        while True:
            found = poll(self._scrape, "the daemon's metrics", timeout=20, because=self.tell)
            if found.total("rotator_rotations_total") or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def _answer(self, version: Version) -> str:
        return answer_to(*self._broker, (version.username, version.password), self._filter())

    def _known(self) -> dict[str, str]:
        passwords = {f"version {one.number}": one.password for one in self._vault.all(PATH)}
        return {**self._world.secrets, **passwords}

    def _places(self, daemon: str) -> dict[str, bytes]:
        """What the daemon shows while it runs."""
        script = {
            "the daemon's command line": f"tr '\\0' ' ' </proc/{daemon}/cmdline",
            "the daemon's environment": f"tr '\\0' '\\n' </proc/{daemon}/environ",
            "the journal": "cat /var/lib/rotator/state/rotator.db* | base64",
        }
        places = {name: self._inside.run(command).encode() for name, command in script.items()}
        places["the journal"] = base64.b64decode(places["the journal"])
        return {**places, "/metrics": poll(self._scrape, "the daemon's metrics", timeout=20).text.encode()}
