# SPDX-License-Identifier: MIT
"""The world of the small model: scenes, their pictures, captions and questions, and what is held out of training.

A scene is one to five things of one kind and colour, or two different things, on a plain background: `random_scene`. A medley is
three to five things of any kinds, only to be counted, not to be drawn: `random_medley`. `render` paints both (64 x 64, anti-aliased),
`caption`, `questions` and `conversation` put them into words, English or Spanish. What is outside the world, `unknown_caption`, is
drawn as one picture, that of the scene `UNKNOWN`. `is_held_out` says which combinations of words and pictures the training never
meets; everything else in this folder asks it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64  # width and height of a picture in pixels
OVERSAMPLE = 4  # pictures are painted this many times larger, then averaged

KINDS = ("circle", "square", "triangle", "star", "heart", "tree", "house", "car")
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (245, 215, 40),
    "green": (45, 160, 70),
    "blue": (45, 90, 215),
    "purple": (135, 60, 175),
    "pink": (245, 130, 185),
    "brown": (125, 75, 40),
    "black": (24, 24, 28),
    "white": (248, 248, 248),
    "light green": (140, 225, 140),
    "dark green": (10, 80, 40),
    "light blue": (135, 190, 250),
    "dark blue": (20, 35, 115),
    "light purple": (195, 145, 235),
    "dark purple": (75, 15, 105),
}
BASIC = 8  # the colours before black; a random thing has one of them three times of four
CLASHES = {"black": ("black",), "white": ("white", "cream", "lavender")}  # the backgrounds that these colours are never on
BACKGROUNDS = {
    "white": (248, 248, 248),
    "grey": (178, 178, 182),
    "black": (24, 24, 28),
    "cream": (245, 232, 200),
    "mint": (200, 235, 210),
    "lavender": (218, 208, 240),
}
# What a caption leaves open is one of these (behind white things, black). No combination with them is held out: were "a house" to
# come in every colour but brown, learning which one is missing would teach that a brown house cannot be.
PLAIN_COLOURS, PLAIN_BACKGROUNDS = ("red", "blue"), ("white", "cream")
SIZES = {"small": (13, 18), "big": (46, 52), "": (24, 40)}  # of a single thing, in pixels; the word is '' in between
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

ROOF, TRUNK, TYRE, GLASS = (75, 80, 95), (110, 75, 45), (60, 60, 68), (225, 235, 240)


@dataclass(frozen=True)
class Thing:
    """One thing: what it is, and where and how it is painted (pixels, radians, RGB)."""

    kind: str
    colour: str
    x: float
    y: float
    size: float
    aspect: float
    turn: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Things on a background: all of one kind and colour, or two different ones, left or top first, or a medley."""

    things: tuple[Thing, ...]
    background: str
    rgb: tuple[int, int, int]

    @property
    def is_pair(self) -> bool:
        """True for two things of two kinds or colours."""
        return len(self.things) == 2 and len({(thing.kind, thing.colour) for thing in self.things}) == 2

    @property
    def is_twin(self) -> bool:
        """True for two things of one kind and two colours."""
        return self.is_pair and self.things[0].kind == self.things[1].kind

    @property
    def size(self) -> str:
        """'small' or 'big' if this is a single thing that is."""
        side = self.things[0].size if len(self.things) == 1 else SIZES[""][0]
        return next(name for name, (low, high) in SIZES.items() if low <= side <= high)

    @property
    def is_medley(self) -> bool:
        """True for more than two things that are not all of one kind."""
        return len(self.things) > 2 and len({thing.kind for thing in self.things}) > 1

    @property
    def relation(self) -> str:
        """How the first of two things stands to the second: 'left' or 'above'."""
        first, second = self.things
        return "left" if abs(first.x - second.x) > abs(first.y - second.y) else "above"


# --- What training never meets ---------------------------------------------------------------------------------------


UNPLAIN = [name for name in COLOURS if name not in PLAIN_COLOURS]
PAIRS = [(low, high) for low in range(8) for high in range(low + 1, 8)]
HELD_OUT = {
    # 32 of 128 (colour, kind), two or three of each colour that is not plain.
    "colour": {(name, KINDS[k]) for c, name in enumerate(UNPLAIN) for k in range(8) if (c + k + 3) % 7 in (0, 2)},
    # 8 of 40 (count, kind), one of each kind: three or four of it, but of hearts five. Not two: of a kind never seen twice, two things
    # would always be a pair of kinds, and no medley says otherwise.
    "count": {(3 + k % 2 if kind != "heart" else 5, kind) for k, kind in enumerate(KINDS)},
    # 24 of 112 (kind, relation, kind), 'left' and 'above' only: one of the four arrangements of a pair. Four pairs of kinds miss none.
    "triple": {(KINDS[pair[sum(pair) % 2 == 0]], ("left", "above")[sum(pair) // 2 % 2], KINDS[pair[sum(pair) % 2]])
               for pair in PAIRS if pair[1] - pair[0] != 4},
    # 8 of 48 (background, kind), one of each kind. Not on black: nothing else is dark, so that of a kind never seen on black no edge
    # is known.
    "background": {(("grey", "mint", "lavender")[k % 3], kind) for k, kind in enumerate(KINDS)},
    # 44 of 224 (kind, colour, colour) of two things of one kind with basic colours, in either order.
    "twin": {(kind, *(list(COLOURS)[c] for c in order)) for k, kind in enumerate(KINDS) for pair in PAIRS if (sum(pair) + k) % 5 == 0
             for order in (pair, pair[::-1])},
    "size": {("small", "square"), ("small", "tree"), ("big", "star"), ("big", "car")},
}


def combinations(scene: Scene) -> set[tuple[str, tuple]]:
    """Every (sort, combination) that a scene shows, in the form that HELD_OUT lists them."""
    found = {("colour", (thing.colour, thing.kind)) for thing in scene.things}
    found |= {("background", (scene.background, thing.kind)) for thing in scene.things}
    found |= {("count", (count, kind)) for kind, count in Counter(thing.kind for thing in scene.things).items()}
    if scene.size:
        found.add(("size", (scene.size, scene.things[0].kind)))
    if scene.is_twin:
        found.add(("twin", (scene.things[0].kind, *(thing.colour for thing in scene.things))))
    elif scene.is_pair:
        found.add(("triple", (scene.things[0].kind, scene.relation, scene.things[1].kind)))
    return found


def is_held_out(scene: Scene, sorts: tuple[str, ...] = tuple(HELD_OUT)) -> bool:
    """True if the scene shows a combination, of one of these sorts, that never occurs in training."""
    return any(sort in sorts and combination in HELD_OUT[sort] for sort, combination in combinations(scene))


# --- Scenes ----------------------------------------------------------------------------------------------------------


def jitter(rgb: tuple[int, int, int], amount: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour a little lighter or darker, and each channel a little off."""
    shaded = np.array(rgb) * (1 + amount * rng.uniform(-1, 1)) + rng.uniform(-3, 3, 3)
    red, green, blue = np.clip(np.round(shaded), 0, 255).astype(int).tolist()
    return red, green, blue


def make_thing(kind: str, colour: str, x: float, y: float, size: float, rng: np.random.Generator) -> Thing:
    """A thing with its own small noise of shape and shade."""
    turn = rng.uniform(-0.12, 0.12)
    return Thing(kind, colour, x, y, size, rng.uniform(0.93, 1.07), turn, jitter(COLOURS[colour], 0.05, rng))


def place(count: int, is_pair: bool, size_word: str, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centres and sizes (x, y, size) of `count` things that keep apart; of a pair, left or top comes first."""
    if count == 1:
        size = rng.uniform(*SIZES[size_word])
        low = size * 0.56 + 2
        return [(rng.uniform(low, SIZE - low), rng.uniform(low, SIZE - low), size)]
    if count == 2:
        size = rng.uniform(20, 25)
        across = rng.uniform(22, 42) + rng.uniform(-4, 4, 2)
        along = np.array([17.0, 47.0]) + rng.uniform(-1, 1, 2) * (28 - size * 1.08) / 2
        diagonal = not is_pair and rng.random() < 0.3
        if diagonal:
            across = np.array([17.0, 47.0]) if rng.random() < 0.5 else np.array([47.0, 17.0])
        upright = rng.random() < 0.5
        return [(a, b, size) if not upright else (b, a, size) for a, b in zip(along, across)]
    if count == 5:
        size = rng.uniform(13, 15)
        quincunx, rows = [(15, 15), (49, 15), (32, 32), (15, 49), (49, 49)], [(11, 21), (32, 21), (53, 21), (21.5, 43), (42.5, 43)]
        spots = np.array(quincunx if rng.random() < 0.5 else rows)
        if rng.random() < 0.5:
            spots = SIZE - spots
        if rng.random() < 0.5:
            spots = spots[:, ::-1]
        reach = (18.5 - size * 1.12) / 2
        return [(*(spot + rng.uniform(-reach, reach, 2)).tolist(), size) for spot in spots]
    size = rng.uniform(14, 22)
    corners = [(17.0, 17.0), (47.0, 17.0), (17.0, 47.0), (47.0, 47.0)]
    if count == 3:
        pyramid = [[(32.0, 17.0), corners[2], corners[3]], [corners[0], corners[1], (32.0, 47.0)]]
        quadrants = [corners[:i] + corners[i + 1 :] for i in range(4)]
        layouts = pyramid + quadrants
        corners = layouts[rng.integers(len(layouts))]
    reach = (27 - size * 1.08) / 2
    return [(x + rng.uniform(-reach, reach), y + rng.uniform(-reach, reach), size) for x, y in corners]


def make_scene(specs: list[tuple[str, str]], background: str, rng: np.random.Generator, size_word: str = "") -> Scene:
    """A scene of the given (kind, colour) things in random places."""
    spots = place(len(specs), len(specs) == 2 and specs[0] != specs[1], size_word, rng)
    things = tuple(make_thing(kind, colour, *spot, rng) for (kind, colour), spot in zip(specs, spots))
    return Scene(things, background, jitter(BACKGROUNDS[background], 0.02, rng))


def pick(rng: np.random.Generator, *choices: str) -> str:
    """One of the choices."""
    return choices[int(rng.random() * len(choices))]


def random_colour(rng: np.random.Generator) -> str:
    """Any colour, mostly one of the basic ones."""
    return pick(rng, *list(COLOURS)[:BASIC] if rng.random() < 0.75 else list(COLOURS)[BASIC:])


def plain_backgrounds(colours: set[str]) -> list[str]:
    """The backgrounds of things of these colours that a caption may leave open."""
    papers = ("black",) if "white" in colours else PLAIN_BACKGROUNDS
    return [paper for paper in papers if not any(paper in CLASHES.get(colour, ()) for colour in colours)]


def random_scene(rng: np.random.Generator, held_out: bool = False, sorts: tuple[str, ...] = tuple(HELD_OUT),
                 plain: float = 0.0) -> Scene:
    """A random scene that training may meet, or one that shows a held-out combination of these sorts.

    `plain`: the share of scenes whose colours are all plain, and of those whose background is. Half of the scenes are pairs, three
    tenths of these of one kind.
    """
    all_plain = rng.random() < plain
    while True:
        colours = [pick(rng, *PLAIN_COLOURS) if all_plain else random_colour(rng) for _ in range(2)]
        papers = rng.random() < plain and plain_backgrounds(set(colours)) or list(BACKGROUNDS)
        background, kinds, size_word = pick(rng, *papers), rng.permutation(KINDS)[:2].tolist(), ""
        if rng.random() < 0.5:
            if rng.random() < 0.3 and colours[0] != colours[1]:
                kinds[1] = kinds[0]
            specs = list(zip(kinds, colours))
        else:
            count = int(rng.choice([1, 2, 3, 4, 5], p=[0.4, 0.12, 0.15, 0.15, 0.18]))
            specs = [(kinds[0], colours[0])] * count
            size_word = pick(rng, "", "", "small", "big") if count == 1 else ""
        if any(background in CLASHES.get(colour, ()) for _, colour in specs):
            continue
        scene = make_scene(specs, background, rng, size_word)
        if is_held_out(scene, sorts) == held_out:
            return scene


def random_medley(rng: np.random.Generator) -> Scene:
    """Three to five things, each of any kind and colour but not all of one kind; nothing held out.

    Seeing needs them. Were all things in a picture always of one kind, then "three" would go with some kinds and never with
    others, and a network tells the number by the kind as much as by the things.
    """
    while True:
        specs = [(pick(rng, *KINDS), random_colour(rng)) for _ in range(rng.integers(3, 6))]
        background = pick(rng, *BACKGROUNDS)
        scene = make_scene(specs, background, rng)
        clashes = any(background in CLASHES.get(colour, ()) for _, colour in specs)
        if scene.is_medley and not clashes and not is_held_out(scene):
            return scene


# --- Pictures --------------------------------------------------------------------------------------------------------

Part = tuple[np.ndarray, tuple[int, int, int]]  # corners [n, 2] in units of half the thing's size, colour


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """Corners [40, 2] of an ellipse."""
    angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Corners [4, 2] of an upright rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def star() -> np.ndarray:
    """Corners [10, 2] of a star with five points."""
    angle = np.arange(10) * math.pi / 5 - math.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.08, 0.48)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle) + 0.07], 1)


def heart() -> np.ndarray:
    """Corners [60, 2] of a heart."""
    t = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 15.5
    return np.stack([x, y - 0.08], 1)


def parts(kind: str, rgb: tuple[int, int, int]) -> list[Part]:
    """The coloured polygons of a thing, back to front; most of its area, and all that is not furniture, is `rgb`."""
    if kind == "circle":
        return [(ellipse(0, 0, 0.95, 0.95), rgb)]
    if kind == "square":
        return [(box(-0.86, -0.86, 0.86, 0.86), rgb)]
    if kind == "triangle":
        return [(np.array([(0, -0.95), (1, 0.8), (-1, 0.8)]), rgb)]
    if kind == "star":
        return [(star(), rgb)]
    if kind == "heart":
        return [(heart(), rgb)]
    if kind == "tree":
        return [(box(-0.17, 0.1, 0.17, 1), TRUNK), (ellipse(0, -0.3, 0.8, 0.72), rgb)]
    if kind == "house":
        roof = np.array([(0, -1), (1, -0.12), (-1, -0.12)])
        return [(box(-0.78, -0.15, 0.78, 0.95), rgb), (roof, ROOF), (box(-0.25, 0.15, 0.25, 0.6), GLASS)]
    cabin = np.array([(-0.62, 0.05), (-0.4, -0.55), (0.36, -0.55), (0.66, 0.05)])
    window = np.array([(-0.38, -0.05), (-0.27, -0.36), (0.25, -0.36), (0.4, -0.05)])
    wheels = [(ellipse(x, 0.5, 0.26, 0.26), TYRE) for x in (-0.52, 0.52)]
    return [(box(-1.05, -0.02, 1.05, 0.5), rgb), (cabin, rgb), (window, GLASS), *wheels]


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8 [64, 64, 3]."""
    if not scene.things:
        return QUESTION_MARK
    canvas = Image.new("RGB", (SIZE * OVERSAMPLE, SIZE * OVERSAMPLE), scene.rgb)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        cos, sin = math.cos(thing.turn), math.sin(thing.turn)
        half = np.array([thing.size * thing.aspect, thing.size / thing.aspect]) / 2
        for corners, rgb in parts(thing.kind, thing.rgb):
            turned = (corners * half) @ np.array([(cos, sin), (-sin, cos)])
            pixels = (turned + (thing.x, thing.y)) * OVERSAMPLE
            pen.polygon([tuple(corner) for corner in pixels.tolist()], fill=rgb)
    return np.asarray(canvas.reduce(OVERSAMPLE))


def question_mark() -> np.ndarray:
    """uint8 [64, 64, 3]: a grey question mark on white."""
    canvas = Image.new("RGB", (SIZE * OVERSAMPLE, SIZE * OVERSAMPLE), BACKGROUNDS["white"])
    pen = ImageDraw.Draw(canvas)
    pen.arc([4 * value for value in (19, 8, 45, 34)], 170, 90, (130, 130, 135), 28)
    pen.rectangle([4 * value for value in (28.5, 27, 35.5, 43)], (130, 130, 135))
    pen.ellipse([4 * value for value in (28, 47, 36, 55)], (130, 130, 135))
    return np.asarray(canvas.reduce(OVERSAMPLE))


QUESTION_MARK, UNKNOWN = question_mark(), Scene((), "white", BACKGROUNDS["white"])  # what a prompt outside the world is drawn as


# --- Words -----------------------------------------------------------------------------------------------------------


def sentence(words: str, stop: str = ".") -> str:
    """A capital at the start and a full stop at the end; Spanish 'de el' is one word."""
    words, start = words.replace(" de el ", " del "), words[0] == "¿"
    return words[:start] + words[start].upper() + words[start + 1:] + stop


@dataclass(frozen=True)
class Language:
    """Nouns (one, many, gender), adjectives, and the forms of questions and answers, whose gaps are filled by name."""

    nouns: dict[str, tuple[str, str, str]]
    adjectives: dict[str, str]  # of colours, backgrounds and sizes, behind the noun; none in English: in front, and as they are
    numbers: tuple[str, ...]
    relations: dict[str, tuple[str, ...]]  # the first is that of answers
    both: str
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    asked: dict[str, tuple[str, ...]]
    said: dict[str, str]
    strangers: dict[str, str]  # one: many
    odd: tuple[tuple[str, str], ...]  # what is asked about a picture and cannot be answered
    chat: tuple[tuple[str, str], ...]  # with or without a picture
    blind: tuple[tuple[str, str], ...]  # without one

    def adjective(self, name: str, many: bool = False, gender: str = "o") -> str:
        """A colour, background or size as it goes with a noun."""
        word = self.adjectives.get(name, name)
        if not self.adjectives or " " in word:
            return word
        if word[-1] == "o":
            word = word[:-1] + gender
        if not many:
            return word
        return word + "s" if word[-1] in "aeo" else word.replace("ó", "o") + "es"

    def bare(self, kind: str, many: bool = False, *adjectives: str) -> str:
        """'small red star', 'estrellas rojas'."""
        noun, gender = self.nouns[kind][many], self.nouns[kind][2]
        words = [self.adjective(name, many, gender) for name in adjectives if name]
        return " ".join([noun, *words[::-1]] if self.adjectives else [*words, noun])

    def number(self, count: int, kind: str) -> str:
        """'one', 'three', 'una', 'tres'."""
        return "una" if count == 1 and self.nouns[kind][2] == "a" else self.numbers[count]

    def some(self, count: int, kind: str, *adjectives: str) -> str:
        """'a red star', 'three red stars', 'no red stars'."""
        words = self.bare(kind, count != 1, *adjectives)
        number = self.number(count, kind)
        return ("an " if words[0] in "aeiou" else "a ") + words if number == "one" else f"{number} {words}"

    def the(self, kind: str, colour: str = "", many: bool = False) -> str:
        """'the red star', 'las estrellas'."""
        article = ("las" if self.nouns[kind][2] == "a" else "los") if many else ("la" if self.nouns[kind][2] == "a" else "el")
        return f"{article if self.adjectives else 'the'} {self.bare(kind, many, colour)}"

    def ask(self, name: str, rng: np.random.Generator, **words: str) -> str:
        """A question in one of its forms."""
        return sentence(pick(rng, *self.asked[name]).format(**words), "")

    def say(self, name: str, **words: str) -> str:
        """An answer."""
        return sentence(self.said[name].format(**words))


MODESTY = "I only know simple shapes, trees, houses and cars."
INVITATION = "Show me a picture, or ask me to draw one."
ENGLISH = Language(
    {kind: (kind, kind + "s", "") for kind in (*KINDS, "thing")}, {}, ("no", "one", "two", "three", "four", "five"),
    {"left": ("to the left of", "left of", "on the left of"), "right": ("to the right of", "right of", "on the right of"),
     "above": ("above", "over"), "below": ("below", "under")}, "{} and {}",
    ("", "", "a photo of ", "a photo of ", "a picture of ", "an image of ", "a drawing of ", "draw "),
    (" on a {} background", " against a {} background", " on {}"),
    {"describe": ("describe the picture.", "describe this image.", "what does the picture show?", "describe it."),
     "what": ("what is this?", "what is it?", "what is in the picture?", "what do you see?", "what is in this photo?",
              "what can you see in this image?"),
     "paper": ("what colour is the background?", "which color is the background?", "what color is the background?"),
     "colour": ("what colour is {the}?", "which colour is {the}?", "what color is {the}?", "which color is {the}?"),
     "colours": ("what colour are {the}?", "which colour are {the}?", "what color are {the}?", "which color are {the}?"),
     "count": ("how many {many} are there?", "how many {many} are in this photo?", "how many {many} are in the picture?",
               "how many {many} do you see?", "how many {many} are in this image?"),
     "exists": ("is there {some}?", "is there {some} in the picture?", "is there {some} in this photo?", "is there {some} here?"),
     "beside": ("what is {relation} {other}?",), "where": ("where is {one}?",), "stands": ("is {one} {relation} {other}?",),
     "stranger": ("is there a {one} in the picture?", "what colour is the {one}?", "where is the {one}?"),
     "strangers": ("how many {many} are in this photo?",)},
    {"describe": "{core} on a {paper} background", "this": "it is {some}", "is": "there is {some}", "are": "there are {some}",
     "paper": "the background is {paper}", "colour": "{the} is {colour}", "colours": "{the} are {colour}",
     "yes": "yes, there is {some}", "yes, many": "yes, there are {some}", "no": "no, there is no {bare}",
     "beside": "{some} is {relation} {other}", "where": "{one} is {relation} {other}", "stands": "yes, {one} is {relation} {other}",
     "stands not": "no, {one} is {relation} {other}", "stranger": "I see no {one}. " + MODESTY[:-1],
     "unknown": "it is a question mark. " + MODESTY[:-1]},
    {name: {"person": "people", "fish": "fish"}.get(name, name + "s")
     for name in ("dog", "cat", "bird", "fish", "horse", "person", "ship", "plane", "flower", "book", "chair", "cup")},
    tuple((question, f"{answer} {MODESTY}") for question, answer in (
        ("Who is this?", "I cannot tell."), ("Where was this photo taken?", "I cannot tell."), ("What is written here?", "I cannot read."),
        ("What is the meaning of this picture?", "I cannot tell."), ("Is this a good picture?", "I cannot tell."),
        ("What time is it?", "I cannot tell."), ("Explain this meme.", "I cannot explain it."), ("How old is it?", "I cannot tell."),
        ("Convert the formula into latex code.", "I cannot do that."), ("Write a story about this picture.", "I cannot do that."))),
    tuple((question, answer) for questions, answer in (
        ("Hello!|Hi|Hello|Hi!|Good morning|Hey", "Hello! " + INVITATION),
        ("Who are you?|What are you?|What is your name?", "I am a small Janus. " + MODESTY),
        ("What can you do?|Can you help me?|Help", "I draw and I see simple pictures. " + MODESTY),
        ("What do you know?", MODESTY),
        ("Which colours do you know?", "I know red, orange, yellow, green, blue, purple, pink, brown, black and white."),
        ("What shapes do you know?", "I know circles, squares, triangles, stars and hearts."),
        ("How far can you count?", "I count to five."),
        ("Thank you|Thanks!|Thanks|Thank you!|Very good", "You are welcome."),
        ("Goodbye|Bye|Goodbye!|See you", "Goodbye!"),
        ("What is the capital of France?|What is two plus two?|Who is the president?|What is the weather like?|What is love?|"
         "Why is the sky blue?|How tall is a giraffe?", "I do not know. " + MODESTY),
        ("Tell me a story.|Tell me a joke.|Write a poem.|Write a program in C.|Sing a song.", "I cannot do that. " + MODESTY),
        ("How are you?", "I am well. " + INVITATION),
        ("How many sides does a triangle have?", "A triangle has three sides."),
        ("How many sides does a square have?", "A square has four sides."),
        ("What is a star?", "A star is a shape with five points."),
        ("Draw a red star.|Draw a house|Can you draw a tree?|Paint a blue car|Draw me a heart.|Please draw two circles|Make a picture of a cat",
         "Use /draw, as in: /draw a red star")) for question in questions.split("|")),
    (("How many trees are in this photo?", "I see no photo. " + INVITATION), ("What is in the picture?", "I see no picture. " + INVITATION),
     ("Describe the picture.", "I see no picture. " + INVITATION), ("What is this?", "I see no picture. " + INVITATION)))

SPANISH_MODESTY = "Solo conozco formas sencillas, árboles, casas y coches."
SPANISH_INVITATION = "Enséñame una imagen, o pídeme que dibuje una."
SPANISH = Language(
    {"circle": ("círculo", "círculos", "o"), "square": ("cuadrado", "cuadrados", "o"), "triangle": ("triángulo", "triángulos", "o"),
     "star": ("estrella", "estrellas", "a"), "heart": ("corazón", "corazones", "o"), "tree": ("árbol", "árboles", "o"),
     "house": ("casa", "casas", "a"), "car": ("coche", "coches", "o"), "thing": ("cosa", "cosas", "a")},
    {"red": "rojo", "orange": "naranja", "yellow": "amarillo", "green": "verde", "blue": "azul", "purple": "morado", "pink": "rosa",
     "brown": "marrón", "black": "negro", "white": "blanco", "light green": "verde claro", "dark green": "verde oscuro",
     "light blue": "azul claro", "dark blue": "azul oscuro", "light purple": "morado claro", "dark purple": "morado oscuro",
     "grey": "gris", "cream": "crema", "mint": "menta", "lavender": "lavanda", "small": "pequeño", "big": "grande"},
    ("no", "un", "dos", "tres", "cuatro", "cinco"),
    {"left": ("a la izquierda de",), "right": ("a la derecha de",), "above": ("encima de", "arriba de"), "below": ("debajo de", "abajo de")},
    "{} y {}", ("", "", "una foto de ", "una imagen de ", "un dibujo de ", "dibuja "),
    (" sobre un fondo {}", " con fondo {}", " en un fondo {}"),
    {"describe": ("describe la imagen.", "describe esta foto.", "¿qué muestra la imagen?"),
     "what": ("¿qué es esto?", "¿qué es?", "¿qué hay en la imagen?", "¿qué ves?", "¿qué hay en esta foto?"),
     "paper": ("¿de qué color es el fondo?",), "colour": ("¿de qué color es {the}?",), "colours": ("¿de qué color son {the}?",),
     "count": ("¿cuánt{gender}s {many} hay en esta foto?", "¿cuánt{gender}s {many} hay en la imagen?", "¿cuánt{gender}s {many} hay?"),
     "exists": ("¿hay {some}?", "¿hay {some} en la imagen?", "¿hay {some} en esta foto?", "¿hay {some} aquí?"),
     "beside": ("¿qué hay {relation} {other}?",), "where": ("¿dónde está {one}?",), "stands": ("¿está {one} {relation} {other}?",),
     "stranger": ("¿hay un {one} en la imagen?", "¿de qué color es el {one}?", "¿dónde está el {one}?"),
     "strangers": ("¿cuántos {many} hay en esta foto?",)},
    {"describe": "{core} sobre un fondo {paper}", "this": "es {some}", "is": "hay {some}", "are": "hay {some}", "paper": "el fondo es {paper}",
     "colour": "{the} es {colour}", "colours": "{the} son {colour}", "yes": "sí, hay {some}", "yes, many": "sí, hay {some}", "no": "no, no hay {bare}",
     "beside": "{some} está {relation} {other}", "where": "{one} está {relation} {other}", "stands": "sí, {one} está {relation} {other}",
     "stands not": "no, {one} está {relation} {other}", "stranger": "no veo {one}. " + SPANISH_MODESTY[:-1],
     "unknown": "es un signo de interrogación. " + SPANISH_MODESTY[:-1]},
    {"perro": "perros", "gato": "gatos", "pájaro": "pájaros", "caballo": "caballos", "barco": "barcos", "avión": "aviones", "libro": "libros"},
    tuple((question, f"{answer} {SPANISH_MODESTY}") for question, answer in (
        ("¿Quién es?", "No lo sé."), ("¿Dónde se tomó esta foto?", "No lo sé."), ("¿Qué está escrito aquí?", "No sé leer."),
        ("¿Qué hora es?", "No lo sé."), ("Escribe un cuento.", "No puedo hacerlo."))),
    tuple((question, answer) for questions, answer in (
        ("¡Hola!|Hola|Buenos días|Hola!", "¡Hola! " + SPANISH_INVITATION),
        ("¿Quién eres?|¿Cómo te llamas?", "Soy un pequeño Janus. " + SPANISH_MODESTY),
        ("¿Qué sabes hacer?|Ayuda", "Dibujo y veo imágenes sencillas. " + SPANISH_MODESTY),
        ("Gracias|¡Gracias!|Muchas gracias", "De nada."), ("Adiós|¡Adiós!|Hasta luego", "¡Adiós!"),
        ("¿Cómo estás?", "Estoy bien. " + SPANISH_INVITATION),
        ("¿Cuál es la capital de Francia?|¿Cuánto es dos más dos?|¿Qué tiempo hace?", "No lo sé. " + SPANISH_MODESTY),
        ("Escribe un poema.|Cuéntame un chiste.", "No puedo hacerlo. " + SPANISH_MODESTY),
        ("Dibuja una estrella roja|Dibuja una casa.|¿Puedes dibujar un árbol?|Pinta un coche azul",
         "Usa /draw, por ejemplo: /draw una estrella roja")) for question in questions.split("|")),
    (("¿Qué hay en la imagen?", "No veo ninguna imagen. " + SPANISH_INVITATION), ("Describe la imagen.", "No veo ninguna imagen. " + SPANISH_INVITATION),
     ("¿Cuántas casas hay?", "No veo ninguna imagen. " + SPANISH_INVITATION)))
SPANISH_SHARE = 1 / 3


# --- Captions --------------------------------------------------------------------------------------------------------


def misspelt(words: list[str], rng: np.random.Generator) -> list[str]:
    """One word of five letters or more with a letter left out or doubled, or two exchanged; never another word of this world."""
    long = [place for place, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return words
    place = long[rng.integers(len(long))]
    word, at = words[place], int(rng.integers(1, len(words[place]) - 1))
    wrong = pick(rng, word[:at] + word[at + 1:], word[:at] + word[at] + word[at:], word[:at] + word[at + 1] + word[at] + word[at + 2:])
    return words if wrong == "tree" else [*words[:place], wrong, *words[place + 1:]]


def dress(core: str, background: str, language: Language, rng: np.random.Generator, wild: float = 0.3) -> str:
    """A core phrase with an opening, maybe the background, maybe capitals and a full stop; a share of them `wild`: in capitals, each
    word with one, without accents, or misspelt."""
    closing = pick(rng, *language.closings).format(language.adjective(background)) if background else ""
    words = (pick(rng, *language.openings) + core + closing).replace(" de el ", " del ")
    if rng.random() < wild:
        form = rng.integers(5)
        if form == 4 or form == 3 and not language.adjectives:
            words = " ".join(misspelt(words.split(), rng))
        elif form == 3:
            words = words.translate(str.maketrans("áéíóúñ", "aeioun"))
        elif form == 2:
            words = " ".join(word.upper() if rng.random() < 0.3 else word for word in words.split())
        else:
            words = words.upper() if form else words.title()
    elif rng.random() < 0.3:
        words = words[0].upper() + words[1:]
    return words + ("." if rng.random() < 0.2 else "")


def count_phrase(count: int, kind: str, adjectives: tuple[str, ...], language: Language, rng: np.random.Generator,
                 wild: bool = True) -> str:
    """'three red stars' or '3 red stars'; one thing may be 'a star', 'one star' or, if `wild`, 'star'."""
    chance, bare = rng.random(), language.bare(kind, count != 1, *adjectives)
    if count > 1:
        return language.some(count, kind, *adjectives) if chance < 0.75 else f"{count} {bare}"
    if chance < 0.75:
        return language.some(1, kind, *adjectives)
    return bare if wild and chance < 0.9 else f"{language.number(1, kind)} {bare}"


class Caption(NamedTuple):
    """What one might ask for to get a scene, and how it says it."""

    words: str
    reverse: bool  # the second thing of a pair is named first
    relation: str  # of the one named first to the other, or ''


def caption(scene: Scene, rng: np.random.Generator, language: Language | None = None) -> Caption:
    """The relation and what is plain are said or left open, all else is said. Where no relation is said, the first named is left or top."""
    if not scene.things:
        return Caption(unknown_caption(rng), False, "")
    language = language or (SPANISH if rng.random() < SPANISH_SHARE else ENGLISH)
    first, colours = scene.things[0], {thing.colour for thing in scene.things}
    open_background = scene.background in plain_backgrounds(colours) and rng.random() < 0.75
    open_colours = colours <= set(PLAIN_COLOURS) and not scene.is_twin and rng.random() < 0.75
    background = "" if open_background else scene.background
    if not scene.is_pair:
        adjectives = scene.size, "" if open_colours else first.colour
        core = count_phrase(len(scene.things), first.kind, adjectives, language, rng)
        return Caption(dress(core, background, language, rng), False, "")
    one, other = (count_phrase(1, thing.kind, ("" if open_colours else thing.colour,), language, rng) for thing in scene.things)
    relation = scene.relation if rng.random() < 0.6 else ""
    reverse = bool(relation) and rng.random() < 0.5
    if reverse:
        one, other, relation = other, one, OPPOSITE.get(relation, "")
    core = f"{one} {pick(rng, *language.relations[relation])} {other}" if relation else language.both.format(one, other)
    return Caption(dress(core, background, language, rng), reverse, relation)


OUTSIDE = """cat dog bird fish horse person man woman boat plane flower book chair cup cow sheep lion tiger elephant mouse rabbit snake
spider bee frog duck pig bear wolf fox monkey table lamp phone computer clock window door bed shoe hat shirt dress ring bread cheese apple
banana cherry pizza cake coffee tea water milk egg mountain river lake sea beach forest cloud rain snow moon planet rocket robot train bus
bicycle truck bridge road street city castle church school garden king queen dragon angel baby doctor dancer football guitar piano violin
camera pencil knife spoon bottle glass mirror candle key coin flag map letter box bag wheel hammer gato perro pájaro pez caballo mujer hombre
barco avión flor libro silla mesa vaca león ratón conejo serpiente rana pato cerdo oso pan queso manzana leche huevo montaña río lago playa
bosque nube lluvia luna tren puente calle ciudad castillo reina niño guitarra botella llave bandera caja rueda martillo""".split()
FREE = """hello|hi there|hola|good morning|how are you|what is this|who are you|thank you|mona lisa|the starry night|new york|paris in spring
a beautiful sunset|the end of the world|my friend peter|abstract art|nothing|love|happiness|time|asdf|qwerty|test|lorem ipsum dolor|help me
i am hungry|tell me a story|buenos días|te quiero|una noche de verano|a city at night|people dancing in the rain|an old man with a beard
portrait of a lady|cyberpunk samurai|a bowl of fruit|two lovers|help|yes|no|ok""".replace("\n", "|").split("|")


def unknown_caption(rng: np.random.Generator, nouns: list[str] = OUTSIDE) -> str:
    """A prompt that asks for something outside the world, alone or beside something known."""
    language = SPANISH if rng.random() < SPANISH_SHARE else ENGLISH
    if (chance := rng.random()) < 0.15 and nouns is OUTSIDE:
        return dress(pick(rng, *FREE), "", language, rng)
    noun = pick(rng, *nouns)
    if chance < 0.4 and nouns is OUTSIDE:
        noun = "".join(pick(rng, *"bcdfghjklmnprstvwz") + pick(rng, *"aeiou") + pick(rng, *"lnrst", "", "") for _ in range(rng.integers(1, 4)))
    adjective = language.adjective(random_colour(rng)) if rng.random() < 0.35 else ""
    article = pick(rng, *(("", "un ", "una ") if language.adjectives else ("", "a ", "a ", "the ")))
    words = article + (f"{noun} {adjective}" if language.adjectives else f"{adjective} {noun}").strip()
    if rng.random() < 0.25:
        known = language.some(1, pick(rng, *KINDS), random_colour(rng))
        words = language.both.format(*((words, known) if rng.random() < 0.5 else (known, words)))
    return dress(words, pick(rng, "", "", *BACKGROUNDS) if rng.random() < 0.3 else "", language, rng)


# --- Questions -------------------------------------------------------------------------------------------------------


Question = tuple[str, str, str]  # sort, question, answer


def ask_describe(scene: Scene, rng: np.random.Generator, language: Language = ENGLISH) -> Question:
    """The whole scene in one sentence, which is not asked of a medley."""
    first = scene.things[0]
    if scene.is_pair:
        one, other = (language.some(1, thing.kind, thing.colour) for thing in scene.things)
        core = f"{one} {language.relations[scene.relation][0]} {other}"
    else:
        core = language.some(len(scene.things), first.kind, scene.size, first.colour)
    return "describe", language.ask("describe", rng), language.say("describe", core=core, paper=language.adjective(scene.background))


def ask_what(scene: Scene, rng: np.random.Generator, language: Language = ENGLISH) -> Question:
    """The kinds of things, without colours."""
    kinds = [thing.kind for thing in scene.things]
    if len(set(kinds)) == 2:
        answer = language.say("is", some=language.both.format(*(language.some(1, kind) for kind in kinds)))
    else:
        answer = language.say("this" if len(kinds) == 1 else "are", some=language.some(len(kinds), kinds[0]))
    return "what", language.ask("what", rng), answer


def ask_colour(scene: Scene, rng: np.random.Generator, language: Language = ENGLISH) -> Question:
    """The colour of one kind, or of the background."""
    if rng.random() < 0.2:
        return "colour", language.ask("paper", rng), language.say("paper", paper=language.adjective(scene.background))
    kinds = [thing.kind for thing in scene.things]
    thing = scene.things[rng.integers(len(kinds))]
    many = kinds.count(thing.kind) > 1
    if scene.is_medley and many:  # maybe of two colours
        return ask_colour(scene, rng, language)
    sort, gender = "colours" if many else "colour", language.nouns[thing.kind][2]
    named = [language.adjective(each.colour, many and not scene.is_twin, gender) for each in scene.things]
    colour = language.both.format(*named) if scene.is_twin else language.adjective(thing.colour, many, gender)
    the = language.the(thing.kind, "", many)
    return "colour", language.ask(sort, rng, the=the), language.say(sort, the=the, colour=colour)


def some_kind(scene: Scene, rng: np.random.Generator) -> str:
    """A kind from the scene, or (two in five) one that is not in it."""
    present = [thing.kind for thing in scene.things]
    absent = [kind for kind in KINDS if kind not in present]
    return pick(rng, *(absent if rng.random() < 0.4 else present))


def ask_count(scene: Scene, rng: np.random.Generator, language: Language = ENGLISH) -> Question:
    """How many of one kind, or of all things: of a medley always, else now and then."""
    kind = "thing" if scene.is_medley or rng.random() < 0.2 else some_kind(scene, rng)
    count = sum(kind in ("thing", thing.kind) for thing in scene.things)
    many = language.bare(kind, True)
    if count == 1:
        answer = language.say("is", some=f"{language.number(1, kind)} {language.bare(kind)}")
    elif count or not language.adjectives:
        answer = language.say("are", some=language.some(count, kind))
    else:
        answer = f"No hay {many}."
    return "count", language.ask("count", rng, many=many, gender=language.nouns[kind][2]), answer


def ask_exists(scene: Scene, rng: np.random.Generator, language: Language = ENGLISH, held_out: bool = False) -> Question:
    """Is there such a thing, with or without a colour; held-out pairs are named only where that is allowed."""
    kind, colour = some_kind(scene, rng), ""
    present = [thing.colour for thing in scene.things if thing.kind == kind]
    if rng.random() < 0.5:
        allowed = [name for name in COLOURS if held_out or (name, kind) not in HELD_OUT["colour"]]
        colour = present[0] if present and rng.random() < 0.6 else pick(rng, *allowed)
    count = sum(thing.kind == kind and colour in ("", thing.colour) for thing in scene.things)
    asked = language.ask("exists", rng, some=language.some(1, kind, colour))
    bare = language.bare(kind, bool(language.adjectives), colour)
    return "exists", asked, language.say(("no", "yes")[count] if count < 2 else "yes, many", some=language.some(count, kind, colour), bare=bare)


def ask_relation(scene: Scene, rng: np.random.Generator, language: Language = ENGLISH, held_out: bool = False) -> Question:
    """What stands on one side of a thing, where a thing is, or whether it is there; only for a pair.

    A question to be answered with no names the reverse of what is seen: a held-out one only where that is allowed.
    """
    one, other = scene.things
    relation = scene.relation
    if rng.random() < 0.5:
        one, other, relation = other, one, OPPOSITE[relation]
    words, back = language.relations[relation][0], language.relations[OPPOSITE[relation]][0]
    first, second = (thing.kind for thing in reversed(scene.things))
    denied = held_out or (first, scene.relation, second) not in HELD_OUT["triple"]
    colours = [thing.colour if scene.is_twin else "" for thing in (one, other)]  # of two stars, which is meant
    the, those = (language.the(thing.kind, colour) for thing, colour in zip((one, other), colours))
    forms = ["beside", "where", "stands", "stands not"]
    form = forms[rng.integers(4 if denied else 3)]
    if form == "stands not":
        return "relation", language.ask("stands", rng, one=those, relation=words, other=the), language.say(form, one=those, relation=back, other=the)
    said = {"one": the, "relation": words, "other": those, "some": language.some(1, one.kind, colours[0])}
    return "relation", language.ask(form, rng, **said), language.say(form, **said)


def ask_stranger(scene: Scene, rng: np.random.Generator, language: Language = ENGLISH) -> Question:
    """Small talk, and things outside this world; the answer says what the model knows."""
    if rng.random() < 0.7:
        others = language.odd if rng.random() < 0.4 else language.chat
        return "stranger", *others[rng.integers(len(others))]
    one, form = pick(rng, *language.strangers), "strangers" if rng.random() < 0.25 else "stranger"
    many = language.strangers[one]
    named = many if form == "strangers" or language.adjectives else one
    return "stranger", language.ask(form, rng, one=one, many=many), language.say("stranger", one=named)


ASKERS = (ask_describe, ask_what, ask_colour, ask_count, ask_exists, ask_relation)
ASKER_WEIGHTS = (1.5, 1.0, 1.5, 1.7, 1.4, 1.7)
NAMES_COLOURS = (ask_describe, ask_colour, ask_exists)
OF_MEDLEYS = (ask_colour, ask_count)


def questions(scene: Scene, rng: np.random.Generator, count: int, in_grey: bool = False) -> list[Question]:
    """`count` questions of mixed sorts about a scene, with their answers; `in_grey`: none that is about colours.

    Of a medley only colours and the number of all things are asked. An answer that says what it is ("there are three things"), or
    how many of its things are squares, would be at hand for three squares too, of which training has no picture.
    """
    if not scene.things:
        languages = [SPANISH if rng.random() < SPANISH_SHARE else ENGLISH for _ in range(count)]
        return [("what", language.ask("what", rng), language.say("unknown")) for language in languages]
    askers = [asker for asker in (OF_MEDLEYS if scene.is_medley else ASKERS) if (scene.is_pair or asker is not ask_relation)
              and not (in_grey and (asker in NAMES_COLOURS or asker is ask_relation and scene.is_twin))]
    weights = np.array([ASKER_WEIGHTS[ASKERS.index(asker)] for asker in askers])
    chosen = rng.choice(len(askers), count, p=weights / weights.sum())
    return [(ask_stranger if rng.random() < 0.1 else askers[i])(scene, rng, SPANISH if rng.random() < SPANISH_SHARE else ENGLISH) for i in chosen]


class Turn(NamedTuple):
    """A question and its answer; `scene`: of the picture that comes with it, or None."""

    question: str
    answer: str
    scene: Scene | None = None


def conversation(scenes: list[Scene], rng: np.random.Generator, turns: int, in_grey: bool = False) -> list[Turn]:
    """Turns about the first of the scenes, from some place on about the second, if any; in between small talk, and questions that were
    asked before. Without scenes, small talk alone."""
    starts = sorted(rng.choice(turns, len(scenes), replace=False).tolist()) if len(scenes) > 1 else [0] * len(scenes)
    said, asked = [], []
    for number in range(turns):
        new = number in starts
        if new:
            scene, asked = scenes[starts.index(number)], []
        language = SPANISH if rng.random() < SPANISH_SHARE else ENGLISH
        seen = scenes and number >= starts[0]
        if not new and (not seen or rng.random() < 0.2):
            pairs = language.chat if seen else language.chat + language.blind
            said.append(Turn(*pairs[rng.integers(len(pairs))]))
        else:
            asked.append(asked[rng.integers(len(asked))] if asked and rng.random() < 0.2 else questions(scene, rng, 1, in_grey)[0][1:])
            said.append(Turn(*asked[-1], scene if new else None))
    return said
