from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bitplan.kernels.formats import parse
from bitplan.kernels.linear import QuantizedConv2d, QuantizedEmbedding, QuantizedLinear
from bitplan.kernels.packing import PackedWeight
from bitplan.kernels.reference import dequantize
from bitplan.kernels.rounding import round_nearest

NAMES = ["int2-g32", "int3-row-asym", "int4-g64-asym", "int8-g128"]
CONVOLUTIONS: dict[str, dict[str, object]] = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "oblong": {"kernel_size": (1, 4), "stride": (2, 1), "padding": (0, 2)},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": 5, "groups": 8, "padding": "same"},
    "pointwise": {"kernel_size": 1, "bias": False},
}


def rounded(weight: Tensor, name: str) -> PackedWeight:
    return round_nearest(weight.detach().flatten(1), parse(name))


def convolution(kind: str) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 8, **CONVOLUTIONS[kind])  # type: ignore[arg-type]


def held_bytes(module: nn.Module) -> int:
    """Bytes of every tensor that the module holds in any way, each storage once."""
    held = [value for child in module.modules() for value in vars(child).values() if isinstance(value, Tensor)]
    held += [*module.parameters(), *module.buffers()]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}.values())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_linear_layer_agrees_with_the_dense_one(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(70, 9, bias=bias)
    packed = rounded(dense.weight, name)
    layer = QuantizedLinear(packed, dense.bias)
    dense.weight.data = dequantize(packed)
    x = torch.randn(2, 3, 70)
    assert torch.allclose(layer(x), dense(x), rtol=1e-5, atol=1e-6)  # the same products, summed in another order
    assert (layer.in_features, layer.out_features) == (70, 9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_agrees_with_the_dense_one(kind: str, name: str) -> None:
    dense = convolution(kind)
    packed = rounded(dense.weight, name)
    layer = QuantizedConv2d(packed, dense)
    dense.weight.data = dequantize(packed).reshape(dense.weight.shape)
    x = torch.randn(2, 8, 7, 9)
    assert layer(x).shape == dense(x).shape
    assert torch.allclose(layer(x), dense(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_gives_the_rows_of_its_table(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    packed = rounded(torch.randn(40, 70), name)
    ids = torch.tensor([[0, 39, 39], [7, 1, 2]])
    rows = QuantizedEmbedding(packed, dtype)(ids)
    assert rows.dtype == dtype
    assert torch.equal(rows, dequantize(packed)[ids].to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_held_but_packed_tensors(name: str) -> None:
    torch.manual_seed(0)
    linear, conv = nn.Linear(70, 9), convolution("grouped")
    weights = {
        "linear": rounded(linear.weight, name),
        "conv": rounded(conv.weight, name),
        "table": rounded(torch.randn(40, 70), name),
    }
    layers = [
        QuantizedLinear(weights["linear"], linear.bias),
        QuantizedConv2d(weights["conv"], conv),
        QuantizedEmbedding(weights["table"], torch.float32),
    ]
    inputs = [torch.randn(2, 70), torch.randn(1, 8, 5, 5), torch.tensor([1, 2])]
    for layer, packed, x, bias in zip(layers, weights.values(), inputs, (4 * 9, 4 * 8, 0), strict=True):
        layer(x)  # what is unpacked for a call is let go
        points = 0 if packed.zeros is None else 2 * packed.scales.numel()  # zero points as numbers
        assert held_bytes(layer) == parse(name).stored_bytes(packed.shape) + points + bias
        assert {key for key in layer.state_dict() if key != "bias"} == set(packed.tensors())


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym"])
def test_the_stored_tensors_keep_their_types(name: str) -> None:
    """`half`, `bfloat16` or `double` on a whole model must not touch what is stored; biases follow."""
    torch.manual_seed(0)
    packed = rounded(torch.randn(9, 70), name)
    kept = {key: value.clone() for key, value in packed.tensors().items()}
    model = nn.Sequential(QuantizedLinear(packed, torch.randn(9)))
    for dtype in (torch.bfloat16, torch.float64, torch.float16):
        model.to(dtype)
        layer = model[0]
        assert isinstance(layer, QuantizedLinear)
        assert all(torch.equal(getattr(layer, key), value) for key, value in kept.items())
        assert [getattr(layer, key).dtype for key in kept] == [value.dtype for value in kept.values()]
        assert layer.bias is not None
        assert layer.bias.dtype == dtype
        assert layer(torch.randn(2, 70).to(dtype)).dtype == dtype


def test_moving_to_another_device_moves_everything() -> None:
    packed = rounded(torch.randn(9, 70), "int4-g32-asym")
    layer = QuantizedLinear(packed).to("meta")
    assert {tensor.device.type for tensor in (layer.words, layer.scales, layer.zeros) if tensor is not None} == {"meta"}
    assert layer.scales.dtype == torch.float16


def test_layers_of_a_shared_weight_share_its_tensors() -> None:
    packed = rounded(torch.randn(40, 64), "int4-g32-asym")
    model = nn.ModuleList([QuantizedEmbedding(packed, torch.float32), QuantizedLinear(packed)])
    assert held_bytes(model) == packed.stored_bytes + 2 * 2 * packed.scales.numel()  # and zero points as numbers, each its own


def test_a_copy_is_the_same_layer() -> None:
    packed = rounded(torch.randn(9, 70), "int4-g32-asym")
    layer = QuantizedLinear(packed, torch.ones(9))
    x = torch.randn(2, 70)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_what_is_loaded_is_what_computes() -> None:
    """Zero points beside the stored ones follow them."""
    one, other = (QuantizedLinear(rounded(torch.randn(9, 70) + shift, "int4-g32-asym")) for shift in (0, 3))
    x = torch.randn(2, 70)
    assert not torch.allclose(one(x), other(x))
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), other(x))


def test_gradients_flow_through_to_the_input() -> None:
    packed = rounded(torch.randn(9, 70), "int4-g32")
    layer, x = QuantizedLinear(packed, torch.ones(9)), torch.randn(2, 70, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, dequantize(packed).sum(0).expand(2, -1), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_models_can_ask_for_the_dtype_and_shape_of_the_weight() -> None:
    layer = QuantizedLinear(rounded(torch.randn(9, 70), "int4-g32"))
    assert layer.weight.shape == (9, 70)
    assert layer.weight.dtype == torch.float32
    assert layer.weight.is_meta
