"""The repository root is the package, which has a few traps; each is held shut by a test here.

The root is on sys.path whenever someone runs `python -m ...` or uvicorn from it, so its folders can be seen as
top-level modules. For `kernels` that matters: transformers probes for, and then imports, a package of that name. A
folder without __init__.py is only a namespace candidate, which a real package always beats and which transformers
counts as absent.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import bitplan

ROOT = Path(__file__).parent.parent
FOLDERS = ("allocator", "api", "kernels", "sensitivity", "solvers")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

TINY_LLAMA = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
model = LlamaForCausalLM.from_pretrained(sys.argv[1])
assert model(torch.arange(8)[None]).logits.shape == (1, 8, 32)
"""


def run_python(code: str, *arguments: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def distribution(requirement: str) -> str:
    """`scikit_learn>=1 ; marker` is `scikit-learn`."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_kernels_folder_never_shadows_another_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(ROOT), str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    spec = importlib.util.find_spec("kernels")
    assert spec is not None
    assert spec.origin == str(tmp_path / "kernels" / "__init__.py")


@pytest.mark.slow
def test_transformers_works_from_the_root_of_the_checkout(tmp_path: Path) -> None:
    run_python(TINY_LLAMA, str(tmp_path), cwd=ROOT)


@pytest.mark.parametrize("module", ["bitplan", "bitplan.solvers", "bitplan.allocator", "bitplan.api", "bitplan.api.cli"])
def test_import_loads_no_torch(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; found = {{'torch', 'transformers', 'triton'}} & sys.modules.keys(); assert not found, found"
    run_python(code, cwd=tmp_path)


def test_only_one_top_level_name_is_installed() -> None:
    names = (importlib.metadata.distribution("bitplan").read_text("top_level.txt") or "").split()
    assert names == ["bitplan"]


@pytest.mark.slow
def test_the_wheel_holds_the_tree_and_nothing_else(tmp_path: Path) -> None:
    """A folder missing under `packages` or a file missing under `package-data` shows here."""
    tree = tmp_path / "any name"  # built from a copy: setuptools would pick up what an older build left in build/
    for name in (*FOLDERS, "__init__.py", "py.typed", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            tree.mkdir(exist_ok=True)
            shutil.copy(source, tree / name)
    # What the wheel holds is looked at, not how fast it is; with -O3, as it was installed, it takes ten times as long to compile.
    project = tree / "pyproject.toml"
    written = project.read_text(encoding="utf-8")
    assert '"-O3"' in written
    project.write_text(written.replace('"-O3"', '"-O0"'), encoding="utf-8")
    files = (path for name in FOLDERS for path in (tree / name).rglob("*") if path.is_file())
    expected = {f"bitplan/{path.relative_to(tree)}" for path in files if path.suffix not in (".c", ".h")}  # these are compiled
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("bitplan-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    compiled = {name for name in held if Path(name).suffix in (".so", ".pyd")}
    assert held - compiled == expected | {"bitplan/__init__.py", "bitplan/py.typed"}
    assert {name.partition(".")[0] for name in compiled} <= {"bitplan/kernels/cpu/_planes"}  # none where there is no compiler


def test_every_imported_library_is_a_declared_dependency() -> None:
    """What an extra brings is imported inside a function, which says what to install where it is missing."""
    declared = {distribution(requirement) for requirement in PROJECT["dependencies"]}
    extra = {distribution(requirement) for requirement in PROJECT["optional-dependencies"]["plot"]}
    offered = importlib.metadata.packages_distributions()
    missing = set()
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {child for node in ast.walk(tree) if isinstance(node, ast.Try | ast.If) for child in node.body}
        for node in ast.walk(tree):
            allowed = declared | extra if node in inside else declared
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = {node.module.split(".")[0]}
            else:
                continue
            for name in names - sys.stdlib_module_names - {"bitplan"}:
                if not allowed & {distribution(owner) for owner in offered.get(name, [name])}:
                    missing.add(f"{path.relative_to(ROOT)} imports {name}")
    assert missing == set()


def test_the_lock_pins_every_requirement_and_names_no_place() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r'[A-Za-z0-9._-]+==[0-9][0-9a-z.]*( ; [a-z_]+ == "\w+"( and [a-z_]+ == "\w+")*)?', line), line
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"], *PROJECT["optional-dependencies"]["dev"]]
    assert {distribution(requirement) for requirement in wanted} - {"bitplan"} <= {distribution(line) for line in lines}
    assert "torch==2.13.0" in lines


def test_the_public_face_is_what_it_says() -> None:
    assert set(bitplan.__all__) <= set(dir(bitplan))
    assert all(getattr(bitplan, name) is not None for name in bitplan.__all__)
    assert bitplan.__version__ == PROJECT["version"]
    with pytest.raises(AttributeError, match="nonsense"):
        _ = bitplan.nonsense
