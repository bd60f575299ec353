from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from bitplan.allocator import ModelError, Plan, PlanMismatch, UnknownName, UsageError, allocate, execute
from bitplan.allocator.executed import quantized_copy
from bitplan.allocator.execution import executed_module, prepare_plan
from bitplan.allocator.prepared import Prepared
from bitplan.kernels.packing import PackedWeight
from bitplan.kernels.reference import dequantize
from bitplan.sensitivity.inventory import take_inventory
from shelf import KINDS, Shelf


def altered(plan: Plan, change: Callable[[dict[str, Any]], object]) -> Plan:
    document = json.loads(plan.to_json())
    change(document)
    return Plan.from_json(json.dumps(document))


class TestMismatch:
    def test_another_model(self, shelf: Shelf) -> None:
        plan = altered(shelf.plan("llama"), lambda d: d["model"].update(id=str(shelf.model("bert"))))
        with pytest.raises(
            PlanMismatch, match=r"disagree about .* units, .* first; the plan was made for another model"
        ) as caught:
            execute(plan, home=shelf.home)
        assert "embeddings.word_embeddings" in str(caught.value)

    def test_another_revision(self, shelf: Shelf, tmp_path: Path) -> None:
        revised = models.save("llama", tmp_path / "revised", seed=1)
        plan = altered(shelf.plan("llama"), lambda d: d["model"].update(id=str(revised)))
        with pytest.raises(PlanMismatch, match=r"another revision of .* \(weights differ\); plan the model anew"):
            execute(plan, home=shelf.home)

    def test_a_copy_of_the_model_elsewhere_is_the_same_model(self, shelf: Shelf, tmp_path: Path) -> None:
        moved = shutil.copytree(shelf.model("residual"), tmp_path / "moved")
        execute(altered(shelf.plan("residual"), lambda d: d["model"].update(id=str(moved))), home=shelf.home)

    def test_a_unit_that_is_missing_or_unknown(self, shelf: Shelf) -> None:
        plan = shelf.plan("residual")
        for change in (lambda d: d["assignment"].pop("conv1"), lambda d: d["assignment"].update(conv9="fp32")):
            with pytest.raises(PlanMismatch, match="disagree about 1 units, conv"):
                execute(altered(plan, change), home=shelf.home)

    def test_a_format_that_is_not_known(self, shelf: Shelf) -> None:
        plan = altered(shelf.plan("residual"), lambda d: d["assignment"].update(conv1="int99"))
        with pytest.raises(UnknownName, match="unknown format 'int99'"):
            execute(plan, home=shelf.home)

    def test_calibration_data_that_has_changed(self, shelf: Shelf, tmp_path: Path) -> None:
        """Renderings fit the data: with other data the weights would not be those that were measured."""
        text = tmp_path / "text.txt"
        text.write_text(shelf.text.read_text())
        model = str(shelf.model("llama"))
        plan = allocate(model, "40%", formats=["int4-g64"], calibration=str(text), tokens=256, home=shelf.home)
        text.write_text(shelf.text.read_text()[1000:])
        with pytest.raises(PlanMismatch, match=r"calibration data of the plan is not what it was .*; put it back, or plan again"):
            execute(plan, home=shelf.home)
        text.unlink()
        with pytest.raises(UsageError, match="does not exist"):
            execute(plan, home=shelf.home)

    def test_a_model_that_is_gone(self, shelf: Shelf) -> None:
        with pytest.raises(ModelError, match="unknown model '/gone'"):
            execute(altered(shelf.plan("bert"), lambda d: d["model"].update(id="/gone")), home=shelf.home)


@pytest.fixture(params=KINDS)
def prepared(request: pytest.FixtureRequest, shelf: Shelf) -> tuple[Prepared, Plan]:
    plan = shelf.plan(request.param)
    return prepare_plan(plan, shelf.home), plan


def test_every_unit_holds_its_rendering_and_the_original_is_untouched(prepared: tuple[Prepared, Plan]) -> None:
    """The very words that were profiled; bit for bit the old weights where a unit keeps its own dtype."""
    ready, plan = prepared
    network = ready.loaded.network
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    made = executed_module(ready, plan.assignment)
    for unit in network.inventory.units:
        fmt = plan.assignment[unit.name]
        for index, matrix in enumerate(unit.matrices):
            original = network.module.get_submodule(matrix.module)
            for path in (matrix.module, *(unit.shared_with if index == 0 else ())):
                holder = made.get_submodule(path)
                packed = getattr(holder, "packed", None)
                if fmt == unit.native:
                    assert packed is None
                    assert holder.weight is original.weight
                else:
                    assert isinstance(packed, PackedWeight)
                    expected = ready.renderings(unit, fmt)[index]
                    assert isinstance(expected, PackedWeight)
                    assert packed.format.name == fmt
                    assert torch.equal(dequantize(packed), dequantize(expected))
    after = network.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_copy_with_nothing_replaced_is_the_original(shelf: Shelf) -> None:
    network = models.network("mixtral")
    copy = quantized_copy(network.module, network.inventory, {})
    assert copy is not network.module
    pairs = zip(copy.parameters(), network.module.parameters(), strict=True)
    assert all(one is other for one, other in pairs)


def test_floats_are_cast_and_put_in_place(shelf: Shelf) -> None:
    """fp32 units in bf16: the numbers are rounded, the shapes stay."""
    model = str(shelf.model("residual"))
    plan = allocate(
        model, "100%", metric="weight_error", rounding="nearest", formats=["bf16"], pins={".*": "bf16"}, home=shelf.home
    )
    module = execute(plan, home=shelf.home)
    original = models.network("residual")
    for unit in original.inventory.units:
        weight = module.get_parameter(f"{unit.name}.weight")
        assert torch.equal(weight, original.module.get_parameter(f"{unit.name}.weight").bfloat16().float())
    inventory = take_inventory(module, model_id="", family="convolutional", outputs="classes")
    assert inventory.units == original.inventory.units


def test_renderings_that_were_lost_are_made_again_and_are_the_same(shelf: Shelf, tmp_path: Path) -> None:
    home = shutil.copytree(shelf.home, tmp_path / "home")
    shutil.rmtree(home / "renderings")
    stages: list[str] = []
    again = execute(shelf.plan("llama"), home=home, progress=lambda stage, done, total: stages.append(stage))
    first = execute(shelf.plan("llama"), home=shelf.home)
    assert "render" in stages
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_the_untouched_model_needs_no_data(shelf: Shelf) -> None:
    """No calibration was given and none is asked for, though the model takes images."""
    plan = allocate(str(shelf.model("residual")), "200%", home=shelf.home)
    module = execute(plan, home=shelf.home)
    expected = models.network("residual").module.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
