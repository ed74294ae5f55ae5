#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes test/golden: four small random models and every stage of both tasks on them, as PyTorch computes it.

    record_golden.py [FOLDER]

Each model is a transformers checkpoint that convert.py turned into NAME.gguf; NAME.rec holds inputs and stages for
test_janus.c: the 8 bytes "JANUSREC", then records up to the end of the file, all numbers little-endian:

    uint32 length of the name, the name (ASCII)         "input/image", "ask/vision.block.0", "draw/vq.codes", ...
    uint32 type: 0 float32, 1 int32, 2 bytes (UTF-8)
    uint32 number of dimensions, int64 each of them     outermost first
    the values, C order
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from geometries import Geometry, write_checkpoint
from reference import (
    Reference, Taps, Turn, load, run_conversation, run_decoder, run_drawing, run_encoder, sample_drawing)
from verify import ROOT, convert, photograph

sys.path.insert(0, str(ROOT))
import convert as converter  # noqa: E402

QUESTION, SECOND_QUESTION, PROMPT = "What is in the picture?", "How many trees?", "a red fox"
ANSWER_TOKENS, WEIGHT, LIMIT = 3, 5.0, 5 << 20
SAMPLES, SEED = 3, 11

SMALL = dict(vocab=416, hidden=32, mlp=56, heads=4, kv_heads=4, head_dim=8, vision_width=24, vision_heads=2,
             vision_mlp=40, codes=128, vq_latent=8, vq_blocks=1, grid=3, context=512)
MODELS = {
    "plain": (Geometry(**SMALL | dict(hidden=24, heads=3, kv_heads=3, vq_multipliers=(1,), patch=4)), None),
    "grouped": (Geometry(**SMALL | dict(kv_heads=2, vq_multipliers=(2, 1), grid=2, patch=12)), "f16"),
    "tied": (Geometry(**SMALL | dict(tied=True, vq_multipliers=(1, 1, 1), grid=2, patch=14, code_dim=4)), "bf16"),
    "quantised": (Geometry(**SMALL | dict(hidden=256, layers=1, mlp=256, kv_heads=2, head_dim=64, vision_width=32,
                                          vision_mlp=64, tied=True, vq_multipliers=(1,), patch=4, adaptor_depth=1)),
                  "mixed"),
}
# All quantised formats in one file.
MIXED_TENSORS = (("vq.", "f16"), ("blk.0.attn", "q6_k"), ("blk.", "q4_k"), ("vit.blk.0.", "q4_0"), ("", "q8_0"))


def record(out, name: str, value: np.ndarray | str) -> None:
    """Appends one record."""
    if isinstance(value, str):
        kind, shape, data = 2, (len(value.encode()),), value.encode()
    elif value.dtype.kind in "iu":
        kind, shape, data = 1, value.shape, np.ascontiguousarray(value, "<i4").tobytes()
    else:
        kind, shape, data = 0, value.shape, np.ascontiguousarray(value, "<f4").tobytes()
    out.write(struct.pack("<I", len(name)) + name.encode() + struct.pack("<II", kind, len(shape)))
    out.write(struct.pack(f"<{len(shape)}q", *shape) + data)


def record_taps(out, task: str, taps: Taps) -> None:
    """Appends every stage of a task."""
    for name, value in taps.values.items():
        record(out, f"{task}/{name}", value)


def greedy_answer(reference: Reference, turns: list[Turn], count: int) -> list[int]:
    """The ids that the last turn's answer gets, each the largest logit."""
    ids: list[int] = []
    for _ in range(count):
        last = Turn(turns[-1].question, turns[-1].images, [*ids, 0])
        ids.append(int(run_conversation(reference, [*turns[:-1], last], Taps())[-1][-1].argmax()))
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


def record_model(out, reference: Reference) -> None:
    """Inputs and stages of both tasks on one model."""
    image = photograph(31, 22, 1)
    record(out, "input/image", np.asarray(image).astype(np.int32))
    for name, text in (("question", QUESTION), ("second_question", SECOND_QUESTION), ("prompt", PROMPT)):
        record(out, f"input/{name}", text)
    turns = [Turn(QUESTION, [image], [])]
    turns[0].answer = greedy_answer(reference, turns, ANSWER_TOKENS)
    turns.append(Turn(SECOND_QUESTION, [], []))
    turns[1].answer = greedy_answer(reference, turns, ANSWER_TOKENS)
    for turn, name in zip(turns, ("answer_ids", "second_answer_ids")):
        record(out, f"input/{name}", np.array(turn.answer, np.int32))
    taps = Taps()
    run_conversation(reference, turns, taps)
    record_taps(out, "ask", taps)
    taps, ids = Taps(), greedy_drawing(reference, PROMPT)
    record(out, "input/drawn_ids", np.array(ids, np.int32))
    record(out, "input/sampled_ids", sampled_drawing(reference, PROMPT, SAMPLES, SEED))
    run_drawing(reference, PROMPT, ids, WEIGHT, taps)
    run_decoder(reference, ids, taps)
    record_taps(out, "draw", taps)
    taps = Taps()
    run_encoder(reference, image, taps)
    record_taps(out, "encode", taps)


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
    for number, (name, (geometry, dtype)) in enumerate(MODELS.items()):
        file = folder / f"{name}.gguf"
        with tempfile.TemporaryDirectory() as work:
            checkpoint = Path(work) / f"golden-{name}"  # the folder's name becomes the model's
            write_checkpoint(checkpoint, geometry, 100 + number, "transformers", "safetensors", 1)
            convert_mixed(checkpoint, file) if dtype == "mixed" else convert(checkpoint, file, dtype)
            # float32 arithmetic on rounded weights, which only the file has
            reference = load(checkpoint if dtype is None else file)
            with open(folder / f"{name}.rec", "wb") as out:
                out.write(b"JANUSREC")
                record_model(out, reference)
        print(f"{name}: {file.stat().st_size} + {(folder / f'{name}.rec').stat().st_size} bytes")
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{total} bytes in all")
    return 0 if total <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
