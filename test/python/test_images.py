# SPDX-License-Identifier: MIT
"""Reading images against Pillow: orientation, every kind of file, and what is said of files that are not read."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from janus_library import GOLDEN, JANUS, ROOT, Library, Refused, ffi, stb_flags

MODEL = GOLDEN / "plain.gguf"
ORIENTATION, SHORT, LONG = 0x0112, 3, 4
DECODERS = 4  # the largest difference between two JPEG decoders


LIBRARY = Library()


def load(data: bytes, stored: bool = False) -> np.ndarray:
    """The library's pixels of a file in memory, (height, width, 3)."""
    name, image = "janus_image_load_memory_stored" if stored else "janus_image_load_memory", ffi.new("JanusImage *")
    try:
        LIBRARY.call(name, data, len(data), image)
    except Refused as refused:
        assert refused.status == LIBRARY.c.JANUS_BAD_IMAGE and image.rgb == ffi.NULL
        raise
    return LIBRARY.take_pixels(image)


def pillow(data: bytes) -> np.ndarray:
    """Pillow's pixels of the same file, as stored."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """A file of this kind."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int = 23, height: int = 14) -> Image.Image:
    """Colours that tell every corner from the others."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 * x // max(width - 1, 1), 255 * y // max(height - 1, 1), 40 + 80 * ((x // 8 + y // 8) % 2)], 2)
    return Image.fromarray(rgb.astype(np.uint8))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two pictures of one shape."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


# ---- Orientation ----

def tiff(order: str, entries: list[tuple[int, int, int, bytes]], tail: bytes = b"") -> bytes:
    """EXIF's content: (tag, type, count, four bytes) each; `order` is < or >."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    table = b"".join(struct.pack(order + "HHI", tag, type_, count) + value for tag, type_, count, value in entries)
    return head + struct.pack(order + "IH", 8, len(entries)) + table + bytes(4) + tail


def short(order: str, value: int) -> tuple[int, int, int, bytes]:
    """The entry with an orientation."""
    return ORIENTATION, SHORT, 1, struct.pack(order + "HH", value, 0)


def segment(data: bytes, marker: int = 0xE1) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_with(parts: bytes, **options: object) -> bytes:
    """A JPEG with these segments at its beginning."""
    data = saved(photo(), "JPEG", quality=95, **options)
    return data[:2] + parts + data[2:]


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(name: bytes, content: bytes, last: bool = False) -> bytes:
    """A PNG with this chunk before or after its pixels."""
    data = saved(photo(), "PNG")
    at = len(data) - 12 if last else 33
    return data[:at] + chunk(name, content) + data[at:]


def as_pillow(data: bytes) -> np.ndarray:
    """The library's stored pixels, turned as Pillow turns this file's."""
    image = Image.open(io.BytesIO(data))
    turned = Image.fromarray(load(data, stored=True))
    turned.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return np.asarray(ImageOps.exif_transpose(turned))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(10))
@pytest.mark.parametrize("place", ["jpeg", "progressive", "png", "png, at its end"])
def test_orientation(value: int, order: str, place: str) -> None:
    """All eight values, and two that are none, in both byte orders, wherever they may stand."""
    exif = tiff(order, [short(order, value)])
    data = {
        "jpeg": lambda: jpeg_with(segment(b"Exif\0\0" + exif)),
        "progressive": lambda: jpeg_with(segment(b"Exif\0\0" + exif), progressive=True),
        "png": lambda: png_with(b"eXIf", exif),
        "png, at its end": lambda: png_with(b"eXIf", exif, last=True),
    }[place]()
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape == ((23, 14, 3) if 5 <= value <= 8 else (14, 23, 3))
    assert difference(load(data), expected) <= (0 if "png" in place else DECODERS)
    assert np.array_equal(load(data), as_pillow(data))
    assert np.array_equal(load(data, stored=True), load(saved(photo(), "PNG")) if "png" in place else load(jpeg_with(b"", progressive=place == "progressive")))


def test_exif_after_the_pixels() -> None:
    """Of a JPEG it does not count."""
    data = jpeg_with(b"")
    assert load(data[:-2] + segment(b"Exif\0\0" + tiff("<", [short("<", 6)])) + data[-2:]).shape == (14, 23, 3)


VALUES = st.one_of(st.integers(0, 9), st.integers(0, 2**16 - 1))


@st.composite
def directories(draw: st.DrawFn) -> bytes:
    """EXIF with random entries: other tags, orientations in numbers of both sizes, inline and elsewhere, cut off anywhere."""
    order = draw(st.sampled_from("<>"))
    entries = []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            entries.append((draw(st.integers(0x100, 0x111)), draw(st.integers(0, 14)), draw(st.integers(0, 3)), draw(st.binary(min_size=4, max_size=4))))
            continue
        type_, count = draw(st.sampled_from([SHORT, LONG])), draw(st.integers(0, 5))
        value = draw(VALUES)
        inline = struct.pack(order + "HH", value, draw(VALUES)) if type_ == SHORT else struct.pack(order + "I", value)
        place = struct.pack(order + "I", draw(st.integers(0, 90)))
        entries.append((ORIENTATION, type_, count, inline if count * (2 if type_ == SHORT else 4) <= 4 else place))
    tail = b"".join(struct.pack(order + "H", draw(VALUES)) for _ in range(draw(st.integers(0, 12))))
    data = tiff(order, entries, tail)
    return data[:draw(st.integers(8, len(data)))] if draw(st.booleans()) else data


@settings(max_examples=1000, deadline=None)
@given(directories())
@pytest.mark.filterwarnings("ignore")
def test_orientation_of_any_directory(exif: bytes) -> None:
    """What Pillow finds in it. (Its exif_transpose also writes the rest again, which can fail.)"""
    data = png_with(b"eXIf", exif)
    assert np.array_equal(load(data), as_pillow(data))


def test_damaged_exif_is_ignored() -> None:
    """Cut off anywhere, with any byte changed, or not EXIF at all: the picture is read, maybe turned."""
    exif = b"Exif\0\0" + tiff(">", [(0x010F, 2, 20, struct.pack(">I", 60)), short(">", 6)], b"somebody's camera...")
    stored = load(jpeg_with(b""))
    both = {stored.tobytes(), np.asarray(Image.fromarray(stored).transpose(Image.Transpose.ROTATE_270)).tobytes()}
    damaged = [exif[:n] for n in range(len(exif))]
    damaged += [exif[:i] + bytes([value]) + exif[i + 1:] for i in range(len(exif)) for value in (0, 0x7F, 0xFF)]
    damaged += [b"Exif\0\0", b"Exif\0\0" * 9, b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
    seen = set()
    for content in damaged:
        pixels = load(jpeg_with(segment(content)))
        assert pixels.shape in ((14, 23, 3), (23, 14, 3))
        if pixels.tobytes() in both:
            seen.add(pixels.tobytes())
        load(png_with(b"eXIf", content))
    assert seen == both
    assert np.array_equal(load(jpeg_with(segment(b"Exif\0\0II+\0" + exif[10:]))), stored)


@pytest.mark.parametrize("command", ["ask", "chat", "encode"])
def test_orientation_in_every_command(command: str, tmp_path: Path) -> None:
    """What the encoders see of a turned photograph is what they see of one that was turned before; --no-exif: of the stored one."""
    Image.open(io.BytesIO(png_with(b"eXIf", tiff(">", [short(">", 6)])))).save(tmp_path / "copy.png")
    (tmp_path / "turned.png").write_bytes(png_with(b"eXIf", tiff(">", [short(">", 6)])))
    photo().transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    photo().save(tmp_path / "stored.png")

    def seen(*arguments: object) -> np.ndarray:
        folder = tmp_path / f"dump{len(list(tmp_path.iterdir()))}"
        question = ["What?"] if command == "ask" else []
        subprocess.run([JANUS, command, "-q", "-m", MODEL, "--dump", folder, *arguments, *question],
                       input=b"What?\n" if command == "chat" else b"", check=True, capture_output=True, timeout=60)
        return np.load(folder / ("vq.encoder.input.npy" if command == "encode" else "vision.pixel_values.npy"))

    upright, stored = seen("-i", tmp_path / "upright.png"), seen("-i", tmp_path / "stored.png")
    assert not np.array_equal(upright, stored)
    assert np.array_equal(seen("-i", tmp_path / "turned.png"), upright)
    assert np.array_equal(seen("--no-exif", "-i", tmp_path / "turned.png"), stored)


# ---- PNG ----

PALETTE = bytes(np.random.default_rng(3).integers(0, 256, 768, dtype=np.uint8))


def palette_png(bits: int, chunks: list[tuple[bytes, bytes]], interlaced: bool = False, kind: int = 3) -> bytes:
    """A PNG with every value of `bits` bits, in rows of 19 pixels."""
    width, height = 19, 16
    values = (np.arange(width * height).reshape(height, width) * 7 % 256) >> (8 - bits)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)] if interlaced else [(0, 0, 1, 1)]
    rows = b""
    for y, x, down, across in passes:
        for row in values[y::down, x::across]:
            digits = "".join(f"{value:0{bits}b}" for value in row)
            rows += b"\0" + int(digits.ljust(-len(digits) % 8 + len(digits), "0"), 2).to_bytes((len(digits) + 7) // 8, "big")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*part) for part in chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colours", [1, 2, 3, 7, 100, 255, 256])
def test_palettes(bits: int, colours: int, interlaced: bool) -> None:
    """A colour beyond the end of the palette is black, whatever the transparency; stb takes it from uninitialised memory."""
    colours = min(colours, 1 << bits)
    for transparency in ([], [(b"tRNS", bytes(1))], [(b"tRNS", bytes(colours))], [(b"tRNS", bytes(256))], [(b"tRNS", b"")]):
        data = palette_png(bits, [(b"PLTE", PALETTE[:3 * colours]), *transparency], interlaced)
        assert np.array_equal(load(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[:, :, :3])


def test_odd_chunks() -> None:
    """Palettes of odd lengths, transparency in odd places, a missing end: as Pillow. Unknown critical chunks and missing palettes are refused."""
    plain, black = palette_png(8, [(b"PLTE", PALETTE)]), palette_png(8, [(b"PLTE", PALETTE[:6])])
    assert np.array_equal(load(palette_png(8, [(b"PLTE", PALETTE[:7])])), load(black))
    assert np.array_equal(load(palette_png(8, [(b"tRNS", b"\0"), (b"PLTE", PALETTE)])), load(plain))
    assert np.array_equal(load(plain[:-12]), load(plain)) and np.array_equal(load(plain[:-14]), load(plain))
    assert np.array_equal(load(plain[:-12] + chunk(b"PLTE", bytes(768)) + plain[-12:]), load(plain))
    for grey in (palette_png(8, [(b"tRNS", bytes(n))], kind=0) for n in (0, 2, 6)):
        assert np.array_equal(load(grey), load(palette_png(8, [], kind=0)))
    assert not load(palette_png(8, [(b"PLTE", b"")])).any()
    for chunks in ([], [(b"PLTE", bytes(771))], [(b"PLTE", PALETTE), (b"ABCD", b"")], [(b"PLTE", PALETTE), (b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 3, 0, 0, 0))]):
        with pytest.raises(Refused, match="is damaged"):
            load(palette_png(8, chunks))


# ---- JPEG ----

JPEGS = {
    "4:4:4": dict(subsampling="4:4:4"), "4:2:2": dict(subsampling="4:2:2"), "4:2:0": {}, "grey": dict(mode="L"), "cmyk": dict(mode="CMYK"),
    "restarts": dict(restart_marker_blocks=1), "restarts 4:4:4": dict(restart_marker_blocks=5, subsampling="4:4:4"), "restarts grey": dict(restart_marker_rows=1, mode="L"),
    "progressive": dict(progressive=True), "progressive restarts": dict(progressive=True, restart_marker_blocks=3), "progressive grey": dict(progressive=True, mode="L"),
}
STRAY = [b"\0\xff\0" * 40, b"\xff\0" * 300, b"\xff\xd3", b"\xff\xd0\xff\xd1\xff\xd2", b"\xff\xd7junk\xff\xd0\0\0junk" * 3, b"\xff" * 9, b"junk\xff\xd5\xff\0"]


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    """A JPEG of 61 x 45 pixels."""
    return saved(photo(61, 45).convert(mode), "JPEG", quality=90, **options)


def jpeg_parts(data: bytes) -> list[bytes]:
    """A JPEG's segments, of a scan with its pixels; the end without its marker."""
    parts, at = [], 2
    while data[at + 1] != 0xD9:
        begin, at = at, at + 2 + int.from_bytes(data[at + 2:at + 4], "big")
        if data[begin + 1] == 0xDA:
            at += re.search(rb"\xff[^\0\xd0-\xd7]", data[at:], re.DOTALL).start()
        parts.append(data[begin:at])
    return parts


def joined(parts: list[bytes]) -> bytes:
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


@pytest.mark.parametrize("kind", JPEGS)
def test_bytes_that_belong_to_no_pixel(kind: str) -> None:
    """After the last pixel, as drones and scanners leave them, and between segments: they change nothing."""
    parts = jpeg_parts(jpeg(**JPEGS[kind]))
    expected = load(joined(parts))
    assert difference(expected, pillow(joined(parts))) <= DECODERS
    for stray in STRAY:
        assert np.array_equal(load(joined([part + stray if part[1] == 0xDA else part for part in parts])), expected), stray
        assert np.array_equal(load(joined(parts) + stray), expected), stray
    for stray in (b"\xff\0\2", b"\0", b"junk", b"\xff\xd8", b"\xff\xff"):
        assert np.array_equal(load(joined([part if part[1] == 0xDA else part + stray for part in parts])), expected), stray


@pytest.mark.parametrize("kind", JPEGS)
def test_missing_tables(kind: str) -> None:
    """Huffman tables that a sequential JPEG leaves out, as frames of MJPEG do, are the standard ones; nothing else may be left out."""
    parts = jpeg_parts(jpeg(**JPEGS[kind]))
    expected = load(joined(parts))
    tables = [i for i, part in enumerate(parts) if part[1] == 0xC4]
    for left_out in (set(tables), *({i} for i in tables)):
        data = joined([part for i, part in enumerate(parts) if i not in left_out])
        if "progressive" not in kind:
            assert np.array_equal(load(data), expected)
            assert difference(load(data), pillow(data)) <= DECODERS
        elif len(left_out) > 1:
            with pytest.raises(Refused, match="is damaged"):
                load(data)
    for marker in (0xDB, 0xC0, 0xC2, 0xDA):
        if any(part[1] == marker for part in parts):
            with pytest.raises(Refused, match="is damaged"):
                load(joined([part for part in parts if part[1] != marker]))


@pytest.mark.parametrize("kind", JPEGS)
def test_bad_segments(kind: str) -> None:
    """A segment that stb does not understand is an error wherever it stands, not the end of the picture."""
    parts = jpeg_parts(jpeg(**JPEGS[kind]))
    for bad in (segment(b"\0" * 70, 0xDB), segment(b"\0" + b"\xff" * 16, 0xC4), segment(bytes(18), 0xC4), segment(b"\0", 0xDD), segment(b"", 0xF0), segment(b"x", 0x42)):
        for i in range(len(parts)):
            with pytest.raises(Refused, match="is damaged"):
                load(joined([*parts[:i], bad, *parts[i:]]))


@pytest.mark.skipif(os.name != "posix", reason="needs an allocator whose memory can be filled")
@pytest.mark.parametrize("kind", JPEGS)
def test_pixels_that_are_missing(kind: str, tmp_path: Path) -> None:
    """Where data are missing, the same file gives the same pixels in every run, whatever was in memory before."""
    parts = jpeg_parts(jpeg(**JPEGS[kind]))
    scans = [i for i, part in enumerate(parts) if part[1] == 0xDA]
    damaged = [joined([part for j, part in enumerate(parts) if j != i]) for i in scans[:-1]]
    damaged += [joined([*parts[:scans[0]], parts[scans[0]][:length]]) for length in (20, len(parts[scans[0]]) // 2)]
    for data in damaged:
        (tmp_path / "damaged.jpg").write_bytes(data)
        seen = [subprocess.run([JANUS, "encode", "-m", MODEL, "-i", tmp_path / "damaged.jpg"], capture_output=True, timeout=60,
                               env=os.environ | {"MALLOC_PERTURB_": fill}) for fill in ("85", "170")]
        assert seen[0].returncode in (0, 1) and seen[0].stdout == seen[1].stdout and seen[0].stderr == seen[1].stderr

def four_channels(adobe: int | None, **options: object) -> bytes:
    """A JPEG with four channels; `adobe` is what Adobe's marker says of their colours, None: without the marker."""
    y, x = np.mgrid[0:29, 0:37]
    data = saved(Image.fromarray(np.stack([5 * x, 7 * y, 3 * (x + y), 2 * x + y], 2).astype(np.uint8), "CMYK"), "JPEG", quality=95, **options)
    at = data.index(b"\xff\xee\0\x0eAdobe")
    return data[:at] + (b"" if adobe is None else data[at:at + 15] + bytes([adobe])) + data[at + 16:]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("adobe", [None, 0, 1, 2])
def test_four_channels(adobe: int | None, progressive: bool) -> None:
    """CMYK without Adobe's marker and with 0, YCCK with others: libjpeg's rule and Pillow's colours."""
    data = four_channels(adobe, progressive=progressive)
    assert difference(load(data), pillow(data)) <= DECODERS


@pytest.mark.parametrize("width", [1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 18, 31, 33, 64])
def test_last_columns(width: int) -> None:
    """Colours of half the width: red and blue columns, whose blend shows which neighbour counts. (libjpeg
    does not blend the two samples of a picture of 3 or 4 columns, stb does.)"""
    rgb = np.zeros((16, width, 3), np.uint8)
    rgb[:, :, 0], rgb[:, :, 2] = 255 * (np.arange(width) // 2 % 2), 255 * (np.arange(width) // 2 % 2 == 0)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        data = saved(Image.fromarray(rgb), "JPEG", quality=95, subsampling=subsampling)
        assert difference(load(data), pillow(data)) <= DECODERS, subsampling


# ---- What is not read, and limits ----

def frame(marker: int, bits: int = 8, channels: int = 3, height: int = 16) -> bytes:
    """A JPEG with this frame."""
    parts = b"".join(bytes([i + 1, 0x11, 0]) for i in range(channels))
    quantisers = segment(b"\0" + b"\1" * 64, 0xDB)
    return b"\xff\xd8" + quantisers + segment(struct.pack(">BHHB", bits, height, 16, channels) + parts, marker) + segment(bytes(10), 0xDA) + b"\0\xff\xd9"


UNREAD = {
    "WebP.*dwebp": saved(photo(), "WEBP"),
    "AVIF.*avifdec": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + bytes(40),
    "HEIC.*heif-convert": b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(40),
    "HEIF.*heif-convert": b"\0\0\0\x1cftypmif1\0\0\0\0mif1" + bytes(40),
    "video.*ffmpeg": b"\0\0\0\x18ftypmp42" + bytes(40),
    "TIFF.*magick": saved(photo(), "TIFF"),
    "GIF.*magick": saved(photo(), "GIF"),
    "BMP.*magick": saved(photo(), "BMP"),
    "PPM.*magick": saved(photo(), "PPM"),
    "neither a PNG nor a JPEG": saved(photo(), "TGA"),
    "JPEG XL.*djxl": b"\xff\x0a" + bytes(40),
    "SVG.*rsvg-convert": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF.*pdftoppm": b"%PDF-1.7\n",
    "of an unsupported kind .arithmetic": frame(0xC9),
    "of an unsupported kind .arithmetic ": frame(0xCA),
    "of an unsupported kind .*lossless": frame(0xC3),
    "of an unsupported kind .*hierarchical": frame(0xC5),
    "of an unsupported kind .*no usual frame": frame(0xF7),
    "of an unsupported kind .only 8-bit": frame(0xC1, bits=12),
    "of an unsupported kind .bad component count": frame(0xC0, channels=2),
    "of an unsupported kind .no header height": frame(0xC0, height=0),
    "of an unsupported kind .*Apple": saved(photo(), "PNG").replace(chunk(b"IEND", b""), chunk(b"CgBI", bytes(4)) + chunk(b"IEND", b"")),
}


@pytest.mark.parametrize("reason", UNREAD)
def test_unread_kinds_are_named(reason: str, tmp_path: Path) -> None:
    """By what they hold, whatever their name says, and with what to do; in the program too."""
    with pytest.raises(Refused, match=reason):
        load(UNREAD[reason])
    (tmp_path / "f.jpg").write_bytes(UNREAD[reason])
    done = subprocess.run([JANUS, "encode", "-m", MODEL, "-i", tmp_path / "f.jpg"], capture_output=True, timeout=60)
    assert done.returncode == 1 and not done.stdout
    message = done.stderr.decode()
    assert message.startswith(f"janus: {tmp_path}/f.jpg is ") and message.count("\n") == 1 and "not a PNG" not in message


TOO_LARGE = {
    "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16384, 16384, 8, 2, 0, 0, 0)),
    "jpeg": frame(0xC0).replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 13378, 13378)),
    "jpeg side": frame(0xC0).replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 1, 16385)),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_sizes(kind: str) -> None:
    """Beyond 16384 pixels a side or Pillow's 178,956,970 in all."""
    assert Image.MAX_IMAGE_PIXELS is not None and 2 * Image.MAX_IMAGE_PIXELS == 178956970
    with pytest.raises(Refused, match="[0-9] x [0-9]+ pixels: the limit is 16384 a side and 178,956,970 in all"):
        load(TOO_LARGE[kind])


@pytest.mark.parametrize("channels", [1, 3])
def test_small_jpeg_of_many_pixels(channels: int) -> None:
    """Twenty scans of 179 million pixels in a few hundred bytes would take seconds."""
    tables = segment(b"\0\1" + bytes(15) + b"\0\x10\1" + bytes(15) + b"\0", 0xC4) + segment(b"\0" + b"\1" * 64, 0xDB)
    parts = b"".join(bytes([i + 1, 0x11, 0]) for i in range(channels))
    head = b"\xff\xd8" + tables + segment(struct.pack(">BHHB", 8, 10922, 16384, channels) + parts, 0xC2)
    first = segment(bytes([channels]) + b"".join(bytes([i + 1, 0]) for i in range(channels)) + bytes(3), 0xDA) + b"\0"
    with pytest.raises(Refused, match="too short for so many pixels"):
        load(head + first + (segment(b"\1\1\0\1\x3f\0", 0xDA) + b"\0") * 19 + b"\xff\xd9")
    uniform = saved(Image.new("L", (8192, 8192)), "JPEG", optimize=True, progressive=True)
    assert load(uniform).shape == (8192, 8192, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_cut_off(kind: str) -> None:
    """No kind of file loses its last rows without a word."""
    data = saved(photo(40, 40), kind)
    whole = load(data)
    for length in range(len(data)):
        try:
            assert np.array_equal(load(data[:length]), whole) and length > len(data) // 2
        except Refused as refused:
            assert length < 33 or "is damaged" in str(refused)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a compiler")
def test_old_headers_are_refused(tmp_path: Path) -> None:
    """stb_image.h before 2.28 does not compile, and the message says what is needed."""
    command = ["cc", *stb_flags(), "-M", "-DJANUS_NO_SIMD", "janus.c"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for header in (ROOT / path for path in found if "stb_image" in path):
        (tmp_path / header.name).write_text(header.read_text().replace("stbi__skip_jpeg_junk_at_end", "stbi__another_name"))
    done = subprocess.run(["cc", "-I", tmp_path, "-DJANUS_STB_FLAT", "-DJANUS_NO_SIMD", "-fsyntax-only", "janus.c"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "STB_IMAGE_H_2_28_OR_NEWER_IS_NEEDED" in done.stderr
