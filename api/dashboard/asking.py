"""Asking the API for work on a reader's behalf: the very request that a program would send, within this process.

The request carries the reader's own credentials and passes the same gate, so a page can do nothing that its reader could
not do with curl.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import httpx2
from fastapi import Depends, Request

from ..problems import error_of

CREDENTIALS = ("authorization", "cookie")


def _ask(request: Request) -> Callable[..., Awaitable[str]]:
    """`await ask(path, document)` posts the document and returns where the answer leads, as a page of the dashboard; a
    refusal is raised as the error that it describes."""

    async def ask(path: str, document: dict[str, Any] | None = None) -> str:
        headers = {name: request.headers[name] for name in CREDENTIALS if name in request.headers}
        transport = httpx2.ASGITransport(app=request.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url=str(request.base_url), headers=headers) as client:
            answer = await client.post(path, json=document)
        if answer.is_error:
            raise error_of(answer.json())
        return answer.headers.get("location", path).removeprefix("/v1")

    return ask


Ask = Annotated[Callable[..., Awaitable[str]], Depends(_ask)]
