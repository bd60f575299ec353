"""Every file imports, and the examples in its docstrings are true.

pytest's own --doctest-modules would import files by path, outside the package, where relative imports cannot work.
"""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("allocator", "api", "kernels", "sensitivity", "solvers")
RUN_BY_ALEMBIC = {Path("api/store/migrations/env.py")}  # cannot be imported: it needs what Alembic sets up around it
FILES = sorted({path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")} - RUN_BY_ALEMBIC)
MODULES = [".".join(("bitplan", *path.with_suffix("").parts)).removesuffix(".__init__") for path in FILES]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    if name.startswith("bitplan.kernels.triton"):
        pytest.importorskip("triton", reason="triton has no build for this machine")
    assert doctest.testmod(importlib.import_module(name)).failed == 0
