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
    janus.{embedding_length, block_count, feed_forward_length, context_length, vocab_size}
    janus.attention.{head_count, head_count_kv, key_length, layer_norm_rms_epsilon}      janus.rope.freq_base
    janus.vision.{image_size, patch_size, embedding_length, block_count, feed_forward_length}
    janus.vision.attention.{head_count, layer_norm_epsilon}
    janus.{aligner, gen_aligner}.depth     Linear layers, a gelu between two
    janus.gen_head.embedding_length
    janus.vq.{codebook_size, codebook_dim, base_channels, channel_multipliers, res_blocks, z_channels}
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
import itertools
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
from dataclasses import dataclass, field, fields, replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

try:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGUFValueType, GGUFWriter, quants
    from gguf import GGMLQuantizationType as Type
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

# The sizes that a model_name stands for, janus/models/siglip_vit.py
SIGLIP_MODELS = {
    "siglip_large_patch16_384": {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4},
    "siglip_so400m_patch14_384": {"width": 1152, "layers": 27, "heads": 16, "patch_size": 14, "mlp_ratio": 3.7362},
    "siglip_so400m_patch14_224": {"width": 1152, "layers": 27, "heads": 16, "patch_size": 14, "mlp_ratio": 3.7362},
}
GROUP_COUNT = 32        # of every GroupNorm of the VQ model
GROUP_NORM_EPS = 1e-6
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)   # what both image processors take when the file has no mean
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

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
    fetch = re.fullmatch(r"[\w.-]+/[\w.-]+", given.as_posix())
    raise Refused(f"no such folder: {given}" + (f"; hf download {given.as_posix()} --local-dir {given.name} fetches a "
                                                f"repository of that name" if fetch else ""))


def model_name(folder: Path) -> str:
    """The folder's name; a snapshot in the hub's cache has a number, and two levels above it is the name."""
    path = folder.resolve()
    hub = path.parent.name == "snapshots" and path.parents[1].name.startswith("models--")
    return os.fsencode(path.parents[1].name.rpartition("--")[2] if hub else path.name).decode("utf-8", "replace")


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

    def number(self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e9) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not low < value < high:
            raise Refused(f"{self.where}: {key} is {value!r:.60}, expected a number between {low:g} and {high:g}")
        return float(value)

    def colour(self, key: str, default: tuple[float, ...], low: float) -> list[float]:
        """Three numbers from `low` to 1."""
        value = self.items(key, default)
        if len(value) != 3 or any(type(x) not in (int, float) or not low <= x <= 1 for x in value):
            raise Refused(f"{self.where}: {key} is {value!r:.60}, expected three numbers from {low:g} to 1")
        return [float(x) for x in value]

    def items(self, key: str, default: tuple[Any, ...] | None = None) -> list[Any]:
        value = self.get(key, None if default is None else list(default))
        if not isinstance(value, list):
            raise Refused(f"{self.where}: {key} is {value!r:.60}, expected a list")
        return value

    def require(self, key: str, *allowed: Any, default: Any = None) -> Any:
        """The value, which must be one of those that this program understands."""
        value = self.get(key, default)
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise Refused(f"{self.where}: {key} is {value!r:.60}, supported is only {' or '.join(map(repr, allowed))}")
        return value


def size(key: str, default: Any, limit: int = 0) -> Any:
    """A field of Sizes: its GGUF key, and the largest value that janus.c reads where Config's bounds are wider."""
    return field(default=default, metadata={"key": f"janus.{key}", "limit": limit})


@dataclass(frozen=True)
class Sizes:
    """Every size and constant of a model.  The defaults are those of Janus-Pro-1B."""
    hidden: int = size("embedding_length", 2048)
    layers: int = size("block_count", 24, 512)
    feed_forward: int = size("feed_forward_length", 5632)
    context: int = size("context_length", 16384)
    vocabulary: int = size("vocab_size", 102400)
    heads: int = size("attention.head_count", 16, 4096)
    kv_heads: int = size("attention.head_count_kv", 16, 4096)
    head_dim: int = size("attention.key_length", 128, 4096)
    rms_eps: float = size("attention.layer_norm_rms_epsilon", 1e-6)
    rope_theta: float = size("rope.freq_base", 10000.0)
    image_size: int = size("vision.image_size", 384, 4096)
    patch_size: int = size("vision.patch_size", 16, 4096)
    vit_width: int = size("vision.embedding_length", 1024, 1 << 16)
    vit_layers: int = size("vision.block_count", 24, 512)
    vit_feed_forward: int = size("vision.feed_forward_length", 4096, 1 << 20)
    vit_heads: int = size("vision.attention.head_count", 16, 4096)
    vit_eps: float = size("vision.attention.layer_norm_epsilon", 1e-6)
    aligner_depth: int = size("aligner.depth", 2, 8)
    gen_aligner_depth: int = size("gen_aligner.depth", 2, 8)
    gen_head_width: int = size("gen_head.embedding_length", 2048)
    codebook_size: int = size("vq.codebook_size", 16384, 1 << 22)
    codebook_dim: int = size("vq.codebook_dim", 8, 4096)
    vq_channels: int = size("vq.base_channels", 128, 4096)
    vq_multipliers: tuple[int, ...] = size("vq.channel_multipliers", (1, 1, 2, 2, 4))
    vq_res_blocks: int = size("vq.res_blocks", 2, 8)
    vq_z: int = size("vq.z_channels", 256, 65536)
    tied: bool = False

    @property
    def grid(self) -> int:
        """Patches, and generated tokens, a side."""
        return self.image_size // self.patch_size


SIZE_FIELDS = [entry for entry in fields(Sizes) if entry.metadata]


def check_relative(config: Config, folder: Path) -> None:
    """Refuse by name the models that are easily taken for Janus, and what is only a part of one."""
    keys, kind = config.values.keys(), config.values.get("model_type")
    relative = ""
    if {"vision_und_enc_config", "vision_gen_enc_config", "vision_gen_dec_config"} & keys:
        relative = "JanusFlow"
    elif kind == "multi_modality" and not {"gen_vision_config", "gen_head_config", "gen_aligner_config"} & keys:
        relative = "DeepSeek-VL"
    elif isinstance(kind, str) and kind.startswith("deepseek_vl"):
        relative = "DeepSeek-VL2" if "v2" in kind else "DeepSeek-VL"
    if relative:
        raise Refused(f"{folder} holds {relative}, which is another model: this program converts Janus-1.3B, "
                      f"Janus-Pro-1B, Janus-Pro-7B and what is made from them")
    if config.has("quantization_config"):
        raise Refused("config.json: quantization_config is not supported: take the checkpoint that is not quantised")


def read_llama(config: Config) -> dict[str, Any]:
    """The sizes of the transformer from a LlamaConfig, with its defaults."""
    config.require("model_type", "llama", default="llama")
    config.require("hidden_act", "silu", default="silu")
    config.require("attention_bias", False, default=False)
    config.require("mlp_bias", False, default=False)
    heads, hidden = config.integer("num_attention_heads", 32), config.integer("hidden_size", 4096)
    kv_heads = config.integer("num_key_value_heads", heads)
    head_dim = config.integer("head_dim", max(1, hidden // heads))
    if hidden % heads or heads % kv_heads or head_dim % 2:
        raise Refused(f"{config.where}: {heads} heads of {head_dim}, {kv_heads} key heads, width {hidden} do not fit")
    return dict(hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
                layers=config.integer("num_hidden_layers", 32, high=1024),
                feed_forward=config.integer("intermediate_size", 11008),
                vocabulary=config.integer("vocab_size", 32000, high=1 << 24),
                context=config.integer("max_position_embeddings", 2048, high=1 << 24),
                rms_eps=config.number("rms_norm_eps", 1e-6), rope_theta=read_rope_theta(config))


def read_rope_theta(config: Config) -> float:
    """rope_theta, which stands beside the other keys or, since transformers 5, inside rope_parameters."""
    theta = config.number("rope_theta", 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.block(key)
        for unknown in set(rope.values) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}:
            raise Refused(f"{rope.where}: {unknown} is not supported")
        rope.require("rope_type", "default", default="default")
        rope.require("type", "default", default="default")
        rope.require("partial_rotary_factor", 1, 1.0, default=1.0)
        inner = rope.number("rope_theta", theta)
        if config.has("rope_theta") and inner != theta:
            raise Refused(f"{rope.where}: rope_theta is {inner:g}, but {theta:g} beside it")
        theta = inner
    return theta


def read_projector(config: Config, inner: int, outer: int) -> int:
    """The depth of an MlpProjector that must lead from `inner` to `outer` channels."""
    config.require("cls", "MlpProjector")
    params = config.block("params")
    params.require("projector_type", "mlp_gelu")
    params.require("input_dim", inner)
    params.require("n_embed", outer)
    return params.integer("depth", 1, high=64)


def read_official_config(config: Config, shapes: dict[str, tuple[int, ...]]) -> Sizes:
    """Sizes from a multi_modality config.

    Its vision tower comes by name and its VQ model has no sizes in the config at all.  Smaller relatives give the
    tower's width, layers, heads, patch_size, mlp_ratio beside the name; the sizes of the VQ model are its tensors'.
    """
    language = config.block("language_config")
    llama = read_llama(language)
    hidden = llama["hidden"]
    vision = config.block("vision_config")
    vision.require("cls", "CLIPVisionTower")
    params = vision.block("params")
    name = params.require("model_name", *SIGLIP_MODELS, default="siglip_large_patch16_384")
    params.require("select_layer", -1, default=-2)
    if params.has("pixel_mean") and params.has("pixel_std"):
        raise Refused(f"{params.where}: pixel_mean and pixel_std are not supported")
    known = SIGLIP_MODELS[name]
    width = params.integer("width", known["width"])

    gen_vision = config.block("gen_vision_config")
    gen_vision.require("cls", "VQ-16")
    vq = read_vq_shapes(shapes)
    gen_vision.block("params").require("image_token_size", vq["codebook_size"])
    gen_vision.block("params").require("n_embed", vq["codebook_dim"])
    head = config.block("gen_head_config")
    head.require("cls", "vision_head")
    head.block("params").require("n_embed", hidden)
    head.block("params").require("image_token_size", vq["codebook_size"])

    return Sizes(**llama, **vq, tied=language.require("tie_word_embeddings", True, False, default=False),
                 image_size=params.integer("image_size", 336),
                 patch_size=params.integer("patch_size", known["patch_size"]),
                 vit_width=width,
                 vit_layers=params.integer("layers", known["layers"], high=1024),
                 vit_heads=params.integer("heads", known["heads"]),
                 vit_feed_forward=int(width * params.number("mlp_ratio", known["mlp_ratio"], high=1000)),
                 aligner_depth=read_projector(config.block("aligner_config"), width, hidden),
                 gen_aligner_depth=read_projector(config.block("gen_aligner_config"), vq["codebook_dim"], hidden),
                 gen_head_width=head.block("params").integer("image_token_embed"))


def missing_tensor(name: str, names: Iterable[str]) -> Refused:
    """Says which tensor is missing and, to show how names are formed there, the two most alike that the file has."""
    alike = sorted(names, key=lambda other: -len(os.path.commonprefix([name[::-1], other[::-1]])))[:2]
    prefix = os.path.commonprefix(list(names)).rpartition(".")[0]
    words = f": the checkpoint has {' and '.join(alike)}" if alike else ": the checkpoint has no tensors"
    words += f", and every name there begins with {prefix}." if prefix else ""
    return Refused(f"tensor {name} is missing{words:.300}")


def read_vq_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Sizes of an official VQ model from a few of its tensors; check_tensors sees whether all the others agree."""
    def shape(name: str, rank: int) -> tuple[int, ...]:
        name = f"gen_vision_model.{name}.weight"
        if name not in shapes:
            raise missing_tensor(name, shapes)
        if len(shapes[name]) != rank or not all(shapes[name]):
            raise Refused(f"tensor {name} has shape {list(shapes[name])}, expected {rank} dimensions")
        return shapes[name]

    def count(pattern: str) -> int:
        found = (re.match(rf"gen_vision_model\.encoder\.conv_blocks\.{pattern}\.", name) for name in shapes)
        return max((int(match[1]) + 1 for match in found if match), default=1)

    channels = shape("encoder.conv_in", 4)[0]
    widths = [shape(f"encoder.conv_blocks.{level}.res.0.conv2", 4)[0] for level in range(min(count(r"(\d{1,3})"), 16))]
    codebook_size, codebook_dim = shape("quantize.embedding", 2)
    return dict(codebook_size=codebook_size, codebook_dim=codebook_dim, vq_channels=channels,
                vq_multipliers=tuple(max(1, width // channels) for width in widths),
                vq_res_blocks=min(count(r"0\.res\.(\d{1,3})"), 64), vq_z=shape("encoder.conv_out", 4)[0])


def read_transformers_config(config: Config) -> Sizes:
    """Sizes from a JanusConfig, with the defaults of its parts."""
    llama = read_llama(config.block("text_config"))
    vision, vq = config.block("vision_config"), config.block("vq_config")
    for key, value in (("hidden_act", "gelu"), ("num_channels", 3), ("attention_bias", True), ("use_qk_norm", False)):
        vision.require(key, value, default=value)
    for key, value in (("hidden_act", "gelu"), ("in_channels", 3), ("out_channels", 3), ("double_latent", False)):
        vq.require(key, value, default=value)
    vision.require("projection_dim", llama["hidden"], default=2048)
    vq.require("projection_dim", llama["hidden"], default=2048)
    vq.require("image_token_embed_dim", llama["hidden"], default=2048)
    multipliers = vq.items("channel_multiplier", (1, 1, 2, 2, 4))
    if not 1 <= len(multipliers) <= 16 or any(type(m) is not int or not 1 <= m <= 64 for m in multipliers):
        raise Refused(f"{vq.where}: channel_multiplier is {multipliers!r:.60}, expected 1 to 16 small integers")
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
                 vq_multipliers=tuple(multipliers),
                 vq_res_blocks=vq.integer("num_res_blocks", 2, high=64),
                 vq_z=vq.integer("latent_channels", 256))


def check_sizes(sizes: Sizes) -> None:
    """Refuse sizes that no layer could have, whatever the tensors say, and those that janus.c does not read."""
    for key, limit, value in ((*entry.metadata.values(), getattr(sizes, entry.name)) for entry in SIZE_FIELDS):
        if limit and value > limit:
            raise Refused(f"config.json: {key.removeprefix('janus.')} is {value}, supported are up to {limit}")
    if len(sizes.vq_multipliers) > 8 or sizes.grid << (len(sizes.vq_multipliers) - 1) > 4096:
        raise Refused(f"config.json: {len(sizes.vq_multipliers)} levels of the VQ model and a grid of {sizes.grid} "
                      f"are more than 8, or draw more than 4096 pixels a side")
    if sizes.image_size % sizes.patch_size:
        raise Refused(f"config.json: image_size {sizes.image_size} is not a multiple of patch_size {sizes.patch_size}")
    if sizes.vit_width % sizes.vit_heads or not sizes.vit_feed_forward:
        raise Refused(f"config.json: {sizes.vit_heads} heads and an MLP of {sizes.vit_feed_forward} do not fit "
                      f"a vision width of {sizes.vit_width}")
    for width in (sizes.vq_channels * multiplier for multiplier in (1, *sizes.vq_multipliers)):
        if width % GROUP_COUNT:
            raise Refused(f"config.json: {width} channels of the VQ model are not a multiple of its {GROUP_COUNT} groups")


# ------------------------------------------------------------------------------------------ preprocessing, tokenizer

# key -> (type, value); the type of an array is that of its items
Metadata: TypeAlias = "dict[str, tuple[GGUFValueType, Any]]"


def u32(value: int | list[int] | tuple[int, ...]) -> tuple[GGUFValueType, Any]:
    return GGUFValueType.UINT32, list(value) if isinstance(value, tuple) else value


def f32(value: float | list[float]) -> tuple[GGUFValueType, Any]:
    return GGUFValueType.FLOAT32, value


def text(value: str | list[str]) -> tuple[GGUFValueType, Any]:
    return GGUFValueType.STRING, value


def size_metadata(sizes: Sizes) -> Metadata:
    """Every size and constant under its GGUF key."""
    return {
        VERSION_KEY: u32(FORMAT_VERSION),
        **{entry.metadata["key"]: (f32 if entry.type == "float" else u32)(getattr(sizes, entry.name))
           for entry in SIZE_FIELDS},
        "janus.vq.group_count": u32(GROUP_COUNT),
        "janus.vq.group_norm_epsilon": f32(GROUP_NORM_EPS),
        "janus.vq.grid_size": u32(sizes.grid),
    }


def prompt_metadata(roles: str) -> Metadata:
    user, assistant = ROLES[roles]
    return {"janus.prompt.system": text(SYSTEM_PROMPT), "janus.prompt.user_role": text(user),
            "janus.prompt.assistant_role": text(assistant)}


def choose_roles(folder: Path, config: Config, added: set[str], remarks: list[str]) -> str:
    """Which of ROLES a checkpoint was trained with, by its name, or else by the tokens that its tokenizer has."""
    names = f"{model_name(folder)} {config.values.get('_name_or_path')}"
    if not re.search(r"Janus-1\.3B", names, re.IGNORECASE) and set(ROLES["pro"]) <= added:
        return "pro"
    remarks.append(f"prompts will say {' and '.join(ROLES['1.3b'])}, as those of Janus-1.3B; --roles pro changes that")
    return "1.3b"


def check_roles(roles: str, added: set[str], remarks: list[str]) -> None:
    """Remark on roles that this tokenizer cuts into pieces."""
    cut = [role for role in ROLES[roles] if role.startswith("<") and role not in added]
    if cut:
        remarks.append(f"{' and '.join(cut)} of the prompts will be several tokens each, for this tokenizer has none "
                       f"of that name; --roles 1.3b is right for Janus-1.3B and what is made from it")


def image_metadata(config: Config, sizes: Sizes) -> Metadata:
    """The preprocessing values; `config` is a preprocessor_config of either layout, defaults those of both classes."""
    for key in ("do_resize", "do_rescale", "do_pad"):
        config.require(key, True, default=True)
    config.require("resample", 3, default=3)
    config.require("image_size", sizes.image_size, default=sizes.image_size if config.has("size") else 384)
    for key in ("height", "width") if config.has("size") else ():
        config.block("size").require(key, sizes.image_size)
    mean = config.colour("image_mean", CLIP_MEAN, 0)
    background = [int(x * 255) for x in mean]
    config.require("background_color", background, default=background)
    return {
        "janus.image.min_size": u32(config.integer("min_size", 14, high=sizes.image_size)),
        "janus.image.mean": f32(mean),
        "janus.image.std": f32(config.colour("image_std", CLIP_STD, 1e-6)),
        "janus.image.rescale_factor": (GGUFValueType.FLOAT64, config.number("rescale_factor", 1 / 255)),
        "janus.image.background_color": u32(background),
        "janus.image.do_normalize": (GGUFValueType.BOOL, config.require("do_normalize", True, False, default=True)),
    }


def read_image_metadata(folder: Path, sizes: Sizes) -> Metadata:
    """Preprocessing from preprocessor_config.json or, since transformers 5, from inside processor_config.json."""
    processor = Config({}, "processor_config.json")
    if (folder / "processor_config.json").exists():
        processor = Config(load_json(folder / "processor_config.json"), "processor_config.json")
        processor.require("num_image_tokens", sizes.grid**2, default=sizes.grid**2)
        processor.require("sft_format", "deepseek", default="deepseek")
        processor.require("add_special_token", False, default=False)   # true: the placeholder stays before the image
        for key, tag in (("image_tag", IMAGE_PLACEHOLDER), ("image_start_tag", BEGIN_OF_IMAGE),
                         ("image_end_tag", END_OF_IMAGE), ("pad_tag", PAD)):
            processor.require(key, tag, default=tag)
    if processor.has("image_processor") and not (folder / "preprocessor_config.json").exists():
        return image_metadata(processor.block("image_processor"), sizes)
    return image_metadata(Config(load_json(folder / "preprocessor_config.json"), "preprocessor_config.json"), sizes)


def byte_alphabet() -> list[str]:
    """What stands for each byte in a byte-level vocabulary: its character if printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(0x100 + others.index(b)) for b in range(256)]


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
SPLIT_RULES = 16   # janus.c: SPLIT_RULE_LIMIT
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
        nested = [Config(part, config.where) for part in config.items("pretokenizers")]
        if any(part.values.get("type") == "Sequence" for part in nested):
            raise Refused(f"{config.where}: a sequence inside a sequence is not supported")
        return [step for part in nested for step in pre_tokenizer_steps(part)]
    if kind == "Split":
        config.require("behavior", "Isolated")
        config.require("invert", False, default=False)
        pattern = config.block("pattern").get("Regex")
        if not isinstance(pattern, str):
            raise Refused(f"{config.where}: a split pattern is not a string")
        return [compile_split(pattern)]
    if kind == "Digits":
        return [split_rule([], code_ranges(DIGITS), repeated=not config.require("individual_digits", True, False))]
    config.require("add_prefix_space", False, default=True)
    config.require("use_regex", False, default=True)
    return [BYTE_LEVEL]


def check_steps(steps: list[list[int]]) -> list[int]:
    """The split rules in one list, if the only byte-level step is the last, and if "$" can mean the end of a piece."""
    if steps.count(BYTE_LEVEL) != 1 or steps[-1] != BYTE_LEVEL:
        raise Refused("tokenizer.json: pre_tokenizer: ByteLevel must be its last step and stand there once")
    if len(steps) - 1 > SPLIT_RULES:
        raise Refused(f"tokenizer.json: pre_tokenizer: {len(steps) - 1} steps before ByteLevel, at most {SPLIT_RULES}")
    for number, step in enumerate(steps[:-1]):
        # "$" is the end of a line there; only once newlines are pieces of their own is that the end of the piece.
        if step[0] & 2 and compile_split("[\\r\\n]") not in steps[:number]:
            raise Refused('tokenizer.json: pre_tokenizer: a split that ends in "$" needs a split at [\\r\\n] before it')
    return [number for step in steps for number in step]


def check_post_processor(values: Any) -> None:
    """Refuse a post-processor that adds anything but BOS in front."""
    if values is None:
        return
    config = Config(values, "tokenizer.json: post_processor")
    kind = config.require("type", "ByteLevel", "TemplateProcessing", "Sequence")
    if kind == "Sequence":
        for part in config.items("processors"):
            Config(part, config.where).require("type", "ByteLevel", "TemplateProcessing")
            check_post_processor(part)
    if kind == "TemplateProcessing":
        sequence = {"Sequence": {"id": "A", "type_id": 0}}
        config.require("single", [sequence], [{"SpecialToken": {"id": BOS, "type_id": 0}}, sequence])


def check_bpe(config: Config) -> None:
    """Refuse what is not plain byte-pair encoding."""
    config.require("type", "BPE")
    plain = {"dropout": (0, 0.0), "continuing_subword_prefix": ("",), "end_of_word_suffix": ("",),
             "byte_fallback": (False,), "ignore_merges": (False,), "fuse_unk": (True, False)}
    for key, allowed in plain.items():
        config.require(key, *allowed, default=allowed[0])
    for unknown in set(config.values) - {"type", "vocab", "merges", "unk_token", *plain}:
        raise Refused(f"{config.where}: {unknown} is not supported")
    if config.has("unk_token"):
        raise Refused(f"{config.where}: unk_token is not supported")


def added_token_entries(document: Config, overrides: Config) -> list[Config]:
    """The entries of added_tokens, with the flags that tokenizer_config.json gives them and the tokens that it adds."""
    entries = [Config(entry, "tokenizer.json: added_tokens") for entry in document.items("added_tokens")]
    known = {str(entry.values.get("content")): entry for entry in entries}
    ids = document.block("model").get("vocab")
    decoder = overrides.block("added_tokens_decoder")
    for number, values in sorted(decoder.values.items(), key=lambda item: item[0].zfill(20)):
        config = Config(values, f"{decoder.where}: {number:.20}")
        content = config.get("content")
        old = known.get(str(content))
        # A token that is new to the tokenizer gets the id of its name or the next free one.
        expected = old.values.get("id") if old else ids.get(str(content), len(ids | known))
        if str(expected) != number:
            raise Refused(f"{config.where}: in tokenizer.json the token {content!r:.60} has the id {expected}")
        values = {"normalized": False, "special": False} | config.values | {"id": expected}
        if old:
            old.values, old.where = old.values | values, config.where
        else:
            known[str(content)] = Config(values, config.where)
            entries.append(known[str(content)])
    return entries


def read_added_tokens(document: Config, overrides: Config) -> dict[str, tuple[int, bool]]:
    """Content -> (id, special) of the added tokens."""
    added: dict[str, tuple[int, bool]] = {}
    normalized: dict[bool, set[str]] = {True: set(), False: set()}
    for config in added_token_entries(document, overrides):
        content = config.get("content")
        if not isinstance(content, str) or not content or content in added:
            raise Refused(f"tokenizer.json: added_tokens: {content!r:.60} is not a string, or occurs twice")
        config.where += f" {content!r}"
        for key in ("lstrip", "rstrip", "single_word"):
            config.require(key, False, default=False)
        normalized[config.require("normalized", True, False)].add(content)
        added[content] = config.integer("id", low=0, high=1 << 24), config.require("special", True, False)
    check_overlaps(normalized[False], normalized[True])
    return added


def check_tokenizer_config(config: Config) -> None:
    """Refuse a tokenizer_config.json by which prompts would begin or end otherwise."""
    config.require("add_bos_token", True, default=True)
    config.require("add_eos_token", False, default=False)
    for key, token in (("bos_token", BOS), ("eos_token", EOS)):
        value = config.get(key, token)
        if (value.get("content") if isinstance(value, dict) else value) != token:
            raise Refused(f"{config.where}: {key} is {value!r:.60}, supported is only {token!r}")


def check_overlaps(first: set[str], second: set[str]) -> None:
    """Refuse two kinds of added tokens that could claim the same text: one kind is searched for before the other."""
    for one, other in itertools.product(first, second):
        ends = ((one, other), (other, one))
        if any(a in b or any(a.endswith(b[:size]) for size in range(1, len(b))) for a, b in ends):
            raise Refused(f"tokenizer.json: added_tokens: {one!r} overlaps {other!r}, whose flag `normalized` differs")


def read_merges(config: Config, vocabulary: dict[str, int]) -> list[int]:
    """The merges by rank, three ids each: left, right, and what they become; the file may have either of two forms."""
    result: list[int] = []
    alphabet = set(byte_alphabet())
    for merge in config.items("merges"):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        plain = isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
        if not plain or not all(pair) or " " in "".join(pair):
            raise Refused(f"{config.where}: the merge {merge!r:.60} is not a pair of tokens")
        for token in (*pair, "".join(pair)):
            if token not in vocabulary or not alphabet.issuperset(token):
                raise Refused(f"{config.where}: the merge {merge!r:.60} names a token outside the vocabulary")
            result.append(vocabulary[token])
    return result


def read_vocabulary(config: Config, size: int) -> dict[str, int]:
    """Token -> id; refuses ids that are none, that stand twice or that the embedding has no row for."""
    vocabulary = config.get("vocab")
    if not isinstance(vocabulary, dict):
        raise Refused(f"{config.where}: vocab is not an object")
    for token, number in vocabulary.items():
        if type(number) is not int or not 0 <= number < size:
            raise Refused(f"{config.where}: the id {number!r:.60} of token {token!r:.60} is outside 0..{size - 1}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise Refused(f"{config.where}: two tokens have one id")
    valid_utf8 = (byte for byte in range(0xF5) if byte not in (0xC0, 0xC1))
    for byte, character in ((byte, byte_alphabet()[byte]) for byte in valid_utf8):
        if character not in vocabulary:
            raise Refused(f"{config.where}: no token for the byte 0x{byte:02X}")
    return vocabulary


def check_not_resaved(document: Config) -> None:
    """Refuse what transformers 5 saves after it loaded a byte-level tokenizer as a LlamaTokenizer: a vocabulary of the
    one kind with the rules of the other."""
    step = document.block("pre_tokenizer").values.get("type")
    if step == "Metaspace" and "\u0120" in str(document.block("model").values.get("vocab", "")):
        raise Refused("tokenizer.json: pre_tokenizer: Metaspace does not fit a byte-level vocabulary; transformers 5 "
                      "saves that when it took the tokenizer for a LlamaTokenizer: take the original tokenizer.json")


def tokenizer_metadata(values: Any, vocabulary_size: int, overrides: Config | None = None) -> Metadata:
    """The tokenizer from what tokenizer.json and tokenizer_config.json hold; anything not understood is refused."""
    document, overrides = Config(values, "tokenizer.json"), overrides or Config({}, "tokenizer_config.json")
    check_not_resaved(document)
    check_tokenizer_config(overrides)
    if document.has("normalizer") and document.get("normalizer") != {"type": "Sequence", "normalizers": []}:
        raise Refused("tokenizer.json: a normalizer is not supported")
    document.block("decoder").require("type", "ByteLevel")
    check_post_processor(document.values.get("post_processor"))
    model = document.block("model")
    check_bpe(model)
    vocabulary, added = read_vocabulary(model, vocabulary_size), read_added_tokens(document, overrides)

    tokens = [f"[PAD{number}]" for number in range(vocabulary_size)]
    kinds = [5] * vocabulary_size
    for token, number in vocabulary.items():
        tokens[number], kinds[number] = token, 1
    for token, (number, special) in added.items():
        if number >= vocabulary_size:
            raise Refused(f"tokenizer.json: the id {number} of token {token!r} is outside 0..{vocabulary_size - 1}")
        if (token in vocabulary or kinds[number] != 5) and vocabulary.get(token) != number:
            raise Refused(f"tokenizer.json: added token {token!r} and the vocabulary disagree on the id {number}")
        tokens[number], kinds[number] = token, 3 if special else 4
    if len(set(tokens)) != vocabulary_size:
        raise Refused("tokenizer.json: a token has the name of an unused one")

    def id_of(token: str) -> tuple[GGUFValueType, int]:
        if token not in added:
            raise Refused(f"tokenizer.json: the token {token!r} is missing from added_tokens")
        return u32(added[token][0])

    return {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text("deepseek-llm"),
        "tokenizer.ggml.tokens": text(tokens),
        "tokenizer.ggml.token_type": (GGUFValueType.INT32, kinds),
        "tokenizer.ggml.bos_token_id": id_of(BOS),
        "tokenizer.ggml.eos_token_id": id_of(EOS),
        "tokenizer.ggml.padding_token_id": id_of(PAD),
        "tokenizer.ggml.add_bos_token": (GGUFValueType.BOOL, True),
        "janus.tokenizer.image_placeholder_id": id_of(IMAGE_PLACEHOLDER),
        "janus.tokenizer.begin_of_image_id": id_of(BEGIN_OF_IMAGE),
        "janus.tokenizer.end_of_image_id": id_of(END_OF_IMAGE),
        "janus.tokenizer.merges": u32(read_merges(model, vocabulary)),
        "janus.tokenizer.split_rules": u32(check_steps(pre_tokenizer_steps(document.block("pre_tokenizer")))),
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

    def add(self, name: str, official: str, transformers: str | tuple[str, ...], shape: tuple[int, ...], init: str,
            stored: tuple[int, ...] | None = None) -> None:
        names = (transformers,) if isinstance(transformers, str) else transformers
        names = tuple(n if n.startswith("lm_head") else "model." + n for n in names)
        self.tensors.append(Tensor(name, shape, official, names, stored or shape, init))

    def linear(self, name: str, official: str, transformers: str | tuple[str, ...], outer: int, inner: int) -> None:
        names = (transformers,) if isinstance(transformers, str) else transformers
        init = f"uniform {inner ** -0.5}"
        self.add(f"{name}.weight", f"{official}.weight", tuple(f"{n}.weight" for n in names), (outer, inner), init)
        self.add(f"{name}.bias", f"{official}.bias", tuple(f"{n}.bias" for n in names), (outer,), init)

    def norm(self, name: str, official: str, transformers: str, width: int) -> None:
        self.add(f"{name}.weight", f"{official}.weight", f"{transformers}.weight", (width,), "ones")
        self.add(f"{name}.bias", f"{official}.bias", f"{transformers}.bias", (width,), "zeros")

    def conv(self, name: str, official: str, transformers: str, outer: int, inner: int, side: int) -> None:
        init, stored = f"uniform {(inner * side * side) ** -0.5}", (outer, inner, side, side)
        shape = (outer, inner) if side == 1 else (outer, side, side, inner)
        self.add(f"{name}.weight", f"{official}.weight", f"{transformers}.weight", shape, init, stored)
        self.add(f"{name}.bias", f"{official}.bias", f"{transformers}.bias", (outer,), init)

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
            self.linear(f"{new}.qkv", f"{old}.attn.qkv", tuple(f"{hf}.self_attn.{p}_proj" for p in "qkv"),
                        3 * s.vit_width, s.vit_width)
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
    array: np.ndarray | None = None   # the tensor itself, where it is in memory

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first..last-1, bf16 as its bits.  They are read, never mapped, so that memory holds one piece at a time."""
        if self.array is not None:
            return self.array[first:last]
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
                block = widen(self.read(first, min(first + step, self.shape[0])))
            except OSError as error:
                raise Refused(f"cannot read {self.path}: {error.strerror or error}") from None
            if not np.isfinite(block).all():
                raise Refused(f"tensor {self.name} holds a number that is not finite")
            yield block


def widen(block: np.ndarray) -> np.ndarray:
    """float64, float32, float16 or the bits of bfloat16 as float32; too large numbers become infinite."""
    if block.dtype == np.uint16:
        return (block.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return block.astype(np.float32, copy=False)


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

STORAGE_DTYPES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
                  "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
                  "ByteStorage": "U8", "BoolStorage": "BOOL"}


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
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if (module, name) not in self.GLOBALS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a state dict does not need")
        return self.GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_torch(path: Path) -> list[Stored]:
    """The tensors of a file of torch.save."""
    if not zipfile.is_zipfile(path):
        return read_legacy_torch(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            root = next(name for name in members if name.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")
            if root + "byteorder" in members and archive.read(root + "byteorder").strip() != b"little":
                raise ValueError("it is from a big-endian machine: save it as safetensors there")
            content = StateDictUnpickler(io.BytesIO(archive.read(root + "data.pkl"))).load()
        if not isinstance(content, dict):
            raise ValueError("it holds no dictionary")
        return [locate(path, name, value, members, root + "data/") for name, value in content.items()]
    except Exception as error:   # whatever a hostile file brings about
        raise unsafe(path, error) from None


def unsafe(path: Path, error: Exception) -> Refused:
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    return Refused(f"{path.name} is not a state dict that can be loaded safely: {reason:.200}")


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


def read_legacy_torch(path: Path) -> list[Stored]:
    """The tensors of a file of torch before 1.6, which is not an archive; they are in memory."""
    try:
        import torch
    except ImportError:
        raise Refused(f"{path.name} is not a zip archive; if torch before 1.6 wrote it, install torch") from None

    def array(tensor: Any) -> np.ndarray:
        tensor = tensor.detach().contiguous()
        return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()

    try:
        arrays = {name: array(tensor) for name, tensor in torch.load(path, "cpu", weights_only=True).items()}
    except Exception as error:   # whatever a hostile file brings about in torch's restricted unpickler
        raise unsafe(path, error) from None
    dtypes = {np.dtype(stored): dtype for dtype, stored in STORED_DTYPES.items()}
    return [Stored(path, name, dtypes.get(value.dtype, value.dtype.name), value.shape, array=value)
            for name, value in arrays.items()]


WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
READERS = {".safetensors": read_safetensors, ".bin": read_torch, ".pth": read_torch, ".pt": read_torch}


def read_weights(path: Path) -> list[Stored]:
    check_not_pointer(path)
    return READERS[path.suffix](path)


def find_weights(folder: Path, remarks: list[str]) -> Path:
    """The file of weights, or the index of its shards; among the usual names in the order of transformers."""
    for name in WEIGHT_FILES:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            if index.is_file():
                remarks.append(f"{name} is read, as transformers does, and not the shards of {index.name} beside it")
            return single
        if index.is_file():
            return index
    found = [path for path in sorted(folder.iterdir()) if path.suffix in READERS and path.is_file()]
    found = [path for path in found if path.suffix == ".safetensors"] or found
    if len(found) == 1:
        return found[0]
    names = [*WEIGHT_FILES, *(f"{name}.index.json" for name in WEIGHT_FILES)]
    files = f"several files of weights, {', '.join(path.name for path in found[:3])}, but" if found else ""
    raise Refused(f"{folder} holds {files} none of {', '.join(names)}")


class Checkpoint:
    """All tensors of a folder under the names of its layout, whichever the file format and however many the shards."""

    def __init__(self, folder: Path, layout: str, remarks: list[str]) -> None:
        self.tensors: dict[str, Stored] = {}
        self.layout = layout
        weights = find_weights(folder, remarks)
        if weights.suffix == ".json":
            self.add_indexed(Config(load_json(weights), weights.name), folder)
        else:
            self.add(weights)

    def add(self, path: Path) -> None:
        for stored in read_weights(path):
            name = self.full_name(stored.name)
            if name in self.tensors:
                raise Refused(f"tensor {name} is in {self.tensors[name].path.name} and in {path.name}")
            self.tensors[name] = stored

    def full_name(self, name: str) -> str:
        """transformers also loads names without "model."."""
        bare = self.layout == "transformers" and re.match(r"(vision_|language_|vq)model\.|aligner\.|generation_", name)
        return f"model.{name}" if bare else name

    def add_indexed(self, index: Config, folder: Path) -> None:
        places = index.block("weight_map").values
        for file in sorted(set(map(str, places.values()))):
            if re.search(r"[/\\:\0]", file) or Path(file).suffix not in READERS:
                raise Refused(f"{index.where}: {file!r:.100} is not the name of a file of weights")
            if not (folder / file).is_file():
                raise Refused(f"{index.where}: the shard {file} is missing in {folder}")
            self.add(folder / file)
        for name, file in places.items():   # a name that no shard has is an error only if the model needs it
            stored = self.tensors.get(self.full_name(name))
            if stored and stored.path.name != file:
                raise Refused(f"{index.where}: tensor {name} is not in {file} but in {stored.path.name}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.tensors.items()}

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors have the same type, shape and numbers."""
        a, b = self.tensors[one], self.tensors[other]
        if (a.dtype, a.shape) != (b.dtype, b.shape) or a.dtype not in STORED_DTYPES or not a.shape:
            return False
        return all(np.array_equal(*rows) for rows in zip(a.rows(), b.rows()))


def check_tensors(table: list[Tensor], checkpoint: Checkpoint, remarks: list[str]) -> None:
    """Refuse a checkpoint that lacks a tensor or has one of another shape or type; remark on unused ones."""
    shapes = checkpoint.shapes
    expected = {name: shape for tensor in table for name, shape in tensor.sources(checkpoint.layout).items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise missing_tensor(name, shapes)
        if checkpoint.tensors[name].dtype not in STORED_DTYPES:
            raise Refused(f"tensor {name} has type {checkpoint.tensors[name].dtype}, "
                          f"expected {', '.join(STORED_DTYPES)}")
        if shapes[name] != shape:
            raise Refused(f"tensor {name} has shape {list(shapes[name])}, expected {list(shape)}")
    unused = [stored.name for name, stored in checkpoint.tensors.items()
              if name not in expected and not IGNORED_TENSORS.fullmatch(name)]
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        remarks.append(f"tensors that the model does not use are left out: {', '.join(unused[:3])}{more}")


def settle_tied(tied: bool, checkpoint: Checkpoint) -> bool:
    """Whether the output matrix is the embedding; an equal copy in the checkpoint is dropped.

    transformers lets a stored lm_head win over tie_word_embeddings.  The official layout does not say: that is refused.
    """
    head, embedding = HEADS[checkpoint.layout]
    if not tied or not {head, embedding} <= checkpoint.tensors.keys():
        return tied
    if checkpoint.same(head, embedding):
        del checkpoint.tensors[head]
    elif checkpoint.layout == "official":
        raise Refused(f"tensor {head} differs from {embedding}, but config.json says tie_word_embeddings")
    return head not in checkpoint.tensors


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


# gguf encodes the other types.
ENCODERS = {} if MISSING_PACKAGE else {Type.Q4_K: encode_q4_k, Type.Q6_K: encode_q6_k}


def encode_piece(blocks: np.ndarray, kind: Type) -> np.ndarray:
    """Whole blocks of float32 to the bytes of a quantised type."""
    if kind in ENCODERS:
        return ENCODERS[kind](blocks)
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
        if not isinstance(value, list):
            writer.add_key_value(key, value, kind)
        elif value:   # the format has no empty arrays
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=kind)
    for tensor, kind in plan:
        if kind.name.lower() in FLOAT_TYPES:
            shape, item = tensor.shape, np.dtype("f4") if kind == Type.F32 else np.dtype("f2")
        else:
            shape, item = quants.quant_shape_to_byte_shape(tensor.shape, kind), np.dtype("u1")
        writer.add_tensor_info(tensor.name, shape, item, math.prod(shape) * item.itemsize, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


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
    official = config.require("model_type", "multi_modality", "janus") == "multi_modality"
    checkpoint = Checkpoint(folder, "official" if official else "transformers", remarks)
    sizes = read_official_config(config, checkpoint.shapes) if official else read_transformers_config(config)
    check_sizes(sizes)
    sizes = replace(sizes, tied=settle_tied(sizes.tied, checkpoint))
    table = tensor_table(sizes)
    check_tensors(table, checkpoint, remarks)
    metadata = size_metadata(sizes) | read_image_metadata(folder, sizes) | read_tokenizer(folder, sizes.vocabulary)
    tokens = zip(metadata["tokenizer.ggml.tokens"][1], metadata["tokenizer.ggml.token_type"][1])
    added = {token for token, kind in tokens if kind in (3, 4)}
    roles = roles or choose_roles(folder, config, added, remarks)
    check_roles(roles, added, remarks)
    plan, dtype = make_plan(table, checkpoint, dtype)

    def blocks(tensor: Tensor) -> Iterator[np.ndarray]:
        for name in tensor.sources(checkpoint.layout):
            for block in checkpoint.tensors[name].rows():
                yield to_file_shape(block, tensor)

    for words in remarks:
        remark(words)
    remark_on_rows(plan, dtype)
    write_file(path, general_metadata(model_name(folder), dtype) | metadata | prompt_metadata(roles), plan, blocks)


def read_tokenizer(folder: Path, vocabulary_size: int) -> Metadata:
    """The tokenizer of a folder; tokenizer_config.json may be absent."""
    settings = folder / "tokenizer_config.json"
    overrides = Config(load_json(settings) if settings.exists() else {}, settings.name)
    return tokenizer_metadata(load_json(folder / "tokenizer.json"), vocabulary_size, overrides)


def make_plan(table: list[Tensor], checkpoint: Checkpoint, dtype: str | None) -> tuple[Plan, str]:
    """Tensors with their storage types, and the type of the whole; without `dtype` each keeps what it has."""
    if dtype:
        return [(tensor, storage_type(tensor, dtype)) for tensor in table], dtype
    stored = {tensor: as_stored(checkpoint.tensors[name].dtype for name in tensor.sources(checkpoint.layout))
              for tensor in table}
    most = max(FLOAT_TYPES, key=lambda kind: sum(tensor.size for tensor in table if stored[tensor] == kind))
    return [(tensor, storage_type(tensor, stored[tensor])) for tensor in table], most


def as_stored(dtypes: Iterator[str]) -> str:
    """The type that holds tensors of these types exactly; float64 becomes float32, as the model computes."""
    kinds = {dtype.lower() for dtype in dtypes}
    kind = kinds.pop() if len(kinds) == 1 else "f32"
    return kind if kind in FLOAT_TYPES else "f32"


def to_file_shape(block: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Rows of a checkpoint's tensor in the shape of the file: kernels channel-last, 1x1 kernels as matrices."""
    if len(tensor.shape) == 4:
        return block.transpose(0, 2, 3, 1)
    return block.reshape(-1, *tensor.shape[1:])


def general_metadata(name: str, dtype: str) -> Metadata:
    return {"general.name": text(name), "general.file_type": u32(FILE_TYPES[dtype])}


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
    metadata |= {"general.file_type": u32(FILE_TYPES[dtype])} | (prompt_metadata(roles) if roles else {})
    remark_on_rows(plan, dtype)
    write_file(path, metadata, plan, lambda tensor: rows[tensor.name]())


# ------------------------------------------------------------------------------------------------------ command line

def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert a Janus or Janus-Pro checkpoint into one GGUF file, or a "
                                     "GGUF file of this program into one with smaller weights.",
                                     epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage.")
    parser.add_argument("source", nargs="?", type=Path, help="folder with config.json, tokenizer.json, "
                        "preprocessor_config.json and the weights (.safetensors or .bin, in one file or in shards), or "
                        "a .gguf file with f32, f16 or bf16 weights")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.gguf", help="file to write")
    parser.add_argument("--dtype", type=str.lower, choices=FILE_TYPES,
                        help="type of the large weights (default: as stored)")
    parser.add_argument("--roles", type=str.lower, choices=ROLES,
                        help="who speaks in prompts: <|User|> and <|Assistant|> as in Janus-Pro, or User and "
                        "Assistant as in Janus-1.3B (default: by the checkpoint's name and tokenizer)")
    options = parser.parse_args(arguments)
    if options.source is None:
        parser.error("name a checkpoint's folder or a .gguf file")
    if options.output is None:
        parser.error("name the file to write: -o OUT.gguf")
    return options


def check_output(path: Path) -> None:
    """Refuse an output that cannot be, or that would take the place of something other than a model file."""
    if not path.parent.is_dir() or path.exists() and not path.is_file():
        raise Refused(f"cannot write {path}: its folder does not exist, or it is not a regular file")
    if path.suffix in (".json", *READERS):
        raise Refused(f"cannot write {path}: that is the name of a checkpoint's file; the result is a .gguf file")


def missing_package(error: ImportError) -> str:
    return (f"the Python package {error.name or error} is missing: use `uv run convert.py`, which brings all packages, "
            f"or pip install gguf numpy safetensors tqdm")


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
        print(f"{program}:", printable(missing_package(error)), file=sys.stderr)
        return 1
    except (Refused, OSError, UnicodeError, MemoryError) as error:
        print(f"{program}:", printable(str(error) or "out of memory"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
