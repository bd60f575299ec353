from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.aria import modeling_aria
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.mixtral import modeling_mixtral
from transformers.models.nemotron_h import modeling_nemotron_h

import models
from bitplan.sensitivity.experts import Expert, Experts, is_stacked, unstack

aria: Any = modeling_aria
gpt_oss: Any = modeling_gpt_oss
mixtral: Any = modeling_mixtral
nemotron: Any = modeling_nemotron_h
STACKED: dict[str, Callable[[], nn.Module]] = {
    "mixtral": lambda: mixtral.MixtralExperts(models.hf.MixtralConfig(hidden_size=24, intermediate_size=20, num_local_experts=5)),
    "gpt-oss": lambda: gpt_oss.GptOssExperts(  # stored transposed, biases, a gate of its own
        models.hf.GptOssConfig(hidden_size=24, intermediate_size=20, num_local_experts=5)
    ),
    "aria": lambda: aria.AriaExperts(  # stored transposed
        models.hf.AriaTextConfig(
            hidden_size=24, intermediate_size=20, moe_num_experts=5, num_attention_heads=2, num_key_value_heads=2
        )
    ),
    "nemotron": lambda: nemotron.NemotronHExperts(  # no gate
        models.hf.NemotronHConfig(hidden_size=24, moe_intermediate_size=20, n_routed_experts=5, mlp_hidden_act="relu2")
    ),
}


def stacked(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = STACKED[name]()
    module.config._experts_implementation = "eager"  # type: ignore[union-attr]
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape)
    return module.requires_grad_(False)


def routed(tokens: int, experts: list[int], k: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, `k` different experts of the list for each token, and their weights."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.stack([torch.tensor(experts)[torch.randperm(len(experts), generator=generator)[:k]] for _ in range(tokens)])
    return torch.randn(tokens, 24, generator=generator), chosen, torch.rand(tokens, k, generator=generator)


@pytest.mark.parametrize("experts", [[0, 1, 2, 3, 4], [1, 4], [3]], ids=str)
@pytest.mark.parametrize("name", STACKED)
def test_unstacked_experts_compute_what_the_stacked_ones_do(name: str, experts: list[int]) -> None:
    before = stacked(name)
    inputs = routed(11, experts, min(2, len(experts)))
    assert torch.allclose(Experts(before)(*inputs), before(*inputs), rtol=1e-4, atol=1e-4)  # sums in another order


@pytest.mark.parametrize("name", STACKED)
def test_each_expert_knows_its_rows(name: str) -> None:
    experts = Experts(stacked(name))
    hidden, chosen, weights = routed(11, [0, 2, 3])
    experts(hidden, chosen, weights)
    for index, expert in experts.experts.items():
        assert isinstance(expert, Expert)
        if int(index) in (1, 4):
            assert not hasattr(expert, "positions")  # no token came
            continue
        assert expert.total == 11
        assert expert.positions.tolist() == [t for t in range(11) if int(index) in chosen[t].tolist()]


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_no_tokens_at_all(name: str) -> None:
    experts = Experts(stacked(name))
    nothing = torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2)
    assert experts(torch.empty(0, 24), *nothing).shape == (0, 24)


def small_gpt_oss() -> Any:
    config = models.hf.GptOssConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    return models.hf.GptOssForCausalLM(config)


def small_qwen() -> Any:
    config = models.hf.Qwen3MoeConfig(
        vocab_size=50,
        hidden_size=24,
        moe_intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return models.hf.Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize(
    "build", [lambda: models.module("mixtral"), small_gpt_oss, small_qwen], ids=["mixtral", "gpt-oss", "qwen"]
)
@torch.no_grad()
def test_a_model_gives_the_same_logits_after_unstacking(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    ids = torch.randint(50, (2, 9))
    before = model(input_ids=ids).logits
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert unstack(model) is model
    assert not any(is_stacked(module) for module in model.modules())
    assert len([module for module in model.modules() if isinstance(module, Expert)]) == 8
    assert sum(parameter.nbytes for parameter in model.parameters()) == size
    assert torch.allclose(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)


def test_the_parameters_stay_where_they_were() -> None:
    before = stacked("mixtral")
    storage = before.get_parameter("down_proj").untyped_storage().data_ptr()
    experts = Experts(before)
    assert {e.down_proj.weight.untyped_storage().data_ptr() for e in experts.experts.values() if isinstance(e, Expert)} == {
        storage
    }


def test_experts_with_more_than_two_products_stay_stacked() -> None:
    """A norm after each expert (Muse) has no place in an Expert: unstacking would drop it."""
    module = stacked("mixtral")
    assert is_stacked(module)
    module.add_module("post_expert_norm", nn.RMSNorm(24))
    assert not is_stacked(module)
    assert not is_stacked(nn.Linear(3, 3))
