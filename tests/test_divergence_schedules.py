"""The measured divergence from fewer runs: exact where losses add up and grow as they are taken to, and near the truth of
`divergence` where they nearly do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.changes import relative_errors, weight_damage
from bitplan.sensitivity.estimate import Estimate, ratio_estimate
from bitplan.sensitivity.measured import Bench, prediction_counts
from bitplan.sensitivity.metrics import divergence, divergence_bisection, divergence_blocks
from bitplan.sensitivity.metrics.divergence_bisection import Group, bisect, worth_halving
from bitplan.sensitivity.metrics.divergence_blocks import layers
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.study import Study
from bitplan.sensitivity.units import Unit

Floats = npt.NDArray[np.float64]
FORMATS = ("int6-g64", "int4-g32-asym", "int8-row-asym", "int5-row", "bf16")
COARSEST = 1  # the column of fewest bits


def setting(kind: str, home: Path, batches: int = 3) -> tuple[Network, Part, Renderings]:
    network = models.network(kind)
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    return network, models.fewer(models.calibration(kind).estimate, batches), made


def estimate(metric: Any, network: Network, made: Renderings, part: Part) -> Any:
    return metric.estimate(Study(network, made, part, FORMATS))


def pretend(monkeypatch: pytest.MonkeyPatch, network: Network, tables: Floats) -> list[tuple[list[int], str]]:
    """From now on a run gives, for each batch, the sum of `tables` (batches, units, formats) over what is stored; returns the
    list of runs to come."""
    runs: list[tuple[list[int], str]] = []

    def sums(bench: Bench, score: object, pairs: Sequence[tuple[Unit, str]]) -> Floats:
        rows = [network.inventory.units.index(unit) for unit, _ in pairs]
        (fmt,) = {fmt for _, fmt in pairs}
        runs.append((rows, fmt))
        total: Floats = tables[:, rows, FORMATS.index(fmt)].sum(axis=1)
        return total

    monkeypatch.setattr(Bench, "sums", sums)
    return runs


def truth(tables: Floats, network: Network, part: Part) -> Estimate:
    return ratio_estimate(list(np.where(np.isnan(tables), 0.0, tables)), prediction_counts(network, part), "")


# --- by layers


def test_the_units_of_a_layer_stand_together() -> None:
    units = models.network("untied").inventory.units
    found = layers(units)
    assert sorted(u for members in found for u in members) == list(range(len(units)))
    assert [{units[u].layer for u in members} for members in found] == [{None}, {0}, {1}, {None}]


def test_by_layers_it_is_exact_where_losses_follow_the_weight_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part, made = setting("untied", tmp_path)
    units, relative = network.inventory.units, relative_errors(Study(network, made, None, FORMATS))
    rng = np.random.default_rng(0)
    scale = np.exp(rng.standard_normal((len(part.batches), len(units), 1)) * 0.2 + rng.standard_normal((1, len(units), 1)))
    runs = pretend(monkeypatch, network, scale * relative)
    found = estimate(divergence_blocks, network, made, part)
    wanted = truth(scale * relative, network, part).loss
    assert found.loss == pytest.approx(np.where(np.isnan(relative), np.nan, wanted), rel=1e-9, nan_ok=True)
    inside = [u for u, unit in enumerate(units) if unit.layer is not None]
    assert np.isnan(found.loss[:, 4]).all()  # bf16 is a cast of equal width, which a network in fp16 does not admit
    assert len(runs) == len(inside) + 2 * 3 + (len(units) - len(inside)) * 4
    alone = [(rows, fmt) for rows, fmt in runs if len(rows) == 1 and rows[0] in inside]
    assert {fmt for _, fmt in alone} == {FORMATS[COARSEST]}
    assert found.notes == (f"{len(runs)} runs of the data, where measuring each unit in each format takes {4 * len(units)}",)


@pytest.mark.parametrize("kind", ["untied", "gpt2"])
def test_by_layers_it_is_near_the_truth(kind: str, tmp_path: Path) -> None:
    """Exact for what is measured alone; for the others, far nearer to the truth than the layer's loss shared out evenly."""
    network, part, made = setting(kind, tmp_path)
    found, wanted = estimate(divergence_blocks, network, made, part), estimate(divergence, network, made, part)
    assert found.quantity == wanted.quantity
    assert found.loss[:, COARSEST] == pytest.approx(wanted.loss[:, COARSEST], rel=1e-9)
    measured = [0, 2, 3]
    distance = np.log(found.loss[:, measured] / wanted.loss[:, measured])
    assert np.median(np.abs(distance)) < 0.4
    shares = [wanted.loss[list(rows)][:, measured] for rows in layers(network.inventory.units)]
    even = np.concatenate([np.log(share.mean(axis=0) / share) for share in shares])
    assert np.square(distance).mean() < np.square(even).mean() / 2
    assert np.corrcoef(np.log(found.loss[:, measured]).ravel(), np.log(wanted.loss[:, measured]).ravel())[0, 1] > 0.95
    assert found.stderr[:, COARSEST] == pytest.approx(wanted.stderr[:, COARSEST], rel=0.5)  # jackknife and ratio


def test_a_unit_that_loses_nothing_alone_has_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part, made = setting("mixtral", tmp_path)
    relative = relative_errors(Study(network, made, None, FORMATS))
    tables = np.stack([np.nan_to_num(relative)] * len(part.batches))
    idle = next(u for u, unit in enumerate(network.inventory.units) if unit.kind == "expert")
    tables[:, idle] = 0
    pretend(monkeypatch, network, tables)
    found = estimate(divergence_blocks, network, made, part)
    assert (found.loss[idle] == 0).all()
    assert found.loss == pytest.approx(truth(tables, network, part).loss, rel=1e-9)


def test_a_layer_that_loses_nothing_alone_is_shared_by_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part, made = setting("mixtral", tmp_path)
    units, relative = network.inventory.units, relative_errors(Study(network, made, None, FORMATS))
    energy = np.nan_to_num(relative) * np.array([[unit.parameters] for unit in units])
    tables = np.stack([energy] * len(part.batches))
    tables[:, :, COARSEST] = 0
    pretend(monkeypatch, network, tables)
    assert estimate(divergence_blocks, network, made, part).loss == pytest.approx(truth(tables, network, part).loss, rel=1e-9)


def test_a_layer_of_two_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some members can be stored in a float format narrower than their own."""
    network, part, _ = setting("mixtral", tmp_path)
    units = tuple(replace(unit, native="fp32") if u % 2 else unit for u, unit in enumerate(network.inventory.units))
    mixed = replace(network, inventory=replace(network.inventory, units=units))
    made = Renderings(tmp_path, mixed, "nearest", None)
    relative = relative_errors(Study(mixed, made, None, FORMATS))
    relative[1::2, FORMATS.index("bf16")] = 1e-6  # these weights are exact in bf16
    monkeypatch.setattr(divergence_blocks, "relative_errors", lambda *arguments: relative)
    tables = np.stack([np.nan_to_num(relative)] * len(part.batches))
    runs = pretend(monkeypatch, mixed, tables)
    found = estimate(divergence_blocks, mixed, made, part)
    assert found.loss == pytest.approx(truth(tables, mixed, part).loss, rel=1e-9)
    assert all(u % 2 for rows, fmt in runs if fmt == "bf16" for u in rows)


# --- by bisection


def counting(tables: Floats) -> tuple[Callable[[tuple[int, ...]], Group], list[tuple[int, ...]]]:
    """A measurement of groups whose losses (batches, units) add up, and the list of what was measured."""
    measured: list[tuple[int, ...]] = []

    def measure(members: tuple[int, ...]) -> Group:
        measured.append(members)
        return Group(members, tables[:, list(members)].sum(axis=1))

    return measure, measured


def test_one_dear_unit_is_found_by_halving() -> None:
    losses = np.ones(64)
    losses[37] = 1000.0
    measure, measured = counting(np.stack([losses, losses, losses]))
    found = bisect([tuple(range(64))], measure, [10, 10, 10])
    assert found.runs == len(measured) == 1 + 2 * 6  # six halvings of 64 units
    assert (37,) in [group.members for group in found.groups]
    assert sorted(u for group in found.groups for u in group.members) == list(range(64))
    assert sum(group.sums for group in found.groups) == pytest.approx(3 * [1063.0])
    assert found.additivity == pytest.approx([1.0] * 6)


def test_units_that_cost_the_same_are_left_together() -> None:
    measure, measured = counting(np.ones((3, 100)))
    roots = [tuple(range(start, start + 5)) for start in range(0, 100, 5)]
    found = bisect(roots, measure, [1, 1, 1])
    assert measured == roots  # a group is a twentieth of the whole, which is not more than a twentieth
    assert found.additivity == ()


def test_what_is_not_known_is_not_halved() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((4, 8))
    noisy += 0.2 - noisy.mean(axis=0)  # of each unit 0.2 on average, give or take far more
    measure, measured = counting(noisy)
    bisect([tuple(range(8))], measure, [1] * 4)
    assert measured == [tuple(range(8))]
    known, _ = counting(np.full((4, 8), 0.2))
    assert len(bisect([tuple(range(8))], known, [1] * 4).groups) == 8


def test_when_a_group_is_worth_halving() -> None:
    assert worth_halving(np.array([5.0, 5.2]), 100.0, [1, 1])
    assert not worth_halving(np.array([5.0, 5.0]), 201.0, [1, 1])  # less than a twentieth
    assert not worth_halving(np.array([0.1, 10.0]), 20.0, [1, 1])  # 5.05 with a standard error of 4.95
    assert worth_halving(np.array([5.0]), 20.0, [1])  # one batch: no standard error to go by
    assert not worth_halving(np.zeros(3), 0.0, [1, 1, 1])


def test_a_group_is_shared_by_the_energy_of_the_weight_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, part, made = setting("untied", tmp_path)
    energy = weight_damage(Study(network, made, None, FORMATS))
    tables = np.stack([energy * share for share in (0.9, 1.0, 1.1)])
    runs = pretend(monkeypatch, network, tables)
    found = estimate(divergence_bisection, network, made, part)
    wanted = truth(tables, network, part)
    assert found.loss == pytest.approx(np.where(np.isnan(energy), np.nan, wanted.loss), rel=1e-9, nan_ok=True)
    assert found.stderr is not None
    assert wanted.stderr is not None
    assert np.nan_to_num(found.stderr) == pytest.approx(wanted.stderr, rel=1e-6, abs=1e-12)
    assert found.notes[0].startswith(f"{len(runs)} runs of the data, where measuring each unit in each format takes ")
    assert found.notes[1].endswith("their halves cost 1.00 to 1.00 times the whole, median 1.00; 1 where losses add up")


@pytest.mark.parametrize("kind", ["untied", "gpt2"])
def test_by_bisection_it_is_near_the_truth(kind: str, tmp_path: Path) -> None:
    """Exact where it came down to a single unit, which are the dear ones; the whole is that of all units alone."""
    network, part, made = setting(kind, tmp_path, batches=6)
    found, wanted = estimate(divergence_bisection, network, made, part), estimate(divergence, network, made, part)
    assert found.quantity == wanted.quantity
    exact = np.isclose(found.loss, wanted.loss, rtol=1e-9)
    for f in (0, 1, 2, 3):
        dear = wanted.loss[:, f] > 0.15 * wanted.loss[:, f].sum()
        assert dear.any()
        assert exact[dear, f].all()
        assert found.loss[:, f].sum() == pytest.approx(wanted.loss[:, f].sum(), rel=0.2)
    assert not exact.all()  # something was saved
