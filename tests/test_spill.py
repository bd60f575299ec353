from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitplan.sensitivity import spill as spilling
from bitplan.sensitivity.spill import Spill


@pytest.fixture
def spill(tmp_path: Path) -> Spill:
    return Spill(tmp_path / "not" / "there" / "yet")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3),
        torch.arange(6.0).view(2, 3).T,
        torch.arange(24.0).view(2, 3, 4)[:, 1],
        torch.tensor([1.5, -0.0, float("inf"), float("nan")]),
        torch.tensor(3, dtype=torch.int64),
        torch.empty(0, 4),
        torch.ones(3, dtype=torch.bfloat16, requires_grad=True),
    ],
    ids=["plain", "transposed", "slice", "special", "scalar", "empty", "with a gradient"],
)
def test_what_is_put_is_got(tensor: Tensor, spill: Spill) -> None:
    assert "h3-0" not in spill
    spill.put("h3-0", tensor)
    assert "h3-0" in spill
    found = spill.get("h3-0")
    assert found.dtype == tensor.dtype
    assert torch.equal(found.view(torch.uint8) if found.dim() else found, _bits(tensor))
    assert not found.requires_grad


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.uint8) if tensor.dim() else tensor


def test_what_is_got_may_be_changed_and_put_anew(spill: Spill) -> None:
    spill.put("x", torch.zeros(4))
    spill.get("x").add_(1)
    assert torch.equal(spill.get("x"), torch.zeros(4))
    before = spill.get("x")
    spill.put("x", torch.ones(2))
    assert torch.equal(spill.get("x"), torch.ones(2))
    assert torch.equal(before, torch.zeros(4))
    assert [path.name for path in spill.folder.iterdir()] == ["x.safetensors"]


def test_one_folder_is_one_spill_however_often_it_is_opened(spill: Spill) -> None:
    spill.put("a", torch.ones(1))
    other = Spill(spill.folder)
    assert "a" in other
    other.put("b", torch.zeros(1))
    assert "b" in spill
    assert "c" not in Spill(spill.folder.parent)


def test_what_was_not_put_is_named(spill: Spill) -> None:
    with pytest.raises(KeyError, match=f"'g7-1' has not been spilled to {spill.folder}"):
        spill.get("g7-1")


@pytest.mark.parametrize("there", [True, False], ids=["over an old one", "anew"])
@pytest.mark.parametrize("when", ["write", "rename"])
def test_a_write_that_fails_leaves_what_was_there(when: str, there: bool, spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if there:
        spill.put("x", torch.ones(2))
    with monkeypatch.context() as patched:
        if when == "write":
            patched.setattr(spilling, "save_file", fill)
        else:
            patched.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match="No space left"):
            spill.put("x", torch.zeros(3))
    assert ("x" in spill) == there
    assert [path.name for path in spill.folder.iterdir()] == ["x.safetensors"] * there
    if there:
        assert torch.equal(spill.get("x"), torch.ones(2))


def test_it_can_be_cleared_and_used_again(spill: Spill) -> None:
    spill.clear()  # of nothing
    spill.put("x", torch.ones(2))
    held = spill.get("x")
    (spill.folder / "x.12345.tmp").write_bytes(b"left by a kill")
    spill.clear()
    assert not spill.folder.exists()
    assert spill.folder.parent.exists()
    assert "x" not in spill
    assert torch.equal(held, torch.ones(2))
    spill.put("x", torch.zeros(1))
    assert torch.equal(spill.get("x"), torch.zeros(1))
