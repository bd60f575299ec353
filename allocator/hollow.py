"""A model folder as a hollow network: its shape in memory, its weights on disk until they are asked for.

For models that do not fit in memory; `sensitivity/streaming.py` profiles them block by block. The inventory and its
fingerprint are those of the loaded model: each tensor is read once for them, alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..sensitivity.chain import Chain, find_chain
from ..sensitivity.hollow import Read
from ..sensitivity.network import CPU, moved
from ..sensitivity.plain import make_plain
from .errors import ModelError
from .models import Loaded, further_layers, network_of, pooled_by, reading, rebuild_gguf, runs_as
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


@dataclass(frozen=True)
class Stored:
    """Where a parameter lies: in `tensors`, (file, name), one below another; and the dtype that it is used in."""

    tensors: tuple[tuple[Path, str], ...]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = []
        for path, name in self.tensors:
            with safe_open(path, "pt") as opened:
                shapes.append(tuple(opened.get_slice(name).get_shape()))
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def read(self) -> Tensor:
        parts = [_tensor(path, name) for path, name in self.tensors]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self.dtype)


def open_hollow(source: Source, home: Path, device: torch.device = CPU) -> Hollow:
    """The model in `source`, to be run on `device`. Raises ModelError when it cannot be taken apart into blocks, or its files
    do not hold what it needs."""
    if source.kind == "state_dict":
        raise ModelError(f"model {source.model_id!r} is a bare state dict, which is small; leave --stream out")
    with reading(source):
        folder = source.path if source.kind == "huggingface" else rebuild_gguf(source, home)
        cls, outputs = runs_as(source, folder)
        module, where = _hollow_module(source, cls, folder)
        declared = dict(module.named_parameters(remove_duplicate=False))
        for name, parameter in declared.items():
            shape = where[id(parameter)].shape
            if shape != tuple(parameter.shape):
                raise ModelError(
                    f"{name!r} of model {source.model_id!r} has the shape {shape} where its config.json says "
                    f"{tuple(parameter.shape)}; fetch both anew"
                )
            parameter.data = parameter.data.to(where[id(parameter)].dtype)
        pooling = pooled_by(folder, module) if outputs == "pooled" else "none"

        def read(name: str) -> Tensor:
            return where[id(declared[name])].read()

        network = network_of(source, module, outputs, pooling, lambda name, tensor: read(name) if tensor.is_meta else tensor)
        network = moved(network, device)
    try:
        return Hollow(Loaded(network, folder), find_chain(network), read)
    except ValueError as error:
        raise ModelError(str(error)) from error


def _hollow_module(source: Source, cls: Any, folder: Path) -> tuple[nn.Module, dict[int, Stored]]:
    """The plain module with its parameters on the meta device and its buffers filled, and where each parameter lies."""
    from accelerate import init_empty_weights
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    files = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _names(path)}
    config = cls.config_class.from_pretrained(folder)
    options = {}
    if "add_pooling_layer" in cls.__init__.__code__.co_varnames and not any("pooler." in name for name in files):
        options["add_pooling_layer"] = False
    with init_empty_weights(include_buffers=False):
        module = cls._from_config(config, **options) if not options else cls(config, **options)
    module.tie_weights()
    if any(type(child).__name__ == "Conv1D" for child in module.modules()):
        raise ModelError(
            f"model {source.model_id!r} has transposed weights ({cls.__name__}) and cannot be streamed; leave --stream out"
        )
    renamings = [change for change in get_model_conversion_mapping(module) if isinstance(change, WeightRenaming)]
    called = {rename_source_key(name, renamings, [])[0]: name for name in files}
    further = further_layers(module, called.keys() - module.state_dict().keys())
    if further:
        raise ModelError(
            f"the weights of model {source.model_id!r} do not fit its config.json: {further[0]!r} is one too many; "
            "fetch both anew"
        )
    kept = tuple(getattr(module, "_keep_in_fp32_modules_strict", None) or ())  # parts of names: float32 in any model
    whole, prefix = getattr(config, "dtype", None) or _first_dtype(files), getattr(module, "base_model_prefix", "")

    def stored(name: str) -> Stored | None:
        tensors = tuple((files[tensor], tensor) for tensor in _stored_as(name, called, prefix))
        return Stored(tensors, torch.float32 if any(part in name for part in kept) else whole) if tensors else None

    _untie(module, stored)
    missing = _fill_buffers(module, stored)
    where: dict[int, Stored] = {}
    plain = make_plain(module)
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        found = stored(name)
        if found is not None:
            where.setdefault(id(parameter), found)
    missing += [name for name, parameter in plain.named_parameters() if id(parameter) not in where]
    if missing:
        raise ModelError(
            f"the files of model {source.model_id!r} hold no {missing[0]!r} under a name that can be streamed; leave --stream out"
        )
    return plain, where


def _untie(module: nn.Module, stored: Callable[[str], Stored | None]) -> None:
    """Give weights that the configuration ties, but the files hold with different numbers, a parameter each, as transformers
    does."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        present = [(name, found) for name in tied if (found := stored(name)) is not None]
        for name, found in present[1:]:
            first = present[0][1]
            if found.tensors != first.tensors and not torch.equal(found.read(), first.read()):
                owner, _, last = name.rpartition(".")
                own = nn.Parameter(torch.empty(found.shape, device="meta"), requires_grad=False)
                module.get_submodule(owner)._parameters[last] = own


def _fill_buffers(module: nn.Module, stored: Callable[[str], Stored | None]) -> list[str]:
    """Give the buffers that checkpoints hold their numbers; returns the names of those that are in no file."""
    missing, persistent = [], module.state_dict().keys()
    for name, buffer in list(module.named_buffers()):
        found = stored(name) if name in persistent else None
        if found is not None:
            owner, _, last = name.rpartition(".")
            floating = buffer.is_floating_point()
            module.get_submodule(owner)._buffers[last] = (found if floating else replace(found, dtype=buffer.dtype)).read()
        elif name in persistent:
            missing.append(name)
    return missing


def _first_dtype(files: dict[str, Path]) -> torch.dtype:
    dtypes = (_tensor(path, name).dtype for name, path in files.items())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def _stored_as(name: str, called: dict[str, str], prefix: str) -> tuple[str, ...]:
    """The stored tensors that make up parameter `name`, one below another; empty when the files have none."""
    spellings: list[tuple[str, ...]] = [(name,)]
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
