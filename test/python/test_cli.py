# SPDX-License-Identifier: MIT
"""The command line: every command, where results and remarks go, exit codes, and what happens to bad input."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from PIL import Image

from janus_library import GOLDEN, JANUS, ROOT, TINY

if os.name == "posix":
    import fcntl
    import pty
    import resource
    import termios

MODEL = GOLDEN / "grouped.gguf"
TOKENS, CODEBOOK, SIDE = 4, 128, 4  # of MODEL: ids of a picture, codebook size, side in pixels

posix = pytest.mark.skipif(os.name != "posix", reason="needs /dev/full, pseudo-terminals or file size limits")


def janus(*arguments: object, stdin: bytes | None = b"", model: Path | None = MODEL, cwd: Path | None = None,
          **options: object) -> subprocess.CompletedProcess:
    """Runs the program; a text in the arguments may be bytes that are not UTF-8. Nothing here may take a minute."""
    command = [str(JANUS)] + [a if isinstance(a, bytes) else str(a) for a in arguments]
    if model is not None and "-m" not in command:
        command[2:2] = ["-m", str(model)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JANUS_")}
    environment.update(options.pop("env", {}))
    if options.get("preexec_fn") is small_files:
        environment["GCOV_PREFIX"] = "/nowhere"  # a program that counts its lines has no room for its counts either
    return subprocess.run(command, input=stdin, stdout=options.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE,
                          timeout=60, cwd=cwd, env=environment, **options)


def succeeds(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Runs the program and expects exit code 0."""
    done = janus(*arguments, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done


def fails(*arguments: object, code: int | tuple[int, ...] = 1, **options: object) -> str:
    """Runs the program and expects nothing on stdout, one line on stderr and the exit code; returns the line."""
    done = janus(*arguments, **options)
    text = done.stderr.decode("utf-8", "replace")
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), (done.returncode, text)
    lines = [line for line in text.splitlines() if not line.startswith("seed ")]
    assert len(lines) == 1 and lines[0].startswith("janus: ") and len(lines[0]) > 15, text
    assert not done.stdout
    return lines[0]


def picture(path: Path, width: int = 40, height: int = 30, **options: object) -> Path:
    """A picture of noise, in the format of the ending."""
    rgb = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path, **options)
    return path


@pytest.fixture()
def photo(tmp_path: Path) -> Path:
    """A small PNG."""
    return picture(tmp_path / "photo.png")


# ---- Help and usage ----

def test_help_goes_to_stdout() -> None:
    """-h, --help and help, also for a command, print the usage and succeed."""
    for arguments in (["-h"], ["--help"], ["help"], ["generate", "-h"], ["generate", "--help"], ["help", "generate"]):
        done = succeeds(*arguments, model=None)
        assert b"janus generate" in done.stdout and not done.stderr
        assert done.stdout == succeeds(*(["-h"] if "generate" not in arguments else ["generate", "-h"]), model=None).stdout


HELP = subprocess.run([JANUS, "-h"], capture_output=True, text=True, timeout=60).stdout
COMMANDS = re.findall(r"^  janus ([a-z]+)", HELP, re.MULTILINE)
USES = {  # what is enough for each command to begin
    "generate": ["a cat"], "ask": ["What?"], "chat": [], "encode": ["-i", "x.png"], "decode": [], "tokenize": ["text"], "info": [],
    "batch": ["jobs.jsonl"], "selftest": [], "help": []}
GOOD_VALUES = {"N": 1, "W": 5, "S": 1, "T": 1, "K": 1, "P": 1, "NAME": "plain",
               "IMAGE": "x.png", "OUT": "x.png", "DIR": "dump", "MODEL": MODEL}


def options_of_the_help() -> list[tuple[str, list[str], list[str]]]:
    """Every option with the commands that take it and what it is given, as the help of the commands says."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for command in COMMANDS:
        told = subprocess.run([JANUS, "help", command], capture_output=True, text=True, timeout=60).stdout
        for letter, name, argument in re.findall(r"^  (?:(-[a-z]), |    )(--[-a-z]+)(?: ([^ ]+))? ", told, re.MULTILINE):
            value = [str(GOOD_VALUES.get(argument, argument.split("|")[0]))] if argument else []
            for name in filter(None, (letter, name)):
                found.setdefault(name, ([], value))[0].append(command)
    return [(name, *entry) for name, entry in found.items()]


OPTIONS = options_of_the_help()


def test_help_fits_a_terminal() -> None:
    """24 lines of 80 columns for the commands; the options of one, the words of chat and the keys of batch."""
    assert list(USES) == COMMANDS and len(OPTIONS) >= 32 and HELP.count("\n") <= 24 and "janus help COMMAND" in HELP
    for command in COMMANDS:
        told = succeeds("help", command, model=None).stdout.decode()
        assert f"janus {command} " in told
        assert told.count("\n") <= 33 and max(map(len, (HELP + told).split("\n"))) <= 80
        assert succeeds(command, "-h", model=None).stdout.decode() == told
    for word in ("/image FILE", "/draw PROMPT", "/clear", "/help", "/exit"):
        assert word in succeeds("help", "chat", model=None).stdout.decode()


@pytest.mark.parametrize("command", USES)
def test_options_that_a_command_does_not_use(tmp_path: Path, command: str) -> None:
    """Each is refused with a sentence and exit 2 before anything is done."""
    refused = 0
    for name, takers, value in OPTIONS:
        if command in takers:
            continue
        line = fails(command, name, *value, *USES[command], model=None, cwd=tmp_path, code=2)
        assert line.startswith(f"janus: {command} takes no {name}: it "), line
        refused += 1
    assert refused >= 2 and not list(tmp_path.iterdir())


def test_refusals_say_why(tmp_path: Path) -> None:
    """Among them an image for a drawing, texts where none is taken, and two models."""
    refusals = {
        ("generate", "-i", "photo.png", "make it blue"): "generate takes no -i: it draws pictures from a text",
        ("encode", "x.png", "y.png"): "too many arguments: janus encode IMAGE", ("encode", "-i", "x.png", "y.png"): "too many arguments: janus encode",
        ("info", "a.gguf", "-m", "b.gguf"): "info shows one file: b.gguf or a.gguf", ("generate",): 'missing argument: janus generate "PROMPT"',
        ("info", "a.png", "-m", "b.gguf"): "info shows one file: b.gguf or a.png", ("encode",): "missing argument: janus encode IMAGE",
        ("ask", "-i", "-", "-"): "only one input can come from stdin", ("ask", "-", "-", "What?"): "only one input can come from stdin",
        ("chat", "-i", "-"): "only one input can come from stdin", ("chat", "-"): "only one input can come from stdin",
        ("generate", "-m", "", "x"): "-m takes a name", ("selftest", "x"): "too many arguments: janus selftest",
        ("ask", *["-i", "x.png"] * 65, "What?"): "-i takes at most 64 images", ("ask", "-i", "x.png", *["x.png"] * 64, "What?"): "-i takes at most 64 images",
        ("ask", "-i", "x.png"): 'missing argument: janus ask [IMAGE ...] "QUESTION"', ("generate", "--fast=1", "x"): "--fast takes no value",
        ("chat", "-o", "x.png"): "chat takes no -o: it", ("chat", "--output=x.png"): "chat takes no --output: it",
        ("generate", "a", "cat"): 'too many arguments: janus generate "PROMPT"', ("chat", *["x.png"] * 65): "too many arguments: janus chat",
    }
    for arguments, said in refusals.items():
        assert said in fails(*arguments, model=None, cwd=tmp_path, code=2), arguments


def test_no_command_is_usage() -> None:
    """Without a command the usage goes to stderr."""
    done = janus(model=None)
    assert done.returncode == 2 and done.stderr.decode() == HELP and not done.stdout


@pytest.mark.parametrize("arguments", [["paint", "a cat"], ["generate"], ["ask"], ["encode"], ["tokenize"], ["generate", "a", "cat"],
                                       ["generate", "--colour", "red", "x"], ["generate", "x", "-o"], ["info", "--threads"], ["tokenize", "-x", "text"]])
def test_usage_errors(arguments: list[str]) -> None:
    """What cannot be understood: exit 2."""
    fails(*arguments, code=2)


@pytest.mark.parametrize("option, values", [
    ("--seed", ["0 to 18446744073709551615, or -1 for a random one", "x", "", "-2", "1.5", "99999999999999999999999", "1x"]),
    ("-n", ["1 to 64", "0", "65", "-3", "x", "1.5", ""]),
    ("--cfg", ["0 to 100", "x", "-1", "nan", "inf", "1e999", "1e3", "5 "]),
    ("--temperature", ["0 to 100", "x", "-0.1", "nan", "inf", "1e999"]),
    ("--threads", ["0 to 256", "-1", "257", "x", "1e3", "1.5"]),
    ("--speculate", ["-1 to 63, -1 is auto", "-2", "64", "x", "1.5", "AUTO", "autos"]),
    ("--max-tokens", ["1 to 16777216", "0", "-1", "x"]),
    ("--top-k", ["0 to 16777216", "-1", "x"]),
    ("--top-p", ["1e-06 to 1", "0", "-1", "1.1", "nan", "x"]),
    ("--isa", ["a name", ""]),
    ("--kv", ["f32|f16", "f64", "", "f16|f32"])])
def test_values_outside_the_range(tmp_path: Path, option: str, values: list[str]) -> None:
    """Exit 2 and the range, which stands first in the list."""
    command = next("generate" if "generate" in takers else "ask" for name, takers, _ in OPTIONS if name == option)
    for form in ([option, "{}"], [option + "={}"]):
        for value in values[1:]:
            line = fails(command, *(word.format(value) for word in form), "a cat", cwd=tmp_path, code=2)
            assert line.startswith(f"janus: {option} takes ") and values[0] in line and f'not "{value}"' in line, line


def test_capitals(tmp_path: Path) -> None:
    """Words of an option are the same in capitals."""
    for name in ("f16", "F16"):
        succeeds("ask", "--kv", name, "--max-tokens", 1, "--dump", tmp_path / f"dump-{name}", "What?")
    first, second = (np.load(tmp_path / f"dump-{name}" / "lm.logits.npy") for name in ("f16", "F16"))
    assert (first == second).all()


def test_options_may_stand_anywhere(photo: Path) -> None:
    """Before or behind the text, and "--" ends them."""
    first = succeeds("tokenize", "a text", "-q").stdout
    assert succeeds("tokenize", "-q", "a text").stdout == first
    assert succeeds("tokenize", "-m", MODEL, "--", "-q").stdout != first


def test_names_of_options(tmp_path: Path) -> None:
    """Short and long names, values in the next argument or after =: all the same."""
    expected = succeeds("generate", "-n", 1, "--seed", 3, "--cfg", 2, "--temperature", 0.5, "--threads", 2, "-o", "-", "a red fox").stdout
    for line in ("--count=1 --seed=3 --cfg=2 --temperature=0.5 --threads=2 --output=- a_red_fox", "-n=1 -s=3 --cfg 2 --temperature .5 -t 2 -o - a_red_fox",
                 "-q -o - --cfg 2 --quiet --temperature .5 - -s 3"):
        arguments = [word.replace("_", " ") for word in line.split()]
        assert succeeds("generate", *arguments, cwd=tmp_path, stdin=b"a red fox\n").stdout == expected, line
    assert succeeds("info", f"--model={MODEL}", model=None).stdout == succeeds("info").stdout
    assert "-t takes a whole number from 0 to 256, not \"0x\"" in fails("generate", "-t=0x", "a", code=2)
    assert "--threads takes a whole number from 0 to 256, not \"\"" in fails("generate", "--threads=", "a", code=2)


@pytest.mark.parametrize("typed, meant", [
    ("--sead", "--seed"), ("--treads=4", "--threads"), ("--temprature", "--temperature"), ("-seed", "--seed"), ("-help", "--help"), ("-steed", "--seed"),
    ("--max_tokens", "--max-tokens"), ("--out", "--output"), ("--thr=4", "--threads"), ("--qui", "--quiet"), ("--size", None), ("--colour", None), ("--steps", None),
    ("--ou", None), ("-x", None), ("-qx", None), ("-ngl", None), ("-s7", None), ("-s\x1b[31m", None), ("--temp", "--temperature"), ("--" + "x" * 500, None)])
def test_typing_errors(typed: str, meant: str | None) -> None:
    """An unknown option is answered with the name that it begins, or the nearest, if one is near."""
    said = fails("generate", typed, "5", "a cat", code=2)
    shown = typed[:60].replace("\x1b", " ")
    assert said == f"janus: unknown option {shown}" + (f": is {meant} meant?" if meant else " (janus help COMMAND lists the options)")


def test_unknown_commands() -> None:
    """So is an unknown command, in the place of a command and after help."""
    for arguments in (["genrate", "a cat"], ["help", "genrate"], ["gen", "a cat"]):
        assert fails(*arguments, model=None, code=2) == f"janus: unknown command {arguments[-1 if arguments[0] == 'help' else 0]}: is generate meant?"
    assert fails("paint", model=None, code=2) == "janus: unknown command paint (the command comes first: janus help lists them)"


def test_version() -> None:
    """The version of janus.h, the kernels that info lists, the format of model files."""
    version = re.search(r'#define JANUS_VERSION "(.*)"', (ROOT / "janus.h").read_text())[1]
    lines = succeeds("--version", model=None).stdout.decode().split("\n")
    assert lines[0] == f"janus {version}" and lines[1] in succeeds("info").stdout.decode().split("\n")
    assert re.fullmatch(r"kernels +([a-z0-9]+, )*plain", lines[1]) and re.fullmatch(r"model files +GGUF 3, janus.format_version 2", lines[2])


# ---- Images as arguments ----

def test_images_as_arguments(tmp_path: Path, photo: Path) -> None:
    """All but the last argument are images, after those of -i."""
    def logits(*arguments: object, command: tuple = ("ask",), **options: object) -> bytes:
        shutil.rmtree(tmp_path / "dump", ignore_errors=True)
        succeeds(*command, "--max-tokens", 1, "--dump", tmp_path / "dump", *arguments, **options)
        return (tmp_path / "dump" / "lm.logits.npy").read_bytes()

    other = picture(tmp_path / "other.jpg", 20, 20)
    (tmp_path / "nameless").write_bytes(photo.read_bytes())
    one = logits("-i", photo, "What is it?")
    for arguments in ([photo, "What is it?"], ["What is it?", "-i", photo], [tmp_path / "nameless", "What is it?"]):
        assert logits(*arguments) == one, arguments
    both = logits("-i", photo, "-i", other, "What is it?")
    assert len({one, both, logits("-i", other, "-i", photo, "What is it?")}) == 3
    for arguments in ([photo, other, "What is it?"], [other, "-i", photo, "What is it?"], ["-i", photo, other, "What is it?"]):
        assert logits(*arguments) == both, arguments
    assert logits(photo, other, command=("chat",), stdin=b"What is it?\n") == both
    assert succeeds("encode", photo).stdout == succeeds("encode", "-i", photo).stdout
    assert succeeds("encode", tmp_path / "nameless").stdout == succeeds("encode", "-i", photo).stdout


def test_questions_that_name_files(tmp_path: Path, photo: Path) -> None:
    """A question must not look like a file, which may be an image without a question; from stdin it may. Other commands do not ask."""
    (tmp_path / "How?").write_text("How?")
    (tmp_path / "nameless").write_bytes(photo.read_bytes())
    for name in (photo.name, "circel.png", "circel.PNG", "photo of me.jpeg", "x.webp", "drawing.svg", "no/such.bin", "How?", "nameless", "."):
        for images in ([], [photo], ["What is it?"]):
            assert f"ask: no question: {name} looks like a file" in fails("ask", *images, name, cwd=tmp_path, code=2)
        succeeds("ask", "--max-tokens", 1, "-", stdin=name.encode(), cwd=tmp_path)
    for question in ("Is it v1.5?", "What?", "...", "No.", "what is in x.webp"):
        succeeds("ask", "--max-tokens", 1, question, cwd=tmp_path)
    succeeds("generate", "-o", "x.png", photo.name, cwd=tmp_path)
    assert succeeds("tokenize", photo.name, cwd=tmp_path).stdout == succeeds("tokenize", photo.name).stdout


@pytest.mark.parametrize("arguments, said", [
    (["ask", "photo.svg", "What is it?"], "cannot read the image photo.svg: No such"), (["ask", "./no/photo", "What is it?"], "cannot read the image ./no/photo: No such"),
    (["ask", ".", "What"], "cannot read the image .: Is a directory"), (["ask", "What", "is", "it?"], "cannot read the image What: No such"),
    (["chat", "nofile.png"], "cannot read the image nofile.png: No such"), (["chat", "Hello"], "cannot read the image Hello: No such"),
    (["encode", "no"], "cannot read the image no: No such"), (["info", "nofile.png"], "cannot read the image nofile.png: No such")])
def test_the_argument_that_is_meant(tmp_path: Path, arguments: list[str], said: str) -> None:
    """The message names the file that is missing, or is no image."""
    assert said in fails(*arguments, model=None if arguments[0] == "info" else MODEL, cwd=tmp_path)


@posix
def test_streams_as_images(tmp_path: Path, photo: Path) -> None:
    """- and pipes are images where an image may stand: beside a question, for encode and for info; alone they are no question."""
    expected = succeeds("ask", "--max-tokens", 3, photo, "What is it?").stdout
    script = '"$0" "$@" <(cat "$PHOTO")'
    for arguments in (["-", "What is it?"], ["What is it?", "-i", "-"], ["-i", "-", "What is it?"]):
        assert succeeds("ask", "--max-tokens", 3, *arguments, stdin=photo.read_bytes()).stdout == expected, arguments
    drawn = tmp_path / "drawn.png"
    told = succeeds("generate", "-o", drawn, "a red fox") and succeeds("info", drawn, model=None).stdout
    assert succeeds("info", "-", model=None, stdin=drawn.read_bytes()).stdout == told
    assert "stdin is neither a PNG nor a JPEG" in fails("info", "-", model=None, stdin=b"GGUF")
    if not shutil.which("bash"):
        return

    def piped(*arguments: object, path: Path = photo) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", "-c", script, JANUS, *map(str, arguments)], capture_output=True, timeout=60, env=os.environ | {"PHOTO": str(path)})

    assert piped("encode", "-m", MODEL).stdout == succeeds("encode", photo).stdout and piped("info", path=drawn).stdout == told
    done = subprocess.run(["bash", "-c", '"$0" ask -q --max-tokens 3 -m "$1" <(cat "$2") "What is it?"', JANUS, MODEL, photo], capture_output=True, timeout=60)
    assert done.stdout == expected and not done.stderr
    done = piped("ask", "-m", MODEL)
    assert done.returncode == 2 and b"ask: no question" in done.stderr
    assert b"no image fits" not in piped("chat", "-m", MODEL).stderr and piped("chat", "-m", MODEL).returncode == 0


@pytest.mark.parametrize("arguments, idle", [
    (["ask", "--seed", 3, "What?"], True), (["ask", "--top-k", 5, "What?"], True), (["ask", "--top-p", 0.5, "What?"], True), (["ask", "--temperature", 0, "-s=7", "What?"], True),
    (["ask", "--temperature", 1, "--top-k", 5, "-s", 1, "What?"], False), (["chat", "--seed", 3], False), (["chat", "--seed", 3, "--top-p", 0.9], True),
    (["generate", "-o", "x.png", "-s", 1, "x"], False), (["generate", "-o", "x.png", "-s", 1, "--temperature", 0, "x"], True)])
def test_idle_options(tmp_path: Path, arguments: list, idle: bool) -> None:
    """Options of sampling without an effect get a remark, which -q leaves out."""
    words = [*arguments, *(["--max-tokens", 1] if arguments[0] != "generate" else [])]
    said = [line for line in succeeds(*words, cwd=tmp_path).stderr.decode().splitlines() if line.startswith("janus:")]
    assert said == ["janus: remark: --seed, --top-k and --top-p have no effect without a --temperature above 0"] * idle
    assert b"remark" not in succeeds(*words, "-q", cwd=tmp_path).stderr


def test_control_characters_in_names(tmp_path: Path) -> None:
    """What a message quotes cannot steer the terminal."""
    for arguments in (["info", "-m", "a\x1b]0;x\x07.gguf"], ["ask", "a\x1b[31m.png", "What?"], ["decode", "-o", "\x1b[2J.gif"], ["decode", "a\u009b2J"],
                      ["decode", "--isa", "a\x1b[31m"]):
        assert not re.search("[\x00-\x1f\x7f-\x9f]", fails(*arguments, model=None, cwd=tmp_path, code=1)), arguments


# ---- generate ----

def test_generate(tmp_path: Path) -> None:
    """A picture, its name on stdout, the seed on stderr; the same seed gives the same picture."""
    done = succeeds("generate", "--seed", 3, "-o", "fox.png", "a red fox", cwd=tmp_path)
    assert done.stdout == b"fox.png\n"
    assert re.fullmatch(rf"seed 3 \u00b7 read \d+\.\d s \u00b7 {TOKENS} tokens \d+\.\d s \(\d+\.\d/s\) \u00b7 decode \d+\.\d s\n", done.stderr.decode())
    first = (tmp_path / "fox.png").read_bytes()
    assert Image.open(tmp_path / "fox.png").size == (SIDE, SIDE)
    succeeds("generate", "--seed", 3, "-o", "again.png", "a red fox", cwd=tmp_path)
    succeeds("generate", "--seed", 4, "-o", "other.png", "a red fox", cwd=tmp_path)
    assert (tmp_path / "again.png").read_bytes() == first != (tmp_path / "other.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.png", "fox.png", "other.png"]


@posix
def test_long_names(tmp_path: Path) -> None:
    """Names of more than a thousand bytes are names; too long ones are refused, not cut."""
    folder = tmp_path.joinpath(*["f" * 200] * 8)
    folder.mkdir(parents=True)
    succeeds("generate", "--seed", 3, "-n", 2, "-o", folder / "fox.png", "--dump", folder / "dump", "a red fox")
    assert Image.open(folder / "fox-2.png").size == (SIDE, SIDE) and (folder / "dump" / "generation.ids.npy").is_file()
    for name in ("./" * 3000 + "fox.png", "f" * 5000 + ".png"):
        fails("generate", "--seed", 3, "-o", name, "a red fox", cwd=tmp_path)
    done = janus("generate", "--seed", 3, "--dump", "./" * 2040 + "new", "-o", "fox.png", "a red fox", cwd=tmp_path)
    assert done.returncode == 1 and b"File name too long" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f" * 200, "fox.png", "new"]


def test_made_up_seed_is_printed(tmp_path: Path) -> None:
    """The seed of a run that was not given one, or -1, repeats it."""
    for option in ([], ["--seed", -1]):
        done = succeeds("generate", *option, "-q", "-o", "a.png", "a red fox", cwd=tmp_path)
        word, seed = done.stderr.split()
        assert word == b"seed"
        succeeds("generate", "-o", "b.png", "--seed", seed.decode(), "a red fox", cwd=tmp_path)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_generate_numbers_its_files(tmp_path: Path) -> None:
    """-n 3 writes three different pictures into numbered files."""
    done = succeeds("generate", "-n", 3, "--seed", 1, "-o", "my.fox.png", "a red fox", cwd=tmp_path)
    names = done.stdout.decode().split()
    assert names == ["my.fox-1.png", "my.fox-2.png", "my.fox-3.png"] == sorted(path.name for path in tmp_path.iterdir())
    assert len({Image.open(tmp_path / name).tobytes() for name in names}) > 1


def test_generate_formats(tmp_path: Path) -> None:
    """JPEG by its endings, the default name, and no other endings."""
    for name, kind in (("a.jpg", "JPEG"), ("a.jpeg", "JPEG"), ("A.PNG", "PNG")):
        done = janus("generate", "-o", name, "x", cwd=tmp_path)
        if name == "A.PNG" and done.returncode:
            continue  # capital endings may be refused
        assert done.returncode == 0 and Image.open(tmp_path / name).format == kind
    assert succeeds("generate", "x", cwd=tmp_path).stdout == b"janus-1.png\n"
    assert Image.open(tmp_path / "janus-1.png").format == "PNG"
    for name in ("a.gif", "a", "a.png.txt", ""):
        fails("generate", "-o", name, "x", cwd=tmp_path, code=(1, 2))


@pytest.mark.parametrize("option", [["--temperature", 0], ["--cfg", 0], ["--cfg", 1.5, "--temperature", 0.5], ["--threads", 1]])
def test_generate_options(tmp_path: Path, option: list) -> None:
    """Options that are in their ranges."""
    succeeds("generate", *option, "-o", tmp_path / "x.png", "a red fox")


def test_drafts() -> None:
    """The picture is the same with any number of drafts."""
    drawn = {words: succeeds("generate", "-s", 5, *words, "-o", "-", "two blue stars", model=TINY).stdout
             for words in ((), ("--speculate", "0"), ("--speculate", "auto"), ("--speculate=3",), ("--speculate", "63"))}
    assert len(set(drawn.values())) == 1


def test_caches_and_stdout(tmp_path: Path) -> None:
    """--kv takes both its names; one picture goes to stdout, two do not."""
    succeeds("generate", "--kv", "f16", "--seed", 1, "-o", tmp_path / "x.png", "--temperature", 100, "a cat")
    assert succeeds("generate", "--kv", "f32", "--seed", 1, "-o", "-", "a cat").stdout.startswith(b"\x89PNG")
    assert "only one picture" in fails("generate", "-n", 2, "-o", "-", "a cat")
    told = succeeds("generate", "--cfg", "-0", "--temperature", "-0.0", "-o", tmp_path / "x.png", "a cat") and succeeds("info", tmp_path / "x.png", model=None).stdout.decode()
    assert "CFG scale: 0," in told and "Temperature: 0," in told


def test_names_that_are_free(tmp_path: Path) -> None:
    """Without -o nothing is overwritten, by none of many runs at once; -o overwrites."""
    (tmp_path / "janus-2.png").write_bytes(b"mine")
    for names in ("janus-1.png janus-3.png", "janus-4.png janus-5.png"):
        assert succeeds("generate", "-n", 2, "x", cwd=tmp_path).stdout.decode().split() == names.split()
    assert succeeds("decode", stdin=b"1 2 3 4", cwd=tmp_path).stdout == b"janus-6.png\n"
    runs = [subprocess.Popen([JANUS, "generate", "-m", MODEL, "--seed", str(seed), "a fox"], cwd=tmp_path, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL) for seed in range(8)]
    names = sorted(run.communicate(timeout=60)[0].decode().strip() for run in runs)
    assert names == sorted(f"janus-{k}.png" for k in range(7, 15)) and all(run.returncode == 0 for run in runs)
    assert (tmp_path / "janus-2.png").read_bytes() == b"mine"
    for seed in range(8):
        succeeds("generate", "--seed", seed, "-o", f"x{seed}.png", "a fox", cwd=tmp_path)
    assert (sorted((tmp_path / name).read_bytes() for name in names) ==
            sorted((tmp_path / f"x{seed}.png").read_bytes() for seed in range(8)))
    first = (tmp_path / "janus-1.png").read_bytes()
    succeeds("decode", "-o", "janus-1.png", stdin=b"1 2 3 4", cwd=tmp_path)
    assert (tmp_path / "janus-1.png").read_bytes() != first


def test_default_model(tmp_path: Path) -> None:
    """Without -m and $JANUS_MODEL: weights/tiny.gguf of the current folder or beside the program; without it the way to one."""
    assert b"transformer" in succeeds("info", model=None, cwd=ROOT).stdout
    program = tmp_path / JANUS.name
    shutil.copy(JANUS, program)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JANUS_")}
    done = subprocess.run([program, "tokenize", "x"], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in ("no model", "-m", "JANUS_MODEL", "convert.py", "README"))
    (tmp_path / "weights").mkdir()
    shutil.copy(MODEL, tmp_path / "weights" / "tiny.gguf")
    subprocess.run([program, "tokenize", "x"], cwd=ROOT / "test", check=True, capture_output=True, timeout=60, env=environment)
    if os.name == "posix":
        for folder in ("bin", "there"):
            (tmp_path / folder).mkdir()
        (tmp_path / "there" / "janus").symlink_to(program)
        (tmp_path / "bin" / "j").symlink_to("../there/janus")
        for name in ("there/janus", "bin/j", "bin/../bin/j"):
            subprocess.run([tmp_path / name, "tokenize", "x"], cwd=ROOT / "test", check=True, capture_output=True, timeout=60, env=environment)


# ---- Streams ----

def test_stdin_is_a_dash(tmp_path: Path, photo: Path) -> None:
    """A prompt, a question, a text, ids and images come from stdin as they do from an argument or a file."""
    expected = succeeds("generate", "--seed", 1, "-o", "-", "a red fox").stdout
    for stdin in (b"a red fox\n", b"a red fox", b"a red fox\r\n\n"):
        assert succeeds("generate", "--seed", 1, "-o", "-", "-", stdin=stdin).stdout == expected
    question = ("ask", "--max-tokens", 6, "-i")
    expected = succeeds(*question, photo, "What is it?").stdout
    assert succeeds(*question, photo, "-", stdin=b"What is it?\n").stdout == expected
    assert succeeds(*question, "-", "What is it?", stdin=photo.read_bytes()).stdout == expected
    assert succeeds("encode", "-i", "-", stdin=photo.read_bytes()).stdout == succeeds("encode", "-i", photo).stdout
    assert succeeds("tokenize", "-", stdin=b"a text\n").stdout == succeeds("tokenize", "a text\n").stdout
    assert succeeds("tokenize", "--decode", "-", stdin=b"5 6 7\n").stdout == succeeds("tokenize", "--decode", "5 6 7").stdout
    for ids in ([], ["-"]):
        succeeds("decode", *ids, "-o", tmp_path / "x.png", stdin=b"1 2 3 4")
    for stdin in (b"", b"no picture", photo.read_bytes()[:60]):
        fails(*question, "-", "What?", stdin=stdin)
    fails("generate", "-", stdin=b"\n")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Texts of Notepad and PowerShell begin with one; only at the beginning it is skipped."""
    mark = b"\xef\xbb\xbf"
    for command, text in (["tokenize"], b"a text\n"), (["tokenize", "--decode"], b"5 6 7\n"), (["ask", "-t", "1"], b"What?"):
        assert succeeds(*command, "-", stdin=mark + text).stdout == succeeds(*command, "-", stdin=text).stdout
    assert succeeds("chat", "-q", stdin=mark + b"What?\n").stdout == succeeds("chat", "-q", stdin=b"What?\n").stdout
    assert succeeds("tokenize", "-", stdin=mark).stdout == succeeds("tokenize", "-", stdin=b"").stdout
    assert succeeds("tokenize", "-", stdin=b"a" + mark).stdout != succeeds("tokenize", "-", stdin=b"a").stdout
    succeeds("decode", "-o", tmp_path / "x.png", "-", stdin=mark + b"1 2 3 4")


def test_zero_bytes(tmp_path: Path) -> None:
    """Where a zero byte would end a text early: an error that says where it is, never a text that is cut."""
    for arguments, stdin in ((["generate", "-"], b"a fox\0 and more"), (["ask", "-"], b"a fox\0 and more"), (["tokenize", "-"], b"a fox\0 and"),
                             (["decode"], b"1 2 3\x004"), (["decode"], b"1 2 3 4\0"), (["tokenize", "--decode", "-"], b"5 6 7 \0 8")):
        line = fails(*arguments, stdin=stdin, cwd=tmp_path)
        assert f"stdin is not a text in UTF-8: byte {stdin.index(0) + 1} is zero" in line
    (tmp_path / "ids").write_bytes(b"1 2\x003 4")
    assert "ids is not a text" in fails("decode", "ids", cwd=tmp_path)
    done = succeeds("chat", "--max-tokens", 2, stdin=b"Hel\0lo\n/draw a\0 fox\nHello\n", cwd=tmp_path)
    assert done.stderr.count(b"byte 4 is zero") == 1 and done.stderr.count(b"byte 8 is zero") == 1
    assert done.stdout == succeeds("chat", "--max-tokens", 2, stdin=b"Hello\n").stdout and len(list(tmp_path.iterdir())) == 1


# ---- ask and chat ----

def test_ask(photo: Path) -> None:
    """The answer alone is on stdout, its times are on stderr; greedy answers repeat."""
    done = succeeds("ask", "-i", photo, "--max-tokens", 5, "What is it?")
    seconds = r"\d+\.\d s"
    assert done.stdout.endswith(b"\n") and re.fullmatch(
        rf"seen {seconds} \u00b7 read {seconds} \u00b7 5 tokens {seconds} \(\d+\.\d/s\) \u00b7 cut by --max-tokens\n", done.stderr.decode())
    assert not succeeds("ask", "-q", "-i", photo, "--max-tokens", 5, "What is it?").stderr
    assert succeeds("ask", "-i", photo, "--max-tokens", 5, "--threads", 1, "What is it?").stdout == done.stdout
    assert succeeds("ask", "-i", photo, "-i", photo, "--max-tokens", 5, "Same?").stdout.endswith(b"\n")


def test_a_cut_answer_is_marked() -> None:
    """By --max-tokens or by the end of the context; one that ends by itself is not."""
    assert succeeds("ask", "--max-tokens", 2, "What are you?", "-m", TINY).stderr.decode().endswith("\u00b7 cut by --max-tokens\n")
    assert b"cut" not in succeeds("ask", "What are you?", "-m", TINY).stderr
    done = succeeds("ask", "a b c " * 108, "--max-tokens", 500)
    assert done.stderr.decode().endswith("\u00b7 cut: the context is full\n"), done.stderr


def test_ask_samples_with_a_seed(photo: Path) -> None:
    """A temperature makes the answer depend on the seed, which is printed."""
    question = ("ask", "-i", photo, "--max-tokens", 12, "--temperature", 1, "--top-p", 0.9)
    runs = [succeeds(*question, "--seed", seed, "What?") for seed in (1, 1, 2)]
    assert runs[0].stdout == runs[1].stdout != runs[2].stdout
    assert runs[0].stderr.startswith("seed 1 \u00b7 seen ".encode())


def test_chat(tmp_path: Path, photo: Path) -> None:
    """Turns, an image, a drawing and a new beginning; the end of the input ends it."""
    text = f"Hello\n/image {photo}\nWhat is it?\n\n/draw a fox\n/clear\nHello\n"
    done = succeeds("chat", "--max-tokens", 4, "-q", stdin=text.encode(), cwd=tmp_path)
    lines = done.stdout.split(b"\n")
    assert done.stdout.count(b"\n") >= 4 and b"janus-1.png" in lines
    assert (tmp_path / "janus-1.png").exists()
    assert lines[0] == lines[-2], "after /clear the first question gets the first answer again"
    assert succeeds("chat", stdin=b"/quit\nHello\n").stdout == b""


def test_chat_survives_mistakes(photo: Path) -> None:
    """A wrong command or image is a remark, and the conversation goes on."""
    done = succeeds("chat", "-q", "--max-tokens", 3, stdin=b"/paint\n/image no/such.png\n\xff\xfe\nHello\n")
    assert len(done.stderr.splitlines()) == 3 and done.stdout.strip()
    lines = succeeds("chat", "-q", "--max-tokens", 3, stdin=b"Hello\n/image no/such.png\n").stdout.split(b"\n")
    assert lines == done.stdout.split(b"\n"), "a remark is no line of the results"
    fails("chat", "-i", "no/such.png")


def test_chat_goes_on(tmp_path: Path) -> None:
    """Drawings take the next free name; a line that is too long is refused as a whole."""
    done = succeeds("chat", "--max-tokens", 2, stdin=b"/draw a\n/draw b\n" + b" " * 1100000 + b"/draw c\n/draw d\n", cwd=tmp_path)
    assert [line for line in done.stdout.decode().split("\n") if line] == ["janus-1.png", "janus-2.png", "janus-3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["janus-1.png", "janus-2.png", "janus-3.png"]
    assert b"janus: the line is longer than 1 MiB\n" in done.stderr


# ---- encode and decode, tokenize, info ----

def test_encode_and_decode(tmp_path: Path, photo: Path) -> None:
    """One line of ids, which decode turns into a picture from a file or from stdin."""
    done = succeeds("encode", "-i", photo)
    ids = [int(word) for word in done.stdout.split()]
    assert len(ids) == TOKENS and all(0 <= i < CODEBOOK for i in ids) and done.stdout.count(b"\n") == 1 and not done.stderr
    (tmp_path / "ids.txt").write_bytes(done.stdout)
    assert succeeds("decode", "-o", "a.png", "ids.txt", cwd=tmp_path).stdout == b"a.png\n"
    succeeds("decode", "-o", "b.png", stdin=done.stdout, cwd=tmp_path)
    succeeds("decode", "-o", "c.png", stdin=b",\n".join(done.stdout.split()) + b" " * 300000, cwd=tmp_path)
    pictures = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png")]
    assert pictures[0] == pictures[1] == pictures[2] and Image.open(tmp_path / "a.png").size == (SIDE, SIDE)


@pytest.mark.parametrize("ids", [b"", b"1 2 3", b"1 2 3 4 5", b"1 2 3 x", b"1 2 3 4.5", b"1 2 3 -1", b"1 2 3 128", b"1 2 3 99999999999999999999",
    b"\xff\xfe 1 2 3", b"1 2 3 4x", b"0x1 2 3 4"])
def test_decode_refuses_bad_ids(tmp_path: Path, ids: bytes) -> None:
    """Too few, too many, out of range, no numbers: no picture."""
    fails("decode", "-o", "x.png", stdin=ids, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_decode_refuses_bad_files(tmp_path: Path) -> None:
    """A missing file and a folder."""
    fails("decode", tmp_path / "missing")
    fails("decode", tmp_path)


@pytest.mark.parametrize("text", ["Hello, world!", "  two  spaces ", "你好 🦊", "<|User|>: x<image_placeholder>", "tab\there\n"])
def test_tokenize_round_trip(text: str) -> None:
    """Ids on one line, and the text back from them."""
    done = succeeds("tokenize", text)
    assert done.stdout.count(b"\n") == 1 and all(word.isdigit() for word in done.stdout.split())
    assert succeeds("tokenize", "--decode", done.stdout.decode().strip()).stdout.decode() == text + "\n"


def test_tokenize_refuses() -> None:
    """Bytes that are no UTF-8, ids that are none."""
    fails("tokenize", b"abc\xff")
    for text in ("1 2 x", "1 -1", "99999999", "1.5"):
        fails("tokenize", "--decode", text)


def test_info() -> None:
    """The sizes of the model, on stdout; of the file that is named."""
    done = succeeds("info")
    assert b"transformer" in done.stdout and b"f16" in done.stdout and not done.stderr
    other = GOLDEN / "tied.gguf"
    assert succeeds("info", other, model=None).stdout == succeeds("info", "-m", other).stdout != done.stdout
    assert "no/such.gguf" in fails("info", "no/such.gguf", model=None)
    assert re.match(rb"name +janus-tiny\n", succeeds("info", TINY, model=None).stdout)


def test_files_that_would_be_lost(tmp_path: Path) -> None:
    """The model is never written over, by none of its names; tensors of another run are not mixed with new ones."""
    model = tmp_path / "model.png"
    shutil.copy(MODEL, model)
    names = [model, f"{tmp_path}/./model.png", tmp_path / "hard.png"]
    os.link(model, names[2])
    if os.name == "posix":
        names.append(tmp_path / "soft.png")
        names[3].symlink_to(model)
    for name in names:
        assert "over the model" in fails("generate", "-m", model, "-o", name, "x")
        assert "over the model" in fails("decode", "-m", model, "-o", name, stdin=b"1 2 3 4")
    os.link(model, tmp_path / "new-2.png")
    assert "over the model" in fails("generate", "-m", model, "-n", 2, "-o", tmp_path / "new.png", "x")
    assert model.read_bytes() == MODEL.read_bytes() and not (tmp_path / "new-1.png").exists()
    dump = tmp_path / "dump"
    dump.mkdir()
    succeeds("decode", "--dump", dump, "-o", tmp_path / "x.png", stdin=b"1 2 3 4")
    before = sorted(dump.iterdir())
    assert "not an empty folder" in fails("decode", "--dump", dump, "-o", tmp_path / "y.png", stdin=b"1 2 3 4")
    assert sorted(dump.iterdir()) == before and len(before) > 3 and not (tmp_path / "y.png").exists()


# ---- The model file ----

def test_model_from_the_environment() -> None:
    """$JANUS_MODEL is the default, -m goes before it."""
    assert succeeds("info", model=None, env={"JANUS_MODEL": str(MODEL)}).stdout == succeeds("info").stdout
    other = succeeds("info", "-m", GOLDEN / "tied.gguf", env={"JANUS_MODEL": str(MODEL)}).stdout
    assert other != succeeds("info").stdout


def test_damaged_models(tmp_path: Path) -> None:
    """Refused by every command with one line that names the file; test_janus.c has the kinds of damages."""
    path, data = tmp_path / "bad.gguf", MODEL.read_bytes()
    for content in (b"This is no model. " * 100, data[:len(data) // 2], data.replace(b"output_norm.weight", b"uotput_norm.weight")):
        path.write_bytes(content)
        for arguments in (["info"], ["generate", "-o", tmp_path / "x.png", "a cat"]):
            assert "bad.gguf" in fails(*arguments, "-m", path)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


def test_model_that_is_no_file(tmp_path: Path) -> None:
    """Missing, or a folder."""
    fails("info", "-m", tmp_path / "missing.gguf")
    fails("info", "-m", tmp_path)
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        for path in ("/dev/null", "/dev/zero", "/dev/stdin", tmp_path / "pipe"):
            fails("info", "-m", path, preexec_fn=little_memory)


def little_memory() -> None:
    """In the child: no more than 2 GiB, so that reading without an end stays harmless."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


# ---- Images ----

def test_image_formats(tmp_path: Path) -> None:
    """PNG and JPEG in their variants see the same picture; alpha is dropped, not blended."""
    rgb = Image.open(picture(tmp_path / "rgb.png", 24, 24))
    transparent = rgb.copy()
    transparent.putalpha(0)
    transparent.save(tmp_path / "rgba.png")
    expected = succeeds("encode", "-i", tmp_path / "rgb.png").stdout
    assert succeeds("encode", "-i", tmp_path / "rgba.png").stdout == expected
    rgb.save(tmp_path / "a.jpg", quality=95)
    rgb.save(tmp_path / "progressive.jpg", progressive=True)
    rgb.convert("L").save(tmp_path / "grey.png")
    rgb.convert("L").save(tmp_path / "grey.jpg")
    rgb.convert("P").save(tmp_path / "palette.png")
    rgb.convert("1").save(tmp_path / "bits.png")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    for name in ("a.jpg", "progressive.jpg", "grey.png", "grey.jpg", "palette.png", "bits.png", "deep.png"):
        succeeds("encode", "-i", tmp_path / name)


def test_bad_images(tmp_path: Path) -> None:
    """Refused by every command that reads one, by name; test_images.py has the kinds of damages."""
    data, path = picture(tmp_path / "good.png").read_bytes(), tmp_path / "bad.png"
    unknown_chunk = struct.pack(">I4sI", 0, b"\nA\rB", 0)  # its name goes into the reason: it must not break the line
    for content in (b"", b"no picture", data[:len(data) // 2], data[:50] + bytes(b ^ 0x55 for b in data[50:]),
                    data[:16] + struct.pack(">II", 0, 0) + data[24:], data[:33] + unknown_chunk + data[33:]):
        path.write_bytes(content)
        for arguments in (["encode", "-i", path], ["ask", "-i", path, "What?"], ["chat", "-i", path]):
            assert "bad.png" in fails(*arguments)


def test_image_that_is_no_file(tmp_path: Path) -> None:
    """Missing, a folder, an endless device."""
    for path in [tmp_path / "missing.png", tmp_path, *(["/dev/zero", "/dev/null"] if os.name == "posix" else [])]:
        fails("ask", "-i", path, "What?", preexec_fn=little_memory if os.name == "posix" else None)


# ---- Prompts ----

@pytest.mark.parametrize("text", ["", "   ", "\n\t", b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", "a b " * 20000])
def test_bad_prompts(tmp_path: Path, photo: Path, text: str | bytes) -> None:
    """Empty, not UTF-8, longer than the context."""
    out = tmp_path / "out"
    out.mkdir()
    fails("generate", "-o", out / "x.png", text)
    fails("ask", "-i", photo, text)
    assert not list(out.iterdir())


# ---- Output ----

def test_missing_output_folder(tmp_path: Path) -> None:
    """Nothing is left behind."""
    fails("generate", "-o", "no/such/x.png", "a cat", cwd=tmp_path)
    fails("decode", "-o", "no/such/x.png", stdin=b"1 2 3 4", cwd=tmp_path)
    (tmp_path / "folder.png").mkdir()
    fails("decode", "-o", "folder.png", stdin=b"1 2 3 4", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"] and not list((tmp_path / "folder.png").iterdir())


def small_files() -> None:
    """In the child: files cannot grow beyond 40 bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))


@posix
def test_full_disk_keeps_the_old_picture(tmp_path: Path) -> None:
    """A picture that cannot be written whole is not written at all."""
    (tmp_path / "x.png").write_bytes(b"old")
    for name in ("x.png", "new.png", "new.jpg"):
        fails("decode", "-o", name, stdin=b"1 2 3 4", cwd=tmp_path, preexec_fn=small_files)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"] and (tmp_path / "x.png").read_bytes() == b"old"
    fails("encode", "-i", picture(tmp_path / "photo.png"), "--dump", tmp_path / "dump", preexec_fn=small_files, stdout=subprocess.DEVNULL)


@posix
def test_a_free_name_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is left of it, the empty file neither that held its name."""
    fails("decode", stdin=b"1 2 3 4", cwd=tmp_path, preexec_fn=small_files)
    assert not list(tmp_path.iterdir())


@posix
def test_full_stdout(tmp_path: Path, photo: Path) -> None:
    """Results that cannot be written are a failure."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    drawing = ["generate", "-q", "-o", tmp_path / "x.png", "--seed", 1, "a cat"]
    for arguments in (["-h"], ["info"], ["tokenize", "a b c"], ["tokenize", "--decode", "5 6 7"], ["encode", "-i", photo], drawing,
                      ["ask", "-i", photo, "--max-tokens", 3, "What?"], ["decode", "-o", tmp_path / "x.png"], ["decode", "-o", "-"]):
        with open("/dev/full", "wb") as full:
            done = janus(*arguments, stdin=b"1 2 3 4", stdout=full, model=None if arguments == ["-h"] else MODEL)
        assert done.returncode == 1, arguments
        lines = [line for line in done.stderr.splitlines() if not line.startswith(b"seed ")]
        assert len(lines) == 1, done.stderr
    with open("/dev/full", "wb") as full:
        done = janus("chat", "--max-tokens", 2, stdin=b"/draw a cat\nHello\n", stdout=full, cwd=tmp_path)
        assert done.returncode == 1 and b"stdout" in done.stderr


def with_closed(stream: str, *arguments: object, cwd: Path, stdin: bytes = b"1 2 3 4") -> subprocess.CompletedProcess:
    """Runs the program with a stream closed by the shell: "<&-", ">&-" or "2>&-"."""
    return subprocess.run(["sh", "-c", f'exec "$@" {stream}', "sh", JANUS, *map(str, arguments), "-m", MODEL], cwd=cwd,
                          input=None if stream == "<&-" else stdin, capture_output=True, timeout=60)


@posix
def test_closed_streams(tmp_path: Path, photo: Path) -> None:
    """Closed, not redirected: no file of the program's takes the stream's place, and results that are lost are a failure."""
    normal = succeeds("decode", "-o", tmp_path / "a.png", stdin=b"1 2 3 4")
    picture_bytes = (tmp_path / "a.png").read_bytes()
    answer = succeeds("ask", "-i", photo, "--max-tokens", 3, "What?").stdout
    for arguments in (["decode", "-o", "b.png"], ["info"], ["encode", "-i", photo], ["decode", "-o", "-"],
                      ["ask", "-i", photo, "--max-tokens", 3, "What?"]):
        done = with_closed(">&-", *arguments, cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1, (arguments, done)
    assert (tmp_path / "b.png").read_bytes() == picture_bytes
    done = with_closed("2>&-", "decode", "-o", "c.png", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == b"c.png\n" and (tmp_path / "c.png").read_bytes() == picture_bytes
    assert with_closed("2>&-", "ask", "-i", photo, "--max-tokens", 3, "What?", cwd=tmp_path).stdout == answer
    assert with_closed("2>&-", "generate", "--dump", "dump", "-o", "d.png", "x", cwd=tmp_path).returncode == 0
    assert Image.open(tmp_path / "d.png").size == (SIDE, SIDE)
    assert all(np.load(path) is not None for path in (tmp_path / "dump").iterdir())
    assert with_closed("2>&-", "decode", "no/such/ids", cwd=tmp_path).returncode == 1
    done = with_closed("<&-", "decode", "-o", "e.png", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and not (tmp_path / "e.png").exists()
    assert with_closed("<&-", "chat", cwd=tmp_path).stdout == b"" and normal.returncode == 0


@posix
def test_reader_that_goes_away(tmp_path: Path, photo: Path) -> None:
    """A pipe that nobody reads: killed by SIGPIPE, or exit 1 where that is ignored; never a half picture."""
    def ignore() -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    for before, code in ((None, -signal.SIGPIPE), (ignore, 1)):
        for arguments in (["ask", "-i", photo, "--max-tokens", "3", "What?"], ["encode", "-i", photo]):
            reader, writer = os.pipe()
            os.close(reader)
            process = subprocess.run([JANUS, *map(str, arguments), "-m", MODEL], stdout=writer, stderr=subprocess.PIPE,
                                     preexec_fn=before, restore_signals=before is None, timeout=60, cwd=tmp_path)
            os.close(writer)
            assert process.returncode == code and process.stderr.count(b"\n") == (code == 1), process


@posix
def test_slow_pipes(tmp_path: Path, photo: Path) -> None:
    """Input that comes a byte at a time is the same input: ids, a text and a picture."""
    def trickle(data: bytes, *arguments: object) -> bytes:
        process = subprocess.Popen([JANUS, *map(str, arguments), "-m", MODEL], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   cwd=tmp_path, bufsize=0)
        for i in range(len(data)):
            process.stdin.write(data[i:i + 1])
        process.stdin.close()
        result = process.stdout.read()
        assert process.wait(60) == 0
        return result

    assert trickle(b"1 2 3 4", "decode", "-o", "x.png") == b"x.png\n"
    assert trickle("caf\u00e9".encode(), "tokenize", "-") == succeeds("tokenize", "caf\u00e9").stdout
    assert trickle(photo.read_bytes(), "encode", "-i", "/dev/stdin") == succeeds("encode", "-i", photo).stdout


def test_dump(tmp_path: Path, photo: Path) -> None:
    """Every tensor as a .npy file in a folder that is made; a name that comes again gets a number."""
    folder = tmp_path / "dump"
    succeeds("ask", "-i", photo, "--max-tokens", 3, "--dump", folder, "What?")
    names = {path.name for path in folder.iterdir()}
    expected = ("vision.pixel_values", "aligner.output", "lm.logits", "lm.logits.1", "text.token_ids")
    assert {f"{name}.npy" for name in expected} <= names
    assert np.load(folder / "vision.pixel_values.npy").shape == (24, 24, 3)
    assert np.load(folder / "text.token_ids.npy").dtype == np.int32
    (tmp_path / "file").write_text("")
    fails("ask", "-i", photo, "--dump", tmp_path / "file", "What?")
    fails("ask", "-i", photo, "--dump", tmp_path / "no" / "such", "What?")


def test_trace(tmp_path: Path, photo: Path) -> None:
    """A row for each stage that --dump would write, in its order, with the numbers of its tensor, in 80 columns."""
    question = ("ask", "-q", "-i", photo, "--max-tokens", 2, "--dump", tmp_path / "dump", "--trace", "What?")
    lines = succeeds(*question).stderr.decode().split("\n")
    assert lines[0].split() == ["stage", "shape", "min", "mean", "max", "sum", "ms"] and max(map(len, lines)) <= 83
    rows = [line.split() for line in lines[1:-1]]
    assert len(rows) == len(list((tmp_path / "dump").iterdir())) and rows[0][0] == "vision.pixel_values"
    for name, shape, *numbers in rows:
        if name == "lm.logits":
            continue  # two of that name
        values = np.load(tmp_path / "dump" / f"{name}.npy").astype(np.float64)
        assert shape == "x".join(map(str, values.shape))
        expected = [values.min(), values.mean(), values.max(), values.sum()]
        assert np.allclose([float(n) for n in numbers[:4]], expected, rtol=6e-3, atol=1e-5 * abs(values).max()) and float(numbers[4]) >= 0


def test_selftest(tmp_path: Path) -> None:
    """Equal to the recorded values, with every kind of kernels; what is damaged is found; without a record, or with a wrong one, exit 1."""
    model = tmp_path / "m.gguf"
    kernels = re.search(r"kernels +(.*)", succeeds("info").stdout.decode())[1].split(", ")
    for isa in kernels:
        told = succeeds("selftest", "--isa", isa, "-m", TINY, model=None).stdout.decode().split("\n")
        assert told[-2] == f"{len(told) - 2} OK, 0 NOT OK" and len(told) > 60 and all(line.endswith(" OK") for line in told[:-2])
        assert {"ask/vision.block.3", "ask/lm.answer_ids", "encode/vq.ids", "draw/generation.ids", "draw/image.pixels"} <= {line.split()[0] for line in told[:-2]}
    shutil.copy(MODEL, model)
    assert "selftest --record writes them" in fails("selftest", "-m", model)
    assert succeeds("selftest", "--record", "-m", model).stdout.decode().strip() == str(tmp_path / "m.selftest")
    record = (tmp_path / "m.selftest").read_text()
    assert b" 0 NOT OK" in succeeds("selftest", "-m", model).stdout
    for name, first in ((b"vq.dec.conv_in.weight", "draw/vq.decoder.conv_in"), (b"blk.1.ffn_down.weight", "ask/transformer.block.1")):
        damage(model, name)
        wrong = wrong_stages(model)
        assert first in wrong and "ask/aligner.output" not in wrong and "encode/vq.ids" not in wrong
        shutil.copy(MODEL, model)
    for text in (record.replace("janus-selftest 3", "janus-selftest 2"), "", "x" + record, record.replace(f"{model.stat().st_size} 13", "7 13"),
                 record.replace(" 13\n", " -1\n", 1)):
        (tmp_path / "m.selftest").write_text(text)
        assert "belongs to another model or version" in fails("selftest", "-m", model)
    for old, new, wrong in (("ask/text.token_ids ", "ask/text.other ", ["ask/text.token_ids", "ask/text.other"]), ("encode/vq.ids 4 ", "encode/vq.ids 3 ", ["encode/vq.ids"] * 2),
                            ("encode/vq.ids 4 ", "encode/vq.ids 4 x", ["encode/vq.ids"]), ("draw/lm", "", [])):
        (tmp_path / "m.selftest").write_text(record.replace(old, new))
        assert wrong_stages(model) == wrong
    (tmp_path / "m.selftest").write_text(record[:-20])
    assert wrong_stages(model) == ["sample/generation.ids"]
    stage, count, largest, number, rest = re.search(r"(draw/image.pixels) (\d+) (\d+) (\d+)( .*)", record).groups()
    for off, wrong in ((1, []), (2, [stage])):
        (tmp_path / "m.selftest").write_text(record.replace(f"{stage} {count} {largest} {number}{rest}", f"{stage} {count} {largest} {int(number) + off}{rest}"))
        assert wrong_stages(model) == wrong


def wrong_stages(model: Path) -> list[str]:
    """The names of the rows of selftest that are not OK."""
    done = janus("selftest", "-m", model)
    wrong = [line.split()[0] for line in done.stdout.decode().split("\n") if "   NOT OK" in line]
    assert done.returncode == (1 if wrong else 0), done.stderr.decode()
    return wrong


def damage(model: Path, name: bytes) -> None:
    """Exchanges two rows of a matrix of the model."""
    tensor = next(t for t in GGUFReader(model, "r+").tensors if t.name.encode() == name)
    data = np.memmap(model, np.uint8, "r+", tensor.data_offset, (tensor.n_bytes,))
    half = tensor.n_bytes // 2
    first = data[:half].copy()
    data[:half], data[half:2 * half] = data[half:2 * half].copy(), first
    data.flush()


# ---- Progress ----

def on_terminal(*arguments: object, columns: int = 80) -> str:
    """What the program shows on a terminal of so many columns, as stderr."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([JANUS, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=child)
    os.close(child)
    seen = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(parent, 65536):
            seen += chunk
    assert process.wait(60) == 0
    os.close(parent)
    return seen.decode()


SLOW = ("generate", "--seed", 1, "-n", 8, "--threads", 1, "--isa", "plain", "-m", TINY)  # seconds


@posix
def test_progress_only_on_a_terminal(tmp_path: Path) -> None:
    """A bar on a terminal, gone at the end; with -q, or into a file, none."""
    drawing = (*SLOW, "-o", tmp_path / "x.png", "a cat")
    seen = on_terminal(*drawing)
    assert re.search(r"\rdraw    \[#*\.+\] \d+/64  ", seen) and re.search(r"\rpicture [2-8]/8 \[#+\.*\] \d/\d", seen)
    assert re.search(r"\r\x1b\[Kseed 1 \u00b7 read .* 512 tokens .*\r\n$", seen)
    assert on_terminal(*drawing, "-q") == "seed 1\r\n"
    assert b"\x1b" not in succeeds(*drawing, model=None).stderr


@posix
def test_nothing_flickers(tmp_path: Path) -> None:
    """Work of less than 0.3 seconds shows no bar."""
    seen = on_terminal("generate", "--seed", 1, "-o", tmp_path / "x.png", "a cat", "-m", MODEL)
    assert "\x1b" not in seen and seen.startswith("seed 1 ") and seen.count("\n") == 1


@posix
@pytest.mark.parametrize("columns", [200, 80, 67, 45, 30, 10, 3])
def test_progress_is_never_wider_than_the_terminal(tmp_path: Path, columns: int) -> None:
    """One column stays free."""
    drawing = (*SLOW, "-o", tmp_path / "x.png", "a cat")
    shown = on_terminal(*drawing, columns=columns).rpartition("\r\x1b[Kseed 1 ")[0].replace("\x1b[K", "").split("\r")
    assert max(map(len, shown)) <= columns - 1
    drawn = [part for part in shown if part.startswith("draw"[:columns - 1])]
    assert len(drawn) > 10
    if columns >= 30:
        assert all("[" in part and "/64" in part for part in drawn)
    if columns >= 67:
        assert all(part.endswith(" left") for part in drawn)


# ---- Signals ----

@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if os.name == "posix" else [])
def test_interrupted(tmp_path: Path, number: int) -> None:
    """A program that is stopped while it writes one of many pictures leaves none half written and keeps what was there of the
    others; exit 128 + the signal."""
    caught, names = 0, [f"q-{i}.png" for i in range(1, 33)]
    command = ["generate", "-q", "-m", TINY, "-s", 1, "-n", len(names), "-o", tmp_path / "q.png", "a red circle"]
    succeeds(*command)
    whole = [np.asarray(Image.open(tmp_path / name)) for name in names]
    for _ in range(20):
        for name in names:
            (tmp_path / name).write_bytes(b"old")
        process = subprocess.Popen([JANUS, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and all((tmp_path / name).stat().st_size == 3 for name in names[:2]):
            pass
        process.send_signal(number)
        said = process.communicate(timeout=60)[1].replace(b"seed 1\n", b"")
        assert said in (b"", b"janus: stopped\n" if number == signal.SIGINT else b"")
        assert process.returncode in (128 + number, 0)  # 0: it was done
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
        old = [(tmp_path / name).read_bytes() == b"old" for name in names]
        assert all(kept or (np.asarray(Image.open(tmp_path / name)) == pixels).all() for kept, name, pixels in zip(old, names, whole))
        assert process.returncode != 0 or not any(old)
        caught += any(old)
        if caught == 3:
            break
    assert caught == 3


@posix
def test_interrupted_elsewhere(tmp_path: Path) -> None:
    """At any moment of a drawing; a signal that is ignored stays so."""
    for delay in (0.005, 0.02, 0.05):
        process = subprocess.Popen([JANUS, "generate", "-m", GOLDEN / "plain.gguf", "-n", "64", "a cat"], cwd=tmp_path,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) in (130, 0, -signal.SIGINT)  # the last: before the program had begun
        for path in tmp_path.iterdir():
            assert path.suffix == ".png"
            Image.open(path).load()
    ignored = subprocess.Popen([JANUS, "chat", "-m", MODEL, "--max-tokens", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    ignored.stdin.write(b"Hello\n")
    ignored.stdin.flush()
    assert ignored.stdout.read(1)
    ignored.send_signal(signal.SIGHUP)
    assert b"\n" in ignored.communicate(b"Hello\n", timeout=60)[0] and ignored.returncode == 0


@posix
def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    """SIGXFSZ, where it is not ignored, ends the program as any other signal does."""
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))

    for arguments in (["decode", "-m", MODEL, "-o", "x.png"], ["decode", "-m", MODEL]):
        done = subprocess.run([JANUS, *map(str, arguments)], input=b"1 2 3 4", capture_output=True, cwd=tmp_path, preexec_fn=limited,
                              restore_signals=False, timeout=60, env=os.environ | {"GCOV_PREFIX": "/nowhere"})
        assert done.returncode == 128 + signal.SIGXFSZ and not list(tmp_path.iterdir()), done


# ---- Threads ----

@pytest.mark.skipif(not Path("/proc/self/task").exists() or not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_default_threads_are_what_the_process_may_use() -> None:
    """No more threads than processors that it is bound to."""
    mine = sorted(os.sched_getaffinity(0))
    for count in {1, len(mine)}:
        process = subprocess.Popen([JANUS, "chat", "-m", MODEL, "--max-tokens", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   preexec_fn=lambda: os.sched_setaffinity(0, mine[:count]))
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
        process.communicate(timeout=60)
        assert 1 <= threads <= count


def test_closed_stdin() -> None:
    """Commands that read nothing do not mind, chat ends at once."""
    assert succeeds("chat", stdin=b"").stdout == b""
    succeeds("info", stdin=None)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
