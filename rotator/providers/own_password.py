"""The password of the daemon's own login at a broker whose keys include that login.

A rotation of that key changes it under the provider: between the change and the promote, and for ever where the
password is read from a file, the reference names one that the broker no longer takes.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterable, Mapping
from typing import Final

from rotator.errors import Permanent, RotatorError
from rotator.model import Secret
from rotator.ports import Reveal
from rotator.reasons import Reason

REMEMBERED: Final = 4  # passwords that this process has set: the new one, the one before it after a way back, and room


class OwnPassword:
    """What to log in with: the reference first, and where that is refused, what was set last. Thread safe.

    Args:
        username: the login.
        read: the reference, read at each login.
        in_vault: whether the reference is `{vault: …}`, where a rotation leaves the new password. Elsewhere it would
            go stale for good, so the login is not rotated.
    """

    def __init__(self, username: str, read: Reveal, *, in_vault: bool = False) -> None:
        self.username = username
        self.in_vault = in_vault
        self._read = read
        self._lock = threading.Lock()
        self._set: tuple[str, ...] = ()  # latest first

    def expect(self, secret: Secret) -> None:
        """`secret` is about to become the password, and may be it from now on."""
        value = secret.reveal()
        with self._lock:
            self._set = (value, *(each for each in self._set if each != value))[:REMEMBERED]

    def candidates(self) -> tuple[str, ...]:
        """The passwords to try, in this order; one, unless this process has set it.

        Raises: what reading the reference raises, where there is nothing else to try.
        """
        with self._lock:
            known = self._set
        try:
            return tuple(dict.fromkeys((self._read(), *known)))
        except RotatorError:
            if not known:
                raise
            return known


class Basic:
    """Basic authentication with whichever of the own passwords the broker takes. It is an `Auth`. Thread safe."""

    def __init__(self, name: str, own: OwnPassword) -> None:
        self._name = name
        self._own = own
        self._lock = threading.Lock()
        self._refused: set[str] = set()  # headers; never all that there are

    def headers(self, deadline: float) -> Mapping[str, str]:
        """The header with the first password that was not refused of late."""
        shown = [self._shown(password) for password in self._own.candidates()]
        with self._lock:
            return {"Authorization": next((each for each in shown if each not in self._refused), shown[0])}

    def refused(self, used: Mapping[str, str]) -> bool:
        """Whether there is another password to try."""
        shown = {self._shown(password) for password in self._own.candidates()}
        with self._lock:
            self._refused.add(used["Authorization"])
            if shown <= self._refused:
                self._refused = {used["Authorization"]}  # one that was refused once may be the right one again
            return not shown <= self._refused

    def secrets(self) -> Iterable[str]:
        """The passwords, and what they are sent as."""
        passwords = self._own.candidates()
        return [*passwords, *(self._shown(password).removeprefix("Basic ") for password in passwords)]

    def _shown(self, password: str) -> str:
        try:
            login = f"{self._own.username}:{password}".encode()
        except UnicodeEncodeError:
            text = f"{self._name}: the login can't be sent as text"
            raise Permanent(text, reason=Reason.PROVIDER_AUTH) from None
        return f"Basic {base64.b64encode(login).decode()}"
