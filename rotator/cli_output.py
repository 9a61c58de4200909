"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from rotator.errors import RotatorError

out, err = Console(), Console(stderr=True)


def show_keys(views: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"keys": views})
        return
    table = Table("key", "state", "expires", "rotates", "Vault", "consumers", "reason")
    for view in views:
        step = f": {view['rotation']['step']}" if view["rotation"] else ""
        consumers = ", ".join(
            f"{c['name']}{' ✓' if c['confirmed_at'] else ''}{' behind' if c['lag'] else ''}" for c in view["consumers"]
        )
        version = f"v{view['vault']['version']}" if view["vault"]["version"] else "—"
        reason = f"{view['reason']}: {view['advice']}" if view["reason"] else ""
        state = f"{view['state']}{step}"
        table.add_row(
            view["name"], state, short(view["expires_at"]), short(view["rotate_at"]), version, consumers, reason
        )
    out.print(table)


def show_key(view: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    show_keys([view], as_json=False)
    if view.get("held"):
        held = view["held"]
        out.print(f"not rotated now: {held['reason']}" + (f" until {short(held['until'])}" if held["until"] else ""))
    for check in (view.get("preflight") or {}).get("checks", []):
        mark = "ok" if check["ok"] else "no"
        out.print(f"preflight {mark}: {escaped(check['check'] + ('  ' + check['detail'] if check['detail'] else ''))}")
    for event in view.get("history", []):
        words = [event["name"], event["step"], event["result"], event["reason"], event["detail"]]
        out.print(f"{short(event['at'])}  {escaped(' '.join(word for word in words if word))}", highlight=False)


def say_rotation(key: str, ended: Mapping[str, Any]) -> None:
    if ended.get("held"):
        held = ended["held"]
        until = f", until {short(held['until'])}" if held["until"] else ""
        out.print(f"{key} is asked for, and waits: {held['reason']}{until}", highlight=False)
        return
    words = ": ".join(word for word in (ended.get("reason"), ended.get("detail")) if word)
    reason = f" ({words})" if words else ""
    version = f", Vault version {ended['vault_version']}" if ended.get("vault_version") else ""
    if ended.get("resting") and not ended.get("result"):
        out.print(
            f"{key}: consumers are proven on the new secret{version}; the old key is retired later", highlight=False
        )
        return
    result = ended.get("result") or f"not at its end yet, at {ended.get('step')}"
    out.print(f"{key}: {escaped(str(result) + version + reason)}", highlight=False, soft_wrap=True)


def say_error(exc: RotatorError) -> None:
    err.print(f"[red]{escaped(exc.message)}[/red] ({exc.reason.value})", highlight=False, soft_wrap=True)
    err.print(escaped(exc.advice), highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_text(text: str) -> None:
    """As it is: it may be piped into a file."""
    print(text, end="")


def escaped(text: str) -> str:
    return text.replace("[", r"\[")


def short(moment: str | None) -> str:
    """A moment in this terminal's own time zone."""
    if moment is None:
        return "—"
    local = datetime.fromisoformat(moment).astimezone()
    today = datetime.now(UTC).astimezone().date()
    return local.strftime("%H:%M:%S" if local.date() == today else "%Y-%m-%d %H:%M")
