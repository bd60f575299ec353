from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.network import Network, run
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.units import Inventory

EMPTY = nn.Linear(5, 1)
EMPTY.weight = nn.Parameter(torch.empty(0, 5))


def inventory(module: nn.Module) -> Inventory:
    return take_inventory(module, model_id="m", family="causal-lm", outputs="tokens")


def plain(kind: str) -> nn.Module:
    return make_plain(models.module(kind).to(models.KINDS[kind].dtype))


def stored(module: nn.Module) -> dict[str, Tensor]:
    """All that a checkpoint of `module` would hold, each storage once, by name."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict().items():
        tensors.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), (name, tensor))
    return dict(tensors.values())


@pytest.fixture(scope="module", params=models.KINDS)
def network(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Inventory]:
    module = plain(request.param)
    return request.param, module, inventory(module)


def test_every_tensor_is_counted_once_and_to_the_byte(network: tuple[str, nn.Module, Inventory]) -> None:
    kind, module, found = network
    held = stored(module)
    weights = [f"{matrix.module}.weight" for unit in found.units for matrix in unit.matrices]
    assert sorted([*weights, *(tensor.name for tensor in found.fixed)]) == sorted(held)
    assert found.native_bytes == sum(tensor.nbytes for tensor in held.values())
    assert found.native_bytes == sum(
        tensor.nbytes for tensor in stored(models.module(kind).to(models.KINDS[kind].dtype)).values()
    )
    assert found.fixed_bytes == sum(held[tensor.name].nbytes for tensor in found.fixed)
    for tensor in found.fixed:
        assert tensor.shape == tuple(held[tensor.name].shape)
        assert tensor.stored_bytes == held[tensor.name].nbytes
        assert tensor.reason
    native = {unit.native for unit in found.units}
    assert sum(unit.stored_bytes(FORMATS[unit.native]) for unit in found.units) + found.fixed_bytes == found.native_bytes
    assert native == {{torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[models.KINDS[kind].dtype]}


def test_units_are_the_matrices_of_their_modules(network: tuple[str, nn.Module, Inventory]) -> None:
    _, module, found = network
    assert len({unit.name for unit in found.units}) == len(found.units)
    for unit in found.units:
        for matrix in unit.matrices:
            assert tuple(module.get_parameter(f"{matrix.module}.weight").flatten(1).shape) == matrix.shape
        for path in unit.shared_with:
            assert module.get_parameter(f"{path}.weight") is module.get_parameter(f"{unit.matrices[0].module}.weight")
    assert found.unit_parameters == sum(unit.parameters for unit in found.units)
    assert found.unit_parameters > 0.5 * sum(tensor.numel() for tensor in stored(module).values())


def test_it_comes_back_from_json(network: tuple[str, nn.Module, Inventory]) -> None:
    assert Inventory.from_json(json.loads(json.dumps(network[2].to_json()))) == network[2]


def test_it_is_the_same_each_time(network: tuple[str, nn.Module, Inventory]) -> None:
    assert inventory(plain(network[0])) == network[2]


def test_a_tied_head_is_a_second_use_of_the_embedding() -> None:
    tied, untied, gpt2, masked = (inventory(plain(kind)) for kind in ("llama", "untied", "gpt2", "masked"))
    assert tied.unit("model.embed_tokens").shared_with == ("lm_head",)
    assert tied.unit("model.embed_tokens").kind == "embedding"
    assert untied.unit("model.embed_tokens").shared_with == ()
    assert (untied.unit("lm_head").kind, untied.unit("lm_head").role) == ("linear", "head")
    assert gpt2.unit("transformer.wte").shared_with == ("lm_head",)
    assert masked.unit("bert.embeddings.word_embeddings").shared_with == ("cls.predictions.decoder",)
    with pytest.raises(KeyError, match="no unit 'lm_head'"):
        tied.unit("lm_head")


def test_an_expert_is_a_unit_of_two_matrices() -> None:
    found = inventory(plain("mixtral"))
    experts = [unit for unit in found.units if unit.kind == "expert"]
    assert [(unit.layer, unit.expert) for unit in experts] == [(layer, expert) for layer in range(2) for expert in range(4)]
    assert experts[5].name == "model.layers.1.mlp.experts.1"
    assert [matrix.shape for matrix in experts[5].matrices] == [(96, 64), (64, 48)]
    assert [matrix.module for matrix in experts[5].matrices] == [
        "model.layers.1.mlp.experts.experts.1.gate_up_proj",
        "model.layers.1.mlp.experts.experts.1.down_proj",
    ]
    routers = [tensor for tensor in found.fixed if tensor.shape == (4, 64)]
    assert len(routers) == 2
    assert "router" in routers[0].reason


class TestExpertsUsed:
    """How many experts a token is sent to, as transformers names it; nothing else of the inventory depends on it."""

    @pytest.mark.parametrize("kind", models.KINDS)
    def test_a_mixture_says_so_and_others_do_not(self, kind: str) -> None:
        found = inventory(plain(kind))
        assert found.experts_used == (2 if kind == "mixtral" else None)
        assert ("experts_used" in found.to_json()) == (kind == "mixtral")

    @pytest.mark.parametrize(
        ("settings", "used"),
        [
            ({"num_experts_per_tok": 3}, 3),
            ({"moe_topk": 1}, 1),
            ({"moe_topk": [2, 2]}, 2),
            ({"moe_topk": [1, 2]}, None),
            ({"moe_k": 4}, 4),
            ({"top_k_experts": 2}, 2),
            ({"num_experts_per_tok": None, "top_k_experts": 2}, 2),
            ({"num_experts_per_tok": True}, None),
            ({"num_experts_per_tok": 0}, None),
            ({"top_k": 50}, None),
            ({}, None),
        ],
        ids=str,
    )
    def test_names_in_configurations(self, settings: dict[str, object], used: int | None) -> None:
        module = plain("mixtral")
        before = inventory(module)
        for part in module.modules():
            if hasattr(part, "config"):
                part.config = SimpleNamespace(**settings)  # type: ignore[assignment]
        found = inventory(module)
        assert found.experts_used == used
        assert replace(found, experts_used=before.experts_used) == before
        assert Inventory.from_json(json.loads(json.dumps(found.to_json()))) == found

    def test_the_nearest_configuration_counts_and_two_that_differ_do_not(self) -> None:
        module = plain("mixtral")
        for layer in range(2):
            module.get_submodule(f"model.layers.{layer}").config = SimpleNamespace(moe_k=3)  # type: ignore[assignment]
        assert inventory(module).experts_used == 3
        module.get_submodule("model.layers.1").config = SimpleNamespace(moe_k=2)  # type: ignore[assignment]
        assert inventory(module).experts_used is None

    def test_what_was_stored_before_is_read(self) -> None:
        found = inventory(plain("mixtral"))
        document = found.to_json()
        del document["experts_used"]
        assert Inventory.from_json(document) == replace(found, experts_used=None)
        assert document == replace(found, experts_used=None).to_json()


def test_layers_and_roles() -> None:
    llama = inventory(plain("llama"))
    assert [unit.role for unit in llama.units if unit.layer == 1] == ["q", "k", "v", "o", "gate", "up", "down"]
    assert [unit.role for unit in llama.units if unit.layer is None] == ["embedding"]
    bert = inventory(plain("bert"))
    assert [unit.role for unit in bert.units if unit.layer == 0] == ["q", "k", "v", "o", "up", "down"]
    gpt2 = inventory(plain("gpt2"))
    assert next(unit.role for unit in gpt2.units if unit.layer == 0) == "qkv"
    vit = inventory(plain("vit"))
    assert {unit.role for unit in vit.units} >= {"q", "k", "v", "o", "up", "down", "head", "conv"}


def test_stages_that_count_from_zero_are_numbered_in_order() -> None:
    found = inventory(models.network("residual").module)
    assert [(unit.name, unit.layer) for unit in found.units] == [
        ("conv1", None),
        ("layer1.0.conv1", 0),
        ("layer1.0.conv2", 0),
        ("layer2.0.conv1", 1),
        ("layer2.0.conv2", 1),
        ("linear", None),
    ]


@pytest.mark.parametrize("kind", ["llama", "mixtral", "residual"])
def test_the_fingerprint_knows_every_bit(kind: str) -> None:
    module = plain(kind)
    before = inventory(module).fingerprint
    for name, tensor in stored(module).items():
        if not tensor.is_floating_point():
            continue
        last = tensor.detach().view(-1)[-1:].view(torch.uint8)
        last[0] ^= 1
        assert inventory(module).fingerprint != before, name
        last[0] ^= 1
    assert inventory(module).fingerprint == before


def test_the_fingerprint_knows_names_types_and_shapes() -> None:
    def made(**layers: nn.Module) -> str:
        return inventory(nn.ModuleDict(layers)).fingerprint

    def linear(inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
        layer = nn.Linear(inputs, outputs, bias=False)
        layer.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=dtype))
        return layer

    prints = [
        made(a=linear(4, 6)),
        made(b=linear(4, 6)),
        made(a=linear(6, 4)),
        made(a=linear(4, 6, dtype=torch.bfloat16)),
        made(a=linear(4, 6), b=linear(4, 6)),
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_weights_that_are_not_numbers_are_refused_by_name(name: str, value: float) -> None:
    module = plain("llama")
    module.get_parameter(name).data.view(-1)[3] = value
    with pytest.raises(ValueError, match=f"tensor '{name}' holds 1 NaN or infinite"):
        inventory(module)


def test_large_finite_weights_are_no_infinity() -> None:
    layer = nn.Linear(8, 8)
    layer.weight.data[:] = torch.finfo(torch.float32).max  # their sum overflows float32
    assert inventory(nn.Sequential(layer)).units


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Linear(1, 1), "fewer than 2"),
        (nn.Linear(9, 1), "fewer than 2"),
        (nn.Conv2d(1, 9, 1), "fewer than 2"),
        (EMPTY, "empty"),
        (nn.Embedding(7, 8), "table of positions"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "not a plain matrix product"),
        (nn.Conv1d(4, 4, 3), "not a plain matrix product"),
        (nn.LayerNorm(8), "vector"),
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_left_alone(layer: nn.Module, reason: str) -> None:
    found = inventory(nn.ModuleDict({"first": nn.Linear(4, 4, bias=False), "odd": layer}))
    assert [unit.name for unit in found.units] == ["first"]
    assert {tensor.name: tensor.reason for tensor in found.fixed}["odd.weight"].startswith(reason)


def test_a_module_that_does_more_than_multiply_is_left_alone() -> None:
    """Gemma scales what its table gives and shares the table with its head: packing either would change the model."""
    config = models.hf.Gemma3TextConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, head_dim=16
    )
    found = inventory(make_plain(models.hf.Gemma3ForCausalLM(config)))
    assert "model.layers.0.mlp.down_proj" in {unit.name for unit in found.units}
    assert not {unit.role for unit in found.units} & {"embedding", "head"}
    assert "scaled table" in next(tensor.reason for tensor in found.fixed if tensor.name == "model.embed_tokens.weight")


def test_a_weight_that_is_read_and_not_called_is_left_alone() -> None:
    found = inventory(nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "after": nn.Linear(8, 8)}))
    assert [unit.name for unit in found.units] == ["after"]


def test_a_table_under_two_modules_is_one_unit() -> None:
    """T5 names its table `shared` and looks it up as `encoder.embed_tokens`; both must hold what is packed."""
    config = models.hf.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    module = make_plain(models.hf.T5EncoderModel(config))
    found = inventory(module)
    (table,) = (unit for unit in found.units if unit.kind == "embedding")
    assert {table.name, *table.shared_with} == {"shared", "encoder.embed_tokens"}
    network = Network(module, replace(found, outputs="pooled"), "mean")
    assert torch.isfinite(run(network, {"input_ids": torch.tensor([[1, 2, 3]])})).all()
