# SPDX-License-Identifier: MIT
"""make web-serve: build/web at http://127.0.0.1:8000, with the headers that isolate a page."""
import functools
import http.server
from pathlib import Path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Its pages share no process with others, and the browser asks anew for each file."""

    def end_headers(self) -> None:
        for header in ("Cross-Origin-Opener-Policy: same-origin", "Cross-Origin-Embedder-Policy: require-corp", "Cache-Control: no-cache"):
            self.send_header(*header.split(": "))
        super().end_headers()


def server(port: int, handler: type[Handler] = Handler) -> http.server.ThreadingHTTPServer:
    folder = Path(__file__).resolve().parents[2] / "build" / "web"
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(handler, directory=str(folder)))


if __name__ == "__main__":
    print("http://127.0.0.1:8000/")
    server(8000).serve_forever()
