# SPDX-License-Identifier: MIT
"""Tests of convert.py that need no torch: layouts, number formats, defaults, refusals, damage, interruption."""

from __future__ import annotations

import copy
import fcntl
import itertools
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
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
from checkpoints import write_checkpoint, write_json

SCRIPT, RANDOM = Path(convert.__file__), Path(random_model.__file__)
# The smallest model that has every kind of tensor: two VQ levels, a grouped-query transformer, its own output matrix.
MICRO = replace(
    random_model.TINY,
    layers=1,
    vit_layers=1,
    kv_heads=2,
    vq_multipliers=(1, 2),
    codebook_size=64,
    vq_z=8,
    feed_forward=96,
    vocabulary=320,
)
GEOMETRIES = {name: sizes for name, sizes in random_model.GEOMETRIES.items() if name.startswith("tiny")} | {"micro": MICRO}


def run(*arguments: Any, script: Path = SCRIPT, **options: Any) -> subprocess.CompletedProcess[str]:
    """convert.py, or another script, as a user runs it."""
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options
    )


def read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, np.ndarray]]]:
    """Metadata, and name -> (type, values in the shape of the file) of a GGUF file, by the gguf package's reader."""
    reader = GGUFReader(path)
    metadata = {name: entry.contents() for name, entry in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {
        t.name: (t.tensor_type.name, quants.dequantize(t.data, t.tensor_type).reshape([int(n) for n in t.shape][::-1]))
        for t in reader.tensors
    }
    assert all(t.data_offset % 64 == 0 for t in reader.tensors)
    return metadata, tensors


def converted(folder: Path, *options: str) -> tuple[dict[str, Any], dict[str, tuple[str, np.ndarray]]]:
    """Convert a folder, in this process, and read the result."""
    out = folder.parent / "out.gguf"
    assert convert.main([str(folder), "-o", str(out), *options]) == 0
    return read(out)


def assert_refused(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """The folder is refused in one line that holds the words, and nothing is left behind."""
    out = folder.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    assert convert.main([str(folder), "-o", str(out / "model.gguf")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("convert.py: ")
    assert all(word in message for word in words), message
    assert list(out.iterdir()) == []


# ----------------------------------------------------------------------------------------------- layouts and contents


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_both_layouts_whole_and_sharded_give_the_same_file(geometry: str, dtype: str, tmp_path: Path) -> None:
    files = set()
    for layout in ("official", "transformers"):
        if layout == "transformers" and GEOMETRIES[geometry].gen_head_width != GEOMETRIES[geometry].hidden:
            continue  # transformers has one key for both widths
        for shards in (1, 4):
            folder = tmp_path / f"{layout}{shards}" / "model"
            write_checkpoint(folder, GEOMETRIES[geometry], layout, shards=shards, dtype=dtype)
            converted(folder)
            files.add((folder.parent / "out.gguf").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_number_arrives_where_it_belongs(geometry: str, tmp_path: Path) -> None:
    state = write_checkpoint(tmp_path / "model", GEOMETRIES[geometry])
    _, tensors = converted(tmp_path / "model")

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
        old, hf = (
            prefix + part.strip() if part.startswith("  ") else part.strip()
            for prefix, part in zip(prefixes, (old, hf))
        )
        names, olds, hfs = alternatives(name), alternatives(old), alternatives(hf)
        each = len(hfs) // len(names)
        result += [
            (n, o, tuple(hfs[i * each : (i + 1) * each])) for i, (n, o) in enumerate(zip(names, olds, strict=True))
        ]
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


@pytest.mark.parametrize("layout", ["official", "transformers"])
def test_metadata(layout: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "some model", MICRO, layout)
    metadata, _ = converted(tmp_path / "some model")
    assert metadata.pop("general.name") == "some model"
    tokens, kinds = metadata.pop("tokenizer.ggml.tokens"), metadata.pop("tokenizer.ggml.token_type")
    merges, rules = metadata.pop("janus.tokenizer.merges"), metadata.pop("janus.tokenizer.split_rules")
    assert metadata.pop("janus.prompt.system").startswith(
        "You are a helpful language and vision assistant. You are able"
    )
    assert metadata.pop("janus.prompt.user_role") == "<|User|>"
    assert metadata.pop("janus.prompt.assistant_role") == "<|Assistant|>"
    for key, value in {
        "layer_norm_rms_epsilon": 1e-6,
        "vision.attention.layer_norm_epsilon": 1e-6,
        "vq.group_norm_epsilon": 1e-6,
    }.items():
        key = f"janus.attention.{key}" if key.startswith("layer") else f"janus.{key}"
        assert metadata.pop(key) == np.float32(value)
    assert metadata == {
        "general.architecture": "janus",
        "general.alignment": 64,
        "general.file_type": 0,
        "janus.format_version": 2,
        "janus.embedding_length": 64,
        "janus.block_count": 1,
        "janus.feed_forward_length": 96,
        "janus.context_length": 512,
        "janus.vocab_size": 320,
        "janus.attention.head_count": 4,
        "janus.attention.head_count_kv": 2,
        "janus.attention.key_length": 16,
        "janus.rope.freq_base": 10000.0,
        "janus.vision.image_size": 32,
        "janus.vision.patch_size": 8,
        "janus.vision.embedding_length": 64,
        "janus.vision.block_count": 1,
        "janus.vision.feed_forward_length": 128,
        "janus.vision.attention.head_count": 2,
        "janus.aligner.depth": 2,
        "janus.gen_aligner.depth": 2,
        "janus.gen_head.embedding_length": 64,
        "janus.vq.codebook_size": 64,
        "janus.vq.codebook_dim": 8,
        "janus.vq.base_channels": 32,
        "janus.vq.channel_multipliers": [1, 2],
        "janus.vq.res_blocks": 1,
        "janus.vq.z_channels": 8,
        "janus.vq.group_count": 32,
        "janus.vq.grid_size": 4,
        "janus.image.min_size": 14,
        "janus.image.mean": [0.5] * 3,
        "janus.image.std": [0.5] * 3,
        "janus.image.rescale_factor": 1 / 255,
        "janus.image.background_color": [127] * 3,
        "janus.image.do_normalize": True,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-llm",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": 307,
        "tokenizer.ggml.eos_token_id": 308,
        "tokenizer.ggml.padding_token_id": 309,
        "janus.tokenizer.image_placeholder_id": 310,
        "janus.tokenizer.begin_of_image_id": 311,
        "janus.tokenizer.end_of_image_id": 312,
    }
    assert len(tokens) == len(kinds) == 320 and len(merges) == 3 * (320 - 256 - 8 - 5)
    assert tokens[307] == "<｜begin▁of▁sentence｜>" and kinds[306:309] == [1, 3, 3]
    assert tokens[315] == "[PAD315]" and kinds[315] == 5
    assert tokens[merges[0]] + tokens[merges[1]] == tokens[merges[2]]
    assert rules[:10] == [0, 0, 2, 10, 10, 13, 13, 1, 10, 84] and rules[-2:] == [0x1FBF0, 0x1FBF9]


# ------------------------------------------------------------------------------------------------------- number formats


@given(
    high=st.integers(0, 0xFFFF), low=st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]) | st.integers(0, 0xFFFF)
)
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
def test_types_and_errors_of_each_dtype(dtype: str, tmp_path: Path) -> None:
    sizes = replace(GEOMETRIES["tiny-odd"], hidden=256 if dtype.endswith("k") else 64, feed_forward=112)
    write_checkpoint(tmp_path / "model", sizes)
    _, exact = converted(tmp_path / "model")
    metadata, tensors = converted(tmp_path / "model", "--dtype", dtype)
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
    assert (
        kinds
        == {
            "f16": {"F32", "F16"},
            "bf16": {"F32", "BF16"},
        }.get(dtype, {"F32", "F16", "Q8_0", dtype.upper()})
    )
    assert tensors["blk.0.ffn_down.weight"][0] == ("F16" if dtype.startswith("q") else dtype.upper())


def test_16_bit_weights_survive_unchanged_and_each_tensor_keeps_its_type(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    state = write_checkpoint(folder, MICRO, dtype="BF16")
    dtypes = {name: "F16" if name.startswith("gen_head") else "BF16" for name in state}
    checkpoints.save_safetensors(folder / "model.safetensors", state, dtypes)
    metadata, tensors = converted(folder)
    assert metadata["general.file_type"] == 32
    assert tensors["gen_head.out.weight"][0] == "F16" and tensors["output.weight"][0] == "BF16"
    cut = checkpoints.encode_values(state["language_model.lm_head.weight"], "BF16").astype(np.uint32) << 16
    np.testing.assert_array_equal(tensors["output.weight"][1], cut.view(np.float32))


def test_attention_parts_of_two_types_are_joined_exactly(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    state = write_checkpoint(folder, MICRO, "transformers")
    dtypes = {name: "F16" if "vision_model" in name and "q_proj" in name else "BF16" for name in state}
    checkpoints.save_safetensors(folder / "model.safetensors", state, dtypes)
    kind, joined = converted(folder)[1]["vit.blk.0.qkv.weight"]
    parts = [state[f"model.vision_model.encoder.layers.0.self_attn.{p}_proj.weight"] for p in "qkv"]
    cut = [(part.view(np.uint32) & 0xFFFF0000).view(np.float32) for part in parts]
    assert kind == "F32"
    np.testing.assert_array_equal(joined, np.concatenate([parts[0].astype(np.float16).astype(np.float32), *cut[1:]]))


def test_rows_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "model", MICRO, shards=2)
    converted(tmp_path / "model", "--dtype", "q8_0")
    whole = (tmp_path / "out.gguf").read_bytes()
    monkeypatch.setattr(convert, "CHUNK_ELEMENTS", 1000)
    converted(tmp_path / "model", "--dtype", "q8_0")
    assert (tmp_path / "out.gguf").read_bytes() == whole


# ------------------------------------------------------------------------------------------ configuration, its defaults


def test_absent_keys_take_the_defaults_of_their_classes() -> None:
    sizes = convert.read_transformers_config(
        convert.Config({"model_type": "janus", "text_config": {"hidden_size": 2048}}, "c")
    )
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


def edit(folder: Path, file: str, path: str, value: Any) -> None:
    """Set one value of a JSON file; `path` has dots between keys, and an Ellipsis as value removes the key."""
    document = json.loads((folder / file).read_text())
    *keys, last = path.split(".")
    inner = document
    for key in keys:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if value is ...:
        del inner[last]
    elif isinstance(inner, list):
        inner[int(last)] = value
    else:
        inner[last] = value
    write_json(folder / file, document)


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


@pytest.mark.parametrize("layout, path, value, word", CONFIG_EDITS, ids=[f"{p}={v}" for _, p, v, _ in CONFIG_EDITS])
def test_unsupported_config_values_are_refused(
    layout: str, path: str, value: Any, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "model", MICRO, layout)
    edit(tmp_path / "model", "config.json", path, value)
    assert_refused(tmp_path / "model", capsys, "c", word)


PROCESSOR_EDITS = [
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


@pytest.mark.parametrize(
    "layout, file, path, value", PROCESSOR_EDITS, ids=[f"{p}={v}" for _, _, p, v in PROCESSOR_EDITS]
)
def test_unsupported_preprocessing_is_refused(
    layout: str, file: str, path: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "model", MICRO, layout)
    edit(tmp_path / "model", file, path, value)
    word = path.split(".")[1] if "." in path else path
    assert_refused(tmp_path / "model", capsys, file, "malformed" if value == 3 else word)


def test_preprocessing_defaults_are_those_of_the_classes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    write_json(tmp_path / "model" / "preprocessor_config.json", {"image_size": 32})
    metadata, _ = converted(tmp_path / "model")
    assert metadata["janus.image.background_color"] == [122, 116, 104]
    np.testing.assert_array_equal(metadata["janus.image.mean"], np.float32([0.48145466, 0.4578275, 0.40821073]))
    np.testing.assert_array_equal(metadata["janus.image.std"], np.float32([0.26862954, 0.26130258, 0.27577711]))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_files_are_named(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    (tmp_path / "model" / file).unlink()
    assert_refused(tmp_path / "model", capsys, file)


# ------------------------------------------------------------------------------------------------------ tied embeddings


@pytest.mark.parametrize("layout, tie, head, result", [
    ("transformers", True, "absent", "tied"), ("transformers", None, "absent", "tied"),
    ("transformers", False, "absent", "refused"), ("transformers", True, "same", "tied"),
    ("transformers", False, "same", "own"), ("transformers", True, "other", "own"), ("transformers", None, "other", "own"),
    ("transformers", False, "other", "own"), ("official", True, "absent", "tied"), ("official", None, "absent", "refused"),
    ("official", False, "absent", "refused"), ("official", True, "same", "tied"), ("official", None, "other", "own"),
    ("official", True, "other", "refused"),
])
def test_tied_embeddings(
    layout: str, tie: bool | None, head: str, result: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In transformers a stored lm_head that differs wins; without one the config decides, with its class's default."""
    folder = tmp_path / "model"
    state = write_checkpoint(folder, MICRO, layout)
    names = {
        "official": ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
        "transformers": ("lm_head.weight", "model.language_model.embed_tokens.weight"),
    }[layout]
    if head == "same":
        state[names[0]] = state[names[1]]
    elif head == "absent":
        del state[names[0]]
    checkpoints.save_weights(folder, state, "safetensors", 1, dict.fromkeys(state, "F32"))
    edit(
        folder,
        "config.json",
        "tie_word_embeddings" if layout == "transformers" else "language_config.tie_word_embeddings",
        tie,
    )
    if result == "refused":
        return assert_refused(folder, capsys, names[0])
    _, tensors = converted(folder)
    assert ("output.weight" in tensors) == (result == "own")
    if result == "own":
        np.testing.assert_array_equal(tensors["output.weight"][1], state[names[0]])


# -------------------------------------------------------------------------------------------------------------- tensors

SOME = "gen_vision_model.encoder.conv_blocks.0.res.0.conv1.weight"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name, dtype",
    [(SOME, "F32"), ("vision_model.vision_tower.norm.bias", "F16"), ("language_model.lm_head.weight", "BF16")],
)
def test_numbers_that_are_not_finite_are_refused(
    name: str, dtype: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoints.random_state(MICRO)
    state[name].flat[-1] = value
    write_checkpoint(tmp_path / "model", MICRO, state=state, dtype=dtype)
    assert_refused(tmp_path / "model", capsys, name, "not finite")


@pytest.mark.parametrize(
    "dtype, value", [("f16", 65520.0), ("f16", 1e30), ("bf16", 3.4e38), ("q8_0", 1e8), ("q4_0", 1e6)]
)
def test_numbers_too_large_for_a_type_are_refused(
    dtype: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoints.random_state(MICRO)
    state["language_model.model.layers.0.self_attn.q_proj.weight"][3, 5] = value
    write_checkpoint(tmp_path / "model", MICRO, state=state)
    assert convert.main([str(tmp_path / "model"), "-o", str(tmp_path / "o.gguf"), "--dtype", dtype]) == 1
    assert "tensor blk.0.attn_q.weight holds a number too large" in capsys.readouterr().err
    assert not (tmp_path / "o.gguf").exists()


def test_the_largest_f16_is_not_too_large(tmp_path: Path) -> None:
    state = checkpoints.random_state(MICRO)
    state["language_model.model.layers.0.self_attn.q_proj.weight"][3, 5] = 65519.0
    write_checkpoint(tmp_path / "model", MICRO, state=state)
    assert converted(tmp_path / "model", "--dtype", "f16")[1]["blk.0.attn_q.weight"][1][3, 5] == 65504


def change_state(change: Callable[[checkpoints.State], None], folder: Path, shards: int = 1) -> None:
    state = write_checkpoint(folder, MICRO)
    (folder / "model.safetensors").unlink()
    change(state)
    checkpoints.save_weights(folder, state, "safetensors", shards, dict.fromkeys(state, "F32"))


@pytest.mark.parametrize("name", sorted(checkpoints.official_shapes(MICRO))[::7])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_state(lambda state: state.pop(name), tmp_path / "model")
    assert_refused(tmp_path / "model", capsys, name, "missing")


def cut(value: np.ndarray) -> np.ndarray:
    return value[..., :-1] if value.shape[-1] > 1 else value[..., 0]


@pytest.mark.parametrize("name, change", [
    *((name, cut) for name in sorted(checkpoints.official_shapes(MICRO))[3::7]),
    ("language_model.model.layers.0.mlp.up_proj.weight", np.transpose), (SOME, lambda value: value.reshape(32, -1)),
])
def test_a_misshapen_tensor_is_named(
    name: str, change: Callable[[np.ndarray], np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_state(lambda state: state.update({name: np.ascontiguousarray(change(state[name]))}), tmp_path / "model")
    assert_refused(tmp_path / "model", capsys, name, "shape")


@pytest.mark.parametrize("part", [
    r"vision_model\.vision_tower\.blocks\.1\.", r"gen_vision_model\.encoder\.conv_blocks\.3\.",
    r"gen_vision_model\.decoder\.conv_blocks\.0\.", r"language_model\.model\.layers\.1\.",
])
def test_a_whole_missing_block_is_not_taken_for_a_smaller_model(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {name: value for name, value in checkpoints.random_state(random_model.TINY).items() if not re.match(part, name)}
    write_checkpoint(tmp_path / "model", random_model.TINY, state=state)
    assert_refused(tmp_path / "model", capsys, "tensor", "missing")


@pytest.mark.parametrize(
    "name", ["gen_head.extra.weight", "language_model.model.layers.1.mlp.up_proj.weight", "", "model", "a\n\x1b[31mb"]
)
def test_a_tensor_that_nothing_uses_is_remarked_on_and_left_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    expected = converted(tmp_path / "model")[1].keys()
    change_state(lambda state: state.__setitem__(name, np.zeros(3, np.float32)), tmp_path / "model")
    assert converted(tmp_path / "model")[1].keys() == expected
    shown = name.replace("\n\x1b", "  ")  # control characters do not reach the terminal
    message = f"convert.py: remark: tensors that the model does not use are left out: {shown}\n"
    assert capsys.readouterr().err == message


def test_known_extras_are_ignored(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    expected = converted(tmp_path / "model")[1].keys()
    extras = (
        "vision_model.vision_tower.attn_pool.latent",
        "vision_model.vision_tower.attn_pool.mlp.fc1.weight",
        "gen_vision_model.quantize.codebook_used",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    )
    change_state(
        lambda state: state.update({name: np.full(3, np.nan, np.float32) for name in extras}), tmp_path / "model"
    )
    assert converted(tmp_path / "model")[1].keys() == expected


@pytest.mark.parametrize("dtype", ["I32", "F8_E4M3", "BOOL"])
def test_a_tensor_of_another_type_is_named(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    path = tmp_path / "model" / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    size = {"I32": 4, "F8_E4M3": 1, "BOOL": 1}[dtype]
    last = max(header, key=lambda name: header[name].get("data_offsets", [0])[0])
    start = header[last]["data_offsets"][0]
    count = int(np.prod(header[last]["shape"]))
    header[last] = {"dtype": dtype, "shape": header[last]["shape"], "data_offsets": [start, start + count * size]}
    text = json.dumps(header).encode()
    path.write_bytes(
        len(text).to_bytes(8, "little") + text + data[8 + length : 8 + length + start] + bytes(count * size)
    )
    assert_refused(tmp_path / "model", capsys, last, dtype)


# --------------------------------------------------------------------------------------------------------------- shards


def sharded(folder: Path) -> tuple[Path, dict[str, str]]:
    """A checkpoint in three shards: its index and the index's map."""
    write_checkpoint(folder, MICRO, shards=3)
    index = folder / "model.safetensors.index.json"
    return index, json.loads(index.read_text())["weight_map"]


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, places = sharded(tmp_path / "model")
    name, value = "gen_embed.weight", np.zeros((64, 8), np.float32)
    other = next(file for file in places.values() if file != places[name])
    state = {n: checkpoints.random_state(MICRO)[n] for n, file in places.items() if file == other} | {name: value}
    checkpoints.save_safetensors(tmp_path / "model" / other, state, dict.fromkeys(state, "F32"))
    assert_refused(tmp_path / "model", capsys, f"{name} is in", other)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\b", "C:x", "a\0b"]
)
def test_an_index_cannot_lead_out_of_the_folder(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, places = sharded(tmp_path / "model")
    shutil.copy(tmp_path / "model" / places["gen_embed.weight"], tmp_path / "model.safetensors")
    write_json(index, {"weight_map": places | {"gen_embed.weight": file}})
    assert_refused(tmp_path / "model", capsys, index.name, "is not the name of a file of weights")


def test_an_index_must_name_its_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, _ = sharded(tmp_path / "model")
    for wrong in ([], {}, {"weight_map": []}, {"weight_map": {"gen_embed.weight": 3}}):
        write_json(index, wrong)
        assert_refused(tmp_path / "model", capsys)


def test_a_missing_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, places = sharded(tmp_path / "model")
    (tmp_path / "model" / places["gen_embed.weight"]).unlink()
    assert_refused(tmp_path / "model", capsys, places["gen_embed.weight"], "missing")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_a_truncated_shard_is_named(keep: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, places = sharded(tmp_path / "model")
    path = tmp_path / "model" / places["gen_embed.weight"]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else int(keep)])
    assert_refused(tmp_path / "model", capsys, path.name)


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
    (
        "pre_tokenizer.pretokenizers.5",
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        "ByteLevel",
    ),
    (f"{SPLIT}.behavior", "Removed", "behavior"),
    (f"{SPLIT}.invert", True, "invert"),
    (f"{SPLIT}.pattern", {"String": "a"}, "Regex"),
    (f"{SPLIT}.pattern.Regex", 3, "malformed"),
    (f"{SPLIT}.pattern.Regex", "[a]", "needs a split at"),
]


@pytest.mark.parametrize("path, value, word", TOKENIZER_EDITS, ids=[f"{p}={v}"[:60] for p, v, _ in TOKENIZER_EDITS])
def test_a_tokenizer_not_understood_is_refused(
    path: str, value: Any, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    edit(tmp_path / "model", "tokenizer.json", path, value)
    assert_refused(tmp_path / "model", capsys, "tokenizer.json", word)


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


def test_other_tokenizers_of_the_family_are_accepted(tmp_path: Path) -> None:
    """Digits in runs, merges as text, harmless options, tokens that are no special ones, no merges at all."""
    folder = tmp_path / "model"
    write_checkpoint(folder, MICRO)
    edit(folder, "tokenizer.json", "pre_tokenizer.pretokenizers.5.individual_digits", False)
    edit(folder, "tokenizer.json", "post_processor", {"type": "Sequence", "processors": POST_PROCESSORS})
    nested = {"type": "Sequence", "pretokenizers": [random_model.synthetic_tokenizer(320)["pre_tokenizer"]["pretokenizers"][4]]}
    edit(folder, "tokenizer.json", "pre_tokenizer.pretokenizers.4", nested)
    edit(folder, "tokenizer.json", "normalizer", {"type": "Sequence", "normalizers": []})
    edit(folder, "tokenizer.json", "added_tokens.6", {"id": 313, "content": "中", "normalized": True, "special": False})
    for option, value in (("dropout", None), ("unk_token", None), ("fuse_unk", False), ("byte_fallback", False)):
        edit(folder, "tokenizer.json", f"model.{option}", value)
    edit(folder, "tokenizer.json", "model.merges.0", "Ġ Ġ")
    metadata, _ = converted(folder)
    rules = metadata["janus.tokenizer.split_rules"]
    digits = convert.split_rule([], convert.code_ranges(convert.DIGITS), repeated=True)
    assert digits[0] == 1 and rules[-len(digits):] == digits
    assert metadata["tokenizer.ggml.tokens"][313] == "中" and metadata["tokenizer.ggml.token_type"][313] == 4
    edit(folder, "tokenizer.json", "model.merges", [])
    assert "janus.tokenizer.merges" not in converted(folder)[0]
    edit(folder, "tokenizer.json", "pre_tokenizer", random_model.synthetic_tokenizer(320)["decoder"])
    assert "janus.tokenizer.split_rules" not in converted(folder)[0]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"3", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100000,
                                  b'{"model": {"vocab": {"\\ud800": 1}}}'])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_files_that_are_no_json_objects_are_named(
    file: str, text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    (tmp_path / "model" / file).write_bytes(text)
    assert_refused(tmp_path / "model", capsys, file)


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
        expected = (
            0.02
            if name.startswith(("blk.", "token_embd", "output.")) or name == "vit.pos_embed"
            else (3 * fan_in) ** -0.5
        )
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


def test_a_standard_reader_lists_the_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    converted(tmp_path / "model", "--dtype", "q4_0")
    dump = subprocess.run(
        [sys.executable, "-m", "gguf.scripts.gguf_dump", tmp_path / "out.gguf"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert dump.returncode == 0
    assert (
        "general.architecture = 'janus'" in dump.stdout
        and "token_embd.weight" in dump.stdout
        and "| Q4_0" in dump.stdout
    )


@pytest.mark.parametrize("script, arguments", [
    *((SCRIPT, words) for words in ([], ["x"], ["-o", "y"], ["x", "-o", "y", "--dtype", "q5_0"], ["x", "z", "-o", "y"],
                                ["x", "-o", "y", "--roles", "base"])),
    *((RANDOM, words) for words in (["-o", "y"], ["tiny"], ["huge", "-o", "y"], ["tiny", "-o", "y", "--seed", "-1"])),
])
def test_wrong_usage_exits_with_2(script: Path, arguments: list[str], tmp_path: Path) -> None:
    result = run(*arguments, script=script, cwd=tmp_path)
    assert result.returncode == 2 and "usage:" in result.stderr and not list(tmp_path.iterdir())


def test_quiet_on_success_and_one_line_on_failure(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    result = run(tmp_path / "model", "-o", tmp_path / "o.gguf", "--dtype", "Q8_0")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "o.gguf"}
    result = run(tmp_path / "nowhere", "-o", tmp_path / "o.gguf")
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "nowhere" in result.stderr


def test_a_terminal_shows_progress(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", random_model.TINY)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, SCRIPT, tmp_path / "model", "-o", tmp_path / "o.gguf"], stderr=slave
    ) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
    os.close(master)
    assert process.returncode == 0 and b"100%" in shown and b"weights" in shown


@pytest.mark.parametrize("target", ["missing/o.gguf", "."])
def test_outputs_that_cannot_be_written_are_refused(target: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", MICRO)
    assert run(tmp_path / "model", "-o", tmp_path / target).returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert run(tmp_path / "model", "-o", "/dev/full").returncode == 1 and Path("/dev/full").is_char_device()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_killed_in_the_middle_nothing_half_written_has_the_final_name(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    out.write_bytes(b"the file before")
    not_ignored = None if number == signal.SIGKILL else lambda: signal.signal(number, signal.SIG_DFL)
    process = subprocess.Popen([sys.executable, RANDOM, "janus-pro-1b", "-o", out], stderr=subprocess.PIPE, preexec_fn=not_ignored)
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


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {layout: tmp_path_factory.mktemp(layout) / "model" for layout in ("official", "transformers")}
    for layout, folder in folders.items():
        write_checkpoint(folder, MICRO, layout, shards=2)
        edit(folder, "tokenizer.json", "post_processor", {"type": "Sequence", "processors": POST_PROCESSORS})
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        decoder = {"313": flags | {"content": "<|User|>", "special": True}}
        settings = {"add_bos_token": True, "bos_token": convert.BOS, "added_tokens_decoder": decoder}
        write_json(folder / "tokenizer_config.json", settings)
    return folders


def survives(folder: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether a damaged folder converts; if not it must be refused in one line, and nothing be left behind."""
    out = folder.parent / "result" / "o.gguf"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    code = convert.main([str(folder), "-o", str(out)])
    message = capsys.readouterr().err
    if code == 0:
        read(out)
        return True
    assert code == 1 and message.count("\n") == 1 and list(out.parent.iterdir()) == []
    return False


def leaves(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values inside a JSON document; of long lists and objects only the first few."""
    found = [path] if path else []
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(items)[:40]:
        found += leaves(value, (*path, key))
    return found


JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], {}, [[]], "", 0, -1, 1, 2, 3]),
    st.lists(st.integers(-3, 300), max_size=4),
    st.dictionaries(st.sampled_from(["type", "id", "content", "params"]), st.integers(), max_size=2),
)
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(data=st.data())
def test_any_json_value_anywhere_is_converted_or_refused(
    data: st.DataObject, originals: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = originals[data.draw(st.sampled_from(sorted(originals)))]
    folder = tmp_path / "model"
    shutil.copytree(source, folder, dirs_exist_ok=True)
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
    write_json(folder / file, document)
    survives(folder, capsys)


@SLOW
@given(data=st.data())
def test_any_damaged_bytes_are_converted_or_refused(
    data: st.DataObject, originals: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = originals[data.draw(st.sampled_from(sorted(originals)))]
    folder = tmp_path / "model"
    shutil.copytree(source, folder, dirs_exist_ok=True)
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
        length = data.draw(st.integers(1, 40))
        content[position : position + length] = (
            b"" if kind == "remove" else bytes(len(content[position : position + length]))
        )
    (folder / file).write_bytes(content)
    if survives(folder, capsys) and kind in ("cut", "insert", "remove"):
        assert file.endswith(".json")  # a shard of another length is never taken


def test_an_undamaged_checkpoint_survives(originals: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert all(survives(folder, capsys) for folder in originals.values())
