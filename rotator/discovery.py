"""The keys of a platform's list as entries of the configuration: names, and YAML that loads."""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import yaml

from rotator.config_keys import NAME_PLACE
from rotator.errors import Permanent
from rotator.journal.seal import sync_directory
from rotator.journal.sqlite import SqliteJournal
from rotator.keys import KeyRecord
from rotator.model import MARKER, UpstreamKey
from rotator.ports import Provider
from rotator.reasons import Reason
from rotator.rotation import Rotation
from rotator.settings import Settings

FIELDS: Final[Mapping[str, str]] = {"username": "{username}", "password": "{secret}"}
PATH: Final = f"mqtt/{NAME_PLACE}"
_LONGEST = 63  # characters of a name
_AROUND_A_MARKER = " \t()[]-_"

Managed = Mapping[tuple[str, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A key at a platform, and the entry that would manage it."""

    name: str
    upstream: UpstreamKey
    entry: Mapping[str, Any]


def listed(provider: Provider) -> Sequence[UpstreamKey]:
    """The platform's list.

    Raises: Permanent PROVIDER_UNABLE where it has none; Transient, Permanent.
    """
    if not provider.abilities.lists:
        words = f"{provider.name}: this platform can't list its keys"
        raise Permanent(words, reason=Reason.PROVIDER_UNABLE)
    return provider.list_keys()


def called(upstream: UpstreamKey) -> str:
    """What the platform calls a key, without a marker of ours; its id where it has no name."""
    name = upstream.name
    if found := MARKER.search(name):
        before, after = name[: found.start()].rstrip(_AROUND_A_MARKER), name[found.end() :].lstrip(_AROUND_A_MARKER)
        name = f"{before} {after}".strip()
    return name or upstream.id


def name_for(upstream: UpstreamKey, taken: Collection[str]) -> str:
    """A name for the configuration that is not taken: the platform's, else the id, else with a number."""
    first, second = _plain(called(upstream)), _plain(upstream.id)
    for name in (first, second):
        if name and name not in taken:
            return name
    stem, number = first or second or "key", 2
    while (name := f"{stem[: _LONGEST - 1 - len(str(number))]}-{number}") in taken:
        number += 1
    return name


def _plain(text: str) -> str:
    """`text` as far as a name may hold it: lower case, accents dropped, `-` for what is not allowed."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._]+", "-", ascii_text).strip("-._")[:_LONGEST].rstrip("-._")


def find(provider: Provider, keys: Sequence[UpstreamKey], match: str, taken: Collection[str]) -> Iterator[Found]:
    """An entry for each of these keys whose name at the platform matches."""
    used = set(taken)
    for upstream in keys:
        if fnmatchcase(called(upstream), match):
            name = name_for(upstream, used)
            used.add(name)
            path = PATH.replace(NAME_PLACE, name)
            yield Found(name=name, upstream=upstream, entry=entry(provider.name, upstream.id, path, FIELDS))


def entry(provider: str, id: str, path: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """A key's entry with what every key needs."""
    return {"provider": provider, "id": id, "vault": {"path": path, "fields": dict(fields)}}


def taken_names(settings: Settings, managed: Managed) -> set[str]:
    """What a new entry can't be called: other entries, and names whose usual path in Vault is another key's."""
    prefix, suffix = PATH.split(NAME_PLACE)
    paths = [key.vault.path for key in settings.keys.values()]
    beside = {path[len(prefix) : len(path) - len(suffix)] for path in paths if path.startswith(prefix)}
    return {*settings.keys, *settings.selections, *managed.values(), *beside}


def managed_ids(settings: Settings) -> Managed:
    """(provider, id) → the name of the entry that manages it, by the configuration and by the journal, where one is.

    Needs no lock.

    Raises: JournalFailed where the journal can't be read.
    """
    found = {(key.provider, key.id): name for name, key in settings.keys.items()}
    if not settings.state.path.exists():
        return found
    with closing(SqliteJournal(settings.state.url, read_only=True)) as journal:
        rotations = journal.open_rotations()
        for record in journal.all_keys():
            if is_configured(settings, record):
                for id in ids_of(record, rotations.get(record.name)):
                    found.setdefault((record.provider, id), record.name)
    return found


def is_configured(settings: Settings, record: KeyRecord) -> bool:
    """Whether an entry, or a selection, still stands for this record of the journal."""
    found = record.listed_as and settings.selection_of(record.provider, record.listed_as) is not None
    return record.name in settings.keys or bool(found)


def path_of(settings: Settings, record: KeyRecord) -> str | None:
    """Where in Vault the secret of a configured key is."""
    if (named := settings.keys.get(record.name)) is not None:
        return named.vault.path
    selection = settings.selection_of(record.provider, record.listed_as)
    return selection.discover.template.key(record.name, record.provider, record.id).vault.path if selection else None


def ids_of(record: KeyRecord, rotation: Rotation | None) -> set[str]:
    """All ids that a key has now: while it is replaced, there are two."""
    identities = [record.identity, *((rotation.identity, rotation.new_identity) if rotation is not None else ())]
    return {record.id, *(identity.id for identity in identities if identity is not None)}


# --- as YAML


def as_yaml(found: Sequence[Found]) -> str:
    """A `keys:` mapping, with what the list says of each key as a comment."""
    if not found:
        return "keys: {}\n"
    return "keys:\n" + "".join(_entry_yaml(each) for each in found)


def _entry_yaml(found: Found) -> str:
    upstream = found.upstream
    whole = yaml.safe_dump(
        {"keys": {found.name: dict(found.entry)}}, sort_keys=False, default_flow_style=None, width=10_000
    )
    text = f"  # {_one_line(comment(upstream))}\n" + whole.removeprefix("keys:\n")
    if upstream.expires_at is None:
        text += "    rotate: {max_age: 90d}  # the list names no expiry: say after how long it is rotated\n"
    return text


def comment(upstream: UpstreamKey) -> str:
    """What the list says of a key: name, expiry, problem."""
    expiry = f"expires {upstream.expires_at.isoformat()}" if upstream.expires_at else "no expiry listed"
    return "; ".join([upstream.name or upstream.id, expiry, *([upstream.problem.value] if upstream.problem else [])])


def _one_line(text: str) -> str:
    """Names are the platform's: nothing in one may end the comment."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def write_new(path: Path, text: str) -> None:
    """Make a file, whole or not at all, durably.

    Raises: Permanent BAD_REQUEST where something is there already; OSError.
    """
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        # a link, not a rename: a rename would take the place of a file that has just been made
        Path(path).hardlink_to(part)
        sync_directory(path.parent)
    except FileExistsError as exc:
        raise Permanent(f"{path} is there already: it stays as it is", reason=Reason.BAD_REQUEST) from exc
    finally:
        Path(part).unlink(missing_ok=True)
