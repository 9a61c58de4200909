"""The durable record of rotations: SQLite by SQLAlchemy Core, grouped commits, secrets sealed."""
