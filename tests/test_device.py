"""Where torch computes: the choice, and everything done on a device that is not the CPU, with the CPU's results to the last bit.

The device is pretended (`pretend_device.py`) and lives in a process of its own, where the functions called `_..._there` run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
import pretend_device
from bitplan.allocator import ProfileRequest, UsageError, allocate_request, execute, load_executed, profile_model, verify
from bitplan.allocator.device import choose_device, free_bytes, full_precision
from bitplan.allocator.request import PlanRequest
from bitplan.kernels import float64, product
from bitplan.kernels.formats import FORMATS
from bitplan.kernels.rounding import inverse_factor, round_gptq, round_nearest
from bitplan.sensitivity import METRICS
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.network import CPU, Network, moved
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.report import SensitivityReport
from bitplan.sensitivity.spikes import find_spikes
from bitplan.sensitivity.study import Study
from shelf import Shelf

KINDS = ("llama", "mixtral", "dinov2", "residual")  # a tied head, experts, pooled vectors, convolutions
COMMON = ("kl_fisher", "output_error", "weight_error", "divergence")
PALETTE = ("int2-g32", "int4-g64-asym", "bf16", "fp32")
PLANNED = ("int3-g64-asym", "int8-g64-asym")
THERE = f"{pretend_device.NAME}:0"  # a name: torch knows the device in the other process only
Elsewhere = Callable[..., Any]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """Calls a function of this file in a process that has the pretended device."""
    with ProcessPoolExecutor(1, get_context("spawn"), _start) as pool:
        yield lambda function, *given: pool.submit(function, *given).result()


def _start() -> None:
    pretend_device.plug_in()
    for switch in (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_mem_efficient_sdp):
        switch(False)  # the CPU too has its attention unfused, or last digits would differ
    patch.object(product, "AUTOMATIC", ("torch",)).start()  # and its products are those of torch


class TestChoice:
    @pytest.fixture
    def two_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)

    @pytest.fixture
    def no_accelerator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)

    @pytest.mark.usefixtures("two_gpus")
    def test_auto_takes_the_accelerator_that_there_is(self) -> None:
        for name, chosen in {"auto": "cuda:1", "cuda": "cuda:1", "cuda:0": "cuda:0", "cpu": "cpu"}.items():
            assert choose_device(name) == torch.device(chosen)

    @pytest.mark.usefixtures("no_accelerator")
    def test_auto_is_the_cpu_where_there_is_none(self) -> None:
        assert choose_device("auto") == choose_device("cpu") == CPU

    @pytest.mark.usefixtures("two_gpus")
    @pytest.mark.parametrize("name", ["mps", "cuda:2", "cuda:-1", "meta", "", "warp drive"])
    def test_a_device_that_is_not_there_is_refused_with_what_is(self, name: str) -> None:
        with pytest.raises(UsageError, match=rf"no device '{name}' on this machine; choose one of: auto, cpu, cuda:0, cuda:1$"):
            choose_device(name)

    @pytest.mark.usefixtures("no_accelerator")
    def test_it_is_refused_before_anything_is_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*given: object) -> None:
            raise AssertionError("it was loaded")

        monkeypatch.setattr("bitplan.allocator.models.load", refuse)
        request = ProfileRequest(str(models.save("residual", tmp_path / "model")), device="cuda")
        for ask in (profile_model, lambda request, home: allocate_request(PlanRequest(request, "50%"), home=home)):
            with pytest.raises(UsageError, match="no device 'cuda'"):
                ask(request, home=tmp_path / "home")

    def test_a_profile_is_the_same_whatever_it_is_measured_on(self) -> None:
        inventory = models.network("residual").inventory
        one, two = (ProfileRequest("model", device=name).profile_id(inventory) for name in ("auto", "cuda:1"))
        assert one == two

    def test_memory_that_torch_cannot_tell_is_taken_to_be_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert 0 < free_bytes(CPU) < float("inf")
        monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (5, 7))
        assert free_bytes(torch.device("cuda:0")) == 5

        def refuse(device: torch.device) -> tuple[int, int]:
            raise RuntimeError("not for this device")

        monkeypatch.setattr(torch.accelerator, "get_memory_info", refuse)
        assert free_bytes(torch.device("cuda:0")) == float("inf")

    def test_full_precision_is_asked_for_and_given_back(self) -> None:
        cudnn: Any = torch.backends.cudnn
        before = cudnn.conv.fp32_precision
        with full_precision():
            assert cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert cudnn.conv.fp32_precision == before


class TestPretendedDevice:
    """That it refuses what CUDA refuses: else what follows would prove nothing."""

    def test_what_mixes_devices_is_refused(self, elsewhere: Elsewhere) -> None:
        told = elsewhere(_mixtures_there)
        assert len(told) == 12
        for name, (kind, words) in told.items():
            assert kind == "RuntimeError", name
            assert "device" in words or name == "numpy", name

    def test_what_cuda_allows_is_allowed(self, elsewhere: Elsewhere) -> None:
        elsewhere(_allowed_there)

    def test_float64_is_refused_when_it_is_to_be(self, elsewhere: Elsewhere) -> None:
        elsewhere(_float64_there)

    def test_tied_weights_stay_tied(self, elsewhere: Elsewhere) -> None:
        elsewhere(_tied_there)

    @pytest.mark.parametrize("what", ["batches", "renderings", "draws"])
    def test_what_is_left_on_the_cpu_is_caught(self, what: str, elsewhere: Elsewhere) -> None:
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            elsewhere(_left_behind_there, what)


class TestMetrics:
    @pytest.mark.parametrize("kind", KINDS)
    def test_gptq_gives_the_same_words(self, kind: str, elsewhere: Elsewhere) -> None:
        here, there = elsewhere(_renderings_there, kind)
        assert here
        assert here == there

    def test_what_is_rounded_stays_on_the_device(self, elsewhere: Elsewhere) -> None:
        elsewhere(_rounded_there)

    @pytest.mark.parametrize("index", range(len(METRICS)), ids=list(METRICS))
    def test_every_metric_gives_the_same_table(self, index: int, elsewhere: Elsewhere) -> None:
        """Each on a model of one kind, in turn."""
        metric = list(METRICS)[index]
        _same(*elsewhere(_tables_there, "mixtral" if METRICS[metric].only else KINDS[index % len(KINDS)], metric, True))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("metric", COMMON)
    def test_the_common_ones_do_on_every_kind_of_model(self, metric: str, kind: str, elsewhere: Elsewhere) -> None:
        _same(*elsewhere(_tables_there, kind, metric, True))

    @pytest.mark.parametrize("metric", COMMON)
    def test_and_where_the_device_has_no_float64(self, metric: str, elsewhere: Elsewhere) -> None:
        for kind in ("mixtral", "residual"):
            _same(*elsewhere(_tables_there, kind, metric, False))

    def test_spikes(self, elsewhere: Elsewhere) -> None:
        here, there = elsewhere(_spikes_there)
        assert here == there


class TestAllocator:
    """From a folder with a model to the verified plan."""

    @pytest.mark.parametrize("kind", ["llama", "mixtral"])
    def test_a_streamed_profile_is_the_same(self, kind: str, tmp_path: Path, elsewhere: Elsewhere) -> None:
        request = _request(kind, tmp_path)
        reports = elsewhere(_profiles_there, request, tmp_path)
        for report in reports:
            _same((report.loss, report.stderr), (reports[0].loss, reports[0].stderr))
            assert report.id == reports[0].id
        assert [report.settings["device"] for report in reports] == ["cpu", THERE, THERE]

    def test_memory_of_the_device_decides_on_streaming(self, tmp_path: Path, elsewhere: Elsewhere) -> None:
        request = replace(_request("llama", tmp_path), metric="output_error", rounding="nearest")
        assert "stream" in elsewhere(_stages_there, request, tmp_path / "short", 1000)
        assert "stream" not in elsewhere(_stages_there, request, tmp_path / "enough", 10**9)

    @pytest.mark.parametrize("kind", ["llama", "masked", "residual"])
    def test_execute_and_verify(self, kind: str, tmp_path: Path, elsewhere: Elsewhere) -> None:
        here, there = elsewhere(_verified_there, _request(kind, tmp_path), tmp_path)
        assert here.pop("device") == "cpu"
        assert there.pop("device") == THERE
        assert here["kernel_checks"]
        for report in (here, there):
            del report["seconds"]
        assert here == there
        files = [tmp_path / name / "model.safetensors" for name in ("cpu", pretend_device.NAME)]
        assert files[0].read_bytes() == files[1].read_bytes()
        load_executed(tmp_path / pretend_device.NAME)


def _same(here: tuple[Any, Any], there: tuple[Any, Any]) -> None:
    """Two losses with their standard errors are the same to the last bit."""
    for one, two in zip(here, there, strict=True):
        assert (one is None) is (two is None)
        assert one is None or one.tobytes() == two.tobytes(), np.nanmax(np.abs(one - two))


def _request(kind: str, folder: Path) -> ProfileRequest:
    shelf = Shelf(folder)
    return replace(shelf.profile_request(kind), formats=PLANNED, tokens=64)


# What follows runs in the process that has the device.


@dataclass(frozen=True, eq=False)
class Case:
    """Every fourth unit of a tiny model on a device, its renderings and data."""

    network: Network
    renderings: Renderings
    part: Part

    def tables(self, metric: str) -> tuple[Any, Any]:
        data = self.part if METRICS[metric].needs_data else None
        found = METRICS[metric].estimate(Study(self.network, self.renderings, data, PALETTE, 7))
        return found.loss, found.stderr


@cache
def _case(kind: str, name: str, exact: bool = True) -> Case:
    del exact  # made anew where float64 is missing
    device = torch.device(name)
    data, whole = models.calibration(kind).to(device), models.network(kind)
    some = replace(whole.inventory, units=whole.inventory.units[::4])
    network = moved(replace(whole, inventory=some), device)
    renderings = Renderings(Path(mkdtemp()), network, "gptq", models.fewer(data.render, 2))
    renderings.make([(unit, fmt) for unit in some.units for fmt in PALETTE])
    return Case(network, renderings, models.fewer(data.estimate, 2))


def _tables_there(kind: str, metric: str, exact: bool) -> tuple[Any, Any]:
    here = _case(kind, "cpu").tables(metric)
    if exact:
        return here, _case(kind, THERE).tables(metric)
    with pretend_device.without_float64(), patch.object(float64, "WITHOUT", ("mps", pretend_device.NAME)):
        return here, _case(kind, THERE, exact=False).tables(metric)


def _renderings_there(kind: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    folders = [_case(kind, name).renderings.folder for name in ("cpu", THERE)]
    here, there = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    return here, there


def _rounded_there() -> None:
    """Also with inputs that never occur, which GPTQ has a way of its own for."""
    weight, fmt = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(THERE), FORMATS["int3-g64-asym"]
    never = inverse_factor(torch.zeros(64, 64).to(THERE))
    for packed in (round_nearest(weight, fmt), *round_gptq(weight, never, [fmt])):
        assert {str(tensor.device) for tensor in packed.tensors().values()} == {THERE}
    assert {str(tensor.device) for tensor in (never.order, never.upper, never.importance)} == {THERE}


def _spikes_there() -> tuple[Any, Any]:
    cases = [_case("llama", name) for name in ("cpu", THERE)]
    here, there = (find_spikes(case.network, case.part) for case in cases)
    return here, there


def _profiles_there(request: ProfileRequest, home: Path) -> list[SensitivityReport]:
    """On the CPU; on the device, the automatic choice, in memory and, with an interruption, streamed."""
    here = profile_model(replace(request, device="cpu"), home=home / "cpu")
    whole = profile_model(request, home=home / "whole")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "stream" and done > total // 2:
            raise KeyboardInterrupt

    resumed = partial(profile_model, replace(request, stream=True), home=home / "resumed")
    with pytest.raises(KeyboardInterrupt):
        resumed(progress=stop)
    return [here, whole, resumed()]


def _stages_there(request: ProfileRequest, home: Path, free: float) -> set[str]:
    """What a profile tells of, where so much memory of the device is free."""
    stages: set[str] = set()

    def tell(stage: str, done: int, total: int) -> None:
        stages.add(stage)

    with patch("bitplan.allocator.device.free_bytes", lambda device: 10**12 if device == CPU else free):
        profile_model(request, home=home, progress=tell)
    return stages


def _verified_there(request: ProfileRequest, folder: Path) -> tuple[Any, Any]:
    """What verify reports on the CPU and on the device, of a plan that was measured on the device."""
    plan = allocate_request(PlanRequest(request, "30%"), home=folder / "home")
    for name in ("cpu", pretend_device.NAME):
        module = execute(plan, folder / name, device=name, home=folder / "home")
        assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {name}
    here, there = (verify(plan, device=name, home=folder / "home").to_json() for name in ("cpu", "auto"))
    return here, there


def _left_behind_there(what: str) -> None:
    case = _case("llama", THERE)
    if what == "batches":
        replace(case, part=_case("llama", "cpu").part).tables("output_error")
    elif what == "renderings":
        replace(case, renderings=_case("llama", "cpu").renderings).tables("output_error")
    else:
        with patch("bitplan.sensitivity.network.random_direction", lambda network, output, *rest: torch.ones(output.shape)):
            case.tables("kl_fisher")


def _mixtures_there() -> dict[str, tuple[str, str]]:
    """How each of these ends: the kind of error, and what it says."""
    x, cpu, one = torch.arange(3.0).to(THERE), torch.ones(3), torch.tensor([0])
    asked: dict[str, Callable[[], object]] = {
        "sum": lambda: x + cpu,
        "sum, the other way": lambda: cpu + x,
        "in place": lambda: cpu.add_(x),
        "product": lambda: x @ cpu,
        "stack": lambda: torch.stack([x[0], torch.tensor(1.0)]),
        "concatenation": lambda: torch.cat([x, cpu]),
        "index on the device": lambda: cpu[one.to(THERE)],
        "index_add": lambda: x.index_add(0, one, x[:1]),
        "new values": lambda: x.index_put_((one,), cpu[:1]),
        "embedding": lambda: nn.functional.embedding(one, x[:, None]),
        "random numbers": lambda: torch.randn(3, generator=torch.Generator(), device=THERE),
        "numpy": lambda: x.numpy(),
    }
    told = {}
    for name, ask in asked.items():
        try:
            told[name] = ("", str(ask()))
        except Exception as error:
            told[name] = (type(error).__name__, str(error))
    return told


def _allowed_there() -> None:
    x = torch.tensor([1.0, -2.0, 3.0]).to(THERE)
    made: list[Tensor] = [
        x + torch.tensor(1.0),
        torch.where(x > 0, x, torch.tensor(0.0)),
        x[torch.tensor([0, 2])],
        torch.zeros(2, device=x.device),
        torch.arange(4, device=x.device),
        torch.empty_like(x).copy_(torch.ones(3)),
        torch.ones(3).to(x),
    ]
    assert {str(tensor.device) for tensor in made} == {THERE}
    assert torch.arange(2, 8, 3, device=x.device).shape == (2,)
    assert torch.eye(3, 4, device=x.device).shape == (3, 4)
    assert torch.linspace(0, 1, 5, device=x.device).shape == (5,)
    assert torch.ones(3).copy_(x).device == x.cpu().device == CPU
    assert x.sum().item() == 2
    assert x.cpu().numpy().tolist() == x.tolist() == [1, -2, 3]
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(given.square().sum(), given)
    assert str(gradient.device) == THERE
    assert gradient.tolist() == [2, -4, 6]


def _float64_there() -> None:
    x = torch.ones(3).to(THERE)
    assert str(x.double().device) == THERE
    with pretend_device.without_float64():
        for ask in (x.double, lambda: x.sum(dtype=torch.float64)):
            with pytest.raises(TypeError, match=r"no torch\.float64"):
                ask()
        assert x.cpu().double().sum().item() == 3


def _tied_there() -> None:
    network = moved(models.network("llama"), torch.device(THERE))
    table, head = (network.module.get_parameter(f"{name}.weight") for name in ("model.embed_tokens", "lm_head"))
    assert table is head
    assert table.device == network.device == torch.device(THERE)
