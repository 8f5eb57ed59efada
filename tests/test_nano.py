"""The embedded model: published as a checkpoint that others read too, and computed alike by every path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cg_local
from cg_local.checkpoint import open_checkpoint
from cg_local.config import EngineConfig, SamplingParams
from cg_local.engine import Engine
from cg_local.model import Model
from cg_local.model_folder import open_model_folder
from cg_local.packing import COLUMN_MULTIPLE
from cg_local.quant import plan, quantize
from cg_local.tokenizer import Tokenizer

NANO = Path(cg_local.__file__).parent / "models" / "nano"
MAX_BYTES = 20_000_000
PROMPTS = (
    "import os\n\n\ndef read_lines(path):\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return ",
    "for index, value in enumerate(values):\n    if value is None:\n        ",
    'def test_empty_list() -> None:\n    """An empty list has no largest item."""\n    ',
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(NANO / "tokenizer.model")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("nano") / "bf16"
    quantize(NANO, folder, "bf16")
    return Engine(Model(open_model_folder(folder)), EngineConfig())


def prompt_ids(tokenizer: Tokenizer) -> list[list[int]]:
    return [[tokenizer.bos_id, *tokenizer.encode(text)] for text in PROMPTS]


def test_every_format_applies_to_every_matrix_of_nano() -> None:
    columns = {shape[1] for shape in open_checkpoint(NANO).config.tensor_shapes().values() if len(shape) == 2}

    assert {width % max(COLUMN_MULTIPLE.values()) for width in columns} == {0}
    assert plan(NANO, "q4").notices == ()


def test_nano_is_small_enough_to_be_embedded_and_carries_its_licence() -> None:
    assert sum(path.stat().st_size for path in NANO.iterdir()) <= MAX_BYTES
    assert "Apache License" in (NANO / "LICENSE").read_text()


def test_tokenizer_of_nano_has_the_ids_of_codegemma(tokenizer: Tokenizer) -> None:
    fim = tokenizer.fim_prefix_id, tokenizer.fim_middle_id, tokenizer.fim_suffix_id, tokenizer.file_separator_id

    assert fim == (67, 68, 69, 70)
    assert [tokenizer.piece(token_id) for token_id in (106, 107)] == ["<start_of_turn>", "<end_of_turn>"]
    assert tokenizer.encode("\n") == [108]
    assert tokenizer.encode("    ") == [141]
    assert tokenizer.vocab_size == open_checkpoint(NANO).config.vocab_size


def test_engine_equals_the_reference_on_nano(engine: Engine, tokenizer: Tokenizer) -> None:
    token_ids = prompt_ids(tokenizer)[1]
    expected = cg_local.reference.logits(NANO, token_ids)

    found = engine.logits(token_ids)

    # Both sum float32 products in their own order; 1e-5 of the range is ten times what was seen.
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.transformers
def test_greedy_text_of_transformers_equals_the_bf16_engines(engine: Engine, tokenizer: Tokenizer) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer = transformers.GemmaForCausalLM.from_pretrained(NANO, dtype=torch.float32, attn_implementation="eager")

    for prompt in prompt_ids(tokenizer):
        length = len(prompt) + 48
        with torch.no_grad():
            expected = peer.generate(torch.tensor([prompt]), do_sample=False, max_length=length)[0].tolist()
        sequence = engine.add(prompt, SamplingParams(max_tokens=48), stop_ids=[tokenizer.eos_id])
        engine.run()

        ended = [tokenizer.eos_id] if sequence.stop_id is not None else []
        assert sequence.token_ids + ended == expected
