from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.sensitivity.experts import Expert
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.network import Batch, Network, run, sampled_objective
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.probe import Rows, Use, uses, watch_gradients, watch_inputs

CONVOLUTIONS: dict[str, dict[str, object]] = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "oblong": {"kernel_size": (2, 4), "stride": (2, 1), "padding": (0, 2)},
    "dilated": {"kernel_size": 3, "dilation": (2, 1), "padding": 2},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": 3, "groups": 4, "bias": False},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": 2},
    "valid": {"kernel_size": 2, "padding": "valid"},
}


def convolutional(kind: str) -> tuple[Network, Batch]:
    """A convolution between two others, so that its input has a gradient, and logits of four classes."""
    torch.manual_seed(0)
    middle = nn.Conv2d(4, 8, **CONVOLUTIONS[kind])  # type: ignore[arg-type]
    module = make_plain(nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(inplace=True), middle, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    inventory = take_inventory(module, model_id="m", family="convolutional", outputs="classes")
    return Network(module, inventory), {"pixel_values": torch.randn(3, 3, 8, 9)}


def padded(kind: str) -> tuple[Network, Batch]:
    """Two examples, the second one padded."""
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    return models.network(kind), {"input_ids": torch.arange(1, 19).view(2, 9) * mask, "attention_mask": mask}


def tiny(kind: str) -> tuple[Network, Batch]:
    """Several examples in one batch."""
    batches = models.calibration(kind).estimate.batches[:3]
    shortest = min(next(iter(batch.values())).shape[1] for batch in batches)
    return models.network(kind), {name: torch.cat([batch[name][:, :shortest] for batch in batches]) for name in batches[0]}


CASES: dict[str, Callable[[], tuple[Network, Batch]]] = {
    **{kind: (lambda kind=kind: tiny(kind)) for kind in models.KINDS},  # type: ignore[misc]
    **{kind: (lambda kind=kind: convolutional(kind)) for kind in CONVOLUTIONS},  # type: ignore[misc]
    "padded bert": lambda: padded("bert"),
    "padded masked": lambda: padded("masked"),
    "padded mixtral": lambda: padded("mixtral"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Network, Batch]:
    return CASES[request.param]()


def seen(network: Network, batch: Batch) -> list[tuple[Use, Rows, Tensor]]:
    """Every pass through a use with the module's own output, its bias taken away."""
    outputs: list[Tensor] = []
    found: list[tuple[Use, Rows]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        bias = getattr(module, "bias", None)
        shape = (-1, 1, 1) if isinstance(module, nn.Conv2d) else (-1,)
        outputs.append(output if bias is None else output - bias.view(shape))

    handles = [
        network.module.get_submodule(use.module).register_forward_hook(keep) for use in uses(network, network.inventory.units)
    ]
    with torch.no_grad(), watch_inputs(network, batch, network.inventory.units, lambda use, rows: found.append((use, rows))):
        run(network, batch)
    for handle in handles:
        handle.remove()
    return [(use, rows, output) for (use, rows), output in zip(found, outputs, strict=True)]


def test_a_row_times_the_weight_is_a_row_of_the_output(case: tuple[Network, Batch]) -> None:
    network, batch = case
    found = seen(network, batch)
    assert {use.unit.name for use, _, _ in found} == {unit.name for unit in network.inventory.units}
    for use, rows, output in found:
        module = network.module.get_submodule(use.module)
        weight = network.module.get_parameter(f"{use.module}.weight").flatten(1)
        parts = getattr(module, "groups", 1)
        expected = rows.gradient(output, parts)  # outputs are brought into the order of rows as gradients are
        assert expected.shape[:2] == (parts, len(rows.example))
        if rows.one_hot:
            assert torch.equal(weight[rows.x], expected[0])
        else:
            product = rows.x @ weight.view(parts, len(weight) // parts, -1).transpose(1, 2)
            assert torch.allclose(product, expected, rtol=1e-4, atol=1e-5)


def test_rows_know_whose_they_are(case: tuple[Network, Batch]) -> None:
    """The rows of an example are those that it has when it runs alone."""
    network, batch = case
    together = {(use.module): rows for use, rows, _ in seen(network, batch)}
    for example in range(len(next(iter(batch.values())))):
        alone = {
            use.module: rows
            for use, rows, _ in seen(network, {name: tensor[example : example + 1] for name, tensor in batch.items()})
        }
        for module, rows in together.items():
            mine = rows.example == example
            if module not in alone:  # an expert that no token of this example came to
                assert not mine.any()
                continue
            x = rows.x[mine] if rows.one_hot else rows.x[:, mine]
            assert torch.allclose(x.float(), alone[module].x.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "masked", "mixtral"])
def test_padding_is_no_row(kind: str) -> None:
    network, batch = padded(kind)
    for use, rows, _ in seen(network, batch):
        if isinstance(network.module.get_submodule(use.module.rpartition(".")[0]), Expert):
            assert len(rows.example) <= 13
        else:
            assert len(rows.example) == 13
            assert rows.example.tolist() == [0] * 9 + [1] * 4


def test_rows_and_gradients_make_up_the_gradient_of_the_weight(case: tuple[Network, Batch]) -> None:
    """sum_r g_r x_r^T over all uses of a weight is dL/dW as autograd has it."""
    network, batch = case
    units = network.inventory.units
    total = {f"{m.module}.weight": torch.zeros(m.shape) for unit in units for m in unit.matrices}

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        assert not torch.is_grad_enabled()
        into = total[f"{use.unit.matrices[use.matrix].module}.weight"]
        if rows.one_hot:
            into.index_add_(0, rows.x, g[0])
        else:
            into += (g.transpose(1, 2) @ rows.x).flatten(0, 1)

    def objective() -> Tensor:
        return sampled_objective(network, run(network, batch), batch, None, torch.Generator().manual_seed(5))

    with watch_gradients(network, batch, units, visit):
        objective().backward()  # type: ignore[no-untyped-call]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.module.parameters())
    weights = {name: network.module.get_parameter(name).requires_grad_() for name in total}
    gradients = torch.autograd.grad(objective(), list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, gradients, strict=True):
        expected = torch.zeros(total[name].shape) if gradient is None else gradient.flatten(1)
        assert torch.allclose(total[name], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-7), name


def test_only_the_asked_units_are_watched() -> None:
    network, batch = tiny("llama")
    wanted = network.inventory.units[3:5]
    names: list[str] = []
    with watch_inputs(network, batch, wanted, lambda use, rows: names.append(use.unit.name)):
        run(network, batch)
    assert names == [unit.name for unit in wanted]


def test_a_tied_head_is_a_use_of_the_embedding() -> None:
    network = models.network("llama")
    unit = network.inventory.unit("model.embed_tokens")
    assert [use.module for use in uses(network, [unit])] == ["model.embed_tokens", "lm_head"]
    expert = models.network("mixtral").inventory.unit("model.layers.0.mlp.experts.2")
    assert [(use.matrix, use.module.rpartition(".")[2]) for use in uses(network, [expert])] == [
        (0, "gate_up_proj"),
        (1, "down_proj"),
    ]


def test_modules_fed_the_same_tensor_share_its_source() -> None:
    network, batch = tiny("llama")
    source = {use.module: rows.source for use, rows, _ in seen(network, batch)}
    prefix = "model.layers.0.self_attn"
    assert source[f"{prefix}.q_proj"] is source[f"{prefix}.k_proj"] is source[f"{prefix}.v_proj"]
    assert source[f"{prefix}.o_proj"] is not source[f"{prefix}.q_proj"]


@pytest.mark.parametrize("watch", [watch_inputs, watch_gradients])
def test_nothing_stays_hooked_after_an_error(watch: Callable[..., object]) -> None:
    network, batch = tiny("untied")

    def fail(*arguments: object) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), watch(network, batch, network.inventory.units, fail):  # type: ignore[attr-defined]
        sampled_objective(network, run(network, batch), batch, None, torch.Generator()).backward()  # type: ignore[no-untyped-call]
    assert not any(module._forward_hooks for module in network.module.modules())
