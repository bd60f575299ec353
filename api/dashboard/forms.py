"""Forms as browsers send them, read without a library of their own."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request


async def _form(request: Request) -> dict[str, str]:
    body = (await request.body()).decode("utf-8", errors="replace")
    return {name: value.strip() for name, value in parse_qsl(body, max_num_fields=100)}


Form = Annotated[dict[str, str], Depends(_form)]
