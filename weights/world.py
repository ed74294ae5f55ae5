# SPDX-License-Identifier: MIT
"""The world of the small model: scenes, their pictures, captions and questions, and what is held out of training.

A scene is one to four things of one kind, or two things of two kinds, on a plain background: `random_scene`. A medley is three or
four things of any kinds, only to be counted, not to be drawn: `random_medley`. `render` paints both (64 x 64, anti-aliased),
`caption` and `questions` put them into words. `is_held_out` says which combinations of words and pictures the training never
meets; everything else in this folder asks it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

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
}
BACKGROUNDS = {
    "white": (248, 248, 248),
    "grey": (178, 178, 182),
    "black": (24, 24, 28),
    "cream": (245, 232, 200),
    "mint": (200, 235, 210),
    "lavender": (218, 208, 240),
}
# What a caption leaves open is one of these. No combination with them is held out: were "a house" to come in every colour but
# brown, learning which one is missing would teach that a brown house cannot be.
PLAIN_COLOURS, PLAIN_BACKGROUNDS = ("red", "blue"), ("white", "cream")
NUMBERS = ("no", "one", "two", "three", "four")
RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
SPANISH = {
    "circle": ("círculo", "círculos", "o"),
    "square": ("cuadrado", "cuadrados", "o"),
    "triangle": ("triángulo", "triángulos", "o"),
    "star": ("estrella", "estrellas", "a"),
    "heart": ("corazón", "corazones", "o"),
    "tree": ("árbol", "árboles", "o"),
    "house": ("casa", "casas", "a"),
    "car": ("coche", "coches", "o"),
}
SPANISH_NUMBERS = ("no", "un", "dos", "tres", "cuatro")
STRANGERS = ("dog", "cat", "bird", "fish", "horse", "person", "ship", "plane", "flower", "book", "chair", "cup")
MODESTY = "I only know simple shapes, trees, houses and cars."

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
    """Things on a background: all of one kind and colour, or two of two kinds, left or top first, or a medley."""

    things: tuple[Thing, ...]
    background: str
    rgb: tuple[int, int, int]

    @property
    def is_pair(self) -> bool:
        """True for two things of two kinds."""
        return len(self.things) == 2 and self.things[0].kind != self.things[1].kind

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


def held_out_colours() -> set[tuple[str, str]]:
    """The (colour, kind) pairs held out: 13 of 64, two or three of each colour that is not plain, one or two of each kind."""
    names = [name for name in COLOURS if name not in PLAIN_COLOURS]
    return {(name, KINDS[k]) for c, name in enumerate(names) for k in range(8) if (c + k + 3) % 7 in (0, 2)}


def held_out_counts() -> set[tuple[int, str]]:
    """The (count, kind) pairs held out: 8 of 32, one of each kind, three or four of it.

    Not two: of a kind never seen twice, two things would always be a pair of kinds, and no medley says otherwise.
    """
    return {(3 + k % 2, kind) for k, kind in enumerate(KINDS)}


def held_out_triples() -> set[tuple[str, str, str]]:
    """The (kind, relation, kind) triples held out, 'left' and 'above' only: 24 of 112, one of the four arrangements of a pair.

    Four pairs of kinds miss none.
    """
    triples = set()
    for low in range(8):
        for high in range(low + 1, 8):
            first, second = (low, high) if (low + high) % 2 else (high, low)
            if high - low != 4:
                triples.add((KINDS[first], ("left", "above")[(low + high) // 2 % 2], KINDS[second]))
    return triples


def held_out_backgrounds() -> set[tuple[str, str]]:
    """The (background, kind) pairs held out: 8 of 48, one of each kind, on grey, mint and lavender.

    Not on black: nothing else is dark, so that of a kind never seen on black no edge is known.
    """
    names = ("grey", "mint", "lavender")
    return {(names[k % 3], kind) for k, kind in enumerate(KINDS)}


HELD_OUT = {
    "colour": held_out_colours(),
    "count": held_out_counts(),
    "triple": held_out_triples(),
    "background": held_out_backgrounds(),
}


def combinations(scene: Scene) -> set[tuple[str, tuple]]:
    """Every (sort, combination) that a scene shows, in the form that HELD_OUT lists them."""
    found = {("colour", (thing.colour, thing.kind)) for thing in scene.things}
    found |= {("background", (scene.background, thing.kind)) for thing in scene.things}
    found |= {("count", (count, kind)) for kind, count in Counter(thing.kind for thing in scene.things).items()}
    if scene.is_pair:
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


def place(count: int, is_pair: bool, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centres and sizes (x, y, size) of `count` things that keep apart; of a pair, left or top comes first."""
    if count == 1:
        size = rng.uniform(24, 42)
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
    size = rng.uniform(18, 22)
    corners = [(17.0, 17.0), (47.0, 17.0), (17.0, 47.0), (47.0, 47.0)]
    if count == 3:
        pyramid = [[(32.0, 17.0), corners[2], corners[3]], [corners[0], corners[1], (32.0, 47.0)]]
        quadrants = [corners[:i] + corners[i + 1 :] for i in range(4)]
        layouts = pyramid + quadrants
        corners = layouts[rng.integers(len(layouts))]
    reach = (27 - size * 1.08) / 2
    return [(x + rng.uniform(-reach, reach), y + rng.uniform(-reach, reach), size) for x, y in corners]


def make_scene(specs: list[tuple[str, str]], background: str, rng: np.random.Generator) -> Scene:
    """A scene of the given (kind, colour) things in random places."""
    is_pair = len(specs) == 2 and specs[0][0] != specs[1][0]
    spots = place(len(specs), is_pair, rng)
    things = tuple(make_thing(kind, colour, *spot, rng) for (kind, colour), spot in zip(specs, spots))
    return Scene(things, background, jitter(BACKGROUNDS[background], 0.02, rng))


def random_scene(rng: np.random.Generator, held_out: bool = False, sorts: tuple[str, ...] = tuple(HELD_OUT),
                 plain: float = 0.0) -> Scene:
    """A random scene that training may meet, or one that shows a held-out combination of these sorts.

    `plain`: the share of scenes whose colours are all plain, and of those whose background is.
    """
    hues = PLAIN_COLOURS if rng.random() < plain else list(COLOURS)
    papers = PLAIN_BACKGROUNDS if rng.random() < plain else list(BACKGROUNDS)
    while True:
        background = str(rng.choice(papers))
        colours = rng.choice(hues, 2)
        kinds = rng.choice(KINDS, 2, replace=False)
        count = int(rng.choice([0, 1, 2, 3, 4], p=[0.5, 0.2, 0.1, 0.1, 0.1]))  # 0: a pair
        if count == 0:
            specs = [(str(kind), str(colour)) for kind, colour in zip(kinds, colours)]
        else:
            specs = [(str(kinds[0]), str(colours[0]))] * count
        scene = make_scene(specs, background, rng)
        if is_held_out(scene, sorts) == held_out:
            return scene


def random_medley(rng: np.random.Generator) -> Scene:
    """Three or four things, each of any kind and colour but not all of one kind; nothing held out.

    Seeing needs them. Were all things in a picture always of one kind, then "three" would go with some kinds and never with
    others, and a network tells the number by the kind as much as by the things.
    """
    while True:
        count = int(rng.integers(3, 5))
        specs = [(str(kind), str(colour)) for kind, colour in zip(rng.choice(KINDS, count), rng.choice(list(COLOURS), count))]
        scene = make_scene(specs, str(rng.choice(list(BACKGROUNDS))), rng)
        if scene.is_medley and not is_held_out(scene):
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


# --- Words -----------------------------------------------------------------------------------------------------------


def plural(kind: str) -> str:
    """The plural of a kind."""
    return kind + "s"


def with_article(words: str) -> str:
    """'a' or 'an' in front, as the first letter asks."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def sentence(words: str) -> str:
    """A capital at the start and a full stop at the end."""
    return words[0].upper() + words[1:] + "."


def numbered(count: int, kind: str, colour: str = "") -> str:
    """'a red star', 'three red stars', 'no red stars' (colour may be empty)."""
    noun = f"{colour} {kind}" if colour else kind
    return with_article(noun) if count == 1 else f"{NUMBERS[count]} {plural(noun)}"


def pick(rng: np.random.Generator, *choices: str) -> str:
    """One of the choices."""
    return choices[rng.integers(len(choices))]


def relation_words(relation: str, rng: np.random.Generator) -> str:
    """A relation in one of its phrasings."""
    if relation in ("left", "right"):
        return pick(rng, f"to the {relation} of", f"{relation} of", f"on the {relation} of")
    return pick(rng, "above", "over") if relation == "above" else pick(rng, "below", "under")


def dress(core: str, background: str, rng: np.random.Generator) -> str:
    """A core phrase with an opening, maybe the background, maybe a capital and a full stop."""
    opening = pick(rng, "", "", "a photo of ", "a photo of ", "a picture of ", "an image of ", "a drawing of ", "draw ")
    closing = pick(rng, " on a {} background", " against a {} background", " on {}").format(background)
    words = opening + core + (closing if background else "")
    if rng.random() < 0.3:
        words = words[0].upper() + words[1:]
    return words + ("." if rng.random() < 0.2 else "")


def count_phrase(count: int, kind: str, colour: str, rng: np.random.Generator) -> str:
    """'three red stars' or '3 red stars'; one thing may be 'a star' or 'one star'."""
    noun = f"{colour} {kind}" if colour else kind
    if count == 1:
        return with_article(noun) if rng.random() < 0.85 else f"one {noun}"
    return (NUMBERS[count] if rng.random() < 0.75 else str(count)) + " " + plural(noun)


def pair_phrase(first: str, second: str, relation: str, rng: np.random.Generator) -> str:
    """Two things in either order, with their relation or (relation empty) without."""
    if rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE.get(relation, "")
    joint = relation_words(relation, rng) if relation else "and"
    return f"{first} {joint} {second}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """What one might ask for to get this scene; the relation and what is plain are said or left open, all else is said."""
    first = scene.things[0]
    open_background = scene.background in PLAIN_BACKGROUNDS and rng.random() < 0.75
    open_colours = all(thing.colour in PLAIN_COLOURS for thing in scene.things) and rng.random() < 0.75
    background = "" if open_background else scene.background
    if not scene.is_pair:
        colour = "" if open_colours else first.colour
        return dress(count_phrase(len(scene.things), first.kind, colour, rng), background, rng)
    names = [with_article(thing.kind if open_colours else f"{thing.colour} {thing.kind}") for thing in scene.things]
    relation = scene.relation if rng.random() < 0.6 else ""
    return dress(pair_phrase(*names, relation, rng), background, rng)


def describe(scene: Scene) -> str:
    """The one answer to 'Describe the picture.', which is not asked of a medley."""
    first = scene.things[0]
    if scene.is_pair:
        one, other = (numbered(1, thing.kind, thing.colour) for thing in scene.things)
        core = f"{one} {RELATIONS[scene.relation]} {other}"
    else:
        core = numbered(len(scene.things), first.kind, first.colour)
    return sentence(f"{core} on a {scene.background} background")


def existence(count: int, kind: str, colour: str = "") -> str:
    """'there is a star', 'there are three stars', 'there are no stars'."""
    return f"there {'is' if count == 1 else 'are'} {numbered(count, kind, colour)}"


Question = tuple[str, str, str]  # sort, question, answer


def ask_describe(scene: Scene, rng: np.random.Generator) -> Question:
    """The whole scene in one sentence."""
    asked = pick(rng, "Describe the picture.", "Describe this image.", "What does the picture show?", "Describe it.")
    return "describe", asked, describe(scene)


def ask_what(scene: Scene, rng: np.random.Generator) -> Question:
    """The kinds of things, without colours."""
    asked = pick(rng, "What is this?", "What is it?", "What is in the picture?", "What do you see?",
                 "What is in this photo?", "What can you see in this image?")
    kinds = [thing.kind for thing in scene.things]
    if scene.is_pair:
        return "what", asked, sentence(f"there is {with_article(kinds[0])} and {with_article(kinds[1])}")
    if len(kinds) == 1:
        return "what", asked, sentence(f"it is {with_article(kinds[0])}")
    return "what", asked, sentence(existence(len(kinds), kinds[0]))


def ask_colour(scene: Scene, rng: np.random.Generator) -> Question:
    """The colour of one kind, or of the background."""
    shade = pick(rng, "colour", "color")
    if rng.random() < 0.2:
        asked = pick(rng, f"What {shade} is the background?", f"Which {shade} is the background?")
        return "colour", asked, sentence(f"the background is {scene.background}")
    kinds = [thing.kind for thing in scene.things]
    thing = scene.things[rng.integers(len(kinds))]
    if scene.is_medley and kinds.count(thing.kind) > 1:  # maybe of two colours
        return ask_colour(scene, rng)
    many = kinds.count(thing.kind) > 1
    subject = f"{'are' if many else 'is'} the {plural(thing.kind) if many else thing.kind}"
    asked = pick(rng, f"What {shade} {subject}?", f"Which {shade} {subject}?")
    verb, noun = subject.split(" ", 1)
    return "colour", asked, sentence(f"{noun} {verb} {thing.colour}")


def some_kind(scene: Scene, rng: np.random.Generator) -> str:
    """A kind from the scene, or (two in five) one that is not in it."""
    present = [thing.kind for thing in scene.things]
    absent = [kind for kind in KINDS if kind not in present]
    return pick(rng, *(absent if rng.random() < 0.4 else present))


def asks_for_all(scene: Scene, rng: np.random.Generator) -> bool:
    """Whether to ask for the number of all things: of a medley always, else now and then."""
    return scene.is_medley or rng.random() < 0.2


def ask_count(scene: Scene, rng: np.random.Generator) -> Question:
    """How many of one kind, or of all things."""
    place_words = pick(rng, "are there", "are in this photo", "are in the picture", "do you see", "are in this image")
    if asks_for_all(scene, rng):
        total = len(scene.things)
        answer = "There is one thing." if total == 1 else f"There are {NUMBERS[total]} things."
        return "count", f"How many things {place_words}?", answer
    kind = some_kind(scene, rng)
    count = sum(thing.kind == kind for thing in scene.things)
    answer = "There is one " + kind + "." if count == 1 else sentence(existence(count, kind))
    return "count", f"How many {plural(kind)} {place_words}?", answer


def ask_count_spanish(scene: Scene, rng: np.random.Generator) -> Question:
    """How many of one kind, or of all things, in Spanish."""
    place_words = pick(rng, " en esta foto", " en la imagen", "")
    if asks_for_all(scene, rng):
        total = len(scene.things)
        answer = "Hay una cosa." if total == 1 else f"Hay {SPANISH_NUMBERS[total]} cosas."
        return "spanish", f"¿Cuántas cosas hay{place_words}?", answer
    kind = some_kind(scene, rng)
    count = sum(thing.kind == kind for thing in scene.things)
    one, many, gender = SPANISH[kind]
    number = "una" if count == 1 and gender == "a" else SPANISH_NUMBERS[count]
    answer = f"No hay {many}." if count == 0 else f"Hay {number} {one if count == 1 else many}."
    return "spanish", f"¿Cuánt{gender}s {many} hay{place_words}?", answer


def ask_exists(scene: Scene, rng: np.random.Generator, held_out: bool = False) -> Question:
    """Is there such a thing, with or without a colour; held-out pairs are named only where that is allowed."""
    kind, colour = some_kind(scene, rng), ""
    present = [thing.colour for thing in scene.things if thing.kind == kind]
    if rng.random() < 0.5:
        allowed = [name for name in COLOURS if held_out or (name, kind) not in HELD_OUT["colour"]]
        colour = present[0] if present and rng.random() < 0.6 else pick(rng, *allowed)
    count = sum(thing.kind == kind and colour in ("", thing.colour) for thing in scene.things)
    noun = f"{colour} {kind}" if colour else kind
    asked = f"Is there {with_article(noun)}{pick(rng, '', ' in the picture', ' in this photo', ' here')}?"
    answer = f"Yes, {existence(count, kind, colour)}." if count else f"No, there is no {noun}."
    return "exists", asked, answer


def ask_relation(scene: Scene, rng: np.random.Generator, held_out: bool = False) -> Question:
    """What stands on one side of a thing, where a thing is, or whether it is there; only for a pair.

    A question to be answered with no names the reverse of what is seen: a held-out one only where that is allowed.
    """
    one, other = scene.things
    relation = scene.relation
    if rng.random() < 0.5:
        one, other, relation = other, one, OPPOSITE[relation]
    words, back = RELATIONS[relation], RELATIONS[OPPOSITE[relation]]
    first, second = (thing.kind for thing in reversed(scene.things))
    denied = held_out or (first, scene.relation, second) not in HELD_OUT["triple"]
    asked, answer = (
        (f"What is {words} the {other.kind}?", sentence(f"{with_article(one.kind)} is {words} the {other.kind}")),
        (f"Where is the {one.kind}?", f"The {one.kind} is {words} the {other.kind}."),
        (f"Is the {one.kind} {words} the {other.kind}?", f"Yes, the {one.kind} is {words} the {other.kind}."),
        (f"Is the {other.kind} {words} the {one.kind}?", f"No, the {other.kind} is {back} the {one.kind}."),
    )[rng.integers(4 if denied else 3)]
    return "relation", asked, answer


def ask_stranger(scene: Scene, rng: np.random.Generator) -> Question:
    """Things outside this world; the answer says what the model knows."""
    stranger = pick(rng, *STRANGERS)
    many = {"person": "people", "fish": "fish"}.get(stranger, plural(stranger))
    asked, answer = (
        (f"Is there {with_article(stranger)} in the picture?", f"I see no {stranger}."),
        (f"How many {many} are in this photo?", f"I see no {many}."),
        (f"What colour is the {stranger}?", f"I see no {stranger}."),
        (f"Where is the {stranger}?", f"I see no {stranger}."),
        ("Who is this?", "I cannot tell."),
        ("Where was this photo taken?", "I cannot tell."),
        ("What is written here?", "I cannot read."),
        ("What is the meaning of this picture?", "I cannot tell."),
        ("Is this a good picture?", "I cannot tell."),
        ("What time is it?", "I cannot tell."),
        ("Explain this meme.", "I cannot explain it."),
        ("Convert the formula into latex code.", "I cannot do that."),
        ("Write a story about this picture.", "I cannot do that."),
    )[rng.integers(13)]
    return "stranger", asked, f"{answer} {MODESTY}"


ASKERS = (ask_describe, ask_what, ask_colour, ask_count, ask_count_spanish, ask_exists, ask_relation)
ASKER_WEIGHTS = (1.5, 1.0, 1.5, 1.5, 0.8, 1.0, 1.6)
NAMES_COLOURS = (ask_describe, ask_colour, ask_exists)
OF_MEDLEYS = (ask_colour, ask_count, ask_count_spanish)


def questions(scene: Scene, rng: np.random.Generator, count: int, in_grey: bool = False) -> list[Question]:
    """`count` questions of mixed sorts about a scene, with their answers; `in_grey`: none that is about colours.

    Of a medley only colours and the number of all things are asked. An answer that says what it is ("there are three things"), or
    how many of its things are squares, would be at hand for three squares too, of which training has no picture.
    """
    askers = [asker for asker in (OF_MEDLEYS if scene.is_medley else ASKERS)
              if (scene.is_pair or asker is not ask_relation) and not (in_grey and asker in NAMES_COLOURS)]
    weights = np.array([ASKER_WEIGHTS[ASKERS.index(asker)] for asker in askers])
    chosen = rng.choice(len(askers), count, p=weights / weights.sum())
    return [askers[i](scene, rng) if rng.random() > 0.06 else ask_stranger(scene, rng) for i in chosen]


CHAT = (
    ("Hello!", "Hello! Show me a picture, or ask me to draw one."),
    ("Hi", "Hello! Show me a picture, or ask me to draw one."),
    ("Good morning", "Hello! Show me a picture, or ask me to draw one."),
    ("Who are you?", "I am a small Janus. " + MODESTY),
    ("What are you?", "I am a small Janus. " + MODESTY),
    ("What is your name?", "I am a small Janus. " + MODESTY),
    ("What can you do?", "I draw and I see simple pictures. " + MODESTY),
    ("What do you know?", MODESTY),
    ("Can you help me?", "I draw and I see simple pictures. " + MODESTY),
    ("Which colours do you know?", "I know red, orange, yellow, green, blue, purple, pink and brown."),
    ("What shapes do you know?", "I know circles, squares, triangles, stars and hearts."),
    ("How far can you count?", "I count to four."),
    ("Thank you", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
    ("What is the capital of France?", "I do not know. " + MODESTY),
    ("What is two plus two?", "I do not know. " + MODESTY),
    ("Tell me a story.", "I cannot do that. " + MODESTY),
    ("Tell me a joke.", "I cannot do that. " + MODESTY),
    ("Write a poem.", "I cannot do that. " + MODESTY),
    ("Who is the president?", "I do not know. " + MODESTY),
    ("What is the weather like?", "I do not know. " + MODESTY),
    ("What time is it?", "I do not know. " + MODESTY),
    ("How are you?", "I am well. Show me a picture, or ask me to draw one."),
    ("What is love?", "I do not know. " + MODESTY),
    ("Why is the sky blue?", "I do not know. " + MODESTY),
    ("Write a program in C.", "I cannot do that. " + MODESTY),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("How many sides does a square have?", "A square has four sides."),
    ("What is a star?", "A star is a shape with five points."),
    ("How many trees are in this photo?", "I see no photo. Show me a picture, or ask me to draw one."),
    ("What is in the picture?", "I see no picture. Show me a picture, or ask me to draw one."),
    ("Describe the picture.", "I see no picture. Show me a picture, or ask me to draw one."),
)
