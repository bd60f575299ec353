"""Mistakes that an unpacking kernel invites, each planted in a copy of the sources, must not survive the comparison with float64:
else that comparison would prove nothing."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")

from bitplan.kernels.layout import pack
from bitplan.kernels.triton import running
from triton_cases import BACKEND, DEVICE, TOLERANCE, apart, exact, numbers

SOURCES = Path(running.__file__).parent
COPY = "bitplan.kernels.copied_for_a_test"


@dataclass(frozen=True)
class Mistake:
    """In `module`, `right` is replaced by `wrong`; seen in a product of so many rows."""

    module: str
    right: str
    wrong: str
    rows: int


MISTAKES = {
    "rows of a field in reverse": Mistake("fields", "rows % WIDTH * stride_row", "(WIDTH - 1 - rows % WIDTH) * stride_row", 1),
    "last inputs not masked in a GEMV": Mistake("gemv", "mask=k < left", "mask=k >= 0", 2),
    "last inputs not masked in a GEMM": Mistake("gemm", "(k < inputs - start)[None, :]", "(k < BK)[None, :]", 17),
    "zero point taken off after rounding": Mistake(
        "gemm",
        "value * scale[None, :] + (-zero * scale)[None, :]",
        "(value * scale[None, :]).to(DOT) - (zero * scale).to(DOT)[None, :]",
        17,
    ),
    "zero point taken off unscaled": Mistake("gemm", "(-zero * scale)[None, :]", "(-zero)[None, :]", 17),
}


@contextmanager
def copied(folder: Path, mistake: Mistake | None) -> Iterator[ModuleType]:
    """`products` of a copy of the package, with a mistake in it."""
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if mistake is not None:
        path = folder / f"{mistake.module}.py"
        text = path.read_text(encoding="utf-8")
        assert text.count(mistake.right) == 1, f"{path.name} has changed: bring this test in step with it"
        path.write_text(text.replace(mistake.right, mistake.wrong), encoding="utf-8")
    package = ModuleType(COPY)
    package.__path__ = [str(folder)]
    sys.modules[COPY] = package
    try:
        yield importlib.import_module(f"{COPY}.products")
    finally:
        for name in [name for name in sys.modules if name.partition(".copied_for_a_test")[1]]:
            del sys.modules[name]


def error(products: ModuleType, rows: int) -> tuple[float, float]:
    """That of a product with codes close to their zero points, as weights' are, far from zero themselves; and what is allowed."""
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(96, 105, (70, 40), generator=generator)  # 70: the last words are padded
    scales = (torch.rand(3, 40, generator=generator) + 0.25).half()
    zeros = torch.full((3, 40), 100.0).half()
    planes = pack(codes, 7, scales, zeros, group_size=32).to(DEVICE)
    dtype = torch.float32 if rows <= 4 else torch.float16
    further = torch.randn(rows + 2, 70, generator=generator).to(dtype).to(DEVICE)  # what a missing mask reads is there
    x = further[:rows]
    y = products.product(x, planes, torch.float32, True)
    return apart(y, exact(x, numbers(codes, scales, zeros, 32))), TOLERANCE[dtype]


def test_the_copy_itself_is_right(tmp_path: Path) -> None:
    with copied(tmp_path / "copy", None) as products:
        assert Path(products.__file__ or "").parent == tmp_path / "copy"
        for rows in (1, 2, 17):
            found, allowed = error(products, rows)
            assert found < allowed


@pytest.mark.skipif(BACKEND != "interpret", reason="a planted mistake may read where a GPU refuses to")
@pytest.mark.parametrize("name", MISTAKES)
def test_no_mistake_survives(name: str, tmp_path: Path) -> None:
    mistake = MISTAKES[name]
    with copied(tmp_path / "copy", mistake) as products:
        found, allowed = error(products, mistake.rows)
    assert not found < 2 * allowed
