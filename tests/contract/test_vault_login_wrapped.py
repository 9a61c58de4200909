"""Response-wrapped secret ids, on a real server: unwrapped once, kept sealed, and an alarm when somebody was faster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from contract.bao_server import ROOT_TOKEN, Bao
from contract.vault_login_methods import Place
from contract.vault_login_stage import MemoryKeep, Role, Stage, is_wrapped, revoke_all, role, unwrap, wrapped
from contract.vault_replay import Exchange, VaultReplay, recorded
from integration.broker_fixture import until
from rotator.errors import JournalFailed, Permanent, RotatorError, Transient
from rotator.model import Credential
from rotator.reasons import Reason
from rotator.stores import VaultStore
from rotator.stores.vault_wrapped import Keep, StillWrapped, WrappedAppRoleAuth

LOOKUP = "/v1/sys/wrapping/lookup"


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Stores, and what they asked."""
    made = Stage()
    yield made
    made.close()


@pytest.fixture
def path() -> str:
    """A path that no other test uses."""
    return f"mqtt/{uuid4()}"


def login(made: Role, place: Callable[[], str], keep: Keep, *, unwraps: bool = True) -> WrappedAppRoleAuth:
    """The login of a process."""
    return WrappedAppRoleAuth(
        role_id=lambda: made.role_id, wrapping_token=place, keep=keep, unwraps=unwraps, mount=made.mount
    )


def alarm(verb: Callable[[], object], *secrets: str) -> str:
    """What the alarm says, without any of the secrets."""
    with pytest.raises(Permanent) as caught:
        verb()
    assert Reason.VAULT_WRAPPING_TOKEN_USED is caught.value.reason
    for secret in secrets:
        assert secret not in f"{caught.value!r} {caught.value}"
    return caught.value.message


def kept_secret_id(keep: MemoryKeep) -> str:
    assert keep.content is not None
    return str(json.loads(keep.content)["secret_id"])


# --- unwrapped and kept ---------------------------------------------------------------------------------------------


def test_it_is_unwrapped_once_and_kept(bao: Bao, stage: Stage, path: str) -> None:
    """The next process logs in with what is kept; the used token in the file is no alarm."""
    made, keep = role(bao), MemoryKeep()
    place = Place(made.wrapped())
    stage.store(bao.url, auth=login(made, place, keep)).read(path)
    assert [("wrapping_lookup", "200"), ("unwrap", "200"), ("login", "200"), ("read", "404")] == stage.asked()
    assert not is_wrapped(bao, place.content)
    stage.done.clear()
    again = stage.store(bao.url, auth=login(made, place, keep))
    again.ready()
    again.read(path)
    assert [("health", "200"), ("login", "200"), ("read", "404")] == stage.asked()


def test_the_file_may_go_once_it_has_served(bao: Bao, stage: Stage, tmp_path: Path) -> None:
    """What is kept is enough; with nothing kept, the missing file is named."""
    made, keep, file = role(bao), MemoryKeep(), tmp_path / "token"
    file.write_text(made.wrapped())

    def place() -> str:
        try:
            return file.read_text()
        except FileNotFoundError as exc:
            raise Permanent("there is no such file", reason=Reason.SECRET_REFERENCE) from exc

    stage.store(bao.url, auth=login(made, place, keep)).ready()
    file.unlink()
    stage.store(bao.url, auth=login(made, place, keep)).ready()
    with pytest.raises(Permanent) as caught:
        stage.store(bao.url, auth=login(made, place, MemoryKeep())).ready()
    assert Reason.SECRET_REFERENCE is caught.value.reason


def test_sixteen_threads_unwrap_once(bao: Bao, stage: Stage, path: str) -> None:
    """The second one would find the token used, by ourselves."""
    made, keep = role(bao), MemoryKeep()
    place = Place(made.wrapped())
    store = stage.store(bao.url, auth=login(made, place, keep))
    verbs: Sequence[Callable[[], object]] = [store.ready, lambda: store.read(path)] * 8
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda verb: verb(), verbs))
    assert [("unwrap", "200"), ("login", "200")] == stage.asked("unwrap", "login")


def test_its_end_is_told(bao: Bao, stage: Stage) -> None:
    """From its creation on, as long as the role's secret ids live; one that never ends has no end; none has none."""
    made, keep = role(bao, secret_id_ttl="90m"), MemoryKeep()
    store = stage.store(bao.url, auth=login(made, Place(made.wrapped()), keep))
    assert [] == list(store.credentials())
    store.ready()
    (credential,) = store.credentials()
    assert "secret-id" == credential.name
    assert credential.expires_at is not None
    assert timedelta(minutes=89) < credential.expires_at - stage.clock.now() <= timedelta(minutes=90)
    endless = role(bao)
    other = stage.store(bao.url, auth=login(endless, Place(endless.wrapped()), MemoryKeep()))
    other.ready()
    assert [Credential(name="secret-id", expires_at=None)] == list(other.credentials())
    assert [] == list(stage.store(bao.url).credentials())


def test_a_new_wrapping_token_replaces_the_kept_secret_id(bao: Bao, stage: Stage) -> None:
    """It is taken up at the next look, long before the next login, since it lives for minutes."""
    made, keep = role(bao), MemoryKeep()
    place = Place(made.wrapped())
    store = stage.store(bao.url, auth=login(made, place, keep))
    store.ready()
    first = kept_secret_id(keep)
    place.content = made.wrapped()
    stage.done.clear()
    store.ready()
    assert [("wrapping_lookup", "200"), ("unwrap", "200")] == stage.asked("wrapping_lookup", "unwrap", "login")
    assert first != kept_secret_id(keep)
    bao.must("POST", f"auth/approle/role/{made.name}/secret-id/destroy", {"secret_id": first})
    stage.clock.ahead += 3600
    store.ready()
    assert ("login", "200") in stage.asked()


def test_a_secret_id_that_is_used_up_says_what_to_do(bao: Bao, stage: Stage) -> None:
    """VAULT_AUTH, since nothing was stolen; a new wrapping token mends it."""
    made, keep = role(bao, secret_id_num_uses=1), MemoryKeep()
    place = Place(made.wrapped())
    stage.store(bao.url, auth=login(made, place, keep)).ready()
    with pytest.raises(Permanent, match="used up, expired or destroyed: make another secret id, wrapped") as caught:
        stage.store(bao.url, auth=login(made, place, keep)).ready()
    assert Reason.VAULT_AUTH is caught.value.reason
    place.content = made.wrapped()
    stage.store(bao.url, auth=login(made, place, keep)).ready()


def test_a_secret_id_whose_end_has_come_is_named_with_it(bao: Bao, stage: Stage) -> None:
    """What was known of its life stands in the refusal."""
    made, keep = role(bao, secret_id_ttl="1s"), MemoryKeep()
    place = Place(made.wrapped())
    stage.store(bao.url, auth=login(made, place, keep)).ready()
    body = {"secret_id": kept_secret_id(keep)}
    until(lambda: bao.api("POST", f"auth/approle/role/{made.name}/secret-id/lookup", body)[0] != 200, "its end")
    with pytest.raises(Permanent, match=r"\(it ended at 20") as caught:
        stage.store(bao.url, auth=login(made, place, keep)).ready()
    assert Reason.VAULT_AUTH is caught.value.reason


# --- somebody was faster --------------------------------------------------------------------------------------------


def test_a_stolen_one_is_an_alarm(bao: Bao, stage: Stage) -> None:
    """Every verb raises it, again and again; nothing is unwrapped, nobody logs in."""
    made, keep = role(bao), MemoryKeep()
    place = Place(made.wrapped())
    assert 200 == unwrap(bao, place.content)
    store = stage.store(bao.url, auth=login(made, place, keep))
    for verb in (store.ready, store.renew, lambda: store.read("mqtt/x"), lambda: store.preflight("mqtt/x")):
        said = alarm(verb, place.content)
        assert "somebody used it before us, or it expired unused, and it is none that our journal knows of" in said
    assert {("wrapping_lookup", "400")} == set(stage.asked("wrapping_lookup", "unwrap", "login"))
    assert keep.content is None


def test_an_expired_one_is_taken_for_stolen(bao: Bao, stage: Stage) -> None:
    """Nothing tells the two apart afterwards, but for the file's own age, which is said."""
    made = role(bao)
    token = made.wrapped(ttl="1s")
    until(lambda: not is_wrapped(bao, token), "its end")
    auth = WrappedAppRoleAuth(
        role_id=lambda: made.role_id,
        wrapping_token=lambda: token,
        keep=MemoryKeep(),
        unwraps=True,
        written=lambda: stage.clock.now() - timedelta(days=2),
    )
    said = alarm(stage.store(bao.url, auth=auth).ready, token)
    assert f"written there {(stage.clock.now() - timedelta(days=2)).date()}T" in said


def test_one_that_was_seen_alive_is_known_to_be_used(bao: Bao, stage: Stage) -> None:
    """A look that came to nothing tells later that it can't have expired yet."""
    made, keep = role(bao), MemoryKeep()
    place = Place(made.wrapped())
    keep.fault = JournalFailed("the disk is full", reason=Reason.JOURNAL_UNWRITABLE)
    store = stage.store(bao.url, auth=login(made, place, keep))
    with pytest.raises(JournalFailed):
        store.ready()
    keep.fault = None
    assert 200 == unwrap(bao, place.content)
    assert "it was good when we last looked, and would have been until" in alarm(store.ready, place.content)


@pytest.mark.parametrize("where", ["sys/wrapping/wrap", "auth/other/role/{name}/secret-id", "auth/token/create"])
def test_one_that_was_made_elsewhere_is_not_unwrapped(bao: Bao, stage: Stage, where: str) -> None:
    """Somebody put it in the place of ours: it is left as it is, for who wants to know more."""
    made, other = role(bao), role(bao, mount="other")
    body = json.dumps({"secret_id": other.secret_id()} if where == "sys/wrapping/wrap" else {}).encode()
    place = Place(wrapped(bao, where.format(name=other.name), body))
    said = alarm(stage.store(bao.url, auth=login(made, place, MemoryKeep())).ready, place.content)
    assert repr(where.format(name=other.name)) in said
    assert [("wrapping_lookup", "200"), ("unwrap", "refused")] == stage.asked("wrapping_lookup", "unwrap", "login")
    assert is_wrapped(bao, place.content)


def test_an_alarm_does_not_stop_what_works(bao: Bao, stage: Stage, path: str) -> None:
    """A stolen new one is told at each look; logins go on with the kept secret id."""
    made, keep = role(bao), MemoryKeep()
    place = Place(made.wrapped())
    store = stage.store(bao.url, auth=login(made, place, keep))
    store.ready()
    place.content = made.wrapped()
    assert 200 == unwrap(bao, place.content)
    alarm(store.ready, place.content)
    assert 0 == store.read(path).version
    assert 1 <= revoke_all(bao, "auth/approle/login")
    assert 0 == store.read(path).version
    alarm(store.ready, place.content)
    restarted = stage.store(bao.url, auth=login(made, place, keep))
    assert 0 == restarted.read(path).version


# --- cut off --------------------------------------------------------------------------------------------------------


def replayed(vault: VaultReplay, keep: Keep, stage: Stage, *more: str) -> VaultStore:
    """A store whose wrapping token is the recorded one."""
    auth = WrappedAppRoleAuth(role_id=lambda: "r", wrapping_token=lambda: "s.recorded", keep=keep, unwraps=True)
    return stage.store(vault.url, *more, auth=auth)


def looked_up() -> Exchange:
    """What a lookup of the recorded wrapping answers."""
    answer = recorded("response-wrapped secret id").answer
    assert isinstance(answer, dict)
    wrap = answer["wrap_info"]
    data = {"creation_path": wrap["creation_path"], "creation_time": wrap["creation_time"], "creation_ttl": wrap["ttl"]}
    return Exchange(method="POST", path=LOOKUP, body={"token": "s.recorded"}, answer={"data": data})


GONE = {"errors": ["wrapping token is not valid or does not exist"]}
READ = Exchange(method="GET", path="/v1/secret/data/mqtt/b", status=404, answer={"errors": []})


def test_vaults_own_answers(stage: Stage) -> None:
    """As recorded at a Vault 1.8: unwrapped with the token as our own, then the login with what it held."""
    keep, entered = MemoryKeep(), recorded("approle login")
    login_ = Exchange(method="POST", path="/v1/auth/approle/login", answer=entered.answer)
    with VaultReplay(looked_up(), recorded("unwrap"), login_, READ) as vault:
        replayed(vault, keep, stage).read("mqtt/b")
        assert [None, "s.recorded", None, "<opaque-2>"] == vault.tokens
    assert "<opaque-34>" == kept_secret_id(keep)


def test_somebody_was_here_between_our_look_and_our_unwrapping(stage: Stage) -> None:
    """Recorded at a Vault 1.8; no doubt is left."""
    with VaultReplay(looked_up(), recorded("unwrap twice: somebody was here before you")) as vault:
        said = alarm(lambda: replayed(vault, MemoryKeep(), stage).read("mqtt/b"), "s.recorded")
    assert "it was good a moment ago" in said


def test_an_answer_that_was_lost_is_not_called_theft(stage: Stage) -> None:
    """The unwrapping may have happened: it is sent to no other address, and the next process knows of it."""
    keep = MemoryKeep()
    cut = Exchange(method="POST", path="/v1/sys/wrapping/unwrap", cut=True)
    gone = Exchange(method="POST", path=LOOKUP, status=400, answer=GONE)
    with VaultReplay(looked_up(), cut, gone) as vault, VaultReplay() as other:
        with pytest.raises(Transient):
            replayed(vault, keep, stage, other.url).read("mqtt/b")
        said = alarm(lambda: replayed(vault, keep, stage).read("mqtt/b"), "s.recorded")
    assert "our own unwrapping of it was cut off before its answer came" in said


def test_what_can_not_be_kept_is_not_unwrapped(bao: Bao, stage: Stage) -> None:
    """The journal fails before: the token stays good. After: the secret id is used, and kept later."""
    made, keep = role(bao), MemoryKeep()
    place = Place(made.wrapped())
    keep.fault = JournalFailed("the disk is full", reason=Reason.JOURNAL_UNWRITABLE)
    store = stage.store(bao.url, auth=login(made, place, keep))
    with pytest.raises(JournalFailed):
        store.ready()
    assert is_wrapped(bao, place.content)

    class FailsSecond(MemoryKeep):
        def save(self, content: bytes) -> None:
            self.fault = JournalFailed("full", reason=Reason.JOURNAL_UNWRITABLE) if self.saved == 1 else None
            self.saved += self.fault is not None
            super().save(content)

    later = FailsSecond()
    store = stage.store(bao.url, auth=login(made, place, later))
    with capture_logs() as logs:
        store.ready()
    assert ["vault_secret_id_not_kept"] == [each["event"] for each in logs if each["log_level"] == "error"]
    store.ready()
    assert kept_secret_id(later)
    stage.store(bao.url, auth=login(made, place, later)).ready()


# --- who may unwrap -------------------------------------------------------------------------------------------------


def test_a_process_without_the_lock_never_unwraps(bao: Bao, stage: Stage, path: str) -> None:
    """It says that it is still wrapped, and whether it is good; with something kept, it logs in."""
    made, keep = role(bao), MemoryKeep()
    place = Place(made.wrapped())
    asking = stage.store(bao.url, auth=login(made, place, keep, unwraps=False))
    for verb in (asking.ready, lambda: asking.read(path), lambda: asking.preflight(path)):
        with pytest.raises(StillWrapped, match="still wrapped, and good until 20"):
            verb()
    assert is_wrapped(bao, place.content)
    stage.store(bao.url, auth=login(made, place, keep)).ready()
    asking.ready()
    place.content = made.wrapped()
    asking.ready()
    assert 0 == asking.read(path).version
    assert is_wrapped(bao, place.content)
    assert 200 == unwrap(bao, place.content)
    alarm(asking.ready, place.content)


def test_only_errors_of_ours(bao: Bao, stage: Stage) -> None:
    """What is no wrapping token at all is named as one that is gone; what can't stand in a header, as that."""
    made = role(bao)
    for content, reason in ((ROOT_TOKEN, Reason.VAULT_WRAPPING_TOKEN_USED), ("a b", Reason.VAULT_AUTH)):
        place = Place(content)
        with pytest.raises(RotatorError) as caught:
            stage.store(bao.url, auth=login(made, place, MemoryKeep())).ready()
        assert reason is caught.value.reason
