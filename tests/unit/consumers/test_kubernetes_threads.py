"""Kubernetes' answers are read by several threads at once, from the first one on."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: what is built at a type's first use is built once for each process, and a failure is a crash.
FIRST_ANSWERS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import msgspec
from lightkube.core.decoders import decode_list
from rotator.consumers import kubernetes_client as client

sys.setswitchinterval(1e-6)
pod = b'{"containers": [{"name": "c", "ports": [{"containerPort": 1}]}]}'
template = b'{"metadata": {"name": "p"}, "spec": ' + pod + b'}'
workload = b'{"spec": {"serviceName": "s", "selector": {}, "template": ' + template + b'}}'
answers = dict.fromkeys(client.WORKLOADS.values(), workload) | {client.Pod: b'{"spec": ' + pod + b'}'}
together = threading.Barrier(4)

def read(number):
    together.wait(10)
    for kind, answer in answers.items():
        msgspec.json.decode(answer, type=kind)
        decode_list(b'{"items": [' + answer + b']}', kind)
    msgspec.json.decode(b'{"message": "no"}', type=client.Status)

with ThreadPoolExecutor(4) as pool:
    print(len(list(pool.map(read, range(4)))))
"""


def test_the_first_answers_may_come_at_the_same_moment() -> None:
    """Two consumers restarted at once; msgspec's tables are there before the first thread needs them."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_ANSWERS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (0, "4\n") == (done.returncode, done.stdout), done.stderr[-2000:]
