"""Models that were never measured: an inventory and a profile made from a seed, over a folder that is small on disk."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np

from bitplan.allocator import Inventory, ProfileRequest, SensitivityReport
from bitplan.allocator.profile import INVENTORY_VERSION
from bitplan.allocator.source import source_key
from bitplan.api.schema import ProfileBody
from bitplan.api.store import Store
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.units import Matrix, Unit

PALETTE = tuple(f"int{bits}-g64-asym" for bits in (2, 3, 4, 5, 6))  # with the model's own bf16: six formats
DENSE = {
    "q": (576, 576),
    "k": (192, 576),
    "v": (192, 576),
    "o": (576, 576),
    "gate": (1536, 576),
    "up": (1536, 576),
    "down": (576, 1536),
}
EXPERT = {"gate": (2048, 7168), "up": (2048, 7168), "down": (7168, 2048)}
LAYERS, EXPERTS = 58, 256


def dense_units(layers: int = 30) -> list[Unit]:
    """Seven matrices a layer, of SmolLM2-135M's shapes: 210 in 30 layers."""
    return [
        Unit(name, "linear", role, (Matrix(name, shape),), "bf16", layer)
        for layer in range(layers)
        for role, shape in DENSE.items()
        for name in [f"model.layers.{layer}.{role}_proj"]
    ]


def expert_units(layers: int = LAYERS, experts: int = EXPERTS) -> list[Unit]:
    """Three matrices an expert, of DeepSeek-V3's shapes: 44,544 in 58 layers of 256."""
    return [
        Unit(name, "expert", "expert", (Matrix(name, shape),), "bf16", layer, expert)
        for layer in range(layers)
        for expert in range(experts)
        for role, shape in EXPERT.items()
        for name in [f"model.layers.{layer}.mlp.experts.{expert}.{role}_proj"]
    ]


def model_folder(folder: Path) -> Path:
    """A folder that looks like a model: a configuration and one safetensors file of one number."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    return folder


def keep(model: Path, units: list[Unit], home: Path, store: Store, seed: int = 0) -> SensitivityReport:
    """Make the model inspected and profiled: losses fall about fourfold a bit, and units differ as those of real models do."""
    fingerprint = hashlib.sha256(f"{len(units)} {seed}".encode()).hexdigest()
    inventory = Inventory(str(model), fingerprint, "Synthetic", "causal-lm", "tokens", tuple(units), ())
    body = ProfileBody(model=str(model), formats=PALETTE)
    request: ProfileRequest = body.profile_request()
    formats = request.palette(inventory)
    rng, count = np.random.default_rng(seed), len(units)
    importance = 1e-9 * np.array([unit.parameters for unit in units]) * np.exp(rng.normal(0, 1.2, count))
    bits = np.array([FORMATS[name].bits for name in PALETTE])
    decay = 2.0 ** (-rng.uniform(1.7, 2.1, (count, 1)) * bits) * np.exp(rng.normal(0, 0.15, (count, len(bits))))
    loss = np.hstack([importance[:, None] * decay, np.zeros((count, 1))])
    report = SensitivityReport(
        id=request.profile_id(inventory),
        metric=request.metric,
        quantity="nats per token",
        settings={},
        units=tuple(unit.name for unit in units),
        formats=formats,
        loss=loss,
        stderr=0.05 * loss,
        batches=8,
        inventory_fingerprint=fingerprint,
        render_fingerprint="",
        data_fingerprint="",
        seed=seed,
        seconds=0.0,
        versions={},
    )
    key = source_key(str(model))
    assert key is not None
    inventories = home / "inventories"
    inventories.mkdir(parents=True, exist_ok=True)
    document = {"version": INVENTORY_VERSION, "inventory": inventory.to_json()}
    (inventories / f"{key[:32]}.json").write_text(json.dumps(document))
    store.put_inventory(inventory)
    store.put_profile(report, body)
    return report
