"""Exports: the files of a plan, written by a job and downloaded in pieces of any size."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Header, HTTPException, Response
from fastapi.responses import StreamingResponse

from ...allocator.errors import NotFound
from ..auth import PrincipalDep
from ..depends import JOB_RESPONSE, ArtifactsDep, JobsDep, KeyHeader, StoreDep, as_response, job_reply
from ..exporting import EXPORTS, check_export, export_folder
from ..schema import ExecuteBody, ExportBody, ExportFile, ExportView, ListView
from ..store.replies import Reply

router = APIRouter(prefix="/plans/{plan_id}/exports", tags=["exports"])
CHUNK_BYTES = 1 << 20


@router.post("", operation_id="exports_create", status_code=202, responses=JOB_RESPONSE)
def create(
    plan_id: str, body: ExportBody, store: StoreDep, jobs: JobsDep, principal: PrincipalDep, key: KeyHeader = None
) -> Response:
    """Have the quantized model written; the files are listed here once the job has succeeded."""
    check_export(body.to)
    work = ExecuteBody(plan_id=store.stored_plan(plan_id).id, to=body.to)

    def answer() -> Reply:
        return job_reply(jobs.submit("execute", work.model_dump(mode="json"), owner=principal.name))

    return as_response(store.replies.answer_once(key, "exports", work, answer, principal.name))


@router.get("", operation_id="exports_list")
def index(plan_id: str, store: StoreDep, artifacts: ArtifactsDep) -> ListView[ExportView]:
    """The exports of a plan that lie ready."""
    plan = store.stored_plan(plan_id)
    found = []
    for to in EXPORTS:
        files = [ExportFile(path=name, bytes=size) for name, size, _ in artifacts.files(export_folder(plan.id, to))]
        if files:
            total, href = sum(file.bytes for file in files), f"/v1/plans/{plan.id}/exports/{to}"
            found.append(ExportView(to=to, files=files, bytes=total, href=href))
    return ListView(items=found)


@router.get(
    "/{to}/{path:path}",
    operation_id="exports_download",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "The part that `Range` asks for", "content": {"application/octet-stream": {}}},
    },
)
def download(
    plan_id: str,
    to: str,
    path: str,
    store: StoreDep,
    artifacts: ArtifactsDep,
    wanted: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """One file of an export. `Range` with one range goes on where a broken download ended; it is a part of the same file
    as long as `If-Range` carries the file's ETag."""
    check_export(to)
    folder = export_folder(store.stored_plan(plan_id).id, to)
    # Only names that the export lists are opened: no path of a caller's ever reaches the file system.
    found = next((entry for entry in artifacts.files(folder) if entry[0] == path), None)
    if found is None:
        raise NotFound(f"the export has no file {path!r}; GET /v1/plans/{plan_id}/exports lists those that lie ready")
    name, size, digest = found
    tag = f'"{digest or hashlib.sha256(f"{folder}/{name} {size}".encode()).hexdigest()}"'
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name.rpartition('/')[2])}",
        "etag": tag,
    }
    if digest is not None:
        headers["repr-digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
    if if_none_match is not None and tag in {held.strip() for held in if_none_match.split(",")}:
        return Response(status_code=304, headers=headers)
    part = _part(wanted, size) if wanted is not None and if_range in (None, tag) else None
    first, last = part or (0, size - 1)
    if first >= size > 0:
        raise HTTPException(416, f"{name} has {size} bytes, none of them in {wanted!r}", {"content-range": f"bytes */{size}"})
    headers["content-length"] = str(last - first + 1)
    if part is not None:
        headers["content-range"] = f"bytes {first}-{last}/{size}"
    elif "repr-digest" in headers:
        headers["content-digest"] = headers["repr-digest"]
    chunks = _chunks(artifacts.open(f"{folder}/{name}"), first, last - first + 1)
    return StreamingResponse(chunks, 200 if part is None else 206, headers, media_type="application/octet-stream")


def _part(wanted: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a header with one range (RFC 9110); None for what may be ignored. First >= size: there are
    no such bytes."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", wanted.replace(" ", ""))
    if match is None or not (match[1] or match[2]) or size == 0:
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        return (size - length, size - 1)
    first, last = int(match[1]), min(int(match[2] or size), size - 1)
    return None if match[2] and int(match[2]) < first else (first, last)


def _chunks(file: BinaryIO, first: int, length: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        while length > 0 and (chunk := file.read(min(length, CHUNK_BYTES))):
            length -= len(chunk)
            yield chunk
