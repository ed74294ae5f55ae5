#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seeds of the fuzz targets: seeds.py [FOLDER], by default test/fuzz/corpus.

A model's seed is a byte of switches (see fuzz.c) and a GGUF file without its tensors' data, which the target appends.
Most sizes differ from each other, so that the mutator can change one of them everywhere.
"""

from __future__ import annotations

import io
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import GGUFValueType
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import random_model  # noqa: E402
import convert  # noqa: E402

PLAIN = convert.Sizes(hidden=12, layers=1, feed_forward=14, heads=2, kv_heads=1, head_dim=10, context=120, vocabulary=280,
                      image_size=8, patch_size=4, vit_width=6, vit_layers=1, vit_feed_forward=9, vit_heads=2,
                      gen_head_width=11, codebook_size=16, codebook_dim=3, vq_channels=4, vq_multipliers=(1, 2),
                      vq_res_blocks=1, vq_z=5)
BLOCKS = replace(PLAIN, hidden=32, layers=2, feed_forward=64, kv_heads=2, head_dim=16, vit_width=32, vit_feed_forward=64,
                 aligner_depth=1, gen_aligner_depth=1, gen_head_width=32, vq_channels=6, vq_multipliers=(2,),
                 vq_z=4, tied=True)
FORMATS = {GGUFValueType.UINT32: "<I", GGUFValueType.INT32: "<i", GGUFValueType.FLOAT32: "<f", GGUFValueType.FLOAT64: "<d",
           GGUFValueType.BOOL: "<?"}


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: GGUFValueType, value: Any) -> bytes:
    """One metadata entry."""
    values = value if isinstance(value, (list, tuple)) else [value]
    data = b"".join(string(v) if kind == GGUFValueType.STRING else struct.pack(FORMATS[kind], v) for v in values)
    head = struct.pack("<I", kind) if values is not value else struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(values))
    return string(key) + head + data


def metadata(sizes: convert.Sizes) -> dict[str, tuple[GGUFValueType, Any]]:
    """Every key that the program reads."""
    image = {"image_size": sizes.image_size, "min_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tokenizer = random_model.synthetic_tokenizer(sizes.vocabulary)
    return {"general.architecture": (GGUFValueType.STRING, "janus"), "general.alignment": (GGUFValueType.UINT32, 64),
            **convert.general_metadata("seed", "f32"), **convert.size_metadata(sizes),
            **convert.image_metadata(convert.Config(image, "seed"), sizes), **convert.prompt_metadata("pro"),
            **convert.tokenizer_metadata(tokenizer, sizes.vocabulary),
            "janus.vq.group_count": (GGUFValueType.UINT32, 2),
            "janus.vq.grid_size": (GGUFValueType.UINT32, 3 if sizes is BLOCKS else sizes.grid),
            "janus.prompt.system": (GGUFValueType.STRING, "be kind")}


def model(sizes: convert.Sizes, dtype: str) -> bytes:
    """The beginning of a GGUF file: header, metadata, table of tensors. Their places overlap."""
    entries, tensors = metadata(sizes), convert.tensor_table(sizes)
    table, offset = b"", 0
    for tensor in tensors:
        kind = convert.storage_type(tensor, dtype)
        shape = tensor.shape[::-1]
        table += string(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset = (offset + 1088) % 65536
    return (b"\0GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) +
            b"".join(entry(key, *value) for key, value in entries.items()) + table)


def picture(mode: str, size: tuple[int, int], kind: str, **options: object) -> bytes:
    """A gradient in a file of this kind."""
    image = Image.radial_gradient("L").resize(size)
    if mode != "L":
        image = Image.merge("RGB", [image, image.rotate(90), image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]).convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(order: str, orientation: int) -> bytes:
    """EXIF with a maker's name elsewhere and an orientation; `order` is < or >."""
    head = struct.pack(order + "HIH", 42, 8, 2)
    return ((b"II" if order == "<" else b"MM") + head + struct.pack(order + "HHII", 0x010F, 2, 6, 38) +
            struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4) + b"maker\0")


def images() -> dict[str, bytes]:
    """PNGs and JPEGs of every kind, with orientations and texts, and formats that are refused by name."""
    jpeg, cmyk, rgb = picture("RGB", (17, 9), "JPEG"), picture("CMYK", (8, 8), "JPEG"), picture("RGB", (7, 5), "PNG")
    adobe = cmyk.index(b"\xff\xee")
    out = {
        "rgb.png": rgb, "alpha.png": picture("RGBA", (4, 9), "PNG"),
        "palette.png": picture("P", (8, 8), "PNG", bits=4), "grey.png": picture("L", (1, 1), "PNG"),
        "grey16.png": picture("I;16", (5, 4), "PNG"), "bits.png": picture("1", (9, 3), "PNG"),
        "mirrored.png": picture("RGB", (5, 4), "PNG", exif=b"Exif\0\0" + exif("<", 7)),
        "turned.jpg": picture("RGB", (9, 7), "JPEG", exif=b"Exif\0\0" + exif(">", 6)),
        "base.jpg": jpeg, "progressive.jpg": picture("RGB", (16, 20), "JPEG", progressive=True),
        "half.jpg": picture("RGB", (18, 9), "JPEG", subsampling="4:2:2"), "arithmetic.jpg": jpeg.replace(b"\xff\xc0", b"\xff\xc9"),
        "grey.jpg": picture("L", (9, 9), "JPEG", restart_marker_blocks=1), "cmyk.jpg": cmyk,
        "unmarked.jpg": cmyk[:adobe] + cmyk[adobe + 16:], "ycck.jpg": cmyk[:adobe + 15] + b"\2" + cmyk[adobe + 16:],
        "mjpeg.jpg": jpeg[:jpeg.index(b"\xff\xc4")] + jpeg[jpeg.index(b"\xff\xda"):], "after.jpg": jpeg[:-2] + b"\xff\xd0more\xff\0" + jpeg[-2:],
        "other.tiff": picture("L", (2, 2), "TIFF"), "other.gif": picture("P", (2, 2), "GIF"), "other.bmp": picture("RGB", (3, 2), "BMP"),
    }
    key, settings = b"parameters\0", b"a fox\nSteps: 4, CFG scale: 5, Seed: 7, Temperature: 1, RNG: torch, Picture: 1 of 2, Version: janus 1"
    for name, kind, data in (("latin1", b"tEXt", key + b"caf\xe9 " + settings), ("utf8", b"iTXt", key + b"\0\0en\0Worte\0caf\xc3\xa9 " + settings),
                             ("packed", b"zTXt", key + b"\0x\x9c")):
        out[name + ".png"] = rgb[:33] + struct.pack(">I", len(data)) + kind + data + bytes(4) + rgb[33:]
    out["comment.jpg"] = jpeg[:20] + struct.pack(">HH", 0xFFFE, len(settings) + 2) + settings + jpeg[20:]
    return out


def write(folder: Path) -> None:
    """All seeds, as FOLDER/TARGET/NAME."""
    small = picture("RGB", (3, 2), "PNG")
    seeds: dict[str, bytes] = {
        "model/plain": model(PLAIN, "f32"), "model/half": model(BLOCKS, "f16"), "model/blocks": model(BLOCKS, "q8_0"),
        "text/words": b"hello the fox  in 42 trees\r\n\tEnd. \n", "text/chinese": "¿你好，世界? ǅ 가 １２".encode(),
        "text/special": b"<|User|>: <image_placeholder>\nWhat?\n\n<|Assistant|>:<eos><pad>", "text/broken": b"a\xc0\x80\xed\xa0\x80\xf4\x90 \xe4\xbd",
        "ids/four": b"0 1, 2\n15\n", "ids/many": b"7 256 271\t3,-1 99999999999", "ids/words": b"1 2 x 4",
    }
    commands = {
        "generate": "generate -o a.png -n 2 --seed 7 --cfg 5 --temperature 0.5 --threads 2 fox", "dump": "generate -q --dump d --kv f16 a",
        "ask": "ask -i a.png --max-tokens 3 --top-p 0.9 --top-k 5 --temperature 1 --seed 1 What?", "encode": "encode -m m.gguf -i a.png",
        "picture": "generate -o - fox", "tokenize": "tokenize -- -hello", "untokenize": "tokenize --decode 1,2,3", "info": "info",
        "prompt": "generate --seed -1 -o - -", "seen": "ask -i - What?", "other": "info --kv F32 a.gguf",
        "help": "-h", "isa": "ask --isa plain --temperature 1 a",
    }
    seeds |= {f"image/{name}": data for name, data in images().items()}
    seeds |= {f"options/{name}": "\n".join(line.split()).encode() + b"\n\n" + small for name, line in commands.items()}
    jobs = {
        "draw": '{"id": 1, "prompt": "a fox", "seed": 7, "n": 2, "cfg": 5, "temperature": 1, "output": "fox.png"}',
        "ask": '{"id": "\\u00e4\\ud83d\\ude00\\n", "images": ["a.png", "b.png"], "question": "what?", "max_tokens": 3, "top_k": 5, "top_p": 0.5}',
        "pandas": ' { "question" : "a" , "seed": 7.0, "top_k": 1e1, "temperature": 1, "image": null } ',
        "other": '[null, true, false, -0.5e+3, [{"": {}}, "\\"\\\\\\/\\b\\f\\r\\t\\u0000"]]'}
    seeds |= {f"json/{name}": line.encode() for name, line in jobs.items()}
    seeds["options/batch"] = b"batch\n--unordered\n-\n\n" + "\n".join(jobs.values()).encode()
    seeds["options/origin"] = b"info\nx.png\n\n" + seeds["image/latin1.png"]
    seeds["options/decode"] = b"decode\n-o\n-\nids.txt\n\n0 5, 7\t15"
    seeds["options/chat"] = b"chat\n-i\na.png\n\nhello\n/image b.png\n/draw a fox\n/clear\n/nothing\n\nhow many?\n/quit\n"
    for name, data in seeds.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "corpus")
