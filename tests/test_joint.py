from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from bitplan.sensitivity import flow, joint
from bitplan.sensitivity.flow import seed_of
from bitplan.sensitivity.joint import joint_loss
from bitplan.sensitivity.metrics import kl_fisher
from bitplan.sensitivity.network import Batch, Network, predictions, sampled_objective
from bitplan.sensitivity.study import Study
from loops import changes, renderings, rows, seen

FORMATS = ("int3-g32-asym", "int4-g32-asym")


@pytest.fixture(autouse=True)
def two_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (flow, joint):
        monkeypatch.setattr(module, "DRAWS", {"tokens": 1, "classes": 2, "pooled": 2})


def study_of(kind: str, home: Path) -> Study:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    return Study(network, renderings(home, network, FORMATS), part, FORMATS, seed=5)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "bert", "residual"])
def test_a_unit_alone_loses_what_the_default_metric_says(kind: str, tmp_path: Path) -> None:
    study = study_of(kind, tmp_path)
    alone = kl_fisher.estimate(study)
    assert alone.stderr is not None
    for u, unit in list(enumerate(study.units))[::4]:
        found = joint_loss(study, {unit.name: FORMATS[1]})
        assert found.stderr is not None
        assert found.loss[0, 0] == pytest.approx(alone.loss[u, 1], rel=1e-6)
        assert found.stderr[0, 0] == pytest.approx(alone.stderr[u, 1], rel=1e-6)
        assert found.quantity == study.network.quantity


def by_hand(study: Study, assignment: dict[str, str]) -> float:
    """1/(2N) sum_r (sum_u s_ur)^2 by autograd and one-hot matrices; without padding and experts."""
    network, total, count = study.network, 0.0, 0
    for index, batch in enumerate(study.data.batches):
        count += predictions(network, batch)
        draws = flow.DRAWS[network.inventory.outputs]
        for draw in range(draws):
            total += float(_summed(study, assignment, network, batch, seed_of(study.seed, index, draw)).square().sum()) / draws
    return total / (2 * count)


def _summed(study: Study, assignment: dict[str, str], network: Network, batch: Batch, seed: int) -> Tensor:
    def scalar(output: Tensor) -> Tensor:
        return sampled_objective(network, output, batch, None, torch.Generator().manual_seed(seed))

    examples = len(next(iter(batch.values())))
    summed: Tensor | float = 0.0
    for one in seen(network, batch, scalar):
        delta = changes(network, study.renderings, one.use.unit, assignment[one.use.unit.name])[one.use.matrix]
        x, g = rows(one)
        slope = ((x @ delta.T) * g).sum(-1)
        if network.inventory.outputs != "tokens":
            slope = slope.view(examples, -1).sum(1)
        summed = summed + slope
    assert isinstance(summed, Tensor)
    return summed


@pytest.mark.parametrize("kind", ["llama", "vit", "residual"])
def test_products_of_units_are_in_it(kind: str, tmp_path: Path) -> None:
    study = study_of(kind, tmp_path)
    assignment = {unit.name: FORMATS[u % 2] for u, unit in enumerate(study.units)}
    found = float(joint_loss(study, assignment).loss[0, 0])
    assert found == pytest.approx(by_hand(study, assignment), rel=1e-3)
    table = kl_fisher.estimate(study).loss
    assert abs(found / sum(table[u, u % 2] for u in range(len(table))) - 1) > 0.01


def test_units_in_their_own_format_lose_nothing(tmp_path: Path) -> None:
    study = study_of("llama", tmp_path)
    unit = study.units[1]
    assert float(joint_loss(study, {}).loss[0, 0]) == 0
    assert float(joint_loss(study, {unit.name: unit.native}).loss[0, 0]) == 0


def test_steps_that_are_known_are_not_done_again(tmp_path: Path) -> None:
    study, known = study_of("residual", tmp_path), {}

    def remember(name: str, compute: partial[np.ndarray]) -> np.ndarray:
        assert name not in known
        known[name] = compute()
        return known[name]

    assignment = dict.fromkeys((unit.name for unit in study.units), FORMATS[0])
    told: list[tuple[str, int, int]] = []
    first = joint_loss(Study(**{**vars(study), "steps": remember, "progress": lambda *said: told.append(said)}), assignment)
    again = joint_loss(Study(**{**vars(study), "steps": lambda name, compute: known[name]}), assignment)
    assert len(known) == 2 * len(study.data.batches)
    assert float(first.loss[0, 0]) == float(again.loss[0, 0])
    assert told == [("joint loss", done, 3) for done in range(4)]
