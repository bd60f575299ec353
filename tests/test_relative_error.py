from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from bitplan.sensitivity.changes import relative_errors
from bitplan.sensitivity.metrics import relative_error
from bitplan.sensitivity.render import Renderings, rendered_transposed, unit_weights
from bitplan.sensitivity.study import Study

FORMATS = ("int2-g32", "int4-g64-asym", "bf16")


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "resnet"])
def test_it_is_the_lost_share_of_all_matrices_together(kind: str, tmp_path: Path) -> None:
    network = models.network(kind)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    found = relative_error.estimate(Study(network, made, None, FORMATS))
    for u, unit in enumerate(network.inventory.units):
        weights = torch.cat([weight.flatten() for weight in unit_weights(network.module, unit)]).double()
        for f, fmt in enumerate(FORMATS):
            stored = torch.cat([rendered_transposed(one).T.flatten() for one in made(unit, fmt)]).double()
            expected = float((stored - weights).square().sum() / weights.square().sum())
            assert found.loss[u, f] == pytest.approx(expected, rel=1e-5)  # differences are taken in float32
            assert (expected == 0) is (fmt == unit.native)
    assert found.quantity == "relative squared weight error"
    assert found.stderr is None


def test_it_does_not_change_with_the_scale_of_the_weights(tmp_path: Path) -> None:
    """A power of two is exact in every format."""
    losses = []
    for scale in (1.0, 8.0):
        network = models.network("gpt2")
        for unit in network.inventory.units:
            for weight in unit_weights(network.module, unit):
                weight.mul_(scale)
        made = Renderings(tmp_path / str(scale), network, "nearest", None)
        made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
        losses.append(relative_errors(Study(network, made, None, FORMATS)))
    assert losses[0].tolist() == losses[1].tolist()


def test_a_unit_of_zeros_loses_nothing(tmp_path: Path) -> None:
    network = models.network("gpt2")
    unit_weights(network.module, network.inventory.units[3])[0].zero_()
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    assert relative_errors(Study(network, made, None, FORMATS))[3].tolist() == [0, 0, 0]
