#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes test/golden: four small random models and every stage of `janus selftest` on them, as PyTorch computes it.

    record_golden.py [FOLDER]

Each model is a transformers checkpoint that convert.py turned into NAME.gguf; a NAME.gguf that exists is kept.
NAME.selftest is in the format that janus.c describes, with all numbers of every tensor.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from PIL import Image

from geometries import geometry, write_checkpoint
from reference import (
    Reference, Taps, Turn, load, run_conversation, run_decoder, run_drawing, run_encoder, sample_drawing)
from verify import ROOT, convert

sys.path.insert(0, str(ROOT))
import convert as converter  # noqa: E402

# The tasks are those of run_tasks in janus.c.
QUESTIONS, PROMPT = ("What is in the picture?", "How many trees?"), "a red circle"
ANSWER_TOKENS, WEIGHT, SAMPLES, SEED = 8, 5.0, 3, 11
ALL, LIMIT = 1 << 30, 6 << 20

SMALL = dict(vocabulary=416, hidden=32, feed_forward=56, heads=4, kv_heads=4, head_dim=8, vit_width=24, vit_heads=2,
             vit_feed_forward=40, codebook_size=128, vq_z=8, vq_res_blocks=1, grid=3)
MODELS = {
    "plain": (geometry(**SMALL | dict(hidden=24, heads=3, kv_heads=3, vq_multipliers=(1,), patch=4)), None),
    "grouped": (geometry(**SMALL | dict(kv_heads=2, vq_multipliers=(2, 1), grid=2, patch=12)), "f16"),
    "tied": (geometry(**SMALL | dict(tied=True, vq_multipliers=(1, 1, 1), grid=2, patch=14, codebook_dim=4)), "bf16"),
    "quantised": (geometry(**SMALL | dict(hidden=256, layers=1, feed_forward=256, kv_heads=2, head_dim=64, vit_width=32,
                                          vit_feed_forward=64, tied=True, vq_multipliers=(1,), patch=4, depth=1)),
                  "mixed"),
}
# All quantised formats in one file.
MIXED_TENSORS = (("vq.", "f16"), ("blk.0.attn", "q6_k"), ("blk.", "q4_k"), ("vit.blk.0.", "q4_0"), ("", "q8_0"))


def test_picture() -> Image.Image:
    """The picture of run_tasks in janus.c."""
    return Image.fromarray((np.arange(60 * 90 * 3) * 5 // 16 % 256).astype(np.uint8).reshape(60, 90, 3))


def record_taps(out: TextIO, task: str, taps: Taps) -> None:
    """Appends a line for every tensor of a task."""
    for name, value in taps.values.items():
        form = "%d" if value.dtype.kind in "iu" else "%.6g"
        numbers = value.astype(np.float64).ravel()
        largest = np.abs(numbers).max(initial=0)
        out.write(" ".join([f"{task}/{name}", str(numbers.size), *(form % number for number in (largest, *numbers))]) + "\n")


def greedy_answer(reference: Reference, turns: list[Turn], count: int) -> list[int]:
    """The ids that the last turn's answer gets, each the largest logit, up to the end of the answer."""
    ids: list[int] = []
    for _ in range(count):
        last = Turn(turns[-1].question, turns[-1].images, [*ids, 0])
        ids.append(int(run_conversation(reference, [*turns[:-1], last], Taps())[-1][-1].argmax()))
        if ids[-1] == reference.ids["eos"]:
            break
    return ids


def greedy_drawing(reference: Reference, prompt: str) -> list[int]:
    """The ids of the picture that is drawn without chance."""
    ids: list[int] = []
    for _ in range(reference.grid ** 2):
        ids.append(int(run_drawing(reference, prompt, [*ids, 0], WEIGHT, Taps())[-1].argmax()))
    return ids


def sampled_drawing(reference: Reference, prompt: str, count: int, seed: int) -> np.ndarray:
    """The ids (count, T) of pictures that PyTorch draws side by side with `seed`."""
    ids = np.zeros((count, reference.grid ** 2), np.int32)
    for step in range(ids.shape[1]):
        ids[:, step] = sample_drawing(reference, prompt, ids, WEIGHT, 1.0, seed)[:, step]
    return ids


def record_model(out: TextIO, reference: Reference) -> None:
    """The stages of all tasks on one model."""
    image, turns = test_picture(), []
    for question in QUESTIONS:
        turns.append(Turn(question, [] if turns else [image], []))
        turns[-1].answer = greedy_answer(reference, turns, ANSWER_TOKENS)
    ask, encode, draw, sample = Taps(), Taps(), Taps(), Taps()
    run_conversation(reference, turns, ask)
    run_encoder(reference, image, encode)
    ids = greedy_drawing(reference, PROMPT)
    run_drawing(reference, PROMPT, ids, WEIGHT, draw)
    run_decoder(reference, ids, draw)
    sample.add("generation.ids", sampled_drawing(reference, PROMPT, SAMPLES, SEED))
    for task, taps in (("ask", ask), ("encode", encode), ("draw", draw), ("sample", sample)):
        record_taps(out, task, taps)


def convert_mixed(checkpoint: Path, file: Path) -> None:
    """Converts to the types of MIXED_TENSORS."""
    converter.QUANTISED_TENSORS = MIXED_TENSORS
    if converter.main([str(checkpoint), "-o", str(file), "--dtype", "q8_0"]) != 0:
        raise SystemExit(1)


def main() -> int:
    """Records all models; fails when they outgrow the limit."""
    torch.set_num_threads(1)  # sums in one order, on every machine that computes alike
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "test" / "golden"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, (sizes, dtype)) in enumerate(MODELS.items()):
        file = folder / f"{name}.gguf"
        with tempfile.TemporaryDirectory() as work:
            checkpoint = Path(work) / f"golden-{name}"  # the folder's name becomes the model's
            write_checkpoint(checkpoint, sizes, 100 + number, "transformers", "safetensors", 1)
            if not file.exists():
                convert_mixed(checkpoint, file) if dtype == "mixed" else convert(checkpoint, file, dtype)
            # float32 arithmetic on rounded weights, which only the file has
            reference = load(checkpoint if dtype is None else file)
            with open(folder / f"{name}.selftest", "w", encoding="ascii") as out:
                out.write(f"janus-selftest 3 {file.stat().st_size} {ALL}\n")
                record_model(out, reference)
        print(f"{name}: {file.stat().st_size} + {(folder / f'{name}.selftest').stat().st_size} bytes")
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{total} bytes in all")
    return 0 if total <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
