"""The providers of config/examples, aimed at the sandbox's platforms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from provider_site import built, ignore
from rotator.ports import Clock, OnRequest, Provider
from rotator.sandbox.emqx import EmqxBroker
from rotator.sandbox.haltian import HaltianPlatform
from rotator.sandbox.ishareradio import IShareRadioPlatform
from rotator.sandbox.losant import LosantPlatform
from rotator.sandbox.thingsboard import ThingsBoard

EXAMPLES = Path(__file__).parents[2] / "config" / "examples"
NAMES = ("emqx", "thingsboard", "ishareradio-http", "haltian-graphql")
SECRET = {"env": "SECRET"}
HALTIAN_USER, HALTIAN_PASSWORD = "rotator@acme.example", "made-up-password"

# Losant by `kind: http`: strategy replace, which none of the examples has
LOSANT: Mapping[str, Any] = {
    "kind": "http",
    "strategy": "replace",
    "errors": {"message": "message", "code": "type"},
    "requests": {
        "list": {
            "method": "GET",
            "path": "",
            "query": {"sortField": "creationDate", "sortDirection": "asc"},
            "paging": {
                "kind": "page",
                "param": "page",
                "first": 0,
                "size_param": "perPage",
                "size": 100,
                "total": "totalCount",
            },
            "result": {
                "items": "items",
                "id": "id",
                "name": "name",
                "username": "key",
                "client_id": "deviceIds[0]",
                "issued_at": "creationDate",
                "active": "status == 'active'",
                "marker_text": "description",
            },
        },
        "get": {
            "method": "GET",
            "path": "/{id}",
            "absent": {"when": "type == 'NotFound'"},
            "result": {"name": "description", "active": "status == 'active'"},
        },
        "create": {
            "method": "POST",
            "path": "",
            "body": {
                "name": {"$from": "name", "$optional": True},
                "description": "{name} {marker}",
                **{
                    name: {"$from": name}
                    for name in (
                        "deviceIds",
                        "deviceTags",
                        "filterType",
                        "pubTopics",
                        "subTopics",
                        "addressFilterType",
                        "addresses",
                    )
                },
            },
            "result": {
                "id": "id",
                "secret": "secret",
                "username": "key",
                "client_id": "deviceIds[0]",
                "issued_at": "creationDate",
            },
        },
        "deactivate": {
            "method": "PATCH",
            "path": "/{id}",
            "body": {"status": "inactive"},
            "success": {"when": "status == 'inactive'"},
            "absent": {"when": "type == 'NotFound'"},
        },
        "reactivate": {
            "method": "PATCH",
            "path": "/{id}",
            "body": {"status": "active"},
            "success": {"when": "status == 'active'"},
            "absent": {"when": "type == 'NotFound'"},
        },
        "delete": {"method": "DELETE", "path": "/{id}", "absent": {"when": "type == 'NotFound'"}},
    },
}

Sandbox = EmqxBroker | ThingsBoard | IShareRadioPlatform | HaltianPlatform | LosantPlatform


def section(name: str) -> dict[str, Any]:
    """The provider's section of an example, fresh."""
    document = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    (found,) = document["providers"].values()
    assert isinstance(found, dict)
    return found


def aimed(platform: Sandbox, **changes: Any) -> tuple[dict[str, Any], str]:
    """The section that manages this platform, with `{env: SECRET}` for its secret; and that secret."""
    match platform:
        case EmqxBroker():
            auth = {"basic": {"username": platform.api_key, "password": SECRET}}
            return {**section("emqx"), "url": platform.api, "auth": auth, **changes}, platform.api_secret
        case ThingsBoard():
            own = section("thingsboard")
            own["auth"]["login"] |= {"username": platform.username, "password": SECRET}
            return {**own, "url": platform.api, **changes}, platform.password
        case IShareRadioPlatform():
            url = f"{platform.url}/api/v1/subscriber"
            return {**section("ishareradio-http"), "url": url, "auth": {"token": SECRET}, **changes}, platform.token
        case HaltianPlatform():
            own = section("haltian-graphql")
            own["auth"]["login"] |= {"username": HALTIAN_USER, "password": SECRET}
            return {**own, "url": platform.url, **changes}, HALTIAN_PASSWORD
        case LosantPlatform():
            url = f"{platform.url}/applications/{platform.application}/keys"
            return {**LOSANT, "url": url, "auth": {"token": SECRET}, **changes}, platform.token


def provider_for(
    platform: Sandbox, *, clock: Clock | None = None, on_request: OnRequest = ignore, **changes: Any
) -> Provider:
    """A provider from the example's section; the caller closes it."""
    own, secret = aimed(platform, **changes)
    kind = own.pop("kind")
    return built(kind, "p", own, secrets={"SECRET": secret}, clock=clock, on_request=on_request)
