"""Make a freshly loaded network plain: frozen, in evaluation mode, and made of ordinary modules only.

Stacked experts become one module each (`experts.py`), and the transposed `Conv1D` of GPT-2's family becomes the `nn.Linear`
that it is. Every rule of the inventory and every hook then sees linear layers, convolutions and embeddings, nothing else.
"""

from __future__ import annotations

from torch import nn

from .experts import unstack


def make_plain(model: nn.Module) -> nn.Module:
    """Change `model` in place as said above and return it; its outputs stay the same."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _as_linear(module))
    unstack(model)
    model.requires_grad_(False)
    return model.eval()


def _as_linear(module: nn.Module) -> nn.Linear:
    weight = module.get_parameter("weight").data.T.contiguous()  # (in, out) -> (out, in)
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight)
    linear.bias = nn.Parameter(module.get_parameter("bias").data)
    return linear
