"""The forward pass that relevance comes back through: every torch operation intercepted and done under its rule.

What an operation does with relevance is told by the tables at the end of this file; the arithmetic is in `lrp_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, resolve_name

from ..kernels.float64 import as_float64
from .experts import Experts
from .lrp_rules import (
    Account,
    NoRule,
    Rule,
    Share,
    bounded_contributions,
    elementwise_shares,
    identity_share,
    positive_contributions,
    product_shares,
    reduction_share,
    sum_shares,
)
from .network import Batch


class Trace(TorchFunctionMode):
    """Intercepts the operations of one forward pass, while it is entered and `modules` is open. The backward pass that
    follows fills `account` and the gradients of `leaves`, which are the relevance that arrives at the inputs."""

    def __init__(self, module: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.module, self.tokens = module, batch.get("input_ids")
        self.examples = len(next(iter(batch.values())))
        self.account = Account()
        self.leaves: list[Tensor] = []
        self.path: list[str] = []  # of the modules whose forward pass is under way
        self.opaque = 0  # how many of them are taken as wholes

    def leaf(self, value: Tensor) -> Tensor:
        """`value` as an input at which relevance arrives."""
        self.leaves.append(value.detach().clone().requires_grad_())
        return self.leaves[-1]

    @property
    def where(self) -> str:
        path = self.path[-1] if self.path else ""
        return f"{path or 'the model'} ({type(self.module.get_submodule(path)).__name__})"

    @contextmanager
    def modules(self) -> Iterator[None]:
        """While open, know the module under way, take norms and activations as wholes and cut routers off."""

        def enter(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.path.append(path)
            self.opaque += is_identity(module)
            if isinstance(module, Experts) and torch.is_grad_enabled():
                hidden, chosen, weights = args
                return (hidden, chosen, weights.detach()), kwargs
            return None

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if is_identity(module):
                self.opaque -= 1
                x = _flat((args, kwargs))[0]
                if not self.opaque and x.requires_grad:
                    output = self.rule("identity", lambda _, y=output: y.clone(), identity_share, x)
            self.path.pop()
            return output

        with ExitStack() as stack:
            for path, module in self.module.named_modules():
                before = module.register_forward_pre_hook(partial(enter, path), with_kwargs=True, prepend=True)
                stack.callback(before.remove)
                stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
            yield

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.opaque:
            with torch.no_grad():
                return func(*args, **kwargs)
        tensors = _flat((args, kwargs))
        if func in LOOKUPS:
            return self.lookup(func(*args, **kwargs), tensors)
        operands = [value for value in tensors if value.requires_grad]
        if not operands or not torch.is_grad_enabled() or func in CONSTANT or func in MOVES:
            return func(*args, **kwargs)
        if func in RULES:
            try:
                return RULES[func](self, *args, **kwargs)
            except TypeError as error:
                raise ValueError(f"relevance has no rule for {_name(func)} called as in {self.where}: {error}") from error
        with torch.no_grad():
            result = func(*args, **kwargs)
        return self.refuse(_name(func), result, *operands)

    def rule(self, name: str, compute: Callable[..., Tensor], share: Share, *operands: Tensor) -> Tensor:
        """compute(*operands) under a rule."""
        result: Tensor = Rule.apply(compute, share, self.account, f"{name} in {self.where}", *operands)  # type: ignore[no-untyped-call]
        return result

    def refuse(self, name: str, result: Any, *operands: Tensor) -> Any:
        """`result` of an operation through which no relevance may come."""
        where = f"{name} in {self.where}"
        return _each_float(result, lambda value: NoRule.apply(value, where, *operands))  # type: ignore[no-untyped-call]

    def lookup(self, found: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The embeddings of the tokens are inputs; those of positions and types are constants."""
        of_tokens = self.tokens is not None and any(value.data_ptr() == self.tokens.data_ptr() for value in tensors)
        return self.leaf(found) if of_tokens and torch.is_grad_enabled() else found

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.requires_grad:
            return self.refuse("linear with a weight that is computed", functional.linear(input, weight, bias).detach(), weight)  # type: ignore[no-any-return]
        share = partial(positive_contributions, functional.linear, input.detach(), weight, account=self.account)
        return self.rule("linear", partial(functional.linear, weight=weight, bias=bias), share, input)

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        def apply(x: Tensor, w: Tensor) -> Tensor:
            return functional.conv2d(x, w, None, *args, **kwargs)

        def compute(x: Tensor) -> Tensor:
            return functional.conv2d(x, weight, bias, *args, **kwargs)

        contributions = bounded_contributions if any(input is leaf for leaf in self.leaves) else positive_contributions
        share = partial(contributions, apply, input.detach(), weight, account=self.account)
        return self.rule("convolution", compute, share, input)

    def multiply(self, input: Any, other: Any) -> Tensor:
        """Elementwise; a constant factor passes relevance unchanged."""
        return self.two("product", torch.mul, input, other, elementwise_shares)

    def matmul(self, input: Tensor, other: Tensor) -> Tensor:
        if not other.requires_grad and other.dim() == 2:
            return self.linear(input, other.T)
        if not (input.requires_grad and other.requires_grad):
            free = [value for value in (input, other) if value.requires_grad]
            return self.refuse("matmul with a constant", torch.matmul(input.detach(), other.detach()), *free)  # type: ignore[no-any-return]
        share = partial(product_shares, torch.matmul, input.detach(), other.detach(), account=self.account)
        return self.rule("matmul", torch.matmul, share, input, other)

    def add(self, input: Any, other: Any, *, alpha: float = 1) -> Tensor:
        other = other if alpha == 1 else self.multiply(other, alpha) if _free(other) else other * alpha
        return self.two("sum", torch.add, input, other, partial(sum_shares, examples=self.examples))

    def subtract(self, input: Any, other: Any) -> Tensor:
        """input - other is the sum of input and -other."""
        return self.two("difference", torch.sub, input, other, lambda a, b, r: sum_shares(a, -b, r, self.examples))

    def divide(self, input: Any, other: Any) -> Tensor:
        """By a constant."""
        if _free(other):
            value = torch.div(input.detach() if isinstance(input, Tensor) else input, other.detach())
            return self.refuse("division by what is computed", value, other)  # type: ignore[no-any-return]
        return self.rule("quotient", lambda x: torch.div(x, other), identity_share, input)

    def index_add(self, input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
        return self.add(input, torch.zeros_like(input).index_add(dim, index, source))

    def affine(self, *given: Tensor, beta: float = 1, alpha: float = 1, **named: Tensor) -> Tensor:
        """beta * c + alpha * a @ b, whatever their names."""
        c, a, b = (*given, *named.values())
        return self.add(self.multiply(self.matmul(a, b), alpha), self.multiply(c, beta) if _free(c) else c * beta)

    def identity(self, func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.rule(_name(func), lambda x: func(x, *args, **kwargs), identity_share, input)

    def reduction(self, func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def reduce(x: Tensor) -> Tensor:
            return func(x, *args, **kwargs)

        return self.rule(_name(func), reduce, partial(reduction_share, reduce, input.detach(), account=self.account), input)

    def concatenate(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        """Constants beside inputs in a sequence receive what arrives at their places."""
        return torch.cat([t if _free(t) or not t.is_floating_point() else self.leaf(t) for t in tensors], dim)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Taken apart: softmax(Q K^T * scale + mask) V."""
        if enable_gqa:
            times = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
        scores = self.matmul(query, key.transpose(-1, -2))
        scores = self.multiply(scores, query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
            scores = self.add(scores, attn_mask)
        return self.matmul(self.identity(torch.softmax, scores, -1), value)

    def two(
        self, name: str, func: Callable[[Any, Any], Tensor], a: Any, b: Any, share: Callable[..., tuple[Tensor, Tensor]]
    ) -> Tensor:
        """func(a, b) where either may be constant: then the other receives everything."""
        if not (_free(a) and _free(b)):
            x = a if _free(a) else b
            compute = (lambda value: func(value, b)) if x is a else (lambda value: func(a, value))
            return self.rule(name, compute, lambda r: (as_float64(r).sum_to_size(x.shape),), x)
        shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
        a, b = a.expand(shape), b.expand(shape)  # autograd adds up what comes to the copies
        return self.rule(name, func, partial(share, a.detach(), b.detach()), a, b)


def is_identity(module: nn.Module) -> bool:
    """Norms, activations and dropout: relevance passes a module of this kind unchanged."""
    kind = type(module)
    if "Norm" in kind.__name__:
        return next(module.children(), None) is None
    return kind.__module__ in IDENTITY_HOMES and kind is not nn.MultiheadAttention


def _free(value: Any) -> bool:
    """Whether relevance may go to `value`; else it is a constant."""
    return isinstance(value, Tensor) and value.requires_grad


def _name(func: Any) -> str:
    return resolve_name(func) or str(getattr(func, "__name__", func))


def _flat(values: Any) -> list[Tensor]:
    """The tensors in nested arguments."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [tensor for value in values for tensor in _flat(value)] if isinstance(values, list | tuple) else []


def _each_float(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, Tensor):
        return change(result) if result.is_floating_point() else result
    if isinstance(result, list | tuple):  # also what torch calls its return types, which have names
        return type(result)(_each_float(value, change) for value in result)
    return result


def _of(rule: Callable[..., Tensor], func: Any) -> Callable[..., Tensor]:
    return lambda trace, *args, **kwargs: rule(trace, func, *args, **kwargs)


IDENTITY_HOMES = ("torch.nn.modules.activation", "torch.nn.modules.dropout", "transformers.activations")
LOOKUPS = (functional.embedding, torch.embedding)
CONSTANT = {
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, Tensor.new_zeros),
    *(Tensor.detach, Tensor.requires_grad_, Tensor.register_hook),
}
MOVING = (
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone"),
    *("transpose", "permute", "t", "swapaxes", "swapdims", "movedim", "flip", "roll", "to", "float", "double", "type_as"),
    *("expand", "expand_as", "broadcast_to", "broadcast_tensors", "repeat", "repeat_interleave", "tile", "stack"),
    *("chunk", "split", "tensor_split", "unbind", "narrow", "select", "index_select", "__getitem__", "masked_fill", "where"),
)
MOVES = {
    *(getattr(home, name) for home in (torch, Tensor) for name in MOVING if hasattr(home, name)),
    *(Tensor.T.__get__, Tensor.mT.__get__, functional.pad, functional.max_pool2d),  # type: ignore[attr-defined]
}
IDENTITIES = (
    *(torch.relu, Tensor.relu, torch.tanh, Tensor.tanh, torch.sigmoid, Tensor.sigmoid, torch.softmax, Tensor.softmax),
    *(functional.relu, functional.gelu, functional.silu, functional.softmax, functional.dropout, functional.normalize),
    *(functional.tanh, functional.sigmoid, functional.relu6, functional.hardswish, functional.mish, functional.leaky_relu),
    *(torch.neg, Tensor.neg, Tensor.__neg__, torch.clamp, Tensor.clamp),
)
REDUCTIONS = (
    *(torch.sum, Tensor.sum, torch.mean, Tensor.mean),
    *(functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool1d, torch.adaptive_avg_pool1d),
)
OPERATIONS: tuple[tuple[Callable[..., Tensor], tuple[Any, ...]], ...] = (
    (Trace.add, (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_)),
    (Trace.multiply, (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__, Tensor.mul_)),
    (Trace.subtract, (torch.sub, Tensor.sub, Tensor.__sub__)),
    (Trace.divide, (torch.div, Tensor.div, Tensor.__truediv__)),
    (Trace.matmul, (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)),
    (Trace.affine, (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm)),
    (Trace.index_add, (torch.index_add, Tensor.index_add)),
    (Trace.linear, (functional.linear,)),
    (Trace.convolve, (functional.conv2d, torch.conv2d)),
    (Trace.attention, (functional.scaled_dot_product_attention,)),
    (Trace.concatenate, (torch.cat,)),
)
RULES: dict[Any, Callable[..., Tensor]] = {
    **{func: _of(Trace.identity, func) for func in IDENTITIES},
    **{func: _of(Trace.reduction, func) for func in REDUCTIONS},
    **{func: rule for rule, funcs in OPERATIONS for func in funcs},
}
