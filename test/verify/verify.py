#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Is ./janus equal to PyTorch? Runs one checkpoint through both and compares every named intermediate tensor.

    verify.py CHECKPOINT [--dtype TYPE]           a folder (official or transformers layout) or a GGUF file
    verify.py CHECKPOINT --peer-dtype bfloat16    how far PyTorch's own bfloat16 is from its float32, and janus
    verify.py --suite                             small random checkpoints of many shapes, layouts and formats
    verify.py --full --work DIR                   the real 1B and 7B geometries with random weights
    verify.py ... --json FILE                     and all rows as JSON: part, stage, shape, times, value, ok

One row a stage: name, shape, number of tensors, the largest error relative to the largest value, OK or NOT OK. PyTorch
is fed the ids that janus chose, so one early difference does not hide the stages behind it; that each of those ids is
also PyTorch's own choice is a row of its own. Closes with 'N passed, N failed'; the exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]
from convert import QUANTISED_TYPES  # noqa: E402
QUESTION = "What is in the picture?"
PROMPT = "a red fox in the snow, with two green triangles"


# ---- Pictures ----

def photograph(width: int, height: int, seed: int) -> Image.Image:
    """A picture with what photographs have: soft light, noise, hard edges, many colours."""
    from PIL import ImageDraw
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    light = np.stack([150 + 90 * np.sin(5 * x + phase) * np.cos(4 * y - phase) for phase in (0.2, 1.3, 2.9)], -1)
    image = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        left, top = rng.uniform(0, width), rng.uniform(0, height)
        box = [left, top, left + rng.uniform(2, width / 2), top + rng.uniform(2, height / 2)]
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    noise = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


# ---- The program ----

def run(arguments: list[object], text: str | None = None) -> str:
    """Runs ./janus or another program; returns its standard output, raises with its standard error."""
    done = subprocess.run([str(a) for a in arguments], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, arguments[:3]))} ... failed: {done.stderr.strip()}")
    return done.stdout


def convert(folder: Path, out: Path, dtype: str | None) -> None:
    """A checkpoint folder into a GGUF file."""
    run([sys.executable, ROOT / "convert.py", folder, "-o", out, *(["--dtype", dtype] if dtype else [])])


class Dump:
    """The .npy files of one run of janus."""

    def __init__(self, folder: Path) -> None:
        self.paths = {path.name[:-4]: path for path in folder.glob("*.npy")}

    def get(self, name: str) -> np.ndarray | None:
        """One tensor, None where janus wrote none of that name."""
        return np.load(self.paths[name]) if name in self.paths else None

    def all(self, name: str) -> list[np.ndarray]:
        """A tensor's occurrences in order: name, name.1, name.2, ..."""
        out, value = [], self.get(name)
        while value is not None:
            out.append(value)
            value = self.get(f"{name}.{len(out)}")
        return out


# ---- The table ----

@dataclass
class Table:
    """Rows of the comparison; prints each as it is made."""
    tolerance: float
    passed: int = 0
    failed: int = 0
    worst: float = 0.0
    part: str = ""
    quiet: bool = False
    rows: list[dict] = field(default_factory=list)  # what --json writes
    failures: list[str] = field(default_factory=list)

    def title(self, text: str) -> None:
        """Opens a part of the table."""
        if not self.quiet:
            print(f"\n{text}\n  {'stage':<30} {'shape':<16} {'times':>5} {'largest error':>14}")
        self.part = text

    def row(self, name: str, shape: str, times: int, value: str, good: bool) -> None:
        """One line."""
        self.passed, self.failed = self.passed + good, self.failed + (not good)
        self.rows.append({"part": self.part, "stage": name, "shape": shape, "times": times, "value": value, "ok": good})
        line = f"  {name:<30} {shape:<16} {times:>5} {value:>14}   {'OK' if good else 'NOT OK'}"
        if not good:
            self.failures.append(f"{self.part}: {line.strip()}")
        if not self.quiet or not good:
            print(line if not self.quiet else f"{self.part}:{line}", flush=True)

    def stage(self, name: str, pairs: list[tuple[np.ndarray | None, np.ndarray]]) -> None:
        """Compares all occurrences of one stage, each (janus, PyTorch)."""
        shape = "x".join(map(str, pairs[0][1].shape))
        missing = sum(mine is None for mine, _ in pairs)
        if missing:
            self.row(name, shape, len(pairs), f"{missing} missing", False)
            return
        wrong = next((mine.shape for mine, theirs in pairs if mine.squeeze().shape != theirs.squeeze().shape), None)
        if wrong is not None:
            self.row(name, shape, len(pairs), "shape " + "x".join(map(str, wrong)), False)
        elif pairs[0][1].dtype.kind == "i":
            different = sum(int((mine.squeeze() != theirs.squeeze()).sum()) for mine, theirs in pairs)
            self.row(name, shape, len(pairs), f"{different} differ", different == 0)
        else:
            error = max(relative_error(mine, theirs) for mine, theirs in pairs)
            self.worst = max(self.worst, error)
            self.row(name, shape, len(pairs), f"{error:.1e}", error <= self.tolerance)

    def choices(self, name: str, mine: list[int], scores: list[np.ndarray]) -> None:
        """Are janus's choices those of PyTorch's scores (largest wins)? Where not: by how little it lost."""
        wrong = [(i, float((score.max() - score[choice]) / np.abs(score).max()))
                 for i, (choice, score) in enumerate(zip(mine, scores)) if int(score.argmax()) != choice]
        margin = min(top_margin(score) for score in scores)
        detail = f"margin {margin:.1e}" if not wrong else f"at {wrong[0][0]} by {wrong[0][1]:.1e}"
        self.row(name, f"{len(mine) - len(wrong)} of {len(mine)}", len(mine), detail, not wrong)

    def check(self, name: str, shape: str, good: bool) -> None:
        """A row without a number."""
        self.row(name, shape, 1, "", good)


def relative_error(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value; infinite where anything is not finite."""
    mine, theirs = mine.squeeze().astype(np.float64), theirs.squeeze().astype(np.float64)
    if not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def top_margin(scores: np.ndarray) -> float:
    """How far the best score is ahead of the second, relative to the largest magnitude."""
    second, first = np.partition(scores, -2)[-2:]
    return float((first - second) / np.abs(scores).max())


def compare(table: Table, dump: Dump, taps, skip: tuple[str, ...] = ()) -> None:
    """All stages that PyTorch recorded; a tensor that janus wrote and PyTorch has not is a failure too."""
    for name, count in taps.met.items():
        if name in skip:
            continue
        names = [f"{name}.{i}" if i else name for i in range(count)]
        table.stage(name, [(dump.get(n), taps.values[n]) for n in names])
    extra = sorted(set(dump.paths) - set(taps.values))
    if extra:
        table.row(extra[0], "not in PyTorch", len(extra), "", False)


def check_pixels(table: Table, dump: Dump, taps) -> None:
    """8-bit pixels: exactly janus's own decoder output truncated, and PyTorch's as far as the tolerance can move it."""
    from reference import to_pixels
    output, pixels = dump.get("vq.decoder.output"), dump.get("image.pixels")
    if output is None or pixels is None:
        table.check("image.pixels", "missing", False)
        return
    table.row("image.pixels of its output", "", 1, f"{int((to_pixels(output) != pixels).sum())} differ",
              bool((to_pixels(output) == pixels).all()))
    theirs = taps.values["vq.decoder.output"].astype(np.float64)
    exact = np.clip((theirs + 1) / 2 * 255, 0, 255)
    slack = table.tolerance * np.abs(theirs).max() * 127.5
    inside = (pixels <= exact + slack) & (pixels > exact - 1 - slack)
    far = int(np.abs(pixels - taps.values["image.pixels"]).max())
    table.row("image.pixels", "x".join(map(str, pixels.shape)), 1, f"largest {far}", bool(inside.all() and far <= 1))


# ---- The tasks ----

@dataclass
class Case:
    """One model in both forms, and where the files of its runs go."""
    file: Path
    reference: object
    table: Table
    work: Path
    max_tokens: int = 8
    threads: int = 2
    runs: int = 0

    def janus(self, command: str, *arguments: object, text: str | None = None) -> tuple[str, Dump]:
        """Runs one command with --dump."""
        self.runs += 1
        folder = self.work / f"dump{self.runs}"
        folder.mkdir()
        out = run([ROOT / "janus", command, "-m", self.file, "--threads", self.threads, "-q",
                   "--dump", folder, *arguments], text)
        return out, Dump(folder)

    def picture(self, width: int, height: int, seed: int) -> tuple[Path, Image.Image]:
        """A photograph as a file and as Pillow reads it."""
        path = self.work / f"photo-{width}x{height}-{seed}.png"
        photograph(width, height, seed).save(path)
        return path, Image.open(path).convert("RGB")


def answers(dump: Dump, eos: int, limit: int) -> list[list[int]]:
    """The ids that janus chose, turn by turn: the largest logit of each step, up to the end or the limit."""
    turns: list[list[int]] = [[]]
    for logits in dump.all("lm.logits"):
        if turns[-1] and (turns[-1][-1] == eos or len(turns[-1]) == limit):
            turns.append([])
        turns[-1].append(int(logits.argmax()))
    return turns


def spoken(reference, ids: list[int]) -> str:
    """An answer's text as the command line prints it."""
    return reference.tokenizer.decode(ids, skip_special_tokens=True).strip()


def verify_ask(case: Case, shapes: list[tuple[int, int]], question: str = QUESTION) -> None:
    """Pictures and a question -> greedy answer."""
    from reference import Taps, Turn, run_conversation
    files = [case.picture(*shape, seed) for seed, shape in enumerate(shapes)]
    case.table.title(f"understanding, {len(files)} picture(s) " + ", ".join(f"{w}x{h}" for w, h in shapes))
    options = [part for path, _ in files for part in ("-i", path)]
    out, dump = case.janus("ask", *options, "--max-tokens", case.max_tokens, "--temperature", 0, question)
    ids = answers(dump, case.reference.ids["eos"], case.max_tokens)[0]
    taps = Taps()
    logits = run_conversation(case.reference, [Turn(question, [image for _, image in files], ids)], taps)
    compare(case.table, dump, taps)
    case.table.choices("greedy answer ids", ids, logits[0])
    case.table.check("printed answer", "", out.strip() == spoken(case.reference, ids))


def verify_chat(case: Case, with_image: bool) -> None:
    """Two turns of a conversation over one cache."""
    from reference import Taps, Turn, fresh_logits, run_conversation
    path, image = case.picture(90, 61, 5)
    case.table.title("conversation of two turns, " + ("one picture" if with_image else "text only"))
    questions = [QUESTION, "How many of them are there?"]
    _, dump = case.janus("chat", *(["-i", path] if with_image else []), "--max-tokens", case.max_tokens,
                         "--temperature", 0, text="\n".join([*questions, "/quit", ""]))
    ids = answers(dump, case.reference.ids["eos"], case.max_tokens)
    case.table.check("number of turns", str(len(ids)), len(ids) == 2)
    taps = Taps()
    turns = [Turn(question, [image] if with_image and i == 0 else [], answer)
             for i, (question, answer) in enumerate(zip(questions, ids))]
    logits = run_conversation(case.reference, turns, taps)
    compare(case.table, dump, taps)
    for number, (answer, scores) in enumerate(zip(ids, logits)):
        case.table.choices(f"greedy answer ids, turn {number + 1}", answer, scores)
    second = dump.all("lm.logits")[len(ids[0])]
    case.table.stage("lm.logits, all read afresh", [(second, fresh_logits(case.reference, turns))])


def verify_generate(case: Case, weight: float = 5.0) -> None:
    """Prompt -> ids, greedily, with guidance -> picture."""
    from reference import Taps, run_decoder, run_drawing
    case.table.title("drawing with guidance, teacher-forced on janus's ids")
    out = case.work / "drawn.png"
    _, dump = case.janus("generate", "--temperature", 0, "--cfg", weight, "-o", out, PROMPT)
    ids = [int(logits.argmax()) for logits in dump.all("generation.logits")]
    steps = case.reference.grid ** 2
    if len(ids) != steps:
        case.table.row("generation.logits", f"{len(ids)} of {steps}", len(ids), "missing", False)
        return
    taps = Taps()
    guided = run_drawing(case.reference, PROMPT, ids, weight, taps)
    run_decoder(case.reference, ids, taps)
    compare(case.table, dump, taps, skip=("image.pixels",))
    check_pixels(case.table, dump, taps)
    case.table.choices("greedy picture ids", ids, guided)
    drawn = np.asarray(Image.open(out).convert("RGB"))
    case.table.check("written picture", "", bool((drawn == dump.get("image.pixels")).all()))


def verify_sampling(case: Case, count: int, seed: int) -> None:
    """Sampled pictures, drawn as one batch, and a sampled answer: the ids that PyTorch draws with the same seed."""
    from reference import Taps, Turn, run_conversation, sample_answer, sample_drawing
    case.table.title(f"sampled with seed {seed}: {count} pictures, one answer")
    _, dump = case.janus("generate", "-n", count, "--seed", seed, "-o", case.work / "sampled.png", PROMPT)
    ids = dump.get("generation.ids")
    theirs = sample_drawing(case.reference, PROMPT, ids, 5.0, 1.0, seed)
    wrong = int((ids != theirs).sum())
    case.table.row("sampled picture ids", "x".join(map(str, ids.shape)), ids.size, f"{wrong} differ", wrong == 0)
    path, image = case.picture(80, 50, 3)
    _, dump = case.janus("ask", "-i", path, "--max-tokens", 12, "--temperature", 0.9, "--top-p", 0.8, "--top-k", 40,
                         "--seed", seed, QUESTION)
    said = dump.get("lm.answer_ids").tolist()
    answer = said + [case.reference.ids["eos"]] * (len(dump.all("lm.logits")) - len(said))
    logits = run_conversation(case.reference, [Turn(QUESTION, [image], answer)], Taps())[0]
    sampled = sample_answer(logits, 0.9, 40, 0.8, seed)
    wrong = sum(mine != other for mine, other in zip(answer, sampled))
    case.table.row("sampled answer ids", str(len(answer)), len(answer), f"{wrong} differ", wrong == 0)


def verify_encode(case: Case, width: int, height: int) -> None:
    """Picture -> ids -> picture through the VQ model alone."""
    from reference import Taps, run_decoder, run_encoder
    path, image = case.picture(width, height, 9)
    case.table.title(f"encode and decode, {width}x{height}")
    out, dump = case.janus("encode", "-i", path)
    taps = Taps()
    _, distances = run_encoder(case.reference, image, taps)
    mine = [int(word) for word in out.split()]
    compare(case.table, dump, taps, skip=("vq.ids",))
    case.table.choices("vq.ids", mine, list(-distances))
    case.table.check("printed ids", "", mine == dump.get("vq.ids").tolist())
    ids_file, picture = case.work / "ids.txt", case.work / "decoded.png"
    ids_file.write_text(out)
    _, dump = case.janus("decode", "-o", picture, ids_file)
    taps = Taps()
    run_decoder(case.reference, mine, taps)
    compare(case.table, dump, taps, skip=("image.pixels",))
    check_pixels(case.table, dump, taps)
    case.table.check("written picture", "", bool((np.asarray(Image.open(picture)) == dump.get("image.pixels")).all()))


def verify_model(case: Case, thorough: bool) -> None:
    """All tasks on one model; thorough adds several pictures, conversations and sampling."""
    verify_ask(case, [(97, 61)])
    if thorough:
        verify_ask(case, [(31, 90), (64, 64)])
        verify_ask(case, [(40, 40)], question="  \n blanks at both ends ")
        verify_chat(case, with_image=True)
        verify_chat(case, with_image=False)
        verify_sampling(case, count=3, seed=7)
    verify_generate(case)
    verify_encode(case, 113, 75)


def verify_path(path: Path, dtype: str | None, tolerance: float, threads: int, work: Path, quick: bool) -> Table:
    """A user's checkpoint: folder (converted first) or GGUF file."""
    from reference import load
    file = path
    if path.is_dir():
        file = work / "model.gguf"
        convert(path, file, dtype)
    # With another type than the stored one, PyTorch computes in float32 from the rounded weights of the file.
    reference = load(path if dtype is None else file)
    table = Table(tolerance)
    verify_model(Case(file, reference, table, work, threads=threads), thorough=not quick)
    return table


def print_peer_distances(path: Path, name: str, threads: int, work: Path) -> None:
    """How far PyTorch in another type is from its float32, and how far janus is."""
    import torch
    from verify_peer import compare_dtypes
    from reference import load
    file = path if path.is_file() else work / "model.gguf"
    if path.is_dir():
        convert(path, file, None)
    run(["make", "-s", "-C", ROOT, "build/libbench.so"])
    compare_dtypes(file, load(file), photograph(640, 426, 1), QUESTION, PROMPT, threads, getattr(torch, name))


# ---- The suite ----

def suite_cases() -> list[tuple[str, object, str, str, int, str | None]]:
    """(name, sizes, layout, format, shards, dtype): at least one of everything that a checkpoint can be."""
    from geometries import geometry
    plain = geometry()
    grouped = geometry(heads=8, kv_heads=2, head_dim=8, vq_multipliers=(1, 1, 2), rope_theta=500000.0)
    tied = geometry(tied=True, hidden=48, heads=3, kv_heads=3, vq_multipliers=(1, 2, 2, 1), grid=2, patch=16)
    deep = geometry(vq_multipliers=(1, 1, 2, 2, 4), grid=3, patch=14, vq_z=64, layers=3, kv_heads=1, vit_width=40,
                    vit_heads=2, vit_feed_forward=96, codebook_dim=4)
    wide = geometry(hidden=96, heads=4, head_dim=32, kv_heads=2, feed_forward=200, vocabulary=1001, grid=5, patch=6,
                    vit_width=66, vit_heads=6, vit_feed_forward=150, codebook_size=1000, depth=3, vq_res_blocks=1)
    narrow = geometry(hidden=40, heads=5, kv_heads=5, head_dim=8, feed_forward=100, gen_head_width=56, grid=6, patch=4,
                      vit_layers=1, layers=1, vq_channels=64, vq_multipliers=(1, 1), vq_z=24, codebook_dim=16, depth=1)
    even = geometry(hidden=128, head_dim=32, feed_forward=256, vit_width=64, vit_heads=2, vit_feed_forward=128)
    blocks = replace(even, hidden=256, gen_head_width=256, head_dim=64, feed_forward=512)
    return [
        ("plain", plain, "official", "bin", 1, None),
        ("grouped-query", grouped, "transformers", "safetensors", 1, None),
        ("tied, 4 levels", tied, "transformers", "bin", 3, None),
        ("5 levels, one kv head", deep, "official", "safetensors", 3, None),
        ("wide, odd sizes", wide, "transformers", "safetensors", 2, None),
        ("narrow, own head width", narrow, "official", "bin", 2, None),
        ("grouped-query f16", grouped, "official", "safetensors", 1, "f16"),
        ("5 levels bf16", deep, "transformers", "bin", 1, "bf16"),
        ("plain f16", plain, "transformers", "safetensors", 1, "f16"),
        ("wide bf16", wide, "transformers", "bin", 1, "bf16"),
        ("blocks of 32, q8_0", even, "official", "safetensors", 1, "q8_0"),
        ("blocks of 32, q4_0", even, "transformers", "bin", 2, "q4_0"),
        ("blocks of 256, q6_k", blocks, "official", "bin", 1, "q6_k"),
        ("blocks of 256, q4_k", blocks, "transformers", "safetensors", 2, "q4_k"),
        ("roles of Janus-1.3B", plain, "official", "safetensors", 1, None),
    ]


def verify_suite(threads: int, verbose: bool) -> Table:
    """Every case of the suite; one line a case, its rows only where they fail (or with --verbose)."""
    from geometries import write_checkpoint
    from reference import load
    total = Table(0.0)
    print(f"{'geometry':<24} {'layout':<13} {'files':<14} {'type':<5} {'rows':>5} {'largest error':>14}")
    for number, (name, sizes, layout, kind, shards, dtype) in enumerate(suite_cases()):
        with tempfile.TemporaryDirectory(prefix="janus-verify-") as work:
            folder, file = Path(work) / "checkpoint", Path(work) / "model.gguf"
            role_tokens = name != "roles of Janus-1.3B"
            write_checkpoint(folder, sizes, number + 1, layout, kind, shards, role_tokens)
            convert(folder, file, dtype)
            table = Table(1e-4 if dtype is None else 2e-3, quiet=not verbose)
            case = Case(file, load(folder if dtype is None else file), table, Path(work), threads=threads)
            verify_model(case, thorough=True)
        files = f"{shards} .{kind}" if kind == "bin" else f"{shards} .safet."
        print(f"{name:<24} {layout:<13} {files:<14} {dtype or 'f32':<5} {table.passed + table.failed:>5} "
              f"{table.worst:>14.1e}   {'OK' if not table.failed else 'NOT OK'}", flush=True)
        total.passed, total.failed = total.passed + table.passed, total.failed + table.failed
        total.rows += [{"geometry": name, "layout": layout, "type": dtype or "f32", **row} for row in table.rows]
    return total


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--dtype", choices=["f32", "f16", "bf16", *QUANTISED_TYPES],
                        help="convert to this type instead of the stored one")
    parser.add_argument("--tolerance", type=float, help="default 1e-4; 2e-3 with --dtype other than f32")
    parser.add_argument("--quick", action="store_true", help="one question, one picture, encode and decode")
    parser.add_argument("--peer-dtype", choices=["bfloat16", "float16"], help="print how far PyTorch in this type is from float32")
    parser.add_argument("--suite", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--work", type=Path, help="folder for large temporary files")
    parser.add_argument("--only", choices=["1b", "7b"], help="with --full: one of the two models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there as well")
    parser.add_argument("--verbose", action="store_true", help="with --suite: every row")
    options = parser.parse_args()
    import torch
    torch.set_num_threads(1 if options.suite else options.threads)  # small tensors gain nothing from more
    if options.suite:
        table = verify_suite(options.threads, options.verbose)
    elif options.full:
        from verify_full import verify_full
        table = verify_full(options.work, options.only, options.threads)
    elif options.checkpoint and options.peer_dtype:
        with tempfile.TemporaryDirectory(prefix="janus-verify-", dir=options.work) as work:
            print_peer_distances(options.checkpoint, options.peer_dtype, options.threads, Path(work))
        return 0
    elif options.checkpoint:
        tolerance = options.tolerance or (1e-4 if options.dtype in (None, "f32") else 2e-3)
        with tempfile.TemporaryDirectory(prefix="janus-verify-", dir=options.work) as work:
            table = verify_path(options.checkpoint, options.dtype, tolerance, options.threads, Path(work), options.quick)
    else:
        parser.error("give a checkpoint, --suite or --full")
    if options.json:
        result = {"passed": table.passed, "failed": table.failed, "rows": table.rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table.passed} passed, {table.failed} failed")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
