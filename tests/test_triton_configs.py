from __future__ import annotations

import itertools

import pytest
import torch

from bitplan.kernels.product import automatic, chosen_backend
from bitplan.kernels.triton import interpreted, launch
from bitplan.kernels.triton.configs import MOST_GEMM_SPLIT, every, select, tile, within_groups
from triton_cases import BACKEND, DEVICE

GRID = list(
    itertools.product(
        range(1, 9),
        (1, 2, 4, 5, 16, 17, 33, 64, 65, 100, 400),
        (1, 31, 33, 64, 4096, 14336),
        (1, 77, 4096, 28672),
        (32, 64, 96, 128, None),
        (False, True),
        (2, 132),
    )
)


def test_what_is_chosen_is_listed_and_fits() -> None:
    listed = set(every())
    for bits, rows, inputs, outputs, group, single, processors in GRID:
        size = group or inputs
        groups = -(-inputs // size)
        choice = select(bits, rows, inputs, outputs, size, groups, single, processors)
        assert (choice.kernel, bits, choice.tile) in listed
        assert choice.tile.inputs % 32 == 0
        assert groups == 1 or size % choice.tile.inputs == 0
        steps = -(-inputs // choice.tile.inputs)
        assert 1 <= choice.split <= steps
        if choice.kernel == "gemv":
            assert rows <= 4
        elif choice.kernel == "dequantize":
            assert choice.split == 1
        else:
            assert choice.kernel == ("gemm32" if single else "gemm")
            assert choice.split <= MOST_GEMM_SPLIT
    assert len(listed) < 300


def test_every_listed_tile_is_a_power_of_two() -> None:
    for _, _, each in every():
        for size in (each.rows, each.outputs, each.inputs, each.warps):
            assert size & (size - 1) == 0
        assert each.inputs >= 32


@pytest.mark.parametrize(("rows", "kernel"), [(1, "gemv"), (4, "gemv"), (5, "gemm"), (192, "gemm"), (193, "dequantize")])
def test_more_rows_another_kernel(rows: int, kernel: str) -> None:
    assert select(4, rows, 4096, 4096, 128, 32, False, 132).kernel == kernel


def test_a_large_matrix_is_shared_out_to_all_processors() -> None:
    for rows in (1, 16):
        choice = select(4, rows, 4096, 4096, 128, 32, False, 132)
        assert choice.split * 4096 // choice.tile.outputs >= 2 * 132


def test_rows_beyond_the_last_line_take_its_tile() -> None:
    assert tile("experts", 4, 1000) == tile("experts", 4, 64)


@pytest.mark.parametrize(
    ("inputs", "size", "groups", "expected"), [(33, 33, 1, 64), (1, 1, 1, 32), (4096, 96, 43, 32), (256, 64, 4, 64)]
)
def test_a_tile_reaches_no_further_than_a_group(inputs: int, size: int, groups: int, expected: int) -> None:
    assert within_groups(tile("gemm", 4, 16), inputs, size, groups).inputs == expected


def test_who_serves_what(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_backend(BACKEND, DEVICE).missing(DEVICE) is None
    assert automatic("cpu") not in ("triton", "interpret")
    with pytest.raises(ValueError, match="'triton' cannot compute on cpu: Triton computes on NVIDIA GPUs only"):
        chosen_backend("triton", torch.device("cpu"))
    with pytest.raises(ValueError, match="the interpreter is for the CPU"):
        chosen_backend("interpret", torch.device("cuda"))
    monkeypatch.setattr(launch, "INTERPRETED", False)
    assert interpreted.missing(torch.device("cpu")) == "set TRITON_INTERPRET=1 before Python starts"
    for module in (launch, interpreted):
        monkeypatch.setattr(launch, "ABSENT", True)
        assert module.missing(torch.device("cuda")) == "Triton cannot be imported; install the package `triton`"


@pytest.mark.parametrize(
    ("available", "capability", "reason"),
    [
        (False, (9, 0), "PyTorch finds no CUDA device"),
        (True, (7, 5), "its compute capability is 7.5, and the kernels need 8.0"),
        (True, (8, 0), None),
        (True, (10, 0), None),
    ],
)
def test_which_gpus_are_served(
    available: bool, capability: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(launch, "INTERPRETED", False)
    assert launch.missing(torch.device("cuda")) == reason
    if reason is None:
        monkeypatch.setattr(launch, "INTERPRETED", True)
        assert "TRITON_INTERPRET is set" in str(launch.missing(torch.device("cuda")))
