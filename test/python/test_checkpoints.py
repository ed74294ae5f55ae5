# SPDX-License-Identifier: MIT
"""Checkpoints as they are met: names that training programs change, files that are in the way, other models, tokenizers
saved anew. convert.py converts them to the same file, or refuses them in one line that says what to do."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from tokenizers import Tokenizer

import checkpoints
import convert
import random_model
from checkpoints import TorchCall, TorchGlobal, torch_tensor, write_json
from janus_library import JANUS, ROOT, TINY
from test_convert import GEOMETRIES, MICRO, SCRIPT, Model, model, run  # noqa: F401

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4178801000\n"
USER_ID = 313  # of the role in MICRO's tokenizer


# ---- Names ----

def test_names_without_model_are_those_of_transformers(model: Model) -> None:
    state = {name.removeprefix("model."): value for name, value in model.write("transformers").items()}
    model.save(state)
    model.same("transformers")
    model.save(state | {"model.generation_embeddings.weight": state["generation_embeddings.weight"]})
    model.refused("tensor model.generation_embeddings.weight is in model.safetensors and in")


def test_tensors_that_nothing_uses_are_one_remark(model: Model) -> None:
    state = model.write("transformers")
    extras = ["model.vision_model.embeddings.position_ids", "model.vision_model.head.probe",
              "model.vqmodel.loss.discriminator.main.0.weight", "model.vqmodel.loss.lpips.weight", "step"]
    model.save(state | {name: np.full((2, 3), np.nan, np.float32) for name in extras})
    model.same("transformers", f"left out: {', '.join(extras[:3])} and 2 more")


@pytest.mark.parametrize("layout, name", [("official", "gen_vision_model.encoder.conv_in.weight"),
                                          ("transformers", "model.vision_model.embeddings.patch_embedding.weight")])
def test_a_missing_tensor_is_shown_beside_those_that_are_there(layout: str, name: str, model: Model) -> None:
    model.save({"janus.net." + name: value for name, value in model.write(layout).items()})
    model.refused(f"tensor {name} is missing", f"janus.net.{name} and janus.net.",
                  "every name there begins with janus.net.")


# ---- Number formats ----

def test_float64_is_rounded_to_float32(model: Model) -> None:
    model.save(model.write(), "F64")
    model.same("official")
    path = model.path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-8] + np.float64(1e300).tobytes())
    model.refused("not finite")


# ---- Files ----

def test_an_index_may_name_what_no_shard_has_and_nothing_needs(model: Model) -> None:
    model.write(shards=3)
    index = model.path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    write_json(index, {"weight_map": places | {"vision_model.head.probe": places["gen_embed.weight"]}})
    model.same("official")


def test_a_byte_order_mark_is_no_text(model: Model) -> None:
    model.write(shards=2)
    for path in model.path.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    model.same("official")


def test_one_file_wins_over_shards_as_in_transformers(model: Model) -> None:
    model.write(shards=3, state=checkpoints.random_state(MICRO, 9))
    state = model.write()
    words = "model.safetensors is read, as transformers does, and not the shards"
    model.same("official", words)
    del state["gen_embed.weight"]  # an old file that lacks something is refused, not filled up
    model.save(state)
    model.refused("tensor gen_embed.weight is missing")


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "consolidated.safetensors"])
def test_weights_of_another_name_are_found(name: str, model: Model) -> None:
    model.write()
    (model.path / "model.safetensors").rename(model.path / name)
    (model.path / "training_args.bin").write_bytes(b"no weights")
    model.same("official")
    (model.path / "other.safetensors").write_bytes((model.path / name).read_bytes())
    model.refused("several files of weights", "other.safetensors, but none of model.safetensors")


def test_shards_need_their_index(model: Model) -> None:
    model.write(shards=2)
    (model.path / "model.safetensors.index.json").unlink()
    model.refused("model-00001-of-00002.safetensors", "model.safetensors.index.json")


@pytest.mark.parametrize("layout, shards, file", [
    *(("official", 1, f"{name}.json") for name in ("config", "tokenizer", "tokenizer_config", "preprocessor_config",
                                                   "processor_config")),
    ("official", 1, "model.safetensors"), ("official", 1, "pytorch_model.bin"),
    ("transformers", 1, "processor_config.json"), ("official", 2, "model-00002-of-00002.safetensors"),
    ("official", 2, "model.safetensors.index.json"),
])
def test_git_lfs_pointers_are_named(layout: str, shards: int, file: str, model: Model) -> None:
    model.write(layout, shards=shards)
    if file.endswith(".bin"):
        (model.path / "model.safetensors").unlink()
    (model.path / file).write_bytes(POINTER)
    words = f"{file} is a Git LFS pointer ({len(POINTER)} bytes), not the file: run git lfs pull"
    model.refused(words, "hf download")


def test_a_folder_of_the_hubs_cache(model: Model) -> None:
    cache = model.beside("models--org--model")
    first, second = (model.beside(f"models--org--model/snapshots/{name}") for name in ("0123abc", "4567def"))
    first.write()
    cache.same("official")  # general.name is that of the repository
    second.write(state=checkpoints.random_state(MICRO, 9))
    cache.refused("config.json is missing")
    first.same("official")
    model.write()
    (model.path / "snapshots").mkdir()  # of a training program
    model.same("official")


def test_what_is_no_folder_is_refused(model: Model) -> None:
    model.write()
    model.beside("model/model.safetensors").refused("not a folder", f"is in, {model.path}\n")
    model.converted()
    model.beside("out.gguf").refused("model file already: name the type of its weights with --dtype")
    model.beside("nowhere").refused("no such folder")
    words = "no such folder: org/model; hf download org/model --local-dir model fetches a repository of that name"
    repository = model.beside("")
    repository.path = Path("org/model")
    repository.refused(f"convert.py: {words}\n")


# ---- A model file as input ----

TO_Q8_0 = ("--dtype", "q8_0")


def tensors_of(path: Path) -> dict[str, tuple[Any, bytes]]:
    return {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("dtype", convert.FILE_TYPES)
@pytest.mark.parametrize("geometry, stored", [("tiny-odd", "F32"), ("micro", "BF16"), ("blocks of 256", "BF16"),
                                              ("blocks of 256", "F32")])
def test_a_model_file_becomes_what_its_checkpoint_becomes(geometry: str, stored: str, dtype: str, model: Model) -> None:
    """The same file, byte for byte, with the same remark; 112 columns are not a number of blocks."""
    wide = geometry == "blocks of 256"
    sizes = convert.replace(GEOMETRIES["micro" if wide else geometry], feed_forward=112 if geometry == "tiny-odd" else 128)
    if wide:
        sizes = convert.replace(sizes, hidden=256, feed_forward=512)
    model.write(sizes=sizes, dtype=stored)
    model.converted()
    model.messages()
    direct, later = (model.out.with_name(name) for name in ("direct", "later"))
    for source, target in ((model.path, direct), (model.out, later)):
        assert convert.main([str(source), "-o", str(target), "--dtype", dtype]) == 0
    remarks = model.messages().splitlines()
    remarked = dtype in ("q6_k", "q4_k") and not (wide and sizes.heads * sizes.head_dim % 256 == 0)
    assert len(remarks) == 2 * remarked and len(set(remarks)) == remarked
    assert direct.read_bytes() == later.read_bytes()
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(later).tensors}
    if dtype in convert.QUANTISED_TYPES:
        assert kinds == {"F32", "F16", "Q8_0"} | ({dtype.upper()} if dtype == "q4_0" or wide else set())
    else:
        assert kinds == {"F32", dtype.upper()}


def test_model_files_that_cannot_be_quantised(model: Model) -> None:
    model.write()
    data = model.file()
    model.beside("link.gguf").path.symlink_to(model.out)
    for target in (model.path / ".." / "out.gguf", model.out.with_name("link.gguf")):
        assert convert.main([str(model.out), "-o", str(target), "--dtype", "q8_0"]) == 1
        assert "over its source" in model.messages()
    assert convert.main([str(model.out), "-o", str(model.out.with_name("small.gguf")), "--dtype", "q4_0"]) == 0
    model.beside("small.gguf").refused("is quantised already", "start from an f32, f16 or bf16 file", options=TO_Q8_0)
    old = data.replace(b"janus.format_version\4\0\0\0\2", b"janus.format_version\4\0\0\0\1")
    llama = data.replace(b"\5\0\0\0\0\0\0\0janus", b"\5\0\0\0\0\0\0\0llama", 1)
    for content, words in (*((data[:kept], "") for kept in (0, 3, 30, 3000, len(data) - 1000)),
                           (old, "format 1; expected janus, format 2: convert the checkpoint again"),
                           (llama, "is a file for llama")):
        damaged = model.beside("damaged.gguf")
        damaged.path.write_bytes(content)
        damaged.refused(words, options=TO_Q8_0)
    assert model.out.read_bytes() == data


# ---- Files of torch.save ----

@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_bin_gives_the_same_file_as_safetensors(shards: int, dtype: str, model: Model) -> None:
    model.write(shards=shards, dtype=dtype)
    expected = model.file()
    shutil.rmtree(model.path)
    model.write(file_format="bin", shards=shards, dtype=dtype)
    assert model.file() == expected


def bin_state(model: Model, change: Callable[[dict[str, Any], dict[str, bytes]], Any], **options: Any) -> None:
    """A checkpoint whose .bin is changed: `change` gets its tensors and storages and may return other contents."""
    state = model.write(file_format="bin")
    storages = {name: np.ascontiguousarray(value).tobytes() for name, value in state.items()}
    tensors = {name: torch_tensor(name, "F32", value.shape, convert.row_strides(value.shape))
               for name, value in state.items()}
    content = change(tensors, storages)
    tensors = tensors if content is None else content
    checkpoints.save_archive(model.path / "pytorch_model.bin", tensors, storages, **options)


def test_tensors_of_any_strides_and_parameters_are_read(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    """A transposed matrix, two tensors in one storage, a Parameter, an entry that nothing uses."""
    def change(tensors: dict[str, Any], storages: dict[str, bytes]) -> None:
        name = "gen_head.vision_head.weight"
        shape = tensors[name].arguments[2]
        values = np.frombuffer(storages[name], np.float32).reshape(shape)
        storages[name] = np.ascontiguousarray(values.T).tobytes()
        tensors[name] = torch_tensor(name, "F32", shape, (1, shape[0]))
        first, second = "gen_head.vision_head.bias", "gen_embed.weight"
        shape = tensors[second].arguments[2]
        offset = len(storages[first]) // 4
        tensors[second] = torch_tensor(first, "F32", shape, convert.row_strides(shape), offset)
        storages[first] += storages.pop(second)
        tensors[first] = TorchCall("_rebuild_parameter", tensors[first], True, {})
        tensors["step"] = 7

    bin_state(model, change)
    model.same("official", "left out: step")
    monkeypatch.setattr(convert, "CHUNK_ELEMENTS", 100)
    model.same("official", "left out: step")


class Harm:
    """Unpickled without care, it makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def set_view(tensors: dict[str, Any], *view: Any) -> None:
    tensors["gen_embed.weight"] = TorchCall("_rebuild_tensor_v2", *view)


STORAGE = ("storage", TorchGlobal("torch", "FloatStorage"), "gen_embed.weight", "cpu", 512)
BAD_ARCHIVES: dict[str, tuple[Callable[..., Any], str]] = {
    "code": (lambda t, s: t.update(x=Harm()), "posix.mkdir, which a state dict does not need"),
    "another function of torch": (lambda t, s: t.update(x=TorchCall("_rebuild_sparse_tensor", 1)),
                                  "torch._utils._rebuild_sparse"),
    "another class": (lambda t, s: t.update(x=TorchGlobal("torch", "load")), "torch.load"),
    "builtins": (lambda t, s: t.update(x=TorchGlobal("builtins", "eval")), "builtins.eval"),
    "a list": (lambda t, s: [1, 2], "safely"),
    "a key that is no name": (lambda t, s: t.update({3: 4}), "the key 3"),
    "a storage that is missing": (lambda t, s: s.pop("gen_embed.weight") and None, "gen_embed.weight"),
    "beyond its storage": (lambda t, s: set_view(t, STORAGE, 1, (64, 8), (8, 1), False, {}), "beyond its storage"),
    "huge strides": (lambda t, s: set_view(t, STORAGE, 0, (64, 8), (1 << 40, 1), False, {}), "beyond its storage"),
    "negative": (lambda t, s: set_view(t, STORAGE, 0, (64, 8), (-8, 1), False, {}), "strides"),
    "no numbers": (lambda t, s: set_view(t, STORAGE, 0, ("64", 8), (8, 1), False, {}), "shape"),
    "no arguments": (lambda t, s: set_view(t), "safely"),
    "no storage": (lambda t, s: set_view(t, "x", 0, (64, 8), (8, 1), False, {}), "safely"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_archives_that_are_refused(case: str, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.chdir(model.base)
    change, words = BAD_ARCHIVES[case]
    bin_state(model, change)
    model.refused("pytorch_model.bin is not a state dict that can be loaded safely", words)
    assert not Path("harm").exists()


def test_archives_of_other_machines_and_times(model: Model) -> None:
    bin_state(model, lambda tensors, storages: None, byteorder=b"big")
    model.refused("from a big-endian machine")
    (model.path / "pytorch_model.bin").write_bytes(pickle.dumps(0x1950a86a20f9469cfc6c, 2))
    model.refused("not a zip archive: save it again with torch 1.6 or later, or as safetensors")


# ---- Other models ----

def test_relatives_and_parts_of_a_model_are_named(model: Model) -> None:
    part = {"cls": "CLIPVisionTower", "model_type": "vision", "params": {}}
    flow = {f"vision_{name}_config": {"cls": name, "params": {}} for name in ("und_enc", "gen_enc", "gen_dec")}
    for name, config in {
        "JanusFlow": {"model_type": "multi_modality", "language_config": {}} | flow,
        "DeepSeek-VL": {"model_type": "multi_modality", "language_config": {}, "vision_config": part,
                        "aligner_config": part},
        "DeepSeek-VL,": {"model_type": "deepseek_vl_hybrid"},
        "DeepSeek-VL2": {"model_type": "deepseek_vl_v2", "language_config": {}},
    }.items():
        model.write()
        write_json(model.path / "config.json", config)
        model.refused(f"holds {name}", "another model", "Janus-Pro-7B")


# ---- Prompts and tokenizer ----

PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
def added(number: int, content: Any = "<|User|>", **flags: bool) -> dict[str, Any]:
    """A tokenizer_config.json with one entry of added_tokens_decoder."""
    return {"added_tokens_decoder": {str(number): PLAIN | {"content": content} | flags}}


TOKENIZER_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no BOS": ({"add_bos_token": False}, "add_bos_token is False"),
    "EOS": ({"add_eos_token": True}, "add_eos_token is True"),
    "another BOS": ({"bos_token": "<s>"}, "bos_token is '<s>'"),
    "another EOS": ({"eos_token": PLAIN | {"content": "</s>"}}, "eos_token is {"),
    "another id": (added(5), "no added token '<|User|>' of id 5"),
    "a new id": (added(315, "<new>"), "no added token '<new>' of id 315"),
    "no content": ({"added_tokens_decoder": {"315": PLAIN}}, "content is missing"),
    "no text": (added(315, ["x"]), "malformed"),
}


@pytest.mark.parametrize("case", TOKENIZER_CONFIGS)
def test_a_tokenizer_config_that_changes_prompts_is_refused(case: str, model: Model) -> None:
    values, words = TOKENIZER_CONFIGS[case]
    model.write()
    write_json(model.path / "tokenizer_config.json", values)
    model.refused(words, "token")


def test_a_tokenizer_config_is_honoured(model: Model) -> None:
    model.write()
    same = {"add_bos_token": True, "add_eos_token": False, "bos_token": convert.BOS, "pad_token": None,
            "eos_token": PLAIN | {"content": convert.EOS, "normalized": True},
            "added_tokens_decoder": {str(USER_ID): PLAIN | {"content": "<|User|>", "normalized": True}}}
    write_json(model.path / "tokenizer_config.json", same)
    model.same("official")


def test_a_placeholder_beside_its_image_is_refused(model: Model) -> None:
    model.write()
    model.edit("processor_config.json", "add_special_token", True)
    model.refused("processor_config.json: add_special_token is True")
    model.edit("processor_config.json", "add_special_token", False)
    model.converted()


def test_a_tokenizer_saved_as_another_kind_is_named(model: Model) -> None:
    """What transformers 5 saves of a LlamaTokenizer; test/verify/verify_convert.py has the true one."""
    model.write()
    model.edit("tokenizer.json", "pre_tokenizer", {"type": "Metaspace", "prepend_scheme": "always"})
    model.edit("tokenizer.json", "decoder", {"type": "Sequence", "decoders": []})
    model.edit("tokenizer.json", "model.byte_fallback", True)
    model.refused("transformers 5", "take the original tokenizer.json")


def without_role_tokens(model: Model) -> None:
    model.edit("tokenizer.json", "added_tokens", random_model.synthetic_tokenizer(MICRO.vocabulary)["added_tokens"][:-2])


ROLE_CASES = [  # what is done to the folder, options, roles, remark
    (lambda model: None, [], "pro", ""),
    (without_role_tokens, [], "1.3b", "User and Assistant, as those of Janus-1.3B; --roles pro changes that"),
    (without_role_tokens, ["--roles", "pro"], "pro", "<|User|> and <|Assistant|> of the prompts will be several"),
    (without_role_tokens, ["--roles", "1.3B"], "1.3b", ""),
    (lambda model: None, ["--roles", "1.3b"], "1.3b", ""),
    (lambda model: model.edit("config.json", "_name_or_path", "deepseek-ai/Janus-1.3B"), [], "1.3b", "--roles pro"),
    (lambda model: model.edit("config.json", "_name_or_path", ["Janus-Pro-1B"]), [], "pro", ""),
]


@pytest.mark.parametrize("change, options, roles, words", ROLE_CASES, ids=range(len(ROLE_CASES)))
def test_roles(change: Callable[[Model], Any], options: list[str], roles: str, words: str, model: Model) -> None:
    model.write()
    change(model)
    metadata, _ = model.converted(*options)
    named = metadata["janus.prompt.user_role"], metadata["janus.prompt.assistant_role"]
    assert named == {"pro": ("<|User|>", "<|Assistant|>"), "1.3b": ("User", "Assistant")}[roles]
    remarks = model.messages()
    assert words in remarks and remarks.count("\n") == bool(words)


def test_the_folders_name_tells_the_roles(model: Model) -> None:
    for name, role in (("Janus-1.3B", "User"), ("janus-pro-1b", "<|User|>"),
                       ("models--deepseek-ai--Janus-1.3B/snapshots/0123abc", "User")):
        named = model.beside(name)
        named.write()
        assert named.converted()[0]["janus.prompt.user_role"] == role
    assert random_model.main(["tiny", "--roles", "1.3b", "-o", str(model.out)]) == 0
    assert GGUFReader(model.out).fields["janus.prompt.user_role"].contents() == "User"


@pytest.mark.parametrize("options, user, assistant",
                         [([], "<|User|>", "<|Assistant|>"), (["--roles", "1.3b"], "User", "Assistant")])
def test_prompts_have_the_roles_of_the_file(
    options: list[str], user: str, assistant: str, model: Model
) -> None:
    """The ids that both tasks read are those of the prompt as the official scripts write it."""
    model.write()
    model.converted(*options)
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    system = convert.SYSTEM_PROMPT + "\n\n"
    for command, text, extra in (("ask", f"{system}{user}: A fox?\n\n{assistant}:", ["--max-tokens", "1"]),
                                 ("generate", f"{user}: A fox?\n\n{assistant}:{convert.BEGIN_OF_IMAGE}", [])):
        dump = model.base / command
        dump.mkdir()
        arguments = ["-m", model.out, "--dump", dump, "-q", *extra, "A fox?"]
        subprocess.run([JANUS, command, *arguments], cwd=model.base, check=True, capture_output=True, timeout=60)
        ids = tokenizer.encode(convert.BOS + text, add_special_tokens=False).ids
        assert np.load(dump / "text.token_ids.npy").tolist() == ids


@pytest.mark.parametrize("value", [3, ["User"]])
def test_roles_of_another_type_are_refused_by_janus(value: Any, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    sound = convert.prompt_metadata
    kind = (convert.U32 if value == 3 else convert.TEXT, value)
    monkeypatch.setattr(convert, "prompt_metadata", lambda roles: sound(roles) | {"janus.prompt.user_role": kind})
    model.write()
    model.converted()
    assert "janus.prompt.user_role" in refused_by_janus(model.out)


# ---- One grammar, one set of limits: what convert.py writes janus.c reads ----

def test_keys_are_those_of_janus_c() -> None:
    source = (ROOT / "janus.c").read_text()
    constants = {name: eval(value) for name, value in re.findall(r"\b([A-Z_]+_(?:LIMIT|VERSION)) = ([0-9 <]+)", source)}
    rows = re.findall(r'\{"([\w.]+)", COUNT\(\w+\), \d, ([\w <]+)\}', source)
    limits = {key: constants.get(value) or eval(value) for key, value in rows}
    keys = {entry.metadata["key"] for entry in convert.SIZE_FIELDS}
    assert len(limits) > 20 and convert.FORMAT_VERSION == constants["FORMAT_VERSION"]
    assert {key for key in limits if not key.endswith(("group_count", "min_size", "grid_size"))} <= keys


# ---- Other files as janus's model ----

def refused_by_janus(path: Path) -> str:
    """What janus says of a model file that it does not take: one line."""
    done = subprocess.run([JANUS, "tokenize", "-m", path, "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and not done.stdout
    return done.stderr


@pytest.mark.parametrize("architecture", ["llama", "clip", "janus-pro", "a\nb", "x" * 100])
def test_gguf_files_of_other_programs_are_named(architecture: str, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "other.gguf", architecture)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refused_by_janus(tmp_path / "other.gguf")
    shown = architecture.replace("\n", " ")[:39]
    assert f'a GGUF file for "{shown}", not for "janus"' in message and "convert.py" in message


@pytest.mark.parametrize("name, content, words", [
    ("model.safetensors", None, "not a model file but a safetensors file"),
    ("pytorch_model.bin", b"PK\x03\x04" + bytes(60), "a zip archive, as PyTorch's"),
    ("old.bin", b"\x80\x02\x8a\x0a" + bytes(60), "a pickle, as PyTorch's old"),
    ("model.gguf", POINTER, "a Git LFS pointer: run git lfs pull, or hf"),
    ("config.json", b'{"model_type": "janus"}', "a JSON file"), ("page.gguf", b"<!DOCTYPE html>", "a web page"),
    ("packed.gguf", b"\x1f\x8b\x08", "a packed file"), ("old.gguf", b"tjgg" + bytes(60), "no GGUF header"),
    ("seven.gguf", b"GGUF\3\0\0", "truncated: it ends inside its header"), ("four.gguf", b"GGUF", "truncated"),
    ("header.gguf", b"GGUF\3" + bytes(18), "truncated"), ("big.gguf", b"GGUF\0\0\0\3" + bytes(60), "a big-endian GGUF file"),
    ("second.gguf", b"GGUF\2" + bytes(60), "GGUF version 2; this program reads version 3"),
    ("text.gguf", b"Hello, this is no model", "no GGUF header"),
    ("empty.gguf", b"", "no GGUF header"),
])
def test_other_kinds_of_files_are_named(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is None:
        checkpoints.save_safetensors(tmp_path / name, {"x": np.zeros((4, 4), np.float32)}, {"x": "F32"})
    else:
        (tmp_path / name).write_bytes(content)
    message = refused_by_janus(tmp_path / name)
    assert words in message
    assert name.endswith(".gguf") or "python convert.py FOLDER -o janus.gguf" in message


@pytest.mark.parametrize("version", [1, convert.FORMAT_VERSION + 1])
def test_files_of_another_version_are_named(version: int, tmp_path: Path) -> None:
    data = bytearray(TINY.read_bytes())
    key = b"janus.format_version"
    data[data.index(key) + len(key) + 4] = version
    (tmp_path / "other.gguf").write_bytes(data)
    words = f"written by another convert.py (format {version}, this program reads 2): convert the checkpoint again"
    assert refused_by_janus(tmp_path / "other.gguf") == f"janus: {tmp_path / 'other.gguf'}: {words}\n"


@pytest.mark.parametrize("before, old, words", [
    (b"general.name\x08\0\0\0\x0a\0\0\0\0\0\0\0", b"janus-tiny", b"name  "),
    (b"general.architecture\x08\0\0\0\5\0\0\0\0\0\0\0", b"janus", b'not for "janus"')])
def test_control_characters_of_a_model_do_not_reach_the_terminal(
    before: bytes, old: bytes, words: bytes, tmp_path: Path
) -> None:
    """The name and the architecture may hold escape sequences; C1 controls are two bytes of UTF-8."""
    data = TINY.read_bytes()
    assert data.count(before + old) == 1
    (tmp_path / "other.gguf").write_bytes(data.replace(before + old, before + b"\x1b[2J\x07\xc2\x9b\x7f......"[:len(old)]))
    done = subprocess.run([JANUS, "info", "-m", tmp_path / "other.gguf"], capture_output=True, timeout=60)
    said = (done.stdout + done.stderr).replace(b"\n", b"")
    assert words in said and b" [2J" in said
    assert not any(byte < 0x20 or byte == 0x7F for byte in said) and b"\xc2\x9b" not in said


@pytest.mark.parametrize("command", [("info", "-m"), ("encode", "-i"), ("decode",), ("info",)])
def test_names_of_files_steer_no_terminal(command: tuple[str, ...]) -> None:
    done = subprocess.run([JANUS, *command, "no\x1b[2J\u009bfile"], capture_output=True, timeout=60)
    assert done.returncode and b"no [2J  file" in done.stderr and b"\x1b" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="pseudo terminals")
def test_text_of_a_model_steers_no_terminal() -> None:
    """Its vocabulary holds every byte; a file or a pipe gets the text as it is."""
    text = "a\x1b[2J\u009b\x7f\nb"
    ids = subprocess.run([JANUS, "tokenize", text], capture_output=True, text=True, check=True, timeout=60).stdout
    command = [JANUS, "tokenize", "--decode", ids]
    assert subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode() == text + "\n"
    master, terminal = os.openpty()
    subprocess.run(command, stdout=terminal, check=True, timeout=60)
    os.close(terminal)
    assert os.read(master, 100).decode() == "a [2J   \r\nb\r\n"
    os.close(master)


# ---- Writing, and the command line ----

def test_a_full_disk_is_named(model: Model) -> None:
    model.write()
    out = model.base / "out" / "o.gguf"
    out.parent.mkdir()
    (out.parent / f".o.gguf.{os.getpid()}.part").symlink_to("/dev/full")
    assert convert.main([str(model.path), "-o", str(out)]) == 1
    assert model.messages() == f"convert.py: cannot write {out}: {os.strerror(errno.ENOSPC)}\n"
    assert not list(out.parent.iterdir())


def test_a_disk_full_among_the_weights_is_named(model: Model) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))

    model.write(sizes=random_model.TINY)
    result = run(model.path, "-o", model.out, preexec_fn=limit)
    assert result.returncode == 1 and [path.name for path in model.base.iterdir()] == ["model"]
    assert result.stderr == f"convert.py: cannot write {model.out}: {os.strerror(errno.EFBIG)}\n"


def test_a_checkpoint_is_not_overwritten(model: Model) -> None:
    model.write()
    for name in ("model.safetensors", "config.json", "new.bin"):
        assert convert.main([str(model.path), "-o", str(model.path / name)]) == 1
        assert "the result is a .gguf file" in model.messages()
    assert (model.path / "model.safetensors").stat().st_size > 1000
    assert not (model.path / "new.bin").exists()


@pytest.mark.parametrize("package", ["numpy", "gguf", "safetensors", "tqdm"])
def test_a_missing_package_is_one_line(package: str, model: Model) -> None:
    assert importlib.metadata.version(package)
    model.write()
    without = f"import sys, runpy; sys.modules[{package!r}] = None; sys.argv[:1] = []; " \
              f"runpy.run_path(sys.argv[0], run_name='__main__')"
    result = run(without, SCRIPT, model.path, "-o", model.out, script="-c")
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and not model.out.exists()
    assert f"the Python package {package} is missing" in result.stderr and "pip install gguf numpy" in result.stderr
    result = run(without, SCRIPT, "-h", script="-c")
    assert result.returncode == 0 and "--roles" in result.stdout and not result.stderr


def test_help_needs_no_package_at_all() -> None:
    result = run("-S", SCRIPT, "-h", script="-I")  # without site-packages
    assert result.returncode == 0 and "--dtype" in result.stdout and not result.stderr
    result = run("-S", SCRIPT, "x", "-o", "y", script="-I")
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "package" in result.stderr
