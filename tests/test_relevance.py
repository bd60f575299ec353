"""Relevance through whole networks: conservation at every layer, known answers, constants, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import models
from bitplan.sensitivity.blocks import blocks
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.lrp import propagate, start
from bitplan.sensitivity.lrp_rules import Account, bounded_contributions
from bitplan.sensitivity.metrics import relevance
from bitplan.sensitivity.metrics.noise_to_signal import estimate as noise_to_signal
from bitplan.sensitivity.network import Batch, Network, predictions, run
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.render import Renderings
from bitplan.sensitivity.study import Study

FORMATS = ("int3-g32-asym", "int5-row")
CONSERVED = 1e-4


def arrivals(network: Network, batch: Batch) -> tuple[dict[str, Tensor], Account]:
    """The relevance at the output of every use, and the account."""
    found: dict[str, Tensor] = {}
    return found, propagate(network, batch, network.inventory.units, lambda use, rows, r: found.update({use.module: r}))


def check_conservation(network: Network, batch: Batch) -> Account:
    """All that is sent goes through every block, as every path from input to output leads through it, and arrives."""
    paths = list(blocks(network.inventory.units))
    sums: dict[str, float] = {}

    def make_hook(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda r: sums.update({path: float(r.sum(dtype=torch.float64))}))

        return hook

    handles = [network.module.get_submodule(path).register_forward_hook(make_hook(path)) for path in paths]
    try:
        _, account = arrivals(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    expected = float(predictions(network, batch))
    assert account.sent == pytest.approx(expected, rel=1e-6)
    assert account.arrived == pytest.approx(expected, rel=CONSERVED)
    assert account.worst <= CONSERVED
    assert account.lost <= CONSERVED * expected
    assert list(sums) == paths[::-1]
    for path, total in sums.items():
        assert total == pytest.approx(expected, rel=CONSERVED), path
    return account


def custom(module: nn.Module) -> Network:
    plain = make_plain(module)
    return Network(plain, take_inventory(plain, model_id="m", family="convolutional", outputs="classes"))


@pytest.mark.parametrize("kind", models.KINDS)
def test_what_is_sent_arrives_at_every_layer(kind: str) -> None:
    account = check_conservation(models.network(kind), models.calibration(kind).estimate.batches[0])
    assert account.spread == 0


@pytest.mark.parametrize("kind", ["llama", "bert", "dinov2"])
def test_attention_that_comes_taken_apart_gives_the_same(kind: str) -> None:
    batch = models.calibration(kind).estimate.batches[0]
    whole, apart = models.network(kind), models.network(kind)
    apart.module.set_attn_implementation("eager")  # type: ignore[operator]
    one, two = arrivals(whole, batch)[0], arrivals(apart, batch)[0]
    assert one.keys() == two.keys()
    for module, r in one.items():
        assert torch.allclose(r, two[module], rtol=1e-3, atol=1e-5 * float(r.abs().max())), module


def test_a_chain_of_two_layers_by_hand() -> None:
    """Linear, ReLU, linear: the rules once more, in plain loops."""
    torch.manual_seed(0)
    first, second = nn.Linear(5, 6), nn.Linear(6, 3)
    network = custom(nn.Sequential(nn.Flatten(), first, nn.ReLU(), second))
    x = torch.randn(4, 1, 1, 5)
    found, _ = arrivals(network, {"pixel_values": x})
    inner = torch.relu(first(x.flatten(1)))
    winners = second(inner).argmax(1)
    expected = torch.zeros(4, 6)
    for example, winner in enumerate(winners):
        gains = (inner[example] * second.weight[winner]).clamp(min=0)
        expected[example] = gains / gains.sum()
    assert torch.equal(found["3"][0], functional.one_hot(winners, 3).float())
    assert torch.allclose(found["1"][0], expected)


def test_a_branch_that_gives_most_of_a_sum_gets_most_of_its_relevance() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Linear(4, 4), nn.Linear(4, 4)
            for layer, scale in ((self.large, 3.0), (self.small, 1.0)):
                layer.weight.data = scale * torch.eye(4)
                layer.bias.data.zero_()

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            total: Tensor = self.large(x) + self.small(x)
            return total

    x = torch.rand(5, 1, 1, 4)
    found, account = arrivals(custom(Fork()), {"pixel_values": x})
    assert float(found["large"].sum()) == pytest.approx(0.75 * 5)
    assert float(found["small"].sum()) == pytest.approx(0.25 * 5)
    assert account.arrived == pytest.approx(5)


def test_pixels_take_the_rule_for_bounded_inputs() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    network = custom(nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    x = torch.randn(2, 3, 6, 6)
    found, _ = arrivals(network, {"pixel_values": x})
    r = found["0"][0].view(2, 36, 4).transpose(1, 2).view(2, 4, 6, 6)
    (pixels,) = bounded_contributions(lambda x, w: functional.conv2d(x, w, None, 1, 1), x, conv.weight, r, Account())
    leaves: list[Tensor] = []
    taken = x.clone()

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            leaves.append(inputs[0])

    with_leaf = conv.register_forward_pre_hook(keep)
    arrivals(network, {"pixel_values": taken})
    with_leaf.remove()
    assert leaves[0].grad is not None
    assert torch.allclose(leaves[0].grad, pixels.float(), atol=1e-6)
    assert bool((leaves[0].grad >= -1e-7).all())  # none negative, which no other rule gives for these weights


def test_masked_tokens_send_and_receive_nothing() -> None:
    network = models.network("masked")
    ids = models.calibration("masked").estimate.batches[0]["input_ids"][:1]
    mask = torch.ones_like(ids)
    mask[0, -5:] = 0
    taken: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(taken.append)  # type: ignore[no-untyped-call]

    handle = network.module.get_submodule("bert.embeddings").register_forward_hook(keep)
    account = propagate(network, {"input_ids": ids, "attention_mask": mask}, network.inventory.units, lambda *one: None)
    handle.remove()
    (r,) = taken
    assert account.sent == ids.numel() - 5
    assert float(r[0, -5:].abs().sum()) == 0
    assert float(r.sum()) == pytest.approx(account.sent, rel=CONSERVED)


def test_start() -> None:
    network = models.network("dinov2")
    batch = models.calibration("dinov2").estimate.batches[0]
    with torch.no_grad():
        u = run(network, batch)
    assert torch.equal(start(network, u, batch), u**2)
    logits = torch.tensor([[[0.1, 3.0, 1.0], [2.0, 1.0, 0.0]]])
    text = models.network("llama")
    mask = torch.tensor([[1, 0]])
    assert start(text, logits, {"input_ids": mask, "attention_mask": mask}).tolist() == [[[0, 1, 0], [0, 0, 0]]]


def test_relevance_does_not_go_to_a_router() -> None:
    network, batch = models.network("mixtral"), models.calibration("mixtral").estimate.batches[0]
    gates = [child for name, child in network.module.named_modules() if name.endswith("mlp.gate")]
    assert gates
    touched: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
        for value in output:
            if value.requires_grad:
                value.register_hook(touched.append)  # type: ignore[no-untyped-call]

    handles = [gate.register_forward_hook(keep) for gate in gates]
    arrivals(network, batch)
    for handle in handles:
        handle.remove()
    assert touched == []


def test_experts_add_their_uses_and_one_without_tokens_has_none(tmp_path: Path) -> None:
    network = models.network("mixtral")
    models.starve(network, 0)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    part = models.fewer(models.calibration("mixtral").estimate, 3)
    loss = relevance.estimate(Study(network, made, part, FORMATS)).loss
    none = [unit.name for u, unit in enumerate(network.inventory.units) if loss[u, 0] == 0]
    assert none == [f"model.layers.{layer}.mlp.experts.0" for layer in range(2)]


@pytest.mark.parametrize("kind", ["llama", "residual"])
def test_the_loss_is_the_share_times_noise_to_signal(kind: str, tmp_path: Path) -> None:
    network, part = models.network(kind), models.fewer(models.calibration(kind).estimate, 3)
    made = Renderings(tmp_path, network, "nearest", None)
    made.make([(unit, fmt) for unit in network.inventory.units for fmt in FORMATS])
    found = relevance.estimate(Study(network, made, part, FORMATS))
    shares = np.zeros(len(network.inventory.units))
    for batch in part.batches:
        outputs = arrivals(network, batch)[0]
        for u, unit in enumerate(network.inventory.units):
            for path in (*(matrix.module for matrix in unit.matrices), *unit.shared_with):
                shares[u] += float(outputs[path].abs().sum())
    shares /= shares.sum()
    ratios = noise_to_signal(Study(network, made, part, FORMATS)).loss
    assert found.loss == pytest.approx(shares[:, None] * ratios, rel=1e-5)
    assert found.stderr is not None
    assert bool((found.stderr > 0).all())
    assert "did not arrive" in found.notes[0]


def test_it_is_not_gradient_times_input() -> None:
    """Relevance of a hidden state is told apart from gradient times value, which conserves nothing."""
    network, batch = models.network("vit"), models.calibration("vit").estimate.batches[0]
    found, _ = arrivals(network, batch)
    module = network.module.get_submodule("vit.layers.0.mlp.fc2")
    kept: list[Tensor] = []

    def keep(child: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = module.register_forward_hook(keep)
    logits = run(network, batch)
    handle.remove()
    (slope,) = torch.autograd.grad(logits.amax(1).sum(), kept[0])
    r, other = found["vit.layers.0.mlp.fc2"].flatten(), (slope * kept[0]).detach().flatten()
    assert abs(float(torch.corrcoef(torch.stack([r, other]))[0, 1])) < 0.9


class Strange(nn.Module):
    """A layer, something that has no rule, and a head."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.between(self.layer(x.flatten(1))))
        return logits


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


def in_place(x: Tensor) -> Tensor:
    x.mul_(-3)
    return x


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (torch.exp, r"relevance has no rule for torch\.exp in the model \(Strange\)"),
        (lambda x: x / x.sum(1, keepdim=True), r"no rule for division by what is computed in the model \(Strange\)"),
        (lambda x: torch.cumsum(x, 1), r"no rule for torch\.cumsum"),
        (lambda x: functional.linear(x, x[0].diag()), r"no rule for torch\.diag|Tensor\.diag|weight that is computed"),
        (lambda x: torch.ones(1, 2, 2) @ x.view(-1, 2, 2), None),
        (Double.apply, r"relevance has no rule for Double"),
        (in_place, r"got another output"),
        (lambda x: x.detach(), r"relevance is not conserved: 2 was sent and 0 arrived"),
    ],
)
def test_what_has_no_rule_is_named(between: Callable[[Tensor], Tensor], message: str | None) -> None:
    if message is None:
        network = custom(Strange(lambda x: (torch.ones(1, 2, 2) @ x.view(-1, 2, 2)).flatten(1)))
        message = r"no rule for matmul with a constant in the model \(Strange\)"
    else:
        network = custom(Strange(between))
    with pytest.raises(ValueError, match=message):
        arrivals(network, {"pixel_values": torch.rand(2, 1, 2, 2)})


def test_an_operation_without_a_rule_may_stand_beside_the_way() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x.flatten(1))
            self.last = torch.exp(y)  # computed, and never used for the output
            return y

    _, account = arrivals(custom(Beside()), {"pixel_values": torch.rand(2, 1, 2, 2)})
    assert account.arrived == pytest.approx(2)


def test_an_output_that_hangs_on_nothing_is_refused() -> None:
    class Constant(Strange):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="relevance finds no way from the output to the inputs"):
        arrivals(custom(Constant(torch.relu)), {"pixel_values": torch.rand(2, 1, 2, 2)})


def test_a_leak_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitplan.sensitivity import lrp_trace

    monkeypatch.setattr(lrp_trace, "MOVES", {*lrp_trace.MOVES, torch.cumsum})  # moves data, but its gradient adds up
    network = custom(Strange(lambda x: torch.cumsum(x, 1)))
    with pytest.raises(ValueError, match="relevance is not conserved: 2 was sent"):
        arrivals(network, {"pixel_values": torch.rand(2, 1, 2, 2)})


@pytest.mark.shared
@pytest.mark.parametrize("name", ["babyllama-105", "tiny-mixtral-wiki", "resnet-cifar10", "dinov2-small-imgfocus"])
def test_trained_models_conserve(name: str, shared: Path, tmp_path: Path) -> None:
    from bitplan.allocator.data import load_calibration
    from bitplan.allocator.models import load
    from bitplan.allocator.source import resolve

    if not (shared / name).exists():
        pytest.skip(f"{shared / name} is not on this machine")
    loaded = load(resolve(str(shared / name)), tmp_path)
    text = None
    if loaded.network.inventory.family in ("vision", "convolutional"):
        text = str(models.save_images(tmp_path / "pictures"))
    elif name.startswith("babyllama"):
        text = str(shared / "tinystories" / "tinystories_sample.txt")
    part: Part = load_calibration(loaded, text, tokens=64, seed=0).estimate
    batch = {key: value[:1] for key, value in part.batches[0].items()}
    account = check_conservation(loaded.network, batch)
    assert account.spread <= 0.01 * account.sent
