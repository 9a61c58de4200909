"""A wrapped secret id in the whole program: the daemon's journal, the commands beside it, the seal."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from contract.bao_server import Bao
from contract.vault_login_stage import is_wrapped, role, unwrap
from rotator.app import build, hold_journal, make_store
from rotator.clock import SystemClock
from rotator.journal.backup import back_up
from rotator.kept_secret_id import KeptSecretIdReader
from rotator.online import check_online
from rotator.reasons import Reason
from rotator.sealing import rotate_key
from rotator.settings import Settings, load
from rotator.stores import VaultStore
from rotator.stores.vault_wrapped import StillWrapped


@pytest.fixture
def settings(bao: Bao, tmp_path: Path) -> Settings:
    """A configuration with a wrapping token in a file, and a journal that is not there yet."""
    made, token = role(bao), tmp_path / "wrapping-token"
    token.touch(0o600)
    token.write_text(made.wrapped())
    config = tmp_path / "rotator.yaml"
    config.write_text(
        f"vault:\n  url: {bao.url}\n"
        f"  auth: {{method: approle, role_id: {made.role_id}, secret_id: {{file: {token}}}, wrapped: true}}\n"
        f"state:\n  url: sqlite:///{tmp_path}/state/rotator.db\n"
        f"  seal: {{kind: file, path: {tmp_path}/keys/seal.key}}\n"
        "http: {listen: '127.0.0.1:0'}\n"
    )
    (tmp_path / "state").mkdir()
    return load(config, {})


def asked_online(settings: Settings) -> tuple[bool, str]:
    (vault,) = [each for each in check_online(settings) if each["what"] == "vault"]
    return vault["ok"], vault["detail"]


def test_the_daemon_keeps_it_sealed_in_its_journal(bao: Bao, settings: Settings, tmp_path: Path) -> None:
    """`check --online` before it leaves it wrapped, and after it uses what is kept; nothing lies there in clear."""
    token = (tmp_path / "wrapping-token").read_text()
    ok, detail = asked_online(settings)
    assert ok
    assert "not tried: vault: the secret id is still wrapped, and good until" in detail
    assert is_wrapped(bao, token)
    for _ in range(2):  # the second one is a restart
        with ExitStack() as stack:
            app = build(settings, stack)
            app.watcher.keep_vault_login()
            assert app.watcher.health()["vault"].reason is None
            in_use = list((tmp_path / "state").iterdir())
            content = b"".join(each.read_bytes() for each in in_use if each.is_file())
    assert not is_wrapped(bao, token)
    assert (True, "reachable, unsealed, login accepted") == asked_online(settings)
    content += b"".join(each.read_bytes() for each in (tmp_path / "state").iterdir() if each.is_file())
    for secret in (token, loaded(settings)):
        assert secret.encode() not in content


def loaded(settings: Settings) -> str:
    """The secret id, as the seal gives it."""
    content = KeptSecretIdReader(settings=settings).load()
    assert content is not None
    return str(json.loads(content)["secret_id"])


def test_commands_without_the_lock_read_what_is_kept(bao: Bao, settings: Settings) -> None:
    """`discover` and its like; a stolen token is an alarm for them as well."""
    store = make_store(settings, lambda _done: None, SystemClock())
    with pytest.raises(StillWrapped):
        store.read("mqtt/a")
    with ExitStack() as stack:
        build(settings, stack).watcher.keep_vault_login()
        store.read("mqtt/a")
    store.close()


def test_a_stolen_one_is_the_peers_reason(bao: Bao, settings: Settings, tmp_path: Path) -> None:
    """What /readyz and `check --online` say."""
    assert 200 == unwrap(bao, (tmp_path / "wrapping-token").read_text())
    with ExitStack() as stack:
        app = build(settings, stack)
        app.watcher.keep_vault_login()
        assert Reason.VAULT_WRAPPING_TOKEN_USED is app.watcher.health()["vault"].reason
    ok, detail = asked_online(settings)
    assert not ok
    assert "written there 20" in detail
    assert "Destroy that secret id" in detail


def test_the_kept_secret_id_follows_the_seal(bao: Bao, settings: Settings, tmp_path: Path) -> None:
    """It opens with a new key, and in a backup; where the key is lost, it is gone and a new wrapping is needed."""
    with ExitStack() as stack:
        build(settings, stack).watcher.keep_vault_login()
    before = loaded(settings)
    with ExitStack() as stack:
        journal = hold_journal(settings, stack)
        rotated = rotate_key(settings.state.seal, journal, never)
        assert rotated.old != rotated.new
        assert rotated.rewrapped >= 1
    assert before == loaded(settings)
    back_up(settings.state.path, tmp_path / "copy.db")
    copy = settings.state.model_copy(update={"url": f"sqlite:///{tmp_path}/copy.db"})
    assert before == loaded(settings.model_copy(update={"state": copy}))
    (tmp_path / "keys" / "seal.key").unlink()
    with ExitStack() as stack, capture_logs() as logs:
        app = build(settings, stack)
        app.watcher.keep_vault_login()
        assert Reason.VAULT_WRAPPING_TOKEN_USED is app.watcher.health()["vault"].reason
        assert app.journal.fact("vault_secret_id") is None
    assert "kept_secret_id_lost" in {each["event"] for each in logs}


def never() -> VaultStore:
    raise AssertionError("a key file asks nobody")
