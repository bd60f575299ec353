"""Model id to Network: load the weights in their own dtype, make the modules plain, take the inventory, then run in float32.

The class that runs a model is the one its configuration names, if transformers has it; what its output means follows from
the class. Code in a model's repository is never run.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..sensitivity.inventory import take_inventory
from ..sensitivity.network import Network, Pooling
from ..sensitivity.plain import make_plain
from ..sensitivity.progress import Progress, silent
from ..sensitivity.units import Outputs
from .errors import BitplanError, ModelError
from .source import Source, read_config

OUTPUTS: tuple[tuple[str, Outputs], ...] = (
    (r"ForCausalLM$|LMHeadModel$|ForMaskedLM$", "tokens"),
    (r"ForImageClassification$|ForSequenceClassification$", "classes"),
    (r"Model$", "pooled"),
)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network and the folder with its tokenizer or image settings (None for a bare state dict)."""

    network: Network
    folder: Path | None


def load(source: Source, home: Path, progress: Progress = silent) -> Loaded:
    """The network that `source` holds, in float32. Raises ModelError with the reason and the remedy."""
    progress("load", 0, 1)
    with reading(source):
        if source.kind == "state_dict":
            loaded = _load_state_dict(source)
        else:
            folder = source.path if source.kind == "huggingface" else rebuild_gguf(source, home)
            loaded = _load_folder(source, folder)
    progress("load", 1, 1)
    return loaded


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """While open, transformers is quiet, and what it, safetensors and gguf raise on damaged files becomes a ModelError."""
    _quiet()
    try:
        yield
    except BitplanError:
        raise
    except Exception as error:  # each of them has types of its own
        kind = "" if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: "
        reason = " ".join(str(error).split())[:400]
        raise ModelError(f"model {source.model_id!r} cannot be used: {kind}{reason}") from error


def _quiet() -> None:
    """transformers draws bars of its own; ours are enough."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def build(config_folder: Path, architecture: str) -> nn.Module:
    """The plain module of `architecture` with empty weights, from the configuration in a folder; for loading executed models."""
    config = read_config(config_folder)
    if architecture == "ResidualNetwork":
        from .residual import ResidualNetwork

        return make_plain(ResidualNetwork(config["widths"], config["blocks"], config["classes"]))
    import transformers

    cls = getattr(transformers, architecture)
    return make_plain(cls(cls.config_class.from_pretrained(config_folder)))


def rebuild_gguf(source: Source, home: Path) -> Path:
    """A GGUF file as a plain bf16 model folder, made once below `home`/models and renamed into place."""
    folder = home / "models" / source.key[:32]
    if folder.exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": source.path.name}
    with redirect_stderr(io.StringIO()):  # the conversion's bar asks none of transformers' settings
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path.parent, dtype=torch.bfloat16, output_loading_info=True, **options
        )
    model, info = loaded
    if info["missing_keys"]:
        raise ModelError(f"{source.path} is not whole: {min(info['missing_keys'])!r} is missing; fetch it again")
    tokenizer = AutoTokenizer.from_pretrained(source.path.parent, **options)
    temporary = folder.with_suffix(f".{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it is plain bf16 from here on
    model.hf_quantizer = None  # else save_pretrained refuses
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.replace(folder)
    return folder


def runs_as(source: Source, folder: Path) -> tuple[Any, Outputs]:
    """The class of transformers that runs the model in `folder`, and what its output means. Raises ModelError."""
    import transformers

    config = read_config(folder)
    architecture = (config.get("architectures") or [""])[0]
    outputs = next((outputs for pattern, outputs in OUTPUTS if re.search(pattern, architecture)), None)
    cls = getattr(transformers, architecture, None)
    if cls is None and "auto_map" in config:
        raise ModelError(
            f"model {source.model_id!r} is run by code in its own repository, which bitplan never executes; "
            "use a model whose architecture transformers has"
        )
    if cls is None or outputs is None:
        named = architecture or "nothing"
        raise ModelError(
            f"model {source.model_id!r} names {named} as its architecture; causal LMs, masked LMs, encoders, and image or "
            "sequence classifiers of transformers can be planned"
        )
    if config.get("quantization_config"):
        raise ModelError(f"model {source.model_id!r} is quantized already; start from its full-precision weights")
    return cls, outputs


def _load_folder(source: Source, folder: Path) -> Loaded:
    cls, outputs = runs_as(source, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {
            "dtype": "auto",
            "use_safetensors": True,
            "ignore_mismatched_sizes": True,  # they are refused below, by name
            "output_loading_info": True,
        }
        module, info = cls.from_pretrained(folder, **options)
    missing = sorted(info["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        module, info = cls.from_pretrained(folder, add_pooling_layer=False, **options)
        missing = sorted(info["missing_keys"])
    wrong = [*missing, *sorted(key[0] for key in info["mismatched_keys"]), *further_layers(module, info["unexpected_keys"])]
    if wrong:
        raise ModelError(
            f"the weights of model {source.model_id!r} do not fit its config.json: {wrong[0]!r} is missing, misshapen or one "
            "too many; fetch both anew"
        )
    pooling = pooled_by(folder, module) if outputs == "pooled" else "none"
    return Loaded(network_of(source, make_plain(module), outputs, pooling), folder)


def further_layers(module: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Tensors that are called as the module's own are but for their numbers: layers that the configuration does not count."""
    own = {re.sub(r"\d+", "#", name) for name in module.state_dict()}
    return sorted(name for name in unexpected if re.sub(r"\d+", "#", name) in own)


def _load_state_dict(source: Source) -> Loaded:
    from safetensors.torch import load_file

    from .residual import from_state_dict

    state = load_file(next(iter(sorted(source.path.glob("*.safetensors")))))
    return Loaded(network_of(source, make_plain(from_state_dict(state)), "classes", "none"), None)


def network_of(
    source: Source,
    module: nn.Module,
    outputs: Outputs,
    pooling: Pooling,
    read: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> Network:
    """The network of a plain module; `read` as `take_inventory` has it. Raises ModelError when nothing can be quantized."""
    inventory = take_inventory(module, model_id=source.model_id, family="", outputs=outputs, read=read)
    if not inventory.units:
        raise ModelError(f"model {source.model_id!r} has no matrix that could be quantized")
    kinds = {kind: sum(u.parameters for u in inventory.units if u.kind == kind) for kind in ("expert", "conv", "linear")}
    main_input = getattr(module, "main_input_name", "pixel_values")
    if kinds["expert"]:
        family = "mixture-of-experts"
    elif kinds["conv"] > kinds["linear"]:
        family = "convolutional"
    elif main_input == "pixel_values":
        family = "vision"
    else:
        family = "causal-lm" if outputs == "tokens" and "MaskedLM" not in inventory.architecture else "encoder"
    return Network(module.float(), type(inventory)(**{**inventory.__dict__, "family": family}), pooling)


def pooled_by(folder: Path, module: nn.Module) -> Pooling:
    """How hidden states become one vector: as the model's sentence-transformers settings say, else by the kind of model."""
    settings = folder / "1_Pooling" / "config.json"
    if settings.exists():
        return "first" if json.loads(settings.read_text()).get("pooling_mode_cls_token") else "mean"
    if getattr(module, "main_input_name", "input_ids") == "input_ids":
        return "mean"
    return "first" if any("cls_token" in name for name, _ in module.named_parameters()) else "pooler"
