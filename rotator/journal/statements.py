"""What runs at every step of a rotation: written in SQLAlchemy Core, compiled once, run by the driver.

Core's own way through a statement (cache key, compiled cache, result) costs several times what SQLite does with it.
Parameters go by the columns' names; rare statements stay in `sqlite`, in Core.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from sqlite3 import Connection as DriverConnection
from typing import Any

from sqlalchemy import Table, bindparam, false, insert, null, select, update
from sqlalchemy.dialects.sqlite import dialect

from rotator.journal import rows
from rotator.journal.rows import Blob, Erase
from rotator.journal.tables import events, keys, rotations
from rotator.keys import KeyRecord
from rotator.model import RotationEvent
from rotator.rotation import Rotation

_DIALECT = dialect(paramstyle="named")


def _compiled(statement: Any, *columns: str) -> str:
    return str(statement.compile(dialect=_DIALECT, column_keys=columns or None))


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


KEY = _compiled(select(keys.c.record).where(keys.c.name == bindparam("name")))
OPEN_ROTATION = _compiled(
    select(rotations.c.record).where(rotations.c.key == bindparam("name"), rotations.c.finished_at.is_(None))
)
DATA_KEY = _compiled(select(rotations.c.data_key).where(rotations.c.id == bindparam("name")))
UPCOMING = _compiled(select(keys.c.name, keys.c.wake_at).where(keys.c.wake_at.is_not(None)).order_by(keys.c.wake_at))
_INSERT_EVENT = _compiled(insert(events), *(name for name in _names(events) if name != "id"))
_ERASE = _compiled(
    update(rotations)
    .where(rotations.c.key == bindparam("of_key"), rotations.c.sealed.is_not(None))
    .values(sealed=null(), sealed_at=null(), holds_secret=false(), data_key=null())
)


@cache
def _update(table: Table, identity: str, columns: frozenset[str]) -> str:
    """An UPDATE of these columns of the row `:this`: a column that is not named leaves its index alone."""
    statement = update(table).where(table.c[identity] == bindparam("this"))
    return _compiled(statement, *(name for name in _names(table) if name in columns))


@cache
def _insert(table: Table, columns: frozenset[str]) -> str:
    return _compiled(insert(table), *(name for name in _names(table) if name in columns))


def save_key(driver: DriverConnection, record: KeyRecord, before: KeyRecord | None) -> None:
    """Write a key's record; `before` is what the row holds."""
    values: dict[str, Any] = {"record": rows.KEY.dump_json(record).decode()}
    if before is None or before.wake_at != record.wake_at:
        values["wake_at"] = rows.seconds(record.wake_at)
    _save(driver, keys, "name", record.name, values, {})


def save_rotation(
    driver: DriverConnection,
    rotation: Rotation,
    data_key: bytes | None,
    blob: Blob | Erase | None,
    *,
    is_open: bool,
) -> None:
    """Write a rotation; `is_open`: its row is there, and says that it has not ended."""
    values: dict[str, Any] = {"record": rows.ROTATION.dump_json(rotation).decode(), "holds_secret": rotation.sealed}
    if rotation.finished_at is not None or not is_open:
        values["finished_at"] = rows.seconds(rotation.finished_at)
    if data_key is not None:
        values["data_key"] = data_key
    match blob:
        case Blob():
            values |= {"sealed": blob.sealed, "sealed_at": rows.seconds(blob.at)}
        case Erase():
            # also what older rotations of this key left behind: their secrets are dead now
            driver.execute(_ERASE, {"of_key": rotation.key})
            values |= {"sealed": None, "sealed_at": None, "data_key": None}
        case None:
            pass
    fixed = {"key": rotation.key, "started_at": rows.seconds(rotation.started_at)}
    _save(driver, rotations, "id", rotation.id, values, fixed)


def save_history(driver: DriverConnection, history: Sequence[RotationEvent]) -> None:
    """Append events."""
    driver.executemany(_INSERT_EVENT, [rows.event_row(event) for event in history])


def _save(
    driver: DriverConnection, table: Table, identity: str, this: str, values: dict[str, Any], fixed: dict[str, Any]
) -> None:
    """Update a row, or insert it with the columns that never change as well."""
    changed = driver.execute(_update(table, identity, frozenset(values)), {**values, "this": this})
    if not changed.rowcount:
        row = {**values, **fixed, identity: this}
        driver.execute(_insert(table, frozenset(row)), row)
