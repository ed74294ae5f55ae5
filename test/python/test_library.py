# SPDX-License-Identifier: MIT
"""janus_library.py declares what janus.h says, all of it, and reads C files as it promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_library import (
    GOLDEN, JANUS, ROOT, Library, Refused, address, compile_c, ffi, give, prototypes, structure, without_comments)

MODEL = GOLDEN / "plain.gguf"


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def test_the_whole_header_is_there(library: Library) -> None:
    """Every function, struct field and constant that the header names; defaults come through structs by value."""
    header = without_comments((ROOT / "janus.h").read_text(encoding="utf-8"))
    functions = re.findall(r"\b(janus_\w+)\(", header)
    assert len(functions) > 20 and all(getattr(library.c, name) != ffi.NULL for name in functions)
    constants = [(name, int(value)) for name, value in re.findall(r"\b(JANUS_\w+) = (\d+)", header)]
    assert len(constants) > 5 and all(getattr(library.c, name) == value for name, value in constants)
    for body, name in re.findall(r"typedef struct {([^{}]*)} (\w+);", header):
        fields = [found for line in body.split(";") for found in re.findall(r"[*](\w+)\)\(|(\w+)(?:\[\d+\])?(?=,|\s*$)", line)]
        names = {first or second for first, second in fields} - {""}
        assert names and {field for field, _ in ffi.typeof(name).fields} <= names, name
    options, question = library.c.janus_generate_defaults(), library.c.janus_ask_defaults()
    assert (options.count, options.seed, options.cfg_weight, options.temperature) == (1, 0, 5, 1)
    assert (question.max_tokens, question.top_p, question.top_k) == (512, 1, 50)


def test_failures_are_raised(library: Library, tmp_path: Path) -> None:
    """With the status and the words of the library."""
    with pytest.raises(Refused, match="missing.gguf") as refusal:
        library.load(tmp_path / "missing.gguf")
    assert refusal.value.status == library.c.JANUS_IO_ERROR


def test_pictures_go_in_and_out(library: Library) -> None:
    """A picture through its ids: pixels, ids and texts cross the border unchanged."""
    model = library.load(MODEL)
    info = library.c.janus_info(model)
    session = library.session(model, library.c.janus_session_defaults())
    pixels = np.random.default_rng(0).integers(0, 256, (info.image_size, info.image_size + 3, 3), dtype=np.uint8)
    ids, image = np.full(info.image_tokens, -1, np.int32), ffi.new("JanusImage *")
    library.call("janus_encode_image", session, give(pixels), address(ids, "int32_t"))
    library.call("janus_decode_image", session, address(ids, "int32_t"), image)
    assert (0 <= ids).all() and (ids < info.codebook_size).all()
    assert library.take_pixels(image).shape == (info.image_size, info.image_size, 3) and image.rgb == ffi.NULL
    library.c.janus_session_free(session)


@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("nm") is None, reason="needs ELF and nm")
def test_hidden_visibility_exports_the_header(tmp_path: Path) -> None:
    """Every function of janus.h, and no other name, of a build in which all that is not marked is hidden."""
    options = ["-O0", "-DJANUS_NO_SIMD", "-DJANUS_LIBRARY", "-fvisibility=hidden", "-fPIC", "-shared"]
    compile_c(tmp_path / "hidden.so", *options, "janus.c")
    shown = subprocess.run(["nm", "-D", "--defined-only", tmp_path / "hidden.so"], check=True, capture_output=True, text=True)
    exported = {line.split()[-1] for line in shown.stdout.splitlines()}
    header = without_comments((ROOT / "janus.h").read_text(encoding="utf-8"))
    assert exported - {"_init", "_fini"} == set(re.findall(r"\b(janus_\w+)\(", header))


@pytest.mark.skipif(shutil.which("unshare") is None or subprocess.run(["unshare", "-rpf", "true"], capture_output=True).returncode != 0,
                    reason="needs namespaces of process numbers")
def test_processes_with_equal_numbers(tmp_path: Path) -> None:
    """Programs that are process 1 of their containers write one picture: every one succeeds, a complete picture remains."""
    drawing = ["unshare", "-rpf", JANUS, "decode", "-q", "-t", "1", "-m", MODEL, "-o", "x.png"]
    running = [subprocess.Popen(list(map(str, drawing)), cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
               for _ in range(12)]
    said = [process.communicate(b"1 2 3 4 5 6 7 8 9", timeout=120)[1] for process in running]
    assert said == [b""] * 12 and [process.returncode for process in running] == [0] * 12
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    Image.open(tmp_path / "x.png").load()


def test_c_files_are_read(tmp_path: Path) -> None:
    """Functions that are not static, over several lines too, and structs."""
    (tmp_path / "x.c").write_text("""/* int x_no(void) { } */
typedef struct {
    int a; /* { */
} Pair;
static int x_hidden(int a) { return a; }
const char *x_text(const Pair *p) { return 0; }
int x_sum(int a,
          int b) {
    return a + b;
}
""")
    assert prototypes(tmp_path / "x.c", "x_") == "const char *x_text(const Pair *p);\nint x_sum(int a,\n          int b);\n"
    assert re.sub(r"\s+", " ", structure(tmp_path / "x.c", "Pair")) == "typedef struct { int a; } Pair; "
