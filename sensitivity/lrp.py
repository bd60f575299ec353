"""Layer-wise relevance propagation through a network as it is: what of the output's relevance arrives where.

The forward pass runs the model's own modules. Every torch operation in it that touches a value with a gradient is intercepted
(`lrp_trace.py`) and done under its rule (`lrp_rules.py`), so that the backward pass which follows carries relevance in place of
gradients:

    a rule           products with weights, products of two, sums of two, sums over axes, attention (taken apart into its
                     two products), activations and softmax (identity); norms and activation modules as wholes (identity)
    autograd's own   data movement: views, transpositions, slices, concatenation, repetition, maximum pooling
    constants        what has no gradient (weights, biases, positions, rotations, masks, the weights of a router) receives
                     nothing: x * c, x / c and x + c pass all their relevance to x
    no rule          anything else: refused by name if relevance comes to it

Relevance enters at the output: one at the predicted token of every position that is not masked, one at the predicted class,
or u_i^2 at component i of a pooled unit vector u. It leaves at the inputs: the pixels, the embeddings of the tokens, and
constants that stand beside them in a sequence (a class token). What is sent must arrive; `Account` has the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ..kernels.float64 import sum64
from .lrp_rules import Account, NoRule, Rule
from .lrp_trace import Trace
from .network import Batch, Network, run
from .probe import Rows, Use, watch_gradients
from .units import Unit

OURS = (Rule._backward_cls, NoRule._backward_cls)
ALIKE = 0.01  # attention taken apart rounds otherwise than whole, and may send a token that is torn to another expert
CONSERVED = 1e-4  # of what is sent, this much may fail to arrive


def propagate(network: Network, batch: Batch, units: Sequence[Unit], visit: Callable[[Use, Rows, Tensor], None]) -> Account:
    """Send the relevance of the output for `batch` back, calling `visit(use, rows, relevance at its output)` at every use of
    `units`; the relevance comes in the shape of `Rows.gradient`.

    Raises ValueError, naming operation and module, where the way leads through an operation that has no rule. The forward
    pass is done twice, the second time as it is, to see that the first one computed what the model computes.
    """
    trace = Trace(network.module, batch)
    if "pixel_values" in batch:
        batch = {**batch, "pixel_values": trace.leaf(batch["pixel_values"])}
    with watch_gradients(network, batch, units, visit), trace.modules(), trace:
        output = run(network, batch)
    if not output.requires_grad:
        raise ValueError("relevance finds no way from the output to the inputs")
    with torch.no_grad():
        expected = run(network, batch)
    if not float((output.detach() - expected).norm()) <= ALIKE * float(expected.norm()):
        raise ValueError("relevance took the model apart and got another output; it changes values in place, which has no rule")
    _refuse_strangers(output)
    account, r = trace.account, start(network, output.detach(), batch)
    account.sent = float(sum64(r))
    output.backward(r)  # type: ignore[no-untyped-call]
    account.arrived = sum(float(sum64(leaf.grad)) for leaf in trace.leaves if leaf.grad is not None)
    if not abs(account.arrived - account.sent) <= CONSERVED * account.sent:
        raise ValueError(
            f"relevance is not conserved: {account.sent:g} was sent and {account.arrived:g} arrived; the largest error of one "
            f"rule is {account.worst:.1e}, of {account.worst_at}"
        )
    return account


def start(network: Network, output: Tensor, batch: Batch) -> Tensor:
    """The relevance that enters at the output."""
    if network.inventory.outputs == "pooled":
        return output.square()
    r = torch.zeros_like(output).scatter_(-1, output.argmax(-1, keepdim=True), 1.0)
    if network.inventory.outputs == "tokens" and "attention_mask" in batch:
        r *= batch["attention_mask"][..., None]
    return r


def _refuse_strangers(output: Tensor) -> None:
    """Functions with a backward of their own, which no interception sees, would pass gradients on for relevance."""
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction) and not isinstance(node, OURS):
            raise ValueError(f"relevance has no rule for {type(node).__name__.removesuffix('Backward')}")
        waiting += [following for following, _ in node.next_functions]
