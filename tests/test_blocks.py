from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import models
from bitplan.sensitivity.blocks import block_of, blocks, watch_blocks
from bitplan.sensitivity.network import run

PATHS = {
    "llama": ["model.layers.0", "model.layers.1"],
    "gpt2": ["transformer.h.0", "transformer.h.1"],
    "mixtral": ["model.layers.0", "model.layers.1"],
    "bert": ["encoder.layer.0", "encoder.layer.1"],
    "residual": ["layer1.0", "layer2.0"],
    "resnet": ["resnet.encoder.stages.0", "resnet.encoder.stages.1"],
}


@pytest.mark.parametrize("kind", models.KINDS)
def test_blocks_follow_the_layers_of_the_inventory(kind: str) -> None:
    network = models.network(kind)
    units = network.inventory.units
    found = blocks(units)
    if kind in PATHS:
        assert list(found) == PATHS[kind]
    for path, members in found.items():
        network.module.get_submodule(path)
        assert len({units[index].layer for index in members}) == 1
        assert all(block_of(units[index]) == path for index in members)
    held = sorted(index for members in found.values() for index in members)
    assert held == [index for index, unit in enumerate(units) if unit.layer is not None]


@pytest.mark.parametrize("kind", models.KINDS)
def test_what_a_block_gives_is_what_the_next_receives(kind: str) -> None:
    network, batch = models.network(kind), models.calibration(kind).estimate.batches[0]
    paths = list(blocks(network.inventory.units))
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    with torch.no_grad(), watch_blocks(network, batch, paths, lambda *one: seen.append(one)):
        run(network, batch)
    assert [path for path, _, _ in seen] == paths
    for (_, _, given), (_, received, _) in pairwise(seen):
        assert torch.equal(given, received)
    with torch.no_grad():
        run(network, batch)
    assert len(seen) == len(paths)  # nothing is watched any more


def test_masked_tokens_are_no_rows() -> None:
    network, batch = models.network("bert"), models.calibration("bert").estimate.batches[0]
    mask = batch["attention_mask"].clone()
    mask[0, -3:] = 0
    batch = {**batch, "attention_mask": mask}
    counts: list[int] = []
    with torch.no_grad(), watch_blocks(network, batch, ["encoder.layer.0"], lambda path, x, y: counts.append(len(y))):
        run(network, batch)
    assert counts == [int(mask.sum())] == [mask.numel() - 3]


def test_positions_of_a_feature_map_are_rows() -> None:
    network, batch = models.network("residual"), models.calibration("residual").estimate.batches[0]
    taken: list[tuple[torch.Size, torch.Size]] = []
    with torch.no_grad(), watch_blocks(network, batch, ["layer2.0"], lambda path, x, y: taken.append((x.shape, y.shape))):
        run(network, batch)
    examples = len(batch["pixel_values"])
    assert taken == [((examples * 32 * 32, 8), (examples * 16 * 16, 16))]


def test_a_block_without_hidden_states_is_named() -> None:
    network = models.network("residual")
    network.module.get_submodule("layer1.0").forward = lambda x: None
    batch = models.calibration("residual").estimate.batches[0]
    with (
        pytest.raises(ValueError, match=r"the block layer1\.0 receives or gives no hidden states"),
        torch.no_grad(),
        watch_blocks(network, batch, ["layer1.0"], lambda *one: None),
    ):
        run(network, batch)
