"""Where questions are typed: keys, completion, history, status line.

This file owns the keys. It neither runs commands nor knows what a question is for. Invariant: the text of a question
can be edited as a whole until it is sent, and nothing that was pasted is sent line by line.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import Completer
from prompt_toolkit.cursor_shapes import ModalCursorShapeConfig
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition, has_completions, has_selection, is_searching, vi_insert_mode
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.output import create_output
from prompt_toolkit.search import SearchDirection
from prompt_toolkit.search import start_search as begin_search
from prompt_toolkit.styles import Style

from cg_local.cli.external_editor import edit_text
from cg_local.cli.repl.blocks_of_lines import needs_more_lines
from cg_local.errors import CgLocalError

PROMPT = ">>> "
TAB_COLUMNS = 4
_STYLE = Style.from_dict({"bottom-toolbar": "noreverse", "bottom-toolbar.text": "noreverse fg:ansibrightblack"})


class QuestionEditor(Protocol):
    """Reads questions.

    Attributes:
        was_emptied: the text that the last question began with was given up before it was typed.
    """

    was_emptied: bool

    def read(self, text: str = "") -> str:
        """Return the next question.

        Args:
            text: to begin with, for the user to change.

        Raises:
            EOFError: the user leaves.
            KeyboardInterrupt: the user gave up an empty line.
        """


class TerminalEditor:
    """Edits several lines with prompt-toolkit.

    Args:
        history: of the questions.
        completer: of commands, paths and models.
        status: the text of the status line, for a width in columns.
        is_vi: begin with the keys of vi, not of emacs.
        has_colors: draw in colours.
    """

    def __init__(
        self,
        history: History,
        completer: Completer,
        status: Callable[[int], str],
        *,
        is_vi: bool = False,
        has_colors: bool = True,
    ) -> None:
        self._fault = ""
        self.was_emptied = False
        self._status = status
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            history=history,
            completer=completer,
            # The list of commands opens by itself; paths only by Tab, because they are in the way of sentences.
            complete_while_typing=Condition(self._is_command_begun),
            editing_mode=EditingMode.VI if is_vi else EditingMode.EMACS,
            key_bindings=self._bindings(),
            bottom_toolbar=self._toolbar,
            # A pasted tab would be shown as ^I; the text keeps it.
            input_processors=[TabsProcessor(tabstop=TAB_COLUMNS, char1=" ", char2=" ")],
            # No mark before the lines that follow: it would be copied with them.
            prompt_continuation="",
            reserve_space_for_menu=6,
            enable_suspend=True,
            style=_STYLE if has_colors else None,
            cursor=ModalCursorShapeConfig() if is_vi else None,
            output=create_output(sys.stdout if sys.stdout.isatty() else sys.stderr),
        )

    def read(self, text: str = "") -> str:
        """Return the next question; see `QuestionEditor`."""
        self._fault, self.was_emptied = "", False
        return self._session.prompt(PROMPT, default=text)

    @property
    def is_vi(self) -> bool:
        """Whether the keys are those of vi."""
        return self._session.editing_mode == EditingMode.VI

    @is_vi.setter
    def is_vi(self, value: bool) -> None:
        """Choose the keys."""
        self._session.editing_mode = EditingMode.VI if value else EditingMode.EMACS
        self._session.cursor = ModalCursorShapeConfig() if value else None

    def _is_command_begun(self) -> bool:
        text = self._session.default_buffer.text
        return text.startswith("/") and " " not in text and "\n" not in text

    def _toolbar(self) -> FormattedText:
        columns = self._session.output.get_size().columns
        text = self._fault or self._status(columns)
        return FormattedText([("", f" {text}"[:columns])])

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        is_editing = ~is_searching

        @bindings.add("enter", filter=is_editing & ~has_selection)
        def _send(event: KeyPressEvent) -> None:
            self._press_enter(event)

        @bindings.add("escape", "enter", filter=is_editing)
        @bindings.add("c-j", filter=is_editing)
        def _break(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @bindings.add("c-g", filter=is_editing)
        def _edit(event: KeyPressEvent) -> None:
            buffer = event.current_buffer

            def edit() -> None:
                try:
                    buffer.text = edit_text(buffer.text)
                    buffer.cursor_position = len(buffer.text)
                    self._fault = ""
                except CgLocalError as error:
                    self._fault = str(error)

            run_in_terminal(edit)

        @bindings.add("c-r", filter=is_editing & vi_insert_mode)
        def _search(event: KeyPressEvent) -> None:
            begin_search(direction=SearchDirection.BACKWARD)

        @bindings.add("c-c", filter=is_editing)
        def _interrupt(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if not buffer.text:
                event.app.exit(exception=KeyboardInterrupt)
            # `reset` would forget the history until the next prompt.
            buffer.history_forward(count=1 << 20)
            buffer.text = ""
            self.was_emptied = True

        @bindings.add("c-l")
        def _clear(event: KeyPressEvent) -> None:
            event.app.renderer.clear()

        @bindings.add("tab", filter=is_editing & ~has_completions)
        def _complete_or_indent(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.document.current_line_before_cursor.strip():
                buffer.start_completion(insert_common_part=True)
            else:
                buffer.insert_text(" " * TAB_COLUMNS)

        return bindings

    @staticmethod
    def _press_enter(event: KeyPressEvent) -> None:
        """Send; or take the chosen completion, or break the line where the text asks for more."""
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None
        elif buffer.document.text_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif needs_more_lines(buffer.text):
            buffer.insert_text("\n")
        elif buffer.text.strip():
            buffer.validate_and_handle()


class PlainEditor:
    """Reads lines as they come, for terminals that cannot move the cursor.

    Args:
        write: takes the prompt.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self.is_vi = self.was_emptied = False

    def read(self, text: str = "") -> str:
        """Return the next question; see `QuestionEditor`. `text` is shown, and kept if the user only presses Enter."""
        self._write(f"{text}\n{PROMPT}" if text else PROMPT)
        lines = [self._line()]
        while lines[-1].endswith("\\") or needs_more_lines("\n".join(lines)):
            lines[-1] = lines[-1].removesuffix("\\")
            lines.append(self._line())
        return "\n".join(lines) if any(lines) else text

    @staticmethod
    def _line() -> str:
        # Bytes that are no UTF-8 would end the chat otherwise, or come as halves of characters.
        if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors != "replace":
            sys.stdin.reconfigure(errors="replace")
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")
