"""The loop of a chat: a line is read, and is a command or a question.

This file owns the order of things between the first prompt and the last. Invariant: no error of a command or an answer
ends the chat, and nothing leaves it but the end of input.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from cg_local.cli.repl import model_commands, turn_commands
from cg_local.cli.repl.answering import answer_question
from cg_local.cli.repl.blocks_of_lines import without_marks
from cg_local.cli.repl.chat_state import Chat
from cg_local.cli.repl.command_table import COMMANDS
from cg_local.cli.repl.prefix_saver import PrefixSaver
from cg_local.errors import CgLocalError
from cg_local.question import Question

if TYPE_CHECKING:
    from cg_local.sessions import SavedSession


def run_chat(chat: Chat, saved: SavedSession | None = None, *, system: str | None = None) -> None:
    """Talk until the user leaves.

    Args:
        chat: ready for the first question.
        saved: a conversation to go on with.
        system: the system text, in place of the saved one.
    """
    _greet(chat)
    model_commands.apply_settings(chat)
    if saved is not None:
        turn_commands.resume(chat, saved)
    if system is not None:
        chat.conversation.system = system
    saver = PrefixSaver()
    try:
        while True:
            text, chat.next_text = chat.next_text, ""
            is_editing, chat.is_editing = chat.is_editing, False
            try:
                line = chat.editor.read(text)
            except KeyboardInterrupt:
                chat.screen.note("Use Ctrl-D or /bye to leave.")
                continue
            chat.is_editing = is_editing and not chat.editor.was_emptied
            try:
                saver.end()
            except KeyboardInterrupt:
                chat.next_text = line
                continue
            num_answers = chat.totals.answers
            _take_safely(chat, line)
            if chat.totals.answers > num_answers:
                saver.begin(chat.model)
    except EOFError:
        pass
    finally:
        try:
            saver.end(is_complete=True)
        finally:
            if chat.recorder is not None:
                chat.recorder.close()


def _greet(chat: Chat) -> None:
    model = chat.model
    chat.screen.say(
        f"{chat.model_name} ({model.scheme}), {model.max_context:,} tokens of context. "
        "/help lists the commands, Ctrl-D leaves."
    )
    if not chat.settings.force:
        model_commands.tell_base_model(chat)


def _take(chat: Chat, line: str) -> None:
    """Run a command, or ask a question."""
    found = COMMANDS.parse(line.rstrip())
    if found is not None:
        command, argument = found
        chat.is_editing = False
        command.run(chat, argument)
    elif line.strip():
        _ask(chat, without_marks(line.strip("\n")))


def _ask(chat: Chat, question: str) -> None:
    if not chat.model.is_chat_model and not chat.settings.force:
        model_commands.tell_base_model(chat)
        chat.next_text = question
        return
    attachments, before, is_editing = list(chat.attachments), chat.conversation.messages, chat.is_editing
    chat.is_editing = False

    def give_back() -> None:
        # The files were part of the question that comes back; it is typed without them.
        chat.next_text, chat.attachments[:], chat.is_editing = question, attachments, is_editing
        if is_editing:
            chat.conversation.replace(before)
            chat.save()

    try:
        if is_editing:
            chat.conversation.undo()
        chat.conversation.ask(Question(words=question, files=tuple(attachments)).text())
        chat.attachments.clear()
        is_answered = answer_question(chat)
    except BaseException:
        # Whatever ended it: a question left without an answer would be in the way of every later one.
        if chat.conversation.is_waiting or len(chat.conversation.messages) < len(before):
            if chat.conversation.is_waiting:
                chat.conversation.undo()
            chat.save()
            give_back()
        raise
    if is_answered:
        chat.screen.say()
    elif chat.next_text:
        give_back()


def _take_safely(chat: Chat, line: str) -> None:
    """Run a command, or ask a question; what goes wrong is one line."""
    try:
        _take(chat, line)
    except EOFError:
        raise
    except CgLocalError as error:
        chat.screen.error(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        chat.screen.error(f"{place}{error.strerror or error}")
    except MemoryError:
        chat.screen.error("The machine has not enough memory left for this.")
    except Exception as error:  # the edge of the chat: what was said so far must outlive a fault of ours
        if "--debug" in sys.argv:
            raise
        chat.screen.error(f"internal error ({type(error).__name__}: {error}); run again with --debug and report it")
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):
            chat.screen.note("Stopped.")
