"""How fast does an executed model write, and how much memory do its weights take? SmolLM2 at 4 bits beside fp32 transformers.

python benchmarks/decode.py [MODEL] [--format NAME] [--rounds N]

One thread, batch 1, greedy, after a prompt of 32 tokens. Every unit is rounded to nearest in one format (speed does not depend
on the rounding). Both models are run in turn, and the speed is the median of the rounds' ratios. Live weights: all parameters and
buffers, each storage once; the plan's bytes: what `stored_bytes` promises for the same assignment. Process memory is that of
a fresh process which holds one model alone, and of one which holds the other.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from bitplan.allocator import home_folder
from bitplan.allocator.executed import quantized_copy
from bitplan.allocator.profile import load_model
from bitplan.allocator.solve import versions
from bitplan.allocator.source import resolve
from bitplan.kernels.formats import parse
from bitplan.kernels.product import automatic
from bitplan.kernels.rounding import round_nearest
from machine import describe

RESULTS = Path(__file__).parent / "results"
PROMPT, WRITTEN = 32, 32


def quantized(model: str, fmt: str) -> tuple[nn.Module, nn.Module, int]:
    """The model, its packed copy, and the bytes that a plan of this format promises."""
    network = load_model(resolve(model), home_folder()).network
    inventory, wanted = network.inventory, parse(fmt)
    rendered = {}
    for unit in inventory.units:
        weights = [network.module.get_parameter(f"{matrix.module}.weight").detach().flatten(1) for matrix in unit.matrices]
        rendered[unit.name] = tuple(round_nearest(weight, wanted) for weight in weights)
    promised = inventory.fixed_bytes + sum(unit.stored_bytes(wanted) for unit in inventory.units)
    return network.module, quantized_copy(network.module, inventory, rendered), promised


@torch.inference_mode()
def tokens_a_second(module: nn.Module) -> float:
    ids = torch.randint(1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    output: Any = module(ids, use_cache=True)
    began = time.perf_counter()
    for _ in range(WRITTEN):
        token = output.logits[:, -1:].argmax(-1)
        output = module(token, past_key_values=output.past_key_values, use_cache=True)
    return WRITTEN / (time.perf_counter() - began)


def live_bytes(module: nn.Module) -> int:
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in (*module.parameters(), *module.buffers())}
    return sum(storage.nbytes() for storage in storages.values())


def process_bytes(model: str, fmt: str | None) -> int:
    """Resident memory of a child that holds one model, after writing a few tokens."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        dense, packed, _ = quantized(model, fmt or "int4-g64-asym")
        kept = dense if fmt is None else packed
        del dense, packed
        tokens_a_second(kept)
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc gives back what the other model had taken
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        os.write(writing, str(psutil.Process().memory_info().rss).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reading, 64))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", nargs="?", default="smollm2-135m")
    arguments.add_argument("--format", default="int4-g64-asym")
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    memory = {"fp32": process_bytes(options.model, None), options.format: process_bytes(options.model, options.format)}
    dense, packed, promised = quantized(options.model, options.format)
    pairs = [(tokens_a_second(dense), tokens_a_second(packed)) for _ in range(options.rounds)]
    lower, median, upper = statistics.quantiles([ours / theirs for theirs, ours in pairs], n=4)
    document = {
        "question": "how fast does an executed model write, and how much memory do its weights take",
        "command": f"python benchmarks/decode.py {options.model} --format {options.format}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": versions(),
        "load_average": round(os.getloadavg()[0], 2),
        "backend": automatic("cpu"),
        "format": options.format,
        "speed": round(median, 3),
        "lower_quartile": round(lower, 3),
        "upper_quartile": round(upper, 3),
        "tokens_a_second": round(statistics.median(ours for _, ours in pairs), 2),
        "fp32_tokens_a_second": round(statistics.median(theirs for theirs, _ in pairs), 2),
        "plan_bytes": promised,
        "live_bytes": live_bytes(packed),
        "fp32_live_bytes": live_bytes(dense),
        "process_bytes": memory,
    }
    print(json.dumps(document, indent=1))
    (RESULTS / f"decode-{Path(options.model).name}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
