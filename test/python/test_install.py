# SPDX-License-Identifier: MIT
"""make install and uninstall: what lands where, and a program built against the installed library."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
VERSION = re.search(r'#define JANUS_VERSION "(.*)"', (ROOT / "janus.h").read_text())[1]
FILES = ["bin/janus", "include/janus.h", "lib/libjanus.a", "lib/libjanus.so", "lib/libjanus.so.2", f"lib/libjanus.so.{VERSION}",
         "lib/pkgconfig/janus.pc", "share/janus/tiny.gguf", "share/janus/tiny.selftest", "share/doc/janus/LICENSE"]
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
    """These files and no others; the program runs from its new place."""
    assert files(stage) == sorted(f"opt/janus/{name}" for name in FILES)
    place = stage / "opt/janus"
    assert os.access(place / "bin/janus", os.X_OK) and not os.access(place / "include/janus.h", os.X_OK)
    assert (place / "include/janus.h").read_bytes() == (ROOT / "janus.h").read_bytes()
    assert run(place / "bin/janus", "info", "-m", ROOT / "weights/tiny.gguf") == run(ROOT / "janus", "info", "-m", "weights/tiny.gguf")


def test_the_installed_model(stage: Path, tmp_path: Path) -> None:
    """Found from any folder, however the program is called, also through links; not by a program that lies elsewhere."""
    program, model = stage / "opt/janus/bin/janus", stage / "opt/janus/share/janus/tiny.gguf"
    assert model.read_bytes() == (ROOT / "weights/tiny.gguf").read_bytes()
    shutil.copy(program, tmp_path / "janus")
    (tmp_path / "link").symlink_to(program)
    ways = [(program, True), (os.path.relpath(program, tmp_path), True), ("./link", True), ("./janus", False), (tmp_path / "janus", False)]
    if sys.platform == "linux":
        ways += [("janus", True), ("link", True)]
    for called, found in ways:
        path = os.pathsep.join([str(program.parent), str(tmp_path)])
        done = subprocess.run([called, "info"], cwd=tmp_path, capture_output=True, text=True, env={"PATH": path}, timeout=60)
        assert (done.returncode, "janus-tiny" in done.stdout, "no model" in done.stderr) == (0 if found else 1, found, not found), (called, done)


def test_the_installed_texts(stage: Path) -> None:
    """The licence is that of janus.h; the library knows its name."""
    place = stage / "opt/janus"
    licence = (place / "share/doc/janus/LICENSE").read_text()
    assert licence.startswith("MIT License\n\nCopyright (c)") and licence.endswith("DEALINGS IN THE SOFTWARE.\n") and "\n   " not in licence
    assert set(licence.split()) <= set((ROOT / "janus.h").read_text().split())
    assert os.readlink(place / "lib/libjanus.so") == "libjanus.so.2" and os.readlink(place / "lib/libjanus.so.2") == f"libjanus.so.{VERSION}"
    if os.uname().sysname == "Linux":
        assert b"\0libjanus.so.2\0" in (place / "lib/libjanus.so").read_bytes()


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="needs pkg-config")
def test_a_program_against_the_installed_library(tmp_path: Path) -> None:
    """What pkg-config says is enough to build a program; it gives what the command line gives."""
    prefix = tmp_path / "prefix"
    run("make", "install", f"PREFIX={prefix}")
    settings = {"PKG_CONFIG_LIBDIR": str(prefix / "lib/pkgconfig")}
    assert run("pkg-config", "--modversion", "janus", **settings).strip() == VERSION
    flags = shlex.split(run("pkg-config", "--cflags", "--libs", "janus", **settings))
    source = tmp_path / "embed.c"
    shutil.copy(ROOT / "test/platforms/embed.c", source)  # away from the project's own janus.h
    run(os.environ.get("CC", "cc"), "-std=c99", source, *flags, "-o", tmp_path / "embed")
    lines = run(tmp_path / "embed", "weights/tiny.gguf", "weights/samples.png", tmp_path, "plain",
                LD_LIBRARY_PATH=str(prefix / "lib"), DYLD_LIBRARY_PATH=str(prefix / "lib")).splitlines()
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


def test_an_installation_under_a_strict_umask(tmp_path: Path) -> None:
    """Everyone may read it; nothing is compiled that is built; each installation names its own prefix and library folder."""
    library = "opt/my janus/lib64"
    for prefix, folder in (("/usr", "usr/lib"), ("/opt/my janus", library)):
        said = run("sh", "-c", 'umask 077; exec make install "$@"', "sh", f"DESTDIR={tmp_path}", f"PREFIX={prefix}", f"LIBDIR=/{folder}")
        assert "janus.c" not in said
        assert f"prefix={prefix}\nlibdir=/{folder}\n" in (tmp_path / folder / "pkgconfig/janus.pc").read_text()
    for path in (tmp_path / "usr", *tmp_path.glob("usr/**/*"), *tmp_path.glob("opt/**/*")):
        assert path.is_symlink() or path.stat().st_mode & 0o555 >= (0o555 if path.is_dir() else 0o444), path
    if shutil.which("pkg-config"):
        flags = run("pkg-config", "--cflags", "--libs", "janus", PKG_CONFIG_LIBDIR=str(tmp_path / library / "pkgconfig"))
        assert shlex.split(flags)[:2] == ["-I/opt/my janus/include", "-L/opt/my janus/lib64"]
    for prefix, folder in (("/usr", "usr/lib"), ("/opt/my janus", library)):
        run("make", "uninstall", f"DESTDIR={tmp_path}", f"PREFIX={prefix}", f"LIBDIR=/{folder}")
    assert files(tmp_path) == []


def test_nothing_is_left(stage: Path) -> None:
    """make uninstall takes every file away again."""
    make("uninstall", stage, "/opt/janus")
    assert files(stage) == []
