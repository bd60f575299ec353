"""Calibration data by a model's own tokenizer: what does not fit the model is named before anything is measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

import models
from bitplan.allocator import ProfileRequest, UsageError, profile_model
from bitplan.allocator.data import load_calibration
from bitplan.allocator.models import load
from bitplan.allocator.source import resolve
from shelf import Shelf


def test_tokens_fit_the_embedding(shelf: Shelf, tmp_path: Path) -> None:
    loaded = load(resolve(str(shelf.model("llama"))), tmp_path)
    part = load_calibration(loaded, str(shelf.text), tokens=512, seed=0).estimate
    assert max(int(batch["input_ids"].max()) for batch in part.batches) < models.VOCABULARY


def test_a_tokenizer_of_another_model_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shelf.model("llama"), tmp_path / "model"))
    words = [f"word{index}" for index in range(2000)]
    tokenizer = Tokenizer(kinds.WordLevel({word: index for index, word in enumerate(words)}, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)  # type: ignore[no-untyped-call]
    text = tmp_path / "text.txt"
    text.write_text(" ".join(words))
    request = ProfileRequest(str(folder), calibration=str(text), tokens=64, rounding="nearest")
    with pytest.raises(UsageError, match=r"gives token \d+, but its embedding has 300 rows; .* belongs to another model"):
        profile_model(request, home=tmp_path / "home")
