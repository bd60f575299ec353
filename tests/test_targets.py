from __future__ import annotations

import pytest

import fakes
from bitplan.allocator import TARGETS
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.units import Kind, Matrix, Unit

NATIVE, VLLM = TARGETS["native"], TARGETS["vllm"]


def unit(kind: Kind, *shapes: tuple[int, int], name: str = "layers.0.mlp.x", role: str = "other", native: str = "bf16") -> Unit:
    return Unit(name, kind, role, tuple(Matrix(f"m{i}", shape) for i, shape in enumerate(shapes)), native)


@pytest.mark.parametrize("native", ["fp32", "bf16", "fp16"])
def test_native_admits_its_own_dtype_all_integers_and_narrower_floats(native: str) -> None:
    floats = {"fp32": {"fp32", "bf16", "fp16"}, "bf16": {"bf16"}, "fp16": {"fp16"}}[native]
    for kind in ("linear", "conv", "embedding", "expert"):
        admitted = {name for name, fmt in FORMATS.items() if NATIVE.admits(unit(kind, (3, 5), native=native), fmt)}
        assert admitted == floats | {name for name in FORMATS if name.startswith("int")}


def test_vllm_admits_groups_that_divide_every_row() -> None:
    admitted = {name for name, fmt in FORMATS.items() if VLLM.admits(unit("expert", (8, 128), (8, 192)), fmt)}
    assert admitted == {"bf16"} | {f"int{b}-{g}{s}" for b in range(2, 9) for g in ("g32", "g64", "row") for s in ("", "-asym")}
    odd = {name for name, fmt in FORMATS.items() if VLLM.admits(unit("linear", (8, 100)), fmt)}
    assert odd == {"bf16"} | {f"int{bits}-row{suffix}" for bits in range(2, 9) for suffix in ("", "-asym")}


@pytest.mark.parametrize("kind", ["embedding", "conv"])
def test_vllm_leaves_embeddings_and_convolutions_alone(kind: Kind) -> None:
    assert {name for name, fmt in FORMATS.items() if VLLM.admits(unit(kind, (64, 64), native="fp16"), fmt)} == {"fp16"}


def test_vllm_ties_by_role_within_one_parent() -> None:
    ties = {
        name: VLLM.tie(unit("linear", (8, 64), name=f"layers.{name}", role=role))
        for name, role in {
            "0.attn.query": "q",
            "0.attn.key": "k",
            "0.attn.value": "v",
            "0.attn.out": "o",
            "1.attn.query": "q",
            "0.mlp.w1": "gate",
            "0.mlp.w3": "up",
            "0.mlp.w2": "down",
            "0.mlp.both": "gate_up",
        }.items()
    }
    assert ties["0.attn.query"] == ties["0.attn.key"] == ties["0.attn.value"] != ties["1.attn.query"]
    assert ties["0.mlp.w1"] == ties["0.mlp.w3"] != ties["0.attn.query"]
    assert None not in (ties["0.attn.query"], ties["1.attn.query"], ties["0.mlp.w1"])
    assert ties["0.attn.out"] is ties["0.mlp.w2"] is ties["0.mlp.both"] is None


def test_vllm_ties_all_experts_of_a_layer() -> None:
    tie = {unit.name: VLLM.tie(unit) for unit in fakes.inventory("experts").units if unit.kind == "expert"}
    for layer in range(fakes.LAYERS):
        assert len({tie[f"model.layers.{layer}.mlp.experts.{e}"] for e in range(fakes.EXPERTS)}) == 1
    assert len(set(tie.values())) == fakes.LAYERS
