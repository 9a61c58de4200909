"""What the journal's rows hold, and how they are read and written: records as JSON, moments as UTC epoch seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from rotator.errors import JournalFailed
from rotator.keys import KeyRecord
from rotator.model import RotationEvent
from rotator.reasons import Reason
from rotator.rotation import Rotation

T = TypeVar("T")
KEY: Final = TypeAdapter(KeyRecord)
ROTATION: Final = TypeAdapter(Rotation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A sealed record on its way into the journal: a secret, or an answer that holds no usable one."""

    at: datetime
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erase:
    """Asks `save` to erase the sealed blob of the rotation.

    soon: the write-ahead log, which still holds it, is emptied a moment after `save` has returned: a rotation's end
    need not wait for that.
    """

    soon: bool = False


ERASE: Final = Erase()
ERASE_SOON: Final = Erase(soon=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRow:
    """A sealed blob as it lies in the journal."""

    rotation: Rotation
    data_key: bytes = field(repr=False)
    sealed: bytes = field(repr=False)
    sealed_at: datetime
    holds_secret: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """A rotation's data key as it lies in the journal, and what it sealed: nothing yet, an answer, or a secret."""

    rotation: str
    data_key: bytes = field(repr=False)
    sealed: bool
    holds_secret: bool


def read(adapter: TypeAdapter[T], record: str) -> T:
    """A record from its JSON.

    Raises: JournalFailed JOURNAL_UNREADABLE.
    """
    try:
        return adapter.validate_json(record)
    except ValidationError as exc:
        raise JournalFailed("a record of the journal can't be read", reason=Reason.JOURNAL_UNREADABLE) from exc


def sealed_row(row: Mapping[Any, Any]) -> SealedRow:
    """A row of `rotations` whose blob is there."""
    return SealedRow(
        rotation=read(ROTATION, row["record"]),
        data_key=row["data_key"],
        sealed=row["sealed"],
        sealed_at=moment(row["sealed_at"]),
        holds_secret=row["holds_secret"],
    )


def event_row(item: RotationEvent) -> dict[str, Any]:
    """The columns of one event."""
    extra = f" {json.dumps(dict(item.extra))}" if item.extra else ""
    return {
        "at": seconds(item.at),
        "key": item.key,
        "rotation": item.rotation,
        "name": item.name,
        "step": item.step.value if item.step else None,
        "result": item.result,
        "reason": item.reason.value if item.reason else None,
        "seconds": item.seconds,
        "detail": (item.detail + extra).strip(),
    }


def seconds(at: datetime | None) -> float | None:
    """A moment as it is stored."""
    return at.timestamp() if at is not None else None


def moment(stored: float) -> datetime:
    """A moment as it was before it was stored, to the microsecond."""
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=stored)
