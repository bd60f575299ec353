"""vllm: what vLLM's compressed-tensors loader serves.

It fuses q, k and v into one matrix, and gate and up into another, and runs the experts of a layer as one bank, so each of
these must have one format. Weight-only integers of 2 to 8 bits in groups that divide the row, or one group a row. The
embedding, shared with the head or not, stays in its own dtype: the loader's quantized embeddings are a special case.
Measured from its source at version 0.33.
"""

from __future__ import annotations

from ...kernels.formats import Format
from ...sensitivity.units import Unit

FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


def admits(unit: Unit, fmt: Format) -> bool:
    """Its own float format; an integer format whose groups divide every row, on linear layers and experts."""
    if fmt.family == "float":
        return fmt.name == unit.native
    if unit.kind not in ("linear", "expert"):
        return False
    return all(fmt.group_size is None or matrix.shape[1] % fmt.group_size == 0 for matrix in unit.matrices)


def tie(unit: Unit) -> str | None:
    """q/k/v and gate/up of one parent module; all experts of one layer."""
    parent = unit.name.rpartition(".")[0]
    if unit.kind == "expert":
        return f"{parent}.*"
    return f"{parent}.{FUSED[unit.role]}" if unit.role in FUSED else None
