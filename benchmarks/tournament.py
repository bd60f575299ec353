"""Which estimator makes the best plans? Every metric against the measured truth, on five real models.

    python benchmarks/tournament.py [MODEL ...] --data DIR [--metrics A,B] [--minutes N]

For each model and each metric that fits it: processor seconds and peak memory of its estimate (renderings are made before);
Spearman's rank correlation with the measured divergence of a random sample of single units; and the measured divergence of its
plans at 2.5, 3.0, 3.5 and 4.25 stored bits a weight, with the ties of `vllm` (q/k/v; gate/up; a layer's experts) and without,
on data used for nothing else, paired with the plan of the default metric. Rivals of the same bytes: the uniform plan,
llama.cpp's position rule, and random plans. Where a table is in units of the divergence itself, its prediction stands beside
the measured number. All plans are made of the same renderings (GPTQ, groups of 64, 2 to 8 bits); embeddings, heads and the
first convolution keep their own dtype and are not counted.

Networks are measured with matrix products in bf16 where the processor has them, untouched and quantized alike.
Everything measured is kept at once in results/tournament-MODEL.json, and a
tournament that was stopped goes on where it was; `--minutes` stops it in good order. Each profile runs in a process of its own.
DIR holds the models and texts named in ENTRANTS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from bitplan.allocator import ProfileRequest, home_folder, profile_model
from bitplan.allocator.data import load_calibration
from bitplan.allocator.errors import UsageError
from bitplan.allocator.home import write_whole
from bitplan.allocator.prepared import Prepared, prepare
from bitplan.allocator.profile import load_model, stored_report
from bitplan.allocator.solve import versions
from bitplan.allocator.source import resolve
from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity import METRICS
from bitplan.sensitivity.calibration import Part, assert_disjoint
from bitplan.sensitivity.compare import standard_error
from bitplan.sensitivity.joint import joint_loss
from bitplan.sensitivity.network import Network, divergence, run
from bitplan.sensitivity.report import SensitivityReport
from bitplan.sensitivity.study import Study
from contest import PALETTE, SIZES, TIES, Contest, plan_of, rivals
from fixtures import locate
from machine import describe
from plain import plain_pass

RESULTS = Path(__file__).parent / "results"
JUDGED = ("int2-g64-asym", "int3-g64-asym", "int4-g64-asym")
DEFAULT = "kl_fisher"
ITS_OWN = ("predicted", "joint", "same_data")  # of an entry; all else is measured and shared by plans that are alike


@dataclass(frozen=True)
class Entrant:
    """A model, the data to calibrate and to judge on (below DIR, `even` and `odd` halves of a folder of images), how many
    tokens of each, and how many single units are measured, on how many batches."""

    model: str
    calibration: str
    evaluation: str
    tokens: int
    evaluate: int
    units: int
    judge_batches: int
    left_out: tuple[str, ...] = ()  # metrics that would take hours here


MEASURED = ("divergence", "cross_entropy", "cosine", "top1", "content", "noise_slope")
ENTRANTS = {
    "resnet20": Entrant("resnet-cifar10", "cifar10/train", "cifar10/test", 8192, 16384, 18, 16),
    "minilm-l6": Entrant("minilm-l6", "calibration-text/wiki.txt", "sts-b.txt", 4096, 4096, 30, 8),
    "tiny-mixtral-wiki": Entrant("tiny-mixtral-wiki", "held-out/even.txt", "held-out/odd.txt", 4096, 4096, 30, 8),
    "dinov2-small": Entrant("dinov2-small-imgfocus", "imagenet/even", "imagenet/odd", 4096, 4096, 30, 4),
    "smollm2-135m": Entrant(
        "smollm2-135m", "wikitext-2/wiki.valid.tokens.txt", "wikitext-2/wiki.test.raw.txt", 4096, 4096, 30, 4, MEASURED
    ),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="*", help=f"of {', '.join(ENTRANTS)}; default: all")
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--metrics", help="only these; default: all")
    arguments.add_argument("--minutes", type=float, default=float("inf"))
    options = arguments.parse_args()
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * options.minutes
    wanted = tuple(METRICS) if options.metrics is None else tuple(options.metrics.split(","))
    for name in options.models or ENTRANTS:
        try:
            Tournament(name, ENTRANTS[name], options.data, wanted, deadline).play()
        except TimeoutError:
            print(f"{name}: stopped, time is up; run the same command again to go on", flush=True)
            return


class Tournament:
    """One model's tournament: what is measured is kept in `document`, written after every step."""

    def __init__(self, name: str, entrant: Entrant, data: Path, metrics: tuple[str, ...], deadline: float) -> None:
        self.name, self.entrant, self.deadline = name, entrant, deadline
        self.home = home_folder()
        self.model, self.calibration, self.evaluation = (
            locate(source, data, self.home) for source in (entrant.model, entrant.calibration, entrant.evaluation)
        )
        self.path = RESULTS / f"tournament-{name}.json"
        self.request = ProfileRequest(self.model, formats=PALETTE, calibration=self.calibration, tokens=entrant.tokens)
        self.document: dict[str, Any] = {"profiles": {}, "units": {}, "plans": {}, "random": {}}
        if self.path.exists():
            self.document = json.loads(self.path.read_text())
        self.metrics = [metric for metric in metrics if metric not in entrant.left_out]

    def play(self) -> None:
        """Renderings, profiles, single units, plans; each step only where it is missing."""
        if not self.document.get("rendered"):
            self.in_child(self.render)
            self.keep(rendered=True)
        if "plain_pass" not in self.document:
            self.keep(plain_pass=self.in_child(self.plain_pass))
        for metric in (DEFAULT, *(metric for metric in self.metrics if metric != DEFAULT)):
            if metric == DEFAULT and metric in self.document["profiles"]:
                self.in_child(partial(self.profile, metric))  # at once where it is stored; all plans are compared with its plans
            elif metric not in self.document["profiles"]:
                self.in_time()
                self.document["profiles"][metric] = self.in_child(partial(self.profile, metric))
                self.keep()
                print(f"{self.name}: {metric} {self.document['profiles'][metric]}", flush=True)
        self.in_child(self.judge)
        self.in_child(self.explain)
        print(f"{self.name}: done", flush=True)

    def in_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError

    def keep(self, **more: Any) -> None:
        entrant = self.entrant
        self.document |= {
            "question": "which estimator makes the best plans",
            "command": f"python benchmarks/tournament.py {self.name}",
            "model": Path(entrant.model).name,
            "calibration": Path(entrant.calibration).name,
            "evaluation": Path(entrant.evaluation).name,
            "tokens": entrant.tokens,
            "evaluate": entrant.evaluate,
            "palette": PALETTE,
            "left_out": dict.fromkeys(entrant.left_out, "hours here"),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": describe(),
            "versions": versions(),
            **more,
        }
        write_whole(self.path, (json.dumps(self.document, indent=1) + "\n").encode())

    def in_child(self, work: Callable[[], Any]) -> Any:
        """`work()` in a process of its own; what it returns comes back as JSON."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            status = 1
            try:
                answer = json.dumps(work()).encode()
                os.write(writing, answer)
                status = 0
            except TimeoutError:
                status = 3
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 3:
            raise TimeoutError
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{self.name}: a step failed (status {status})")
        if self.path.exists():
            self.document = json.loads(self.path.read_text())
        return json.loads(answer)

    def prepared(self) -> Prepared:
        return prepare(self.request, load_model(resolve(self.model), self.home), self.home)

    def render(self) -> None:
        prepared = self.prepared()
        inventory = prepared.loaded.network.inventory
        prepared.renderings.make([(unit, fmt) for unit in inventory.units for fmt in self.request.palette(inventory)])

    def profile(self, metric: str) -> dict[str, Any]:
        """Processor seconds from the first batch to the last (other work may share the machine), peak memory, notes."""
        began: list[float] = []

        def note_start(stage: str, done: int, total: int) -> None:
            if stage == "estimate" and not began:
                began.append(time.process_time())

        try:
            report = profile_model(replace(self.request, metric=metric), home=self.home, progress=note_start)
        except UsageError as error:
            return {"refused": str(error)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = round(time.process_time() - began[0], 2) if began else None
        return {"seconds": seconds, "peak_bytes": peak, "batches": report.batches, "notes": list(report.notes)}

    def plain_pass(self) -> dict[str, Any]:
        """Processor seconds of one forward and backward pass over the tokens of the estimates, gradients of weights included."""
        prepared = self.prepared()
        started = time.process_time()
        plain_pass(prepared)
        return {"seconds": round(time.process_time() - started, 2)}

    def judge(self) -> None:
        """Single units and plans; the network's own weights are replaced and put back."""
        torch.set_float32_matmul_precision("medium")  # bf16 products in fp32 networks: both sides alike, see the docstring
        prepared = self.prepared()
        network = prepared.loaded.network
        assert prepared.calibration is not None
        part = load_calibration(prepared.loaded, self.evaluation, tokens=self.entrant.evaluate, seed=1).verify
        assert_disjoint(prepared.calibration.render, prepared.calibration.estimate, part)
        reports = {
            metric: found
            for metric, told in self.document["profiles"].items()
            if "refused" not in told
            and (found := stored_report(replace(self.request, metric=metric), network.inventory, self.home)) is not None
        }
        contest = Contest(network, prepared.renderings)
        self.judge_units(contest, reports, prepared.calibration.estimate)
        with torch.no_grad():
            references = [run(network, batch) for batch in part.batches]
        for tie in TIES:
            for size in SIZES:
                self.judge_plans(contest, reports, part, references, tie, size)

    def judge_units(self, contest: Contest, reports: dict[str, SensitivityReport], part: Part) -> None:
        """The measured divergence of single units on the tokens of the estimates, and how each metric ranks them."""
        free = contest.free
        units = random.Random(0).sample(free, min(self.entrant.units, len(free)))
        batches = part.batches[: self.entrant.judge_batches]
        measured = self.document["units"].setdefault("measured", {})
        references: list[torch.Tensor] = []
        for unit in units:
            for fmt in JUDGED:
                key = f"{unit.name} {fmt}"
                if key not in measured:
                    self.in_time()
                    with torch.no_grad():
                        references = references or [run(contest.network, batch) for batch in batches]
                        with contest.rounded({unit.name: fmt}):
                            each = [
                                divergence(contest.network, reference, run(contest.network, batch), batch)
                                for reference, batch in zip(references, batches, strict=True)
                            ]
                    measured[key] = float(torch.cat(each).mean())
                    self.keep()
        truth = np.array([[measured[f"{unit.name} {fmt}"] for fmt in JUDGED] for unit in units])
        ranks = self.document["units"].setdefault("ranks", {})  # of metrics whose profile is gone, as they were
        for metric, report in reports.items():
            rows, columns = [report.units.index(unit.name) for unit in units], [report.formats.index(fmt) for fmt in JUDGED]
            table = report.loss[np.ix_(rows, columns)]
            ranks[metric] = {
                "all": float(spearmanr(table.ravel(), truth.ravel()).statistic),
                **{fmt: float(spearmanr(table[:, f], truth[:, f]).statistic) for f, fmt in enumerate(JUDGED)},
                "measured_over_estimated": float(np.median(truth[:, 1] / np.maximum(table[:, 1], 1e-300))),
            }
        self.keep()

    def judge_plans(
        self,
        contest: Contest,
        reports: dict[str, SensitivityReport],
        part: Part,
        references: list[torch.Tensor],
        tie: str,
        size: float,
    ) -> None:
        cell = self.document["plans"].setdefault(f"{tie} {size}", {"limit_bytes": contest.limit(size), "entries": {}})
        problems = {metric: contest.problem(report, tie, size) for metric, report in reports.items()}
        if int(problems[DEFAULT].cost[0].min(axis=1).sum()) > cell["limit_bytes"]:
            cell["skipped"] = "smaller than the narrowest plan"
            self.keep()
            return
        choices = {metric: plan_of(problem) for metric, problem in problems.items()}
        choices |= rivals(contest, problems[DEFAULT], tie)
        same_size = [other for key, other in self.document["plans"].items() if key.endswith(f" {size}")]
        done = {entry["bits"]: entry for other in same_size for entry in other["entries"].values()}
        for name, choice in choices.items():
            assignment = contest.assignment(problems[DEFAULT], choice, tie)
            bits = "".join(str(FORMATS[assignment[unit.name]].bits) for unit in contest.free)
            if cell["entries"].get(name, {}).get("bits") == bits:
                continue
            if bits not in done:
                self.in_time()
                with contest.rounded(assignment), torch.no_grad():
                    done[bits] = {"bits": bits, **by_example(contest.network, part, references)}
            cell["entries"][name] = {key: value for key, value in done[bits].items() if key not in ITS_OWN}
            problem = problems.get(name)
            if problem is not None and reports[name].quantity == contest.network.quantity:
                cell["entries"][name]["predicted"] = float(problem.loss[np.arange(problem.items), choice].sum())
            self.keep()
            print(f"{self.name} {tie} {size} {name}: {cell['entries'][name]['loss']:.5g}", flush=True)
        against(cell["entries"])
        self.keep()

    def explain(self) -> None:
        """What stands between the default's predictions and what is measured: products of units, and other data."""
        prepared = self.prepared()
        network = prepared.loaded.network
        assert prepared.calibration is not None
        contest, part = Contest(network, prepared.renderings), prepared.calibration.estimate
        study = Study(network, prepared.renderings, part, PALETTE)
        references: list[torch.Tensor] = []
        for cell in self.document["plans"].values():
            entry = cell["entries"].get(DEFAULT)
            if entry is None or "same_data" in entry:
                continue
            self.in_time()
            assignment = {unit.name: f"int{bits}-g64-asym" for unit, bits in zip(contest.free, entry["bits"], strict=True)}
            entry["joint"] = float(joint_loss(study, assignment).loss[0, 0])
            with torch.no_grad():
                references = references or [run(network, batch) for batch in part.batches]
                with contest.rounded(assignment):
                    entry["same_data"] = by_example(network, part, references)["loss"]
            self.keep()


def by_example(network: Network, part: Part, references: list[torch.Tensor]) -> dict[str, Any]:
    """The measured divergence of the network as it stands, with its standard error, and of each batch for pairing."""
    sums, counts = [], []
    for batch, reference in zip(part.batches, references, strict=True):
        each = divergence(network, reference, run(network, batch), batch)
        sums.append(float(each.sum()))
        counts.append(len(each))
    means, weights = np.array(sums) / np.array(counts), np.array(counts, dtype=np.float64)
    return {
        "loss": float(np.average(means, weights=weights)),
        "stderr": standard_error(means, weights),
        "batch_means": [round(value, 9) for value in means.tolist()],
        "batch_counts": counts,
    }


def against(entries: dict[str, dict[str, Any]]) -> None:
    """How much more each plan loses than the default's, with the standard error of the paired difference."""
    default = entries[DEFAULT]
    weights = np.array(default["batch_counts"], dtype=np.float64)
    for entry in entries.values():
        difference = np.array(entry["batch_means"]) - np.array(default["batch_means"])
        entry["above_default"] = float(np.average(difference, weights=weights))
        entry["above_default_stderr"] = standard_error(difference, weights)


if __name__ == "__main__":
    main()
