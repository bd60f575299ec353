"""Executed models: a network whose units hold packed words, and the folder such a network is kept in.

    DIR/model.safetensors    packed units as <module>.words, .scales, .zeros; everything else under its own name and dtype
    DIR/plan.json            the plan
    DIR/inventory.json       what the units are made of
    DIR/config.json, tokenizer files ...    copied from the model

The bytes of the tensors in model.safetensors are the bytes that the plan promises.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..kernels.experts import QuantizedExperts
from ..kernels.formats import FORMATS
from ..kernels.linear import QuantizedConv2d, QuantizedEmbedding, QuantizedLinear
from ..kernels.packing import PackedWeight
from ..sensitivity.experts import Experts
from ..sensitivity.render import FLOATS, Rendered
from ..sensitivity.units import Inventory, Unit
from .errors import ModelError, UsageError
from .home import read_json, writing
from .plan import Plan

WEIGHTS = "model.safetensors"
COPIED = ("*.json", "*.txt", "*.model", "1_Pooling/*.json")


def put_unit(module: nn.Module, unit: Unit, rendered: tuple[Rendered, ...]) -> None:
    """Let `unit` of `module` hold `rendered`, in place; every use of a shared weight holds the same tensors."""
    for index, (matrix, made) in enumerate(zip(unit.matrices, rendered, strict=True)):
        paths = (matrix.module, *(unit.shared_with if index == 0 else ()))
        if isinstance(made, Tensor):
            shape = module.get_parameter(f"{paths[0]}.weight").shape
            weight = nn.Parameter(made.to(torch.float32).reshape(shape), requires_grad=False)
            for path in paths:
                module.get_submodule(path).weight = weight
            continue
        for path in paths:
            old = module.get_submodule(path)
            parent, _, child = path.rpartition(".")
            setattr(module.get_submodule(parent), child, _quantized(old, made))


def _quantized(old: nn.Module, made: PackedWeight) -> nn.Module:
    if isinstance(old, nn.Conv2d):
        return QuantizedConv2d(made, old)
    if isinstance(old, nn.Embedding):
        return QuantizedEmbedding(made, torch.float32)
    return QuantizedLinear(made, old.bias)  # type: ignore[arg-type]


def put_experts_together(module: nn.Module) -> None:
    """Let the experts of each layer of `module`, where all are packed, be computed together, in place."""
    for path, layer in list(module.named_modules()):
        if not isinstance(layer, Experts):
            continue
        matrices = [child for expert in layer.experts.values() for child in expert.children()]
        if all(isinstance(matrix, QuantizedLinear) for matrix in matrices):
            parent, _, child = path.rpartition(".")
            setattr(module.get_submodule(parent), child, QuantizedExperts(layer.experts, layer.up_name, layer.between))


def quantized_copy(module: nn.Module, inventory: Inventory, rendered: Mapping[str, tuple[Rendered, ...]]) -> nn.Module:
    """A copy of `module` with the units of `rendered` replaced; all that is not replaced is shared with the original."""
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    result = copy.deepcopy(module, shared)
    for unit in inventory.units:
        if unit.name in rendered:
            put_unit(result, unit, rendered[unit.name])
    put_experts_together(result)
    return result


def save_executed(
    folder: Path, module: nn.Module, inventory: Inventory, plan: Plan, model_folder: Path | None, config: dict[str, object] | None
) -> None:
    """Write an executed model. `folder` appears whole or not at all. Raises UsageError when it exists and is not empty."""
    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; name a new one for the quantized model")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(folder), _removed(temporary):
        temporary.mkdir(parents=True)
        for pattern in COPIED:
            for path in model_folder.glob(pattern) if model_folder is not None else ():
                if not path.name.endswith(".index.json"):
                    target = temporary / path.relative_to(model_folder)  # type: ignore[arg-type]
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, target)
        if config is not None:
            (temporary / "config.json").write_text(json.dumps(config))
        (temporary / "plan.json").write_text(plan.to_json())
        (temporary / "inventory.json").write_text(json.dumps(inventory.to_json()))
        save_file(stored_tensors(module, inventory, plan.assignment), temporary / WEIGHTS, {"format": "bitplan"})
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Leaves nothing of `folder`, whatever happens."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stored_tensors(module: nn.Module, inventory: Inventory, assignment: Mapping[str, str]) -> dict[str, Tensor]:
    """Every tensor of an executed model as it is stored, each once."""
    tensors: dict[str, Tensor] = {}
    for unit in inventory.units:
        for matrix in unit.matrices:
            holder = module.get_submodule(matrix.module)
            packed = getattr(holder, "packed", None)
            if isinstance(packed, PackedWeight):
                tensors |= {f"{matrix.module}.{name}": tensor.cpu().contiguous() for name, tensor in packed.tensors().items()}
            else:
                weight: Tensor = holder.weight  # type: ignore[assignment]
                tensors[f"{matrix.module}.weight"] = weight.detach().cpu().to(FLOATS[assignment[unit.name]]).contiguous()
    state = module.state_dict(keep_vars=True)
    for fixed in inventory.fixed:
        tensor = state[fixed.name].detach().cpu()
        tensors[fixed.name] = (tensor.to(FLOATS[fixed.dtype]) if tensor.is_floating_point() else tensor).clone()
    return tensors


def load_executed(folder: Path | str) -> nn.Module:
    """The executed model in `folder`, ready to run. Raises UsageError when it holds none, ModelError when it is damaged."""
    from .models import build
    from .source import check_safetensors

    path = Path(folder)
    if not (path / "plan.json").exists() or not (path / WEIGHTS).exists():
        raise UsageError(f"{path} holds no executed model; give a folder written by `bitplan execute --out`")
    check_safetensors(path / WEIGHTS)
    plan = Plan.from_json((path / "plan.json").read_text())
    state = load_file(path / WEIGHTS)
    try:
        inventory = Inventory.from_json(read_json(path / "inventory.json") or {})
        return _filled(build(path, inventory.architecture).float(), inventory, plan, state)
    except KeyError as error:
        raise ModelError(f"{path} is damaged ({error} is missing); execute its plan again") from error


def _filled(module: nn.Module, inventory: Inventory, plan: Plan, state: Mapping[str, Tensor]) -> nn.Module:
    """`module` with the weights of `state`, ready to run. Raises KeyError, naming it, for a tensor that is not there."""
    for unit in inventory.units:
        put_unit(module, unit, tuple(_stored(state, unit, i, plan.assignment[unit.name]) for i in range(len(unit.matrices))))
    put_experts_together(module)
    own = module.state_dict(keep_vars=True)
    for fixed in inventory.fixed:
        own[fixed.name].data = state[fixed.name].float() if state[fixed.name].is_floating_point() else state[fixed.name]
    if getattr(module, "pooler", None) is not None and not any(name.startswith("pooler.") for name in state):
        module._modules["pooler"] = None  # the checkpoint had none, see `models.py`
    return module.eval()


def _stored(state: Mapping[str, Tensor], unit: Unit, index: int, fmt: str) -> Rendered:
    matrix = unit.matrices[index]
    if FORMATS[fmt].family == "float":
        return state[f"{matrix.module}.weight"]
    words, scales = (state[f"{matrix.module}.{name}"] for name in ("words", "scales"))
    zeros = None if FORMATS[fmt].symmetric else state[f"{matrix.module}.zeros"]
    return PackedWeight(FORMATS[fmt], matrix.shape, words, scales, zeros)


def measured_bytes(folder: Path) -> tuple[dict[str, int], int]:
    """Bytes of the tensors in an executed model's file by part (`codes`, `scales`, `zeros`, `weights`), read from the file's
    own header, and the size of the whole file."""
    path = folder / WEIGHTS
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    parts = {"codes": 0, "scales": 0, "zeros": 0, "weights": 0}
    names = {"words": "codes", "scales": "scales", "zeros": "zeros"}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            parts[names.get(name.rpartition(".")[2], "weights")] += end - start
    return parts, path.stat().st_size
