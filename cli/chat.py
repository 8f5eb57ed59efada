"""`cg-local chat`: a conversation in the terminal, or one answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from cg_local.cli import chat_options, options
from cg_local.cli.chat_options import ChatArguments
from cg_local.cli.one_shot import Answerer, answer_once
from cg_local.cli.render import notice
from cg_local.cli.request import prepare, wants_one_answer
from cg_local.cli.session import kv_store, load_model

if TYPE_CHECKING:
    from cg_local.cli.repl.chat_state import Chat
    from cg_local.cli.repl.editor import QuestionEditor
    from cg_local.cli.repl.settings import ChatSettings
    from cg_local.runtime import LocalModel
    from cg_local.sessions import SavedSession, SessionRecorder

LAST_SESSION = "last"  # as `sessions.LAST`, which costs an import of SQLite


def chat(
    context: typer.Context,
    question: chat_options.Question = None,
    system: chat_options.System = None,
    file: chat_options.Files = None,
    model: chat_options.ChatModel = None,
    continue_last: chat_options.Continue = False,
    session: chat_options.Session = None,
    save: chat_options.Save = True,
    template: chat_options.Template = None,
    var: chat_options.Variables = None,
    extract: chat_options.Extract = False,
    json: options.Json = False,
    truncate: chat_options.Truncate = False,
    force: chat_options.Force = False,
    vi: chat_options.Vi = False,
    markdown: chat_options.Markdown = True,
    verbose: chat_options.Verbose = False,
    kv_cache_size: options.KvCacheSize = "4 GiB",
    scheme: options.OptionalScheme = None,
    max_tokens: chat_options.MaxTokens = None,
    context_tokens: chat_options.ContextTokens = chat_options.CONTEXT_TOKENS,
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
    arguments = {name: value for name, value in locals().items() if name != "context"}
    if continue_last and session is not None:
        options.refuse_usage("--continue and --session do not go together: name one conversation")
    # A saved conversation goes on with its own model and system text, unless another one is asked for here.
    if (continue_last or session is not None) and not _is_named(context, "system"):
        arguments["system"] = None
    _chat(ChatArguments(**arguments), is_model_named=_is_named(context, "model"))


def _is_named(context: typer.Context, parameter: str) -> bool:
    """Whether a parameter stands on the command line, and does not come from the settings."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _chat(given: ChatArguments, *, is_model_named: bool) -> None:
    request = given.request
    _refuse_model_name(request.words)
    prepared = prepare(request) if wants_one_answer(request) else None
    saved = _saved_session(given.session or (LAST_SESSION if given.continue_last else None))
    saved_model = saved.model if saved is not None else ""
    name = (given.model if is_model_named else saved_model or given.model) or default_model()

    def load(name: str) -> LocalModel:
        loaded = load_model(name, given.scheme, given.context_tokens, given.threads, given.kv_dtype, given.speculation)
        if given.save:
            loaded.use_kv_store(kv_store(given.kv_cache_size))
        return loaded

    if prepared is not None:
        recorder = _recorder(name, notice) if given.save else None
        answer_once(prepared, request, _answerer(load(name), saved, recorder, given))
        return
    talk = _begin(load, name, _settings(given), is_plain=not given.markdown, is_saved=given.save)
    if saved is None and given.system:
        talk.conversation.system = given.system
    _attach(talk, given.file or [])
    _run(talk, saved, given.system)


def _settings(given: ChatArguments) -> ChatSettings:
    from cg_local.cli.repl.settings import ChatSettings

    names = ("max_tokens", "verbose", "markdown", "vi", "force")
    return ChatSettings(**given.sampling, **{name: getattr(given, name) for name in names})


def _recorder(model: str, on_notice: Callable[[str], None]) -> SessionRecorder:
    from cg_local.sessions import SessionRecorder

    return SessionRecorder(on_notice, model=model)


def _answerer(
    model: LocalModel, saved: SavedSession | None, recorder: SessionRecorder | None, given: ChatArguments
) -> Answerer:
    from cg_local.conversation import Conversation

    if saved is not None and recorder is not None:
        recorder.resume(saved)
    conversation = Conversation(saved.messages if saved is not None else ())
    return Answerer(model, conversation, recorder, given.max_tokens, given.sampling, given.verbose)


def _refuse_model_name(words: Sequence[str]) -> None:
    """Tell who writes a model's name where other programs take it; as a question it means nothing."""
    from cg_local.model_store import known_models

    if len(words) == 1 and words[0] in known_models():
        message = f"{words[0]!r} is the name of a model: write -m {words[0]}, and a question behind it if there is one."
        raise typer.BadParameter(message, param_hint="QUESTION")


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
    from cg_local.cli.repl.silent_keys import silent_keys

    with silent_keys():
        return _begin_unseen(load, name, settings, is_plain=is_plain, is_saved=is_saved)


def _begin_unseen(
    load: Callable[[str], LocalModel], name: str, settings: ChatSettings, *, is_plain: bool, is_saved: bool
) -> Chat:
    from cg_local.cli.repl.chat_state import Chat
    from cg_local.cli.repl.history import QuestionHistory
    from cg_local.cli.repl.screen import Screen
    from cg_local.conversation import Conversation
    from cg_local.model_store import state_folder

    screen = Screen(is_plain=is_plain)
    history = QuestionHistory(state_folder() / "history" if is_saved else None, screen.warn)
    recorder = _recorder(name, screen.warn) if is_saved else None
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
        return PlainEditor(talk.screen.write_aside)
    return TerminalEditor(
        talk.history, ChatCompleter(COMMANDS), talk.status, is_vi=talk.settings.vi, has_colors=talk.screen.has_colors
    )


def _attach(talk: Chat, files: list[str]) -> None:
    from cg_local.attachments import read_attachment

    talk.attachments += [read_attachment(name) for name in files]


def _run(talk: Chat, saved: SavedSession | None, system: str | None) -> None:
    from cg_local.cli.repl.loop import run_chat

    run_chat(talk, saved, system=system)
