"""Read a network into an Inventory: every stored tensor is part of one unit or listed as left alone, each once.

Found by inspection of the modules, not by a list of model names. The rules, first match wins:

    an expert (experts.py)                       one unit of two matrices, kind expert
    nn.Linear                                    one unit, kind linear
    nn.Conv2d                                    one unit, kind conv
    the table of the input embeddings            one unit, kind embedding; a head that shares it is a second use
    anything else                                left alone, with the reason

A class derived from one of these is the same thing only if it multiplies as its parent does: one that scales its result
(Gemma's embeddings) or standardizes its weight is left alone, and so is a weight that such a module shares with others.

The role (q, k, v, o, gate, up, down, ...) is read off the last name of the path, the layer off its first number. Units
stand in the order in which the model registers its modules, which is the order of its layers. How many experts a token is
sent to, the weights do not tell: that is read off the configuration.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..kernels.float64 import sum64
from .experts import Expert, Experts
from .units import Fixed, Inventory, Kind, Matrix, Outputs, Unit

DTYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
ROLES = {
    "q": ("q_proj", "query", "q", "wq", "q_lin"),
    "k": ("k_proj", "key", "k", "wk", "k_lin"),
    "v": ("v_proj", "value", "v", "wv", "v_lin"),
    "qkv": ("qkv", "qkv_proj", "query_key_value", "c_attn", "in_proj", "wqkv"),
    "o": ("o_proj", "out_proj", "wo", "out_lin"),
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "fc1", "w3", "c_fc", "lin1", "dense_h_to_4h", "wi"),
    "gate_up": ("gate_up_proj",),
    "down": ("down_proj", "fc2", "w2", "lin2", "dense_4h_to_h"),
    "head": ("lm_head", "classifier", "score", "embed_out"),
}
EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
SMALLEST = 2  # a matrix with fewer rows or columns has nothing to gain from groups and codes


def take_inventory(
    model: nn.Module,
    *,
    model_id: str,
    family: str,
    outputs: Outputs,
    read: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> Inventory:
    """The inventory of `model`, experts already unstacked. `read` gives the numbers of a tensor that is not in memory.

    Raises ValueError, naming the tensor, when a weight is NaN or infinite.
    """
    claimed: dict[int, str] = {}  # id of a parameter -> name of the unit or tensor that owns it
    units: dict[str, Unit] = {}
    fixed: list[Fixed] = []
    modules = dict(model.named_modules())
    table = getattr(_input_embedding(model), "weight", None)
    kinds = {name: _kind(module, table) for name, module in modules.items()}
    elsewhere = {id(p) for name, module in modules.items() if kinds[name] is None for p in module.parameters(recurse=False)}
    for name, module in modules.items():
        kind, parent = kinds[name], modules.get(name.rpartition(".")[0])
        if isinstance(module, Expert):
            paths = [f"{name}.{module.up_name}", f"{name}.down_proj"]
            _add_unit(units, claimed, modules, _expert_name(name), "expert", paths)
        elif kind is not None and not isinstance(parent, Expert) and id(module.weight) not in elsewhere:
            _add_unit(units, claimed, modules, name, kind, [name])
    digest = hashlib.sha256()
    for name, tensor in _stored(model):
        numbers = read(name, tensor)
        check_finite(name, numbers)
        _absorb(digest, name, numbers)
        if id(tensor) not in claimed:
            claimed[id(tensor)] = name
            fixed.append(Fixed(name, tuple(tensor.shape), DTYPES[tensor.dtype], _reason(name, tensor, modules)))
    return Inventory(
        model_id=model_id,
        fingerprint=digest.hexdigest(),
        architecture=type(model).__name__,
        family=family,
        outputs=outputs,
        units=_with_layers(list(units.values())),
        fixed=tuple(fixed),
        experts_used=_experts_used(modules) if any(unit.kind == "expert" for unit in units.values()) else None,
    )


def _kind(module: nn.Module, table: Tensor | None) -> Kind | None:
    """What a module that multiplies by its weight, and does nothing else, is; `table` is that of the input embeddings."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None  # nn.MultiheadAttention reads its weight and never calls it
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return "linear"
    if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward and module.padding_mode == "zeros":
        return "conv"
    if isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward and module.weight is table:
        return "embedding"
    return None


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError when a floating tensor holds NaN or infinity."""
    if tensor.is_floating_point() and tensor.numel() and not bool(torch.isfinite(sum64(tensor))):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise ValueError(f"tensor {name!r} holds {bad} NaN or infinite values; repair or re-download the model")


def _add_unit(
    units: dict[str, Unit], claimed: dict[int, str], modules: dict[str, nn.Module], name: str, kind: Kind, paths: list[str]
) -> None:
    weights: list[Tensor] = [modules[path].weight for path in paths]  # type: ignore[misc]
    if any(min(weight.flatten(1).shape) < SMALLEST for weight in weights):
        return
    owner = claimed.get(id(weights[0]))
    if owner is not None:
        shared = units[owner]
        units[owner] = Unit(**{**shared.__dict__, "shared_with": (*shared.shared_with, name)})
        return
    for weight in weights:
        claimed[id(weight)] = name
    matrices = tuple(Matrix(path, (weight.shape[0], weight[0].numel())) for path, weight in zip(paths, weights, strict=True))
    last = name.rpartition(".")[2]
    role = kind if kind in ("embedding", "expert", "conv") else next((r for r, names in ROLES.items() if last in names), "other")
    if role == "other" and last == "dense":
        role = _dense_role(name)
    expert = int(last) if kind == "expert" else None
    units[name] = Unit(name, kind, role, matrices, DTYPES[weights[0].dtype], None, expert)


def _with_layers(units: list[Unit]) -> tuple[Unit, ...]:
    """Number the layers: by the first number in the path, or, where several stages count from zero, by their order."""
    prefixes = [re.match(r"(.*?)\.(\d+)\.", unit.name) for unit in units]
    stems = {match[1] for match in prefixes if match}
    order = {match[0]: 0 for match in prefixes if match}
    order = {prefix: index for index, prefix in enumerate(order)}
    numbered = []
    for unit, match in zip(units, prefixes, strict=True):
        layer = None if match is None else int(match[2]) if len(stems) == 1 else order[match[0]]
        numbered.append(Unit(**{**unit.__dict__, "layer": layer}))
    return tuple(numbered)


def _dense_role(name: str) -> str:
    """BERT calls three matrices `dense`: tell them by what holds them."""
    if name.endswith("attention.output.dense"):
        return "o"
    return "up" if name.endswith("intermediate.dense") else "down" if name.endswith("output.dense") else "other"


def _expert_name(path: str) -> str:
    """`...experts.experts.7`, the module's path, is called `...experts.7`."""
    return re.sub(r"\.experts\.(\d+)$", r".\1", path)


def _experts_used(modules: dict[str, nn.Module]) -> int | None:
    """How many experts each token is sent to, where the configurations say so, and the same for all blocks."""
    found = {_told(modules, name) for name, module in modules.items() if isinstance(module, Experts)}
    return found.pop() if len(found) == 1 else None


def _told(modules: dict[str, nn.Module], name: str) -> int | None:
    """What the nearest configuration above a module says that a token uses; a list, one number a layer, if all are equal."""
    while name:
        name = name.rpartition(".")[0]
        config = getattr(modules[name], "config", None)
        for attribute in EXPERTS_USED:
            told = getattr(config, attribute, None)
            if isinstance(told, list | tuple) and told and told.count(told[0]) == len(told):
                told = told[0]
            if isinstance(told, int) and not isinstance(told, bool) and told > 0:
                return told
    return None


def _input_embedding(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_input_embeddings", None)
    try:
        return getter() if getter is not None else None
    except (NotImplementedError, AttributeError):
        return None


def _stored(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Every tensor that a checkpoint stores, each once, in the order of the state dict."""
    seen: set[int] = set()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in model.state_dict(keep_vars=True).items():
        tensor = parameters.get(name, value)
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _absorb(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _reason(name: str, tensor: Tensor, modules: dict[str, nn.Module]) -> str:
    if tensor.numel() == 0:
        return "empty"
    if tensor.dim() < 2:
        return "vector"
    module = modules.get(name.rpartition(".")[0])
    if isinstance(module, nn.Linear | nn.Conv2d) and min(tensor.flatten(1).shape) < SMALLEST:
        return f"fewer than {SMALLEST} rows or columns"
    if isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward:
        return "table of positions or types"
    return "not a plain matrix product (router, scaled table, position table, token)"
