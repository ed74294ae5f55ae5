# SPDX-License-Identifier: MIT
"""How far PyTorch's own bfloat16 is from its float32, beside janus: verify.py CHECKPOINT --peer-dtype bfloat16.

The official scripts call .to(torch.bfloat16), which also rounds the rotary inv_freq buffer: positions of several hundred
then get wrong angles. The distance is printed with that buffer rounded as there, and with it kept in float32. Everybody
is fed the same ids (janus draws and answers greedily, once) and asked for the scores of each.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reference import Reference, Taps, drawing_ids, load, question_ids, see

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "bench"))
from stages import Stages  # noqa: E402

MODEL = ROOT / "weights" / "tiny.gguf"
WEIGHT = 5.0


def cast_copy(reference: Reference, dtype: torch.dtype, keep_angles: bool) -> Reference:
    """The model in another type; keep_angles: but the frequencies of the rotary embedding."""
    cast = copy.copy(reference)
    cast.model = copy.deepcopy(reference.model).to(dtype)
    if keep_angles:
        language, exact = cast.model.model.language_model, reference.model.model.language_model
        language.rotary_emb.inv_freq = exact.rotary_emb.inv_freq.clone()
    return cast


@torch.no_grad()
def answer_scores(reference: Reference, prompt: list[int], image: Image.Image, answer: list[int]) -> np.ndarray:
    """(T, V) float32 scores of each id of an answer to a prompt about an image."""
    language, dtype = reference.model.model.language_model, reference.model.lm_head.weight.dtype
    ids = torch.tensor([*prompt, *answer[:-1]])
    x = language.embed_tokens(ids).clone()
    places = (ids == reference.ids["image"]) & (torch.arange(len(ids)) < len(prompt))
    x[places] = see(reference, image, Taps()).to(dtype)
    hidden = language(inputs_embeds=x[None], use_cache=False).last_hidden_state[0, len(prompt) - 1:]
    return reference.model.lm_head(hidden).float().numpy()


@torch.no_grad()
def picture_scores(reference: Reference, prompt: list[int], drawn: np.ndarray) -> np.ndarray:
    """(T, K) float32 guided scores of each id of a picture of a prompt."""
    inner, rows = reference.model.model, []
    embedded = reference.model.prepare_embeddings_for_image_generation(torch.from_numpy(drawn[:-1]).long())
    unconditional = [prompt[0], *[reference.ids["pad"]] * (len(prompt) - 2), prompt[-1]]
    for ids in (prompt, unconditional):
        x = torch.cat([inner.language_model.embed_tokens(torch.tensor(ids)), embedded])
        hidden = inner.language_model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0, len(ids) - 1:]
        rows.append(inner.generation_head(hidden).float().numpy())
    return rows[1] + WEIGHT * (rows[0] - rows[1])


def mean_kl(scores: np.ndarray, other: np.ndarray) -> float:
    """Mean over rows of the Kullback-Leibler divergence of softmax(other) from softmax(scores), in nats."""
    p, q = (torch.log_softmax(torch.from_numpy(s).double(), -1) for s in (scores, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


class JanusPeer:
    """The same scores from janus, through build/libbench.so."""

    def __init__(self, file: Path, threads: int, cache: str = "auto", fast: bool = False) -> None:
        self.stages = Stages(file, threads, cache, fast)

    def answer(self, prompt: list[int], picture: np.ndarray, answer: list[int]) -> np.ndarray:
        """As answer_scores."""
        self.stages.forget()
        ids = np.array([*prompt, *answer[:-1]], np.int32)
        logits = self.stages.read(ids, all_logits=True, seen=self.stages.see(picture))
        self.stages.forget()
        return logits[len(prompt) - 1:]

    def picture(self, prompt: list[int], drawn: np.ndarray) -> np.ndarray:
        """As picture_scores."""
        unconditional = [prompt[0], *[self.stages.pad] * (len(prompt) - 2), prompt[-1]]
        cond, uncond = (self.stages.picture_logits(np.array(ids, np.int32), drawn) for ids in (prompt, unconditional))
        return uncond + np.float32(WEIGHT) * (cond - uncond)


def compare_dtypes(file: Path, reference: Reference, image: Image.Image, question: str, prompt: str, threads: int,
                   dtype: torch.dtype, tokens: int = 32) -> list[tuple[str, float, float]]:
    """(name, KL of answers, KL of pictures) of every way to compute, from PyTorch's float32. Prints a row for each."""
    janus, pixels = JanusPeer(file, threads), np.asarray(image.convert("RGB"))
    drawn, _ = janus.stages.draw(prompt, janus.stages.image_tokens)
    asked, draws = question_ids(reference, question, 1), drawing_ids(reference, prompt)
    answer: list[int] = []
    while len(answer) < tokens and (not answer or answer[-1] != reference.ids["eos"]):
        answer.append(int(janus.answer(asked, pixels, [*answer, 0])[-1].argmax()))
    text, picture = answer_scores(reference, asked, image, answer), picture_scores(reference, draws, drawn)
    print(f"mean KL from PyTorch's float32, nats a token ({len(answer)} tokens of an answer, {len(drawn)} of a picture)")
    out = []

    def row(name: str, other_text: np.ndarray, other_picture: np.ndarray) -> None:
        out.append((name, mean_kl(text, other_text), mean_kl(picture, other_picture)))
        print(f"  {name:<44} {out[-1][1]:>10.1e} {out[-1][2]:>10.1e}", flush=True)

    short = str(dtype).removeprefix("torch.")
    for keep in (False, True):
        cast = cast_copy(reference, dtype, keep)
        row(f"PyTorch {short}, inv_freq {'kept in float32' if keep else 'cast too'}",
            answer_scores(cast, asked, image, answer), picture_scores(cast, draws, drawn))
        del cast
    for name, cache, fast in (("janus", "auto", False), ("janus --kv f16", "f16", False), ("janus --fast", "auto", True)):
        peer = janus if name == "janus" else JanusPeer(file, threads, cache, fast)
        row(name, peer.answer(asked, pixels, answer), peer.picture(draws, drawn))
    return out


def test_bfloat16_of_pytorch_is_further_away_than_janus() -> None:
    """On the small model: float32 of janus is PyTorch's, bfloat16 of PyTorch is not."""
    subprocess.run(["make", "-s", "-C", str(ROOT), "build/libbench.so"], check=True)
    rng = np.random.default_rng(2)
    image = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    rows = compare_dtypes(MODEL, load(MODEL), image, "What is in the picture?", "a red circle", 2, torch.bfloat16, tokens=4)
    distances = {name: (answer, picture) for name, answer, picture in rows}
    assert max(distances["janus"]) < 1e-8
    assert min(min(distances[name]) for name in distances if name.startswith("PyTorch")) > 100 * max(distances["janus"])
