"""Whether a consumer starts with what Vault holds now: `kill_refusal.py REFUSAL VAULT TOKEN-FILE PATH`, exit 0 or 1.

The file REFUSAL holds the SHA-256 of the one password that it takes.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from rotator.sandbox.consumer import read_vault


def digest(password: str) -> str:
    """What the file holds."""
    return hashlib.sha256(password.encode()).hexdigest()


if __name__ == "__main__":
    refusal, vault, token, path = sys.argv[1:]
    held = read_vault(vault, Path(token).read_text(encoding="utf-8").strip(), path)
    sys.exit(digest(held.password) != Path(refusal).read_text(encoding="utf-8"))
