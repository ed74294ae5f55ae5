# SPDX-License-Identifier: MIT
"""janus_preprocess against Pillow: byte for byte on 200 random sizes, and the same arithmetic behind the bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

import random_model
from janus_library import GOLDEN, Library, address, give
from official_pictures import ImageRules, pixel_values, resize_bicubic

MODELS = ["plain", "grouped", "tied"]
CASES = 200


@pytest.fixture(scope="module")
def janus() -> Library:
    """The library."""
    return Library()


@pytest.fixture(scope="module", params=MODELS)
def model(janus: Library, request: pytest.FixtureRequest):
    """(handle, side, min_size) of a model."""
    from gguf import GGUFReader
    path = GOLDEN / f"{request.param}.gguf"
    values = {key: field.contents() for key, field in GGUFReader(path).fields.items() if key.startswith("janus.")}
    return janus.load(path), values["janus.vision.image_size"], values["janus.image.min_size"]


def preprocess(janus: Library, handle: Any, rgb: np.ndarray, side: int) -> np.ndarray:
    """janus_preprocess on (h, w, 3) uint8."""
    rgb = np.ascontiguousarray(rgb)
    out = np.full((side, side, 3), np.nan, np.float32)
    janus.call("janus_preprocess", handle, give(rgb), address(out, "float"))
    return out


def random_size(chance: random.Random, side: int) -> tuple[int, int]:
    """A width and height: any ratio, both smaller and much larger than the target, at times exactly it."""
    kind = chance.randrange(5)
    if kind == 0:
        return chance.randint(1, 3 * side), chance.randint(1, 3 * side)
    if kind == 1:
        long = chance.randint(side, 40 * side)
        return (long, chance.randint(1, 9)) if chance.random() < 0.5 else (chance.randint(1, 9), long)
    if kind == 2:
        return side, chance.choice([side, side - 1, side + 1, chance.randint(1, side)])
    if kind == 3:
        return chance.randint(1, side), chance.randint(1, side)
    ratio = chance.uniform(0.3, 3)
    width = chance.randint(side // 2, 12 * side)
    return width, max(1, int(width * ratio))


def picture(chance: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Noise with hard edges: the values over- and undershoot under a bicubic filter."""
    rgb = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rgb[chance.random((height, width)) < 0.3] = 255
    rgb[chance.random((height, width)) < 0.3] = 0
    return rgb


def test_preprocessing_equals_pillow(janus: Library, model: tuple) -> None:
    """Bytes and floats, all CASES sizes."""
    handle, side, min_size = model
    chance, noise = random.Random(1), np.random.default_rng(1)
    for _ in range(CASES):
        width, height = random_size(chance, side)
        rgb = picture(noise, width, height)
        expected = pixel_values(Image.fromarray(rgb), ImageRules(side, min_size))
        mine = preprocess(janus, handle, rgb, side)
        assert np.array_equal(mine, expected), f"{width} x {height} -> {side}: {int((mine != expected).sum())} differ"


@pytest.mark.skipif(tuple(map(int, PIL.__version__.split(".")[:2])) >= (12, 2), reason="one call may take the other order")
def test_one_call_of_pillow_is_two() -> None:
    image = Image.fromarray(picture(np.random.default_rng(3), 61, 45))
    for size in ((24, 18), (100, 7), (61, 90)):
        assert np.array_equal(resize_bicubic(image, size), image.resize(size, Image.Resampling.BICUBIC))


def test_every_byte_value(janus: Library, model: tuple) -> None:
    """Each of the 256 values alone, where nothing is resized."""
    handle, side, min_size = model
    for value in range(256):
        rgb = np.full((side, side, 3), value, np.uint8)
        assert np.array_equal(preprocess(janus, handle, rgb, side), pixel_values(Image.fromarray(rgb), ImageRules(side, min_size)))


def test_real_side(janus: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """384 pixels and min_size 14, as in the published models."""
    monkeypatch.setitem(random_model.GEOMETRIES, "large", replace(random_model.TINY, image_size=384, patch_size=192))
    random_model.write_random("large", tmp_path / "large.gguf", "f16", 0, "pro")
    handle = janus.load(tmp_path / "large.gguf")
    for size in ((384, 384), (1024, 683), (683, 1024), (4000, 3000), (385, 383), (50, 384), (2, 2), (1, 500)):
        rgb = picture(np.random.default_rng(2), *size)
        expected = pixel_values(Image.fromarray(rgb), ImageRules(384, 14))
        assert np.array_equal(preprocess(janus, handle, rgb, 384), expected), size
