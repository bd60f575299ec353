"""Why does a mixture of experts lose more than its second-order estimate? The router's part, measured.

One unit at a time is rounded, and the divergence measured twice: as it is, and with every token sent to the experts that the
untouched model chose for it, weighed by what the router now thinks of them. What the second measurement does not have is tokens
that change their expert, which no derivative sees.

    python benchmarks/routers.py [tiny-mixtral-wiki] --data DIR [--units N]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from bitplan.allocator import profile_model
from bitplan.allocator.solve import versions
from bitplan.sensitivity.experts import Experts
from bitplan.sensitivity.network import divergence, run
from contest import Contest
from machine import describe
from tournament import DEFAULT, ENTRANTS, RESULTS, Tournament

FORMATS = ("int3-g64-asym", "int4-g64-asym")


@dataclass
class Switch:
    """What the routers of a network do: note whom they choose, follow what was noted, or as they like. `changed` counts the
    tokens, over layers, that were to go elsewhere, of `seen`."""

    doing: str = "note"
    batch: int = 0
    noted: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    changed: int = 0
    seen: int = 0


@contextmanager
def switched(module: nn.Module, switch: Switch) -> Iterator[None]:
    """While open, the experts of `module` do as `switch` says."""
    logits: dict[str, Tensor] = {}
    handles = []
    blocks = [(path, experts) for path, experts in module.named_modules() if isinstance(experts, Experts)]
    for path, experts in blocks:
        block = module.get_submodule(path.rpartition(".")[0])
        router = next(child for name, child in block.named_children() if "gate" in name or "router" in name)

        def note(module: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
            logits[path] = output[0] if isinstance(output, tuple) else output

        handles.append(router.register_forward_hook(note))
        experts.forward = _following(path, experts.forward, switch, logits)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for _, experts in blocks:
            del experts.forward


def _following(
    path: str, forward: Callable[[Tensor, Tensor, Tensor], Tensor], switch: Switch, logits: dict[str, Tensor]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def follow(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        place = (switch.batch, path)
        if switch.doing == "note":
            switch.noted[place] = chosen.clone()
            return forward(hidden, chosen, weights)
        before = switch.noted[place]
        switch.changed += int((chosen.sort(-1).values != before.sort(-1).values).any(-1).sum())
        switch.seen += len(before)
        if switch.doing == "as they like":
            return forward(hidden, chosen, weights)
        mass = logits[path].float().reshape(len(before), -1).softmax(-1).gather(1, before)
        return forward(hidden, before, (mass / mass.sum(-1, keepdim=True)).to(weights.dtype))  # Mixtral's weights

    return follow


@torch.no_grad()
def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", nargs="?", default="tiny-mixtral-wiki")
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--units", type=int, default=20)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    tournament = Tournament(options.model, ENTRANTS[options.model], options.data, (), float("inf"))
    report = profile_model(replace(tournament.request, metric=DEFAULT), home=tournament.home)
    prepared = tournament.prepared()
    network = prepared.loaded.network
    assert prepared.calibration is not None
    batches, contest, switch = prepared.calibration.estimate.batches, Contest(network, prepared.renderings), Switch()

    def each_output() -> Iterator[Tensor]:
        for switch.batch, batch in enumerate(batches):
            yield run(network, batch)

    rows = []
    with switched(network.module, switch):
        references = list(each_output())
        for unit in random.Random(0).sample(contest.free, options.units):
            for fmt in FORMATS:
                row: dict[str, Any] = {"unit": unit.name, "format": fmt}
                row["estimated"] = float(report.loss[report.units.index(unit.name), report.formats.index(fmt)])
                for doing in ("as they like", "as noted"):
                    switch.doing, switch.changed, switch.seen = doing, 0, 0
                    with contest.rounded({unit.name: fmt}):
                        triples = zip(references, each_output(), batches, strict=True)
                        each = torch.cat([divergence(network, reference, output, batch) for reference, output, batch in triples])
                    row[doing] = float(each.mean())
                    if doing == "as they like":
                        row["changed"] = switch.changed / switch.seen
                        top, whole = each.sort(descending=True).values[: len(each) // 100].sum(), each.sum()
                        row["top_hundredth"] = float(top / whole) if whole > 0 else 0.0
                rows.append(row)
                print(row, flush=True)
    table = {key: np.array([row[key] for row in rows]) for key in ("estimated", "as they like", "as noted")}
    document = {
        "question": "what a router that changes its mind costs beyond the second-order estimate",
        "command": f"python benchmarks/routers.py {options.model} --units {options.units}",
        "model": options.model,
        "windows": prepared.calibration.estimate.examples,
        "rows": rows,
        "found": {
            doing: {
                "median_measured_over_estimated": float(np.median(table[doing] / table["estimated"])),
                "rank_correlation": float(spearmanr(table[doing], table["estimated"]).statistic),
            }
            for doing in ("as they like", "as noted")
        },
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": versions(),
    }
    (RESULTS / f"routers-{options.model}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
