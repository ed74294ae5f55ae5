# SPDX-License-Identifier: MIT
"""Tests of convert.py that need no torch: layouts, number formats, defaults, refusals, damage, interruption."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import functools
import itertools
import json
import math
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFReader, LlamaFileType, quants
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import checkpoints
import convert
import random_model
from checkpoints import State, write_checkpoint, write_json

SCRIPT, RANDOM = Path(convert.__file__), Path(random_model.__file__)
# The smallest model that has every kind of tensor: two VQ levels, a grouped-query transformer, its own output matrix.
MICRO = replace(random_model.TINY, layers=1, vit_layers=1, kv_heads=2, vq_multipliers=(1, 2), codebook_size=64, vq_z=8,
                feed_forward=96, vocabulary=320)
GEOMETRIES = {name: sizes for name, sizes in random_model.GEOMETRIES.items() if name.startswith("tiny")} | {"micro": MICRO}


def run(*arguments: Any, script: Path | str = SCRIPT, **options: Any) -> subprocess.CompletedProcess[str]:
    """convert.py, or another script or option of Python, as a user runs it."""
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, np.ndarray]]]:
    """Metadata, and name -> (type, values in the shape of the file) of a GGUF file, by the gguf package's reader."""
    reader = GGUFReader(path)
    metadata = {name: entry.contents() for name, entry in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {}
    for t in reader.tensors:
        values = quants.dequantize(t.data, t.tensor_type).reshape([int(n) for n in t.shape][::-1])
        tensors[t.name] = t.tensor_type.name, values
    assert all(t.data_offset % 64 == 0 for t in reader.tensors)
    return metadata, tensors


@functools.cache
def plain_file(layout: str) -> bytes:
    """The file of an unchanged checkpoint."""
    with tempfile.TemporaryDirectory() as place:
        write_checkpoint(Path(place) / "model", MICRO, layout)
        assert convert.main([f"{place}/model", "-o", f"{place}/out.gguf"]) == 0
        return Path(place, "out.gguf").read_bytes()


class Model:
    """A small checkpoint in a folder of its own, and the file that convert.py makes of it."""

    def __init__(self, base: Path, name: str | Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.base, self.path, self.out, self.capsys = base, base / name, base / "out.gguf", capsys

    def beside(self, name: str) -> Model:
        """Another folder or file at the same place."""
        return Model(self.base, name, self.capsys)

    def write(self, layout: str = "official", sizes: convert.Sizes = MICRO, **options: Any) -> State:
        return write_checkpoint(self.path, sizes, layout, **options)

    def save(self, state: State, dtype: str | dict[str, str] = "F32") -> None:
        """Other weights in the place of those in model.safetensors."""
        dtypes = dict.fromkeys(state, dtype) if isinstance(dtype, str) else dtype
        checkpoints.save_safetensors(self.path / "model.safetensors", state, dtypes)

    def edit(self, file: str, key: str, value: Any) -> None:
        """Set one value of a JSON file; `key` has dots between keys, and an Ellipsis as value removes the key."""
        document = json.loads((self.path / file).read_text())
        *keys, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        inner = document
        for part in keys:
            inner = inner[part]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
        write_json(self.path / file, document)

    def converted(self, *options: str) -> tuple[dict[str, Any], dict[str, tuple[str, np.ndarray]]]:
        """Convert the folder, in this process, and read the result."""
        assert convert.main([str(self.path), "-o", str(self.out), *options]) == 0
        return read(self.out)

    def file(self, *options: str) -> bytes:
        """The bytes that the folder becomes."""
        self.converted(*options)
        return self.out.read_bytes()

    def same(self, layout: str, *remarks: str) -> None:
        """The folder converts to the file of an unchanged checkpoint, with one remark for each text, which it holds."""
        self.messages()
        content, lines = self.file(), self.messages().splitlines()
        assert len(lines) == len(remarks) and all(line.startswith("convert.py: remark: ") for line in lines), lines
        assert all(words in line for words, line in zip(remarks, lines)), lines
        assert content == plain_file(layout)

    def messages(self) -> str:
        """What was written to standard error since the last call."""
        return self.capsys.readouterr().err

    def survives(self, *options: str) -> str | None:
        """None if the folder converts; else its refusal, one line, with nothing left behind."""
        out = self.base / "result" / "o.gguf"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        self.messages()
        code, message = convert.main([str(self.path), "-o", str(out), *options]), self.messages()
        if code == 0:
            read(out)
            return None
        assert code == 1 and message.count("\n") == 1 and message.startswith("convert.py: "), message
        assert list(out.parent.iterdir()) == []
        return message

    def refused(self, *words: str, options: tuple[str, ...] = ()) -> None:
        """The folder is refused with a message that holds the words."""
        message = self.survives(*options)
        assert message is not None and all(word in message for word in words), message


@pytest.fixture
def model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Model:
    return Model(tmp_path, "model", capsys)


# ----------------------------------------------------------------------------------------------- layouts and contents


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_both_layouts_whole_and_sharded_give_the_same_file(geometry: str, dtype: str, model: Model) -> None:
    files, sizes = set(), GEOMETRIES[geometry]
    # transformers has one key for both widths
    for layout in ("official", "transformers")[:1 + (sizes.gen_head_width == sizes.hidden)]:
        for shards in (1, 4):
            shutil.rmtree(model.path, ignore_errors=True)
            model.write(layout, sizes, shards=shards, dtype=dtype)
            files.add(model.file())
    assert len(files) == 1


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_number_arrives_where_it_belongs(geometry: str, model: Model) -> None:
    state = model.write(sizes=GEOMETRIES[geometry])
    _, tensors = model.converted()

    for tensor in convert.tensor_table(GEOMETRIES[geometry]):
        value = state.pop(tensor.official)
        if value.ndim == 4:
            value = value[:, :, 0, 0] if value.shape[2] == 1 else np.moveaxis(value, 1, 3)
        value = value[0] if tensor.name == "vit.pos_embed" else value
        np.testing.assert_array_equal(tensors.pop(tensor.name)[1], value, err_msg=tensor.name)
    assert not tensors and not state


def alternatives(template: str) -> list[str]:
    """a{b,c}d -> abd, acd"""
    parts = [part.strip("{}").split(",") for part in re.split(r"(\{.*?\})", template)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def documented_names() -> list[tuple[str, str, tuple[str, ...]]]:
    """The rows of the table in convert.py's documentation: name in the file, official name, names in transformers."""
    rows = convert.__doc__[convert.__doc__.index("-------  ") :].splitlines()[1:]
    result, prefixes = [], ("", "")
    for row in rows[: rows.index("")]:
        name, old, hf = row[4:30].split(" (")[0].strip(), row[30:68], row[68:]
        if not name:
            prefixes = (old.strip(), hf.strip())
            continue
        old, hf = (prefix * part.startswith("  ") + part.strip() for prefix, part in zip(prefixes, (old, hf)))
        names, olds, hfs = alternatives(name), alternatives(old), alternatives(hf)
        each = len(hfs) // len(names)
        result += [(n, o, tuple(hfs[i * each:(i + 1) * each])) for i, (n, o) in enumerate(zip(names, olds, strict=True))]
    return result


def fill(template: str, numbers: dict[str, str]) -> str:
    """The numbers in the place of their letters; 2I and (I-1) are worked out."""
    if "I" in numbers:
        number = int(numbers["I"])
        template = template.replace("2I", str(2 * number)).replace("(I-1)", str(number - 1))
    return ".".join(numbers.get(part, part) for part in template.split("."))


@pytest.mark.parametrize("geometry", ["tiny", "tiny-odd"])
def test_the_documented_table_is_true_of_every_tensor(geometry: str) -> None:
    inside = {"shortcut": "nin_shortcut", "proj": "proj_out"}  # of residual and attention blocks
    table = documented_names()
    for tensor in convert.tensor_table(random_model.GEOMETRIES[geometry]):
        for name, old, hf in table:
            pattern = re.sub(r"\b([NLBI])\b", r"(?P<\1>\\d+)", re.escape(name).replace(r"\.", "."))
            match = re.fullmatch(pattern + r"((?:\.\w+?)?)((?:\.weight|\.bias)?)", tensor.name)
            if match:
                part, kind = match.groups()[-2:]
                rest = (f".{inside.get(part[1:], part[1:])}" if part else "") + kind
                assert tensor.official == fill(old, match.groupdict()) + rest
                prefix = "" if name == "output" else "model."
                rest = ".weight" if name == "vit.pos_embed" else rest
                assert tensor.transformers == tuple(prefix + fill(n, match.groupdict()) + rest for n in hf)
                break
        else:
            pytest.fail(f"{tensor.name} is not in the table")


def flat(groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for prefix, values in groups.items() for name, value in values.items()}


@pytest.mark.parametrize("layout", ["official", "transformers"])
def test_metadata(layout: str, model: Model) -> None:
    model = model.beside("some model")
    model.write(layout)
    metadata, _ = model.converted()
    tokens, kinds = metadata.pop("tokenizer.ggml.tokens"), metadata.pop("tokenizer.ggml.token_type")
    merges, rules = metadata.pop("janus.tokenizer.merges"), metadata.pop("janus.tokenizer.split_rules")
    assert metadata.pop("janus.prompt.system").startswith("You are a helpful language and vision assistant. You are able")
    epsilon = float(np.float32(1e-6))
    assert metadata == flat({
        "general": {"name": "some model", "architecture": "janus", "alignment": 64, "file_type": 0},
        "janus": {"format_version": 2, "embedding_length": 64, "block_count": 1, "feed_forward_length": 96,
                  "context_length": 512, "vocab_size": 320, "rope.freq_base": 10000.0, "aligner.depth": 2,
                  "gen_aligner.depth": 2, "gen_head.embedding_length": 64},
        "janus.attention": {"head_count": 4, "head_count_kv": 2, "key_length": 16, "layer_norm_rms_epsilon": epsilon},
        "janus.vision": {"image_size": 32, "patch_size": 8, "embedding_length": 64, "block_count": 1,
                         "feed_forward_length": 128},
        "janus.vision.attention": {"head_count": 2, "layer_norm_epsilon": epsilon},
        "janus.vq": {"codebook_size": 64, "codebook_dim": 8, "base_channels": 32, "channel_multipliers": [1, 2],
                     "res_blocks": 1, "z_channels": 8, "group_count": 32, "grid_size": 4,
                     "group_norm_epsilon": epsilon},
        "janus.image": {"min_size": 14, "mean": [0.5] * 3, "std": [0.5] * 3, "rescale_factor": 1 / 255,
                        "background_color": [127] * 3, "do_normalize": True},
        "janus.prompt": {"user_role": "<|User|>", "assistant_role": "<|Assistant|>"},
        "tokenizer.ggml": {"model": "gpt2", "pre": "deepseek-llm", "add_bos_token": True, "bos_token_id": 307,
                           "eos_token_id": 308, "padding_token_id": 309},
        "janus.tokenizer": {"image_placeholder_id": 310, "begin_of_image_id": 311, "end_of_image_id": 312},
    })
    assert len(tokens) == len(kinds) == 320 and len(merges) == 3 * (320 - 256 - 8 - 5)
    assert tokens[307] == "<｜begin▁of▁sentence｜>" and kinds[306:309] == [1, 3, 3]
    assert tokens[315] == "[PAD315]" and kinds[315] == 5
    assert tokens[merges[0]] + tokens[merges[1]] == tokens[merges[2]]
    assert rules[:10] == [0, 0, 2, 10, 10, 13, 13, 1, 10, 84] and rules[-2:] == [0x1FBF0, 0x1FBF9]


# ------------------------------------------------------------------------------------------------------- number formats


@given(high=st.integers(0, 0xFFFF),
       low=st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]) | st.integers(0, 0xFFFF))
def test_bf16_is_the_nearest_and_even_on_ties(high: int, low: int) -> None:
    assume(high & 0x7F80 != 0x7F80)  # finite
    value = np.array([high << 16 | low], np.uint32).view(np.float32)
    expected = high + (low > 0x8000 or (low == 0x8000 and high % 2 == 1))
    if expected & 0x7F80 == 0x7F80:
        with pytest.raises(convert.Refused, match="too large"):
            convert.encode(value, convert.Type.BF16, "x")
    else:
        assert int(convert.encode(value, convert.Type.BF16, "x")[0]) == expected


# What GGUF calls files whose matrices are mostly of a type.
FILE_TYPES = {
    "f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16, "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q6_k": LlamaFileType.MOSTLY_Q6_K, "q4_k": LlamaFileType.MOSTLY_Q4_K_S, "q4_0": LlamaFileType.MOSTLY_Q4_0,
}


@pytest.mark.parametrize("dtype", ["f16", "bf16", *convert.QUANTISED_TYPES])
def test_types_and_errors_of_each_dtype(dtype: str, model: Model) -> None:
    sizes = replace(GEOMETRIES["tiny-odd"], hidden=256 if dtype.endswith("k") else 64, feed_forward=112)
    model.write(sizes=sizes)
    _, exact = model.converted()
    metadata, tensors = model.converted("--dtype", dtype)
    assert metadata["general.file_type"] == FILE_TYPES[dtype]
    # Of the largest of a row: half a step, but a whole one at the short end of Q4_0; and the rounding of the scale.
    bound = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.5 / 127 + 2**-11, "Q4_0": 1 / 8 + 2**-11,
             "Q6_K": 1 / 32, "Q4_K": 1 / 8}
    for name, (kind, values) in tensors.items():
        if values.ndim == 1 or name in convert.ALWAYS_F32:
            assert kind == "F32"
        elif dtype in ("f16", "bf16") or values.shape[-1] % 32 or name.startswith("vq."):
            assert kind == ("BF16" if dtype == "bf16" else "F16")
        else:
            whole = values.shape[-1] % GGML_QUANT_SIZES[convert.Type[dtype.upper()]][0] == 0
            assert kind == (dtype.upper() if whole and name.startswith("blk.") else "Q8_0")
        error = np.abs(values - exact[name][1]).max(axis=-1)
        assert (error <= bound[kind] * np.abs(exact[name][1]).max(axis=-1)).all(), name
    kinds = {kind for kind, _ in tensors.values()}
    exact_types = {"f16": {"F32", "F16"}, "bf16": {"F32", "BF16"}}
    assert kinds == exact_types.get(dtype, {"F32", "F16", "Q8_0", dtype.upper()})
    assert tensors["blk.0.ffn_down.weight"][0] == ("F16" if dtype.startswith("q") else dtype.upper())


def test_16_bit_weights_survive_unchanged_and_each_tensor_keeps_its_type(model: Model) -> None:
    state = model.write(dtype="BF16")
    dtypes = {name: "F16" if name.startswith("gen_head") else "BF16" for name in state}
    model.save(state, dtypes)
    metadata, tensors = model.converted()
    assert metadata["general.file_type"] == 32
    assert tensors["gen_head.out.weight"][0] == "F16" and tensors["output.weight"][0] == "BF16"
    cut = checkpoints.encode_values(state["language_model.lm_head.weight"], "BF16").astype(np.uint32) << 16
    np.testing.assert_array_equal(tensors["output.weight"][1], cut.view(np.float32))


def test_attention_parts_of_two_types_are_joined_exactly(model: Model) -> None:
    state = model.write("transformers")
    dtypes = {name: "F16" if "vision_model" in name and "q_proj" in name else "BF16" for name in state}
    model.save(state, dtypes)
    kind, joined = model.converted()[1]["vit.blk.0.qkv.weight"]
    parts = [state[f"model.vision_model.encoder.layers.0.self_attn.{p}_proj.weight"] for p in "qkv"]
    cut = [(part.view(np.uint32) & 0xFFFF0000).view(np.float32) for part in parts]
    assert kind == "F32"
    np.testing.assert_array_equal(joined, np.concatenate([parts[0].astype(np.float16).astype(np.float32), *cut[1:]]))


def test_rows_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    model.write(shards=2)
    whole = model.file("--dtype", "q8_0")
    monkeypatch.setattr(convert, "CHUNK_ELEMENTS", 1000)
    assert model.file("--dtype", "q8_0") == whole


# ------------------------------------------------------------------------------------------ configuration, its defaults


def test_absent_keys_take_the_defaults_of_their_classes() -> None:
    config = {"model_type": "janus", "text_config": {"hidden_size": 2048}}
    sizes = convert.read_transformers_config(convert.Config(config, "c"))
    assert sizes == replace(convert.Sizes(), layers=32, heads=32, kv_heads=32, head_dim=64, feed_forward=11008, context=2048,
                            vocabulary=32000, tied=True)


def test_the_published_7b_config_leaves_most_out() -> None:
    projector = {"cls": "MlpProjector", "params": {"projector_type": "mlp_gelu", "depth": 2, "n_embed": 4096}}
    vision = {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}
    config = {
        "vision_config": {"cls": "CLIPVisionTower", "params": vision},
        "aligner_config": {**projector, "params": projector["params"] | {"input_dim": 1024}},
        "gen_aligner_config": {**projector, "params": projector["params"] | {"input_dim": 8}},
        "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_head_config": {"cls": "vision_head",
                            "params": {"image_token_embed": 4096, "image_token_size": 16384, "n_embed": 4096}},
        "language_config": {"max_position_embeddings": 16384, "model_type": "llama", "num_hidden_layers": 30,
                            "torch_dtype": "bfloat16", "vocab_size": 102400},
    }
    expected = random_model.GEOMETRIES["janus-pro-7b"]
    checkpoint = {name: convert.Stored(Path(), name, "F32", shape)
                  for name, shape in checkpoints.official_shapes(expected).items()}
    assert convert.read_official_config(convert.Config(config, "c"), checkpoint) == expected


@pytest.mark.parametrize("rope", [
    {"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    {"rope_theta": 5e5, "rope_scaling": None}, {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
])
def test_rope_theta_in_its_old_and_new_places(rope: dict[str, Any]) -> None:
    assert convert.read_llama(convert.Config(rope, "c"))["rope_theta"] == 5e5


CONFIG_EDITS = [  # layout, key, value, a word that the message must hold
    ("transformers", "model_type", "llama", "model_type"),
    ("transformers", "model_type", ..., "model_type"),
    ("transformers", "quantization_config", {"bits": 4}, "quantization_config"),
    ("transformers", "text_config.hidden_act", "gelu", "hidden_act"),
    ("transformers", "text_config.attention_bias", True, "attention_bias"),
    ("transformers", "text_config.mlp_bias", True, "mlp_bias"),
    ("transformers", "text_config.model_type", "mistral", "model_type"),
    ("transformers", "text_config.rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, "rope_type"),
    ("transformers", "text_config.rope_parameters.rope_type", "linear", "rope_type"),
    ("transformers", "text_config.rope_parameters.partial_rotary_factor", 0.5, "partial_rotary_factor"),
    ("official", "language_config.rope_scaling", {"type": "linear", "factor": 2.0}, "type"),
    ("transformers", "text_config.num_key_value_heads", 3, "shape"),
    ("transformers", "text_config.hidden_size", "64", "hidden_size"),
    ("transformers", "text_config.hidden_size", 64.0, "hidden_size"),
    ("transformers", "text_config.num_hidden_layers", 0, "num_hidden_layers"),
    ("transformers", "text_config.num_hidden_layers", 10**9, "num_hidden_layers"),
    ("transformers", "text_config.rms_norm_eps", -1, "rms_norm_eps"),
    ("transformers", "text_config", [], "text_config"),
    ("transformers", "vision_config.hidden_act", "gelu_pytorch_tanh", "hidden_act"),
    ("transformers", "vision_config.use_qk_norm", True, "use_qk_norm"),
    ("transformers", "vision_config.image_size", [32, 32], "image_size"),
    ("transformers", "vision_config.mlp_ratio", 1e-9, "config.json"),
    ("transformers", "vision_config.depth", 9, "aligner"),
    ("transformers", "vq_config.latent_channels", 16, "shape"),
    ("transformers", "vq_config.hidden_act", "relu", "hidden_act"),
    ("transformers", "vq_config.projection_dim", 128, "generation_head.proj_out"),
    ("transformers", "vq_config.channel_multiplier", [], "config.json"),
    ("transformers", "vq_config.base_channels", 33, "shape"),
    ("transformers", "tie_word_embeddings", "yes", "tie_word_embeddings"),
    ("official", "vision_config.params.model_name", "sam_b", "model_name"),
    ("official", "vision_config.params.select_layer", -2, "select_layer"),
    ("official", "vision_config.params.select_layer", ..., "select_layer"),
    ("official", "aligner_config.params.projector_type", "linear", "projector_type"),
    ("official", "aligner_config.params.projector_type", ..., "projector_type"),
    ("official", "gen_head_config.params.image_token_embed", ..., "image_token_embed"),
    ("official", "language_config.hidden_size", ..., "shape"),
]
PROCESSOR_EDITS = [  # layout, file, key, value
    ("official", "preprocessor_config.json", "image_size", 64),
    ("official", "preprocessor_config.json", "image_size", ...),
    ("official", "preprocessor_config.json", "image_mean", [0.5, 0.5]),
    ("official", "preprocessor_config.json", "image_mean", [0.5, 0.5, 1e9]),
    ("official", "preprocessor_config.json", "image_mean", "half"),
    ("official", "preprocessor_config.json", "image_mean", 3),
    ("official", "preprocessor_config.json", "image_std", [0.5, 0, 0.5]),
    ("official", "preprocessor_config.json", "background_color", [0, 0, 0]),
    ("official", "preprocessor_config.json", "do_normalize", 1),
    ("official", "preprocessor_config.json", "do_rescale", False),
    ("official", "preprocessor_config.json", "min_size", 33),
    ("official", "preprocessor_config.json", "rescale_factor", 0),
    ("official", "processor_config.json", "num_image_tokens", 576),
    ("official", "processor_config.json", "sft_format", "plain"),
    ("transformers", "processor_config.json", "image_processor.size", {"shortest_edge": 32}),
    ("transformers", "processor_config.json", "image_processor.size.width", 64),
    ("transformers", "processor_config.json", "image_processor.resample", 2),
    ("transformers", "processor_config.json", "image_processor.do_pad", False),
]
EDITS = [(layout, "config.json", key, value, word) for layout, key, value, word in CONFIG_EDITS]
EDITS += [(layout, file, key, value, "malformed" if value == 3 else key.removeprefix("image_processor.").split(".")[0])
          for layout, file, key, value in PROCESSOR_EDITS]


@pytest.mark.parametrize("layout, file, key, value, word", EDITS, ids=[f"{key}={value}" for _, _, key, value, _ in EDITS])
def test_unsupported_values_are_refused(layout: str, file: str, key: str, value: Any, word: str, model: Model) -> None:
    model.write(layout)
    model.edit(file, key, value)
    model.refused(word, "" if file == "config.json" else file)


def test_preprocessing_defaults_are_those_of_the_classes(model: Model) -> None:
    model.write()
    write_json(model.path / "preprocessor_config.json", {"image_size": 32})
    metadata, _ = model.converted()
    assert metadata["janus.image.background_color"] == [122, 116, 104]
    np.testing.assert_array_equal(metadata["janus.image.mean"], np.float32([0.48145466, 0.4578275, 0.40821073]))
    np.testing.assert_array_equal(metadata["janus.image.std"], np.float32([0.26862954, 0.26130258, 0.27577711]))


@pytest.mark.parametrize("shards, file", [
    *((1, f"{name}.json") for name in ("config", "tokenizer", "preprocessor_config")), (1, "model.safetensors"),
    (3, "model-00002-of-00003.safetensors"),
])
def test_missing_files_are_named(shards: int, file: str, model: Model) -> None:
    model.write(shards=shards)
    (model.path / file).unlink()
    model.refused(file, "missing" if shards > 1 else "")


# ------------------------------------------------------------------------------------------------------ tied embeddings


@pytest.mark.parametrize("layout, tie, head, result", [
    ("transformers", True, "absent", "tied"), ("transformers", None, "absent", "tied"),
    ("transformers", False, "absent", "refused"), ("transformers", True, "same", "tied"),
    ("transformers", False, "same", "own"), ("transformers", True, "other", "own"), ("transformers", None, "other", "own"),
    ("transformers", False, "other", "own"), ("official", True, "absent", "tied"), ("official", None, "absent", "refused"),
    ("official", False, "absent", "refused"), ("official", True, "same", "tied"), ("official", None, "other", "own"),
    ("official", True, "other", "refused"),
])
def test_tied_embeddings(layout: str, tie: bool | None, head: str, result: str, model: Model) -> None:
    """In transformers a stored lm_head that differs wins; without one the config decides, with its class's default."""
    state = model.write(layout)
    names = {"official": ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
             "transformers": ("lm_head.weight", "model.language_model.embed_tokens.weight")}[layout]
    if head == "same":
        state[names[0]] = state[names[1]]
    elif head == "absent":
        del state[names[0]]
    model.save(state)
    model.edit("config.json", "language_config." * (layout == "official") + "tie_word_embeddings", tie)
    if result == "refused":
        return model.refused(names[0])
    _, tensors = model.converted()
    assert ("output.weight" in tensors) == (result == "own")
    if result == "own":
        np.testing.assert_array_equal(tensors["output.weight"][1], state[names[0]])


# -------------------------------------------------------------------------------------------------------------- tensors

SOME = "gen_vision_model.encoder.conv_blocks.0.res.0.conv1.weight"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name, dtype", [(SOME, "F32"), ("vision_model.vision_tower.norm.bias", "F16"),
                                         ("language_model.lm_head.weight", "BF16")])
def test_numbers_that_are_not_finite_are_refused(name: str, dtype: str, value: float, model: Model) -> None:
    state = checkpoints.random_state(MICRO)
    state[name].flat[-1] = value
    model.write(state=state, dtype=dtype)
    model.refused(name, "not finite")


@pytest.mark.parametrize("dtype, value",
                         [("f16", 65520.0), ("f16", 1e30), ("bf16", 3.4e38), ("q8_0", 1e8), ("q4_0", 1e6)])
def test_numbers_too_large_for_a_type_are_refused(dtype: str, value: float, model: Model) -> None:
    state = checkpoints.random_state(MICRO)
    state["language_model.model.layers.0.self_attn.q_proj.weight"][3, 5] = value
    model.write(state=state)
    model.refused("tensor blk.0.attn_q.weight holds a number too large", options=("--dtype", dtype))


def test_the_largest_f16_is_not_too_large(model: Model) -> None:
    state = checkpoints.random_state(MICRO)
    state["language_model.model.layers.0.self_attn.q_proj.weight"][3, 5] = 65519.0
    model.write(state=state)
    assert model.converted("--dtype", "f16")[1]["blk.0.attn_q.weight"][1][3, 5] == 65504


@pytest.mark.parametrize("name", sorted(checkpoints.official_shapes(MICRO))[::7])
def test_a_missing_tensor_is_named(name: str, model: Model) -> None:
    state = model.write()
    del state[name]
    model.save(state)
    model.refused(name, "missing")


def cut(value: np.ndarray) -> np.ndarray:
    return value[..., :-1] if value.shape[-1] > 1 else value[..., 0]


@pytest.mark.parametrize("name, change", [
    *((name, cut) for name in sorted(checkpoints.official_shapes(MICRO))[3::7]),
    ("language_model.model.layers.0.mlp.up_proj.weight", np.transpose), (SOME, lambda value: value.reshape(32, -1)),
])
def test_a_misshapen_tensor_is_named(name: str, change: Callable[[np.ndarray], np.ndarray], model: Model) -> None:
    state = model.write()
    model.save(state | {name: np.ascontiguousarray(change(state[name]))})
    model.refused(name, "shape")


@pytest.mark.parametrize("part", [
    r"vision_model\.vision_tower\.blocks\.1\.", r"gen_vision_model\.encoder\.conv_blocks\.3\.",
    r"gen_vision_model\.decoder\.conv_blocks\.0\.", r"language_model\.model\.layers\.1\.",
])
def test_a_whole_missing_block_is_not_taken_for_a_smaller_model(part: str, model: Model) -> None:
    state = {name: value for name, value in checkpoints.random_state(random_model.TINY).items() if not re.match(part, name)}
    model.write(sizes=random_model.TINY, state=state)
    model.refused("tensor", "missing")


KNOWN_EXTRAS = ["vision_model.vision_tower.attn_pool.latent", "vision_model.vision_tower.attn_pool.mlp.fc1.weight",
                "gen_vision_model.quantize.codebook_used", "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"]


@pytest.mark.parametrize("names, shown", [
    *(([name], name) for name in ("gen_head.extra.weight", "language_model.model.layers.1.mlp.up_proj.weight", "", "model")),
    (["a\n\x1b[31mb"], "a  [31mb"),  # control characters do not reach the terminal
    (KNOWN_EXTRAS, None),
])
def test_tensors_that_nothing_uses_are_left_out(names: list[str], shown: str | None, model: Model) -> None:
    """With a remark, but of those that published checkpoints have."""
    state = model.write()
    expected = model.converted()[1].keys()
    model.save(state | {name: np.full(3, np.nan, np.float32) for name in names})
    assert model.converted()[1].keys() == expected
    message = f"convert.py: remark: tensors that the model does not use are left out: {shown}\n"
    assert model.messages() == ("" if shown is None else message)


@pytest.mark.parametrize("dtype", ["I32", "F8_E4M3", "BOOL"])
def test_a_tensor_of_another_type_is_named(dtype: str, model: Model) -> None:
    model.write()
    path = model.path / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    last = max(header, key=lambda name: header[name].get("data_offsets", [0])[0])
    start, size = header[last]["data_offsets"][0], math.prod(header[last]["shape"]) * (4 if dtype == "I32" else 1)
    header[last] |= {"dtype": dtype, "data_offsets": [start, start + size]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:end + start] + bytes(size))
    model.refused(last, dtype)


# --------------------------------------------------------------------------------------------------------------- shards


def sharded(model: Model) -> tuple[Path, dict[str, str]]:
    """A checkpoint in three shards: its index and the index's map."""
    model.write(shards=3)
    index = model.path / "model.safetensors.index.json"
    return index, json.loads(index.read_text())["weight_map"]


def test_a_tensor_in_two_shards_is_refused(model: Model) -> None:
    _, places = sharded(model)
    name, value = "gen_embed.weight", np.zeros((64, 8), np.float32)
    other = next(file for file in places.values() if file != places[name])
    state = {n: checkpoints.random_state(MICRO)[n] for n, file in places.items() if file == other} | {name: value}
    checkpoints.save_safetensors(model.path / other, state, dict.fromkeys(state, "F32"))
    model.refused(f"{name} is in", other)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\b", "C:x", "a\0b"]
)
def test_an_index_cannot_lead_out_of_the_folder(file: str, model: Model) -> None:
    index, places = sharded(model)
    shutil.copy(model.path / places["gen_embed.weight"], model.base)
    write_json(index, {"weight_map": places | {"gen_embed.weight": file}})
    model.refused(index.name, "is not the name of a file of weights")


def test_an_index_must_name_its_shards(model: Model) -> None:
    index, _ = sharded(model)
    for wrong in ([], {}, {"weight_map": []}, {"weight_map": {"gen_embed.weight": 3}}):
        write_json(index, wrong)
        model.refused()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_a_truncated_shard_is_named(keep: float, model: Model) -> None:
    _, places = sharded(model)
    path = model.path / places["gen_embed.weight"]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else int(keep)])
    model.refused(path.name)


# ------------------------------------------------------------------------------------------------------------ tokenizer

BOS_FIRST = [{"SpecialToken": {"id": "<｜begin▁of▁sentence｜>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
POST_PROCESSORS = [{"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": BOS_FIRST}]
SPLIT = "pre_tokenizer.pretokenizers.0"
TOKENIZER_EDITS: list[tuple[str, Any, str]] = [
    ("normalizer", {"type": "NFC"}, "normalizer"),
    ("decoder", {"type": "WordPiece"}, "decoder"),
    ("decoder", None, "decoder"),
    ("model.type", "WordPiece", "type"),
    ("model.byte_fallback", True, "byte_fallback"),
    ("model.dropout", 0.1, "dropout"),
    ("model.continuing_subword_prefix", "##", "continuing_subword_prefix"),
    ("model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
    ("model.ignore_merges", True, "ignore_merges"),
    ("model.vocab", [], "vocab"),
    ("model.vocab.!", 500, "500"),
    ("model.vocab.!", 1, "shares the id 1"),
    ("model.vocab.!", -1, "-1"),
    ("model.vocab.!", "1", "'1'"),
    ("model.merges.0", "a b c", "malformed"),
    ("model.merges.0", ["a"], "malformed"),
    ("model.merges.0", ["q", "x"], "'qx'"),
    ("model.merges.0", ["", "q"], "malformed"),
    ("model.merges.0", 3, "malformed"),
    ("added_tokens.0.lstrip", True, "lstrip"),
    ("added_tokens.0.rstrip", True, "rstrip"),
    ("added_tokens.0.single_word", True, "single_word"),
    ("added_tokens.0.id", 320, "320"),
    ("added_tokens.0.id", 5, "shares the id 5"),
    ("added_tokens.0.id", 308, "shares the id 308"),
    ("added_tokens.0.content", "!", "has two ids"),
    ("added_tokens.0.content", "other", "<｜begin"),
    ("added_tokens.1.content", "<｜begin▁of▁sentence｜>", "is missing"),
    ("added_tokens", {}, "added_tokens"),
    ("pre_tokenizer", None, "pre_tokenizer"),
    ("pre_tokenizer.type", "Metaspace", "pre_tokenizer"),
    ("pre_tokenizer.pretokenizers", [], "malformed"),
    ("pre_tokenizer.pretokenizers.6.use_regex", True, "use_regex"),
    ("pre_tokenizer.pretokenizers.6.use_regex", ..., "use_regex"),
    ("pre_tokenizer.pretokenizers.6.add_prefix_space", True, "add_prefix_space"),
    ("pre_tokenizer.pretokenizers.6.type", "Whitespace", "type"),
    ("pre_tokenizer.pretokenizers.5", {"type": "Punctuation"}, "Punctuation"),
    ("pre_tokenizer.pretokenizers.5", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}, "ByteLevel"),
    (f"{SPLIT}.behavior", "Removed", "behavior"),
    (f"{SPLIT}.invert", True, "invert"),
    (f"{SPLIT}.pattern", {"String": "a"}, "Regex"),
    (f"{SPLIT}.pattern.Regex", 3, "malformed"),
    (f"{SPLIT}.pattern.Regex", "[a]", "needs a split at"),
]


@pytest.mark.parametrize("path, value, word", TOKENIZER_EDITS, ids=[f"{p}={v}"[:60] for p, v, _ in TOKENIZER_EDITS])
def test_a_tokenizer_not_understood_is_refused(path: str, value: Any, word: str, model: Model) -> None:
    model.write()
    model.edit("tokenizer.json", path, value)
    model.refused("tokenizer.json", word)


@pytest.mark.parametrize("pattern", [
    "", "a", "[^a]", "[a", "[]", "[]a]", "[a-]", "[-a]", "[b-a]", "[a&&b]", "[[:alpha:]]", "[a[b]]", "[a]*", "[a]{2}",
    "[a]|[b]", "(a)", "\\d+", "\\p{L}+", "[\\d]", "[\\w]+", "[a]++", "[a]+?", "^[a]", "[a]$$", "[a]$[b]", ".", "[a\\]",
    "\\s?[a-\\s]", "$", "[a]\n", "[a]+[b]+", "[a][b]", "[a]?", "[a][b]?[c]+$", "[\\s!-/]?", "[!-&&b]", "[\\n-\\t]",
])
def test_regular_expressions_beyond_the_grammar_are_refused(pattern: str) -> None:
    with pytest.raises(convert.Refused):
        convert.compile_split(pattern)


SPACES = [9, 13, 32, 32, 0x85, 0x85, 0xA0, 0xA0, 0x1680, 0x1680, 0x2000, 0x200A, 0x2028, 0x2029, 0x202F, 0x202F, 0x205F, 0x205F,
          0x3000, 0x3000]


@pytest.mark.parametrize("pattern, rule", [
    ("\\s", [0, 0, 10, *SPACES]), ("\\s+", [1, 0, 10, *SPACES]), ("\\s+$", [3, 0, 10, *SPACES]),
    ("[\r\n]", [0, 0, 2, 10, 10, 13, 13]), ("[\\r\\n]", [0, 0, 2, 10, 10, 13, 13]),
    ("\\s?[A-Za-z]+", [1, 10, 2, *SPACES, 65, 90, 97, 122]), ("[a\\-z]", [0, 0, 3, 45, 45, 97, 97, 122, 122]),
    ("[b]?[c]+$", [3, 1, 1, 98, 98, 99, 99]), ("[\\t-\\n]", [0, 0, 1, 9, 10]), ("[a^]", [0, 0, 2, 94, 94, 97, 97]),
    ("[\\s!-/]?[b]", [0, 10, 1, 9, 13, 32, 47, *SPACES[4:], 98, 98]), ("[cab-dz]", [0, 0, 2, 97, 100, 122, 122]),
    ("[\\]\\[\\^\\\\]+", [1, 0, 1, 91, 94]), ("[&a]", [0, 0, 2, 38, 38, 97, 97]),
    ("[+?$.*]", [0, 0, 4, 36, 36, 42, 43, 46, 46, 63, 63]), ("[一-龥ࠀ-一가-퟿]+", [1, 0, 2, 0x800, 0x9FA5, 0xAC00, 0xD7FF]),
    ("[" + "".join(chr(0x400 + 2 * i) for i in range(1025)) + "]",
     [0, 0, 1025, *(0x400 + 2 * (i // 2) for i in range(2050))]),
])
def test_regular_expressions_of_the_grammar_become_rules(pattern: str, rule: list[int]) -> None:
    """Flags, numbers of ranges, ranges: sorted, and joined where they overlap or touch."""
    assert convert.compile_split(pattern) == rule


def test_other_tokenizers_of_the_family_are_accepted(model: Model) -> None:
    """Digits in runs, merges as text, harmless options, tokens that are no special ones, no merges at all."""
    model.write()
    model.edit("tokenizer.json", "pre_tokenizer.pretokenizers.5.individual_digits", False)
    model.edit("tokenizer.json", "post_processor", {"type": "Sequence", "processors": POST_PROCESSORS})
    nested = {"type": "Sequence", "pretokenizers": [random_model.synthetic_tokenizer(320)["pre_tokenizer"]["pretokenizers"][4]]}
    model.edit("tokenizer.json", "pre_tokenizer.pretokenizers.4", nested)
    model.edit("tokenizer.json", "normalizer", {"type": "Sequence", "normalizers": []})
    model.edit("tokenizer.json", "added_tokens.6", {"id": 313, "content": "中", "normalized": True, "special": False})
    for option, value in (("dropout", None), ("unk_token", None), ("fuse_unk", False), ("byte_fallback", False)):
        model.edit("tokenizer.json", f"model.{option}", value)
    model.edit("tokenizer.json", "model.merges.0", "Ġ Ġ")
    metadata, _ = model.converted()
    rules = metadata["janus.tokenizer.split_rules"]
    digits = convert.split_rule([], convert.code_ranges(convert.DIGITS), repeated=True)
    assert digits[0] == 1 and rules[-len(digits):] == digits
    assert metadata["tokenizer.ggml.tokens"][313] == "中" and metadata["tokenizer.ggml.token_type"][313] == 4
    model.edit("tokenizer.json", "model.merges", [])
    assert "janus.tokenizer.merges" not in model.converted()[0]
    model.edit("tokenizer.json", "pre_tokenizer", random_model.synthetic_tokenizer(320)["decoder"])
    assert "janus.tokenizer.split_rules" not in model.converted()[0]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"3", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100000,
                                  b'{"model": {"vocab": {"\\ud800": 1}}}'])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_files_that_are_no_json_objects_are_named(file: str, text: bytes, model: Model) -> None:
    model.write()
    (model.path / file).write_bytes(text)
    model.refused(file)


# -------------------------------------------------------------------------------------------------------- random models


@pytest.mark.parametrize("geometry", [name for name in random_model.GEOMETRIES if name.startswith("tiny")])
def test_random_models_have_the_scale_of_a_new_official_one(geometry: str, tmp_path: Path) -> None:
    out = tmp_path / "r.gguf"
    assert random_model.main([geometry, "-o", str(out), "--dtype", "f32"]) == 0
    metadata, tensors = read(out)
    assert metadata["janus.vocab_size"] == len(metadata["tokenizer.ggml.tokens"])
    assert "output.weight" in tensors or geometry == "tiny-tied"
    large = {name: values for name, (_, values) in tensors.items() if values.size >= 4096}
    for name, values in large.items():
        fan_in = np.prod(values.shape[1:])
        normal = name.startswith(("blk.", "token_embd", "output.")) or name == "vit.pos_embed"
        expected = 0.02 if normal else (3 * fan_in) ** -0.5
        assert abs(values.std() / expected - 1) < 0.06 and abs(values.mean()) < 0.06 * expected, name
    assert abs(tensors["gen_embed.weight"][1].std() - 1) < 0.1
    np.testing.assert_allclose(np.linalg.norm(tensors["vq.codebook.weight"][1], axis=1), 1, rtol=1e-6)
    assert (tensors["vq.enc.norm_out.weight"][1] == 1).all() and (tensors["vit.norm.bias"][1] == 0).all()


def test_random_models_depend_on_their_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, seed: int) -> bytes:
        assert random_model.main(["tiny", "-o", str(tmp_path / name), "--seed", str(seed)]) == 0
        return (tmp_path / name).read_bytes()

    first = make("a", 1)
    monkeypatch.setattr(convert, "CHUNK_ELEMENTS", 4096)
    assert make("b", 1) == first != make("c", 2)


def test_published_geometries_have_the_published_numbers_of_parameters() -> None:
    count = {name: sum(t.size for t in convert.tensor_table(sizes)) for name, sizes in random_model.GEOMETRIES.items()}
    assert abs(count["janus-pro-1b"] / 2.079e9 - 1) < 0.01 and abs(count["janus-pro-7b"] / 7.4e9 - 1) < 0.01
    vq = sum(t.size for t in convert.tensor_table(convert.Sizes()) if t.name.startswith("vq."))
    assert round(vq / 1e6, 1) == 71.9
    transformer = sum(t.size for t in convert.tensor_table(convert.Sizes()) if t.name.startswith("blk."))
    assert round(transformer / 1e9, 2) == 1.23


def test_synthetic_tokenizers_cover_their_vocabulary() -> None:
    for size in (320, 1000, 102400):
        metadata = convert.tokenizer_metadata(random_model.synthetic_tokenizer(size), size)
        kinds = metadata["tokenizer.ggml.token_type"][1]
        assert len(kinds) == size and kinds.count(3) == 8 and kinds.count(5) == size // 64


# --------------------------------------------------------------------------------------------------------- command line


def test_a_standard_reader_lists_the_file(model: Model) -> None:
    model.write()
    model.converted("--dtype", "q4_0")
    command = [sys.executable, "-m", "gguf.scripts.gguf_dump", model.out]
    listing = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout
    assert all(words in listing for words in ("general.architecture = 'janus'", "token_embd.weight", "| Q4_0"))


@pytest.mark.parametrize("script, arguments", [
    *((SCRIPT, words) for words in ([], ["x"], ["-o", "y"], ["x", "-o", "y", "--dtype", "q5_0"], ["x", "z", "-o", "y"],
                                ["x", "-o", "y", "--roles", "base"])),
    *((RANDOM, words) for words in (["-o", "y"], ["tiny"], ["huge", "-o", "y"], ["tiny", "-o", "y", "--seed", "-1"])),
])
def test_wrong_usage_exits_with_2(script: Path, arguments: list[str], tmp_path: Path) -> None:
    result = run(*arguments, script=script, cwd=tmp_path)
    assert result.returncode == 2 and "usage:" in result.stderr and not list(tmp_path.iterdir())


def test_quiet_on_success_and_one_line_on_failure(model: Model) -> None:
    model.write()
    result = run(model.path, "-o", model.out, "--dtype", "Q8_0")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert {path.name for path in model.base.iterdir()} == {"model", "out.gguf"}
    result = run(model.base / "nowhere", "-o", model.out)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "nowhere" in result.stderr


def test_a_terminal_shows_progress(model: Model) -> None:
    model.write(sizes=random_model.TINY)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with subprocess.Popen([sys.executable, SCRIPT, model.path, "-o", model.out], stderr=slave) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(master, 4096):
                shown += piece
    os.close(master)
    assert process.returncode == 0 and b"100%" in shown and b"weights" in shown


@pytest.mark.parametrize("target", ["missing/o.gguf", "."])
def test_outputs_that_cannot_be_written_are_refused(target: str, tmp_path: Path, model: Model) -> None:
    model.write()
    assert run(model.path, "-o", tmp_path / target).returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert run(model.path, "-o", "/dev/full").returncode == 1 and Path("/dev/full").is_char_device()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_killed_in_the_middle_nothing_half_written_has_the_final_name(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    out.write_bytes(b"the file before")
    not_ignored = None if number == signal.SIGKILL else lambda: signal.signal(number, signal.SIG_DFL)
    command = [sys.executable, RANDOM, "janus-pro-1b", "-o", out]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=not_ignored)
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 1 << 24 for p in tmp_path.glob(".*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    assert process.stderr is not None and process.stderr.read() == b""
    process.stderr.close()
    assert out.read_bytes() == b"the file before"
    assert len(list(tmp_path.iterdir())) == (2 if number == signal.SIGKILL else 1)


# ---------------------------------------------------------------------------------------------------- damaged at random


@pytest.fixture
def originals(model: Model) -> dict[str, Model]:
    """A checkpoint of each layout, made once for all examples of a test."""
    found = {layout: model.beside(layout) for layout in ("official", "transformers")}
    for layout, original in found.items():
        original.write(layout, shards=2)
        original.edit("tokenizer.json", "post_processor", {"type": "Sequence", "processors": POST_PROCESSORS})
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        decoder = {"313": flags | {"content": "<|User|>", "special": True}}
        settings = {"add_bos_token": True, "bos_token": convert.BOS, "added_tokens_decoder": decoder}
        write_json(original.path / "tokenizer_config.json", settings)
    return found


def leaves(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values inside a JSON document; of long lists and objects only the first few."""
    found = [path] if path else []
    listed = enumerate(document) if isinstance(document, list) else ()
    items = document.items() if isinstance(document, dict) else listed
    for key, value in list(items)[:40]:
        found += leaves(value, (*path, key))
    return found


JSON_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
    st.sampled_from([[], {}, [[]], "", 0, -1, 1, 2, 3]), st.lists(st.integers(-3, 300), max_size=4),
    st.dictionaries(st.sampled_from(["type", "id", "content", "params"]), st.integers(), max_size=2),
)
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(data=st.data())
def test_any_json_value_anywhere_is_converted_or_refused(data: st.DataObject, originals: dict[str, Model], model: Model) -> None:
    source = originals[data.draw(st.sampled_from(sorted(originals)))].path
    shutil.copytree(source, model.path, dirs_exist_ok=True)
    file = data.draw(st.sampled_from([p.name for p in sorted(source.glob("*.json"))]))
    document = json.loads((source / file).read_text())
    *keys, last = data.draw(st.sampled_from(leaves(document)))
    inner = document
    for key in keys:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[last] = data.draw(JSON_VALUES)
    elif data.draw(st.booleans()):
        del inner[last]
    elif isinstance(inner, dict):
        inner[data.draw(st.text(max_size=4))] = copy.deepcopy(inner[last])
    else:
        inner.insert(last, copy.deepcopy(inner[last]))
    write_json(model.path / file, document)
    model.survives()


@SLOW
@given(data=st.data())
def test_any_damaged_bytes_are_converted_or_refused(data: st.DataObject, originals: dict[str, Model], model: Model) -> None:
    source = originals[data.draw(st.sampled_from(sorted(originals)))].path
    shutil.copytree(source, model.path, dirs_exist_ok=True)
    file = data.draw(st.sampled_from([p.name for p in sorted(source.iterdir())]))
    content = bytearray((source / file).read_bytes())
    reach = data.draw(st.sampled_from([64, 4096, len(content)]))  # headers are where damage is most telling
    position = data.draw(st.integers(0, min(reach, len(content)) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "zero"]))
    if kind == "flip":
        content[position] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[position:]
    elif kind == "insert":
        content[position:position] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        length = min(data.draw(st.integers(1, 40)), len(content) - position)
        content[position:position + length] = b"" if kind == "remove" else bytes(length)
    (model.path / file).write_bytes(content)
    if model.survives() is None and kind in ("cut", "insert", "remove"):
        assert file.endswith(".json")  # a shard of another length is never taken


def test_an_undamaged_checkpoint_survives(originals: dict[str, Model]) -> None:
    assert all(original.survives() is None for original in originals.values())
