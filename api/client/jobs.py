"""Jobs: asked for, looked at, waited for, followed, called off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx2

from ...allocator.errors import Interrupted
from ..problems import error_of
from ..schema import JobView, ListView
from .asking import all_pages, ask, document, id_of, open_body, page, read, shaped
from .persistence import BROKEN, LONGEST_PAUSE
from .talk import Chunk, Flow, Give, Pause, Talk

Watch = Callable[[JobView], None]
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 1.0


def jobs(
    *,
    status: str | None = None,
    kind: str | None = None,
    owner: str | None = None,
    parent: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Talk[ListView[JobView]]:
    """One page of jobs, newest first."""
    asked = {"status": status, "kind": kind, "owner": owner, "parent": parent, "cursor": cursor, "limit": limit}
    return page(JobView, "/v1/jobs", asked)


def all_jobs(
    *, status: str | None = None, kind: str | None = None, owner: str | None = None, parent: str | None = None
) -> Flow[JobView]:
    """Every job, newest first; pages are fetched as they are needed."""
    return all_pages(lambda cursor: jobs(status=status, kind=kind, owner=owner, parent=parent, cursor=cursor, limit=200))


def job(job: JobView | str) -> Talk[JobView]:
    """A job as it is now."""
    return shaped(JobView, (yield from read(f"/v1/jobs/{id_of(job)}")))


def cancel(job: JobView | str) -> Talk[JobView]:
    """Ask a job to stop."""
    return shaped(JobView, document((yield from ask("POST", f"/v1/jobs/{id_of(job)}/cancel"))))


def wait(job: JobView | str, *, watch: Watch | None = None) -> Talk[JobView]:
    """Wait until a job has ended, well or not; `watch` sees each state on the way."""
    pause, version = FIRST_POLL_SECONDS, 0
    while True:
        now = shaped(JobView, (yield from read(f"/v1/jobs/{id_of(job)}", patient=True)))
        if watch is not None and now.version > version:
            watch(now)
        version = now.version
        if now.finished:
            return now
        yield Pause(pause, pause)
        pause = min(1.5 * pause, LONGEST_POLL_SECONDS)


def events(job: JobView | str, *, after: int = 0) -> Flow[JobView]:
    """The job each time it changes, as the service sends it, until it has ended. A broken connection is made again and
    goes on after the last event that arrived; `after` is the version to begin after."""
    told, pause = after, FIRST_POLL_SECONDS
    while True:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(told)} if told else {})}
        opened = yield from open_body(f"/v1/jobs/{id_of(job)}/events", headers)
        lines = Lines()
        try:
            while piece := (yield Chunk(opened)):
                for event in lines.feed(piece):
                    state = shaped(JobView, json.loads(event))
                    if state.version > told:
                        told, pause = state.version, FIRST_POLL_SECONDS
                        yield Give(state)
                    if state.finished:
                        return
        except BROKEN:
            pass
        now = shaped(JobView, (yield from read(f"/v1/jobs/{id_of(job)}", patient=True)))
        if now.finished:
            if now.version > told:
                yield Give(now)
            return
        yield Pause(pause / 2, pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def result(job: JobView, watch: Watch | None) -> Talk[dict[str, Any]]:
    """The result of a job once it has ended, or the error that ended it, raised."""
    ended = yield from wait(job, watch=watch)
    if ended.error is not None:
        raise error_of(ended.error.model_dump())
    if ended.result is None:
        raise Interrupted(f"job {ended.id} was canceled; what was measured is kept")
    return ended.result


def taken_up(response: httpx2.Response) -> JobView:
    """The job that a reply with status 202 carries."""
    return shaped(JobView, document(response))


class Lines:
    """The data of server-sent events, out of pieces of any size."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterable[str]:
        """The data of each event that the piece completes. An event that the connection cuts off never comes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            text = line.decode().rstrip("\r")
            name, _, value = text.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif not text and self._data:
                yield "\n".join(self._data)
                self._data = []
