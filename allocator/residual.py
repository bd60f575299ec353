"""The residual network of CIFAR-10 (He et al. 2016), built from the shapes in a bare state dict.

    conv1 3x3, bn1;  layer1..layerS of blocks {conv1, bn1, conv2, bn2};  mean over the image;  linear

Each stage after the first halves the image in its first block; shortcuts there have no parameters (option A: every second
pixel, new channels zero). BatchNorm eps 1e-5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.extra:
            before = self.extra // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
        return functional.relu(x + y)


class ResidualNetwork(nn.Module):
    """Logits (B, classes) of images (B, 3, 32, 32)."""

    def __init__(self, widths: list[int], blocks: list[int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages, self.classes = len(widths), classes
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            before = widths[max(stage - 1, 0)]
            layers = [Block(before if i == 0 else width, width, 2 if i == 0 and stage > 0 else 1) for i in range(count)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(widths[-1], classes)

    def shape_config(self) -> dict[str, object]:
        """What the network can be built again from."""
        layers = [self.get_submodule(f"layer{stage + 1}") for stage in range(self.stages)]
        widths = [layer.get_submodule("0.bn1").num_features for layer in layers]
        blocks = [len(list(layer.children())) for layer in layers]
        return {"widths": widths, "blocks": blocks, "classes": self.classes}

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def from_state_dict(state: Mapping[str, Tensor]) -> ResidualNetwork:
    """The network whose tensors `state` holds. Raises ValueError, naming a tensor, when it is not such a network."""
    counts: dict[int, int] = {}
    for name in state:
        match = re.match(r"layer(\d+)\.(\d+)\.conv1\.weight$", name)
        if match:
            counts[int(match[1])] = max(counts.get(int(match[1]), 0), int(match[2]) + 1)
    if "conv1.weight" not in state or "linear.weight" not in state or sorted(counts) != list(range(1, len(counts) + 1)):
        first = next(iter(state), "nothing")
        raise ValueError(f"its tensors ({first}, ...) are not those of a residual network")
    widths = [state[f"layer{stage}.0.conv1.weight"].shape[0] for stage in sorted(counts)]
    with torch.device("meta"):
        network = ResidualNetwork(widths, [counts[s] for s in sorted(counts)], state["linear.weight"].shape[0])
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error
    return network
