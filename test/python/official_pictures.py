# SPDX-License-Identifier: MIT
"""What the official VLMImageProcessor makes of a picture, with Pillow and numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass
class ImageRules:
    """preprocessor_config.json: how a picture becomes pixel values of (size, size, 3)."""
    size: int
    min_size: int = 14
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    background: tuple[int, ...] = (127, 127, 127)
    do_normalize: bool = True


def resize_bicubic(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pillow's bicubic resize, first horizontally, then vertically: what one call does up to Pillow 12.1. Later ones
    take the other order where it is cheaper, which changes single bytes."""
    return image.resize((size[0], image.height), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)


def fit_square(image: Image.Image, rules: ImageRules) -> np.ndarray:
    """The official VLMImageProcessor up to 8 bits: longer side to `size`, padded to (size, size, 3) uint8."""
    width, height = image.size
    longest = max(width, height)
    size = tuple(max(int(side / longest * rules.size), rules.min_size) for side in (width, height))
    image = resize_bicubic(image, size)
    side = max(size)
    square = Image.new("RGB", (side, side), rules.background)
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def pixel_values(image: Image.Image, rules: ImageRules) -> np.ndarray:
    """(S, S, 3) float32: rescaled in float64, then normalised in float32, as the official class does."""
    x = (fit_square(image, rules).astype(np.float64) * rules.rescale_factor).astype(np.float32)
    if rules.do_normalize:
        x = (x - np.array(rules.mean, np.float32)) / np.array(rules.std, np.float32)
    return x
