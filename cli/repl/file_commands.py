"""Commands that read and write files: /read, /glob, /drop, /write, /copy, /fill."""

from __future__ import annotations

import glob as glob_module
import os
import sys
from pathlib import Path

from cg_local.atomic_file import replace_file
from cg_local.attachments import Attachment, read_attachment
from cg_local.cli.repl.answering import AnswerView, follow
from cg_local.cli.repl.chat_state import Chat
from cg_local.cli.repl.clipboard import copy_text
from cg_local.code_blocks import CodeBlock
from cg_local.errors import SourceFileError
from cg_local.infill.cursor import locate, parse_target, read_source

MAX_GLOB_FILES = 100
"""As llama-cli's /glob has it."""


def read(chat: Chat, argument: str) -> None:
    """Attach a file, or lines of it, to the next question; without a name, list what is attached."""
    if not argument:
        _list_attachments(chat)
        return
    _attach(chat, read_attachment(_unquoted(argument)))


def glob(chat: Chat, argument: str) -> None:
    """Attach all text files that a pattern matches."""
    if not argument:
        chat.screen.error("/glob PATTERN: name files, for example /glob src/**/*.py")
        return
    pattern = os.path.expanduser(_unquoted(argument))
    names = sorted(name for name in glob_module.iglob(pattern, recursive=True) if Path(name).is_file())
    if not names:
        chat.screen.error(f"{argument}: matches no file, seen from {Path.cwd()}")
    if len(names) > MAX_GLOB_FILES:
        chat.screen.error(f"{argument}: matches {len(names):,} files, and {MAX_GLOB_FILES} are allowed; name fewer")
        return
    for name in names:
        try:
            _attach(chat, read_attachment(name))
        except SourceFileError as error:
            chat.screen.warn(f"left out: {error}")


def drop(chat: Chat, argument: str) -> None:
    """Leave attached files out again: the one that is named, or all."""
    kept = [each for each in chat.attachments if argument and argument not in (each.name, each.title)]
    num_dropped = len(chat.attachments) - len(kept)
    if argument and not num_dropped:
        chat.screen.error(f"/drop: {argument} is not attached; /read lists what is")
        return
    chat.attachments[:] = kept
    chat.screen.note(f"{num_dropped} dropped, {len(kept)} attached.")


def copy(chat: Chat, argument: str) -> None:
    """Copy the last answer, or one of its code blocks."""
    if argument:
        block = _chosen_block(chat, argument)
        if block is None:
            return
        text, what = block.text, f"Code block {argument}"
    elif chat.extra_blocks is not None:
        text, what = chat.extra_blocks[0].text, "What /fill wrote"
    elif chat.conversation.answers:
        text, what = chat.conversation.answers[-1].text, "The last answer"
    else:
        chat.screen.error("There is no answer to copy yet.")
        return
    way = copy_text(text, chat.screen.send_sequence)
    if way is None:
        chat.screen.error("No clipboard can be reached from here; /write FILE keeps the text in a file.")
    else:
        chat.screen.note(f"{what} ({len(text):,} characters) went to the clipboard by {way}.")


def write(chat: Chat, argument: str) -> None:
    """Write a code block, or an answer without any, to a file; asks before it overwrites one."""
    name, number = _name_and_number(argument)
    if not name:
        chat.screen.error("/write FILE [n]: name a file, and the number of the code block if there are several")
        return
    blocks = chat.blocks()
    if number or len(blocks) > 1:
        block = _chosen_block(chat, number or "1")
        if block is None:
            return
        if not number:
            chat.screen.note(f"(the first of {len(blocks)} code blocks; /write {name} 2 writes the second)")
        text = block.text
    elif blocks:
        text = blocks[0].text
    elif chat.conversation.answers:
        text = chat.conversation.answers[-1].text + "\n"
    else:
        chat.screen.error("There is no answer to write yet.")
        return
    path = Path(os.path.expanduser(name))
    if os.path.exists(path) and not _may_overwrite(chat, path):
        chat.screen.note("Not written.")
        return
    replace_file(path, text.encode("utf-8", errors="replace"))
    chat.screen.note(f"{path}: {len(text.splitlines()):,} lines written")


def fill(chat: Chat, argument: str) -> None:
    """Fill the gap at a place in a file, and show it; the file is not touched."""
    if not argument:
        chat.screen.error("/fill FILE:LINE[:COL]: name a place, as `cg-local fill` takes it")
        return
    try:
        target = parse_target(_unquoted(argument))
    except ValueError as error:
        raise SourceFileError(str(error)) from error
    source = read_source(target.file)
    gap = locate(source, target)
    path = Path(target.file)
    name = path.name if path.is_absolute() else path.as_posix()
    stream = chat.model.infill(gap.prefix, gap.suffix, name, stream=True)
    view = AnswerView(chat.screen, is_markdown=chat.screen.is_rendering)
    view.push(f"```{path.suffix[1:]}\n")
    result = follow(stream, view, chat.screen, lambda piece: None)
    chat.extra_blocks = [CodeBlock(path.suffix[1:], result.text)]
    if result.notice is not None:
        chat.screen.warn(result.notice)
    if not result.text:
        chat.screen.note("(nothing fits there)")
    else:
        chat.screen.note(f"(not written; /copy copies it, `cg-local fill {_unquoted(argument)}` is the command)")


def _attach(chat: Chat, attachment: Attachment) -> None:
    chat.attachments.append(attachment)
    num_tokens = len(chat.model.tokenizer.encode(attachment.as_markdown()))
    chat.screen.note(
        f"{attachment.title}: {attachment.num_lines:,} lines, {num_tokens:,} tokens, go with the next question"
    )
    if num_tokens > chat.max_prompt_tokens:
        chat.screen.warn(f"That is more than the {chat.max_prompt_tokens:,} tokens of a prompt; /drop, or name lines.")


def _list_attachments(chat: Chat) -> None:
    for attachment in chat.attachments:
        chat.screen.say(f"{attachment.title}: {attachment.num_lines:,} lines")
    if not chat.attachments:
        chat.screen.note("Nothing is attached. /read FILE or /read FILE:10-20 attaches a file to the next question.")


def _chosen_block(chat: Chat, number: str) -> CodeBlock | None:
    blocks = chat.blocks()
    if number.isdecimal() and 1 <= int(number) <= len(blocks):
        return blocks[int(number) - 1]
    there_are = f"there are {len(blocks)}" if len(blocks) != 1 else "there is 1"
    chat.screen.error(f"{number}: no such code block; {there_are} in the last answer")
    return None


def _name_and_number(argument: str) -> tuple[str, str]:
    """Split "FILE 2"; a file that is called so is preferred."""
    name, _, number = argument.rpartition(" ")
    if name and number.isdecimal() and not os.path.exists(argument):
        return _unquoted(name), number
    return _unquoted(argument), ""


def _may_overwrite(chat: Chat, path: Path) -> bool:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    # Where answers go to a file, it shall hold nothing else.
    output = create_output(sys.stdout if chat.screen.is_terminal else sys.stderr)
    question = f"{path}: exists. Overwrite it? [y/N] "
    try:
        return PromptSession[str](output=output).prompt(question).strip().lower() in ("y", "yes")
    except (KeyboardInterrupt, EOFError):
        return False


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if is_quoted else text
