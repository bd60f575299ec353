"""How long do the automatic mixed-precision searches of other tools take, on the same model, tokens and menu of formats?

Three tools score every decoder linear of one causal language model in integers of 2, 3, 4, 5, 6 and 8 bits, groups of 64,
asymmetric, and choose a width for each under 4 stored bits a weight, scales and zero points counted:

    modelopt     NVIDIA Model Optimizer, `mtq.auto_quantize`, method gradient: pip install nvidia-modelopt
    auto-round   Intel AutoRound, `AutoScheme`, its delta loss:                pip install auto-round
    bitplan      this package, metric kl_fisher, and the plan at that budget

Nothing is tuned or exported afterwards. All read the very windows of the text that bitplan's own estimate reads. One thread;
process seconds are those of the program and of its children (Model Optimizer solves in one), whatever else the machine does.
`search` leaves out imports and loading the model. Tools that are not installed are named; bitplan need not be where they are.

python benchmarks/peers.py --tool TOOL --model FOLDER --text FILE [--tokens N] [--dtype TYPE] [--batch N] [--rounding HOW]
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import random
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

BITS = (2, 3, 4, 5, 6, 8)
GROUP = 64
BUDGET = 4.0  # stored bits a weight, over the decoder linears
READ_BYTES = 8_000_000
PACKAGES = {"modelopt": "nvidia-modelopt", "auto-round": "auto-round", "bitplan": "bitplan"}

Choice = list[tuple[int, int]]  # bits and parameters of every decoder linear; 16 bits: left alone


def stored_bits(bits: int) -> float:
    """Bits a weight: its code, and a share of its group's 16-bit scale and `bits`-bit zero point."""
    return 16.0 if bits == 16 else bits + (16 + bits) / GROUP


class Clock:
    """Process and wall seconds by phase. A phase within a phase takes its time away from the outer one."""

    def __init__(self) -> None:
        self.process: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self._stack = ["import"]
        self._since = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter()

    def _book(self) -> None:
        now = self._now()
        for kept, i in ((self.process, 0), (self.wall, 1)):
            kept[self._stack[-1]] = kept.get(self._stack[-1], 0.0) + now[i] - self._since[i]
        self._since = now

    def enter(self, phase: str) -> None:
        """From here on it is `phase`, in the place of the present one."""
        self._book()
        self._stack[-1] = phase

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        self._book()
        self._stack.append(phase)
        try:
            yield
        finally:
            self._book()
            self._stack.pop()

    def follow(self, owner: Any, name: str, phase: str) -> None:
        """Book every call of `owner.name` to `phase`."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.within(phase):
                return inner(*arguments, **options)

        setattr(owner, name, timed)


def windows(options: argparse.Namespace) -> tuple[Any, str]:
    """The rows (windows, length) of token ids that bitplan's estimate uses, the second third of its deal by seed 0, and their
    fingerprint as bitplan writes it."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    content = options.text.read_bytes()[:READ_BYTES].decode(errors="replace")
    ids = torch.tensor(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    longest = min(AutoConfig.from_pretrained(options.model).max_position_embeddings, tokenizer.model_max_length)
    length = min(512, longest, max(16, options.tokens // 4))
    each = -(-options.tokens // length)
    rows = ids[: len(ids) // length * length].view(-1, length)
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    dealt: dict[str, int] = {}
    for i in order:
        dealt.setdefault(hashlib.sha256(rows[i].numpy().tobytes()).hexdigest(), i)
    if len(dealt) < 3 * each:
        raise SystemExit(f"the text has {len(dealt)} windows of {length} tokens; at least {3 * each} are needed, give more text")
    chosen = list(dealt.items())[each : 2 * each]
    fingerprint = hashlib.sha256("\n".join(sorted(digest for digest, _ in chosen)).encode()).hexdigest()
    return rows[[i for _, i in chosen]], fingerprint


def load(folder: str, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def tool_modules(tool: str, *names: str) -> list[ModuleType]:
    """Exits with the remedy when one of them is not there."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise SystemExit(f"{tool} cannot be imported ({error}); pip install {PACKAGES[tool]}") from error


def search_modelopt(options: argparse.Namespace, clock: Clock) -> tuple[Choice, dict[str, Any]]:
    """`mtq.auto_quantize`. Its affine grid has a step fewer, 2^bits - 1 levels; q/k/v and gate/up share a format, by its rules.

    Weights need no tokens to be calibrated, and it is told so. It also has the choice of leaving a module as it is.
    """
    names = ("quantization", "quantization.algorithms", "quantization.model_quant")
    mtq, algorithms, model_quant = tool_modules("modelopt", *(f"modelopt.torch.{name}" for name in names))
    clock.follow(model_quant, "calibrate", "calibrate")
    clock.follow(algorithms.AutoQuantizeGradientSearcher, "estimate_sensitivity_scores", "score")
    clock.follow(algorithms.AutoQuantizeGradientSearcher, "run_search", "solve")

    def recipe(bits: int) -> dict[str, Any]:
        affine = {"num_bits": bits, "block_sizes": {-1: GROUP}, "bias": {-1: None, "type": "static", "method": "max_min"}}
        return {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": affine, "enable": True},
            ],
            "algorithm": {"method": "max", "skip_forward_without_activation_calib": True},
            "effective_bits": stored_bits(bits),
        }

    clock.enter("load")
    rows, fingerprint = windows(options)
    model = load(options.model, options.dtype)
    batches = rows.split(options.batch)
    clock.enter("other")
    _, state = mtq.auto_quantize(
        model,
        constraints={"effective_bits": BUDGET, "cost": {"excluded_module_name_patterns": ["*lm_head*"]}},
        quantization_formats=[recipe(bits) for bits in BITS],
        data_loader=batches,
        forward_step=lambda model, batch: model(input_ids=batch, labels=batch),
        loss_func=lambda output, batch: output.loss,
        disabled_layers=["*lm_head*"],
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
    )
    clock.enter("report")
    widths = {round(stored_bits(bits), 6): bits for bits in (*BITS, 16)}
    grouped = state["candidate_stats"]
    choice = [
        (widths[round(16 * chosen.compression, 6)], model.get_submodule(module).weight.numel())
        for name, chosen in state["best"]["recipe"].items()
        for module in grouped[name]["module_names"]
        if "lm_head" not in module
    ]
    decisions = sum(grouped[name]["cost_weight"] > 0 for name in grouped)
    return choice, {"data_fingerprint": fingerprint, "decisions": decisions}


def search_auto_round(options: argparse.Namespace, clock: Clock) -> tuple[Choice, dict[str, Any]]:
    """`AutoScheme` as its `GenScheme` runs it, block by block, its default. Each module is a decision of its own.

    Its score cache lies in a fresh folder, its data is made ready in this process, 8 asymmetric bits are allowed it.
    """
    fresh = tempfile.TemporaryDirectory()
    os.environ |= {"AR_AUTO_SCHEME_CACHE": fresh.name, "HF_DATASETS_CACHE": fresh.name}
    os.environ |= {"AR_DISABLE_DATASET_SUBPROCESS": "1", "AR_ALLOW_W8_ASYM": "1"}
    delta_loss, generator, data, schemes, datasets = tool_modules(
        "auto-round",
        "auto_round.auto_scheme.delta_loss",
        "auto_round.auto_scheme.gen_auto_scheme",
        "auto_round.calib_dataset",
        "auto_round.schemes",
        "datasets",
    )
    import torch
    from transformers import AutoTokenizer

    clock.follow(delta_loss, "get_score_for_scheme", "score")
    clock.follow(delta_loss, "choose_bits_per_layer_with_path", "solve")
    clock.enter("load")
    rows, fingerprint = windows(options)
    model = load(options.model, options.dtype)
    examples = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in rows]
    data.register_dataset("windows")(lambda **_: datasets.Dataset.from_list(examples))
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
    clock.enter("other")
    widths = [schemes.QuantizationScheme(bits=bits, group_size=GROUP, sym=False, data_type="int", act_bits=16) for bits in BITS]
    scheme = generator.AutoScheme(
        avg_bits=BUDGET,
        options=widths,
        nsamples=len(rows),
        seqlen=rows.shape[1],
        batch_size=options.batch,
        low_cpu_mem_usage=False,
    )
    chosen = generator.GenScheme(
        scheme,
        model,
        names,
        {},
        dataset="windows",
        device_map="cpu",
        tokenizer=AutoTokenizer.from_pretrained(options.model),
        enable_torch_compile=False,
    ).get_layer_config()
    clock.enter("report")
    fresh.cleanup()
    choice = [(int(chosen[name]["bits"]), model.get_submodule(name).weight.numel()) for name in names]
    return choice, {"data_fingerprint": fingerprint, "decisions": len(names)}


def search_bitplan(options: argparse.Namespace, clock: Clock) -> tuple[Choice, dict[str, Any]]:
    """A profile from nothing and the plan that leaves the embedding alone. The profile scores that as well, with a tied head."""
    tool_modules("bitplan", "bitplan.allocator.models")  # with what a profile imports on its way
    from bitplan.allocator import PlanRequest, ProfileRequest, inspect_model, plan_from_profile, profile_model

    with tempfile.TemporaryDirectory() as fresh:
        home = Path(fresh)
        formats = tuple(f"int{bits}-g{GROUP}-asym" for bits in BITS)
        request = ProfileRequest(
            options.model, formats=formats, calibration=str(options.text), tokens=options.tokens, rounding=options.rounding
        )
        clock.enter("load")
        report = profile_model(request, home=home, progress=lambda stage, done, total: clock.enter(stage))
        clock.enter("solve")
        inventory = inspect_model(options.model, home=home)
        pins = tuple((re.escape(unit.name), "native") for unit in inventory.units if unit.kind == "embedding")
        plan = plan_from_profile(inventory, report, PlanRequest(request, f"{BUDGET}bpw", pins=pins))
        clock.enter("report")
    if windows(options)[1] != report.data_fingerprint:
        raise SystemExit("bitplan cut other windows than the ones for the other tools")
    widths = dict(zip(formats, BITS, strict=True))
    linears = [unit for unit in inventory.units if unit.kind != "embedding"]
    choice = [(widths.get(plan.assignment[unit.name], 16), unit.parameters) for unit in linears]
    return choice, {"data_fingerprint": report.data_fingerprint, "decisions": len(linears)}


TOOLS = {"modelopt": search_modelopt, "auto-round": search_auto_round, "bitplan": search_bitplan}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tool", choices=TOOLS, required=True)
    arguments.add_argument("--model", required=True, help="folder of a causal language model")
    arguments.add_argument("--text", type=Path, required=True)
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="what the others compute in")
    arguments.add_argument("--batch", type=int, default=1, help="windows a batch, of the others")
    arguments.add_argument("--rounding", choices=("nearest", "gptq"), default="nearest", help="bitplan's; the others' is nearest")
    arguments.add_argument("--name", default="smollm2-135m")
    options = arguments.parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    clock = Clock()
    import torch

    from machine import describe

    torch.set_num_threads(1)
    choice, extra = TOOLS[options.tool](options, clock)
    clock.enter("end")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outside = ("import", "load", "report")
    parameters = sum(count for _, count in choice)
    settings = {name: getattr(options, name) for name in ("tokens", "dtype", "batch", "rounding")}
    unusual = [f"{name} {value}" for name, value in settings.items() if value != arguments.get_default(name)]
    entry = {
        "command": " --".join([f"python benchmarks/peers.py --tool {options.tool} --model FOLDER --text FILE", *unusual]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy", PACKAGES[options.tool])
        },
        "text": options.text.name,
        **settings,
        "load_average": os.getloadavg()[1],
        "search_process_seconds": sum(seconds for phase, seconds in clock.process.items() if phase not in outside),
        "search_wall_seconds": sum(seconds for phase, seconds in clock.wall.items() if phase not in outside),
        "process_seconds": clock.process,
        "wall_seconds": clock.wall,
        "peak_memory_bytes": peak,
        "linears": len(choice),
        **extra,
        "effective_bits": sum(stored_bits(bits) * count for bits, count in choice) / parameters,
        "chosen": {str(bits): count for bits, count in sorted(Counter(bits for bits, _ in choice).items())},
    }
    print(json.dumps(entry, indent=1))
    target = Path(__file__).parent / "results" / f"peers-{options.name}.json"
    entries = json.loads(target.read_text()) if target.exists() else {}
    entries |= {" ".join([options.tool, *unusual]): entry}
    target.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
