"""`cg-local chat`: a conversation in the terminal, or one answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cg_local.cli import options
from cg_local.cli.session import load_model

if TYPE_CHECKING:
    from cg_local.cli.repl.chat_state import Chat
    from cg_local.cli.repl.editor import QuestionEditor
    from cg_local.cli.repl.settings import ChatSettings
    from cg_local.kv_store import KVStore
    from cg_local.runtime import LocalModel
    from cg_local.sessions import SavedSession

CONTEXT_TOKENS = 8192
"""CodeGemma was trained for as many; a model that was trained for fewer has those."""

Question = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[QUESTION]", help="Answer this and end; without it, talk.", show_default=False),
]
System = Annotated[
    Optional[str], typer.Option("--system", "-s", metavar="TEXT", help="What the model should know or be like.")  # noqa: UP045
]
Files = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--file", "-f", metavar="FILE[:A-B]", help="A file, or lines of it, to ask about; may be repeated."),
]
ChatModel = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", "-m", metavar="MODEL", help="Embedded name, name in the data folder, or model folder."),
]
MaxTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--max-tokens", min=1, help="Tokens of an answer at most; default: what the context holds."),
]
ContextTokens = Annotated[
    int, typer.Option("--context-tokens", min=64, help="Tokens of the conversation at most; the newest are kept.")
]


def chat(
    question: Question = None,
    system: System = None,
    file: Files = None,
    model: ChatModel = None,
    continue_last: Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")] = False,
    session: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--session", metavar="ID|NAME", help="Go on with a saved conversation."),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="Save the conversation; or keep nothing of it on disk.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Let a model answer that is not tuned for chat.")] = False,
    vi: Annotated[bool, typer.Option("--vi/--emacs", help="The keys of vi, or of emacs; /set vi later.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown/--plain", help="Markdown and colours, or neither.")] = True,
    verbose: Annotated[bool, typer.Option("--verbose/--quiet", help="Show what each answer took.")] = False,
    kv_cache_size: options.KvCacheSize = "4 GiB",
    scheme: options.OptionalScheme = None,
    max_tokens: MaxTokens = None,
    context_tokens: ContextTokens = CONTEXT_TOKENS,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    threads: options.Threads = None,
    kv_dtype: options.OptionalKvDtype = None,
    speculation: options.Speculation = True,
) -> None:
    """Talk about code: a conversation in the terminal, or one answer to QUESTION and what is piped in.

    In the conversation Enter sends, Alt-Enter breaks the line, Ctrl-C stops an answer, Ctrl-D leaves, and /help lists
    the commands. It is saved as it goes; --continue takes it up again.

    \b
    Examples:
      cg-local chat
      cg-local chat --continue
      cg-local chat "what does this do?" -f src/parser.py:10-40
      cat error.txt | cg-local chat -s "explain this error"
    """
    from cg_local.cli.repl.settings import ChatSettings

    settings = ChatSettings(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        verbose=verbose,
        markdown=markdown,
        vi=vi,
        force=force,
    )

    def load(name: str) -> LocalModel:
        loaded = load_model(name, scheme, context_tokens, threads, kv_dtype, speculation)
        if save:
            loaded.use_kv_store(kv_store(kv_cache_size))
        return loaded

    saved = _saved_session(session or ("last" if continue_last else None))
    name = model or (saved.model if saved is not None and saved.model else default_model())
    talk = _begin(load, name, settings, is_plain=not markdown, is_saved=save)
    if saved is None and system:
        talk.conversation.system = system
    _attach(talk, file or [])
    _run(talk, saved, system)


def kv_store(size: str) -> KVStore:
    """Return the store of K and V in the user's cache folder.

    Args:
        size: what it may take, such as "4 GiB"; "0" for nothing.
    """
    from cg_local.kv_store import KVStore
    from cg_local.model_store import kv_folder
    from cg_local.settings import parsed_size

    return KVStore(kv_folder(), max_bytes=parsed_size(size))


def default_model() -> str:
    """Return the model that answers when none is named: the embedded one that is tuned for chat."""
    from cg_local.models import EMBEDDED

    return "nano-it" if "nano-it" in EMBEDDED else EMBEDDED[0]


def _saved_session(name: str | None) -> SavedSession | None:
    if name is None:
        return None
    from cg_local.sessions import SessionStore

    with SessionStore() as store:
        return store.load(store.find(name).session_id)


def _begin(
    load: Callable[[str], LocalModel], name: str, settings: ChatSettings, *, is_plain: bool, is_saved: bool
) -> Chat:
    """Put the parts of a chat together; the model is loaded last, because everything else takes no time."""
    from cg_local.cli.repl.chat_state import Chat
    from cg_local.cli.repl.history import QuestionHistory
    from cg_local.cli.repl.screen import Screen
    from cg_local.conversation import Conversation
    from cg_local.model_store import state_folder
    from cg_local.sessions import SessionRecorder

    screen = Screen(is_plain=is_plain)
    history = QuestionHistory(state_folder() / "history", screen.warn)
    recorder = SessionRecorder(screen.warn, model=name) if is_saved else None
    talk = Chat(
        model=load(name),
        conversation=Conversation(),
        settings=settings,
        screen=screen,
        history=history,
        recorder=recorder,
        load=load,
    )
    talk.editor = _editor(talk)
    return talk


def _editor(talk: Chat) -> QuestionEditor:
    from cg_local.cli.repl.command_table import COMMANDS
    from cg_local.cli.repl.completion import ChatCompleter
    from cg_local.cli.repl.editor import PlainEditor, TerminalEditor

    if os.environ.get("TERM") == "dumb" or not (sys.stdout.isatty() or sys.stderr.isatty()):
        return PlainEditor(talk.screen.write)
    return TerminalEditor(
        talk.history, ChatCompleter(COMMANDS), talk.status, is_vi=talk.settings.vi, has_colors=talk.screen.has_colors
    )


def _attach(talk: Chat, files: list[str]) -> None:
    from cg_local.attachments import read_attachment

    talk.attachments += [read_attachment(name) for name in files]


def _run(talk: Chat, saved: SavedSession | None, system: str | None) -> None:
    from cg_local.cli.repl.loop import run_chat

    run_chat(talk, saved, system=system)
