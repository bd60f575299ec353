"""Models that need no measuring: the parts of the allocator's face that would load a network, with made-up numbers.

What is planned from them is planned for real. What "has been measured" are files under the home folder, so that a worker
in another process sees them as it would see real ones. Losses are deterministic functions of the units' names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitplan import allocator
from bitplan.allocator import Plan, PlanRequest, ProfileRequest
from bitplan.allocator.errors import ModelError
from bitplan.allocator.solve import needs_profile
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.journal import journal
from bitplan.sensitivity.report import SensitivityReport
from bitplan.sensitivity.units import Fixed, Inventory, Matrix, Unit

if TYPE_CHECKING:
    import pytest

    from bitplan.api.schema import JobView
    from bitplan.api.settings import Settings
    from bitplan.api.store import Store

LAYERS, WIDTH, EXPERTS = 4, 64, 4
ROLES = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o"}
QUANTITY = "nats per token"


class FakeReport:
    """An ExecutionReport made by hand."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.passed: bool = document["passed"]

    def to_json(self) -> dict[str, Any]:
        return self.document


def inventory(model: str = "tiny") -> Inventory:
    """Four layers of attention and either a dense network or four experts, and a tied embedding."""
    units = [_unit("model.embed_tokens", "embedding", (256, WIDTH), None, shared_with=("lm_head",))]
    for layer in range(LAYERS):
        base = f"model.layers.{layer}"
        units += [_unit(f"{base}.{name}", role, (WIDTH, WIDTH), layer) for name, role in ROLES.items()]
        if model == "experts":
            units += [_unit(f"{base}.mlp.experts.{e}", "expert", (4 * WIDTH, WIDTH), layer, expert=e) for e in range(EXPERTS)]
        else:
            units += [_unit(f"{base}.mlp.{name}_proj", name, (4 * WIDTH, WIDTH), layer) for name in ("gate", "up", "down")]
    fixed = tuple(Fixed(f"model.layers.{layer}.norm.weight", (WIDTH,), "bf16", "a vector") for layer in range(LAYERS))
    fingerprint = hashlib.sha256(model.encode()).hexdigest()
    return Inventory(model, fingerprint, "LlamaForCausalLM", "causal-lm", "tokens", tuple(units), fixed)


def report(request: ProfileRequest) -> SensitivityReport:
    """Loss = mindedness of the unit * parameters / 4^bits; the own dtype loses nothing."""
    found = inventory(request.model)
    formats = request.palette(found)
    loss = np.array([[_loss(unit, name) for name in formats] for unit in found.units])
    return SensitivityReport(
        id=request.profile_id(found),
        metric=request.metric,
        quantity=QUANTITY,
        settings={"tokens": request.tokens},
        units=tuple(unit.name for unit in found.units),
        formats=formats,
        loss=loss,
        stderr=0.05 * loss,
        batches=8,
        inventory_fingerprint=found.fingerprint,
        render_fingerprint="r" * 64,
        data_fingerprint="d" * 64,
        seed=request.seed,
        seconds=1.5,
        versions={"bitplan": "0"},
    )


def plan(budget: str = "25%", model: str = "tiny", target: str = "native", pins: tuple[tuple[str, str], ...] = ()) -> Plan:
    """A plan from made-up losses."""
    request = PlanRequest(ProfileRequest(model), budget, target, pins=pins)
    return allocator.plan_from_profile(inventory(model), report(request.measured), request)


def evidence(of: Plan, passed: bool = True) -> dict[str, Any]:
    """A document of the shape of ExecutionReport.to_json()."""
    total, loss = of.predicted.bytes.total, of.predicted.loss
    return {
        "plan_id": of.id,
        "passed": passed,
        "promise_kept": passed,
        "verdict": "Bytes and kernels are as promised." if passed else "The bytes differ from the promise.",
        "quantity": QUANTITY,
        "bytes": {"predicted": total, "measured": total, "file_bytes": total + 512, "by_part": {"codes": total}},
        "loss": {"predicted": loss, "predicted_stderr": 0.05 * loss, "measured": 1.1 * loss, "measured_stderr": 0.08 * loss},
        "task": {"name": "perplexity", "untouched": 12.1, "plan": 12.6, "rival": 14.2},
        "rivals": [
            {"name": "int4-g64 everywhere", "bytes": total - 900, "loss": 2.4 * loss, "loss_stderr": 0.1 * loss},
            {"name": "int3-g64-asym, then int4-g64", "bytes": total - 10, "loss": 2.9 * loss, "loss_stderr": 0.2 * loss},
        ],
        "paired": {"difference": -1.3 * loss, "stderr": 0.1 * loss},
        "unit_errors": dict.fromkeys(of.assignment, 0.001),
        "kernel_checks": [{"unit": "u", "backend": "torch", "max_difference": 0.0, "tolerance": 1e-3, "passed": True}],
        "data_fingerprint": "d" * 64,
        "examples": 64,
        "device": "cpu",
        "versions": {"bitplan": "0"},
        "seconds": 2.0,
    }


def install(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Put these functions in the allocator's place; without a monkeypatch for good, in a process that is the fake's own."""
    for function in (
        source_key,
        known_inventory,
        inspect_model,
        known_profile,
        open_profile,
        profile_model,
        allocate,
        verify,
        execute,
    ):
        if monkeypatch is None:
            setattr(allocator, function.__name__, function)
        else:
            monkeypatch.setattr(allocator, function.__name__, function)


def source_key(model: str, found_whole: str | None = None) -> str | None:
    if model == "broken":
        raise ModelError("model 'broken' is truncated; fetch it again")
    return "key"


def known_inventory(model: str, home: Path | str | None) -> Inventory | None:
    if model == "broken":
        raise ModelError("model 'broken' is truncated; fetch it again")
    return inventory(model) if _mark(home, "inspected", model).exists() else None


def inspect_model(model: str, *, home: Path | str | None = None, progress: Any = None, stream: bool = False) -> Inventory:
    _tell(progress, "inspect", 3)
    if model == "broken":
        raise ModelError("model 'broken' is truncated; fetch it again")
    _mark(home, "inspected", model).touch()
    return inventory(model)


def known_profile(request: ProfileRequest, home: Path | str | None) -> SensitivityReport | None:
    return report(request) if _mark(home, "profiled", report(request).id).exists() else None


def profile_model(request: ProfileRequest, *, home: Path | str | None = None, progress: Any = None) -> SensitivityReport:
    inspect_model(request.model, home=home, progress=progress)
    if known_profile(request, home) is None:
        _tell(progress, "estimate", 5)
        _mark(home, "profiled", report(request).id).touch()
    return report(request)


@dataclass(frozen=True)
class Piece:
    """One of `profile_work`, which loads torch."""

    name: str
    needs: tuple[str, ...] = ()
    chained: bool = True
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


class Work:
    """A ProfileWork of five pieces, each a file."""

    hollow = None
    pieces = tuple(Piece(f"piece {number}") for number in range(5))
    tables = ()

    def __init__(self, request: ProfileRequest, home: Path | str | None) -> None:
        self.request, self.home = request, home
        self.inventory, self.identity = inventory(request.model), report(request).id

    def run(self, name: str, progress: Any) -> None:
        mark = _mark(self.home, "pieces", f"{self.identity} {name}")
        if not mark.exists():
            _tell(progress, "render", 5)
            mark.touch()
            journal(f"{self.identity} {name}")

    def report(self, progress: Any) -> SensitivityReport:
        _tell(progress, "estimate", 5)
        _mark(self.home, "profiled", self.identity).touch()
        return report(self.request)


def open_profile(request: ProfileRequest, *, home: Path | str | None = None, progress: Any = None) -> SensitivityReport | Work:
    inspect_model(request.model, home=home, progress=progress)
    return known_profile(request, home) or Work(request, home)


def allocate(model: str, budget: str, *, home: Path | str | None = None, progress: Any = None, **settings: Any) -> Plan:
    profile = ProfileRequest(model, **{name: settings[name] for name in ("metric", "formats", "calibration", "tokens", "seed")})
    latency = settings["latency_ms"], settings["latency_device"]
    request = PlanRequest(profile, budget, settings["target"], settings["solver"], tuple(settings["pins"].items()), *latency)
    request.check()
    found = inspect_model(model, home=home, progress=progress)
    allocator.check_budget(found, request)
    measured = None
    if needs_profile(found, request):
        measured = profile_model(request.measured, home=home, progress=progress)
    return allocator.plan_from_profile(found, measured, request)


def verify(
    of: Plan, *, data: str | None = None, device: str = "auto", home: Path | str | None = None, progress: Any = None
) -> FakeReport:
    _tell(progress, "verify", 4)
    return FakeReport(evidence(of, passed=of.model.id != "liar"))


def execute(
    of: Plan, out: Path | str | None = None, *, device: str = "auto", home: Path | str | None = None, progress: Any = None
) -> None:
    _tell(progress, "execute", 2)
    if out is not None:
        Path(out).mkdir(parents=True)
        (Path(out) / "plan.json").write_text(of.to_json())


def _unit(name: str, role: str, shape: tuple[int, int], layer: int | None, **more: Any) -> Unit:
    kind: Any = role if role in ("embedding", "expert") else "linear"
    return Unit(name, kind, role, (Matrix(name, shape),), "bf16", layer, **more)


def _loss(unit: Unit, format_name: str) -> float:
    minds = 1 + int(hashlib.sha256(unit.name.encode()).hexdigest()[:4], 16) / 4096
    return 0.0 if format_name == "bf16" else float(minds * unit.parameters * 1e-5 / 4 ** FORMATS[format_name].bits)


def _mark(home: Path | str | None, what: str, name: str) -> Path:
    folder = allocator.home_folder(home) / "fake" / what
    folder.mkdir(parents=True, exist_ok=True)
    short = name if len(name) < 100 else hashlib.sha256(name.encode()).hexdigest()
    return folder / short.replace("/", "_")


def _tell(progress: Any, stage: str, total: int) -> None:
    for done in range(total + 1):
        if progress is not None:
            progress(stage, done, total)


def do_oldest_job(store: Store, settings: Settings) -> JobView:
    """Do the oldest job of a service's store, here and now, without the engine."""
    from hands import do

    return do(store.jobs.active("queued")[0], store, settings)
