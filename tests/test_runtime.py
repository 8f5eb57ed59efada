"""The loaded model against the parts it is put together from, on a toy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cg_local
from cg_local import SamplingParams, runtime
from cg_local.config import EngineConfig
from cg_local.conversation import Conversation, Message
from cg_local.engine import Engine
from cg_local.errors import CapacityError, ConfigError, ModelFolderError, PromptError
from cg_local.generation import stream_text
from cg_local.model import Model
from cg_local.model_folder import open_model_folder
from cg_local.models import INFILL_ORDERS
from cg_local.prompts import chat_prompt, complete_prompt, infill_prompt
from cg_local.runtime import LocalModel

PREFIX, SUFFIX = "def f(x):\n    y = ", "\n    return y\n"
# Greedy toys repeat themselves; these settings give many different tokens.
LIVELY = SamplingParams(max_tokens=24, temperature=3.0, seed=11)

FolderMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def folder(toy_folder: FolderMaker) -> Path:
    return toy_folder("mqa", "q4")


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return runtime.load(folder)


def answer_of_the_engine(model: LocalModel, token_ids: list[int], stop_ids: frozenset[int]) -> str:
    """What an engine of its own answers, joined from its pieces."""
    engine = Engine(Model(open_model_folder(model.path)), EngineConfig())
    return "".join(piece.text for piece in stream_text(engine, model.tokenizer, token_ids, LIVELY, stop_ids))


def test_completion_is_the_engines_answer_to_the_completion_prompt(model: LocalModel) -> None:
    prompt = complete_prompt(model.tokenizer, PREFIX, max_prompt_tokens=500)
    expected = answer_of_the_engine(model, prompt.token_ids, model.tokenizer.infill_stop_ids)
    result = model.complete(PREFIX, params=LIVELY)
    assert result.text == expected
    assert result.prompt_tokens == len(prompt.token_ids)
    assert result.text


def test_chat_is_the_engines_answer_to_the_chat_prompt(model: LocalModel) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a page?"}]
    prompt = chat_prompt(model.tokenizer, messages, max_prompt_tokens=500)
    expected = answer_of_the_engine(model, prompt.token_ids, model.tokenizer.chat_stop_ids)
    assert model.chat(messages, params=LIVELY).text == expected


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_infill_is_a_beginning_of_the_engines_answer(model: LocalModel, order: str) -> None:
    prompt = infill_prompt(model.tokenizer, PREFIX, SUFFIX, path="a.py", order=order, max_prompt_tokens=500)
    raw = answer_of_the_engine(model, prompt.token_ids, model.tokenizer.infill_stop_ids)
    result = model.infill(PREFIX, SUFFIX, "a.py", order=order, params=LIVELY)
    assert raw.startswith(result.untrimmed)
    assert result.text in result.untrimmed
    assert result.mode == "block"
    assert result.prompt_tokens == len(prompt.token_ids)


def test_order_is_the_models_own_unless_one_is_asked_for(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(order: str | None) -> tuple[int, ...]:
        return model.infill(PREFIX, SUFFIX, order=order, params=LIVELY).token_ids

    assert written("psm") != written("spm")
    assert written(None) == written("psm")
    monkeypatch.setitem(INFILL_ORDERS, model.name, "spm")
    assert written(None) == written("spm")


def test_streamed_pieces_are_the_text_of_the_whole(model: LocalModel) -> None:
    stream = model.complete(PREFIX, params=LIVELY, stream=True)
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == stream.result.text == model.complete(PREFIX, params=LIVELY).text
    infilled = model.infill(PREFIX, SUFFIX, params=LIVELY, stream=True)
    assert "".join(infilled) == infilled.result.text


def test_prompt_met_again_comes_from_the_cache_with_the_same_answer(folder: Path) -> None:
    fresh = runtime.load(folder)
    text = "value = 1\n" * 12
    first, second = fresh.complete(text, params=LIVELY), fresh.complete(text, params=LIVELY)
    assert first.cached_tokens == 0
    assert second.cached_tokens > 0
    assert first.text == second.text


def test_closed_stream_leaves_the_model_ready_for_the_next_question(model: LocalModel) -> None:
    expected = model.complete(PREFIX, params=LIVELY).text
    stream = model.complete(PREFIX, params=LIVELY, stream=True)
    first = next(stream)
    stream.close()
    assert (stream.result.text, stream.result.stop_reason) == (first, "interrupted")
    assert model.complete(PREFIX, params=LIVELY).text == expected


def test_logits_are_those_of_the_engine(model: LocalModel) -> None:
    token_ids = [2, 300, 301, 302]
    logits = model.logits(token_ids)
    assert logits.shape == (4, model.config.vocab_size)
    engine = Engine(Model(open_model_folder(model.path)), EngineConfig())
    np.testing.assert_array_equal(logits, engine.logits(token_ids))


def test_long_text_is_cut_to_the_prompt_budget_and_says_so(model: LocalModel) -> None:
    result = model.infill("a = 1\n" * 400, SUFFIX, params=LIVELY, max_prompt_tokens=64)
    assert result.prompt_tokens <= 64
    assert result.truncated
    assert result.notice is not None
    assert result.notice.startswith("prompt cut to 64 tokens: prefix keeps")


def test_more_tokens_than_the_context_holds_are_refused(folder: Path) -> None:
    small = runtime.load(folder, max_context=64)
    assert small.max_context == 64
    with pytest.raises(CapacityError, match="max_tokens is 64 and the context holds 64 tokens"):
        small.complete("a", params=SamplingParams(max_tokens=64))
    with pytest.raises(PromptError, match="tokens are allowed"):
        small.infill("word " * 50, "", params=SamplingParams(max_tokens=60))


def test_context_is_at_most_the_models(folder: Path, model: LocalModel) -> None:
    assert runtime.load(folder, max_context=10**6).max_context == model.config.max_position_embeddings


def test_unknown_mode_and_order_are_refused(model: LocalModel) -> None:
    with pytest.raises(ValueError, match="unknown mode"):
        model.infill("a", "b", mode="word")
    with pytest.raises(PromptError, match="order 'mps' is unknown"):
        model.infill("a", "b", order="mps")


def test_load_refuses_what_is_no_model_folder(
    tmp_path: Path, folder: Path, toy_checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(ModelFolderError, match="run `cg-local quantize"):
        runtime.load(toy_checkpoint("mqa"))
    with pytest.raises(ModelFolderError, match="not a model folder"):
        runtime.load(tmp_path)
    with pytest.raises(ConfigError, match="this model folder is q4, q8 was asked for"):
        runtime.load(folder, scheme="q8")


def test_load_refuses_an_empty_context(folder: Path) -> None:
    with pytest.raises(ConfigError, match="max_context is 0; give a whole number of at least 1"):
        runtime.load(folder, max_context=0)


def test_load_refuses_a_model_that_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "available_bytes", lambda: 1 << 20)
    with pytest.raises(CapacityError, match=r"1\.0 MiB are free"):
        runtime.load(folder)


@pytest.mark.parametrize("damaged", ["model.safetensors", "tokenizer.model", "config.json"])
def test_damaged_copy_of_the_embedded_model_is_made_again(
    toy_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    monkeypatch.setenv("CG_LOCAL_CACHE", str(tmp_path))
    monkeypatch.setattr("cg_local.model_store.embedded_checkpoint", lambda name: toy_checkpoint("mqa"))
    expected = runtime.load("nano").complete(PREFIX, params=LIVELY).text
    [file] = tmp_path.glob(f"*/{damaged}")
    file.write_bytes(file.read_bytes()[:100])
    again = runtime.load()
    assert (again.name, again.scheme) == ("nano", "q4")
    assert again.complete(PREFIX, params=LIVELY).text == expected


def test_embedded_model_answers_where_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("CG_LOCAL_CACHE", str(tmp_path / "cache"))
    notices: list[str] = []
    model = cg_local.load("nano", on_notice=notices.append)
    assert model.complete("def ", params=cg_local.SamplingParams(max_tokens=2)).num_tokens > 0
    [notice] = notices
    assert "the quantized copy cannot be written (" in notice
    assert notice.endswith("; a temporary copy serves this time")


def test_importing_the_package_loads_neither_numpy_nor_numba() -> None:
    code = (
        "import sys, cg_local, cg_local.quant, cg_local.errors, cg_local.infill.cursor, cg_local.cli.app;"
        "cg_local.errors.CgLocalError; dir(cg_local); cg_local.__version__;"
        "print([name for name in ('numpy', 'numba', 'typer', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_commands_load_neither_numpy_nor_numba_before_they_run() -> None:
    code = (
        "import sys, cg_local.cli.group, cg_local.cli.fill, cg_local.cli.complete, cg_local.cli.quantize;"
        "import cg_local.cli.info;"
        "print([name for name in ('numpy', 'numba', 'rich', 'sentencepiece') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_can_be_used() -> None:
    for name in cg_local.__all__:
        assert getattr(cg_local, name) is not None
    assert sorted(cg_local.__all__) == cg_local.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cg_local.nothing  # noqa: B018


def test_conversation_computes_only_what_is_new_and_answers_as_a_fresh_model(folder: Path) -> None:
    conversation, model = Conversation(), runtime.load(folder)
    conversation.ask("What is a page? " * 8)
    first = model.chat(conversation, params=LIVELY)
    assert model.tokenizer.decode(first.token_ids) == first.text
    conversation.answer(first.text, token_ids=first.token_ids)
    conversation.ask("And a block table?")

    second = model.chat(conversation, params=LIVELY)
    # All full pages of the first prompt and answer; the last token chosen was never computed.
    assert second.cached_tokens == (first.prompt_tokens + first.num_tokens - 1) // 16 * 16
    assert second.token_ids == runtime.load(folder).chat(conversation, params=LIVELY).token_ids


def test_stream_tells_how_much_of_the_prompt_is_computed(model: LocalModel) -> None:
    conversation = Conversation([Message("user", "What is a page? " * 8)])
    stream = model.chat(conversation, params=LIVELY, stream=True)
    done, total = stream.prompt_progress
    assert done < total
    piece = next(stream)
    assert stream.prompt_progress == (total, total)
    assert stream.text == piece
    assert model.tokenizer.decode(stream.token_ids).startswith(piece.rstrip("\N{REPLACEMENT CHARACTER}"))
    stream.close()
    assert stream.result.stop_reason == "interrupted"


def test_prompt_bound_of_a_chat_may_leave_less_room_than_the_tokens_asked_for(model: LocalModel) -> None:
    params = SamplingParams(max_tokens=5000, temperature=3.0, seed=11)
    conversation = Conversation([Message("user", "What is a page?")])
    with pytest.raises(CapacityError, match="max_tokens is 5,000"):
        model.chat(conversation, params=params)
    answer = model.chat(conversation, params=params, max_prompt_tokens=900)
    assert answer.prompt_tokens + answer.num_tokens <= model.max_context
    with pytest.raises(PromptError, match="the last question needs"):
        model.chat(conversation, params=params, max_prompt_tokens=8)


@pytest.mark.parametrize(
    ("name", "template", "is_chat_model"),
    [
        ("plain", None, False),
        ("named-it", None, False),
        ("tuned", '{"chat_template": "{{ messages }}"}', True),
        ("empty", '{"chat_template": ""}', False),
        ("broken", "{", False),
    ],
)
def test_model_is_for_chat_if_a_chat_template_was_published_with_it(
    toy_checkpoint: Callable[[str], Path], tmp_path: Path, name: str, template: str | None, is_chat_model: bool
) -> None:
    source = shutil.copytree(toy_checkpoint("mqa"), tmp_path / "source")
    if template is not None:
        source.joinpath("tokenizer_config.json").write_text(template)
    cg_local.quant.quantize(source, tmp_path / name, "q8")
    assert open_model_folder(tmp_path / name).is_chat_model is is_chat_model


@pytest.mark.parametrize(
    ("name", "is_chat_model"), [("codegemma-7b-it-q4", True), ("Some_Instruct", True), ("limit-q4", False)]
)
def test_folder_that_records_no_template_tells_by_its_name(folder: Path, name: str, is_chat_model: bool) -> None:
    opened = open_model_folder(folder)
    older = {key: value for key, value in opened.metadata.items() if key != "has_chat_template"}
    assert replace(opened, path=folder.parent / name, metadata=older).is_chat_model is is_chat_model
