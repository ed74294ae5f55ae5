# SPDX-License-Identifier: MIT
"""Checkpoints as they are met: names that training programs change, files that are in the way, other models, tokenizers
saved anew. convert.py converts them to the same file, or refuses them in one line that says what to do."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import resource
import subprocess
import sys
import types
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
from checkpoints import save_safetensors, write_checkpoint, write_json
from test_convert import GEOMETRIES, MICRO, SCRIPT, assert_refused, converted, edit, run

ROOT = Path(__file__).resolve().parents[2]
JANUS = Path(os.environ.get("JANUS_PROGRAM", ROOT / "janus"))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4178801000\n"
USER_ID, ASSISTANT_ID = 313, 314  # of the roles in MICRO's tokenizer


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The file of an unchanged checkpoint, by layout; the folder's name is in it."""
    files = {}
    for layout in ("official", "transformers"):
        folder = tmp_path_factory.mktemp(layout) / "model"
        write_checkpoint(folder, MICRO, layout)
        converted(folder)
        files[layout] = (folder.parent / "out.gguf").read_bytes()
    return files


def assert_same(folder: Path, file: bytes, capsys: pytest.CaptureFixture[str], *remarks: str) -> None:
    """The folder converts to this very file, with one remark for each text, which it holds."""
    out = folder.parent / "same.gguf"
    assert convert.main([str(folder), "-o", str(out)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(remarks) and all(line.startswith("convert.py: remark: ") for line in lines), lines
    assert all(words in line for words, line in zip(remarks, lines)), lines
    assert out.read_bytes() == file


def rewrite(folder: Path, layout: str, change: Callable[[str], str], dtype: str = "F32") -> checkpoints.State:
    """A checkpoint whose tensors have changed names."""
    state = write_checkpoint(folder, MICRO, layout)
    state = {change(name): value for name, value in state.items()}
    save_safetensors(folder / "model.safetensors", state, dict.fromkeys(state, dtype))
    return state


# ---- Names ----

RENAMINGS: dict[str, Callable[[str], str]] = {
    "model twice": lambda name: "model." + name,
    "no model": lambda name: name.removeprefix("model."),
    "DataParallel": lambda name: "module." + name,
    "torch.compile": lambda name: "_orig_mod." + name,
    "both": lambda name: "module._orig_mod." + name,
    "a compiled part": lambda name: name.replace("language_model.", "language_model._orig_mod."),
    "fully sharded parts": lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
    "peft without an adapter": lambda name: "base_model.model." + name,
}


@pytest.mark.parametrize("layout", ["official", "transformers"])
@pytest.mark.parametrize("renaming", RENAMINGS)
def test_what_training_programs_put_around_names_is_taken_off(
    renaming: str, layout: str, tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(tmp_path / "model", layout, RENAMINGS[renaming])
    assert_same(tmp_path / "model", expected[layout], capsys)


def test_two_names_for_one_tensor_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = write_checkpoint(tmp_path / "model", MICRO)
    state["module.gen_embed.weight"] = state["gen_embed.weight"]
    save_safetensors(tmp_path / "model" / "model.safetensors", state, dict.fromkeys(state, "F32"))
    assert_refused(tmp_path / "model", capsys, "tensor gen_embed.weight stands in", "module.gen_embed.weight")


def test_tensors_that_nothing_uses_are_one_remark(
    tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    state = write_checkpoint(tmp_path / "model", MICRO, "transformers")
    extras = ["model.vision_model.embeddings.position_ids", "model.vision_model.head.probe",
              "model.vqmodel.loss.discriminator.main.0.weight", "model.vqmodel.loss.lpips.weight", "step"]
    state |= {name: np.full((2, 3), np.nan, np.float32) for name in extras}
    save_safetensors(tmp_path / "model" / "model.safetensors", state, dict.fromkeys(state, "F32"))
    assert_same(tmp_path / "model", expected["transformers"], capsys, f"left out: {', '.join(extras[:3])} and 2 more")


def test_a_missing_tensor_is_shown_beside_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layout in ("official", "transformers"):
        rewrite(tmp_path / layout, layout, lambda name: "janus.net." + name)
        name = {"official": "gen_vision_model.encoder.conv_in.weight",
                "transformers": "model.vision_model.embeddings.patch_embedding.weight"}[layout]
        assert_refused(tmp_path / layout, capsys, f"tensor {name} is missing", f"janus.net.{name} and janus.net.",
                       "every name there begins with janus.net.")


# ---- Number formats ----

def test_float64_is_rounded_to_float32(
    tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(tmp_path / "model", "official", lambda name: name, "F64")
    assert_same(tmp_path / "model", expected["official"], capsys)
    path = tmp_path / "model" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-8] + np.float64(1e300).tobytes())
    assert_refused(tmp_path / "model", capsys, "not finite")


# ---- Files ----

def test_an_index_may_name_what_no_shard_has_and_nothing_needs(
    tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "model", MICRO, shards=3)
    index = tmp_path / "model" / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    write_json(index, {"weight_map": places | {"vision_model.head.probe": places["gen_embed.weight"]}})
    assert_same(tmp_path / "model", expected["official"], capsys)


def test_one_file_wins_over_shards_as_in_transformers(
    tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, MICRO, shards=3, state=checkpoints.random_state(MICRO, 9))
    state = write_checkpoint(folder, MICRO)
    words = "model.safetensors is read, as transformers does, and not the shards"
    assert_same(folder, expected["official"], capsys, words)
    del state["gen_embed.weight"]  # an old file that lacks something is refused, not filled up
    save_safetensors(folder / "model.safetensors", state, dict.fromkeys(state, "F32"))
    assert_refused(folder, capsys, "tensor gen_embed.weight is missing")


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "consolidated.safetensors"])
def test_weights_of_another_name_are_found(
    name: str, tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, MICRO)
    (folder / "model.safetensors").rename(folder / name)
    (folder / "training_args.bin").write_bytes(b"no weights")
    (folder / "optimizer.pt").write_bytes(b"no weights")
    assert_same(folder, expected["official"], capsys)
    (folder / name).with_name("model.bf16.safetensors").write_bytes((folder / name).read_bytes())
    (folder / "other.safetensors").write_bytes((folder / name).read_bytes())
    if name.startswith("model"):
        assert_refused(folder, capsys, "several", "model.bf16.safetensors, model.fp16.safetensors")
    else:
        assert_same(folder, expected["official"], capsys)  # the variant's name is a usual one


def test_shards_of_a_variant_are_found(
    tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, MICRO, shards=2)
    (folder / "model.safetensors.index.json").rename(folder / "model.safetensors.index.fp16.json")
    assert_same(folder, expected["official"], capsys)
    (folder / "model.safetensors.index.fp16.json").unlink()
    assert_refused(folder, capsys, "model-00001-of-00002.safetensors", "index", "model.safetensors.index.json")


@pytest.mark.parametrize("layout, shards, file", [
    *(("official", 1, f"{name}.json") for name in ("config", "tokenizer", "tokenizer_config", "preprocessor_config",
                                                   "processor_config")),
    ("official", 1, "model.safetensors"), ("official", 1, "pytorch_model.bin"),
    ("transformers", 1, "processor_config.json"), ("official", 2, "model-00002-of-00002.safetensors"),
    ("official", 2, "model.safetensors.index.json"),
])
def test_git_lfs_pointers_are_named(
    layout: str, shards: int, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, MICRO, layout, shards=shards)
    if file.endswith(".bin"):
        (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(POINTER)
    words = f"{file} is a Git LFS pointer ({len(POINTER)} bytes), not the file: run git lfs pull"
    assert_refused(folder, capsys, words, "hf download")


def test_a_folder_of_the_hubs_cache(
    tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "models--org--model"
    write_checkpoint(cache / "snapshots" / "0123abc", MICRO)
    assert_same(cache, expected["official"], capsys)  # general.name is that of the repository
    write_checkpoint(cache / "snapshots" / "4567def", MICRO, state=checkpoints.random_state(MICRO, 9))
    assert_refused(cache, capsys, "snapshots", "2 folders")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abc\n")
    assert_same(cache, expected["official"], capsys)
    assert_same(cache / "snapshots" / "0123abc", expected["official"], capsys)
    (cache / "refs" / "main").write_text("../..")
    assert_refused(cache, capsys, "refs/main")
    write_checkpoint(tmp_path / "model", MICRO)
    (tmp_path / "model" / "snapshots").mkdir()  # of a training program
    assert_same(tmp_path / "model", expected["official"], capsys)


def hub(fetch: Callable[..., str]) -> types.ModuleType:
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = fetch  # type: ignore[attr-defined]
    return module


def test_a_repository_is_fetched(tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str],
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, out, asked = tmp_path / "models--org--model" / "snapshots" / "0123abc", tmp_path / "out.gguf", []

    def fetch(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        write_checkpoint(snapshot, MICRO)
        return str(snapshot)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(fetch))
    assert convert.main(["org/model", "-o", str(out)]) == 0
    assert out.read_bytes() == expected["official"]
    assert asked == [("org/model", ["*.json", "*.safetensors", "*.bin", "README.md"])]
    assert "remark: no such folder: org/model; the repository of that id is fetched" in capsys.readouterr().err
    (tmp_path / "org").mkdir()  # now it is a path that was mistyped
    assert_refused(Path("org/model"), capsys, "no such folder: org/model")
    assert len(asked) == 1


def test_a_repository_that_cannot_be_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(repository: str, **options: Any) -> str:
        raise RuntimeError("no such repository\nin two lines")

    monkeypatch.chdir(tmp_path)
    command = "hf download org/name --local-dir name"
    for module, words in ((hub(fetch), "cannot fetch org/name: no such repository;"),
                          (None, "pip install huggingface_hub && ")):
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        assert convert.main(["org/name", "-o", "out.gguf"]) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert words in message and command in message
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    words = f"stands in, {tmp_path / 'model'}\n"
    assert_refused(tmp_path / "model" / "model.safetensors", capsys, "not a folder", words)
    converted(tmp_path / "model")
    assert_refused(tmp_path / "out.gguf", capsys, "GGUF file already")
    assert_refused(tmp_path / "nowhere", capsys, "no such folder")


# ---- Other models ----

def test_relatives_and_parts_of_a_model_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = {"cls": "CLIPVisionTower", "model_type": "vision", "params": {}}
    flow = {f"vision_{name}_config": {"cls": name, "params": {}} for name in ("und_enc", "gen_enc", "gen_dec")}
    for name, config in {
        "JanusFlow": {"model_type": "multi_modality", "language_config": {}} | flow,
        "DeepSeek-VL": {"model_type": "multi_modality", "language_config": {}, "vision_config": part,
                        "aligner_config": part},
        "DeepSeek-VL,": {"model_type": "deepseek_vl_hybrid"},
        "DeepSeek-VL2": {"model_type": "deepseek_vl_v2", "language_config": {}},
    }.items():
        write_checkpoint(tmp_path / "model", MICRO)
        write_json(tmp_path / "model" / "config.json", config)
        assert_refused(tmp_path / "model", capsys, f"holds {name}", "another model", "Janus-Pro-7B")


def test_adapters_are_to_be_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    state = write_checkpoint(folder, MICRO)
    name = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    save_safetensors(folder / "model.safetensors", state | {name: np.zeros((2, 2), np.float32)},
                     dict.fromkeys([*state, name], "F32"))
    assert_refused(folder, capsys, name, "LoRA adapter: merge it first")
    save_safetensors(folder / "model.safetensors", state, dict.fromkeys(state, "F32"))
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    assert_refused(folder, capsys, "LoRA adapter (adapter_config.json)", "merge it first")
    (folder / "config.json").unlink()
    assert_refused(folder, capsys, "LoRA adapter (adapter_config.json)", "merge it first")


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
    "lstrip": (added(USER_ID, lstrip=True), "lstrip is True"),
    "rstrip": (added(USER_ID, rstrip=True), "rstrip is True"),
    "single_word": (added(USER_ID, single_word=True), "single_word is True"),
    "normalized": (added(315, "User", normalized=True), "overlaps"),
    "another id": (added(5), "has the id 313"),
    "a new id": (added(316, "<new>"), "has the id 315"),
    "no content": ({"added_tokens_decoder": {"315": PLAIN}}, "content is missing"),
    "no text": (added(315, ["x"]), "is not a string"),
}


@pytest.mark.parametrize("case", TOKENIZER_CONFIGS)
def test_a_tokenizer_config_that_changes_prompts_is_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, words = TOKENIZER_CONFIGS[case]
    write_checkpoint(tmp_path / "model", MICRO)
    write_json(tmp_path / "model" / "tokenizer_config.json", values)
    assert_refused(tmp_path / "model", capsys, words, "token")


def test_a_tokenizer_config_is_honoured(
    tmp_path: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder, MICRO)
    same = {"add_bos_token": True, "add_eos_token": False, "bos_token": convert.BOS, "pad_token": None,
            "eos_token": PLAIN | {"content": convert.EOS, "normalized": True},
            "added_tokens_decoder": {str(USER_ID): PLAIN | {"content": "<|User|>", "normalized": True}}}
    write_json(folder / "tokenizer_config.json", same)
    assert_same(folder, expected["official"], capsys)
    decoder = {str(USER_ID): PLAIN | {"content": "<|User|>", "special": False}, "315": PLAIN | {"content": "<new>"},
               "65": PLAIN | {"content": convert.byte_alphabet()[65]}}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    metadata, _ = converted(folder)
    assert metadata["tokenizer.ggml.tokens"][315] == "<new>"
    assert [metadata["tokenizer.ggml.token_type"][i] for i in (65, USER_ID, ASSISTANT_ID, 315)] == [3, 4, 3, 3]


def test_a_placeholder_beside_its_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    edit(tmp_path / "model", "processor_config.json", "add_special_token", True)
    assert_refused(tmp_path / "model", capsys, "processor_config.json: add_special_token is True")
    edit(tmp_path / "model", "processor_config.json", "add_special_token", False)
    converted(tmp_path / "model")


def test_a_tokenizer_saved_as_another_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What transformers 5 saves of a LlamaTokenizer; test/verify/verify_convert.py has the true one."""
    write_checkpoint(tmp_path / "model", MICRO)
    edit(tmp_path / "model", "tokenizer.json", "pre_tokenizer", {"type": "Metaspace", "prepend_scheme": "always"})
    edit(tmp_path / "model", "tokenizer.json", "decoder", {"type": "Sequence", "decoders": []})
    edit(tmp_path / "model", "tokenizer.json", "model.byte_fallback", True)
    assert_refused(tmp_path / "model", capsys, "transformers 5", "take the original tokenizer.json")


def without_role_tokens(folder: Path) -> None:
    document = random_model.synthetic_tokenizer(MICRO.vocabulary)
    document["added_tokens"] = document["added_tokens"][:-2]
    write_json(folder / "tokenizer.json", document)


ROLE_CASES = [  # what is done to the folder, options, roles, remark
    (lambda folder: None, [], "pro", ""),
    (without_role_tokens, [], "1.3b", "because its tokenizer has no <|User|> and <|Assistant|>"),
    (without_role_tokens, ["--roles", "pro"], "pro", "<|User|> and <|Assistant|> of the prompts will be several"),
    (without_role_tokens, ["--roles", "1.3B"], "1.3b", ""),
    (lambda folder: None, ["--roles", "1.3b"], "1.3b", ""),
    (lambda folder: edit(folder, "config.json", "_name_or_path", "deepseek-ai/Janus-1.3B"), [], "1.3b",
     "because config.json says Janus-1.3B; --roles pro"),
    (lambda folder: edit(folder, "config.json", "language_config._name_or_path", "x/janus-1.3b"), [], "1.3b",
     "config.json says janus-1.3b"),
    (lambda folder: edit(folder, "config.json", "_name_or_path", ["Janus-Pro-1B"]), [], "pro", ""),
    (lambda folder: (folder / "README.md").write_text("# Janus\non DeepSeek-LLM-1.3b-base, before Janus-Pro"), [],
     "1.3b", "README.md says DeepSeek-LLM-1.3b"),
    (lambda folder: (folder / "README.md").write_bytes(b"\xff Janus-Pro after Janus-1.3B"), [], "pro", ""),
    (lambda folder: (without_role_tokens(folder), (folder / "README.md").write_text("Janus-Pro")), [], "pro",
     "several tokens each"),
]


@pytest.mark.parametrize("change, options, roles, words", ROLE_CASES, ids=range(len(ROLE_CASES)))
def test_roles(change: Callable[[Path], Any], options: list[str], roles: str, words: str, tmp_path: Path,
               capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    change(tmp_path / "model")
    metadata, _ = converted(tmp_path / "model", *options)
    named = metadata["janus.prompt.user_role"], metadata["janus.prompt.assistant_role"]
    assert named == {"pro": ("<|User|>", "<|Assistant|>"), "1.3b": ("User", "Assistant")}[roles]
    remarks = capsys.readouterr().err
    assert words in remarks and remarks.count("\n") == bool(words)


def test_the_folders_name_tells_the_roles(tmp_path: Path) -> None:
    for name, role in (("Janus-1.3B", "User"), ("janus-pro-1b", "<|User|>"),
                       ("models--deepseek-ai--Janus-1.3B/snapshots/0123abc", "User")):
        write_checkpoint(tmp_path / name, MICRO)
        assert converted(tmp_path / name)[0]["janus.prompt.user_role"] == role
    assert random_model.main(["tiny", "--roles", "1.3b", "-o", str(tmp_path / "r.gguf")]) == 0
    assert GGUFReader(tmp_path / "r.gguf").fields["janus.prompt.user_role"].contents() == "User"


@pytest.mark.parametrize("options, user, assistant",
                         [([], "<|User|>", "<|Assistant|>"), (["--roles", "1.3b"], "User", "Assistant")])
def test_prompts_have_the_roles_of_the_file(options: list[str], user: str, assistant: str, tmp_path: Path) -> None:
    """The ids that both tasks read are those of the prompt as the official scripts write it."""
    write_checkpoint(tmp_path / "model", MICRO)
    converted(tmp_path / "model", *options)
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    system = convert.SYSTEM_PROMPT + "\n\n"
    for command, text, extra in (("ask", f"{system}{user}: A fox?\n\n{assistant}:", ["--max-tokens", "1"]),
                                 ("generate", f"{user}: A fox?\n\n{assistant}:{convert.BEGIN_OF_IMAGE}", [])):
        dump = tmp_path / command
        dump.mkdir()
        arguments = ["-m", tmp_path / "out.gguf", "--dump", dump, "-q", *extra, "A fox?"]
        subprocess.run([JANUS, command, *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=60)
        ids = tokenizer.encode(convert.BOS + text, add_special_tokens=False).ids
        assert np.load(dump / "text.token_ids.npy").tolist() == ids


@pytest.mark.parametrize("value", [3, ["User"]])
def test_roles_of_another_type_are_refused_by_janus(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = convert.prompt_metadata
    kind = convert.u32(value) if value == 3 else convert.text(value)
    monkeypatch.setattr(convert, "prompt_metadata", lambda roles: sound(roles) | {"janus.prompt.user_role": kind})
    write_checkpoint(tmp_path / "model", MICRO)
    converted(tmp_path / "model")
    assert "janus.prompt.user_role" in refused_by_janus(tmp_path / "out.gguf")


# ---- One grammar, one set of limits: what convert.py writes janus.c reads ----

def test_limits_are_those_of_janus_c() -> None:
    source = (ROOT / "janus.c").read_text()
    constants = {name: eval(value) for name, value in re.findall(r"\b([A-Z_]+_(?:LIMIT|VERSION)) = ([0-9 <]+)", source)}
    rows = re.findall(r'\{"([\w.]+)", FIELD\(\w+\), \d, ([\w <]+)\}', source)
    limits = {key: constants.get(value) or eval(value) for key, value in rows if value != "0"}
    assert len(limits) > 20 and convert.LIMITS.items() <= limits.items()
    assert all(limit >= 1 << 20 for key, limit in limits.items() if key not in convert.LIMITS and not key.endswith(("group_count", "min_size")))
    assert (convert.SPLIT_RULES, convert.FORMAT_VERSION) == (constants["SPLIT_RULE_LIMIT"], constants["FORMAT_VERSION"])
    assert constants["LEVEL_LIMIT"] == 8 and constants["SIDE_LIMIT"] == 4096  # check_sizes has these two in words


@pytest.mark.parametrize("path, value, word", [
    ("text_config.num_hidden_layers", 513, "block_count"), ("vision_config.depth", 9, "aligner.depth"),
    ("vq_config.num_res_blocks", 9, "res_blocks"), ("vq_config.channel_multiplier", [1] * 9, "9 levels"),
    ("vision_config.num_attention_heads", 4097, "head_count"), ("vq_config.embed_dim", 4097, "codebook_dim"),
])
def test_sizes_that_janus_does_not_read_are_refused(
    path: str, value: Any, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "model", MICRO, "transformers")
    edit(tmp_path / "model", "config.json", path, value)
    assert_refused(tmp_path / "model", capsys, "config.json", word)


def test_tokenizers_that_janus_does_not_read_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    for path, value, word in (
        ("pre_tokenizer.pretokenizers", [{"type": "Digits", "individual_digits": True}] * 17
         + random_model.synthetic_tokenizer(320)["pre_tokenizer"]["pretokenizers"][-1:], "17 steps"),
    ):
        write_checkpoint(folder, MICRO)
        edit(folder, "tokenizer.json", path, value)
        assert_refused(folder, capsys, "tokenizer.json", word)


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
    ("packed.gguf", b"\x1f\x8b\x08", "a packed file"), ("old.gguf", b"tjgg" + bytes(60), "from before GGUF"),
    ("seven.gguf", b"GGUF\3\0\0", "truncated: it ends inside its header"), ("four.gguf", b"GGUF", "truncated"),
    ("header.gguf", b"GGUF\3" + bytes(18), "truncated"), ("big.gguf", b"GGUF\0\0\0\3" + bytes(60), "a big-endian GGUF file"),
    ("second.gguf", b"GGUF\2" + bytes(60), "GGUF version 2; this program reads version 3"),
    ("text.gguf", b"Hello, this is no model", "no GGUF header"),
    ("empty.gguf", b"", "no GGUF header"),
])
def test_other_kinds_of_files_are_named(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is None:
        save_safetensors(tmp_path / name, {"x": np.zeros((4, 4), np.float32)}, {"x": "F32"})
    else:
        (tmp_path / name).write_bytes(content)
    message = refused_by_janus(tmp_path / name)
    assert words in message
    assert name.endswith(".gguf") or f"python convert.py {tmp_path} -o janus.gguf" in message


@pytest.mark.parametrize("version, words", [
    (1, "written by an older convert.py (format 1): convert the checkpoint again"),
    (convert.FORMAT_VERSION + 1, "written by a newer convert.py (format 3): this program reads format 2"),
])
def test_files_of_another_version_are_named(version: int, words: str, tmp_path: Path) -> None:
    data = bytearray((ROOT / "weights" / "tiny.gguf").read_bytes())
    key = b"janus.format_version"
    data[data.index(key) + len(key) + 4] = version
    (tmp_path / "other.gguf").write_bytes(data)
    assert refused_by_janus(tmp_path / "other.gguf") == f"janus: {tmp_path / 'other.gguf'}: {words}\n"


@pytest.mark.parametrize("before, old, words", [
    (b"general.name\x08\0\0\0\x0a\0\0\0\0\0\0\0", b"janus-tiny", b"name  "), (b"\x0d\0\0\0\0\0\0\0", b"output.weight", b"unknown"),
    (b"general.architecture\x08\0\0\0\5\0\0\0\0\0\0\0", b"janus", b'not for "janus"')])
def test_control_characters_of_a_model_do_not_reach_the_terminal(before: bytes, old: bytes, words: bytes, tmp_path: Path) -> None:
    """The name, a tensor's name and the architecture may hold escape sequences; C1 controls are two bytes of UTF-8."""
    data = (ROOT / "weights" / "tiny.gguf").read_bytes()
    assert data.count(before + old) == 1
    (tmp_path / "other.gguf").write_bytes(data.replace(before + old, before + b"\x1b[2J\x07\xc2\x9b\x7f......"[:len(old)]))
    done = subprocess.run([JANUS, "info", "-m", tmp_path / "other.gguf"], capture_output=True, timeout=60)
    said = (done.stdout + done.stderr).replace(b"\n", b"")
    assert words in said and b" [2J" in said
    assert not any(byte < 0x20 or byte == 0x7F for byte in said) and b"\xc2\x9b" not in said


@pytest.mark.parametrize("command", [("info", "-m"), ("encode", "-i"), ("tokenize", "-f"), ("info",)])
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

def test_a_full_disk_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    out = tmp_path / "out" / "o.gguf"
    out.parent.mkdir()
    (out.parent / f".o.gguf.{os.getpid()}.part").symlink_to("/dev/full")
    assert convert.main([str(tmp_path / "model"), "-o", str(out)]) == 1
    assert capsys.readouterr().err == f"convert.py: cannot write {out}: {os.strerror(errno.ENOSPC)}\n"
    assert not list(out.parent.iterdir())


def test_a_disk_full_among_the_weights_is_named(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))

    write_checkpoint(tmp_path / "model", random_model.TINY)
    out = tmp_path / "out" / "o.gguf"
    out.parent.mkdir()
    result = run(tmp_path / "model", "-o", out, preexec_fn=limit)
    assert result.returncode == 1 and not list(out.parent.iterdir())
    assert result.stderr == f"convert.py: cannot write {out}: {os.strerror(errno.EFBIG)}\n"


def test_a_checkpoint_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    for name in ("model.safetensors", "config.json", "new.bin"):
        assert convert.main([str(tmp_path / "model"), "-o", str(tmp_path / "model" / name)]) == 1
        assert "the result is a .gguf file" in capsys.readouterr().err
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 1000
    assert not (tmp_path / "model" / "new.bin").exists()


def test_usage(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    for arguments, words in (
        (["model"], "say which file to write: -o OUT.gguf"),
        (["model", "-o", "o.gguf", "--dtype", "q5_1"], "invalid choice: 'q5_1'"),
        (["model", "-o", "o.gguf", "--roles", "base"], "invalid choice: 'base'"),
    ):
        result = run(*arguments, cwd=tmp_path)
        assert result.returncode == 2 and words in result.stderr
    assert run("model", "-o", "o.gguf", "--dtype", "Q8_0", cwd=tmp_path).returncode == 0
    assert (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize("package", ["numpy", "gguf", "safetensors", "tqdm"])
def test_a_missing_package_is_one_line(package: str, tmp_path: Path) -> None:
    assert importlib.metadata.version(package)
    write_checkpoint(tmp_path / "model", MICRO)
    without = f"import sys, runpy; sys.modules[{package!r}] = None; sys.argv[:1] = []; " \
              f"runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", without, SCRIPT]
    result = subprocess.run([*command, tmp_path / "model", "-o", tmp_path / "o.gguf"], capture_output=True, text=True,
                            timeout=60)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and not (tmp_path / "o.gguf").exists()
    assert f"the Python package {package} is missing" in result.stderr and "pip install gguf numpy" in result.stderr
    result = subprocess.run([*command, "-h"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "--roles" in result.stdout and not result.stderr


def test_help_needs_no_package_at_all() -> None:
    command = [sys.executable, "-I", "-S", SCRIPT]  # without site-packages
    result = subprocess.run([*command, "-h"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "--dtype" in result.stdout and not result.stderr
    result = subprocess.run([*command, "x", "-o", "y"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "package" in result.stderr
