"""Gate: who asks, whether they may, and whether it is not too often. Everything behind it knows its principal.

Closed unless open: what OPEN does not name takes a key, so that a new route cannot be forgotten. Looking takes the scope
read, DELETE the scope admin, everything else the scope plan; routes may ask for more (see `Principal.need`).
"""

from __future__ import annotations

from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..allocator.errors import BitplanError
from .auth import COOKIE, LOCAL, Principal
from .guard import SAFE_METHODS
from .limiting import Limiter
from .problems import other_problem
from .refusals import problem_response, refusal
from .schema import KeyView
from .schema import Scope as KeyScope
from .settings import Settings
from .store import Store

OPEN = {"/healthz", "/readyz", "/version", "/openapi.json", "/login", "/session", "/session/end", "/favicon.ico"}
OPEN_FOLDERS = ("/static/", "/problems/")
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="bitplan"'}


class Gate:
    def __init__(self, app: ASGIApp, settings: Settings, store: Store) -> None:
        self._app, self._settings, self._store = app, settings, store
        self._limiter = Limiter(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope["path"]):
            refused = await self._refused(scope)
            if refused is not None:
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refused(self, scope: Scope) -> Response | None:
        """Note the principal in the scope; or the response that ends the request here."""
        headers = Headers(scope=scope)
        authorization = headers.get("authorization")
        key = None
        try:
            if authorization is not None:
                scheme, _, secret = authorization.partition(" ")
                key = await run_in_threadpool(self._store.keys.check, secret.strip()) if scheme.lower() == "bearer" else None
                if key is None:
                    return _unauthenticated("the key is unknown, expired or revoked; ask an admin for another")
            elif token := Request(scope).cookies.get(COOKIE):
                key = await run_in_threadpool(self._of_session, token)
        except BitplanError as error:
            return refusal(error)
        if key is None and self._settings.require_keys:
            return _sign_in(scope, headers) or _unauthenticated("send a key: `Authorization: Bearer bp_...`")
        principal = LOCAL if key is None else Principal(key.name, key.scope)
        scope.setdefault("state", {})["principal"] = principal
        wait = self._limiter.seconds_to_wait(None if key is None else key.id)
        if wait:
            detail = f"this key has sent more than it may for now; go on in {wait} s"
            return problem_response(other_problem("rate-limited", detail), {"Retry-After": str(wait)})
        try:
            principal.need(*_needed(scope["method"]))
        except BitplanError as error:
            return refusal(error)
        return None

    def _of_session(self, token: str) -> KeyView | None:
        key_id = self._store.sessions.key_id(token)
        return None if key_id is None else self._store.keys.good(key_id)


def is_open(path: str) -> bool:
    """Whether no key is asked for at this address, wherever the service listens."""
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def _needed(method: str) -> tuple[KeyScope, str]:
    if method in SAFE_METHODS:
        return "read", "look"
    return ("admin", "delete") if method == "DELETE" else ("plan", "start or change anything")


def _unauthenticated(detail: str) -> Response:
    return problem_response(other_problem("unauthenticated", detail), CHALLENGE)


def _sign_in(scope: Scope, headers: Headers) -> Response | None:
    """A person who opens a page is shown where to enter their key."""
    is_page = scope["method"] == "GET" and not scope["path"].startswith("/v1/") and "text/html" in headers.get("accept", "")
    if not is_page:
        return None
    query = scope["query_string"].decode("latin-1")
    wanted = scope["path"] + (f"?{query}" if query else "")
    return RedirectResponse(f"/login?next={quote(wanted, safe='/')}", 303, {"cache-control": "no-store"})
