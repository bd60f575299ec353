from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from bitplan.sensitivity.changes import relative_errors
from bitplan.sensitivity.metrics.outlier_score import estimate, outlier_score
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.study import Study

A = [[1.0, 2], [1, -2], [1, 2], [-1, 2]]
B = [[1.0, 2], [1, -2], [5, 2], [-1, 2]]
C = [[0.1, 2], [0.1, -4], [0.1, 2], [-0.1, 2]]


@pytest.mark.parametrize(("matrix", "score"), [(A, 1.0), (B, 2.5), (C, 1.6)])
def test_the_worked_example(matrix: list[list[float]], score: float) -> None:
    assert outlier_score(torch.tensor(matrix)) == pytest.approx(score, rel=1e-7)  # 0.1 is rounded to float32


def test_inputs_without_weights_are_skipped() -> None:
    weight = torch.tensor(C)
    weight[:, 1] = 0
    assert outlier_score(weight) == pytest.approx(1.0, rel=1e-7)
    assert outlier_score(torch.zeros(3, 4)) == 0


def test_it_does_not_change_with_the_scale_or_signs() -> None:
    weight = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert outlier_score(-16 * weight) == outlier_score(weight)
    weight[3, 5] = 100
    assert outlier_score(weight) > 10


def test_the_loss_follows_the_score_of_the_worst_matrix(tmp_path: Path) -> None:
    network = models.network("mixtral")
    formats = ("int3-row", "int6-row")
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in formats])
    study = Study(network, made, None, formats)
    found, relative = estimate(study), relative_errors(study)
    for u, unit in enumerate(network.inventory.units):
        scores = []
        for matrix in unit.matrices:
            magnitude = network.module.get_parameter(f"{matrix.module}.weight").abs()
            scores.append(max(float(column.max() / column.mean()) for column in magnitude.T))
        expected = max(scores) * unit.parameters * relative[u]
        assert found.loss[u].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert found.stderr is None
