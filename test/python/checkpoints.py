# SPDX-License-Identifier: MIT
"""Small random checkpoints in both published layouts, .safetensors and .bin, whole and in shards.

Names and shapes are those of convert.py's table, which test_convert.py compares with the documented one, janus.c checks
when it loads a file, and verify_convert.py compares with what transformers saves.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import random_model  # noqa: E402
from convert import Sizes, tensor_table  # noqa: E402

State = dict[str, np.ndarray]  # name -> float32 values

def official_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the official layout."""
    return {name: shape for tensor in tensor_table(s) for name, shape in tensor.sources("official").items()}


def random_state(sizes: Sizes, seed: int = 0) -> State:
    """Random float32 values for every tensor of the official layout, small enough for every number format."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape, np.float32) * np.float32(0.1) for name, shape in official_shapes(sizes).items()
    }


def to_transformers(state: State, sizes: Sizes) -> State:
    """The same weights under the names and in the shapes of transformers."""
    result: State = {}
    for tensor in tensor_table(sizes):
        if tensor.official in state:
            names = tensor.sources("transformers")
            parts = np.split(state[tensor.official], len(names)) if len(names) > 1 else [state[tensor.official]]
            result |= {name: part.reshape(shape) for (name, shape), part in zip(names.items(), parts)}
    return result


def language_config(s: Sizes) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": s.hidden, "num_hidden_layers": s.layers, "vocab_size": s.vocabulary,
        "intermediate_size": s.feed_forward, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim, "max_position_embeddings": s.context, "rms_norm_eps": s.rms_eps,
        "rope_theta": s.rope_theta,
    }


def mlp_ratio(s: Sizes) -> float:
    """A ratio r with int(width * r) == the ViT's feed-forward length, as transformers computes it."""
    ratio = s.vit_feed_forward / s.vit_width
    return ratio if int(s.vit_width * ratio) == s.vit_feed_forward else math.nextafter(ratio, math.inf)


def official_config(s: Sizes) -> dict[str, Any]:
    """config.json of the official layout; the vision params from width on make the SigLIP smaller than the named one."""

    def block(cls: str, model_type: str, **params: Any) -> dict[str, Any]:
        return {"cls": cls, "model_type": model_type, "params": params}

    vision = {"model_name": "siglip_large_patch16_384", "image_size": s.image_size, "select_layer": -1,
              "width": s.vit_width, "layers": s.vit_layers, "heads": s.vit_heads, "patch_size": s.patch_size,
              "mlp_ratio": mlp_ratio(s)}
    mlp = {"projector_type": "mlp_gelu", "n_embed": s.hidden}
    return {
        "model_type": "multi_modality",
        "vision_config": block("CLIPVisionTower", "vision", **vision),
        "aligner_config": block("MlpProjector", "aligner", depth=s.aligner_depth, input_dim=s.vit_width, **mlp),
        "gen_vision_config": block("VQ-16", "gen_vision", image_token_size=s.codebook_size, n_embed=s.codebook_dim),
        "gen_aligner_config": block("MlpProjector", "aligner", depth=s.gen_aligner_depth, input_dim=s.codebook_dim, **mlp),
        "gen_head_config": block("vision_head", "gen_head", n_embed=s.hidden, image_token_embed=s.gen_head_width,
                                 image_token_size=s.codebook_size),
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
            "model_type": "janus_vision_model", "hidden_size": s.vit_width, "num_hidden_layers": s.vit_layers,
            "num_attention_heads": s.vit_heads, "image_size": s.image_size, "patch_size": s.patch_size,
            "mlp_ratio": mlp_ratio(s), "layer_norm_eps": s.vit_eps, "hidden_act": "gelu", "depth": s.aligner_depth,
            "projection_dim": s.hidden, "num_image_tokens": s.grid**2,
        },
        "vq_config": {
            "model_type": "janus_vqgan", "embed_dim": s.codebook_dim, "num_embeddings": s.codebook_size,
            "latent_channels": s.vq_z, "base_channels": s.vq_channels, "channel_multiplier": list(s.vq_multipliers),
            "num_res_blocks": s.vq_res_blocks, "projection_dim": s.hidden, "image_token_embed_dim": s.hidden,
            "num_hidden_layers": s.gen_aligner_depth, "double_latent": False, "num_patches": s.grid,
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


def write_configs(folder: Path, sizes: Sizes, layout: str, min_size: int = 14) -> None:
    """The JSON files of a checkpoint but for the index of shards; the tokenizer is the synthetic one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", official_config(sizes) if layout == "official" else transformers_config(sizes))
    image = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "do_normalize": True,
             "min_size": min_size}
    processor: dict[str, Any] = {"num_image_tokens": sizes.grid**2}
    if layout == "official":
        image |= {"image_size": sizes.image_size, "background_color": [127] * 3}
        write_json(folder / "preprocessor_config.json", image)
        processor["sft_format"] = "deepseek"
    else:
        image |= {"size": {"height": sizes.image_size, "width": sizes.image_size}, "resample": 3}
        processor["image_processor"] = image
    write_json(folder / "processor_config.json", processor)
    write_json(folder / "tokenizer.json", random_model.synthetic_tokenizer(sizes.vocabulary))


def write_checkpoint(
    folder: Path, sizes: Sizes, layout: str = "official", file_format: str = "safetensors", shards: int = 1,
    dtype: str = "F32", state: State | None = None
) -> State:
    """Write a whole checkpoint folder and return its tensors as they are named there.

    `state` holds official names (default: random values).
    """
    write_configs(folder, sizes, layout)
    state = random_state(sizes) if state is None else state
    if layout == "transformers":
        state = to_transformers(state, sizes)
    save_weights(folder, state, file_format, shards, {name: dtype for name in state})
    return state
