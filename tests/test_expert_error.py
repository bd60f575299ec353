from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from bitplan.sensitivity.experts import Experts
from bitplan.sensitivity.metrics import expert_error
from bitplan.sensitivity.network import Network, run
from bitplan.sensitivity.render import Renderings, rendered_transposed
from bitplan.sensitivity.study import Study

# Block 0 of the authors' tables for Mixtral 8x7B (methods_moe_and_more.md, section 1.6): 1, 2 and 3 bits.
COUNTS = np.array([68862.0, 63387, 62746, 63751, 66314, 70431, 56466, 72331])
MASS = np.array([19891.639, 22812.152, 21595.748, 21344.5, 19123.953, 16804.887, 17566.242, 18464.881])
ERRORS = np.array(
    [
        [455.0034, 180.3979, 78.2074],
        [3856.1067, 708.0323, 369.9871],
        [735.9800, 372.6560, 156.3292],
        [663.1968, 341.5241, 143.5118],
        [525.4329, 273.9226, 114.7053],
        [434.1846, 218.0749, 92.0674],
        [3275.4322, 677.7527, 288.9788],
        [450.2718, 231.7869, 97.3900],
    ]
)
FORMATS = ("int3-g32-asym", "int5-row", "bf16")


def test_the_costs_of_the_published_block() -> None:
    costs = 1000 * expert_error.costs(COUNTS, MASS, ERRORS)
    assert costs[0] == pytest.approx([2679.658, 1062.420, 460.588], abs=2e-3)  # the inputs are rounded to seven digits
    assert costs[1] == pytest.approx([25673.073, 4713.917, 2463.289], abs=2e-3)


@pytest.mark.parametrize(
    ("bits", "published", "objective"),
    [
        (12, (1, 3, 2, 1, 1, 1, 2, 1), 21471.53),
        (14, (2, 3, 2, 2, 1, 1, 2, 1), 17904.85),
        (16, (2, 3, 2, 2, 2, 1, 3, 1), 15002.16),
        (18, (2, 3, 3, 2, 2, 1, 3, 2), 12480.19),
        (20, (2, 3, 3, 3, 2, 2, 3, 2), 10269.36),
    ],
)
def test_the_published_allocations_follow(bits: int, published: tuple[int, ...], objective: float) -> None:
    costs = 1000 * expert_error.costs(COUNTS, MASS, ERRORS)
    allowed = [plan for plan in itertools.product((1, 2, 3), repeat=8) if sum(plan) <= bits and {2, 3} <= set(plan)]
    value, best = min((sum(costs[e, b - 1] for e, b in enumerate(plan)), plan) for plan in allowed)
    assert best == published
    assert value == pytest.approx(objective, abs=0.01)


def test_the_exponents_of_the_paper_square_the_error() -> None:
    printed = expert_error.costs(COUNTS, MASS, ERRORS, expert_error.AS_PRINTED)
    assert printed == pytest.approx((COUNTS / COUNTS.sum() * MASS / MASS.sum())[:, None] * ERRORS**2)
    assert expert_error.costs(COUNTS, MASS, ERRORS, (0, 0, 1)) == pytest.approx(ERRORS)


def made_for(network: Network, home: Path) -> Renderings:
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    return made


@torch.no_grad()
def test_it_is_what_the_whole_block_shows_with_one_expert_changed(tmp_path: Path) -> None:
    """Run again, whole, on the inputs of the untouched network; counts and probabilities from its logits, token by token."""
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 3)
    made = made_for(network, tmp_path)
    found = expert_error.estimate(Study(network, made, part, FORMATS))
    inputs: dict[int, list[Tensor]] = {0: [], 1: []}
    blocks = [network.module.get_submodule(f"model.layers.{layer}.mlp") for layer in (0, 1)]
    handles = [
        block.register_forward_pre_hook(lambda module, args, layer=layer: inputs[layer].append(args[0]))
        for layer, block in enumerate(blocks)
    ]
    for batch in part.batches:
        run(network, batch)
    for handle in handles:
        handle.remove()
    for layer, block in enumerate(blocks):
        gate: Any = block.gate
        probabilities = torch.cat([gate(x)[0].softmax(-1) for x in inputs[layer]]).double()
        chosen = torch.cat([gate(x)[2] for x in inputs[layer]])
        sent = torch.zeros_like(probabilities).scatter(1, chosen, 1.0)
        phi = sent.sum(0) / sent.sum()
        rho = (sent * probabilities).sum(0) / (sent * probabilities).sum()
        for u, unit in enumerate(network.inventory.units):
            if unit.kind != "expert" or unit.layer != layer:
                continue
            for f, fmt in enumerate(FORMATS[:2]):
                before = [block(x) for x in inputs[layer]]
                weights = [network.module.get_parameter(f"{matrix.module}.weight") for matrix in unit.matrices]
                kept = [weight.clone() for weight in weights]
                for weight, rendered in zip(weights, made(unit, fmt), strict=True):
                    weight.copy_(rendered_transposed(rendered).T)
                error = sum(float(torch.linalg.norm((block(x) - y).double())) for x, y in zip(inputs[layer], before, strict=True))
                for weight, old in zip(weights, kept, strict=True):
                    weight.copy_(old)
                assert unit.expert is not None
                expected = float(phi[unit.expert] * rho[unit.expert] ** 1.5) * error / len(part.batches)
                assert found.loss[u, f] == pytest.approx(expected, rel=1e-4)
    assert any("comparable inside a block" in note for note in found.notes)


@torch.no_grad()
def test_other_units_have_the_norm_of_their_own_output_error(tmp_path: Path) -> None:
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 2)
    made = made_for(network, tmp_path)
    found = expert_error.estimate(Study(network, made, part, FORMATS))
    unit = network.inventory.unit("model.layers.1.self_attn.o_proj")
    seen: list[Tensor] = []
    module = network.module.get_submodule(unit.name)
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    for batch in part.batches:
        run(network, batch)
    handle.remove()
    delta = rendered_transposed(made(unit, FORMATS[0])[0]) - module.get_parameter("weight").T
    expected = sum(float(torch.linalg.norm(x @ delta)) for x in seen) / len(seen)
    assert found.loss[network.inventory.units.index(unit), 0] == pytest.approx(expected, rel=1e-5)


def test_an_expert_that_no_token_reached_costs_something_but_little(tmp_path: Path) -> None:
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 3)
    models.starve(network, 2)
    found = expert_error.estimate(Study(network, made_for(network, tmp_path), part, FORMATS))
    for layer in range(2):
        mine = [u for u, unit in enumerate(network.inventory.units) if unit.kind == "expert" and unit.layer == layer]
        losses = {network.inventory.units[u].expert: found.loss[u] for u in mine}
        for f in range(2):
            assert 0 < losses[2][f] < min(losses[e][f] for e in (0, 1, 3))
        assert losses[2][2] == 0  # its own dtype
    assert found.notes[-1] == "2 of 8 experts were reached by no token and are counted as reached by one"


def test_weights_and_hooks_are_put_back_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 2)
    made = made_for(network, tmp_path)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    forward, calls = Experts.forward, 0

    def fail(self: Experts, *arguments: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:  # the network's own pass, the expert untouched, the expert changed
            assert any(not torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
            raise InterruptedError
        return forward(self, *arguments)

    monkeypatch.setattr(Experts, "forward", fail)
    with pytest.raises(InterruptedError):
        expert_error.estimate(Study(network, made, part, FORMATS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert not any(child._forward_hooks for child in network.module.modules())
