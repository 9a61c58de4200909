"""The journal's tables. Alembic's migrations make them; this module is what the code reads and writes by."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text, text

metadata = MetaData()

# Moments are UTC epoch seconds (REAL keeps microseconds): they sort, compare and index as they are.
keys = Table(
    "keys",
    metadata,
    Column("name", String, primary_key=True),
    Column("wake_at", Float, nullable=True, index=True),
    Column("record", Text, nullable=False),
)

rotations = Table(
    "rotations",
    metadata,
    Column("id", String, primary_key=True),
    Column("key", String, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float, nullable=True),
    Column("record", Text, nullable=False),
    Column("data_key", LargeBinary, nullable=True),  # wrapped
    Column("sealed", LargeBinary, nullable=True),
    Column("sealed_at", Float, nullable=True),
    Column("holds_secret", Boolean, nullable=False, default=False),  # else the blob is an answer without a secret
    Index("ix_rotations_key_started", "key", "started_at"),
    Index("ix_rotations_open", "key", "finished_at"),
    Index("ix_rotations_sealed", "key", sqlite_where=text("sealed IS NOT NULL")),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("key", String, nullable=False, index=True),
    Column("rotation", String, nullable=True),
    Column("name", String, nullable=False),
    Column("step", String, nullable=True),
    Column("result", String, nullable=False, default=""),
    Column("reason", String, nullable=True),
    Column("seconds", Float, nullable=True),
    Column("detail", Text, nullable=False, default=""),
)

facts = Table(
    "facts",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
