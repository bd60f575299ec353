from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import models
from bitplan.sensitivity.calibration import (
    LEAST_EXAMPLES,
    Calibration,
    Part,
    assert_disjoint,
    images,
    read_images,
    read_text,
    text_sentences,
    text_windows,
)
from bitplan.sensitivity.network import Batch

TEXT = read_text(None)[:20_000]
KINDS = ["llama", "bert", "vit"]


def examples(part: Part) -> list[tuple[object, ...]]:
    """The examples of a part as values, padding cut off."""
    found: list[tuple[object, ...]] = []
    for batch in part.batches:
        for i in range(len(next(iter(batch.values())))):
            mask = batch["attention_mask"][i].bool() if "attention_mask" in batch else slice(None)
            found.append(tuple(next(iter(batch.values()))[i][mask].flatten().tolist()))
    return found


def parts(calibration: Calibration) -> list[Part]:
    return [calibration.render, calibration.estimate, calibration.verify]


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_no_example_stands_twice(kind: str) -> None:
    calibration = models.calibration(kind)
    found = [example for part in parts(calibration) for example in examples(part)]
    assert len(set(found)) == len(found)
    assert len({len(part.digests) for part in parts(calibration)}) == 1
    for part in parts(calibration):
        assert part.examples == len(part.digests) == len(examples(part)) >= LEAST_EXAMPLES
    assert_disjoint(*parts(calibration))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    once, again, other = models.calibration(kind), models.calibration(kind), models.calibration(kind, seed=1)
    for a, b, c in zip(parts(once), parts(again), parts(other), strict=True):
        assert all(same(x, y) for x, y in zip(a.batches, b.batches, strict=True))
        assert a.fingerprint == b.fingerprint != c.fingerprint
    assert len({part.fingerprint for part in parts(once)}) == 3


def test_the_fingerprint_is_of_the_examples_whatever_their_order() -> None:
    part = models.calibration("llama").render
    backwards = Part(part.batches[::-1], part.digests)
    assert backwards.fingerprint == part.fingerprint
    fewer = Part(part.batches, frozenset(sorted(part.digests)[1:]))
    assert fewer.fingerprint != part.fingerprint


def test_a_shared_example_is_found() -> None:
    one, two = models.calibration("llama", tokens=2000).render, models.calibration("llama", tokens=2000, seed=1).verify
    assert one.digests & two.digests
    with pytest.raises(ValueError, match="stands in two parts"):
        assert_disjoint(one, two)


@pytest.mark.parametrize(("tokens", "longest", "window"), [(64, 64, 16), (256, 64, 64), (256, 32, 32), (2048, 1000, 512)])
def test_windows_are_runs_of_the_text(tokens: int, longest: int, window: int) -> None:
    """As long as the model takes and four windows a part allow; all of one part's are asked for tokens together."""
    calibration = text_windows(TEXT, models.tokenizer(), tokens=tokens, longest=longest, seed=0)
    ids = models.tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    for part in parts(calibration):
        assert sum(batch["input_ids"].numel() for batch in part.batches) == tokens
        for example in examples(part):
            assert len(example) == window
            assert any(tuple(ids[start : start + window]) == example for start in range(0, len(ids), window))


def test_short_texts_are_cut_into_shorter_windows() -> None:
    """300 tokens a part are asked for and about 120 are there: windows of 16, as many as there are."""
    tokenizer = models.tokenizer()
    text = tokenizer.decode(tokenizer(TEXT)["input_ids"][:360])
    calibration = text_windows(text, tokenizer, tokens=300, longest=64, seed=0)
    assert {len(example) for part in parts(calibration) for example in examples(part)} == {16}
    assert 96 <= sum(batch["input_ids"].numel() for batch in calibration.estimate.batches) <= 128


def test_there_are_batches_enough_for_a_standard_error() -> None:
    for kind in KINDS:
        assert all(len(part.batches) >= 8 for part in parts(models.calibration(kind)))


@pytest.mark.parametrize("text", ["", "a few words only", "the same words again and again " * 400])
def test_text_without_enough_different_examples_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"calibration (text|data) has \d+ .*at least \d+ are needed"):
        text_windows(text, models.tokenizer(), tokens=64, longest=64, seed=0)
    with pytest.raises(ValueError, match=r"calibration (text|data) has \d+ .*at least \d+ are needed"):
        text_sentences(text, models.tokenizer(), tokens=64, longest=64, seed=0)


def test_lines_of_an_encoder_are_cut_padded_and_masked() -> None:
    lines = [f"line {i} of the text " + "and so on " * (i % 5) for i in range(80)] + ["too short", ""] * 9
    calibration = text_sentences("\n".join(lines), models.tokenizer(), tokens=400, longest=24, seed=0)
    expected = {tuple(models.tokenizer()(line.strip())["input_ids"][:24]) for line in lines if len(line.split()) >= 4}
    padded = 0
    for part in parts(calibration):
        assert set(examples(part)) <= expected
        for batch in part.batches:
            assert not batch["input_ids"][batch["attention_mask"] == 0].any()
            padded += int((batch["attention_mask"] == 0).sum())
    assert padded > 0


def test_repeated_lines_count_once() -> None:
    lines = [f"the line with number {i}" for i in range(20)] * 5
    calibration = text_sentences("\n".join(lines), models.tokenizer(), tokens=4000, longest=64, seed=0)
    assert sum(part.examples for part in parts(calibration)) == 18  # three parts of six


def test_text_is_read_from_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.txt").write_bytes(b"third \xff")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "a.md").write_text("not this")
    assert read_text(tmp_path / "a.txt") == "first"
    assert read_text(tmp_path) == "first\n\nsecond\n\nthird \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("content", [None, "", " \n\t\n"])
def test_sources_without_text_are_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ValueError, match="holds no text; give a text file"):
        read_text(tmp_path)


def test_the_shipped_text_comes_without_its_heading() -> None:
    text = read_text(None)
    assert "public domain" not in text[:500]
    assert len(text) > 100_000


def pixels(count: int) -> list[Tensor]:
    return [torch.full((3, 4, 4), float(i)) for i in range(count)]


def test_labels_stay_with_their_images() -> None:
    calibration = images(pixels(60), [i % 7 for i in range(60)], tokens=0, seed=3)
    for part in parts(calibration):
        assert part.labels is not None
        assert part.examples == 16
        for batch, labels in zip(part.batches, part.labels, strict=True):
            assert (batch["pixel_values"][:, 0, 0, 0] % 7).tolist() == labels.tolist()
    assert images(pixels(60), None, tokens=0, seed=3).render.labels is None


def test_an_image_counts_as_32_tokens() -> None:
    assert images(pixels(200), None, tokens=32 * 40, seed=0).verify.examples == 40
    assert images(pixels(30), None, tokens=32 * 40, seed=0).verify.examples == 10


@pytest.mark.parametrize("count", [0, 3, 11])
def test_too_few_images_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"has {count} images; at least 12 are needed"):
        images(pixels(count), None, tokens=64, seed=0)


def test_copies_of_an_image_count_once() -> None:
    with pytest.raises(ValueError, match="has 10 different examples; at least 12 are needed"):
        images(pixels(10) * 2, None, tokens=64, seed=0)


def read(folder: Path, limit: int = 100, seed: int = 0) -> tuple[list[Tensor], list[int] | None]:
    return read_images(folder, limit, seed, side=16, crop=12, mean=[0.5, 0.4, 0.3], std=[0.5, 0.25, 0.2])


def test_images_are_resized_cropped_and_scaled(tmp_path: Path) -> None:
    half = Image.new("RGB", (40, 20), (255, 0, 0))
    half.paste((0, 0, 255), (20, 0, 40, 20))
    half.save(tmp_path / "half.png")
    found, labels = read(tmp_path)
    assert labels is None
    assert found[0].shape == (3, 12, 12)
    red, blue = (
        (torch.tensor(colour) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.25, 0.2])
        for colour in ((1.0, 0, 0), (0, 0, 1.0))
    )
    assert torch.allclose(found[0][:, :, 2], red[:, None].expand(3, 12), atol=1e-6)
    assert torch.allclose(found[0][:, :, 9], blue[:, None].expand(3, 12), atol=1e-6)


def test_folders_of_images_are_classes(tmp_path: Path) -> None:
    models.save_images(tmp_path, 24, classes=3)
    found, labels = read(tmp_path)
    assert labels is not None
    assert sorted(set(labels)) == [0, 1, 2]
    assert [sum(label == i for label in labels) for i in range(3)] == [8, 8, 8]
    again, labels_again = read(tmp_path)
    assert labels == labels_again
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert read(tmp_path, seed=1)[1] != labels
    assert len(read(tmp_path, limit=5)[0]) == 5
    models.save_images(tmp_path, 1)  # one image outside any class: there are no classes
    assert read(tmp_path)[1] is None


def test_grey_and_transparent_images_are_made_rgb(tmp_path: Path) -> None:
    Image.new("L", (16, 16), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (16, 16), (1, 2, 3, 4)).save(tmp_path / "clear.png")
    assert [image.shape for image in read(tmp_path)[0]] == [(3, 12, 12)] * 2


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(ValueError, match="holds no image; give a folder"):
        read(tmp_path)
