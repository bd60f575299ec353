"""How much memory does a streamed profile take? A Llama-shaped model with random weights, profiled in a process of its own.

    python benchmarks/streaming.py [--layers N] [--width N] [--tokens N] [--rounding gptq|nearest] [--formats A,B] [--kill N]

The model (1.22 billion parameters by default, bfloat16) is written to disk one layer at a time. Reported are the peak memory
of the profiling process, mapped file pages included, and what one block takes in float32. With `--kill N` the process is
killed N times at random moments and started again, and the table is compared with that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from bitplan.allocator.solve import versions
from bitplan.sensitivity.calibration import read_text
from machine import describe

VOCABULARY = 32_000


def write_model(folder: Path, layers: int, width: int) -> int:
    """A model folder with one file a layer; returns the number of parameters."""
    folder.mkdir(parents=True)
    inner, heads, shared = 4 * width, width // 64, max(1, width // 256)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([read_text(None)], trainers.BpeTrainer(vocab_size=2000, show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)

    def weight(out: int, fan_in: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(out, fan_in, generator=generator) / fan_in**0.5
        return drawn.bfloat16()

    names = {"model.embed_tokens.weight": weight(VOCABULARY, width), "model.norm.weight": torch.ones(width).bfloat16()}
    parameters = sum(tensor.numel() for tensor in names.values())
    where = dict.fromkeys(names, "shell.safetensors")
    save_file(names, folder / "shell.safetensors", {"format": "pt"})
    keys = 64 * shared
    for index in range(layers):
        prefix = f"model.layers.{index}."
        shapes = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        layer = {f"{prefix}{name}.weight": weight(*shape) for name, shape in shapes.items()}
        layer |= {
            f"{prefix}{name}.weight": torch.ones(width).bfloat16() for name in ("input_layernorm", "post_attention_layernorm")
        }
        save_file(layer, folder / f"layer-{index}.safetensors", {"format": "pt"})
        where |= dict.fromkeys(layer, f"layer-{index}.safetensors")
        parameters += sum(tensor.numel() for tensor in layer.values())
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return parameters


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--layers", type=int, default=19)
    arguments.add_argument("--width", type=int, default=2048)
    arguments.add_argument("--tokens", type=int, default=1024)
    arguments.add_argument("--rounding", default="gptq")
    arguments.add_argument("--formats", default="int3-g128-asym,int4-g128-asym")
    arguments.add_argument("--kill", type=int, default=0)
    arguments.add_argument("--folder", type=Path, help="where model and profile go (default: a temporary folder)")
    options = arguments.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="bitplan-streaming-"))
    parameters = write_model(folder / "model", options.layers, options.width)
    command = [str(Path(sys.executable).with_name("bitplan")), "profile", str(folder / "model"), "--stream", "--json"]
    command += ["--tokens", str(options.tokens), "--rounding", options.rounding, "--formats", options.formats]

    def run(home: str, seconds: float | None) -> dict[str, object] | None:
        environment = {**os.environ, "BITPLAN_HOME": str(folder / home), "OMP_NUM_THREADS": "1"}
        with (folder / f"{home}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
            try:
                output, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                return None
        if process.returncode:
            raise SystemExit((folder / f"{home}.log").read_text()[-2000:])
        report: dict[str, object] = json.loads(output)
        return report

    started = time.perf_counter()
    whole = run("whole", None)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert whole is not None
    kills, same = 0, None
    if options.kill:
        chance, killed = random.Random(0), None
        while killed is None:
            killed = run("killed", chance.uniform(0.1, 0.6) * seconds if kills < options.kill else None)
            kills += killed is None
        same = killed["loss"] == whole["loss"] and killed["stderr"] == whole["stderr"]
        print(f"killed {kills} times: the table is {'the same' if same else 'ANOTHER'}", flush=True)
    block = (parameters - VOCABULARY * options.width) // options.layers
    document = {
        "question": "how much memory does a streamed profile take",
        "command": f"python benchmarks/streaming.py --layers {options.layers} --width {options.width} --tokens {options.tokens} "
        f"--rounding {options.rounding} --formats {options.formats}" + (f" --kill {options.kill}" if options.kill else ""),
        "parameters": parameters,
        "block_bytes_float32": 4 * block,
        "embedding_bytes_float32": 4 * VOCABULARY * options.width,
        "model_bytes_float32": 4 * parameters,
        "peak_bytes": peak,
        "seconds": seconds,
        "killed": kills,
        "same_table": same,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": versions(),
    }
    print(json.dumps(document, indent=1))
    (Path(__file__).parent / "results" / "streaming-llama.json").write_text(json.dumps(document, indent=1) + "\n")
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
