# SPDX-License-Identifier: MIT
"""Janus-Pro in PyTorch: any checkpoint into the classes of `transformers`, and every intermediate tensor out of them.

Three sources give the same model: a folder in the transformers layout, a folder in the official layout (names mapped by
the table OFFICIAL, which convert.py has no part in), and a GGUF file of convert.py (names mapped by its table, weights
dequantised to float32).
The stages are recorded with forward hooks under the names that `janus --dump` uses.

Three things of the port are put right here, because the official code does otherwise: the quantizer compares normalised
vectors, pictures go through the official VLMImageProcessor, and the rows of a guided batch see every position.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import DynamicCache, JanusConfig, JanusForConditionalGeneration
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.initialization import no_init_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from checkpoints import transformers_config  # noqa: E402
from official_pictures import ImageRules, pixel_values, resize_bicubic  # noqa: E402
from convert import SIZE_FIELDS, Sizes, tensor_table  # noqa: E402

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
SPECIAL = {
    "bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>", "pad": "<｜▁pad▁｜>",
    "image": "<image_placeholder>", "begin_image": "<begin_of_image>", "end_image": "<end_of_image>",
}

# ---- Names. "{}" stands for a number; a name ends in .weight or .bias unless the table says it whole. ----

OFFICIAL = [
    ("vision_model.vision_tower.patch_embed.proj", "model.vision_model.embeddings.patch_embedding"),
    ("vision_model.vision_tower.norm", "model.vision_model.post_layernorm"),
    *((f"vision_model.vision_tower.blocks.{{}}.{part}", f"model.vision_model.encoder.layers.{{}}.{target}")
      for part, target in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.projection_layer"),
                           ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"))),
    ("gen_embed", "model.generation_embeddings"),
    ("gen_head.output_mlp_projector", "model.generation_head.proj_out"),
    ("gen_head.vision_head", "model.generation_head.vision_head"),
    ("gen_vision_model.quant_conv", "model.vqmodel.quant_conv"),
    ("gen_vision_model.post_quant_conv", "model.vqmodel.post_quant_conv"),
    ("gen_vision_model.quantize.embedding", "model.vqmodel.quantize.embedding"),
    ("language_model.model.embed_tokens", "model.language_model.embed_tokens"),
    ("language_model.model.norm", "model.language_model.norm"),
    ("language_model.lm_head", "lm_head"),
]
OFFICIAL += [(f"language_model.model.layers.{{}}.{part}", f"model.language_model.layers.{{}}.{part}") for part in (
    "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]


def _vq_names() -> None:
    """Adds the VQ encoder and decoder, whose names repeat."""
    for side, levels in (("encoder", "down"), ("decoder", "up")):
        target, official = f"model.vqmodel.{side}", f"gen_vision_model.{side}"
        OFFICIAL.extend((f"{official}.{part}", f"{target}.{part}") for part in ("conv_in", "conv_out", "norm_out"))
        for part in ("norm1", "conv1", "norm2", "conv2", "nin_shortcut"):
            OFFICIAL.append((f"{official}.conv_blocks.{{}}.res.{{}}.{part}", f"{target}.{levels}.{{}}.block.{{}}.{part}"))
            OFFICIAL.extend((f"{official}.mid.{i}.{part}", f"{target}.mid.{block}.{part}")
                            for i, block in ((0, "block_1"), (2, "block_2")))
        for part in ("norm", "q", "k", "v", "proj_out"):
            OFFICIAL.append((f"{official}.conv_blocks.{{}}.attn.{{}}.{part}", f"{target}.{levels}.{{}}.attn.{{}}.{part}"))
            OFFICIAL.append((f"{official}.mid.1.{part}", f"{target}.mid.attn_1.{part}"))
        step = f"{levels}sample.conv"
        OFFICIAL.append((f"{official}.conv_blocks.{{}}.{step}", f"{target}.{levels}.{{}}.{step}"))


_vq_names()

IGNORED = re.compile(r"attn_pool\.|quantize\.codebook_used$|rotary_emb\.inv_freq$")


def from_official(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One tensor of the official layout as the tensors of transformers that hold it."""
    if qkv := re.fullmatch(r"vision_model\.vision_tower\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
        layer = f"model.vision_model.encoder.layers.{qkv[1]}.self_attn"
        return {f"{layer}.{x}_proj.{qkv[2]}": part for x, part in zip("qkv", tensor.chunk(3))}
    if name == "vision_model.vision_tower.pos_embed":
        return {"model.vision_model.embeddings.position_embedding.weight": tensor[0]}
    if aligner := re.fullmatch(r"(gen_)?aligner\.layers\.(\d+)\.(weight|bias)", name):
        layer = int(aligner[2]) // 2
        target = f"model.{'generation_' if aligner[1] else ''}aligner"
        return {f"{target}.{'fc1' if layer == 0 else f'hidden_layers.{layer - 1}'}.{aligner[3]}": tensor}
    for pattern, target in OFFICIAL:
        if match := re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)") + r"\.(weight|bias)", name):
            *numbers, kind = match.groups()
            return {f"{target.format(*numbers)}.{kind}": tensor}
    raise ValueError(f"tensor {name} is in no table of the official layout")


# ---- Checkpoint folders ----

def read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a folder's .safetensors or .bin files, whole or in shards, one after the other."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        from safetensors import safe_open
        for file in files:
            with safe_open(file, "pt") as shard:
                for name in shard.keys():
                    yield name, shard.get_tensor(name)
        return
    for file in sorted(folder.glob("*.bin")):
        yield from torch.load(file, weights_only=True, mmap=True, map_location="cpu").items()


def read_json(path: Path) -> dict:
    """A JSON file, {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@dataclass
class Reference:
    """A model with all that is needed to run both tasks on it."""
    model: JanusForConditionalGeneration
    tokenizer: Tokenizer
    rules: ImageRules
    ids: dict[str, int] = field(default_factory=dict)
    roles: tuple[str, str] = ("<|User|>", "<|Assistant|>")

    @property
    def image_tokens(self) -> int:
        """The number of positions that one seen image takes."""
        return self.model.model.vision_model.embeddings.num_positions

    @property
    def grid(self) -> int:
        """The side of a drawn picture in tokens."""
        return self.model.model.vqmodel.quantize.quant_state_dims[0]


def image_rules(folder: Path, size: int) -> ImageRules:
    """The rules of a folder; the background follows from the mean, as in the official class."""
    config = read_json(folder / "preprocessor_config.json") or read_json(folder / "processor_config.json")
    config = config.get("image_processor", config)
    mean = tuple(config.get("image_mean", (0.5, 0.5, 0.5)))
    side = config.get("image_size", config.get("size", size))
    side = side.get("height", size) if isinstance(side, dict) else side
    return ImageRules(side, config.get("min_size", 14), mean, tuple(config.get("image_std", (0.5, 0.5, 0.5))),
                      config.get("rescale_factor", 1 / 255), tuple(int(x * 255) for x in mean),
                      config.get("do_normalize", True))


def vq_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """JanusVQVAEConfig values that the shapes of the VQ tensors (names of transformers) give."""
    prefix = "model.vqmodel."
    base = shapes[prefix + "encoder.conv_in.weight"][0]
    found = [re.fullmatch(r"model\.vqmodel\.encoder\.down\.(\d+)\.block\.(\d+)\.conv2\.weight", name) for name in shapes]
    blocks = {(int(m[1]), int(m[2])): shapes[m[0]][0] for m in found if m}
    levels, count = 1 + max(level for level, _ in blocks), 1 + max(block for _, block in blocks)
    codes, dim = shapes[prefix + "quantize.embedding.weight"]
    return dict(base_channels=base, channel_multiplier=[blocks[level, count - 1] // base for level in range(levels)],
                num_res_blocks=count, latent_channels=shapes[prefix + "encoder.conv_out.weight"][0],
                embed_dim=dim, num_embeddings=codes)


def mlp_ratio(width: int, hidden: int) -> float:
    """A ratio r with int(width * r) == hidden, as transformers computes it."""
    ratio = hidden / width
    while int(width * ratio) < hidden:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def vision_sizes(shapes: Mapping[str, tuple[int, ...]], heads: int, hidden_size: int, eps: float) -> dict:
    """JanusVisionConfig values from the shapes of the ViT's and the adaptor's tensors."""
    prefix = "model.vision_model."
    width, _, patch, _ = shapes[prefix + "embeddings.patch_embedding.weight"]
    positions = shapes[prefix + "embeddings.position_embedding.weight"][0]
    layers = 1 + max(int(m[1]) for m in map(re.compile(r"model\.vision_model\.encoder\.layers\.(\d+)\.").match, shapes)
                     if m)
    hidden = shapes[prefix + "encoder.layers.0.mlp.fc1.weight"][0]
    depth = sum(name.startswith("model.aligner.") and name.endswith(".weight") for name in shapes)
    return dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, patch_size=patch,
                image_size=math.isqrt(positions) * patch, mlp_ratio=mlp_ratio(width, hidden), layer_norm_eps=eps,
                projection_dim=hidden_size, depth=depth, num_image_tokens=positions)


def build(shapes: Mapping[str, tuple[int, ...]], text: dict, heads: int, grid: int, tied: bool, eps: float
          ) -> JanusForConditionalGeneration:
    """An empty float32 model whose sizes are those of `shapes` (names of transformers) and of the text config."""
    size = text["hidden_size"]
    vq = vq_sizes(shapes)
    depth = sum(name.startswith("model.generation_aligner.") and name.endswith(".weight") for name in shapes)
    vq.update(projection_dim=size, image_token_embed_dim=size, num_hidden_layers=depth)
    config = JanusConfig(text_config=dict(text, model_type="llama", tie_word_embeddings=tied),
                         vision_config=vision_sizes(shapes, heads, size, eps), vq_config=vq, tie_word_embeddings=tied)
    config._attn_implementation = "eager"
    with no_init_weights():
        model = JanusForConditionalGeneration(config)
    codes, width = shapes["model.generation_head.vision_head.weight"]
    model.model.generation_head.proj_out = torch.nn.Linear(size, width)
    model.model.generation_head.vision_head = torch.nn.Linear(width, codes)
    model.model.vqmodel.quantize.quant_state_dims = [grid, grid]
    if tied:
        model.tie_weights()
    return model.float().eval()


def fill(model: JanusForConditionalGeneration, tensors: Iterator[tuple[str, torch.Tensor]], tied: bool) -> None:
    """Copies every tensor into its parameter; every parameter must be met exactly once."""
    parameters = OrderedDict(model.named_parameters(remove_duplicate=True))
    with torch.no_grad():
        for name, tensor in tensors:
            if not (tied and name == "lm_head.weight"):
                parameter = parameters.pop(name)
                parameter.copy_(tensor.reshape(parameter.shape))
    if parameters:
        raise ValueError(f"the checkpoint lacks {', '.join(list(parameters)[:5])}")


def official_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an official folder under the names of transformers."""
    for name, tensor in read_tensors(folder):
        if not IGNORED.search(name):
            yield from from_official(name, tensor).items()


def load_official(folder: Path, config: dict) -> JanusForConditionalGeneration:
    """A folder in the official layout."""
    shapes = {name: tuple(tensor.shape) for name, tensor in official_tensors(folder)}
    text = {key: value for key, value in config["language_config"].items()
            if key not in ("model_type", "torch_dtype", "dtype", "architectures", "_attn_implementation", "cls")}
    vocab, size = shapes["model.language_model.embed_tokens.weight"]
    text.setdefault("hidden_size", size)
    text.setdefault("vocab_size", vocab)
    tied = bool(text.pop("tie_word_embeddings", False))
    params = config["vision_config"]["params"]
    width = shapes["model.vision_model.embeddings.patch_embedding.weight"][0]
    heads = params.get("heads", params.get("num_heads", 16 if width in (1024, 1152) else None))
    if heads is None:
        raise ValueError("vision_config.params has no number of heads")
    grid = math.isqrt(shapes["model.vision_model.embeddings.position_embedding.weight"][0])
    model = build(shapes, text, heads, grid, tied, 1e-6)
    fill(model, official_tensors(folder), tied)
    return model


def load_folder(folder: Path) -> Reference:
    """A checkpoint folder of either layout, in float32."""
    config = read_json(folder / "config.json")
    if config.get("model_type") == "multi_modality":
        model = load_official(folder, config)
    else:
        model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    size = model.config.vision_config.image_size
    reference = Reference(model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json")), image_rules(folder, size))
    reference.ids = {key: reference.tokenizer.token_to_id(token) for key, token in SPECIAL.items()}
    named = f"{folder.resolve().name} {config.get('_name_or_path')}".lower()
    if reference.tokenizer.token_to_id("<|User|>") is None or "janus-1.3b" in named:
        reference.roles = ("User", "Assistant")  # as the scripts of Janus-1.3B call the two
    return reference


# ---- GGUF files ----

def gguf_tensors(reader, sizes: Sizes) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a file in float32, under the names and in the shapes of transformers."""
    from gguf.quants import dequantize
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in tensor_table(sizes):
        data = dequantize(stored[tensor.name].data, stored[tensor.name].tensor_type).astype(np.float32).reshape(tensor.shape)
        if data.ndim == 4:
            data = np.ascontiguousarray(data.transpose(0, 3, 1, 2))  # kernels (out, kh, kw, in) -> (out, in, kh, kw)
        names = tensor.sources("transformers")
        for (name, shape), part in zip(names.items(), np.split(data, len(names))):
            yield name, torch.from_numpy(part.reshape(shape))


def gguf_patterns(values: Mapping[str, object]) -> Iterator[str]:
    """The split rules of a file as regular expressions again."""
    numbers = list(values.get("janus.tokenizer.split_rules", []))
    while numbers:
        flags, before, body = numbers[:3]
        ends = [f"\\x{{{number:x}}}" for number in numbers[3:3 + 2 * (before + body)]]
        ranges = ["-".join(pair) for pair in zip(ends[::2], ends[1::2])]
        optional = f"[{''.join(ranges[:before])}]?" if before else ""
        yield optional + f"[{''.join(ranges[before:])}]" + ("+" if flags & 1 else "") + ("$" if flags & 2 else "")
        del numbers[:3 + 2 * (before + body)]


def gguf_tokenizer(values: Mapping[str, object]) -> Tokenizer:
    """The byte-level BPE tokenizer that a file's metadata describes."""
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    added = {i for i, kind in enumerate(kinds) if kind in (3, 4)}
    vocab = {token: i for i, token in enumerate(tokens) if kinds[i] == 1}
    ids = iter(values.get("janus.tokenizer.merges", []))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(tokens[left], tokens[right]) for left, right, _ in zip(ids, ids, ids)]))
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in gguf_patterns(values)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return add_tokens(tokenizer, tokens, kinds, sorted(added))


def add_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int], added: list[int]) -> Tokenizer:
    """Adds the special (3) and other (4) added tokens; their ids must come out as in the file."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [dict(id=i, content=tokens[i], single_word=False, lstrip=False, rstrip=False,
                                  normalized=False, special=kinds[i] == 3) for i in added]
    state["model"]["vocab"].update({tokens[i]: i for i in added})
    return Tokenizer.from_str(json.dumps(state))


def load_gguf(path: Path) -> Reference:
    """A GGUF file of convert.py, in float32."""
    from gguf import GGUFReader
    reader = GGUFReader(path)
    values = {key: value.contents() for key, value in reader.fields.items()}
    get = lambda key: values["janus." + key]  # noqa: E731
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    sizes = Sizes(tied=tied, **{field.name: values[field.metadata["key"]] for field in SIZE_FIELDS})
    shapes = {name: tuple(tensor.shape) for name, tensor in gguf_tensors(reader, sizes)}
    model = build(shapes, transformers_config(sizes)["text_config"], sizes.vit_heads, sizes.grid, tied, sizes.vit_eps)
    fill(model, gguf_tensors(reader, sizes), tied)
    rules = ImageRules(sizes.image_size, get("image.min_size"), tuple(get("image.mean")), tuple(get("image.std")),
                       get("image.rescale_factor"), tuple(get("image.background_color")), get("image.do_normalize"))
    ids = {key: values[f"tokenizer.ggml.{name}_token_id"] for key, name in
           (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    ids |= {key: get(f"tokenizer.{name}_id") for key, name in
            (("image", "image_placeholder"), ("begin_image", "begin_of_image"), ("end_image", "end_of_image"))}
    roles = tuple(values.get(f"janus.prompt.{name}_role", f"<|{name.title()}|>") for name in ("user", "assistant"))
    return Reference(model, gguf_tokenizer(values), rules, ids, roles)


def load(path: Path) -> Reference:
    """A checkpoint folder or a GGUF file."""
    return load_folder(path) if path.is_dir() else load_gguf(path)


# ---- Pictures ----

def crop_square(image: Image.Image, size: int) -> np.ndarray:
    """The input of the VQ encoder: short side to `size`, centre crop, (size, size, 3) float32 in -1..1."""
    width, height = image.size
    short = min(width, height)
    new = (size * width // short, size * height // short)
    image = resize_bicubic(image, new)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_pixels(output: np.ndarray) -> np.ndarray:
    """The decoder's (S, S, 3) output as 8-bit pixels: scaled, clipped, truncated."""
    return np.clip((output + np.float32(1)) / np.float32(2) * np.float32(255), 0, 255).astype(np.int32)


# ---- Prompts ----

def encode_text(reference: Reference, text: str, bos: bool) -> list[int]:
    """Token ids of a prompt."""
    ids = reference.tokenizer.encode(text, add_special_tokens=False).ids
    return [reference.ids["bos"], *ids] if bos else ids


def question_ids(reference: Reference, question: str, images: int, first: bool = True) -> list[int]:
    """One user turn of a conversation with an opened answer, image positions as placeholders. As in the official
    scripts, the message is stripped as a unit: white space between the placeholder's line and the question stays."""
    user, assistant = reference.roles
    content = question if "<image_placeholder>" in question else "<image_placeholder>\n" * images + question
    text = (SYSTEM_PROMPT + "\n\n" if first else "") + f"{user}: {content.strip()}\n\n{assistant}:"
    ids, out = encode_text(reference, text, first), []
    for token in ids:
        placeholder = [reference.ids["begin_image"], *[token] * reference.image_tokens, reference.ids["end_image"]]
        out += placeholder if token == reference.ids["image"] else [token]
    return out


def drawing_ids(reference: Reference, prompt: str) -> list[int]:
    """The prompt of a picture."""
    user, assistant = reference.roles
    return encode_text(reference, f"{user}: {prompt.strip()}\n\n{assistant}:<begin_of_image>", True)


# ---- Stages ----

class Taps:
    """Named tensors in the order in which they were met; a name met again gets ".1", ".2", ... as janus gives them."""

    def __init__(self) -> None:
        self.values: "OrderedDict[str, np.ndarray]" = OrderedDict()
        self.met: dict[str, int] = {}

    def add(self, name: str, value: torch.Tensor | np.ndarray) -> None:
        """Records a copy of `value`."""
        count = self.met.get(name, 0)
        self.met[name] = count + 1
        if isinstance(value, torch.Tensor):
            value = value.detach().float().numpy() if value.is_floating_point() else value.detach().numpy()
        array = value
        self.values[f"{name}.{count}" if count else name] = np.array(array)


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """(1, C, H, W) -> (H W, C)."""
    return tensor[0].flatten(1).T


@contextmanager
def hooked(pairs: list[tuple[torch.nn.Module, Callable[[torch.Tensor], None]]]) -> Iterator[None]:
    """Hands every output of the modules to their functions while the block runs."""
    def hook(call: Callable[[torch.Tensor], None]):
        return lambda module, inputs, output: call(output[0] if isinstance(output, tuple) else output)
    handles = [module.register_forward_hook(hook(call)) for module, call in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def transformer_hooks(reference: Reference, taps: Taps) -> list:
    """Blocks and final norm; of two rows the second is the unconditional one."""
    def record(name: str) -> Callable[[torch.Tensor], None]:
        def call(output: torch.Tensor) -> None:
            taps.add(name, output[0])
            if output.shape[0] == 2:
                taps.add("uncond." + name, output[1])
        return call
    language = reference.model.model.language_model
    pairs = [(layer, record(f"transformer.block.{i}")) for i, layer in enumerate(language.layers)]
    return pairs + [(language.norm, record("transformer.hidden"))]


def see(reference: Reference, image: Image.Image, taps: Taps) -> torch.Tensor:
    """Picture -> (G G, D) embeddings, through ViT and understanding adaptor."""
    values = pixel_values(image, reference.rules)
    taps.add("vision.pixel_values", values)
    vision, aligner = reference.model.model.vision_model, reference.model.model.aligner
    pairs = [(vision.embeddings.patch_embedding, lambda y: taps.add("vision.patch_embed", rows(y)))]
    for i, layer in enumerate(vision.encoder.layers):
        pairs.append((layer, lambda y, i=i: taps.add(f"vision.block.{i}", y[0])))
    with hooked(pairs):
        pixels = torch.from_numpy(values).permute(2, 0, 1)[None].to(vision.embeddings.patch_embedding.weight.dtype)
        hidden = vision(pixels).last_hidden_state
    taps.add("vision.output", hidden[0])
    embeddings = aligner(hidden)[0]
    taps.add("aligner.output", embeddings)
    return embeddings


@dataclass
class Turn:
    """A user turn: what is asked, the pictures shown, and the answer's ids that are fed back."""
    question: str
    images: list[Image.Image]
    answer: list[int]


@torch.no_grad()
def run_conversation(reference: Reference, turns: list[Turn], taps: Taps) -> list[list[np.ndarray]]:
    """All turns over one cache; blocks are recorded while a turn is read. Returns, for each turn, the LM logits (V)
    that choose each of its answer ids."""
    language, cache, logits, ended = reference.model.model.language_model, DynamicCache(), [], []
    hooks = transformer_hooks(reference, taps)

    def step(embeddings: torch.Tensor, prompt: bool) -> np.ndarray:
        with hooked(hooks if prompt else []):
            hidden = language(inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True).last_hidden_state
        out = reference.model.lm_head(hidden[0, -1])
        taps.add("lm.logits", out)
        return out.numpy()

    for number, turn in enumerate(turns):
        ids = ended + question_ids(reference, turn.question, len(turn.images), number == 0)
        seen = [see(reference, image, taps) for image in turn.images]
        taps.add("text.token_ids", np.array(ids, np.int32))
        embeddings = language.embed_tokens(torch.tensor(ids)).clone()
        if seen:
            embeddings[torch.tensor(ids) == reference.ids["image"]] = torch.cat(seen)
        taps.add("text.embeddings", embeddings)
        logits.append([step(embeddings, True)])
        for token in turn.answer[:-1]:
            logits[-1].append(step(language.embed_tokens(torch.tensor([token])), False))
        said = turn.answer[:-1] if turn.answer[-1] == reference.ids["eos"] else turn.answer
        taps.add("lm.answer_ids", np.array(said, np.int32))
        ended = end_of_answer(reference, turn.answer)
        if not ended:
            cache.crop(cache.get_seq_length() - len(turn.answer[:-1]))
        else:
            ended = ended[len(turn.answer) - 1:]
    return logits


def end_of_answer(reference: Reference, answer: list[int]) -> list[int]:
    """The ids of an answer as the next turn's prompt holds them: with EOS, but [] where nothing was said (official
    conversation.py: an empty message is followed by no separator)."""
    if not reference.tokenizer.decode(answer, skip_special_tokens=True).strip():
        return []
    return answer if answer[-1] == reference.ids["eos"] else [*answer, reference.ids["eos"]]


@torch.no_grad()
def fresh_logits(reference: Reference, turns: list[Turn]) -> np.ndarray:
    """The LM logits (V) that begin the last turn's answer, from one pass over the whole conversation, without a cache."""
    language, parts, ended = reference.model.model.language_model, [], []
    for number, turn in enumerate(turns):
        ids = torch.tensor(ended + question_ids(reference, turn.question, len(turn.images), number == 0))
        embeddings = language.embed_tokens(ids).clone()
        if turn.images:
            seen = torch.cat([see(reference, image, Taps()) for image in turn.images])
            embeddings[ids == reference.ids["image"]] = seen
        parts.append(embeddings)
        ended = end_of_answer(reference, turn.answer)
    hidden = language(inputs_embeds=torch.cat(parts)[None], use_cache=False).last_hidden_state
    return reference.model.lm_head(hidden[0, -1]).numpy()


@torch.no_grad()
def run_drawing(reference: Reference, prompt: str, ids: list[int], weight: float, taps: Taps) -> list[np.ndarray]:
    """Draws with the given ids fed back and guidance `weight`; returns the guided logits of each step."""
    inner, cache, guided = reference.model.model, DynamicCache(), []
    tokens = torch.tensor(drawing_ids(reference, prompt)).repeat(2, 1)
    tokens[1, 1:-1] = reference.ids["pad"]
    taps.add("text.token_ids", tokens[0].to(torch.int32))
    embeddings = inner.language_model.embed_tokens(tokens)
    taps.add("text.embeddings", embeddings[0])
    taps.add("uncond.text.embeddings", embeddings[1])
    taps.add("generation.ids", np.array([ids], np.int32))
    past = 0
    for number, token in enumerate(ids):
        positions = torch.arange(past, past + embeddings.shape[1])[None].expand(2, -1)
        with hooked(transformer_hooks(reference, taps) if number == 0 else []):
            hidden = inner.language_model(inputs_embeds=embeddings, position_ids=positions, past_key_values=cache,
                                          use_cache=True).last_hidden_state
        past += embeddings.shape[1]
        cond, uncond = inner.generation_head(hidden[:, -1])
        logits = uncond + weight * (cond - uncond)
        for name, value in (("generation.logits.cond", cond), ("generation.logits.uncond", uncond),
                            ("generation.logits", logits)):
            taps.add(name, value)
        guided.append(logits.numpy())
        if number + 1 == len(ids):
            break
        embedding = reference.model.prepare_embeddings_for_image_generation(torch.tensor([token]))
        taps.add("generation.embedding", embedding[0])
        embeddings = embedding[None].expand(2, 1, -1)
    return guided


@torch.no_grad()
def sample_drawing(reference: Reference, prompt: str, ids: np.ndarray, weight: float, temperature: float, seed: int
                   ) -> np.ndarray:
    """The ids (N, T) that PyTorch draws with `seed`, as generation_inference.py does: rows conditional, unconditional,
    conditional, ... Each step goes on from the given ids (N, T), so that one difference stays one."""
    inner, cache = reference.model.model, DynamicCache()
    count, drawn = len(ids), []
    tokens = torch.tensor(drawing_ids(reference, prompt)).repeat(2 * count, 1)
    tokens[1::2, 1:-1] = reference.ids["pad"]
    embeddings = inner.language_model.embed_tokens(tokens)
    generator = torch.Generator().manual_seed(seed)
    for column in torch.from_numpy(ids).long().T:
        hidden = inner.language_model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).last_hidden_state
        logits = inner.generation_head(hidden[:, -1])
        cond, uncond = logits[0::2], logits[1::2]
        probs = torch.softmax((uncond + weight * (cond - uncond)) / temperature, dim=-1)
        drawn.append(torch.multinomial(probs, num_samples=1, generator=generator)[:, 0])
        embeddings = reference.model.prepare_embeddings_for_image_generation(column.repeat_interleave(2))[:, None]
    return torch.stack(drawn, 1).numpy()


def sample_answer(logits: list[np.ndarray], temperature: float, top_k: int, top_p: float, seed: int) -> list[int]:
    """The ids that transformers' generate samples from the logits (V) of each step."""
    generator = torch.Generator().manual_seed(seed)
    steps = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)])
    return [int(torch.multinomial(torch.softmax(steps(None, torch.from_numpy(row)[None]), -1), 1, generator=generator))
            for row in logits]


def level_ends(levels: torch.nn.ModuleList, step: str) -> list[torch.nn.Module]:
    """The module whose output ends each level of the VQ encoder or decoder."""
    return [getattr(level, step) if hasattr(level, step) else list(level.attn)[-1] if len(level.attn)
            else list(level.block)[-1] for level in levels]


@torch.no_grad()
def run_encoder(reference: Reference, image: Image.Image, taps: Taps) -> tuple[np.ndarray, np.ndarray]:
    """Picture -> (G G) ids of the codebook and the (G G, codebook_size) squared distances that choose them."""
    vq = reference.model.model.vqmodel
    side = reference.grid << (len(vq.encoder.down) - 1)
    pixels = crop_square(image, side)
    taps.add("vq.encoder.input", pixels)
    pairs = [(vq.encoder.conv_in, lambda y: taps.add("vq.encoder.conv_in", rows(y)))]
    for i, module in enumerate(level_ends(vq.encoder.down, "downsample")):
        pairs.append((module, lambda y, i=i: taps.add(f"vq.encoder.level.{i}", rows(y))))
    pairs += [(vq.encoder.mid, lambda y: taps.add("vq.encoder.mid", rows(y))),
              (vq.encoder.conv_out, lambda y: taps.add("vq.encoder.output", rows(y)))]
    with hooked(pairs):
        z = rows(vq.quant_conv(vq.encoder(torch.from_numpy(pixels).permute(2, 0, 1)[None])))
    taps.add("vq.quant_conv", z)
    z, codebook = F.normalize(z, dim=-1), F.normalize(vq.quantize.embedding.weight, dim=-1)
    distances = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
    ids = distances.argmin(1)
    taps.add("vq.ids", ids.to(torch.int32))
    return ids.numpy(), distances.numpy()


@torch.no_grad()
def run_decoder(reference: Reference, ids: list[int], taps: Taps) -> np.ndarray:
    """(G G) ids -> the decoder's (S, S, 3) output before clipping."""
    vq = reference.model.model.vqmodel
    codes = vq.quantize.get_codebook_entry(torch.tensor(ids)[None])
    taps.add("vq.codes", rows(codes))
    latent = vq.post_quant_conv(codes)
    taps.add("vq.post_quant", rows(latent))
    pairs = [(vq.decoder.conv_in, lambda y: taps.add("vq.decoder.conv_in", rows(y))),
             (vq.decoder.mid, lambda y: taps.add("vq.decoder.mid", rows(y)))]
    for i, module in enumerate(level_ends(vq.decoder.up, "upsample")):
        pairs.append((module, lambda y, i=i: taps.add(f"vq.decoder.level.{i}", rows(y))))
    with hooked(pairs):
        output = vq.decoder(latent)[0].permute(1, 2, 0)
    taps.add("vq.decoder.output", output)
    taps.add("image.pixels", to_pixels(output.numpy()))
    return output.numpy()
