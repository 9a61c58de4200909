"""How the daemon logs in at Vault, on a real server: every method, its renewals, its refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from contract.bao_server import ROOT_TOKEN, Bao
from contract.vault_login_methods import METHODS, Case, Issuer, Place, Servers, approle, cert, jwt, kubernetes
from contract.vault_login_stage import Stage, TlsVault, client_certificate, revoke_all, role
from integration.broker_fixture import until
from integration.token_review import Account, Reviewer
from rotator.errors import Permanent, RotatorError, Transient
from rotator.reasons import Reason
from rotator.stores.vault_auth import AppRoleAuth, CertAuth, TokenAuth

Make = Callable[..., Case]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Stores, and what they asked."""
    made = Stage()
    yield made
    made.close()


@pytest.fixture(scope="module")
def servers(bao: Bao, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers that the methods need."""
    tls = TlsVault(tmp_path_factory.mktemp("tls"))
    with Reviewer([Account(namespace="iot", name="rotator")]) as cluster:
        try:
            tls.start()
            yield Servers(bao=bao, tls=tls, cluster=cluster)
        finally:
            tls.stop()


@pytest.fixture(params=METHODS)
def make(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Make:
    """Makes a working login of each method."""
    return lambda ttl="1h", max_ttl="2h": METHODS[request.param](servers, tmp_path, ttl, max_ttl)


@pytest.fixture
def path() -> str:
    """A path that no other test uses."""
    return f"mqtt/{uuid4()}"


# --- every method that can log in again by itself -------------------------------------------------------------------


def test_one_login_for_all_threads(make: Make, stage: Stage, path: str) -> None:
    """Sixteen threads that start together share one token, and it is good for what its policy allows."""
    case = make()
    store = stage.store(case.url, auth=case.auth, **case.more)
    with ThreadPoolExecutor(16) as pool:
        assert [0] * 32 == [each.version for each in pool.map(lambda number: store.read(f"{path}/{number}"), range(32))]
    assert [("login", "200")] == stage.asked("login")


def test_a_revoked_token_is_replaced(make: Make, stage: Stage, path: str) -> None:
    """A 403 is looked into, and the request made once more with a fresh token."""
    case = make()
    store = stage.store(case.url, auth=case.auth, **case.more)
    store.read(path)
    assert revoke_all(case.server, case.path) > 0
    stage.done.clear()
    assert 0 == store.read(path).version
    assert [("read", "403"), ("lookup", "403"), ("login", "200"), ("read", "404")] == stage.asked()


def test_a_policy_that_forbids_spends_no_login(make: Make, stage: Stage) -> None:
    """A living young token that is refused is a denial."""
    case = make()
    store = stage.store(case.url, auth=case.auth, **case.more)
    with pytest.raises(Permanent) as caught:
        store.read("elsewhere/x")
    assert Reason.VAULT_DENIED is caught.value.reason
    assert [("login", "200"), ("read", "403"), ("lookup", "200")] == stage.asked("login", "read", "lookup")


def test_it_is_renewed_until_max_ttl_and_then_made_anew(make: Make, stage: Stage, path: str) -> None:
    """Where max_ttl leaves less than half a lease there is a new token, while the old one still works."""
    case = make("2s", "3s")
    store = stage.store(case.url, auth=case.auth, **case.more)
    store.read(path)

    def renewed() -> bool:
        ends = store.renew()
        assert ends is not None
        assert ends > stage.clock.now()
        return len(stage.asked("login")) > 1

    until(renewed, "a second login")
    assert ("renew", "200") in stage.asked("renew")
    assert [("login", "200")] * 2 == stage.asked("login")
    store.read(path)
    assert "403" not in {code for _operation, code in stage.asked()}


def test_it_is_renewed_once_a_third_of_its_life_is_gone(make: Make, stage: Stage) -> None:
    """Before that it is looked up, which writes nothing at Vault."""
    case = make("30s", "1h")
    store = stage.store(case.url, auth=case.auth, **case.more)
    for _ in range(2):
        assert store.renew() is not None
    assert [("lookup", "200")] * 2 == stage.asked("lookup", "renew")
    stage.clock.ahead += 11
    ends = store.renew()
    assert ends is not None
    assert ends - stage.clock.now() > timedelta(seconds=25)
    assert [("lookup", "200")] * 2 + [("renew", "200")] == stage.asked("lookup", "renew")
    assert store.renew() is not None
    assert ("lookup", "200") == stage.asked("lookup", "renew")[-1]


def test_a_revoked_token_is_found_at_the_next_look(make: Make, stage: Stage) -> None:
    """However young it is: another login follows."""
    case = make("1h", "2h")
    store = stage.store(case.url, auth=case.auth, **case.more)
    assert store.renew() is not None
    assert revoke_all(case.server, case.path) > 0
    assert store.renew() is not None
    assert 2 == len(stage.asked("login"))


def test_short_tokens_are_long_enough(make: Make, stage: Stage, path: str) -> None:
    """Preflight passes for a rotation that lasts longer than a lease, since a login follows whenever one ends."""
    case = make("20s", "40s")
    store = stage.store(case.url, auth=case.auth, **case.more)
    store.preflight(path, lasting=timedelta(hours=1))
    assert [("login", "200")] == stage.asked("login")
    stage.clock.ahead += 11
    store.preflight(path, lasting=timedelta(hours=1))
    assert [("login", "200")] * 2 == stage.asked("login")


def test_the_end_of_the_token_is_told(make: Make, stage: Stage) -> None:
    """A lease from now, for the metric."""
    case = make("1h", "2h")
    ends = stage.store(case.url, auth=case.auth, **case.more).renew()
    assert ends is not None
    assert timedelta(minutes=59) < ends - stage.clock.now() <= timedelta(hours=1)


def test_a_refused_login_shows_nothing(
    make: Make, stage: Stage, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb says VAULT_AUTH; neither errors, reprs nor logs hold what was sent."""
    caplog.set_level(logging.DEBUG)
    case = make()
    stage.store(case.url, auth=case.auth, **case.more).ready()
    secrets = case.secrets()
    case.spoil()
    store = stage.store(case.url, auth=case.auth, **case.more)
    shown = repr(store) + repr(case.auth)
    for verb in (store.ready, store.renew, lambda: store.read("mqtt/x"), lambda: store.preflight("mqtt/x")):
        with pytest.raises(Permanent) as caught:
            verb()
        assert Reason.VAULT_AUTH is caught.value.reason
        shown += f"{caught.value!r} {caught.value}"
    shown += caplog.text + "".join(capsys.readouterr())
    for secret in secrets + case.secrets():
        assert secret not in shown


def test_a_login_and_a_renewal_fail_over(make: Make, stage: Stage) -> None:
    """With the first address dead, the second gives and renews the token."""
    case = make("20s", "1h")
    dead = case.url.replace(case.url.rsplit(":", 1)[1], "9")
    store = stage.store(dead, case.url, auth=case.auth, **case.more)
    assert store.renew() is not None
    stage.clock.ahead += 7
    assert store.renew() is not None
    assert [("login", "200"), ("renew", "200")] == [each for each in stage.asked("login", "renew") if each[1] == "200"]


# --- what is particular to one ---------------------------------------------------------------------------------------


def test_a_secret_id_that_is_used_up(bao: Bao, stage: Stage) -> None:
    """The refusal says what to do, in our words beside Vault's."""
    made = role(bao, secret_id_num_uses=1)
    secret_id = made.secret_id()
    auth = AppRoleAuth(role_id=lambda: made.role_id, secret_id=lambda: secret_id)
    stage.store(bao.url, auth=auth).ready()
    with pytest.raises(Permanent, match="used up, expired or destroyed has to be replaced") as caught:
        stage.store(bao.url, auth=auth).ready()
    assert Reason.VAULT_AUTH is caught.value.reason


def test_a_refused_secret_id_does_not_lock_the_role(servers: Servers, stage: Stage, tmp_path: Path) -> None:
    """Five refusals, and the server would refuse the right one as well: the same one is tried seldom."""
    case = approle(servers, tmp_path, "1h", "2h")
    assert isinstance(case.auth, AppRoleAuth)
    place = case.auth.secret_id
    assert isinstance(place, Place)
    good = place.content
    case.spoil()
    store = stage.store(case.url, auth=case.auth)
    for _ in range(10):
        with pytest.raises(Permanent) as caught:
            store.renew()
        assert Reason.VAULT_AUTH is caught.value.reason
    assert "lest Vault lock the role" in caught.value.message
    assert [("login", "400")] * 3 + [("login", "held")] * 7 == stage.asked("login")
    stage.clock.ahead += 16 * 60
    with pytest.raises(Permanent, match="HTTP 400"):
        store.renew()
    with pytest.raises(Permanent, match="not tried again with the same secret id for 9"):
        store.renew()
    assert [("login", "400"), ("login", "held")] == stage.asked("login")[-2:]
    place.content = good
    store.ready()


def test_a_replaced_secret_id_is_used_at_the_next_login(servers: Servers, stage: Stage, tmp_path: Path) -> None:
    """A refused login reads its file again the next time."""
    case = approle(servers, tmp_path, "1h", "2h")
    assert isinstance(case.auth, AppRoleAuth)
    place = case.auth.secret_id
    assert isinstance(place, Place)
    good = place.content
    case.spoil()
    store = stage.store(case.url, auth=case.auth)
    with pytest.raises(Permanent):
        store.ready()
    place.content = good
    store.ready()


def test_the_kubelet_rotates_the_token(servers: Servers, stage: Stage, tmp_path: Path) -> None:
    """Each login reads the file: the token of an account that the cluster forgot is not used again."""
    case = kubernetes(servers, tmp_path, "1h", "2h")
    store = stage.store(case.url, auth=case.auth)
    store.ready()
    case.spoil()
    stage.clock.ahead += 3600
    with pytest.raises(Permanent) as caught:
        store.ready()
    assert Reason.VAULT_AUTH is caught.value.reason
    assert "login at auth/kubernetes" in caught.value.message


def test_an_expired_jwt_is_replaced_by_the_next(servers: Servers, stage: Stage, tmp_path: Path) -> None:
    """Refused while it is old, let in as soon as there is another one."""
    case = jwt(servers, tmp_path, "1h", "2h")
    (old,) = case.secrets()
    case.spoil()
    store = stage.store(case.url, auth=case.auth)
    with pytest.raises(Permanent, match="expired"):
        store.ready()
    place = getattr(case.auth, "jwt", None)
    assert isinstance(place, Place)
    place.content = old
    store.ready()
    place.content = Issuer().jwt()  # of somebody else
    with pytest.raises(Permanent):
        stage.store(case.url, auth=case.auth).ready()


def test_a_certificate_without_a_role_finds_its_own(servers: Servers, stage: Stage, tmp_path: Path) -> None:
    """`role` is optional; another certificate is refused, and so is none."""
    case = cert(servers, tmp_path, "1h", "2h")
    stage.store(case.url, auth=CertAuth(), **case.more).ready()
    other = {"ca_file": servers.tls.ca_file, "client_cert": client_certificate(tmp_path, "stranger")}
    for more in (other, {"ca_file": servers.tls.ca_file}):
        with pytest.raises(RotatorError):
            stage.store(case.url, auth=case.auth, **more).ready()
    assert ("login", "400") in stage.asked("login")


def test_an_unknown_authority_is_not_spoken_to(servers: Servers, stage: Stage) -> None:
    """Without the CA's file nothing is sent, token or not."""
    with pytest.raises(Transient) as caught:
        stage.store(servers.tls.tls_url).ready()
    assert Reason.VAULT_UNREACHABLE is caught.value.reason
    assert [("health", "SSLError")] == stage.asked()
    stage.store(servers.tls.tls_url, ca_file=servers.tls.ca_file).ready()


def test_a_mount_of_another_name(bao: Bao, stage: Stage) -> None:
    """`mount` says where the method was enabled; where it was not, that is what the error names."""
    made = role(bao, mount="team/approle")
    secret_id = made.secret_id()
    auth = AppRoleAuth(role_id=lambda: made.role_id, secret_id=lambda: secret_id, mount="team/approle")
    stage.store(bao.url, auth=auth).ready()
    wrong = AppRoleAuth(role_id=lambda: made.role_id, secret_id=lambda: secret_id, mount="nowhere")
    with pytest.raises(Permanent, match="login at auth/nowhere: HTTP 40"):
        stage.store(bao.url, auth=wrong).ready()


# --- a token from elsewhere -----------------------------------------------------------------------------------------


def child(bao: Bao, **more: object) -> str:
    """A token such as an agent puts into its sink."""
    made: str = bao.must("POST", "auth/token/create", {"policies": ["root"], **more})["auth"]["client_token"]
    return made


def test_a_rewritten_token_is_taken_up_without_a_refusal(bao: Bao, stage: Stage, tmp_path: Path, path: str) -> None:
    """An agent has put another one there and revoked the old: nothing of ours meets a 403."""
    sink = tmp_path / "token"
    first, second = child(bao), child(bao)
    sink.write_text(first)
    store = stage.store(bao.url, auth=TokenAuth(token=sink.read_text))
    store.read(path)
    sink.write_text(second)
    bao.must("POST", "auth/token/revoke", {"token": first})
    stage.clock.ahead += 1
    store.read(path)
    assert [("read", "404")] * 2 == stage.asked()


def test_a_token_is_not_read_for_each_request(bao: Bao, stage: Stage, path: str) -> None:
    """At most once a second."""
    reads = 0

    def token() -> str:
        nonlocal reads
        reads += 1
        return ROOT_TOKEN

    store = stage.store(bao.url, auth=TokenAuth(token=token))
    for _ in range(20):
        store.read(path)
    assert reads <= 4
    before = reads
    stage.clock.ahead += 1
    store.read(path)
    assert before < reads


@pytest.mark.parametrize("content", [None, "", "half of\na token"])
def test_a_token_that_can_not_be_read_for_the_moment(
    bao: Bao, stage: Stage, tmp_path: Path, path: str, content: str | None
) -> None:
    """The known one goes on being used, and that is said once; then the new one is taken."""
    from rotator.secret_refs import FileRef, reveal

    sink = tmp_path / "token"
    sink.touch(0o600)
    sink.write_text(child(bao))
    store = stage.store(bao.url, auth=TokenAuth(token=lambda: reveal(FileRef(file=str(sink)))))
    store.read(path)
    sink.unlink() if content is None else sink.write_text(content)
    with capture_logs() as logs:
        for _ in range(3):
            stage.clock.ahead += 2
            store.read(path)
            assert store.renew() is None
    assert ["vault_token_unreadable"] == [each["event"] for each in logs if each["log_level"] == "warning"]
    sink.touch(0o600)
    sink.write_text(child(bao))
    stage.clock.ahead += 2
    with capture_logs() as logs:
        store.read(path)
    assert ["vault_token_taken_up"] == [each["event"] for each in logs]


def test_a_given_token_is_renewed_once_a_third_of_its_life_is_gone(bao: Bao, stage: Stage) -> None:
    """As Vault counts it; before that it is only looked up."""
    given = child(bao, ttl="6s")
    store = stage.store(bao.url, auth=TokenAuth(token=lambda: given))
    store.renew()
    assert [("lookup", "200")] == stage.asked("lookup", "renew")
    until(lambda: store.renew() and stage.asked("renew"), "a renewal")
    assert [("renew", "200")] == stage.asked("renew")


def test_a_given_token_that_can_not_last(bao: Bao, stage: Stage, path: str) -> None:
    """It has no way back, so what is irreversible is not begun with it; one that can be renewed is."""
    short = child(bao, ttl="5m", explicit_max_ttl="5m", renewable=False)
    with pytest.raises(Permanent, match="can't be renewed") as caught:
        stage.store(bao.url, auth=TokenAuth(token=lambda: short)).preflight(path, lasting=timedelta(hours=1))
    assert Reason.VAULT_AUTH is caught.value.reason
    stage.store(bao.url, auth=TokenAuth(token=lambda: short)).preflight(path, lasting=timedelta(minutes=2))
