"""A plain forward and backward pass over the tokens of an estimate: the yardstick of what estimates cost."""

from __future__ import annotations

import torch

from bitplan.allocator.prepared import Prepared
from bitplan.sensitivity.network import run, sampled_objective


def plain_pass(prepared: Prepared) -> None:
    """One pass over every batch of the estimate, gradients of all units' weights included."""
    network = prepared.loaded.network
    assert prepared.calibration is not None
    for unit in network.inventory.units:
        for matrix in unit.matrices:
            network.module.get_parameter(f"{matrix.module}.weight").requires_grad_()
    for batch in prepared.calibration.estimate.batches:
        objective = sampled_objective(network, run(network, batch), batch, None, torch.Generator().manual_seed(0))
        objective.backward()  # type: ignore[no-untyped-call]
