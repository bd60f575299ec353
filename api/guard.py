"""Guard: what every request and response passes, whatever the route.

Bodies beyond BODY_BYTES are refused before they are read in full. A browser may write here only from a page of this very
service: a request that names another origin is refused, so that no web page can start jobs on a visitor's machine.
Responses carry headers that forbid browsers to guess, frame or load anything; a page that needs more says so itself.
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import MEDIA_TYPE, other_problem

BODY_BYTES = 1 << 20
TOO_LARGE = f"a request body may have {BODY_BYTES} bytes at most"
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > BODY_BYTES:
                raise HTTPException(413, TOO_LARGE)
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        if int(headers.get("content-length") or 0) > BODY_BYTES:
            await _refuse(guarded, "body-too-large", TOO_LARGE)
        elif scope["method"] not in ("GET", "HEAD", "OPTIONS") and _foreign(headers):
            await _refuse(guarded, "foreign-origin", f"the page at {headers['origin']} is not part of this service")
        else:
            await self._app(scope, counted, guarded)


def _foreign(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", "")


async def _refuse(send: Send, slug: str, detail: str) -> None:
    problem = other_problem(slug, detail)
    body = json.dumps(problem).encode()
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": problem["status"], "headers": headers})
    await send({"type": "http.response.body", "body": body})
