"""Files that pages load: our style sheets and scripts, and the vendored libraries.

All of them are served under one address that carries a hash of all of them, so that a browser may keep them for ever and
a module may import its neighbour by a relative path. Only files that are listed here are served: no path of a caller's
ever reaches the file system. Pages name each script with its hash as well (subresource integrity).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable

from fastapi import APIRouter, HTTPException, Response

from ..templates import static_folder

router = APIRouter(include_in_schema=False)
MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "json": "application/json", "svg": "image/svg+xml"}
KEPT = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Asset:
    """A file as it is served; `integrity` is what a script or link element says of it."""

    content: bytes
    media_type: str
    integrity: str


@cache
def assets() -> dict[str, Asset]:
    """Path below `static/` -> file."""
    return {name: _asset(name, file.read_bytes()) for name, file in sorted(_files(static_folder(), ""))}


@cache
def version() -> str:
    """A hash of all files, their names and bytes."""
    total = hashlib.sha256()
    for name, asset in assets().items():
        total.update(f"{name} {asset.integrity}\n".encode())
    return total.hexdigest()[:16]


def address(name: str) -> str:
    """Where a browser finds the file. Raises KeyError for a file that does not exist."""
    if name not in assets():
        raise KeyError(f"no file static/{name}")
    return f"/static/{version()}/{name}"


def integrity(name: str) -> str:
    return assets()[name].integrity


@router.get("/static/{wanted}/{name:path}")
def static(wanted: str, name: str) -> Response:
    """One file, to be kept for ever. An address of another version is gone: its page was made by another version too."""
    if wanted != version() or name not in assets():
        raise HTTPException(404, "there is no such file in this version; reload the page that asked for it")
    asset = assets()[name]
    return Response(asset.content, headers={"cache-control": KEPT}, media_type=asset.media_type)


def _files(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def _asset(name: str, content: bytes) -> Asset:
    media_type = MEDIA_TYPES.get(name.rpartition(".")[2], "text/plain")
    return Asset(content, media_type, "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode())
