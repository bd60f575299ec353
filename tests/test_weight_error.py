from __future__ import annotations

from pathlib import Path

import pytest

import models
from bitplan.kernels.packing import PackedWeight
from bitplan.kernels.reference import dequantize
from bitplan.sensitivity.metrics import weight_error
from bitplan.sensitivity.render import Renderings, unit_weights
from bitplan.sensitivity.study import Study

FORMATS = ("int2-g32", "int4-g64-asym", "int8-row", "bf16", "fp32")


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "resnet"])
def test_it_is_the_sum_of_squared_differences(kind: str, tmp_path: Path) -> None:
    network = models.network(kind)
    formats = FORMATS if kind != "mixtral" else FORMATS[:4]  # its weights are bf16 already
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in formats])
    told: list[tuple[int, int]] = []
    study = Study(network, made, None, formats, progress=lambda stage, done, total: told.append((done, total)))
    found = weight_error.estimate(study)
    assert found.stderr is None
    assert found.quantity == "squared weight error"
    assert told[-1] == (len(network.inventory.units),) * 2
    for u, unit in enumerate(network.inventory.units):
        for f, fmt in enumerate(formats):
            total = 0.0
            for weight, rendered in zip(unit_weights(network.module, unit), made(unit, fmt), strict=True):
                numbers = dequantize(rendered) if isinstance(rendered, PackedWeight) else rendered
                total += float((numbers.double() - weight.double()).square().sum())
            assert found.loss[u, f] == pytest.approx(total, rel=1e-5)  # differences are taken in float32
            assert (total == 0) is (fmt == unit.native)
