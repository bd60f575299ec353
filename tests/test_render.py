from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import models
from bitplan.kernels.formats import FORMATS, parse
from bitplan.kernels.packing import PackedWeight
from bitplan.kernels.reference import dequantize
from bitplan.kernels.rounding import inverse_factor, round_gptq, round_nearest
from bitplan.sensitivity import render
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.moments import collect_moments
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.render import Rendered, Renderings, rendered_slices, rendered_transposed, unit_weights
from bitplan.sensitivity.units import Matrix, Unit, admits

FORMATS_MADE = ("int3-g64-asym", "int5-g64-asym", "int4-row")


def fresh(home: Path, kind: str = "llama", rounding: render.Rounding = "gptq") -> tuple[Network, Renderings]:
    network = models.network(kind)
    return network, Renderings(home, network, rounding, data(kind))


def data(kind: str) -> Part:
    return models.fewer(models.calibration(kind).render, 3)


def files(home: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and time of writing of every file below `home`."""
    return {
        str(path.relative_to(home)): (path.read_bytes(), path.stat().st_mtime_ns) for path in home.rglob("*") if path.is_file()
    }


def equal(one: tuple[Rendered, ...], other: tuple[Rendered, ...]) -> bool:
    for a, b in zip(one, other, strict=True):
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
        if a.format != b.format or a.shape != b.shape or a.tensors().keys() != b.tensors().keys():
            return False
        if not all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors()):
            return False
    return True


@pytest.mark.parametrize("kind", ["llama", "mixtral", "resnet"])
def test_gptq_is_run_on_the_moments_of_the_untouched_model(kind: str, tmp_path: Path) -> None:
    network, renderings = fresh(tmp_path, kind)
    wanted = [(unit, fmt) for unit in network.inventory.units for fmt in FORMATS_MADE[1:]]
    renderings.make(wanted)
    moments = collect_moments(network, network.inventory.units, data(kind))
    for unit, fmt in wanted:
        expected = []
        for matrix, weight in zip(unit.matrices, unit_weights(network.module, unit), strict=True):
            if unit.kind == "embedding":
                expected.append(round_nearest(weight, FORMATS[fmt]))
            else:
                factor = inverse_factor(moments.second[moments.site[matrix.module]])
                expected += round_gptq(weight, factor, [FORMATS[fmt]])
        assert equal(renderings(unit, fmt), tuple(expected)), unit.name


def test_nearest_needs_no_data(tmp_path: Path) -> None:
    network = models.network("mixtral")
    renderings = Renderings(tmp_path, network, "nearest", None)
    renderings.make([(unit, "int4-row") for unit in network.inventory.units])
    for unit in network.inventory.units:
        expected = tuple(round_nearest(weight, FORMATS["int4-row"]) for weight in unit_weights(network.module, unit))
        assert equal(renderings(unit, "int4-row"), expected)
    assert renderings.fingerprint == Renderings(tmp_path, network, "nearest", models.calibration("mixtral").render).fingerprint


def test_gptq_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GPTQ needs calibration data"):
        Renderings(tmp_path, models.network("llama"), "gptq", None)


def test_the_fingerprint_names_model_rounding_and_data(tmp_path: Path) -> None:
    network, part = models.network("llama"), models.calibration("llama").render
    prints = [
        Renderings(tmp_path, network, "gptq", part).fingerprint,
        Renderings(tmp_path, network, "nearest", part).fingerprint,
        Renderings(tmp_path, network, "gptq", models.calibration("llama", seed=1).render).fingerprint,
        Renderings(tmp_path, models.network("llama", seed=1), "gptq", part).fingerprint,
    ]
    assert len(set(prints)) == 4
    assert Renderings(tmp_path / "elsewhere", network, "gptq", part).fingerprint == prints[0]


def test_float_formats_are_casts_and_are_not_stored(tmp_path: Path) -> None:
    network, renderings = fresh(tmp_path, "bert")
    unit = network.inventory.units[0]
    renderings.make([(unit, "bf16"), (unit, "fp32")])
    (weight,) = unit_weights(network.module, unit)
    assert equal(renderings(unit, "fp32"), (weight,))
    assert equal(renderings(unit, "bf16"), (weight.bfloat16(),))
    assert files(tmp_path) == {}


def test_what_has_not_been_made_is_refused_by_name(tmp_path: Path) -> None:
    network, renderings = fresh(tmp_path)
    unit = network.inventory.units[2]
    renderings.make([(unit, "int4-row")])
    with pytest.raises(KeyError, match=rf"{unit.name}.*has not been rendered in int3-row"):
        renderings(unit, "int3-row")


def test_a_rendering_is_made_once(tmp_path: Path) -> None:
    network, renderings = fresh(tmp_path)
    wanted = [(unit, "int3-g64-asym") for unit in network.inventory.units[:4]]
    renderings.make(wanted)
    before = files(tmp_path)
    assert len(before) == 4

    def never(stage: str, done: int, total: int) -> None:
        raise AssertionError("there is nothing to do")

    Renderings(tmp_path, network, "gptq", renderings.part).make(wanted, never)
    assert files(tmp_path) == before
    renderings.make([(unit, fmt) for unit, _ in wanted for fmt in ("int3-g64-asym", "int4-g64-asym")])
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == 8


def test_it_does_not_matter_what_is_made_together(tmp_path: Path) -> None:
    """One unit and format at a time, in another order, or all at once: the same words."""
    together, apart = tmp_path / "together", tmp_path / "apart"
    network, renderings = fresh(together)
    wanted = [(unit, fmt) for unit in network.inventory.units[:8] for fmt in FORMATS_MADE]
    renderings.make(wanted)
    for one in reversed(wanted):
        Renderings(apart, network, "gptq", renderings.part).make([one])
    assert {name: content for name, (content, _) in files(together).items()} == {
        name: content for name, (content, _) in files(apart).items()
    }


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    network, renderings = fresh(tmp_path / "one")
    wanted = [(unit, "int4-row") for unit in network.inventory.units]

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "render" and done == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        renderings.make(wanted, stop)
    before = files(tmp_path / "one")
    assert len(before) == 5
    told: list[tuple[str, int, int]] = []
    renderings.make(wanted, lambda stage, done, total: told.append((stage, done, total)))
    left = len(network.inventory.units) - 5
    assert [entry for entry in told if entry[0] == "render"] == [("render", done, left) for done in range(left + 1)]
    after = files(tmp_path / "one")
    assert {name: after[name] for name in before} == before
    fresh(tmp_path / "two")[1].make(wanted)
    whole = files(tmp_path / "two")
    assert {name: content for name, (content, _) in after.items()} == {name: content for name, (content, _) in whole.items()}


def test_a_failed_write_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, renderings = fresh(tmp_path, rounding="nearest")

    def half(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(render, "save_file", half)
    with pytest.raises(OSError, match="no space left"):
        renderings.make([(network.inventory.units[0], "int4-row")])
    assert files(tmp_path) == {}


def test_the_model_is_left_alone(tmp_path: Path) -> None:
    network, renderings = fresh(tmp_path)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    renderings.make([(unit, "int4-row") for unit in network.inventory.units])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_an_expert_that_no_token_reached_is_rounded_to_nearest(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 2)
    renderings = Renderings(tmp_path, network, "gptq", models.calibration("mixtral").render)
    for expert, reached in ((2, False), (0, True)):
        unit = network.inventory.unit(f"model.layers.0.mlp.experts.{expert}")
        renderings.make([(unit, "int3-g64-asym")])
        nearest = tuple(round_nearest(weight, FORMATS["int3-g64-asym"]) for weight in unit_weights(network.module, unit))
        assert equal(renderings(unit, "int3-g64-asym"), nearest) is not reached


@pytest.mark.parametrize("name", ["int3-g64-asym", "int4-row", "int8-g32-asym", "bf16", "fp32"])
@pytest.mark.parametrize("at_once", [1, 70 * 40, 1 << 20])
def test_slices_make_up_the_whole_difference(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 32, 32 and all rows; the last one is short."""
    monkeypatch.setattr(render, "ENTRIES_AT_ONCE", at_once)
    weight = torch.randn(109, 70, generator=torch.Generator().manual_seed(0))
    made: Rendered = round_nearest(weight, parse(name)) if name.startswith("int") else weight.to(render.FLOATS[name])
    whole = dequantize(made) if isinstance(made, PackedWeight) else made.float()
    assert torch.equal(rendered_transposed(made), whole.T)
    slices = list(rendered_slices(made, weight))
    assert [rows.start for rows, _ in slices] == [0] + [rows.stop for rows, _ in slices[:-1]]
    assert len(slices) == (1 if at_once == 1 << 20 else 4)
    assert torch.equal(torch.cat([delta for _, delta in slices], dim=1), (whole - weight).T)


@pytest.mark.parametrize(
    ("native", "admitted"),
    [("fp32", {"fp32", "bf16", "fp16"}), ("bf16", {"bf16"}), ("fp16", {"fp16"})],
    ids=["fp32", "bf16", "fp16"],
)
def test_no_unit_is_stored_wider_than_it_is_nor_in_another_type_of_its_width(native: str, admitted: set[str]) -> None:
    unit = Unit("u", "linear", "q", (Matrix("u", (4, 4)),), native)
    assert {name for name in ("fp32", "bf16", "fp16") if admits(unit, FORMATS[name])} == admitted
    assert all(admits(unit, fmt) for fmt in FORMATS.values() if fmt.family == "int")
