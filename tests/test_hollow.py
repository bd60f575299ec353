"""Hollow models: found to be what the loaded ones are, filled a block at a time, refused by name where files lack something."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
from bitplan.allocator import ModelError
from bitplan.allocator.hollow import Hollow, open_hollow
from bitplan.allocator.models import load
from bitplan.allocator.source import resolve
from bitplan.sensitivity.chain import enter, leaving, through
from bitplan.sensitivity.hollow import opened
from bitplan.sensitivity.network import Network, run
from shelf import Shelf

THIRD_EXPERT = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
KINDS = ("llama", "untied", "mixtral", "bert", "masked", "dinov2", "vit")


def hollow_of(folder: Path, home: Path) -> Hollow:
    return open_hollow(resolve(str(folder)), home)


def loaded(folder: Path, home: Path) -> Network:
    return load(resolve(str(folder)), home).network


def real(found: Hollow) -> set[str]:
    """The names of the parameters that are in memory."""
    return {name for name, p in found.chain.network.module.named_parameters(remove_duplicate=False) if not p.is_meta}


def below(found: Hollow, path: str) -> set[str]:
    """The names of the parameters of a block, or of the shell for the empty path."""
    names = {name for name, _ in found.chain.network.module.named_parameters(remove_duplicate=False)}
    if path:
        return {name for name in names if name.startswith(f"{path}.")}
    return names - {name for block in found.chain.blocks for name in below(found, block)}


def same(folder: Path, home: Path) -> Hollow:
    """The hollow model of `folder`, compared with the loaded one: inventory, and every parameter, to the last bit."""
    found, expected = hollow_of(folder, home), loaded(folder, home)
    network = found.loaded.network
    assert network.inventory == expected.inventory
    assert (network.pooling, found.loaded.folder) == (expected.pooling, folder)
    assert real(found) == set()
    for path in ("", *found.chain.blocks):
        with opened(found.chain, found.read, path):
            assert real(found) == below(found, path)
            for name in below(found, path):
                parameter, other = (one.module.get_parameter(name) for one in (network, expected))
                assert parameter.dtype == torch.float32
                assert not parameter.requires_grad
                assert torch.equal(parameter, other)
    for (name, buffer), (other_name, other_buffer) in zip(
        network.module.named_buffers(), expected.module.named_buffers(), strict=True
    ):
        assert name == other_name
        assert torch.equal(buffer, other_buffer)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_loaded_model_without_its_weights(kind: str, shelf: Shelf, tmp_path: Path) -> None:
    found = same(shelf.model(kind), tmp_path)
    assert found.loaded.network.inventory.fingerprint == models.network(kind).inventory.fingerprint
    assert not found.loaded.network.module.training


@pytest.mark.parametrize("kind", ["llama", "mixtral", "bert"])
def test_weights_in_many_files(kind: str, tmp_path: Path) -> None:
    made: Any = models.module(kind).to(models.KINDS[kind].dtype)
    made.save_pretrained(tmp_path / kind, max_shard_size="40KB")
    assert len(list((tmp_path / kind).glob("*.safetensors"))) > 4
    found = same(tmp_path / kind, tmp_path)
    assert found.loaded.network.inventory.fingerprint == models.network(kind).inventory.fingerprint


@pytest.mark.parametrize("kind", ["llama", "masked"])
def test_a_tied_head_stays_tied(kind: str, shelf: Shelf, tmp_path: Path) -> None:
    found = hollow_of(shelf.model(kind), tmp_path)
    module: Any = found.loaded.network.module
    stored = load_file(shelf.model(kind) / "model.safetensors")
    assert not any("lm_head" in name or "decoder.weight" in name for name in stored)
    with opened(found.chain, found.read, ""):
        assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
        assert not module.get_output_embeddings().weight.is_meta


@pytest.mark.parametrize("different", [True, False])
def test_a_head_that_is_stored_although_it_is_tied(different: bool, shelf: Shelf, tmp_path: Path) -> None:
    """The files win over the configuration, as they do where the model is loaded."""
    folder = shutil.copytree(shelf.model("llama"), tmp_path / "model")
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, lambda state: state.update({"lm_head.weight": table.flip(0) if different else table.clone()}))
    found = same(folder, tmp_path)
    shared = found.loaded.network.inventory.unit("model.embed_tokens").shared_with
    assert shared == (() if different else ("lm_head",))


def test_the_experts_lie_in_files_of_their_own_names(shelf: Shelf, tmp_path: Path) -> None:
    """Else the comparison above would not say that names are translated."""
    stored = load_file(shelf.model("mixtral") / "model.safetensors")
    assert any(name.endswith("experts.3.w1.weight") for name in stored)
    found = hollow_of(shelf.model("mixtral"), tmp_path)
    name = "model.layers.1.mlp.experts.experts.3.gate_up_proj.weight"
    file = next(name for name in stored if name.startswith("model.layers.1.") and name.endswith("experts.3.w1.weight"))
    assert torch.equal(found.read(name), torch.cat([stored[file], stored[file.replace(".w1.", ".w3.")]]))


def test_tensors_that_are_wider_than_the_model(tmp_path: Path) -> None:
    """GLM's bias of the router is a buffer, stored and used in float32 in a model of bfloat16."""
    config = models.hf.Glm4MoeConfig(
        **{**models.LLAMA, "intermediate_size": 48},
        moe_intermediate_size=16,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    )
    made = models.hf.Glm4MoeForCausalLM(config).bfloat16()
    biases = {name: torch.randn(4) for name, _ in made.named_buffers() if name.endswith("e_score_correction_bias")}
    assert biases
    for name, bias in biases.items():
        made.get_submodule(name.rpartition(".")[0]).e_score_correction_bias = bias
    made.save_pretrained(tmp_path / "glm")
    found = same(tmp_path / "glm", tmp_path)
    for name, bias in biases.items():
        assert torch.equal(found.loaded.network.module.get_buffer(name), bias)
    native = {tensor.dtype for tensor in found.loaded.network.inventory.fixed}
    assert native == {"bf16", "fp32"}


@pytest.mark.parametrize("named", ["BertModel", "BertForSequenceClassification"])
def test_names_with_and_without_the_prefix_of_the_model(named: str, shelf: Shelf, tmp_path: Path) -> None:
    """An encoder cut out of a model with a head, and a checkpoint of the encoder alone under a model with a head."""
    folder = shutil.copytree(shelf.model("masked" if named == "BertModel" else "bert"), tmp_path / "model")
    configure(folder, architectures=[named])
    if named == "BertForSequenceClassification":
        extra = {"classifier.weight": torch.randn(2, 48), "classifier.bias": torch.zeros(2)}
        extra |= {"pooler.dense.weight": torch.randn(48, 48), "pooler.dense.bias": torch.zeros(48)}
        rewrite(folder, lambda state: state.update(extra))
    found = same(folder, tmp_path)
    assert found.loaded.network.inventory.architecture == named


def test_its_blocks_and_shell_make_the_output_of_the_loaded_model(shelf: Shelf, tmp_path: Path) -> None:
    found, expected = hollow_of(shelf.model("mixtral"), tmp_path), loaded(shelf.model("mixtral"), tmp_path)
    batch, chain = models.calibration("mixtral").estimate.batches[0], found.chain
    with torch.no_grad():
        with opened(chain, found.read, ""):
            hidden, given = enter(chain, batch)
        for index, block in enumerate(chain.blocks):
            with opened(chain, found.read, block):
                hidden = through(chain, index, hidden, given)
        with opened(chain, found.read, ""), leaving(chain, batch, hidden) as (output, _):
            assert torch.equal(output, run(expected, batch))


class TestOpened:
    @pytest.fixture
    def found(self, shelf: Shelf, tmp_path: Path) -> Hollow:
        return hollow_of(shelf.model("llama"), tmp_path)

    @pytest.mark.parametrize("path", ["", "model.layers.1"])
    def test_an_exception_closes_what_was_open(self, path: str, found: Hollow) -> None:
        before = dict(found.chain.network.module.named_parameters(remove_duplicate=False))
        with opened(found.chain, found.read, path):
            assert real(found) == below(found, path)
        with pytest.raises(KeyboardInterrupt), opened(found.chain, found.read, path):
            raise KeyboardInterrupt
        assert real(found) == set()
        after = dict(found.chain.network.module.named_parameters(remove_duplicate=False))
        assert all(after[name] is before[name] for name in before)

    def test_so_does_a_file_that_cannot_be_read(self, found: Hollow) -> None:
        left = 3

        def read(name: str) -> Tensor:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("the disk is gone")
            return found.read(name)

        with pytest.raises(OSError, match="the disk is gone"), opened(found.chain, read, "model.layers.0"):
            raise AssertionError("it was opened")
        assert real(found) == set()

    def test_a_shared_weight_is_read_once(self, found: Hollow) -> None:
        asked: list[str] = []

        def read(name: str) -> Tensor:
            asked.append(name)
            return found.read(name)

        with opened(found.chain, read, ""):
            pass
        assert sorted(asked) == ["model.embed_tokens.weight", "model.norm.weight"]

    def test_the_names_of_blocks_are_not_taken_for_one_another(self, tmp_path: Path) -> None:
        """layers.1 is not the beginning of layers.10."""
        made = models.hf.LlamaForCausalLM(models.hf.LlamaConfig(**{**models.LLAMA, "num_hidden_layers": 11}))
        made.save_pretrained(tmp_path / "deep")
        found = hollow_of(tmp_path / "deep", tmp_path)
        for path in ("model.layers.1", "model.layers.10", ""):
            with opened(found.chain, found.read, path):
                assert real(found) == below(found, path)
        assert len(below(found, "model.layers.1")) == len(below(found, "model.layers.10")) == 9


class TestRefusals:
    @pytest.fixture
    def copy(self, shelf: Shelf, tmp_path: Path) -> Callable[[str], Path]:
        """A model of the shelf in a folder that may be damaged."""
        return lambda kind: shutil.copytree(shelf.model(kind), tmp_path / kind)

    @pytest.mark.parametrize(
        ("kind", "sentence"),
        [
            ("gpt2", r"has transposed weights \(GPT2LMHeadModel\) and cannot be streamed; leave --stream out"),
            ("resnet", "is no row of blocks, so it cannot be streamed; leave --stream out"),
            ("residual", "is a bare state dict, which is small; leave --stream out"),
        ],
    )
    def test_models_that_cannot_be_streamed(self, kind: str, sentence: str, shelf: Shelf, tmp_path: Path) -> None:
        refused(shelf.model(kind), sentence)

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("llama", "model.layers.1.self_attn.q_proj.weight"),
            ("llama", "model.embed_tokens.weight"),
            ("untied", "lm_head.weight"),
            ("bert", "encoder.layer.1.output.LayerNorm.bias"),
            ("dinov2", "embeddings.cls_token"),
        ],
    )
    def test_a_tensor_that_is_missing_is_named(self, kind: str, name: str, copy: Callable[[str], Path]) -> None:
        folder = copy(kind)
        rewrite(folder, lambda state: state.pop(name))
        refused(folder, f"hold no '{name}' under a name that can be streamed; leave --stream out")

    def test_an_expert_that_is_missing_is_named(self, copy: Callable[[str], Path]) -> None:
        folder = copy("mixtral")
        rewrite(folder, lambda state: state.pop(THIRD_EXPERT))
        refused(folder, r"hold no 'model.layers.1.mlp.experts.experts.2.gate_up_proj.weight'")

    def test_a_pair_of_matrices_that_do_not_make_one(self, copy: Callable[[str], Path]) -> None:
        folder = copy("mixtral")
        rewrite(folder, lambda state: state.update({THIRD_EXPERT: state[THIRD_EXPERT][:-1].contiguous()}))
        refused(folder, r"experts.2.gate_up_proj.weight' .* has the shape \(95, 64\) where its config.json says \(96, 64\)")

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"num_hidden_layers": 3}, r"hold no 'model.layers.2.input_layernorm.weight'|hold no 'model.layers.2"),
            ({"num_hidden_layers": 1}, r"'model.layers.1.input_layernorm.weight' is one too many; fetch both anew"),
            ({"intermediate_size": 100}, r"'model.layers.0.mlp.gate_proj.weight' .* has the shape \(176, 64\) .* \(100, 64\)"),
            ({"tie_word_embeddings": False}, r"hold no 'lm_head.weight'"),
            ({"hidden_size": "abc"}, "cannot be used: "),
            ({"dtype": "nonsense"}, "cannot be used: "),
            ({"architectures": ["FooForCausalLM"]}, "names FooForCausalLM as its architecture"),
            ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantized already"),
        ],
        ids=str,
    )
    def test_weights_that_do_not_fit_the_configuration(
        self, changes: dict[str, Any], sentence: str, copy: Callable[[str], Path]
    ) -> None:
        folder = copy("llama")
        configure(folder, **changes)
        refused(folder, sentence)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
    def test_weights_that_are_no_numbers_are_named(self, name: str, value: float, copy: Callable[[str], Path]) -> None:
        folder = copy("llama")
        rewrite(folder, lambda state: state[name].view(-1)[-1].fill_(value))
        refused(folder, f"tensor '{name}' holds 1 NaN or infinite values; repair or re-download the model")


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        hollow_of(folder, folder.parent)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
