# SPDX-License-Identifier: MIT
"""Holds the tokenizer of janus.c against the `tokenizers` package: the same ids, the same texts.

    pytest test/python/test_tokenizer.py

Tokenizers of the DeepSeek form are made here, put into small random checkpoints, converted with convert.py and used
through the public API of the shared library. JANUS_LIBRARY names that library (default: libjanus.so beside janus.c,
which `make libjanus.so` builds). Some tests take DeepSeek's own vocabulary from a source package that pip downloads.
"""
from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tarfile
import time
import warnings
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

import numpy as np
import pytest
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import convert
import random_model
from checkpoints import State, random_state, write_checkpoint, write_json
from janus_library import ROOT, Library, Refused, ffi

SPECIAL = [convert.BOS, convert.EOS, convert.PAD, convert.IMAGE_PLACEHOLDER, convert.BEGIN_OF_IMAGE,
           convert.END_OF_IMAGE, "<|User|>", "<|Assistant|>"]
# The smallest model that convert.py takes; each test gives it a vocabulary of the size it needs.
SIZES = replace(random_model.TINY, layers=1, vit_layers=1, kv_heads=2, vq_multipliers=(1, 2), codebook_size=64, vq_z=8,
                tied=True, context=2048)
# Its source distribution holds llama.cpp, with DeepSeek-LLM's vocabulary and test cases among its models.
VOCABULARY_PACKAGE = "llama-cpp-python==0.3.36"


# ---- The library ----

LIBRARY = Library()


class Model:
    """A model file in C."""

    def __init__(self, path: Path) -> None:
        self.handle = LIBRARY.load(path)

    def _take(self, name: str, data: Any, count: int, kind: str) -> bytes:
        """What a call hands over: elements of a kind, as many as it counted."""
        out, length = ffi.new(f"{kind} **"), ffi.new("size_t *")
        try:
            LIBRARY.call(name, self.handle, data, count, out, length)
        except Refused:
            assert out[0] == ffi.NULL
            raise
        return LIBRARY.take_bytes(out[0], length[0] * ffi.sizeof(kind))

    def encode(self, text: str | bytes) -> bytes:
        """Text to ids, as the bytes of an int32 array."""
        data = text if isinstance(text, bytes) else text.encode()
        return self._take("janus_tokenize", data, len(data), "int32_t")

    def decode(self, ids: bytes) -> str:
        """The bytes of an int32 array of ids to text."""
        return self._take("janus_detokenize", ffi.from_buffer("int32_t[]", ids), len(ids) // 4, "char").decode()


def pack(ids: Iterable[int]) -> bytes:
    """Ids as the bytes of an int32 array."""
    return array("i", ids).tobytes()


def unpack(ids: bytes) -> list[int]:
    return array("i", ids).tolist()


# ---- Tokenizers and model files ----

def deepseek_steps(digits_one_by_one: bool = True) -> list[dict[str, Any]]:
    """The pre-tokenizer of DeepSeek's tokenizer.json."""
    steps = random_model.synthetic_tokenizer(512)["pre_tokenizer"]["pretokenizers"]
    return [step | {"individual_digits": digits_one_by_one} if step["type"] == "Digits" else step for step in steps]


def tokenizer_json(vocabulary: dict[str, int], merges: list[Any], added: dict[str, tuple[int, bool, bool]],
                   steps: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A tokenizer.json of the DeepSeek form; `added`: content -> (id, special, normalized)."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    tokens = [{"id": number, "content": content, "special": special, "normalized": normalized} | flags
              for content, (number, special, normalized) in sorted(added.items(), key=lambda item: item[1][0])]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps or deepseek_steps()}, "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges}}


def model_file(folder: Path, document: dict[str, Any], size: int, state: State | None = None) -> Path:
    """A small checkpoint with this tokenizer and `size` ids, converted."""
    write_checkpoint(folder, replace(SIZES, vocabulary=size), dtype="F16", state=state)
    write_json(folder / "tokenizer.json", document)
    assert convert.main([str(folder), "-o", str(folder / "model.gguf")]) == 0
    return folder / "model.gguf"


class Pair:
    """One tokenizer twice: `python` is that of the `tokenizers` package, `c` the one of janus.c."""

    def __init__(self, folder: Path, document: dict[str, Any], unused_ids: int = 7) -> None:
        self.python = Tokenizer.from_str(json.dumps(document))
        self.size = self.python.get_vocab_size() + unused_ids
        self.c = Model(model_file(folder, document, self.size))

    def assert_same_ids(self, texts: list[str]) -> None:
        """Both make the same ids of every text, and the same text of these ids again."""
        for start in range(0, len(texts), 4096):
            chunk = texts[start:start + 4096]
            theirs = [encoding.ids for encoding in self.python.encode_batch(chunk, add_special_tokens=False)]
            back = self.python.decode_batch(theirs, skip_special_tokens=False)
            for text, ids, decoded in zip(chunk, theirs, back):
                mine = self.c.encode(text)
                assert mine == pack(ids), f"{text!r}: {unpack(mine)}, not {ids}"
                assert self.c.decode(mine) == decoded, f"{text!r}: {self.c.decode(mine)!r}, not {decoded!r}"


# ---- Texts ----

SCRIPTS = {name: range(first, last + 1) for name, first, last in [
    ("latin", 0x61, 0x7A), ("accents", 0xC0, 0x17F), ("greek", 0x391, 0x3C9), ("cyrillic", 0x410, 0x44F),
    ("armenian", 0x531, 0x586), ("hebrew", 0x5D0, 0x5EA), ("arabic", 0x620, 0x64A), ("devanagari", 0x900, 0x97F),
    ("bengali", 0x985, 0x9B9), ("tamil", 0xB85, 0xBCD), ("thai", 0xE01, 0xE5B), ("georgian", 0x10A0, 0x10FF),
    ("ethiopic", 0x1200, 0x137F), ("cherokee", 0x13A0, 0x13F5), ("khmer", 0x1780, 0x17DD), ("kana", 0x3041, 0x30FF),
    ("han", 0x4E00, 0x9FA5), ("hangul", 0xAC00, 0xD7A3), ("full width", 0xFF01, 0xFF5E), ("deseret", 0x10400, 0x1044F),
    ("mathematical", 0x1D400, 0x1D7FF), ("han beyond 16 bits", 0x20000, 0x20400)]}
SPACES = " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
DIGITS = "0123456789²¼٠٣९๕①ⅷⅩ〇一〹𝟘𝟿𐄇"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~！／：～‘’“”‟　、。§«»…–—€"
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🇩🇪", "❤️", "1️⃣", "🦙"]


def make_words(rng: random.Random) -> list[str]:
    """A few hundred made-up words of every script; `pick_word` takes the first ones far more often."""
    words = ["the", "of", "and", "image", "picture", "'s", "naïve", "Straße", "dž", "ﬁ", "Ａｂ"]
    for script in SCRIPTS.values():
        letters = rng.sample(script, min(len(script), 40))
        words += ["".join(chr(rng.choice(letters)) for _ in range(rng.randint(1, 8))) for _ in range(40)]
    rng.shuffle(words)
    return words


def pick_word(rng: random.Random, words: list[str]) -> str:
    return words[min(int(rng.paretovariate(0.6)) - 1, len(words) - 1)]


def make_corpus(rng: random.Random, words: list[str], lines: int) -> Iterator[str]:
    """Lines of text to train on."""
    for _ in range(lines):
        ends = ["", "", "", ",", ".", "! ", "  ", "1", "2024", "\n\n"]
        line = " ".join(pick_word(rng, words) + rng.choice(ends) for _ in range(12))
        yield line + rng.choice(["", "\n", "   \n", "😀", "……", "\t\t"])


def any_character(rng: random.Random) -> str:
    """Any code point, those of fewer bytes more often; no surrogates, which are not text."""
    character = rng.randrange(rng.choice([0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000]))
    return chr(character) if not 0xD800 <= character < 0xE000 else "\ud7ff"


def make_text(rng: random.Random, words: list[str]) -> str:
    """A short text of all that makes tokenizers differ."""
    kinds: list[Callable[[], str]] = [
        lambda: pick_word(rng, words), lambda: " " + pick_word(rng, words), lambda: pick_word(rng, words).title(),
        lambda: rng.choice(words) + rng.choice(words), lambda: rng.choice(words)[:1] * rng.randint(1, 40),
        lambda: "".join(any_character(rng) for _ in range(rng.randint(1, 4))),
        lambda: rng.choice(EMOJI), lambda: chr(rng.randrange(0x20)), lambda: rng.choice(SPACES) * rng.randint(1, 9),
        lambda: "".join(rng.choices(SPACES, k=rng.randint(1, 6))),
        lambda: rng.choice(["\r\n", "\n\n", " \n", "\n ", "\r"]),
        lambda: "".join(rng.choices(DIGITS, k=rng.randint(1, 7))), lambda: rng.choice(PUNCTUATION) * rng.randint(1, 12),
        lambda: "".join(rng.choices(PUNCTUATION, k=rng.randint(1, 5))), lambda: rng.choice(SPECIAL),
        lambda: rng.choice(SPECIAL)[:rng.randint(1, 12)],
        lambda: rng.choice(SPECIAL)[rng.randint(1, 12):]]
    return "".join(rng.choice(kinds)() for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 8, 12])))


# ---- Tests against `tokenizers` ----

@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tokenizer of the DeepSeek form with some 3,000 entries, trained on text of many scripts."""
    rng = random.Random(1)
    tokenizer = Tokenizer(models.BPE())
    form = tokenizer_json({}, [], {})
    tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(form)).pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(make_corpus(rng, make_words(rng), 4000), trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    assert len(learnt["merges"]) > 2000
    added = {content: (len(learnt["vocab"]) + i, True, i < 2) for i, content in enumerate(SPECIAL)}
    return Pair(tmp_path_factory.mktemp("trained"), tokenizer_json(learnt["vocab"], learnt["merges"], added))


def test_100000_texts(trained: Pair) -> None:
    rng = random.Random(2)
    words = make_words(random.Random(1))
    texts = [make_text(rng, words) for _ in range(100_000)]
    trained.assert_same_ids(texts)
    assert all(trained.c.decode(trained.c.encode(text)) == text for text in texts[:20_000])
    tokens = sum(len(trained.c.encode(text)) // 4 for text in texts[:1000])
    assert tokens < 0.7 * sum(len(text.encode()) for text in texts[:1000]), "hardly any merges are at work"


def glass_tokenizer() -> dict[str, Any]:
    """A tokenizer whose ids show where every piece ends: the last byte of a character and the first one of the next
    character in the same piece always merge, before anything else, and nothing else ever does."""
    alphabet = random_model.byte_alphabet()
    first_bytes = [*range(0x80), *range(0xC2, 0xF5)]
    last_bytes = range(0xC0)
    vocabulary = {name: byte for byte, name in enumerate(alphabet)}
    merges = [[alphabet[last], alphabet[first]] for last in last_bytes for first in first_bytes]
    vocabulary |= {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    added = {content: (len(vocabulary) + i, True, False) for i, content in enumerate(SPECIAL)}
    return tokenizer_json(vocabulary, merges, added, deepseek_steps(digits_one_by_one=False))


def test_every_code_point(tmp_path: Path) -> None:
    """Every code point stands before a letter, a punctuation mark, a digit and a Chinese character and behind a space:
    with the tokenizer above the ids tell which of them it joins, and so how each step of the pre-tokenizer classes it.
    (The letter is no ASCII one, because those are in DeepSeek's set of punctuation as well.)"""
    glass = Pair(tmp_path, glass_tokenizer())
    code_points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    near, far = code_points[:0x20000 - 0x800], code_points[0x20000 - 0x800:]
    blocks = [near[i:i + 16] for i in range(0, len(near), 16)]
    glass.assert_same_ids(["".join(f"{c}é\n{c}!\n{c}1\n{c}一\n {c}\n" for c in block) for block in blocks])
    glass.assert_same_ids(["".join(f"{c}é" for c in far[i:i + 64]) for i in range(0, len(far), 64)])


def test_glass_tokenizer_sees_pieces(tmp_path: Path) -> None:
    """The test above would see a wrong class: neighbours are one token exactly if they are of one piece."""
    glass = Pair(tmp_path, glass_tokenizer())
    expected = {"ab": 1, "a!": 2, "11": 1, " a": 1, "a ": 2, "é1": 3, "éé": 3, "éa": 3, "日1": 4, "日本": 5}
    assert {text: len(glass.c.encode(text)) // 4 for text in expected} == expected


def test_ids_in_any_order_decode_alike(trained: Pair) -> None:
    """Any ids, in the middle of characters too: what is no UTF-8 becomes the same replacement characters."""
    rng = random.Random(4)
    bytes_only = [trained.python.token_to_id(name) for name in random_model.byte_alphabet()]
    lists = [rng.choices(range(trained.size), k=rng.randint(0, 20)) for _ in range(10_000)]
    lists += [rng.choices(bytes_only, k=rng.randint(0, 12)) for _ in range(10_000)]
    high = bytes_only[0xC0:0xF8] + bytes_only[0x80:0xC0:9] + bytes_only[0x40:0x44]
    lists += [rng.choices(high, k=rng.randint(0, 12)) for _ in range(20_000)]
    for ids, text in zip(lists, trained.python.decode_batch(lists, skip_special_tokens=False)):
        assert trained.c.decode(pack(ids)) == text, ids


OVERLAPPING = ["<a>", "<a>b", "<a>bc d", "a>", "b<", "é", "\n\n", "  ", "1", "日本", "\xa0x", "aab"]


def test_added_tokens_that_overlap(tmp_path: Path) -> None:
    """Of added tokens that overlap the leftmost wins, then the longest; of merges of one rank the leftmost does."""
    rng = random.Random(5)
    alphabet = {name: byte for byte, name in enumerate(random_model.byte_alphabet())}
    merges = [["a", "a"], ["a", "b"], ["b", "c"], ["aa", "b"], ["a", "aa"], ["Ġ", "a"], ["a", "b"], ["Ġ", "Ġ"],
              ["1", "1"], ["a", "ab"], ["aab", "aab"], ["ab", "ab"]]
    vocabulary = alphabet | {name: 256 + i for i, name in enumerate(dict.fromkeys("".join(merge) for merge in merges))}
    contents = OVERLAPPING + SPECIAL
    new = [content for content in contents if content not in vocabulary]
    added = {content: (vocabulary.get(content, 0), False, False) for content in contents}
    added |= {content: (len(vocabulary) + i, i % 2 == 0, False) for i, content in enumerate(new)}
    pair = Pair(tmp_path, tokenizer_json(vocabulary, merges, added, deepseek_steps(digits_one_by_one=False)))
    parts = [*OVERLAPPING, *"aaabbc<> 1é日\n\t", "<|User|>"]
    pair.assert_same_ids(["".join(rng.choices(parts, k=rng.randint(0, 14))) for _ in range(20_000)])


PATTERNS = [[r"\s+$"], [r"\s?[a-c]+$"], [r"[\s]?[\sa]+$", r"[a]"], [r"[ab]?\s$"],
            [r"[\]\[\-\^\\]+", r"[\r\n\t]"], [r"[b^]?[b&]$"]]


@pytest.mark.parametrize("patterns", PATTERNS, ids=" ".join)
def test_other_patterns_of_the_grammar(patterns: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits that DeepSeek does not have; "$" is the end of a line. convert.py is stricter there."""
    rng = random.Random(6)
    monkeypatch.setattr(convert, "read_split_rules", lambda config: sum(convert.pre_tokenizer_steps(config), []))
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    steps = [split | {"pattern": {"Regex": pattern}} for pattern in patterns] + deepseek_steps()[-1:]
    document = glass_tokenizer()
    document["pre_tokenizer"]["pretokenizers"] = steps
    pair = Pair(tmp_path, document)
    characters = "aabbc&^-]\\[  \n\n\r\t\u2028é1_`"
    pair.assert_same_ids(["".join(rng.choices(characters, k=rng.randint(0, 10))) for _ in range(20_000)])


# ---- Streams ----

def parrot(order: list[int], size: int) -> State:
    """Weights of official names with which id order[i] is always followed by order[i + 1]: the blocks add nothing, so
    the final hidden state is the embedding of the last id, and the row of the LM head that equals it is that of the id
    that follows."""
    sizes = replace(SIZES, vocabulary=size, tied=False)
    state = random_state(sizes)
    for name in state:
        if name.endswith(("self_attn.o_proj.weight", "mlp.down_proj.weight")):
            state[name][:] = 0
    embedding = np.random.default_rng(7).standard_normal((size, sizes.hidden), np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    head = np.zeros_like(embedding)
    for before, after in zip(order, order[1:]):
        head[after] = embedding[before]
    return state | {"language_model.model.embed_tokens.weight": embedding, "language_model.lm_head.weight": head,
                    "language_model.model.norm.weight": np.ones(sizes.hidden, np.float32)}


def ask(model: Model, max_tokens: int) -> tuple[str, list[bytes]]:
    """A greedy answer, whole and as it was streamed."""
    pieces: list[bytes] = []
    options, question, answer = LIBRARY.c.janus_session_defaults(), LIBRARY.c.janus_ask_defaults(), ffi.new("char **")
    callback = ffi.callback(  # has a name, to live as long as the session
        ffi.typeof(options.text), lambda user, text, length: pieces.append(ffi.buffer(text, length)[:]) or 0)
    options.text = callback
    question.max_tokens = max_tokens
    session = LIBRARY.session(model.handle, options)
    LIBRARY.call("janus_ask", session, b"?", ffi.NULL, 0, ffi.new("JanusAskOptions *", question), answer)
    text = LIBRARY.take_text(answer[0])
    LIBRARY.c.janus_session_free(session)
    return text, pieces


@pytest.mark.parametrize("seed", range(4))
def test_streams_hold_incomplete_characters_back(seed: int, tmp_path: Path) -> None:
    """A model that says every token once, in a random order that seldom is UTF-8: what it streams are whole characters,
    and together they are what `tokenizers` makes of all ids at once."""
    rng = random.Random(seed)
    document = random_model.synthetic_tokenizer(400)
    tokenizer = Tokenizer.from_str(json.dumps(document))
    colon, end, zero_byte = (tokenizer.token_to_id(token) for token in (":", convert.EOS, random_model.byte_alphabet()[0]))
    said = [number for number in range(400) if number not in (colon, end, zero_byte)]
    rng.shuffle(said)
    order = [colon, *said, end]
    write_checkpoint(tmp_path, replace(SIZES, vocabulary=400, tied=False), state=parrot(order, 400))
    write_json(tmp_path / "tokenizer.json", document)
    assert convert.main([str(tmp_path), "-o", str(tmp_path / "model.gguf")]) == 0
    text, pieces = ask(Model(tmp_path / "model.gguf"), 400)
    expected = tokenizer.decode(said, skip_special_tokens=True)
    assert "".join(piece.decode() for piece in pieces) == expected.lstrip() and len(pieces) > 200
    assert text == expected.strip() and "\ufffd" in text


# ---- Bad input, long input ----

BROKEN = [b"\x80", b"a\xbf", b"ab\xc0\xaf", b"\xc1\x81", b"\xe0\x80\xaf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf",
          b"\xf0\x80\x80\xaf", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", "é".encode()[:1],
          "日".encode()[:2], b"x" + "😀".encode()[:3], b"\xc3(", "日本".encode()[:5]]


def test_arbitrary_bytes(trained: Pair) -> None:
    """Bytes are encoded exactly if Python finds them to be UTF-8, and then come back; if not, both say where."""
    rng = random.Random(8)
    accepted = 0
    telling = [0x41, 0xC3, 0xA9, 0xE0, 0xA0, 0xED, 0x9F, 0xF0, 0x90, 0x80, 0xBF, 0xF4, 0x8F]
    random_bytes = (bytes(rng.choices([rng.randrange(256), *telling], k=rng.randint(1, 5))) for _ in range(100_000))
    for data in (*BROKEN, *random_bytes):
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            with pytest.raises(Refused, match=f"not valid UTF-8 at byte {error.start}:") as refusal:
                trained.c.encode(data)
            assert refusal.value.status == LIBRARY.c.JANUS_BAD_ARGUMENT
        else:
            accepted += 1
            assert trained.c.decode(trained.c.encode(data)) == text
    assert 1000 < accepted < 99_000


def test_edges(trained: Pair) -> None:
    assert trained.c.encode("") == b"" and trained.c.decode(b"") == ""
    assert trained.c.decode(trained.c.encode("\0a\0")) == "\0a\0"
    for number in (-1, trained.size, 2**31 - 1, -2**31):
        with pytest.raises(Refused, match=f"no token {number}: ids go from 0 to {trained.size - 1}"):
            trained.c.decode(pack([0, number]))


LONG = {"letters": "a" * 1_000_000, "word": "the" * 300_000, "spaces": " " * 1_000_000 + "1", "emoji": "😀" * 200_000,
        "line feeds": "\n" * 1_000_000, "white space": " \u2028" * 300_000 + "日", "characters": "日本" * 150_000,
        "digits": "1" * 1_000_000, "almost special": "<｜begin▁of▁" * 60_000, "punctuation": "!?" * 500_000,
        "spaces before letters": " a" * 500_000}


@pytest.mark.parametrize("kind", LONG)
def test_long_texts_take_linear_time(kind: str, trained: Pair) -> None:
    """A million characters of the same kind: the ids that `tokenizers` finds, in seconds."""
    text = LONG[kind]
    for part in (text[-20_000:], text[-100_000:], text):
        start = time.monotonic()
        mine = trained.c.encode(part)
        seconds = time.monotonic() - start
        assert seconds < 10, f"{len(part)} characters took {seconds:.1f} s"
        assert trained.c.decode(mine) == part
        if len(part) == 20_000:
            assert mine == pack(trained.python.encode(part, add_special_tokens=False).ids)


# ---- Model files that are wrong ----

ALL = slice(None)
RULES, MERGES = "janus.tokenizer.split_rules", "janus.tokenizer.merges"
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
NO_RULE, NO_MERGE = f"rule 0 of {RULES} is malformed", f"number 3 of {MERGES} is not two tokens"
DAMAGES = [  # key, index, value (an Ellipsis removes the entry), words of the message
    (RULES, 0, 4, NO_RULE), (RULES, 0, 2**32 - 1, NO_RULE),  # flags
    (RULES, 1, 2**31, NO_RULE), (RULES, 2, 2**32 - 1, NO_RULE), (RULES, 2, 500, NO_RULE),  # counts
    (RULES, 3, 11, NO_RULE), (RULES, 4, 14, NO_RULE), (RULES, 5, 10, NO_RULE),  # not ascending
    (RULES, -1, 0, f"rule 5 of {RULES} is"), (RULES, 1, 1, "is malformed"),
    (RULES, ALL, [0, 0], NO_RULE), (RULES, ALL, [0, 0, 1, 65], NO_RULE),
    (RULES, ALL, [0, 0, 1, 65, 66, 1], f"rule 1 of {RULES} is"), (RULES, ALL, [0, 0, 0] * 17, f"rule 16 of {RULES} is"),
    (MERGES, 9, 400, NO_MERGE), (MERGES, 10, 2**31, NO_MERGE), (MERGES, 11, 2**32 - 1, NO_MERGE),
    (MERGES, 11, 256, NO_MERGE), (MERGES, 9, 66, NO_MERGE), (MERGES, 10, 66, NO_MERGE),
    (MERGES, -1, ..., MERGES), (TYPES, -1, ..., TYPES),
    (TOKENS, -1, ..., TOKENS), (TOKENS, 387, "", f"{TOKENS}[387] is"),
    (TOKENS, 65, "[none]", "no token for the byte 0x41"), (TYPES, 5, 6, f"{TYPES}[5] is 6"),
    (TYPES, 5, -1, f"{TYPES}[5] is -1"),
]


@pytest.mark.parametrize("key, index, value, words", DAMAGES, ids=lambda value: value if isinstance(value, str) else "")
def test_unsound_tokenizers_are_refused(
    key: str, index: Any, value: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that convert.py would not write, with a tokenizer that janus.c must not trust."""
    sound = convert.tokenizer_metadata

    def unsound(*arguments: Any) -> dict[str, Any]:
        metadata = sound(*arguments)
        if value is ...:
            del metadata[key][1][index]
        else:
            metadata[key][1][index] = value
        return metadata

    monkeypatch.setattr(convert, "tokenizer_metadata", unsound)
    path = model_file(tmp_path, random_model.synthetic_tokenizer(400), 400)
    with pytest.raises(Refused) as refusal:
        Model(path)
    assert refusal.value.status == LIBRARY.c.JANUS_BAD_MODEL and words in str(refusal.value), refusal.value


# ---- Split patterns ----

def any_pattern(rng: random.Random) -> str:
    """A pattern of the grammar, often with something in it that does not belong there."""
    members = [r"\s", r"\n", r"\t", r"\-", r"\]", r"\[", r"\^", r"\\", "a", "b", "é", "a-f", "é-ü", r"\t-\r", "!-/", "^", "&",
               "$", "+", "?", " ", "&&"]
    wrong = [r"\d", r"\n-\t", r"\s-a", r"a-\s", "\\", "b-a", "&&", "[a]", "[^a]", *"[]-^+?*$(|"]

    def one_set() -> str:
        return "\\s" if rng.random() < 0.2 else "[" + "".join(rng.choices(members, k=rng.randint(1, 4))) + "]"

    pattern = (one_set() + "?" if rng.random() < 0.4 else "") + one_set()
    pattern += rng.choice(["", "+"]) + rng.choice(["", "", "$"])
    for _ in range(rng.choice([0, 0, 1, 2])):
        at = rng.randint(0, len(pattern))
        pattern = pattern[:at] + rng.choice(wrong) + pattern[at:]
    return pattern


def test_split_rules_cut_as_the_patterns_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What convert.py compiles means what the regular expression means to `tokenizers`, which reads all of them."""
    rng, compiled = random.Random(10), []
    patterns = sorted({any_pattern(rng) for _ in range(1500)} | {"", "\\s", "[a]+[b]+", "[a]?", "[!-&&b]"})
    for pattern in patterns:
        try:
            compiled.append((pattern, convert.compile_split(pattern)))
        except convert.Refused:
            continue
    assert 300 < len(compiled) < len(patterns) - 300
    characters = "aabbccf&^-]\\[!+?$/  \n\n\r\t\u2028éü1_`"
    for pattern, rule in compiled:
        splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
        for text in ("".join(rng.choices(characters, k=rng.randint(0, 14))) for _ in range(20)):
            expected = [piece for piece, _ in splitter.pre_tokenize_str(text)]
            assert cut_by_rule(rule, text) == expected, (pattern, text)


def cut_by_rule(rule: list[int], text: str) -> list[str]:
    """The pieces that a split rule of the file leaves of a text, as the comment in convert.py defines it."""
    flags, before, body = rule[:3]
    sets = ["".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in zip(rule[start:end:2], rule[start + 1:end:2]))
            for start, end in ((3, 3 + 2 * before), (3 + 2 * before, len(rule)))]
    assert len(rule) == 3 + 2 * before + 2 * body
    pattern = (f"[{sets[0]}]?" if before else "") + f"[{sets[1]}]" + "+" * (flags & 1) + r"(?=\n|\Z)" * (flags >> 1)
    return [piece for piece in re.split(f"({pattern})", text) if piece]


# ---- DeepSeek's own vocabulary ----

@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder llama.cpp of the source package."""
    folder = tmp_path_factory.mktemp("published")
    options = ["--quiet", "--no-deps", "--no-binary", VOCABULARY_PACKAGE.partition("=")[0], "--dest", str(folder)]
    done = subprocess.run([sys.executable, "-m", "pip", "download", *options, VOCABULARY_PACKAGE], capture_output=True,
                          text=True, timeout=600)
    archives = list(folder.glob("*.tar.gz"))
    if not archives:
        reason = f"DeepSeek's vocabulary is not tested: no {VOCABULARY_PACKAGE} by pip: {done.stderr.strip()[-300:]}"
        warnings.warn(reason)
        pytest.skip(reason)
    wanted = re.compile(r".+/llama\.cpp/(models/ggml-vocab-deepseek-llm\.gguf(\.inp|\.out)?|src/llama-vocab\.cpp)")
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            if match := wanted.fullmatch(member.name):
                (folder / Path(match[1]).name).write_bytes(archive.extractfile(member).read())
    archives[0].unlink()
    return folder


@pytest.fixture(scope="module")
def deepseek(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """DeepSeek-LLM's tokenizer of 102,400 ids, with Janus's tokens among the unused ones."""
    fields = GGUFReader(published / "ggml-vocab-deepseek-llm.gguf").fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    vocabulary = {token: number for number, token in enumerate(tokens) if types[number] == 1}
    added = {token: (number, types[number] == 3, True) for number, token in enumerate(tokens)
             if types[number] != 1 and token != f"[PAD{number}]"}
    free = [number for number, token in enumerate(tokens) if token == f"[PAD{number}]"]
    added |= {token: (free.pop(0), True, False) for token in SPECIAL if token not in added}
    pair = Pair(tmp_path_factory.mktemp("deepseek"), tokenizer_json(vocabulary, merges, added), len(free))
    assert pair.size == len(tokens) == 102_400
    return pair


def test_deepseek_cases(published: Path, deepseek: Pair) -> None:
    """The ids that llama.cpp publishes."""
    name = "ggml-vocab-deepseek-llm.gguf"
    texts = (published / f"{name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    assert texts.pop() == ""
    ids = [[int(number) for number in line.split()] for line in (published / f"{name}.out").read_text().splitlines()]
    assert len(texts) == len(ids) > 40
    for text, expected in zip(texts, ids):
        assert unpack(deepseek.c.encode(text)) == expected, text


def test_deepseek_texts(deepseek: Pair) -> None:
    rng = random.Random(9)
    words = make_words(random.Random(1))
    readme = re.findall(r".{1,80}", (ROOT / "janus.c").read_text(), re.DOTALL)
    deepseek.assert_same_ids([make_text(rng, words) for _ in range(20_000)] + readme)


def test_deepseek_patterns(published: Path) -> None:
    """The pre-tokenizer of this test, and of convert.py, is DeepSeek's."""
    source = (published / "llama-vocab.cpp").read_text()
    block = source.partition("case LLAMA_VOCAB_PRE_TYPE_DEEPSEEK_LLM:")[2].partition("break;")[0]
    literals = re.findall(r'"((?:[^"\\]|\\.)*)"', block)
    patterns = [text.replace("\\\\", "\\").replace("\\r", "\r").replace("\\n", "\n") for text in literals]
    assert patterns == [step["pattern"]["Regex"] for step in deepseek_steps() if step["type"] == "Split"] + [r"\p{N}+"]
