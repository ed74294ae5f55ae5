#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What smaller weights cost: every recipe beside the float32 weights it was made from.

    quantisation.py [--model FILE] [--geometry NAME] [--recipe TEXT ...] [--threads K] [--samples N] [--steps N] [--work DIR]
                    [--json FILE]

--model FILE (default weights/tiny.gguf, f16) or --geometry janus-pro-1b (random float32 weights, an 8.3 GB file in DIR,
made if it is not there). A recipe is a --dtype of convert.py, with exceptions after the plus signs, such as
"q4_0 + attn_v=q8_0". The model with the weights widened to float32 answers questions and draws pictures once; every
recipe is then fed the same ids, so that one difference does not make others, and is asked for its scores:

    MB        size of the file                        ms        time of a guided step of a picture, on this machine
    KL        mean over the ids of sum p log(p / q), p of float32, q of the recipe, in thousandths of a nat
    same id   how often the most probable id is the same one
    VQ ids    how many ids of a picture that is encoded are the same one
    PSNR      of decoded pictures against those that float32 decodes from the same ids, in dB
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "test" / "python"), str(ROOT / "weights")]
import convert  # noqa: E402
from random_model import GEOMETRIES  # noqa: E402
from stages import Stages, made_up_picture, random_file  # noqa: E402

RECIPES = (
    "bf16", "f16", "q8_0", "q8_0 + gen_head=f16", "q8_0 + output=f16", "q8_0 + gen_aligner=f16", "q8_0 + token_embd=f16",
    "q8_0 + vit=f16 + aligner=f16", "q8_0 + vq=q8_0",
    "q4_0", "q4_0 + gen_head=f16", "q4_0 + gen_head=q4_0", "q4_0 + output=f16", "q4_0 + output=q4_0", "q4_0 + token_embd=f16",
    "q4_0 + token_embd=q4_0", "q4_0 + gen_aligner=f16", "q4_0 + vit=q4_0 + aligner=q4_0", "q4_0 + attn_v=q8_0",
    "q4_0 + ffn_down=q8_0", "q4_0 + attn_v=q8_0 + ffn_down=q8_0", "q4_0 + attn_output=q8_0", "q4_0 + attn_q=q8_0 + attn_k=q8_0",
    "q4_0 + ffn_gate=q8_0 + ffn_up=q8_0", "q4_0 + blk.0=q8_0 + last=q8_0",
    "q6_k", "q6_k + token_embd=q6_k + output=q6_k", "q4_k", "q4_k + attn_v=q6_k + ffn_down=q6_k", "q4_k + output=q6_k",
)
TYPES = {name: convert.Type[name.upper()] for name in convert.FILE_TYPES}
PROMPTS = ("a red circle", "three pink hearts", "a blue house to the left of a green tree", "two brown cars on a white background",
           "a yellow star above a purple square", "four orange triangles", "a large green heart", "one red car below a blue star")


# ---- Files ----

def recipe_type(tensor: convert.Tensor, recipe: str, layers: int) -> convert.Type:
    """How a recipe stores a tensor."""
    dtype, *exceptions = recipe.split(" + ")
    kind = convert.storage_type(tensor, dtype)
    if len(tensor.shape) == 1 or tensor.name in convert.ALWAYS_F32:
        return kind
    for exception in exceptions:
        where, name = exception.split("=")
        where = f"blk.{layers - 1}" if where == "last" else where
        if tensor.name.startswith(where + ".") or f".{where}." in tensor.name:
            kind = convert.fitting_type(TYPES[name], tensor.shape[-1])
    return kind


def write_recipe(source: Path, target: Path, recipe: str) -> None:
    """The model file `source` with the types of a recipe."""
    metadata, stored = convert.read_model_file(source)
    layers, rows = metadata["janus.block_count"][1], {tensor.name: tensor.rows for tensor in stored}
    entries = [convert.Tensor(tensor.name, tensor.shape) for tensor in stored]
    plan = [(entry, recipe_type(entry, recipe, layers)) for entry in entries]
    convert.write_file(target, metadata, plan, lambda entry: rows[entry.name]())


# ---- What float32 says, and what a recipe says to the same ----

@dataclass
class Exam:
    """Questions with the pictures they are about and answers' ids; prompts with drawn ids; pictures to encode."""
    questions: list[tuple[np.ndarray, np.ndarray, np.ndarray]]   # prompt ids, picture, answer ids
    drawings: list[tuple[np.ndarray, np.ndarray]]                # prompt ids, drawn ids
    pictures: list[np.ndarray]


@dataclass
class Answers:
    """Scores: a list of (T, V) for the answers, of (T, K) for the drawings; decoded pictures; ids of encoded ones."""
    text: list[np.ndarray]
    image: list[np.ndarray]
    decoded: list[np.ndarray]
    encoded: list[np.ndarray]


def asked(model: Path, count: int, side: int) -> list[tuple[str, np.ndarray]]:
    """Questions and their pictures: of the small model's world for the model that knows it."""
    if model.name.startswith("tiny") and model.parent.name == "weights":
        import world
        rng = np.random.default_rng(7)
        scenes = [world.random_scene(rng) for _ in range(count)]
        return [(world.questions(scene, rng, 1)[0][1], world.render(scene)) for scene in scenes]
    texts = ("What is in the picture?", "How many trees are in this photo?", "Describe this image in detail.")
    return [(texts[i % 3], made_up_picture(side, side, i)) for i in range(count)]


def greedy_answer(stages: Stages, prompt: np.ndarray, picture: np.ndarray, limit: int) -> np.ndarray:
    """The ids of an answer, the end of it included."""
    stages.forget()
    logits, ids = stages.read(prompt, seen=stages.see(picture)), []
    while True:
        ids.append(int(logits[0].argmax()))
        if ids[-1] == stages.eos or len(ids) == limit:
            return np.array(ids, np.int32)
        logits = stages.read(np.array(ids[-1:], np.int32))


def make_exam(stages: Stages, model: Path, samples: int, limit: int) -> Exam:
    """What the float32 model answers and draws."""
    questions = []
    for question, picture in asked(model, samples, stages.side):
        prompt = stages.prompt("question", question)
        questions.append((prompt, picture, greedy_answer(stages, prompt, picture, limit)))
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(max(1, samples // 4))]
    drawings = [(stages.prompt("drawing_prompt", text), stages.draw(text, stages.image_tokens, seed)[0])
                for seed, text in enumerate(prompts)]
    return Exam(questions, drawings, [picture for _, picture, _ in questions[:max(1, samples // 4)]])


def guided(stages: Stages, prompt: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """uncond + 5 (cond - uncond), (T, K): what ids are drawn from."""
    padded = prompt.copy()
    padded[1:-1] = stages.pad
    cond, uncond = stages.picture_logits(prompt, ids), stages.picture_logits(padded, ids)
    return uncond + 5 * (cond - uncond)


def take(stages: Stages, exam: Exam) -> Answers:
    """All scores of one model file."""
    text = []
    for prompt, picture, ids in exam.questions:
        stages.forget()
        logits = stages.read(np.concatenate([prompt, ids[:-1]]), all_logits=True, seen=stages.see(picture))
        text.append(logits[len(prompt) - 1:].copy())
    image = [guided(stages, prompt, ids) for prompt, ids in exam.drawings]
    return Answers(text, image, [stages.decode(ids) for _, ids in exam.drawings], [stages.encode(p) for p in exam.pictures])


# ---- Numbers ----

def log_softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis, in double."""
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(exact: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Mean KL divergence over all positions, in nats."""
    rows = []
    for a, b in zip(exact, other):
        p, q = log_softmax(a), log_softmax(b)
        rows.append((np.exp(p) * (p - q)).sum(-1))
    return float(np.concatenate(rows).mean())


def agreement(exact: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Percent of positions with the same most probable id."""
    return 100 * float(np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in zip(exact, other)]).mean())


def psnr(exact: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Of all the pictures together, in dB."""
    error = np.mean([np.mean((a.astype(float) - b) ** 2) for a, b in zip(exact, other)])
    return float("inf") if error == 0 else 10 * np.log10(255 ** 2 / error)


def step_time(stages: Stages, steps: int) -> float:
    """Median milliseconds of a guided step."""
    steps = min(steps, stages.image_tokens)
    return 1e3 * float(np.median(np.diff(stages.draw(PROMPTS[0], steps)[1])[1:]))


def print_row(recipe: str, path: Path, stages: Stages, exact: Answers, mine: Answers, options: argparse.Namespace) -> None:
    """A line of the table, and of the file of --json."""
    record = {
        "recipe": recipe, "MB": path.stat().st_size / 1e6, "ms": step_time(stages, options.steps),
        "answers KL": 1e3 * divergence(exact.text, mine.text), "answers same": agreement(exact.text, mine.text),
        "pictures KL": 1e3 * divergence(exact.image, mine.image), "pictures same": agreement(exact.image, mine.image),
        "VQ same": 100 * float(np.mean([np.mean(a == b) for a, b in zip(exact.encoded, mine.encoded)])),
        "PSNR": psnr(exact.decoded, mine.decoded)}
    print("{:38} {:8.1f} {:7.2f} {:9.3f} {:6.1f} % {:11.3f} {:6.1f} % {:6.1f} % {:7.1f}".format(*record.values()), flush=True)
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "tiny.gguf")
    parser.add_argument("--geometry", choices=GEOMETRIES, help="random weights of these sizes instead of --model")
    parser.add_argument("--recipe", action="append", help="instead of the list of this program; may be given again")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--samples", type=int, help="questions; a quarter as many pictures (default 64, 4 with --geometry)")
    parser.add_argument("--steps", type=int, default=32, help="steps of a picture that are timed (default 32)")
    parser.add_argument("--work", type=Path, default=Path(os.environ.get("WORK") or "build/bench"))
    parser.add_argument("--json", type=Path, help="add a line for each row to this file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    source = random_file(options.geometry, "f32", options.work) if options.geometry else options.model
    samples = options.samples or (4 if options.geometry else 64)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        exact_file = Path(folder) / "f32.gguf"
        if options.geometry:
            exact_file = source
        else:
            write_recipe(source, exact_file, "f32")
        stages = Stages(exact_file, options.threads)
        exam = make_exam(stages, source, samples, 32)
        exact = take(stages, exam)
        print(f"{source.name}: {sum(len(ids) for _, _, ids in exam.questions)} ids of {len(exam.questions)} answers, "
              f"{sum(len(ids) for _, ids in exam.drawings)} ids of {len(exam.drawings)} pictures, {options.threads} thread(s)")
        print(f"{'':38} {'':8} {'':7} {'answers':>18} {'pictures, guided':>20} {'VQ':>8}\n{'recipe':38} {'MB':>8} {'ms':>7} {'KL':>9} {'same id':>8} "
              f"{'KL':>11} {'same id':>8} {'ids':>8} {'PSNR':>7}")
        print_row("f32", exact_file, stages, exact, exact, options)
        stages.close()
        for recipe in options.recipe or RECIPES:
            path = Path(folder) / "recipe.gguf"
            write_recipe(source, path, recipe)
            stages = Stages(path, options.threads)
            print_row(recipe, path, stages, exact, take(stages, exam), options)
            stages.close()


if __name__ == "__main__":
    main()
