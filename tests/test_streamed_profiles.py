"""Streamed profiles from the allocator down: the same report, whatever interrupts it, in little memory."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import models
from bitplan.allocator import Interrupted, ModelError, ProfileRequest, SensitivityReport, UsageError, known_profile, profile_model
from passes import Watch, rewrite
from shelf import Shelf


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.fixture(scope="module")
def request_(shelf: Shelf) -> ProfileRequest:
    return ProfileRequest(
        str(shelf.model("llama")), formats=("int3-g64-asym",), tokens=4 * models.LONGEST, calibration=str(shelf.text), stream=True
    )


@pytest.fixture(scope="module")
def whole_home(request_: ProfileRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model was profiled in memory, in one go."""
    home = tmp_path_factory.mktemp("whole")
    profile_model(replace(request_, stream=False), home=home)
    return home


@pytest.fixture(scope="module")
def whole(request_: ProfileRequest, whole_home: Path) -> SensitivityReport:
    report = known_profile(request_, whole_home)
    assert report is not None
    return report


# Torch and the model's class are loaded once, and each fork of this program is killed at its own moment.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch, transformers.models.llama.modeling_llama
from bitplan.allocator import ProfileRequest, profile_model
model, homes, calibration, tokens, *formats = sys.argv[1:]
left, replace = 18, Path.replace
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def progress(stage, done, total):
    if (stage, done, when) == ("stream", 8, "between tasks"):
        kill()
def killing(path, target):
    global left
    left -= ".spill" in str(path)
    if left == 0:
        kill()
    return replace(path, target)
request = ProfileRequest(model, "kl_fisher", tuple(formats), calibration, int(tokens), stream=True)
for when in ("between tasks", "while writing"):
    child = os.fork()
    if child == 0:
        if when == "while writing":
            Path.replace = killing
        profile_model(request, home=Path(homes, when), progress=progress)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, when
"""


@pytest.fixture(scope="module")
def killed(request_: ProfileRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The homes of two processes that were killed."""
    homes = tmp_path_factory.mktemp("killed")
    assert request_.formats is not None
    arguments = [request_.model, str(homes), str(request_.calibration), str(request_.tokens), *request_.formats]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    return homes


def same(one: SensitivityReport, other: SensitivityReport) -> None:
    """Equal to the last bit in all but the time it took."""
    assert one.to_json() | {"seconds": 0} == other.to_json() | {"seconds": 0}


class TestProfiles:
    def test_a_streamed_report_is_the_report(self, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path) -> None:
        """Id, settings and all; either is found where the other is asked for; nothing else is left behind."""
        same(profile_model(request_, home=tmp_path), whole)
        assert not list((tmp_path / "partial").iterdir())
        for stream in (True, False):
            known = known_profile(replace(request_, stream=stream), tmp_path)
            assert known is not None
            same(known, whole)

    def test_experts_that_no_token_reaches(self, shelf: Shelf, tmp_path: Path) -> None:
        """They have the loss that the report of the model in memory gives them, and the same is said of them."""
        folder = shutil.copytree(shelf.model("mixtral"), tmp_path / "model")

        def starve(state: dict[str, Tensor]) -> None:
            """Every token has a large seventh number, which the router counts against the third expert."""
            state["model.embed_tokens.weight"][:, 7] = 9
            for layer in range(2):
                router = state[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
                router[:, 7] = 0
                router[2] = torch.nn.functional.one_hot(torch.tensor(7), 64) * -40

        rewrite(folder, starve)
        request = ProfileRequest(str(folder), "kl_fisher", ("int3-g64",), str(shelf.text), 256, rounding="nearest")
        loaded = profile_model(request, home=tmp_path / "loaded")
        same(profile_model(replace(request, stream=True), home=tmp_path / "streamed"), loaded)
        assert any("of 8 experts were reached by no token" in note for note in loaded.notes)

    def test_the_model_is_not_loaded(
        self, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from bitplan.allocator import models as loading

        def refuse(*arguments: object) -> None:
            raise AssertionError("it was loaded")

        monkeypatch.setattr(loading, "load", refuse)
        same(profile_model(request_, home=tmp_path), whole)

    def test_a_model_that_is_larger_than_memory_is_streamed_unasked(
        self, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from bitplan.allocator import profile

        stages: set[str] = set()
        monkeypatch.setattr(profile, "larger_than", lambda source, free_bytes: True)
        found = profile_model(
            replace(request_, stream=False), home=tmp_path, progress=lambda stage, done, total: stages.add(stage)
        )
        same(found, whole)
        assert stages == {"load", "stream"}
        with pytest.raises(UsageError, match=r"does not fit in memory and metric 'divergence' needs it there; take kl_fisher"):
            profile_model(replace(request_, stream=False, metric="divergence"), home=tmp_path)
        with pytest.raises(UsageError, match=r"does not fit in memory and --until-stable needs it there; leave"):
            profile_model(replace(request_, stream=False, until_stable="30%"), home=tmp_path)

    @pytest.mark.parametrize("kind", ["gpt2", "residual"])
    def test_a_model_that_cannot_be_streamed_says_so(self, kind: str, shelf: Shelf, tmp_path: Path) -> None:
        request = ProfileRequest(str(shelf.model(kind)), formats=("int4-g64",), calibration=str(shelf.text), stream=True)
        with pytest.raises(ModelError, match="leave --stream out"):
            profile_model(request, home=tmp_path)

    @pytest.mark.parametrize("after", [0, 5, 9])
    def test_interrupted_it_goes_on(
        self, after: int, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path, watch: Watch
    ) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("stream", after):
                raise Interrupted

        with pytest.raises(Interrupted):
            profile_model(request_, home=tmp_path, progress=stop)
        assert known_profile(request_, tmp_path) is None
        same(profile_model(request_, home=tmp_path), whole)
        assert (watch.passed, watch.blocks) == (10 * 4, 10)
        assert not list((tmp_path / "partial").iterdir())

    def test_interrupted_it_may_go_on_in_memory(self, request_: ProfileRequest, whole: SensitivityReport, tmp_path: Path) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("stream", 10):
                raise Interrupted

        with pytest.raises(Interrupted):
            profile_model(request_, home=tmp_path, progress=stop)
        assert len(list((tmp_path / "partial").glob("*.spill/*"))) > 10
        same(profile_model(replace(request_, stream=False), home=tmp_path), whole)
        assert not list((tmp_path / "partial").iterdir())

    @pytest.mark.parametrize("when", ["between tasks", "while writing"])
    def test_it_survives_being_killed(
        self, when: str, request_: ProfileRequest, whole: SensitivityReport, killed: Path, watch: Watch
    ) -> None:
        """kill -9 in another process: no handler runs, and a file may be half written."""
        home = killed / when
        spilled = list((home / "partial").glob("*.spill/*"))
        assert len([path for path in spilled if path.suffix == ".tmp"]) == (when == "while writing")
        same(profile_model(request_, home=home), whole)
        # Of the passes of four batches through ten tasks, these were still to do: those of sums and backward, two blocks each,
        # and, in the other case, seven of eight forward.
        assert watch.passed == (4 * 4 if when == "between tasks" else 4 * 4 + 7)
        assert not list((home / "partial").iterdir())

    def test_weights_that_are_no_numbers(self, request_: ProfileRequest, shelf: Shelf, tmp_path: Path) -> None:
        folder = shutil.copytree(shelf.model("llama"), tmp_path / "model")
        rewrite(folder, lambda state: state["model.layers.1.mlp.up_proj.weight"][3, 4].fill_(float("nan")))
        with pytest.raises(ModelError, match=r"'model.layers.1.mlp.up_proj.weight' holds 1 NaN or infinite values; repair"):
            profile_model(replace(request_, model=str(folder)), home=tmp_path / "home")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of one program's memory is read from Linux's /proc")
def test_memory_holds_a_few_blocks_and_not_the_model(shelf: Shelf, tmp_path: Path) -> None:
    """Ten blocks, 348 MB in float32, in less than half of that. A tiny model is streamed first: code takes memory too."""
    blocks, width = 10, 768
    config = models.hf.LlamaConfig(
        **{**models.LLAMA, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": blocks},
        tie_word_embeddings=True,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in models.hf.LlamaForCausalLM(config).named_parameters()}
    folder = tmp_path / "model"
    config.save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    for index, (name, shape) in enumerate(shapes.items()):
        numbers = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / shape[1] ** 0.5
        save_file({name: numbers.bfloat16()}, folder / f"{index:03}.safetensors", {"format": "pt"})
    code = """
import sys
from pathlib import Path
import psutil
from bitplan.allocator import ProfileRequest, profile_model
tiny, model, home, text = sys.argv[1:]
def stream(folder):
    request = ProfileRequest(folder, "kl_fisher", ("int4-g64",), text, 64, rounding="nearest", stream=True)
    profile_model(request, home=home)
stream(tiny)
baseline = psutil.Process().memory_info().rss
stream(model)
# Of this program alone: getrusage counts what its parent had when it was forked.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - baseline)
"""
    arguments = [str(shelf.model("llama")), str(folder), str(tmp_path / "home"), str(shelf.text)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    block = 4 * sum(math.prod(shape) for name, shape in shapes.items() if ".0." in name)
    whole = 4 * sum(math.prod(shape) for shape in shapes.values())
    assert whole > 9 * block
    assert block < int(done.stdout) < 5 * block
