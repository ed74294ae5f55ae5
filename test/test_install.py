# SPDX-License-Identifier: MIT
"""make install and uninstall: what lands where, and a program built against the installed library."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FILES = ["bin/janus", "include/janus.h", "lib/libjanus.a", "lib/pkgconfig/janus.pc", "share/man/man1/janus.1"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}

pytestmark = pytest.mark.skipif(os.name != "posix" or not shutil.which("make"), reason="needs make")


def run(*command: object, **environment: str) -> str:
    """Runs a command in the project's folder, expects success and returns its stdout."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=600,
                          env=ENVIRONMENT | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(target: str, stage: Path, prefix: str) -> None:
    """make TARGET into a stage folder."""
    run("make", target, f"DESTDIR={stage}", f"PREFIX={prefix}")


def files(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage folder, with a blank in its name, into which make install has put everything under /opt/janus."""
    folder = tmp_path_factory.mktemp("stage folder")
    make("install", folder, "/opt/janus")
    return folder


def test_what_is_installed(stage: Path) -> None:
    """Five files; the program runs from its new place."""
    assert files(stage) == sorted(f"opt/janus/{name}" for name in FILES)
    place = stage / "opt/janus"
    assert os.access(place / "bin/janus", os.X_OK) and not os.access(place / "include/janus.h", os.X_OK)
    assert (place / "include/janus.h").read_bytes() == (ROOT / "janus.h").read_bytes()
    assert run(place / "bin/janus", "info", "-m", ROOT / "weights/tiny.gguf") == run(ROOT / "janus", "info", "-m", "weights/tiny.gguf")


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="needs pkg-config")
def test_a_program_against_the_installed_library(tmp_path: Path) -> None:
    """What pkg-config says is enough to build a program; it gives what the command line gives."""
    prefix = tmp_path / "prefix"
    run("make", "install", f"PREFIX={prefix}")
    settings = {"PKG_CONFIG_LIBDIR": str(prefix / "lib/pkgconfig")}
    version = (ROOT / "janus.h").read_text().split('#define JANUS_VERSION "')[1].split('"')[0]
    assert run("pkg-config", "--modversion", "janus", **settings).strip() == version
    flags = shlex.split(run("pkg-config", "--cflags", "--libs", "janus", **settings))
    source = tmp_path / "embed.c"
    shutil.copy(ROOT / "test/platforms/embed.c", source)  # away from the project's own janus.h
    run(os.environ.get("CC", "cc"), "-std=c99", source, *flags, "-o", tmp_path / "embed")
    lines = run(tmp_path / "embed", "weights/tiny.gguf", "weights/samples.png", tmp_path, "plain").splitlines()
    assert len(lines) == 6
    common = ("--isa", "plain", "-m", "weights/tiny.gguf", "-i", "weights/samples.png")
    assert lines[3] == run(ROOT / "janus", "encode", *common).strip()
    assert lines[4] == run(ROOT / "janus", "ask", *common, "--max-tokens", 24, "What is in the picture?").strip()
    decoded = subprocess.run([ROOT / "janus", "decode", "--isa", "plain", "-o", tmp_path / "decoded.png"], cwd=ROOT,
                             input=lines[0].encode(), capture_output=True, timeout=60)
    assert decoded.returncode == 0, decoded.stderr
    run(ROOT / "janus", "generate", "--isa", "plain", "--seed", 5, "--temperature", 0, "-o", tmp_path / "drawn.png", "two red hearts")
    pixels = bytes(int(number) for number in (tmp_path / "greedy.pixels").read_text().split())
    assert pixels == Image.open(tmp_path / "decoded.png").tobytes() == Image.open(tmp_path / "drawn.png").tobytes()
    run("make", "uninstall", f"PREFIX={prefix}")
    assert files(prefix) == []


def test_the_prefix_of_the_pkg_config_file(tmp_path: Path) -> None:
    """Each installation names its own prefix."""
    for prefix in ("/usr", "/opt/other"):
        make("install", tmp_path, prefix)
        assert f"prefix={prefix}\n" in (tmp_path / prefix[1:] / "lib/pkgconfig/janus.pc").read_text()
        make("uninstall", tmp_path, prefix)
    assert files(tmp_path) == []


@pytest.mark.skipif(not shutil.which("mandoc"), reason="needs mandoc")
def test_the_manual_page(stage: Path) -> None:
    """The page is the program's and has no error of form."""
    page = stage / "opt/janus/share/man/man1/janus.1"
    assert page.read_text() == run(ROOT / "janus", "help", "--man")
    assert run("mandoc", "-T", "lint", "-W", "warning", page) == ""
    shown = " ".join(re.sub(".\b", "", run("mandoc", "-T", "utf8", "-O", "width=150", page)).replace("‐", "-").split())
    assert "Exit status: 0 done" in shown and "JANUS_THREADS stands for --threads" in shown
    assert "-s, --seed S same seed, same result; -1: a random one, printed" in shown


def test_nothing_is_left(stage: Path) -> None:
    """make uninstall takes every file away again."""
    make("uninstall", stage, "/opt/janus")
    assert files(stage) == []
