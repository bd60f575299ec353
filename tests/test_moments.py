from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.moments import Moments, collect_moments
from bitplan.sensitivity.network import Network, run
from bitplan.sensitivity.plain import make_plain


def collected(kind: str) -> tuple[Network, Part, Moments]:
    network, part = models.network(kind), models.fewer(models.calibration(kind).render, 3)
    return network, part, collect_moments(network, network.inventory.units, part)


def inputs(network: Network, part: Part) -> dict[str, list[Tensor]]:
    """What each module was given, batch by batch."""
    found: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in network.module.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            found[name] = []
            handles.append(module.register_forward_pre_hook(lambda _, given, kept=found[name]: kept.append(given[0])))
    with torch.no_grad():
        for batch in part.batches:
            run(network, batch)
    for handle in handles:
        handle.remove()
    return found


def second_moment(module: nn.Module, given: list[Tensor]) -> Tensor:
    """sum x x^T in float64; a convolution's patches are cut out one by one."""
    rows = []
    for x in given:
        if isinstance(module, nn.Conv2d):
            (kh, kw), (sh, sw) = module.kernel_size, module.stride
            assert isinstance(module.padding, tuple)
            (ph, pw) = module.padding
            x = nn.functional.pad(x, (pw, pw, ph, ph))
            for top in range(0, x.shape[2] - kh + 1, sh):
                for left in range(0, x.shape[3] - kw + 1, sw):
                    rows.append(x[:, :, top : top + kh, left : left + kw].flatten(1))
        else:
            rows.append(x.flatten(0, -2))
    stacked = torch.cat(rows).double()
    return stacked.T @ stacked


@pytest.mark.parametrize("kind", ["untied", "gpt2", "mixtral", "bert", "dinov2", "resnet", "residual"])
def test_they_are_those_of_the_inputs(kind: str) -> None:
    network, part, moments = collected(kind)
    received = inputs(network, part)
    for unit in network.inventory.units:
        for matrix in unit.matrices:
            if unit.kind == "embedding":
                assert matrix.module not in moments.site
                continue
            module = network.module.get_submodule(matrix.module)
            given = received[matrix.module]
            if not given:  # an expert that no token reached
                assert matrix.module not in moments.site
                continue
            expected = second_moment(module, given)
            found = moments.second[moments.site[matrix.module]]
            assert found.shape == (matrix.shape[1], matrix.shape[1])
            assert float((found - expected).norm() / expected.norm()) < 1e-5  # float32 sums of a few hundred terms


def test_matrices_fed_the_same_tensor_share_theirs() -> None:
    _, _, moments = collected("llama")
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        q, k, v, o = (moments.site[f"{prefix}.self_attn.{name}_proj"] for name in "qkvo")
        gate, up, down = (moments.site[f"{prefix}.mlp.{name}_proj"] for name in ("gate", "up", "down"))
        assert q == k == v
        assert gate == up
        assert len({q, o, gate, down}) == 4
    assert set(moments.second) == set(moments.site.values())


def test_convolutions_share_only_where_they_cut_the_same_patches() -> None:
    """A residual block's first 3x3 convolution and its 1x1 shortcut are fed one tensor."""
    network, part, moments = collected("resnet")
    shortcut = next(unit.name for unit in network.inventory.units if unit.name.endswith("shortcut.convolution"))
    first = shortcut.replace("shortcut.convolution", "layer.0.convolution")
    received = inputs(network, part)
    for a, b in zip(received[shortcut], received[first], strict=True):
        assert torch.equal(a, b)
    assert moments.site[shortcut] != moments.site[first]
    assert moments.second[moments.site[shortcut]].shape == (8, 8)
    assert moments.second[moments.site[first]].shape == (72, 72)


def test_an_expert_that_no_token_reaches_has_none() -> None:
    network = models.network("mixtral")
    models.starve(network, 3)
    moments = collect_moments(network, network.inventory.units, models.fewer(models.calibration("mixtral").render, 3))
    reached = {path.split(".experts.experts.")[1].split(".")[0] for path in moments.site if ".experts.experts." in path}
    assert reached == {"0", "1", "2"}


def test_grouped_convolutions_have_none() -> None:
    module = make_plain(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)))
    network = Network(module, take_inventory(module, model_id="m", family="convolutional", outputs="classes"))
    part = Part(({"pixel_values": torch.randn(2, 4, 4, 4)},), frozenset({"a", "b"}))
    assert set(collect_moments(network, network.inventory.units, part).second) == {"2"}


def test_padding_does_not_count() -> None:
    network = models.network("bert")
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    padded = Part(({"input_ids": torch.tensor([[5, 6, 7, 0, 0]]), "attention_mask": mask},), frozenset({"a"}))
    short = Part(({"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": mask[:, :3]},), frozenset({"a"}))
    one, two = (collect_moments(network, network.inventory.units, part) for part in (padded, short))
    assert one.site == two.site
    for name, moment in one.second.items():
        assert torch.allclose(moment, two.second[name], rtol=1e-4, atol=1e-4 * float(moment.abs().max()))


def test_only_the_asked_units_are_looked_at() -> None:
    network = models.network("llama")
    unit = network.inventory.unit("model.layers.1.mlp.up_proj")
    moments = collect_moments(network, [unit], models.calibration("llama").render)
    assert moments.site == {unit.name: unit.name}


def test_progress_is_told_and_may_stop_the_work() -> None:
    network, part = models.network("llama"), models.calibration("llama").render
    told: list[tuple[int, int]] = []
    collect_moments(network, network.inventory.units[:1], part, lambda stage, done, total: told.append((done, total)))
    assert told == [(done, len(part.batches)) for done in range(len(part.batches) + 1)]

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        collect_moments(network, network.inventory.units, part, stop)
    assert not any(module._forward_hooks for module in network.module.modules())


def test_the_order_of_batches_does_not_matter() -> None:
    network, part, moments = collected("mixtral")
    again = collect_moments(network, network.inventory.units, replace(part, batches=part.batches[::-1]))
    for path, site in moments.site.items():
        found, expected = again.second[again.site[path]], moments.second[site]
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
