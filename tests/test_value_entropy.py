from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import value_entropy
from bitplan.sensitivity.metrics.value_entropy import FULL, bits_entropies, lost, saved, score
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.probe import uses
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.study import Study


def test_evenly_spread_numbers_have_as_many_bits_as_bins() -> None:
    found = bits_entropies(torch.arange(512.0), 9)
    assert found.tolist() == pytest.approx(range(10))
    assert [lost(found, bits) for bits in (2, 4, 8)] == pytest.approx([7 / 9, 5 / 9, 1 / 9])


def test_against_eight_bits_as_in_the_source() -> None:
    """256 even codes: H_8 = 8, so 4 bits lose half and 8 bits nothing."""
    found = bits_entropies(torch.arange(256.0), 8)
    assert [lost(found, bits) for bits in (2, 4, 8)] == pytest.approx([0.75, 0.5, 0])


def test_entropy_of_the_codes_of_a_quantizer() -> None:
    """Counted by hand: floor((y - min) / step) with step = (max - min) / 2^b, the greatest in the last bin."""
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    found = bits_entropies(values)
    low, high = float(values.min()), float(values.max())
    for bits in (1, 2, 4, 8):
        codes = ((values.double() - low) / (high - low) * 2**bits).long().clamp(max=2**bits - 1)
        p = torch.bincount(codes).double() / len(values)
        expected = -sum(float(x) * math.log2(float(x)) for x in p if x > 0)
        assert found[bits] == pytest.approx(expected, abs=2e-3)  # a number that lies on an edge may fall to either side
    assert bool((np.diff(found) >= 0).all())  # bins nest: no bit less ever gains


def test_a_gaussian_loses_a_bit_a_bit() -> None:
    values = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    found = bits_entropies(values)
    assert np.diff(found)[4:] == pytest.approx([1] * 5, abs=0.02)


def test_a_constant_output_has_nothing_to_lose() -> None:
    found = bits_entropies(torch.full((7,), 3.0))
    assert found.tolist() == [0] * (FULL + 1)
    assert lost(found, 2) == 0
    assert bits_entropies(torch.empty(0)).tolist() == [0] * (FULL + 1)


def test_the_score_weighs_entropy_against_operations() -> None:
    assert saved(8, 8) == 0
    assert saved(2, 8) == 0.75
    assert saved(4, 4) == 0.75
    assert score(0, 0.75) == 0.375
    assert score(1, 0.75) == -0.125
    assert score(0.4, 0.5, weight=1) == -0.4
    assert score(0.4, 0.5, weight=0) == 0.5


def test_under_a_budget_of_operations_the_best_plan_is_that_of_the_highest_scores() -> None:
    """Lagrangian: with the losses C Omega and the operations C b, the b that is best at the price of lambda = 1/2 for each unit
    is that of the highest S, and no plan of as few operations loses less."""
    from itertools import product

    entropies = [
        bits_entropies(torch.randn(3000, generator=torch.Generator().manual_seed(s)) ** p, 8) for s, p in enumerate((1, 3, 5))
    ]
    operations, widths = (100.0, 30.0, 400.0), (2, 4, 8)
    best = tuple(max(widths, key=lambda b: score(lost(h, b), saved(b, 8))) for h in entropies)

    def loss(plan: tuple[int, ...]) -> float:
        return sum(c * lost(h, b) for c, h, b in zip(operations, entropies, plan, strict=True))

    def spent(plan: tuple[int, ...]) -> float:
        return sum(c * b for c, b in zip(operations, plan, strict=True))

    plans = [plan for plan in product(widths, repeat=3) if spent(plan) <= spent(best)]
    assert len(plans) > 1
    assert loss(best) == pytest.approx(min(loss(plan) for plan in plans))


@pytest.mark.parametrize("kind", ["llama", "mixtral", "dinov2", "residual"])
def test_operations_times_share_lost_of_the_modules_own_outputs(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 1)
    units = network.inventory.units
    formats = ("int3-row", "int8-g32", "bf16", "fp32")
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in units for fmt in formats])
    found = value_entropy.estimate(Study(network, made, part, formats)).loss
    outputs: dict[str, torch.Tensor] = {}
    places = uses(network, units)
    handles = [
        network.module.get_submodule(use.module).register_forward_hook(
            lambda module, inputs, output, name=use.module: outputs.update({name: output.detach()})
        )
        for use in places
    ]
    from bitplan.sensitivity.network import predictions, run

    with torch.no_grad():
        run(network, part.batches[0])
    for handle in handles:
        handle.remove()
    expected = np.zeros((len(units), 2))
    for use in places:
        y = outputs[use.module]
        weight = network.module.get_parameter(f"{use.module}.weight")
        rows = (
            y.numel() // len(weight) if use.unit.kind != "embedding" or use.module in use.unit.shared_with else y[..., 0].numel()
        )
        entropies = bits_entropies(y)
        u = units.index(use.unit)
        expected[u] += [rows * weight.numel() * lost(entropies, bits) for bits in (3, 8)]
    assert found[:, :2] == pytest.approx(expected / predictions(network, part.batches[0]), rel=1e-3)
    assert not np.nan_to_num(found[:, 2:]).any()  # floats lose nothing


def test_a_convolution_in_groups_has_the_output_of_its_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    module = make_plain(nn.Sequential(conv, nn.Flatten()))
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    x = torch.randn(3, 4, 7, 7)
    made = Renderings(tmp_path, network, "nearest", None)
    (unit,) = network.inventory.units
    made.make([(unit, "int3-row")])
    part = Part(({"pixel_values": x},), frozenset("abc"))
    found = value_entropy.estimate(Study(network, made, part, ("int3-row",)))
    operations = 3 * 4 * 4 * 8 * 2 * 9  # images, positions, outputs, inputs of a group, kernel
    assert found.loss[0, 0] == pytest.approx(operations / 3 * lost(bits_entropies(conv(x).detach()), 3), rel=1e-6)


def test_large_outputs_are_sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network, part = models.network("llama"), models.fewer(models.calibration("llama").estimate, 2)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, "int4-row") for unit in network.inventory.units])
    whole = value_entropy.estimate(Study(network, made, part, ("int4-row",))).loss
    monkeypatch.setattr(value_entropy, "MOST_NUMBERS", 600)
    some = value_entropy.estimate(Study(network, made, part, ("int4-row",))).loss
    assert not np.array_equal(some, whole)
    assert some == pytest.approx(whole, rel=0.5)
