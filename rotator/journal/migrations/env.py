"""Alembic's entry: runs on the connection that the journal hands over; there is no alembic.ini to keep in step."""

from alembic import context

from rotator.journal.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
