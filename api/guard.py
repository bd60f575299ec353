"""Guard: what every request and response passes, whatever the route and whoever asks.

Bodies beyond BODY_BYTES are refused before they are read in full, and so are bodies that take longer than BODY_SECONDS to
arrive. A browser may write here only from a page of this very service: a request that names another origin is refused, so
that no web page can start jobs on a visitor's machine; and where no keys are required the service answers to the names of
its own machine alone, so that no web page can call itself by a name that leads here. Responses carry headers that forbid
browsers to guess, frame or load anything; a page that needs more says so itself.
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import other_problem
from .refusals import problem_response
from .settings import Settings

BODY_BYTES = 1 << 20
BODY_SECONDS = 20.0
TOO_LARGE = f"a request body may have {BODY_BYTES} bytes at most"
TOO_SLOW = f"the request body did not arrive within {BODY_SECONDS:g} seconds"
OTHER_NAME = "without keys the service answers to names of its own machine only, such as localhost; see BITPLAN_REQUIRE_KEYS"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",  # under a stricter one browsers call the origin of a form "null"
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class _Refused(Exception):
    def __init__(self, slug: str, detail: str) -> None:
        self.slug, self.detail = slug, detail


class Guard:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        async def of_the_app(message: Message) -> None:
            if started or body.refused is None:  # what the application makes of a refused body is not sent
                await guarded(message)

        try:
            self._check(scope)
            await self._app(scope, body, of_the_app)
        except _Refused as refused:
            body.refused = refused
        if body.refused is not None and not started:
            # The rest of a refused body is not waited for: the connection ends with this answer.
            problem = other_problem(body.refused.slug, body.refused.detail)
            await problem_response(problem, {"connection": "close"})(scope, receive, guarded)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            raise _Refused("http", "the Content-Length is no number")
        if len(declared) > 18 or int(declared) > BODY_BYTES:
            raise _Refused("body-too-large", TOO_LARGE)
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise _Refused("http", "an address contains no NUL character; leave it out")
        if not self._settings.require_keys and not _own_name(headers.get("host", ""), scope):
            raise _Refused("foreign-host", OTHER_NAME)
        if scope["method"] not in SAFE_METHODS and _foreign(headers):
            raise _Refused("foreign-origin", f"the page at {headers['origin'][:200]} is not part of this service")


class _Body:
    """The body as it arrives, as far as it keeps within bytes and seconds."""

    def __init__(self, receive: Receive) -> None:
        self.refused: _Refused | None = None
        self._receive = receive
        self._bytes = 0
        self._whole = False
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def __call__(self) -> Message:
        if self._whole:  # what follows is the end of the connection, whenever that comes
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise self._refuse("body-too-slow", TOO_SLOW) from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > BODY_BYTES:
            raise self._refuse("body-too-large", TOO_LARGE)
        self._whole = not message.get("more_body", False)
        return message

    def _refuse(self, slug: str, detail: str) -> _Refused:
        self.refused = _Refused(slug, detail)
        return self.refused


def _foreign(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", "")


def _own_name(host: str, scope: Scope) -> bool:
    """Whether a Host header names this machine: by a loopback name, or by the address that the connection came in on."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    listening = (scope.get("server") or ("", 0))[0]
    if name in ("localhost", listening) or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
