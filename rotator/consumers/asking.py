"""Proof by asking: a watch that asks again and again, for as long as somebody waits for its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from rotator.consumers.confirm import Sightings
from rotator.errors import RotatorError, Transient
from rotator.model import Sighting
from rotator.ports import Clock
from rotator.reasons import Reason

PAUSE: Final = 1.0  # seconds between an answer and the next question

# One question: the proof in a few words, or None for "not yet". Raises Transient where nobody answers (not yet either),
# and Permanent where asking itself can't work, so that no answer proves nothing.
Ask = Callable[[], str | None]

log = structlog.get_logger(__name__)


class Asking:
    """Asks from a thread of its own, at most once in `pause` seconds: what the watches that ask share.

    Nothing is asked while nobody looks at `sightings` or waits: a watch may be kept open for a day.

    Args:
        name: the consumer's, for the thread and the log.
        stop: set by `close`, so that a question can be cut short.
    """

    def __init__(self, name: str, *, clock: Clock, stop: threading.Event, pause: float) -> None:
        self._name, self._clock, self._pause = name, clock, pause
        self._seen, self._stop = Sightings(), stop
        self._problem = ""
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"rotator-ask {name}")
        self._thread.start()

    def sightings(self) -> Sequence[Sighting]:
        """All proofs so far, oldest first; a new question is asked soon."""
        self._wanted.set()
        return self._seen.sightings()

    def losses(self) -> Sequence[Sighting]:
        """Who was seen to go, oldest first."""
        return self._seen.losses()

    def wait(self, timeout: float) -> None:
        """Return when a proof came since the last `wait`, or after `timeout` seconds."""
        self._wanted.set()
        self._seen.wait(timeout)

    def healthy(self) -> str:
        """Empty while asking works, whatever is answered; else why it does not."""
        return self._problem

    def close(self) -> None:
        """Ask no more, and end the thread, which a question that can't be cut short holds up."""
        self._stop.set()
        self._wanted.set()
        self._thread.join(1.0)

    def _question(self) -> None:
        """Ask once, and keep what is seen. Raises: RotatorError."""
        raise NotImplementedError

    def _unanswered(self, error: Transient) -> str:
        """What nobody's answer means for the watch's health."""
        raise NotImplementedError

    def _run(self) -> None:
        while self._wanted.wait() and not self._stop.is_set():
            self._wanted.clear()
            self._look()
            self._stop.wait(self._pause)

    def _look(self) -> None:
        try:
            self._question()
            self._problem = ""
        except Transient as exc:
            self._problem = self._unanswered(exc)
            log.debug("not_confirmed_yet", consumer=self._name, reason=exc.message)
        except RotatorError as exc:
            if not self._stop.is_set():
                self._problem = exc.message
        except Exception:  # a fault of our own ends the thread; a watch that no longer asks must not seem to
            self._problem = Reason.UNFORESEEN.value
            raise


class AskingWatch(Asking):
    """Asks the consumer, or who knows, which version it runs on (ports.Watch).

    Args:
        ask: the question; called in the thread.
    """

    def __init__(self, name: str, *, ask: Ask, clock: Clock, stop: threading.Event, pause: float = PAUSE) -> None:
        self._ask = ask
        super().__init__(name, clock=clock, stop=stop, pause=pause)

    def _question(self) -> None:
        began = self._clock.now()  # an answer may be as old as its question
        proof = self._ask()
        if proof is not None:
            self._seen.add(Sighting(at=began, detail=proof))

    def _unanswered(self, error: Transient) -> str:
        """A consumer that does not answer is not up yet."""
        return ""
