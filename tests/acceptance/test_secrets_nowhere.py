"""No secret is shown anywhere: a daemon at DEBUG, whatever happens to it, looked at from everywhere (rule 6)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from acceptance.nowhere_scene import LOGINS, Scene
from nowhere_hunt import forms, hunt
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.vault import VaultServer

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.long,
    pytest.mark.timeout(300),
]  # the daemon, and commands, for each login
# Where a name that is no secret must be seen; in the others nothing of the daemon's is said while all is well.
TELLING = {
    "stdout, stderr and log", "/metrics", "/", "/api/keys", "/api/rotations", "status --json", "history",
    "check --online, which crashes", "state/rotator.db", "state/rotator.db-wal",
    "cmdline of the daemon", "environ of the daemon", "cmdline of its children", "environ of its children",
}  # fmt: skip
OTHERS = {"/livez", "/readyz", "check --online, refused", "state/rotator.db-shm"}
# What only an answer of Vault tells, by login.
BROUGHT = {
    "token file": "a Vault token that was sent",
    "approle": "client_token of an answer",
    "approle, wrapped": "secret_id of an answer",
}


@pytest.fixture(scope="module", params=LOGINS)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A daemon that has gone through everything, and has ended."""
    with VaultServer() as vault, MosquittoBroker() as broker:
        made = Scene(tmp_path_factory.mktemp("nowhere"), vault, broker, request.param)
        try:
            made.play()
            yield made
        finally:
            made.site.close()


def test_no_secret_is_seen_anywhere(scene: Scene) -> None:
    """Neither given nor made, neither old nor new, in no form."""
    assert [] == hunt(scene.places, scene.secrets)


def test_every_secret_is_hunted(scene: Scene) -> None:
    """Those that nobody outside could know as well; and everything has happened that this is about."""
    names = [name for name in scene.secrets if len(scene.secrets[name]) >= 8]
    assert len(names) == len(scene.secrets)
    assert any(name.startswith(BROUGHT[scene.login]) for name in names), names
    assert any(name.startswith("a token that a provider was shown") for name in names), names
    assert 3 <= sum(name.startswith("version ") and "building-b" in name for name in names), names
    log = scene.places["stdout, stderr and log"]
    for word in (b'"succeeded"', b'"failed"', b"conflict_", b"vault_auth", b"crash-requests", b"crash-httpx"):
        assert word in log, word
    assert b'"level": "debug"' in log


def test_the_hunt_finds_what_is_there(scene: Scene) -> None:
    """A name of no secret is found at every place that could tell one; and a planted secret in each form at each."""
    seen = {found.rpartition(" in ")[2] for found in hunt(scene.places, {"the name": scene.name})}
    assert set() == TELLING - seen
    assert set() == (TELLING | OTHERS) - scene.places.keys()
    planted = scene.secrets["password of haltian"]
    for place, content in scene.places.items():
        middle = len(content) // 2
        for form, text in forms(planted).items():
            found = hunt({place: content[:middle] + text + content[middle:]}, {"it": planted})
            assert f"it ({form}) in {place}" in found
