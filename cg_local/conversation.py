"""A conversation with a model: its messages, what can be done to them, and the prompt that asks for the next answer.

This file owns the order of the messages and what undo, regenerate and edit mean. It knows no terminal and no disk; the
template of a turn is `prompts`' work. Invariant: behind a leading system message, questions and answers alternate,
starting with a question, and no message but the system's is empty of text (an answer may be).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cg_local.errors import PromptError
from cg_local.prompts import Prompt, chat_prompt
from cg_local.tokenizer import Tokenizer

ROLES = ("system", "user", "model")

KEEP_SHARE = 3 / 4
"""When the context is full, so much of it is kept. The quarter that is freed at once lets the following questions find
the K and V of everything before them; a turn dropped with each question would have all of it computed anew."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "system", "user" or "model".
        text: as written; the prompt leaves out white space around it.
        is_cut: an answer that was stopped before the model ended it.
        token_ids: an answer's tokens as the model chose them, without a stop token; () where they are not known. They
            count only while they spell the text, so another model's are never used by mistake.
    """

    role: str
    text: str
    is_cut: bool = False
    token_ids: tuple[int, ...] = ()


class Conversation:
    """Messages that end with a question to be answered, or with the answer to it.

    Args:
        messages: to begin with, oldest first.

    Raises:
        PromptError: they break the order that the invariant states.
    """

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages = list(messages)
        _check_order(self._messages)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, a system message first."""
        return tuple(self._messages)

    @property
    def turns(self) -> tuple[Message, ...]:
        """Questions and answers."""
        return tuple(message for message in self._messages if message.role != "system")

    @property
    def answers(self) -> tuple[Message, ...]:
        """The model's messages."""
        return tuple(message for message in self._messages if message.role == "model")

    @property
    def system(self) -> str:
        """The system text; "" for none."""
        return self._messages[0].text if self._messages and self._messages[0].role == "system" else ""

    @system.setter
    def system(self, text: str) -> None:
        """Set the system text; a blank one removes it."""
        self._messages = [*([Message("system", text)] if text.strip() else []), *self.turns]

    @property
    def is_waiting(self) -> bool:
        """Whether the last message is a question without an answer."""
        return bool(self._messages) and self._messages[-1].role == "user"

    def ask(self, text: str) -> None:
        """Add a question.

        Raises:
            PromptError: it is empty, or the last question has no answer yet.
        """
        if not text.strip():
            raise PromptError("the question is empty; write what to ask")
        if self.is_waiting:
            raise PromptError("the last question has no answer yet; have it answered, or undo it")
        self._messages.append(Message("user", text))

    def answer(self, text: str, *, is_cut: bool = False, token_ids: Sequence[int] = ()) -> Message:
        """Add the answer to the last question, or replace the part of it that is there already.

        Args:
            text: the answer, or what there is of it.
            is_cut: it was stopped before its end, or goes on.
            token_ids: as in `Message`.

        Returns:
            The message.

        Raises:
            PromptError: nothing was asked.
        """
        if not self.turns:
            raise PromptError("there is no question to answer; ask one first")
        if not self.is_waiting:
            self._messages.pop()
        self._messages.append(Message("model", text, is_cut, tuple(token_ids)))
        return self._messages[-1]

    def take_back_answer(self) -> Message | None:
        """Remove the last answer, so that its question is waiting again; return it, None if there is none."""
        if not self._messages or self._messages[-1].role != "model":
            return None
        return self._messages.pop()

    def undo(self) -> str | None:
        """Remove the last question with its answer; return the question's text, None if there is none."""
        self.take_back_answer()
        return self._messages.pop().text if self.is_waiting else None

    def clear(self) -> None:
        """Remove questions and answers; the system text stays."""
        self.replace([message for message in self._messages if message.role == "system"])

    def replace(self, messages: Iterable[Message]) -> None:
        """Take other messages.

        Raises:
            PromptError: as the constructor; nothing has changed.
        """
        messages = list(messages)
        _check_order(messages)
        self._messages = messages

    def prompt(self, tokenizer: Tokenizer, *, max_prompt_tokens: int) -> Prompt:
        """Return the prompt that asks for the next answer, without the oldest turns if they do not fit.

        Args:
            tokenizer: the model's tokenizer.
            max_prompt_tokens: most ids the prompt may have.

        Raises:
            PromptError: no question is waiting, or it does not fit by itself.
        """
        return chat_prompt(
            tokenizer,
            [{"role": message.role, "content": message.text} for message in self._messages],
            max_prompt_tokens=max_prompt_tokens,
            keep_share=KEEP_SHARE,
            answer_ids=_answer_ids(tokenizer, self.answers),
        )

    def count_tokens(self, tokenizer: Tokenizer) -> list[int]:
        """Return how many tokens the text of each message has, in the order of `messages`."""
        return [len(message.token_ids or tokenizer.encode(message.text.strip())) for message in self._messages]


def _check_order(messages: list[Message]) -> None:
    expected = "system"
    for number, message in enumerate(messages, start=1):
        if message.role not in ROLES:
            raise PromptError(f"message {number} has the role {message.role!r}; use one of: {', '.join(ROLES)}")
        if message.role != expected and (expected, message.role) != ("system", "user"):
            raise PromptError(f"message {number} is the {message.role}'s where the {expected}'s belongs")
        if message.role != "model" and not message.text.strip():
            raise PromptError(f"message {number}, the {message.role}'s, is empty")
        expected = "model" if message.role == "user" else "user"


def _answer_ids(tokenizer: Tokenizer, answers: Sequence[Message]) -> dict[str, tuple[int, ...]]:
    """Return by its text the ids of each answer that are known, cut to the text as a prompt has it."""
    known: dict[str, tuple[int, ...]] = {}
    for message in answers:
        text, end = message.text.strip(), len(message.token_ids)
        # The template leaves out white space around the text; of the ids this is possible where whole pieces are.
        while end and not tokenizer.token_bytes(message.token_ids[end - 1]).strip():
            end -= 1
        token_ids = message.token_ids[:end]
        if token_ids and tokenizer.decode(token_ids) == text:
            known[text] = token_ids
    return known
