"""Requests as documents print them, to be compared with what a client sends."""

from __future__ import annotations

import json
import shlex
from string import Template
from urllib.parse import urlsplit

from contract.rest_double import RestCall


def printed(curl: str, **values: str) -> RestCall:
    """What a printed curl command sends, its `${NAME}`s replaced by `values`."""
    words = shlex.split(Template(curl).substitute(values).replace("\\\n", " "))
    method, url, body, headers = "GET", "", None, dict[str, str]()
    pairs = iter(words[1:])
    for word in pairs:
        match word:
            case "-sS":
                continue
            case "-X":
                method = next(pairs)
            case "-H":
                name, _, value = next(pairs).partition(": ")
                headers[name.lower()] = value
            case "-d":
                body = json.loads(next(pairs))
            case _:
                url = word
    return RestCall(method=method, path=urlsplit(url).path, body=body, authorization=headers.get("authorization"))


def sent(calls: list[RestCall]) -> list[RestCall]:
    """What arrived, without what a document does not speak of: the query's page."""
    return [
        RestCall(method=call.method, path=urlsplit(call.path).path, body=call.body, authorization=call.authorization)
        for call in calls
    ]
