"""Whole models computing from packed words: the same logits as with the numbers unpacked, on every back end, and nothing unpacked
is left behind."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.allocator.executed import put_experts_together, quantized_copy
from bitplan.kernels import experts as experts_module
from bitplan.kernels import linear, product
from bitplan.kernels.experts import QuantizedExperts
from bitplan.kernels.formats import parse
from bitplan.kernels.linear import QuantizedLinear
from bitplan.kernels.packing import PackedWeight
from bitplan.kernels.reference import dequantize
from bitplan.kernels.rounding import round_nearest
from bitplan.sensitivity.network import Network

FORMATS = ("int2-g32", "int3-g64-asym", "int4-g32-asym", "int6-g128", "int8-row-asym")
CPU = torch.device("cpu")


def backends() -> list[Any]:
    every = []
    for name in product.BACKENDS:
        reason = product._load(name).missing(CPU) if name not in ("triton",) else "needs a GPU"
        every.append(pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=str(reason))))
    return every


def quantized(kind: str) -> tuple[Network, nn.Module, nn.Module]:
    """The network, its copy with packed units of five widths in turn, and its copy with the numbers that these stand for."""
    network = models.network(kind)
    dense = copy.deepcopy(network.module)
    rendered: dict[str, tuple[PackedWeight, ...]] = {}
    for unit, name in zip(network.inventory.units, cycle(FORMATS), strict=False):
        made = []
        for matrix in unit.matrices:
            weight = dense.get_parameter(f"{matrix.module}.weight")
            packed = round_nearest(weight.detach().flatten(1), parse(name))
            weight.data = dequantize(packed).reshape(weight.shape)
            made.append(packed)
        rendered[unit.name] = tuple(made)
    return network, quantized_copy(network.module, network.inventory, rendered), dense


def logits(module: nn.Module, tokens: int = 12) -> Tensor:
    ids = torch.randint(models.VOCABULARY, (2, tokens), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        result: Tensor = module(input_ids=ids).logits
    return result


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("kind", ["untied", "mixtral"])
def test_a_mixed_model_gives_the_logits_of_its_numbers(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "automatic", lambda device_type: backend)
    network, packed, dense = quantized(kind)
    expected = logits(dense)
    assert float((logits(packed) - expected).norm() / expected.norm()) < 1e-5
    assert float((logits(network.module) - expected).norm() / expected.norm()) > 1e-2  # the rounding is not nothing


def test_experts_of_several_widths_are_computed_in_two_launches_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed, _ = quantized("mixtral")
    together = [module for module in packed.modules() if isinstance(module, QuantizedExperts)]
    assert len(together) == 2
    assert all(len(layer._up.widths) > 1 for layer in together)
    assert "experts in" in repr(together[0])
    launches: list[str] = []
    monkeypatch.setattr(experts_module, "moe_matmul", _counted(product.moe_matmul, launches))
    monkeypatch.setattr(linear, "matmul", _counted(product.matmul, launches))
    logits(packed)
    assert launches.count("moe_matmul") == 2 * 2
    assert launches.count("matmul") == 2 * 4 + 1  # attention, and the head


def _counted(function: Callable[..., Tensor], launches: list[str]) -> Callable[..., Tensor]:
    def counted(*arguments: Any) -> Tensor:
        launches.append(function.__name__)
        return function(*arguments)

    return counted


def test_the_modules_of_single_experts_share_the_buffer_and_still_compute() -> None:
    _, packed, dense = quantized("mixtral")
    layer = next(module for module in packed.modules() if isinstance(module, QuantizedExperts))
    path = next(name for name, module in packed.named_modules() if module is layer)
    for index in range(4):
        for name in ("gate_up_proj", "down_proj"):
            single = packed.get_submodule(f"{path}.experts.{index}.{name}")
            assert isinstance(single, QuantizedLinear)
            stacked = layer._up if name == "gate_up_proj" else layer._down
            assert single.words.untyped_storage().data_ptr() == stacked.words.untyped_storage().data_ptr()
            assert torch.equal(dequantize(single.packed), dense.get_parameter(f"{path}.experts.{index}.{name}.weight"))


def test_experts_moved_or_copied_are_put_together_again() -> None:
    _, packed, _ = quantized("mixtral")
    expected = logits(packed)
    for other in (copy.deepcopy(packed), copy.deepcopy(packed).to(torch.float32), copy.deepcopy(packed).to("cpu")):
        assert torch.equal(logits(other), expected)
        layer = next(module for module in other.modules() if isinstance(module, QuantizedExperts))
        single = next(module for module in layer.modules() if isinstance(module, QuantizedLinear))
        assert single.words.untyped_storage().data_ptr() == layer._up.words.untyped_storage().data_ptr()


def test_experts_compute_with_what_was_loaded() -> None:
    _, packed, _ = quantized("mixtral")
    expected, kept = logits(packed), {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    doubled = {name: tensor * 2 if "experts" in name and name.endswith("scales") else tensor for name, tensor in kept.items()}
    packed.load_state_dict(doubled)
    assert not torch.allclose(logits(packed), expected)
    packed.load_state_dict(kept)
    assert torch.equal(logits(packed), expected)


def test_a_layer_with_an_expert_left_alone_is_computed_expert_by_expert() -> None:
    network, _, _ = quantized("mixtral")
    rendered = {}
    for unit in network.inventory.units:
        if "experts.2" not in unit.name:
            rendered[unit.name] = tuple(
                round_nearest(network.module.get_parameter(f"{matrix.module}.weight").detach(), parse("int8-g32-asym"))
                for matrix in unit.matrices
            )
    packed = quantized_copy(network.module, network.inventory, rendered)
    assert not any(isinstance(module, QuantizedExperts) for module in packed.modules())
    put_experts_together(packed)
    expected = logits(network.module)
    assert float((logits(packed) - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("kind", ["untied", "mixtral"])
def test_no_dense_copy_of_a_weight_is_alive(kind: str) -> None:
    """Every tensor of the process is looked at: none in floating point has the shape of a packed matrix."""
    network, packed, _ = quantized(kind)
    shapes = {matrix.shape for unit in network.inventory.units for matrix in unit.matrices}
    shapes |= {(inputs, outputs) for outputs, inputs in shapes}
    del network, _
    logits(packed)
    gc.collect()
    before = {id(value) for value in gc.get_objects() if issubclass(type(value), Tensor)}
    y = logits(packed)
    gc.collect()
    new = [value for value in gc.get_objects() if issubclass(type(value), Tensor) and id(value) not in before and value is not y]
    assert not any(value.is_floating_point() and tuple(value.shape) in shapes for value in new)
    held = {
        tensor.untyped_storage().data_ptr(): (tensor, tensor.untyped_storage().nbytes())
        for module in packed.modules()
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    assert not any(tensor.is_floating_point() and tuple(tensor.shape) in shapes for tensor, _ in held.values())


def test_live_weights_are_little_more_than_what_is_stored() -> None:
    """At 4 bits in groups of 64: codes, scales, packed zero points, and zero points as numbers beside them."""
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    layer = QuantizedLinear(round_nearest(weight, parse("int4-g64-asym")))
    layer(torch.randn(3, 1024))
    held = sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers())
    assert layer.packed.stored_bytes < held < 1.07 * layer.packed.stored_bytes


@pytest.mark.parametrize("asymmetric", [False, True])
def test_torch_compile_takes_a_packed_layer_whole(asymmetric: bool) -> None:
    torch.manual_seed(0)
    name = "int3-g32-asym" if asymmetric else "int4-g64"
    layers = [QuantizedLinear(round_nearest(torch.randn(64, 64), parse(name)), torch.randn(64)) for _ in range(2)]
    model = nn.Sequential(layers[0], nn.GELU(), layers[1])
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


def test_every_product_says_which_back_end_made_it() -> None:
    layer = QuantizedLinear(round_nearest(torch.randn(8, 64), parse("int4-g32")))
    assert layer.backend == product.automatic("cpu")
    assert layer.backend in repr(layer)
    assert linear.QuantizedEmbedding(layer.packed, torch.float32).backend == "torch"
