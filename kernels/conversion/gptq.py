"""The layouts of GPTQ checkpoints, for a matrix (out, in) of G groups:

    qweight  int32 (in * bits / 32, out)      codes, packed along the inputs
    qzeros   int32 (G, out * bits / 32)       zero points, packed along the outputs
    scales   fp16 or bf16 (G, out)
    g_idx    int32 (in,)                      the group of each input; without act-order i // group_size

    version   packed as                                                    qzeros hold    widths
    gptq      a stream of bits (`stream.py`)                               zero - 1       2, 3, 4, 8
    gptq_v2   the same                                                     zero           2, 3, 4, 8
    gptq_p    fields (`kernels/packing.py`)                                zero           2 to 8

At 2, 4 and 8 bits stream and fields are one and the same, and so are these words and ours: they are shared. `gptq` puts zero 0
down as 2^bits - 1, which some readers take for 2^bits, so it is read as 0 and never written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..formats import WORD_VALUES
from ..layout import FieldPlanes, codes_of, pack
from ..nested import to_block_order
from ..packing import FIELDS, unpack
from ..packing import pack as pack_words
from .checks import demand_multiple, demand_width, half_scales, inputs_a_group, named, whole_zeros, zeros_of
from .stream import from_stream, to_stream

Version = Literal["gptq", "gptq_v2", "gptq_p"]
WIDTHS: dict[str, tuple[int, ...]] = {"gptq": (2, 3, 4, 8), "gptq_v2": (2, 3, 4, 8), "gptq_p": (2, 3, 4, 5, 6, 7, 8)}
ALIKE = (2, 4, 8)  # widths whose stream consists of whole fields


def from_gptq(tensors: Mapping[str, Tensor], bits: int, group_size: int | None, version: Version = "gptq") -> FieldPlanes:
    """The matrix of `qweight`, `qzeros`, `scales` and, where there is one, `g_idx`. Raises ValueError for tensors that do not
    fit together and for inputs that are not in the order of their groups (act-order)."""
    _demand_version(version, bits)
    qweight, qzeros = named(tensors, "qweight", torch.int32), named(tensors, "qzeros", torch.int32)
    scales = named(tensors, "scales")
    rows, outputs = qweight.shape
    inputs = rows * 32 // bits
    if bits not in ALIKE and rows % bits:
        raise ValueError(f"{rows} rows of qweight are no whole blocks of {bits}: the tensor is damaged or of another width")
    size = inputs_a_group(group_size, inputs)
    groups = -(-inputs // size)
    if tuple(qzeros.shape) != (groups, outputs * bits // 32) or tuple(scales.shape) != (groups, outputs):
        raise ValueError(
            f"qzeros {tuple(qzeros.shape)} and scales {tuple(scales.shape)} do not go with {inputs} inputs in {groups} groups "
            f"and {outputs} outputs of {bits} bits; is the group size or the width another?"
        )
    _demand_order(tensors.get("g_idx"), inputs, size)
    if version == "gptq_p" and bits not in ALIKE:
        zeros = unpack(qzeros.T.contiguous().view(-1, bits, groups), FIELDS[bits], outputs).T
    else:
        zeros = from_stream(qzeros.T, bits, outputs).T
    if version == "gptq":
        zeros = (zeros + 1) & (2**bits - 1)
    own_zeros = zeros_of(zeros, bits, scales.dtype)
    if bits not in ALIKE and version != "gptq_p":
        return pack(from_stream(qweight, bits, inputs), bits, scales, own_zeros, group_size=size)
    blocks = -(-inputs // WORD_VALUES)
    words = qweight.contiguous()
    if rows < blocks * bits:  # the last block is not full, and our words are padded
        words = torch.cat([words, words.new_zeros(blocks * bits - rows, outputs)])
    return FieldPlanes(words.view(blocks, bits, outputs), FIELDS[bits], inputs, scales, own_zeros, size)


def to_gptq(planes: FieldPlanes, version: Version = "gptq") -> dict[str, Tensor]:
    """`qweight`, `qzeros`, `scales` and `g_idx`. Raises ValueError for what the version cannot hold."""
    bits = planes.bits
    _demand_version(version, bits)
    multiple = 32 // bits if bits in ALIKE and version != "gptq_p" else WORD_VALUES
    demand_multiple(version, "inputs", planes.inputs, multiple)
    demand_multiple(version, "outputs", planes.outputs, multiple)
    if version == "gptq":
        zeros = whole_zeros(version, planes, 1, "write gptq_v2, or choose other zero points") - 1
    else:
        zeros = whole_zeros(version, planes, 0, "choose the zero points among the codes")
    if bits in ALIKE or version == "gptq_p":
        words = to_block_order(planes).words.flatten(0, 1)
        packed_zeros = pack_words(zeros.T.contiguous(), bits).flatten(0, 1)[: planes.outputs * bits // 32].T
    else:
        words, packed_zeros = to_stream(codes_of(planes), bits), to_stream(zeros.T, bits).T
    return {
        "qweight": words[: planes.inputs * bits // 32],
        "qzeros": packed_zeros.contiguous(),
        "scales": half_scales(version, planes.scales),
        "g_idx": torch.arange(planes.inputs, dtype=torch.int32, device=planes.words.device) // planes.group_size,
    }


def _demand_version(version: str, bits: int) -> None:
    if version not in WIDTHS:
        raise ValueError(f"unknown version {version!r}; known: {', '.join(WIDTHS)}")
    demand_width(version, bits, WIDTHS[version])


def _demand_order(g_idx: Tensor | None, inputs: int, size: int) -> None:
    if g_idx is None:
        return
    if tuple(g_idx.shape) != (inputs,):
        raise ValueError(f"g_idx must give the group of each of {inputs} inputs, not {tuple(g_idx.shape)}")
    if not torch.equal(g_idx.long(), torch.arange(inputs, device=g_idx.device) // size):
        raise ValueError(
            f"g_idx does not count groups of {size} inputs in turn: the inputs are in another order (act-order); quantize with "
            "desc_act=False"
        )
