"""The command line: what each command prints and returns, and that a mistake costs one sentence."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import fakes
from bitplan import allocator
from bitplan.allocator import Plan, ProfileRequest, home_folder
from bitplan.api.schema import PlanSummary
from commands import Run, runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, store_file: Path) -> Run:
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    shutil.copy(store_file, home_folder() / "bitplan.db")
    return runner(capsys)


@pytest.fixture
def plan_id(run: Run) -> str:
    return str(run("plan", "tiny", "--budget", "25%", "--json").document["id"])


class TestPlan:
    def test_it_says_what_was_spent_what_is_lost_and_what_is_proven(self, run: Run) -> None:
        done = run("plan", "tiny", "--budget", "25%")
        plan = fakes.plan("25%")
        assert done.status == 0
        for part in ("bytes", "loss", "bound", "gap", "stored", fakes.QUANTITY, f"bitplan verify {plan.id[:12]}", "25%"):
            assert part in done.out
        for name in set(plan.assignment.values()):
            assert name in done.out
        assert max(len(line) for line in done.out.splitlines()) <= 140

    def test_json_is_the_plan_and_nothing_else(self, run: Run) -> None:
        done = run("plan", "tiny", "--budget", "25%", "--json")
        assert Plan.model_validate(done.document).id == fakes.plan("25%").id
        assert "measuring sensitivity" in done.err

    def test_options_reach_the_plan(self, run: Run, tmp_path: Path) -> None:
        text = tmp_path / "text.txt"
        text.write_text("words")
        options = ["--target", "vllm", "--solver", "dp", "--seed", "3", "--tokens", "128", "--calibration", str(text)]
        formats = ["--formats", "int4-g64, int8-g64", "--pin", ".*q_proj=bf16", "--pin", r".*\.1\..*o_proj=int8-g64"]
        done = run("plan", "tiny", "--budget", "50%", *options, *formats, "--metric", "weight_error", "--json")
        plan = Plan.model_validate(done.document)
        assert (plan.target, plan.provenance.metric, plan.provenance.seed) == ("vllm", "weight_error", 3)
        assert set(plan.assignment.values()) <= {"int4-g64", "int8-g64", "bf16"}
        assert plan.assignment["model.layers.0.self_attn.k_proj"] == "bf16"  # tied to q for this engine
        assert plan.assignment["model.layers.1.self_attn.o_proj"] == "int8-g64"
        assert plan.certificate.formats == ["int4-g64", "int8-g64", "bf16"]

    def test_out_writes_a_file_that_is_a_plan(self, run: Run) -> None:
        done = run("plan", "tiny", "--budget", "25%", "--out", "folder/plan.json")
        assert done.status == 0
        plan = Plan.from_json(Path("folder/plan.json").read_text())
        assert run("show", "folder/plan.json", "--json").document["id"] == plan.id

    def test_the_plan_and_what_it_was_made_from_are_stored(self, run: Run, plan_id: str) -> None:
        assert [item["id"] for item in run("list", "--json").document["items"]] == [plan_id]
        frontier = run("frontier", "tiny", "--json").document
        assert frontier["profile_id"] == fakes.report(ProfileRequest("tiny")).id


class TestOthers:
    def test_inspect_counts_units_and_what_is_left_alone(self, run: Run) -> None:
        done = run("inspect", "tiny")
        assert done.status == 0
        for part in ("LlamaForCausalLM", "64 x 64", "256 x 64", "4 tensors", "one parameter with lm_head"):
            assert part in done.out
        assert run("inspect", "tiny", "--json").document["fingerprint"] == fakes.inventory().fingerprint

    def test_profile_tells_what_each_format_would_cost(self, run: Run) -> None:
        done = run("profile", "tiny", "--formats", "int4-g64,int2-g64")
        assert done.status == 0
        rows = re.findall(r"^\s+(int4-g64|int2-g64|bf16)\s+(\S+)", done.out, flags=re.MULTILINE)
        losses = {name: float(loss) for name, loss in rows}
        assert losses["int2-g64"] > losses["int4-g64"] > losses["bf16"] == 0
        report = run("profile", "tiny", "--formats", "int4-g64,int2-g64", "--json").document
        assert report["formats"] == ["int2-g64", "int4-g64", "bf16"]

    @pytest.mark.parametrize("command", ["profile", "frontier", "spikes"])
    def test_a_device_that_is_not_there_costs_one_sentence(self, run: Run, command: str) -> None:
        done = run(command, "tiny", "--torch-device", "warp:9")
        assert done.status == 2
        assert "bitplan: torch has no device 'warp:9' on this machine; choose one of: auto, cpu" in done.err

    def test_the_device_reaches_what_computes(self, run: Run, plan_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []
        for name in ("allocate", "execute", "verify"):
            whole = getattr(allocator, name)

            def note(*given: Any, whole: Callable[..., Any] = whole, **named: Any) -> Any:
                seen.append(named["device"])
                return whole(*given, **named)

            monkeypatch.setattr(allocator, name, note)
        for device in (["--torch-device", "cpu"], []):
            for command in (
                ["plan", "tiny", "--budget", "30%"],
                ["execute", plan_id, "--out", str(len(device))],
                ["verify", plan_id],
            ):
                assert run(*command, *device).status == 0
        assert seen == ["cpu"] * 3 + ["auto"] * 3

    def test_frontier_prints_a_table_and_writes_what_the_name_says(self, run: Run) -> None:
        points = run("frontier", "tiny", "--target", "vllm", "--json").document["points"]
        table = run("frontier", "tiny", "--target", "vllm", "--out", "f.csv")
        assert len([line for line in table.out.splitlines() if "iB" in line]) > 5
        with Path("f.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(int(row["bytes"]), float(row["loss"])) for row in rows] == [(p["bytes"], p["loss"]) for p in points]
        assert {(row["quantity"], row["model"], row["target"]) for row in rows} == {(fakes.QUANTITY, "tiny", "vllm")}
        assert run("frontier", "tiny", "--out", "f.html").status == 0
        assert "Loss against size" in Path("f.html").read_text()
        assert run("frontier", "tiny", "--out", "f.svg").status == 0
        picture = Path("f.svg").read_text()
        assert picture.startswith("<svg")
        assert "var(" not in picture

    @pytest.mark.skipif(find_spec("vl_convert") is None, reason="vl-convert-python is not installed")
    def test_frontier_writes_a_picture_where_it_can(self, run: Run) -> None:
        assert run("frontier", "tiny", "--out", "f.png").status == 0
        assert Path("f.png").read_bytes().startswith(b"\x89PNG")

    def test_frontier_refuses_other_names_before_it_measures(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        done = run("frontier", "tiny", "--out", "f.pdf")
        assert done.status == 2
        assert ".csv, .html, .png, .svg" in done.err
        monkeypatch.setattr("bitplan.api.outputs.find_spec", lambda name: None)
        done = run("frontier", "tiny", "--out", "f.png")
        assert done.status == 2
        assert "write .svg, .html or .csv" in done.err
        assert "inspecting" not in done.err

    def test_execute_writes_a_folder(self, run: Run, plan_id: str) -> None:
        done = run("execute", plan_id[:8], "--out", "model")
        assert done.status == 0
        assert Path("model/plan.json").exists()
        plan = fakes.plan("25%")
        assert f"{plan.predicted.bytes.total:,} bytes" in done.out
        answer = run("execute", plan_id, "--out", "other", "--json").document
        assert answer == {"plan_id": plan_id, "folder": "other", "bytes": plan.predicted.bytes.total}

    def test_verify_shows_promise_and_fact_and_attaches_them(self, run: Run, plan_id: str) -> None:
        done = run("verify", plan_id[:8])
        assert done.status == 0
        assert "kept its promise" in done.out
        assert "kernels: 1 product by back end torch, at most 0 of the largest output from float64" in done.out
        assert "int4-g64 everywhere, measured" in done.out
        assert run("show", plan_id, "--json").document["evidence"]["passed"] is True
        assert "kept its promise" in run("show", plan_id).out
        assert "passed" in run("list").out

    def test_verify_returns_4_when_the_promise_is_broken(self, run: Run) -> None:
        plan_id = run("plan", "liar", "--budget", "25%", "--json").document["id"]
        done = run("verify", plan_id)
        assert done.status == 4
        assert "broke its promise" in done.out
        done = run("verify", plan_id, "--json")
        assert (done.status, done.document["passed"]) == (4, False)

    def test_verify_keeps_a_plan_that_came_as_a_file(self, run: Run) -> None:
        plan = fakes.plan("30%")
        Path("plan.json").write_text(plan.to_json())
        assert run("verify", "plan.json").status == 0
        assert run("show", plan.id[:10], "--json").document["evidence"]["passed"] is True

    @pytest.mark.parametrize("model", ["tiny", "experts"])
    def test_show_draws_every_layer(self, run: Run, model: str) -> None:
        plan_id = run("plan", model, "--budget", "25%", "--json").document["id"]
        page = run("show", plan_id).out
        plan = fakes.plan("25%", model)
        for layer in range(fakes.LAYERS):
            bits = plan.assignment[f"model.layers.{layer}.self_attn.q_proj"].removeprefix("int").partition("-")[0]
            assert re.search(rf"^\s*{layer}\s+{bits}\s", page, flags=re.MULTILINE)
        if model == "experts":
            experts = [plan.assignment[f"model.layers.0.mlp.experts.{e}"] for e in range(fakes.EXPERTS)]
            assert "".join(name.removeprefix("int").partition("-")[0] for name in experts) in page
        assert "model.embed_tokens" in page

    def test_list_is_newest_first(self, run: Run) -> None:
        ids = [run("plan", "tiny", "--budget", budget, "--json").document["id"] for budget in ("20%", "30%")]
        listed = run("list", "--json").document
        assert [PlanSummary.model_validate(item).id for item in listed["items"]] == ids[::-1]
        text = run("list", "--limit", "1").out
        assert ids[1][:12] in text
        assert ids[0][:12] not in text
        assert run("list", "--model", "other", "--json").document["items"] == []

    def test_diff_lists_the_units_that_differ(self, run: Run) -> None:
        small, large = (run("plan", "tiny", "--budget", budget, "--json").document for budget in ("20%", "30%"))
        done = run("diff", small["id"], large["id"])
        assert done.status == 0
        change = large["predicted"]["bytes"]["total"] - small["predicted"]["bytes"]["total"]
        assert f"{change:+,}" in done.out
        document = run("diff", small["id"], large["id"], "--json").document
        assert {unit for row in document["rows"] for unit in row["units"]} == {
            unit for unit in small["assignment"] if small["assignment"][unit] != large["assignment"][unit]
        }


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "status", "sentence"),
        [
            (["plan", "tiny", "--budget", "1%"], 3, r"1%"),
            (["plan", "tiny", "--budget", "lots"], 2, r"write bytes"),
            (["plan", "broken", "--budget", "1%"], 2, r"fetch it again"),
            (["plan", "tiny", "--budget", "25%", "--metric", "kl"], 2, r"unknown metric 'kl'.*choose one of"),
            (["plan", "tiny", "--budget", "25%", "--target", "vlm"], 2, r"did you mean 'vllm'"),
            (["plan", "tiny", "--budget", "25%", "--formats", "int4"], 2, r"unknown format 'int4'"),
            (["plan", "tiny", "--budget", "25%", "--pin", "q_proj"], 2, r"REGEX=FORMAT"),
            (["plan", "tiny", "--budget", "25%", "--tokens", "0"], 2, r"tokens"),
            (["plan", "tiny", "--budget", ""], 2, r"--budget"),
            (["plan", "tiny"], 2, r"[Mm]issing option.*--budget"),
            (["plan", "tiny", "--budgt", "25%"], 2, r"No such option.*--budgt.*--budget"),
            (["plam", "tiny"], 2, r"No such command 'plam'.*Did you mean 'plan'"),
            (["show", "0123"], 2, r"bitplan list"),
            (["show", "nothing.json"], 2, r"nothing\.json cannot be read"),
            (["diff", "0123", "4567"], 2, r"0123"),
            (["frontier", "tiny", "--target", "x"], 2, r"unknown target"),
            (["serve", "--host", "203.0.113.1"], 2, r"cannot listen on 203\.0\.113\.1"),
        ],
    )
    def test_a_mistake_costs_one_sentence(self, run: Run, arguments: list[str], status: int, sentence: str) -> None:
        done = run(*arguments)
        assert done.status == status
        said = [line for line in done.err.splitlines() if line.startswith("bitplan: ")]
        assert len(said) == 1
        assert re.search(sentence, said[0])
        assert "Traceback" not in done.err
        assert done.out == ""

    @pytest.mark.parametrize(
        ("arguments", "slug"),
        [
            (["plan", "tiny", "--budget", "1%"], "budget-infeasible"),
            (["plan", "tiny", "--budgt", "1%"], "usage"),
            (["show", "0123"], "not-found"),
        ],
    )
    def test_with_json_a_mistake_is_a_problem_document(self, run: Run, arguments: list[str], slug: str) -> None:
        done = run(*arguments, "--json")
        assert done.document["type"] == f"/problems/{slug}"
        assert done.document["detail"] in done.err

    def test_a_defect_is_1_and_shows_its_traceback_only_with_debug(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def defect(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("by zero")

        monkeypatch.setattr("bitplan.allocator.allocate", defect)
        done = run("plan", "tiny", "--budget", "25%")
        assert (done.status, done.out) == (1, "")
        assert "ZeroDivisionError: by zero; run it again with --debug" in done.err
        with pytest.raises(ZeroDivisionError):
            run("plan", "tiny", "--debug", "--budget", "25%")

    @pytest.mark.parametrize("how", [KeyboardInterrupt, None])
    def test_an_interrupted_command_says_that_nothing_is_lost(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, how: type[BaseException] | None
    ) -> None:
        from bitplan.allocator.errors import Interrupted

        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt if how else Interrupted("stopped; what was measured is kept")

        monkeypatch.setattr("bitplan.allocator.allocate", interrupted)
        done = run("plan", "tiny", "--budget", "25%")
        assert done.status == 130
        assert "what was measured is kept" in done.err


class TestProcess:
    def test_help_comes_without_anything_heavy(self) -> None:
        script = """
import sys
from bitplan.api.cli import main
status = main(["--help"])
heavy = {"torch", "transformers", "fastapi", "sqlalchemy", "pydantic", "numpy", "scipy", "jinja2"} & sys.modules.keys()
sys.exit(status or (f"loaded {heavy}" if heavy else 0))
"""
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        for command in ("inspect", "profile", "plan", "frontier", "execute", "verify", "list", "show", "diff", "serve"):
            assert re.search(rf"^\s+{command}\s", done.stdout, flags=re.MULTILINE)
