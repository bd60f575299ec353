from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from bitplan.allocator import ModelError, ProfileRequest, UsageError, source
from bitplan.allocator.source import ALIASES, Alias, resolve, resolve_here


def safetensors(path: Path, floats: int = 4) -> Path:
    """A whole file with one float32 tensor, made by hand."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [floats], "data_offsets": [0, 4 * floats]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * floats))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder as far as this file looks: one weight file and a configuration."""
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors(folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


def refused(model_id: Path | str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        resolve(str(model_id))
    assert "\n" not in str(caught.value)


def test_a_folder_a_gguf_file_and_a_bare_weight_file(model: Path, tmp_path: Path) -> None:
    assert (resolve(str(model)).kind, resolve(str(model)).path) == ("huggingface", model)
    gguf = tmp_path / "some.gguf"
    gguf.write_bytes(b"GGUF and so on")
    assert (resolve(str(gguf)).kind, resolve(str(gguf)).path) == ("gguf", gguf)
    (model / "config.json").unlink()
    assert resolve(str(model)).kind == "state_dict"


def test_paths_may_be_relative_or_begin_with_a_tilde(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("HOME", str(model.parent))
    assert [resolve(name).path for name in ("model", "./model", "~/model")] == [model] * 3


def test_an_alias_of_a_package_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    for name, alias in ALIASES.items():
        refused(name, f"model '{name}' lies in a package that is not installed; run: {alias.install}")


def test_an_alias_finds_the_model_in_the_package(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModuleSpec("package", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(source, "find_spec", lambda name: spec if name == "package" else None)
    monkeypatch.setitem(ALIASES, "alias", Alias("package", "mod*", "pip install package"))
    assert (resolve("alias").model_id, resolve("alias").path) == ("alias", model)
    monkeypatch.setitem(ALIASES, "alias", Alias("package", "*.gguf", "pip install package"))
    refused("alias", "holds no .*; run: pip install package")


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", "./missing", "~/missing", "a/b/c", "a//b", "a/"])
def test_an_unknown_model_lists_what_a_model_can_be(name: str) -> None:
    refused(name, "no such folder or .gguf file, no alias .*smollm2-135m.*, no hub name like 'owner/model'")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("\0", "contains characters that no name or path has"),
        ("smollm2-135m\n", "contains characters that no name or path has"),
        ("\ud800", "contains characters that no name or path has"),
        ("m" * 10**6, "has 1000000 characters"),
        ("http://host/model", "is an address and nothing is fetched from there"),
        ("file:///etc", "is an address"),
        ("FILE:/etc", "is an address"),
        ("s3://bucket/model", "is an address"),
        ("\\\\host\\share", "is an address"),
    ],
)
def test_what_cannot_be_a_name(name: str, sentence: str) -> None:
    refused(name, sentence)
    with pytest.raises(UsageError, match=sentence):
        ProfileRequest("m", calibration=name).check()


def test_a_hub_name_that_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    refused("nobody/nothing", "neither a folder here nor to be had from the hub .*; check the name or the network")
    refused("-/-", "check the name")
    assert resolve_here("nobody/nothing") is None


@pytest.mark.parametrize("name", ["x" * 4000, "~nobody-of-this-name/model"])
def test_what_cannot_be_a_path_is_refused_with_a_short_sentence(name: str) -> None:
    refused(name, "cannot be a path")
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert len(str(caught.value)) < 300


def test_an_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, "holds no weights; a model folder has config.json and")


def test_a_file_cut_short_anywhere_or_grown_is_refused(model: Path) -> None:
    file = model / "model.safetensors"
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        refused(model, f"{file} is truncated or corrupt .*; fetch the file again")
    file.write_bytes(whole + b"\0")
    refused(model, "truncated or corrupt")
    file.write_bytes(whole)
    assert resolve(str(model)).kind == "huggingface"


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"w": 3}',
        b'{"w": {}}',
        b'{"w": {"data_offsets": [0]}}',
        b'{"w": {"data_offsets": [0, "x"]}}',
    ],
)
def test_a_corrupt_header_is_refused(header: bytes, model: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(model, "truncated or corrupt")


def test_a_header_of_terabytes_is_not_read(model: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2**43) + bytes(100))
    refused(model, "its header is longer than the file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl", "tf_model.h5"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(name: str, model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    refused(model, f"holds its weights as {name}, which can run code when read; convert it .*save_pretrained")


def test_pickled_weights_beside_safetensors_are_passed_over(model: Path) -> None:
    before = resolve(str(model)).key
    (model / "pytorch_model.bin").write_bytes(b"whatever")
    assert resolve(str(model)).key == before


def test_a_missing_shard_is_named(model: Path) -> None:
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    (model / "model.safetensors").unlink()
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}))
    for shard in shards[::2]:
        safetensors(model / shard)
    refused(model, f"lacks 1 of 3 weight files, {shards[1]} first; fetch them")
    safetensors(model / shards[1])
    assert resolve(str(model)).kind == "huggingface"
    for damaged in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"w": 3}}', '{"weight_map": {"w": "../other.safetensors"}}'):
        index.write_text(damaged)
        refused(model, f"{index} cannot be read; fetch the file again")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\0"])
def test_a_configuration_that_is_none(content: str, model: Path) -> None:
    (model / "config.json").write_text(content)
    refused(model, "config.json .*fetch the file again")


def test_several_weight_files_need_a_configuration(model: Path) -> None:
    (model / "config.json").unlink()
    safetensors(model / "other.safetensors")
    refused(model, "has weights but no config.json; copy")


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 a zip", b"\0GGUF"])
def test_a_gguf_file_begins_with_its_magic(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "some.gguf").write_bytes(content)
    refused(tmp_path / "some.gguf", "does not begin as a GGUF file does; it is truncated or something else, fetch it again")


def test_other_files_and_folders_of_gguf_files(model: Path, tmp_path: Path) -> None:
    refused(model / "config.json", "is not a .gguf; give a folder in Hugging Face layout or a .gguf file")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    refused(tmp_path, f"holds GGUF files; give the file itself: {tmp_path / 'some.gguf'}")


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights grown": lambda folder: safetensors(folder / "model.safetensors", 5),
    "weights touched": lambda folder: touch(folder / "model.safetensors"),
    "configuration": lambda folder: (folder / "config.json").write_text("{}"),
    "another file of weights": lambda folder: safetensors(folder / "other.safetensors"),
    "tokenizer added": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "moved": lambda folder: folder.rename(folder.with_name("elsewhere")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_key_changes_with_any_file(change: Callable[[Path], object], model: Path) -> None:
    before = resolve(str(model)).key
    assert resolve(str(model)).key == before
    change(model)
    assert resolve(str(model if model.exists() else model.with_name("elsewhere"))).key != before


def test_the_key_does_not_change_with_what_is_not_read(model: Path) -> None:
    before = resolve(str(model)).key
    (model / "README.md").write_text("words")
    assert resolve(str(model)).key == before


class TestRoots:
    """BITPLAN_MODEL_ROOTS keeps a service from reading whatever a request names."""

    def test_inside_one_of_them(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", os.pathsep.join(["/nowhere", str(model.parent), ""]))
        assert resolve(str(model)).path == model

    def test_outside(self, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", str(tmp_path / "models"))
        refused(model, "lies outside BITPLAN_MODEL_ROOTS; move it into one of those folders")
        refused(tmp_path / "models" / ".." / "model", "outside BITPLAN_MODEL_ROOTS")
        (tmp_path / "models").mkdir()
        refused(tmp_path / "models" / ".." / "model", "outside BITPLAN_MODEL_ROOTS")

    def test_a_folder_whose_name_begins_alike_is_outside(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", str(model)[:-2])
        refused(model, "outside")

    def test_a_link_leads_outside(self, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "link").symlink_to(model)
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", str(tmp_path / "models"))
        refused(tmp_path / "models" / "link", "outside")

    def test_what_lies_outside_is_refused_alike_whether_it_exists_or_not(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "round").symlink_to(tmp_path / "round")
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", str(tmp_path / "models"))
        monkeypatch.setattr(Path, "exists", lambda path: pytest.fail(f"looked at {path}"))
        said = set()
        for name in (str(model), "/etc/passwd", "/no/such/thing", "~nobody-of-that-name/x", "~root/x", str(tmp_path / "round")):
            with pytest.raises(ModelError) as caught:
                resolve(name)
            said.add(str(caught.value).replace(repr(name), "NAME"))
        assert said == {"model NAME lies outside BITPLAN_MODEL_ROOTS; move it into one of those folders"}

    def test_a_file_of_the_model_may_not_lead_outside(self, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", str(model.parent))
        (model / "config.json").rename(model / "real.json")
        (model / "config.json").symlink_to(model / "real.json")
        assert resolve(str(model)).path == model
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", str(model))
        (model / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
        (model / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
        refused(model, "holds a link out of BITPLAN_MODEL_ROOTS, model.safetensors; put the file there")

    def test_set_to_nothing_no_path_may_be_named(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", "")
        refused(model, "outside")

    def test_packages_are_always_inside(self, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        spec = ModuleSpec("package", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        monkeypatch.setattr(source, "find_spec", lambda name: spec)
        monkeypatch.setitem(ALIASES, "alias", Alias("package", "model", "pip install package"))
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", "/nowhere")
        assert resolve("alias").path == model
