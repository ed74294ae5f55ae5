# SPDX-License-Identifier: MIT
"""Finds the things in a picture: what kind, which colour, where. It sees pixels only, never a prompt or a scene.

    picture -> background (median colour of the border) -> what differs from it -> connected pieces, holes filled
            -> kind: the nearest silhouettes of rendered examples    colour: a vote of the pixels of the piece    size: its area

`python weights/judge.py` measures it on 1,000 rendered scenes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
import sys

import numpy as np
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent))
import world  # noqa: E402

CONTRAST = 36.0  # a pixel this far from the background (Euclidean, 0..255 a channel) belongs to a thing
SPECK = 24  # pieces with fewer pixels are stains, not things
GRAIN = 20  # silhouettes are compared at GRAIN x GRAIN
EXAMPLES = 100  # rendered examples a kind
STRANGE = 0.12  # further than this from every silhouette (mean absolute difference): nothing that we know


@dataclass(frozen=True)
class Found:
    """A thing in a picture; `kind` is '' if it looks like nothing known. Place in pixels, `size` as in world.SIZES."""

    kind: str
    colour: str
    x: float
    y: float
    size: str


def paper(picture: np.ndarray) -> np.ndarray:
    """The colour of the background, float [3]: the median of the border."""
    return np.median(np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3),
                                     picture[:, :2].reshape(-1, 3), picture[:, -2:].reshape(-1, 3)]).astype(float), axis=0)


def background(picture: np.ndarray) -> str:
    """The name of the nearest background."""
    return min(world.BACKGROUNDS, key=lambda name: float(np.linalg.norm(paper(picture) - world.BACKGROUNDS[name])))


def is_unknown(picture: np.ndarray) -> bool:
    """True for the picture that says that a prompt was not understood, and for nothing that has a thing in it."""
    return float(np.abs(picture.astype(float) - world.QUESTION_MARK).mean()) < 8


def foreground(picture: np.ndarray) -> np.ndarray:
    """uint8 [64, 64, 3] -> how sure each pixel is part of a thing, float [64, 64] in 0..1."""
    return np.clip(np.linalg.norm(picture.astype(float) - paper(picture), axis=-1) / (2 * CONTRAST), 0, 1)


def pieces(picture: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each piece its pixels, bool [64, 64] with holes filled, and its soft silhouette, float [64, 64]."""
    soft = foreground(picture)
    labels, count = ndimage.label(soft > 0.5, structure=np.ones((3, 3)))
    found = []
    for label in range(1, count + 1):
        solid = ndimage.binary_fill_holes(labels == label)
        if solid.sum() >= SPECK:
            halo = ndimage.binary_dilation(solid)
            full = np.minimum(soft / soft[solid].max(), 1)  # also where things hardly stand out
            found.append((solid, np.where(solid & (labels != label), 1.0, np.where(halo, full, 0.0))))
    return found


def silhouette(solid: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """A piece cut out and brought to GRAIN x GRAIN (longer side full, centred): float [GRAIN * GRAIN]."""
    rows, columns = np.where(solid.any(1))[0], np.where(solid.any(0))[0]
    centre_y, centre_x = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 3.0
    frame = (centre_x - side / 2, centre_y - side / 2, centre_x + side / 2, centre_y + side / 2)
    image = Image.fromarray(np.pad(soft, world.SIZE).astype(np.float32))
    moved = tuple(value + world.SIZE for value in frame)
    return np.asarray(image.resize((GRAIN, GRAIN), Image.Resampling.BILINEAR, box=moved)).ravel()


@lru_cache(maxsize=1)
def known_silhouettes() -> tuple[np.ndarray, np.ndarray]:
    """Silhouettes float [8 * EXAMPLES, GRAIN * GRAIN] of rendered things, sharp to soft, and their kinds."""
    rng = np.random.default_rng(77)
    shapes, kinds = [], []
    for number, kind in enumerate(world.KINDS):
        for _ in range(EXAMPLES):
            colour = world.pick(rng, *list(world.COLOURS)[:world.BASIC])
            thing = world.make_thing(kind, colour, *rng.uniform(28, 36, 2), rng.uniform(13, 50), rng)
            picture = world.render(world.Scene((thing,), "white", (248, 248, 248))).astype(float)
            picture = ndimage.gaussian_filter(picture, (*[rng.uniform(0, 1)] * 2, 0))
            shapes.append(silhouette(*pieces(picture)[0]))
            kinds.append(number)
    return np.array(shapes), np.array(kinds)


def name_kind(solid: np.ndarray, soft: np.ndarray) -> str:
    """The kind that most of the five nearest silhouettes have, or '' if none is near."""
    shapes, kinds = known_silhouettes()
    distances = np.abs(shapes - silhouette(solid, soft)).mean(1)
    nearest = np.argsort(distances)[:5]
    if distances[nearest[0]] > STRANGE:
        return ""
    return world.KINDS[Counter(kinds[nearest].tolist()).most_common(1)[0][0]]


@lru_cache(maxsize=None)
def area(kind: str) -> float:
    """The pixels of a thing of size 1."""
    thing = world.Thing(kind, "red", 32, 32, 48, 1, 0, world.COLOURS["red"])
    return float(pieces(world.render(world.Scene((thing,), "white", (248, 248, 248))))[0][0].sum()) / 48**2


def name_size(kind: str, pixels: float) -> str:
    """'small' or 'big', or '' for all in between and for things unknown."""
    side = (pixels / area(kind)) ** 0.5 if kind else 32
    return "small" if side < 21 else "big" if side > 43 else ""


def name_colour(picture: np.ndarray, solid: np.ndarray) -> str:
    """The colour nearest to most of a piece's inner pixels; roofs and tyres have no vote."""
    inner = ndimage.binary_erosion(solid)
    pixels = picture[inner if inner.sum() >= 12 else solid].astype(float)
    furniture = [world.ROOF, world.TYRE]
    palette = np.array([*world.COLOURS.values(), *furniture], float)
    votes = np.argmin(np.linalg.norm(pixels[:, None] - palette[None], axis=-1), axis=1)
    counts = np.bincount(votes, minlength=len(palette))[: len(world.COLOURS)]
    return list(world.COLOURS)[int(counts.argmax())]


def find_things(picture: np.ndarray) -> list[Found]:
    """The things in a picture uint8 [64, 64, 3], from left to right."""
    things = []
    for solid, soft in pieces(picture):
        rows, columns = np.where(solid.any(1))[0], np.where(solid.any(0))[0]
        x, y = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
        kind = name_kind(solid, soft)
        things.append(Found(kind, name_colour(picture, solid), float(x), float(y), name_size(kind, solid.sum())))
    return sorted(things, key=lambda thing: thing.x)


def relation(one: Found, other: Found) -> str:
    """How one thing stands to another: left, right, above or below, whichever is the larger distance."""
    across, down = one.x - other.x, one.y - other.y
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def is_right(scene: world.Scene, picture: np.ndarray) -> bool:
    """True if what is found is exactly the scene: kinds, colours, number, background, a pair's relation, a single thing's size."""
    found, wanted = find_things(picture), sorted((thing.kind, thing.colour) for thing in scene.things)
    if wanted != sorted((thing.kind, thing.colour) for thing in found) or background(picture) != scene.background or is_unknown(picture):
        return False
    if not scene.is_pair:
        return len(found) > 1 or found[0].size == scene.size
    first, second = (next(one for one in found if (one.kind, one.colour) == (thing.kind, thing.colour)) for thing in scene.things)
    return relation(first, second) == scene.relation


def accuracy(count: int = 200, seed: int = 5) -> dict[str, float]:
    """The share of `count` rendered scenes of each sort, half of them held out of training, in which everything is found right."""
    rng, right = np.random.default_rng(seed), {"unknown": [is_unknown(world.QUESTION_MARK)]}
    while len(right) < 6 or any(len(shares) < count for sort, shares in right.items() if sort != "unknown"):
        scene = world.random_scene(rng, held_out=rng.random() < 0.5)
        sort = "twins" if scene.is_twin else "pairs" if scene.is_pair else "counts" if len(scene.things) > 1 else scene.size or "single"
        if len(right.setdefault(sort, [])) < count:
            right[sort].append(is_right(scene, world.render(scene)))
    return {sort: sum(shares) / len(shares) for sort, shares in right.items()}


if __name__ == "__main__":
    for name, share in accuracy().items():
        print(f"{name:<10}{100 * share:6.1f} % of rendered scenes right")
