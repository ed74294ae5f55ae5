#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.13.0", "transformers==5.23.0", "tokenizers", "numpy", "pillow", "matplotlib", "tqdm"]
# ///
"""Trains the small model of this folder from nothing, in stages as the report does, and saves it as a checkpoint.

    python weights/train.py --out RUN             the whole run; interrupted, the same line goes on where it was
    python convert.py RUN/janus-tiny -o weights/tiny.gguf --dtype f16

Stage 1, `vq`: the VQ encoder, codebook and decoder learn to pass pictures through 64 ids.
Stage 2, `eyes`: the understanding encoder learns to see, as SigLIP has before it becomes a part of Janus-Pro: every patch
is to tell the kind and the colour of what it lies on, and what the whole picture holds. The heads that this needs are thrown away.
Stage 3, `joint`: with the VQ and the understanding encoder frozen, both adaptors, the transformer and both heads learn
everything together: to answer questions about a picture, to talk without one, and to draw what a caption says, with part
of the captions replaced by pad ids so that guidance has something to compare with.
RUN holds scenes.npy and scenes.pickle (the data), vq.pt, eyes.pt and joint.pt (the state of each stage, replaced in one
step), log.csv, curves.png and janus-tiny/ (what transformers' save_pretrained writes).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import pickle
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
from convert import BEGIN_OF_IMAGE, BOS, END_OF_IMAGE, EOS, IMAGE_PLACEHOLDER, PAD, SYSTEM_PROMPT  # noqa: E402
from random_model import DEEPSEEK_LETTERS  # noqa: E402

SIDE, GRID, TOKENS = 64, 8, 64
CODEBOOK, CODE_DIM = 1024, 8
WIDTH, LAYERS, HEADS, KV_HEADS, MLP = 192, 7, 6, 3, 480
SPECIAL = [BOS, EOS, PAD, IMAGE_PLACEHOLDER, BEGIN_OF_IMAGE, END_OF_IMAGE, "<|User|>", "<|Assistant|>"]
VOCABULARY = 768
SCENES, VALIDATION = 150000, 256
PLAIN = 0.3  # world.random_scene
IGNORE = -100
CLASSES = 14  # what a head that is asked about a scene chooses among: eight colours and six backgrounds need the most
EYES_GREY, GREY = 0.5, 0.25  # the share of the pictures that stage 2, and questions, show in grey: what a thing is shows without colour
# Of a step of the joint stage: until which step, captions alone, drawings, conversations. First it only reads; and it learns
# to see long before it draws well.
MIX = ((1000, 64, 0, 0), (3000, 0, 32, 20), (10**9, 0, 44, 14))
QUESTIONS, MEDLEYS = 5, 0.25  # of a picture; the share of conversations about a medley
CHAINED = 0.2  # the share of conversations whose questions follow on one another; in the others each is the first (Conversation)
EYES_MEDLEYS = 20  # of the 64 pictures of a step
DROPPED, SMOOTH = 0.1, 0.2  # the share of drawings without their prompt, and the smoothing of their labels (drawing_loss)


# ---- Data -----------------------------------------------------------------------------------------------------------

def load_scenes(run: Path) -> tuple[list[world.Scene], torch.Tensor]:
    """The training scenes and their pictures uint8 [SCENES, 3, 64, 64]; made once."""
    if not (run / "scenes.pickle").exists():
        rng = np.random.default_rng(1)
        scenes = [world.random_scene(rng, plain=PLAIN) for _ in tqdm(range(SCENES), "scenes")]
        pictures = np.stack([world.render(scene) for scene in tqdm(scenes, "render")])
        np.save(run / "scenes.npy", pictures)
        (run / "scenes.pickle").write_bytes(pickle.dumps(scenes))
    scenes = pickle.loads((run / "scenes.pickle").read_bytes())
    return scenes, torch.from_numpy(np.load(run / "scenes.npy")).permute(0, 3, 1, 2).contiguous()


def to_input(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to -1..1, for both encoders (mean 0.5, std 0.5)."""
    return pictures.float() / 127.5 - 1


def texts(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Words of the world, as they stand in prompts."""
    yield from [SYSTEM_PROMPT] * 200
    for _ in range(count):
        scene = world.random_scene(rng, plain=PLAIN)
        yield f"<|User|>: {world.caption(scene, rng)}\n\n<|Assistant|>:"
        for _, question, answer in world.questions(scene, rng, 4):
            yield f"\n{question}\n\n<|Assistant|>: {answer}"
    for question, answer in world.CHAT * 20:
        yield f"<|User|>: {question}\n\n<|Assistant|>: {answer}"


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

    def conversation(self, turns: list[tuple[str, str]], with_image: bool = False, chained: bool = True) -> Conversation:
        """The turns (question, answer) one after another; not `chained`, as if each were the first."""
        user = self.encode("<|User|>: ")
        opening = [self.bos, *self.encode(f"{SYSTEM_PROMPT}\n\n"), *user]
        if with_image:
            opening += [self.begin, *[self.image] * TOKENS, self.end, *self.encode("\n")]
        words = Conversation([*opening], [IGNORE] * len(opening), [0] * len(opening), list(range(len(opening))))
        for number, (question, answer) in enumerate(turns):
            asked = [*(user if chained and number else []), *self.encode(f"{question}\n\n<|Assistant|>:")]
            said = [*self.encode(f" {answer}"), self.eos]
            length, begin = len(asked + said), len(words.ids) if chained else len(opening)
            words.ids.extend(asked + said)
            words.labels.extend([IGNORE] * len(asked) + said)
            words.turns.extend([0 if chained else number + 1] * length)
            words.positions.extend(range(begin, begin + length))
        return words


def pad_batch(rows: list[list[int]], filler: int) -> torch.Tensor:
    """int64 [rows, longest, rounded up to a multiple of 8]; what fills a row up stands behind it, unseen by causal attention."""
    longest = -(-max(map(len, rows)) // 8) * 8
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


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


def quantize(vq: torch.nn.Module, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z [B, 8, G, G] -> z and the nearest codes [B, 8, G, G], both of length 1, and ids [B*G*G] (the official rule)."""
    z, codes = F.normalize(z, dim=1), F.normalize(vq.quantize.embedding.weight, dim=-1)
    rows = z.permute(0, 2, 3, 1).reshape(-1, CODE_DIM)
    ids = (rows @ codes.t()).argmax(1)
    return z, codes[ids].view(z.shape[0], GRID, GRID, CODE_DIM).permute(0, 3, 1, 2), ids


def encode_pictures(vq: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, 64, 64] -> ids [N, 64]."""
    ids = torch.empty(len(pictures), TOKENS, dtype=torch.int64)
    with torch.no_grad():
        for begin in tqdm(range(0, len(pictures), 32), "encode"):
            part = to_input(pictures[begin:begin + 32])
            ids[begin:begin + 32] = quantize(vq, vq.quant_conv(vq.encoder(part)))[2].view(-1, TOKENS)
    return ids


# ---- All stages -----------------------------------------------------------------------------------------------------

class Log:
    """Rows of (stage, step, name, value) in log.csv."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, stage: str, step: int, **values: float) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows((stage, step, name, f"{value:.6g}") for name, value in values.items())


class Muon(torch.optim.Optimizer):
    """Steps of matrices (a convolution kernel is one, out x all the rest) with all singular values made nearly equal.

    The momentum's matrix goes through five steps of a Newton-Schulz iteration (Keller Jordan, 2024). On the VQ stage it
    needed less than half the steps of AdamW, which is left with the vectors and the tables. Steps of one size never cease
    to grow a matrix, and queries and keys that have grown leave attention no gradient: hence the decay.
    """

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

    def state(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer, _ in self.pairs]

    def load(self, states: list[dict]) -> None:
        for (optimizer, _), state in zip(self.pairs, states):
            optimizer.load_state_dict(state)


def schedule(step: int, steps: int, warmup: int) -> float:
    """The share of the peak learning rate: up in a line, down in half a cosine to a fiftieth."""
    return min(1, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def save_state(path: Path, **state: object) -> None:
    """Writes the state of a stage beside `path`, then puts it there in one step."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


# ---- Stage 1 --------------------------------------------------------------------------------------------------------

class Codebook:
    """Keeps the codes in use: filled from the encoder's own outputs once, and unused codes replaced by such outputs."""

    def __init__(self, weight: torch.Tensor):
        self.weight, self.recent, self.used = weight, torch.zeros(0, CODE_DIM), torch.zeros(CODEBOOK)

    def see(self, rows: torch.Tensor, ids: torch.Tensor) -> None:
        self.recent = torch.cat([rows.detach(), self.recent])[:16384]
        self.used += torch.bincount(ids, minlength=CODEBOOK)

    def fill(self, places: torch.Tensor) -> None:
        with torch.no_grad():
            self.weight[places] = self.recent[torch.randint(len(self.recent), (len(places),))]
        self.used.zero_()

    def unused(self) -> torch.Tensor:
        return (self.used < self.used.sum() * 2e-5).nonzero()[:, 0]


def vq_step(vq: torch.nn.Module, pictures: torch.Tensor, book: Codebook, quantized: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one batch, and its mean squared error alone."""
    z, codes, ids = quantize(vq, vq.quant_conv(vq.encoder(pictures)))
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
        drawn = vq.decoder(vq.post_quant_conv(quantize(vq, vq.quant_conv(vq.encoder(wanted)))[1])).clamp(-1, 1)
        return float((10 * torch.log10(4 / ((drawn - wanted) ** 2).mean((1, 2, 3)))).mean())


def train_vq(model: JanusForConditionalGeneration, pictures: torch.Tensor, run: Path, steps: int, log: Log) -> None:
    vq, path, start, free_steps = model.model.vqmodel, run / "vq.pt", 0, 250
    optimizers = Optimizers(list(vq.named_parameters()), 0.02, 2e-3, ("embedding",))
    book = Codebook(vq.quantize.embedding.weight)
    if path.exists():
        state = torch.load(path, weights_only=True)
        vq.load_state_dict(state["vq"])
        optimizers.load(state["opt"])
        start = state["step"]
    chooser = torch.Generator().manual_seed(start)
    for step in tqdm(range(start, steps), "vq", initial=start, total=steps):
        batch = pictures[VALIDATION:][torch.randint(len(pictures) - VALIDATION, (16,), generator=chooser)]
        loss, error = vq_step(vq, to_input(batch), book, step >= free_steps)
        optimizers.update(loss, schedule(step, steps, 30))
        if step == free_steps - 1:
            book.fill(torch.arange(CODEBOOK))
        elif free_steps <= step < 0.7 * steps and (step - free_steps) % 60 == 59:
            book.fill(book.unused())
        if step % 50 == 49:
            log.write("vq", step + 1, mse=float(error))
        if step % 300 == 299 or step == steps - 1:
            log.write("vq", step + 1, psnr=psnr(vq, pictures[:VALIDATION]))
            save_state(path, vq=vq.state_dict(), opt=optimizers.state(), step=step + 1)
    with torch.no_grad():
        weight = vq.quantize.embedding.weight
        weight.copy_(F.normalize(weight, dim=-1))


# ---- Stage 2 --------------------------------------------------------------------------------------------------------

def pictures_of(scenes: list[world.Scene]) -> torch.Tensor:
    """uint8 [scenes, 3, 64, 64]."""
    return torch.stack([torch.from_numpy(world.render(scene).copy()).permute(2, 0, 1) for scene in scenes])


def patch_labels(scenes: list[world.Scene]) -> torch.Tensor:
    """int64 [scenes, 64, 2]: the kind and the colour of the thing that each patch lies on; where there is none, 8 and 8 + background."""
    labels = np.full((len(scenes), GRID, GRID, 2), 8)
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
        return torch.from_numpy(rng.uniform(low, high, (len(pictures), 1, 1, 1))).float()

    gain = some(0.5, 1) * some(-1, 1).sign()
    return gain * pictures.mean(1, keepdim=True).expand_as(pictures) + some(-0.3, 0.3)


def look(vision: torch.nn.Module, heads: torch.nn.Linear, pictures: torch.Tensor) -> torch.Tensor:
    """What the heads tell of every patch: logits [N, 64, 3, CLASSES] of eye_labels."""
    return heads(vision(pictures).last_hidden_state).float().unflatten(-1, (3, CLASSES))


def train_eyes(model: JanusForConditionalGeneration, scenes: list[world.Scene], pictures: torch.Tensor, run: Path,
               steps: int, log: Log) -> None:
    vision, path, start = model.model.vision_model, run / "eyes.pt", 0
    heads = torch.nn.Linear(vision.config.hidden_size, 3 * CLASSES)
    optimizers = Optimizers([*vision.named_parameters(), *heads.named_parameters("heads")], 0.02, 2e-3, ("embed", "heads"))
    if path.exists():
        state = torch.load(path, weights_only=True)
        vision.load_state_dict(state["vision"])
        heads.load_state_dict(state["heads"])
        optimizers.load(state["opt"])
        start = state["step"]
    labels, chooser, rng = eye_labels(scenes), torch.Generator().manual_seed(start), np.random.default_rng(start)
    vision.set_attn_implementation("eager")
    for step in tqdm(range(start, steps), "eyes", initial=start, total=steps):
        chosen = VALIDATION + torch.randint(len(pictures) - VALIDATION, (64 - EYES_MEDLEYS,), generator=chooser)
        medleys = [world.random_medley(rng) for _ in range(EYES_MEDLEYS)]
        batch = to_input(torch.cat([pictures[chosen], pictures_of(medleys)]))
        asked = torch.cat([labels[chosen], eye_labels(medleys)])
        greys = seen_in_grey([*(scenes[i] for i in chosen), *medleys], EYES_GREY)
        batch[greys] = in_grey(batch[greys], rng)
        asked[..., 1] = asked[..., 1].masked_fill(greys[:, None], IGNORE)
        with torch.autocast("cpu", torch.bfloat16):
            told = look(vision, heads, batch)
        loss = F.cross_entropy(told.flatten(0, 2), asked.flatten(), ignore_index=IGNORE)
        optimizers.update(loss, schedule(step, steps, 100))
        if step % 50 == 49:
            log.write("eyes", step + 1, loss=float(loss))
        if step % 500 == 499 or step == steps - 1:
            with torch.no_grad():
                told = look(vision, heads, to_input(pictures[:VALIDATION])).argmax(-1)
            wanted = labels[:VALIDATION]
            right, on_things = (told == wanted).float(), wanted[..., 0] < 8
            log.write("eyes", step + 1, accuracy=float(right[..., :2][on_things].mean()), background=float(right[..., 1][~on_things].mean()),
                      counted=float(right[..., 2].mean()))
            save_state(path, vision=vision.state_dict(), heads=heads.state_dict(), opt=optimizers.state(), step=step + 1)


# ---- Stage 3 --------------------------------------------------------------------------------------------------------

class Drawings(NamedTuple):
    """Captions and the pictures that they ask for."""

    prompts: torch.Tensor  # int64 [count, longest], up to <begin_of_image>, then filled up
    last: torch.Tensor  # int64 [count], the place of <begin_of_image>
    image_ids: torch.Tensor  # int64 [count, 64]
    dropped: torch.Tensor  # bool [count], whether the prompt is the unconditional one
    said: torch.Tensor  # said_labels [count, 5], IGNORE where the prompt is dropped
    plans: torch.Tensor  # plan_labels [count, 7], IGNORE where the prompt is dropped
    patches: torch.Tensor  # patch_labels [count, 64, 2], IGNORE where the prompt is dropped


class Conversations(NamedTuple):
    """Conversations, each about a picture or all about none; what they ask of pictures in grey has nothing to do with colours."""

    ids: torch.Tensor  # int64 [count, longest]
    labels: torch.Tensor  # int64 [count, longest]
    turns: torch.Tensor  # int64 [count, longest]
    positions: torch.Tensor  # int64 [count, longest]
    pictures: torch.Tensor | None = None  # float [count, 3, 64, 64], as an encoder takes them
    plans: torch.Tensor | None = None  # plan_labels [count, 7], IGNORE for colours in grey
    sought: torch.Tensor | None = None  # sought_labels [count, QUESTIONS, 4], IGNORE for colours in grey


class Lessons:
    """Batches of the joint stage; half of the scenes are pairs."""

    def __init__(self, scenes: list[world.Scene], pictures: torch.Tensor, image_ids: torch.Tensor, speaker: Speaker):
        self.scenes, self.pictures, self.image_ids, self.speaker = scenes, pictures, image_ids, speaker
        self.patches, self.plans = patch_labels(scenes), plan_labels(scenes)
        self.pairs = np.array([scene.is_pair for scene in scenes[VALIDATION:]]).nonzero()[0] + VALIDATION
        self.others = np.setdiff1d(np.arange(VALIDATION, len(scenes)), self.pairs)
        self.rng = np.random.default_rng(0)  # train_joint seeds it by the step that it begins at

    def choose(self, count: int) -> np.ndarray:
        return np.where(self.rng.random(count) < 0.5, self.rng.choice(self.pairs, count), self.rng.choice(self.others, count))

    def drawings(self, count: int, dropped_share: float) -> Drawings:
        chosen, dropped = self.choose(count), self.rng.random(count) < dropped_share
        words = [world.caption(self.scenes[i], self.rng) for i in chosen]
        prompts = [self.speaker.drawing(text, drop) for text, drop in zip(words, dropped)]
        said = torch.tensor([said_labels(self.scenes[i], text) for i, text in zip(chosen, words)])
        gone = torch.from_numpy(dropped)
        return Drawings(pad_batch(prompts, self.speaker.pad), torch.tensor([len(p) - 1 for p in prompts]), self.image_ids[chosen],
                        gone, said.masked_fill(gone[:, None], IGNORE), self.plans[chosen].masked_fill(gone[:, None], IGNORE),
                        self.patches[chosen].masked_fill(gone[:, None, None], IGNORE))

    def batch(self, conversations: list[Conversation], *about: torch.Tensor) -> Conversations:
        ids, labels, turns, positions = zip(*conversations)
        return Conversations(pad_batch(ids, self.speaker.pad), pad_batch(labels, IGNORE), pad_batch(turns, 0), pad_batch(positions, 0), *about)

    def answers(self, count: int) -> Conversations:
        """Conversations about a picture each."""
        chosen = self.choose(count)
        scenes, pictures = [self.scenes[i] for i in chosen], self.pictures[torch.from_numpy(chosen)]
        for place in (self.rng.random(count) < MEDLEYS).nonzero()[0]:
            scenes[place] = world.random_medley(self.rng)
            pictures[place] = pictures_of([scenes[place]])[0]
        greys = seen_in_grey(scenes, GREY)
        asked = [world.questions(scene, self.rng, QUESTIONS, grey) for scene, grey in zip(scenes, greys.tolist())]
        pictures, plans = to_input(pictures), plan_labels(scenes)
        pictures[greys] = in_grey(pictures[greys], self.rng)
        plans[:, PLAN_COLOURS] = plans[:, PLAN_COLOURS].masked_fill(greys[:, None], IGNORE)
        sought = torch.tensor([[sought_labels(scene, question) for _, question, _ in turns] for scene, turns in zip(scenes, asked)])
        sought[greys, :, 1] = IGNORE
        return self.batch([self.speaker.conversation([(question, answer) for _, question, answer in turns], True, chained)
                           for turns, chained in zip(asked, (self.rng.random(count) < CHAINED).tolist())], pictures, plans, sought)

    def chats(self, count: int) -> Conversations:
        """Conversations without a picture."""
        return self.batch([self.speaker.conversation([world.CHAT[i] for i in self.rng.integers(0, len(world.CHAT), 2)])
                           for _ in range(count)])


def hidden_states(model: JanusForConditionalGeneration, embeddings: torch.Tensor, positions: torch.Tensor | None = None,
                  turns: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Embeddings [B, T, D] -> what every block leaves [B, T, D], the last one normalised; causal, at positions 0..T-1 and with
    nothing else masked if not as a Conversation says [B, T]."""
    mask = None
    if positions is None:
        positions = torch.arange(embeddings.shape[1])[None].expand(embeddings.shape[0], -1)
    if turns is not None:
        seen = ((turns[:, None] == 0) | (turns[:, None] == turns[..., None])).tril()  # [B, T, T]: row sees column
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    return model.model.language_model(inputs_embeds=embeddings, position_ids=positions, attention_mask=mask, use_cache=False,
                                      output_hidden_states=True).hidden_states


PLAN_COLOURS = [1, 3, 6]  # of the seven plan_labels


def plan_labels(scenes: list[world.Scene]) -> torch.Tensor:
    """int64 [scenes, 7]: kind and colour of the first (left or top) and of the last thing (IGNORE of a medley,
    where neither is any thing in particular), how many there are, how a pair stands, the background."""
    kinds, colours, backgrounds = list(world.KINDS), list(world.COLOURS), list(world.BACKGROUNDS)
    rows = [[*(value for thing in (scene.things[0], scene.things[-1])
               for value in (kinds.index(thing.kind), colours.index(thing.colour))), len(scene.things),
             ("left", "above").index(scene.relation) if scene.is_pair else 2, backgrounds.index(scene.background)] for scene in scenes]
    plans, medleys = torch.tensor(rows), torch.tensor([scene.is_medley for scene in scenes])
    plans[:, :4] = plans[:, :4].masked_fill(medleys[:, None], IGNORE)
    return plans


def said_labels(scene: world.Scene, caption: str) -> list[int]:
    """Kind and colour of the thing that a caption names first, and of the last; left, right, above, below or (4) nothing, how
    the first stands to the last."""
    caption, things = caption.lower(), [scene.things[0], scene.things[-1]]
    if scene.is_pair and caption.find(things[0].kind) > caption.find(things[1].kind):
        things.reverse()
    names = (("left",), ("right",), ("above", "over"), ("below", "under"))
    relation = next((i for i, words in enumerate(names) if any(word in caption.split() for word in words)), 4)
    kinds, colours = list(world.KINDS), list(world.COLOURS)
    return [*(value for thing in things for value in (kinds.index(thing.kind), colours.index(thing.colour))), relation]


def sought_labels(scene: world.Scene, question: str) -> list[int]:
    """What a question is answered from, for the kind that it names first: how many there are (also of "things"), the colour,
    left, right, above or below, how it stands to the other of a pair, and that one's kind; IGNORE where there is no such thing."""
    question, kinds, present = question.lower(), list(world.KINDS), [thing.kind for thing in scene.things]
    if "things" in question or "cosas" in question:
        return [len(present), IGNORE, IGNORE, IGNORE]
    places = {kind: min((question.find(word) for word in (kind, *world.SPANISH[kind][:2]) if word in question), default=-1) for kind in kinds}
    named = min((kind for kind in kinds if places[kind] >= 0), key=places.get, default=None)
    if named is None:
        return [IGNORE] * 4
    if named not in present:
        return [0, IGNORE, IGNORE, IGNORE]
    thing = scene.things[present.index(named)]
    count, colour = present.count(named), list(world.COLOURS).index(thing.colour)
    if not scene.is_pair:
        return [IGNORE if scene.is_medley else count, colour, IGNORE, IGNORE]
    relation = scene.relation if thing is scene.things[0] else world.OPPOSITE[scene.relation]
    other = scene.things[thing is scene.things[0]]
    return [count, colour, list(world.RELATIONS).index(relation), kinds.index(other.kind)]


class Scaffold(torch.nn.Module):
    """Heads that help the transformer to read captions and pictures, and are thrown away when it can.

    Which thing is meant is a few nats of the hundred that a picture's ids cost, most of which say where an outline runs; a
    transformer learns the outlines first and draws two red cars for a car and a heart. And "a star left of a house" and "a
    star right of a house" share every word but one, so that who stands where is a product of two things read, of which
    either alone says nothing. So at <begin_of_image> an early block is also asked what was said in which order, a later one
    what the picture is to be, and at every id the last one what is on that patch. Where a picture is seen, the later one is
    asked the same at <end_of_image>: what a picture is has one form for both tasks. And where a question ends, it is asked what
    the answer needs of the thing that the question names.
    """

    SAID, PLAN = 2, 4  # the blocks that are asked

    def __init__(self) -> None:
        super().__init__()
        self.said, self.plan, self.patch, self.sought = (torch.nn.Linear(WIDTH, CLASSES * count) for count in (5, 7, 2, 4))

    def reading(self, blocks: tuple[torch.Tensor, ...], lessons: Drawings) -> torch.Tensor:
        """What is asked about the captions of drawings, given what every block left of them."""
        rows = torch.arange(len(lessons.last))
        said, planned = (blocks[block][rows, lessons.last] for block in (self.SAID, self.PLAN))
        return self.ask(self.said, said, lessons.said) + self.ask(self.plan, planned, lessons.plans)

    def seeing(self, blocks: tuple[torch.Tensor, ...], talks: Conversations, end: int) -> torch.Tensor:
        """What is asked about pictures seen, at the id `end`, <end_of_image>, and where questions about them end."""
        answers = talks.labels != IGNORE
        starts = answers[:, 1:] & ~answers[:, :-1]
        return (self.ask(self.plan, blocks[self.PLAN][talks.ids == end], talks.plans)
                + self.ask(self.sought, blocks[self.PLAN][:, :-1][starts], talks.sought.flatten(0, 1)))

    @staticmethod
    def ask(head: torch.nn.Linear, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of labels below CLASSES, int64 [..., count], each with as many outputs of the head."""
        told = head(F.rms_norm(states, (WIDTH,))).float().unflatten(-1, (-1, CLASSES))
        return F.cross_entropy(told.flatten(0, -2), labels.flatten(), ignore_index=IGNORE)


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
    """The last matrix of the generation head while it learns: ids that look alike begin alike.

    An id is a symbol: that one is a corner of a red house and another of a brown one, a row of free weights for each cannot
    know, so that "brown" and "corner of a house" do not add up to an id that no house of the training had. Hence a row is a
    sum over what the id looks like, and a free part that begins as nothing. Trained, the two are one matrix (`folded`).
    """

    def __init__(self, looks: torch.Tensor):
        super().__init__()
        self.register_buffer("looks", looks / looks.shape[1] ** 0.5)
        self.shared_head = torch.nn.Parameter(0.02 * torch.randn(looks.shape[1], WIDTH))
        self.free_head = torch.nn.Parameter(torch.zeros(CODEBOOK, WIDTH))
        self.bias = torch.nn.Parameter(torch.zeros(CODEBOOK))

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


def reading_loss(model: JanusForConditionalGeneration, scaffold: Scaffold, lessons: Drawings) -> torch.Tensor:
    """What the scaffold asks about captions alone."""
    return scaffold.reading(hidden_states(model, model.get_input_embeddings()(lessons.prompts).float()), lessons)


def drawing_loss(model: JanusForConditionalGeneration, scaffold: Scaffold, lessons: Drawings) -> dict[str, torch.Tensor]:
    """`draw`, cross-entropy of the image ids after their prompts; `prompted`, without the dropped prompts, for the log;
    `reading` and `patch`, what the scaffold asks.

    Guidance at weight 5 samples from p^5 / q^4, where q is what the unconditional row says. A colour and a kind that are
    asked for have q near p / 64, so that an id of p = 1e-5, which is only a net's noise, weighs more than one of p = 0.9
    that fits every prompt. So the unconditional row learns smoothed labels: its q does not fall under SMOOTH / CODEBOOK,
    and guidance then chooses among the ids that the conditional row itself finds likely.
    """
    count, width = lessons.prompts.shape
    words = model.get_input_embeddings()(lessons.prompts)
    drawn = model.prepare_embeddings_for_image_generation(lessons.image_ids[:, :-1])
    places = lessons.last[:, None] + torch.arange(TOKENS)  # of the states that predict the ids: <begin_of_image> and on
    embeddings = torch.zeros(count, width + TOKENS - 1, words.shape[2])
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
    """`answer`, cross-entropy of the answers; with pictures also `seeing`, what the scaffold asks. Without, `chat`."""
    embeddings = model.get_input_embeddings()(talks.ids).float()
    if talks.pictures is not None:
        seen = model.model.get_image_features(talks.pictures).pooler_output.float()
        embeddings = embeddings.masked_scatter((talks.ids == speaker.image)[..., None], seen)
    blocks = hidden_states(model, embeddings, talks.positions, talks.turns)
    states, wanted = blocks[-1][:, :-1], talks.labels[:, 1:]
    chosen = wanted != IGNORE
    loss = F.cross_entropy(model.lm_head(states[chosen]).float(), wanted[chosen])
    return {"chat": loss} if talks.pictures is None else {"answer": loss, "seeing": scaffold.seeing(blocks, talks, speaker.end)}


WEIGHTS = {"draw": 1.0, "reading": 0.5, "patch": 1.0, "answer": 1.5, "seeing": 0.5, "chat": 0.1}


def joint_losses(model: JanusForConditionalGeneration, scaffold: Scaffold, lessons: Lessons, step: int) -> dict[str, torch.Tensor]:
    """The losses of a step, among them those that WEIGHTS names."""
    captions, drawings, conversations = next(counts for until, *counts in MIX if step < until)
    if captions:
        return {"reading": reading_loss(model, scaffold, lessons.drawings(captions, 0))}
    losses = drawing_loss(model, scaffold, lessons.drawings(drawings, DROPPED))
    losses.update(answer_loss(model, scaffold, lessons.speaker, lessons.answers(conversations)))
    if step % 4 == 0:
        losses.update(answer_loss(model, scaffold, lessons.speaker, lessons.chats(4)))
    return losses


def train_joint(model: JanusForConditionalGeneration, lessons: Lessons, run: Path, steps: int, log: Log, compiled: bool,
                seed: int) -> None:
    path, start = run / "joint.pt", 0
    head = model.model.generation_head
    head.vision_head = KindredHead(looks_of_ids(lessons.pictures[:8000], lessons.image_ids[:8000]))
    model.model.vision_model.requires_grad_(False)  # Muon's steps are as large for noise as for news: it would forget to see
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scaffold = Scaffold()
    optimizers = Optimizers(named, 0.006, 2e-3, ("embed", "head"), list(scaffold.parameters()), decay=0.1)
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        scaffold.load_state_dict(state["scaffold"])
        optimizers.load(state["opt"])
        start = state["step"]
    model.set_attn_implementation("eager")  # on the CPU, half the time of the fused one at these lengths
    if compiled:
        torch._dynamo.config.cache_size_limit = 64  # one piece of code for every length of a batch
        for layer in [*model.model.language_model.layers, *model.model.vision_model.encoder.layers]:
            layer.compile(dynamic=False)
    lessons.rng, began = np.random.default_rng(seed + start), time.time()
    bar = tqdm(range(start, steps), "joint", initial=start, total=steps)
    for step in bar:
        with torch.autocast("cpu", torch.bfloat16):
            losses = joint_losses(model, scaffold, lessons, step)
        optimizers.update(sum(weight * losses[name] for name, weight in WEIGHTS.items() if name in losses), schedule(step, steps, 100))
        if step % 25 == 24:
            values = {name: float(loss.detach()) for name, loss in losses.items()}
            log.write("joint", step + 1, **values)
            bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
        if step == steps - 1 or time.time() - began > 180:
            save_state(path, model=model.state_dict(), scaffold=scaffold.state_dict(), opt=optimizers.state(), step=step + 1)
            began = time.time()
    head.vision_head = head.vision_head.folded()


# ---- Results --------------------------------------------------------------------------------------------------------

def export(model: JanusForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """The checkpoint as transformers writes it, with the tokenizer and the preprocessing beside it."""
    model.save_pretrained(folder)
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
    figure, axes = plt.subplots(1, max(1, len(series)), figsize=(4 * len(series), 3), squeeze=False)
    for axis, ((stage, name), points) in zip(axes[0], series.items()):
        axis.plot(*zip(*points), linewidth=1)
        axis.set(title=f"{stage}: {name}", xlabel="step")
        if name != "psnr":
            axis.set_yscale("log")
    figure.tight_layout()
    figure.savefig(picture, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--vq-steps", type=int, default=2500)
    parser.add_argument("--eyes-steps", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=8000, help="of the joint stage")
    parser.add_argument("--compile", action="store_true", help="of the joint stage: a fifth faster, needs a C++ compiler")
    parser.add_argument("--only", choices=("vq", "eyes", "joint"), help="one stage (vq and eyes need nothing of each other)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "log.csv")
    scenes, pictures = load_scenes(options.out)
    if not (options.out / "tokenizer.json").exists():
        train_tokenizer().save(str(options.out / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    model = make_model(tokenizer)
    model.train()
    if options.only != "eyes":
        train_vq(model, pictures, options.out, options.vq_steps if options.only != "joint" else 0, log)
    if options.only != "vq":
        train_eyes(model, scenes, pictures, options.out, options.eyes_steps if options.only != "joint" else 0, log)
    if options.only in ("vq", "eyes"):
        return
    vq = model.model.vqmodel.requires_grad_(False).eval()
    if not (options.out / "image_ids.pt").exists():
        torch.save(encode_pictures(vq, pictures), options.out / "image_ids.pt")
    image_ids = torch.load(options.out / "image_ids.pt", weights_only=True)
    speaker = Speaker(tokenizer)
    train_joint(model, Lessons(scenes, pictures, image_ids, speaker), options.out, options.steps, log, options.compile, options.seed)
    export(model.eval(), tokenizer, options.out / "janus-tiny")  # the folder names the model
    plot_curves(options.out / "log.csv", options.out / "curves.png")


if __name__ == "__main__":
    main()
