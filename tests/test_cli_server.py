"""`--server`: every command says the same whether it works here or asks a service that uses the same store.

The service listens on a socket of this process, over models that need no measuring, with a worker beside it.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import uvicorn

import fakes
from bitplan.allocator import Plan, home_folder
from bitplan.api.app import create_app
from bitplan.api.serving import server_config
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from commands import Done, Run, runner
from hands import hands


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store_file: Path) -> Iterator[str]:
    """The address of the service."""
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bitplan.api.client.jobs.FIRST_POLL_SECONDS", 0.03)
    shutil.copy(store_file, home_folder() / "bitplan.db")
    settings = Settings.from_environment()
    app = create_app(settings)
    store: Store = app.state.store
    config = server_config(app)
    config.port = 0
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        with hands(store, settings):
            yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def there(run: Run, url: str) -> Run:
    """A command whose work a service does."""
    return lambda *arguments: run(*arguments, "--server", url)


def said(done: Done) -> tuple[int, str]:
    return done.status, done.out


def test_commands_say_the_same_here_and_there(run: Run, there: Run) -> None:
    """First there, so that the service does the work; then here, where the same store answers."""
    plan = ["plan", "tiny", "--budget", "25%", "--pin", ".*v_proj=bf16"]
    first = there(*plan, "--json")
    assert first.status == 0
    assert "measuring sensitivity" in first.err
    plan_id = Plan.model_validate(first.document).id
    other = there("plan", "tiny", "--budget", "40%", "--json").document["id"]
    assert there("verify", other).status == 0
    for command in (
        ["inspect", "tiny"],
        ["profile", "tiny"],
        plan,
        ["frontier", "tiny", "--target", "vllm"],
        ["list"],
        ["list", "--budget", "25%"],
        ["list", "--sort", "bytes", "--limit", "1"],
        ["list", "--verified"],
        ["list", "--model", "none"],
        ["show", plan_id[:10]],
        ["show", other],
        ["diff", plan_id, other],
        ["sweep", "--model", "tiny", "--model", "liar", "--budget", "20%", "--budget", "1%", "--metric", "kl_fisher"],
        ["jobs", "list"],
        ["jobs", "list", "--kind", "verify"],
        ["keys", "list"],
    ):
        for form in ([], ["--json"]):
            if command[0] == "sweep" and form:
                continue  # its own id is in the document
            assert said(there(*command, *form)) == said(run(*command, *form)), command


def test_files_are_written_the_same(run: Run, there: Run, tmp_path: Path) -> None:
    plan_id = there("plan", "tiny", "--budget", "25%", "--out", "there.json", "--json").document["id"]
    run("plan", "tiny", "--budget", "25%", "--out", "here.json")
    assert Path("there.json").read_bytes() == Path("here.json").read_bytes()
    for suffix in (".csv", ".html", ".svg"):
        assert there("frontier", "tiny", "--out", f"there{suffix}").status == 0
        run("frontier", "tiny", "--out", f"here{suffix}")
        assert Path(f"there{suffix}").read_bytes() == Path(f"here{suffix}").read_bytes()
    done = there("execute", plan_id[:9], "--out", "one/there", "--json")
    assert done.document == run("export", plan_id, "--to", "bitplan", "--out", "one/here", "--json").document | {
        "folder": "one/there"
    }
    files = {path.relative_to("one/here"): path.read_bytes() for path in Path("one/here").rglob("*") if path.is_file()}
    assert files == {path.relative_to("one/there"): path.read_bytes() for path in Path("one/there").rglob("*") if path.is_file()}
    assert "downloading" in there("execute", "here.json", "--out", "two").err


def test_mistakes_cost_the_same(run: Run, there: Run) -> None:
    for command, status in (
        (["plan", "tiny", "--budget", "1%"], 3),
        (["plan", "tiny", "--budget", "lots"], 2),
        (["plan", "broken", "--budget", "25%"], 2),
        (["plan", "tiny", "--budget", "25%", "--target", "vlm"], 2),
        (["frontier", "tiny", "--target", "x"], 2),
        (["show", "0123"], 2),
        (["jobs", "show", "job_0"], 2),
        (["jobs", "list", "--status", "lost"], 2),
        (["export", "0123", "--to", "guff", "--out", "x"], 2),
        (["execute", "0123", "--out", "x"], 2),
        (["verify", "0123"], 2),
        (["sweep", "--model", "tiny", "--budget", "1%"], 3),
        (["list", "--sort", "beauty"], 2),
    ):
        away, here = there(*command), run(*command)
        assert (away.status, away.out) == (here.status, here.out), command
        assert away.status == status
        sentences = [[line for line in done.err.splitlines() if line.startswith("bitplan: ")] for done in (away, here)]
        assert sentences[0] == sentences[1]
    document = there("plan", "tiny", "--budget", "1%", "--json").document
    assert document == run("plan", "tiny", "--budget", "1%", "--json").document


def test_a_promise_that_was_broken_there_is_4_here(there: Run) -> None:
    plan_id = there("plan", "liar", "--budget", "25%", "--json").document["id"]
    done = there("verify", plan_id, "--json")
    assert (done.status, done.document["passed"]) == (4, False)


def test_options_of_this_machine_are_refused_with_a_server(there: Run) -> None:
    plan_id = there("plan", "tiny", "--budget", "25%", "--json").document["id"]
    for options in (["execute", plan_id, "--out", "x", "--torch-device", "cpu"], ["verify", plan_id, "--data", "x.txt"]):
        done = there(*options)
        assert done.status == 2
        assert "with --server" in done.err


def test_the_server_may_be_named_by_the_environment(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPLAN_SERVER", url)
    monkeypatch.setenv("BITPLAN_HOME", "elsewhere")
    run("plan", "tiny", "--budget", "25%")
    assert len(run("list", "--json").document["items"]) == 1
    assert "plan" in run("jobs").out
    assert not Path("elsewhere/bitplan.db").exists()
    monkeypatch.setenv("BITPLAN_SERVER", "http://127.0.0.1:9")
    monkeypatch.setattr("bitplan.api.client.persistence.FIRST_PAUSE", 0.01)
    done = run("list")
    assert done.status == 1
    assert "no answer from http://127.0.0.1:9" in done.err


class TestJobs:
    def test_a_job_is_followed_to_its_end(self, run: Run, there: Run) -> None:
        there("plan", "tiny", "--budget", "25%")
        there("plan", "experts", "--budget", "1%")
        jobs = {job["input"]["model"]: job["id"] for job in there("jobs", "list", "--json").document["items"]}
        for place in (run, there):
            done = place("jobs", "watch", jobs["tiny"], "--json")
            assert (done.status, done.document["status"]) == (0, "succeeded")
            done = place("jobs", "watch", jobs["experts"])
            assert (done.status, done.out) == (3, "")
            assert "1%" in done.err
        assert said(run("jobs", "show", jobs["experts"])) == said(there("jobs", "show", jobs["experts"]))
        assert "1%" in run("jobs", "show", jobs["experts"]).out
        assert jobs["tiny"] in run("jobs").out

    def test_a_job_that_was_called_off_is_an_interruption(self, url: str, run: Run, there: Run) -> None:
        with closing(Store.open(Settings.from_environment().database_url)) as store:
            job = store.jobs.submit("plan", {"model": "tiny", "budget": "25%"})
            store.jobs.cancel(job.id)
        assert there("jobs", "watch", job.id).status == run("jobs", "watch", job.id).status == 130
        for place in (run, there):
            assert place("jobs", "cancel", job.id, "--json").document["status"] == "canceled"


class TestSweep:
    def test_a_sweep_is_a_table_and_a_file(self, run: Run, there: Run) -> None:
        command = [
            "sweep",
            "--model",
            "tiny",
            "--model",
            "experts",
            "--budget",
            "20%",
            "--budget",
            "1%",
            "--target",
            "native",
            "--target",
            "vllm",
        ]
        away, here = there(*command, "--out", "there.csv", "--json"), run(*command, "--out", "here.csv", "--json")
        assert away.status == here.status == 0
        assert away.document["rows"] == here.document["rows"]
        assert away.document["id"].startswith("sweep_")
        assert Path("there.csv").read_bytes() == Path("here.csv").read_bytes()
        assert [row["status"] for row in here.document["rows"]] == ["succeeded", "failed"] * 4
        assert "sweeping" in away.err
        assert there(*command, "--json").document["id"] == away.document["id"]
        assert there(*command, "--fresh", "--json").document["id"] != away.document["id"]

    def test_verified_plans_show_what_was_measured(self, run: Run, there: Run) -> None:
        command = ["sweep", "--model", "tiny", "--budget", "20%", "--verify", "--json"]
        away, here = there(*command), run(*command)
        assert away.document["rows"] == here.document["rows"]
        assert here.document["rows"][0]["plan"]["verified"] is True


class TestKeys:
    def test_a_key_is_made_listed_and_revoked(self, run: Run, there: Run) -> None:
        made = [place("keys", "create", "ci", "--scope", "plan", "--days", "2", "--json").document for place in (run, there)]
        assert len({key["secret"] for key in made}) == 2
        listed = there("keys", "list").out
        assert all(key["id"] in listed and key["secret"] not in listed for key in made)
        assert run("keys", "revoke", made[0]["id"]).status == 0
        assert there("keys", "revoke", made[1]["id"], "--json").document == {"id": made[1]["id"], "revoked": True}
        assert [key["revoked"] for key in run("keys", "list", "--json").document["items"]] == [True, True]
        secret = run("keys", "create", "me").out.strip()
        assert secret.startswith("bp_")

    @pytest.mark.parametrize("options", [["--scope", "all"], ["--days", "0"], ["--days", "-3"]])
    def test_what_no_key_can_be_is_refused(self, run: Run, there: Run, options: list[str]) -> None:
        for place in (run, there):
            assert place("keys", "create", "ci", *options).status == 2
        assert json.loads(run("keys", "list", "--json").out) == {"items": []}


class TestGarbage:
    def test_old_jobs_go_and_a_dry_run_only_tells(self, run: Run, there: Run) -> None:
        there("plan", "experts", "--budget", "1%")
        dry = run("gc", "--older-than", "0d", "--dry-run", "--json").document
        assert dry["dry_run"] is True
        assert dry["freed"]["ended jobs"]["count"] == 1
        assert len(there("jobs", "list", "--json").document["items"]) == 1
        assert run("gc", "--older-than", "0d", "--json").document["freed"] == dry["freed"]
        assert there("jobs", "list", "--json").document["items"] == []
        assert "nothing to delete" in run("gc").out

    @pytest.mark.parametrize("age", ["a month", "-3d", "30", "d"])
    def test_an_age_that_is_none_is_refused(self, run: Run, age: str) -> None:
        done = run("gc", f"--older-than={age}")
        assert done.status == 2
        assert "write for instance 30d or 12h" in done.err
