"""A double of a Kubernetes API server on a loopback socket: login, RBAC, workloads, faults on request.

Its refusals are word for word those that were recorded at a real one (test_consumer_kubernetes_recorded.py).
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

import yaml

from contract.consumer_kube_state import Json, State

ADMIN = "admin-token"
_PATH = re.compile(
    r"/api(?:s/(?P<group>[^/]+))?/(?P<version>[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?P<sub>/token)?)?"
)
_VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


@dataclass(kw_only=True)
class Fault:
    """What the next so many requests of a method get instead: a status, or nothing at all until `hold` is set.

    `after`: only once a request of that method was answered. `served`: the request takes effect all the same.
    """

    method: str
    times: int
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"kind": "Status", "message": "the double fails"}'
    content_type: str | None = "application/json"
    hold: threading.Event | None = None
    after: str = ""
    served: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    token: str | None
    content_type: str | None
    body: Json | None


def refusal(code: int, reason: str, message: str, details: Json | None = None) -> tuple[int, Json]:
    """A Status object of the API server."""
    whole: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    whole |= {"message": message, "reason": reason} | ({"details": details} if details else {})
    return code, whole | {"code": code}


class KubeDouble:
    """The server. `tokens`: bearer token → user; `admins` may do all, others what Roles say."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.state, self.asked, self.faults = State(), list[Asked](), list[Fault]()
        self.tokens, self.admins = {ADMIN: "admin"}, {"admin"}
        self.external_secrets = ["v1", "v1beta1"]  # the versions that are served
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "https" if context is not None else "http"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if fault.hold is not None:
                fault.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def requests(self, method: str) -> list[Asked]:
        with self.lock:
            return [each for each in self.asked if each.method == method]

    def answer(self, asked: Asked) -> tuple[int, Json | bytes]:
        """Status and body; bytes are sent as text."""
        if asked.token is not None and asked.token not in self.tokens:
            return refusal(401, "Unauthorized", "Unauthorized")
        user = self.tokens[asked.token] if asked.token is not None else "system:anonymous"
        split = urlsplit(asked.path)
        found = _PATH.fullmatch(split.path)
        if found is None or (found["group"] == "external-secrets.io" and found["version"] not in self.external_secrets):
            return 404, b"404 page not found\n"
        group, namespace, plural, name = found["group"] or "", found["namespace"] or "", found["plural"], found["name"]
        if plural == "selfsubjectaccessreviews":
            return self._review(user, asked.body or {})
        verb = _VERBS.get(asked.method, "get" if name else "list")
        if not self._may(user, verb, group, plural, namespace, name or ""):
            where = f' in the namespace "{namespace}"'
            whole = f"{plural}.{group}" if group else plural
            subject = f' "{name}"' if name else ""
            text = (
                f'{whole}{subject} is forbidden: User "{user}" cannot {verb} resource "{plural}" in API group "{group}"'
            )
            return refusal(403, "Forbidden", text + where, {"name": name, "group": group, "kind": plural})
        if found["sub"]:
            self.tokens[f"token-of-{name}"] = f"system:serviceaccount:{namespace}:{name}"
            return 201, {
                "status": {"token": f"token-of-{name}", "expirationTimestamp": "2100-01-01T00:00:00Z"},
                "spec": {"audiences": []},
            }
        return self._served(asked, (plural, namespace, name or ""), group, parse_qs(split.query))

    def _served(
        self, asked: Asked, where: tuple[str, str, str], group: str, query: dict[str, list[str]]
    ) -> tuple[int, Json | bytes]:
        plural, namespace, name = where
        if asked.method == "POST":
            body = asked.body or {}
            return 201, self.state.create((plural, namespace, body["metadata"]["name"]), body)
        if not name:
            return 200, {"kind": "List", "metadata": {}, "items": self._listed(plural, namespace, query)}
        if where not in self.state.objects:
            whole = f"{plural}.{group}" if group else plural
            return refusal(
                404, "NotFound", f'{whole} "{name}" not found', {"name": name, "group": group, "kind": plural}
            )
        if asked.method == "PATCH":
            return 200, self.state.patch(where, asked.body or {})
        if asked.method == "DELETE":
            return 200, self.state.objects.pop(where)
        return 200, self.state.look(where) or {}

    def _listed(self, plural: str, namespace: str, query: dict[str, list[str]]) -> list[Json]:
        labels = dict(each.split("=") for each in query.get("labelSelector", [""])[0].split(",") if each)
        if plural == "pods":
            every = [*self.state.pods(namespace)]
        else:
            every = [each for where, each in self.state.objects.items() if where[:2] == (plural, namespace)]
        return [each for each in every if labels.items() <= each["metadata"].get("labels", {}).items()]

    def _review(self, user: str, body: Json) -> tuple[int, Json]:
        asked = body["spec"]["resourceAttributes"]
        names = (asked.get(each, "") for each in ("verb", "group", "resource", "namespace", "name"))
        return 201, body | {"status": {"allowed": self._may(user, *names)}}

    def _may(self, user: str, verb: str, group: str, plural: str, namespace: str, name: str) -> bool:
        if user in self.admins:
            return True
        for where, binding in self.state.objects.items():
            if where[:2] != ("rolebindings", namespace) or user not in map(_user, binding["subjects"]):
                continue
            role = self.state.objects.get(("roles", namespace, binding["roleRef"]["name"]), {"rules": []})
            for rule in role["rules"]:
                named = not rule.get("resourceNames") or name in rule["resourceNames"]
                if verb in rule["verbs"] and group in rule["apiGroups"] and plural in rule["resources"] and named:
                    return True
        return False

    def _fault(self, method: str) -> Fault | None:
        for fault in self.faults:
            due = not fault.after or any(each.method == fault.after for each in self.asked)
            if fault.method == method and fault.times > 0 and due:
                fault.times -= 1
                return fault
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _serve(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
                kind = self.headers.get("Content-Type")
                body = json.loads(raw) if raw else None
                asked = Asked(method=self.command, path=self.path, token=token, content_type=kind, body=body)
                with double.lock:
                    double.asked.append(asked)
                    fault = double._fault(self.command)
                    status, answer = double.answer(asked) if fault is None or fault.served else (0, b"")
                    if fault is not None:
                        status, answer = fault.status, fault.body
                    sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                if fault is not None and fault.hold is not None:
                    fault.hold.wait(30)
                    self.close_connection = True
                    return
                content = "application/json" if isinstance(answer, dict) else "text/plain"
                self.send_response(status)
                for name, value in (fault.headers if fault else {}).items():
                    self.send_header(name, value)
                if fault is None or fault.content_type is not None:
                    self.send_header("Content-Type", fault.content_type or "" if fault else content)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = do_PATCH = do_DELETE = _serve  # the library's names

        return Handler


def _user(subject: Json) -> str:
    if subject["kind"] == "ServiceAccount":
        return f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
    return str(subject["name"])


def kubeconfig(path: Path, server: str, user: Json, **cluster: str | bool) -> str:
    """A kubeconfig of one cluster and one user; the file's path."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "main",
        "contexts": [{"name": "main", "context": {"cluster": "main", "user": "main"}}],
        "clusters": [{"name": "main", "cluster": {"server": server} | cluster}],
        "users": [{"name": "main", "user": user}],
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)
