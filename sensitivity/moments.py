"""Second moments of the inputs: H = sum over rows of x x^T for every matrix, from one forward pass over the data.

Matrices that are fed the same tensor (q, k and v; gate and up) share one H, which is found by looking, not by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .calibration import Part
from .network import Network, run
from .probe import Rows, Use, watch_inputs
from .progress import Progress, silent
from .units import Unit


@dataclass(frozen=True, eq=False)
class Moments:
    """`site[module path]` names the H of that module in `second`: (in, in) float32, a sum over all rows seen.

    Embeddings and grouped convolutions have none.
    """

    site: dict[str, str]
    second: dict[str, Tensor]


@torch.no_grad()
def collect_moments(network: Network, units: Sequence[Unit], part: Part, progress: Progress = silent) -> Moments:
    """Second moments of the inputs of `units` over all examples of `part`."""
    moments = Moments({}, {})
    for index, batch in enumerate(part.batches):
        progress("render: second moments", index, len(part.batches))
        with watch_inputs(network, batch, units, adding_to(moments, network)):
            run(network, batch)
    progress("render: second moments", len(part.batches), len(part.batches))
    return moments


def adding_to(moments: Moments, network: Network) -> Callable[[Use, Rows], None]:
    """What to call at every use while one batch flows by, for its rows to be added to `moments`."""
    site, second = moments.site, moments.second
    latest: list[tuple[str, Tensor, object]] = []  # the last tensors received and how they were cut, to see who shares one

    def visit(use: Use, rows: Rows) -> None:
        if rows.one_hot or len(rows.x) != 1:
            return
        x = rows.x[0]
        cut = _cut(network.module.get_submodule(use.module))
        leader = next((name for name, tensor, how in latest if tensor is rows.source and how == cut), use.module)
        leader = site.setdefault(use.module, leader)
        if leader == use.module:
            latest.append((leader, rows.source, cut))
            del latest[:-4]
            if leader not in second:
                second[leader] = torch.zeros(x.shape[1], x.shape[1], device=x.device)
            second[leader].addmm_(x.T, x)

    return visit


def _cut(module: nn.Module) -> object:
    """How a module cuts its input into rows: convolutions fed one tensor share an H only if they take the same patches."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size, module.stride, module.padding, module.dilation
    return None
