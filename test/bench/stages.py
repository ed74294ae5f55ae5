# SPDX-License-Identifier: MIT
"""The stages of janus.c one by one from Python, through build/libbench.so (bench_stages.c), and files of random weights."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "libbench.so"


def random_file(geometry: str, dtype: str, folder: Path) -> Path:
    """The path of a file of random weights, which convert.py writes if it is not there."""
    path = folder / f"{geometry}-{dtype}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"== making {path}", flush=True)
        subprocess.run([sys.executable, ROOT / "convert.py", "--random", geometry, "--dtype", dtype, "-o", path], check=True)
    return path


def made_up_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: soft light and noise."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    light = np.stack([150 + 90 * np.sin(5 * x + phase) * np.cos(4 * y - phase) for phase in (0.2, 1.3, 2.9)], -1)
    return np.clip(light + np.random.default_rng(seed).normal(0, 6, light.shape), 0, 255).astype(np.uint8)


class Stages:
    """One model file, opened with so many threads, keys and values as `cache` says: auto, f32 or f16."""

    def __init__(self, path: Path, threads: int, cache: str = "auto", fast: bool = False) -> None:
        library = ctypes.CDLL(str(LIBRARY))
        library.stages_open.restype = ctypes.c_void_p
        library.stages_error.restype = ctypes.c_char_p
        handle = library.stages_open(str(path).encode(), threads, ("auto", "f32", "f16").index(cache), int(fast))
        if not handle:
            raise RuntimeError(f"{path} cannot be opened")
        self.library, self.handle = library, ctypes.c_void_p(handle)
        for name in ("side", "image_tokens", "vision_tokens", "vision_side", "codebook", "vocab", "context", "hidden", "pad", "eos"):
            setattr(self, name, library.stages_size(self.handle, name.encode()))

    def close(self) -> None:
        """Gives memory and threads back."""
        self.library.stages_close(self.handle)

    def call(self, name: str, *arguments: object) -> None:
        """Calls stages_NAME; arrays are handed over as pointers."""
        plain = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments]
        if getattr(self.library, f"stages_{name}")(self.handle, *plain) != 0:
            raise RuntimeError(self.library.stages_error(self.handle).decode())

    def forget(self) -> None:
        """Empties the sequences that `read` adds to."""
        self.library.stages_forget(self.handle)

    def read(self, ids: np.ndarray, sequences: int = 1, all_logits: bool = False, seen: np.ndarray | None = None) -> np.ndarray:
        """Text ids (T), `seen` (tokens, D) in the places of a picture, to the end of every sequence; LM logits (R, V) of the
        last position, or of all (T, V)."""
        ids = np.ascontiguousarray(ids, np.int32)
        logits = np.empty((len(ids) if all_logits else sequences, self.vocab), np.float32)
        self.call("read", ids, seen, len(ids), sequences, int(all_logits), logits)
        return logits

    def prompt(self, kind: str, text: str) -> np.ndarray:
        """The ids (P) of a "drawing_prompt", or of a first "question" about one picture."""
        ids = np.empty(self.context, np.int32)
        make = getattr(self.library, f"stages_{kind}")
        count = make(self.handle, text.encode(), ids.ctypes.data_as(ctypes.c_void_p), len(ids))
        if count < 0:
            raise RuntimeError(self.library.stages_error(self.handle).decode())
        return ids[:count].copy()

    def picture_logits(self, prompt: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Image head logits (T, K) that choose each of a picture's ids (T) behind a prompt's ids."""
        logits = np.empty((len(ids), self.codebook), np.float32)
        self.forget()
        self.call("read_picture", np.ascontiguousarray(prompt, np.int32), len(prompt), np.ascontiguousarray(ids, np.int32),
                  len(ids), logits)
        self.forget()
        return logits

    def draw(self, prompt: str, steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The first ids of a picture, and times (steps + 1): the start and each id."""
        ids, times = np.empty(self.image_tokens, np.int32), np.zeros(steps + 1)
        self.call("draw", prompt.encode(), steps, ctypes.c_uint64(seed), ids, times)
        return ids[:steps], times

    def ask(self, question: str, picture: np.ndarray, tokens: int) -> np.ndarray:
        """Times (n + 1) of the start and of each of the n <= tokens tokens of an answer."""
        times, said = np.zeros(tokens + 1), np.zeros(1, np.int32)
        self.call("ask", question.encode(), picture, picture.shape[1], picture.shape[0], tokens, times, said)
        return times[:said[0] + 1]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """A picture's ids as (side, side, 3) uint8."""
        rgb = np.empty((self.side, self.side, 3), np.uint8)
        self.call("decode", np.ascontiguousarray(ids, np.int32), rgb)
        return rgb

    def encode(self, picture: np.ndarray) -> np.ndarray:
        """A picture as ids of the codebook."""
        ids = np.empty(self.image_tokens, np.int32)
        self.call("encode", np.ascontiguousarray(picture), picture.shape[1], picture.shape[0], ids)
        return ids

    def see(self, picture: np.ndarray) -> np.ndarray:
        """A picture as embeddings (tokens, D)."""
        seen = np.empty((self.vision_tokens, self.hidden), np.float32)
        self.call("see", np.ascontiguousarray(picture), picture.shape[1], picture.shape[0], seen)
        return seen
