"""Squared weight errors weighed by what is known of the inputs: wanda and awq."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from bitplan.kernels.formats import FORMATS
from bitplan.kernels.rounding import round_nearest
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.column_error import column_errors
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import awq, output_error, wanda
from bitplan.sensitivity.network import Network, predictions, run
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.probe import Rows, Use, uses, watch_inputs
from bitplan.sensitivity.render import Renderings, rendered_transposed, unit_weights
from bitplan.sensitivity.study import Study

FMT = "int3-g32-asym"


def renderings(home: Path, network: Network) -> Renderings:
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, FMT) for unit in network.inventory.units])
    return made


def small(module: nn.Module) -> Network:
    plain = make_plain(module)
    return Network(plain, take_inventory(plain, model_id="m", family="convolutional", outputs="classes"))


def all_rows(network: Network, part: Part) -> dict[str, list[list[Rows]]]:
    """Module of a use -> batch -> what it was given."""
    seen: dict[str, list[list[Rows]]] = {use.module: [[] for _ in part.batches] for use in uses(network, network.inventory.units)}
    for index, batch in enumerate(part.batches):

        def visit(use: Use, rows: Rows, index: int = index) -> None:
            seen[use.module][index].append(rows)

        with torch.no_grad(), watch_inputs(network, batch, network.inventory.units, visit):
            run(network, batch)
    return seen


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_columns_of_each_part(parts: int) -> None:
    weight = torch.randn(40, 72, generator=torch.Generator().manual_seed(0))
    made = round_nearest(weight, FORMATS["int2-g32-asym"])
    squared = (rendered_transposed(made).T - weight).double().square()
    expected = squared.view(parts, 40 // parts, 72).sum(dim=1)
    assert column_errors(made, weight, parts).numpy() == pytest.approx(expected.numpy(), rel=1e-12)
    assert column_errors(weight.to(torch.bfloat16), weight).shape == (1, 72)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "bert", "resnet"])
def test_both_are_their_formulas(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    made, seen = renderings(tmp_path, network), all_rows(network, part)
    counts = np.array([predictions(network, batch) for batch in part.batches])

    def by_norm(batches: list[int], u: int) -> float:
        total = 0.0
        for use in uses(network, [network.inventory.units[u]]):
            weight = unit_weights(network.module, use.unit)[use.matrix]
            change = (rendered_transposed(made(use.unit, FMT)[use.matrix]).T - weight).double()
            for rows in [rows for b in batches for rows in seen[use.module][b]]:
                if rows.one_hot:
                    total += float(change[rows.x].square().sum())
                else:
                    norms = rows.x[0].double().norm(dim=0)
                    total += float((norms * change.abs()).square().sum())
        return total / float(counts[batches].sum())

    def by_mean(batches: list[int], u: int) -> float:
        total = 0.0
        for use in uses(network, [network.inventory.units[u]]):
            weight = unit_weights(network.module, use.unit)[use.matrix]
            change = (rendered_transposed(made(use.unit, FMT)[use.matrix]).T - weight).double()
            given = [rows for b in batches for rows in seen[use.module][b]]
            if given and given[0].one_hot:
                total += sum(float(change[rows.x].square().sum()) for rows in given)
            elif given:
                x = torch.cat([rows.x[0] for rows in given]).double()
                total += len(x) * float((x.abs().mean(dim=0) * change).square().sum())
        return total / float(counts[batches].sum())

    everything, units = [0, 1, 2], range(len(network.inventory.units))
    norm = wanda.estimate(Study(network, made, part, (FMT,)))
    assert norm.loss[:, 0] == pytest.approx([by_norm(everything, u) for u in units], rel=1e-5)
    mean = awq.estimate(Study(network, made, part, (FMT,)))
    assert mean.loss[:, 0] == pytest.approx([by_mean(everything, u) for u in units], rel=1e-5)
    without = np.array([[by_mean([b for b in everything if b != left], u) for u in units] for left in everything])
    expected = np.sqrt(2 / 3 * np.square(without - without.mean(axis=0)).sum(axis=0))
    assert mean.stderr is not None
    assert mean.stderr[:, 0] == pytest.approx(expected, rel=1e-3)
    dense = [u for u in units if network.inventory.units[u].kind != "embedding"]
    assert bool((mean.loss[dense] < norm.loss[dense]).all())  # a squared mean is less than the mean of squares


def test_wanda_is_the_output_error_where_inputs_are_uncorrelated(tmp_path: Path) -> None:
    """Rows that are orthogonal columns: X^T X is diagonal, and the off-diagonal entries that wanda leaves out are zero."""
    generator = torch.Generator().manual_seed(0)
    network = small(nn.Sequential(nn.Linear(16, 8)))
    network.module.get_parameter("0.weight").copy_(torch.randn(8, 16, generator=generator))
    strengths = torch.exp(torch.randn(16, generator=generator))
    x = torch.linalg.qr(torch.randn(40, 16, generator=generator)).Q * strengths
    part = Part(({"pixel_values": x},), frozenset("abc"))
    made = renderings(tmp_path, network)
    found, exact = (metric.estimate(Study(network, made, part, (FMT,))).loss[0, 0] for metric in (wanda, output_error))
    assert found == pytest.approx(exact, rel=1e-5)
    correlated = Part(({"pixel_values": x @ torch.randn(16, 16, generator=generator)},), frozenset("abc"))
    found, exact = (metric.estimate(Study(network, made, correlated, (FMT,))).loss[0, 0] for metric in (wanda, output_error))
    assert abs(found / exact - 1) > 0.01


def test_an_input_that_is_large_on_one_row_counts_for_less_in_awq(tmp_path: Path) -> None:
    """x_1 is 1 on all 16 rows, x_2 is 4 on one of them: norms agree, means are 1 and a quarter."""
    network = small(nn.Sequential(nn.Linear(2, 2)))
    x = torch.zeros(16, 2)
    x[:, 0], x[3, 1] = 1.0, 4.0
    part = Part(({"pixel_values": x},), frozenset("abc"))
    weight = network.module.get_parameter("0.weight")
    losses = {}
    for name, numbers in (("first", [[0.3, 0.0], [1.0, 0.0]]), ("second", [[0.0, 0.3], [0.0, 1.0]])):
        weight.copy_(torch.tensor(numbers))
        made = Renderings(tmp_path / name, network, "nearest", None)
        made.make([(network.inventory.units[0], "int2-row")])
        losses[name] = [metric.estimate(Study(network, made, part, ("int2-row",))).loss[0, 0] for metric in (wanda, awq)]
    assert losses["first"][0] == pytest.approx(losses["second"][0], rel=1e-6)
    assert losses["first"][1] == pytest.approx(16 * losses["second"][1], rel=1e-6)
    assert losses["first"][0] == pytest.approx(losses["first"][1], rel=1e-6)


def test_grouped_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = small(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.Flatten()))
    x = torch.randn(3, 4, 7, 7)
    part = Part(({"pixel_values": x},), frozenset("abc"))
    made = renderings(tmp_path, network)
    (unit,) = network.inventory.units
    (weight,) = unit_weights(network.module, unit)
    change = (rendered_transposed(made(unit, FMT)[0]).T - weight).double().square().view(2, 4, 18).sum(dim=1)
    patches = nn.functional.unfold(x, 3, padding=1, stride=2).double().view(3, 2, 18, 16)
    norm, mean = (metric.estimate(Study(network, made, part, (FMT,))).loss[0, 0] for metric in (wanda, awq))
    assert norm == pytest.approx(float((patches.square().sum(dim=(0, 3)) * change).sum()) / 3, rel=1e-6)
    assert mean == pytest.approx(float((patches.abs().mean(dim=(0, 3)).square() * change).sum()) * 16, rel=1e-6)


def test_an_expert_that_no_token_reaches_weighs_nothing(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 0)
    part = models.fewer(models.calibration("mixtral").estimate, 3)
    made = renderings(tmp_path, network)
    for metric in (wanda, awq):
        loss = metric.estimate(Study(network, made, part, (FMT,))).loss
        unreached = [unit.name for u, unit in enumerate(network.inventory.units) if loss[u, 0] == 0]
        assert unreached == [f"model.layers.{layer}.mlp.experts.0" for layer in range(2)]


def test_one_batch_has_no_standard_error(tmp_path: Path) -> None:
    network, part = models.network("llama"), models.fewer(models.calibration("llama").estimate, 1)
    found = awq.estimate(Study(network, renderings(tmp_path, network), part, (FMT,)))
    assert found.stderr is None
    assert np.isfinite(found.loss).all()
