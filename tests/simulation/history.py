"""What happened in a simulated year, one line each; the same seed gives the same lines."""

from __future__ import annotations

import hashlib
from datetime import datetime


class History:
    """Moments of true time, and what happened then."""

    def __init__(self) -> None:
        self._lines: list[tuple[datetime, str]] = []

    def tell(self, at: datetime, text: str) -> None:
        """Add a line."""
        self._lines.append((at, text))

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self) -> list[str]:
        """All of it, as text."""
        return [f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 100:04} {text}" for at, text in self._lines]

    def digest(self) -> str:
        """Equal for equal histories."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()
