"""Kernels compiled for GPUs that are not there, against what they were compiled to when `compiled.json` was written."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is for Linux")

from bitplan.kernels.triton.ahead import (  # noqa: E402 (not without Triton)
    DISASSEMBLER,
    HARDEST,
    SHARED_LIMIT,
    Compiled,
    Variant,
    faults,
    marginal,
    per_weight,
    stored,
    variants,
)
from bitplan.kernels.triton.configs import Tile, every  # noqa: E402

ALL = {variant.name: variant for variant in variants()}
SAMPLED = 2  # variants of each other architecture, a run


def first_of_each() -> list[Variant]:
    """Every kernel at two widths, so that all eight are among them, on the first tile that the table has for them; and the two
    for groups of mixed widths, which take longest."""
    kernels = sorted({variant.kernel for variant in ALL.values()})
    found = []
    for place, kernel in enumerate(kernels):
        for bits in (1 + place % 4, 5 + place % 4):
            found.append(next(each for each in ALL.values() if (each.kernel, each.widths) == (kernel, (bits,))))
    return [
        *found,
        *(next(each for each in ALL.values() if each.name.startswith(f"{kernel} 5+6+7")) for kernel in ("gemv", "gemm")),
    ]


def compiled(names: Iterable[str], folder: Path) -> dict[str, Compiled]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-m", "bitplan.kernels.triton.ahead", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["name"]: Compiled(*(each[part] for part in Compiled.__dataclass_fields__)) for each in lines}


@pytest.mark.slow
@pytest.mark.skipif(not DISASSEMBLER.exists(), reason="this Triton brings no disassembler")
def test_kernels_compile_to_what_they_did(tmp_path: Path) -> None:
    version, kept = stored()
    # Another sample for every version of the sources, the same one for everybody who has that version.
    sources = sorted(Path(sys.modules[Variant.__module__].__file__ or "").parent.glob("*.py"))
    drawn = random.Random("".join(path.read_text(encoding="utf-8") for path in sources))
    names = [f"sm_90 {variant.name}" for variant in first_of_each()]
    for target in (80, 100):
        names += [f"sm_{target} {name}" for name in drawn.sample(sorted(ALL), SAMPLED)]
    found = compiled(names, tmp_path)
    assert list(found) == names
    for full, numbers in found.items():
        architecture, _, name = full.partition(" ")
        assert faults(int(architecture[3:]), ALL[name], numbers) == []
        if version == triton.__version__:
            expected = kept[int(architecture[3:])][name]
            assert numbers.shared <= expected.shared, full
            assert numbers.registers <= 1.1 * expected.registers, full
            assert abs(numbers.instructions - expected.instructions) <= 0.1 * expected.instructions, full


@pytest.mark.parametrize("target", SHARED_LIMIT)
def test_every_configuration_was_compiled_and_fits(target: int) -> None:
    _, kept = stored()
    assert list(kept[target]) == list(ALL), "write compiled.json anew: python -m bitplan.kernels.triton.ahead --write"
    for name, numbers in kept[target].items():
        assert faults(target, ALL[name], numbers) == []


def test_variants_are_all_configurations() -> None:
    assert {(each.kernel, each.widths[0], each.tile) for each in ALL.values() if len(each.widths) == 1} == set(every())
    mixed = {(each.kernel, each.tile) for each in ALL.values() if each.widths == HARDEST}
    assert mixed == {(kernel, tile) for kernel, bits, tile in every() if bits == 7 and kernel != "dequantize"}
    assert len(ALL) == len(variants())


def test_faults_are_seen() -> None:
    variant = next(each for each in ALL.values() if each.kernel == "gemm")
    wrong = Compiled(shared=170_000, registers=255, stack=24, spills=3, instructions=500, slow=1, copies=0)
    assert faults(80, variant, wrong) == [
        f"sm_80 {variant.name}: 170000 bytes of shared memory, of 166912",
        f"sm_80 {variant.name}: 3 spills in loops, 24 bytes of stack",
        f"sm_80 {variant.name}: 1 slow conversions",
        f"sm_80 {variant.name}: no copy of 16 bytes to shared memory ahead of its use",
    ]
    many = Variant("gemm", (4,), 16, Tile(16, 64, 128, 16, 3))
    assert faults(90, many, wrong)[0] == f"sm_90 {many.name}: 255 registers a thread, more than there are for 16 warps"


def test_instructions_for_a_weight() -> None:
    """128 threads, 64 x 128 weights: 64 instructions of each thread are one for a weight."""
    wide, half = (next(each for each in ALL.values() if each.name == f"gemm 4 16x64x{k} w4 s3") for k in (128, 64))
    numbers = {wide.name: Compiled(0, 0, 0, 0, 512, 0, 0), half.name: Compiled(0, 0, 0, 0, 320, 0, 0)}
    assert per_weight(wide, numbers[wide.name]) == 8
    assert marginal(numbers) == {wide.name: 6}
