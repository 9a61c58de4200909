"""The first tables: keys, rotations, events, facts."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("wake_at", sa.Float(), nullable=True),
        sa.Column("record", sa.Text(), nullable=False),
    )
    op.create_index("ix_keys_wake_at", "keys", ["wake_at"])
    op.create_table(
        "rotations",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("data_key", sa.LargeBinary(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("sealed_at", sa.Float(), nullable=True),
        sa.Column("holds_secret", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_rotations_key_started", "rotations", ["key", "started_at"])
    op.create_index("ix_rotations_open", "rotations", ["key", "finished_at"])
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("rotation", sa.String(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("step", sa.String(), nullable=True),
        sa.Column("result", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
    )
    op.create_index("ix_events_at", "events", ["at"])
    op.create_index("ix_events_key", "events", ["key"])
    op.create_table(
        "facts",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("value", sa.LargeBinary(), nullable=False),
    )


def downgrade() -> None:
    for table in ("facts", "events", "rotations", "keys"):
        op.drop_table(table)
