"""The benchmark of the GPU kernels, tried out where there is no GPU: from a checkout of another name, which nobody installed."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from bitplan.kernels.latency_json import from_json

pytest.importorskip("triton", reason="Triton is for Linux")
ROOT = Path(__file__).parent.parent
STAGES = {"ceilings": 1, "compile": 19, "correct": 6, "time": 8, "mixed": 4, "changes": 1}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only what the benchmark may need."""
    folder = tmp_path_factory.mktemp("elsewhere") / "some other-name"
    for name in ("kernels", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results", "*.so"))
    shutil.copy(ROOT / "__init__.py", folder)
    return folder


def bench(checkout: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Without `site`, so that no installation of this package is found: an editable one is a hook that `site` runs."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": sysconfig.get_path("purelib"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-S", "benchmarks/kernels.py", *map(str, arguments)]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "kernels-dry-run.jsonl").read_text(encoding="utf-8").splitlines()]


def test_without_a_gpu_nothing_is_written(checkout: Path, tmp_path: Path) -> None:
    done = bench(checkout, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == "There is no CUDA device here, so nothing was measured. --dry-run tries the script out.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_all_stages_and_again_after_a_kill(checkout: Path, tmp_path: Path) -> None:
    done = bench(checkout, "--dry-run", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    whole = lines(tmp_path)
    for stage, expected in STAGES.items():
        assert len({line["key"] for line in whole if line["stage"] == stage}) == expected
    assert all(line["ok"] for line in whole if line["stage"] in ("correct", "steady"))
    assert not any("skipped" in line or line.get("error") for line in whole if line["stage"] != "correct")
    for line in whole:
        if "seconds" in line and line["stage"] != "steady":
            assert line["least"] <= line["seconds"]
            assert len(line["each"]) == len(line["beside_each"]) == 5
            assert all(math.isfinite(each) and each > 0 for each in line["each"] + line["beside_each"])
    table = done.stdout.partition("NO NUMBER BELOW MEANS ANYTHING")[2].splitlines()
    assert 10 < len(table) <= 60

    written = json.loads((tmp_path / "latency_dry-run.json").read_text(encoding="utf-8"))
    model = from_json(written, "written")
    assert model.name == "dry-run"
    assert len(model.points) == 8 + 4  # the packed ones, and a dense one for each shape and number of rows
    assert "no number means anything" in model.note

    # As a kill leaves it: some lines are there, and half of one.
    path = tmp_path / "kernels-dry-run.jsonl"
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    cut = next(place for place, line in enumerate(text) if '"stage": "mixed"' in line) + 1
    path.write_text("".join(text[:cut]) + text[cut][:40], encoding="utf-8")
    done = bench(checkout, "--dry-run", "--out", tmp_path, "--stages", "time", "mixed")
    assert done.returncode == 0, done.stderr
    again = lines(tmp_path)
    assert again[:cut] == whole[:cut]
    assert [line["stage"] for line in again[cut:]] == ["run", "mixed", "mixed", "mixed", "steady"]
    assert [line["key"] for line in again[cut + 1 : cut + 4]] == [line["key"] for line in whole if line["stage"] == "mixed"][1:]


def test_minutes_that_are_over(checkout: Path, tmp_path: Path) -> None:
    done = bench(checkout, "--dry-run", "--out", tmp_path, "--stages", "correct", "--minutes", "0")
    assert done.returncode == 3
    assert [line["stage"] for line in lines(tmp_path)] == ["run"]
