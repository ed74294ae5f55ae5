# SPDX-License-Identifier: MIT
"""The text that records how a picture was drawn: written, read by others and by janus info."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from janus_library import Library, Refused, ffi
from test_cli import MODEL, ROOT, fails, picture, succeeds

VERSION = re.search(r'#define JANUS_VERSION "(.*)"', (ROOT / "janus.h").read_text())[1]


def text_of(path: Path) -> str | None:
    """What Pillow finds as the text of a picture."""
    with Image.open(path) as image:
        image.load()
        comment = image.info.get("comment")
        return image.info.get("parameters") if comment is None else comment.decode("utf-8")


def chunks(data: bytes) -> list[tuple[str, bytes]]:
    """Names and data of a PNG's chunks; checks their checksums."""
    found, at = [], 8
    while at < len(data):
        size, = struct.unpack(">I", data[at:at + 4])
        name, body = data[at + 4:at + 8], data[at + 8:at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size:at + 12 + size])[0] == zlib.crc32(name + body), name
        found.append((name.decode(), body))
        at += 12 + size
    return found


def draw(path: Path, *arguments: object, prompt: str = "a red fox", **options: object) -> bytes:
    """Draws into `path`; returns its bytes, none where the pictures are numbered."""
    succeeds("generate", "-o", path, *arguments, prompt, **options)
    return path.read_bytes() if path.exists() else b""


def text_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# ---- Written ----

def settings(**changed: str) -> str:
    """The line of settings of a picture of MODEL's, drawn with --seed 3."""
    values = {"Steps": "4", "Sampler": "autoregressive", "CFG scale": "5", "Seed": "3", "Size": "4x4", "Model": "grouped-query (f16)",
              "Temperature": "1", "RNG": "torch", "Picture": "1 of 1", "Version": f"janus {VERSION}"}
    return ", ".join(f"{key}: {value}" for key, value in (values | {key.replace("_", " "): value for key, value in changed.items()}).items())


def test_what_stands_in_a_picture(tmp_path: Path) -> None:
    """The prompt, then the settings, in the form of other programs; equal runs give equal files."""
    model = re.search(r"^name +(.*)\nparameters .*?, (.*?),", succeeds("info").stdout.decode(), re.MULTILINE)
    model = f"{model[1]} ({model[2]})"
    first = draw(tmp_path / "a.png", "--seed", 3)
    assert text_of(tmp_path / "a.png") == "a red fox\n" + settings(Model=model)
    assert draw(tmp_path / "b.png", "--seed", 3, "--threads", 1) == first
    assert succeeds("generate", "--seed", 3, "-o", "-", "a red fox").stdout == first
    assert succeeds("info", tmp_path / "a.png", model=None).stdout.decode() == "a red fox\n" + settings(Model=model) + "\n"
    draw(tmp_path / "c.jpg", "--seed", 3, "--cfg", 1.1, "--temperature", 0.7, "-n", 2)
    for place in (1, 2):
        assert text_of(tmp_path / f"c-{place}.jpg") == "a red fox\n" + settings(
            Model=model, CFG_scale="1.1", Temperature="0.7", Picture=f"{place} of 2")
    draw(tmp_path / "d.png", "--kv", "f16", "--fast")
    assert "RNG: torch, KV: f16, Fast: on, Picture" in text_of(tmp_path / "d.png")


@pytest.mark.parametrize("prompt, kind", [("a red fox", "tEXt"), ("caf\u00e9 \u00df\u00ff", "iTXt"), ("\u65e5\u672c \U0001f98a", "iTXt")])
def test_chunks(tmp_path: Path, prompt: str, kind: str) -> None:
    """tEXt after the header where the prompt is ASCII, else iTXt; all else is as without it."""
    data = draw(tmp_path / "a.png", "--seed", 3, prompt=prompt)
    plain = draw(tmp_path / "b.png", "--seed", 3, "--no-metadata", prompt=prompt)
    found = chunks(data)
    assert [name for name, _ in found[:2]] == ["IHDR", kind] and found[:1] + found[2:] == chunks(plain)
    assert text_of(tmp_path / "a.png").startswith(prompt + "\nSteps: 4, ") and text_of(tmp_path / "b.png") is None
    data, plain = draw(tmp_path / "a.jpg", "--seed", 3, prompt=prompt), draw(tmp_path / "b.jpg", "--seed", 3, "--no-metadata", prompt=prompt)
    size, = struct.unpack(">H", data[22:24])
    assert data[20:22] == b"\xff\xfe" and data[:20] + data[22 + size:] == plain
    assert text_of(tmp_path / "a.jpg").startswith(prompt + "\nSteps: 4, ") and text_of(tmp_path / "b.jpg") is None


def test_which_pictures(tmp_path: Path) -> None:
    """What chat draws says so too, what was decoded does not."""
    succeeds("chat", "--seed", 3, "-q", stdin=b"/draw a red fox\n", cwd=tmp_path)
    assert text_of(tmp_path / "janus-1.png").startswith("a red fox\nSteps: 4, ")
    succeeds("chat", "--seed", 3, "-q", "--no-metadata", stdin=b"/draw a red fox\n", cwd=tmp_path)
    succeeds("decode", stdin=b"1 2 3 4", cwd=tmp_path)
    assert text_of(tmp_path / "janus-2.png") is text_of(tmp_path / "janus-3.png") is None


# ---- Drawn again ----

@pytest.mark.parametrize("options", [[], ["--cfg", 1.1, "--temperature", 7], ["--temperature", 100], ["--kv", "f16"], ["--fast"]])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_drawn_again(tmp_path: Path, options: list, ending: str) -> None:
    """What info prints of a picture is enough to draw it again, bit for bit."""
    for prompt in ("a red fox", "caf\u00e9", "\u65e5\u672c\nSteps: 1, Seed: 9, Version: janus 9"):
        draw(tmp_path / f"a.{ending}", "-n", 3, *options, prompt=prompt)
        told, _, line = succeeds("info", tmp_path / f"a-2.{ending}", model=None).stdout.decode().rstrip("\n").rpartition("\n")
        found = dict(setting.split(": ", 1) for setting in line.split(", "))
        again = ["--seed", found["Seed"], "--cfg", found["CFG scale"], "--temperature", found["Temperature"], "-n", found["Picture"].split(" of ")[1]]
        again += ["--kv", found["KV"]] if "KV" in found else []
        again += ["--fast"] if "Fast" in found else []
        draw(tmp_path / f"b.{ending}", *again, prompt=told)
        for place in (1, 2, 3):
            assert (tmp_path / f"b-{place}.{ending}").read_bytes() == (tmp_path / f"a-{place}.{ending}").read_bytes()


# ---- Of strangers ----

def with_text(path: Path, text: str, **options: object) -> Path:
    """A picture that carries a text, written by Pillow."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "x")
    info.add_itxt("parameters", text, **options) if options else info.add_text("parameters", text)
    with Image.open(picture(path)) as image:
        image.save(path, pnginfo=info)
    return path


OTHERS = "a cat\nNegative prompt: dogs\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: abc, Version: v1.10.1"


def test_pictures_of_others(tmp_path: Path) -> None:
    """info prints what they say; pictures that say nothing, or only compressed, are one line and exit 1."""
    other = with_text(tmp_path / "a.png", OTHERS)
    assert succeeds("info", other, model=None).stdout.decode() == OTHERS + "\n"
    for silent in (picture(tmp_path / "b.png"), picture(tmp_path / "c.jpg")):
        assert "has no prompt and settings" in fails("info", silent, model=None)
    packed = with_text(tmp_path / "f.png", OTHERS, lang="", tkey="", zip=True)
    assert "has no prompt and settings" in fails("info", packed, model=None)
    head = other.read_bytes()
    other.write_bytes(head[:33] + text_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a cat")) + head[33:])
    assert succeeds("info", other, model=None).stdout.decode() == OTHERS + "\n"


def test_texts_that_would_steer_a_terminal(tmp_path: Path) -> None:
    """info prints them without control characters; a text that is cut off is none; what is not UTF-8 is Latin-1."""
    path = with_text(tmp_path / "a.png", "a\x1b[31m cat\r\x07\x7f \u009b2J\nSteps: 1\t", lang="", tkey="")
    assert succeeds("info", path, model=None).stdout.decode() == "a [31m cat      2J\nSteps: 1 \n"
    data = picture(tmp_path / "b.png").read_bytes()
    for body in (b"parameters\0\0\0en", b"parameters\0\0", b"parameters\0", b"parameters"):
        (tmp_path / "b.png").write_bytes(data[:33] + text_chunk(b"iTXt", body) + data[33:])
        fails("info", tmp_path / "b.png", model=None)
    (tmp_path / "b.png").write_bytes(data[:33] + b"\xff\xff\xff\xfftEXtparameters\0a cat")
    succeeds("info", tmp_path / "b.png", model=None)
    with Image.open(picture(tmp_path / "c.jpg")) as image:
        image.save(tmp_path / "c.jpg", comment=b"caf\xe9")
    assert succeeds("info", tmp_path / "c.jpg", model=None).stdout.decode() == "caf\u00e9\n"


# ---- The library ----

def test_library(tmp_path: Path) -> None:
    """A text goes into a file and comes back, also where a JPEG needs several comments; NULL is none; bad ones are refused, NULL where something is needed, too."""
    library = Library()
    image, found = ffi.new("JanusImage *"), ffi.new("char **")
    library.call("janus_image_load", str(picture(tmp_path / "in.png")).encode(), image)
    for ending in ("png", "jpg", "jpeg"):
        path = str(tmp_path / f"out.{ending}").encode()
        for text in ("a fox", "caf\u00e9\n\u65e5\u672c", "\u00e9" * 100001, "x" * 65533, "x" * 131067):
            library.call("janus_image_save_with_text", path, image, text.encode())
            assert Image.open(path.decode()).size == (40, 30)
            library.call("janus_image_text", path, found)
            assert library.take_text(found[0]) == text
        for text in (ffi.NULL, b""):
            library.call("janus_image_save_with_text", path, image, text)
            plain = Path(path.decode()).read_bytes()
            library.call("janus_image_save", path, image)
            assert plain == Path(path.decode()).read_bytes()
            library.call("janus_image_text", path, found)
            assert found[0] == ffi.NULL
        with pytest.raises(Refused, match="not UTF-8"):
            library.call("janus_image_save_with_text", path, image, b"\xff")
    for path in (tmp_path, tmp_path / "none.png", MODEL):
        with pytest.raises(Refused):
            library.call("janus_image_text", str(path).encode(), found)
        assert found[0] == ffi.NULL
    path = str(tmp_path / "out.png").encode()
    for name, *arguments in (("janus_image_load", ffi.NULL, image), ("janus_image_load", path, ffi.NULL), ("janus_image_load_stored", ffi.NULL, image),
                             ("janus_image_load_memory", ffi.NULL, 9, image), ("janus_image_load_memory", b"x", 1, ffi.NULL),
                             ("janus_image_load_memory_stored", ffi.NULL, 0, image), ("janus_image_save", ffi.NULL, image),
                             ("janus_image_save", path, ffi.NULL), ("janus_image_text", ffi.NULL, found), ("janus_image_text", path, ffi.NULL)):
        with pytest.raises(Refused, match="NULL") as refused:
            library.call(name, *arguments)
        assert refused.value.status == library.c.JANUS_BAD_ARGUMENT
    library.c.janus_image_free(image)
