from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.report import SensitivityReport
from bitplan.sensitivity.sibling import from_sibling, interpolate
from bitplan.sensitivity.units import Inventory, Matrix, Outputs, Unit

NAN = float("nan")
PALETTE = ("int3-g64", "int6-g64", "bf16")


def unit(role: str, layer: int | None = None, *, expert: int | None = None, width: int = 64, **settings: Any) -> Unit:
    name = f"layers.{layer}.{role}.{expert}" if layer is not None else role
    kind = "expert" if expert is not None else "linear"
    values = {"native": "bf16", "layer": layer, "expert": expert, **settings}
    return Unit(name, kind, role, (Matrix(name, (width, width)),), **values)  # type: ignore[arg-type]


def model(*units: Unit, name: str = "small", outputs: Outputs = "tokens") -> Inventory:
    return Inventory(name, f"print of {name}", "M", "causal-lm", outputs, units, ())


def decoder(layers: int, name: str, width: int = 64) -> Inventory:
    inside = [unit(role, layer, width=width) for layer in range(layers) for role in ("q", "down")]
    return model(unit("embedding", width=width), *inside, unit("head", width=width), name=name)


def report(inventory: Inventory, loss: npt.ArrayLike, formats: tuple[str, ...] = PALETTE) -> SensitivityReport:
    return SensitivityReport(
        "r1", "kl_fisher", "nats per token", {}, tuple(u.name for u in inventory.units), formats, np.array(loss, dtype=float),
        None, 8, inventory.fingerprint, "", "", 0, 1.0, {}, ("a note",),
    )  # fmt: skip


SMALL = decoder(3, "small")
LOSS = [
    [8.0, 0.8, 0.0],  # embedding
    [1.0, 0.1, 0.0],  # q of layer 0
    [6.0, 0.6, 0.0],  # down of layer 0
    [2.0, 0.2, 0.0],
    [3.0, 0.3, 0.0],
    [4.0, 0.0, 0.0],
    [9.0, 0.9, 0.0],
    [7.0, 0.7, 0.0],  # head
]


def test_a_sibling_of_the_same_shape_hands_its_table_over() -> None:
    found = from_sibling(decoder(3, "large", width=512), PALETTE, report(SMALL, LOSS), SMALL)
    assert found.loss == pytest.approx(np.array(LOSS))
    assert (found.stderr, found.batches) == (None, 0)
    assert found.quantity == "nats per token, as of its sibling small"
    assert found.notes[0] == "a note"
    assert (
        found.notes[1] == "no data was used: the losses are those of small (kl_fisher), carried over by role and relative depth"
    )


def test_layers_are_matched_by_relative_depth_and_a_role_keeps_its_sum() -> None:
    """Of five layers the second lies midway between the small model's first and second."""
    large = decoder(5, "large")
    found = from_sibling(large, PALETTE, report(SMALL, LOSS), SMALL).loss
    q = [u for u, each in enumerate(large.units) if each.role == "q"]
    assert found[q, 0] == pytest.approx(3 / 5 * np.array([1, 1.5, 2, 3, 4]))
    assert found[q, 1] == pytest.approx(3 / 5 * np.array([0.1, 0.15, 0.2, 0.1, 0]))
    down = [u for u, each in enumerate(large.units) if each.role == "down"]
    assert found[down, 0] == pytest.approx(3 / 5 * np.array([6, 4.5, 3, 6, 9]))
    assert found[[0, -1], 0].tolist() == [8.0, 7.0]  # there is one embedding and one head in each


def test_fewer_layers_and_a_single_one() -> None:
    found = from_sibling(decoder(2, "large"), PALETTE, report(SMALL, LOSS), SMALL).loss
    assert found[[1, 3], 0] == pytest.approx(3 / 2 * np.array([1.0, 4.0]))
    single = decoder(1, "single")
    found = from_sibling(SMALL, PALETTE, report(single, [[8, 1, 0], [3, 1, 0], [6, 1, 0], [7, 1, 0]]), single).loss
    assert found[[1, 3, 5], 0] == pytest.approx(np.full(3, 1.0))


def test_a_role_that_begins_later_is_placed_among_the_layers_that_hold_it() -> None:
    small = model(unit("gate", 0), *(unit("expert", layer, expert=e) for layer in (1, 2) for e in range(2)))
    loss = [[5.0], [1.0], [3.0], [10.0], [30.0]]
    large = model(unit("gate", 0), *(unit("expert", layer, expert=e) for layer in (1, 2, 3) for e in range(4)), name="large")
    found = from_sibling(large, ("int3-g64",), report(small, loss, ("int3-g64",)), small).loss
    assert found[0, 0] == 5
    assert found[1:, 0] == pytest.approx(4 / 12 * np.repeat([2.0, 11.0, 20.0], 4))  # experts by the mean of their layer
    assert found[1:].sum() == pytest.approx(4 * 11.0)


def test_tied_and_untied_heads() -> None:
    tied = model(unit("embedding", shared_with=("lm_head",)), unit("q", 0), name="tied")
    untied = model(unit("embedding"), unit("q", 0), unit("head"), name="untied")
    both = from_sibling(tied, ("int3-g64",), report(untied, [[5], [1], [3]], ("int3-g64",)), untied).loss
    assert both[:, 0].tolist() == [8, 1]
    each = from_sibling(untied, ("int3-g64",), report(tied, [[5], [1]], ("int3-g64",)), tied).loss
    assert each[:, 0].tolist() == [5, 1, 5]


def test_a_format_between_is_interpolated_in_the_logarithm_over_stored_bits() -> None:
    """A scale for every 64 weights is a quarter of a bit, so the widths stand as 3.25, 4.25, 4.75 and 6.25."""
    formats = ("int4-g64", "int3-g64", "int4-g64-asym", "bf16")
    found = from_sibling(decoder(3, "large"), formats, report(SMALL, LOSS), SMALL).loss
    bits = 8 * FORMATS["int4-g64-asym"].stored_bytes((64, 64)) / 4096
    for u in (1, 2, 7):
        high, low, _ = LOSS[u]
        assert found[u, 0] == pytest.approx(np.exp(np.log(high) * 2 / 3 + np.log(low) / 3))
        assert found[u, 2] == pytest.approx(high * (low / high) ** ((bits - 3.25) / 3))
    assert found[:, 1] == pytest.approx(np.array(LOSS)[:, 0])
    assert (found[:, 3] == 0).all()
    assert found[5, 0] == pytest.approx(4.0 * 2 / 3)  # towards nothing at 6 bits: linear


@pytest.mark.parametrize(
    ("wanted", "loss"), [(2.0, 8.0), (3.0, 4.0), (4.0, 2.0), (4.5, 2.0 * 0.75), (6.0, 1.0), (8.0, 0.5), (9.0, 0.25), (10.0, 0.0)]
)
def test_interpolation(wanted: float, loss: float) -> None:
    bits, losses = np.array([10.0, 2.0, 4.0, 6.0, 8.0]), np.array([0.0, 8.0, 2.0, 1.0, 0.5])
    expected = loss if wanted != 4.5 else 2.0 * 2**-0.25
    assert interpolate(wanted, bits, losses) == pytest.approx(expected)


@pytest.mark.parametrize("fmt", ["int2-g64", "int8-g64", "fp16"])
def test_a_format_beyond_those_measured_is_refused(fmt: str) -> None:
    wide = replace(SMALL, units=tuple(replace(each, native="fp32") for each in SMALL.units))
    formats = (*PALETTE[:2], "fp32")
    with pytest.raises(ValueError, match=rf"no loss in {fmt} follows from the sibling's in int3-g64, int6-g64, fp32"):
        from_sibling(wide, (fmt,), report(wide, LOSS, formats), wide)


def test_a_format_that_the_sibling_does_not_admit_is_refused() -> None:
    large = model(unit("q", 0, native="fp32"), name="large")
    small = model(unit("q", 0, native="fp16"))
    with pytest.raises(ValueError, match="the sibling small does not admit bf16 for the role q"):
        from_sibling(large, ("bf16", "fp32"), report(small, [[NAN, NAN]], ("bf16", "fp32")), small)
    assert np.isnan(from_sibling(small, ("bf16",), report(small, [[NAN]], ("bf16",)), small).loss).all()


def test_a_role_that_the_sibling_lacks_is_refused() -> None:
    large = model(unit("q", 0), unit("gate", 0), name="large")
    small = model(unit("q", 0))
    with pytest.raises(ValueError, match=r"layers\.0\.gate\.None: the sibling has no unit of the role gate"):
        from_sibling(large, PALETTE, report(small, [[1, 1, 0]]), small)


def test_models_that_are_no_siblings_are_refused() -> None:
    with pytest.raises(ValueError, match="report r1 is not one of large"):
        from_sibling(SMALL, PALETTE, report(SMALL, LOSS), decoder(3, "large"))
    pooled = replace(SMALL, outputs="pooled", model_id="pooled")
    with pytest.raises(ValueError, match="pooled gives pooled and its sibling small gives tokens"):
        from_sibling(pooled, PALETTE, report(SMALL, LOSS), SMALL)
