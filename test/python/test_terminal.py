# SPDX-License-Identifier: MIT
"""At a terminal: pictures in it, Ctrl-C, chat."""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_library import Library, address, ffi

if os.name != "posix":
    pytest.skip("needs pseudo-terminals", allow_module_level=True)
import fcntl
import pty
import termios

ROOT = Path(__file__).resolve().parents[2]
JANUS = Path(os.environ.get("JANUS_PROGRAM", ROOT / "janus"))
TINY, GROUPED = ROOT / "weights" / "tiny.gguf", ROOT / "test" / "golden" / "grouped.gguf"
SLOW = ["--threads", 1, "--isa", "plain", "-n", 8]  # seconds for a drawing of TINY


class Terminal:
    """The program with a terminal of its own; `raw` is all that it wrote."""

    def __init__(self, *arguments: object, columns: int = 80, lines: int = 24, cwd: Path | None = None, **env: str) -> None:
        self.parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        told = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLORTERM": "truecolor", **{k: v for k, v in os.environ.items() if k.startswith("GCOV")}, **env}
        self.process = subprocess.Popen([JANUS, *map(str, arguments)], stdin=child, stdout=child, stderr=child, cwd=cwd, env=told, preexec_fn=self.own)
        os.close(child)
        self.raw = b""

    @staticmethod
    def own() -> None:
        """In the child: the terminal becomes its own, so that Ctrl-C reaches it."""
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def read(self) -> bool:
        """Reads what comes within a minute; False at the end."""
        assert select.select([self.parent], [], [], 20)[0], self.raw[-2000:]
        try:
            chunk = os.read(self.parent, 65536)
        except OSError:
            chunk = b""
        self.raw += chunk
        return bool(chunk)

    def wait(self, pattern: bytes) -> re.Match:
        """Reads until the pattern has come after what was waited for before; returns its match."""
        seen = getattr(self, "seen", 0)
        while not (match := re.compile(pattern, re.DOTALL).search(self.raw, seen)):
            assert self.read(), self.raw[-2000:]
        self.seen = match.end()
        return match

    def say(self, text: str, pattern: str | None = None) -> str:
        """Types a line, and waits for the pattern and the prompt; returns what came before the prompt."""
        os.write(self.parent, text.encode() + b"\n")
        before = len(self.raw)
        self.wait((pattern or "").encode() + rb".*?\r?\n> " if pattern is not None else rb"\n> ")
        return self.raw[before:].decode()

    def end(self, code: int = 0) -> str:
        """Reads to the end and expects the exit code."""
        while self.read():
            pass
        assert self.process.wait(60) == code, self.raw[-2000:]
        os.close(self.parent)
        return self.raw.decode("utf-8", "replace")


class Screen:
    """As much of a terminal as the program needs: half blocks in colours, cursor movements, scrolling."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.columns, self.lines, self.x, self.y = columns, lines, 0, 0
        self.cells = [[None] * columns for _ in range(lines)]  # (upper, lower), or a letter
        self.colours: list[tuple] = [None, None]

    def feed(self, text: str) -> "Screen":
        """Shows a text."""
        for escape, letter in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|([^\x1b])", text):
            if escape.endswith("m"):
                self.attributes([int(n or 0) for n in escape[:-1].split(";")])
            elif escape.endswith("A"):
                self.y = max(0, self.y - int(escape[:-1] or 1))
            elif escape == "K":
                self.cells[self.y][self.x:] = [None] * (self.columns - self.x)
            elif escape in ("?25l", "?25h"):
                pass
            elif escape:
                raise AssertionError(f"unexpected escape {escape!r}")
            elif letter == "\r":
                self.x = 0
            elif letter == "\n":
                self.down()
            else:
                if self.x == self.columns:
                    self.x = 0
                    self.down()
                self.cells[self.y][self.x] = tuple(self.colours) if letter == "\u2580" else letter
                self.x += 1
        return self

    def down(self) -> None:
        """A new line, which scrolls at the bottom."""
        self.y += 1
        if self.y == self.lines:
            self.cells = self.cells[1:] + [[None] * self.columns]
            self.y -= 1

    def attributes(self, numbers: list[int]) -> None:
        """38 and 48 with 2;R;G;B or 5;N; 0."""
        while numbers:
            kind = numbers.pop(0)
            if kind == 0:
                self.colours = [None, None]
                continue
            size = {2: 3, 5: 1}[numbers.pop(0)]
            value, numbers = numbers[:size], numbers[size:]
            self.colours[kind == 48] = tuple(value) if size == 3 else colour_of_256(value[0])

    def picture(self) -> np.ndarray:
        """All half blocks, as pixels (height, width, 3)."""
        rows = [[cell for cell in row if isinstance(cell, tuple)] for row in self.cells]
        rows = [row for row in rows if row]
        assert len(set(map(len, rows))) == 1
        return np.array([[cell[half] for cell in row] for row in rows for half in (0, 1)], np.uint8)


def colour_of_256(number: int) -> tuple[int, int, int]:
    """What xterm shows."""
    if number >= 232:
        return (8 + 10 * (number - 232),) * 3
    levels = (0, 95, 135, 175, 215, 255)
    return tuple(levels[(number - 16) // step % 6] for step in (36, 6, 1))


def scaled(picture: Image.Image, side: int) -> np.ndarray:
    """The picture as a square of this side."""
    return np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)).astype(int)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures' numbers."""
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


@pytest.fixture(scope="module")
def circle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A drawn circle as a picture and as ids."""
    folder = tmp_path_factory.mktemp("circle")
    subprocess.run([JANUS, "generate", "-m", TINY, "-q", "-s", "7", "-o", "circle.png", "a red circle"], cwd=folder, check=True, capture_output=True)
    ids = subprocess.run([JANUS, "encode", "-m", TINY, "circle.png"], cwd=folder, check=True, capture_output=True).stdout
    (folder / "ids.txt").write_bytes(ids)
    subprocess.run([JANUS, "decode", "-m", TINY, "-o", "again.png", "ids.txt"], cwd=folder, check=True, capture_output=True)
    return folder / "again.png", folder / "ids.txt"


# ---- Pictures in the terminal ----

@pytest.mark.parametrize("columns, lines, side", [(80, 24, 42), (60, 60, 58), (200, 100, 64), (24, 24, 22), (80, 10, 14)])
def test_half_blocks(tmp_path: Path, circle: tuple[Path, Path], columns: int, lines: int, side: int) -> None:
    """In 24 bits, scaled to the terminal as by Pillow, and no larger than the picture is."""
    terminal = Terminal("decode", "-m", TINY, "--show", "-o", tmp_path / "x.png", circle[1], columns=columns, lines=lines)
    shown = Screen(columns, lines).feed(terminal.end()).picture()
    assert shown.shape == (side, side, 3) and (shown == scaled(Image.open(circle[0]), side)).all()


def test_256_colours(tmp_path: Path, circle: tuple[Path, Path]) -> None:
    """The nearest of the colours that there are."""
    text = Terminal("decode", "-m", TINY, "--show", "-o", tmp_path / "x.png", circle[1], COLORTERM="").end()
    expected = scaled(Image.open(circle[0]), 42)
    assert ";2;" not in text
    table = np.array([colour_of_256(n) for n in range(16, 256)])
    nearest = table[((expected[:, :, None] - table) ** 2).sum(-1).argmin(-1)]
    distance = [((picture - expected) ** 2).sum(-1) for picture in (Screen().feed(text).picture().astype(int), nearest)]
    assert (distance[0] <= distance[1] * 1.5 + 300).all() and distance[0].mean() <= distance[1].mean() * 1.05


@pytest.mark.parametrize("env, begins", [
    ({"COLORTERM": "truecolor"}, "\x1b[38;2;"), ({"COLORTERM": "24bit", "TERM": "screen-256color"}, "\x1b[38;2;"), ({"TERM": "xterm-direct"}, "\x1b[38;2;"),
    ({}, "\x1b[38;5;"), ({"TERM": "vt100"}, "\x1b[38;5;"), ({"TERM": "xterm-kitty"}, "\x1b[38;5;"), ({"TERM": "tmux-256color", "TMUX": "/tmp/x,1,0"}, "\x1b[38;5;")])
def test_what_the_terminal_says(tmp_path: Path, circle: tuple[Path, Path], env: dict[str, str], begins: str) -> None:
    """--show chooses between 24-bit and 256 colours by $COLORTERM and $TERM."""
    text = Terminal("decode", "-m", TINY, "--show", "-o", tmp_path / "x.png", circle[1], **{"COLORTERM": "", **env}).end()
    assert re.search(r"\x1b\[\d+A(.{8})", text, re.DOTALL)[1].startswith(begins)


def test_refusals_before_the_work(tmp_path: Path) -> None:
    """No terminal, or one that is too narrow or has no colours: refused at once."""
    def refused(*arguments: object, code: int = 1, **told: object) -> str:
        return Terminal("generate", "-m", TINY, "-o", tmp_path / "x.png", *arguments, "a cat", **told).end(code)

    needs = "janus: --show needs stderr to be a terminal with colours ($TERM) and at least 24 columns"
    for told in ({"columns": 23}, {"TERM": "dumb", "COLORTERM": ""}, {"TERM": "", "COLORTERM": ""}):
        assert needs in refused("--show", **told)
    done = subprocess.run([JANUS, "generate", "--show", "-m", TINY, "a cat"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 1 and done.stderr.decode() == needs + "\n" and not done.stdout
    assert not list(tmp_path.iterdir())
    assert "\x1b[38" not in refused(code=0)


def test_the_picture_grows(tmp_path: Path) -> None:
    """Redrawn in place some times a second, at least at the first id, the last and the end, from colours that are like those
    of the picture that then takes its place."""
    terminal = Terminal("generate", "-m", TINY, "--show", "-s", 7, "-o", tmp_path / "x.png", "a red circle", *SLOW[:4])
    text = terminal.end()
    frames = text.split("\x1b[?25l")
    screen, pictures = Screen(), []
    for i, frame in enumerate(frames):
        screen.feed("\x1b[?25l" * (i > 0) + frame)
        if i > 0:
            pictures.append(screen.picture())
    final = scaled(Image.open(tmp_path / "x.png"), 42)
    assert len(pictures) >= 3 and (pictures[-1] == final).all() and all(p.shape == (42, 42, 3) for p in pictures)
    empty = [(p == 40).all(-1).mean() for p in pictures]
    assert empty == sorted(empty, reverse=True) and empty[0] > 0.5 > 0.01 > empty[-2]
    assert correlation(pictures[-2], final) > 0.7
    lines = "".join(cell or " " for row in screen.cells for cell in row if not isinstance(cell, tuple))
    assert str(tmp_path / "x.png")[:40] in lines and re.search("seed 7 \u00b7 .*64 tokens", lines)


def test_several_pictures(tmp_path: Path) -> None:
    """Side by side, in the order of their numbers."""
    text = Terminal("generate", "-m", TINY, "--show", "-s", 7, "-n", 3, "-o", tmp_path / "x.png", "a red circle").end()
    shown = Screen().feed(text).picture()
    for i in range(3):
        y, x = 18 * (i // 2), 18 * (i % 2)
        assert (shown[y:y + 18, x:x + 18] == scaled(Image.open(tmp_path / f"x-{i + 1}.png"), 18)).all()


def test_colours_are_like_the_pictures() -> None:
    """The colours of the codebook against the mean colour of each token of drawn pictures: correlation 0.82 on average."""
    library = Library()
    model = library.load(TINY)
    session = library.session(model, {})
    info = library.c.janus_info(model)
    grid, side = int(info.image_tokens ** 0.5), info.image_size
    colours = np.zeros((info.codebook_size, 3), np.uint8)
    library.call("janus_codebook_colours", session, address(colours, "uint8_t"))
    alike = []
    for seed, prompt in enumerate(["a red circle", "three green trees", "a house", "four orange hearts", "a purple star on a yellow background"] * 2):
        options, ids = library.c.janus_generate_defaults(), np.zeros(grid * grid, np.int32)
        options.seed = seed
        library.call("janus_generate_ids", session, prompt.encode(), ffi.new("JanusGenerateOptions *", options), address(ids, "int32_t"))
        image = ffi.new("JanusImage *")
        library.call("janus_decode_image", session, address(ids, "int32_t"), image)
        means = library.take_pixels(image).reshape(grid, side // grid, grid, side // grid, 3).mean((1, 3))
        alike.append(correlation(colours[ids], means.reshape(-1, 3)))
    library.c.janus_session_free(session)
    assert np.mean(alike) > 0.78 and min(alike) > 0.6, alike


# ---- Ctrl-C ----

def interrupted(*arguments: object, after: bytes, times: int = 1, code: int = 130, **told: object) -> str:
    """Types Ctrl-C when the program has written something that matches."""
    terminal = Terminal(*arguments, **told)
    terminal.wait(after)
    for _ in range(times):
        os.write(terminal.parent, b"\x03")
    return terminal.end(code)


def test_a_drawing_stops(tmp_path: Path) -> None:
    """Nothing is left of it, and the seed and how far it came are said; exit 130."""
    text = interrupted("generate", "-m", TINY, "-s", 5, *SLOW, "a cat", after=rb"draw .* [1-5]\d/64", cwd=tmp_path)
    assert re.search(r"seed 5 \u00b7 .*\d+ of 512 tokens \d+\.\d s \(\d+\.\d/s\)\r\njanus: stopped\r\n$", text)
    assert not list(tmp_path.iterdir())


def test_pictures_that_are_complete_are_kept(tmp_path: Path) -> None:
    """generate -n saves picture by picture: what is decoded when Ctrl-C comes is there, and is named."""
    arguments = ("generate", "-m", TINY, "-s", 5, *SLOW, "-o", "x.png", "a cat")
    for _ in range(10):
        text = interrupted(*arguments, after=rb"picture [3-7]/8", cwd=tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        if names:
            break
    assert names == [f"x-{i}.png" for i in range(1, len(names) + 1)] and 2 <= len(names) < 8
    assert re.findall(r"(?:^|\r|\x1b\[K)(x-\d\.png)\r?$", text, re.MULTILINE) == names and "janus: stopped" in text
    for name in names:
        assert Image.open(tmp_path / name).size == (64, 64)


def test_the_second_ends(tmp_path: Path) -> None:
    """At once, also when the first was not heard yet."""
    text = interrupted("generate", "-m", TINY, *SLOW, "a cat", after=rb"draw ", times=2, cwd=tmp_path)
    assert "of 512 tokens" not in text or "stopped" in text
    assert not list(tmp_path.iterdir())


def test_an_answer_stops(tmp_path: Path) -> None:
    """What was said stands in a line of its own; exit 130."""
    text = interrupted("ask", "-m", GROUPED, "--max-tokens", 400, "--threads", 1, "Hello", after=rb"[^\r\n]")
    assert re.search(r"\r\n(read \d.*\r\n)?janus: stopped\r\n$", text)


@pytest.mark.parametrize("arguments", [["generate", "-"], ["ask", "-"], ["ask", "-", "What?"], ["tokenize", "-"], ["decode"], ["encode", "-"], ["info", "-"],
                                       ["ask", "-i", "-", "What?"], ["batch", "-"]])
def test_one_ctrl_c_ends_a_wait_for_input(tmp_path: Path, arguments: list[str]) -> None:
    """Wherever the program waits for stdin; exit 130, nothing is written."""
    model = [] if arguments[0] == "info" else ["-m", GROUPED]
    terminal = Terminal(*arguments, *model, cwd=tmp_path)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not waits(terminal.process.pid):
        time.sleep(0.01)
    os.write(terminal.parent, b"\x03")
    terminal.end(130)
    assert not list(tmp_path.iterdir())


def waits(pid: int) -> bool:
    """Whether the process has loaded and sleeps; where that cannot be told, after a second."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "S" and "janus" in Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        time.sleep(1)
        return True


def test_no_picture_on_a_terminal(tmp_path: Path) -> None:
    """-o - is refused there, before the work."""
    for arguments in (["generate", "a cat"], ["decode"]):
        assert "a picture cannot be written to a terminal: use -o FILE, or redirect stdout" in Terminal(*arguments, "-o", "-", "-m", GROUPED, cwd=tmp_path).end(1)


# ---- Chat ----

@pytest.fixture()
def chat(tmp_path: Path) -> Terminal:
    """A chat with the small model."""
    terminal = Terminal("chat", "-m", TINY, "--max-tokens", 40, "-s", 7, "--show", cwd=tmp_path)
    terminal.wait(rb"\n> ")
    return terminal


def test_chat_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    """In an answer the prompt comes back; so it does at the prompt, without what was typed; a second Ctrl-C there ends the chat."""
    terminal = Terminal("chat", "-m", GROUPED, "--max-tokens", 400, "--threads", 1, cwd=tmp_path)
    terminal.wait(rb"\n> ")
    os.write(terminal.parent, b"Hello\n")
    terminal.wait(rb"Hello\r\n.")
    os.write(terminal.parent, b"\x03")
    terminal.wait(rb"janus: stopped\r\n> ")
    os.write(terminal.parent, b"/paint\x03")
    terminal.wait(rb"\r\n\(Ctrl-C once more or /exit ends the chat\)\r\n> ")
    assert "/help         prints" in terminal.say("/help", "/exit")
    os.write(terminal.parent, b"\x03")
    terminal.wait(rb"ends the chat\)\r\n> ")
    os.write(terminal.parent, b"\x03")
    assert "unknown command" not in terminal.end(130)


def test_a_drawing_waits_for_the_question(chat: Terminal, tmp_path: Path) -> None:
    """As an image does."""
    drawn = chat.say("  /draw   a red circle  ", "seed 7 \u00b7 .*64 tokens")
    assert "janus-1.png" in drawn and (Screen().feed(drawn[drawn.index("\n"):]).picture() == scaled(Image.open(tmp_path / "janus-1.png"), 42)).all()
    assert "The circle is red." in chat.say("What colour is the circle?", "tokens")
    asked = subprocess.run([JANUS, "ask", "-m", TINY, "-q", "janus-1.png", "What colour is the circle?"], cwd=tmp_path, capture_output=True, text=True)
    assert asked.stdout.strip() == "The circle is red."
    os.write(chat.parent, b"  /quit  \n")
    chat.end()


def test_commands_of_a_chat(chat: Terminal, tmp_path: Path, circle: tuple[Path, Path]) -> None:
    """Images by name, also with blanks; a drawing that was asked for as a question gets a hint; what is unknown is said."""
    Image.open(circle[0]).save(tmp_path / "a b.png")
    assert "a b.png: 64 x 64\r\n" in chat.say("  /image   a b.png  ")
    answer = chat.say("What colour is the circle?", "tokens")
    assert "The circle is red." in answer and "seen " in answer and "remark" not in answer
    assert "cannot read the image no.png" in chat.say("/image no.png")
    assert "unknown command /paint a cat: /help lists them" in chat.say("/paint a cat")
    assert "/image needs a file" in chat.say("/image") and "/draw needs a prompt" in chat.say("/draw ")
    for typed in ("draw a house", "Draw a house"):
        assert "remark: to draw a picture, type /draw a house" in chat.say(typed, "token")
    assert "remark" not in chat.say("drawing a house", "token") + chat.say("What do you draw?", "token")
    for word in ("/image", "/draw", "/clear", "/exit"):
        assert word in chat.say("/help", "/exit")
    os.write(chat.parent, b"\x04")
    chat.end()


def test_control_characters_are_dropped(tmp_path: Path) -> None:
    """Also what keys send: arrows, function keys; a question of nothing but these is none."""
    def answer(question: str) -> bytes:
        return subprocess.run([JANUS, "chat", "-q", "-m", TINY, "--max-tokens", "20"], input=f"{question}\n".encode(), capture_output=True, check=True).stdout

    expected = answer("How many trees?")
    assert expected and answer("\x01How\x07 many\x1b[A\x1b[1;5C tr\x1bOPees?\x7f\r") == expected
    assert answer("\x1b[A\x01") == b"" and answer("   ") == b""


def test_a_context_that_fills(tmp_path: Path) -> None:
    """From the half on the line of times says how full it is; a full one is an error that names the remedy; and it goes on."""
    done = subprocess.run([JANUS, "chat", "-m", GROUPED, "--max-tokens", "60"], input="Tell me all about the trees and the houses.\n" * 12 + "/clear\nHello\n",
                          capture_output=True, text=True, check=True, cwd=tmp_path)
    lengths = [int(length) for length in re.findall(r" \u00b7 context (\d+) of 512\n", done.stderr)]
    assert len(lengths) > 1 and lengths == sorted(set(lengths)) and 256 <= lengths[0] < 400 and lengths[-1] < 512
    assert " \u00b7 cut: the context is full\n" in done.stderr and "the context holds 512: " in done.stderr and "context" not in done.stderr.rstrip().rpartition("\n")[2]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
