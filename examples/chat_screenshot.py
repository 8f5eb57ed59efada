#!/usr/bin/env python3
"""Draws a conversation in `cg-local chat` as it stands on a terminal: a real process, its real screen, as SVG.

    python examples/chat_screenshot.py --model nano-it --output examples/chat.svg

This file owns the questions and the drawing; `tests/pseudo_terminal.py` is the terminal. Invariant: nothing in the
picture was written by hand but the questions.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from command_line import COMMAND
from pseudo_terminal import Terminal

QUESTIONS = (
    "Write a function that adds two numbers.",
    "/read shapes.py:1-8",
    "What does this class do?",
    "/stats",
)
SHAPES = Path(__file__).with_name("shapes.py")


def main() -> None:
    """Hold the conversation and draw the screen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default=None, help="who answers; default: the model that chat takes")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("chat.svg"))
    parser.add_argument("--size", default="90x34", help="columns x rows")
    parser.add_argument("--chat", nargs="*", default=[], metavar="OPTION", help="more options of the chat, without --")
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    options = parser.parse_args()
    columns, rows = map(int, options.size.split("x"))
    model = ["--model", options.model] if options.model else []
    with TemporaryDirectory() as home:
        Path(home, SHAPES.name).write_bytes(SHAPES.read_bytes())
        command = [*COMMAND, "chat", *model, *(f"--{option}" for option in options.chat)]
        terminal = Terminal(command, Path(home), columns=columns, rows=rows)
        terminal.wait_for_prompt()
        for question in options.questions:
            terminal.ask(question)
        options.output.write_text(drawn(terminal.cells(), columns), encoding="utf-8")
        terminal.type("\x04")
        terminal.wait_for_end()


def drawn(cells: list[list[Any]], columns: int) -> str:
    """Return a screen as SVG.

    Args:
        cells: pyte's characters by row and column.
        columns: of the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="standard")
    for row in cells:
        line = Text()
        for cell in row:
            line.append(cell.data, _style(cell))
        console.print(line, no_wrap=True, crop=True)
    svg = console.export_svg(title="cg-local chat", unique_id="chat")
    # rich names a font on the web; a picture of a program that needs no network should not ask for one.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def _style(cell: Any) -> str:
    looks = [name for name in ("bold", "italics", "underscore", "reverse") if getattr(cell, name)]
    words = {"italics": "italic", "underscore": "underline"}
    color = cell.fg.replace("bright", "bright_").replace("brown", "yellow")
    return " ".join([*(words.get(name, name) for name in looks), *([color] if color != "default" else [])])


if __name__ == "__main__":
    main()
