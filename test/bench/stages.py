# SPDX-License-Identifier: MIT
"""The stages of janus.c one by one from Python, through build/libbench.so (bench_stages.c), and files of random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "python"))
from janus_library import prototypes  # noqa: E402

LIBRARY = ROOT / "build" / "libbench.so"
ffi = FFI()
ffi.cdef("typedef struct Stages Stages;\n" + prototypes(Path(__file__).with_name("bench_stages.c"), "stages_"))


def random_file(geometry: str, dtype: str, folder: Path) -> Path:
    """The path of a file of random weights, which random_model.py writes if it is not there."""
    path = folder / f"{geometry}-{dtype}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"== making {path}", flush=True)
        subprocess.run([sys.executable, ROOT / "test" / "python" / "random_model.py", geometry, "--dtype", dtype, "-o", path], check=True)
    return path


def made_up_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: soft light and noise."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    light = np.stack([150 + 90 * np.sin(5 * x + phase) * np.cos(4 * y - phase) for phase in (0.2, 1.3, 2.9)], -1)
    return np.clip(light + np.random.default_rng(seed).normal(0, 6, light.shape), 0, 255).astype(np.uint8)


def pointer(value: object, kind: Any) -> object:
    """An argument of a C type: the address of a contiguous array whose items have its size; NULL for None."""
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous and value.itemsize == ffi.sizeof(kind.item)
        return ffi.cast(kind, value.ctypes.data)
    return ffi.NULL if value is None else value


class Stages:
    """One model file, opened with so many threads, keys and values as `cache` says: auto, f32 or f16."""

    def __init__(self, path: Path, threads: int, cache: str = "auto", fast: bool = False) -> None:
        self.library = ffi.dlopen(str(LIBRARY))
        self.handle = self.library.stages_open(str(path).encode(), threads, ("auto", "f32", "f16").index(cache), int(fast))
        if self.handle == ffi.NULL:
            raise RuntimeError(f"{path} cannot be opened")
        for name in ("side", "image_tokens", "vision_tokens", "vision_side", "codebook", "vocab", "context", "hidden", "pad", "eos"):
            setattr(self, name, self.library.stages_size(self.handle, name.encode()))

    def close(self) -> None:
        """Gives memory and threads back."""
        self.library.stages_close(self.handle)

    def call(self, name: str, *arguments: object) -> None:
        """Calls stages_NAME; raises what it reports."""
        if self.returned(name, *arguments) != 0:
            raise self.failure()

    def returned(self, name: str, *arguments: object) -> int:
        """What stages_NAME returns; arrays are handed over as pointers to what the function asks for, None as NULL."""
        function = getattr(self.library, f"stages_{name}")
        kinds = ffi.typeof(function).args[1:]
        return function(self.handle, *(pointer(a, kind) for a, kind in zip(arguments, kinds, strict=True)))

    def failure(self) -> RuntimeError:
        """The error of the last call."""
        return RuntimeError(ffi.string(self.library.stages_error(self.handle)).decode())

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
        count = self.returned(kind, text.encode(), ids, len(ids))
        if count < 0:
            raise self.failure()
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
        self.call("draw", prompt.encode(), steps, seed, ids, times)
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
