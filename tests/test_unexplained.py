"""What others leave unexplained of an input, and the three metrics that weigh rounding errors by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from bitplan.kernels.formats import FORMATS, Format, parse
from bitplan.kernels.rounding import gptq, inverse_factor
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import baq, optimal_brain, output_error, slim
from bitplan.sensitivity.moments import collect_moments
from bitplan.sensitivity.network import Network, predictions
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.probe import uses
from bitplan.sensitivity.render import Renderings, rendered_transposed, unit_weights
from bitplan.sensitivity.study import Study
from bitplan.sensitivity.unexplained import DAMPING, by_all_others, by_those_open
from bitplan.solvers.water_filling import reverse_water_filling

H = torch.tensor([[3.0, 2.0, 2.0], [2.0, 3.0, 1.0], [2.0, 1.0, 3.0]])
PALETTE = ("int3-g32-asym", "int5-row", "bf16")


def correlated(rows: int, inputs: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, inputs // 2, generator=generator) @ torch.randn(inputs // 2, inputs, generator=generator)
    return mixed + torch.randn(rows, inputs, generator=generator)


def ridge(x: Tensor, j: int, others: list[int], penalty: float) -> float:
    """min over a of sum_r (x_rj - sum_k a_k x_rk)^2 + penalty (1 + |a|^2), by least squares on rows with the penalty added."""
    known = torch.cat([x[:, others], penalty**0.5 * torch.eye(len(others)).double()])
    target = torch.cat([x[:, j], torch.zeros(len(others)).double()])
    a = torch.linalg.lstsq(known, target).solution
    return float((target - known @ a).square().sum()) + penalty


def value(explained: Any, x: Tensor) -> Tensor:
    """1 / d_j^2: squares left over and the floor."""
    found: Tensor = (x @ explained.mixing.double()).square().sum(dim=0) + explained.floor
    return found


def test_all_others_explain_as_a_regression_on_them_does() -> None:
    x = correlated(60, 8).double()
    moment = x.T @ x
    penalty = DAMPING * float(moment.diagonal().mean())
    expected = [ridge(x, j, [k for k in range(8) if k != j], penalty) for j in range(8)]
    found = value(by_all_others(moment), x)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert found.tolist() == pytest.approx(torch.linalg.inv(moment + penalty * torch.eye(8)).diagonal().reciprocal().tolist())


def test_those_open_explain_as_a_regression_on_the_columns_rounded_later_does() -> None:
    x = correlated(60, 8).double()
    moment = x.T @ x
    penalty = gptq.DAMPING * float(moment.diagonal().mean())
    order = inverse_factor(moment).order.tolist()
    expected = [ridge(x, j, order[order.index(j) + 1 :], penalty) for j in range(8)]
    assert value(by_those_open(moment), x).tolist() == pytest.approx(expected, rel=1e-5)  # U is kept in float32


def test_the_diagonal_of_the_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """U_jj of the 3 x 3 example; the first is [H^-1]_11^(1/2), the last H_nn^(-1/2): U_jj depends on the order."""
    monkeypatch.setattr(gptq, "DAMPING", 0.01)
    x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0], [2.0, 1.0, 1.0], [1.0, 0.0, 2.0]]).double() / 2**0.5
    open_ones, all_others = value(by_those_open(H), x), value(by_all_others(H), x)
    assert open_ones.rsqrt().tolist() == pytest.approx([0.978284, 0.608584, 0.574485], abs=5e-7)
    damped = H.double() + 0.03 * torch.eye(3)
    assert float(open_ones[0]) == pytest.approx(float(1 / torch.linalg.inv(damped)[0, 0]), rel=1e-6)
    assert float(open_ones[2]) == pytest.approx(3.03, rel=1e-6)
    assert all_others.tolist() == pytest.approx((1 / torch.linalg.inv(damped).diagonal()).tolist(), rel=1e-6)


def test_the_order_of_columns_matters_to_those_open_only() -> None:
    x = correlated(60, 8).double()
    x *= torch.linspace(1.0, 1.01, 8) / x.norm(dim=0)  # which makes the order that of the columns, turned round
    turned = x * (torch.linspace(1.01, 1.0, 8) / torch.linspace(1.0, 1.01, 8))
    assert inverse_factor(x.T @ x).order.tolist() == inverse_factor(turned.T @ turned).order.tolist()[::-1]
    one, two = (value(by_all_others(given.T @ given), given) for given in (x, turned))
    assert two.tolist() == pytest.approx(one.tolist(), rel=0.03)
    one, two = (value(by_those_open(given.T @ given), given) for given in (x, turned))
    assert bool(((two / one - 1).abs() > 0.2).any())


@pytest.mark.parametrize("explain", [by_all_others, by_those_open])
def test_an_input_that_never_occurs_weighs_nothing(explain: Callable[[Tensor], Any]) -> None:
    x = correlated(60, 8).double()
    x[:, 3] = 0
    found = value(explain(x.T @ x), x)
    assert float(found[3]) == 0
    rest = [j for j in range(8) if j != 3]
    assert bool((found[rest] > 0).all())
    assert value(explain(torch.zeros(4, 4)), torch.zeros(1, 4).double()).tolist() == [0, 0, 0, 0]


def test_a_batchs_share_is_how_the_whole_answers_to_its_weight() -> None:
    """d/dw of 1 / [(H + w X^T X + penalty I)^-1]_jj is the sum of X's squared residuals, on which standard errors rest."""
    x = correlated(90, 6).double()
    batch, moment = x[:30], x.T @ x
    penalty = DAMPING * float(moment.diagonal().mean())
    explained = by_all_others(moment)
    shares = (batch @ explained.mixing.double()).square().sum(dim=0)

    def at(weight: float) -> Tensor:
        h = moment + weight * batch.T @ batch + penalty * torch.eye(6)
        inverse: Tensor = torch.linalg.inv(h)
        return inverse.diagonal().reciprocal()

    slope = (at(1e-4) - at(-1e-4)) / 2e-4
    assert shares.tolist() == pytest.approx(slope.tolist(), rel=1e-5)


# --- The metrics, against their formulas written out.


def expected_losses(
    network: Network,
    made: Renderings,
    part: Part,
    diagonal: Callable[[Tensor], Tensor],
    cost: Callable[[Tensor, Tensor, Format], Tensor],
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """1/N sum_j cost_j / d_j^2; `cost` (weight, change, format) gives (in,). Lookups add their squared output error."""
    moments = collect_moments(network, network.inventory.units, part)
    count = sum(predictions(network, batch) for batch in part.batches)
    result = np.zeros((len(network.inventory.units), len(PALETTE)))
    for u, unit in enumerate(network.inventory.units):
        weights = unit_weights(network.module, unit)
        for f, fmt in enumerate(PALETTE):
            if fmt == unit.native:
                continue
            for use in uses(network, [unit]):
                weight = weights[use.matrix].double()
                change = rendered_transposed(made(unit, fmt)[use.matrix]).T.double() - weight
                if use.module in moments.site:
                    squares = 1 / diagonal(moments.second[moments.site[use.module]]).square()
                    seen = moments.second[moments.site[use.module]].diagonal() > 0
                    result[u, f] += float((cost(weight, change, FORMATS[fmt]) * squares)[seen].sum())
                elif unit.kind == "embedding":
                    ids = torch.cat([batch["input_ids"].flatten() for batch in part.batches])
                    result[u, f] += float(change[ids].square().sum())
    return result / count


def open_diagonal(moment: Tensor) -> Tensor:
    factor = inverse_factor(moment)
    found = torch.empty(len(moment), dtype=torch.float64)
    found[factor.order] = factor.upper.diagonal().double()
    return found


def inverse_diagonal(moment: Tensor) -> Tensor:
    h = moment.double()
    inverse: Tensor = torch.linalg.inv(h + 0.01 * h.diagonal().mean() * torch.eye(len(h)))
    return inverse.diagonal().sqrt()


def law(weight: Tensor, change: Tensor, fmt: Format) -> Tensor:
    if fmt.family == "float":
        return change.square().sum(dim=0)
    columns = []
    size = fmt.group_size or weight.shape[1]
    for j in range(weight.shape[1]):
        group = weight[:, j // size * size : j // size * size + size]
        low, high = group.min(dim=1).values.clamp(max=0), group.max(dim=1).values.clamp(min=0)
        rho = torch.stack([-low, high]).max(dim=0).values * 2 if fmt.symmetric else high - low
        columns.append(rho.square().sum() / 12 / 4**fmt.bits)
    return torch.stack(columns)


def salient(weight: Tensor, change: Tensor, fmt: Format) -> Tensor:
    result = torch.zeros(weight.shape[1], dtype=torch.float64)
    for start in range(0, weight.shape[1], 128):
        some = slice(start, start + 128)
        relative = change[:, some].square().sum() / weight[:, some].square().sum()
        result[some] = weight[:, some].square().sum(dim=0) * relative
    return result


@pytest.mark.parametrize("kind", ["llama", "mixtral", "bert", "resnet"])
@pytest.mark.parametrize(
    ("metric", "diagonal", "cost"),
    [
        (optimal_brain, inverse_diagonal, lambda weight, change, fmt: change.square().sum(dim=0)),
        (baq, open_diagonal, law),
        (slim, open_diagonal, salient),
    ],
    ids=["optimal_brain", "baq", "slim"],
)
def test_a_metric_is_its_formula(metric: Any, diagonal: Any, cost: Any, kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in PALETTE])
    found = metric.estimate(Study(network, made, part, PALETTE))
    expected = expected_losses(network, made, part, diagonal, cost)
    assert found.loss == pytest.approx(expected, rel=2e-4)  # residuals are taken in float32
    assert found.stderr is not None
    assert bool((found.stderr[found.loss > 0] > 0).all())


def test_what_all_others_leave_is_less_than_the_error_alone(tmp_path: Path) -> None:
    """With inputs that are correlated, and errors that know nothing of it, each counts for less than in `output_error`."""
    network, part = models.network("untied"), models.fewer(models.calibration("untied").estimate, 3)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, "int4-g32") for unit in network.inventory.units])
    left, whole = (
        metric.estimate(Study(network, made, part, ("int4-g32",))).loss[:, 0] for metric in (optimal_brain, output_error)
    )
    linear = [u for u, unit in enumerate(network.inventory.units) if unit.kind == "linear"]
    assert bool((left[linear] < whole[linear]).all())


def test_grouped_convolutions_weigh_squares(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = make_plain(torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False), torch.nn.Flatten()))
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    (unit,) = network.inventory.units
    x = torch.randn(3, 4, 7, 7)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, "int3-row")])
    part = Part(({"pixel_values": x},), frozenset("abc"))
    found = optimal_brain.estimate(Study(network, made, part, ("int3-row",))).loss[0, 0]
    (weight,) = unit_weights(network.module, unit)
    change = (rendered_transposed(made(unit, "int3-row")[0]).T - weight).double().square().view(2, 4, 18).sum(1)
    patches = torch.nn.functional.unfold(x, 3, padding=1).double().square().sum(dim=(0, 2)).view(2, 18)
    assert found == pytest.approx(float((change * patches).sum()) / 3, rel=1e-6)


# --- BAQ's law on its worked examples.


@pytest.mark.parametrize(
    ("losses", "mean", "bits", "after"),
    [
        ([16, 4, 1, 0.25], 3, [4.5, 3.5, 2.5, 1.5], [2, 2, 2, 2]),
        ([1024, 16, 1, 1 / 64], 1, [3.5, 0.5, 0, 0], [32, 32, 4, 0.0625]),
    ],
)
def test_the_law_at_the_bits_of_the_closed_form(losses: list[float], mean: int, bits: list[float], after: list[float]) -> None:
    """The losses were taken at `mean` bits; at the best bits each column that has any loses the same."""
    squared_ranges = torch.tensor(losses).double() * 4**mean * 12
    at_mean = baq.uniform_noise(squared_ranges, mean)
    assert at_mean.tolist() == pytest.approx(losses, rel=1e-12)
    filling = reverse_water_filling(squared_ranges.numpy() / 12, np.ones(4), 4.0 * mean)
    assert filling.bits == pytest.approx(bits, abs=1e-9)
    found = [float(baq.uniform_noise(rho, float(b))) for rho, b in zip(squared_ranges, filling.bits, strict=True)]
    assert found == pytest.approx(after, rel=1e-9)
    assert found == pytest.approx(filling.losses.tolist(), rel=1e-9)


def test_the_gain_over_equal_bits_is_that_of_the_means() -> None:
    losses = torch.tensor([16.0, 4.0, 1.0, 0.25]).double()
    assert float(losses.log().mean().exp() / losses.mean()) == pytest.approx(0.376471, abs=5e-7)
    assert 4 * 2 / float(losses.sum()) == pytest.approx(0.376471, abs=5e-7)  # 8 instead of 21.25


def test_groups_of_unequal_size_lose_the_same_for_each_weight() -> None:
    coefficient, weights = np.array([4.0, 1.0, 8.0]), np.array([1.0, 2.0, 1.0])
    filling = reverse_water_filling(coefficient, weights, 8.0)
    assert filling.bits == pytest.approx([2.625, 1.125, 3.125], abs=1e-9)
    each = [
        float(baq.uniform_noise(torch.tensor(12 * c).double(), float(b))) for c, b in zip(coefficient, filling.bits, strict=True)
    ]
    assert np.array(each) / weights == pytest.approx([0.105112] * 3, abs=5e-7)


WEIGHT = [[-1.0, 2.0, 0.5, 0.25], [3.0, 1.0, -2.0, -4.0]]


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [
        (parse("int4-row-asym"), [[58.0] * 4]),  # 3^2 + 7^2
        (parse("int4-row"), [[80.0] * 4]),  # (2 * 2)^2 + (2 * 4)^2
        (Format("int", 4, 2, symmetric=False), [[18.0, 18.0, 16.25, 16.25]]),  # 3^2 + 3^2, 0.5^2 + 4^2
        (Format("int", 4, 3), [[52.0, 52.0, 52.0, 64.25]]),  # 4^2 + 6^2, and a short group: 0.5^2 + 8^2
    ],
)
def test_ranges_of_a_small_matrix(fmt: Format, expected: list[list[float]]) -> None:
    assert baq.squared_ranges(torch.tensor(WEIGHT), fmt).tolist() == expected
    assert baq.squared_ranges(torch.tensor(WEIGHT), fmt, parts=2).sum(dim=0).tolist() == expected[0]


def test_formats_of_one_grid_lie_on_one_line(tmp_path: Path) -> None:
    network, part = models.network("gpt2"), models.fewer(models.calibration("gpt2").estimate, 2)
    network_units = [unit for unit in network.inventory.units if unit.kind != "embedding"]
    formats = ("int3-g32", "int4-g32", "int5-g32")
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in formats])
    loss = baq.estimate(Study(network, made, part, formats)).loss
    linear = [network.inventory.units.index(unit) for unit in network_units]
    assert np.diff(np.log2(loss[linear]), axis=1) == pytest.approx(-2, abs=1e-9)


# --- SliM-LLM's worked examples.


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        (0, [2, 2, 2, 2, 2, 2, 2, 2]),
        (1, [2, 2, 1, 2, 3, 2, 2, 2]),
        (2, [2, 2, 1, 2, 3, 2, 1, 3]),
        (3, [1, 3, 1, 2, 3, 2, 1, 3]),
    ],
)
def test_the_family_of_plans(moved: int, expected: list[int]) -> None:
    plan = slim.group_plan([5, 40, 1, 7, 300, 12, 2, 60], 2, moved)
    assert plan == expected
    assert sum(plan) == 16


def test_the_divergence_of_a_layers_own_output() -> None:
    quantized, original = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[1.2, 1.8, 0.4]])
    assert slim.output_divergence(quantized, original) == pytest.approx(0.01434985, abs=5e-9)
    assert slim.output_divergence(original, quantized) == pytest.approx(0.01514105, abs=5e-9)
    assert slim.output_divergence(original, original) == 0
    far = torch.tensor([[50.0, 0.0]])
    assert slim.output_divergence(far, -far) == pytest.approx(np.log(1e6) - 1e-6 * np.log(1e6), rel=1e-9)  # clamped at 1e-6


def test_salience_of_elements_and_groups() -> None:
    weight, diagonal = torch.tensor([[1.0, -2.0, 3.0], [2.0, 0.0, 1.0]]), torch.tensor([1.0, 2.0, 0.5])
    salience = slim.element_salience(weight, diagonal)
    assert salience.tolist() == [[1.0, 1.0, 36.0], [4.0, 0.0, 4.0]]
    assert slim.group_salience(salience, 2).tolist() == [6.0, 40.0]
    assert slim.group_salience(salience).tolist() == [46.0]


def test_a_group_of_zeros_has_no_error() -> None:
    weight = torch.zeros(2, 130)
    weight[:, 128:] = 1.0
    errors = slim.salient_errors(weight * 1.5, weight, 1)
    assert errors[0, :128].tolist() == [0.0] * 128
    assert errors[0, 128:].tolist() == [0.5, 0.5]  # energy 2 a column, relative error a quarter
