# SPDX-License-Identifier: MIT
"""make web-test: the page in the system's Chromium and Firefox, beside ./janus. Screenshots go to build/web-test."""
from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from serve import Handler, server

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = {"chromium": {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]},
            "firefox": {"executable_path": "/usr/bin/firefox-esr", "channel": "moz-firefox"}}
PROMPTS = [("a red circle", 0), ("two blue squares", 7), ("a green tree and a yellow car", 123456789012345678),
           ("un cœur rouge", 2), ("three pink flowers", 18446744073709551615)]
expect.set_options(timeout=60_000)  # milliseconds, for a machine that does other work
EXPECTED = ("404", "disallowed MIME type", "style-src-elem")  # errors: of what is lost, and of Playwright's own style for a screenshot
lost: set[str] = set()  # files that the server does not find


class Flaky(Handler):
    """A server that loses files, and is silent about it."""

    def send_head(self) -> object:
        self.path = "/lost" if self.path.strip("/") in lost else self.path
        return super().send_head()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    web = server(0, Flaky)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/"
    web.shutdown()


@pytest.fixture(params=BROWSERS)
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab in which nothing may go wrong but what the server loses."""
    faults: list[str] = []
    lost.clear()
    with sync_playwright() as playwright:
        kind = playwright.chromium if request.param == "chromium" else playwright.firefox
        tab = kind.launch(**BROWSERS[request.param]).new_page(viewport={"width": 1280, "height": 900})
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda said: faults.append(said.text) if said.type == "error" and not any(text in said.text for text in EXPECTED) else None)
        yield tab
    assert not faults


def janus(*arguments: object) -> str:
    return subprocess.run([ROOT / "janus", *map(str, arguments)], check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def native_ids(folder: Path, prompt: str, seed: int) -> list[int]:
    """The program's ids; its picture is FOLDER/picture.png."""
    janus("generate", "-q", "--seed", seed, "--dump", folder / str(seed), "-o", folder / "picture.png", prompt)
    numbers = (folder / str(seed) / "generation.ids.npy").read_bytes()[128:]
    return [int.from_bytes(numbers[i:i + 4], "little") for i in range(0, len(numbers), 4)]


def ids(page: Page, grid: str) -> list[int]:
    return [int(title) for title in page.locator(f"{grid} i").evaluate_all("cells => cells.map(cell => cell.title)")]


def draw(page: Page, address: str, prompt: str, seed: int, more: str = "") -> list[int]:
    """Opens a link and waits for its picture."""
    link = f"{urlencode({'prompt': prompt, 'seed': seed})}{more}"
    if page.url.startswith(address):
        page.evaluate("link => { location.hash = link; }", link)
    else:
        page.goto(f"{address}#{link}")
    expect(page.locator("#picture")).to_have_attribute("alt", f"Drawn for the prompt: {prompt}")
    expect(page.locator("body")).to_have_attribute("data-busy", "false")
    return ids(page, "#grid")


def test_drawings(page: Page, address: str, tmp_path: Path) -> None:
    """Links draw what the program draws, with SIMD and without; the file to download says what the program's says."""
    for prompt, seed in PROMPTS:
        native = native_ids(tmp_path, prompt, seed)
        assert draw(page, address, prompt, seed) == native
        print(prompt, page.inner_text("#status"))
        png = page.evaluate("async () => Array.from(new Uint8Array(await (await fetch(document.querySelector('#download').href)).arrayBuffer()))")
        (tmp_path / "page.png").write_bytes(bytes(png))
        assert janus("info", tmp_path / "page.png") == janus("info", tmp_path / "picture.png")
    expect(page.locator("#model-name")).to_contain_text(", SIMD")
    page.goto("about:blank")
    assert draw(page, address, prompt, seed, "&simd=off") == native
    expect(page.locator("#model-name")).to_contain_text("no SIMD")


def test_growth(page: Page, address: str) -> None:
    """The picture grows token by token, and each step names what was likely; a drawing can be stopped."""
    draw(page, address, "two red hearts", 7, "&simd=off")
    page.evaluate("""() => { grown = []; new MutationObserver(() => grown.push(document.querySelectorAll('#grid i[title]').length))
        .observe(document.querySelector('#grid'), {attributes: true, subtree: true}); }""")
    page.click("#draw")
    expect(page.locator("#grid i[title]").nth(9)).to_be_visible()
    page.screenshot(path=ROOT / f"build/web-test/{page.context.browser.browser_type.name}-growing.png")
    expect(page.locator("#download[href]")).to_be_visible()
    assert len(set(page.evaluate("grown"))) > 20
    page.click("#steps summary")
    for _ in range(4):
        page.press("#step", "ArrowRight")
    taken = str(ids(page, "#grid")[4])
    for kind in ("#plain", "#guided"):
        expect(page.locator(f"{kind} li")).to_have_count(8)
    assert page.inner_text("#guided .taken").startswith(taken)
    page.click("#draw")
    page.click("#draw")
    expect(page.locator("#status")).to_contain_text("stopped")
    page.click("#draw")
    expect(page.locator("#download[href]")).to_be_visible()


def test_photo(page: Page, address: str, tmp_path: Path) -> None:
    """A question about a photo, its ids, and a file that is no picture."""
    draw(page, address, "a blue house", 1)
    native_ids(tmp_path, "three pink flowers", 3)
    page.set_input_files("#photo-file", tmp_path / "picture.png")
    page.click("#ask")
    expect(page.locator("#answer")).to_have_text(janus("ask", "-i", tmp_path / "picture.png", "What is in the picture?"))
    page.click("#encode")
    expect(page.locator("#again")).to_be_visible()
    assert ids(page, "#codes") == [int(id) for id in janus("encode", tmp_path / "picture.png").split()]
    page.set_input_files("#photo-file", ROOT / "janus.h")
    page.click("#ask")
    expect(page.locator("#alert")).to_contain_text("PNG")


def test_errors(page: Page, address: str, tmp_path: Path) -> None:
    """What fails is said, and a click goes on: no WebAssembly, lost files, files that are no model, a worker that dies."""
    again, alert = page.locator("#alert-action"), page.locator("#alert-text")
    lost.add("tiny.gguf")
    page.goto(address)
    expect(alert).to_contain_text("tiny.gguf could not be fetched")
    page.evaluate("() => { kept = WebAssembly; WebAssembly = undefined; }")
    again.click()
    expect(alert).to_contain_text("no WebAssembly")
    page.evaluate("() => { WebAssembly = kept; }")
    lost.clear()
    lost.add("worker.js")
    again.click()
    expect(alert).to_contain_text("ended unexpectedly")
    lost.clear()
    again.click()
    expect(page.locator("#download[href]")).to_be_visible()
    with open(tmp_path / "large.gguf", "wb") as large:
        large.write(b"GGUF")
        large.truncate(5 << 30)
    for file, message in ((tmp_path / "large.gguf", "5.4 GB"), (ROOT / "janus.h", "no model file")):
        page.set_input_files("#model-file", file)
        expect(alert).to_contain_text(message)
