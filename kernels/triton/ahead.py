"""Every kernel of this folder compiled where no GPU is, and what came out: so that a GPU is never needed to see that one fails.

    python -m bitplan.kernels.triton.ahead --write        all variants, into compiled.json beside this file; may take half an hour
    python -m bitplan.kernels.triton.ahead --marginal     instructions of one weight more, from compiled.json
    python -m bitplan.kernels.triton.ahead NAME ...       those named `sm_90 gemm 4 16x64x128 w4 s3`, one JSON line each

The interpreter takes programs that the compiler refuses, and the compiler takes programs that no GPU can start: those that need
more shared memory than there is. So each tile of `configs.every()` is reached through the selector, as a product would, and the
launch is compiled for three architectures instead of started. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from ..layout import FieldPlanes, pack
from ..mixed import pack_groups, stack_experts
from . import running
from .configs import Tile, every, tile
from .dequantize import dequantized
from .products import expert_mixed, group_mixed, product

STORED = Path(__file__).parent / "compiled.json"
DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}  # bytes a program may have, by architecture
FILE_REGISTERS = 65536  # 32-bit registers of a multiprocessor, so the most of a program
MOST_STACK = 16  # bytes: a register that is put away before the loop and fetched after it costs nothing
COPIED_INPUTS = 64  # from so many on a tile has 16 bytes for each thread to copy
HARDEST = (5, 6, 7)  # the three widths of most fields, in one kernel
OUTPUTS, GROUPS, PROCESSORS = 512, 12, 132  # of the matrices: sizes that 16 divides, as those of networks are
TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Variant:
    """A kernel of `configs` on a tile, with `rows` of activations (of each expert), for matrices of these widths: more than one,
    mixed by groups or by experts."""

    kernel: str
    widths: tuple[int, ...]
    rows: int
    tile: Tile

    @property
    def name(self) -> str:
        at, widths = self.tile, "+".join(map(str, self.widths))
        return f"{self.kernel} {widths} {self.rows}x{at.outputs}x{at.inputs} w{at.warps} s{at.stages}"


@dataclass(frozen=True)
class Compiled:
    """`shared` bytes; `registers` and bytes of `stack` of a thread; `spills`, loads and stores of the stack within loops; all
    `instructions`; `slow` conversions of integers to 16 bits; `copies` of 16 bytes to shared memory that nobody waits for."""

    shared: int
    registers: int
    stack: int
    spills: int
    instructions: int
    slow: int
    copies: int


def variants() -> list[Variant]:
    """All that can be chosen, a GEMV for one and for four rows, and on each tile the hardest mixture too."""
    found = []
    for kernel, bits, each in every():
        widths = [(bits,)] if bits != max(HARDEST) or kernel == "dequantize" else [(bits,), HARDEST]
        most = [1, 4] if kernel == "gemv" and each.inputs <= tile("gemv", bits, 4).inputs else [each.rows]
        found += [Variant(kernel, mixture, rows, each) for mixture in widths for rows in most]
    return found


def per_weight(variant: Variant, compiled: Compiled) -> float:
    """Instructions of a thread for each weight that it unpacks in one step, all of the kernel's counted."""
    weights = variant.tile.outputs * variant.tile.inputs * len(variant.widths)
    return compiled.instructions * 32 * variant.tile.warps / weights


def marginal(compiled: Mapping[str, Compiled]) -> dict[str, float]:
    """Instructions for one more weight of a step: of a tile less those of the same with half the inputs, where both are there."""
    found = {}
    for variant in variants():
        at = variant.tile
        half = replace(variant, tile=replace(at, inputs=at.inputs // 2))
        if variant.name in compiled and half.name in compiled:
            more = compiled[variant.name].instructions - compiled[half.name].instructions
            found[variant.name] = more * 64 * at.warps / (at.outputs * at.inputs * len(variant.widths))
    return found


def faults(target: int, variant: Variant, compiled: Compiled) -> list[str]:
    """What keeps it from running, or from running well."""
    found = []
    if compiled.shared > SHARED_LIMIT[target]:
        found.append(f"{compiled.shared} bytes of shared memory, of {SHARED_LIMIT[target]}")
    if compiled.registers * 32 * variant.tile.warps > FILE_REGISTERS:
        found.append(f"{compiled.registers} registers a thread, more than there are for {variant.tile.warps} warps")
    if compiled.stack > MOST_STACK or compiled.spills:
        found.append(f"{compiled.spills} spills in loops, {compiled.stack} bytes of stack")
    if compiled.slow:
        found.append(f"{compiled.slow} slow conversions")
    if variant.kernel in ("gemm", "experts") and variant.tile.inputs >= COPIED_INPUTS and not compiled.copies:
        found.append("no copy of 16 bytes to shared memory ahead of its use")
    return [f"sm_{target} {variant.name}: {each}" for each in found]


def _matrix(bits: int, group: int) -> FieldPlanes:
    numbers = torch.ones(GROUPS, OUTPUTS, dtype=torch.float16)
    codes = torch.zeros(GROUPS * group, OUTPUTS, dtype=torch.uint8)
    return pack(codes, bits, numbers, numbers.clone(), group_size=group)


def launched(variant: Variant) -> list[tuple[Any, dict[str, Any], dict[str, Any], int, int]]:
    """(kernel, arguments, constants, warps, stages) of each launch that this product would make."""
    launches = []

    def instead(
        kernel: Any, grid: Any, arguments: Mapping[str, Any], constants: Mapping[str, Any], warps: int = 4, stages: int = 2
    ) -> None:
        launches.append((kernel, dict(arguments), dict(constants), warps, stages))

    kept = running.run, running.processors
    running.run, running.processors = instead, lambda device: PROCESSORS  # type: ignore[assignment]
    group, widths = variant.tile.inputs, variant.widths  # a group sets how many inputs a tile has
    dtype = torch.float32 if variant.kernel.endswith("32") else torch.float16
    try:
        if variant.kernel.startswith("experts"):
            stacked = stack_experts([_matrix(bits, group) for bits in widths])
            x = torch.zeros(variant.rows * len(widths) // 2, stacked.inputs, dtype=dtype)
            chosen = torch.zeros(x.shape[0], 2, dtype=torch.int64)
            expert_mixed(x, stacked, chosen, dtype)
        elif variant.kernel == "dequantize":
            dequantized(_matrix(widths[0], group), dtype)
        else:
            x = torch.zeros(variant.rows, GROUPS * group, dtype=dtype)
            if len(widths) == 1:
                product(x, _matrix(widths[0], group), dtype, True)
            else:
                codes = torch.zeros(GROUPS * group, OUTPUTS, dtype=torch.uint8)
                numbers = torch.ones(GROUPS, OUTPUTS, dtype=torch.float16)
                bits = [widths[index % len(widths)] for index in range(GROUPS)]
                group_mixed(x, pack_groups(codes, bits, numbers, numbers.clone(), group), dtype, True)
    finally:
        running.run, running.processors = kept
    return launches


def compile_for(target: int, variant: Variant) -> Compiled:
    """The launch of `variant` that multiplies or writes out, compiled as it would be there. Raises what the compiler raises."""
    kernel, arguments, constants, warps, stages = launched(variant)[0]
    at = variant.tile
    assert (warps, stages) == (at.warps, at.stages), variant.name
    assert (constants["BN"], constants["BK"]) == (at.outputs, at.inputs), variant.name
    assert constants.get("BM", at.rows) == at.rows, variant.name
    signature, fixed, attributes = {}, {}, {}
    for parameter in kernel.params:
        value = {**arguments, **constants}[parameter.name]
        divided = isinstance(value, Tensor) or (not parameter.is_constexpr and value % 16 == 0)
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):  # a one is compiled in, as when launched
            signature[parameter.name] = "constexpr"
            fixed[(parameter.num,)] = value
            continue
        signature[parameter.name] = TYPES[value.dtype] if isinstance(value, Tensor) else "i32" if value < 2**31 else "i64"
        if divided:
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
    gpu = triton.backends.compiler.GPUTarget("cuda", target, 32)
    program = triton.compile(source, target=gpu, options={"num_warps": warps, "num_stages": stages})
    return _disassembled(program.asm["cubin"], program.metadata.shared)


def _disassembled(cubin: bytes, shared: int) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, text = (
            subprocess.run([DISASSEMBLER, option, path], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", text, re.MULTILINE)
    operations = [(int(place, 16), name, rest) for place, name, rest in lines]
    jumps = [(re.fullmatch(r" 0x([0-9a-f]+) *", rest), place) for place, name, rest in operations if name.startswith("BRA")]
    loops = [(int(to[1], 16), place) for to, place in jumps if to is not None and int(to[1], 16) < place]
    local = [place for place, name, _ in operations if name.startswith(("LDL", "STL"))]
    return Compiled(
        shared,
        used["REG"],
        used["STACK"] + used["LOCAL"],
        sum(any(first <= place <= last for first, last in loops) for place in local),
        len(operations),
        sum(name.startswith("I2F.F16") for _, name, _ in operations),
        sum(name.startswith("LDGSTS") and ".128" in name for _, name, _ in operations),
    )


def stored() -> tuple[str, dict[int, dict[str, Compiled]]]:
    """The version of Triton and, by architecture, what each variant was compiled to."""
    document = json.loads(STORED.read_text(encoding="utf-8"))
    kept = {
        target: {name: Compiled(*numbers) for name, numbers in document["targets"].get(f"sm_{target}", {}).items()}
        for target in SHARED_LIMIT
    }
    return document["triton"], kept


def store(compiled: Mapping[int, Mapping[str, Compiled]]) -> None:
    lines = []
    for target, each in sorted(compiled.items()):
        own = [f'   "{name}": {json.dumps(list(asdict(numbers).values()))}' for name, numbers in each.items()]
        lines.append(f'  "sm_{target}": {{\n' + ",\n".join(own) + "\n  }")
    head = f'{{\n "triton": "{triton.__version__}",\n "numbers": {json.dumps(list(Compiled.__dataclass_fields__))},\n'
    STORED.write_text(head + ' "targets": {\n' + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def _asked(names: list[str]) -> Iterator[tuple[int, Variant]]:
    known = {variant.name: variant for variant in variants()}
    for name in names:
        target, _, rest = name.removeprefix("sm_").partition(" ")
        yield int(target), known[rest]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--write", action="store_true", help="all variants, into compiled.json")
    parser.add_argument("--marginal", action="store_true", help="instructions a weight, from compiled.json, by architecture")
    given = parser.parse_args()
    if given.marginal:
        print(json.dumps({f"sm_{target}": marginal(compiled) for target, compiled in stored()[1].items()}, indent=1))
        return 0
    if running.INTERPRETED:
        sys.exit("TRITON_INTERPRET is set, so that nothing is compiled; unset it")
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="triton-"))
    asked = [(target, variant) for target in (90, 80, 100) for variant in variants()] if given.write else [*_asked(given.names)]
    found: dict[int, dict[str, Compiled]] = {}
    wrong = []
    for target, variant in asked:
        start = time.perf_counter()
        compiled = compile_for(target, variant)
        wrong += faults(target, variant, compiled)
        found.setdefault(target, {})[variant.name] = compiled
        name = f"sm_{target} {variant.name}"
        seconds = round(time.perf_counter() - start, 1)
        numbers = {**asdict(compiled), "per_weight": round(per_weight(variant, compiled), 2), "seconds": seconds}
        print(json.dumps({"name": name, **numbers}), flush=True)
    for fault in wrong:
        print(fault, file=sys.stderr)
    if given.write:
        store(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
