"""Rule 6 from within: what breaks inside hvac or httpx is told without the values that were at hand there."""

from __future__ import annotations

import faulthandler
import io
import json
import logging
import pickle
import pprint
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import requests
import rich.console
import rich.pretty
import structlog

from nowhere_hunt import forms, hunt
from rotator.cli import cli
from rotator.cli_output import err, say_error
from rotator.clock import SystemClock
from rotator.errors import RotatorError
from rotator.logs import EventLog, configure, log_uncaught, redact
from rotator.model import Identity, Issued, ProbeTarget, RotationEvent, Secret, StoredSecret
from rotator.providers import Haltian
from rotator.stores import VaultStore
from rotator.stores.vault_auth import AppRoleAuth, Auth, JwtAuth, KubernetesAuth, Login, TokenAuth
from rotator.stores.vault_wire import VaultAnswer
from rotator.stores.vault_wrapped import WrappedAppRoleAuth

# None of them has a form that the log's redaction knows: it must not be what saves us here.
SECRETS = {
    "Vault token": 'made-up/vault+"7Q',
    "secret id": "made-up-secret-id-8R",
    "wrapping token": "made-up-wrapping-9S",
    "managed secret": "made-up <managed> é 1T",
    "provider's password": "made-up-provider\\2U",
    "provider's token": "made-up-access-3V",
}
TOKEN, SECRET_ID, WRAPPING, MANAGED, PASSWORD, ACCESS = SECRETS.values()
PATH = "mqtt/building-a"


class MemoryKeep:
    """Holds what was unwrapped."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    def load(self) -> bytes | None:
        return self.content

    def save(self, content: bytes) -> None:
        self.content = content


def wrapped() -> WrappedAppRoleAuth:
    return WrappedAppRoleAuth(role_id=lambda: "role", wrapping_token=lambda: WRAPPING, keep=MemoryKeep(), unwraps=True)


AUTHS: Mapping[str, Callable[[], Auth]] = {
    "token": lambda: TokenAuth(token=lambda: TOKEN),
    "approle": lambda: AppRoleAuth(role_id=lambda: "role", secret_id=lambda: SECRET_ID),
    "wrapped": wrapped,
    "kubernetes": lambda: KubernetesAuth(role="r", jwt=lambda: SECRET_ID),
    "jwt": lambda: JwtAuth(role="r", jwt=lambda: SECRET_ID),
}
CALLS: Mapping[str, Callable[[VaultStore], object]] = {
    "ready": lambda store: store.ready(),
    "preflight": lambda store: store.preflight(PATH),
    "read": lambda store: store.read(PATH),
    "put": lambda store: store.put(PATH, {"password": MANAGED}),
    "put, known": lambda store: store.put(PATH, {"password": MANAGED}, known=3),
    "renew": lambda store: store.renew(),
}
RUNS = [*((auth, name) for auth in AUTHS for name in ("read", "put")), *(("token", name) for name in CALLS)]
# Where something breaks: from the top of hvac down to the socket, and in what reads the answer.
SITES = (
    "hvac.adapters.RawAdapter.request",
    "requests.Session.request",
    "requests.Session.send",
    "requests.adapters.HTTPAdapter.send",
    "urllib3.connectionpool.HTTPConnectionPool.urlopen",
    "urllib3.connection.HTTPConnection.request",
    "urllib3.util.connection.create_connection",
    "requests.models.Response.json",
)
ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: KeyError("a line broke"),  # nothing that an adapter foresees, and so a traceback in the log
    lambda: json.JSONDecodeError("a line broke", json.dumps(SECRETS), 0),
    lambda: requests.ConnectionError("a line broke", request=requests.Request("PUT", headers={"X": TOKEN})),
)


def answer(_adapter: object, request: requests.PreparedRequest, **_more: object) -> requests.Response:
    """What Vault says to everything: a token, a secret id, a version with our secret."""
    response = requests.Response()
    response.status_code, response.request, response.url = 200, request, request.url or ""
    data = {
        "creation_path": "auth/approle/role/r/secret-id",
        "secret_id": SECRET_ID,
        "data": {"password": MANAGED, "note": "x"},
        "metadata": {"version": 3},
        "version": 4,
    }
    auth = {"client_token": TOKEN, "lease_duration": 600, "renewable": True}
    response._content = json.dumps({"data": data, "auth": auth}).encode()
    return response


class Vault:
    """A store of which one part breaks."""

    def __init__(self, auth: str, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("requests.adapters.HTTPAdapter.send", answer)
        self.store = VaultStore(
            urls=["http://127.0.0.1:1"], auth=AUTHS[auth](), clock=SystemClock(), on_request=lambda _done: None
        )
        self.store.read(PATH)  # logged in


def failing(error: Exception, dump: io.TextIOWrapper | None = None) -> Callable[..., NoReturn]:
    """Raises from two frames whose variables hold everything."""

    def inner(held: dict[str, str], *_args: object, **_more: object) -> NoReturn:
        token, managed = held["Vault token"], held["managed secret"]
        if dump is not None:
            faulthandler.dump_traceback(dump, all_threads=True)
        assert (token, managed) == (TOKEN, MANAGED)
        raise error

    def fail(*args: object, **more: object) -> NoReturn:
        held = dict(SECRETS)
        inner(held, *args, **more)

    return fail


@pytest.fixture
def logged() -> Iterator[Mapping[str, io.StringIO]]:
    """Logging as the daemon has it, at DEBUG, in both of its forms; put back afterwards."""
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    streams = {"JSON lines": io.StringIO(), "readable lines": io.StringIO()}
    made = []
    for name, stream in streams.items():
        configure(stream=stream, level="DEBUG", json_lines=name == "JSON lines")
        made += root.handlers
    root.handlers[:] = made
    yield streams
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    structlog.reset_defaults()
    structlog.configure(**before)


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    """An exception, and all that it came from."""
    seen: set[int] = set()
    todo = [exc]
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [one.__cause__, one.__context__]


def shown(exc: Exception, logged: Mapping[str, io.StringIO]) -> dict[str, bytes]:
    """All that our code, and what renders exceptions, makes of one."""
    texts = {"format_exception": "".join(traceback.format_exception(exc))}
    for one in chain(exc):
        texts[f"text of {type(one).__name__}"] = f"{one!r} {one} {getattr(one, '__notes__', '')}"
    log = structlog.get_logger("rotator.test")
    log.exception("unforeseen", exc_info=exc)
    log.error("refused", error=exc, reason=getattr(exc, "reason", None))
    logging.getLogger("apscheduler.executors.default").error("job raised", exc_info=exc)
    logging.getLogger("hvac.adapters").error("it said %r", exc, exc_info=exc)
    log_uncaught()
    sys.excepthook(type(exc), exc, exc.__traceback__)
    threading.excepthook(threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, None)))
    if isinstance(exc, RotatorError):
        with err.capture() as said:
            say_error(exc)
        texts["the command's words"] = said.get()
        EventLog()(RotationEvent(**EVENT, detail=exc.message, reason=exc.reason))
        texts["vars"] = repr(vars(exc))
        with suppress(TypeError, pickle.PicklingError):
            texts["pickled"] = repr(pickle.dumps(exc))
    for name, stream in logged.items():
        texts[name] = stream.getvalue()
        stream.truncate(stream.seek(0))
    return {name: text.encode() for name, text in texts.items()}


EVENT: dict[str, Any] = {
    "at": SystemClock().now(),
    "key": "building-a",
    "provider": "acme",
    "name": "problem",
    "rotation": "r1",
}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("error", ERRORS, ids=[type(make()).__name__ for make in ERRORS])
def test_what_breaks_inside_hvac_shows_no_variable(
    site: str,
    error: Callable[[], Exception],
    logged: Mapping[str, io.StringIO],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each login, and each verb: log, both hooks, commands, the chain of causes, a dump of all frames."""
    held, broken = 0, 0
    for auth, name in RUNS:
        with monkeypatch.context() as patch, (tmp_path / "dump").open("w+") as dump:
            vault = Vault(auth, patch)
            if "urllib3" in site:
                patch.undo()  # there is no answer: what would ask for one breaks
            patch.setattr(site, failing(error(), dump))
            try:
                CALLS[name](vault.store)
            except Exception as exc:  # noqa: BLE001  whatever comes out
                places = shown(exc, logged)
                dump.seek(0)
                places["faulthandler's dump"] = dump.read().encode()
                assert [] == hunt(places, SECRETS), (auth, name)
                assert b"Traceback" in places["JSON lines"]
                assert b"in inner" in places["faulthandler's dump"]
                broken += 1
                held += bool(hunt({"": with_locals(exc)}, {"": TOKEN}))
    dropped = site.endswith("json") and isinstance(error(), ValueError)  # that one never leaves the wire
    assert (len(RUNS), 0 if dropped else len(RUNS)) == (broken, held)


def with_locals(exc: Exception) -> bytes:
    """What a renderer that shows variables would make of it: the proof that they were there."""
    texts = [
        "".join(traceback.TracebackException.from_exception(one, capture_locals=True).format())
        for one in chain(exc)
        if isinstance(one, Exception)
    ]
    return "".join(texts).encode()


# --- httpx ------------------------------------------------------------------------------------------------------------


def platform(request: httpx.Request) -> httpx.Response:
    """Logs in, and issues."""
    if b"mutation Login" in request.read():
        login = {"accessToken": ACCESS, "expiresIn": 900, "refreshToken": ACCESS, "refreshExpiresIn": 43200}
        return httpx.Response(200, json={"data": {"login": login}})
    return httpx.Response(200, json={"data": {"refreshApiKeyToken": {"id": "c6f7", "token": {"token": MANAGED}}}})


@pytest.mark.parametrize(
    "site",
    [
        "httpx.Client.build_request",
        "httpx.Client.send",
        "httpx.MockTransport.handle_request",
        "httpx.Response.iter_bytes",
    ],
)
@pytest.mark.parametrize(
    "error",
    [lambda: KeyError("a line broke"), lambda: httpx.ReadError("a line broke"), lambda: ValueError("a line broke")],
    ids=["KeyError", "ReadError", "ValueError"],
)
def test_what_breaks_inside_httpx_shows_no_variable(
    site: str,
    error: Callable[[], Exception],
    logged: Mapping[str, io.StringIO],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the login, and at the call that can't be taken back."""
    for logged_in in (False, True):
        with httpx.Client(transport=httpx.MockTransport(platform)) as client, monkeypatch.context() as patch:
            provider = haltian(client)
            if logged_in:
                provider.issue(provider.identity("c6f7"))
            patch.setattr(site, failing(error()))
            with pytest.raises(Exception, match=r".") as caught:
                provider.issue(provider.identity("c6f7"))
        exc = caught.value
        assert [] == hunt(shown(exc, logged), SECRETS)
        assert hunt({"": with_locals(exc)}, {"": MANAGED}), "the frames did not hold the secret"


def haltian(client: httpx.Client) -> Haltian:
    return Haltian(
        "acme",
        client=client,
        url="https://platform.example/v1/graphql",
        organization="acme",
        email="me@acme.example",
        password=lambda: PASSWORD,
        clock=SystemClock(),
        on_request=lambda _done: None,
    )


# --- libraries that talk ----------------------------------------------------------------------------------------------


def test_libraries_that_are_made_to_talk(logged: Mapping[str, io.StringIO]) -> None:
    """Somebody sets their loggers to DEBUG: what is sent, answered, and set as a cookie stays out of the lines."""
    names = ("urllib3", "requests", "hvac", "httpx", "httpcore", "paho", "h11", "")
    before = {name: logging.getLogger(name).level for name in names}
    with Talkative() as server:
        for name in names:
            logging.getLogger(name).setLevel(logging.DEBUG)
        try:
            store = VaultStore(
                urls=[server.url], auth=AUTHS["approle"](), clock=SystemClock(), on_request=lambda _done: None
            )
            assert 4 == store.put(PATH, {"password": PASSWORD})
            store.close()
            with httpx.Client() as client:
                headers = {"Authorization": f"Bearer {ACCESS}", "Cookie": f"session={ACCESS}"}
                assert client.post(server.url, json={"password": PASSWORD}, headers=headers).json()
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
    assert all("urllib3" in stream.getvalue() and "httpcore" in stream.getvalue() for stream in logged.values())
    assert [] == hunt({name: stream.getvalue().encode() for name, stream in logged.items()}, SECRETS)


class Talkative:
    """A server that answers everything as Vault would, and sets a cookie."""

    def __enter__(self) -> Talkative:
        handler = type("Handler", (BaseHTTPRequestHandler,), {"do_GET": tell, "do_POST": tell, "log_message": quiet})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"


def tell(handler: BaseHTTPRequestHandler) -> None:
    """One answer."""
    handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    body = answer(None, requests.Request("GET", "http://a/").prepare()).content
    handler.send_response(200)
    handler.send_header("Set-Cookie", f"session={ACCESS}; Path=/")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def quiet(_handler: BaseHTTPRequestHandler, *_args: object) -> None:
    """No access log."""


# --- our own objects --------------------------------------------------------------------------------------------------


def objects() -> Iterator[tuple[object, bool]]:
    """Everything of ours that holds a secret, and whether its parts may be looked into: some hold Vault's own data."""
    secret, identity = Secret(MANAGED), Identity(id="c6f7", username="c6f7")
    yield secret, True
    yield [secret, {"a": (secret,)}], True
    yield Login(token=Secret(TOKEN), made_at=0.0), True
    for auth in AUTHS.values():
        yield auth(), True
    yield StoredSecret(version=1, data={"password": MANAGED}), False
    yield VaultAnswer(status=200, body={"data": {"password": MANAGED}}, is_json=True), False
    yield Issued(identity=identity, secret=secret), True
    yield ProbeTarget(host="h", port=1, username="c6f7", password=secret), True


def rendered(one: object) -> dict[str, bytes]:
    """All that Python and our log make of an object when they show it."""
    texts = {"repr": repr(one), "str": str(one), "format": f"{one} {one!a}", "pprint": pprint.pformat(one)}
    stream = io.StringIO()
    rich.console.Console(file=stream, width=200).print(rich.pretty.Pretty(one, expand_all=True))
    texts["rich"] = stream.getvalue()
    texts["log"] = json.dumps(redact(None, "info", {"event": one, "x": {"y": [one]}}), default=repr)
    return {name: text.encode() for name, text in texts.items()}


def parts(one: object) -> Iterator[dict[str, object]]:
    """What an object is made of, one level down; a `Secret` is not opened."""
    if not isinstance(one, Secret):
        names = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
        yield {**getattr(one, "__dict__", {}), **{name: getattr(one, name) for name in names if hasattr(one, name)}}


def hunted(one: object, *, open_to_look: bool) -> list[str]:
    """Where a secret is seen on an object, its parts, its dictionary, its pickle."""
    found = hunt(rendered(one), SECRETS)
    if not open_to_look:
        return found
    for part in parts(one):
        found += [f"{text} of the parts" for text in hunt(rendered(part), SECRETS)]
    with suppress(TypeError, AttributeError, pickle.PicklingError):
        found += hunt({"pickle": pickle.dumps(one)}, SECRETS)
    if is_dataclass(one) and not isinstance(one, type):
        with suppress(TypeError):
            found += hunt({"asdict": repr(asdict(one)).encode()}, SECRETS)
    return found


def test_objects_show_nothing() -> None:
    """By repr, str, format, pprint, rich, the log, vars, asdict and pickle."""
    for one, open_to_look in objects():
        assert [] == hunted(one, open_to_look=open_to_look), type(one)


@pytest.mark.parametrize("auth", sorted(AUTHS))
def test_a_store_that_is_logged_in_shows_nothing(auth: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store, its login, its wire, and whatever they hold; the token is in there."""
    store = Vault(auth, monkeypatch).store
    todo: list[object] = [store]
    seen: set[int] = set()
    tokens = 0
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        ours = type(one).__module__.startswith("rotator.")
        assert [] == hunted(one, open_to_look=ours), type(one)
        tokens += one == Secret(TOKEN)
        todo += [value for part in parts(one) for value in part.values()] if ours else []
    assert tokens == 1


def test_the_hunt_finds_what_an_object_shows() -> None:
    """A list of the same values shows them in every way."""
    found = hunted([*SECRETS.values()], open_to_look=True)
    for way in ("repr", "str", "format", "pprint", "rich", "log"):
        assert [name for name in found if name.endswith(f"in {way}")], way
    assert [name for name in found if name.endswith("in pickle")]
    assert len(forms(TOKEN)) > 10


def test_no_renderer_shows_variables() -> None:
    """Typer's own tracebacks, and rich's, would show them; neither is switched on."""
    assert cli.pretty_exceptions_enable is False
    assert sys.excepthook.__module__ != "rich.traceback"
