"""On a machine with an NVIDIA GPU: real sizes, many seeds, and what the interpreter gave where there was none.

`golden/interpreted.json` holds products that the interpreter computed; the back end of this machine, whichever it is, must agree.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitplan.kernels.layout import FieldPlanes
from bitplan.kernels.mixed import stack_experts
from bitplan.kernels.product import matmul, moe_matmul
from bitplan.kernels.reference import transposed_numbers
from matrices import apart, experts_of, mixed_of, random_planes
from triton_cases import BACKEND, TOLERANCE

STORED = Path(__file__).parent / "golden" / "interpreted.json"
GPU = torch.device("cuda")


def stored_case(bits: int, rows: int) -> tuple[torch.Tensor, FieldPlanes]:
    return torch.randn(rows, 70, generator=torch.Generator().manual_seed(rows)), random_planes(bits, (5, 70), 32, seed=bits)


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("bits", range(1, 9))
def test_products_are_those_that_the_interpreter_gave(bits: int, rows: int) -> None:
    x, planes = stored_case(bits, rows)
    device = torch.device("cpu") if BACKEND == "interpret" else GPU
    y = matmul(x.to(device), planes.to(device), backend=BACKEND).cpu()
    expected = torch.tensor(json.loads(STORED.read_text())[f"{bits} bits, {rows} rows"], dtype=torch.float64)
    assert apart(y, expected) < TOLERANCE[torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 16, 33, 64, 65, 256])
@pytest.mark.parametrize("shape", [(4096, 4096), (11008, 4096), (1001, 2111)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_real_sizes(bits: int, shape: tuple[int, int], rows: int, dtype: torch.dtype) -> None:
    planes = random_planes(bits, shape, 128, torch.float16, seed=1).to(GPU)
    x = torch.randn(rows, shape[1], device=GPU).to(dtype)
    exact = x.double() @ transposed_numbers(planes).double()
    y = matmul(x, planes, backend="triton")
    assert apart(y, exact) < TOLERANCE[dtype]
    assert torch.equal(matmul(x, planes, backend="triton"), y)
    assert apart(matmul(x, planes, backend="triton", deterministic=False), exact) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(20))
def test_random_shapes(seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    outputs, inputs, rows = (int(torch.randint(1, most, (1,), generator=drawn)) for most in (3000, 3000, 256))
    planes = random_planes(seed % 8 + 1, (outputs, inputs), (32, 64, 128)[seed % 3], torch.float16, seed=seed).to(GPU)
    x = torch.randn(rows, inputs, generator=drawn).half().to(GPU)
    assert apart(matmul(x, planes, backend="triton"), x.double() @ transposed_numbers(planes).double()) < TOLERANCE[torch.float16]


@pytest.mark.gpu
def test_mixed_groups_and_experts() -> None:
    mixed, _ = mixed_of([4, 2, 8, 2, 4] * 6, outputs=777, size=128)
    there = type(mixed)(tuple((planes.to(GPU), numbers.to(GPU)) for planes, numbers in mixed.classes))
    experts = stack_experts([each.to(GPU) for each in experts_of([4, 1, 8, 3, 4, 2], (777, 1024))])
    here = stack_experts(experts_of([4, 1, 8, 3, 4, 2], (777, 1024)))
    for rows in (1, 16, 100):
        x = torch.randn(rows, mixed.inputs)
        assert apart(matmul(x.to(GPU), there, backend="triton").cpu(), matmul(x, mixed, backend="torch").double()) < 1e-5
        x, chosen = torch.randn(rows, 1024), torch.randint(6, (rows, 2))
        expected = moe_matmul(x, here, chosen, backend="torch").double()
        assert apart(moe_matmul(x.to(GPU), experts, chosen.to(GPU), backend="triton").cpu(), expected) < 1e-5


@pytest.mark.gpu
def test_no_address_outside_is_touched() -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    code = (
        "import torch; from matrices import random_planes; from bitplan.kernels.product import matmul\n"
        "for bits in range(1, 9):\n"
        "    planes = random_planes(bits, (77, 211), 32, torch.float16).to('cuda')\n"
        "    for rows in (1, 17, 300): matmul(torch.randn(rows, 211, device='cuda').half(), planes, backend='triton')\n"
    )
    command = [sanitizer, "--error-exitcode", "9", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:]


if __name__ == "__main__":  # write golden/interpreted.json anew: TRITON_INTERPRET=1 python tests/test_triton_gpu.py
    made = {
        f"{bits} bits, {rows} rows": matmul(*stored_case(bits, rows), backend="interpret").tolist()
        for bits in range(1, 9)
        for rows in (1, 3, 17)
    }
    STORED.write_text(json.dumps(made) + "\n")
