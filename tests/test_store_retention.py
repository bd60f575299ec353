"""collect_garbage: what goes, what stays, and that nothing in use is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

import fakes
from bitplan.allocator import Plan, ProfileRequest
from bitplan.api.schema import InspectBody, ProfileBody, SweepBody, WorkerView
from bitplan.api.store import Store
from bitplan.api.store.artifacts import Artifacts
from bitplan.api.store.replies import Reply
from bitplan.api.store.retention import GarbageReport, collect_garbage

NEEDED, USELESS = "a" * 32, "b" * 32
OLD_DAYS = 40.0


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(Store.open(store_url)) as store:
        yield store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def make(path: Path, days: float = OLD_DAYS, content: bytes = b"12345") -> Path:
    """A file that was last changed so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    age(path, days)
    age(path.parent, days)
    return path


def age(path: Path, days: float) -> None:
    moment = time.time() - days * 86400
    os.utime(path, (moment, moment))


def plan_of(fingerprint: str, budget: str = "25%") -> Plan:
    plan = fakes.plan(budget)
    provenance = plan.provenance.model_copy(update={"render_fingerprint": fingerprint * 2})
    return plan.model_copy(update={"provenance": provenance})


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def counts(report: GarbageReport) -> dict[str, tuple[int, int]]:
    return {kind: (freed.count, freed.bytes) for kind, freed in report.freed.items()}


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


class TestFiles:
    def test_what_nobody_needs_goes_and_the_rest_stays(self, store: Store, home: Path) -> None:
        plan = plan_of(NEEDED)
        store.put_plan(plan)
        report = fakes.report(ProfileRequest("tiny"))
        make(home / "profiles" / f"{report.id}.json", content=json.dumps(report.to_json()).encode())
        stay = {
            make(home / "renderings" / NEEDED / "unit.safetensors"),
            make(home / "renderings" / report.render_fingerprint[:32] / "unit.safetensors"),
            make(home / "renderings" / ("c" * 32) / "unit.safetensors", days=1),
            make(home / "partial" / f"{'d' * 64}.steps" / "1.json", days=1),
            make(home / "exports" / plan.id / "bitplan" / "config.json"),
            make(home / "models" / "x" / "config.json"),
            make(home / "inventories" / "x.json"),
            make(home / "profiles" / f"{report.id}.json", content=json.dumps(report.to_json()).encode()),
            make(home / "renderings" / f".x.{os.getpid()}.tmp"),  # of a process that lives
            make(home / "renderings" / f".x.{dead_pid()}.tmp", days=0),  # it may live on another machine
        }
        go = {
            make(home / "renderings" / USELESS / "unit.safetensors"),
            make(home / "renderings" / USELESS / "other.safetensors"),
            make(home / "partial" / f"{report.id}.steps" / "1.json", days=0),
            make(home / "partial" / f"{'e' * 64}.jsonl"),
            make(home / "partial" / f"{'e' * 64}.spill" / "x.safetensors"),
            make(home / "exports" / ("f" * 64) / "bitplan" / "config.json"),
            make(home / "profiles" / f".x.json.{dead_pid()}.tmp", days=1),
            make(home / "verify-abc_1234" / "plan.json", days=3),
        }
        expected = {
            "renderings": (1, 10),
            "partial measurements": (3, 15),
            "exports": (1, 5),
            "temporary files": (2, 10),
        }
        before = files_in(home)
        told = collect_garbage(store, home, dry_run=True)
        assert counts(told) == expected
        assert files_in(home) == before
        done = collect_garbage(store, home)
        assert counts(done) == expected
        assert done.bytes == told.bytes == 40
        assert files_in(home) == {path.relative_to(home).as_posix() for path in stay}
        assert not any(path.exists() for path in go)
        assert collect_garbage(store, home).freed == {}
        assert json.loads(json.dumps(done.to_json()))["freed"]["renderings"] == {"count": 1, "bytes": 10}

    @pytest.mark.parametrize("status", ["queued", "running", "canceling"])
    def test_nothing_that_a_job_may_use_is_touched(self, store: Store, home: Path, status: str) -> None:
        job = store.jobs.submit("execute", {"plan_id": "f" * 64, "to": "bitplan"})
        if status != "queued":
            store.jobs.begin(job.id)
        if status == "canceling":
            store.jobs.cancel(job.id)
        used = {
            make(home / "renderings" / USELESS / "unit.safetensors"),
            make(home / "partial" / f"{'e' * 64}.jsonl"),
            make(home / "exports" / ("f" * 64) / "bitplan" / "config.json"),
            make(home / "verify-abc_1234" / "plan.json"),
        }
        other = make(home / "exports" / ("0" * 64) / "bitplan" / "config.json")
        assert counts(collect_garbage(store, home, older_than_days=0)) == {"exports": (1, 5)}
        assert all(path.exists() for path in used)
        assert not other.exists()
        store.jobs.cancel(job.id)
        store.jobs.finish(job.id)
        collect_garbage(store, home)
        assert files_in(home) == set()

    def test_a_home_with_nothing_in_it(self, store: Store, home: Path) -> None:
        assert collect_garbage(store, home).to_json() == {"dry_run": False, "bytes": 0, "freed": {}}
        assert not home.exists()

    def test_a_profile_that_is_only_in_the_store_keeps_its_renderings(self, store: Store, home: Path) -> None:
        report = fakes.report(ProfileRequest("tiny"))
        store.put_profile(report, ProfileBody(model="tiny"))
        kept = make(home / "renderings" / report.render_fingerprint[:32] / "unit.safetensors")
        collect_garbage(store, home)
        assert kept.exists()

    def test_links_are_not_followed(self, store: Store, home: Path, tmp_path: Path) -> None:
        outside = make(tmp_path / "outside" / "precious.bin")
        (home / "exports").mkdir(parents=True)
        (home / "exports" / "link").symlink_to(outside.parent)
        collect_garbage(store, home, older_than_days=0)
        assert outside.exists()
        assert not (home / "exports" / "link").is_symlink()


class TestRows:
    def test_what_has_had_its_day_goes(self, store: Store, home: Path) -> None:
        body = SweepBody(models=("m",), budgets=("25%",))
        ended = [store.jobs.submit("plan", {"n": n}) for n in range(3)]
        swept, waiting = store.jobs.submit("sweep", {}), store.jobs.submit("plan", {"n": 9})
        store.sweeps.create(body, swept.id)
        for job in [*ended, swept]:
            store.jobs.begin(job.id)
            store.jobs.finish(job.id, {})
        keys = [store.keys.create(name, "read")[0] for name in ("old", "new", "good")]
        for key in keys[:2]:
            store.keys.revoke(key.id)
        expired, _ = store.keys.create("expired", "read", days=1)
        worker = WorkerView(id="w", host="h", pid=1, process_started=0.0, version="0", beat=1)
        store.workers.beat(worker)
        store.workers.beat(worker.model_copy(update={"id": "dead"}))
        store.replies.answer_once("old", "plans", InspectBody(model="m"), lambda: Reply(200, "", {}))
        with store.database.write() as session:
            for statement, names in {
                "UPDATE jobs SET finished_at = '2020-01-01T00:00:00.000Z' WHERE id = :name": [ended[0].id, ended[1].id, swept.id],
                "UPDATE keys SET revoked_at = '2020-01-01T00:00:00.000Z' WHERE id = :name": [keys[0].id],
                "UPDATE keys SET expires_at = '2020-01-01T00:00:00.000Z' WHERE id = :name": [expired.id],
                "UPDATE workers SET seen_at = '2020-01-01T00:00:00.000Z' WHERE id = :name": ["dead"],
                "UPDATE replies SET created_at = '2020-01-01T00:00:00.000Z' WHERE key = :name": ["old"],
            }.items():
                for name in names:
                    session.execute(sa.text(statement), {"name": name})
        expected = {"ended jobs": (2, 0), "keys out of use": (2, 0), "dead workers": (1, 0), "idempotency replies": (1, 0)}
        assert counts(collect_garbage(store, home, dry_run=True)) == expected
        assert len(store.jobs.list().items) == 5
        assert counts(collect_garbage(store, home)) == expected
        assert {job.id for job in store.jobs.list().items} == {ended[2].id, swept.id, waiting.id}
        assert store.sweeps.list().items[0].status == "succeeded"
        assert {key.name for key in store.keys.list()} == {"new", "good"}
        assert [worker.id for worker in store.workers.list()] == ["w"]
        assert collect_garbage(store, home).freed == {}


class TestArtifacts:
    @pytest.fixture
    def shared(self, tmp_path: Path) -> Artifacts:
        return Artifacts(tmp_path / "shared")

    def test_those_of_deleted_plans_go_and_their_contents_when_nobody_names_them(
        self, store: Store, home: Path, shared: Artifacts, tmp_path: Path
    ) -> None:
        plan, gone = plan_of(NEEDED), "f" * 64
        store.put_plan(plan)
        exports = {plan.id: {"config.json": b"same", "own": b"kept"}, gone: {"config.json": b"same", "own": b"lost"}}
        for owner, files in exports.items():
            for name, content in files.items():
                make(tmp_path / "maker" / "exports" / owner / "bitplan" / name, content=content)
            shared.publish(f"exports/{owner}/bitplan", tmp_path / "maker")
        for name in (USELESS, NEEDED):
            make(tmp_path / "maker" / "renderings" / name / "unit.safetensors", content=name.encode())
            shared.publish(f"renderings/{name}", tmp_path / "maker")
        assert counts(collect_garbage(store, home, shared, dry_run=True)) == {"artifacts": (1, 0)}
        assert shared.exists(f"exports/{gone}/bitplan")
        assert counts(collect_garbage(store, home, shared)) == {"artifacts": (1, 0)}  # contents may be about to be named again
        for path in (tmp_path / "shared").rglob("*"):
            if path.is_file():
                age(path, OLD_DAYS)
        expected = {"artifacts": (1, 0), "contents": (2, 36)}  # the useless rendering and what only it and the export named
        assert counts(collect_garbage(store, home, shared, dry_run=True)) == expected
        assert counts(collect_garbage(store, home, shared)) == expected
        assert shared.manifests() == [f"exports/{plan.id}/bitplan", f"renderings/{NEEDED}"]
        for name in shared.manifests():
            assert shared.fetch(name, tmp_path / "reader")
        assert collect_garbage(store, home, shared).freed == {}

    def test_an_old_content_is_put_again_by_whoever_publishes_it(
        self, store: Store, home: Path, shared: Artifacts, tmp_path: Path
    ) -> None:
        """Else it could be collected between the look at it and the manifest that names it."""
        make(tmp_path / "maker" / "models" / "x" / "config.json")
        shared.publish("models/x", tmp_path / "maker")
        shared.delete("models/x")
        for path in (tmp_path / "shared").rglob("*"):
            age(path, OLD_DAYS)
        shared.publish("models/x", tmp_path / "maker")
        shared.delete("models/x")
        assert collect_garbage(store, home, shared).freed == {}
