"""Profiling as a workflow: every step is a block of the model.

A profile that is measured block by block is shared out: this workflow does the chains of forward and backward passes, whose
links wait for one another, and any worker does rounding and sums of a block as soon as its turn in the chains has come.
Otherwise the blocks are rounded one after the other, and the estimate is made where the model is in memory. The numbers
depend on none of this.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from typing import Any

from dbos._error import DBOSWorkflowCancelledError
from sqlalchemy.exc import SQLAlchemyError

from ...allocator import SensitivityReport
from ...allocator.errors import BitplanError, Interrupted, UsageError
from ..problems import problem_of
from ..schema import JobView, ProfileBody
from . import work
from .bench import can_be_shared
from .desk import Desk, Failed
from .engine import piece_id
from .progress import JobProgress, Tell
from .steps import step, unexpected

POLL_SECONDS = 0.05


def profile(desk: Desk, job: JobView, tell: JobProgress) -> dict[str, Any]:
    body = ProfileBody.model_validate(job.input)
    try:
        opened = step("open", lambda: _open(desk, job.id, body, tell))
        if "profile_id" in opened:
            return _result(opened["profile_id"])
        body = body.model_copy(update={"stream": opened["stream"]})
        if opened["stream"]:
            _share_out(desk, job.id, body, opened["pieces"], tell)
        else:
            for piece in opened["pieces"]:
                step(piece["name"], partial(do_piece, desk, job.id, job.id, body, piece["name"], tell))
        return _result(step("report", lambda: _report(desk, job.id, body, tell)))
    finally:
        desk.bench.clear(job.id)


def _open(desk: Desk, job_id: str, body: ProfileBody, tell: JobProgress) -> dict[str, Any]:
    """What there is to do, and whether it is done block by block; or the profile when it is there already."""
    with desk.networks(job_id):
        work.check_profile(body)
        shared = can_be_shared(body) and not body.stream and desk.others_alive()
        found = desk.bench.open_shared(job_id, body, tell) if shared else desk.bench.open(job_id, body, tell)
        if isinstance(found, SensitivityReport):
            return {"profile_id": _keep(desk, body, found)}
        desk.store.put_inventory(found.inventory)
        stored = work.stored_profile(desk.store, found.identity)
        if stored is not None:
            return {"profile_id": stored}
        pieces = [{key: value for key, value in asdict(piece).items() if key in PIECE} for piece in found.pieces]
        return {"stream": found.hollow is not None, "pieces": pieces}


PIECE = ("name", "needs", "chained")


def do_piece(desk: Desk, job_id: str, workflow_id: str, body: ProfileBody, name: str, tell: Tell) -> None:
    """Do one piece of a job, unless it is done, with what other machines have made, and for them. Raises UsageError."""
    with desk.networks(workflow_id):
        found = desk.bench.open(job_id, body, tell)
        if isinstance(found, SensitivityReport):
            return
        piece = next(piece for piece in found.pieces if piece.name == name)
        desk.fetch(piece.reads + piece.writes)
        try:
            found.run(name, tell)
        except KeyError as error:
            raise UsageError(
                f"a worker on {desk.presence.view.host} lacks what another has made ({error}); set BITPLAN_ARTIFACTS to a "
                "place that all workers share"
            ) from error
        desk.publish(piece.writes)


def do_shared_piece(desk: Desk, job_id: str, name: str) -> dict[str, Any] | None:
    """Do one piece of another workflow's profile; the problem when that cannot be done."""
    job = desk.store.jobs.get(job_id)
    if job.status != "running":
        return None
    body = ProfileBody.model_validate(job.input).model_copy(update={"stream": True})

    def tell(stage: str, done: int, total: int) -> None:
        desk.pause()

    try:
        step(name, partial(do_piece, desk, job_id, piece_id(job_id, name), body, name, tell))
    except Failed as error:
        return error.problem
    except BitplanError as error:
        return problem_of(error)
    except (SQLAlchemyError, DBOSWorkflowCancelledError):  # of the engine
        raise
    except Exception as error:
        return unexpected(error)
    return None


def _share_out(desk: Desk, job_id: str, body: ProfileBody, pieces: list[dict[str, Any]], tell: JobProgress) -> None:
    """Do what is chained here, have the rest done as soon as it can be, and wait until all is done."""
    done, asked = set[str](), set[str]()
    try:
        while len(done) < len(pieces):
            tell("stream", len(done), len(pieces))
            ready = [piece for piece in pieces if piece["name"] not in done | asked and done.issuperset(piece["needs"])]
            free = [piece["name"] for piece in ready if not piece["chained"]]
            desk.engine.ask_pieces(job_id, free)
            asked.update(free)
            link = next((piece["name"] for piece in ready if piece["chained"]), None)
            if link is not None:
                step(link, partial(do_piece, desk, job_id, job_id, body, link, tell))
                done.add(link)
            for name, piece in desk.engine.pieces(job_id, asked - done).items():
                if piece.problem is not None:
                    raise Failed(piece.problem)
                if piece.ended:
                    done.add(name)
            if link is None:
                time.sleep(POLL_SECONDS)
        tell("stream", len(pieces), len(pieces))
    except (Interrupted, Failed):
        desk.engine.cancel(piece_id(job_id, name) for name in asked - done)
        raise


def _report(desk: Desk, job_id: str, body: ProfileBody, tell: JobProgress) -> str:
    with desk.networks(job_id):
        found = desk.bench.open(job_id, body, tell)
        if not isinstance(found, SensitivityReport):
            desk.fetch(found.tables)
            found = found.report(tell)
        return _keep(desk, body, found)


def _keep(desk: Desk, body: ProfileBody, report: SensitivityReport) -> str:
    """Have the store know the report, and other machines find it."""
    work.known_inventory(desk.store, desk.home, body.model)
    desk.store.put_profile(report, body)
    desk.publish([f"profiles/{report.id}.json"])
    return report.id


def _result(profile_id: str) -> dict[str, Any]:
    return {"profile_id": profile_id, "href": f"/v1/profiles/{profile_id}"}
