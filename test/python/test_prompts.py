# SPDX-License-Identifier: MIT
"""Prompts to the letter: the ids that the transformer reads are those of the official template's text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from PIL import Image

from janus_library import JANUS, TINY



def janus(*arguments: object, text: str | None = None) -> str:
    """Standard output of ./janus, which must succeed."""
    done = subprocess.run([JANUS, *map(str, arguments)], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ids_of(text: str) -> list[int]:
    """The ids of a text, special tokens among them."""
    return [int(word) for word in janus("tokenize", "-m", TINY, text).split()]


VALUES = {key: value.contents() for key, value in GGUFReader(TINY).fields.items()}
BOS = VALUES["tokenizer.ggml.bos_token_id"]
SYSTEM = VALUES.get("janus.prompt.system", "")
HEAD = f"{SYSTEM}\n\n" if SYSTEM else ""


def read_ids(folder: Path, number: int = 0) -> list[int]:
    """The ids of a turn that a run dumped, an image's positions as one placeholder."""
    ids = np.load(folder / ("text.token_ids.npy" if number == 0 else f"text.token_ids.{number}.npy")).tolist()
    placeholder = ids_of("<image_placeholder>")[0]
    return [token for i, token in enumerate(ids) if token != placeholder or ids[i - 1] != placeholder]


def expected(question: str, first: bool = True) -> list[int]:
    """The ids of a user turn whose message is `question`."""
    text = (HEAD if first else "") + f"<|User|>: {question}\n\n<|Assistant|>:"
    text = text.replace("<image_placeholder>", "<begin_of_image><image_placeholder><end_of_image>")
    return [BOS] * first + ids_of(text)


@pytest.fixture()
def picture(tmp_path: Path) -> Path:
    """A small picture."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 10), (200, 10, 10)).save(path)
    return path


@pytest.mark.parametrize("question", ["plain", " leading", "\n\tleading lines", "trailing \n", "\u3000wide\u3000"])
def test_a_question_after_an_image_keeps_its_leading_blanks(tmp_path: Path, picture: Path, question: str) -> None:
    """The message is stripped as a unit, so only white space at its end goes."""
    janus("ask", "-m", TINY, "-q", "-i", picture, "--max-tokens", 1, "--dump", tmp_path / "dump", question)
    assert read_ids(tmp_path / "dump") == expected("<image_placeholder>\n" + question.rstrip())


@pytest.mark.parametrize("question", ["  both sides ", "\nleading"])
def test_a_question_without_images_is_stripped(tmp_path: Path, question: str) -> None:
    """Nothing stands before it."""
    janus("ask", "-m", TINY, "-q", "--max-tokens", 1, "--dump", tmp_path / "dump", question)
    assert read_ids(tmp_path / "dump") == expected(question.strip())


def test_a_question_that_places_its_image_is_stripped(tmp_path: Path, picture: Path) -> None:
    """Its own placeholder is part of the message."""
    question = "  What is in <image_placeholder> ?  "
    janus("ask", "-m", TINY, "-q", "-i", picture, "--max-tokens", 1, "--dump", tmp_path / "dump", question)
    assert read_ids(tmp_path / "dump") == expected(question.strip())


def test_a_drawing_prompt_is_stripped(tmp_path: Path) -> None:
    """<begin_of_image> follows the opened answer."""
    janus("generate", "-m", TINY, "-q", "--dump", tmp_path / "dump", "-o", tmp_path / "x.png", "  a red circle\n")
    text = "<|User|>: a red circle\n\n<|Assistant|>:<begin_of_image>"
    assert np.load(tmp_path / "dump" / "text.token_ids.npy").tolist() == [BOS, *ids_of(text)]


def with_eos(model: Path, out: Path, eos: int) -> Path:
    """A copy of a model file that ends answers with another id."""
    data, key = bytearray(model.read_bytes()), b"tokenizer.ggml.eos_token_id"
    at = data.index(key) + len(key) + 4  # the value's type, then the value
    data[at:at + 4] = eos.to_bytes(4, "little")
    out.write_bytes(data)
    return out


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_stands_between_an_empty_answer_and_the_next_turn(tmp_path: Path, empty: bool) -> None:
    """Official conversation.py: an answer is followed by EOS, no answer by nothing."""
    janus("ask", "-m", TINY, "-q", "--max-tokens", 1, "--dump", tmp_path / "first", "What is it?")
    first = int(np.load(tmp_path / "first" / "lm.logits.npy").argmax())
    model = with_eos(TINY, tmp_path / "model.gguf", first) if empty else TINY
    eos = first if empty else VALUES["tokenizer.ggml.eos_token_id"]
    answers = janus("chat", "-m", model, "-q", "--dump", tmp_path / "dump", text="What is it?\nWhy?\n/quit\n")
    assert (not answers.split("\n")[0].strip("> ")) == empty
    assert read_ids(tmp_path / "dump", 1) == [eos] * (not empty) + expected("Why?", first=False)
