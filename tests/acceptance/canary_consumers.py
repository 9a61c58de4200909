"""Consumers that live in the test's own process: services behind webhooks, a fleet over MQTT, workloads of a
Kubernetes, and one that follows Vault by itself. Each keeps a diary of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import threading
from collections.abc import Mapping
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from acceptance.canary_reader import AWAY, ON, TOLD, Diary, Reader
from contract.consumer_kube_double import Asked, KubeDouble
from contract.consumer_kube_state import Json
from contract.consumer_site import Reply, Request

AWAY_FOR = 0.5  # seconds that a restart of these takes
LOOKS = 0.2  # seconds between two looks of the one that follows Vault, and between its heartbeats
ANNOTATION = "rotator.dev/building-a"


class Service:
    """A service that is restarted by a webhook and answers which version it runs on."""

    def __init__(self, diary: Diary, reader: Reader, secret: str) -> None:
        self._diary, self._reader, self._secret = diary, reader, secret
        self._done: set[str] = set()
        self._stop = threading.Event()
        reader.come()

    def answer(self, request: Request) -> Reply:
        """One request: OPTIONS, POST (restart), GET (the version)."""
        if request.method == "POST":
            return self._restart(request)
        version = self._reader.version
        if request.method == "GET" and version is None:
            return Reply(status=503)
        return Reply(body=json.dumps({"version": version}).encode())

    def close(self) -> None:
        """Leave the broker."""
        self._stop.set()
        self._reader.go()

    def _restart(self, request: Request) -> Reply:
        signed = request.headers["rotator-timestamp"].encode() + b"." + request.body
        expected = "sha256=" + hmac.new(self._secret.encode(), signed, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, request.headers["rotator-signature"]):
            return Reply(status=401)
        mark = request.headers["idempotency-key"]
        if mark in self._done:
            return Reply()
        self._done.add(mark)
        self._diary.note(TOLD, json.loads(request.body)["version"])
        self._reader.go()
        self._stop.wait(AWAY_FOR)
        self._reader.come()
        return Reply()


class Member:
    """One process of a fleet: told on the control topic, it restarts and acknowledges what it has read."""

    def __init__(self, name: str, diary: Diary, reader: Reader, root: str, login: tuple[str, str], port: int) -> None:
        self._name, self._root, self._diary, self._reader = name, root, diary, reader
        self._orders: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._stop, subscribed = threading.Event(), threading.Event()
        self._control = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"control-{root}-{name}".replace("/", "-"))
        self._control.username_pw_set(*login)
        self._control.on_connect = lambda client, *_: client.subscribe(f"{root}/control", 1)
        self._control.on_subscribe = lambda *_: subscribed.set()
        self._control.on_message = lambda _client, _data, message: self._orders.put(json.loads(message.payload))
        self._control.connect("127.0.0.1", port)
        self._control.loop_start()
        self._thread = threading.Thread(target=self._work, name=name)
        self._thread.start()
        assert subscribed.wait(10), f"{name} can't subscribe to its control topic"
        reader.come()

    def close(self) -> None:
        """Leave the broker."""
        self._stop.set()
        self._orders.put(None)
        self._thread.join(20)
        self._reader.go()
        self._control.disconnect()
        self._control.loop_stop()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            self._diary.note(TOLD, order["version"])
            self._reader.go()
            self._stop.wait(AWAY_FOR)
            self._reader.come()
            ack = json.dumps({"key": order["key"], "version": self._reader.version})
            self._control.publish(f"{self._root}/ack/{self._name}", ack, qos=1)


class Follower:
    """Watches Vault, takes up what is new by itself, and sends heartbeats over the same session."""

    def __init__(self, name: str, reader: Reader) -> None:
        self._topic, self._reader = f"heartbeat/{name}", reader
        self._stop = threading.Event()
        reader.come()
        self._thread = threading.Thread(target=self._work, name=name)
        self._thread.start()

    def close(self) -> None:
        """Leave the broker."""
        self._stop.set()
        self._thread.join(20)
        self._reader.go()

    def _work(self) -> None:
        while not self._stop.wait(LOOKS):
            if self._reader.newest() != self._reader.version:
                self._reader.go()
                self._reader.come()
            self._reader.say(self._topic, "here")


class Cluster(KubeDouble):
    """A Kubernetes whose Deployments keep diaries: told by the patch, on the version when the rollout is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.diaries: dict[str, Diary] = {}
        self._rolling: set[str] = set()

    def answer(self, asked: Asked) -> tuple[int, Json | bytes]:
        """As the double; whoever calls holds the lock."""
        answered = super().answer(asked)
        for (plural, _, name), found in self.state.objects.items():
            if plural != "deployments" or name not in self.diaries:
                continue
            if asked.method == "PATCH" and asked.path.endswith(f"/deployments/{name}") and answered[0] == 200:
                self.diaries[name].note(TOLD, _version(found))
                self.diaries[name].note(AWAY)
                self._rolling.add(name)
            elif name in self._rolling and _complete(found):
                self._rolling.discard(name)
                self.diaries[name].note(ON, _version(found))
        return answered

    def version(self, name: str) -> Reply:
        """What the service in front of a Deployment's pods answers."""
        with self.lock:
            found = next(each for (plural, _, at), each in self.state.objects.items() if (plural, at) == _named(name))
            if name in self._rolling:
                return Reply(status=503)
            return Reply(body=json.dumps({"version": _version(found)}).encode())


def _named(name: str) -> tuple[str, str]:
    return "deployments", name


def _version(deployment: Json) -> int | None:
    """The version in the pods' annotation, such as `7/4f2a-7`; None before the first restart."""
    annotations = deployment["spec"]["template"]["metadata"].get("annotations", {})
    return int(annotations[ANNOTATION].partition("/")[0]) if ANNOTATION in annotations else None


def _complete(deployment: Json) -> bool:
    """What `kubectl rollout status` calls complete."""
    status, wanted = deployment["status"], deployment["spec"]["replicas"]
    counts = [status.get(name) for name in ("updatedReplicas", "availableReplicas", "replicas")]
    return status.get("observedGeneration") == deployment["metadata"]["generation"] and counts == [wanted] * 3
