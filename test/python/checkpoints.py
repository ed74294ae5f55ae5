# SPDX-License-Identifier: MIT
"""Small random checkpoints in both published layouts, .safetensors and .bin, whole and in shards.

The tensor names and shapes stand here a second time, written from the published checkpoints and independently of
convert.py's own table, so that one can be tested against the other.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import random_model  # noqa: E402
from convert import Sizes  # noqa: E402

State = dict[str, np.ndarray]  # name -> float32 values

# From official names to those of transformers, applied in turn.
RENAMES = (
    (r"^vision_model\.vision_tower\.patch_embed\.proj", "model.vision_model.embeddings.patch_embedding"),
    (r"^vision_model\.vision_tower\.pos_embed", "model.vision_model.embeddings.position_embedding.weight"),
    (r"^vision_model\.vision_tower\.norm", "model.vision_model.post_layernorm"),
    (r"^vision_model\.vision_tower\.blocks\.(\d+)\.norm", r"model.vision_model.encoder.layers.\1.layer_norm"),
    (
        r"^vision_model\.vision_tower\.blocks\.(\d+)\.attn\.proj",
        r"model.vision_model.encoder.layers.\1.self_attn.projection_layer",
    ),
    (
        r"^vision_model\.vision_tower\.blocks\.(\d+)\.attn\.qkv",
        r"model.vision_model.encoder.layers.\1.self_attn.qkv_proj",
    ),
    (r"^vision_model\.vision_tower\.blocks\.(\d+)\.mlp", r"model.vision_model.encoder.layers.\1.mlp"),
    (r"^(gen_)?aligner\.layers\.0", r"model.\1aligner.fc1"),
    (r"^(gen_)?aligner\.layers\.2", r"model.\1aligner.hidden_layers.0"),
    (r"^(gen_)?aligner\.layers\.4", r"model.\1aligner.hidden_layers.1"),
    (r"^model\.gen_aligner", "model.generation_aligner"),
    (r"^gen_embed", "model.generation_embeddings"),
    (r"^gen_head\.output_mlp_projector", "model.generation_head.proj_out"),
    (r"^gen_head\.vision_head", "model.generation_head.vision_head"),
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model\.model", "model.language_model"),
    (r"^gen_vision_model", "model.vqmodel"),
    (r"\.encoder\.conv_blocks\.(\d+)", r".encoder.down.\1"),
    (r"\.decoder\.conv_blocks\.(\d+)", r".decoder.up.\1"),
    (r"\.res\.(\d+)", r".block.\1"),
    (r"\.mid\.0", ".mid.block_1"),
    (r"\.mid\.1", ".mid.attn_1"),
    (r"\.mid\.2", ".mid.block_2"),
)


def official_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the official layout."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def res(name: str, outer: int, inner: int) -> None:
        layer(f"{name}.norm1", inner)
        layer(f"{name}.conv1", outer, inner, 3, 3)
        layer(f"{name}.norm2", outer)
        layer(f"{name}.conv2", outer, outer, 3, 3)
        if outer != inner:
            layer(f"{name}.nin_shortcut", outer, inner, 1, 1)

    def attention(name: str, width: int) -> None:
        layer(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", width, width, 1, 1)

    tower = "vision_model.vision_tower"
    layer(f"{tower}.patch_embed.proj", s.vit_width, 3, s.patch_size, s.patch_size)
    shapes[f"{tower}.pos_embed"] = (1, s.grid**2, s.vit_width)
    layer(f"{tower}.norm", s.vit_width)
    for n in range(s.vit_layers):
        for part, shape in (
            ("norm1", [s.vit_width]),
            ("norm2", [s.vit_width]),
            ("attn.qkv", [3 * s.vit_width, s.vit_width]),
            ("attn.proj", [s.vit_width] * 2),
            ("mlp.fc1", [s.vit_feed_forward, s.vit_width]),
            ("mlp.fc2", [s.vit_width, s.vit_feed_forward]),
        ):
            layer(f"{tower}.blocks.{n}.{part}", *shape)
    for name, inner, depth in (
        ("aligner", s.vit_width, s.aligner_depth),
        ("gen_aligner", s.codebook_dim, s.gen_aligner_depth),
    ):
        for i in range(depth):
            layer(f"{name}.layers.{2 * i}", s.hidden, s.hidden if i else inner)
    layer("gen_head.output_mlp_projector", s.gen_head_width, s.hidden)
    layer("gen_head.vision_head", s.codebook_size, s.gen_head_width)
    shapes["gen_embed.weight"] = (s.codebook_size, s.codebook_dim)

    vq, deepest = "gen_vision_model", s.vq_channels * s.vq_multipliers[-1]
    layer(f"{vq}.quant_conv", s.codebook_dim, s.vq_z, 1, 1)
    layer(f"{vq}.post_quant_conv", s.vq_z, s.codebook_dim, 1, 1)
    shapes[f"{vq}.quantize.embedding.weight"] = (s.codebook_size, s.codebook_dim)
    last = len(s.vq_multipliers) - 1
    inner = s.vq_channels
    layer(f"{vq}.encoder.conv_in", inner, 3, 3, 3)
    for level, multiplier in enumerate(s.vq_multipliers):
        for b in range(s.vq_res_blocks):
            res(f"{vq}.encoder.conv_blocks.{level}.res.{b}", s.vq_channels * multiplier, inner)
            inner = s.vq_channels * multiplier
            if level == last:
                attention(f"{vq}.encoder.conv_blocks.{level}.attn.{b}", inner)
        if level < last:
            layer(f"{vq}.encoder.conv_blocks.{level}.downsample.conv", inner, inner, 3, 3)
    layer(f"{vq}.encoder.norm_out", deepest)
    layer(f"{vq}.encoder.conv_out", s.vq_z, deepest, 3, 3)
    layer(f"{vq}.decoder.conv_in", deepest, s.vq_z, 3, 3)
    for level, multiplier in enumerate(reversed(s.vq_multipliers)):
        for b in range(s.vq_res_blocks + 1):
            res(f"{vq}.decoder.conv_blocks.{level}.res.{b}", s.vq_channels * multiplier, inner)
            inner = s.vq_channels * multiplier
            if level == 0:
                attention(f"{vq}.decoder.conv_blocks.{level}.attn.{b}", inner)
        if level < last:
            layer(f"{vq}.decoder.conv_blocks.{level}.upsample.conv", inner, inner, 3, 3)
    layer(f"{vq}.decoder.norm_out", inner)
    layer(f"{vq}.decoder.conv_out", 3, inner, 3, 3)
    for half in ("encoder", "decoder"):
        res(f"{vq}.{half}.mid.0", deepest, deepest)
        attention(f"{vq}.{half}.mid.1", deepest)
        res(f"{vq}.{half}.mid.2", deepest, deepest)

    model = "language_model.model"
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    shapes[f"{model}.embed_tokens.weight"] = (s.vocabulary, s.hidden)
    shapes[f"{model}.norm.weight"] = (s.hidden,)
    for n in range(s.layers):
        for part, shape in (
            ("input_layernorm", (s.hidden,)),
            ("post_attention_layernorm", (s.hidden,)),
            ("self_attn.q_proj", (q, s.hidden)),
            ("self_attn.k_proj", (kv, s.hidden)),
            ("self_attn.v_proj", (kv, s.hidden)),
            ("self_attn.o_proj", (s.hidden, q)),
            ("mlp.gate_proj", (s.feed_forward, s.hidden)),
            ("mlp.up_proj", (s.feed_forward, s.hidden)),
            ("mlp.down_proj", (s.hidden, s.feed_forward)),
        ):
            shapes[f"{model}.layers.{n}.{part}.weight"] = shape
    if not s.tied:
        shapes["language_model.lm_head.weight"] = (s.vocabulary, s.hidden)
    return shapes


def random_state(sizes: Sizes, seed: int = 0) -> State:
    """Random float32 values for every tensor of the official layout, small enough for every number format."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape, np.float32) * np.float32(0.1) for name, shape in official_shapes(sizes).items()
    }


def to_transformers(state: State) -> State:
    """The same weights under the names and in the shapes of transformers."""
    result: State = {}
    for name, value in state.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if "qkv_proj" in name:
            for letter, part in zip("qkv", np.split(value, 3)):
                result[name.replace("qkv_proj", f"{letter}_proj")] = part
        else:
            result[name] = value[0] if name.endswith("position_embedding.weight") else value
    return result


def language_config(s: Sizes) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": s.hidden,
        "num_hidden_layers": s.layers,
        "intermediate_size": s.feed_forward,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "vocab_size": s.vocabulary,
        "max_position_embeddings": s.context,
        "rms_norm_eps": s.rms_eps,
        "rope_theta": s.rope_theta,
    }


def official_config(s: Sizes) -> dict[str, Any]:
    """config.json of the official layout; the vision params from width on make the SigLIP smaller than the named one."""

    def projector(inner: int, depth: int) -> dict[str, Any]:
        return {
            "cls": "MlpProjector",
            "model_type": "aligner",
            "params": {"projector_type": "mlp_gelu", "depth": depth, "input_dim": inner, "n_embed": s.hidden},
        }

    return {
        "model_type": "multi_modality",
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "model_name": "siglip_large_patch16_384",
                "image_size": s.image_size,
                "select_layer": -1,
                "width": s.vit_width,
                "layers": s.vit_layers,
                "heads": s.vit_heads,
                "patch_size": s.patch_size,
                "mlp_ratio": s.vit_feed_forward / s.vit_width,
            },
        },
        "aligner_config": projector(s.vit_width, s.aligner_depth),
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": {"image_token_size": s.codebook_size, "n_embed": s.codebook_dim},
        },
        "gen_aligner_config": projector(s.codebook_dim, s.gen_aligner_depth),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {"n_embed": s.hidden, "image_token_embed": s.gen_head_width, "image_token_size": s.codebook_size},
        },
        "language_config": language_config(s) | {"tie_word_embeddings": s.tied},
    }


def transformers_config(s: Sizes) -> dict[str, Any]:
    """config.json as transformers 5 writes it."""
    llama = language_config(s)
    llama["rope_parameters"] = {"rope_theta": llama.pop("rope_theta"), "rope_type": "default"}
    return {
        "model_type": "janus",
        "tie_word_embeddings": s.tied,
        "text_config": llama | {"tie_word_embeddings": False},
        "vision_config": {
            "model_type": "janus_vision_model",
            "hidden_size": s.vit_width,
            "num_hidden_layers": s.vit_layers,
            "num_attention_heads": s.vit_heads,
            "image_size": s.image_size,
            "patch_size": s.patch_size,
            "mlp_ratio": s.vit_feed_forward / s.vit_width,
            "layer_norm_eps": s.vit_eps,
            "hidden_act": "gelu",
            "depth": s.aligner_depth,
            "projection_dim": s.hidden,
            "num_image_tokens": s.grid**2,
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "embed_dim": s.codebook_dim,
            "num_embeddings": s.codebook_size,
            "latent_channels": s.vq_z,
            "base_channels": s.vq_channels,
            "channel_multiplier": list(s.vq_multipliers),
            "num_res_blocks": s.vq_res_blocks,
            "projection_dim": s.hidden,
            "image_token_embed_dim": s.hidden,
            "num_hidden_layers": s.gen_aligner_depth,
            "double_latent": False,
        },
    }


def encode_values(value: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as F64, F32, F16 or as the bits of BF16 (cut, not rounded)."""
    if dtype == "BF16":
        return (np.ascontiguousarray(value).view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(value, {"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype])


def save_safetensors(path: Path, state: State, dtypes: dict[str, str]) -> None:
    """A .safetensors file, written by hand: the package writes no bf16 without torch."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data, end = [], 0
    for name, value in state.items():
        data.append(encode_values(value, dtypes[name]).tobytes())
        header[name] = {"dtype": dtypes[name], "shape": list(value.shape), "data_offsets": [end, end + len(data[-1])]}
        end += len(data[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


TORCH_TYPES = {"F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}


class TorchGlobal:
    """Pickled as the global torch.NAME or torch._utils.NAME, which need not exist."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class TorchCall:
    """Pickled as a call of a function of torch._utils."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments


class TorchPickler(pickle._Pickler):  # the one in Python, whose opcodes can be written by hand
    """Writes what torch.save writes: globals of torch, and persistent ids for tuples that begin with "storage"."""
    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, value: Any) -> Any:
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None

    def save_global_name(self, value: TorchGlobal) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    def save_call(self, value: TorchCall) -> None:
        self.save(TorchGlobal("torch._utils", value.name))
        self.save(value.arguments)
        self.write(pickle.REDUCE)


TorchPickler.dispatch[TorchGlobal] = TorchPickler.save_global_name
TorchPickler.dispatch[TorchCall] = TorchPickler.save_call


def torch_tensor(key: str, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> TorchCall:
    """A tensor that views the storage data/KEY."""
    storage = ("storage", TorchGlobal("torch", TORCH_TYPES[dtype]), key, "cpu", math.prod(shape))
    return TorchCall("_rebuild_tensor_v2", storage, offset, shape, strides, False, OrderedDict())


def save_archive(path: Path, content: Any, storages: dict[str, bytes], byteorder: bytes = b"little") -> None:
    """The zip archive of torch.save, written by hand."""
    data = io.BytesIO()
    TorchPickler(data, 2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        archive.writestr("archive/version", b"3\n")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values)


def save_bin(path: Path, state: State, dtypes: dict[str, str]) -> None:
    """A .bin file as torch.save writes it."""
    tensors, storages = OrderedDict(), {}
    for i, (name, value) in enumerate(state.items()):
        storages[str(i)] = encode_values(value, dtypes[name]).tobytes()
        strides = tuple(math.prod(value.shape[k + 1:]) for k in range(value.ndim))
        tensors[name] = torch_tensor(str(i), dtypes[name], value.shape, strides)
    save_archive(path, tensors, storages)


def save_weights(folder: Path, state: State, file_format: str, shards: int, dtypes: dict[str, str]) -> None:
    """Weights under the usual file names; with more than one shard, an index beside them."""
    stem, suffix, save = {
        "safetensors": ("model", "safetensors", save_safetensors),
        "bin": ("pytorch_model", "bin", save_bin),
    }[file_format]
    if shards == 1:
        return save(folder / f"{stem}.{suffix}", state, dtypes)
    weight_map = {name: f"{stem}-{i % shards + 1:05d}-of-{shards:05d}.{suffix}" for i, name in enumerate(state)}
    for file in set(weight_map.values()):
        save(folder / file, {name: value for name, value in state.items() if weight_map[name] == file}, dtypes)
    write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {}, "weight_map": weight_map})


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def write_checkpoint(
    folder: Path,
    sizes: Sizes,
    layout: str = "official",
    file_format: str = "safetensors",
    shards: int = 1,
    dtype: str = "F32",
    state: State | None = None,
) -> State:
    """Write a whole checkpoint folder and return its tensors as they are named there.

    `state` holds official names (default: random values).  The tokenizer is the synthetic one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = random_state(sizes) if state is None else state
    if layout == "transformers":
        state = to_transformers(state)
    config = official_config(sizes) if layout == "official" else transformers_config(sizes)
    write_json(folder / "config.json", config)
    image = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "min_size": 14,
    }
    if layout == "official":
        write_json(
            folder / "preprocessor_config.json", image | {"image_size": sizes.image_size, "background_color": [127] * 3}
        )
        write_json(folder / "processor_config.json", {"num_image_tokens": sizes.grid**2, "sft_format": "deepseek"})
    else:
        image |= {"size": {"height": sizes.image_size, "width": sizes.image_size}, "resample": 3}
        write_json(folder / "processor_config.json", {"num_image_tokens": sizes.grid**2, "image_processor": image})
    write_json(folder / "tokenizer.json", random_model.synthetic_tokenizer(sizes.vocabulary))
    save_weights(folder, state, file_format, shards, {name: dtype for name in state})
    return state
