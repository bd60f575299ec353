from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from bitplan.kernels.reference import dequantize
from bitplan.sensitivity import measured
from bitplan.sensitivity.metrics import divergence, kl_fisher
from bitplan.sensitivity.network import Network, predictions, run
from bitplan.sensitivity.network import divergence as apart
from bitplan.sensitivity.render import Rendered, Renderings, rendered_transposed
from bitplan.sensitivity.study import Study

FORMATS = ("int3-g32-asym", "int5-row")


def renderings(home: Path, network: Network) -> Renderings:
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    return made


@pytest.mark.parametrize("kind", ["llama", "mixtral", "bert", "resnet"])
@torch.no_grad()
def test_it_is_what_a_copy_with_that_one_unit_changed_shows(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network)
    found = divergence.estimate(Study(network, made, part, FORMATS))
    assert found.quantity == network.quantity
    for u, unit in list(enumerate(network.inventory.units))[::3]:
        changed = copy.deepcopy(network.module)
        for matrix, rendered in zip(unit.matrices, made(unit, FORMATS[0]), strict=True):
            weight = changed.get_parameter(f"{matrix.module}.weight")
            weight.data = rendered_transposed(rendered).T.reshape(weight.shape)  # a tied head is the same parameter
        total = sum(
            float(apart(network, run(network, batch), run(network, batch, changed), batch).sum()) for batch in part.batches
        )
        count = sum(predictions(network, batch) for batch in part.batches)
        assert found.loss[u, 0] == pytest.approx(total / count, rel=1e-6)
        assert found.loss[u, 0] > 0


def test_it_agrees_with_the_estimate_in_order(tmp_path: Path) -> None:
    """The estimate's use is to rank: over all units of a dense model the two must go together."""
    network, part = models.network("untied"), models.fewer(models.calibration("untied").estimate, 4)
    made = renderings(tmp_path, network)
    truth, estimated = (
        metric.estimate(Study(network, made, part, ("int5-row",))).loss[:, 0] for metric in (divergence, kl_fisher)
    )
    assert np.corrcoef(np.log(truth), np.log(estimated))[0, 1] > 0.95


@pytest.mark.parametrize("kind", ["llama", "mixtral", "resnet"])
def test_the_weights_are_put_back_even_after_an_error(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made = renderings(tmp_path, network)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    passes = 0

    def fail(*arguments: object) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes > len(part.batches) + 1:  # after the untouched outputs, in the middle of a unit
            assert any(not torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
            raise InterruptedError
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measured, "run", fail)
    with pytest.raises(InterruptedError):
        divergence.estimate(Study(network, made, part, FORMATS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_a_half_written_unit_is_put_back(tmp_path: Path) -> None:
    """An expert's second matrix cannot be read: the first one must not stay changed."""
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 2)
    made = renderings(tmp_path, network)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}

    class Torn(Renderings):
        def __call__(self, unit, fmt):  # type: ignore[no-untyped-def]
            found: tuple[Rendered, ...] = made(unit, fmt)
            return found if unit.kind != "expert" else (found[0], found[0])

    with pytest.raises(RuntimeError):
        divergence.estimate(Study(network, Torn(tmp_path, network, "nearest", None), part, FORMATS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_a_tied_weight_changes_everywhere(tmp_path: Path) -> None:
    network, part = models.network("llama"), models.fewer(models.calibration("llama").estimate, 2)
    made = renderings(tmp_path, network)
    unit = network.inventory.units[0]
    rendered = made(unit, "int3-g32-asym")[0]
    assert not isinstance(rendered, torch.Tensor)
    changed = models.network("llama").module
    changed.get_parameter("lm_head.weight").data[:] = dequantize(rendered)
    with torch.no_grad():
        expected = apart(network, run(network, part.batches[0]), run(network, part.batches[0], changed), part.batches[0])
    sums: list[float] = []

    def keep(name: str, compute):  # type: ignore[no-untyped-def]
        table = compute()
        sums.extend(table if name == f"{unit.name} int3-g32-asym" else [])
        return table

    divergence.estimate(Study(network, made, part, FORMATS, steps=keep))
    assert sums[0] == pytest.approx(float(expected.sum()), rel=1e-6)
