"""Indexes: what is sealed is found without reading all rotations; events are written faster than they are pruned."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX ix_rotations_sealed ON rotations (key) WHERE sealed IS NOT NULL")
    op.drop_index("ix_events_at", "events")


def downgrade() -> None:
    op.create_index("ix_events_at", "events", ["at"])
    op.drop_index("ix_rotations_sealed", "rotations")
