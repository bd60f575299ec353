"""Calibration data: examples in three disjoint parts, one to render weights with, one to estimate on, one to verify on.

A rendering fits the tokens it has seen, so a loss estimated on the same tokens flatters it; a plan verified on either
flatters itself. The parts are cut from one source with one seed, and no example stands in two of them: each part is
named by a fingerprint of its examples, and `assert_disjoint` compares example by example.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .network import Batch

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
WINDOW = 512  # tokens of a causal language model's example, at most
SHORTEST = 16  # and at least
LEAST_EXAMPLES = 4  # in each of the three parts
LEAST_BATCHES = 8  # where there are examples enough: standard errors come from batches
SENTENCE = 128  # tokens of an encoder's example, at most
BATCH_TOKENS = 512
BATCH_IMAGES = 8
TOKENS_AN_IMAGE = 32  # what an image counts for when data is asked for in tokens
READ_BYTES = 8_000_000  # of a text source, at most


@dataclass(frozen=True, eq=False)
class Part:
    """Batches for one purpose. `digests` holds one SHA-256 an example; `labels`, where known, one class an example."""

    batches: tuple[Batch, ...]
    digests: frozenset[str]
    labels: tuple[Tensor, ...] | None = None

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(sorted(self.digests)).encode()).hexdigest()

    @property
    def examples(self) -> int:
        return sum(len(next(iter(batch.values()))) for batch in self.batches)

    def classes(self, index: int) -> Tensor | None:
        """The labels of batch `index`, where they are known."""
        return None if self.labels is None else self.labels[index]

    def to(self, device: torch.device) -> Part:
        """The same examples on `device`."""
        batches = tuple({name: tensor.to(device) for name, tensor in batch.items()} for batch in self.batches)
        labels = None if self.labels is None else tuple(each.to(device) for each in self.labels)
        return Part(batches, self.digests, labels)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Three disjoint parts of one source."""

    render: Part
    estimate: Part
    verify: Part

    def to(self, device: torch.device) -> Calibration:
        """The same parts on `device`."""
        return Calibration(self.render.to(device), self.estimate.to(device), self.verify.to(device))


def assert_disjoint(*parts: Part) -> None:
    """Raise ValueError when an example stands in two of `parts`."""
    for i, part in enumerate(parts):
        for other in parts[i + 1 :]:
            if part.digests & other.digests:
                raise ValueError("the same example stands in two parts of the calibration data; they must be disjoint")


def read_text(source: Path | None) -> str:
    """The text of a file, of a folder of .txt files in order of name, or, for None, of the small text that is shipped.

    Raises ValueError when there is none.
    """
    if source is None:
        shipped = resources.files(__package__).joinpath("data/calibration.txt").read_text(encoding="utf-8")
        return shipped.partition("\n\n")[2]  # the first paragraph says where the text comes from
    files = sorted(source.rglob("*.txt")) if source.is_dir() else [source]
    text = "\n\n".join(file.read_bytes()[:READ_BYTES].decode(errors="replace") for file in files)[:READ_BYTES]
    if not text.strip():
        raise ValueError(f"calibration source {source} holds no text; give a text file or a folder of .txt files")
    return text


def text_windows(text: str, tokenizer: Any, *, tokens: int, longest: int, seed: int) -> Calibration:
    """Windows of consecutive tokens for a causal language model, `tokens` of them for each part, drawn by `seed`.

    Windows are as long as the model and the text allow, 512 at most. Raises ValueError when the text is too short.
    """
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    window = min(WINDOW, longest, max(SHORTEST, tokens // LEAST_EXAMPLES))
    while window > SHORTEST and len(ids) // window < 3 * -(-tokens // window):
        window //= 2
    if len(ids) // window < 3 * LEAST_EXAMPLES:
        raise ValueError(
            f"the calibration text has {len(ids)} tokens; at least {3 * LEAST_EXAMPLES * window} are needed, give more text"
        )
    examples = [{"input_ids": row} for row in ids[: len(ids) // window * window].view(-1, window)]
    return _split(examples, per_part=-(-tokens // window), batch_size=max(1, BATCH_TOKENS // window), seed=seed)


def text_sentences(text: str, tokenizer: Any, *, tokens: int, longest: int, seed: int) -> Calibration:
    """Lines of text for an encoder, cut at 128 tokens, padded within a batch; about `tokens` of them for each part."""
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if len(line.split()) >= 4))
    if len(lines) < 3 * LEAST_EXAMPLES:
        raise ValueError(
            f"the calibration text has {len(lines)} lines of four words or more; at least {3 * LEAST_EXAMPLES} are needed"
        )
    random.Random(seed).shuffle(lines)
    encoded = tokenizer(lines[: 3 * max(LEAST_EXAMPLES, tokens // 4)], truncation=True, max_length=min(SENTENCE, longest))
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
    examples = [{name: torch.tensor(encoded[name][i]) for name in names} for i in range(len(encoded["input_ids"]))]
    mean_length = sum(len(example["input_ids"]) for example in examples) / len(examples)
    return _split(
        examples,
        per_part=max(LEAST_EXAMPLES, round(tokens / mean_length)),
        batch_size=max(1, int(BATCH_TOKENS / mean_length)),
        seed=seed,
    )


def images(pixels: Sequence[Tensor], labels: Sequence[int] | None, *, tokens: int, seed: int) -> Calibration:
    """Preprocessed images (3, H, W); an image counts as 32 tokens, and each part gets at least 16."""
    if len(pixels) < 3 * LEAST_EXAMPLES:
        raise ValueError(f"the calibration source has {len(pixels)} images; at least {3 * LEAST_EXAMPLES} are needed")
    examples = [{"pixel_values": image} for image in pixels]
    return _split(examples, per_part=max(16, tokens // TOKENS_AN_IMAGE), batch_size=BATCH_IMAGES, seed=seed, labels=labels)


def read_images(
    source: Path, limit: int, seed: int, *, side: int, crop: int, mean: Any, std: Any
) -> tuple[list[Tensor], list[int] | None]:
    """Up to `limit` images of a folder, drawn by `seed`: shortest edge to `side`, centre `crop`, scaled to (x - mean) / std.

    Classes are the names of sub-folders where every image lies in one. Raises ValueError for a folder without images.
    """
    from PIL import Image

    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"calibration source {source} holds no image; give a folder of .jpg or .png files")
    random.Random(seed).shuffle(files)
    folders = sorted({path.parent.name for path in files if path.parent != source})
    classified = len(folders) > 1 and all(path.parent != source for path in files)
    pixels = []
    for path in files[:limit]:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        scale = side / min(image.size)
        image = image.resize(
            (max(crop, round(image.width * scale)), max(crop, round(image.height * scale))), Image.Resampling.BICUBIC
        )
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
        array = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(crop, crop, 3).permute(2, 0, 1)
        pixels.append((array.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    return pixels, [folders.index(path.parent.name) for path in files[:limit]] if classified else None


def _split(
    examples: Sequence[Batch], *, per_part: int, batch_size: int, seed: int, labels: Sequence[int] | None = None
) -> Calibration:
    """Shuffle by seed, drop repeated examples, deal the first third to render, the next to estimate, the last to verify."""
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    digests: dict[str, int] = {}
    for index in order:
        digests.setdefault(_digest(examples[index]), index)
    each = min(per_part, len(digests) // 3)
    if each < LEAST_EXAMPLES:
        raise ValueError(f"the calibration data has {len(digests)} different examples; at least {3 * LEAST_EXAMPLES} are needed")
    dealt = list(digests.items())
    size = max(1, min(batch_size, -(-each // LEAST_BATCHES)))
    parts = [_part(dealt[i * each : (i + 1) * each], examples, size, labels) for i in range(3)]
    calibration = Calibration(*parts)
    assert_disjoint(*parts)
    return calibration


def _part(dealt: Sequence[tuple[str, int]], examples: Sequence[Batch], batch_size: int, labels: Sequence[int] | None) -> Part:
    batches, classes = [], []
    for start in range(0, len(dealt), batch_size):
        rows = [index for _, index in dealt[start : start + batch_size]]
        batches.append(_stack([examples[index] for index in rows]))
        classes.append(torch.tensor([labels[index] for index in rows]) if labels is not None else torch.empty(0))
    return Part(tuple(batches), frozenset(digest for digest, _ in dealt), tuple(classes) if labels is not None else None)


def _stack(examples: Sequence[Batch]) -> Batch:
    """Examples to one batch; sequences of unequal length are padded with 0, which their attention mask leaves out."""
    return {
        name: torch.nn.utils.rnn.pad_sequence([example[name] for example in examples], batch_first=True) for name in examples[0]
    }


def _digest(example: Batch) -> str:
    first = next(iter(example.values()))
    return hashlib.sha256(first.contiguous().numpy().tobytes()).hexdigest()
