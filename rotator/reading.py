"""The journal opened for reading only: what `status` and `history` say while no daemon runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rotator.control import NoSuchKey
from rotator.discovery import is_configured, path_of
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import KeyRecord
from rotator.settings import Settings
from rotator.views import event_view, key_view, rotation_view


class JournalReader:
    """Answers the daemon's questions from the file alone (the same shapes as `control.Control`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._journal = SqliteJournal(settings.state.url, read_only=True)

    def keys(self) -> list[dict[str, Any]]:
        """All configured keys that the journal knows."""
        rotations, last, now = self._journal.open_rotations(), self._journal.last_events(), datetime.now(UTC)
        return [
            self._with_path(key_view(record, rotations.get(record.name), last.get(record.name), None, now), record)
            for record in self._journal.all_keys()
            if is_configured(self._settings, record)
        ]

    def key(self, name: str) -> dict[str, Any]:
        """One key with its history.

        Raises: NoSuchKey.
        """
        record = self._journal.key(name)
        if record is None or not is_configured(self._settings, record):
            raise NoSuchKey(name)
        history = self._journal.history(key=name, limit=50)
        now = datetime.now(UTC)
        view = key_view(record, self._journal.open_rotation(name), history[0] if history else None, None, now)
        shown = {**view, "held": None, "history": [event_view(event) for event in history]}
        return self._with_path(shown, record)

    def rotations(self, key: str | None = None) -> list[dict[str, Any]]:
        """The last rotations.

        Raises: NoSuchKey for a key that there never was.
        """
        found = self._journal.recent_rotations(key=key)
        if key is not None and not found:
            self.key(key)
        return [rotation_view(rotation) for rotation in found]

    def checks(self) -> dict[str, Any]:
        """What /readyz says of each peer: nothing, since nobody looks while no daemon runs."""
        return {}

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def _with_path(self, view: dict[str, Any], record: KeyRecord) -> dict[str, Any]:
        view["vault"]["path"] = path_of(self._settings, record)
        return view
