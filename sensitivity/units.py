"""Unit and Inventory: what can be quantized in a network, what is tied, what is left alone, to the byte.

Values only: this file imports no torch, so that a plan can be made from a stored inventory without it. The network is
read into these values by `inventory.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

from ..kernels.formats import FORMATS, Format

Kind = Literal["linear", "conv", "embedding", "expert"]
Outputs = Literal["tokens", "classes", "pooled"]
# What a loss counts, by what the model gives out.
QUANTITIES: dict[Outputs, str] = {
    "tokens": "nats per token",
    "classes": "nats per example",
    "pooled": "cosine distance per example",
}
FLOAT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}


@dataclass(frozen=True)
class Matrix:
    """One weight of a unit: the path of the module that holds it and its shape as (out, in); a convolution's kernel is
    flattened to (out, in_per_group * height * width), an embedding is (vocabulary, width)."""

    module: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class Unit:
    """The smallest thing that gets a format of its own."""

    name: str
    kind: Kind
    role: str  # q, k, v, o, gate, up, down, embedding, head, conv, expert, other
    matrices: tuple[Matrix, ...]
    native: str  # the float format its weights have now
    layer: int | None = None
    expert: int | None = None
    shared_with: tuple[str, ...] = ()  # further modules that use the same parameter (a tied head)

    @property
    def parameters(self) -> int:
        return sum(prod(matrix.shape) for matrix in self.matrices)

    def stored_bytes(self, fmt: Format) -> int:
        return sum(fmt.stored_bytes(matrix.shape) for matrix in self.matrices)


@dataclass(frozen=True)
class Fixed:
    """A tensor that no plan touches, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str

    @property
    def stored_bytes(self) -> int:
        return prod(self.shape) * FLOAT_BYTES[self.dtype]


@dataclass(frozen=True)
class Inventory:
    """All stored tensors of a model: units + fixed = everything, each tensor once."""

    model_id: str
    fingerprint: str  # SHA-256 of every stored tensor's name, dtype, shape and bytes
    architecture: str  # the class that runs it, e.g. LlamaForCausalLM
    family: str  # causal-lm, encoder, vision, convolutional, mixture-of-experts
    outputs: Outputs  # a distribution a token, a distribution an example, a pooled vector an example
    units: tuple[Unit, ...]
    fixed: tuple[Fixed, ...]
    experts_used: int | None = None  # how many experts of a layer a token is sent to; None: no mixture, or not known

    @cached_property
    def fixed_bytes(self) -> int:
        return sum(tensor.stored_bytes for tensor in self.fixed)

    @cached_property
    def native_bytes(self) -> int:
        """Bytes of the whole model in its own dtypes."""
        return self.fixed_bytes + sum(FLOAT_BYTES[unit.native] * unit.parameters for unit in self.units)

    @cached_property
    def unit_parameters(self) -> int:
        return sum(unit.parameters for unit in self.units)

    @cached_property
    def natives(self) -> frozenset[str]:
        """The formats that its weights have now."""
        return frozenset(unit.native for unit in self.units)

    def unit(self, name: str) -> Unit:
        for unit in self.units:
            if unit.name == name:
                return unit
        raise KeyError(f"no unit {name!r} in {self.model_id}")

    def to_json(self) -> dict[str, Any]:
        """All fields; `experts_used` only where it is known."""
        document = asdict(self)
        if self.experts_used is None:
            del document["experts_used"]
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Inventory:
        units = tuple(
            Unit(
                **{
                    **unit,
                    "matrices": tuple(Matrix(m["module"], (m["shape"][0], m["shape"][1])) for m in unit["matrices"]),
                    "shared_with": tuple(unit["shared_with"]),
                }
            )
            for unit in document["units"]
        )
        fixed = tuple(Fixed(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in document["fixed"])
        return cls(**{**document, "units": units, "fixed": fixed})


def admits(unit: Unit, fmt: Format) -> bool:
    """Whether `unit` can be stored in `fmt`: any int format; a float format no wider than its own."""
    return fmt.family == "int" or fmt.name == unit.native or fmt.bits < FORMATS[unit.native].bits
