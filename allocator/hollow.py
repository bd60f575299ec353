"""A model folder as a hollow network: its shape in memory, its weights on disk until they are asked for.

For models that do not fit in memory; `sensitivity/streaming.py` profiles them block by block. The inventory and its
fingerprint are those of the loaded model: each tensor is read once, alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..sensitivity.chain import Chain, find_chain
from ..sensitivity.hollow import Read
from ..sensitivity.plain import make_plain
from .errors import ModelError
from .models import Loaded, network_of, pooled_by, rebuild_gguf, runs_as
from .source import Source

# How checkpoints name what transformers, and then `experts.py`, hold under another name: parameter -> tensors, one below another.
RENAMED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\.experts\.experts\.(\d+)\.gate_up_proj\.", (r".experts.\1.gate_proj.", r".experts.\1.up_proj.")),
    (r"\.experts\.experts\.(\d+)\.gate_up_proj\.", (r".experts.\1.w1.", r".experts.\1.w3.")),
    (r"\.experts\.experts\.(\d+)\.down_proj\.", (r".experts.\1.down_proj.",)),
    (r"\.experts\.experts\.(\d+)\.down_proj\.", (r".experts.\1.w2.",)),
)


@dataclass(frozen=True, eq=False)
class Hollow:
    """A network without weights in memory, the chain of its blocks, and where its weights are read."""

    loaded: Loaded
    chain: Chain
    read: Read


def open_hollow(source: Source, home: Path) -> Hollow:
    """Raises ModelError when the model cannot be taken apart into blocks, or its files do not hold what it needs."""
    if source.kind == "state_dict":
        raise ModelError(f"model {source.model_id!r} is a bare state dict, which is small; leave --stream out")
    folder = source.path if source.kind == "huggingface" else rebuild_gguf(source, home)
    cls, outputs = runs_as(source, folder)
    files = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _names(path)}
    module, dtype, called = _hollow_module(cls, folder, files)
    stored_as = {
        name: _stored_as(name, called, getattr(module, "base_model_prefix", ""))
        for name, _ in module.named_parameters(remove_duplicate=False)
    }
    missing = sorted(name for name, tensors in stored_as.items() if not tensors)
    ties = {id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False) if stored_as[name]}
    missing = [name for name in missing if id(module.get_parameter(name)) not in ties]
    if missing:
        raise ModelError(
            f"the files of model {source.model_id!r} hold no {missing[0]!r} under a name that can be streamed; leave --stream out"
        )
    owners = {id(module.get_parameter(name)): name for name, tensors in stored_as.items() if tensors}

    def read(name: str) -> Tensor:
        parts = [_tensor(files[part], part) for part in stored_as[owners[id(declared[name])]]]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)

    declared = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in declared.items():
        shape = tuple(read(name).shape)
        if shape != tuple(parameter.shape):
            raise ModelError(
                f"{name!r} of model {source.model_id!r} has the shape {shape} where its config.json says "
                f"{tuple(parameter.shape)}; fetch both anew, or leave --stream out"
            )
    for parameter in declared.values():
        parameter.data = parameter.data.to(dtype)
    pooling = pooled_by(folder, module) if outputs == "pooled" else "none"
    network = network_of(source, module, outputs, pooling, lambda name, tensor: read(name) if tensor.is_meta else tensor)
    try:
        return Hollow(Loaded(network, folder), find_chain(network), read)
    except ValueError as error:
        raise ModelError(str(error)) from error


def _hollow_module(cls: Any, folder: Path, files: dict[str, Path]) -> tuple[nn.Module, torch.dtype, dict[str, str]]:
    """The plain module with its parameters on the meta device and its buffers filled, the dtype of its weights, and what the
    tensors of the files are called in it (experts apart)."""
    from accelerate import init_empty_weights
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    config = cls.config_class.from_pretrained(folder)
    options = {}
    if "add_pooling_layer" in cls.__init__.__code__.co_varnames and not any("pooler." in name for name in files):
        options["add_pooling_layer"] = False
    with init_empty_weights(include_buffers=False):
        module = cls._from_config(config, **options) if not options else cls(config, **options)
    module.tie_weights()
    if any(type(child).__name__ == "Conv1D" for child in module.modules()):
        raise ModelError(f"models with transposed weights ({cls.__name__}) cannot be streamed; leave --stream out")
    renamings = [change for change in get_model_conversion_mapping(module) if isinstance(change, WeightRenaming)]
    called = {rename_source_key(name, renamings, [])[0]: name for name in files}
    for name, buffer in module.named_buffers():
        if name in called:
            buffer.copy_(_tensor(files[called[name]], called[name]))
    first = next((_tensor(path, name).dtype for name, path in files.items()), torch.float32)
    return make_plain(module), getattr(config, "dtype", None) or first, called


def _stored_as(name: str, called: dict[str, str], prefix: str) -> tuple[str, ...]:
    """The stored tensors that make up parameter `name`, one below another; empty when the files have none."""
    spellings = [(name,)]
    for pattern, targets in RENAMED:
        if re.search(pattern, name):
            spellings.append(tuple(re.sub(pattern, target, name) for target in targets))
    if prefix:
        spellings += [tuple(part.removeprefix(f"{prefix}.") for part in parts) for parts in spellings]
        spellings += [tuple(f"{prefix}.{part}" for part in parts) for parts in spellings]
    found = next((parts for parts in spellings if all(part in called for part in parts)), ())
    return tuple(called[part] for part in found)


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as opened:
        return list(opened.keys())


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
        return tensor
