"""A provider over TLS: an authority of one's own, and a client certificate that the platform asks for."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from integration.broker_fixture import certificates
from provider_site import built
from rotator.errors import Transient
from rotator.ports import Provider
from rotator.reasons import Reason


class _Portal(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        body = b'{"publishers": []}'
        self.send_response_only(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A handshake that fails is what some of the tests are about."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and a certificate that it signed, with its key."""
    return certificates(tmp_path_factory.mktemp("tls")).parent


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """A portal that lets nobody in without a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    server = _Server(("127.0.0.1", 0), _Portal)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(10)
    server.server_close()


def portal(port: int, **tls: object) -> Provider:
    section = {"url": f"https://127.0.0.1:{port}", "token": {"env": "TOKEN"}, "timeout": "5s", **tls}
    return built("ishareradio", "ishare", section, secrets={"TOKEN": "isr_mqtt_rest_made-up"})


def test_who_shows_a_certificate_is_let_in(folder: Path, port: int) -> None:
    """`ca_file` says whom we believe, `client_cert` and `client_key` who we are."""
    files = {"ca_file": "ca.pem", "client_cert": "server.pem", "client_key": "server.key"}
    provider = portal(port, **{name: str(folder / file) for name, file in files.items()})
    assert [] == list(provider.list_keys())
    provider.close()


@pytest.mark.parametrize("files", [{"ca_file": "ca.pem"}, {"client_cert": "server.pem", "client_key": "server.key"}])
def test_without_either_nothing_is_asked(folder: Path, port: int, files: dict[str, str]) -> None:
    """A platform that does not know us, and one that we don't know, are platforms that can't be reached."""
    provider = portal(port, **{name: str(folder / file) for name, file in files.items()})
    with pytest.raises(Transient) as caught:
        provider.list_keys()
    assert Reason.PROVIDER_UNREACHABLE is caught.value.reason
    assert "isr_mqtt" not in str(caught.value)
    provider.close()
