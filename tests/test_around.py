from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from bitplan.sensitivity.around import products_around
from bitplan.sensitivity.joint import joint_loss
from bitplan.sensitivity.measured import make_bench, stored, summed_divergence
from bitplan.sensitivity.metrics import kl_fisher
from bitplan.sensitivity.network import divergence, predictions, run
from bitplan.sensitivity.render import rendered_transposed, unit_weights
from bitplan.sensitivity.study import Study
from loops import renderings

FORMATS = ("int4-g32-asym", "int6-g32-asym")
STEP = 0.002


def study_of(kind: str, home: Path) -> Study:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    return Study(network, renderings(home, network, FORMATS), part, FORMATS, seed=5)


def mean_divergence(study: Study, references: tuple[torch.Tensor, ...]) -> float:
    network, total, count = study.network, 0.0, 0
    with torch.no_grad():
        for batch, reference in zip(study.data.batches, references, strict=True):
            total += float(divergence(network, reference, run(network, batch), batch).sum())
            count += predictions(network, batch)
    return total / count


@pytest.mark.parametrize("kind", ["llama", "dinov2", "resnet"])
def test_products_are_the_slope_of_the_divergence_at_the_plan(kind: str, tmp_path: Path) -> None:
    """Against a central difference along each change; the loss that is taken away is zero here."""
    study = study_of(kind, tmp_path)
    plan = {unit.name: FORMATS[0] for unit in study.units if unit.role not in ("embedding", "head")}
    found = products_around(study, plan, np.zeros((len(study.units), 2)))
    references = make_bench(study).references
    pairs = [(unit, plan[unit.name]) for unit in study.units if unit.name in plan]
    largest = np.nanmax(np.abs(found.products))
    with stored(study.network, study.renderings, pairs), torch.no_grad():
        assert mean_divergence(study, references) == pytest.approx(found.measured, rel=1e-6)
        for unit, _ in pairs[::4]:
            u = study.units.index(unit)
            made = study.renderings(unit, FORMATS[0])  # the change by hand, from the numbers that the plan holds
            own = models.network(kind).module
            changes = [rendered_transposed(m).T - w for m, w in zip(made, unit_weights(own, unit), strict=True)]
            sides = []
            for step in (STEP, -STEP):
                weights = unit_weights(study.network.module, unit)
                kept = [weight.clone() for weight in weights]
                for weight, change in zip(weights, changes, strict=True):
                    weight += step * change
                sides.append(mean_divergence(study, references))
                for weight, old in zip(weights, kept, strict=True):
                    weight.copy_(old)
            assert found.products[u, 0] == pytest.approx((sides[0] - sides[1]) / (2 * STEP), rel=0.05, abs=0.02 * largest)


def test_experts_that_no_token_reached_have_none(tmp_path: Path) -> None:
    """Not against a difference: tokens that change their expert on the way make it jump."""
    study = study_of("mixtral", tmp_path)
    one = replace(study, part=models.fewer(study.data, 1))
    one = replace(one, part=replace(one.data, batches=({"input_ids": one.data.batches[0]["input_ids"][:1, :2]},)))
    plan = {unit.name: FORMATS[0] for unit in study.units if unit.role not in ("embedding", "head")}
    for question, unreached in ((study, False), (one, True)):
        found = products_around(question, plan, np.zeros((len(study.units), 2)))
        assert np.isfinite(found.products).all()
        experts = [u for u, unit in enumerate(study.units) if len(unit.matrices) > 1]
        assert experts
        assert (found.products[experts] == 0).all(axis=1).any() == unreached


@pytest.mark.parametrize("kind", ["dinov2", "resnet"])
def test_half_the_products_make_the_sum_the_loss_of_the_whole(kind: str, tmp_path: Path) -> None:
    """At six bits the divergence is quadratic."""
    study = study_of(kind, tmp_path)
    plan = {unit.name: FORMATS[1] for unit in study.units}
    alone = kl_fisher.estimate(study).loss
    around = products_around(study, plan, alone)
    assert np.nansum(alone[:, 1] + around.products[:, 1] / 2) == pytest.approx(around.measured, rel=0.1)
    assert joint_loss(study, plan).loss[0, 0] == pytest.approx(around.measured, rel=0.5)  # by few random directions


def test_a_plan_that_changes_nothing_has_none_and_the_weights_are_put_back(tmp_path: Path) -> None:
    study = study_of("llama", tmp_path)
    before = {name: tensor.clone() for name, tensor in study.network.module.state_dict().items()}
    told: list[tuple[str, int, int]] = []
    study = replace(study, progress=lambda *said: told.append(said))
    nothing = products_around(study, {}, np.ones((len(study.units), 2)))
    assert nothing.measured == pytest.approx(0, abs=1e-9)
    assert not np.nan_to_num(nothing.products).any()
    assert told == [("products around the plan", done, 3) for done in range(4)]
    unit = next(unit for unit in study.units if unit.role == "down")
    found = products_around(study, {unit.name: FORMATS[0]}, np.zeros((len(study.units), 2)))
    assert set(np.argwhere(np.nan_to_num(found.products))[:, 0].tolist()) == {study.units.index(unit)}
    measured = make_bench(study).sums(summed_divergence, [(unit, FORMATS[0])]).sum()
    assert found.measured == pytest.approx(measured / sum(predictions(study.network, b) for b in study.data.batches))
    assert all(torch.equal(tensor, before[name]) for name, tensor in study.network.module.state_dict().items())
    assert all(not p.requires_grad for p in study.network.module.parameters())
