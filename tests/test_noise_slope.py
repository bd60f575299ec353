from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.changes import relative_errors
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import noise_slope
from bitplan.sensitivity.network import Network, predictions, run
from bitplan.sensitivity.network import divergence as apart
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.render import Renderings, unit_weights
from bitplan.sensitivity.study import Study

FORMATS = ("int3-g32-asym", "int5-row")


def renderings(home: Path, network: Network) -> Renderings:
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    return made


def test_the_slope_of_straight_lines_and_of_bent_ones() -> None:
    t = np.array(noise_slope.LEVELS)
    assert noise_slope.slopes(np.stack([3 * t, 0 * t])).tolist() == pytest.approx([3, 0], rel=1e-12)
    assert noise_slope.straightness(3 * t) == pytest.approx(1, abs=1e-12)
    assert noise_slope.straightness(0 * t) == 1
    by_hand = (0.01 * 1 + 0.04 * 2 + 0.07 * 4 + 0.1 * 8) / (0.0001 + 0.0016 + 0.0049 + 0.01)
    assert noise_slope.slopes(np.array([1.0, 2.0, 4.0, 8.0])) == pytest.approx(by_hand, rel=1e-12)
    assert noise_slope.straightness(np.exp(80 * t)) < noise_slope.STRAIGHT
    fitted = noise_slope.slopes(np.array([1.0, 2.0, 4.0, 8.0])) * t
    residual = np.square(fitted - [1, 2, 4, 8]).sum() / np.square(np.array([1, 2, 4, 8]) - 3.75).sum()
    assert noise_slope.straightness(np.array([1.0, 2.0, 4.0, 8.0])) == pytest.approx(1 - residual, rel=1e-12)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "residual"])
def test_noise_has_exactly_its_level_and_is_taken_back(kind: str) -> None:
    network = models.network(kind)
    for unit in network.inventory.units[:: len(network.inventory.units) - 1]:
        before = [weight.clone() for weight in unit_weights(network.module, unit)]
        inside: list[torch.Tensor] = []
        with contextlib.suppress(InterruptedError), noise_slope.noise(network, unit, 0.04, torch.Generator().manual_seed(1)):
            inside = [weight.clone() for weight in unit_weights(network.module, unit)]
            raise InterruptedError
        for old, new, now in zip(before, inside, unit_weights(network.module, unit), strict=True):
            level = float((new - old).double().square().sum() / old.double().square().sum())
            assert level == pytest.approx(0.04, rel=1e-4)  # float32
            assert torch.equal(old, now)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "dinov2"])
@torch.no_grad()
def test_it_is_what_noisy_copies_show(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network)
    study = Study(network, made, part, FORMATS, 5)
    found = noise_slope.estimate(study)
    assert found.quantity == network.quantity
    count = sum(predictions(network, batch) for batch in part.batches)
    relative = relative_errors(study)
    for u, unit in list(enumerate(network.inventory.units))[::4]:
        above = below = 0.0
        for index, t in enumerate((0.01, 0.04, 0.07, 0.1)):
            noisy = copy.deepcopy(network.module)
            generator = torch.Generator().manual_seed(5 * 1_000_003 + 4 * u + index)
            for matrix in unit.matrices:
                weight = noisy.get_parameter(f"{matrix.module}.weight")
                drawn = torch.randn(weight.flatten(1).shape, generator=generator).view(weight.shape)
                weight.data = weight + t**0.5 * weight.norm() / drawn.norm() * drawn
            total = sum(
                float(apart(network, run(network, batch), run(network, batch, noisy), batch).sum()) for batch in part.batches
            )
            above, below = above + t * total / count, below + t * t
        assert found.loss[u].tolist() == pytest.approx((above / below * relative[u]).tolist(), rel=1e-3)
        assert (found.loss[u] > 0).all()


def test_the_slope_of_a_softmax_is_known(tmp_path: Path) -> None:
    """Logits W x, weights small: to second order KL = 1/2 var_p(n x) and for noise of independent entries of variance s^2 its
    mean is 1/2 s^2 |x|^2 (1 - sum p^2), p nearly uniform over C classes: a = 1/2 ||W||^2 / (C n) mean |x|^2 (1 - 1/C)."""
    torch.manual_seed(0)
    classes, inputs = 32, 200
    module = make_plain(nn.Sequential(nn.Linear(inputs, classes, bias=False)))
    module.get_parameter("0.weight").mul_(0.05)
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    batches = tuple({"pixel_values": torch.randn(64, inputs)} for _ in range(3))
    part = Part(batches, frozenset("abc"))
    made = renderings(tmp_path, network)
    study = Study(network, made, part, FORMATS)
    found = noise_slope.estimate(study)
    weight = module.get_parameter("0.weight")
    squared = float(torch.cat([batch["pixel_values"] for batch in batches]).square().sum(-1).mean())
    slope = float(weight.square().sum()) / (classes * inputs) * squared * (1 - 1 / classes) / 2
    relative = relative_errors(study)[0]
    assert found.loss[0].tolist() == pytest.approx((slope * relative).tolist(), rel=0.05)  # a sample of 6400 numbers a level
    assert found.notes == ()


def test_units_whose_divergence_is_bent_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_slope, "STRAIGHT", 1.0)
    network, part = models.network("residual"), models.fewer(models.calibration("residual").estimate, 1)
    notes = noise_slope.estimate(Study(network, renderings(tmp_path, network), part, FORMATS)).notes
    units = len(network.inventory.units)
    assert notes == (f"the divergence of {units} of {units} units does not rise in proportion to noise (R^2 below 1.0)",)


def test_no_more_than_a_few_batches_are_used(tmp_path: Path) -> None:
    network, part = models.network("residual"), models.calibration("residual").estimate
    assert len(part.batches) > noise_slope.BATCHES
    found = noise_slope.estimate(Study(network, renderings(tmp_path, network), part, FORMATS))
    assert found.batches == noise_slope.BATCHES
