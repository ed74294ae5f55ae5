# SPDX-License-Identifier: MIT
"""Small random Janus checkpoints of many shapes, written as published ones are: either layout, format, any shards.

Weights are drawn so that every layer changes its input and logits spread: a matrix with standard deviation
gain / sqrt(fan in), norms around 1, biases around 0. No seed is chosen for its outcome.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import JanusConfig, JanusForConditionalGeneration

from reference import OFFICIAL, SPECIAL, mlp_ratio

LETTERS = "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽ"
CORPUS = [
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.",
    "What is in the picture? Describe this image in detail. How many trees are in this photo?",
    "a red fox in the snow, a blue car next to a yellow house, two green triangles above a small heart",
    "¿Cuántos árboles hay en esta foto? Деревья, dž, Ελληνικά. 一张照片里有多少棵树？你好世界。",
    "The quick brown fox jumps over the lazy dog 0123456789 times; 3.14159, 2.71828 (and so on)!\n\n\tEnd.",
]


@dataclass(frozen=True)
class Geometry:
    """Every size of a small Janus."""
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 16
    mlp: int = 160
    vocab: int = 704
    context: int = 512
    tied: bool = False
    rope_theta: float = 10000.0
    vision_width: int = 48
    vision_layers: int = 2
    vision_heads: int = 3
    vision_mlp: int = 192
    patch: int = 8
    grid: int = 4
    vq_base: int = 32
    vq_multipliers: tuple[int, ...] = (1, 2)
    vq_blocks: int = 2
    vq_latent: int = 32
    codes: int = 512
    code_dim: int = 8
    adaptor_depth: int = 2
    head_width: int | None = None
    role_tokens: bool = True  # <|User|> and <|Assistant|>, as Janus-Pro has them and Janus-1.3B has not


def train_tokenizer(vocab: int, role_tokens: bool = True) -> Tokenizer:
    """A byte-level BPE tokenizer of the DeepSeek form with at most `vocab` ids, trained on CORPUS."""
    tokenizer = Tokenizer(models.BPE())
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")  # noqa: E731
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        split("[\r\n]"), split(rf"\s?[{LETTERS}]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
        split("[一-龥ࠀ-一가-퟿]+"), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
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


def janus_config(geometry: Geometry, image_id: int) -> JanusConfig:
    """The configuration of transformers for a geometry."""
    g = geometry
    text = dict(model_type="llama", hidden_size=g.hidden, num_hidden_layers=g.layers, num_attention_heads=g.heads,
                num_key_value_heads=g.kv_heads, head_dim=g.head_dim, intermediate_size=g.mlp, vocab_size=g.vocab,
                max_position_embeddings=g.context, rms_norm_eps=1e-6, tie_word_embeddings=g.tied,
                rope_parameters=dict(rope_type="default", rope_theta=g.rope_theta))
    vision = dict(hidden_size=g.vision_width, num_hidden_layers=g.vision_layers, num_attention_heads=g.vision_heads,
                  patch_size=g.patch, image_size=g.patch * g.grid, mlp_ratio=mlp_ratio(g.vision_width, g.vision_mlp),
                  projection_dim=g.hidden, depth=g.adaptor_depth, num_image_tokens=g.grid ** 2)
    vq = dict(base_channels=g.vq_base, channel_multiplier=list(g.vq_multipliers), num_res_blocks=g.vq_blocks,
              latent_channels=g.vq_latent, num_embeddings=g.codes, embed_dim=g.code_dim, projection_dim=g.hidden,
              image_token_embed_dim=g.hidden, num_hidden_layers=g.adaptor_depth, num_patches=g.grid)
    return JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=image_id,
                       tie_word_embeddings=g.tied)


def draw_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A random tensor of a scale at which its layer matters; knows both layouts' names."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    if "embed" in name and "patch_embed" not in name:
        return noise * (0.3 if "pos" in name else 1.0)
    gain = 3.0 if "lm_head" in name or "vision_head" in name else 1.0
    return noise * gain / noise[0].numel() ** 0.5


def randomise(model: JanusForConditionalGeneration, seed: int) -> None:
    """Draws every parameter anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw_weight(name, tuple(parameter.shape), generator))


def make_model(geometry: Geometry, seed: int) -> tuple[JanusForConditionalGeneration, Tokenizer]:
    """A random model and its tokenizer."""
    tokenizer = train_tokenizer(geometry.vocab, geometry.role_tokens)
    config = janus_config(geometry, tokenizer.token_to_id(SPECIAL["image"]))
    model = JanusForConditionalGeneration(config).eval()
    if geometry.head_width:
        head = model.model.generation_head
        head.proj_out = torch.nn.Linear(geometry.hidden, geometry.head_width)
        head.vision_head = torch.nn.Linear(geometry.head_width, geometry.codes)
    randomise(model, seed)
    return model, tokenizer


# ---- Layouts ----

def _to_official(name: str) -> str:
    """An official name for a name of transformers that has a counterpart of its own."""
    from reference import rename
    for prefix, official in (
        ("model.aligner.", "aligner.layers."),
        ("model.generation_aligner.", "gen_aligner.layers."),
    ):
        if name.startswith(prefix):
            part, kind = name[len(prefix):].rsplit(".", 1)
            return f"{official}{0 if part == 'fc1' else 2 * (1 + int(part.split('.')[1]))}.{kind}"
    found = rename(name, [(target, official) for official, target in OFFICIAL])
    if found is None:
        raise ValueError(f"{name} has no official name")
    return found


def official_state(model: JanusForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The state under official names: q, k, v of the ViT in one tensor, extras that a reader must ignore."""
    state, out = model.state_dict(), {}
    for name, tensor in state.items():
        if ".vision_model.encoder" in name and any(f".{x}_proj." in name for x in "qkv"):
            if ".q_proj." in name:
                layer, kind = name.split(".")[4], name.rsplit(".", 1)[1]
                parts = [state[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"]
                out[f"vision_model.vision_tower.blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
        elif name.endswith("position_embedding.weight"):
            out["vision_model.vision_tower.pos_embed"] = tensor[None]
        elif not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            out[_to_official(name)] = tensor
    width = model.config.vision_config.hidden_size
    out["vision_model.vision_tower.attn_pool.latent"] = torch.zeros(1, 1, width)
    out["gen_vision_model.quantize.codebook_used"] = torch.zeros(65536)
    return out


def official_config(geometry: Geometry) -> dict:
    """config.json in the official form; sizes that its classes fix stand in the params of a smaller relative."""
    g = geometry
    head = g.head_width or g.hidden
    vision = dict(model_name="siglip_large_patch16_384", image_size=g.patch * g.grid, select_layer=-1,
                  width=g.vision_width, layers=g.vision_layers, heads=g.vision_heads, patch_size=g.patch,
                  mlp_ratio=mlp_ratio(g.vision_width, g.vision_mlp))
    block = lambda cls, model_type, **params: dict(cls=cls, model_type=model_type, params=params)  # noqa: E731
    mlp = dict(projector_type="mlp_gelu", depth=g.adaptor_depth, n_embed=g.hidden)
    return dict(
        model_type="multi_modality", architectures=["MultiModalityCausalLM"], torch_dtype="float32",
        vision_config=block("CLIPVisionTower", "vision", **vision),
        aligner_config=block("MlpProjector", "aligner", input_dim=g.vision_width, **mlp),
        gen_vision_config=block("VQ-16", "gen_vision", image_token_size=g.codes, n_embed=g.code_dim),
        gen_aligner_config=block("MlpProjector", "gen_aligner", input_dim=g.code_dim, **mlp),
        gen_head_config=block("vision_head", "gen_head", image_token_size=g.codes, n_embed=g.hidden,
                              image_token_embed=head),
        language_config=dict(model_type="llama", hidden_size=g.hidden, num_hidden_layers=g.layers,
                             num_attention_heads=g.heads, num_key_value_heads=g.kv_heads, head_dim=g.head_dim,
                             intermediate_size=g.mlp, vocab_size=g.vocab, max_position_embeddings=g.context,
                             rope_theta=g.rope_theta, tie_word_embeddings=g.tied))


def write_json_files(folder: Path, geometry: Geometry, layout: str, config: dict | None, tokenizer: Tokenizer) -> None:
    """tokenizer.json, preprocessor_config.json and, unless transformers wrote it, config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    side = geometry.patch * geometry.grid
    image = dict(min_size=min(14, side // 4), image_mean=[0.5] * 3, image_std=[0.5] * 3, rescale_factor=1 / 255,
                 background_color=[127] * 3, do_normalize=True)
    if layout == "official":
        image |= dict(image_size=side, image_processor_type="VLMImageProcessor", processor_class="VLChatProcessor")
    else:
        image |= dict(size=dict(height=side, width=side), image_processor_type="JanusImageProcessor",
                      processor_class="JanusProcessor")
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def in_shards(state: dict[str, torch.Tensor], count: int) -> Iterator[dict[str, torch.Tensor]]:
    """The state in `count` parts."""
    names = list(state)
    for i in range(count):
        yield {name: state[name].contiguous() for name in names[i::count]}


def write_weights(folder: Path, state: dict[str, torch.Tensor], kind: str, shards: int) -> None:
    """model.safetensors or pytorch_model.bin, in one file or in shards with their index."""
    from safetensors.torch import save_file
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    index = {}
    for i, part in enumerate(in_shards(state, shards)):
        name = f"{stem}.{ending}" if shards == 1 else f"{stem}-{i + 1:05d}-of-{shards:05d}.{ending}"
        part = {key: value.clone() for key, value in part.items()}
        if kind == "safetensors":
            save_file(part, folder / name, metadata={"format": "pt"})
        else:
            torch.save(part, folder / name)
        index |= dict.fromkeys(part, name)
    if shards > 1:
        total = sum(value.numel() * value.element_size() for value in state.values())
        text = json.dumps(dict(metadata=dict(total_size=total), weight_map=index))
        (folder / f"{stem}.{ending}.index.json").write_text(text)


def write_checkpoint(folder: Path, geometry: Geometry, seed: int, layout: str, kind: str, shards: int) -> None:
    """A checkpoint folder: layout "official" or "transformers", kind "bin" or "safetensors"."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = make_model(geometry, seed)
    if layout == "official":
        config, state = official_config(geometry), official_state(model)
    elif kind == "safetensors":
        size = sum(p.numel() * 4 for p in model.parameters()) // shards + 1
        model.save_pretrained(folder, max_shard_size=size)
        config, state = None, None
    else:
        config, state = model.config.to_dict(), dict(model.state_dict())
        if geometry.tied:
            state.pop("lm_head.weight")
    write_json_files(folder, geometry, layout, config, tokenizer)
    if state is not None:
        write_weights(folder, state, kind, shards)
