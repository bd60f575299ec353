"""What a benchmark ran on, for its results file."""

from __future__ import annotations

import os
import platform

import torch


def describe() -> dict[str, str | int]:
    """Processor, cores and threads, without the machine's name."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "processor": model,
        "cores": os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
    }
