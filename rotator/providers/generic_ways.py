"""The three strategies of a configured platform, and the end of old sessions where that is configured too."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rotator.errors import Permanent
from rotator.model import MARKER, Identity, Issued, Secret, Strategy
from rotator.providers.expressions import Unfit
from rotator.providers.generic import Calls, Platform, who
from rotator.providers.generic_reading import Asked, found, page, soft, soft_text, text, words
from rotator.providers.generic_settings import Evict, GenericPart, Result, Step
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

_WITH_BLANK: Final = re.compile(r" ?" + MARKER.pattern)


class InPlacePlatform(Platform):
    """A platform that makes a new secret for the same key (ports.InPlace)."""

    def issue(self, identity: Identity, current: Secret | None = None) -> Issued:
        """Have a new secret issued, in place.

        Raises:
            Transient, Permanent: nothing was issued (KEY_UNKNOWN, KEY_INACTIVE, PROVIDER_AUTH, PROVIDER_REFUSED).
            UnknownOutcome: the request may have taken effect.
            BadAnswer: NO_SECRET, EMPTY_SECRET, PROVIDER_ANSWER_UNREADABLE.
        """
        step, deadline = self._configured("issue"), self._calls.deadline(self.issue_deadline)
        shown = current.reveal() if current is not None else ""
        if self.abilities.needs_current and not shown:
            text = f"{self.name}: issue: the platform asks for the current secret, and nobody has it"
            raise Permanent(text, reason=Reason.PROVIDER_REFUSED)
        original = self._original(step, identity, "issue", deadline)
        asked = self._calls.ask(
            step,
            {**who(identity), "current": shown},
            operation="issue",
            deadline=deadline,
            original=original.value if original is not None else None,
            changes=True,
            hidden=[shown],
        )
        return self._issued(lambda asked: self._same(asked, step, identity), asked, step, identity.id)

    def _same(self, asked: Asked, step: Step, identity: Identity) -> Identity:
        answered = soft_text(step.result.id, asked.value)
        if answered is not None and answered.lower() != identity.id.lower():
            raise asked.reply.bad("the answer is about another key", Reason.PROVIDER_ANSWER_UNREADABLE)
        return identity


class ReplacingPlatform(Platform):
    """A platform where a second key is made beside the old one (ports.Replacing)."""

    @property
    def deactivates(self) -> bool:
        """Whether a key can be made useless without being deleted."""
        return self._steps.deactivate is not None

    def create(self, identity: Identity, marker: str) -> Issued:
        """Make a key as `create` says, marked so that the list shows whose it is.

        Raises:
            Transient, Permanent: nothing was made (KEY_UNKNOWN, KEY_INACTIVE: the original).
            UnknownOutcome: a key may have been made.
            BadAnswer: NO_SECRET, EMPTY_SECRET, PROVIDER_ANSWER_UNREADABLE (no text, or no new key is named).
        """
        step, deadline = self._configured("create"), self._calls.deadline(self.issue_deadline)
        original = self._original(step, identity, "create", deadline)
        asked = self._calls.ask(
            step,
            {**who(identity), "marker": marker, "name": self._name_of(original)},
            operation="create",
            deadline=deadline,
            original=original.value if original is not None else None,
            changes=True,
        )
        return self._issued(lambda asked: self._made(asked, step, identity), asked, step, identity.id)

    def _name_of(self, original: Asked | None) -> str:
        """The original's name without the marker of an older rotation."""
        get = self._steps.get
        if original is None or get is None:
            return ""
        return _WITH_BLANK.sub("", words(get.result.name, original.value)).strip()

    def _made(self, asked: Asked, step: Step, original: Identity) -> Identity:
        try:
            id = text(step.result.id, asked.value)
            if id is None or id.lower() == original.id.lower():
                raise Unfit("the answer names no new key")
            return self._identity(id, step.result, asked.value)
        except Unfit as exc:
            raise asked.reply.bad(str(exc), Reason.PROVIDER_ANSWER_UNREADABLE) from None


class ChoosingPlatform(Platform):
    """A platform where the caller chooses the secret (ports.Choosing)."""

    def choose(self) -> Secret:
        """A random secret of the configured alphabet; nobody hears of it yet."""
        rules = self._settings.secret
        return Secret("".join(secrets.choice(rules.alphabet) for _ in range(rules.length)))

    def set_secret(self, identity: Identity, secret: Secret) -> Issued:
        """Make `secret` the secret of `identity`.

        Raises:
            Transient, Permanent: the old secret is still the one (KEY_UNKNOWN: no such key).
            UnknownOutcome: the request may have taken effect.
        """
        step, deadline = self._configured("set"), self._calls.deadline(self.issue_deadline)
        original = self._original(step, identity, "set", deadline)
        asked = self._calls.ask(
            step,
            {**who(identity), "secret": secret.reveal()},
            operation="issue",
            deadline=deadline,
            original=original.value if original is not None else None,
            changes=True,
            hidden=[secret.reveal()],
        )
        if asked.absent:
            raise self._unknown_key("issue", identity.id)
        if asked.failure is not None:
            raise asked.failure
        issued_at = parse_timestamp(soft(step.result.issued_at, asked.value))
        expires_at, source = self._expiry(issued_at, soft(step.result.expires_at, asked.value), None)
        return Issued(
            identity=identity, secret=secret, issued_at=issued_at, expires_at=expires_at, expiry_source=source
        )


# --- the end of old sessions


@dataclass(frozen=True, slots=True)
class _Session:
    id: str
    started_at: datetime | None


class _Evicts(Platform):
    """Ends sessions that a change of secret left alive (ports.Evicting)."""

    def evict(self, identity: Identity, before: datetime) -> int:
        """End the sessions of this username that began before `before`, or whose beginning the platform does not tell.

        Returns: how many; those that were gone by then are not counted.

        Raises: Transient; Permanent, once all others are ended: one client with an odd id must not protect them.
        """
        steps = self._steps.evict
        assert steps is not None, "made() gives this class only to platforms that have it"
        deadline, ended = self._calls.deadline(self._look), 0
        refused: Permanent | None = None
        for session in self._sessions(steps, identity, deadline):
            if session.started_at is not None and session.started_at >= before:
                continue
            try:
                ended += self._ended(steps, identity, session, deadline)
            except Permanent as exc:
                refused = exc
        if refused is not None:
            raise refused
        return ended

    def _ended(self, steps: Evict, identity: Identity, session: _Session, deadline: float) -> bool:
        values = {**who(identity), "session": session.id}
        asked = self._calls.ask(steps.delete, values, operation="evict", deadline=deadline)
        if asked.failure is not None and not asked.absent:
            raise asked.failure
        return not asked.absent

    def _sessions(self, steps: Evict, identity: Identity, deadline: float) -> list[_Session]:
        def read(id: str, entry: Any, result: Result) -> _Session:
            return _Session(id, parse_timestamp(found(result.started_at, entry)))

        sessions = self._calls.pages(
            steps.list,
            who(identity),
            lambda asked: page(asked, steps.list.result, read),
            operation="list_sessions",
            deadline=deadline,
        )
        return list(sessions.values())


class EvictingInPlacePlatform(_Evicts, InPlacePlatform):
    """In place, and old sessions are ended."""


class EvictingReplacingPlatform(_Evicts, ReplacingPlatform):
    """By a second key, and old sessions are ended."""


class EvictingChoosingPlatform(_Evicts, ChoosingPlatform):
    """Chosen by the caller, and old sessions are ended."""


_WAYS: Final[Mapping[Strategy, tuple[type[Platform], type[Platform]]]] = {
    Strategy.IN_PLACE: (InPlacePlatform, EvictingInPlacePlatform),
    Strategy.REPLACE: (ReplacingPlatform, EvictingReplacingPlatform),
    Strategy.CHOSEN: (ChoosingPlatform, EvictingChoosingPlatform),
}


def made(calls: Calls, settings: GenericPart) -> Platform:
    """The platform of a section; one without `evict` is no `ports.Evicting`."""
    plain, evicting = _WAYS[settings.way]
    return (plain if calls.steps.evict is None else evicting)(calls, settings)
