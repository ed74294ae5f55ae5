#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.10"
# dependencies = ["gguf>=0.17", "numpy>=1.26", "safetensors>=0.5", "tqdm>=4.66"]
# ///
"""Convert a Janus or Janus-Pro checkpoint into the one flat file that janus reads.

    uv run convert.py CHECKPOINT -o janus.gguf [--dtype f32|f16|bf16|q8_0|q6_k|q4_k|q4_0] [--roles pro|1.3b]
    uv run convert.py janus.gguf -o small.gguf --dtype q8_0|q6_k|q4_k|q4_0|f16|bf16|f32

CHECKPOINT is a folder as published: config.json, tokenizer.json, preprocessor_config.json (or a
processor_config.json that holds it) and the weights, .safetensors or .bin, in one file or in shards, in the official
layout (model_type multi_modality) or in that of transformers (model_type janus).  A janus.gguf with floating-point
weights may be quantised later: both ways give the same file.

The file
========
GGUF version 3, little-endian, general.architecture "janus", data aligned to 64 bytes, so that it can be mapped and
used in place.  Metadata, all of it written always unless a line says otherwise:

    janus.format_version                   2
    janus.{embedding_length, ...}          the sizes, under the keys that class Sizes names
    janus.vq.{group_count, group_norm_epsilon, grid_size}      grid_size: tokens a side
    janus.image.{min_size, mean, std, rescale_factor, background_color, do_normalize}
    janus.prompt.{system, user_role, assistant_role}
    tokenizer.ggml.{model, pre, tokens, token_type, bos_token_id, eos_token_id, padding_token_id, add_bos_token}
    janus.tokenizer.{image_placeholder_id, begin_of_image_id, end_of_image_id}
    janus.tokenizer.merges                 by rank, three ids each: left, right, merged; absent when there are none
    janus.tokenizer.split_rules            the splits before ByteLevel, one after the other; absent when there are none

A split rule is the regular expression BEFORE? BODY, BODY+, BODY$ or BODY+$ over sets of characters, written as
flags (1: +, 2: $), number of ranges of BEFORE, number of ranges of BODY, then the first and last code point of each
range, both sets ascending.  Each rule cuts every piece that the rules in front of it left before and after each match.

Tensors have the shapes that PyTorch gives them, with three exceptions: 3x3 and patch kernels are channel-last
[out, height, width, in], 1x1 kernels are plain matrices [out, in], and the three projections of the vision
attention are one matrix [q; k; v] in both layouts.  One-dimensional tensors and a few small tables are always f32.
N counts blocks, L levels, B blocks of a level, I layers; {a,b} stands for either; each name takes .weight and .bias
where there is a bias.  Under `transformers` every name but lm_head starts with "model.".

    file                      official                              transformers
    ------------------------  ------------------------------------  -----------------------------------
                              vision_model.vision_tower.            vision_model.
    vit.patch_embed             patch_embed.proj                      embeddings.patch_embedding
    vit.pos_embed               pos_embed                             embeddings.position_embedding
    vit.blk.N.norm{1,2}         blocks.N.norm{1,2}                    encoder.layers.N.layer_norm{1,2}
    vit.blk.N.qkv               blocks.N.attn.qkv                     encoder.layers.N.self_attn.{q,k,v}_proj
    vit.blk.N.proj              blocks.N.attn.proj                    encoder.layers.N.self_attn.projection_layer
    vit.blk.N.fc{1,2}           blocks.N.mlp.fc{1,2}                  encoder.layers.N.mlp.fc{1,2}
    vit.norm                    norm                                  post_layernorm
    aligner.0                 aligner.layers.0                      aligner.fc1
    aligner.I                 aligner.layers.2I                     aligner.hidden_layers.(I-1)
    gen_embed                 gen_embed                             generation_embeddings
    gen_aligner.0             gen_aligner.layers.0                  generation_aligner.fc1
    gen_aligner.I             gen_aligner.layers.2I                 generation_aligner.hidden_layers.(I-1)
    gen_head.proj             gen_head.output_mlp_projector         generation_head.proj_out
    gen_head.out              gen_head.vision_head                  generation_head.vision_head
                              language_model.model.                 language_model.
    token_embd                  embed_tokens                          embed_tokens
    blk.N.attn_norm             layers.N.input_layernorm              layers.N.input_layernorm
    blk.N.attn_{q,k,v}          layers.N.self_attn.{q,k,v}_proj       layers.N.self_attn.{q,k,v}_proj
    blk.N.attn_output           layers.N.self_attn.o_proj             layers.N.self_attn.o_proj
    blk.N.ffn_norm              layers.N.post_attention_layernorm     layers.N.post_attention_layernorm
    blk.N.ffn_{gate,up,down}    layers.N.mlp.{gate,up,down}_proj      layers.N.mlp.{gate,up,down}_proj
    output_norm                 norm                                  norm
    output (none when tied)   language_model.lm_head                lm_head
                              gen_vision_model.                     vqmodel.
    vq.codebook                 quantize.embedding                    quantize.embedding
    vq.quant_conv               quant_conv                            quant_conv
    vq.post_quant_conv          post_quant_conv                       post_quant_conv
                              gen_vision_model.{encoder,decoder}.   vqmodel.{encoder,decoder}.
    vq.{enc,dec}.conv_in        conv_in                               conv_in
    vq.{enc,dec}.mid.{0,2}      mid.{0,2}                             mid.block_{1,2}
    vq.{enc,dec}.mid.1          mid.1                                 mid.attn_1
    vq.{enc,dec}.norm_out       norm_out                              norm_out
    vq.{enc,dec}.conv_out       conv_out                              conv_out
                              gen_vision_model.encoder.             vqmodel.encoder.
    vq.enc.L.res.B              conv_blocks.L.res.B                   down.L.block.B
    vq.enc.L.attn.B             conv_blocks.L.attn.B                  down.L.attn.B
    vq.enc.L.down               conv_blocks.L.downsample.conv         down.L.downsample.conv
                              gen_vision_model.decoder.             vqmodel.decoder.
    vq.dec.L.res.B              conv_blocks.L.res.B                   up.L.block.B
    vq.dec.L.attn.B             conv_blocks.L.attn.B                  up.L.attn.B
    vq.dec.L.up                 conv_blocks.L.upsample.conv           up.L.upsample.conv

Inside a residual block norm1, conv1, norm2, conv2 keep their names and nin_shortcut becomes shortcut; inside an
attention block norm, q, k, v keep theirs and proj_out becomes proj.  Level 0 of the decoder is its deepest.
"""
from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickle
import re
import signal
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

try:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGUFValueType, GGUFWriter, quants
    from gguf import GGMLQuantizationType as Type
    U32, F32, TEXT = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING
    MISSING_PACKAGE = None
except ImportError as error:   # main() tells; -h works without any package
    MISSING_PACKAGE = error

FORMAT_VERSION, VERSION_KEY = 2, "janus.format_version"
ALIGNMENT = 64
CHUNK_ELEMENTS = 1 << 24   # rows are read, checked and written in pieces of about this many numbers

# Small tables that cost nothing and whose every bit counts; one-dimensional tensors are f32 as well.
ALWAYS_F32 = {"vit.pos_embed", "gen_embed.weight", "vq.codebook.weight", "vq.quant_conv.weight",
              "vq.post_quant_conv.weight"}
# The quantised types, and what the tensors that start with a prefix become: that type where `None` stands.  The first
# that fits counts.
QUANTISED_TYPES = ("q8_0", "q6_k", "q4_k", "q4_0")
QUANTISED_TENSORS = (("vq.", "f16"), ("blk.", None), ("", "q8_0"))
FLOAT_TYPES = ("f32", "f16", "bf16")
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q6_k": 18, "q4_k": 14, "q4_0": 2}
STORED_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}   # numpy has no bf16: its bits

# Names that published checkpoints carry and that the model never reads; other extra names get a remark.
IGNORED_TENSORS = re.compile(r".*\.attn_pool\..+|.*\.quantize\.codebook_used|.*\.rotary_emb\.inv_freq")

# The output matrix and the embedding that it may share, by layout.
HEADS = {"official": ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
         "transformers": ("lm_head.weight", "model.language_model.embed_tokens.weight")}

SYSTEM_PROMPT = ("You are a helpful language and vision assistant. You are able to understand the visual content that "
                 "the user provides, and assist the user with a variety of tasks using natural language.")

# Who speaks in the scripts of Janus-Pro and in those of Janus-1.3B.
ROLES = {"pro": ("<|User|>", "<|Assistant|>"), "1.3b": ("User", "Assistant")}

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"


class Refused(Exception):
    """The input cannot be converted; the message says what, where and, where it helps, what to do."""


def printable(words: object) -> str:
    """One line without control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", str(words))


def remark(words: str) -> None:
    """Tell what is worth knowing and no reason to stop."""
    print("convert.py: remark:", printable(words), file=sys.stderr)


# ------------------------------------------------------------------------------------------------ finding a checkpoint

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def find_folder(given: Path) -> Path:
    """The folder of a checkpoint: the one given, or the only snapshot in a folder of the hub's cache."""
    snapshots = list(given.glob("snapshots/*/config.json"))
    if given.is_dir():
        return snapshots[0].parent if len(snapshots) == 1 else given
    if given.exists():
        raise Refused(f"{given} is not a folder: name the folder that it is in, {given.parent}")
    raise Refused(f"no such folder: {given}; hf download {given.as_posix()} --local-dir {given.name} fetches a "
                  f"repository of that name")


def model_name(folder: Path) -> str:
    """The folder's name; a snapshot in the hub's cache has a number, and two levels above it is the name."""
    path = folder.resolve()
    name = path.parents[1].name.rpartition("--")[2] if path.parent.name == "snapshots" else path.name
    return os.fsencode(name).decode("utf-8", "replace")


def check_not_pointer(path: Path) -> None:
    """Refuse the few lines that a clone without Git LFS has in the place of a large file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise Refused(f"{path.name} is a Git LFS pointer ({path.stat().st_size} bytes), not the file: run git lfs "
                          f"pull in {path.parent}, or fetch the checkpoint with hf download")


# ---------------------------------------------------------------------------------------------------- configuration

def load_json(path: Path) -> Any:
    """The contents of a JSON file."""
    if not path.is_file():
        raise Refused(f"{path.name} is missing in {path.parent}")
    check_not_pointer(path)
    try:
        values = json.loads(path.read_bytes())   # a byte order mark in front is skipped
        json.dumps(values, ensure_ascii=False).encode()   # fails on half a surrogate pair
        return values
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path.name} is not valid JSON: {error}") from None


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Whatever else fails while the values of a file are read means that it is malformed."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Refused(f"{file} is malformed: {error!r:.200}") from None


class Config:
    """A JSON object with typed access; errors name the file and the key.  A null counts as an absent key."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise Refused(f"{where}: expected an object")
        self.values, self.where = values, where

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise Refused(f"{self.where}: {key} is missing")
        return value

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def block(self, key: str) -> Config:
        return Config(self.get(key, {}), f"{self.where}: {key}")

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = 1 << 20) -> int:
        value = self.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise Refused(f"{self.where}: {key} is {value!r:.60}, expected an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, high: float = 1e9) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < high:
            raise Refused(f"{self.where}: {key} is {value!r:.60}, expected a number between 0 and {high:g}")
        return float(value)

    def colour(self, key: str, default: tuple[float, ...], low: float) -> list[float]:
        """Three numbers from `low` to 1."""
        value = self.get(key, list(default))
        if len(value) != 3 or any(type(x) not in (int, float) or not low <= x <= 1 for x in value):
            raise Refused(f"{self.where}: {key} is {value!r:.60}, expected three numbers from {low:g} to 1")
        return [float(x) for x in value]

    def require(self, key: str, *allowed: Any, default: Any = None) -> Any:
        """The value, which must be one of those that this program understands."""
        value = self.get(key, default)
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise Refused(f"{self.where}: {key} is {value!r:.60}, supported is only {' or '.join(map(repr, allowed))}")
        return value


def size(key: str, default: Any) -> Any:
    """A field of Sizes and its GGUF key."""
    return field(default=default, metadata={"key": f"janus.{key}"})


@dataclass(frozen=True)
class Sizes:
    """Every size and constant of a model.  The defaults are those of Janus-Pro-1B."""
    hidden: int = size("embedding_length", 2048)
    layers: int = size("block_count", 24)
    feed_forward: int = size("feed_forward_length", 5632)
    context: int = size("context_length", 16384)
    vocabulary: int = size("vocab_size", 102400)
    heads: int = size("attention.head_count", 16)
    kv_heads: int = size("attention.head_count_kv", 16)
    head_dim: int = size("attention.key_length", 128)
    rms_eps: float = size("attention.layer_norm_rms_epsilon", 1e-6)
    rope_theta: float = size("rope.freq_base", 10000.0)
    image_size: int = size("vision.image_size", 384)
    patch_size: int = size("vision.patch_size", 16)
    vit_width: int = size("vision.embedding_length", 1024)
    vit_layers: int = size("vision.block_count", 24)
    vit_feed_forward: int = size("vision.feed_forward_length", 4096)
    vit_heads: int = size("vision.attention.head_count", 16)
    vit_eps: float = size("vision.attention.layer_norm_epsilon", 1e-6)
    aligner_depth: int = size("aligner.depth", 2)
    gen_aligner_depth: int = size("gen_aligner.depth", 2)
    gen_head_width: int = size("gen_head.embedding_length", 2048)
    codebook_size: int = size("vq.codebook_size", 16384)
    codebook_dim: int = size("vq.codebook_dim", 8)
    vq_channels: int = size("vq.base_channels", 128)
    vq_multipliers: tuple[int, ...] = size("vq.channel_multipliers", (1, 1, 2, 2, 4))
    vq_res_blocks: int = size("vq.res_blocks", 2)
    vq_z: int = size("vq.z_channels", 256)
    tied: bool = False

    @property
    def grid(self) -> int:
        """Patches, and generated tokens, a side."""
        return self.image_size // self.patch_size


SIZE_FIELDS = [entry for entry in fields(Sizes) if entry.metadata]


def check_relative(config: Config, folder: Path) -> None:
    """Refuse by name the models that are easily taken for Janus."""
    kind, relative = str(config.values.get("model_type")), ""
    if "vision_gen_enc_config" in config.values:
        relative = "JanusFlow"
    elif kind.startswith("deepseek_vl") or kind == "multi_modality" and "gen_vision_config" not in config.values:
        relative = "DeepSeek-VL2" if "v2" in kind else "DeepSeek-VL"
    if relative:
        raise Refused(f"{folder} holds {relative}, which is another model: this program converts Janus-1.3B, "
                      f"Janus-Pro-1B, Janus-Pro-7B and what is made from them")
    if config.has("quantization_config"):
        raise Refused("config.json: quantization_config is not supported: take the checkpoint that is not quantised")


def read_llama(config: Config) -> dict[str, Any]:
    """The sizes of the transformer from a LlamaConfig, with its defaults."""
    for key, value in (("model_type", "llama"), ("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        config.require(key, value, default=value)
    heads, hidden = config.integer("num_attention_heads", 32), config.integer("hidden_size", 4096)
    kv_heads = config.integer("num_key_value_heads", heads)
    head_dim = config.integer("head_dim", max(1, hidden // heads))
    return dict(hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
                layers=config.integer("num_hidden_layers", 32, high=1024),
                feed_forward=config.integer("intermediate_size", 11008),
                vocabulary=config.integer("vocab_size", 32000, high=1 << 24),
                context=config.integer("max_position_embeddings", 2048, high=1 << 24),
                rms_eps=config.number("rms_norm_eps", 1e-6), rope_theta=read_rope_theta(config))


def read_rope_theta(config: Config) -> float:
    """rope_theta, which stands beside the other keys or, since transformers 5, inside rope_parameters."""
    for key, name in (("rope_scaling", "type"), ("rope_scaling", "rope_type"), ("rope_parameters", "rope_type")):
        config.block(key).require(name, "default", default="default")
    rope = config.block("rope_parameters")
    rope.require("partial_rotary_factor", 1, 1.0, default=1.0)
    return rope.number("rope_theta", config.number("rope_theta", 10000.0))


def read_official_config(config: Config, checkpoint: Checkpoint) -> Sizes:
    """Sizes from a multi_modality config.

    Its vision tower comes by name (janus/models/siglip_vit.py has the sizes), its VQ model without any in the config.
    Smaller relatives give the tower's sizes beside the name; those of the VQ model are its tensors'.
    """
    language = config.block("language_config")
    llama = read_llama(language)
    params = config.block("vision_config").block("params")
    params.require("model_name", "siglip_large_patch16_384", default="siglip_large_patch16_384")
    params.require("select_layer", -1, default=-2)
    width, vq = params.integer("width", 1024), read_vq_shapes(checkpoint)
    aligner, gen_aligner = (config.block(key).block("params") for key in ("aligner_config", "gen_aligner_config"))
    for projector in (aligner, gen_aligner):
        projector.require("projector_type", "mlp_gelu")
    return Sizes(**llama, **vq, tied=language.require("tie_word_embeddings", True, False, default=False),
                 image_size=params.integer("image_size", 336),
                 patch_size=params.integer("patch_size", 16),
                 vit_width=width,
                 vit_layers=params.integer("layers", 24, high=1024),
                 vit_heads=params.integer("heads", 16),
                 vit_feed_forward=int(width * params.number("mlp_ratio", 4, high=1000)),
                 aligner_depth=aligner.integer("depth", 1, high=64),
                 gen_aligner_depth=gen_aligner.integer("depth", 1, high=64),
                 gen_head_width=config.block("gen_head_config").block("params").integer("image_token_embed"))


def missing_tensor(name: str, names: Iterable[str]) -> Refused:
    """Says which tensor is missing and, to show how names are formed there, the two most alike that the file has."""
    alike = sorted(names, key=lambda other: -len(os.path.commonprefix([name[::-1], other[::-1]])))[:2]
    prefix = os.path.commonprefix(list(names)).rpartition(".")[0]
    words = f": the checkpoint has {' and '.join(alike)}" if alike else ": the checkpoint has no tensors"
    words += f", and every name there begins with {prefix}." if prefix else ""
    return Refused(f"tensor {name} is missing{words:.300}")


def read_vq_shapes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Sizes of an official VQ model from a few of its tensors; check_tensors sees whether all the others agree."""
    def shape(name: str) -> tuple[int, ...]:
        name = f"gen_vision_model.{name}.weight"
        if name not in checkpoint:
            raise missing_tensor(name, checkpoint)
        return checkpoint[name].shape

    def count(pattern: str) -> int:
        found = (re.match(rf"gen_vision_model\.encoder\.conv_blocks\.{pattern}\.", name) for name in checkpoint)
        return max((int(match[1]) + 1 for match in found if match), default=1)

    channels = shape("encoder.conv_in")[0]
    widths = [shape(f"encoder.conv_blocks.{level}.res.0.conv2")[0] for level in range(count(r"(\d{1,3})"))]
    codebook_size, codebook_dim = shape("quantize.embedding")
    return dict(codebook_size=codebook_size, codebook_dim=codebook_dim, vq_channels=channels,
                vq_multipliers=tuple(max(1, width // channels) for width in widths),
                vq_res_blocks=count(r"0\.res\.(\d{1,3})"), vq_z=shape("encoder.conv_out")[0])


def read_transformers_config(config: Config) -> Sizes:
    """Sizes from a JanusConfig, with the defaults of its parts."""
    llama = read_llama(config.block("text_config"))
    vision, vq = config.block("vision_config"), config.block("vq_config")
    vision.require("hidden_act", "gelu", default="gelu")
    vision.require("use_qk_norm", False, default=False)
    vq.require("hidden_act", "gelu", default="gelu")
    width = vision.integer("hidden_size", 1024)
    return Sizes(**llama, tied=config.require("tie_word_embeddings", True, False, default=True),
                 image_size=vision.integer("image_size", 384),
                 patch_size=vision.integer("patch_size", 16),
                 vit_width=width,
                 vit_layers=vision.integer("num_hidden_layers", 24, high=1024),
                 vit_heads=vision.integer("num_attention_heads", 16),
                 vit_eps=vision.number("layer_norm_eps", 1e-6),
                 vit_feed_forward=int(width * vision.number("mlp_ratio", 4.0, high=1000)),
                 aligner_depth=vision.integer("depth", 2, high=64),
                 gen_aligner_depth=vq.integer("num_hidden_layers", 2, high=64),
                 gen_head_width=vq.integer("projection_dim", 2048),
                 codebook_size=vq.integer("num_embeddings", 16384, high=1 << 24),
                 codebook_dim=vq.integer("embed_dim", 8),
                 vq_channels=vq.integer("base_channels", 128),
                 vq_multipliers=tuple(map(int, vq.get("channel_multiplier", (1, 1, 2, 2, 4)))),
                 vq_res_blocks=vq.integer("num_res_blocks", 2, high=64),
                 vq_z=vq.integer("latent_channels", 256))


# ------------------------------------------------------------------------------------------ preprocessing, tokenizer

# key -> (type, value); the type of an array is that of its items
Metadata: TypeAlias = "dict[str, tuple[GGUFValueType, Any]]"


def size_metadata(sizes: Sizes) -> Metadata:
    """Every size and constant under its GGUF key."""
    return {
        VERSION_KEY: (U32, FORMAT_VERSION),
        **{entry.metadata["key"]: (F32 if entry.type == "float" else U32, getattr(sizes, entry.name))
           for entry in SIZE_FIELDS},
        "janus.vq.group_count": (U32, 32),   # of every GroupNorm of the VQ model
        "janus.vq.group_norm_epsilon": (F32, 1e-6),
        "janus.vq.grid_size": (U32, sizes.grid),
    }


def prompt_metadata(roles: str) -> Metadata:
    user, assistant = ROLES[roles]
    return {"janus.prompt.system": (TEXT, SYSTEM_PROMPT), "janus.prompt.user_role": (TEXT, user),
            "janus.prompt.assistant_role": (TEXT, assistant)}


def choose_roles(given: str | None, folder: Path, config: Config, tokens: set[str], remarks: list[str]) -> str:
    """Which of ROLES a checkpoint was trained with: as given, or by its name, or else by the tokens that it has."""
    names = f"{model_name(folder)} {config.values.get('_name_or_path')}"
    has_tokens = set(ROLES["pro"]) <= tokens
    if given is None and (re.search(r"Janus-1\.3B", names, re.IGNORECASE) or not has_tokens):
        remarks.append("prompts will say User and Assistant, as those of Janus-1.3B; --roles pro changes that")
        return "1.3b"
    if given == "pro" and not has_tokens:
        remarks.append("<|User|> and <|Assistant|> of the prompts will be several tokens each, for this tokenizer has "
                       "none of that name; --roles 1.3b is right for Janus-1.3B and what is made from it")
    return given or "pro"


def image_metadata(config: Config, sizes: Sizes) -> Metadata:
    """The preprocessing values; `config` is a preprocessor_config of either layout, defaults those of both classes."""
    for key, value in (("do_resize", True), ("do_rescale", True), ("do_pad", True), ("resample", 3)):
        config.require(key, value, default=value)
    config.require("image_size", sizes.image_size, default=sizes.image_size if config.has("size") else 384)
    for key in ("height", "width") if config.has("size") else ():
        config.block("size").require(key, sizes.image_size)
    mean = config.colour("image_mean", (0.48145466, 0.4578275, 0.40821073), 0)
    background = [int(x * 255) for x in mean]
    config.require("background_color", background, default=background)
    return {
        "janus.image.min_size": (U32, config.integer("min_size", 14, high=sizes.image_size)),
        "janus.image.mean": (F32, mean),
        "janus.image.std": (F32, config.colour("image_std", (0.26862954, 0.26130258, 0.27577711), 1e-6)),
        "janus.image.rescale_factor": (GGUFValueType.FLOAT64, config.number("rescale_factor", 1 / 255)),
        "janus.image.background_color": (U32, background),
        "janus.image.do_normalize": (GGUFValueType.BOOL, config.require("do_normalize", True, False, default=True)),
    }


def read_image_metadata(folder: Path, sizes: Sizes) -> Metadata:
    """Preprocessing from preprocessor_config.json or, since transformers 5, from inside processor_config.json."""
    own, outer = folder / "preprocessor_config.json", folder / "processor_config.json"
    processor = Config(load_json(outer) if outer.exists() else {}, outer.name)
    # With add_special_token the placeholder would stay before the image.
    for key, value in (("num_image_tokens", sizes.grid**2), ("sft_format", "deepseek"), ("add_special_token", False)):
        processor.require(key, value, default=value)
    if processor.has("image_processor") and not own.exists():
        return image_metadata(processor.block("image_processor"), sizes)
    return image_metadata(Config(load_json(own), own.name), sizes)


# What \s and Digits mean in `tokenizers`: the Unicode property White_Space; the general categories Nd, Nl and No.
WHITE_SPACE = "9-D 20 85 A0 1680 2000-200A 2028-2029 202F 205F 3000"
DIGITS = """
30-39 B2-B3 B9 BC-BE 660-669 6F0-6F9 7C0-7C9 966-96F 9E6-9EF 9F4-9F9 A66-A6F AE6-AEF B66-B6F B72-B77 BE6-BF2 C66-C6F
C78-C7E CE6-CEF D58-D5E D66-D78 DE6-DEF E50-E59 ED0-ED9 F20-F33 1040-1049 1090-1099 1369-137C 16EE-16F0 17E0-17E9
17F0-17F9 1810-1819 1946-194F 19D0-19DA 1A80-1A89 1A90-1A99 1B50-1B59 1BB0-1BB9 1C40-1C49 1C50-1C59 2070 2074-2079
2080-2089 2150-2182 2185-2189 2460-249B 24EA-24FF 2776-2793 2CFD 3007 3021-3029 3038-303A 3192-3195 3220-3229 3248-324F
3251-325F 3280-3289 32B1-32BF A620-A629 A6E6-A6EF A830-A835 A8D0-A8D9 A900-A909 A9D0-A9D9 A9F0-A9F9 AA50-AA59 ABF0-ABF9
FF10-FF19 10107-10133 10140-10178 1018A-1018B 102E1-102FB 10320-10323 10341 1034A 103D1-103D5 104A0-104A9 10858-1085F
10879-1087F 108A7-108AF 108FB-108FF 10916-1091B 109BC-109BD 109C0-109CF 109D2-109FF 10A40-10A48 10A7D-10A7E 10A9D-10A9F
10AEB-10AEF 10B58-10B5F 10B78-10B7F 10BA9-10BAF 10CFA-10CFF 10D30-10D39 10D40-10D49 10E60-10E7E 10F1D-10F26 10F51-10F54
10FC5-10FCB 11052-1106F 110F0-110F9 11136-1113F 111D0-111D9 111E1-111F4 112F0-112F9 11450-11459 114D0-114D9 11650-11659
116C0-116C9 116D0-116E3 11730-1173B 118E0-118F2 11950-11959 11BF0-11BF9 11C50-11C6C 11D50-11D59 11DA0-11DA9 11DE0-11DE9
11F50-11F59 11FC0-11FD4 12400-1246E 16130-16139 16A60-16A69 16AC0-16AC9 16B50-16B59 16B5B-16B61 16D70-16D79 16E80-16E96
16FF4-16FF6 1CCF0-1CCF9 1D2C0-1D2D3 1D2E0-1D2F3 1D360-1D378 1D7CE-1D7FF 1E140-1E149 1E2F0-1E2F9 1E4F0-1E4F9 1E5F1-1E5FA
1E8C7-1E8CF 1E950-1E959 1EC71-1ECAB 1ECAD-1ECAF 1ECB1-1ECB4 1ED01-1ED2D 1ED2F-1ED3D 1F100-1F10C 1FBF0-1FBF9"""

# The regular expressions that a split rule can hold: [set "?"] set ["+"] ["$"], set = "\s" or characters in brackets.
CHARACTER = r"(?:\\[rnt\\\]\-\[^]|(?!&&)[^\\\[\]\-])"
SET_ATOM = re.compile(rf"\\s|(?P<low>{CHARACTER})(?:-(?P<high>{CHARACTER}))?", re.DOTALL)
SET = rf"\\s|\[(?!\^)(?:\\s|{CHARACTER}(?:-{CHARACTER})?)+\]"
SPLIT_PATTERN = re.compile(rf"(?:(?P<before>{SET})\?)?(?P<body>{SET})(?P<plus>\+?)(?P<end>\$?)", re.DOTALL)
BYTE_LEVEL: list[int] = []   # the last step, which is no split rule
Ranges: TypeAlias = "list[tuple[int, int]]"


def code_ranges(words: str) -> Ranges:
    """Ranges of code points from hexadecimal text such as "41-5A 5F"."""
    ends = [word.split("-") for word in words.split()]
    return [(int(pair[0], 16), int(pair[-1], 16)) for pair in ends]


def set_ranges(members: str) -> Ranges:
    """The ranges of a set of the grammar above, "" for none."""
    letters = {"\\r": "\r", "\\n": "\n", "\\t": "\t"}
    ranges: Ranges = []
    for atom in SET_ATOM.finditer(members if members == "\\s" else members[1:-1]):
        ends = atom["low"], atom["high"] or atom["low"]
        ranges += [tuple(ord(letters.get(end, end[-1])) for end in ends)] if atom["low"] else code_ranges(WHITE_SPACE)
    return ranges


def split_rule(before: Ranges, body: Ranges, repeated: bool = False, line_end: bool = False) -> list[int]:
    """A rule as the file has it: the ranges are sorted and neither overlap nor touch."""
    rule = [repeated + 2 * line_end, 0, 0]
    for place, ranges in ((1, before), (2, body)):
        start = len(rule)
        for first, last in sorted(ranges):
            if len(rule) > start and first <= rule[-1] + 1:
                rule[-1] = max(rule[-1], last)
            else:
                rule += [first, last]
        rule[place] = (len(rule) - start) // 2
    return rule


def compile_split(pattern: str) -> list[int]:
    """The split rule of a regular expression; beyond the grammar above it is refused."""
    match = SPLIT_PATTERN.fullmatch(pattern)
    before, body = (set_ranges(match["before"] or ""), set_ranges(match["body"])) if match else ([], [])
    if match is None or any(first > last for first, last in before + body):
        raise Refused(f"tokenizer.json: pre_tokenizer: the split pattern {pattern!r:.60} is not supported")
    return split_rule(before, body, bool(match["plus"]), bool(match["end"]))


def pre_tokenizer_steps(config: Config) -> list[list[int]]:
    """The steps of a pre-tokenizer as split rules and BYTE_LEVEL."""
    kind = config.require("type", "Sequence", "Split", "Digits", "ByteLevel")
    if kind == "Sequence":
        parts = [Config(part, config.where) for part in config.get("pretokenizers")]
        return [step for part in parts for step in pre_tokenizer_steps(part)]
    if kind == "Split":
        config.require("behavior", "Isolated")
        config.require("invert", False, default=False)
        return [compile_split(config.block("pattern").get("Regex"))]
    if kind == "Digits":
        return [split_rule([], code_ranges(DIGITS), repeated=not config.require("individual_digits", True, False))]
    config.require("add_prefix_space", False, default=True)
    config.require("use_regex", False, default=True)
    return [BYTE_LEVEL]


def read_split_rules(config: Config) -> list[int]:
    """The split rules in one list; ByteLevel must come last, and "$" must be able to mean the end of a piece."""
    *steps, last = pre_tokenizer_steps(config)
    if last != BYTE_LEVEL or BYTE_LEVEL in steps:
        raise Refused(f"{config.where}: ByteLevel must be its last step and stand there once")
    for number, step in enumerate(steps):
        # "$" is the end of a line there; only once newlines are pieces of their own is that the end of the piece.
        if step[0] & 2 and compile_split("[\\r\\n]") not in steps[:number]:
            raise Refused(f'{config.where}: a split that ends in "$" needs a split at [\\r\\n] before it')
    return [number for step in steps for number in step]


def read_added_tokens(document: Config, settings: Config) -> dict[str, tuple[int, bool]]:
    """Content -> (id, special) of the added tokens; tokenizer_config.json may not name others."""
    added: dict[str, tuple[int, bool]] = {}
    for entry in document.get("added_tokens"):
        config = Config(entry, "tokenizer.json: added_tokens")
        content = str(config.get("content"))
        config.where += f" {content!r}"
        for key in ("lstrip", "rstrip", "single_word"):
            config.require(key, False, default=False)
        added[content] = config.integer("id", low=0, high=1 << 24), config.require("special", True, False)
    for number, entry in settings.block("added_tokens_decoder").values.items():
        content = Config(entry, f"{settings.where}: {number:.20}").get("content")
        if content not in added or str(added[content][0]) != number:
            raise Refused(f"{settings.where}: tokenizer.json has no added token {content!r:.60} of id {number:.20}")
    return added


def read_merges(model: Config, ids: dict[str, int]) -> list[int]:
    """The merges by rank, three ids each: left, right, and what they become; the file may have either of two forms."""
    result: list[int] = []
    for merge in model.get("merges"):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        result += [ids[token] for token in (left, right, left + right)]
    return result


def check_tokenizer(document: Config, settings: Config) -> None:
    """Refuse what is not plain byte-level encoding of pairs, with BOS in front and no EOS."""
    settings.require("add_bos_token", True, default=True)
    settings.require("add_eos_token", False, default=False)
    for key, token in (("bos_token", BOS), ("eos_token", EOS)):
        value = settings.get(key, token)
        if (value.get("content") if isinstance(value, dict) else value) != token:
            raise Refused(f"{settings.where}: {key} is {value!r:.60}, supported is only {token!r}")
    if document.block("pre_tokenizer").values.get("type") == "Metaspace":
        raise Refused("tokenizer.json: pre_tokenizer: Metaspace is not supported; transformers 5 saves it where it "
                      "takes the tokenizer for a LlamaTokenizer: take the original tokenizer.json")
    if document.get("normalizer", {"normalizers": []}).get("normalizers") != []:
        raise Refused("tokenizer.json: a normalizer is not supported")
    document.block("decoder").require("type", "ByteLevel")
    plain = {"type": "BPE", "dropout": 0.0, "continuing_subword_prefix": "", "end_of_word_suffix": "",
             "byte_fallback": False, "ignore_merges": False}
    for key, value in plain.items():
        document.block("model").require(key, value, default=value)


def tokenizer_metadata(values: Any, vocabulary_size: int, overrides: Any = None) -> Metadata:
    """The tokenizer from what tokenizer.json and tokenizer_config.json hold; anything not understood is refused."""
    document = Config(values, "tokenizer.json")
    settings = Config({} if overrides is None else overrides, "tokenizer_config.json")
    check_tokenizer(document, settings)
    model, added = document.block("model"), read_added_tokens(document, settings)
    tokens = [f"[PAD{number}]" for number in range(vocabulary_size)]
    kinds = [5] * vocabulary_size
    ids: dict[str, int] = {}

    def place(token: str, number: Any, kind: int) -> None:
        if type(number) is not int or not 0 <= number < vocabulary_size:
            raise Refused(f"tokenizer.json: the id {number!r:.60} of token {token!r:.60} is outside "
                          f"0..{vocabulary_size - 1}")
        if ids.setdefault(token, number) != number or kinds[number] != 5 and tokens[number] != token:
            raise Refused(f"tokenizer.json: the token {token!r:.60} has two ids, or shares the id {number}")
        tokens[number], kinds[number] = token, kind

    for token, number in model.block("vocab").values.items():
        place(token, number, 1)
    for token, (number, special) in added.items():
        place(token, number, 3 if special else 4)

    def id_of(token: str) -> tuple[GGUFValueType, int]:
        if token not in added:
            raise Refused(f"tokenizer.json: the token {token!r} is missing from added_tokens")
        return (U32, added[token][0])

    return {
        "tokenizer.ggml.model": (TEXT, "gpt2"),
        "tokenizer.ggml.pre": (TEXT, "deepseek-llm"),
        "tokenizer.ggml.tokens": (TEXT, tokens),
        "tokenizer.ggml.token_type": (GGUFValueType.INT32, kinds),
        "tokenizer.ggml.bos_token_id": id_of(BOS),
        "tokenizer.ggml.eos_token_id": id_of(EOS),
        "tokenizer.ggml.padding_token_id": id_of(PAD),
        "tokenizer.ggml.add_bos_token": (GGUFValueType.BOOL, True),
        "janus.tokenizer.image_placeholder_id": id_of(IMAGE_PLACEHOLDER),
        "janus.tokenizer.begin_of_image_id": id_of(BEGIN_OF_IMAGE),
        "janus.tokenizer.end_of_image_id": id_of(END_OF_IMAGE),
        "janus.tokenizer.merges": (U32, read_merges(model, ids)),
        "janus.tokenizer.split_rules": (U32, read_split_rules(document.block("pre_tokenizer"))),
    }


# ------------------------------------------------------------------------------------------------------ tensor table

@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: its name and shape there, and where each layout has it."""
    name: str
    shape: tuple[int, ...]
    official: str = ""
    transformers: tuple[str, ...] = ()   # several are joined along the first axis
    stored: tuple[int, ...] = ()         # shape in a checkpoint, before joining is undone
    init: str = ""                       # in a new official model: "normal S", "uniform S", "ones", "zeros", "unit rows"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def sources(self, layout: str) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors that make up this one in a layout."""
        if layout == "official":
            return {self.official: (1, *self.stored) if self.name == "vit.pos_embed" else self.stored}
        return {name: (self.stored[0] // len(self.transformers), *self.stored[1:]) for name in self.transformers}


@dataclass
class Table:
    """Collects the tensors of a model; each method adds one layer, given its name in the file and in both layouts."""
    tensors: list[Tensor] = field(default_factory=list)

    def add(self, name: str, official: str, transformers: str, shape: tuple[int, ...], init: str,
            stored: tuple[int, ...] | None = None) -> None:
        """One tensor; "*" in the name in transformers stands for three, of q, k and v."""
        names = [transformers.replace("*", part) for part in ("qkv" if "*" in transformers else "*")]
        names = tuple(n if n.startswith("lm_head") else "model." + n for n in names)
        self.tensors.append(Tensor(name, shape, official, names, stored or shape, init))

    def pair(self, name: str, official: str, transformers: str, shape: tuple[int, ...], inits: tuple[str, str],
             stored: tuple[int, ...] | None = None) -> None:
        """A weight and its bias."""
        self.add(f"{name}.weight", f"{official}.weight", f"{transformers}.weight", shape, inits[0], stored)
        self.add(f"{name}.bias", f"{official}.bias", f"{transformers}.bias", shape[:1], inits[1])

    def linear(self, name: str, official: str, transformers: str, outer: int, inner: int) -> None:
        self.pair(name, official, transformers, (outer, inner), (f"uniform {inner ** -0.5}",) * 2)

    def norm(self, name: str, official: str, transformers: str, width: int) -> None:
        self.pair(name, official, transformers, (width,), ("ones", "zeros"))

    def conv(self, name: str, official: str, transformers: str, outer: int, inner: int, side: int) -> None:
        shape = (outer, inner) if side == 1 else (outer, side, side, inner)
        inits = (f"uniform {(inner * side * side) ** -0.5}",) * 2
        self.pair(name, official, transformers, shape, inits, (outer, inner, side, side))

    def res_block(self, name: str, official: str, transformers: str, outer: int, inner: int) -> None:
        for part, width in (("norm1", inner), ("norm2", outer)):
            self.norm(f"{name}.{part}", f"{official}.{part}", f"{transformers}.{part}", width)
        for part, width in (("conv1", inner), ("conv2", outer)):
            self.conv(f"{name}.{part}", f"{official}.{part}", f"{transformers}.{part}", outer, width, 3)
        if outer != inner:
            self.conv(f"{name}.shortcut", f"{official}.nin_shortcut", f"{transformers}.nin_shortcut", outer, inner, 1)

    def attn_block(self, name: str, official: str, transformers: str, width: int) -> None:
        self.norm(f"{name}.norm", f"{official}.norm", f"{transformers}.norm", width)
        for part, old in (("q", "q"), ("k", "k"), ("v", "v"), ("proj", "proj_out")):
            self.conv(f"{name}.{part}", f"{official}.{old}", f"{transformers}.{old}", width, width, 1)

    def mlp(self, name: str, official: str, transformers: str, outer: int, inner: int, depth: int) -> None:
        for i in range(depth):
            last = f"{transformers}.hidden_layers.{i - 1}" if i else f"{transformers}.fc1"
            self.linear(f"{name}.{i}", f"{official}.layers.{2 * i}", last, outer, outer if i else inner)

    def vision(self, s: Sizes) -> None:
        self.conv("vit.patch_embed", "vision_model.vision_tower.patch_embed.proj",
                  "vision_model.embeddings.patch_embedding", s.vit_width, 3, s.patch_size)
        self.add("vit.pos_embed", "vision_model.vision_tower.pos_embed",
                 "vision_model.embeddings.position_embedding.weight", (s.grid**2, s.vit_width), "normal 0.02")
        for n in range(s.vit_layers):
            new, old, hf = f"vit.blk.{n}", f"vision_model.vision_tower.blocks.{n}", f"vision_model.encoder.layers.{n}"
            self.norm(f"{new}.norm1", f"{old}.norm1", f"{hf}.layer_norm1", s.vit_width)
            self.linear(f"{new}.qkv", f"{old}.attn.qkv", f"{hf}.self_attn.*_proj", 3 * s.vit_width, s.vit_width)
            self.linear(f"{new}.proj", f"{old}.attn.proj", f"{hf}.self_attn.projection_layer", s.vit_width, s.vit_width)
            self.norm(f"{new}.norm2", f"{old}.norm2", f"{hf}.layer_norm2", s.vit_width)
            self.linear(f"{new}.fc1", f"{old}.mlp.fc1", f"{hf}.mlp.fc1", s.vit_feed_forward, s.vit_width)
            self.linear(f"{new}.fc2", f"{old}.mlp.fc2", f"{hf}.mlp.fc2", s.vit_width, s.vit_feed_forward)
        self.norm("vit.norm", "vision_model.vision_tower.norm", "vision_model.post_layernorm", s.vit_width)

    def transformer(self, s: Sizes) -> None:
        matrix, q, kv = "normal 0.02", s.heads * s.head_dim, s.kv_heads * s.head_dim
        old, hf, table = "language_model.model", "language_model", (s.vocabulary, s.hidden)
        self.add("token_embd.weight", f"{old}.embed_tokens.weight", f"{hf}.embed_tokens.weight", table, matrix)
        for n in range(s.layers):
            for name, part, shape in (
                    ("attn_norm", "input_layernorm", (s.hidden,)),
                    ("attn_q", "self_attn.q_proj", (q, s.hidden)), ("attn_k", "self_attn.k_proj", (kv, s.hidden)),
                    ("attn_v", "self_attn.v_proj", (kv, s.hidden)), ("attn_output", "self_attn.o_proj", (s.hidden, q)),
                    ("ffn_norm", "post_attention_layernorm", (s.hidden,)),
                    ("ffn_gate", "mlp.gate_proj", (s.feed_forward, s.hidden)),
                    ("ffn_up", "mlp.up_proj", (s.feed_forward, s.hidden)),
                    ("ffn_down", "mlp.down_proj", (s.hidden, s.feed_forward))):
                self.add(f"blk.{n}.{name}.weight", f"{old}.layers.{n}.{part}.weight", f"{hf}.layers.{n}.{part}.weight",
                         shape, matrix if len(shape) == 2 else "ones")
        self.add("output_norm.weight", f"{old}.norm.weight", f"{hf}.norm.weight", (s.hidden,), "ones")
        if not s.tied:
            self.add("output.weight", HEADS["official"][0], HEADS["transformers"][0], table, matrix)

    def generation(self, s: Sizes) -> None:
        self.add("gen_embed.weight", "gen_embed.weight", "generation_embeddings.weight",
                 (s.codebook_size, s.codebook_dim), "normal 1")
        self.mlp("gen_aligner", "gen_aligner", "generation_aligner", s.hidden, s.codebook_dim, s.gen_aligner_depth)
        self.linear("gen_head.proj", "gen_head.output_mlp_projector", "generation_head.proj_out",
                    s.gen_head_width, s.hidden)
        self.linear("gen_head.out", "gen_head.vision_head", "generation_head.vision_head",
                    s.codebook_size, s.gen_head_width)

    def vq(self, s: Sizes) -> None:
        old, hf = "gen_vision_model", "vqmodel"
        widths = [s.vq_channels * m for m in s.vq_multipliers]
        self.conv("vq.quant_conv", f"{old}.quant_conv", f"{hf}.quant_conv", s.codebook_dim, s.vq_z, 1)
        self.conv("vq.post_quant_conv", f"{old}.post_quant_conv", f"{hf}.post_quant_conv", s.vq_z, s.codebook_dim, 1)
        self.add("vq.codebook.weight", f"{old}.quantize.embedding.weight", f"{hf}.quantize.embedding.weight",
                 (s.codebook_size, s.codebook_dim), "unit rows")
        self.vq_half("enc", "encoder", "down", [s.vq_channels, *widths], s.vq_res_blocks, 3, s.vq_z)
        self.vq_half("dec", "decoder", "up", [widths[-1], *reversed(widths)], s.vq_res_blocks + 1, s.vq_z, 3)

    def vq_half(self, half: str, part: str, way: str, widths: list[int], blocks: int, inner: int, outer: int) -> None:
        """Encoder or decoder; in the order of the data, widths[L] channels enter level L and widths[L + 1] leave."""
        new, old, hf = f"vq.{half}", f"gen_vision_model.{part}", f"vqmodel.{part}"
        levels, deepest = len(widths) - 1, widths[-1] if half == "enc" else widths[0]
        self.conv(f"{new}.conv_in", f"{old}.conv_in", f"{hf}.conv_in", widths[0], inner, 3)
        for n in range(levels):
            level, old_level, hf_level = f"{new}.{n}", f"{old}.conv_blocks.{n}", f"{hf}.{way}.{n}"
            for b in range(blocks):
                self.res_block(f"{level}.res.{b}", f"{old_level}.res.{b}", f"{hf_level}.block.{b}",
                               widths[n + 1], widths[n + 1] if b else widths[n])
            for b in range(blocks if n == (levels - 1 if half == "enc" else 0) else 0):
                self.attn_block(f"{level}.attn.{b}", f"{old_level}.attn.{b}", f"{hf_level}.attn.{b}", deepest)
            if n < levels - 1:
                self.conv(f"{level}.{way}", f"{old_level}.{way}sample.conv", f"{hf_level}.{way}sample.conv",
                          widths[n + 1], widths[n + 1], 3)
        self.res_block(f"{new}.mid.0", f"{old}.mid.0", f"{hf}.mid.block_1", deepest, deepest)
        self.attn_block(f"{new}.mid.1", f"{old}.mid.1", f"{hf}.mid.attn_1", deepest)
        self.res_block(f"{new}.mid.2", f"{old}.mid.2", f"{hf}.mid.block_2", deepest, deepest)
        self.norm(f"{new}.norm_out", f"{old}.norm_out", f"{hf}.norm_out", widths[-1])
        self.conv(f"{new}.conv_out", f"{old}.conv_out", f"{hf}.conv_out", outer, widths[-1], 3)


def tensor_table(sizes: Sizes) -> list[Tensor]:
    """Every tensor of a model of these sizes, in the order of the file."""
    table = Table()
    table.vision(sizes)
    table.mlp("aligner", "aligner", "aligner", sizes.hidden, sizes.vit_width, sizes.aligner_depth)
    table.generation(sizes)
    table.transformer(sizes)
    table.vq(sizes)
    return table.tensors


# -------------------------------------------------------------------------------------------------------- checkpoint

@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its numbers begin at byte `start`; strides are counted in numbers, as torch does."""
    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    start: int = 0

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first..last-1, bf16 as its bits.  They are read, never mapped, so that memory holds one piece at a time."""
        dtype, shape = np.dtype(STORED_DTYPES[self.dtype]), (last - first, *self.shape[1:])
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, self.strides))
        numbers = np.fromfile(self.path, dtype, span, offset=self.start + first * self.strides[0] * dtype.itemsize)
        if numbers.size != span:
            raise Refused(f"{self.path.name} ends within the tensor {self.name}")
        return np.lib.stride_tricks.as_strided(numbers, shape, [stride * dtype.itemsize for stride in self.strides])

    def rows(self) -> Iterator[np.ndarray]:
        """The tensor as float32, some rows at a time."""
        step = max(1, CHUNK_ELEMENTS // max(1, math.prod(self.shape[1:])))
        for first in range(0, self.shape[0], step):
            try:
                block = self.read(first, min(first + step, self.shape[0]))
            except OSError as error:
                raise Refused(f"cannot read {self.path}: {error.strerror or error}") from None
            if self.dtype == "BF16":
                block = (block.astype(np.uint32) << 16).view(np.float32)
            with np.errstate(over="ignore"):   # too large a float64 becomes infinite
                block = block.astype(np.float32, copy=False)
            if not np.isfinite(block).all():
                raise Refused(f"tensor {self.name} holds a number that is not finite")
            yield block


def row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor whose rows follow each other."""
    return tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))


def read_safetensors(path: Path) -> list[Stored]:
    """The tensors of a .safetensors file."""
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework="numpy"):   # checks the header, the offsets and the length of the file
            pass
    except (SafetensorError, OSError) as error:
        raise Refused(f"{path.name} is not a complete safetensors file: {error}") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return [Stored(path, name, entry["dtype"], tuple(entry["shape"]), row_strides(entry["shape"]),
                   8 + length + entry["data_offsets"][0]) for name, entry in header.items()]


# The files of torch.save: a zip archive of data.pkl, which describes the tensors, and data/KEY, their storages.  The
# unpickler makes nothing but dictionaries and these descriptions.

STORAGE_DTYPES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}


class Pickled(NamedTuple):
    """A tensor as data.pkl describes it; storage is ("storage", dtype, KEY, device, count)."""
    storage: Any
    offset: Any
    shape: Any
    strides: Any


class StateDictUnpickler(pickle.Unpickler):
    """Reads a state dict; every global that one does not need is refused."""
    GLOBALS = {("collections", "OrderedDict"): OrderedDict,
               ("torch._utils", "_rebuild_tensor_v2"): lambda *values: Pickled(*values[:4]),
               ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return STORAGE_DTYPES.get(name, name)
        if (module, name) not in self.GLOBALS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a state dict does not need")
        return self.GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_torch(path: Path) -> list[Stored]:
    """The tensors of a file of torch.save."""
    if not zipfile.is_zipfile(path):
        raise Refused(f"{path.name} is not a zip archive: save it again with torch 1.6 or later, or as safetensors")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            root = next(name for name in members if name.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")
            if root + "byteorder" in members and archive.read(root + "byteorder").strip() != b"little":
                raise ValueError("it is from a big-endian machine: save it as safetensors there")
            content = StateDictUnpickler(io.BytesIO(archive.read(root + "data.pkl"))).load()
        return [locate(path, name, value, members, root + "data/") for name, value in content.items()]
    except Exception as error:   # whatever a hostile file brings about
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise Refused(f"{path.name} is not a state dict that can be loaded safely: {reason:.200}") from None


def locate(path: Path, name: Any, value: Any, members: dict[str, zipfile.ZipInfo], folder: str) -> Stored:
    """Where an entry of a state dict is.  What is not a tensor gets a type that nobody reads."""
    if not isinstance(name, str):
        raise ValueError(f"the key {name!r:.100} is not a name")
    if not isinstance(value, Pickled):
        return Stored(path, name, f"{type(value).__name__} (not a tensor)", ())
    _, dtype, key, _, _ = value.storage
    shape, strides, info = tuple(value.shape), tuple(value.strides), members[folder + key]
    numbers = (value.offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        raise ValueError(f"the tensor {name} has the shape {shape} and the strides {strides}")
    size = np.dtype(STORED_DTYPES.get(dtype, "u1")).itemsize
    end = value.offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if info.compress_type != zipfile.ZIP_STORED or (all(shape) and end * size > info.file_size):
        raise ValueError(f"the tensor {name} is compressed or reaches beyond its storage")
    with path.open("rb") as file:   # the name and the extra field of the local header have lengths of their own
        file.seek(info.header_offset)
        header = file.read(30)
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return Stored(path, name, dtype, shape, strides, start + value.offset * size)


Checkpoint: TypeAlias = dict[str, Stored]   # by the names of its layout, whichever the file format
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
READERS = {".safetensors": read_safetensors, ".bin": read_torch, ".pth": read_torch, ".pt": read_torch}


def find_weights(folder: Path, remarks: list[str]) -> list[Path]:
    """The file of weights, or the shards of an index; among the usual names in the order of transformers."""
    for name in WEIGHT_FILES:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file() and index.is_file():
            remarks.append(f"{name} is read, as transformers does, and not the shards of {index.name} beside it")
        if single.is_file():
            return [single]
        if index.is_file():
            return find_shards(folder, Config(load_json(index), index.name))
    found = [path for path in sorted(folder.iterdir()) if path.suffix in READERS and path.is_file()]
    found = [path for path in found if path.suffix == ".safetensors"] or found
    if len(found) == 1:
        return found
    names = [*WEIGHT_FILES, *(f"{name}.index.json" for name in WEIGHT_FILES)]
    files = f"several files of weights, {', '.join(path.name for path in found[:3])}, but" if found else ""
    raise Refused(f"{folder} holds {files} none of {', '.join(names)}")


def find_shards(folder: Path, index: Config) -> list[Path]:
    """The files that an index names.  A tensor that it names and no shard has is missing only if the model needs it."""
    files = sorted(set(map(str, index.block("weight_map").values.values())))
    for file in files:
        if re.search(r"[/\\:\0]", file) or Path(file).suffix not in READERS:
            raise Refused(f"{index.where}: {file!r:.100} is not the name of a file of weights")
        if not (folder / file).is_file():
            raise Refused(f"{index.where}: the shard {file} is missing in {folder}")
    return [folder / file for file in files]


def read_checkpoint(folder: Path, layout: str, remarks: list[str]) -> Checkpoint:
    """All tensors of a folder under the names of its layout; transformers also loads names without "model."."""
    checkpoint: Checkpoint = {}
    for path in find_weights(folder, remarks):
        check_not_pointer(path)
        for stored in READERS[path.suffix](path):
            bare = re.match(r"(vision_|language_|vq)model\.|aligner\.|generation_", stored.name)
            name = f"model.{stored.name}" if bare and layout == "transformers" else stored.name
            if name in checkpoint:
                raise Refused(f"tensor {name} is in {checkpoint[name].path.name} and in {path.name}")
            checkpoint[name] = stored
    return checkpoint


def check_tensors(table: list[Tensor], checkpoint: Checkpoint, layout: str, remarks: list[str]) -> None:
    """Refuse a checkpoint that lacks a tensor or has one of another shape or type; remark on unused ones."""
    expected = {name: shape for tensor in table for name, shape in tensor.sources(layout).items()}
    for name, shape in expected.items():
        if name not in checkpoint:
            raise missing_tensor(name, checkpoint)
        if checkpoint[name].dtype not in STORED_DTYPES:
            raise Refused(f"tensor {name} has type {checkpoint[name].dtype}, expected {', '.join(STORED_DTYPES)}")
        if checkpoint[name].shape != shape:
            raise Refused(f"tensor {name} has shape {list(checkpoint[name].shape)}, expected {list(shape)}")
    unused = [stored.name for name, stored in checkpoint.items()
              if name not in expected and not IGNORED_TENSORS.fullmatch(name)]
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        remarks.append(f"tensors that the model does not use are left out: {', '.join(unused[:3])}{more}")


def settle_tied(tied: bool, checkpoint: Checkpoint, layout: str) -> bool:
    """Whether the output matrix is the embedding; an equal copy in the checkpoint is dropped.  One that differs wins
    over tie_word_embeddings in transformers; the official layout does not say, and it is refused."""
    head, embedding = (checkpoint.get(name) for name in HEADS[layout])
    if not tied or head is None or embedding is None:
        return tied
    if (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and head.dtype in STORED_DTYPES and head.shape:
        if all(np.array_equal(*rows) for rows in zip(head.rows(), embedding.rows())):
            del checkpoint[HEADS[layout][0]]
            return True
    if layout == "official":
        raise Refused(f"tensor {head.name} differs from {embedding.name}, but config.json says tie_word_embeddings")
    return False


# ---------------------------------------------------------------------------------------------------- number formats

# Q4_K and Q6_K: a group of numbers x becomes scale q - low, whole numbers q from `lowest` to `highest`; low is 0 unless
# lowest is 0.  x is rounded on several grids; for each, the scale and low of least weighted squares follow from q, and
# the best pair is kept.  A block stores d and dmin, its groups whole multiples of them: of the nearest multiples and
# their neighbours those that err least, with x rounded anew.  (ggml's search is similar, without neighbours.)

PIECE = 1 << 16   # numbers that a thread encodes at once; they stay in a processor's cache
GRIDS = (0, -1, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75)   # levels more than there are; 0 first, which may be exact
NEIGHBOURS = [(0, 0), *((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))]


def inverse(x: np.ndarray) -> np.ndarray:
    """1 / x, 0 for 0."""
    return np.divide(1, x, out=np.zeros_like(x), where=x != 0)


def farther(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The one of two that is farther from zero."""
    return np.where(high >= -low, high, low)


def keep(better: np.ndarray, kept: Iterable[np.ndarray], values: Iterable[np.ndarray]) -> None:
    for old, value in zip(kept, values):
        np.copyto(old, value, where=better)


class Groups:
    """x (n, groups): numbers divided by the largest magnitude of their group, and the weights of their errors.

    The first axis is that of the sums, so that all arithmetic runs over many groups at once."""

    def __init__(self, blocks: np.ndarray, n: int, lowest: int, highest: int) -> None:
        x = np.ascontiguousarray(blocks.reshape(-1, n).T)
        self.lowest, self.highest, self.largest = lowest, highest, np.abs(x).max(0)
        self.largest[self.largest < 1e-30] = 0   # far below what d can hold
        self.x = x * inverse(self.largest)

    def weigh(self, weight: np.ndarray) -> None:
        self.weight, self.weighted = weight, weight * self.x
        self.sum_weight, self.sum_x = weight.sum(0), self.weighted.sum(0)

    def round(self, low: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, ...]:
        """q = (x + low) factor, and the sums of weight q, weight q**2, weight q x."""
        q = (self.x + low) * factor
        np.rint(q, out=q)
        np.maximum(q, self.lowest, out=q)
        np.minimum(q, self.highest, out=q)
        weighted = q * self.weight
        return q, weighted.sum(0), (weighted * q).sum(0), (q * self.weighted).sum(0)

    def fit(self, low: np.ndarray, span: np.ndarray, levels: int) -> list[np.ndarray]:
        """The scale and low of least weighted squares, over grids from -low on with about `levels` steps per span."""
        gain, best_scale, best_low = best = [np.zeros_like(span) for _ in range(3)]
        if self.lowest == 0:   # all q 0 is best for equal negative numbers
            best_low += np.where(self.sum_x < 0, -self.sum_x * inverse(self.sum_weight), 0)
            gain -= best_low * self.sum_x
        for more in GRIDS:
            _, q, qq, qx = self.round(low, np.float32(levels + more) * inverse(span))
            scale, below = qx * inverse(qq), np.zeros_like(qx)
            if self.lowest == 0:
                divisor = inverse(self.sum_weight * qq - q * q)
                lower = (q * qx - qq * self.sum_x) * divisor
                keep((divisor > 0) & (lower >= 0), (scale, below),
                     ((self.sum_weight * qx - self.sum_x * q) * divisor, lower))
            new = scale * qx - below * self.sum_x
            better = new > gain * np.float32(1.000001)   # two exact grids differ by rounding alone: the first stays
            keep(better, best, (new, scale, below))
        return [best_scale, best_low]

    def choose(self, fitted: list[np.ndarray], units: list[np.ndarray],
               limits: tuple[tuple[int, int], tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The multiples of both units, near the fitted scale and low, that err least; and q - lowest."""
        near = [np.rint(value * inverse(unit)).clip(*limit) for value, unit, limit in zip(fitted, units, limits)]
        best = [np.full_like(near[0], np.inf), near[0].copy(), near[1].copy()]
        for i, j in NEIGHBOURS:
            if j and limits[1][1] == 0:
                continue
            s, m = (near[0] + i).clip(*limits[0]), (near[1] + j).clip(*limits[1])
            scale, low = units[0] * s, units[1] * m
            _, q, qq, qx = self.round(low, inverse(scale))
            error = scale * (scale * qq - 2 * (qx + low * q)) + low * (low * self.sum_weight + 2 * self.sum_x)
            keep(error < best[0], best, (error, s, m))
        q = self.round(units[1] * best[2], inverse(units[0] * best[1]))[0]
        return best[1], best[2], (q - self.lowest).astype(np.uint8)


def halves(values: np.ndarray, groups: Groups, count: int) -> tuple[np.ndarray, np.ndarray]:
    """One value a block as float16 bytes (blocks, 2), and for each of its `count` groups in the units of its x."""
    if np.abs(values).max(initial=0) >= 65520:
        raise OverflowError   # float16 has no such number
    rounded = values.astype("<f2")
    return rounded[:, None].view(np.uint8), np.repeat(rounded.astype(np.float32), count) * inverse(groups.largest)


def encode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """float32 (blocks, 256) -> (blocks, 144) bytes."""
    groups = Groups(blocks, 32, 0, 15)
    x = groups.x
    groups.weigh(np.sqrt((x * x).mean(0)) + np.abs(x))
    low = -np.minimum(x.min(0), 0)
    fitted = groups.fit(low, x.max(0) + low, 15)
    (d, scale), (dmin, below) = (halves((v * groups.largest).reshape(-1, 8).max(1) / 63, groups, 8) for v in fitted)
    s, m, q = groups.choose(fitted, [scale, below], ((0, 63), (0, 63)))
    s, m = (multiples.reshape(-1, 8).astype(np.uint8) for multiples in (s, m))
    six_bits = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4]
    q = q.T.reshape(-1, 4, 2, 32)
    return np.concatenate([d, dmin, *six_bits, (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)], axis=1)


def encode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """float32 (blocks, 256) -> (blocks, 210) bytes."""
    groups = Groups(blocks, 16, -32, 31)
    groups.weigh(groups.x * groups.x)
    none = np.zeros_like(groups.largest)
    fitted = groups.fit(none, -farther(groups.x.max(0), groups.x.min(0)), 32)
    scales = (fitted[0] * groups.largest).reshape(-1, 16)
    d, scale = halves(farther(scales.max(1), scales.min(1)) / -128, groups, 16)
    s, _, q = groups.choose(fitted, [scale, none], ((-128, 127), (0, 0)))
    q = q.T.reshape(-1, 2, 4, 32)
    low = np.stack([q[:, :, 0] & 15 | q[:, :, 2] << 4, q[:, :, 1] & 15 | q[:, :, 3] << 4], axis=2)
    high = np.bitwise_or.reduce(q >> 4 << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2)
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), s.reshape(-1, 16).astype(np.int8).view(np.uint8),
                           d], axis=1)


def encode_piece(blocks: np.ndarray, kind: Type) -> np.ndarray:
    """Whole blocks of float32 to the bytes of a quantised type; gguf encodes all but the two above."""
    if kind in (Type.Q4_K, Type.Q6_K):
        return encode_q4_k(blocks) if kind == Type.Q4_K else encode_q6_k(blocks)
    with np.errstate(over="ignore", invalid="ignore"):   # gguf divides by scales that are nearly 0
        packed = quants.quantize(blocks, kind)
    if not np.isfinite(np.ascontiguousarray(packed[:, :2]).view("<f2")).all():
        raise OverflowError
    return packed


def quantise(rows: np.ndarray, kind: Type) -> np.ndarray:
    """float32 (..., columns) -> (..., bytes), on all processors: numpy works outside Python's lock."""
    blocks = rows.reshape(-1, GGML_QUANT_SIZES[kind][0])
    step = PIECE // blocks.shape[1]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pieces = pool.map(encode_piece, (blocks[i:i + step] for i in range(0, len(blocks), step)), repeat(kind))
        return np.concatenate(list(pieces)).reshape(*rows.shape[:-1], -1)


def encode(block: np.ndarray, kind: Type, name: str) -> np.ndarray:
    """Finite float32 rows in a format of the file, to nearest even; refuses what is not finite there."""
    block = np.ascontiguousarray(block)
    if kind == Type.F32:
        return block.astype("<f4", copy=False)
    try:
        if kind == Type.BF16:
            bits = block.view(np.uint32)
            packed, infinity = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2"), 0x7F80
        elif kind == Type.F16:
            with np.errstate(over="ignore"):
                packed, infinity = block.astype("<f2").view("<u2"), 0x7C00
        else:
            return quantise(block, kind)
        if ((packed & infinity) == infinity).any():
            raise OverflowError
    except OverflowError:
        raise Refused(f"tensor {name} holds a number too large for {kind.name}") from None
    return packed


def storage_type(tensor: Tensor, dtype: str) -> Type:
    """How a tensor is stored in a file of this --dtype."""
    if len(tensor.shape) == 1 or tensor.name in ALWAYS_F32:
        return Type.F32
    if dtype in FLOAT_TYPES:
        return Type[dtype.upper()]
    chosen = next(kind or dtype for prefix, kind in QUANTISED_TENSORS if tensor.name.startswith(prefix))
    return fitting_type(Type[chosen.upper()], tensor.shape[-1])


def fitting_type(wanted: Type, columns: int) -> Type:
    """The type of a matrix; Q8_0, or F16, where rows are not whole blocks."""
    return next(kind for kind in (wanted, Type.Q8_0, Type.F16) if columns % GGML_QUANT_SIZES[kind][0] == 0)


def remark_on_rows(plan: Plan, dtype: str) -> None:
    """Tell of matrices of the transformer that are Q8_0 though another type was asked for."""
    others = sum(tensor.name.startswith("blk.") and kind == Type.Q8_0 for tensor, kind in plan)
    if dtype in QUANTISED_TYPES and dtype != "q8_0" and others:
        remark(f"{others} matrices of the transformer are q8_0: their rows are not a multiple of the block of {dtype}")


# ----------------------------------------------------------------------------------------------------------- writing

Plan: TypeAlias = "list[tuple[Tensor, Type]]"
Blocks: TypeAlias = "Callable[[Tensor], Iterator[np.ndarray]]"   # a tensor's float32 rows, in the shape of the file


def write_file(path: Path, metadata: Metadata, plan: Plan, blocks: Blocks) -> None:
    """Write the file under a temporary name and rename it when it is complete; on any failure nothing is left.

    Reading reports its own errors (Stored.rows), so that an OSError here is one of writing."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_header(part, metadata, plan)
        with part.open("ab") as file:
            write_tensors(file, plan, blocks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def write_header(path: Path, metadata: Metadata, plan: Plan) -> None:
    """Everything before the tensors' numbers."""
    writer = GGUFWriter(path, "janus")
    writer.add_custom_alignment(ALIGNMENT)
    for key, (kind, value) in metadata.items():
        if not isinstance(value, (list, tuple)):
            writer.add_key_value(key, value, kind)
        elif value:   # the format has no empty arrays
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=kind)
    for tensor, kind in plan:
        shape = quants.quant_shape_to_byte_shape(tensor.shape, kind)
        writer.add_tensor_info(tensor.name, shape, np.dtype("u1"), math.prod(shape), raw_dtype=kind)
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()


def write_tensors(file: Any, plan: Plan, blocks: Blocks) -> None:
    """The tensors' numbers in the order of the plan, each aligned."""
    from tqdm import tqdm
    pad(file)
    total = sum(tensor.size for tensor, _ in plan)
    with tqdm(total=total, unit=" weights", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for tensor, kind in plan:
            bar.set_description(tensor.name.removesuffix(".weight"), refresh=False)
            for block in blocks(tensor):
                file.write(encode(block, kind, tensor.name).data)   # tofile() would not say why it fails
                bar.update(block.size)
            pad(file)


def pad(file: Any) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def convert(given: Path, path: Path, dtype: str | None, roles: str | None = None) -> None:
    """Convert a checkpoint.  Everything that can be checked without reading the weights is checked first."""
    if given.suffix == ".gguf" and given.is_file():
        return requantise(given, path, dtype, roles)
    folder, remarks = find_folder(given), []
    config = Config(load_json(folder / "config.json"), "config.json")
    check_relative(config, folder)
    layouts = {"multi_modality": "official", "janus": "transformers"}
    layout = layouts[config.require("model_type", *layouts)]
    checkpoint = read_checkpoint(folder, layout, remarks)
    with reading("config.json"):
        sizes = read_official_config(config, checkpoint) if layout == "official" else read_transformers_config(config)
        sizes = replace(sizes, tied=settle_tied(sizes.tied, checkpoint, layout))
        table = tensor_table(sizes)
    check_tensors(table, checkpoint, layout, remarks)
    with reading("preprocessor_config.json"):
        metadata = size_metadata(sizes) | read_image_metadata(folder, sizes)
    settings = folder / "tokenizer_config.json"
    with reading("tokenizer.json"):
        metadata |= tokenizer_metadata(load_json(folder / "tokenizer.json"), sizes.vocabulary,
                                       load_json(settings) if settings.exists() else None)
    metadata |= prompt_metadata(choose_roles(roles, folder, config, set(metadata["tokenizer.ggml.tokens"][1]), remarks))
    plan, dtype = make_plan(table, checkpoint, layout, dtype)

    def blocks(tensor: Tensor) -> Iterator[np.ndarray]:
        for name in tensor.sources(layout):
            for block in checkpoint[name].rows():   # kernels channel-last, 1x1 kernels as matrices
                kernel = len(tensor.shape) == 4
                yield block.transpose(0, 2, 3, 1) if kernel else block.reshape(-1, *tensor.shape[1:])

    for words in remarks:
        remark(words)
    remark_on_rows(plan, dtype)
    write_file(path, general_metadata(model_name(folder), dtype) | metadata, plan, blocks)


def make_plan(table: list[Tensor], checkpoint: Checkpoint, layout: str, dtype: str | None) -> tuple[Plan, str]:
    """Tensors with their storage types, and the type of the whole.  Without `dtype` each keeps the type that it has;
    parts of two types, and float64, become float32, as the model computes."""
    if dtype:
        return [(tensor, storage_type(tensor, dtype)) for tensor in table], dtype
    sizes, plan = dict.fromkeys(FLOAT_TYPES, 0), []
    for tensor in table:
        kinds = {checkpoint[name].dtype.lower() for name in tensor.sources(layout)}
        kind = kinds.pop() if len(kinds) == 1 and kinds <= set(FLOAT_TYPES) else "f32"
        sizes[kind] += tensor.size
        plan.append((tensor, storage_type(tensor, kind)))
    return plan, max(sizes, key=lambda kind: sizes[kind])


def general_metadata(name: str, dtype: str) -> Metadata:
    return {"general.name": (TEXT, name), "general.file_type": (U32, FILE_TYPES[dtype])}


# --------------------------------------------------------------------------------------------- a model file as input

def read_model_file(path: Path) -> tuple[Metadata, list[Stored]]:
    """The metadata and the tensors of a file that this program wrote with floating-point weights."""
    from gguf import GGUFReader
    try:
        reader = GGUFReader(path)
        metadata = {key: (entry.types[-1], entry.contents()) for key, entry in reader.fields.items()
                    if not key.startswith("GGUF.")}
        tensors = [Stored(path, tensor.name, tensor.tensor_type.name, shape := tuple(map(int, tensor.shape[::-1])),
                          row_strides(shape), tensor.data_offset) for tensor in reader.tensors]
    except Exception as error:   # the reader checks little and fails in many ways
        raise Refused(f"{path} is not a complete GGUF file: {str(error) or repr(error):.200}") from None
    architecture, _ = (metadata.pop(key, (0, "none"))[1] for key in ("general.architecture", "general.alignment"))
    version = metadata.get(VERSION_KEY, (0, "none"))[1]
    if architecture != "janus" or version != FORMAT_VERSION:
        raise Refused(f"{path} is a file for {architecture!s:.60}, format {version!s:.60}; expected janus, format "
                      f"{FORMAT_VERSION}: convert the checkpoint again")
    quantised = [tensor for tensor in tensors if tensor.dtype not in STORED_DTYPES]
    if quantised:
        raise Refused(f"{path} is quantised already ({quantised[0].name} is {quantised[0].dtype.lower()}): start from "
                      f"an f32, f16 or bf16 file, or from the checkpoint")
    return metadata, tensors


def requantise(source: Path, path: Path, dtype: str | None, roles: str | None) -> None:
    """Write a model file again with weights of another type."""
    if path.exists() and path.samefile(source):
        raise Refused(f"{path} would be written over its source: choose another name")
    if dtype is None:
        raise Refused(f"{source} is a model file already: name the type of its weights with --dtype")
    metadata, stored = read_model_file(source)
    plan = [(tensor, storage_type(tensor, dtype)) for tensor in (Tensor(s.name, s.shape) for s in stored)]
    rows = {tensor.name: tensor.rows for tensor in stored}
    metadata |= {"general.file_type": (U32, FILE_TYPES[dtype])} | (prompt_metadata(roles) if roles else {})
    remark_on_rows(plan, dtype)
    write_file(path, metadata, plan, lambda tensor: rows[tensor.name]())


# ------------------------------------------------------------------------------------------------------ command line

def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert a Janus or Janus-Pro checkpoint into one GGUF file.",
                                     epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage.")
    parser.add_argument("source", type=Path, help="folder as published, or a .gguf file of this program with f32, f16 "
                        "or bf16 weights")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.gguf", required=True, help="file to write")
    parser.add_argument("--dtype", type=str.lower, choices=FILE_TYPES,
                        help="type of the large weights (default: as stored)")
    parser.add_argument("--roles", type=str.lower, choices=ROLES,
                        help="who speaks in prompts: <|User|> and <|Assistant|> as in Janus-Pro, or User and "
                        "Assistant as in Janus-1.3B (default: by the checkpoint's name and tokenizer)")
    return parser.parse_args(arguments)


def check_output(path: Path) -> None:
    """Refuse an output that cannot be, or that would take the place of something other than a model file."""
    if not path.parent.is_dir() or path.exists() and not path.is_file():
        raise Refused(f"cannot write {path}: its folder does not exist, or it is not a regular file")
    if path.suffix in (".json", *READERS):
        raise Refused(f"cannot write {path}: that is the name of a checkpoint's file; the result is a .gguf file")


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return write("convert.py", options.output,
                 lambda: convert(options.source, options.output, options.dtype, options.roles))


def write(program: str, path: Path, work: Callable[[], None]) -> int:
    """Do what writes this file; every failure is one line of the program's.  The exit status."""
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):
        signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))
    try:
        if MISSING_PACKAGE:
            raise MISSING_PACKAGE
        check_output(path)
        work()
    except ImportError as error:
        print(f"{program}: the Python package {error.name} is missing: use `uv run convert.py`, which brings all "
              f"packages, or pip install gguf numpy safetensors tqdm", file=sys.stderr)
        return 1
    except (Refused, OSError, UnicodeError, MemoryError) as error:
        print(f"{program}:", printable(str(error) or "out of memory"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
