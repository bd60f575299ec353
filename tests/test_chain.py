from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from bitplan.sensitivity.chain import Chain, check_straight, enter, find_chain, leaving, through
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.network import Batch, Network, run
from bitplan.sensitivity.plain import make_plain

ROWS = {
    "llama": "model.layers",
    "untied": "model.layers",
    "gpt2": "transformer.h",
    "mixtral": "model.layers",
    "bert": "encoder.layer",
    "masked": "bert.encoder.layer",
    "dinov2": "encoder.layer",
    "vit": "vit.layers",
}
KINDS = tuple(ROWS)


def a_batch(kind: str) -> Batch:
    return models.calibration(kind).estimate.batches[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_unit_is_in_one_block_or_in_the_shell(kind: str) -> None:
    chain = find_chain(models.network(kind))
    assert chain.blocks == tuple(f"{ROWS[kind]}.{index}" for index in range(2))
    assert tuple(chain.units_of) == ("", *chain.blocks)
    found = [unit.name for units in chain.units_of.values() for unit in units]
    assert sorted(found) == sorted(unit.name for unit in chain.network.inventory.units)
    for block in chain.blocks:
        inside = {name for name in found if name.startswith(f"{block}.")}
        assert {unit.name for unit in chain.units_of[block]} == inside
        assert inside
    assert not any(unit.name.startswith(ROWS[kind]) for unit in chain.units_of[""])


def test_the_row_is_the_largest_list_of_modules() -> None:
    """Not the first: a model may keep small lists beside and inside its blocks."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for linear in self.inner:
                x = x + linear(x)
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
            self.rows = nn.ModuleList([Block(), Block()])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.rows:
                x = block(x)
            return self.heads[0](x) + self.heads[1](x)  # type: ignore[no-any-return]

    chain = find_chain(bare(Model()))
    assert chain.blocks == ("rows.0", "rows.1")
    check_straight(chain, BARE)
    assert torch.equal(by_blocks(chain, BARE), run(chain.network, BARE))


@pytest.mark.parametrize("kind", KINDS)
def test_shell_and_blocks_make_the_output_of_the_network(kind: str) -> None:
    """To the last bit, though nothing in the code knows any of these models."""
    chain = find_chain(models.network(kind))
    for batch in models.calibration(kind).estimate.batches[:2]:
        check_straight(chain, batch)
        with torch.no_grad():
            expected = run(chain.network, batch)
        assert torch.equal(by_blocks(chain, batch), expected)


def by_blocks(chain: Chain, batch: Batch) -> Tensor:
    with torch.no_grad():
        first, given = enter(chain, batch)
        hidden = first
        for index in range(len(chain.blocks)):
            hidden = through(chain, index, hidden, given)
        with leaving(chain, batch, hidden) as (output, again):
            assert torch.equal(again, first)
            return output


def test_gradients_flow_out_of_the_shell_and_back_into_it() -> None:
    """The two halves of a backward pass through the shell are those of the whole: at h_L, and on from h_0."""
    chain = find_chain(models.network("llama"))
    batch, network = a_batch("llama"), chain.network
    table = network.module.get_parameter("model.embed_tokens.weight")
    table.requires_grad_()
    run(network, batch).square().sum().backward()  # type: ignore[no-untyped-call]
    assert table.grad is not None
    expected, table.grad = table.grad, None

    first, given = enter(chain, batch)
    at = [first]
    for index in range(len(chain.blocks)):
        at.append(through(chain, index, at[-1], given))
    last = at[-1].requires_grad_()
    with leaving(chain, batch, last) as (output, made):
        output.square().sum().backward()  # type: ignore[no-untyped-call]
    back = last.grad
    for index in reversed(range(len(chain.blocks))):
        hidden = at[index].detach().requires_grad_()
        (back,) = torch.autograd.grad(through(chain, index, hidden, given), hidden, back)
    made.backward(back)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(table.grad, expected)


class TestRefusals:
    @pytest.mark.parametrize("kind", ["resnet", "residual"])
    def test_convolutional_networks_have_no_row(self, kind: str) -> None:
        with pytest.raises(ValueError, match=r"'tiny-.*' is no row of blocks, so it cannot be streamed; leave --stream out"):
            find_chain(models.network(kind))

    def test_nor_has_a_single_block(self) -> None:
        """Nothing would be saved, and the hand-over between blocks could not be looked at."""

        class Model(Straight):
            def __init__(self) -> None:
                super().__init__()
                self.rows = nn.ModuleList([nn.Linear(8, 8)])

        with pytest.raises(ValueError, match="is no row of blocks"):
            find_chain(bare(Model()))

    def test_nor_have_blocks_that_share_a_weight(self) -> None:
        class Model(Straight):
            def __init__(self) -> None:
                super().__init__()
                self.rows[1].weight = self.rows[0].weight

        with pytest.raises(ValueError, match="is no row of blocks"):
            find_chain(bare(Model()))

    def test_nor_has_one_block_that_stands_in_two_places(self) -> None:
        class Model(Straight):
            def __init__(self) -> None:
                super().__init__()
                self.rows[1] = self.rows[0]

        with pytest.raises(ValueError, match="is no row of blocks"):
            find_chain(bare(Model()))

    def test_stages_of_another_shape_are_no_row(self) -> None:
        """Swin: each stage halves the picture and hands on more than hidden states."""
        config = models.hf.SwinConfig(
            image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, num_labels=10
        )
        network = taken(models.hf.SwinForImageClassification(config), "vision", "classes")
        with pytest.raises(ValueError, match=r"hands more than hidden states from block to block.*; leave --stream out"):
            check_straight(find_chain(network), a_batch("vit"))

    def test_a_block_that_is_called_again_and_again(self) -> None:
        """ALBERT: groups of layers, each with its own weights, used several times."""
        config = models.hf.AlbertConfig(
            **{**models.BERT, "num_hidden_layers": 4}, embedding_size=16, num_hidden_groups=2, inner_group_num=1
        )
        network = taken(models.hf.AlbertModel(config, add_pooling_layer=False), "encoder", "pooled")
        network = replace(network, pooling="mean")
        assert torch.isfinite(run(network, a_batch("bert"))).all()
        with pytest.raises(ValueError, match="hands more than hidden states"):
            check_straight(find_chain(network), a_batch("bert"))

    @pytest.mark.parametrize(
        "forward",
        [
            lambda self, x: self.head(self.rows[1](self.rows[0](self.embed(x)) + 1)),
            lambda self, x: self.head(self.rows[0](self.rows[1](self.embed(x)))),
            lambda self, x: self.head(self.rows[0](self.embed(x))),
            lambda self, x: self.head(self.rows[1](hidden := self.rows[0](self.embed(x))) + hidden),
            lambda self, x: self.head(self.rows[1](hidden := self.rows[0](self.embed(x)), hidden.mean())),
            lambda self, x: self.head(self.rows[1](self.rows[0](hidden := self.embed(x)), hidden)),
            lambda self, x: self.head(self.rows[1](self.rows[0](self.embed(x))[0])),
            lambda self, x: self.head(self.rows[1](self.rows[0](states=self.embed(x)))),
            lambda self, x: self.head(self.embed(x) + 0 * self.rows[1](self.rows[0](self.embed(x))).detach()),
            lambda self, x: self.head(self.rows[1](self.rows[0](self.embed(x)).nothing)),
        ],
        ids=[
            "changed between",
            "in another order",
            "left out",
            "used after",
            "a summary beside",
            "the embedding beside",
            "a tuple",
            "by another name",
            "no gradient",
            "an attribute",
        ],
    )
    def test_what_is_not_handed_on_straight(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        network = bare(Straight())
        check_straight(find_chain(network), BARE)
        type(network.module).forward = forward
        try:
            chain = find_chain(network)
            with pytest.raises(ValueError, match="model 'bare' hands more than hidden states from block to block"):
                check_straight(chain, BARE)
        finally:
            type(network.module).forward = STRAIGHT


class TestBlocksArePutBack:
    @pytest.fixture
    def chain(self) -> Chain:
        return find_chain(models.network("llama"))

    def whole(self, chain: Chain) -> list[nn.Module]:
        return [chain.network.module.get_submodule(block) for block in chain.blocks]

    def test_after_work_well_done(self, chain: Chain) -> None:
        before, names = self.whole(chain), list(chain.network.module.state_dict())
        batch = a_batch("llama")
        check_straight(chain, batch)
        first, _ = enter(chain, batch)
        with leaving(chain, batch, first):
            assert not any(one is other for one, other in zip(self.whole(chain), before, strict=True))
        assert all(one is other for one, other in zip(self.whole(chain), before, strict=True))
        assert list(chain.network.module.state_dict()) == names
        assert not any(module._forward_hooks for module in chain.network.module.modules())
        assert not any(parameter.requires_grad for parameter in chain.network.module.parameters())

    @pytest.mark.parametrize("where", ["enter", "leaving", "check"])
    def test_after_work_that_failed(self, where: str, chain: Chain) -> None:
        before, batch = self.whole(chain), a_batch("llama")
        wrong = {"input_ids": torch.full((1, 8), models.VOCABULARY)}  # no such token
        if where == "enter":
            with pytest.raises(IndexError):
                enter(chain, wrong)
        elif where == "check":
            with pytest.raises(ValueError, match="hands more than hidden states"):
                check_straight(chain, wrong)
        else:
            first, _ = enter(chain, batch)
            with pytest.raises(KeyboardInterrupt), leaving(chain, batch, first):
                raise KeyboardInterrupt
        assert all(one is other for one, other in zip(self.whole(chain), before, strict=True))

    def test_what_a_model_asks_of_its_blocks_the_stand_ins_know(self, chain: Chain) -> None:
        before = self.whole(chain)
        before[1].kind_of_attention = "sliding"  # type: ignore[assignment]
        first, _ = enter(chain, a_batch("llama"))
        with leaving(chain, a_batch("llama"), first):
            stand = chain.network.module.get_submodule(chain.blocks[1])
            assert stand is not before[1]
            assert stand.kind_of_attention == "sliding"
            assert stand.self_attn is before[1].self_attn
            assert not list(stand.parameters())
            with pytest.raises(AttributeError, match="no_such_thing"):
                _ = stand.no_such_thing


class Straight(nn.Module):
    """The smallest chain; blocks take something more, if they are given it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.rows = nn.ModuleList([Further(8, 8), Further(8, 8)])
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows[1](self.rows[0](self.embed(x))))  # type: ignore[no-any-return]


STRAIGHT = Straight.forward


class Further(nn.Linear):
    def __call__(self, hidden: Tensor, more: Tensor | None = None) -> Any:
        return super().__call__(hidden) if more is None else super().__call__(hidden + more)


BARE: Batch = {"pixel_values": torch.linspace(-1, 1, 24).view(3, 8)}


def bare(module: nn.Module) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape)
    return taken(module, "vision", "classes", "bare")


def taken(module: nn.Module, family: str, outputs: Any, name: str = "taken") -> Network:
    plain = make_plain(module)
    return Network(plain, take_inventory(plain, model_id=name, family=family, outputs=outputs))
