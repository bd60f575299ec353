from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import models
from bitplan.sensitivity.metrics import output_error
from bitplan.sensitivity.moments import collect_moments
from bitplan.sensitivity.network import predictions
from bitplan.sensitivity.probe import uses
from bitplan.sensitivity.render import Renderings, rendered_transposed, unit_weights
from bitplan.sensitivity.study import Study

FORMATS = ("int3-g32-asym", "int5-row")


@pytest.mark.parametrize("kind", ["llama", "untied", "mixtral", "bert", "resnet"])
def test_it_is_the_trace_with_the_second_moment(kind: str, tmp_path: Path) -> None:
    """tr(dW H dW^T) over N, summed over an expert's matrices and a tied weight's uses; an embedding's H counts its tokens."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    found = output_error.estimate(Study(network, made, part, FORMATS))
    moments = collect_moments(network, network.inventory.units, part)
    count = sum(predictions(network, batch) for batch in part.batches)
    expected = np.zeros((len(network.inventory.units), len(FORMATS)))
    for u, unit in enumerate(network.inventory.units):
        weights = unit_weights(network.module, unit)
        for f, fmt in enumerate(FORMATS):
            for use in uses(network, [unit]):
                change = (rendered_transposed(made(unit, fmt)[use.matrix]).T - weights[use.matrix]).double()
                if use.module in moments.site:
                    moment = moments.second[moments.site[use.module]].double()
                    expected[u, f] += float(((change @ moment) * change).sum())
                elif unit.kind == "embedding":
                    ids = torch.cat([batch["input_ids"].flatten() for batch in part.batches])
                    expected[u, f] += float(change[ids].square().sum())
    assert found.loss == pytest.approx(expected / count, rel=1e-3)  # H is a sum in float32
    assert bool((found.loss > 0).all())
    assert found.quantity == "squared output error"


def test_a_grouped_convolution_changes_its_output_by_that_much(tmp_path: Path) -> None:
    from bitplan.sensitivity.calibration import Part
    from bitplan.sensitivity.inventory import take_inventory
    from bitplan.sensitivity.network import Network
    from bitplan.sensitivity.plain import make_plain

    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    module = make_plain(torch.nn.Sequential(conv, torch.nn.Flatten()))
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    x = torch.randn(3, 4, 7, 7)
    made = Renderings(tmp_path, network, "nearest", None)
    (unit,) = network.inventory.units
    made.make([(unit, "int3-row")])
    found = output_error.estimate(Study(network, made, Part(({"pixel_values": x},), frozenset("abc")), ("int3-row",)))
    before = conv(x)
    conv.weight.data = rendered_transposed(made(unit, "int3-row")[0]).T.reshape(conv.weight.shape)
    assert found.loss[0, 0] == pytest.approx(float((conv(x) - before).square().sum()) / 3, rel=1e-4)


def test_an_expert_that_no_token_reaches_has_no_error(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 0)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, "int3-row") for unit in network.inventory.units])
    part = models.fewer(models.calibration("mixtral").estimate, 3)
    loss = output_error.estimate(Study(network, made, part, ("int3-row",))).loss
    assert [unit.name for u, unit in enumerate(network.inventory.units) if loss[u, 0] == 0] == [
        f"model.layers.{layer}.mlp.experts.0" for layer in range(2)
    ]
