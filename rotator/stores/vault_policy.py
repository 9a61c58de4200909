"""What the daemon's policy must allow on a secret's paths, and the lines that add what it lacks. Pure.

Vault docs, "Policies" (capabilities) and "KV secrets engine - version 2" (ACL rules): data, metadata and undelete are
paths of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Granted = Mapping[str, frozenset[str]]  # path with its mount → capabilities, as `capabilities-self` tells them


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Capabilities that the token lacks on one path. `needed`: nothing is rotated without them."""

    path: str
    capabilities: tuple[str, ...]
    needed: bool
    purpose: str

    def __str__(self) -> str:
        words = ", ".join(f"`{each}`" for each in self.capabilities)
        return f"the policy lacks {words} on {self.path} ({self.purpose})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretPaths:
    """The API's paths of one secret, with the mount."""

    data: str
    metadata: str
    undelete: str

    @classmethod
    def of(cls, mount: str, path: str) -> SecretPaths:
        """Those of `path` below `mount`."""
        return cls(
            data=f"{mount}/data/{path}", metadata=f"{mount}/metadata/{path}", undelete=f"{mount}/undelete/{path}"
        )

    @property
    def all(self) -> list[str]:
        """What is asked of `capabilities-self`, in one call."""
        return [self.data, self.metadata, self.undelete]


def missing(paths: SecretPaths, granted: Granted, *, written: bool) -> list[Missing]:
    """What the token lacks, the needed first.

    Args:
        written: whether the secret is known to have versions, so that writing needs `update` alone. Else the first
            write needs `create`, and each one after it `update`; so does the first where there is metadata already.
    """
    writing = ("update",) if written else ("create", "update")
    wanted = (
        (paths.data, ("read", *writing), True, "to read and write the secret"),
        (paths.metadata, ("read",), False, "to see whether max_versions would push the way back out"),
        (paths.metadata, ("update",), False, "to write custom_metadata"),
        (paths.undelete, ("update",), False, "to take a deletion back, with on_drift: restore"),
    )
    found = []
    for path, capabilities, needed, purpose in wanted:
        held = granted.get(path, frozenset())
        lacking = tuple(each for each in capabilities if each not in held) if "root" not in held else ()
        if lacking:
            found.append(Missing(path=path, capabilities=lacking, needed=needed, purpose=purpose))
    return found


def policy_lines(lacking: Iterable[Missing], granted: Granted) -> str:
    """The rules to add, in Vault's own language. Each has what the token holds already: an exact path hides a glob."""
    rules: dict[str, set[str]] = {}
    for each in lacking:
        held = granted.get(each.path, frozenset()) - {"deny", "root"}
        rules.setdefault(each.path, set(held)).update(each.capabilities)
    return "\n".join(
        f"path {_quoted(path)} {{ capabilities = [{', '.join(_quoted(each) for each in sorted(capabilities))}] }}"
        for path, capabilities in rules.items()
    )


def _quoted(word: str) -> str:
    """A word as HCL writes it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
