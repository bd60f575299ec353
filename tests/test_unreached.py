from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import models
from bitplan.sensitivity.estimate import Estimate
from bitplan.sensitivity.metrics import kl_fisher
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.routing import collect_routing
from bitplan.sensitivity.study import Study
from bitplan.sensitivity.units import Inventory, Matrix, Unit
from bitplan.sensitivity.unreached import fill_unreached, one_token

NAN = float("nan")


def expert(layer: int, number: int, native: str = "bf16") -> Unit:
    name = f"layers.{layer}.experts.{number}"
    return Unit(name, "expert", "expert", (Matrix(name, (8, 8)),), native, layer, number)


def inventory(*units: Unit) -> Inventory:
    return Inventory("m", "f", "M", "mixture-of-experts", "tokens", units, ())


HEAD = Unit("head", "linear", "head", (Matrix("head", (8, 8)),), "bf16")
UNITS = inventory(HEAD, *(expert(0, e) for e in range(3)), *(expert(1, e) for e in range(2)))
COUNTS = np.array([100.0, 10, 40, 0, 25, 0])
#                 int2  int8  bf16  fp32
LOSS = np.array(
    [
        [9.0, 1.0, 0.0, NAN],
        [2.0, 0.1, 0.0, NAN],
        [6.0, 0.5, 0.0, NAN],
        [0.0, 0.0, 0.0, NAN],
        [5.0, 0.0, 0.0, NAN],
        [0.0, 0.0, 0.0, NAN],
    ]
)
ESTIMATE = Estimate(LOSS, LOSS / 10, 4, "nats per token", ("first",))


def test_it_gets_what_one_token_costs_the_others_of_its_layer() -> None:
    found = fill_unreached(ESTIMATE, UNITS, COUNTS)
    assert found.loss[3, :3].tolist() == [8 / 50, 0.6 / 50, 0.0]
    assert found.loss[5, :3].tolist() == [5 / 25, 0.0, 0.0]
    assert np.array_equal(found.loss[[0, 1, 2, 4]], LOSS[[0, 1, 2, 4]], equal_nan=True)
    assert found.stderr is not None
    assert np.array_equal(found.stderr[[3, 5]], found.loss[[3, 5]], equal_nan=True)  # a guess: as uncertain as it is large
    assert np.array_equal(found.stderr[[0, 1, 2, 4]], LOSS[[0, 1, 2, 4]] / 10, equal_nan=True)
    assert np.array_equal(np.isnan(found.loss), np.isnan(LOSS))
    assert found.notes == (
        "first",
        "2 of 5 experts were reached by no token and have the loss that one token would have given them",
    )
    assert (found.batches, found.quantity) == (4, "nats per token")
    assert LOSS[3, 0] == 0  # the table given is left alone


def test_it_is_never_above_the_least_reached_expert() -> None:
    loss, counts = np.array([[0.01, 5.0, 0.0], [8.0, 4.0, 0.0], [2.0, 9.0, 1.0]]), np.array([1.0, 3.0, 1.0])
    assert one_token(loss, counts).tolist() == [0.01, 18 / 5, 1 / 5]
    assert one_token(loss[:2], counts[:2]).tolist() == [0.01, 9 / 4, 0.0]


def test_a_format_that_some_do_not_admit() -> None:
    assert one_token(np.array([[3.0, NAN], [1.0, NAN]]), np.array([2.0, 2.0])).tolist() == [1.0, 0.0]
    assert one_token(np.array([[3.0, 1.0], [1.0, NAN]]), np.array([2.0, 2.0])).tolist() == [1.0, 0.5]


def test_a_layer_of_which_no_expert_was_reached_takes_from_all() -> None:
    found = fill_unreached(ESTIMATE, UNITS, np.array([100.0, 10, 40, 5, 0, 0]))
    assert found.loss[5, 0] == pytest.approx(8 / 55)
    assert found.loss[4, 0] == 5.0  # not reached, and yet it has a loss by some rule of its own


def test_nothing_to_fill_or_nothing_to_fill_it_from() -> None:
    assert fill_unreached(ESTIMATE, UNITS, COUNTS + 1) is ESTIMATE
    assert fill_unreached(ESTIMATE, UNITS, np.zeros(6)) is ESTIMATE
    without = replace(ESTIMATE, stderr=None)
    assert fill_unreached(without, UNITS, COUNTS).stderr is None


def test_counts_must_be_of_the_units() -> None:
    with pytest.raises(ValueError, match=r"6 units need as many counts, not \(5,\)"):
        fill_unreached(ESTIMATE, UNITS, COUNTS[:5])


def test_a_starved_expert_of_a_network(tmp_path: Path) -> None:
    network, part = models.network("mixtral"), models.fewer(models.calibration("mixtral").estimate, 3)
    models.starve(network, 1)
    units, formats = network.inventory.units, ("int3-g32-asym", "int5-row", "bf16")
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in units for fmt in formats])
    measured = kl_fisher.estimate(Study(network, made, part, formats))
    routing = collect_routing(network, part)
    found = fill_unreached(measured, network.inventory, routing.unit_counts(units))
    for layer in range(2):
        mine = {unit.expert: u for u, unit in enumerate(units) if unit.kind == "expert" and unit.layer == layer}
        assert measured.loss[mine[1]].tolist() == [0, 0, 0]
        for f in range(2):
            assert 0 < found.loss[mine[1], f] <= min(found.loss[mine[e], f] for e in (0, 2, 3))
        assert found.loss[mine[1], 2] == 0
