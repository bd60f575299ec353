from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import models
from bitplan.kernels.formats import FORMATS
from bitplan.kernels.rounding import Factor, gptq, inverse_factor, round_gptq
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import gptq_error, output_error
from bitplan.sensitivity.moments import collect_moments
from bitplan.sensitivity.network import Network, predictions
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.render import Renderings, rendered_transposed, unit_weights
from bitplan.sensitivity.study import Study

H = torch.tensor([[3.0, 2.0, 2.0], [2.0, 3.0, 1.0], [2.0, 1.0, 3.0]])  # 2/4 X^T X of the rows below
X = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0], [2.0, 1.0, 1.0], [1.0, 0.0, 2.0]])
W = torch.tensor([[-1.4, 0.1, -0.3]])
UPPER = [[0.978284, -0.485501, -0.485501], [0, 0.608584, -0.200853], [0, 0, 0.574485]]


def factor_of_the_example(monkeypatch: pytest.MonkeyPatch) -> Factor:
    monkeypatch.setattr(gptq, "DAMPING", 0.01)  # of the mean diagonal 3, which makes 0.03
    return inverse_factor(H)


def test_the_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """W to [-1.5, 0, 0] on a grid of step 0.5: objective 0.19, with damping 0.1933, of which GPTQ reports half."""
    assert (X.T @ X / 2 == H).all()
    factor = factor_of_the_example(monkeypatch)
    assert factor.order.tolist() == [0, 1, 2]
    assert factor.upper.numpy() == pytest.approx(np.array(UPPER), abs=5e-7)
    rounded = torch.tensor([[-1.5, 0.0, 0.0]])
    error = gptq_error.compensated_error(rounded, W, factor)
    assert error == pytest.approx(0.1933, abs=5e-7)
    assert error / 2 == pytest.approx(0.09665, abs=5e-7)
    assert error - 0.03 * float((rounded - W).square().sum()) == pytest.approx(0.19, abs=5e-7)
    nearest = torch.tensor([[-1.5, 0.0, -0.5]])
    assert gptq_error.compensated_error(nearest, W, factor) == pytest.approx(0.34 + 0.03 * 0.06, abs=5e-7)


def test_the_columns_errors_of_the_worked_example_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """err_j = (w_j - q_j) / U_jj, with w_j as it stands once the columns before it are rounded."""
    upper = factor_of_the_example(monkeypatch).upper.double()
    open_weights, total = W[0].double().clone(), 0.0
    for j, rounded in enumerate((-1.5, 0.0, 0.0)):
        error = (open_weights[j] - rounded) / upper[j, j]
        open_weights -= error * upper[j]
        total += float(error**2)
        if j == 0:
            assert open_weights[1:].tolist() == pytest.approx([0.149628, -0.250372], abs=5e-7)
        if j == 1:
            assert float(open_weights[2]) == pytest.approx(-0.200990, abs=5e-7)
    assert total == pytest.approx(0.1933, abs=5e-7)


@pytest.mark.parametrize("name", ["int2-g32", "int4-row-asym"])
def test_it_is_what_the_loop_adds_up(name: str) -> None:
    """sum err^2 over a loop written out for the codes that round_gptq chose, columns in its order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=generator) @ torch.randn(20, 72, generator=generator)
    weight = torch.randn(40, 72, generator=generator)
    factor = inverse_factor(x.T @ x)
    (made,) = round_gptq(weight, factor, [FORMATS[name]])
    numbers, upper = rendered_transposed(made).T.double(), factor.upper.double()
    open_weights, total = weight.double()[:, factor.order].clone(), 0.0
    for j, column in enumerate(factor.order.tolist()):
        error = (open_weights[:, j] - numbers[:, column]) / upper[j, j]
        open_weights -= error[:, None] * upper[j]
        total += float(error.square().sum())
    assert gptq_error.compensated_error(made, weight, factor) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "bert", "resnet"])
def test_it_is_the_damped_trace_on_the_data_of_the_rounding(kind: str, tmp_path: Path) -> None:
    """tr(dW (H + lambda I) dW^T) / N with the mean diagonal for inputs that never occur; embeddings have no damping."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).render, 3)
    formats = ("int3-g32-asym", "int5-row")
    made = Renderings(tmp_path, network, "gptq", part)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in formats])
    found = gptq_error.estimate(Study(network, made, None, formats))
    moments = collect_moments(network, network.inventory.units, part)
    count = sum(predictions(network, batch) for batch in part.batches)
    plain = output_error.estimate(Study(network, made, part, formats))
    for u, unit in enumerate(network.inventory.units):
        if unit.kind == "embedding":
            assert found.loss[u] == pytest.approx(plain.loss[u], rel=1e-6)
            continue
        for f, fmt in enumerate(formats):
            expected = 0.0
            pairs = zip(unit.matrices, unit_weights(network.module, unit), made(unit, fmt), strict=True)
            for matrix, weight, rendered in pairs:
                change = (rendered_transposed(rendered).T - weight).double()
                h = moments.second[moments.site[matrix.module]].double()
                mean = float(h.diagonal().mean())
                h = h + torch.diag((h.diagonal() == 0) * mean) + gptq.DAMPING * mean * torch.eye(len(h))
                expected += float(((change @ h) * change).sum())
            assert found.loss[u, f] == pytest.approx(expected / count, rel=1e-4)  # U and H are kept in float32
            assert found.loss[u, f] > plain.loss[u, f]  # by the damping


def test_grouped_convolutions_have_no_damping(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = make_plain(torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1, groups=2), torch.nn.Flatten()))
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    part = Part(({"pixel_values": torch.randn(3, 4, 7, 7)},), frozenset("abc"))
    made = Renderings(tmp_path, network, "gptq", part)
    made.make([(network.inventory.units[0], "int3-row")])
    study = Study(network, made, part, ("int3-row",))
    plain = output_error.estimate(study).loss
    assert gptq_error.estimate(study).loss == pytest.approx(plain, rel=1e-12)
    assert plain[0, 0] > 0


def test_weights_rounded_to_nearest_have_none(tmp_path: Path) -> None:
    network = models.network("llama")
    made = Renderings(tmp_path, network, "nearest", None)
    with pytest.raises(ValueError, match=r"rounded to nearest; round by gptq or use output_error"):
        gptq_error.estimate(Study(network, made, None, ("int3-row",)))
