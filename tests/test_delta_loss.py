from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import models
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.metrics import delta_loss
from bitplan.sensitivity.network import Network, run, sampled_objective
from bitplan.sensitivity.render import rendered_transposed
from bitplan.sensitivity.study import Study
from bitplan.sensitivity.units import admits
from loops import renderings

Floats = npt.NDArray[np.float64]
PALETTE = ("int3-g32-asym", "int4-g64", "bf16")


def slow_score(
    network: Network, made: Any, part: Part, fmt: str, loss: Callable[[int, Any, dict[str, Tensor]], Tensor]
) -> Floats:
    """A copy of the model with every weight replaced, and the gradients that `backward` leaves in it."""
    copy: Any = deepcopy(network.module)
    changed = {}
    for unit in network.inventory.units:
        if fmt == unit.native or not admits(unit, FORMATS[fmt]):
            continue
        for matrix, rendered in zip(unit.matrices, made(unit, fmt), strict=True):
            weight = copy.get_parameter(f"{matrix.module}.weight")
            before = weight.detach().clone()
            weight.data = rendered_transposed(rendered).T.reshape(weight.shape).clone()
            changed[matrix.module] = before - weight.data
            weight.requires_grad_()
    total = np.zeros(len(network.inventory.units))
    for index, batch in enumerate(part.batches if changed else ()):
        copy.zero_grad()
        loss(index, copy, batch).backward()  # type: ignore[no-untyped-call]
        for u, unit in enumerate(network.inventory.units):
            for matrix in unit.matrices:
                gradient = copy.get_parameter(f"{matrix.module}.weight").grad
                if gradient is not None and matrix.module in changed:
                    total[u] += float((gradient * changed[matrix.module]).abs().sum())
    return total / len(part.batches)


def reported(index: int, module: Any, batch: dict[str, Tensor]) -> Tensor:
    """The loss of transformers itself."""
    loss: Tensor = module(**batch, labels=batch["input_ids"]).loss
    return loss


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_it_is_a_backward_pass_through_the_quantized_model(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network, PALETTE)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    found = delta_loss.estimate(Study(network, made, part, PALETTE))
    for f, fmt in enumerate(PALETTE):
        expected = slow_score(network, made, part, fmt, reported)
        admitted = np.isfinite(found.loss[:, f])
        assert found.loss[admitted, f] == pytest.approx(expected[admitted], rel=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert found.notes == ()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_labels_of_images(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    labels = tuple(torch.arange(len(batch["pixel_values"])) % 10 for batch in part.batches)
    made = renderings(tmp_path, network, PALETTE)
    found = delta_loss.estimate(Study(network, made, replace(part, labels=labels), PALETTE))
    for f, fmt in enumerate(PALETTE):
        expected = slow_score(
            network,
            made,
            part,
            fmt,
            lambda index, module, batch: functional.cross_entropy(module(batch["pixel_values"]).logits, labels[index]),
        )
        assert found.loss[:, f] == pytest.approx(expected, rel=1e-3)
    assert found.stderr is not None
    assert bool((found.stderr > 0).all())


@pytest.mark.parametrize("kind", ["dinov2", "residual"])
def test_without_labels_a_random_direction_takes_their_place_and_it_says_so(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network, PALETTE)

    def loss(index: int, module: Any, batch: dict[str, Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(11 + index)
        output = run(network, batch, module)
        return -sampled_objective(network, output, batch, None, generator) / len(batch["pixel_values"])

    found = delta_loss.estimate(Study(network, made, part, PALETTE, 11))
    for f, fmt in enumerate(PALETTE):
        assert found.loss[:, f] == pytest.approx(slow_score(network, made, part, fmt, loss), rel=2e-3)
    assert "random direction" in found.notes[0]


def test_all_other_units_are_quantized_too(tmp_path: Path) -> None:
    """With one unit alone to quantize, its score is another than among all of them."""
    network, part = models.network("llama"), models.fewer(models.calibration("llama").estimate, 2)
    made = renderings(tmp_path, network, PALETTE)
    among = delta_loss.estimate(Study(network, made, part, PALETTE[:1])).loss[3, 0]
    alone = replace(network, inventory=replace(network.inventory, units=network.inventory.units[3:4]))
    assert delta_loss.estimate(Study(alone, made, part, PALETTE[:1])).loss[0, 0] != pytest.approx(among, rel=0.01)


@pytest.mark.parametrize("fails", ["renderings", "steps", "progress"])
def test_weights_are_put_back_whatever_happens(fails: str, tmp_path: Path) -> None:
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 2)
    made: Any = renderings(tmp_path, network, PALETTE)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    calls = 0

    def stop(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:  # in the middle of the second format, or of the units of the first
            raise InterruptedError
        return made(*arguments) if fails == "renderings" else arguments[1]() if fails == "steps" else None

    changed: dict[str, Any] = {fails: stop}
    with pytest.raises(InterruptedError):
        delta_loss.estimate(replace(Study(network, made, part, PALETTE), **changed))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.module.parameters())


def test_an_expert_that_no_token_reaches_scores_nothing(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 3)
    made, part = renderings(tmp_path, network, PALETTE), models.fewer(models.calibration("mixtral").estimate, 2)
    loss = delta_loss.estimate(Study(network, made, part, PALETTE[:2])).loss
    for u, unit in enumerate(network.inventory.units):
        assert bool((loss[u] == 0).all()) is (unit.expert == 3)
