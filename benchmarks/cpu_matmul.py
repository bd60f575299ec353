"""How fast are products straight from packed words on a CPU, beside torch's dense and quantized ones?

python benchmarks/cpu_matmul.py [--pairs N]

One thread. Each method is run in turn with torch's fp32 product of the same shape, pair by pair, and its speed is the median of
the pairs' ratios (above 1: faster than fp32), with the quartiles. Codes are random, groups 128, scales fp16, zero points
asymmetric. `int8`: activations rounded to int8 by runs of 128; its error is the relative error of the result.
torch's own low-bit operators take bf16 activations; `dequantize` unpacks with torch for every call, then multiplies.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from bitplan.allocator.solve import versions
from bitplan.kernels import plain
from bitplan.kernels.cpu import compiled
from bitplan.kernels.layout import FieldPlanes, pack
from bitplan.kernels.reference import transposed_numbers
from machine import describe

RESULT = Path(__file__).parent / "results" / "cpu-matmul.json"
SHAPES = ((2048, 2048), (4096, 11008))  # (out, in)
BATCHES = (1, 16)
GROUP = 128
Method = Callable[[], Tensor]


def packed(bits: int, outputs: int, inputs: int) -> FieldPlanes:
    random = torch.Generator().manual_seed(bits)
    groups = -(-inputs // GROUP)
    codes = torch.randint(2**bits, (inputs, outputs), generator=random, dtype=torch.uint8)
    scales, zeros = (torch.rand(groups, outputs, generator=random).half() for _ in range(2))
    return pack(codes, bits, scales / 100, zeros * 2**bits, group_size=GROUP)


def our_methods(x: Tensor, outputs: int) -> dict[str, Method]:
    best = compiled.instruction_sets()[0]
    found: dict[str, Method] = {}
    for bits in range(1, 9):
        planes = packed(bits, outputs, x.shape[1])
        for instructions in [name for name in compiled.instruction_sets() if name in (best, "avx2")]:
            label = "" if instructions == best else f", {instructions}"
            found[f"{bits} bits{label}"] = functools.partial(
                compiled.product, x, planes, torch.float32, True, instructions=instructions
            )
            found[f"{bits} bits, int8{label}"] = functools.partial(
                compiled.product_int8, x, planes, torch.float32, instructions=instructions
            )
    planes = packed(4, outputs, x.shape[1])
    found["4 bits, dequantize"] = functools.partial(plain.product, x, planes, torch.float32, True)
    return found


def torch_methods(x: Tensor, weight: Tensor) -> dict[str, Method]:
    """torch's own: bf16, int8 by row, int4 in groups."""
    half, (outputs, inputs) = x.bfloat16(), weight.shape
    random = torch.Generator().manual_seed(0)
    int8 = torch.randint(-127, 128, (outputs, inputs), generator=random, dtype=torch.int8)
    int4 = torch.randint(16, (outputs, inputs), generator=random, dtype=torch.int32)
    words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(int4, 1)
    scales_zeros = torch.rand(inputs // GROUP, outputs, 2, generator=random).bfloat16()
    dense = weight.bfloat16()
    return {
        "fp32 again": lambda: x @ weight.T,
        "torch bf16": lambda: half @ dense.T,
        "torch int8, bf16 activations": lambda: torch.ops.aten._weight_int8pack_mm(half, int8, torch.ones(outputs).bfloat16()),
        "torch int4, bf16 activations": lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(half, words, GROUP, scales_zeros),
    }


def in_pairs(method: Method, fp32: Method, pairs: int) -> dict[str, float]:
    """Speed of `method` relative to `fp32`: median and quartiles of the pairs' ratios, and the median milliseconds of each."""
    method(), fp32()
    ratios, ours, theirs = [], [], []
    for _ in range(pairs):
        began = time.perf_counter()
        fp32()
        between = time.perf_counter()
        method()
        ended = time.perf_counter()
        theirs.append(1000 * (between - began))
        ours.append(1000 * (ended - between))
        ratios.append((between - began) / (ended - between))
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return {
        "speed": round(median, 3),
        "lower_quartile": round(lower, 3),
        "upper_quartile": round(upper, 3),
        "milliseconds": round(statistics.median(ours), 4),
        "fp32_milliseconds": round(statistics.median(theirs), 4),
    }


def int8_errors(inputs: int) -> dict[str, float]:
    """Relative error of the result with int8 activations, Gaussian x, by width."""
    errors = {}
    for bits in range(1, 9):
        planes = packed(bits, 512, inputs)
        x = torch.randn(16, inputs, generator=torch.Generator().manual_seed(1))
        exact = x.double() @ transposed_numbers(planes).double()
        made = compiled.product_int8(x, planes, torch.float32)
        errors[f"{bits} bits"] = round(float((made - exact).norm() / exact.norm()), 5)
    return errors


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=21)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    reason = compiled.missing(torch.device("cpu"))
    if reason is not None:
        raise SystemExit(f"there is nothing to time: {reason}")
    document = {
        "question": "how fast are products straight from packed words on a CPU",
        "command": "python benchmarks/cpu_matmul.py",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "instruction_sets": compiled.instruction_sets(),
        "versions": versions(),
        "group_size": GROUP,
        "pairs": options.pairs,
        "load_average": round(os.getloadavg()[0], 2),
        "int8_error": int8_errors(2048),
        "results": {},
    }
    for outputs, inputs in SHAPES:
        weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) / 100
        for batch in BATCHES:
            x = torch.randn(batch, inputs, generator=torch.Generator().manual_seed(1))
            fp32 = functools.partial(torch.matmul, x, weight.T)
            cell = document["results"].setdefault(f"{outputs} x {inputs}, batch {batch}", {})
            for name, method in (torch_methods(x, weight) | our_methods(x, outputs)).items():
                cell[name] = in_pairs(method, fp32, options.pairs)
                print(f"{outputs} x {inputs}, batch {batch}, {name}: {cell[name]['speed']:.2f}", flush=True)
            RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
