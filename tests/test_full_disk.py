"""A disk that is full under the service: whoever asks is told, jobs wait for room, and nothing half-written is left."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

import fakes
from bitplan.api.app import create_app
from bitplan.api.jobs import profiling
from bitplan.api.jobs.engine import Engine
from bitplan.api.jobs.queue import Jobs
from bitplan.api.jobs.supervisor import Supervisor
from bitplan.api.schema import JobView
from bitplan.api.settings import Settings
from bitplan.api.store import Store

# A worker with made-up networks: in its first life the engine's tables have no room, in its second the store's.
WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import dbos
import fakes
fakes.install()
import bitplan.api.store.jobs as rows
from sqlalchemy.exc import OperationalError
from bitplan.allocator.errors import DiskFull
def engine_full(*_, **__): raise OperationalError("INSERT", {{}}, Exception("database or disk is full"))
def store_full(*_, **__): raise DiskFull("the disk of the store is full")
lives = Path({lives!r})
lived = len(lives.read_text())
lives.write_text("." * (lived + 1))
if lived == 0: dbos.DBOS.run_step = engine_full
if lived == 1: rows.JobRows.finish = store_full
{more}
from bitplan.api.jobs.worker import main
main()
"""
SLOW = "fakes._tell = lambda tell, stage, total: [(tell(stage, done, 20), time.sleep(0.05)) for done in range(21)]"
ROOM = "8m"


def ended(jobs: Jobs, job: JobView, within_seconds: float = 240.0) -> JobView:
    deadline = time.monotonic() + within_seconds
    while not (now := jobs.get(job.id)).finished:
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    return now


def worker_command(folder: Path, lived: int, more: str = "") -> list[str]:
    lives = folder / "lives"
    lives.write_text("." * lived)
    return [sys.executable, "-c", WORKER.format(tests=str(Path(__file__).parent), lives=str(lives), more=more)]


def test_a_job_that_cannot_be_written_down_goes_on_in_the_next_worker(tmp_path: Path) -> None:
    settings = Settings.from_environment(tmp_path / "home")
    with closing(Store.open(settings.database_url)) as store, closing(Engine(settings.database_url)) as engine:
        jobs = Jobs(store, engine)
        with Supervisor(settings, worker_command(tmp_path, lived=0)):
            job = ended(jobs, jobs.submit("inspect", {"model": "tiny"}))
    assert (job.status, job.attempt) == ("succeeded", 3)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OperationalError("INSERT", {}, Exception("disk is full"))])
def test_a_piece_that_breaks_costs_its_job_and_not_the_worker(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(profiling, "step", broken)
    settings = Settings.from_environment(tmp_path / "home")
    with closing(Store.open(settings.database_url)) as store:
        job = store.jobs.begin(store.jobs.submit("profile", {"model": "tiny"}).id)
        desk: Any = SimpleNamespace(store=store)
        if isinstance(error, OperationalError):  # nothing can be written down: the workflow's own affair
            with pytest.raises(OperationalError):
                profiling.do_shared_piece(desk, job.id, "piece")
            return
        problem = profiling.do_shared_piece(desk, job.id, "piece")
    assert problem is not None
    assert problem["type"] == "/problems/internal-error"
    assert "RuntimeError: shapes differ" in problem["detail"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for few things."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(folder)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here ({mount.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


def test_jobs_wait_until_there_is_room_and_requests_are_answered(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.from_environment(small_disk / "home")
    command = worker_command(tmp_path, lived=2, more=SLOW)
    fakes.install(monkeypatch)
    with (
        TestClient(create_app(settings), base_url="http://localhost") as http,
        closing(Engine(settings.database_url)) as engine,
        closing(Store.open(settings.database_url)) as store,
        Supervisor(settings, command),
    ):
        jobs = Jobs(store, engine)
        job = jobs.submit("profile", {"model": "tiny"})
        while jobs.get(job.id).progress is None:
            time.sleep(0.05)
        ballast = fill(small_disk)
        refused = http.post("/v1/profiles", json={"model": "other"})
        assert (refused.status_code, refused.json()["type"]) == (507, "/problems/disk-full")
        assert http.get(f"/v1/jobs/{job.id}").json()["status"] == "running"
        time.sleep(4)  # longer than the job would take
        assert not jobs.get(job.id).finished
        ballast.unlink()
        assert ended(jobs, job).status == "succeeded"
        assert http.post("/v1/profiles", json={"model": "other"}).status_code == 202
    assert not list((small_disk / "home").rglob("*.tmp"))
