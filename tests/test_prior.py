from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import models
from bitplan.sensitivity.changes import relative_errors
from bitplan.sensitivity.metrics import prior
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.study import Study
from bitplan.sensitivity.units import Matrix, Unit

FORMATS = ("int3-g32-asym", "int5-row", "bf16")


def unit(role: str, layer: int | None, expert: int | None = None) -> Unit:
    name = f"{layer}.{role}.{expert}"
    return Unit(name, "linear" if expert is None else "expert", role, (Matrix(name, (4, 4)),), "bf16", layer, expert)


def test_the_model_that_it_comes_from_gets_its_own_coefficients() -> None:
    """Summed over 32 layers of seven matrices they are the 8.19205 that Q-Palette's file adds up to."""
    roles = ("q", "k", "v", "o", "gate", "up", "down")
    units = [unit(role, layer) for layer in range(32) for role in roles]
    found = prior.coefficients(units)
    assert found[:7].tolist() == pytest.approx([0.0125, 0.0069, 0.0317, 0.0240, 0.0260, 0.0386, 0.1163])
    assert found.sum() == pytest.approx(8.19205, abs=32 * 7 * 5e-5)  # the means are printed to four places


def test_a_role_as_a_whole_is_as_sensitive_however_many_layers_share_it() -> None:
    for layers in (2, 8, 80):
        found = prior.coefficients([unit("down", layer) for layer in range(layers)])
        assert found.sum() == pytest.approx(32 * 0.1163)


@pytest.mark.parametrize(
    ("role", "coefficient"),
    [("qkv", 0.0125 + 0.0069 + 0.0317), ("gate_up", 0.0260 + 0.0386), ("conv", 0.256 / 7), ("other", 0.256 / 7)],
)
def test_roles_that_the_model_did_not_have(role: str, coefficient: float) -> None:
    assert prior.coefficients([unit(role, layer) for layer in range(32)]) == pytest.approx(np.full(32, coefficient))


def test_experts_share_what_a_feed_forward_layer_has() -> None:
    """The layers' numbers of experts may differ."""
    units = [unit("expert", 0, e) for e in range(4)] + [unit("expert", 1, e) for e in range(8)]
    whole = 16 * (0.0260 + 0.0386 + 0.1163)
    assert prior.coefficients(units) == pytest.approx(np.array([whole / 4] * 4 + [whole / 8] * 8))


def test_what_stands_outside_the_layers_counts_as_all_layers_of_a_mean_role() -> None:
    units = [unit("embedding", None), *(unit("q", layer) for layer in range(5)), unit("head", None)]
    found = prior.coefficients(units)
    assert found[0] == found[-1] == pytest.approx(32 * 0.256 / 7)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "residual"])
def test_the_loss_is_the_coefficient_times_the_relative_error(kind: str, tmp_path: Path) -> None:
    network = models.network(kind)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    study = Study(network, made, None, FORMATS)
    found = prior.estimate(study)
    wanted = prior.coefficients(network.inventory.units)[:, None] * relative_errors(study)
    assert np.array_equal(found.loss, wanted, equal_nan=True)
    assert (found.stderr, found.batches) == (None, 0)
    assert found.quantity == f"prior guess of the divergence, {network.quantity}"
    assert found.notes[0].startswith("no data was used: ")
