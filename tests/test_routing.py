from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.changes import relative_errors
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import expert_frequency, router_mass
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.routing import (
    at_least_once,
    collect_routing,
    column_of,
    columns_of,
    missed_note,
    require_mass,
    tally,
)
from bitplan.sensitivity.study import Study

FORMATS = ("int3-g32-asym", "int5-row", "bf16")
SHARES = ((0.7, 0.2, 0.06, 0.04), (0.1, 0.1, 0.5, 0.3), (0.6, 0.05, 0.25, 0.1))  # of the four experts, for three tokens in turn
# Of three tokens the first goes to experts 0 and 1, the second to 2 and 3, the third to 0 and 2.
COUNTS, MASS = [2, 1, 2, 1], [0.7 + 0.6, 0.2, 0.5 + 0.25, 0.3]
BLOCKS = ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]


class Fixed(nn.Module):
    """A router that looks at nothing: token t goes where SHARES[t % 3] says."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = hidden.reshape(-1, hidden.shape[-1]).shape[0]
        logits = torch.tensor([[math.log(share) + 5 for share in SHARES[t % 3]] for t in range(rows)])
        value, chosen = logits.softmax(-1).topk(2, dim=-1)
        return logits, value / value.sum(-1, keepdim=True), chosen


def fixed() -> Network:
    network = models.network("mixtral")
    for layer in network.module.model.layers:  # type: ignore[union-attr]
        layer.mlp.gate = Fixed()
    return network


def tokens(*shapes: tuple[int, int]) -> Part:
    torch.manual_seed(0)
    return Part(tuple({"input_ids": torch.randint(1, models.VOCABULARY, shape)} for shape in shapes), frozenset("abc"))


def test_counts_and_mass_of_a_router_known_by_heart() -> None:
    """The probabilities are those before the two chosen ones are scaled up to one."""
    routing = collect_routing(fixed(), tokens((2, 6), (1, 9)))
    assert routing.columns == tuple((block, expert) for block in BLOCKS for expert in range(4))
    assert routing.counts.tolist() == [[4 * n for n in COUNTS] * 2, [3 * n for n in COUNTS] * 2]
    assert routing.mass == pytest.approx(np.array([[4 * w for w in MASS] * 2, [3 * w for w in MASS] * 2]), rel=1e-6)
    assert routing.tokens.tolist() == [12, 9]


def test_padding_is_no_token() -> None:
    part = tokens((2, 6))
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    routing = collect_routing(fixed(), Part(({**part.batches[0], "attention_mask": mask},), part.digests))
    assert routing.counts.tolist() == [[3 * n for n in COUNTS] * 2]  # the last three of twelve tokens are gone
    assert routing.mass[0] == pytest.approx(np.array([3 * w for w in MASS] * 2), rel=1e-6)
    assert routing.tokens.tolist() == [9]


def test_units_find_their_experts_and_others_have_every_token() -> None:
    network = fixed()
    units = network.inventory.units
    experts = [unit for unit in units if unit.kind == "expert"]
    assert [column_of(unit) for unit in experts] == list(columns_of(network.module))
    counts = collect_routing(network, tokens((2, 6), (1, 9))).unit_counts(units)
    assert [count for count, unit in zip(counts, units, strict=True) if unit.kind == "expert"] == [7 * n for n in COUNTS] * 2
    assert {count for count, unit in zip(counts, units, strict=True) if unit.kind != "expert"} == {21}


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3Moe", {"num_experts": 6, "moe_intermediate_size": 16, "head_dim": 8}),
    "qwen2": ("Qwen2Moe", {"num_experts": 6, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
    "gpt-oss": ("GptOss", {"num_local_experts": 6, "head_dim": 8}),
    "phi": ("Phimoe", {"num_local_experts": 6}),
    "deepseek": (
        "DeepseekV3",
        {
            "n_routed_experts": 6,
            "n_group": 2,
            "topk_group": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_routers_of_other_models_are_found(kind: str) -> None:
    """Against the router's own logits and choice, token by token."""
    name, settings = CONFIGS[kind]
    common = {
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": models.VOCABULARY,
        "num_experts_per_tok": 2,
    }
    torch.manual_seed(0)
    config = getattr(models.hf, f"{name}Config")(**common, **settings)
    made = make_plain(getattr(models.hf, f"{name}ForCausalLM")(config))
    network = Network(made, take_inventory(made, model_id="m", family="mixture-of-experts", outputs="tokens"))
    said: list[tuple[Tensor, ...]] = []
    for path, module in made.named_modules():
        if path.endswith((".mlp.gate", ".mlp.router")):
            module.register_forward_hook(lambda module, inputs, output: said.append(output))
    part = tokens((2, 7))
    routing = collect_routing(network, part)
    require_mass(routing)
    assert len(said) == len({path for path, _ in routing.columns}) > 0
    counts, mass = [], []
    for logits, _, chosen in said:
        seen, weight = [0] * 6, [0.0] * 6
        for row, experts in zip(logits.flatten(0, -2), chosen, strict=True):
            for expert in experts.tolist():
                seen[expert] += 1
                weight[expert] += float(row.softmax(-1)[expert])
        counts += seen
        mass += weight
    assert routing.counts[0].tolist() == counts
    assert sum(counts) == len(said) * 14 * 2
    assert routing.mass[0] == pytest.approx(np.array(mass), rel=1e-5)


def test_a_token_sent_nowhere_counts_for_no_expert() -> None:
    counts, mass = tally(torch.tensor([[0, 3], [1, 4]]), torch.zeros(2, 3), 3)
    assert counts.tolist() == [1, 1, 0]
    assert mass == pytest.approx(np.array([1 / 3, 1 / 3, 0]))


def test_a_router_that_cannot_be_found_is_named(tmp_path: Path) -> None:
    """Its experts are counted all the same."""
    network = fixed()
    mlp: Any = network.module.get_submodule("model.layers.1.mlp")
    gate = mlp.gate
    del mlp.gate
    mlp.gate = lambda hidden: gate(hidden)  # no module any more
    routing = collect_routing(network, tokens((1, 6)))
    assert routing.counts[0].tolist() == [2 * n for n in COUNTS] * 2
    with pytest.raises(ValueError, match=r"router of model\.layers\.1\.mlp\.experts was not found.* use expert_frequency"):
        require_mass(routing)
    made = Renderings(tmp_path, network, "nearest", None)
    with pytest.raises(ValueError, match="was not found"):
        router_mass.estimate(Study(network, made, tokens((1, 6)), FORMATS))


def test_an_expert_that_no_token_reached_counts_as_reached_by_one() -> None:
    columns = (("a", 0), ("a", 1), ("b", 0), ("b", 1))
    counts, mass = at_least_once(columns, np.array([0.0, 8, 3, 1]), np.array([0.0, 2.0, 1.5, 0.1]))
    assert counts.tolist() == [1, 8, 3, 1]
    assert mass.tolist() == [0.25, 2.0, 1.5, 0.1]  # what one of the block's eight pairs weighs


def test_a_starved_expert_is_told_of() -> None:
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 2)
    models.starve(network, 2)
    routing = collect_routing(network, part)
    units = network.inventory.units
    counts = routing.unit_counts(units)
    missed = [unit.name for count, unit in zip(counts, units, strict=True) if count == 0]
    assert missed == [f"model.layers.{layer}.mlp.experts.2" for layer in range(2)]
    assert missed_note(units, counts) == ("2 of 8 experts were reached by no token and are counted as reached by one",)
    assert missed_note(units, counts + 1) == ()


@pytest.mark.parametrize("metric", [expert_frequency, router_mass])
def test_the_loss_is_use_times_weights_times_relative_error(metric: Any, tmp_path: Path) -> None:
    network, part = fixed(), tokens((2, 6), (1, 9))
    units = network.inventory.units
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in units for fmt in FORMATS])
    study = Study(network, made, part, FORMATS)
    found = metric.estimate(study)
    use = (COUNTS if metric is expert_frequency else MASS) * 2
    share = iter([7 * each / 21 for each in use])
    expected = [[(next(share) if unit.kind == "expert" else 1) * unit.parameters] for unit in units]
    assert found.loss == pytest.approx(np.array(expected) * relative_errors(study), rel=1e-6)
    assert found.batches == 2
    assert found.stderr == pytest.approx(np.zeros_like(found.loss), abs=1e-9 * found.loss.max())  # the batches agree
    assert found.notes == ()


@pytest.mark.parametrize("metric", [expert_frequency, router_mass])
def test_an_expert_that_no_token_reached_costs_something_but_little(metric: Any, tmp_path: Path) -> None:
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 3)
    models.starve(network, 2)
    units = network.inventory.units
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in units for fmt in FORMATS])
    found = metric.estimate(Study(network, made, part, ("int3-g32-asym",)))
    for layer in range(2):
        mine = [u for u, unit in enumerate(units) if unit.kind == "expert" and unit.layer == layer]
        losses = {units[u].expert: found.loss[u, 0] for u in mine}
        assert 0 < losses[2] < min(losses[e] for e in (0, 1, 3))
    assert found.notes == ("2 of 8 experts were reached by no token and are counted as reached by one",)


def test_hooks_are_gone_even_after_an_error() -> None:
    network = fixed()

    def hooks() -> list[int]:
        return [len(child._forward_hooks) for child in network.module.modules()]

    before = hooks()
    with pytest.raises(IndexError):
        collect_routing(network, Part(({"input_ids": torch.tensor([[10**6]])},), frozenset("a")))
    assert hooks() == before
