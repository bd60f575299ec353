"""Tiny models of every kind, made in the test: seeded, quick, shaped like trained ones. One library for all tests of networks.

    module(kind)                the transformers (or residual) module, float32, as it would be loaded, before `make_plain`
    network(kind)               the Network that the allocator would make of it, in memory
    save(kind, folder)          a model folder in Hugging Face layout (config, safetensors, tokenizer or image settings) that
                                bitplan.allocator loads by its path; `residual` is a bare safetensors file; returns the folder
    save_images(folder)         a folder of small PNG images for the vision models; returns the folder
    calibration(kind)           three disjoint parts of data for `network(kind)`, a few hundred tokens or 16 images each
    fewer(part, batches)        the first few batches of a part
    starve(network, expert)     from now on no token of a mixture of experts (top 2) is ever sent to this expert
    tokenizer()                 byte-level BPE of 300 entries, trained on the text that the package ships

KINDS lists them: `llama` (tied head), `untied`, `gpt2` (Conv1D), `mixtral` (4 experts, top 2), `bert` (pooled), `masked`
(BERT with its tied word head), `dinov2` (pooled by its first token), `vit` (classes), `resnet` (transformers' convolutional
classifier) and `residual` (CIFAR's residual network as a bare state dict).

"Like trained ones" means: heavy tails, inputs of unequal strength, layers of unequal gain, norms and biases that are not
one and zero, and predictions that are neither flat nor certain. Nothing here is trained, so perplexity on text means
nothing; divergence between a model and its quantized copy does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from bitplan.allocator.residual import ResidualNetwork
from bitplan.sensitivity.calibration import Calibration, Part, images, read_text, text_sentences, text_windows
from bitplan.sensitivity.experts import Experts
from bitplan.sensitivity.inventory import take_inventory
from bitplan.sensitivity.network import Network, Pooling
from bitplan.sensitivity.plain import make_plain
from bitplan.sensitivity.units import Outputs

hf: Any = transformers  # its configurations are typed by their fields alone, which are not all that they take
VOCABULARY = 300
LONGEST = 64  # tokens a text model can take
SIDE = 16  # pixels of an image
TEXT = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {
    **TEXT,
    "hidden_size": 64,
    "intermediate_size": 176,  # not a multiple of 64: the last group of `down` is a short one
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
}
BERT = {
    **TEXT,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 4,
}
PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


@dataclass(frozen=True)
class Kind:
    """A tiny model: how it is made, the dtype of its weights, and what the allocator should find it to be."""

    build: Callable[[], nn.Module]
    dtype: torch.dtype
    family: str
    outputs: Outputs
    pooling: Pooling = "none"

    @property
    def takes_images(self) -> bool:
        return self.family in ("vision", "convolutional")


KINDS: dict[str, Kind] = {
    "llama": Kind(
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, tie_word_embeddings=True)), torch.bfloat16, "causal-lm", "tokens"
    ),
    "untied": Kind(
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, tie_word_embeddings=False)), torch.float16, "causal-lm", "tokens"
    ),
    "gpt2": Kind(
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**TEXT, n_embd=48, n_layer=2, n_head=4, n_positions=LONGEST)),
        torch.float32,
        "causal-lm",
        "tokens",
    ),
    "mixtral": Kind(
        lambda: hf.MixtralForCausalLM(
            hf.MixtralConfig(
                **{**LLAMA, "intermediate_size": 48},
                num_local_experts=4,
                num_experts_per_tok=2,
                tie_word_embeddings=False,
                sliding_window=None,
            )
        ),
        torch.bfloat16,
        "mixture-of-experts",
        "tokens",
    ),
    "bert": Kind(
        lambda: hf.BertModel(hf.BertConfig(**BERT), add_pooling_layer=False), torch.float32, "encoder", "pooled", "mean"
    ),
    "masked": Kind(lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)), torch.float32, "encoder", "tokens"),
    "dinov2": Kind(
        lambda: hf.Dinov2Model(hf.Dinov2Config(**{**VISION, "mlp_ratio": 2})), torch.float32, "vision", "pooled", "first"
    ),
    "vit": Kind(lambda: hf.ViTForImageClassification(hf.ViTConfig(**VISION, num_labels=10)), torch.float32, "vision", "classes"),
    "resnet": Kind(
        lambda: hf.ResNetForImageClassification(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10)
        ),
        torch.float32,
        "convolutional",
        "classes",
    ),
    "residual": Kind(lambda: ResidualNetwork([8, 16], [1, 1], 10), torch.float32, "convolutional", "classes"),
}


def module(kind: str, seed: int = 0) -> nn.Module:
    """The module of `kind` in evaluation mode: numbers of its own dtype, held in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = KINDS[kind].build().eval()
        _weather(made, torch.Generator().manual_seed(seed))
        if KINDS[kind].family == "convolutional":
            _settle(made)
    return made.to(KINDS[kind].dtype).float()


def network(kind: str, seed: int = 0) -> Network:
    """The Network of `module(kind, seed)`."""
    entry = KINDS[kind]
    plain = make_plain(module(kind, seed).to(entry.dtype))
    inventory = take_inventory(plain, model_id=f"tiny-{kind}", family=entry.family, outputs=entry.outputs)
    return Network(plain.float(), inventory, entry.pooling)


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write `module(kind, seed)` to `folder` in its own dtype, with all that is needed to feed it."""
    made: Any = module(kind, seed).to(KINDS[kind].dtype)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "residual":
        save_file({name: tensor.contiguous() for name, tensor in made.state_dict().items()}, folder / "model.safetensors")
        return folder
    made.save_pretrained(folder)
    if KINDS[kind].takes_images:
        settings = {**PIXELS, "size": {"shortest_edge": SIDE}, "crop_size": SIDE, "do_center_crop": True}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        tokenizer().save_pretrained(folder)
    return folder


def save_images(folder: Path, count: int = 60, *, classes: int = 0, seed: int = 0) -> Path:
    """`count` different PNG images, smooth patches of colour; in `classes` sub-folders when that is more than zero."""
    for index, pixels in enumerate(_patches(count, 2 * SIDE, seed)):
        below = folder / f"class{index % classes}" if classes else folder
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy()).save(below / f"{index:04}.png")
    return folder


def calibration(kind: str, tokens: int = 256, seed: int = 0) -> Calibration:
    """Data for `network(kind)`: `tokens` tokens a part, or 16 images."""
    entry = KINDS[kind]
    if entry.takes_images:
        side = 32 if kind == "residual" else SIDE
        return images([(pixels - 0.5) / 0.25 for pixels in _patches(48, side, seed)], None, tokens=tokens, seed=seed)
    make = text_sentences if entry.family == "encoder" and entry.outputs == "pooled" else text_windows
    return make(read_text(None)[:20_000], tokenizer(), tokens=tokens, longest=LONGEST // 2, seed=seed)


def fewer(part: Part, batches: int) -> Part:
    """The first `batches` batches of `part`."""
    return Part(part.batches[:batches], part.digests)


def starve(network: Network, expert: int) -> None:
    """Send the tokens of `expert` to another one that they are not sent to already."""

    def reroute(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        hidden, chosen, weights = inputs
        others = torch.tensor([index for index in range(4) if index != expert])
        free = (others[:, None, None] != chosen.flip(1)).int().argmax(0)  # not what the token's other slot holds
        return hidden, torch.where(chosen == expert, others[free], chosen), weights

    for child in network.module.modules():
        if isinstance(child, Experts):
            child.register_forward_pre_hook(reroute)


@cache
def tokenizer() -> Any:
    """A byte-level BPE tokenizer, made offline."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(read_text(None)[:20_000].splitlines(), trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", bos_token="<end>", pad_token="<end>", model_max_length=LONGEST
    )


def _weather(made: nn.Module, generator: torch.Generator) -> None:
    """Give `made` weights that look trained (see above); every parameter is written."""
    tables = {id(child.weight) for child in made.modules() if isinstance(child, nn.Embedding)}
    gains = {id(child.weight) for child in made.modules() if "Norm" in type(child).__name__}
    for name, parameter in made.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            parameter.data = float(id(parameter) in gains or name.endswith("lambda1")) + 0.1 * noise
            continue
        if id(parameter) in tables:
            parameter.data = 0.3 * noise
            continue
        stacked = parameter.dim() == 3 and "expert" in name
        inputs = parameter.shape[-1] if stacked else math.prod(parameter.shape[1:])
        rows = noise.reshape(-1, inputs)
        chi = torch.randn(rows.shape, generator=generator).square_()
        for _ in range(5):  # Student's t with 6 degrees of freedom: heavy tails
            chi += torch.randn(rows.shape, generator=generator).square_()
        strength = torch.exp(0.4 * torch.randn(inputs, generator=generator))
        gain = torch.exp(0.3 * torch.randn((), generator=generator))
        parameter.data = (rows / (chi / 6).sqrt() * strength * gain / inputs**0.5).reshape(parameter.shape)


@torch.no_grad()
def _settle(made: nn.Module) -> None:
    """Batch norms learn their means and variances from a few images."""
    pixels = (torch.stack(_patches(32, 32, 7)) - 0.5) / 0.25
    norms = [child for child in made.modules() if isinstance(child, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches, here one
        norm.train()
    made(pixels)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def _patches(count: int, side: int, seed: int) -> list[Tensor]:
    """Images (3, side, side) in [0, 1]: five by five random colours, smoothly joined, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return list((smooth + 0.03 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1))
