"""Pages: a template in the dashboard's frame, with the policy that says what a browser may do with it.

The policy admits scripts and styles from files of this service alone. Nothing is inline and nothing is evaluated: Vega
runs its expressions in the interpreter that vega-embed carries (`ast: true`), draws SVG whose attributes are set one by
one, and htmx is told to insert no style of its own. Blocks of JSON in a page are data, which no policy hinders.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse

from ..templates import render
from . import assets

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "same-origin",  # without it browsers call the origin of a form "null", and the guard refuses it
    "cache-control": "private, no-cache",
    "vary": "HX-Request",
}
SECTIONS = (
    ("/", "Plans"),
    ("/profiles", "Frontiers"),
    ("/sweeps", "Sweeps"),
    ("/jobs", "Jobs"),
    ("/models", "Models"),
    ("/about", "API"),
)


def page(request: Request, template: str, *, section: str = "", status: int = 200, **context: Any) -> HTMLResponse:
    """`section` is the entry of the navigation that the page belongs to."""
    html = render(
        template,
        sections=SECTIONS,
        section=section,
        address=assets.address,
        integrity=assets.integrity,
        principal=getattr(request.state, "principal", None),
        **context,
    )
    return HTMLResponse(html, status, headers=HEADERS)


def see_other(path: str) -> RedirectResponse:
    """After a POST: go and look there."""
    return RedirectResponse(path, 303, headers=HEADERS)


def with_query(path: str, given: dict[str, Any], **changes: Any) -> str:
    """An address with the query's members, some of them changed; those that are None or empty are left out."""
    merged = {name: value for name, value in {**given, **changes}.items() if value not in (None, "")}
    return f"{path}?{urlencode(merged)}" if merged else path
