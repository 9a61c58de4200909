"""What the daemon's keys look like on a terminal: a live picture by rich, or one plain line for each change.

Both read the JSON of `GET /api/keys`. A field that is missing or null is left out of the picture, never an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Key = Mapping[str, Any]
COLOURS = {
    "ok": "green",
    "due": "yellow",
    "rotating": "cyan",
    "waiting": "yellow",
    "paused": "blue",
    "overdue": "red",
    "expired": "bold red",
    "quarantined": "bold magenta",
    "blocked": "red",
}
BAR = 24


def moment(text: object) -> datetime | None:
    """An ISO 8601 moment, or None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def keys_of(answer: object) -> list[Key]:
    """The keys in an answer of `/api/keys`; whatever is not one is left out."""
    keys = answer.get("keys") if isinstance(answer, dict) else None
    return [key for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []


def remaining(key: Key, now: datetime) -> tuple[timedelta, float] | None:
    """The life that a key's secret has left, and as a share of all of it; None where that can't be known."""
    issued, expires = moment(key.get("issued_at")), moment(key.get("expires_at"))
    if issued is None or expires is None or expires <= issued:
        return None
    left = max(expires - now, timedelta(0))
    return left, min(left / (expires - issued), 1.0)


def until_rotation(key: Key, now: datetime) -> tuple[timedelta, float] | None:
    """The time until a key that does not expire is rotated, and as a share of its secret's age by then."""
    return remaining({"issued_at": key.get("issued_at"), "expires_at": key.get("rotate_at")}, now)


def phase(key: Key) -> str:
    """`rotating: restart`, or the state alone."""
    state, step = str(key.get("state") or "unknown"), _part(key, "rotation").get("step")
    return f"{state}: {step}" if step else state


def live(keys: Sequence[Key], now: datetime, notes: Sequence[str]) -> RenderableType:
    """The picture.

    Args:
        keys: of `/api/keys`.
        now: aware; for the bars.
        notes: lines below the table: where things are, and how to leave.
    """
    table = Table(expand=True, pad_edge=False)
    for title in ("key", "life left", "phase", "Vault", "consumers", "last event"):
        table.add_column(title, overflow="fold")
    for key in keys:
        version = _part(key, "vault").get("version")
        table.add_row(
            Text(str(key.get("name") or "?"), style="bold"),
            _bar(key, now),
            _phase(key),
            "" if version is None else f"version {version}",
            Text("\n").join(_consumer(one) for one in _consumers(key)),
            _event(key, now),
        )
    if not keys:
        table.add_row("", "", Text("waiting for the daemon …", style="dim"), "", "", "")
    return Panel(Group(table, Text("\n".join(notes), style="dim")), title="rotator demo")


def changes(before: Sequence[Key], after: Sequence[Key]) -> Iterator[str]:
    """One line for each thing that is different, such as `building-a  rotating: restart`."""
    known = {str(key.get("name")): key for key in before}
    width = max((len(str(key.get("name"))) for key in after), default=0)
    for key in after:
        name = str(key.get("name"))
        for text in _key_changes(known.get(name, {}), key):
            yield f"{name:<{width}}  {text}"


def _key_changes(old: Key, new: Key) -> Iterator[str]:
    if not old or phase(old) != phase(new) or old.get("reason") != new.get("reason"):
        reason = new.get("reason")
        yield f"{phase(new)} ({reason})" if reason else phase(new)
    version = _part(new, "vault").get("version")
    if version is not None and version != _part(old, "vault").get("version"):
        yield f"Vault holds version {version}"
    earlier = {one.get("name"): one for one in _consumers(old)}
    for one in _consumers(new):
        was = earlier.get(one.get("name"), {})
        for field, word in (("restarted_at", "restarted"), ("confirmed_at", "confirmed")):
            if one.get(field) and one.get(field) != was.get(field):
                yield f"{one.get('name')} {word} on version {one.get('version')}"
    event = _part(new, "last_event")
    if event and event != _part(old, "last_event") and event.get("reason"):
        yield "  ".join(
            str(event[field]) for field in ("name", "step", "result", "reason", "detail") if event.get(field)
        )


def _part(key: Key, field: str) -> Mapping[str, Any]:
    found = key.get(field)
    return found if isinstance(found, dict) else {}


def _consumers(key: Key) -> list[Mapping[str, Any]]:
    found = key.get("consumers")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _bar(key: Key, now: datetime) -> Text:
    left = remaining(key, now)
    if left is not None:
        colour = "green" if left[1] > 1 / 3 else "yellow" if left[1] > 0.1 else "red"
        return _drawn(left[1], colour).append(f" {_short(left[0])}", style=colour)
    left = until_rotation(key, now) if key.get("expires_at") is None else None
    if left is not None:  # nothing dies then, so no colour warns
        return _drawn(left[1], "blue").append(f" {_short(left[0])} to rotation", style="blue")
    return Text("unknown", style="dim")


def _drawn(share: float, colour: str) -> Text:
    full = round(share * BAR)
    return Text("█" * full, style=colour).append("░" * (BAR - full), style="dim")


def _phase(key: Key) -> Text:
    text = Text(phase(key), style=COLOURS.get(str(key.get("state")), "white"))
    if key.get("reason"):
        text.append(f"\n{key['reason']}", style="dim")
    return text


def _consumer(one: Mapping[str, Any]) -> Text:
    lag = one.get("lag")
    mark, colour = ("✓", "green") if one.get("confirmed_at") and not lag else ("·", "yellow")
    version = one.get("version")
    return Text(f"{mark} {one.get('name') or '?'}", style=colour).append("" if version is None else f" v{version}")


def _event(key: Key, now: datetime) -> Text:
    event = _part(key, "last_event")
    text = Text(" ".join(str(event[field]) for field in ("name", "step", "result") if event.get(field)))
    at = moment(event.get("at"))
    if at is not None:
        text.append(f"\n{_short(max(now - at, timedelta(0)))} ago", style="dim")
    return text


def _short(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
