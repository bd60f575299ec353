"""The rules of layer-wise relevance propagation: how an operation's output relevance is shared among its operands.

R is the relevance at an operation's output, z its output. With r / z taken as zero where z is zero:

    linear, convolution    alpha 1, beta 0, no bias: Z = x+ W+ + x- W- (the positive contributions), S = R / Z,
                           R_x = x+ * (S W+) + x- * (S W-)
    convolution of pixels  z^B: Z = x W - l W+ - h W- with l <= x <= h the bounds of a pixel, S = R / Z,
                           R_x = x * (S W) - l * (S W+) - h * (S W-)
    product of two         S = R / (A V), R_A = 1/2 A * (S V^T), R_V = 1/2 V * (A^T S); elementwise: R / 2 for either
    sum of two (a + b)     S = R / (a + b); raw a * S and b * S, each scaled so that their sums are in the ratio of their sizes
                           and make up the sum of R: R_a <- R_a * |sum R_a| / (|sum R_a| + |sum R_b|) * sum R / sum R_a
    sum or mean over axes  R_x = x * R / z
    norms, activations     R_x = R

One tensor used k times receives the sum of what its uses send: autograd's own accumulation. The rules are those of the
Transformer-Explainability code (Chefer et al.), which LRP-QViT (2024) rests on. That code adds 1e-9 to a denominator
whatever its sign; here nothing is added, so that nothing is lost, and the arithmetic is done in float64. Where nothing
contributes to an output (a patch that a ReLU has emptied) that code drops its relevance; here it is spread over the inputs by
the sizes of the weights alone, and the account says how much. The sums of the rule for a + b are taken over each example,
as that code takes them over its batch of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor

from ..kernels.float64 import as_float64, sum64

Apply = Callable[[Tensor, Tensor], Tensor]  # an operation linear in both: (input, weight) -> output
Share = Callable[[Tensor], tuple[Tensor, ...]]  # relevance at the output -> relevance of each operand


@dataclass
class Account:
    """What became of the relevance that was `sent` into a batch: how much `arrived` at the inputs, how much single rules
    `lost` or made, how much they `spread` for want of contributions, and the largest relative error of one rule's sums."""

    sent: float = 0.0
    arrived: float = 0.0
    lost: float = 0.0
    spread: float = 0.0
    worst: float = 0.0
    worst_at: str = ""

    def enter(self, where: str, r: Tensor, shares: tuple[Tensor, ...]) -> None:
        """Compare the sum of `r` with that of its `shares`, relative to the relevance sent and to the sizes in `r`."""
        before, size = float(sum64(r)), float(sum64(r.abs()))
        after = sum(float(sum64(share)) for share in shares)
        error = abs(after - before) / min(x for x in (self.sent, size) if x > 0) if before != after else 0.0
        self.lost += abs(after - before)
        if not (error <= self.worst or isnan(self.worst)):  # NaN is the worst of all
            self.worst, self.worst_at = error, where


def divide(r: Tensor, z: Tensor) -> Tensor:
    """r / z in float64, zero where z is zero."""
    z = as_float64(z)
    return torch.where(z == 0, 0.0, as_float64(r) / torch.where(z == 0, 1.0, z))


def contract(
    apply: Callable[..., Tensor], operands: Sequence[Tensor], r: Tensor, fill: Sequence[float], account: Account
) -> list[Tensor]:
    """Each operand times the derivative of apply(*operands) contracted with r / z: a share of `r` in proportion to what the
    operand contributes. What belongs to outputs with z = 0 is shared as if the operands were full of `fill`."""
    operands = [as_float64(operand) for operand in operands]
    shares, unserved = _contract(apply, operands, r)
    if bool(unserved.any()):
        account.spread += float(unserved.abs().sum())
        full = [torch.full_like(operand, value) for operand, value in zip(operands, fill, strict=True)]
        shares = [share + even for share, even in zip(shares, _contract(apply, full, unserved)[0], strict=True)]
    return shares


def _contract(apply: Callable[..., Tensor], operands: Sequence[Tensor], r: Tensor) -> tuple[list[Tensor], Tensor]:
    with torch.enable_grad():
        leaves = [operand.detach().requires_grad_() for operand in operands]
        z = apply(*leaves)
        slopes = torch.autograd.grad(z, leaves, divide(r, z.detach()))
    shares = [leaf.detach() * slope for leaf, slope in zip(leaves, slopes, strict=True)]
    return shares, torch.where(z.detach() == 0, as_float64(r), 0.0)


def positive_contributions(apply: Apply, x: Tensor, weight: Tensor, r: Tensor, account: Account) -> tuple[Tensor]:
    """The relevance of x in apply(x, weight), alpha 1 and beta 0."""
    weight = as_float64(weight)
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    both = contract(lambda a, b: apply(a, up) + apply(b, down), (x.clamp(min=0), x.clamp(max=0)), r, (1, -1), account)
    return (both[0] + both[1],)


def bounded_contributions(apply: Apply, x: Tensor, weight: Tensor, r: Tensor, account: Account) -> tuple[Tensor]:
    """The relevance of the pixels x (B, C, H, W) in apply(x, weight), z^B with each channel's own bounds in each image."""
    low = x.amin((2, 3), keepdim=True).expand_as(x)
    high = x.amax((2, 3), keepdim=True).expand_as(x)
    weight = as_float64(weight)
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    shares = contract(lambda a, b, c: apply(a, weight) - apply(b, up) - apply(c, down), (x, low, high), r, (0, -1, 1), account)
    return (sum(shares[1:], shares[0]),)


def product_shares(multiply: Apply, a: Tensor, b: Tensor, r: Tensor, account: Account) -> tuple[Tensor, Tensor]:
    """The relevance of both operands of a matrix product: half each."""
    for_a, for_b = contract(multiply, (a, b), r, (1, 1), account)
    return for_a / 2, for_b / 2


def elementwise_shares(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The relevance of both operands of an elementwise product: half each, whatever their values."""
    return r / 2, r / 2


def identity_share(r: Tensor) -> tuple[Tensor]:
    """The relevance of what a norm, an activation or a softmax is applied to."""
    return (r,)


def reduction_share(reduce: Callable[[Tensor], Tensor], x: Tensor, r: Tensor, account: Account) -> tuple[Tensor]:
    """The relevance of x in a sum or mean over axes, or a pooling by means: in proportion to the terms."""
    return (contract(reduce, (x,), r, (1,), account)[0],)


def sum_shares(a: Tensor, b: Tensor, r: Tensor, examples: int) -> tuple[Tensor, Tensor]:
    """The relevance of both terms of a + b, of equal shape; the rows of `examples` examples follow one another.

    Where the raw sums of both are zero, each receives half of what comes.
    """
    r, a, b = as_float64(r), as_float64(a), as_float64(b)
    s = divide(r, a + b)
    of_a, of_b, whole = (_by_example(term, examples) for term in (a * s, b * s, r))
    sum_a, sum_b = of_a.sum(1, keepdim=True), of_b.sum(1, keepdim=True)
    size = sum_a.abs() + sum_b.abs()
    scale = divide(whole.sum(1, keepdim=True), size)
    halves = torch.where(size == 0, whole / 2, 0.0)
    for_a, for_b = (raw * scale * total.sign() + halves for raw, total in ((of_a, sum_a), (of_b, sum_b)))
    return for_a.view_as(r), for_b.view_as(r)


def _by_example(values: Tensor, examples: int) -> Tensor:
    rows = examples if values.dim() > 1 and len(values) % examples == 0 else 1
    return values.reshape(rows, -1)


class Rule(torch.autograd.Function):
    """An operation whose backward pass shares relevance by a rule, and enters into the account what the rule did.

    `Rule.apply(compute, share, account, where, *operands)` is compute(*operands).
    """

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., Tensor], share: Share, account: Account, where: str, *operands: Tensor
    ) -> Tensor:
        ctx.share, ctx.account, ctx.where = share, account, where
        ctx.kinds = [(operand.device, operand.dtype) for operand in operands]
        return compute(*operands)

    @staticmethod
    def backward(ctx: Any, r: Tensor) -> tuple[Any, ...]:
        shares = tuple(share.to(*kind) for share, kind in zip(ctx.share(r), ctx.kinds, strict=True))
        ctx.account.enter(ctx.where, r, shares)
        return None, None, None, None, *shares


class NoRule(torch.autograd.Function):
    """An operation without a rule: relevance that comes to it is refused, by name."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, where: str, *operands: Tensor) -> Tensor:
        ctx.where = where
        return value.clone()

    @staticmethod
    def backward(ctx: Any, r: Tensor) -> tuple[Any, ...]:
        raise ValueError(f"relevance has no rule for {ctx.where}")
