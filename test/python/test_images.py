# SPDX-License-Identifier: MIT
"""Reading images against Pillow: orientation, every kind of file, and what is said of files that are not read."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from janus_library import Library, Refused, ffi

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("JANUS_PROGRAM", ROOT / "janus"))
MODEL = ROOT / "test" / "golden" / "plain.gguf"
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
@pytest.mark.parametrize("place", ["jpeg", "progressive", "png", "png, at its end", "xmp", "xmp element", "png xmp"])
def test_orientation(value: int, order: str, place: str) -> None:
    """All eight values, and two that are none, in both byte orders, wherever they may stand."""
    exif = tiff(order, [short(order, value)])
    attribute = b'<rdf:Description tiff:Orientation="%d"/>' % value
    data = {
        "jpeg": lambda: jpeg_with(segment(b"Exif\0\0" + exif)),
        "progressive": lambda: jpeg_with(segment(b"Exif\0\0" + exif), progressive=True),
        "png": lambda: png_with(b"eXIf", exif),
        "png, at its end": lambda: png_with(b"eXIf", exif, last=True),
        "xmp": lambda: jpeg_with(segment(b"http://ns.adobe.com/xap/1.0/\0" + attribute)),
        "xmp element": lambda: jpeg_with(segment(b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>%d</tiff:Orientation>" % value)),
        "png xmp": lambda: png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + attribute),
    }[place]()
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape == ((23, 14, 3) if 5 <= value <= 8 else (14, 23, 3))
    assert difference(load(data), expected) <= (0 if "png" in place else DECODERS)
    assert np.array_equal(load(data), as_pillow(data))
    assert np.array_equal(load(data, stored=True), load(saved(photo(), "PNG")) if "png" in place else load(jpeg_with(b"", progressive=place == "progressive")))


def test_exif_before_xmp() -> None:
    """EXIF counts where both speak; what is not before the first scan does not."""
    exif, xmp = tiff("<", [short("<", 6)]), b'http://ns.adobe.com/xap/1.0/\0 tiff:Orientation="3"'
    for parts in (segment(b"Exif\0\0" + exif) + segment(xmp), segment(xmp) + segment(b"Exif\0\0" + exif)):
        assert np.array_equal(load(jpeg_with(parts)), as_pillow(jpeg_with(parts)))
        assert load(jpeg_with(parts)).shape == (23, 14, 3)
    data = jpeg_with(b"")
    data = data[:-2] + segment(b"Exif\0\0" + exif) + data[-2:]
    assert load(data).shape == (14, 23, 3)


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
        subprocess.run([PROGRAM, command, "-q", "-m", MODEL, "--dump", folder, *arguments, *question],
                       input=b"What?\n" if command == "chat" else b"", check=True, capture_output=True, timeout=60)
        return np.load(folder / ("vq.encoder.input.npy" if command == "encode" else "vision.pixel_values.npy"))

    upright, stored = seen("-i", tmp_path / "upright.png"), seen("-i", tmp_path / "stored.png")
    assert not np.array_equal(upright, stored)
    assert np.array_equal(seen("-i", tmp_path / "turned.png"), upright)
    assert np.array_equal(seen("--no-exif", "-i", tmp_path / "turned.png"), stored)


# ---- JPEG ----

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


# ---- GIF, PNM, TGA ----

def gif_block(data: bytes) -> bytes:
    """Blocks of at most 255 bytes."""
    return b"".join(bytes([len(data[i:i + 255])]) + data[i:i + 255] for i in range(0, len(data), 255)) + b"\0"


def lzw(entries: list[int], bits: int, defer: bool = False) -> bytes:
    """A GIF's compressed data; `defer`: no new table after 4096 codes."""
    out, held, count = bytearray(), 0, 0
    clear = 1 << bits
    table, width, before = {(i,): i for i in range(clear)}, bits + 1, ()

    def put(code: int) -> None:
        nonlocal held, count
        held, count = held | code << count, count + width
        while count >= 8:
            out.append(held & 255)
            held, count = held >> 8, count - 8

    put(clear)
    size = clear + 2
    for entry in entries:
        if before + (entry,) in table:
            before += (entry,)
            continue
        put(table[before])
        if size < 4096:
            table[before + (entry,)] = size
            size += 1
            width = max(width, min((size - 1).bit_length(), 12))
        elif not defer:
            put(clear)
            table, width, size = {(i,): i for i in range(clear)}, bits + 1, clear + 2
        before = (entry,)
    put(table[before])
    put(clear + 1)
    if count:
        out.append(held & 255)
    return bytes([bits]) + gif_block(bytes(out))


def gif(entries: np.ndarray, canvas: tuple[int, int] | None = None, at: tuple[int, int] = (0, 0), bits: int = 8, palette: bytes | None = None,
        local: bytes | None = None, transparent: int | None = None, interlaced: bool = False, extra: bytes = b"", **options: object) -> bytes:
    """A GIF of one picture, (height, width) entries; a palette of None is not there."""
    height, width = entries.shape
    rows = [y for first, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(first, height, step)] if interlaced else range(height)

    def flags(colours: bytes | None) -> int:
        return 0 if colours is None else 0x80 | (len(colours) // 3).bit_length() - 2

    control = b"" if transparent is None else b"\x21\xf9\x04\x01\0\0" + bytes([transparent, 0])
    return (b"GIF89a" + struct.pack("<HHBBB", *(canvas or (width, height)), flags(palette), 1, 0) + (palette or b"") + extra + control +
            b"," + struct.pack("<HHHHB", *at, width, height, flags(local) | 0x40 * interlaced) + (local or b"") +
            lzw([int(e) for y in rows for e in entries[y]], bits, **options) + b";")


def noise(width: int, height: int, levels: int = 256, seed: int = 1) -> np.ndarray:
    """Random entries in short runs."""
    chance = np.random.default_rng(seed)
    return np.repeat(chance.integers(0, levels, (height, width // 2 + 1), dtype=np.uint8), 2, 1)[:, :width]


COLOURS = bytes(np.random.default_rng(3).integers(0, 256, 768, dtype=np.uint8))
GIFS = {
    "plain": gif(noise(31, 20), palette=COLOURS),
    "long": gif(noise(150, 90), palette=COLOURS),
    "deferred": gif(noise(150, 90), palette=COLOURS, defer=True),
    "runs": gif(np.zeros((200, 300), np.uint8), palette=COLOURS[:6], bits=2),
    "one pixel": gif(np.zeros((1, 1), np.uint8), palette=COLOURS[:6], bits=2),
    "four colours": gif(noise(13, 9, 4), palette=COLOURS[:12], bits=2),
    "interlaced": gif(noise(17, 23), palette=COLOURS, interlaced=True),
    "interlaced, few rows": gif(noise(9, 3), palette=COLOURS, interlaced=True),
    "transparent": gif(noise(12, 12, 8), palette=COLOURS[:24], bits=3, transparent=5),
    "inside": gif(noise(8, 6), canvas=(20, 15), at=(5, 4), palette=COLOURS),
    "inside, transparent": gif(noise(8, 6), canvas=(20, 15), at=(5, 4), palette=COLOURS, transparent=200),
    "outside": gif(noise(8, 6), canvas=(5, 5), at=(2, 1), palette=COLOURS),
    "local palette": gif(noise(10, 10, 16), palette=COLOURS[:6], local=COLOURS[48:96], bits=4),
    "only a local palette": gif(noise(10, 10, 16), local=COLOURS[48:96], bits=4),
    "no palette": gif(noise(10, 10)),
    "extensions": gif(noise(7, 7), palette=COLOURS, extra=b"\x21\xfe\x05hello\0\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0", transparent=3),
    "animated": saved(photo(), "GIF", save_all=True, append_images=[photo().rotate(180)]),
    "by Pillow": saved(photo(60, 50).quantize(100), "GIF"),
}


@pytest.mark.parametrize("name", GIFS)
def test_gif(name: str) -> None:
    """The first picture, pixel by pixel."""
    assert np.array_equal(load(GIFS[name]), pillow(GIFS[name]))


@pytest.mark.parametrize("name", ["plain", "interlaced", "runs", "transparent"])
def test_damaged_gif(name: str) -> None:
    """Cut off anywhere it is refused, unless only what follows the last pixel is missing; changed anywhere it is read or refused."""
    data, chance = GIFS[name], random.Random(1)
    whole = load(data)
    for length in range(len(data) - 6):
        with pytest.raises(Refused):
            load(data[:length])
    for length in range(len(data) - 6, len(data)):
        try:
            assert np.array_equal(load(data[:length]), whole)
        except Refused as refused:
            assert "is damaged: " in str(refused)
    for _ in range(300):
        at = chance.randrange(6, len(data))
        try:
            load(data[:at] + bytes([chance.randrange(256)]) + data[at + 1:])
        except Refused:
            pass


def test_gif_that_goes_on() -> None:
    """Gigabytes of sequences behind the last pixel cost no time: they are not unpacked."""
    codes = gif(np.zeros((90, 90), np.uint8), palette=COLOURS[:6], bits=2)
    at = codes.rindex(b"\0;")
    long = codes[:at] + gif_block(bytes(range(255)) * 80000)[:-1] + codes[at:]
    assert np.array_equal(load(long), load(codes))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("largest", [1, 7, 100, 255, 256, 1023, 4095, 65535])
def test_pnm(channels: int, largest: int) -> None:
    """Samples of one and two bytes, whatever stands for white. (Pillow keeps grey ones of two bytes as numbers.)"""
    values = np.random.default_rng(largest).integers(0, largest + 1, (9, 13, channels))
    values[0, 0], values[0, 1] = 0, largest
    head = b"P%d # made\n#by hand\n 13\t9\r\n%d\n" % (6 if channels == 3 else 5, largest)
    data = head + values.astype(">u2" if largest > 255 else np.uint8).tobytes()
    expected = np.rint(values / largest * 255).astype(np.uint8) * np.ones((1, 1, 3), np.uint8)
    assert np.array_equal(load(data), expected)
    if channels == 3 or largest <= 255:
        assert np.array_equal(load(data), pillow(data))
    for length in (0, 1, 2, 3, 10, len(head), len(data) - 1):
        with pytest.raises(Refused):
            load(data[:length])
    assert np.array_equal(load(data + b"more"), expected)


@pytest.mark.parametrize("head", [b"P6\n0 5\n255\n", b"P6\n5 0\n255\n", b"P6\n5 5\n0\n", b"P6\n5 5\n65536\n", b"P6\n-5 5\n255\n", b"P6\n5\n",
                                  b"P6\n99999999999999999999 5\n255\n", b"P6\n16385 1\n255\n", b"P6\n5 5 x\n", b"P6\n# 5 5 255"])
def test_bad_pnm(head: bytes) -> None:
    """Numbers that are none or too large."""
    with pytest.raises(Refused, match="damaged|accepted"):
        load(head + bytes(100000))


def tga(kind: int, bits: int, flags: int, body: bytes, size: tuple[int, int] = (13, 7), palette: bytes = b"", palette_bits: int = 0) -> bytes:
    """A TGA with a remark."""
    entries = len(palette) * 8 // ((palette_bits + 7) // 8 * 8) if palette_bits else 0
    return struct.pack("<BBBHHBHHHHBB", 6, palette_bits > 0, kind, 0, entries, palette_bits, 0, 0, *size, bits, flags) + b"remark" + palette + body


def packets(pixels: list[bytes]) -> bytes:
    """TGA's run lengths: packets of one pixel repeated and of several."""
    out, at = b"", 0
    while at < len(pixels):
        run = 1
        while at + run < len(pixels) and run < 128 and pixels[at + run] == pixels[at]:
            run += 1
        if run > 1:
            out += bytes([0x80 | run - 1]) + pixels[at]
        else:
            out += b"\0" + pixels[at]
        at += run
    return out


@pytest.mark.parametrize("flags", [0, 0x10, 0x20, 0x30])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind, bits", [(2, 16), (2, 24), (2, 32), (3, 8), (3, 16), (1, 8)])
def test_tga(kind: int, bits: int, packed: bool, flags: int) -> None:
    """All that both read, from every corner."""
    body = noise(13 * bits // 8, 7, 16 if kind == 1 else 256).tobytes()
    pixels = [body[i:i + bits // 8] for i in range(0, len(body), bits // 8)]
    colours = {"palette": COLOURS[:48], "palette_bits": 24} if kind == 1 else {}
    runs = b"".join(packets(pixels[i:i + 13]) for i in range(0, 91, 13))
    data = tga(kind + 8 * packed, bits, flags, runs if packed else body, **colours)
    assert np.array_equal(load(data), pillow(data))
    for length in (*range(0, 40, 3), len(data) - 1):
        with pytest.raises(Refused):
            load(data[:length])


def test_tga_by_others() -> None:
    """Pillow's files."""
    for image in (photo(), photo().convert("L"), photo().convert("RGBA"), photo().quantize(20)):
        for options in ({}, {"compression": "tga_rle"}, {"orientation": 1}):
            assert np.array_equal(load(saved(image, "TGA", **options)), np.asarray(image.convert("RGB")))


def test_random_bytes_are_no_image() -> None:
    """TGA has no signature; still, noise, text and zeros are told to be no image."""
    chance = random.Random(1)
    accepted = 0
    for content in [bytes(n) for n in range(64)] + [b"a text\n" * 20] + [chance.randbytes(60) for _ in range(20000)]:
        try:
            load(content)
            accepted += 1
        except Refused as refused:
            accepted += "not an image of a kind" not in str(refused) and "is empty" not in str(refused)
    assert accepted < 5


# ---- What is not read, and limits ----

def frame(marker: int, bits: int = 8, channels: int = 3, height: int = 16) -> bytes:
    """A JPEG with this frame."""
    parts = b"".join(bytes([i + 1, 0x11, 0]) for i in range(channels))
    return b"\xff\xd8" + segment(struct.pack(">BHHB", bits, height, 16, channels) + parts, marker) + segment(bytes(10), 0xDA) + b"\0\xff\xd9"


def bmp(packing: int = 0, header: int = 40, bits: int = 24, size: tuple[int, int] = (4, 3), body: int = 36) -> bytes:
    """A BMP of zeros."""
    return b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, header, *size, 1, bits, packing, 0, 0, 0, 0, 0) + bytes(body)


UNREAD = {
    "WebP.*dwebp": saved(photo(), "WEBP"),
    "AVIF.*avifdec": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + bytes(40),
    "HEIC.*heif-convert": b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(40),
    "HEIF.*heif-convert": b"\0\0\0\x1cftypmif1\0\0\0\0mif1" + bytes(40),
    "video.*ffmpeg": b"\0\0\0\x18ftypmp42" + bytes(40),
    "TIFF.*magick": saved(photo(), "TIFF"),
    "JPEG 2000.*opj_decompress": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "JPEG XL.*djxl": b"\xff\x0a" + bytes(40),
    "Windows icon": saved(photo(), "ICO"),
    "SVG.*rsvg-convert": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF.*pdftoppm": b"%PDF-1.7\n",
    "web page.*browser": b"<!DOCTYPE html><html>404</html>",
    "LFS.*git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "PBM": b"P4\n8 1\n\0",
    "a JPEG of a kind.*arithmetic": frame(0xC9),
    "a JPEG of a kind.*arithmetic ": frame(0xCA),
    "a JPEG of a kind.*lossless": frame(0xC3),
    "a JPEG of a kind.*hierarchical": frame(0xC5),
    "a JPEG of a kind.*JPEG-LS": frame(0xF7),
    "a JPEG of a kind.*8 bits": frame(0xC1, bits=12),
    "a JPEG of a kind.*channels": frame(0xC0, channels=2),
    "a JPEG of a kind.*height": frame(0xC0, height=0),
    "a BMP of a kind.*RLE8": bmp(1, bits=8),
    "a BMP of a kind.*RLE4": bmp(2, bits=4),
    "a BMP of a kind.*JPEG": bmp(4),
    "a BMP of a kind.*PNG": bmp(5),
    "a BMP of a kind.*packing": bmp(99),
    "a BMP of a kind.*header": bmp(header=64),
    "a PNG of a kind.*Apple": saved(photo(), "PNG").replace(chunk(b"IEND", b""), chunk(b"CgBI", bytes(4)) + chunk(b"IEND", b"")),
    "a TGA of a kind.*palette": tga(1, 8, 0, bytes(91), palette=COLOURS[:48], palette_bits=24).replace(b"\x01\x01\0\0", b"\x01\x01\1\0", 1),
}


@pytest.mark.parametrize("reason", UNREAD)
def test_unread_kinds_are_named(reason: str, tmp_path: Path) -> None:
    """By what they hold, whatever their name says, and with what to do; in the program too."""
    with pytest.raises(Refused, match=reason):
        load(UNREAD[reason])
    (tmp_path / "f.jpg").write_bytes(UNREAD[reason])
    done = subprocess.run([PROGRAM, "encode", "-m", MODEL, "-i", tmp_path / "f.jpg"], capture_output=True, timeout=60)
    assert done.returncode == 1 and not done.stdout
    message = done.stderr.decode()
    assert message.startswith(f"janus: {tmp_path}/f.jpg is ") and message.count("\n") == 1 and "not a PNG" not in message


TOO_LARGE = {
    "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16384, 16384, 8, 2, 0, 0, 0)),
    "jpeg": frame(0xC0).replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 13378, 13378)),
    "jpeg side": frame(0xC0).replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 1, 16385)),
    "bmp": bmp(size=(16384, -16384)),
    "bmp side": bmp(size=(-2**31, -2**31)),
    "gif": gif(noise(3, 3), canvas=(13378, 13378), palette=COLOURS),
    "gif side": gif(noise(3, 3), at=(65000, 65000), palette=COLOURS),
    "pnm": b"P5 13378 13378 255 ",
    "tga": tga(2, 24, 0, b"", size=(65535, 65535)),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_sizes(kind: str) -> None:
    """Beyond 16384 pixels a side or Pillow's 178,956,970 in all."""
    assert Image.MAX_IMAGE_PIXELS is not None and 2 * Image.MAX_IMAGE_PIXELS == 178956970
    with pytest.raises(Refused, match="[0-9] x [0-9]+: at most 16384 pixels a side, 178,956,970 in all"):
        load(TOO_LARGE[kind])


def test_a_large_photograph() -> None:
    """67 million pixels."""
    pixels = load(gif(np.full((1, 1), 7, np.uint8), canvas=(8192, 8192), palette=COLOURS))
    assert pixels.shape == (8192, 8192, 3) and tuple(pixels[0, 0]) == tuple(COLOURS[21:24]) and tuple(pixels[-1, -1]) == tuple(COLOURS[:3])


@pytest.mark.parametrize("channels", [1, 3])
def test_small_jpeg_of_many_pixels(channels: int) -> None:
    """Twenty scans of 179 million pixels in a few hundred bytes would take seconds."""
    tables = segment(b"\0\1" + bytes(15) + b"\0\x10\1" + bytes(15) + b"\0", 0xC4) + segment(b"\0" + b"\1" * 64, 0xDB)
    parts = b"".join(bytes([i + 1, 0x11, 0]) for i in range(channels))
    head = b"\xff\xd8" + tables + segment(struct.pack(">BHHB", 8, 10922, 16384, channels) + parts, 0xC2)
    first = segment(bytes([channels]) + b"".join(bytes([i + 1, 0]) for i in range(channels)) + bytes(3), 0xDA) + b"\0"
    with pytest.raises(Refused, match="too little"):
        load(head + first + (segment(b"\1\1\0\1\x3f\0", 0xDA) + b"\0") * 19 + b"\xff\xd9")
    uniform = saved(Image.new("L", (2000, 2000)), "JPEG", optimize=True, progressive=True)
    assert load(uniform).shape == (2000, 2000, 3)


@pytest.mark.parametrize("kind", ["BMP", "PNG", "JPEG", "TGA", "PPM"])
def test_cut_off(kind: str) -> None:
    """No kind of file loses its last rows without a word."""
    data = saved(photo(40, 40), kind)
    for length in (len(data) // 4, len(data) // 2, len(data) - len(data) // 10):
        with pytest.raises(Refused, match="is damaged"):
            load(data[:length])
