"""Conversations: the order of messages, undo and regenerate, and prompts that keep what was computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_tokenizer import write_toy_tokenizer

from cg_local.conversation import KEEP_SHARE, Conversation, Message
from cg_local.errors import PromptError
from cg_local.prompts import Prompt, chat_prompt
from cg_local.tokenizer import Tokenizer

PLENTY = 100_000


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(write_toy_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"))


def talk(*texts: str, system: str = "") -> Conversation:
    """A conversation of alternating questions and answers."""
    conversation = Conversation()
    conversation.system = system
    for number, text in enumerate(texts):
        if number % 2:
            conversation.answer(text)
        else:
            conversation.ask(text)
    return conversation


def as_chat(conversation: Conversation, tokenizer: Tokenizer, budget: int = PLENTY) -> Prompt:
    messages = [{"role": message.role, "content": message.text} for message in conversation.messages]
    return chat_prompt(tokenizer, messages, max_prompt_tokens=budget)


def test_prompt_is_the_published_template_of_the_messages(tokenizer: Tokenizer) -> None:
    conversation = talk("Q1", " A1\n", "Q2", system="Be brief.")
    assert conversation.prompt(tokenizer, max_prompt_tokens=PLENTY) == as_chat(conversation, tokenizer)


def test_undo_and_regenerate_take_the_last_turn_back() -> None:
    conversation = talk("Q1", "A1", "Q2", "A2", system="S")
    assert conversation.take_back_answer() == Message("model", "A2")
    assert conversation.take_back_answer() is None
    assert conversation.is_waiting
    assert conversation.undo() == "Q2"
    assert conversation.undo() == "Q1"
    assert conversation.undo() is None
    assert conversation.messages == (Message("system", "S"),)


def test_answer_replaces_what_there_is_of_it() -> None:
    conversation = talk("Q1")
    conversation.answer("half", is_cut=True)
    conversation.answer("half and whole", token_ids=(300, 301))
    assert conversation.turns == (Message("user", "Q1"), Message("model", "half and whole", False, (300, 301)))


def test_system_text_is_set_replaced_and_removed() -> None:
    conversation = talk("Q1", "A1")
    conversation.system = "first"
    conversation.system = "second"
    assert [message.text for message in conversation.messages] == ["second", "Q1", "A1"]
    conversation.clear()
    assert conversation.messages == (Message("system", "second"),)
    conversation.system = " \n"
    assert conversation.messages == ()


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ("model", "message 1 is the model's where the system's belongs"),
        ("user user", "message 2 is the user's where the model's belongs"),
        ("user model model", "message 3 is the model's where the user's belongs"),
        ("system system", "message 2 is the system's where the user's belongs"),
        ("user tool", "message 2 has the role 'tool'; use one of: system, user, model"),
    ],
)
def test_messages_out_of_order_are_refused(roles: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Conversation([Message(role, "text") for role in roles.split()])


def test_empty_question_and_second_question_are_refused() -> None:
    conversation = talk("Q1")
    with pytest.raises(PromptError, match="the last question has no answer yet"):
        conversation.ask("Q2")
    conversation.answer("")
    with pytest.raises(PromptError, match="the question is empty"):
        conversation.ask(" \n ")
    with pytest.raises(PromptError, match="there is no question to answer"):
        Conversation().answer("A")


def test_ids_the_model_chose_stand_for_the_text_they_spell(tokenizer: Tokenizer) -> None:
    text = "return value"
    spelled = [tokenizer.encode(letter)[0] for letter in text]
    assert tokenizer.encode(text) != spelled
    conversation = talk("Q1", "", "Q2")
    conversation.undo()
    conversation.answer(text + "\n", token_ids=[*spelled, *tokenizer.encode("\n")])
    conversation.ask("Q2")

    start, end = tokenizer.start_of_turn_id, tokenizer.end_of_turn_id
    answer = [start, *tokenizer.encode("model\n"), *spelled, end]
    token_ids = conversation.prompt(tokenizer, max_prompt_tokens=PLENTY).token_ids
    place = token_ids.index(start, 2)
    assert token_ids[place : place + len(answer)] == answer
    assert tokenizer.decode(token_ids) == tokenizer.decode(as_chat(conversation, tokenizer).token_ids)


@pytest.mark.parametrize("token_ids", [(300, 301), (10**6,), ()])
def test_ids_that_spell_another_text_are_not_used(tokenizer: Tokenizer, token_ids: tuple[int, ...]) -> None:
    conversation = talk("Q1")
    conversation.answer("A1", token_ids=token_ids)
    conversation.ask("Q2")
    assert conversation.prompt(tokenizer, max_prompt_tokens=PLENTY) == as_chat(conversation, tokenizer)


def test_full_context_frees_a_quarter_and_then_keeps_the_start_of_the_prompt(tokenizer: Tokenizer) -> None:
    texts = [f"turn {number} says {'much ' * 10}" for number in range(41)]
    budget = len(as_chat(talk(*texts[:13]), tokenizer).token_ids)
    starts: list[int] = []
    for count in range(1, len(texts) + 1, 2):
        prompt = talk(*texts[:count]).prompt(tokenizer, max_prompt_tokens=budget)
        assert len(prompt.token_ids) <= budget
        if starts and prompt.omitted_turns != starts[-1]:
            assert len(prompt.token_ids) <= KEEP_SHARE * budget
            assert f"left out: the oldest {prompt.omitted_turns} of {count} turns" in str(prompt.notice)
        starts.append(prompt.omitted_turns)
    assert starts[:7] == [0] * 7
    assert len(set(starts)) < len(set(range(7, len(starts))))
    assert starts == sorted(starts)


def test_question_too_long_by_itself_is_refused_and_stays_waiting(tokenizer: Tokenizer) -> None:
    conversation = talk("Q1", "A1", "long " * 100)
    with pytest.raises(PromptError, match=r"the last question needs \d+ tokens and 30 are allowed"):
        conversation.prompt(tokenizer, max_prompt_tokens=30)
    assert conversation.is_waiting


def test_token_counts_are_those_of_the_texts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    conversation = talk("def f(x):", "return x", system="Be brief.")
    expected = [len(tokenizer.encode(text)) for text in ("Be brief.", "def f(x):", "return x")]
    assert conversation.count_tokens(tokenizer) == expected
