"""The body that makes a new WAYSCloud device, from what a person asked for. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from rotator.providers.rest import is_text
from rotator.providers.wayscloud_devices import MARKER_FIELD, Generation, Malformed

OPTIONS: Final[Mapping[str, str]] = {
    "type": "sensor, actuator, gateway or other (default); any text in the new API",
    "description": "a text",
    "metadata": 'a JSON object, such as {"location": "living_room"}',
    "device_id": "the id, new API only; made of the name by default",
}
_NOT_IN_ID: Final = re.compile(r"[^A-Za-z0-9._-]+")


def wanted(name: str, options: Mapping[str, str], generation: Generation, marker: str) -> dict[str, object]:
    """The body.

    Raises: Malformed, with words for who asked.
    """
    unknown = sorted(options.keys() - OPTIONS.keys())
    if unknown or not is_text(name):
        raise Malformed(f"no such option: {', '.join(unknown)}" if unknown else "a device needs a name")
    metadata = _metadata(options.get("metadata", "{}"))
    body: dict[str, object] = {"name": name}
    if description := options.get("description"):
        body["description"] = description
    if generation is Generation.OLD:
        if "device_id" in options:
            raise Malformed("the old API chooses a device's id itself")
        return {**body, "type": options.get("type", "other"), "metadata": {**metadata, MARKER_FIELD: marker}}
    id = options.get("device_id") or _NOT_IN_ID.sub("-", name).strip("-.")
    if not id:
        raise Malformed("no id can be made of this name: give `device_id`")
    if metadata:
        body["metadata"] = metadata
    return {**body, "device_id": id, "device_type": options.get("type", "other"), "is_active": True}


def _metadata(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Malformed("metadata is no JSON object")
    return value
