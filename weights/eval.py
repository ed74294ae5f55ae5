#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.10"
# dependencies = ["cffi", "numpy", "pillow", "scipy", "tqdm"]
# ///
"""Scores the small model through libjanus.so: drawing, guidance, reconstruction, seeing, conversation, and both tasks at once.

    make libjanus.so
    python weights/eval.py                              all scores; exit status 1 if one is under its bar
    python weights/eval.py --quick                      fewer cases, bars near what tiny.gguf reaches
    python weights/eval.py --samples weights/samples.png    the contact sheet

Drawing asks for GenEval's six categories and for five more, one picture a prompt, seed = number of the prompt, the library's
default settings (CFG 5, temperature 1): 200 prompts a category, of which 100 name only combinations that training met and 100
name one that it never met (of words outside the world: words in training and others).
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

# What the captions of a category say, of the sorts that world.HELD_OUT has.
SAID = {"single object": ("background",), "two objects": ("background",), "counting": ("count",), "colours": ("colour",),
        "position": ("triple",), "colour attribution": ("colour",)}
NEW = {"counting to five": ("count",), "same kind": ("colour", "twin"), "size and background": ("size", "background", "colour")}
CATEGORIES = (*SAID, *NEW, "capitals and forms", "Spanish", "unknown words")
BARS = {"overall": 0.97, "colour attribution": 0.93, "counting": 0.96, "counting to five": 0.96, "same kind": 0.90, "unknown words": 0.95,
        "size and background": 0.92, "capitals and forms": 0.97, "Spanish": 0.95, "seeing": 0.98, "seeing in Spanish": 0.97,
        "later turns": 0.95, "psnr": 31.0, "both": 0.96}
QUICK_BARS = {"single object": 0.95, "two objects": 0.90, "counting": 0.88, "colours": 0.95, "position": 0.95,  # make test
              "colour attribution": 0.90, "same kind": 0.80, "size and background": 0.55, "capitals and forms": 0.88, "Spanish": 0.93,
              "unknown words": 0.82, "overall": 0.84, "seeing": 0.90, "seen": 0.95, "seeing in Spanish": 0.88, "psnr": 30.0,
              "both": 0.85, "later turns": 0.88}
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

    def converse(self, turns: list[tuple[np.ndarray | None, str]]) -> list[str]:
        """The greedy answers to the turns of a conversation, each a question and the picture that comes with it, if any."""
        self.library.c.janus_reset(self.session)
        answers, options = [], ffi.new("JanusAskOptions *", self.library.c.janus_ask_defaults())
        options.max_tokens = 100  # the longest right answer has fewer
        for picture, question in turns:
            picture = picture if picture is None else np.ascontiguousarray(picture)
            answer, shown = ffi.new("char **"), ffi.NULL if picture is None else give(picture)
            self.library.call("janus_ask", self.session, question.encode(), shown, int(picture is not None), options, answer)
            answers.append(self.library.take_text(answer[0]).strip())
        return answers

    def ask(self, picture: np.ndarray, question: str) -> str:
        """The greedy answer to the first question about a picture."""
        return self.converse([(picture, question)])[0]

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
    """What is asked for. `things`: (kind, colour or ''), none where it is outside the world; `relation`: of the first to the second."""

    category: str
    held_out: bool
    words: str
    things: tuple[tuple[str, str], ...] = ()
    relation: str = ""
    background: str = ""
    size: str = ""


UNSEEN = """whale ladder pumpkin volcano sandwich submarine tractor windmill penguin cactus umbrella helicopter octopus trousers accordion
ambulance hedgehog waterfall sunflower robin tijera mariposa zanahoria elefante bicicleta helado tortuga pulpo camello molino""".split()


def random_prompt(category: str, rng: np.random.Generator) -> Prompt:
    """A prompt of a category; whether it names a held-out combination is worked out, not chosen."""
    if category == "unknown words":
        held_out = bool(rng.random() < 0.5)
        return Prompt(category, held_out, world.unknown_caption(rng, UNSEEN if held_out else world.OUTSIDE))
    form = world.pick(rng, *SAID) if category in ("capitals and forms", "Spanish") else category
    language, wild = world.SPANISH if category == "Spanish" else world.ENGLISH, category == "capitals and forms"
    palette = list(world.COLOURS)[:None if form == "size and background" else world.BASIC]
    kinds, colours = rng.permutation(world.KINDS)[:2].tolist(), rng.permutation(palette)[:2].tolist()
    count = {"counting": int(rng.integers(2, 5)), "counting to five": 5}.get(form, 1)
    specs = [(kinds[0], colours[0])] * count
    if form in ("two objects", "position", "colour attribution", "same kind"):
        specs = [(kinds[0], colours[0]), (kinds[0] if form == "same kind" else kinds[1], colours[1])]
    background = world.pick(rng, *world.BACKGROUNDS) if form in ("single object", "two objects", "size and background") else ""
    if background in world.CLASHES.get(colours[0], ()) and form == "size and background":
        return random_prompt(category, rng)
    size = world.pick(rng, "small", "big") if form == "size and background" else ""
    scene = world.make_scene(specs, background or "white", rng, size)
    held_out = any(sort in (SAID | NEW)[form] and words in world.HELD_OUT[sort] for sort, words in world.combinations(scene))
    said = [(kind, colour if "colour" in (SAID | NEW)[form] else "") for kind, colour in specs]
    if scene.is_pair:
        relation = scene.relation if form == "position" else ""
        if rng.random() < 0.5:
            said, relation = said[::-1], world.OPPOSITE.get(relation, "")
        one, other = (language.some(1, *thing) for thing in said)
        core = f"{one} {world.pick(rng, *language.relations[relation])} {other}" if relation else language.both.format(one, other)
    else:
        core, relation = world.count_phrase(count, kinds[0], (size, said[0][1]), language, rng, wild), ""
    words = world.dress(core, background, language, rng, float(wild))
    return Prompt(category, held_out, words, tuple(said), relation, background, size)


def make_prompts(each: int, seed: int, categories: Iterable[str] = CATEGORIES) -> list[Prompt]:
    """`each` prompts of every category, half of them held out, seen and held-out in turn."""
    rng, prompts = np.random.default_rng(seed), []
    for category in categories:
        for number in range(each):
            while (prompt := random_prompt(category, rng)).held_out != (number % 2 == 1):
                pass
            prompts.append(prompt)
    return prompts


def agrees(prompt: Prompt, picture: np.ndarray) -> bool:
    """True if the picture shows exactly the things that were asked for, with their colours and relation; where a size is asked for,
    that and the background too; and the picture of what is not understood, where nothing was asked for."""
    if not prompt.things or judge.is_unknown(picture):
        return not prompt.things and judge.is_unknown(picture)
    found, left = judge.find_things(picture), []
    for kind, colour in prompt.things:
        match = next((thing for thing in found if thing.kind == kind and colour in ("", thing.colour) and thing not in left), None)
        if match is None:
            return False
        left.append(match)
    if len(found) != len(left) or prompt.relation and judge.relation(*left) != prompt.relation:
        return False
    return not prompt.size or (found[0].size, judge.background(picture)) == (prompt.size, prompt.background)


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
    """Draws every prompt by default settings and prints the categories; returns the pictures."""
    print("Drawing: CFG 5, temperature 1, one picture a prompt")
    pictures = work("draw", lambda job: janus.draw(job[1].words, job[0]), enumerate(prompts))
    right = [agrees(prompt, picture) for prompt, picture in zip(prompts, pictures)]
    for category in (*dict.fromkeys(prompt.category for prompt in prompts), "overall"):
        chosen = [i for i, prompt in enumerate(prompts) if category in (prompt.category, "overall")]
        held = [right[i] for i in chosen if prompts[i].held_out]
        seen = [right[i] for i in chosen if not prompts[i].held_out]
        note = f"seen {100 * mean(seen):5.1f}, held out {100 * mean(held):5.1f}"
        report.row(category, min(mean(seen + held), mean(held)), note, category)
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
    pictures = [world.render(world.random_scene(rng, number % 2 == 1)) for number in range(count)]
    decoded = work("encode", janus.pass_through, pictures)
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(pictures, decoded)]
    ratios = [10 * np.log10(255**2 / max(error, 1e-9)) for error in errors]
    print("Reconstruction: encode, decode")
    report.row("PSNR", float(np.mean(ratios)), f"{count} unseen scenes", "psnr", percent=False)


def make_questions(count: int, held_out: bool, seed: int, spanish: bool) -> list[tuple[np.ndarray, world.Question]]:
    """`count` questions, all sorts in turn, each about a scene of its own."""
    rng, cases = np.random.default_rng(seed), []
    askers = (*world.ASKERS, world.ask_stranger)
    for number in range(count):
        asker = askers[number % len(askers)]
        scene = world.random_scene(rng, held_out)
        while asker is world.ask_relation and not scene.is_pair:
            scene = world.random_scene(rng, held_out)
        language, names_absent = world.SPANISH if spanish else world.ENGLISH, asker in (world.ask_exists, world.ask_relation)
        question = asker(scene, rng, language, held_out) if names_absent else asker(scene, rng, language)
        cases.append((world.render(scene), question))
    return cases


def score_seeing(janus: Janus, count: int, seen_count: int, report: Report, show_wrong: bool) -> None:
    """Exact answers to questions about rendered scenes that show a held-out combination, and about others."""
    print("Seeing: the whole answer right, letter by letter")
    for held_out, spanish, number in ((True, False, count), (False, False, seen_count), (True, True, count)):
        cases = make_questions(number, held_out, 3001 + held_out, spanish)
        answers = work("ask", lambda case: janus.ask(case[0], case[1][1]), cases)
        right = defaultdict(list)
        for (_, (sort, question, wanted)), answer in zip(cases, answers):
            right[sort].append(answer == wanted)
            if show_wrong and answer != wanted:
                print(f"    {question} -> {answer}   ({wanted})")
        name = "Spanish" if spanish else "held out" if held_out else "seen"
        everything = [value for values in right.values() for value in values]
        bar = {"held out": "seeing", "Spanish": "seeing in Spanish", "seen": "seen"}[name]
        report.row(f"{name}, overall", mean(everything), f"{number} questions", bar)
        for sort, values in right.items():
            report.row(f"  {name}, {sort}", mean(values), f"{len(values)} questions")


def score_conversation(janus: Janus, count: int, report: Report, show_wrong: bool) -> None:
    """Exact answers by turn in conversations of six turns, half of them with a second picture, half about held-out scenes."""
    rng, talks = np.random.default_rng(6001), []
    for number in range(count):
        scenes = [world.random_scene(rng, number % 2 == 1) for _ in range(1 + number // 2 % 2)]
        talks.append(world.conversation(scenes, rng, 6))
    told = work("talk", lambda turns: janus.converse([(turn.scene and world.render(turn.scene), turn.question) for turn in turns]), talks)
    right = [[answer == turn.answer for turn, answer in zip(turns, answers)] for turns, answers in zip(talks, told)]
    print("Conversation: the whole answer right, letter by letter")
    for place in range(6):
        report.row(f"turn {place + 1}", mean(row[place] for row in right), f"{count} conversations")
    report.row("turns 2 to 6", mean(value for row in right for value in row[1:]), f"{5 * count} answers", "later turns")
    for turns, answers in zip(talks, told) if show_wrong else ():
        print(*(f"    {turn.question} -> {answer}   ({turn.answer})" for turn, answer in zip(turns, answers) if answer != turn.answer), sep="\n")


def question_about(prompt: Prompt, rng: np.random.Generator) -> tuple[str, str]:
    """A question whose answer follows from the prompt, and that answer."""
    kind, colour = prompt.things[0]
    some = world.ENGLISH.some(len(prompt.things), kind)
    if prompt.category == "single object":
        return "What is this?", f"It is {some}."
    if prompt.category == "counting":
        return f"How many {kind}s are in this photo?", f"There are {some}."
    if prompt.relation:
        other = prompt.things[1][0]
        return f"Where is the {kind}?", f"The {kind} is {world.ENGLISH.relations[prompt.relation][0]} the {other}."
    if colour:
        kind, colour = prompt.things[rng.integers(len(prompt.things))]
        return f"What colour is the {kind}?", f"The {kind} is {colour}."
    some = world.ENGLISH.some(1, kind)
    return f"Is there {some} in the picture?", f"Yes, there is {some}."


def score_both(janus: Janus, prompts: list[Prompt], pictures: list[np.ndarray], count: int, report: Report) -> None:
    """Draws held-out prompts, asks about the pictures, compares the answers with the prompts."""
    rng = np.random.default_rng(4001)
    held_out = [i for i, prompt in enumerate(prompts) if prompt.held_out and prompt.category in SAID]
    chosen = [held_out[i] for i in np.linspace(0, len(held_out) - 1, count).astype(int)]
    asked = [(i, *question_about(prompts[i], rng)) for i in chosen]
    answers = work("both", lambda job: janus.ask(pictures[job[0]], job[1]), asked)
    print("Both at once: draw a held-out prompt, ask about the picture")
    share = mean(answer == wanted for answer, (_, _, wanted) in zip(answers, asked))
    report.row("answer agrees with prompt", share, f"{count} prompts", "both")


# --- The contact sheet -----------------------------------------------------------------------------------------------

SAMPLES = (
    "a photo of a red star", "A GREEN TREE", "una casa azul", "a yellow car", "three pink hearts", "5 orange circles",
    "two purple triangles", "a small brown square", "a red car to the left of a green tree", "dos corazones rojos",
    "a yellow star above a blue house", "a red heart and a blue heart", "a big light blue star on black", "Four Red Cars",
    "un coche verde debajo de una estrella roja", "a tree on a mint background", "a green square under a pink circle", "mona lisa",
)


def draw_samples(janus: Janus, path: Path, columns: int = 6, side: int = 160) -> None:
    """Draws SAMPLES with seeds 1 to 18 and writes them, enlarged, with their prompts, as one picture."""
    pictures = work("draw", lambda job: janus.draw(job[1], job[0]), enumerate(SAMPLES, 1))
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
    parser.add_argument("--each", type=int, default=200, help="prompts a category")
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
    prompts = make_prompts(60 if quick else options.each, 1001)
    pictures = score_drawing(janus, prompts, report)
    if not quick:
        score_guidance(janus, prompts[::10], report)
    score_reconstruction(janus, 200, report)
    score_seeing(janus, 96 if quick else 5 * options.each, 40 if quick else 2 * options.each, report, options.wrong)
    score_both(janus, prompts, pictures, 24 if quick else 120, report)
    score_conversation(janus, 20 if quick else options.each, report, options.wrong)
    if not quick:
        print("Judge")
        for sort, share in judge.accuracy().items():
            report.row(f"right on rendered scenes, {sort}", share)
    verdict = "under the bar: " + ", ".join(report.missed) if report.missed else "all bars reached"
    print(f"{time.time() - start:.0f} s; {verdict}")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
