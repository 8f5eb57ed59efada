"""Commands on the model and its settings: /set, /show, /tokens, /stats, /model, /complete."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from cg_local.cli.repl.answering import AnswerView, figures, follow
from cg_local.cli.repl.chat_state import Chat
from cg_local.cli.repl.editor import TerminalEditor
from cg_local.cli.repl.settings import SAMPLING, SUMMARIES
from cg_local.cli.repl.turn_commands import show_messages, system
from cg_local.cli.terminal_text import visible_line
from cg_local.errors import ConfigError
from cg_local.memory import readable_size, resident_bytes
from cg_local.model_store import known_models

# What people type who come from other programs.
_SYNONYMS = {
    "quiet": ("verbose", "off"),
    "nowordwrap": ("wordwrap", "off"),
    "nohistory": ("history", "off"),
    "nomarkdown": ("markdown", "off"),
    "emacs": ("vi", "off"),
    "num_predict": ("max_tokens", ""),
    "repeat_penalty": ("repetition_penalty", ""),
    "temp": ("temperature", ""),
}
COMPLETION_TOKENS = 128
"""Of /complete, as of `cg-local complete`: a base model seldom ends by itself."""
TOPICS = ("info", "settings", "system", "template", "license", "messages")


def set_value(chat: Chat, argument: str) -> None:
    """Change a setting; without one, show all. `/set parameter NAME VALUE` and `/set NAME=VALUE` work too."""
    words = argument.replace("=", " ", 1).split(maxsplit=1)
    if words and words[0] == "parameter":
        words = words[1].split(maxsplit=1) if len(words) > 1 else []
    if not words:
        show_settings(chat)
        return
    name, value = words[0].lower().replace("-", "_"), words[1] if len(words) > 1 else ""
    if name == "system":
        system(chat, value)
        return
    name, fixed = _SYNONYMS.get(name, (name, ""))
    if not (fixed or value) and name in SAMPLING:
        chat.screen.note(f"{name} is {chat.settings.as_text(name)}: {SUMMARIES[name]}")
        return
    chat.settings.set(name, fixed or value)
    apply_settings(chat)
    chat.screen.note(f"{name} is {chat.settings.as_text(name)}")


def apply_settings(chat: Chat) -> None:
    """Hand the settings on to the parts that keep them."""
    settings = chat.settings
    chat.screen.is_wrapping = settings.wordwrap and chat.screen.is_rendering
    chat.history.is_kept = settings.history
    if isinstance(chat.editor, TerminalEditor):
        chat.editor.is_vi = settings.vi


def show_settings(chat: Chat) -> None:
    """Show every setting with its value."""
    for name, summary in SUMMARIES.items():
        chat.screen.say(f"{name:<19}{chat.settings.as_text(name):<8}{summary}")


def show(chat: Chat, argument: str) -> None:
    """Show something of the model or the conversation."""
    shown: dict[str, Callable[[Chat], None]] = {
        "info": _show_info,
        "settings": show_settings,
        "parameters": show_settings,
        "system": lambda chat: system(chat, ""),
        "template": _show_template,
        "license": _show_license,
        "messages": show_messages,
        "conversation": show_messages,
        "history": show_messages,
    }
    action = shown.get(argument.lower() or "info")
    if action is None:
        chat.screen.error(f"/show {argument}: nothing to show; there are: {', '.join(TOPICS)}")
    else:
        action(chat)


def _show_info(chat: Chat) -> None:
    model, screen = chat.model, chat.screen
    config = model.config
    kind = "tuned for chat" if model.is_chat_model else "a base model, not tuned for chat"
    screen.say(f"model      {visible_line(model.name)}, {model.scheme}, {kind}")
    screen.say(f"folder     {visible_line(str(model.path))}")
    screen.say(f"shape      {config.num_layers} layers, hidden size {config.hidden_size:,}, {config.num_heads} heads")
    screen.say(f"context    {model.max_context:,} tokens, {chat.max_prompt_tokens:,} of them for the prompt")
    if chat.recorder is not None and chat.recorder.session_id is not None:
        screen.say(f"session    {chat.recorder.session_id}")
    memory = resident_bytes()
    if memory is not None:
        screen.say(f"memory     {readable_size(memory)}")


def _show_template(chat: Chat) -> None:
    chat.screen.say(
        "<bos><start_of_turn>user\nSYSTEM\n\nQUESTION<end_of_turn>\n<start_of_turn>model\nANSWER<end_of_turn>\n"
        "<start_of_turn>user\nQUESTION<end_of_turn>\n<start_of_turn>model"
    )


def _show_license(chat: Chat) -> None:
    files = [chat.model.path / name for name in ("NOTICE", "LICENSE")]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()]
    chat.screen.say("\n".join(texts).strip() or "The model folder holds no licence.")


def tokens(chat: Chat, argument: str) -> None:
    """Count the tokens of the conversation, or show those of a text."""
    screen, tokenizer = chat.screen, chat.model.tokenizer
    if argument:
        token_ids = tokenizer.encode(argument)
        screen.say(" ".join(f"{tokenizer.decode([token_id])!r}:{token_id}" for token_id in token_ids))
        screen.note(f"{len(token_ids):,} tokens")
        return
    counts = chat.conversation.count_tokens(tokenizer)
    for message, count in zip(chat.conversation.messages, counts, strict=True):
        screen.say(f"{count:>7,}  {message.role:<7}{visible_line(message.text)[:50]}")
    attached = sum(len(tokenizer.encode(each.as_markdown())) for each in chat.attachments)
    if attached:
        screen.say(f"{attached:>7,}  attached to the next question")
    total, room = sum(counts) + attached, chat.model.max_context
    screen.note(f"{total:,} tokens of text; the context holds {room:,}, {chat.max_prompt_tokens:,} of them the prompt")


def stats(chat: Chat, argument: str) -> None:
    """Show what the last answer and the whole chat took."""
    screen, last, totals = chat.screen, chat.last, chat.totals
    if last is None:
        screen.note("There is no answer yet.")
        return
    computed = last.prompt_tokens - last.cached_tokens
    rates = [last.prefill_tokens_per_second, last.decode_tokens_per_second]
    prefill, decode = (f", {rate:.1f} tokens/s" if rate is not None else "" for rate in rates)
    screen.say(
        f"prompt      {last.prompt_tokens:,} tokens: {last.cached_tokens:,} from the cache, {computed:,} computed"
    )
    screen.say(f"first token after {last.prefill_seconds:.2f} s{prefill}")
    screen.say(f"answer      {last.num_tokens:,} tokens in {last.decode_seconds:.2f} s{decode}")
    if last.drafted_tokens:
        screen.say(f"guesses     {last.accepted_tokens:,} of {last.drafted_tokens:,} were right")
    screen.say(
        f"this chat   {totals.answers:,} answers, {totals.answer_tokens:,} tokens, {totals.seconds:.1f} s; "
        f"{totals.cached_tokens:,} of {totals.prompt_tokens:,} prompt tokens from the cache"
    )
    memory = resident_bytes()
    if memory is not None:
        screen.say(f"memory      {readable_size(memory)}")


def model(chat: Chat, argument: str) -> None:
    """Show the models that there are, or go on with another one."""
    if not argument:
        chat.screen.say(f"{chat.model_name} ({chat.model.scheme})")
        others = [name for name in known_models() if name != chat.model.name]
        chat.screen.note(f"/model NAME changes it; there are: {', '.join(others)}" if others else "There is no other.")
        return
    try:
        loaded = chat.load(argument)
    except ConfigError as error:
        chat.screen.error(str(error))
        return
    chat.model = loaded
    if chat.recorder is not None:
        chat.recorder.model = loaded.name
    chat.last, chat.omitted_turns = None, 0
    chat.screen.note(f"{chat.model_name} ({loaded.scheme}) answers from here on.")
    tell_base_model(chat)


def tell_base_model(chat: Chat) -> None:
    """Say that a model is not tuned for chat, if so."""
    if not chat.model.is_chat_model:
        chat.screen.warn(
            f"{chat.model_name} is a base model, not tuned for chat: it continues texts. `cg-local "
            "complete` and /complete TEXT do that, /fill FILE:LINE fills gaps; /set force lets it answer anyway."
        )


def complete(chat: Chat, argument: str) -> None:
    """Let the model continue a text, without the form of a chat."""
    if not argument:
        chat.screen.error("/complete TEXT: write the text to continue")
        return
    if os.path.isfile(argument):
        chat.screen.note(f"(the text is the name {argument}; `cg-local complete {argument}` continues the file)")
    num_tokens = min(chat.settings.max_tokens or COMPLETION_TOKENS, chat.model.max_context // 2)
    stream = chat.model.complete(argument, params=replace(chat.params(), max_tokens=num_tokens), stream=True)
    view = AnswerView(chat.screen, is_markdown=False)
    view.push(argument)
    result = follow(stream, view, chat.screen, lambda piece: None)
    if chat.settings.verbose:
        chat.screen.note(figures(result))
