from __future__ import annotations

import pytest
import torch
from torch import nn

import models
from bitplan.sensitivity.experts import Experts
from bitplan.sensitivity.plain import make_plain


@pytest.mark.parametrize("kind", models.KINDS)
@torch.no_grad()
def test_outputs_stay_the_same(kind: str) -> None:
    module = models.module(kind)
    batch = models.calibration(kind).estimate.batches[0]
    if kind == "residual":
        batch = {"x": batch["pixel_values"]}
    before = module(**batch)
    made = make_plain(module)
    assert made is module
    after = made(**batch)
    for a, b in [(before, after)] if kind == "residual" else zip(before.to_tuple()[:1], after.to_tuple()[:1], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", models.KINDS)
def test_it_is_frozen_and_in_evaluation_mode(kind: str) -> None:
    made = make_plain(models.module(kind).train())
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert not any(module.training for module in made.modules())


def test_the_transposed_layers_of_gpt2_become_linear() -> None:
    module = models.module("gpt2")
    before = {name: p.clone() for name, p in module.named_parameters()}
    assert any(type(child).__name__ == "Conv1D" for child in module.modules())
    made = make_plain(module)
    assert not any(type(child).__name__ == "Conv1D" for child in made.modules())
    layer = made.get_submodule("transformer.h.0.attn.c_attn")
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (48, 144)
    assert torch.equal(layer.weight, before["transformer.h.0.attn.c_attn.weight"].T)
    assert torch.equal(layer.bias, before["transformer.h.0.attn.c_attn.bias"])
    assert made.get_parameter("lm_head.weight") is made.get_parameter("transformer.wte.weight")  # the tie holds


def test_experts_become_modules() -> None:
    made = make_plain(models.module("mixtral"))
    assert len([child for child in made.modules() if isinstance(child, Experts)]) == 2
    assert make_plain(made) is made  # twice is once
    assert len([child for child in made.modules() if isinstance(child, Experts)]) == 2
