#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.10"
# dependencies = ["cffi", "numpy", "pillow", "scipy", "tqdm"]
# ///
"""Scores the small model through libjanus.so: drawing, guidance, reconstruction, seeing, and both tasks at once.

    make libjanus.so
    python weights/eval.py                              all scores; exit status 1 if one is under its bar
    python weights/eval.py --quick                      a few seconds, fewer cases, bars near what the weights reach
    python weights/eval.py --samples weights/samples.png    the contact sheet

Drawing follows GenEval's six categories, one picture a prompt, seed = number of the prompt, the library's default
settings (CFG 5, temperature 1): 200 prompts a category, of which 100 name only combinations that training met and 100
name one that it never met.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "test" / "python")]
import judge  # noqa: E402
import world  # noqa: E402
from janus_library import Library, ffi, give  # noqa: E402

CATEGORIES = ("single object", "two objects", "counting", "colours", "position", "colour attribution")
BARS = {"single object": 0.98, "two objects": 0.90, "counting": 0.90, "colours": 0.95, "position": 0.90,
        "colour attribution": 0.85, "drawing": 0.92, "seeing": 0.95, "seen": 0.95, "question type": 0.85, "psnr": 26.0, "both": 0.85}
QUICK_BARS = {"single object": 0.90, "two objects": 0.85, "counting": 0.85, "colours": 0.90, "position": 0.85,  # make test
              "colour attribution": 0.85, "drawing": 0.88, "seeing": 0.90, "seen": 0.95, "psnr": 30.0, "both": 0.75}
CFG_WEIGHTS = (1.0, 2.0, 5.0, 8.0)
WORKERS = 2  # sessions side by side, one thread each

Item = TypeVar("Item")
Result = TypeVar("Result")


# --- The library -----------------------------------------------------------------------------------------------------


class Janus:
    """A model and one session a thread."""

    def __init__(self, library: Path, model: Path):
        self.library = Library(library)
        self.model = self.library.load(model)
        self.local = threading.local()

    @property
    def session(self) -> Any:
        """This thread's session."""
        if not hasattr(self.local, "session"):
            options = self.library.c.janus_session_defaults()
            options.threads = 1
            self.local.session = self.library.session(self.model, options)
        return self.local.session

    def draw(self, prompt: str, seed: int, cfg_weight: float | None = None) -> np.ndarray:
        """A picture uint8 [64, 64, 3]; guidance as by default unless given."""
        options, image = ffi.new("JanusGenerateOptions *", self.library.c.janus_generate_defaults()), ffi.new("JanusImage *")
        options.seed = seed
        if cfg_weight is not None:
            options.cfg_weight = cfg_weight
        self.library.call("janus_generate", self.session, prompt.encode(), options, image)
        return self.library.take_pixels(image)

    def ask(self, picture: np.ndarray, question: str) -> str:
        """The greedy answer to the first question about a picture."""
        picture, answer = np.ascontiguousarray(picture), ffi.new("char **")
        self.library.c.janus_reset(self.session)
        self.library.call("janus_ask", self.session, question.encode(), give(picture), 1, ffi.NULL, answer)
        return self.library.take_text(answer[0]).strip()

    def pass_through(self, picture: np.ndarray) -> np.ndarray:
        """A picture encoded into ids and decoded again: uint8 [64, 64, 3]."""
        picture, image = np.ascontiguousarray(picture), ffi.new("JanusImage *")
        ids = ffi.new("int32_t[]", self.library.c.janus_info(self.model).image_tokens)
        self.library.call("janus_encode_image", self.session, give(picture), ids)
        self.library.call("janus_decode_image", self.session, ids, image)
        return self.library.take_pixels(image)


def work(label: str, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The function of every item, in order, on WORKERS threads."""
    items = list(items)
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(tqdm(pool.map(function, items), label, total=len(items), leave=False))


# --- Prompts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """What is asked for. `things`: (kind, colour or ''), `relation`: of the first to the second, or ''."""

    category: str
    held_out: bool
    words: str
    things: tuple[tuple[str, str], ...]
    relation: str = ""
    background: str = ""


def canonical(one: str, relation: str, other: str) -> tuple[str, str, str]:
    """A triple as HELD_OUT lists it, with 'left' or 'above'."""
    return (one, relation, other) if relation in ("left", "above") else (other, world.OPPOSITE[relation], one)


def random_prompt(category: str, rng: np.random.Generator) -> Prompt:
    """A prompt of a category; whether it names a held-out combination is worked out, not chosen."""
    kinds = [str(kind) for kind in rng.choice(world.KINDS, 2, replace=False)]
    colours = [str(colour) for colour in rng.choice(list(world.COLOURS), 2, replace=False)]
    strange = [pair in world.HELD_OUT["colour"] for pair in zip(colours, kinds)]
    background = str(rng.choice(list(world.BACKGROUNDS))) if category in ("single object", "two objects") else ""
    relation = ""
    if category == "single object":
        held_out, things = (background, kinds[0]) in world.HELD_OUT["background"], [(kinds[0], "")]
        core = world.count_phrase(1, kinds[0], "", rng)
    elif category == "counting":
        count = int(rng.integers(2, 5))
        held_out, things = (count, kinds[0]) in world.HELD_OUT["count"], [(kinds[0], "")] * count
        core = world.count_phrase(count, kinds[0], "", rng)
    elif category == "colours":
        held_out, things = strange[0], [(kinds[0], colours[0])]
        core = world.count_phrase(1, kinds[0], colours[0], rng)
    else:
        coloured = category == "colour attribution"
        things = [(kind, colour if coloured else "") for kind, colour in zip(kinds, colours)]
        if category == "position":
            relation = str(rng.choice(list(world.RELATIONS)))
        names = [world.with_article(f"{colour} {kind}".strip()) for kind, colour in things]
        core = f"{names[0]} {world.relation_words(relation, rng) if relation else 'and'} {names[1]}"
        if coloured:
            held_out = any(strange)
        elif relation:
            held_out = canonical(kinds[0], relation, kinds[1]) in world.HELD_OUT["triple"]
        else:
            held_out = any((background, kind) in world.HELD_OUT["background"] for kind in kinds)
    return Prompt(category, held_out, world.dress(core, background, rng), tuple(things), relation, background)


def make_prompts(each: int, seed: int) -> list[Prompt]:
    """`each` prompts of every category, half of them held out, seen and held-out in turn."""
    rng, prompts = np.random.default_rng(seed), []
    for category in CATEGORIES:
        for number in range(each):
            while (prompt := random_prompt(category, rng)).held_out != (number % 2 == 1):
                pass
            prompts.append(prompt)
    return prompts


def agrees(prompt: Prompt, picture: np.ndarray) -> bool:
    """True if the picture shows exactly the things that were asked for, with their colours and relation."""
    found = judge.find_things(picture)
    if sorted(thing.kind for thing in found) != sorted(kind for kind, _ in prompt.things):
        return False
    if len(set(kind for kind, _ in prompt.things)) < len(prompt.things):
        return True
    by_kind = {thing.kind: thing for thing in found}
    if any(colour and by_kind[kind].colour != colour for kind, colour in prompt.things):
        return False
    pair = [by_kind[kind] for kind, _ in prompt.things]
    return not prompt.relation or judge.relation(*pair) == prompt.relation


# --- Scores ----------------------------------------------------------------------------------------------------------


class Report:
    """Prints rows as they come and remembers which were under their bar."""

    def __init__(self, bars: dict[str, float]):
        self.bars, self.missed = bars, []

    def row(self, name: str, value: float, note: str = "", bar: str = "", percent: bool = True) -> None:
        """One line; `bar` names the bar that the value is held against, if that is asked for here."""
        number = f"{100 * value:6.1f} %" if percent else f"{value:5.2f} dB"
        limit = self.bars.get(bar)
        verdict = ""
        if limit is not None:
            asked = f"{100 * limit:.0f} %" if percent else f"{limit:g} dB"
            verdict = f"  bar {asked}: {'reached' if value >= limit else 'MISSED'}"
            if value < limit:
                self.missed.append(name)
        print(f"  {name:<32}{number}  {note:<36}{verdict}", flush=True)


def mean(values: Iterable[float]) -> float:
    """The mean; not a number if there is none."""
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def score_drawing(janus: Janus, prompts: list[Prompt], report: Report) -> list[np.ndarray]:
    """Draws every prompt by default settings and prints the six categories; returns the pictures."""
    print("Drawing: CFG 5, temperature 1, one picture a prompt")
    pictures = work("draw", lambda job: janus.draw(job[1].words, job[0]), enumerate(prompts))
    right = [agrees(prompt, picture) for prompt, picture in zip(prompts, pictures)]
    for category in (*CATEGORIES, "drawing"):
        chosen = [i for i, prompt in enumerate(prompts) if category in (prompt.category, "drawing")]
        held = [right[i] for i in chosen if prompts[i].held_out]
        seen = [right[i] for i in chosen if not prompts[i].held_out]
        note = f"seen {100 * mean(seen):5.1f}, held out {100 * mean(held):5.1f}"
        report.row("overall" if category == "drawing" else category, min(mean(seen + held), mean(held)), note, category)
    return pictures


def score_guidance(janus: Janus, prompts: list[Prompt], report: Report) -> None:
    """The share of right pictures at several guidance weights, on the same prompts and seeds."""
    print(f"Guidance: {len(prompts)} of the prompts")
    for weight in CFG_WEIGHTS:
        pictures = work(f"cfg {weight:g}", lambda job: janus.draw(job[1].words, job[0], weight), enumerate(prompts))
        report.row(f"CFG {weight:g}", mean(agrees(prompt, picture) for prompt, picture in zip(prompts, pictures)))


def score_reconstruction(janus: Janus, count: int, report: Report) -> None:
    """Peak signal-to-noise ratio of unseen scenes after encode and decode."""
    rng = np.random.default_rng(2001)
    pictures = [world.render(world.random_scene(rng, held_out=number % 2 == 1)) for number in range(count)]
    decoded = work("encode", janus.pass_through, pictures)
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(pictures, decoded)]
    ratios = [10 * np.log10(255**2 / max(error, 1e-9)) for error in errors]
    print("Reconstruction: encode, decode")
    report.row("PSNR", float(np.mean(ratios)), f"{count} unseen scenes", "psnr", percent=False)


def make_questions(count: int, held_out: bool, seed: int) -> list[tuple[np.ndarray, world.Question]]:
    """`count` questions, all sorts in turn, each about a scene of its own."""
    rng, cases = np.random.default_rng(seed), []
    askers = (*world.ASKERS, world.ask_stranger)
    for number in range(count):
        asker = askers[number % len(askers)]
        scene = world.random_scene(rng, held_out)
        while asker is world.ask_relation and not scene.is_pair:
            scene = world.random_scene(rng, held_out)
        names_absent = asker in (world.ask_exists, world.ask_relation)
        question = asker(scene, rng, held_out) if names_absent else asker(scene, rng)
        cases.append((world.render(scene), question))
    return cases


def score_seeing(janus: Janus, count: int, seen_count: int, report: Report, show_wrong: bool) -> None:
    """Exact answers to questions about rendered scenes that show a held-out combination, and about others."""
    print("Seeing: the whole answer right, letter by letter")
    for held_out, number in ((True, count), (False, seen_count)):
        cases = make_questions(number, held_out, 3001 + held_out)
        answers = work("ask", lambda case: janus.ask(case[0], case[1][1]), cases)
        right = defaultdict(list)
        for (_, (sort, question, wanted)), answer in zip(cases, answers):
            right[sort].append(answer == wanted)
            if show_wrong and answer != wanted:
                print(f"    {question} -> {answer}   ({wanted})")
        name = "held out" if held_out else "seen"
        everything = [value for values in right.values() for value in values]
        report.row(f"{name}, overall", mean(everything), f"{number} questions", "seeing" if held_out else "seen")
        for sort, values in right.items():
            report.row(f"  {name}, {sort}", mean(values), f"{len(values)} questions", "question type")


def question_about(prompt: Prompt, rng: np.random.Generator) -> tuple[str, str]:
    """A question whose answer follows from the prompt, and that answer."""
    kind, colour = prompt.things[0]
    if prompt.category == "single object":
        return "What is this?", f"It is {world.with_article(kind)}."
    if prompt.category == "counting":
        answer = world.sentence(world.existence(len(prompt.things), kind))
        return f"How many {world.plural(kind)} are in this photo?", answer
    if prompt.relation:
        other = prompt.things[1][0]
        return f"Where is the {kind}?", f"The {kind} is {world.RELATIONS[prompt.relation]} the {other}."
    if colour:
        kind, colour = prompt.things[rng.integers(len(prompt.things))]
        return f"What colour is the {kind}?", f"The {kind} is {colour}."
    return f"Is there {world.with_article(kind)} in the picture?", f"Yes, there is {world.with_article(kind)}."


def score_both(janus: Janus, prompts: list[Prompt], pictures: list[np.ndarray], count: int, report: Report) -> None:
    """Draws held-out prompts, asks about the pictures, compares the answers with the prompts."""
    rng = np.random.default_rng(4001)
    held_out = [i for i, prompt in enumerate(prompts) if prompt.held_out]
    chosen = [held_out[i] for i in np.linspace(0, len(held_out) - 1, count).astype(int)]
    asked = [(i, *question_about(prompts[i], rng)) for i in chosen]
    answers = work("both", lambda job: janus.ask(pictures[job[0]], job[1]), asked)
    print("Both at once: draw a held-out prompt, ask about the picture")
    share = mean(answer == wanted for answer, (_, _, wanted) in zip(answers, asked))
    report.row("answer agrees with prompt", share, f"{count} prompts", "both")


# --- The contact sheet -----------------------------------------------------------------------------------------------

SAMPLES = (
    "a photo of a red star", "a green tree", "a blue house", "a yellow car", "three pink hearts",
    "four orange circles", "two purple triangles", "a brown square", "a red car to the left of a green tree",
    "a yellow star above a blue house", "a pink heart and a green car", "a purple house below an orange circle",
    "a tree on a mint background", "a yellow heart on black", "three green stars on a lavender background",
    "four red cars", "a blue heart to the right of a red house", "a green square under a pink circle",
)


def draw_samples(janus: Janus, path: Path, columns: int = 6, side: int = 160) -> None:
    """Draws SAMPLES with seed 0 and writes them, enlarged, with their prompts, as one picture."""
    pictures = work("draw", lambda prompt: janus.draw(prompt, 0), SAMPLES)
    font, step, line = ImageFont.load_default(11), side + 44, 14
    rows = -(-len(SAMPLES) // columns)
    sheet = Image.new("RGB", (columns * (side + 12) + 12, rows * step + 12), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (prompt, picture) in enumerate(zip(SAMPLES, pictures)):
        left, top = 12 + number % columns * (side + 12), 12 + number // columns * step
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (left, top))
        words, lines = prompt.split(), [""]
        for word in words:
            longer = f"{lines[-1]} {word}".strip()
            lines = [*lines[:-1], longer] if font.getlength(longer) <= side else [*lines, word]
        for index, text in enumerate(lines):
            pen.text((left, top + side + 3 + index * line), text, "black", font)
    sheet.save(path, optimize=True)


def main() -> int:
    """Parses the command line, prints the scores, returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "tiny.gguf")
    parser.add_argument("--library", type=Path, default=HERE.parent / "libjanus.so")
    parser.add_argument("--quick", action="store_true", help="fewer cases and lower bars")
    parser.add_argument("--wrong", action="store_true", help="also print wrong answers")
    parser.add_argument("--samples", type=Path, help="only write the contact sheet")
    options = parser.parse_args()
    for needed, how in ((options.library, "make libjanus.so"), (options.model, "convert.py makes it")):
        if not needed.exists():
            print(f"{needed} is missing: {how}", file=sys.stderr)
            return 2
    janus, start = Janus(options.library, options.model), time.time()
    if options.samples:
        draw_samples(janus, options.samples)
        return 0
    quick = options.quick
    report = Report(QUICK_BARS if quick else BARS)
    prompts = make_prompts(64 if quick else 200, 1001)
    pictures = score_drawing(janus, prompts, report)
    if not quick:
        score_guidance(janus, prompts[::5], report)
    score_reconstruction(janus, 40 if quick else 200, report)
    score_seeing(janus, 96 if quick else 1000, 40 if quick else 400, report, options.wrong)
    score_both(janus, prompts, pictures, 24 if quick else 120, report)
    if not quick:
        print("Judge")
        report.row("right on rendered scenes", judge.accuracy(), "1000 scenes", "")
    verdict = "under the bar: " + ", ".join(report.missed) if report.missed else "all bars reached"
    print(f"{time.time() - start:.0f} s; {verdict}")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
