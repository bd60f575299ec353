"""Spill: tensors kept in files until the work that needs them is done, each written whole or not at all."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Spill:
    """Tensors by name below `folder`. Safe from several processes: files are renamed into place."""

    folder: Path

    def __contains__(self, name: str) -> bool:
        return self.path(name).exists()

    def put(self, name: str, tensor: Tensor) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            save_file({"tensor": tensor.detach().cpu().contiguous()}, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, name: str) -> Tensor:
        """Raises KeyError when nothing of that name has been put."""
        if name not in self:
            raise KeyError(f"{name!r} has not been spilled to {self.folder}")
        return load_file(self.path(name))["tensor"]

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where the tensor of that name lies, or will."""
        return self.folder / f"{name}.safetensors"
