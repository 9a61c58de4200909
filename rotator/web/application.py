"""The one Starlette application behind both listeners."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rotator import __version__
from rotator.control import Control, NoSuchKey
from rotator.errors import Permanent, RotatorError
from rotator.model import Secret
from rotator.ports import Reveal
from rotator.reasons import Reason

Answer = Callable[[Request], Awaitable[Response]]
_MAX_BODY = 64 * 1024
_TYPES = {bool: "true or false", str: "a text"}


def make_application(
    control: Control,
    registry: CollectorRegistry,
    *,
    alive: Callable[[], bool],
    admin_token: Reveal | None,
    trusted: bool,
) -> Starlette:
    """The application.

    Args:
        admin_token: reads the token that POSTs must carry; None: POSTs are refused.
        trusted: this listener is the Unix socket, whose file mode says who may ask.
    """
    pages = Environment(loader=PackageLoader("rotator.web"), autoescape=select_autoescape(default=True))

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = await run_in_threadpool(encode, registry)
        return Response(body, headers={"content-type": content_type})

    async def livez(_request: Request) -> Response:
        return JSONResponse({"alive": True}) if alive() else JSONResponse({"alive": False}, status_code=503)

    async def readyz(_request: Request) -> Response:
        ready, checks = await run_in_threadpool(control.ready)
        return JSONResponse({"ready": ready, "checks": checks}, status_code=200 if ready else 503)

    async def page(_request: Request) -> Response:
        keys = await run_in_threadpool(control.keys)
        rotations = await run_in_threadpool(control.rotations)
        body = pages.get_template("status.html").render(keys=keys, rotations=rotations, version=__version__)
        return HTMLResponse(body, headers={"cache-control": "no-store"})

    async def keys(_request: Request) -> Response:
        return JSONResponse({"keys": await run_in_threadpool(control.keys)})

    async def key(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(control.key, request.path_params["name"]))

    async def rotations(request: Request) -> Response:
        found = await run_in_threadpool(control.rotations, request.query_params.get("key"))
        return JSONResponse({"rotations": found})

    def admin(answer: Answer) -> Answer:
        async def guarded(request: Request) -> Response:
            if not trusted and not _authorised(request, admin_token):
                challenge = {"www-authenticate": "Bearer"}
                return JSONResponse(
                    {"error": Reason.UNAUTHORISED.value, "message": "the admin token is missing or wrong"},
                    status_code=401,
                    headers=challenge,
                )
            return await answer(request)

        return guarded

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/", page),
            Route("/api/keys", keys),
            Route("/api/keys/{name}", key),
            Route("/api/rotations", rotations),
            *(
                Route(f"/api/keys/{{name}}/{action}", admin(answer), methods=["POST"])
                for action, answer in _actions(control).items()
            ),
        ],
        exception_handlers={RotatorError: _refuse},
    )


def _actions(control: Control) -> dict[str, Answer]:
    """What may be asked of a key, by the last part of its path."""

    async def rotate(request: Request) -> Response:
        body = await _body(request, now=bool, compromised=bool)
        now, compromised = body.get("now", False), body.get("compromised", False)
        asked = await run_in_threadpool(
            lambda: control.rotate(request.path_params["name"], now=now, compromised=compromised)
        )
        return JSONResponse(asked, status_code=202)

    async def rollback(request: Request) -> Response:
        await _body(request)
        asked = await run_in_threadpool(control.rollback, request.path_params["name"])
        return JSONResponse(asked, status_code=202)

    async def confirm(request: Request) -> Response:
        consumer = _needed(await _body(request, consumer=str), "consumer")
        return JSONResponse(await run_in_threadpool(control.confirm, request.path_params["name"], consumer))

    async def pause(request: Request) -> Response:
        await _body(request)
        return JSONResponse(await run_in_threadpool(control.pause, request.path_params["name"]))

    async def resume(request: Request) -> Response:
        await _body(request)
        return JSONResponse(await run_in_threadpool(control.resume, request.path_params["name"]))

    async def adopt(request: Request) -> Response:
        secret = Secret(_needed(await _body(request, secret=str), "secret"))
        return JSONResponse(await run_in_threadpool(control.adopt, request.path_params["name"], secret))

    return {
        "rotate": rotate,
        "pause": pause,
        "resume": resume,
        "rollback": rollback,
        "confirm": confirm,
        "adopt": adopt,
    }


async def _refuse(_request: Request, error: Exception) -> Response:
    """An error of ours as JSON: its name, its words, the next step."""
    if not isinstance(error, RotatorError):
        raise error
    status = 404 if isinstance(error, NoSuchKey) else 422 if isinstance(error, Permanent) else 503
    body = {"error": error.reason.value, "message": error.message, "advice": error.advice}
    return JSONResponse(body, status_code=status)


async def _body(request: Request, **fields: type) -> dict[str, Any]:
    """The JSON object of a request; an empty body is an empty object.

    Args:
        fields: what it may hold, and of which type.

    Raises: Permanent BAD_REQUEST for all else: who misspells `compromised` must not get another rotation.
    """
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MAX_BODY:
            raise Permanent("the request's body is too large", reason=Reason.BAD_REQUEST)
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise Permanent("the request's body is not JSON", reason=Reason.BAD_REQUEST) from exc
    if not isinstance(body, dict):
        raise Permanent("the request's body is not a JSON object", reason=Reason.BAD_REQUEST)
    for name, value in body.items():
        if name not in fields:
            known = f"the fields are {', '.join(f'`{field}`' for field in fields)}" if fields else "there are no fields"
            raise Permanent(f"unknown field `{name}`: {known}", reason=Reason.BAD_REQUEST)
        if not isinstance(value, fields[name]):
            raise Permanent(f"`{name}` must be {_TYPES[fields[name]]}", reason=Reason.BAD_REQUEST)
    return body


def _needed(body: Mapping[str, Any], name: str) -> str:
    """A text that the request can't do without."""
    if name not in body:
        raise Permanent(f"`{name}` is missing", reason=Reason.BAD_REQUEST)
    return str(body[name])


def _authorised(request: Request, admin_token: Reveal | None) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if admin_token is None or scheme.lower() != "bearer":
        return False
    expected = admin_token()
    return bool(expected) and hmac.compare_digest(given.strip().encode(), expected.encode())
