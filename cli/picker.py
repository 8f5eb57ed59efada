"""Choosing among candidates with the arrow keys, each previewed as a diff.

This file owns the keys and the screen. It writes nothing but the screen. Invariant: the screen is as before at the end,
and what was not chosen by Enter is not chosen.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.data_structures import Point
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent
from prompt_toolkit.layout import ConditionalContainer, FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.styles import Style

from cg_local.cli.terminal_text import visible_line, visible_text

if TYPE_CHECKING:
    from cg_local.answers import Infill

# Lines of the file around the gap that a preview shows.
_CONTEXT_LINES = 3
# The screen belongs to an answer of some lines, not to the whole terminal.
_MAX_PREVIEW_LINES = 24
# How long an Esc may be the beginning of another key's sequence.
_ESCAPE_SECONDS = 0.1
# Below this height lines that only explain make room for the candidates.
_ROWS_FOR_LEGEND = 10
_HELP = "↑ ↓ or 1-9 choose   Enter takes it   Esc leaves"
_SHORT_HELP = "↑↓ Enter Esc"
_LEGEND = "   #  mean probability of a token, ! where the text adds a syntax error"
_STYLE = Style.from_dict(
    {"current": "bold", "added": "ansigreen", "removed": "ansired", "hunk": "ansicyan", "help": ""}
)


def pick(results: Sequence[Infill], before: str, after: str, replaced: str = "") -> Infill | None:
    """Let the person at the terminal choose.

    Args:
        results: the best first.
        before, after: the file's text around the gap.
        replaced: the text that stands in the gap now.

    Returns:
        The chosen one; None after Esc, q or Ctrl-C.
    """
    previews = [gap_diff(before, replaced, result.text, after) for result in results]
    place = 0
    keys = KeyBindings()

    def move(to: int) -> None:
        nonlocal place
        place = to % len(results)

    for names, step in ((("up", "k", "c-p"), -1), (("down", "j", "c-n", "tab"), 1)):
        for name in names:
            keys.add(name)(lambda _, step=step: move(place + step))
    for number in range(min(len(results), 9)):
        keys.add(str(number + 1))(lambda _, number=number: move(number))
    keys.add("enter")(lambda event: event.app.exit(result=results[place]))
    for name in ("escape", "q", "c-c", "c-d"):
        keys.add(name)(_leave)

    def shown() -> StyleAndTextTuples:
        width = get_app().output.get_size().columns - 1
        lines = [_line(number, result, number == place, width) for number, result in enumerate(results)]
        return [piece for line in lines for piece in line]

    def preview() -> StyleAndTextTuples:
        return [(_look(line), f"{visible_text(line)}\n") for line in previews[place]]

    with _keyboard() as keyboard:
        application: Application[Infill | None] = Application(
            layout=Layout(_rows(shown, preview, lambda: place, len(results), max(map(len, previews)))),
            key_bindings=keys,
            style=_STYLE,
            color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
            erase_when_done=True,
            input=keyboard,
        )
        application.ttimeoutlen = application.timeoutlen = _ESCAPE_SECONDS
        return application.run()


def has_keyboard() -> bool:
    """Whether a person can answer, though standard input is not the terminal."""
    try:
        with _open_terminal():
            return True
    except (OSError, AttributeError):  # AttributeError: Windows, whose terminals have no names
        return False


@contextmanager
def _keyboard() -> Iterator[Input | None]:
    """Give the terminal's input where standard input is something else."""
    if sys.stdin is not None and sys.stdin.isatty():
        yield None
        return
    with _open_terminal() as terminal:
        yield create_input(stdin=terminal)


def _open_terminal() -> TextIO:
    # By its own name: macOS cannot wait for keys from /dev/tty.
    return open(os.ttyname(sys.stdout.fileno()), encoding="utf-8")


def _rows(
    shown: Callable[[], StyleAndTextTuples],
    preview: Callable[[], StyleAndTextTuples],
    place: Callable[[], int],
    num_results: int,
    num_lines: int,
) -> HSplit:
    """Lay out candidates, preview and help; a low terminal scrolls the candidates and leaves out what explains."""
    is_high = Condition(lambda: get_app().output.get_size().rows >= _ROWS_FOR_LEGEND)
    candidates = FormattedTextControl(shown, show_cursor=False, get_cursor_position=lambda: Point(0, place()))

    def explained(*texts: str) -> StyleAndTextTuples:
        columns = get_app().output.get_size().columns
        return [("class:help", next((text for text in texts if len(text) < columns), texts[-1]))]

    return HSplit(
        [
            ConditionalContainer(Window(FormattedTextControl(lambda: explained(_LEGEND, "")), height=1), is_high),
            Window(
                candidates, height=Dimension(min=1, preferred=num_results, max=num_results), always_hide_cursor=True
            ),
            ConditionalContainer(Window(char="─", height=1), is_high),
            Window(
                FormattedTextControl(preview),
                height=Dimension(min=1, preferred=min(_MAX_PREVIEW_LINES, num_lines)),
                dont_extend_height=True,
            ),
            Window(FormattedTextControl(lambda: explained(_HELP, _SHORT_HELP)), height=1),
        ]
    )


def gap_diff(before: str, replaced: str, text: str, after: str) -> list[str]:
    """Return the lines of a unified diff of a file whose gap is filled, without the files' names.

    Args:
        before, after: the text around the gap.
        replaced: what stood in the gap.
        text: what comes there.
    """
    start = before.rfind("\n") + 1
    end = after.find("\n")
    rest, following = (after, "") if end < 0 else (after[:end], after[end + 1 :])
    lead = before[:start].split("\n")[-1 - _CONTEXT_LINES : -1]
    tail = following.split("\n", _CONTEXT_LINES)[:_CONTEXT_LINES] if following else []
    first = before.count("\n") - len(lead)
    old, new = ([*lead, *f"{before[start:]}{middle}{rest}".split("\n"), *tail] for middle in (replaced, text))
    if end < 0 and old[-1] == "":  # behind the file's last line break there is no line yet
        del old[-1]
    # One hunk of the whole excerpt; its own numbers would count from the excerpt's first line.
    lines = list(difflib.unified_diff(old, new, lineterm="", n=len(old)))[3:]
    return [f"@@ -{first + 1},{len(old)} +{first + 1},{len(new)} @@", *lines] if lines else ["(changes nothing)"]


def _leave(event: KeyPressEvent) -> None:
    event.app.exit(result=None)


def _line(number: int, result: Infill, is_current: bool, width: int) -> StyleAndTextTuples:
    figure = "    " if result.mean_logprob is None else f"{math.exp(result.mean_logprob):.2f}"
    parses = {None: "", 0: " "}.get(result.num_parse_errors, "!")
    text = visible_line(result.text) or "(nothing)"
    line = f"{'>' if is_current else ' '} {number + 1}  {figure} {parses} {text}"
    return [("class:current" if is_current else "", f"{line[:width]}\n")]


def _look(line: str) -> str:
    return {"+": "class:added", "-": "class:removed", "@": "class:hunk"}.get(line[:1], "")
