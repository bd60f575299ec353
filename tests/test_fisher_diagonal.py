"""fisher_diagonal and fisher_trace: the same squared gradients, weight by weight and on average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import models
from bitplan.sensitivity import flow
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.metrics import fisher_diagonal, fisher_trace, kl_fisher
from bitplan.sensitivity.network import Network, predictions, random_direction, run, sampled_objective
from bitplan.sensitivity.render import unit_weights
from bitplan.sensitivity.study import Study
from loops import Moved, by_weight, changes, renderings, rows, seen

Floats = npt.NDArray[np.float64]
FORMATS = ("int3-g32-asym", "int4-g64")


def squares(network: Network, part: Part, seed: int) -> dict[tuple[str, int], torch.Tensor]:
    """Mean squared gradient of every weight of every matrix: token by token, or example by example."""
    total: dict[tuple[str, int], torch.Tensor] = {}
    for index, batch in enumerate(part.batches):
        generator = torch.Generator().manual_seed(seed + index)
        if network.inventory.outputs == "tokens":
            for one in seen(network, batch, lambda output: sampled_objective(network, output, batch, None, generator)):  # noqa: B023
                key = (one.use.unit.name, one.use.matrix)
                for x, g in zip(*rows(one), strict=True):
                    total[key] = total.get(key, torch.zeros(1)) + torch.outer(g, x).square()
            continue

        def scalars() -> list[torch.Tensor]:
            output = run(network, batch)  # noqa: B023
            return list((random_direction(network, output, batch, generator) * output).sum(-1))  # noqa: B023

        for gradients in by_weight(network, scalars):
            for unit in network.inventory.units:
                for m, matrix in enumerate(unit.matrices):
                    key = (unit.name, m)
                    total[key] = total.get(key, torch.zeros(1)) + gradients[f"{matrix.module}.weight"].square()
    count = sum(predictions(network, batch) for batch in part.batches)
    return {key: value / count for key, value in total.items()}


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2", "vit", "bert", "residual"])
def test_both_are_the_formula(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "DRAWS", dict.fromkeys(flow.DRAWS, 1))
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    made, fisher = renderings(tmp_path, network, FORMATS), squares(network, part, 3)
    diagonal, average = (np.zeros((len(network.inventory.units), len(FORMATS))) for _ in range(2))
    for u, unit in enumerate(network.inventory.units):
        for f, fmt in enumerate(FORMATS):
            pairs = [(fisher[unit.name, m], delta) for m, delta in enumerate(changes(network, made, unit, fmt))]
            diagonal[u, f] = sum(float((mine * delta.square()).sum()) for mine, delta in pairs) / 2
            trace = sum(float(mine.sum()) for mine, _ in pairs)
            average[u, f] = trace / unit.parameters * sum(float(delta.square().sum()) for _, delta in pairs) / 2
    for metric, expected in ((fisher_diagonal, diagonal), (fisher_trace, average)):
        found = metric.estimate(Study(network, made, part, FORMATS, 3))
        assert found.loss == pytest.approx(expected, rel=1e-3)
        assert found.quantity == network.quantity
        assert found.stderr is not None
        assert bool((found.stderr > 0).all())


def estimate(metric: Any, network: Network, made: Any, part: Part) -> Floats:
    loss: Floats = metric.estimate(Study(network, made, part, ("int4-g64",), 5)).loss[:, 0]
    return loss


@pytest.mark.parametrize("kind", ["untied", "dinov2", "resnet"])
def test_one_weight_alone_has_no_products_to_drop(kind: str) -> None:
    """A change of a single weight of each unit: kl_fisher itself."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    moves = {}
    for unit in network.inventory.units:
        moves[unit.name] = [torch.zeros_like(weight) for weight in unit_weights(network.module, unit)]
        row = int(part.batches[0]["input_ids"][0, 0]) if unit.kind == "embedding" else 1
        moves[unit.name][0][row, 1] = 0.1
    made = Moved(network, moves)
    mine, whole = estimate(fisher_diagonal, network, made, part), estimate(kl_fisher, network, made, part)
    assert mine == pytest.approx(whole, rel=1e-3)
    assert bool((mine > 0).all())


@pytest.mark.parametrize("kind", ["llama", "mixtral", "resnet"])
def test_an_error_spread_evenly_makes_the_trace_exact(kind: str) -> None:
    """|dW_ij| the same everywhere, whatever its sign."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 2)
    generator = torch.Generator().manual_seed(0)
    moves = {
        unit.name: [0.01 * torch.randn(w.shape, generator=generator).sign() for w in unit_weights(network.module, unit)]
        for unit in network.inventory.units
    }
    made = Moved(network, moves)
    diagonal, average = estimate(fisher_diagonal, network, made, part), estimate(fisher_trace, network, made, part)
    assert average == pytest.approx(diagonal, rel=1e-3)
    assert bool((average > 0).all())


def test_random_signs_cancel_the_products(tmp_path: Path) -> None:
    """E over random signs of kl_fisher is fisher_diagonal: what the diagonal assumes of an error, made true."""
    network, part = models.network("vit"), models.fewer(models.calibration("vit").estimate, 1)
    rounded, generator = renderings(tmp_path, network, ("int4-g64",)), torch.Generator().manual_seed(0)
    draws, diagonal = [], None
    for _ in range(60):
        moves = {}
        for unit in network.inventory.units:
            delta = changes(network, rounded, unit, "int4-g64")
            moves[unit.name] = [(d.abs() * torch.randn(d.shape, generator=generator).sign()).float() for d in delta]
        draws.append(estimate(kl_fisher, network, Moved(network, moves), part))
        if diagonal is None:
            diagonal = estimate(fisher_diagonal, network, Moved(network, moves), part)
    error = np.std(draws, axis=0, ddof=1) / 60**0.5
    assert diagonal is not None
    assert bool((error < 0.25 * diagonal).all())  # else the test says nothing
    assert bool((np.abs(np.mean(draws, axis=0) - diagonal) < 4.5 * error).all())


def test_an_expert_that_no_token_reaches_loses_nothing(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 2)
    made, part = renderings(tmp_path, network, FORMATS), models.fewer(models.calibration("mixtral").estimate, 2)
    for metric in (fisher_diagonal, fisher_trace):
        loss = metric.estimate(Study(network, made, part, FORMATS)).loss
        for u, unit in enumerate(network.inventory.units):
            assert bool((loss[u] == 0).all()) is (unit.expert == 2)


@pytest.mark.parametrize("kind", ["masked", "bert"])
def test_padding_has_no_part(kind: str, tmp_path: Path) -> None:
    """A sentence gives the same padded as alone; labels are drawn row by row, so the first ones agree."""
    network = models.network(kind)
    made = renderings(tmp_path, network, FORMATS)
    ids = torch.arange(1, 8)[None]
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = {name: torch.nn.functional.pad(tensor, (0, 5)) for name, tensor in alone.items()}
    tables = []
    for batch in (alone, padded):
        part = Part((batch,), frozenset("a"))
        tables.append(fisher_diagonal.estimate(Study(network, made, part, FORMATS)).loss)
    assert tables[1] == pytest.approx(tables[0], rel=1e-3)
