"""The durable record of rotations: SQLite by SQLAlchemy Core, one writer thread, secrets sealed."""
