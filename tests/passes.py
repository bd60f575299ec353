"""What a streamed profile does: the passes through blocks and the weights opened, counted as they happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitplan.sensitivity import chain, hollow, streaming


class Stopped(Exception):
    """Raised in the middle of things."""


class Watch:
    """Counts what the tasks of all streams do, and stops them before the `stop`-th pass through a block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stop, self.passed = 10**9, 0
        self.opened: Counter[str] = Counter()
        through, opened = chain.through, hollow.opened

        def counted(*arguments: Any) -> Tensor:
            if self.passed == self.stop:
                self.stop = 10**9
                raise Stopped
            self.passed += 1
            return through(*arguments)

        def open_counted(chain: Any, read: Any, path: str) -> Any:
            self.opened[path] += 1
            return opened(chain, read, path)

        monkeypatch.setattr(streaming, "through", counted)
        monkeypatch.setattr(streaming, "opened", open_counted)

    @property
    def blocks(self) -> int:
        """How often a block was opened."""
        return sum(count for path, count in self.opened.items() if path)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
