#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "transformers==5.23.0", "tokenizers", "numpy", "pillow", "matplotlib", "tqdm"]
# ///
"""Trains the small model of this folder, from nothing or from an earlier edition, in stages as the report does, and saves a checkpoint.

    python weights/train.py --out RUN                            the whole run; interrupted, the same line goes on where it was
    python weights/train.py --out RUN --start weights/tiny.gguf  the same, but what the file knows need not be learned again
    python convert.py RUN/janus-tiny -o weights/tiny.gguf --dtype f16

Stage 1, `vq`: the VQ encoder, codebook and decoder learn to pass pictures through 64 ids.
Stage 2, `eyes`: the understanding encoder learns to see, as SigLIP has before it becomes a part of Janus-Pro: every patch
is to tell the kind and the colour of what it lies on, and what the whole picture holds. The heads that this needs are thrown away.
Stage 3, `joint`: with the VQ and the understanding encoder frozen, both adaptors, the transformer and both heads learn
everything together: to answer questions about a picture, to talk without one, and to draw what a caption says, with part
of the captions replaced by pad ids so that guidance has something to compare with.
Stage 4, `decoder`: the VQ decoder alone learns to paint the ids, which stay as they are, more exactly.
All scenes are new, made while training. RUN holds tokenizer.json, vq.pt, eyes.pt, joint.pt and decoder.pt (the state of each stage,
replaced in one step every three minutes), log.csv, curves.png and janus-tiny/ (what transformers' save_pretrained writes). It runs on a GPU if
PyTorch finds one, and may be killed at any time.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig,
                          PreTrainedTokenizerFast)

sys.path.insert(0, str(Path(__file__).resolve().parent))
REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "test" / "python")]
import world  # noqa: E402
from convert import BEGIN_OF_IMAGE, BOS, END_OF_IMAGE, EOS, IMAGE_PLACEHOLDER, PAD, SIZE_FIELDS, SYSTEM_PROMPT, Sizes, tensor_table  # noqa: E402
from random_model import DEEPSEEK_LETTERS  # noqa: E402

SIDE, GRID, TOKENS = 64, 8, 64
CODEBOOK, CODE_DIM = 1024, 8
WIDTH, LAYERS, HEADS, KV_HEADS, MLP = 192, 7, 6, 3, 480
SPECIAL = [BOS, EOS, PAD, IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE, "<|User|>", "<|Assistant|>"]
VOCABULARY = 768
VALIDATION, POOL = 256, 30000  # pictures: for the log; kept of those whose ids are known
PLAIN = 0.3  # world.random_scene
IGNORE = -100
CLASSES = len(world.COLOURS) + len(world.BACKGROUNDS)  # what a head that is asked about a scene chooses among
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EYES_GREY, GREY = 0.5, 0.25  # the share of the pictures that stage 2, and questions, show in grey: what a thing is shows without colour
# Of a step of the joint stage: until which step, captions alone, drawings, conversations. It learns to read first, and to see long
# before it draws well.
MIX = ((600, 64, 12, 6), (2500, 0, 36, 18), (10**9, 0, 64, 8))
UNKNOWN = 0.06  # the share of scenes that are the picture of what is outside the world
TURNS, MEDLEYS = 5, 0.25  # of a conversation, up to; the share of conversations about a medley
DRAWN = 3  # of the pictures that are asked about in a step, those that have been through the VQ
CHAINED = 0.45  # the share of conversations whose turns follow on one another; in the others each is the first (Conversation)
EYES_MEDLEYS = 20  # of the 64 pictures of a step
DROPPED, SMOOTH = 0.1, 0.2  # the share of drawings without their prompt, and the smoothing of their labels (drawing_loss)


# ---- Data -----------------------------------------------------------------------------------------------------------

def random_scenes(rng: np.random.Generator, count: int) -> list[world.Scene]:
    """Scenes that training may meet."""
    return [world.UNKNOWN if rng.random() < UNKNOWN else world.random_scene(rng, plain=PLAIN) for _ in range(count)]


def pictures_of(scenes: list[world.Scene]) -> torch.Tensor:
    """uint8 [scenes, 3, 64, 64]."""
    return torch.from_numpy(np.stack([world.render(scene) for scene in scenes])).permute(0, 3, 1, 2).contiguous()


def to_input(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to -1..1 on the device, for both encoders (mean 0.5, std 0.5)."""
    return pictures.to(DEVICE).float() / 127.5 - 1


def texts(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Words of the world, as they stand in prompts."""
    yield from [SYSTEM_PROMPT] * 200
    for scene in random_scenes(rng, count):
        yield f"<|User|>: {world.caption(scene, rng).words}\n\n<|Assistant|>:"
        for turn in world.conversation([scene], rng, 5):
            opening = "\n" if turn.scene else "<|User|>: "
            yield f"{opening}{turn.question}\n\n<|Assistant|>: {turn.answer}"


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE with the pre-tokenizer of DeepSeek's."""
    ranges = [part.split("-") for part in DEEPSEEK_LETTERS.split()]
    letters = "".join("-".join(chr(int(end, 16)) for end in ends) for ends in ranges)
    patterns = ["[\r\n]", f"\\s?[{letters}]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$", "[一-龥ࠀ-一가-\ud7ff]+"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        + [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts(np.random.default_rng(2), 20000), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


class Conversation(NamedTuple):
    """Questions and answers. All questions about a picture may share it and yet each be the first: then a token sees what they
    share and its own turn alone, and every turn stands at the same positions. A picture costs more than a question does."""

    ids: list[int]
    labels: list[int]  # the ids of answers and of their ends, IGNORE elsewhere
    turns: list[int]  # 0 where all turns see the token, else the number of the only turn that does
    positions: list[int]


class Speaker:
    """Turns scenes and words into training sequences of ids, with the ids that are to be predicted."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.bos, self.eos, self.pad, self.image, self.begin, self.end = (tokenizer.token_to_id(t) for t in SPECIAL[:6])
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            if len(self.cache) > 200000:
                self.cache.clear()
            self.cache[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.cache[text]

    def drawing(self, caption: str, dropped: bool) -> list[int]:
        """The prompt of a drawing, up to <begin_of_image>; `dropped`: as the unconditional row of guidance has it."""
        ids = self.encode(f"<|User|>: {caption}\n\n<|Assistant|>:")
        return [self.bos, *([self.pad] * len(ids) if dropped else ids), self.begin]

    def conversation(self, turns: list[world.Turn], chained: bool = True) -> Conversation:
        """The turns one after another; not `chained`, as if each were the first about the picture of the first."""
        words, opening = Conversation([], [], [], []), 0
        for number, turn in enumerate(turns):
            head, user = [] if number else [self.bos, *self.encode(f"{SYSTEM_PROMPT}\n\n")], "<|User|>: "
            if turn.scene:
                head += [*self.encode(user), self.begin, *[self.image] * TOKENS, self.end, *self.encode("\n")]
            asked = self.encode(f"{user if chained and not turn.scene else ''}{turn.question}\n\n<|Assistant|>:")
            said = [*self.encode(f" {turn.answer}"), self.eos]
            opening = opening or len(head)
            length, begin = len(asked + said), len(words.ids) + len(head) if chained else opening
            words.ids.extend(head + asked + said)
            words.labels.extend([IGNORE] * len(head + asked) + said)
            words.turns.extend([0] * len(head) + [0 if chained else number + 1] * length)
            words.positions.extend(range(begin - len(head), begin + length))
        return words


def pad_batch(rows: list[list[int]], filler: int) -> torch.Tensor:
    """int64 [rows, longest, rounded up to a multiple of 8]; what fills a row up stands behind it, unseen by causal attention."""
    longest = -(-max(map(len, rows)) // 8) * 8
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=DEVICE)


# ---- Model ----------------------------------------------------------------------------------------------------------

def make_model(tokenizer: Tokenizer) -> JanusForConditionalGeneration:
    """The transformers classes with a small configuration."""
    size = tokenizer.get_vocab_size()
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    text = LlamaConfig(vocab_size=size, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS,
                       num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=2048,
                       rms_norm_eps=1e-6, tie_word_embeddings=False, bos_token_id=ids[BOS], eos_token_id=ids[EOS],
                       pad_token_id=ids[PAD])
    vision = JanusVisionConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE,
                               patch_size=SIDE // GRID, projection_dim=WIDTH, num_image_tokens=TOKENS)
    vq = JanusVQVAEConfig(embed_dim=CODE_DIM, num_embeddings=CODEBOOK, latent_channels=64, base_channels=32,
                          channel_multiplier=[1, 1, 2, 3], num_res_blocks=1, projection_dim=WIDTH,
                          image_token_embed_dim=WIDTH)
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=ids[IMAGE_PLACEHOLDER],
                         tie_word_embeddings=False)
    return JanusForConditionalGeneration(config)


def quantize(vq: torch.nn.Module, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float [B, 3, 64, 64] -> the encoder's output and the nearest codes [B, 8, G, G], both of length 1, and ids [B*G*G] (the official rule)."""
    z, codes = F.normalize(vq.quant_conv(vq.encoder(pictures)).float(), dim=1), F.normalize(vq.quantize.embedding.weight, dim=-1)
    rows = z.permute(0, 2, 3, 1).reshape(-1, CODE_DIM)
    with torch.autocast(DEVICE.type, enabled=False):
        ids = (rows @ codes.t()).argmax(1)
    return z, codes[ids].view(z.shape[0], GRID, GRID, CODE_DIM).permute(0, 3, 1, 2), ids


def encode_pictures(vq: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, 64, 64] -> ids [N, 64], both in the CPU's memory."""
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        parts = [quantize(vq, to_input(part))[2].cpu() for part in pictures.split(64)]
    return torch.cat(parts).view(-1, TOKENS)


def start_from(model: JanusForConditionalGeneration, tokenizer: Tokenizer, path: Path) -> None:
    """Takes the weights of an earlier edition, a GGUF file of the same sizes. A token that it does not have begins as the mean of
    the tokens that it is made of there."""
    from gguf import GGUFReader
    reader = GGUFReader(path)
    sizes = Sizes(**{entry.name: reader.fields[entry.metadata["key"]].contents() for entry in SIZE_FIELDS})
    stored = {tensor.name: torch.from_numpy(tensor.data.astype(np.float32)) for tensor in reader.tensors}
    old = {token: place for place, token in enumerate(reader.fields["tokenizer.ggml.tokens"].contents())}
    rows = []
    for place in range(tokenizer.get_vocab_size()):
        text, pieces = tokenizer.id_to_token(place), []
        while text:
            piece = next(text[:end] for end in range(len(text), 0, -1) if text[:end] in old)
            pieces, text = [*pieces, old[piece]], text[len(piece):]
        rows.append(pieces)
    state = {}
    for tensor in tensor_table(sizes):
        values = stored[tensor.name]
        if tensor.name in ("token_embd.weight", "output.weight"):
            values = torch.stack([values[pieces].mean(0) for pieces in rows])
        elif len(tensor.shape) == 4:
            values = values.permute(0, 3, 1, 2)
        for (name, shape), part in zip(tensor.sources("transformers").items(), values.chunk(len(tensor.transformers))):
            state[name] = part.reshape(shape if "embed_tokens" not in name and "lm_head" not in name else part.shape)
    model.load_state_dict(state)


# ---- All stages -----------------------------------------------------------------------------------------------------

class Muon(torch.optim.Optimizer):
    """Steps of matrices (a convolution kernel is one, out x all the rest) with all singular values made nearly equal: five steps of a
    Newton-Schulz iteration (Keller Jordan, 2024). Steps of one size never cease to grow a matrix: hence the decay."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float):
        super().__init__(parameters, {"lr": 0.0, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.05)
                step = self.orthogonal(parameter.grad.lerp(momentum, 0.95).reshape(len(parameter), -1))
                tall = max(1.0, step.shape[0] / step.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["decay"]).add_(step.reshape(parameter.shape), alpha=-group["lr"] * tall)

    @staticmethod
    def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
        x = matrix.t() if matrix.shape[0] > matrix.shape[1] else matrix
        x = (x / (x.norm() + 1e-7)).bfloat16()
        for _ in range(5):
            square = x @ x.t()
            x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
        return (x.t() if matrix.shape[0] > matrix.shape[1] else x).float()


class Optimizers:
    """Muon for the matrices inside, AdamW for vectors and for what stands at the ends: tables and heads."""

    def __init__(self, named: list[tuple[str, torch.nn.Parameter]], muon_rate: float, adam_rate: float, ends: tuple[str, ...],
                 scaffold: list[torch.nn.Parameter] = (), decay: float = 0.0):
        inside = [p for name, p in named if p.ndim >= 2 and not any(end in name for end in ends)]
        others = [p for name, p in named if p.ndim < 2 or any(end in name for end in ends)]
        self.pairs = [(Muon(inside, decay), muon_rate)]
        self.pairs += [(torch.optim.AdamW(group, betas=(0.9, 0.98), weight_decay=0.0), adam_rate) for group in (others, scaffold) if group]

    def update(self, loss: torch.Tensor, share: float) -> None:
        """One step at `share` of the peak rates."""
        for optimizer, rate in self.pairs:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for optimizer, _ in self.pairs for g in optimizer.param_groups for p in g["params"]], 1.0)
        for optimizer, _ in self.pairs:
            optimizer.step()

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer, _ in self.pairs]

    def load_state_dict(self, states: list[dict]) -> None:
        for (optimizer, _), state in zip(self.pairs, states):
            optimizer.load_state_dict(state)


def schedule(step: int, steps: int, warmup: int) -> float:
    """The share of the peak learning rate: up in a line, down in half a cosine to a fiftieth."""
    return min(1, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


class Checkpoint:
    """The state of a stage in a file, replaced in one step, every three minutes and at the end; and the stage's rows of log.csv."""

    def __init__(self, run: Path, stage: str, steps: int, **parts: torch.nn.Module | Optimizers):
        self.path, self.steps, self.parts, self.saved, self.start = run / f"{stage}.pt", steps, parts, time.time(), 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True, map_location=DEVICE)
            self.start = state["step"]
            for name, part in parts.items():
                part.load_state_dict(state[name])

    def remaining(self) -> tqdm:
        """The steps that are left."""
        return tqdm(range(self.start, self.steps), self.path.stem, initial=self.start, total=self.steps)

    def saves(self, step: int) -> bool:
        """Saves the state after a step, if it is time to."""
        if step < self.steps - 1 and time.time() - self.saved < 180:
            return False
        beside = self.path.with_suffix(".part")
        torch.save({"step": step + 1} | {name: part.state_dict() for name, part in self.parts.items()}, beside)
        os.replace(beside, self.path)
        self.saved = time.time()
        return True

    def log(self, step: int, **values: float | torch.Tensor) -> None:
        """Rows of stage, step, name, value."""
        with (self.path.parent / "log.csv").open("a", newline="") as file:
            csv.writer(file).writerows((self.path.stem, step + 1, name, f"{float(value):.6g}") for name, value in values.items())


# ---- Stage 1 --------------------------------------------------------------------------------------------------------

class Codebook:
    """Keeps the codes in use: filled from the encoder's own outputs once, and unused codes replaced by such outputs."""

    def __init__(self, weight: torch.Tensor):
        self.weight, self.recent, self.used = weight, weight.detach()[:0], torch.zeros(CODEBOOK, device=DEVICE)

    def see(self, rows: torch.Tensor, ids: torch.Tensor) -> None:
        self.recent = torch.cat([rows.detach(), self.recent])[:16384]
        self.used += torch.bincount(ids, minlength=CODEBOOK)

    def fill(self, places: torch.Tensor) -> None:
        with torch.no_grad():
            self.weight[places] = self.recent[torch.randint(len(self.recent), (len(places),), device=DEVICE)]
        self.used.zero_()

    def unused(self) -> torch.Tensor:
        return (self.used < self.used.sum() * 2e-5).nonzero()[:, 0]


def vq_step(vq: torch.nn.Module, pictures: torch.Tensor, book: Codebook, quantized: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one batch, and its mean squared error alone."""
    z, codes, ids = quantize(vq, pictures)
    book.see(z.permute(0, 2, 3, 1).reshape(-1, CODE_DIM), ids)
    passed = z + (codes - z).detach() if quantized else z
    drawn = vq.decoder(vq.post_quant_conv(passed))
    error = F.mse_loss(drawn, pictures)
    loss = error + 0.1 * F.l1_loss(drawn, pictures)
    if quantized:
        loss = loss + 0.5 * F.mse_loss(z, codes.detach()) + F.mse_loss(codes, z.detach())
    return loss, error.detach()


def psnr(vq: torch.nn.Module, pictures: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio, in dB, of pictures [N, 3, 64, 64] that went through the ids."""
    with torch.no_grad():
        wanted = to_input(pictures)
        drawn = vq.decoder(vq.post_quant_conv(quantize(vq, wanted)[1])).clamp(-1, 1)
        return float((10 * torch.log10(4 / ((drawn - wanted) ** 2).mean((1, 2, 3)))).mean())


def train_vq(model: JanusForConditionalGeneration, run: Path, steps: int, started: bool) -> None:
    """`started`: the codebook is in use already, and a lower rate will do."""
    vq, free_steps = model.model.vqmodel, 0 if started else 250
    optimizers = Optimizers(list(vq.named_parameters()), 0.01 if started else 0.02, 1e-3 if started else 2e-3, ("embedding",))
    book = Codebook(vq.quantize.embedding.weight)
    saved = Checkpoint(run, "vq", steps, vq=vq, opt=optimizers)
    rng, validation = np.random.default_rng([1, saved.start]), pictures_of(random_scenes(np.random.default_rng(1), VALIDATION))
    for step in saved.remaining():
        batch = pictures_of(random_scenes(rng, 16))
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss, error = vq_step(vq, to_input(batch), book, step >= free_steps)
        optimizers.update(loss, schedule(step, steps, 30))
        if step == free_steps - 1:
            book.fill(torch.arange(CODEBOOK, device=DEVICE))
        elif free_steps <= step < (0.4 if started else 0.7) * steps and (step - free_steps) % 60 == 59:
            book.fill(book.unused())
        if step % 50 == 49:
            saved.log(step, mse=error)
        if saved.saves(step):
            saved.log(step, psnr=psnr(vq, validation))
    with torch.no_grad():
        weight = vq.quantize.embedding.weight
        weight.copy_(F.normalize(weight, dim=-1))


# ---- Stage 2 --------------------------------------------------------------------------------------------------------

def patch_labels(scenes: list[world.Scene]) -> torch.Tensor:
    """int64 [scenes, 64, 2]: the kind and the colour of the thing that each patch lies on; where there is none, what follows
    on all kinds, and on all colours the background."""
    labels = np.full((len(scenes), GRID, GRID, 2), (len(world.KINDS), len(world.COLOURS)))
    centres = (np.arange(GRID) + 0.5) * SIDE / GRID
    for number, scene in enumerate(scenes):
        labels[number, ..., 1] += list(world.BACKGROUNDS).index(scene.background)
        for thing in scene.things:
            rows, columns = abs(centres - thing.y) < thing.size / 2, abs(centres - thing.x) < thing.size / 2
            labels[number][np.ix_(rows, columns)] = world.KINDS.index(thing.kind), list(world.COLOURS).index(thing.colour)
    return torch.from_numpy(labels.reshape(len(scenes), TOKENS, 2))


def eye_labels(scenes: list[world.Scene]) -> torch.Tensor:
    """int64 [scenes, 64, 3]: patch_labels, and how many things the whole picture shows."""
    numbers = torch.tensor([len(scene.things) for scene in scenes])
    return torch.cat([patch_labels(scenes), numbers[:, None, None].expand(-1, TOKENS, 1)], 2)


def seen_in_grey(scenes: list[world.Scene], share: float) -> torch.Tensor:
    """bool [scenes]: the first `share` of a batch, but nothing on grey, where some colours would vanish."""
    return torch.tensor([place < share * len(scenes) and scene.background != "grey" for place, scene in enumerate(scenes)])


def in_grey(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """float [N, 3, 64, 64] without colours, fainter or not, lighter or darker, half of them negatives: what a thing is goes with
    its shade as little as with its colour."""
    def some(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(pictures), 1, 1, 1))).float().to(DEVICE)

    gain = some(0.5, 1) * some(-1, 1).sign()
    return gain * pictures.mean(1, keepdim=True).expand_as(pictures) + some(-0.3, 0.3)


def look(vision: torch.nn.Module, heads: torch.nn.Linear, pictures: torch.Tensor) -> torch.Tensor:
    """What the heads tell of every patch: logits [N, 64, 3, CLASSES] of eye_labels."""
    return heads(vision(pictures).last_hidden_state).float().unflatten(-1, (3, CLASSES))


def train_eyes(model: JanusForConditionalGeneration, run: Path, steps: int, started: bool) -> None:
    vision = model.model.vision_model
    heads = torch.nn.Linear(vision.config.hidden_size, 3 * CLASSES).to(DEVICE)
    optimizers = Optimizers([*vision.named_parameters(), *heads.named_parameters("heads")], 0.01 if started else 0.02, 2e-3, ("embed", "heads"))
    saved = Checkpoint(run, "eyes", steps, vision=vision, heads=heads, opt=optimizers)
    rng, validation = np.random.default_rng([2, saved.start]), random_scenes(np.random.default_rng(1), VALIDATION)
    vision.set_attn_implementation("eager")
    for step in saved.remaining():
        scenes = [*random_scenes(rng, 64 - EYES_MEDLEYS), *(world.random_medley(rng) for _ in range(EYES_MEDLEYS))]
        batch, asked, greys = to_input(pictures_of(scenes)), eye_labels(scenes), seen_in_grey(scenes, EYES_GREY)
        batch[greys] = in_grey(batch[greys], rng)
        asked[..., 1] = asked[..., 1].masked_fill(greys[:, None], IGNORE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            told = look(vision, heads, batch)
        loss = F.cross_entropy(told.flatten(0, 2), asked.to(DEVICE).flatten(), ignore_index=IGNORE)
        optimizers.update(loss, schedule(step, steps, 100))
        if step % 50 == 49:
            saved.log(step, loss=loss.detach())
        if saved.saves(step):
            with torch.no_grad():
                told = look(vision, heads, to_input(pictures_of(validation))).argmax(-1).cpu()
            wanted = eye_labels(validation)
            right, on_things = (told == wanted).float(), wanted[..., 0] < len(world.KINDS)
            saved.log(step, accuracy=right[..., :2][on_things].mean(), background=right[..., 1][~on_things].mean(), counted=right[..., 2].mean())


# ---- Stage 3 --------------------------------------------------------------------------------------------------------

class Drawings(NamedTuple):
    """Captions and the pictures that they ask for."""

    prompts: torch.Tensor  # int64 [count, longest], up to <begin_of_image>, then filled up
    last: torch.Tensor  # int64 [count], the place of <begin_of_image>
    image_ids: torch.Tensor  # int64 [count, 64]
    dropped: torch.Tensor  # bool [count], whether the prompt is the unconditional one
    said: torch.Tensor  # said_labels [count, 5], as the next two IGNORE where the prompt is dropped
    plans: torch.Tensor  # plan_labels [count, 8]
    patches: torch.Tensor  # patch_labels [count, 64, 2]

    def halves(self) -> list[Drawings]:
        """Those of the shorter prompts, and those of the longer: few are long, and padding costs like words."""
        return [Drawings(self.prompts[rows, :int(self.last[rows].max()) + 1], *(each[rows] for each in self[1:]))
                for rows in self.last.argsort().chunk(2)]


class Conversations(NamedTuple):
    """Conversations and their pictures, in the order of their places in `ids`; what is asked of pictures in grey has nothing to
    do with colours."""

    ids: torch.Tensor  # int64 [count, longest]
    labels: torch.Tensor  # int64 [count, longest]
    turns: torch.Tensor  # int64 [count, longest]
    positions: torch.Tensor  # int64 [count, longest]
    pictures: torch.Tensor  # float [pictures, 3, 64, 64], as an encoder takes them
    plans: torch.Tensor  # plan_labels [pictures, 8], IGNORE for colours in grey
    sought: torch.Tensor  # sought_labels [questions, 4], IGNORE for colours in grey


class Lessons:
    """Batches of the joint stage. A third of the scenes of drawings are new, the others come from a pool of earlier ones."""

    def __init__(self, vq: torch.nn.Module, speaker: Speaker, rng: np.random.Generator):
        self.vq, self.speaker, self.rng = vq, speaker, rng
        self.scenes: list[world.Scene] = []
        self.image_ids = torch.empty(0, TOKENS, dtype=torch.int64)
        self.more(256)

    def more(self, count: int) -> None:
        scenes = random_scenes(self.rng, count)
        self.scenes = [*self.scenes[-POOL:], *scenes]
        self.image_ids = torch.cat([self.image_ids[-POOL:], encode_pictures(self.vq, pictures_of(scenes))])

    def drawings(self, count: int, dropped_share: float) -> Drawings:
        self.more(count // 3)
        chosen = self.rng.integers(0, len(self.scenes), count)
        scenes, image_ids = [self.scenes[i] for i in chosen], self.image_ids[chosen]
        captions = [world.caption(scene, self.rng) for scene in scenes]
        said = torch.tensor([said_labels(scene, caption) for scene, caption in zip(scenes, captions)])
        plans, patches, words = plan_labels(scenes), patch_labels(scenes), [caption.words for caption in captions]
        dropped = torch.from_numpy(self.rng.random(count) < dropped_share)
        prompts = [self.speaker.drawing(text, drop) for text, drop in zip(words, dropped.tolist())]
        for labels in (said, plans, patches):
            labels[dropped] = IGNORE
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        return Drawings(pad_batch(prompts, self.speaker.pad), *(each.to(DEVICE) for each in (last, image_ids, dropped, said, plans, patches)))

    def one(self, in_grey: bool) -> tuple[list[world.Scene], list[world.Turn], bool]:
        """The scenes and the turns of a conversation, and whether these follow on one another."""
        rng = self.rng
        if not in_grey and rng.random() < CHAINED:
            scenes = random_scenes(rng, int(rng.choice([0, 1, 2], p=[0.1, 0.75, 0.15])))
            turns = world.conversation(scenes, rng, int(rng.integers(max(2, len(scenes)), TURNS + 2)))
            return scenes, turns, True
        scene = world.random_medley(rng) if rng.random() < MEDLEYS else random_scenes(rng, 1)[0]
        asked = world.questions(scene, rng, TURNS, in_grey and scene.background != "grey")
        return [scene], [world.Turn(*words, None if number else scene) for number, (_, *words) in enumerate(asked)], False

    def answers(self, count: int) -> Conversations:
        """Conversations about pictures, the first ones in grey; some pictures have been through the VQ, as the model's own have."""
        talks = [self.one(place < GREY * count) for place in range(count)]
        scenes = [scene for about, _, _ in talks for scene in about]
        greys = seen_in_grey(scenes, GREY * count / len(scenes))  # the first conversations have one picture each
        pictures, plans, sought = to_input(pictures_of(scenes)), plan_labels(scenes), []
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            drawn = quantize(self.vq, pictures[-DRAWN:])[1]
            pictures[-DRAWN:] = self.vq.decoder(self.vq.post_quant_conv(drawn)).float().clamp(-1, 1)
        pictures[greys] = in_grey(pictures[greys], self.rng)
        plans[:, PLAN_COLOURS] = plans[:, PLAN_COLOURS].masked_fill(greys[:, None], IGNORE)
        for place, (_, turns, _) in enumerate(talks):
            scene = None
            for turn in turns:
                scene = turn.scene or scene
                sought.append(sought_labels(scene, turn.question) if scene else [IGNORE] * 4)
                if place < GREY * count:
                    sought[-1][1] = IGNORE
        rows = zip(*(self.speaker.conversation(turns, chained) for _, turns, chained in talks))
        ids, labels, turns, positions = (pad_batch(row, filler) for row, filler in zip(rows, (self.speaker.pad, IGNORE, 0, 0)))
        return Conversations(ids, labels, turns, positions, pictures, plans.to(DEVICE), torch.tensor(sought, device=DEVICE))


def hidden_states(model: JanusForConditionalGeneration, embeddings: torch.Tensor, positions: torch.Tensor | None = None,
                  turns: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Embeddings [B, T, D] -> what every block leaves [B, T, D], the last one normalised; causal, at positions 0..T-1 and with
    nothing else masked if not as a Conversation says [B, T]."""
    mask = None
    model.set_attn_implementation("eager" if turns is None else "sdpa")  # on the CPU the faster for short rows, and for long ones
    if positions is None:
        positions = torch.arange(embeddings.shape[1], device=DEVICE)[None].expand(embeddings.shape[0], -1)
    if turns is not None:
        seen = ((turns[:, None] == 0) | (turns[:, None] == turns[..., None])).tril()  # [B, T, T]: row sees column
        mask = torch.zeros(seen.shape, device=DEVICE).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    return model.model.language_model(inputs_embeds=embeddings, position_ids=positions, attention_mask=mask, use_cache=False,
                                      output_hidden_states=True).hidden_states


PLAN_COLOURS = [1, 3, 6]  # of the plan_labels


def plan_labels(scenes: list[world.Scene]) -> torch.Tensor:
    """int64 [scenes, 8]: kind and colour of the first (left or top) and of the last thing (IGNORE of a medley,
    where neither is any thing in particular, and where nothing is), how many there are, how a pair stands, the background, the size of a single thing."""
    kinds, colours, backgrounds = list(world.KINDS), list(world.COLOURS), list(world.BACKGROUNDS)
    rows = [[*(value for thing in (scene.things[:1] + scene.things[-1:])
               for value in (kinds.index(thing.kind), colours.index(thing.colour))), *[IGNORE] * 4 * (not scene.things), len(scene.things),
             ("left", "above").index(scene.relation) if scene.is_pair else 2, backgrounds.index(scene.background),
             list(world.SIZES).index(scene.size)] for scene in scenes]
    plans, medleys = torch.tensor(rows), torch.tensor([scene.is_medley for scene in scenes])
    plans[:, :4] = plans[:, :4].masked_fill(medleys[:, None], IGNORE)
    return plans


def said_labels(scene: world.Scene, caption: world.Caption) -> list[int]:
    """Kind and colour of the thing that a caption names first, and of the last; left, right, above, below or (4) nothing, how
    the first stands to the last; IGNORE of what is outside the world."""
    if not scene.things:
        return [IGNORE] * 5
    things = [scene.things[0], scene.things[-1]][::-1 if caption.reverse else 1]
    relation, kinds, colours = [*world.OPPOSITE, ""].index(caption.relation), list(world.KINDS), list(world.COLOURS)
    return [*(value for thing in things for value in (kinds.index(thing.kind), colours.index(thing.colour))), relation]


def sought_labels(scene: world.Scene, question: str) -> list[int]:
    """What a question is answered from, for the thing that it names first: how many there are (also of "things"), the colour,
    left, right, above or below, how it stands to the other of a pair, and that one's kind; IGNORE where there is no such thing."""
    question, kinds, present = question.lower(), list(world.KINDS), [thing.kind for thing in scene.things]

    def first(names: dict[object, tuple[str, ...]]) -> object | None:
        places = {name: min((question.find(word) for word in words if word in question), default=-1) for name, words in names.items()}
        return min((name for name in names if places[name] >= 0), key=places.get, default=None)

    named = first({kind: (kind, *world.SPANISH.nouns[kind][:2]) for kind in (*kinds, "thing")})
    if named is None or named == "thing":
        return [len(present) if named else IGNORE, IGNORE, IGNORE, IGNORE]
    if named not in present:
        return [0, IGNORE, IGNORE, IGNORE]
    thing, count = scene.things[present.index(named)], present.count(named)
    if scene.is_twin:
        gender = world.SPANISH.nouns[named][2]
        thing = first({each: (each.colour, world.SPANISH.adjective(each.colour, False, gender)) for each in scene.things})
        if thing is None:
            return [count, IGNORE, IGNORE, IGNORE]
    colour = list(world.COLOURS).index(thing.colour)
    if not scene.is_pair:
        return [IGNORE if scene.is_medley else count, colour, IGNORE, IGNORE]
    relation = scene.relation if thing is scene.things[0] else world.OPPOSITE[scene.relation]
    other = scene.things[thing is scene.things[0]]
    return [count, colour, list(world.OPPOSITE).index(relation), kinds.index(other.kind)]


class Scaffold(torch.nn.Module):
    """Heads that help the transformer to read captions and pictures, and are thrown away when it can.

    At <begin_of_image> an early block is asked what was said in which order, a later one what the picture is to be, and at every id
    the last one what is on that patch. Where a picture is seen, the later one is asked the same at <end_of_image>: what a picture is
    has one form for both tasks. And where a question ends, it is asked what the answer needs of the thing that the question names.
    """

    SAID, PLAN = 2, 4  # the blocks that are asked

    def __init__(self) -> None:
        super().__init__()
        self.said, self.plan, self.patch, self.sought = (torch.nn.Linear(WIDTH, CLASSES * count) for count in (5, 8, 2, 4))

    def reading(self, blocks: tuple[torch.Tensor, ...], lessons: Drawings) -> torch.Tensor:
        """What is asked about the captions of drawings, given what every block left of them."""
        rows = torch.arange(len(lessons.last), device=DEVICE)
        said, planned = (blocks[block][rows, lessons.last] for block in (self.SAID, self.PLAN))
        return self.ask(self.said, said, lessons.said) + self.ask(self.plan, planned, lessons.plans)

    def seeing(self, blocks: tuple[torch.Tensor, ...], talks: Conversations, end: int) -> torch.Tensor:
        """What is asked about pictures seen, at the id `end`, <end_of_image>, and where questions about them end."""
        answers = talks.labels != IGNORE
        starts = answers[:, 1:] & ~answers[:, :-1]
        return (self.ask(self.plan, blocks[self.PLAN][talks.ids == end], talks.plans)
                + self.ask(self.sought, blocks[self.PLAN][:, :-1][starts], talks.sought))

    @staticmethod
    def ask(head: torch.nn.Linear, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of labels below CLASSES, int64 [..., count], each with as many outputs of the head; 0 if all are IGNORE."""
        told = head(F.rms_norm(states, (WIDTH,))).float().unflatten(-1, (-1, CLASSES))
        asked = (labels != IGNORE).sum().clamp(min=1)
        return F.cross_entropy(told.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum") / asked


def looks_of_ids(pictures: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
    """float [CODEBOOK, 66]: how an id looks on average, from uint8 [N, 3, 64, 64] and their ids [N, 64]; mean 0, spread about 1.

    The shares of its pixels that have each colour of the world, their roots (a little of a colour is more than none), and
    in 4 x 4 fields how much is a thing and how much of that is roof, window or tyre.
    """
    backgrounds = slice(len(world.COLOURS), len(world.COLOURS) + len(world.BACKGROUNDS))
    palette = torch.tensor([*world.COLOURS.values(), *world.BACKGROUNDS.values(), world.ROOF, world.GLASS, world.TYRE]).float()
    sums, counts = torch.zeros(CODEBOOK, 2 * len(palette) + 32), torch.zeros(CODEBOOK, 1)
    for part, ids in zip(pictures.split(200), image_ids.split(200)):
        pixels = part.permute(0, 2, 3, 1).float().reshape(-1, 3)
        named = F.one_hot(torch.cdist(pixels, palette).argmin(1), len(palette)).float().view(-1, SIDE, SIDE, len(palette))
        patches = named.unflatten(2, (GRID, -1)).unflatten(1, (GRID, -1)).transpose(2, 3).flatten(0, 2)  # [N*64, 8, 8, colours]
        shares = patches.mean((1, 2))
        thing, furniture = 1 - patches[..., backgrounds].sum(-1), patches[..., backgrounds.stop:].sum(-1)
        fields = [F.avg_pool2d(mask[:, None], 2).flatten(1) for mask in (thing, furniture)]
        sums.index_add_(0, ids.flatten(), torch.cat([shares, shares.sqrt(), *fields], 1))
        counts.index_add_(0, ids.flatten(), torch.ones(ids.numel(), 1))
    looks = sums / counts.clamp(min=1)
    return (looks - looks.mean(0)) / (looks.std(0) + 0.03)


class KindredHead(torch.nn.Module):
    """The last matrix of the generation head while it learns: ids that look alike begin alike. A row is a sum over what the id looks
    like, and a free part, which begins as nothing. Trained, the two are one matrix (`folded`)."""

    def __init__(self, looks: torch.Tensor, started: torch.nn.Linear | None):
        super().__init__()
        self.register_buffer("looks", looks / looks.shape[1] ** 0.5)
        shared, free, bias = 0.02 * torch.randn(looks.shape[1], WIDTH), torch.zeros(CODEBOOK, WIDTH), torch.zeros(CODEBOOK)
        if started:  # as much of it as the looks tell, and the rest
            weight, bias = started.weight.detach().cpu(), started.bias.detach().cpu()
            shared = torch.linalg.solve(self.looks.t() @ self.looks + torch.eye(looks.shape[1]), self.looks.t() @ weight)
            free = weight - self.looks @ shared
        self.shared_head, self.free_head, self.bias = (torch.nn.Parameter(part.clone()) for part in (shared, free, bias))

    def weight(self) -> torch.Tensor:
        return self.looks @ self.shared_head + self.free_head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight(), self.bias)

    def folded(self) -> torch.nn.Linear:
        """The same as one layer."""
        layer = torch.nn.Linear(WIDTH, CODEBOOK)
        with torch.no_grad():
            layer.weight.copy_(self.weight())
            layer.bias.copy_(self.bias)
        return layer


def drawing_loss(model: JanusForConditionalGeneration, scaffold: Scaffold, lessons: Drawings) -> dict[str, torch.Tensor]:
    """`draw`, cross-entropy of the image ids after their prompts; `prompted`, without the dropped prompts, for the log;
    `reading` and `patch`, what the scaffold asks. The unconditional row learns smoothed labels: guidance divides by its
    probabilities, which then do not fall under SMOOTH / CODEBOOK.
    """
    count, width = lessons.prompts.shape
    words = model.get_input_embeddings()(lessons.prompts)
    drawn = model.prepare_embeddings_for_image_generation(lessons.image_ids[:, :-1])
    places = lessons.last[:, None] + torch.arange(TOKENS, device=DEVICE)  # of the states that predict the ids: <begin_of_image> and on
    embeddings = torch.zeros(count, width + TOKENS - 1, words.shape[2], device=DEVICE)
    embeddings[:, :width] = words
    embeddings = embeddings.scatter(1, (places[:, 1:])[..., None].expand(-1, -1, words.shape[2]), drawn.float())
    blocks = hidden_states(model, embeddings)
    states = blocks[-1].gather(1, places[..., None].expand(-1, -1, words.shape[2]))
    logarithms = model.model.generation_head(states).float().log_softmax(-1)
    plain = -logarithms.gather(2, lessons.image_ids[..., None])[..., 0].mean(1)
    smoothed = (1 - SMOOTH) * plain - SMOOTH * logarithms.mean((1, 2))
    return {"draw": torch.where(lessons.dropped, smoothed, plain).mean(), "prompted": plain.detach()[~lessons.dropped].mean(),
            "reading": scaffold.reading(blocks, lessons), "patch": scaffold.ask(scaffold.patch, states, lessons.patches)}


def answer_loss(model: JanusForConditionalGeneration, scaffold: Scaffold, speaker: Speaker, talks: Conversations) -> dict[str, torch.Tensor]:
    """`answer`, cross-entropy of the answers; `seeing`, what the scaffold asks."""
    embeddings = model.get_input_embeddings()(talks.ids).float()
    seen = model.model.get_image_features(talks.pictures).pooler_output.float()
    embeddings = embeddings.masked_scatter((talks.ids == speaker.image)[..., None], seen)
    blocks = hidden_states(model, embeddings, talks.positions, talks.turns)
    states, wanted = blocks[-1][:, :-1], talks.labels[:, 1:]
    chosen = wanted != IGNORE
    loss = F.cross_entropy(model.lm_head(states[chosen]).float(), wanted[chosen])
    return {"answer": loss, "seeing": scaffold.seeing(blocks, talks, speaker.end)}


WEIGHTS = {"draw": 1.0, "reading": 0.5, "patch": 1.0, "answer": 1.5, "seeing": 0.5}


def joint_losses(model: JanusForConditionalGeneration, scaffold: Scaffold, lessons: Lessons, step: int) -> dict[str, torch.Tensor]:
    """The losses of a step, among them those that WEIGHTS names."""
    captions, drawings, conversations = next(counts for until, *counts in MIX if step < until)
    halves = [drawing_loss(model, scaffold, half) for half in lessons.drawings(drawings, DROPPED).halves()]
    losses = {name: torch.stack([half[name] for half in halves]).mean() for name in halves[0]}
    losses.update(answer_loss(model, scaffold, lessons.speaker, lessons.answers(conversations)))
    if captions:
        alone = lessons.drawings(captions, 0)
        losses["reading"] = scaffold.reading(hidden_states(model, model.get_input_embeddings()(alone.prompts).float()), alone)
    return losses


def train_joint(model: JanusForConditionalGeneration, speaker: Speaker, run: Path, steps: int, compiled: bool, started: bool) -> None:
    head, vq = model.model.generation_head, model.model.vqmodel
    scenes = pictures_of(random_scenes(np.random.default_rng(3), 2000))
    head.vision_head = KindredHead(looks_of_ids(scenes, encode_pictures(vq, scenes)), head.vision_head if started else None).to(DEVICE)
    model.model.vision_model.requires_grad_(False)  # Muon's steps are as large for noise as for news: it would forget to see
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scaffold = Scaffold().to(DEVICE)
    optimizers = Optimizers(named, 0.004 if started else 0.006, 2e-3, ("embed", "head"), list(scaffold.parameters()), decay=0.1)
    saved = Checkpoint(run, "joint", steps, model=model, scaffold=scaffold, opt=optimizers)
    if compiled:
        torch._dynamo.config.cache_size_limit = 64  # one piece of code for every length of a batch
        for layer in [*model.model.language_model.layers, *model.model.vision_model.encoder.layers]:
            layer.compile(dynamic=False)
    lessons, bar = Lessons(vq, speaker, np.random.default_rng([3, saved.start])), saved.remaining()
    for step in bar:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            losses = joint_losses(model, scaffold, lessons, step)
        optimizers.update(sum(weight * losses[name] for name, weight in WEIGHTS.items()), schedule(step, steps, 100))
        if step % 25 == 24:
            values = {name: float(loss.detach()) for name, loss in losses.items()}
            saved.log(step, **values)
            bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
        saved.saves(step)
    head.vision_head = head.vision_head.folded()


# ---- Stage 4 --------------------------------------------------------------------------------------------------------

def train_decoder(model: JanusForConditionalGeneration, run: Path, steps: int) -> None:
    """The decoder alone, for ids that stay as they are. The error of a picture counts by its logarithm, as in its PSNR: a light blue
    square on grey has little error to begin with, and is to be as sharp as a red one."""
    vq = model.model.vqmodel
    for part in (vq.post_quant_conv, vq.decoder):
        part.requires_grad_(True)
    optimizers = Optimizers([(name, p) for name, p in vq.named_parameters() if p.requires_grad], 0.005, 5e-4, ())
    saved = Checkpoint(run, "decoder", steps, vq=vq, opt=optimizers)
    rng, validation = np.random.default_rng([4, saved.start]), pictures_of(random_scenes(np.random.default_rng(1), VALIDATION))
    for step in saved.remaining():
        wanted = to_input(pictures_of(random_scenes(rng, 16)))
        with torch.autocast(DEVICE.type, torch.bfloat16):
            drawn = vq.decoder(vq.post_quant_conv(quantize(vq, wanted)[1])).float()
        optimizers.update(((drawn - wanted) ** 2).mean((1, 2, 3)).log().mean(), schedule(step, steps, 30))
        if saved.saves(step):
            saved.log(step, psnr=psnr(vq, validation))


# ---- Results --------------------------------------------------------------------------------------------------------

def export(model: JanusForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """The checkpoint as transformers writes it, with the tokenizer and the preprocessing beside it."""
    model.cpu().save_pretrained(folder)
    names = dict(bos_token=BOS, eos_token=EOS, pad_token=PAD)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_size": SIDE, "min_size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255,
        "background_color": [127, 127, 127], "do_normalize": True}, indent=1))


def plot_curves(log: Path, picture: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for stage, step, name, value in csv.reader(log.open()):
        series.setdefault((stage, name), []).append((int(step), float(value)))
    rows = max(1, -(-len(series) // 4))
    figure, axes = plt.subplots(rows, 4, figsize=(14, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(series):]:
        axis.axis("off")
    for axis, ((stage, name), points) in zip(axes.flat, series.items()):
        axis.plot(*zip(*points), linewidth=1)
        axis.set(title=f"{stage}: {name}", xlabel="step")
        if name != "psnr":
            axis.set_yscale("log")
    figure.tight_layout()
    figure.savefig(picture, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--start", type=Path, help="a GGUF file of an earlier edition, of the same sizes")
    parser.add_argument("--vq-steps", type=int, default=2500)
    parser.add_argument("--eyes-steps", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=8000, help="of the joint stage; 0, here and below, saves what there is as a checkpoint")
    parser.add_argument("--decoder-steps", type=int, default=2600)
    parser.add_argument("--compile", action="store_true", help="of the joint stage: a fifth faster, needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    run, started = options.out, options.start is not None
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "tokenizer.json").exists():
        train_tokenizer().save(str(run / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    model = make_model(tokenizer)
    if started:
        start_from(model, tokenizer, options.start)
    model.to(DEVICE).train()
    train_vq(model, run, options.vq_steps, started)
    train_eyes(model, run, options.eyes_steps, started)
    model.model.vqmodel.requires_grad_(False).eval()
    train_joint(model, Speaker(tokenizer), run, options.steps, options.compile, started)
    train_decoder(model, run, options.decoder_steps)
    export(model.eval(), tokenizer, run / "janus-tiny")  # the folder names the model
    plot_curves(run / "log.csv", run / "curves.png")


if __name__ == "__main__":
    main()
