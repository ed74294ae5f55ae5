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
from pathlib import Path

from PIL import Image

F32, F16, Q8_0 = 0, 1, 8
SPECIAL = ["<bos>", "<eos>", "<pad>", "<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>"]
MERGES = ["h e", "Ġ t", "Ġt he", "l l", "he ll", "i n", "Ġ a", "o x"]
SPACES = [(9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x2000, 0x200A), (0x3000, 0x3000)]
LETTERS = [(65, 90), (97, 122), (0xB5, 0xB5), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x1BA)]
MARKS = [(0x21, 0x2F), (0x3A, 0x7E), (0x2018, 0x201F), (0x3000, 0x3002), (0xFF01, 0xFF0F)]
# Flags (1: +, 2: $), what may stand in front, the body: newlines, words, punctuation, spaces at the end, Chinese, digits.
RULES = [(0, [], [(10, 10), (13, 13)]), (1, SPACES, LETTERS), (1, SPACES, MARKS), (3, [], SPACES),
         (1, [], [(0x800, 0x9FA5), (0xAC00, 0xD7FF)]), (0, [], [(0x30, 0x39), (0xFF10, 0xFF19), (0x1D7CE, 0x1D7FF)])]
PLAIN = dict(hidden=12, layers=1, mlp=14, heads=2, kv_heads=1, head_dim=10, context=120, side=8, patch=4, vit_width=6,
             vit_layers=1, vit_mlp=9, vit_heads=2, aligner=2, gen_aligner=2, head_width=11, codes=16, code_dim=3, base=4,
             multipliers=[1, 2], blocks=1, z=5, groups=2, grid=2, tied=False)
BLOCKS = PLAIN | dict(hidden=32, layers=2, mlp=64, kv_heads=2, head_dim=16, vit_width=32, vit_mlp=64, aligner=1, gen_aligner=1,
                      head_width=32, base=6, multipliers=[2], z=4, grid=3, tied=True)


def alphabet() -> list[str]:
    """The 256 characters of the byte-level alphabet, by byte."""
    visible = [b for b in range(256) if 0x20 < b < 0x7F or (b > 0xA0 and b != 0xAD)]
    hidden = [b for b in range(256) if b not in visible]
    return [chr(b) if b in visible else chr(0x100 + hidden.index(b)) for b in range(256)]


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, value: object) -> bytes:
    """One metadata entry: ints are u32, floats f32, ("d", x) f64, lists arrays of their first element's type."""
    kinds = {str: (8, string), bool: (7, lambda v: struct.pack("<?", v)), int: (4, lambda v: struct.pack("<I", v)),
             float: (6, lambda v: struct.pack("<f", v)), tuple: (12, lambda v: struct.pack("<d", v[1])),
             bytes: (5, lambda v: struct.pack("<i", v[0]))}
    if not isinstance(value, list):
        kind, pack = kinds[type(value)]
        return string(key) + struct.pack("<I", kind) + pack(value)
    kind, pack = kinds[type(value[0])]
    return string(key) + struct.pack("<IIQ", 9, kind, len(value)) + b"".join(map(pack, value))


def metadata(g: dict, tokens: list[str]) -> dict[str, object]:
    """Every key that the program reads."""
    j = "janus."
    ids = {name: tokens.index(name) for name in SPECIAL}
    return {
        "general.architecture": "janus", "general.alignment": 64, "general.name": "seed", "general.file_type": 0,
        j + "format_version": 2, j + "embedding_length": g["hidden"], j + "block_count": g["layers"],
        j + "feed_forward_length": g["mlp"], j + "context_length": g["context"], j + "vocab_size": len(tokens),
        j + "attention.head_count": g["heads"], j + "attention.head_count_kv": g["kv_heads"],
        j + "attention.key_length": g["head_dim"], j + "attention.layer_norm_rms_epsilon": 1e-6,
        j + "rope.freq_base": 10000.0, j + "vision.image_size": g["side"], j + "vision.patch_size": g["patch"],
        j + "vision.embedding_length": g["vit_width"], j + "vision.block_count": g["vit_layers"],
        j + "vision.feed_forward_length": g["vit_mlp"], j + "vision.attention.head_count": g["vit_heads"],
        j + "vision.attention.layer_norm_epsilon": 1e-6, j + "aligner.depth": g["aligner"],
        j + "gen_aligner.depth": g["gen_aligner"], j + "gen_head.embedding_length": g["head_width"],
        j + "vq.codebook_size": g["codes"], j + "vq.codebook_dim": g["code_dim"], j + "vq.base_channels": g["base"],
        j + "vq.channel_multipliers": g["multipliers"], j + "vq.res_blocks": g["blocks"], j + "vq.z_channels": g["z"],
        j + "vq.group_count": g["groups"], j + "vq.group_norm_epsilon": 1e-6, j + "vq.grid_size": g["grid"],
        j + "prompt.system": "be kind", j + "prompt.user_role": "<|User|>", j + "prompt.assistant_role": "<|Assistant|>",
        j + "image.min_size": 2, j + "image.mean": [0.5] * 3, j + "image.std": [0.5] * 3,
        j + "image.rescale_factor": ("d", 1 / 255), j + "image.background_color": [127] * 3, j + "image.do_normalize": True,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [bytes([3 if token in SPECIAL else 1]) for token in tokens],
        "tokenizer.ggml.bos_token_id": ids["<bos>"], "tokenizer.ggml.eos_token_id": ids["<eos>"],
        "tokenizer.ggml.padding_token_id": ids["<pad>"], j + "tokenizer.image_placeholder_id": ids["<image_placeholder>"],
        j + "tokenizer.begin_of_image_id": ids["<begin_of_image>"], j + "tokenizer.end_of_image_id": ids["<end_of_image>"],
        j + "tokenizer.merges": [tokens.index(t) for merge in MERGES for t in (*merge.split(" "), merge.replace(" ", ""))],
        j + "tokenizer.split_rules": [n for flags, before, body in RULES
                                      for n in (flags, len(before), len(body), *(c for pair in before + body for c in pair))],
    }


def tensors(g: dict, vocab: int) -> dict[str, list[int]]:
    """Every tensor's shape, outermost first."""
    out: dict[str, list[int]] = {}

    def linear(name: str, rows: int, *cols: int) -> None:
        out[name + ".weight"], out[name + ".bias"] = [rows, *cols], [rows]

    def norm(name: str, width: int) -> None:
        out[name + ".weight"] = out[name + ".bias"] = [width]

    def res(name: str, a: int, b: int) -> None:
        norm(name + ".norm1", a), linear(name + ".conv1", b, 3, 3, a)
        norm(name + ".norm2", b), linear(name + ".conv2", b, 3, 3, b)
        if a != b:
            linear(name + ".shortcut", b, a)

    def attn(name: str, width: int) -> None:
        norm(name + ".norm", width)
        for part in ("q", "k", "v", "proj"):
            linear(f"{name}.{part}", width, width)

    hidden, width, levels = g["hidden"], g["vit_width"], len(g["multipliers"])
    linear("vit.patch_embed", width, g["patch"], g["patch"], 3)
    out["vit.pos_embed"] = [(g["side"] // g["patch"]) ** 2, width]
    for i in range(g["vit_layers"]):
        b = f"vit.blk.{i}."
        norm(b + "norm1", width), linear(b + "qkv", 3 * width, width), linear(b + "proj", width, width)
        norm(b + "norm2", width), linear(b + "fc1", g["vit_mlp"], width), linear(b + "fc2", width, g["vit_mlp"])
    norm("vit.norm", width)
    for name, depth, first in (("aligner", g["aligner"], width), ("gen_aligner", g["gen_aligner"], g["code_dim"])):
        for i in range(depth):
            linear(f"{name}.{i}", hidden, hidden if i else first)
    out["gen_embed.weight"] = out["vq.codebook.weight"] = [g["codes"], g["code_dim"]]
    linear("gen_head.proj", g["head_width"], hidden), linear("gen_head.out", g["codes"], g["head_width"])
    out["token_embd.weight"], out["output_norm.weight"] = [vocab, hidden], [hidden]
    if not g["tied"]:
        out["output.weight"] = [vocab, hidden]
    q, kv = g["heads"] * g["head_dim"], g["kv_heads"] * g["head_dim"]
    for i in range(g["layers"]):
        shapes = dict(attn_norm=[hidden], attn_q=[q, hidden], attn_k=[kv, hidden], attn_v=[kv, hidden], attn_output=[hidden, q],
                      ffn_norm=[hidden], ffn_gate=[g["mlp"], hidden], ffn_up=[g["mlp"], hidden], ffn_down=[hidden, g["mlp"]])
        out |= {f"blk.{i}.{name}.weight": shape for name, shape in shapes.items()}
    linear("vq.quant_conv", g["code_dim"], g["z"]), linear("vq.post_quant_conv", g["z"], g["code_dim"])
    deepest = g["base"] * g["multipliers"][-1]
    for half, extra, order in (("vq.enc", 0, range(levels)), ("vq.dec", 1, range(levels - 1, -1, -1))):
        channels = deepest if extra else g["base"]
        linear(half + ".conv_in", channels, 3, 3, g["z"] if extra else 3)
        for i, depth in enumerate(order):
            for b in range(g["blocks"] + extra):
                res(f"{half}.{i}.res.{b}", channels, g["base"] * g["multipliers"][depth])
                channels = g["base"] * g["multipliers"][depth]
                if depth == levels - 1:
                    attn(f"{half}.{i}.attn.{b}", channels)
            if i < levels - 1:
                linear(f"{half}.{i}.{'up' if extra else 'down'}", channels, 3, 3, channels)
        res(half + ".mid.0", deepest, deepest), attn(half + ".mid.1", deepest), res(half + ".mid.2", deepest, deepest)
        norm(half + ".norm_out", channels), linear(half + ".conv_out", 3 if extra else g["z"], 3, 3, channels)
    return out


def model(g: dict, kind: int) -> bytes:
    """The beginning of a GGUF file: header, metadata, table of tensors. Their places overlap."""
    tokens = alphabet() + [merge.replace(" ", "") for merge in MERGES] + SPECIAL
    entries, shapes = metadata(g, tokens), tensors(g, len(tokens))
    table, offset = b"", 0
    for name, shape in shapes.items():
        small = len(shape) > 1 and name not in ("vit.pos_embed", "vq.codebook.weight", "gen_embed.weight")
        type_ = F32 if not small else F16 if kind == Q8_0 and shape[-1] % 32 else kind
        table += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], type_, offset)
        offset = (offset + 1088) % 65536
    return (b"\0GGUF" + struct.pack("<IQQ", 3, len(shapes), len(entries)) +
            b"".join(entry(key, value) for key, value in entries.items()) + table)


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
        "model/plain": model(PLAIN, F32), "model/half": model(BLOCKS, F16), "model/blocks": model(BLOCKS, Q8_0),
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
