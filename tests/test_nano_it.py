"""The embedded chat model: found by its name, ends its answers itself, and read alike by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import cg_local
from cg_local.config import EngineConfig, SamplingParams
from cg_local.engine import Engine
from cg_local.model import Model
from cg_local.model_folder import open_model_folder
from cg_local.models import embedded_checkpoint
from cg_local.prompts import chat_prompt
from cg_local.quant import plan, quantize
from cg_local.tokenizer import Tokenizer

NANO, NANO_IT = embedded_checkpoint("nano"), embedded_checkpoint("nano-it")
MAX_BYTES_OF_BOTH = 40_000_000
QUESTIONS = (
    "hello",
    "Write a function called double_it that returns twice a number.",
    "Fix this function:\n\n```python\ndef largest(numbers):\n    max(numbers)\n```",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(NANO_IT / "tokenizer.model")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("nano-it") / "bf16"
    quantize(NANO_IT, folder, "bf16")
    return Engine(Model(open_model_folder(folder)), EngineConfig())


def chat_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    return chat_prompt(tokenizer, messages, max_prompt_tokens=512).token_ids


def test_both_embedded_models_are_small_and_carry_their_licence() -> None:
    sizes = [path.stat().st_size for folder in (NANO, NANO_IT) for path in folder.iterdir()]

    assert sum(sizes) <= MAX_BYTES_OF_BOTH
    assert "Apache License" in (NANO_IT / "LICENSE").read_text()
    assert (NANO_IT / "tokenizer.model").read_bytes() == (NANO / "tokenizer.model").read_bytes()
    assert plan(NANO_IT, "q4").notices == ()


def test_generation_ends_at_the_end_of_a_turn_for_other_readers_too(tokenizer: Tokenizer) -> None:
    generation = json.loads((NANO_IT / "generation_config.json").read_text())

    assert generation["eos_token_id"] == [tokenizer.eos_id, tokenizer.end_of_turn_id]


def test_load_finds_it_by_name_and_quantizes_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CG_LOCAL_CACHE", str(tmp_path))
    calls: list[str] = []

    first = cg_local.load("nano-it", on_progress=lambda done, total, name: calls.append(name))
    num_calls = len(calls)
    second = cg_local.load("nano-it", on_progress=lambda done, total, name: calls.append(name))

    assert first.path == second.path
    assert first.path.parent == tmp_path
    assert (first.name, first.scheme) == ("nano-it", "q4")
    assert num_calls == len(calls) > 0


def test_answers_end_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CG_LOCAL_CACHE", str(tmp_path))
    model = cg_local.load("nano-it")

    for question in QUESTIONS:
        answer = model.chat([{"role": "user", "content": question}], params=SamplingParams(max_tokens=200))
        assert answer.stop_reason == "eos"
        assert answer.text.strip()
        assert ("```python" in answer.text) == (question != "hello")


def test_engine_equals_the_reference_on_nano_it(engine: Engine, tokenizer: Tokenizer) -> None:
    token_ids = chat_ids(tokenizer, QUESTIONS[1])
    expected = cg_local.reference.logits(NANO_IT, token_ids)

    found = engine.logits(token_ids)

    # Both sum float32 products in their own order; 1e-5 of the range is ten times what was seen.
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.transformers
def test_greedy_answers_of_transformers_equal_the_bf16_engines(engine: Engine, tokenizer: Tokenizer) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer = transformers.GemmaForCausalLM.from_pretrained(NANO_IT, dtype=torch.float32, attn_implementation="eager")

    for question in QUESTIONS:
        prompt = chat_ids(tokenizer, question)
        length = len(prompt) + 64
        with torch.no_grad():
            expected = peer.generate(torch.tensor([prompt]), do_sample=False, max_length=length)[0].tolist()
        sequence = engine.add(prompt, SamplingParams(max_tokens=64), stop_ids=tokenizer.chat_stop_ids)
        engine.run()

        ended = [] if sequence.stop_id is None else [sequence.stop_id]
        assert sequence.token_ids + ended == expected


@pytest.mark.transformers
def test_chat_template_for_transformers_gives_the_ids_of_the_chat_prompt(tokenizer: Tokenizer) -> None:
    jinja2 = pytest.importorskip("jinja2")
    template = json.loads((NANO_IT / "tokenizer_config.json").read_text())["chat_template"]
    messages = [
        {"role": "user", "content": " hello "},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "bye"},
    ]  # fmt: skip

    text = jinja2.Template(template).render(messages=messages, bos_token="<bos>", add_generation_prompt=True)

    expected = chat_prompt(tokenizer, messages, max_prompt_tokens=512).token_ids
    pieces = (
        text.replace("<bos>", "\0\3").replace("<start_of_turn>", "\0\1").replace("<end_of_turn>", "\0\2").split("\0")
    )
    controls = {"\3": tokenizer.bos_id, "\1": tokenizer.start_of_turn_id, "\2": tokenizer.end_of_turn_id}
    found: list[int] = []
    for piece in pieces:
        if piece[:1] in controls:
            found.append(controls[piece[0]])
            piece = piece[1:]
        found += tokenizer.encode(piece) if piece else []
    assert found == expected
