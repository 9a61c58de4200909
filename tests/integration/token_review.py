"""The one call of the Kubernetes API that Vault's Kubernetes auth makes: TokenReview (authentication.k8s.io/v1)."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

REVIEWER = "made-up-reviewer-token"
SERVICE_ACCOUNT = "system:serviceaccount"
CLUSTER = "https://kubernetes.default.svc.cluster.local"  # whom a token is for where nobody says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A service account and whom its token is for."""

    namespace: str
    name: str
    audience: str = "vault"

    @property
    def jwt(self) -> str:
        """Its token, as the kubelet projects it; nobody here looks at the signature."""
        now = int(time.time())
        claims = {
            "iss": CLUSTER,
            "sub": f"{SERVICE_ACCOUNT}:{self.namespace}:{self.name}",
            "aud": [self.audience],
            "exp": now + 600,
            "iat": now,
            "nbf": now - 1,
            "kubernetes.io": {
                "namespace": self.namespace,
                "serviceaccount": {"name": self.name, "uid": f"uid-of-{self.name}"},
            },
        }
        return f"{_part({'alg': 'RS256', 'kid': 'made-up'})}.{_part(claims)}.{'c2ln' * 8}"


class Reviewer:
    """An API server on loopback that knows some accounts' tokens; `asked_by` has the Authorization of each call."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._accounts = {account.name: account for account in accounts}
        self.asked_by: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def review(self, spec: dict[str, Any]) -> dict[str, Any]:
        """What the cluster says of a token."""
        claims = json.loads(base64.urlsafe_b64decode(str(spec["token"]).split(".")[1] + "=="))
        _, _, namespace, name = claims["sub"].split(":")
        account = self._accounts.get(name)
        audiences = set(claims["aud"]) & set(spec.get("audiences") or [CLUSTER])
        if account is None or account.namespace != namespace or not audiences:
            return {"authenticated": False, "error": "the made-up cluster does not know this token"}
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"]
        user = {"username": claims["sub"], "uid": f"uid-of-{name}", "groups": groups}
        return {"authenticated": True, "user": user, "audiences": sorted(audiences)}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        reviewer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reviewer.asked_by.append(self.headers["Authorization"])
                assert self.path == "/apis/authentication.k8s.io/v1/tokenreviews"
                answer = json.dumps(review | {"status": reviewer.review(review["spec"])}).encode()
                self.send_response(201)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        return Handler


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
