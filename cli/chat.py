"""`cg-local chat`: a conversation in the terminal, or one answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from cg_local.cli import options
from cg_local.cli.one_shot import Answerer, Request, answer_once, prepare, wants_one_answer
from cg_local.cli.render import notice
from cg_local.cli.session import load_model

if TYPE_CHECKING:
    from cg_local.cli.repl.chat_state import Chat
    from cg_local.cli.repl.editor import QuestionEditor
    from cg_local.cli.repl.settings import ChatSettings
    from cg_local.kv_store import KVStore
    from cg_local.runtime import LocalModel
    from cg_local.sessions import SavedSession, SessionRecorder

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
Template = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--template",
        "-t",
        metavar="NAME",
        help="Ask in the words of a template: explain, review, test, docstring, commit, or yours.",
    ),
]
Variables = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--var", metavar="NAME=VALUE", help="For the template's {{NAME}}; may be repeated."),
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
    context: typer.Context,
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
    template: Template = None,
    var: Variables = None,
    extract: Annotated[bool, typer.Option("--extract", "-x", help="Write only the first code block.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one compact JSON document with the answer.")] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help="Leave out the middle of what is too long.")] = False,
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

    With a QUESTION, a pipe or a template there is one answer. The model reads files first, then what was piped in, then
    QUESTION. What is too long is refused, or cut with --truncate.

    \b
    Examples:
      cg-local chat
      cg-local chat --continue
      cg-local chat "what does this do?" -f src/parser.py:10-40
      cat error.txt | cg-local chat -s "explain this error"
      cg-local chat -t commit
      cg-local chat -x -t test -f src/parser.py > tests/test_parser.py
    """
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    sampling: dict[str, Any] = {**how, "repetition_penalty": repetition_penalty}
    request = Request(
        words=question or (),
        files=file or (),
        template=template,
        variables=var or (),
        system=system,
        extract=extract,
        json=json,
        truncate=truncate,
        force=force,
        markdown=markdown,
    )
    prepared = prepare(request) if wants_one_answer(request) else None

    def load(name: str) -> LocalModel:
        loaded = load_model(name, scheme, context_tokens, threads, kv_dtype, speculation)
        if save:
            loaded.use_kv_store(kv_store(kv_cache_size))
        return loaded

    saved = _saved_session(session or ("last" if continue_last else None))
    name = _model_name(context, model, saved)
    if prepared is not None:
        recorder = _recorder(name, notice) if save else None
        answer_once(prepared, request, _answerer(load(name), saved, recorder, max_tokens, sampling))
        return
    from cg_local.cli.repl.settings import ChatSettings

    settings = ChatSettings(**sampling, max_tokens=max_tokens, verbose=verbose, markdown=markdown, vi=vi, force=force)
    talk = _begin(load, name, settings, is_plain=not markdown, is_saved=save)
    if saved is None and system:
        talk.conversation.system = system
    _attach(talk, file or [])
    _run(talk, saved, system)


def _model_name(context: typer.Context, model: str | None, saved: SavedSession | None) -> str:
    """Return the model of the command line, of the saved conversation, of the settings, or the built-in one."""
    source = context.get_parameter_source("model")
    if saved is not None and saved.model and (source is None or source.name != "COMMANDLINE"):
        return saved.model
    return model or default_model()


def _recorder(model: str, on_notice: Callable[[str], None]) -> SessionRecorder:
    from cg_local.sessions import SessionRecorder

    return SessionRecorder(on_notice, model=model)


def _answerer(
    model: LocalModel,
    saved: SavedSession | None,
    recorder: SessionRecorder | None,
    max_tokens: int | None,
    sampling: dict[str, Any],
) -> Answerer:
    from cg_local.conversation import Conversation

    if saved is not None and recorder is not None:
        recorder.resume(saved)
    conversation = Conversation(saved.messages if saved is not None else ())
    return Answerer(model, conversation, recorder, max_tokens, sampling)


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
