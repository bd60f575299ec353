"""Exports: files of a plan, written by the service and brought here whole.

Files arrive in a hidden folder beside the one that was asked for, which is renamed into place once every file is there
and has the size and the digest that the service names. A download that broke, in this process or an earlier one, goes on
where it ended.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import httpx2

from ...allocator import Plan
from ...allocator.errors import BitplanError, UsageError
from ...allocator.home import writing
from ..schema import ExportBody, ExportFile, ExportView, ListView
from .asking import ask, body, id_of, open_body, read, shaped
from .jobs import Watch, result, taken_up
from .persistence import BROKEN
from .talk import Chunk, Pause, Talk

Received = Callable[[int, int], None]
PAUSE_SECONDS, BARREN = 0.5, 10  # between two parts of a file; parts in a row without a byte before that is an error


def exports(plan: Plan | str) -> Talk[list[ExportView]]:
    """The exports of a plan that lie ready on the service."""
    return shaped(ListView[ExportView], (yield from read(f"/v1/plans/{id_of(plan)}/exports", patient=True))).items


def export(
    plan: Plan | str,
    out: Path | str,
    *,
    to: str = "bitplan",
    watch: Watch | None = None,
    received: Received | None = None,
) -> Talk[Path]:
    """Have the files of a plan written and bring them into the folder `out`. `watch` sees the job's states, `received` the
    bytes that have arrived and those that there are. Raises UsageError when `out` is there and not empty."""
    folder = Path(out)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; name a new one for the files of the plan")
    found = yield from _ready(plan, to)
    if found is None:
        reply = yield from ask("POST", f"/v1/plans/{id_of(plan)}/exports", body(ExportBody, {"to": to}))
        yield from result(taken_up(reply), watch)
        found = yield from _ready(plan, to)
    if found is None:
        raise BitplanError(f"the service has no export of this plan to {to!r} though it says it made one; ask again")
    partial = folder.with_name(f".{folder.name}.part")
    arrived = 0
    for file in found.files:
        before = arrived

        def tell(count: int, before: int = before, total: int = found.bytes) -> None:
            if received is not None:
                received(before + count, total)

        yield from _download(f"{found.href}/{quote(file.path)}", file, partial / _inside(file.path), tell)
        arrived += file.bytes
    with writing(folder):
        os.replace(partial, folder)
    return folder


def execute(plan: Plan | str, out: Path | str, *, watch: Watch | None = None, received: Received | None = None) -> Talk[Path]:
    """Have the quantized model of a plan written and bring it into the folder `out`, loadable with bitplan."""
    return export(plan, out, to="bitplan", watch=watch, received=received)


def _ready(plan: Plan | str, to: str) -> Talk[ExportView | None]:
    return next((found for found in (yield from exports(plan)) if found.to == to), None)


def _inside(path: str) -> PurePosixPath:
    """The path of a file of an export. Raises BitplanError for one that leads out of it."""
    parts = PurePosixPath(path)
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\\" in path:
        raise BitplanError(f"the service names a file {path!r} outside its export; nothing was written")
    return parts


def _download(href: str, file: ExportFile, path: Path, tell: Callable[[int], None]) -> Talk[None]:
    """Bring one file to `path`, going on from what lies there. One whose digest is wrong is fetched once more from its
    beginning: what lay there may have been of another version."""
    digest = yield from _fetch(href, file, path, tell)
    if digest is not None and digest != _sha256(path):
        path.unlink()
        digest = yield from _fetch(href, file, path, tell)
        if digest is not None and digest != _sha256(path):
            path.unlink()
            raise BitplanError(f"{file.path} arrived damaged twice; look at the network between here and the service")


def _fetch(href: str, file: ExportFile, path: Path, tell: Callable[[int], None]) -> Talk[str | None]:
    """Append to `path` until it has its size; returns the digest that the service names."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    tag, digest, barren = "", None, 0
    while True:
        have = path.stat().st_size
        if have == file.bytes and (tag or not have):
            tell(have)
            return digest
        # The last byte once more where all of them lie there already: the reply names the digest to hold them against.
        start = min(have, file.bytes - 1)
        headers = {"Range": f"bytes={start}-", **({"If-Range": tag} if tag else {})} if start else {}
        opened = yield from open_body(href, headers)
        tag, digest = opened.response.headers.get("etag", "-"), _named_digest(opened.response)
        with path.open("r+b") as target:
            target.seek(start if opened.response.status_code == 206 else 0)
            target.truncate()
            try:
                while piece := (yield Chunk(opened)):
                    with writing(path):
                        target.write(piece)
                    tell(target.tell())
            except BROKEN:
                pass
        arrived = path.stat().st_size
        barren = 0 if arrived > have else barren + 1
        if arrived > file.bytes or barren > BARREN:
            raise BitplanError(f"{file.path} has {file.bytes} bytes, but the service sends {arrived}; ask for the export again")
        if arrived < file.bytes:
            yield Pause(PAUSE_SECONDS / 2, PAUSE_SECONDS)


def _named_digest(response: httpx2.Response) -> str | None:
    match = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", response.headers.get("repr-digest", ""))
    return base64.b64decode(match[1]).hex() if match else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
