from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import models
from bitplan.sensitivity import render
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import gradient_score
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.study import Study
from bitplan.sensitivity.task_loss import mean_task_loss
from bitplan.sensitivity.units import Unit
from loops import Moved, renderings, seen

Floats = npt.NDArray[np.float64]
FORMATS = ("int4-g64", "int3-g32-asym")


def score(made: Any, network: Network, part: Part, formats: tuple[str, ...] = FORMATS) -> Floats:
    loss: Floats = gradient_score.estimate(Study(network, made, part, formats, 3)).loss
    return loss


def slow_score(network: Network, made: Any, part: Part, fmt: str) -> Floats:
    """As the program does it: every module runs once more with the quantized weight, on what it received."""
    units = [unit.name for unit in network.inventory.units]
    total = np.zeros(len(units))
    for index, batch in enumerate(part.batches):
        generator = torch.Generator().manual_seed(3 + index)
        labels = part.classes(index)

        def loss(output: Tensor) -> Tensor:
            return mean_task_loss(network, output, batch, labels, generator)  # noqa: B023

        for one in seen(network, batch, loss):
            rendered = made(one.use.unit, fmt)[one.use.matrix]
            numbers = render.rendered_transposed(rendered).T.reshape(one.module.get_parameter("weight").shape)
            after = functional_call(one.module, {"weight": numbers}, (one.received,))
            moved = (after - one.module.forward(one.received)) * one.gradient
            total[units.index(one.use.unit.name)] += float(moved.double().square().clamp(max=1e10).sum())
    return total


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2", "vit", "dinov2", "residual"])
def test_it_is_what_running_each_module_twice_gives(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind, tokens=600).estimate, 2)
    made = renderings(tmp_path, network, FORMATS)
    narrow, wide = slow_score(network, made, part, "int3-g32-asym"), slow_score(network, made, part, "int4-g64")
    expected = np.stack([np.minimum(narrow, wide), narrow], axis=1)  # the palette need not be in order
    assert score(made, network, part) == pytest.approx(expected, rel=2e-3, abs=1e-6 * expected.max())


def test_groups_and_slices_of_a_convolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "ENTRIES_AT_ONCE", 1)
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.Tanh(), nn.Conv2d(8, 72, (2, 3), groups=2, padding=(0, 1))
    module = make_plain(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(72, 6)))
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    part, made = models.fewer(models.calibration("resnet").estimate, 2), renderings(tmp_path, network, FORMATS)
    expected = slow_score(network, made, part, "int3-g32-asym")
    assert score(made, network, part)[:, 1] == pytest.approx(expected, rel=1e-3)


class ByFormat:
    """Renderings that move every weight of the only unit by so much in each format."""

    part = None

    def __init__(self, network: Network, moves: dict[str, float]) -> None:
        self.network, self.moves = network, moves

    def __call__(self, unit: Unit, fmt: str) -> tuple[Tensor, ...]:
        weight = self.network.module.get_parameter(f"{unit.matrices[0].module}.weight").flatten(1)
        return Moved(self.network, {unit.name: [torch.full_like(weight, self.moves[fmt])]})(unit, fmt)


def one_layer() -> tuple[Network, Part]:
    """Equal weights: every class is as likely as the other, so g = +-1/2 over the number of examples."""
    module = make_plain(nn.Sequential(nn.Linear(2, 2, bias=False)))
    module.get_parameter("0.weight").data.fill_(1.0)
    network = Network(module, take_inventory(module, model_id="m", family="vision", outputs="classes"))
    batches = tuple({"pixel_values": torch.tensor([[1.0, 2.0], [3.0, 0.0]])} for _ in range(3))
    return network, Part(batches, frozenset("abc"), tuple(torch.tensor([0, 1]) for _ in range(3)))


def test_a_case_by_hand() -> None:
    """dW = 1: dY = 3 everywhere; g = +-1/2 / 2; each of the 2 x 2 products is (3/4)^2; three batches."""
    network, part = one_layer()
    made: Any = ByFormat(network, {"int8-row": 1.0})
    found = gradient_score.estimate(Study(network, made, part, ("int8-row",)))
    assert found.loss[0, 0] == pytest.approx(3 * 4 * (3 / 4) ** 2, rel=1e-6)
    assert found.stderr is not None
    assert found.stderr[0, 0] == pytest.approx(0, abs=1e-6)


def test_each_product_is_cut_at_its_own() -> None:
    network, part = one_layer()
    made = ByFormat(network, {"int8-row": 1e9, "int2-row": 1e5})
    found = score(made, network, part, ("int8-row", "int2-row"))
    assert found[0] == pytest.approx([3 * 4 * (3 / 4 * 1e5) ** 2, 3 * 4 * (3 / 4 * 1e5) ** 2], rel=1e-6)  # 5.6e9 < 1e10 each
    assert score(made, network, part, ("int8-row",))[0, 0] == pytest.approx(3 * 4 * 1e10, rel=1e-6)


def test_more_bits_never_score_worse_and_carry_the_error_of_what_they_take() -> None:
    network, part = one_layer()
    batches = tuple({"pixel_values": (1 + i) * batch["pixel_values"]} for i, batch in enumerate(part.batches))
    part = Part(batches, part.digests, part.labels)
    moves = {"int2-row": 4.0, "int3-row": 1.0, "int4-row": 2.0, "int4-g32": 3.0, "int8-row": 0.5}
    palette = ("int8-row", "int4-g32", "int2-row", "int3-row", "int4-row")
    found = gradient_score.estimate(Study(network, ByFormat(network, moves), part, palette))  # type: ignore[arg-type]
    alone = {
        fmt: gradient_score.estimate(Study(network, ByFormat(network, moves), part, (fmt,)))  # type: ignore[arg-type]
        for fmt in palette
    }
    taken = ("int8-row", "int3-row", "int2-row", "int3-row", "int3-row")
    assert found.stderr is not None
    for f, fmt in enumerate(taken):
        assert found.loss[0, f] == alone[fmt].loss[0, 0]
        stderr = alone[fmt].stderr
        assert stderr is not None
        assert found.stderr[0, f] == stderr[0, 0] > 0


def test_the_scale_is_that_of_a_mean_over_the_batch(tmp_path: Path) -> None:
    """The same images twice in each batch: gradients halve, products are twice as many."""
    network, part = models.network("vit"), models.fewer(models.calibration("vit").estimate, 2)
    part = Part(part.batches, part.digests, tuple(torch.arange(len(b["pixel_values"])) % 10 for b in part.batches))
    assert part.labels is not None
    twice = Part(
        tuple({"pixel_values": b["pixel_values"].repeat(2, 1, 1, 1)} for b in part.batches),
        part.digests,
        tuple(labels.repeat(2) for labels in part.labels),
    )
    made = renderings(tmp_path, network, FORMATS)
    assert score(made, network, twice) == pytest.approx(score(made, network, part) / 2, rel=1e-3)
