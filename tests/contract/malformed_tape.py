"""Valid answers, taken down once from a simulator, and played again with some of them made malformed.

No socket is opened while they are played: an example of Hypothesis takes about a millisecond. What only a socket can
show is in `malformed_server`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from rotator.clock import SystemClock

ROUND_TRIP = 0.05  # seconds that a request takes by the provider's clock, though none passes
CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, as it is sent."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request, as far as it is told from others, and its valid answer."""

    method: str
    path: str
    query: str
    document: str  # of a GraphQL request
    answer: Answer

    def likeness(self, other: Exchange) -> tuple[bool, ...]:
        """How far another request asks for the same."""
        return (
            self.document == other.document,
            self.method == other.method,
            self.path == other.path,
            self.query == other.query,
        )


Tape = Sequence[Exchange]
NO_ROUTE = Answer(status=404, body=b'{"error": "Not Found", "message": "Route not found"}')


class RoundTrips(SystemClock):
    """The machine's clock, and the time that requests would have taken."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Recorder(httpx.BaseTransport):
    """Lets a platform answer, and takes it down."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.tape: list[Exchange] = []
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        body = response.read()
        kept = [(name, value) for name, value in response.headers.items() if name in ("content-type", "retry-after")]
        answer = Answer(status=response.status_code, headers=kept, body=body)
        self.tape.append(_exchange(request, answer))
        return httpx.Response(answer.status, headers=list(answer.headers), stream=_Chunks(body))

    def close(self) -> None:
        self._inner.close()


class Player(httpx.BaseTransport):
    """Answers as the tape did, and `malformed` in the place of its answers number such and such.

    A request that the tape does not hold gets the answer to the one that is most like it, or a 404 where none has its
    method or its path; asked again, the last answer comes again.
    """

    def __init__(self, tape: Tape, malformed: Mapping[int, Answer], clock: RoundTrips) -> None:
        self.on_request: Callable[[httpx.Request], None] = lambda _: None
        self.sent = 0  # bytes of bodies that were read
        self.asked = 0
        self.clock = clock
        self._tape, self._malformed = tape, malformed
        self._played: Counter[tuple[str, str, str, str]] = Counter()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.clock.ahead += ROUND_TRIP
        self.asked += 1
        number = self._number(request)
        answer = NO_ROUTE if number is None else self._malformed.get(number, self._tape[number].answer)
        self.on_request(request)
        return httpx.Response(answer.status, headers=list(answer.headers), stream=_Chunks(answer.body, self))

    def _number(self, request: httpx.Request) -> int | None:
        """Which of the tape's answers this request gets."""
        asked = _exchange(request, Answer())
        best = max((each.likeness(asked) for each in self._tape), default=(False,))
        if not any(best[1:3]):
            return None
        fitting = [number for number, each in enumerate(self._tape) if each.likeness(asked) == best]
        seen = (asked.method, asked.path, asked.query, asked.document)
        self._played[seen] += 1
        return fitting[min(self._played[seen], len(fitting)) - 1]


class _Chunks(httpx.SyncByteStream):
    """A body in pieces, as a socket gives it, so that httpx unpacks it as it does there."""

    def __init__(self, body: bytes, counted: Player | None = None) -> None:
        self._body, self._counted = body, counted

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), CHUNK):
            piece = self._body[start : start + CHUNK]
            if self._counted is not None:
                self._counted.sent += len(piece)
            yield piece


def _exchange(request: httpx.Request, answer: Answer) -> Exchange:
    return Exchange(
        method=request.method,
        path=request.url.raw_path.partition(b"?")[0].decode(),
        query=request.url.query.decode(),
        document=_document(request.read()),
        answer=answer,
    )


def _document(content: bytes) -> str:
    value = json.loads(content) if content else None
    document = value.get("query") if isinstance(value, dict) else None
    return document if isinstance(document, str) else ""
