"""Somebody else's words, which may hold anything: what looks secret gives way to stars (rule 6)."""

from __future__ import annotations

import re
from typing import Final

_SHOWN: Final = 120  # characters
_READ: Final = 2000  # characters of one line, the last ones: patterns over megabytes would take their time
_STARS: Final = "***"
_NAMES: Final = r"(?:pass(?:word|wd|phrase)?|pw|secret(?:_id)?|token|key|authorization|credentials?)"
# password=WORD, "token": WORD · Bearer WORD · --password WORD, mosquitto's and others' -P WORD, curl's -u NAME:WORD
_SECRET: Final = (
    re.compile(r"(?i)\b((?:bearer|basic)\s+)\S+"),
    re.compile(rf"(?i)(\b[\w-]*{_NAMES}[\"']?\s*[=:]\s*)\S+"),
    re.compile(rf"(?i)((?<!\S)--?[\w-]*{_NAMES}[\w-]*\s+)\S+"),
    re.compile(r"((?<!\S)-P\s+)\S+"),
    re.compile(r"((?<!\S)(?:-u|--user)\s+[^\s:]+:)\S+"),
)
_LONG: Final = re.compile(r"[^\s/]{20,}")  # every word that is long enough to be one, but for the parts of a path
_LOGIN: Final = re.compile(r"//[^/\s@]+@")


def starred(text: str) -> str:
    """On one line, with stars for what may be a secret; the end of what is very long."""
    if len(text) > _READ:
        text = text[-_READ:].partition(" ")[2] or _STARS  # a word that was cut in two is not known for what it is
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    for pattern in _SECRET:
        line = pattern.sub(rf"\1{_STARS}", line)
    return _LONG.sub(_STARS, _LOGIN.sub(f"//{_STARS}@", line))


def shown(text: str) -> str:
    """As `starred`, and cut short."""
    line = starred(text)
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "…"
