"""Proof by the broker's list of connections (RabbitMQ's management API): the username has a connection that is new."""

from __future__ import annotations

import threading
from fnmatch import fnmatchcase

from rotator.consumers.asking import PAUSE, Asking
from rotator.errors import Transient
from rotator.model import Sighting
from rotator.ports import Clock, Connected


class ConnectionsWatch(Asking):
    """Sees connections of one username that were not there when the watch was opened (ports.Watch).

    The list says that a connection is there, not since when, as far as it can be relied on: what was made since the
    last look is stamped with this one, what is gone, with its beginning.

    Args:
        broker: asked at once, and then while somebody looks.
        client_id: a shell pattern of the consumer's own client ids; None: any. The broker may know it some seconds
            late, and a connection without one is not the consumer's.

    Raises: as `Connected.connections`: the watch can't be opened.
    """

    def __init__(
        self,
        name: str,
        broker: Connected,
        *,
        username: str,
        client_id: str | None,
        clock: Clock,
        pause: float = PAUSE,
    ) -> None:
        self._broker, self._username, self._pattern = broker, username, client_id
        self._others = set(broker.connections(username))  # there before, or somebody else's
        self._ours: dict[str, str] = {}  # connection → client id
        super().__init__(name, clock=clock, stop=threading.Event(), pause=pause)

    def _question(self) -> None:
        began, names = self._clock.now(), set(self._broker.connections(self._username))
        self._others &= names
        for name in self._ours.keys() - names:
            self._seen.add(Sighting(at=began, client_id=self._ours.pop(name), detail=name), lost=True)
        for name in sorted(names - self._others - self._ours.keys()):
            # without a pattern every connection is a client of its own
            client_id = name if self._pattern is None else self._broker.client_id(name)
            if client_id is None:
                continue  # asked again at the next look
            if self._pattern is not None and not fnmatchcase(client_id, self._pattern):
                self._others.add(name)
                continue
            self._ours[name] = client_id
            self._seen.add(Sighting(at=self._clock.now(), client_id=client_id, detail=name))

    def _unanswered(self, error: Transient) -> str:
        """Without the list nobody can be seen, however well the consumer does."""
        return error.message
