"""What a Losant access key may do, read from its JSON: how to clone it, and whether a clone may do the same. Pure.

Device restrictions can't be changed after creation, and a key whose `deviceIds` and `deviceTags` are both empty lets
every device of the application in; so a clone is compared with its original before it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from rotator.model import MARKER, Identity, UpstreamKey, marker_in
from rotator.reasons import Reason
from rotator.timestamps import parse_timestamp

AccessKey = Mapping[str, object]  # one key as the API shows it

LISTS: Final = ("deviceIds", "deviceTags", "pubTopics", "subTopics", "addresses")
# What an absent filter stands for: the form's own "(default)".
FILTERS: Final[Mapping[str, str]] = {"filterType": "none", "addressFilterType": "all"}
# The list → the filter that says whether it counts, and the filter's values with which it doesn't.
_GOVERNED_BY: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "pubTopics": ("filterType", frozenset({"all", "none"})),
    "subTopics": ("filterType", frozenset({"all", "none"})),
    "addresses": ("addressFilterType", frozenset({"all"})),
}
LONGEST_DESCRIPTION: Final = 32767  # characters
OPTIONS: Final[Mapping[str, str]] = {
    "description": "a longer description",
    "deviceIds": "the ids of the devices that it lets in, separated by commas, or `all`; this or deviceTags is needed",
    "deviceTags": "the devices that it lets in by tag: `key=value`, `key` or `=value`, separated by commas",
    "filterType": "which further topics it may use: all, whitelist, blacklist or none (the default)",
    "pubTopics": "the further topics that it may, or may not, publish to, separated by commas",
    "subTopics": "the further topics that it may, or may not, subscribe to, separated by commas",
    "addressFilterType": "which addresses it may come from: all (the default), whitelist or blacklist",
    "addresses": "those addresses, or CIDR blocks, separated by commas",
}
_WITH_BLANK: Final = re.compile(r" ?" + MARKER.pattern)
_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


class Malformed(ValueError):
    """A field is not what Losant's schema says."""


def is_id(value: object) -> bool:
    """Whether `value` can be a key's id: 24 hex digits today, and nothing that would lead elsewhere in a URL."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def is_text(value: object) -> bool:
    """Whether `value` is text that is not blank and can be written down (no half of a surrogate pair)."""
    return isinstance(value, str) and bool(value.strip()) and _writable(value) == value


def is_inactive(key: AccessKey) -> bool:
    """Whether it lets nobody in. A status that is not shown accuses nobody."""
    return key.get("status") not in (None, "active")


def identity_of(key: AccessKey) -> Identity | None:
    """Who the key is at the broker; None where the answer names no id or no username.

    The client id is the device's id (Losant's MQTT documentation), known where the key names exactly one.
    """
    id, username, devices = key.get("id"), key.get("key"), key.get("deviceIds")
    if not isinstance(id, str) or not is_id(id) or not isinstance(username, str) or not is_text(username):
        return None
    only = devices[0] if isinstance(devices, list) and len(devices) == 1 else None
    return Identity(id=id, username=username, client_id=only if isinstance(only, str) and is_text(only) else None)


def upstream(key: AccessKey) -> UpstreamKey | None:
    """One entry of the list; None where it is unreadable."""
    identity = identity_of(key)
    if identity is None:
        return None
    name = _text(key, "name")
    return UpstreamKey(
        id=identity.id,
        name=name,
        issued_at=parse_timestamp(key.get("creationDate")),
        problem=Reason.KEY_INACTIVE if is_inactive(key) else None,
        marker=marker_in(_text(key, "description")) or marker_in(name),
        identity=identity,
    )


def clone_of(original: AccessKey, marker: str) -> dict[str, object]:
    """The body that makes a key with the same name, rights and restrictions, marked in its description.

    Raises: Malformed.
    """
    for name in (*LISTS, *FILTERS):
        _restriction(original, name)
    if original.get("deviceIds") is None and original.get("deviceTags") is None:
        # absent is not empty: a clone of it would be open to every device
        raise Malformed("deviceIds and deviceTags are not shown")
    body = {name: original[name] for name in (*LISTS, *FILTERS) if original.get(name) is not None}
    if name := _text(original, "name"):
        body["name"] = name
    body["description"] = marked(_text(original, "description"), marker)
    return body


def wanted_key(name: str, options: Mapping[str, str], marker: str) -> dict[str, object]:
    """The body that makes a new key.

    Args:
        options: texts for some of `OPTIONS`.

    Raises: Malformed, which says what is wrong, for a person.
    """
    if unknown := sorted(options.keys() - OPTIONS.keys()):
        raise Malformed(f"no such option: {', '.join(unknown)}")
    if not is_text(name):
        raise Malformed("the name is empty, or no text")
    everyone = options.get("deviceIds", "").strip() == "all"
    lists = {field: _items(options.get(field, "")) for field in LISTS}
    if everyone:
        lists["deviceIds"] = []
    elif not lists["deviceIds"] and not lists["deviceTags"]:
        # what names no device lets every one in, and that is never meant by saying nothing
        raise Malformed("name the devices by deviceIds or deviceTags, or say deviceIds=all")
    body: dict[str, object] = {field: items for field, items in lists.items() if items or field == "deviceIds"}
    body["deviceTags"] = [_tag(text) for text in lists["deviceTags"]]
    body |= {field: options[field] for field in FILTERS if field in options}
    return {**body, "name": name, "description": marked(options.get("description", ""), marker)}


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _tag(text: str) -> dict[str, str]:
    key, _, value = text.partition("=")
    return {name: part for name, part in (("key", key.strip()), ("value", value.strip())) if part}


def marked(description: str, marker: str) -> str:
    """`description` with `marker` at its end, in the place of all older ones; what is too long is cut before it."""
    rest = _WITH_BLANK.sub("", description)[: LONGEST_DESCRIPTION - len(marker) - 1]
    return f"{rest} {marker}" if rest else marker


def differences(original: AccessKey, clone: AccessKey) -> list[str]:
    """The names of the fields in which `clone` may do other than `original`, which was active; empty for a true clone.

    Raises: Malformed, where `clone` does not show what `original` is restricted by: nothing can be said of it then.
    """
    found = ["status"] if is_inactive(clone) else []
    for name in (*LISTS, *FILTERS):
        before, after = _restriction(original, name), _restriction(clone, name)
        if clone.get(name) is None and before != _restriction({}, name):
            raise Malformed(f"{name} is not shown")
        if before != after:
            found.append(name)
    return found


def _restriction(key: AccessKey, name: str) -> str | frozenset[str]:
    """One restriction as it takes effect, in a form that can be compared: the order and case of ids say nothing.

    Raises: Malformed.
    """
    value = key.get(name)
    if name in FILTERS:
        if value is not None and not isinstance(value, str):
            raise Malformed(f"{name} is no text")
        return FILTERS[name] if value is None else value
    if value is not None and not isinstance(value, list):
        raise Malformed(f"{name} is no list")
    wanted = dict if name == "deviceTags" else str
    if any(not isinstance(each, wanted) for each in value or ()):
        raise Malformed(f"{name} holds something else")
    if name in _GOVERNED_BY:
        governor, without_effect = _GOVERNED_BY[name]
        if _restriction(key, governor) in without_effect:
            return frozenset()
    lines = (json.dumps(each, sort_keys=True) for each in value or ())
    return frozenset(line.lower() if name == "deviceIds" else line for line in lines)


def _text(key: AccessKey, name: str) -> str:
    value = key.get(name)
    return _writable(value) if isinstance(value, str) else ""


def _writable(text: str) -> str:
    return text.encode(errors="replace").decode()
