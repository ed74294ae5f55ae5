# SPDX-License-Identifier: MIT
"""Small random Janus checkpoints of many shapes, written as published ones are: either layout, format, any shards.

Weights are drawn so that every layer changes its input and logits spread: a matrix with standard deviation
gain / sqrt(fan in), norms around 1, biases around 0. No seed is chosen for its outcome.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import JanusConfig, JanusForConditionalGeneration

from reference import SPECIAL

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import checkpoints  # noqa: E402
from convert import Sizes  # noqa: E402
from random_model import synthetic_tokenizer  # noqa: E402

CORPUS = [
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.",
    "What is in the picture? Describe this image in detail. How many trees are in this photo?",
    "a red fox in the snow, a blue car next to a yellow house, two green triangles above a small heart",
    "¿Cuántos árboles hay en esta foto? Деревья, dž, Ελληνικά. 一张照片里有多少棵树？你好世界。",
    "The quick brown fox jumps over the lazy dog 0123456789 times; 3.14159, 2.71828 (and so on)!\n\n\tEnd.",
]
SMALL = dict(hidden=64, layers=2, heads=4, kv_heads=4, head_dim=16, feed_forward=160, vocabulary=704, context=512,
             vit_width=48, vit_layers=2, vit_heads=3, vit_feed_forward=192, vq_channels=32, vq_multipliers=(1, 2),
             vq_z=32, codebook_size=512)


def geometry(grid: int = 4, patch: int = 8, depth: int = 2, **changes: object) -> Sizes:
    """The sizes of a small Janus: patches a side, the side of each, layers of both adaptors, and others."""
    values = SMALL | dict(image_size=grid * patch, patch_size=patch, aligner_depth=depth, gen_aligner_depth=depth) | changes
    return Sizes(**dict(gen_head_width=values["hidden"]) | values)


def train_tokenizer(vocab: int, role_tokens: bool = True) -> Tokenizer:
    """A byte-level BPE tokenizer of the DeepSeek form with at most `vocab` ids, trained on CORPUS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(synthetic_tokenizer(512))).pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    added = [*SPECIAL.values(), *(["<|User|>", "<|Assistant|>"] if role_tokens else [])]
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(added) - 16, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    bos = SPECIAL["bos"]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos}:0 $A:0",
                                                             special_tokens=[(bos, tokenizer.token_to_id(bos))])
    return tokenizer


def draw_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A random tensor of a scale at which its layer matters; knows both layouts' names."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    if "embed" in name and "patch_embed" not in name:
        return noise * (0.3 if "pos" in name else 1.0)
    gain = 3.0 if "lm_head" in name or "vision_head" in name else 1.0
    return noise * gain / noise[0].numel() ** 0.5


def tensor_shapes(sizes: Sizes, layout: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a layout; of transformers', in the order in which its classes have them."""
    if layout == "official":
        return checkpoints.official_shapes(sizes)
    config = checkpoints.transformers_config(sizes)
    del config["model_type"]
    with torch.device("meta"):
        model = JanusForConditionalGeneration(JanusConfig(**config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def draw_state(sizes: Sizes, layout: str, seed: int) -> checkpoints.State:
    """Random weights; in the official layout with extras that a reader must ignore."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: draw_weight(name, shape, generator).numpy() for name, shape in tensor_shapes(sizes, layout).items()}
    if layout == "official":
        state["vision_model.vision_tower.attn_pool.latent"] = torch.zeros(1, 1, sizes.vit_width).numpy()
        state["gen_vision_model.quantize.codebook_used"] = torch.zeros(65536).numpy()
    return state


def write_folder(folder: Path, sizes: Sizes, layout: str, role_tokens: bool = True) -> None:
    """A checkpoint folder without its weights."""
    checkpoints.write_configs(folder, sizes, layout, min_size=min(14, sizes.image_size // 4))
    train_tokenizer(sizes.vocabulary, role_tokens).save(str(folder / "tokenizer.json"))


def write_checkpoint(
    folder: Path, sizes: Sizes, seed: int, layout: str, kind: str, shards: int, role_tokens: bool = True
) -> None:
    """A checkpoint folder: layout "official" or "transformers", kind "bin" or "safetensors"."""
    write_folder(folder, sizes, layout, role_tokens)
    state = draw_state(sizes, layout, seed)
    checkpoints.save_weights(folder, state, kind, shards, dict.fromkeys(state, "F32"))
