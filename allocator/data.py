"""Calibration data for a loaded model: text by its own tokenizer, images by its own preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..sensitivity.calibration import Calibration, images, read_images, read_text, text_sentences, text_windows
from .errors import UsageError
from .models import Loaded

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
LONGEST = 1_000_000


def load_calibration(loaded: Loaded, source: str | None, *, tokens: int, seed: int) -> Calibration:
    """Three disjoint parts of about `tokens` tokens each, drawn from `source` (None: the text that is shipped) by `seed`, on
    the device of the network.

    Raises UsageError with the remedy when the source is empty, too small, or of the wrong kind.
    """
    inventory = loaded.network.inventory
    takes_images = inventory.family in ("vision", "convolutional")
    path = None if source is None else Path(source)
    try:
        if takes_images:
            return _images(loaded, path, tokens, seed).to(loaded.network.device)
        tokenizer = _tokenizer(loaded)
        longest = min(_longest(loaded), getattr(tokenizer, "model_max_length", LONGEST))
        make = text_windows if inventory.outputs == "tokens" and inventory.family != "encoder" else text_sentences
        calibration = make(read_text(path), tokenizer, tokens=tokens, longest=longest, seed=seed)
        _check_range(loaded, calibration)
        return calibration.to(loaded.network.device)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_range(loaded: Loaded, calibration: Calibration) -> None:
    """Raises ValueError for a token that the model's embedding has no row for."""
    table = loaded.network.module.get_input_embeddings()  # type: ignore[operator]
    parts = (calibration.render, calibration.estimate, calibration.verify)
    largest = max(int(batch["input_ids"].max()) for part in parts for batch in part.batches)
    if largest >= len(table.weight):
        raise ValueError(
            f"the tokenizer of model {loaded.network.inventory.model_id!r} gives token {largest}, but its embedding has "
            f"{len(table.weight)} rows; the tokenizer belongs to another model, put the right one into the folder"
        )


def _images(loaded: Loaded, path: Path | None, tokens: int, seed: int) -> Calibration:
    if path is None or not path.is_dir():
        raise UsageError(
            f"model {loaded.network.inventory.model_id!r} takes images; give a folder of images with --calibration, or use "
            "the metric weight_error with rounding nearest, which need no data"
        )
    settings = _image_settings(loaded)
    pixels, labels = read_images(
        path,
        limit=3 * max(16, tokens // 32),
        seed=seed,
        side=settings["side"],
        crop=settings["crop"],
        mean=settings["image_mean"],
        std=settings["image_std"],
    )
    return images(pixels, labels, tokens=tokens, seed=seed)


def _image_settings(loaded: Loaded) -> dict[str, Any]:
    """Side, crop, mean and deviation from preprocessor_config.json, else from the configuration, else CIFAR's 32 pixels."""
    settings: dict[str, Any] = dict(IMAGENET)
    config = getattr(loaded.network.module, "config", None)
    side = getattr(config, "image_size", None) or (32 if config is None else 224)
    side = side if isinstance(side, int) else side[0]
    path = None if loaded.folder is None else loaded.folder / "preprocessor_config.json"
    if path is not None and path.exists():
        found = json.loads(path.read_text())
        settings |= {name: found[name] for name in IMAGENET if found.get(name)}
        size = found.get("size", side)
        side = size if isinstance(size, int) else size.get("shortest_edge", size.get("height", side))
        crop = found.get("crop_size", side) if found.get("do_center_crop") else side
        return settings | {"side": side, "crop": crop if isinstance(crop, int) else crop["height"]}
    return settings | {"side": side, "crop": side}


def _tokenizer(loaded: Loaded) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(loaded.folder)
    except Exception as error:  # tokenizers raise from several libraries; each means: cannot be read
        name = loaded.network.inventory.model_id
        raise UsageError(
            f"the tokenizer of model {name!r} cannot be read ({str(error).splitlines()[0]}); add its files"
        ) from error


def _longest(loaded: Loaded) -> int:
    config = loaded.network.module.config
    return int(getattr(config, "max_position_embeddings", None) or LONGEST)
