from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import models
from bitplan.allocator import BitplanError, ModelError, Plan, UsageError, executed, load_executed
from bitplan.allocator.execution import execute
from bitplan.sensitivity.units import FLOAT_BYTES, Inventory
from shelf import KINDS as SHELVED
from shelf import Shelf

KINDS = (*SHELVED, "gpt2", "untied")  # transposed linear layers; fp16 and a head of its own
DTYPE_BYTES = {"I64": 8, "I32": 4, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}


def inputs(kind: str) -> dict[str, Tensor]:
    """The same for every process: eight examples that no calibration has seen."""
    generator = torch.Generator().manual_seed(99)
    if models.KINDS[kind].takes_images:
        side = 32 if kind == "residual" else models.SIDE
        return {"pixel_values": torch.randn(8, 3, side, side, generator=generator)}
    return {"input_ids": torch.randint(models.VOCABULARY, (8, 40), generator=generator)}


@torch.no_grad()
def output(kind: str, module: nn.Module) -> Tensor:
    given = inputs(kind)
    result = module(given["pixel_values"]) if kind == "residual" else module(**given)
    return result if isinstance(result, Tensor) else result[0]


@pytest.fixture(scope="module")
def loaded_elsewhere(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Outputs of every kind, its executed folder loaded by a fresh process that sees nothing else of this one."""
    given, made = (tmp_path_factory.mktemp("elsewhere") / name for name in ("inputs.safetensors", "outputs.safetensors"))
    save_file({f"{kind} {name}": tensor for kind in KINDS for name, tensor in inputs(kind).items()}, given)
    code = """
import sys, torch
from safetensors.torch import load_file, save_file
from bitplan.allocator import load_executed
given, made, *folders = sys.argv[1:]
outputs = {}
for key, tensor in load_file(given).items():
    kind, name = key.split()
    module = load_executed(next(folder for folder in folders if folder.endswith(kind)))
    with torch.no_grad():
        result = module(**{name: tensor}) if hasattr(module, "config") else module(tensor)
    outputs[kind] = result if isinstance(result, torch.Tensor) else result[0]
save_file(outputs, made)
"""
    folders = [str(shelf.executed(kind)) for kind in KINDS]
    subprocess.run([sys.executable, "-c", code, str(given), str(made), *folders], check=True, timeout=300)
    return load_file(made)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_elsewhere_it_gives_the_same_bits(kind: str, shelf: Shelf, loaded_elsewhere: dict[str, Tensor]) -> None:
    module = execute(shelf.plan(kind), home=shelf.home)
    assert torch.equal(output(kind, module), loaded_elsewhere[kind])
    assert not torch.equal(output(kind, module), output(kind, models.network(kind).module))


def stored(folder: Path) -> dict[str, int]:
    """Bytes of every tensor, as safetensors' own reader tells their shapes and types."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (this is no dictionary)
        return {name: prod(s.get_shape()) * DTYPE_BYTES[s.get_dtype()] for name, s in slices.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_holds_the_bytes_of_the_plan(kind: str, shelf: Shelf) -> None:
    """Part by part and unit by unit, with nothing of the package but the document."""
    folder = shelf.executed(kind)
    plan = json.loads((folder / "plan.json").read_text())
    found = Inventory.from_json(json.loads((folder / "inventory.json").read_text()))
    sizes, promised = stored(folder), plan["predicted"]["bytes"]
    parts: Counter[str] = Counter()
    by_format: Counter[str] = Counter()
    matrices = {matrix.module: unit for unit in found.units for matrix in unit.matrices}
    for name, size in sizes.items():
        module, _, last = name.rpartition(".")
        if last in ("words", "scales", "zeros"):
            parts["codes" if last == "words" else last] += size
        else:
            parts["native" if last == "weight" and module in matrices else "fixed"] += size
        if module in matrices and last in ("words", "scales", "zeros", "weight"):
            by_format[plan["assignment"][matrices[module].name]] += size
    assert {part: parts[part] for part in ("codes", "scales", "zeros", "native", "fixed")} == {
        part: promised[part] for part in ("codes", "scales", "zeros", "native", "fixed")
    }
    assert dict(by_format) == promised["by_format"]
    assert sum(sizes.values()) == promised["total"] <= plan["budget"]["limit_bytes"]
    assert executed.measured_bytes(folder)[0] == {
        "codes": parts["codes"],
        "scales": parts["scales"],
        "zeros": parts["zeros"],
        "weights": parts["native"] + parts["fixed"],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_in_memory_it_is_no_larger(kind: str, shelf: Shelf) -> None:
    """Nothing beside the packed words is kept of a unit that was quantized; all else is held in float32."""
    module, plan = load_executed(shelf.executed(kind)), shelf.plan(kind)
    found = models.network(kind).inventory
    held = dict(module.state_dict(keep_vars=True))
    packed = [name for name in held if name.rpartition(".")[2] in ("words", "scales", "zeros")]
    own = {id(held[name]): held[name].nbytes for name in packed}
    assert sum(own.values()) == sum(getattr(plan.predicted.bytes, part) for part in ("codes", "scales", "zeros"))
    rest = {id(tensor): tensor.numel() for name, tensor in held.items() if name not in packed}
    whole = sum(unit.parameters for unit in found.units if plan.assignment[unit.name] == unit.native)
    assert sum(rest.values()) == whole + sum(prod(tensor.shape) for tensor in found.fixed)


def test_a_shared_weight_is_stored_once_and_held_once(shelf: Shelf) -> None:
    assert not [name for name in stored(shelf.executed("llama")) if name.startswith("lm_head")]
    module: Any = load_executed(shelf.executed("llama"))
    assert module.lm_head.words.data_ptr() == module.model.embed_tokens.words.data_ptr()


def test_what_no_plan_touches_keeps_its_dtype_and_bits(shelf: Shelf) -> None:
    for kind in ("llama", "bert", "residual"):
        before = load_file(shelf.model(kind) / "model.safetensors")
        after = load_file(shelf.executed(kind) / "model.safetensors")
        for fixed in models.network(kind).inventory.fixed:
            assert after[fixed.name].dtype == before[fixed.name].dtype
            assert torch.equal(after[fixed.name], before[fixed.name])
            assert after[fixed.name].nbytes == prod(fixed.shape) * FLOAT_BYTES[fixed.dtype]


def test_the_folder_has_what_is_needed_to_run_it(shelf: Shelf) -> None:
    names = {path.name for path in shelf.executed("llama").iterdir()}
    assert {"model.safetensors", "plan.json", "inventory.json", "config.json", "tokenizer.json"} <= names
    assert Plan.from_json((shelf.executed("llama") / "plan.json").read_text()).id == shelf.plan("llama").id


def test_executed_twice_the_files_are_equal(shelf: Shelf, tmp_path: Path) -> None:
    execute(shelf.plan("bert"), tmp_path / "again", home=shelf.home)
    for name in ("model.safetensors", "inventory.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (shelf.executed("bert") / name).read_bytes()


class TestPlaces:
    @pytest.fixture
    def plan(self, shelf: Shelf) -> Plan:
        return shelf.plan("residual")

    def test_a_folder_with_anything_in_it_is_refused(self, plan: Plan, shelf: Shelf, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        with pytest.raises(UsageError, match="out is not an empty folder; name a new one for the quantized model"):
            execute(plan, tmp_path / "out", home=shelf.home)
        with pytest.raises(UsageError, match="not an empty folder"):
            execute(plan, tmp_path / "out" / "mine.txt", home=shelf.home)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]

    def test_an_empty_folder_and_the_one_where_one_stands(
        self, plan: Plan, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("empty", "here"):
            (tmp_path / name).mkdir()
        execute(plan, tmp_path / "empty", home=shelf.home)
        monkeypatch.chdir(tmp_path / "here")
        execute(plan, ".", home=shelf.home)
        assert {path.name for path in (tmp_path / "here").iterdir()} == {path.name for path in (tmp_path / "empty").iterdir()}

    @pytest.mark.parametrize("kind", ["OSError", "SafetensorError"])
    def test_a_full_disk_leaves_nothing(
        self, kind: str, plan: Plan, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fill(tensors: object, path: Path, metadata: object) -> None:
            path.write_bytes(b"as much as there is room for")
            raise OSError(errno.ENOSPC, "No space left on device") if kind == "OSError" else SafetensorError("No space left")

        monkeypatch.setattr(executed, "save_file", fill)
        with pytest.raises(BitplanError, match=r"out could not be written \(No space left.*; free some space"):
            execute(plan, tmp_path / "out", home=shelf.home)
        assert [path.name for path in tmp_path.iterdir()] == []

    def test_a_stop_in_the_middle_leaves_nothing(
        self, plan: Plan, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*arguments: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(executed, "save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(plan, tmp_path / "out", home=shelf.home)
        assert list(tmp_path.iterdir()) == []


class TestDamage:
    @pytest.fixture
    def folder(self, shelf: Shelf, tmp_path: Path) -> Path:
        return shutil.copytree(shelf.executed("llama"), tmp_path / "damaged")

    @pytest.mark.parametrize("name", ["plan.json", "model.safetensors"])
    def test_a_folder_that_holds_no_executed_model(self, name: str, folder: Path) -> None:
        (folder / name).unlink()
        with pytest.raises(UsageError, match="holds no executed model; give a folder written by `bitplan execute --out`"):
            load_executed(folder)

    def test_a_model_folder_is_none(self, shelf: Shelf) -> None:
        with pytest.raises(UsageError, match="holds no executed model"):
            load_executed(shelf.model("llama"))

    @pytest.mark.parametrize("name", ["inventory.json", "config.json", "model.safetensors"])
    def test_a_file_that_is_cut_short(self, name: str, folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-10])
        with pytest.raises(ModelError) as caught:
            load_executed(folder)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["inventory.json", "config.json"])
    def test_a_file_that_is_missing(self, name: str, folder: Path) -> None:
        (folder / name).unlink()
        with pytest.raises(ModelError):
            load_executed(folder)

    def test_a_tensor_that_is_missing_is_named(self, folder: Path) -> None:
        whole = load_file(folder / "model.safetensors")
        picked = [next(name for name in whole if name.endswith(end)) for end in ("words", "scales", "zeros", "norm.weight")]
        for name in picked:
            save_file({other: tensor for other, tensor in whole.items() if other != name}, folder / "model.safetensors")
            with pytest.raises(ModelError, match=f"is damaged \\('{name}' is missing\\); execute its plan again"):
                load_executed(folder)
