"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from rotator.errors import RotatorError
from rotator.reasons import ADVICE, Reason

out, err = Console(), Console(stderr=True)

# What a person does about what the operating system refuses.
_NEXT_STEPS = {
    errno.EEXIST: "It stays as it is: name a file that is not there yet.",
    errno.ENOENT: "Check the path: a relative one begins in the directory that the command is run in.",
    errno.ENOSPC: "Make room on this disk, then do the same again.",
    errno.EDQUOT: "Make room within this user's quota, then do the same again.",
    errno.EROFS: "Mount this file system for writing, or name another place.",
    errno.EACCES: "Check the owner and the mode of this path and of the folders above it.",
    errno.EPERM: "Check the owner and the mode of this path and of the folders above it.",
}


def show_status(views: list[dict[str, Any]], checks: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"keys": views, "checks": checks})
        return
    show_keys(views, as_json=False)
    show_failing(checks)


def show_failing(checks: Mapping[str, Any]) -> None:
    """A line for each peer that fails, and for the journal."""
    for name, check in checks.items():
        if not check["ok"] and check["reason"] != Reason.NOT_DUE:  # not looked at yet
            words = f"{name}: {check['reason']} ({check['detail']}): {check['advice']}"
            out.print(escaped(words), highlight=False, soft_wrap=True)


def show_keys(views: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"keys": views})
        return
    reasons = Column("reason", no_wrap=True)  # the others are folded first where there is little room
    table = Table("key", "state", "expires", "rotates", "Vault", "consumers", reasons)
    for view in views:
        step = f": {view['rotation']['step']}" if view["rotation"] else ""
        consumers = ", ".join(
            f"{c['name']}{' ✓' if c['confirmed_at'] else ''}{' behind' if c['lag'] else ''}" for c in view["consumers"]
        )
        version = f"v{view['vault']['version']}" if view["vault"]["version"] else "—"
        state, reason = f"{view['state']}{step}", view["reason"] or ""
        table.add_row(
            view["name"], state, short(view["expires_at"]), short(view["rotate_at"]), version, consumers, reason
        )
    out.print(table)
    for view in views:
        if view["reason"]:
            out.print(f"{view['name']}: {view['reason']}: {escaped(view['advice'])}", highlight=False, soft_wrap=True)


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
    unended = f"not at its end yet, at {ended['step']}" if ended else "asked for, and not begun yet"
    result = ended.get("result") or unended
    out.print(f"{key}: {escaped(str(result) + version + reason)}", highlight=False, soft_wrap=True)
    if ended.get("reason") and ended.get("result") != "succeeded":
        out.print(escaped(ADVICE[Reason(ended["reason"])]), highlight=False, soft_wrap=True)


def say_error(exc: RotatorError) -> None:
    err.print(f"[red]{escaped(exc.message)}[/red] ({exc.reason.value})", highlight=False, soft_wrap=True)
    err.print(escaped(exc.advice), highlight=False, soft_wrap=True)


def say_os_error(exc: OSError) -> None:
    """What the operating system refused, where, and the next step."""
    what, where = exc.strerror or str(exc), f": {exc.filename}" if exc.filename else ""
    err.print(escaped(f"{what}{where}"), highlight=False, soft_wrap=True)
    advice = _NEXT_STEPS.get(exc.errno or 0)
    if advice is not None:
        err.print(advice, highlight=False, soft_wrap=True)


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
