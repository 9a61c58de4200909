"""The MQTT probe: does the broker let this secret in, and may it read what its consumers read?

Connect, SUBSCRIBE to the real filter, read the SUBACK, leave. Only the broker's own CONNACK and SUBACK codes refuse;
whatever else happens is *unreachable* and refuses nothing (rule 2).
"""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import Final

from rotator.errors import Permanent, Transient
from rotator.model import ProbeResult, ProbeTarget, Verdict
from rotator.mqtt import Link, session
from rotator.reasons import Reason

# Client ids of the probe's own begin so: with 8 random digits they stay within the 22 characters that every 3.1.1
# broker takes, and the watches tell a probe's connect from a consumer's by it.
PROBE_CLIENT_PREFIX: Final = "rotator-probe-"

_VERDICTS: Final = {
    Reason.SECRET_REFUSED: Verdict.REFUSED,
    Reason.SUBSCRIPTION_REFUSED: Verdict.SUBSCRIPTION_REFUSED,
}


class MqttProber:
    """Probes a credential at its broker, in the calling thread. Thread safe: it holds nothing.

    Where `ProbeTarget.client_id` is set, the broker throws out whoever is connected under that client id, which with
    most platforms that bind them is the consumer: leave it empty wherever the broker allows.
    """

    def probe(self, target: ProbeTarget) -> ProbeResult:
        """Connect with a clean session and no will, subscribe, leave.

        Takes `target.timeout` at most, plus what resolving the host name takes; a host with several addresses may
        take 5 s for each that does not answer. Never raises for what a broker, a network or a CA file does.
        """
        try:
            link = Link(target, client_id=target.client_id or PROBE_CLIENT_PREFIX + secrets.token_hex(4))
            with contextlib.closing(link):
                session(link, target.subscribe, time.monotonic() + target.timeout.total_seconds())
        except Permanent as exc:
            return ProbeResult(verdict=_VERDICTS[exc.reason], detail=exc.message)
        except Transient as exc:
            return ProbeResult(verdict=Verdict.UNREACHABLE, detail=exc.message)
        return ProbeResult(verdict=Verdict.ACCEPTED, detail="subscribed" if target.subscribe else "connected")
