"""The tournament's data in the layout that bitplan reads: folders of images, plain texts; made once below the home folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CHUNK = 100_000  # characters; tiny-mixtral-wiki was trained on all of them but every twelfth


def locate(source: str, data: Path, home: Path) -> str:
    """The file or folder that `source` names: made by a rule of MADE, or below `data`, or else `source` itself (an alias)."""
    top = source.split("/")[0]
    if top in MADE:
        made = home / "fixtures" / source
        if not made.exists():
            MADE[top](data, home / "fixtures")
        return str(made)
    return str(data / source) if (data / source).exists() else source


def _cifar10(data: Path, out: Path) -> None:
    arrays = np.load(data / "cifar10-jpeg" / "cifar10_train1000_test2000.npz")
    for part in ("train", "test"):
        for index, (pixels, label) in enumerate(zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)):
            folder = out / "cifar10" / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index:04}.png")


def _imagenet(data: Path, out: Path) -> None:
    for index, image in enumerate(sorted((data / "imagenet-sample-1k" / "images").iterdir())):
        folder = out / "imagenet" / ("odd" if index % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)


def _sentences(data: Path, out: Path) -> None:
    rows = (data / "sts-b" / "sts-test-part.tsv").read_text().splitlines()[1:]
    out.mkdir(parents=True, exist_ok=True)
    (out / "sts-b.txt").write_text("\n".join(sentence for row in rows for sentence in row.split("\t")[1:3]) + "\n")


def _held_out(data: Path, out: Path) -> None:
    """The chunks that tiny-mixtral-wiki was not trained on, in turn to calibrate and to judge."""
    texts = [(data / "calibration-text" / f"{name}.txt").read_text() for name in ("wiki", "c4", "code")]
    whole = f"{texts[0]}\n{texts[1]}\n{texts[2][:700_000]}"
    chunks = [whole[start : start + CHUNK] for start in range(0, len(whole), CHUNK)][11::12]
    halves = {"even": "", "odd": ""}
    for chunk in chunks:  # every chunk gives to both, so that both hold the same kinds of text
        halves["even"] += chunk[: len(chunk) // 2] + "\n\n"
        halves["odd"] += chunk[len(chunk) // 2 :] + "\n\n"
    (out / "held-out").mkdir(parents=True, exist_ok=True)
    for name, text in halves.items():
        (out / "held-out" / f"{name}.txt").write_text(text)


MADE: dict[str, Callable[[Path, Path], None]] = {
    "cifar10": _cifar10,
    "imagenet": _imagenet,
    "sts-b.txt": _sentences,
    "held-out": _held_out,
}
