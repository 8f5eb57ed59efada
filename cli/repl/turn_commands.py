"""Commands on a conversation: regenerate, undo, edit, clear, the system text; and those on saved ones."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from cg_local.cli.external_editor import edit_text
from cg_local.cli.repl.answering import AnswerView, answer_question
from cg_local.cli.repl.chat_state import Chat
from cg_local.cli.terminal_text import visible_line, visible_text

if TYPE_CHECKING:
    from cg_local.sessions import SavedSession

REGENERATE_TEMPERATURE = 0.7
"""/regen at temperature 0 would write the same again."""
LISTED_SESSIONS = 15


def leave(chat: Chat, argument: str) -> None:
    """End the chat.

    Raises:
        EOFError: always; it is what Ctrl-D raises too.
    """
    raise EOFError


def clear(chat: Chat, argument: str) -> None:
    """Begin a new conversation with the same system text; the old one stays saved."""
    is_begun = bool(chat.conversation.turns)
    chat.conversation.clear()
    chat.attachments.clear()
    chat.last, chat.omitted_turns, chat.extra_blocks = None, 0, None
    if chat.recorder is not None:
        chat.recorder.begin()
    saved = " The old one is saved: /list" if is_begun and chat.recorder else ""
    kept = " The system text stays; /system none removes it." if chat.conversation.system else ""
    chat.screen.note(f"A new conversation.{saved}{kept}")


def regenerate(chat: Chat, argument: str) -> None:
    """Answer the last question anew; at temperature 0 a little random, or the answer would be the same."""
    params = chat.params()
    try:
        temperature = float(argument) if argument else params.temperature or REGENERATE_TEMPERATURE
        params = dataclasses.replace(params, temperature=temperature)
    except ValueError:
        chat.screen.error(f"{argument!r} is no temperature; write /regen, or /regen 0.7")
        return
    before = chat.conversation.messages
    if chat.conversation.take_back_answer() is None and not chat.conversation.is_waiting:
        chat.screen.error("There is no question yet.")
        return
    if not argument and chat.settings.temperature == 0:
        chat.screen.note(f"(at temperature {temperature}, because 0 would write the same)")
    is_answered = False
    try:
        is_answered = answer_question(chat, params)
    finally:
        if not is_answered and (chat.conversation.is_waiting or chat.conversation.messages != before):
            # Nothing came of it: the answer that there was is better than none.
            chat.conversation.replace(before)
            chat.next_text = ""
            chat.save()


def undo(chat: Chat, argument: str) -> None:
    """Take the last question and its answer back."""
    question = chat.conversation.undo()
    if question is None:
        chat.screen.error("There is nothing to undo.")
        return
    chat.last, chat.extra_blocks = None, None
    chat.save()
    chat.screen.note(f"Taken back: {visible_line(question)[:60]}")


def edit(chat: Chat, argument: str) -> None:
    """Bring the last question into the editor, to be changed; it and its answer stay until that is sent."""
    questions = [message.text for message in chat.conversation.turns if message.role == "user"]
    if not questions:
        chat.screen.error("There is no question to edit.")
        return
    chat.next_text, chat.is_editing = questions[-1], True


def open_editor(chat: Chat, argument: str) -> None:
    """Write the next question in the user's own editor."""
    text = edit_text(argument)
    if text.strip():
        chat.next_text = text
    else:
        chat.screen.note("Nothing was written.")


def system(chat: Chat, argument: str) -> None:
    """Show, set or remove the system text."""
    if not argument:
        text = chat.conversation.system
        chat.screen.say(text or "No system text. /system TEXT sets one.")
        return
    is_removed = argument.lower() in ("none", "off", '""')
    chat.conversation.system = "" if is_removed else argument.strip('"')
    if chat.conversation.turns:  # a conversation begins with its first question
        chat.save()
    chat.screen.note("No system text any more." if is_removed else "The system text counts from the next answer on.")


def save_as(chat: Chat, argument: str) -> None:
    """Name the conversation."""
    if chat.recorder is None:
        chat.screen.error("This chat was begun with --no-save; /write FILE keeps an answer.")
        return
    if argument and not chat.recorder.rename(argument):
        return
    if chat.conversation.messages:
        chat.save()
    name = f" as {argument!r}" if argument else ""
    where = f" ({chat.recorder.session_id})" if chat.recorder.session_id else ", with its first message"
    chat.screen.note(f"Saved{name}{where}. Every conversation is saved as it goes; /list shows them.")


def list_sessions(chat: Chat, argument: str) -> None:
    """List the conversations that were written last."""
    from cg_local.sessions import SessionStore

    with SessionStore() as store:
        summaries = store.summaries(LISTED_SESSIONS + 1)
    if not summaries:
        chat.screen.note("No conversation is saved yet.")
    for summary in summaries[:LISTED_SESSIONS]:
        mark = "*" if chat.recorder is not None and summary.session_id == chat.recorder.session_id else " "
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.updated_at))
        line = f"{mark} {summary.session_id}  {when}  {summary.num_messages:>3}  {visible_line(summary.title)}"
        chat.screen.say(chat.screen.fitted(line))
    if len(summaries) > LISTED_SESSIONS:
        chat.screen.note("... and older ones: cg-local sessions list, cg-local sessions search WORDS")


def load(chat: Chat, argument: str) -> None:
    """Go on with a saved conversation."""
    from cg_local.sessions import LAST, SessionStore

    with SessionStore() as store:
        saved = store.load(store.find(argument or LAST, shown_by="/list").session_id)
    resume(chat, saved)


def resume(chat: Chat, saved: SavedSession) -> None:
    """Take a saved conversation over and show where it ended."""
    chat.conversation.replace(saved.messages)
    chat.last, chat.omitted_turns, chat.extra_blocks = None, 0, None
    if chat.recorder is not None:
        chat.recorder.resume(saved)
    if chat.conversation.is_waiting:  # a crash, or a kill, before the answer began
        chat.next_text = chat.conversation.undo() or ""
    chat.screen.note(f"{visible_line(saved.title)} ({saved.session_id}, {len(chat.conversation.turns)} messages)")
    show_last_turn(chat)


def show_last_turn(chat: Chat) -> None:
    """Show the last question and its answer again."""
    turns = chat.conversation.turns
    if len(turns) < 2:
        return
    question, answer = turns[-2], turns[-1]
    chat.screen.say(f">>> {question.text}", "note")
    view = AnswerView(chat.screen, is_markdown=chat.screen.is_rendering and chat.settings.markdown)
    view.push(answer.text)
    view.finish()
    if answer.is_cut:
        chat.screen.note("(cut)")


def show_messages(chat: Chat) -> None:
    """Show the whole conversation as it was written."""
    for message in chat.conversation.messages:
        chat.screen.say(f"{message.role}:{' (cut)' if message.is_cut else ''}", "bold")
        chat.screen.write_aside(visible_text(message.text) + "\n\n")
