"""The handler of SIGINT: an interrupt within a compiler's callback comes after it, any other at once."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import typer

from cg_local.cli import render
from cg_local.cli.interrupt import handle_interrupts

# A function that, to the handler, stands in llvmlite's file of callbacks.
CALLBACK = """
def callback(interrupt, events):
    interrupt()
    events.append("callback over")
"""


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    handle_interrupts()
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_interrupt_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt()


FRAGILE = ("/llvmlite/binding/executionengine.py", "<frozen importlib._bootstrap>", "/numba/core/event.py")


@pytest.mark.parametrize("file", FRAGILE)
def test_interrupt_that_would_be_lost_is_raised_later(file: str) -> None:
    names: dict[str, object] = {}
    exec(compile(CALLBACK, file, "exec"), names)
    callback, events = names["callback"], list[str]()
    assert callable(callback)

    callback(interrupt, events)
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)

    assert events == ["callback over"]


def test_figures_of_an_interrupted_answer_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(render, "notice", shown.append)
    monkeypatch.setattr(sys, "stderr", TerminalText())
    figures = {"num_tokens": 3, "decode_tokens_per_second": None, "prompt_tokens": 9, "notice": None}
    for reason in ("eos", "interrupted"):
        with contextlib.suppress(typer.Exit):
            render.end_answer(SimpleNamespace(stop_reason=reason, **figures), is_quiet=False)  # type: ignore[arg-type]
    assert shown == ["3 tokens, prompt 9 tokens, stopped by eos", "3 tokens, prompt 9 tokens, interrupted"]


class TerminalText(io.StringIO):
    def isatty(self) -> bool:
        return True
