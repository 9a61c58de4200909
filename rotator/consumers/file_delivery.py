"""Delivery by a file that somebody else writes (Vault Agent, a script): has the new secret arrived in it?"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterator
from datetime import datetime
from typing import Final
from urllib.parse import quote, quote_plus

from rotator.errors import Permanent, Transient
from rotator.model import Order, Secret
from rotator.reasons import Reason

LONGEST: Final = 1 << 20  # bytes
_GO: Final = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


class FileDelivery:
    """Waits for the content of a file (ports.Delivery); nothing of it is kept, logged or told.

    Args:
        name: the consumer's name in the configuration.
        path: the file; it need not be there yet, but its folder must be.
    """

    def __init__(self, name: str, *, path: str) -> None:
        self._name, self._path = name, path

    def preflight(self) -> None:
        """See whether the folder is there, and the file, where it is there, can be read.

        Raises: Permanent (CONSUMER_MISSING, CONSUMER_FORBIDDEN); Transient.
        """
        folder = os.path.dirname(self._path) or "."
        if not os.path.isdir(folder):
            raise Permanent(f"{self._name}: there is no folder {folder}", reason=Reason.CONSUMER_MISSING)
        self._content()

    def ask(self, order: Order) -> None:
        """Nothing: who writes the file can't be asked."""

    def arrived(self, order: Order, secret: Secret, since: datetime) -> bool:
        """Whether the file holds the secret: as it is, escaped for JSON, or encoded for a URL or by base64.

        Raises: Permanent (CONSUMER_FORBIDDEN, CONSUMER_MISSING); Transient.
        """
        content = self._content()
        return content is not None and bool(secret) and any(form in content for form in _forms(secret.reveal()))

    def _content(self) -> bytes | None:
        """The file's bytes; None where it is not there (yet)."""
        try:
            # non-blocking, so that a named pipe is refused below instead of waited for
            with open(self._path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise Permanent(f"{self._name}: {self._path} is no file", reason=Reason.CONSUMER_MISSING)
                content = file.read(LONGEST + 1)
        except FileNotFoundError:
            return None
        except PermissionError as exc:
            text = f"{self._name}: this user may not read {self._path}"
            raise Permanent(text, reason=Reason.CONSUMER_FORBIDDEN) from exc
        except IsADirectoryError as exc:
            raise Permanent(f"{self._name}: {self._path} is a folder", reason=Reason.CONSUMER_MISSING) from exc
        except (OSError, ValueError) as exc:
            said = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
            raise Transient(f"{self._name}: {self._path}: {said}", reason=Reason.CONSUMER_RESTART_FAILED) from exc
        if len(content) > LONGEST:
            text = f"{self._name}: {self._path} is longer than 1 MiB: name the file that holds the secret alone"
            raise Permanent(text, reason=Reason.CONSUMER_MISSING)
        return content


def _forms(secret: str) -> Iterator[bytes]:
    """The secret as a file may hold it."""
    raw = secret.encode("utf-8", "surrogateescape")
    yield raw
    yield json.dumps(secret)[1:-1].encode()
    yield json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8", "surrogateescape")
    yield json.dumps(secret)[1:-1].replace("/", "\\/").encode()
    # Go's, as `toJSON` of Vault Agent's templates writes it
    yield json.dumps(secret, ensure_ascii=False)[1:-1].translate(_GO).encode("utf-8", "surrogateescape")
    yield quote(raw, safe="").encode()
    yield quote(raw).encode()
    yield quote_plus(raw).encode()
    # without its end, so that a newline behind the secret, which `echo` adds, changes nothing
    yield base64.b64encode(raw).rstrip(b"=")
    yield base64.urlsafe_b64encode(raw).rstrip(b"=")
