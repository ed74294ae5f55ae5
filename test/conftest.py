# SPDX-License-Identifier: MIT
"""For all tests in Python: programs start with default signals, and no test waits for ever."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

LIMIT = int(os.environ.get("TEST_LIMIT", "600"))  # seconds for one test, and as many for its fixtures


def pytest_configure() -> None:
    """Under nohup or `make test &` signals are ignored, which programs inherit. A handler is not inherited."""
    for number in (signal.SIGINT, signal.SIGTERM, *(getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name))):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Fails after LIMIT seconds, where the system has alarms."""
    def expired(*_: object) -> None:
        pytest.fail(f"no end after {LIMIT} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    with time_limit():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    with time_limit():
        return (yield)
