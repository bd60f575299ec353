"""Makes `bitplan` importable from a checkout of any name that was never installed. Imported before anything of it.

The root of a checkout is the package itself, so no entry of sys.path would do. What is installed under that name, if anything, is
passed over: the kernels that are measured must be those beside this file.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if "--dry-run" in sys.argv:  # Triton decides while it is imported whether it interprets
    os.environ["TRITON_INTERPRET"] = "1"
if "bitplan" not in sys.modules:
    spec = importlib.util.spec_from_file_location("bitplan", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["bitplan"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bitplan"])
