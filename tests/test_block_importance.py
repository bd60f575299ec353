from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.changes import relative_errors
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.metrics import block_importance
from bitplan.sensitivity.network import Network
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.study import Study

FORMATS = ("int3-row",)


class Stack(nn.Module):
    """Images (B, 4, H, W) through 1 x 1 convolutions that keep, turn round, turn by a right angle, and widen."""

    def __init__(self) -> None:
        super().__init__()
        keep = torch.eye(4)
        angle = torch.zeros(4, 4)
        angle[0, 1], angle[1, 0], angle[2, 3], angle[3, 2] = -1, 1, -1, 1
        kernels = [2 * keep, -keep, angle, torch.ones(6, 4)]
        self.layers = nn.ModuleList()
        for kernel in kernels:
            conv = nn.Conv2d(4, len(kernel), 1, bias=False)
            conv.weight = nn.Parameter(kernel[:, :, None, None].clone())
            self.layers.append(nn.Sequential(conv))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def renderings(home: Path, network: Network) -> Renderings:
    made = Renderings(home, network, "nearest", None)
    made.make([(unit, FORMATS[0]) for unit in network.inventory.units])
    return made


def test_known_turns(tmp_path: Path) -> None:
    """Stretched: 0; turned round: 2; by a right angle: 1; widened, and in no block: 1 by rule."""
    torch.manual_seed(0)
    module = make_plain(Stack())
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    part = Part(tuple({"pixel_values": torch.randn(2, 4, 3, 3)} for _ in range(3)), frozenset("abc"))
    made = renderings(tmp_path, network)
    paths = [f"layers.{index}" for index in range(4)]
    turned = block_importance.turns(network, part.batches[0], paths)
    assert turned.tolist() == [
        [pytest.approx(0, abs=1e-12), 18],
        [pytest.approx(36, rel=1e-12), 18],
        [pytest.approx(18, rel=1e-6), 18],
        [0, 0],
    ]
    study = Study(network, made, part, FORMATS)
    found, relative = block_importance.estimate(study), relative_errors(study)
    sizes = np.array([[16], [16], [16], [24], [30]])
    assert [unit.parameters for unit in network.inventory.units] == sizes[:, 0].tolist()
    expected = np.array([[0], [2], [1], [1], [1]]) * sizes * relative
    assert found.loss == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert found.notes == ("2 of 5 units are in no block that keeps the shape of its input and have importance 1",)
    assert found.stderr is not None
    assert found.stderr == pytest.approx(np.zeros((5, 1)), abs=1e-6)  # every row turns by the same angle


@pytest.mark.parametrize("kind", ["llama", "bert", "mixtral"])
def test_it_is_one_minus_the_mean_cosine_of_the_hidden_states(kind: str, tmp_path: Path) -> None:
    """The hidden states that transformers gives out; padding left out; standard errors by leaving out batches."""
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    study = Study(network, renderings(tmp_path, network), part, FORMATS)
    found = block_importance.estimate(study)
    sums = np.zeros((3, 2, 2))  # batch, layer, (turn, rows)
    received: list[Tensor] = []
    layers = network.module.encoder.layer if kind == "bert" else network.module.model.layers  # type: ignore[union-attr]
    for b, batch in enumerate(part.batches):
        received.clear()
        with torch.no_grad():
            hidden = list(network.module(**batch, output_hidden_states=True).hidden_states)
            if kind != "bert":  # the last of them has the final norm in it
                last = layers[1].register_forward_hook(lambda module, inputs, output: received.append(output))  # type: ignore[union-attr,index]
                network.module(**batch)
                last.remove()
                hidden[2] = received[0] if isinstance(received[0], Tensor) else received[0][0]
        mask = batch.get("attention_mask", torch.ones(hidden[0].shape[:2])).bool()
        for layer in range(2):
            cosine = torch.cosine_similarity(hidden[layer][mask].double(), hidden[layer + 1][mask].double(), dim=-1)
            sums[b, layer] = float((1 - cosine).sum()), len(cosine)
    relative = relative_errors(study)[:, 0]

    def table(total: np.ndarray) -> np.ndarray:
        units = network.inventory.units
        importance = [1.0 if unit.layer is None else total[unit.layer, 0] / total[unit.layer, 1] for unit in units]
        return np.array(importance) * [unit.parameters for unit in units] * relative

    assert found.loss[:, 0] == pytest.approx(table(sums.sum(axis=0)), rel=1e-5)
    without = np.array([table(np.delete(sums, b, 0).sum(axis=0)) for b in range(3)])
    expected = np.sqrt(2 / 3 * np.square(without - without.mean(axis=0)).sum(axis=0))
    assert found.stderr is not None
    assert found.stderr[:, 0] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    outside = sum(unit.layer is None for unit in network.inventory.units)
    assert found.notes[0].startswith(f"{outside} of {len(network.inventory.units)} units are in no block")
