from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from bitplan.sensitivity import render
from bitplan.sensitivity.changes import part_changes, row_changes, squared_changes
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import weight_error
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.study import Study
from loops import changes, renderings


@pytest.mark.parametrize("entries", [1, 1 << 20])  # the smallest slices are 32 rows: they cross the groups, or the whole matrix
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_parts_put_together_are_the_change(groups: int, entries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "ENTRIES_AT_ONCE", entries)
    torch.manual_seed(0)
    module = make_plain(nn.Sequential(nn.Conv2d(6, 72, 3, groups=groups)))
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    made, (unit,) = renderings(tmp_path, network, ("int3-row",)), network.inventory.units
    weight = module.get_parameter("0.weight").flatten(1)
    together = torch.full((groups, 72 // groups, weight.shape[1]), torch.nan)
    for part, outputs, delta in part_changes(made(unit, "int3-row")[0], weight, groups):
        assert delta.shape == (weight.shape[1], outputs.stop - outputs.start)
        together[part, outputs] = delta.T
    assert torch.equal(together.flatten(0, 1).double(), changes(network, made, unit, "int3-row")[0])


@pytest.mark.parametrize("fmt", ["int4-g64-asym", "int3-row", "fp16"])
def test_rows_are_those_looked_up(fmt: str, tmp_path: Path) -> None:
    network = models.network("bert")
    unit = next(unit for unit in network.inventory.units if unit.kind == "embedding")
    made, ids = renderings(tmp_path, network, (fmt,)), torch.tensor([7, 0, 299, 7])
    weight = network.module.get_parameter(f"{unit.matrices[0].module}.weight")
    assert torch.equal(row_changes(made(unit, fmt)[0], weight, ids).double(), changes(network, made, unit, fmt)[0][ids])


@pytest.mark.parametrize("kind", ["llama", "mixtral", "resnet"])
def test_squared_changes_are_the_weight_error(kind: str, tmp_path: Path) -> None:
    network, formats = models.network(kind), ("int4-g64", "int3-row", "bf16", "fp32")
    made = renderings(tmp_path, network, formats)
    found = squared_changes(network, made, network.inventory.units, formats)
    expected = weight_error.estimate(Study(network, made, None, formats)).loss
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
    some = squared_changes(network, made, network.inventory.units[2:4], formats)
    assert np.array_equal(some, found[2:4], equal_nan=True)
