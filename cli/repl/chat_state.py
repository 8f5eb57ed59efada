"""A chat under way: model, conversation, settings, and what the next question brings with it.

This file owns what commands and answers share. It renders nothing by itself. Invariant: the recorder has been given
the conversation after every change of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cg_local.attachments import Attachment
from cg_local.cli.terminal_text import visible_line
from cg_local.code_blocks import CodeBlock, code_blocks
from cg_local.conversation import Conversation, Message
from cg_local.memory import readable_size, resident_bytes

if TYPE_CHECKING:
    from cg_local.answers import Completion
    from cg_local.cli.repl.editor import QuestionEditor
    from cg_local.cli.repl.history import QuestionHistory
    from cg_local.cli.repl.screen import Screen
    from cg_local.cli.repl.settings import ChatSettings
    from cg_local.config import SamplingParams
    from cg_local.runtime import LocalModel
    from cg_local.sessions import SessionRecorder

ANSWER_SHARE = 4
"""One part in so many of the context is kept free for the answer, if `max_tokens` does not ask for less."""


@dataclass
class Totals:
    """What the answers of this chat took together."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0


@dataclass
class Chat:
    """The state of a chat.

    Attributes:
        model: who answers.
        conversation: what was said.
        settings: how to answer.
        screen: shows.
        history: of what was typed.
        recorder: saves; None: nothing is saved.
        load: loads another model.
        editor: asks; set once the chat exists, because its status line shows the chat.
        attachments: files that the next question brings with it.
        next_text: what the editor begins with.
        is_editing: it is the last question, which what is sent then replaces.
        last: the last answer's figures.
        extra_blocks: code that /fill wrote, until the next answer; what /copy and /write then mean.
        omitted_turns: how many of the oldest turns the last prompt left out.
        totals: over all answers.
    """

    model: LocalModel
    conversation: Conversation
    settings: ChatSettings
    screen: Screen
    history: QuestionHistory
    recorder: SessionRecorder | None
    load: Callable[[str], LocalModel]
    editor: QuestionEditor = field(init=False)
    attachments: list[Attachment] = field(default_factory=list)
    next_text: str = ""
    is_editing: bool = False
    last: Completion | None = None
    extra_blocks: list[CodeBlock] | None = None
    omitted_turns: int = 0
    totals: Totals = field(default_factory=Totals)
    _counted: tuple[tuple[Message, ...], int] = ((), 0)

    @property
    def model_name(self) -> str:
        """What the model is called on the screen: its name, or the last part of its path."""
        return visible_line(Path(self.model.name).name or self.model.name)

    def params(self) -> SamplingParams:
        """Return the settings as the engine takes them."""
        from cg_local.config import SamplingParams

        settings = self.settings
        return SamplingParams(
            max_tokens=min(settings.max_tokens or self.model.max_context, self.model.max_context),
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            seed=settings.seed,
        )

    @property
    def max_prompt_tokens(self) -> int:
        """How long a prompt may be, so that an answer has room."""
        room = max(1, self.model.max_context // ANSWER_SHARE)
        return self.model.max_context - min(self.settings.max_tokens or room, room)

    def save(self) -> None:
        """Save the conversation as it is."""
        if self.recorder is not None:
            self.recorder.save(self.conversation.messages)

    def blocks(self) -> list[CodeBlock]:
        """Return the code blocks that /copy and /write count."""
        if self.extra_blocks is not None:
            return self.extra_blocks
        answers = self.conversation.answers
        return code_blocks(answers[-1].text) if answers else []

    def used_tokens(self) -> int:
        """Return how much of the context the conversation takes."""
        if self.last is not None:
            return self.last.prompt_tokens + self.last.num_tokens
        messages = self.conversation.messages
        if self._counted[0] != messages:
            self._counted = messages, sum(self.conversation.count_tokens(self.model.tokenizer))
        return self._counted[1]

    def status(self, columns: int) -> str:
        """Return the status line: as many of its parts as fit, the most important first."""
        used, room = self.used_tokens(), self.model.max_context
        parts = [self.model_name, f"{used:,} of {room:,} tokens ({100 * used // room} %)"]
        if self.attachments:
            parts.append(f"{len(self.attachments)} attached")
        if self.last is not None and self.last.decode_tokens_per_second is not None:
            parts.append(f"{self.last.decode_tokens_per_second:.1f} tokens/s")
        memory = resident_bytes()
        if memory is not None:
            parts.append(readable_size(memory))
        parts.append("/help")
        while len(parts) > 1 and len(" · ".join(parts)) > columns - 2:
            parts.pop()
        return " · ".join(parts)
