# SPDX-License-Identifier: MIT
"""janus.h for Python. The declarations are read from the header itself, so that the two cannot differ.

    library = Library()                                     libjanus.so; JANUS_LIBRARY names another
    model = library.load(Path("weights/tiny.gguf"))         raises Refused with the library's words
    library.call("janus_encode_image", session, give(pixels), ids)
    library.c.janus_info(model).layers                      every function, type and constant of janus.h
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
JANUS = Path(os.environ.get("JANUS_PROGRAM", ROOT / "janus"))
GOLDEN, TINY = ROOT / "test" / "golden", ROOT / "weights" / "tiny.gguf"


def stb_flags() -> list[str]:
    """The compiler's flags for the stb headers that the project was built with."""
    command = ["sh", "test/setup.sh", "flags"]
    return shlex.split(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def compile_c(output: Path, *arguments: object) -> Path:
    """Compiles files of the project."""
    command = [*shlex.split(os.environ.get("CC", "cc")), "-std=c99", "-I.", *stb_flags(), *arguments, "-o", output]
    subprocess.run([*command, "-lm", "-lpthread"], cwd=ROOT, check=True, timeout=600)
    return output


# ---- What C says, as cffi reads it ----

def without_comments(text: str) -> str:
    """C without its /* comments */."""
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)


def declarations(header: Path) -> str:
    """A header's declarations: without what is for C++ alone, the preprocessor's lines and JANUS_API."""
    text = re.sub(r"^#ifdef __cplusplus\n.*?^#endif\n", "", without_comments(header.read_text(encoding="utf-8")), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^#.*\n|\bJANUS_API\b", "", text, flags=re.MULTILINE)


def prototypes(source: Path, prefix: str) -> str:
    """Prototypes of all functions that a C file defines under such a name and that are not static."""
    text = without_comments(source.read_text(encoding="utf-8"))
    found = re.findall(rf"^((?!static)[\w ]+[ *]{prefix}\w+\([^()]*\))\s*{{", text, re.MULTILINE)
    return "".join(f"{prototype};\n" for prototype in found)


def structure(source: Path, name: str) -> str:
    """The `typedef struct {...} name;` of a C file."""
    text = without_comments(source.read_text(encoding="utf-8"))
    return re.search(rf"^typedef struct {{[^{{}}]*}} {name};\n", text, re.MULTILINE)[0]


ffi = FFI()
ffi.cdef(declarations(ROOT / "janus.h"))
standard = FFI()
standard.cdef("void free(void *);")


def address(array: np.ndarray, item: str) -> Any:
    """A contiguous array as a C pointer to items of this type, which must have the array's size."""
    assert array.flags.c_contiguous and array.itemsize == ffi.sizeof(item)
    return ffi.cast(f"{item} *", array.ctypes.data)


# ---- The library ----

class Refused(Exception):
    """A call that failed: its words, and its status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Library:
    """A shared library that was made of janus.c. `c` has all that janus.h declares."""

    def __init__(self, path: Path | None = None) -> None:
        path = path or Path(os.environ.get("JANUS_LIBRARY", ROOT / "libjanus.so"))
        if not path.exists():
            subprocess.run(["make", "-s", "-C", ROOT, "libjanus.so"], check=True)
        self.c = ffi.dlopen(str(path.resolve()))
        self.standard = standard.dlopen(None)

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function that takes a JanusError last; raises what it reports."""
        error = ffi.new("JanusError *")
        if getattr(self.c, name)(*arguments, error) != self.c.JANUS_OK:
            message = ffi.string(error.message).decode()
            assert message and "\n" not in message
            raise Refused(error.status, message)

    def load(self, path: Path) -> Any:
        """A model, released with the object."""
        out = ffi.new("JanusModel **")
        self.call("janus_load", os.fsencode(path), out)
        return ffi.gc(out[0], self.c.janus_free)

    def session(self, model: Any, options: Any) -> Any:
        """A new session; the caller frees it before the model."""
        out = ffi.new("JanusSession **")
        self.call("janus_session_new", model, ffi.new("JanusSessionOptions *", options), out)
        return out[0]

    def take_bytes(self, pointer: Any, length: int) -> bytes:
        """Memory that a call handed over; it is released."""
        content = ffi.buffer(pointer, length)[:]
        self.standard.free(standard.cast("void *", int(ffi.cast("uintptr_t", pointer))))
        return content

    def take_text(self, pointer: Any) -> str:
        """A text that a call handed over; it is released."""
        return self.take_bytes(pointer, len(ffi.string(pointer))).decode()

    def take_pixels(self, image: Any) -> np.ndarray:
        """The pixels uint8 (height, width, 3) of a JanusImage that a call handed over; it is released."""
        size = (image.height, image.width, 3)
        pixels = np.frombuffer(ffi.buffer(image.rgb, size[0] * size[1] * 3), np.uint8).reshape(size).copy()
        self.c.janus_image_free(image)
        return pixels


def give(pixels: np.ndarray) -> Any:
    """uint8 (height, width, 3) as a JanusImage, which lives in the array's memory."""
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return ffi.new("JanusImage *", dict(width=pixels.shape[1], height=pixels.shape[0], rgb=address(pixels, "uint8_t")))
