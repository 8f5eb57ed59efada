"""GPTQ's files against the same work by hand, layer after layer; what an interruption leaves, and what it all gains."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import quantize_program
from numpy.typing import NDArray
from test_quant_calibration import Seen
from toy_models import MHA, MQA, write_toy_checkpoint

from cg_local import reference
from cg_local.checkpoint import Checkpoint, open_checkpoint
from cg_local.dequantized_folder import DequantizedFolder
from cg_local.errors import QuantizeError
from cg_local.model_folder import EMBEDDING, matrix_shapes, open_model_folder
from cg_local.packing import CODEBOOK_SIZES, PackedMatrix, dequantize, pack_codebook
from cg_local.quant import Options, gptq, quantize
from cg_local.quant.calibration import importance_of
from cg_local.quant.corpora import Corpus, calibration_corpus
from cg_local.quant.encode import Guide, encode_rows, learn_codebook
from cg_local.quant.encoder import sample_rows
from cg_local.quant.feedback import DenseFeedback
from cg_local.quant.importance import FILE_NAME, capped_rows
from cg_local.quant.journal import Journal, Slab
from cg_local.quant.rounded_rows import relative_error
from cg_local.tokenizer import Tokenizer

Floats = NDArray[np.float32]
PYTHON = '''def area_{n}(width, height):
    """Return the area of a rectangle of so many meters, number {n} of its kind."""
    total = width * height
    if total < {n}:
        raise ValueError("too small")
    return total
'''
TOKENS, WINDOW = 400, 64


@pytest.fixture(autouse=True)
def _slabs_of_a_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in quantize_program.OF_A_TOY:
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small files in Python."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        (folder / f"file_{number}.py").write_text(PYTHON.format(n=number))
    return folder


@pytest.fixture
def gptq_options(texts: Path) -> Options:
    return Options("q4", "gptq", corpus=[texts], calibration_tokens=TOKENS, window_tokens=WINDOW)


def corpus_of(checkpoint: Checkpoint, texts: Path) -> Corpus:
    tokenizer = Tokenizer.from_bytes(checkpoint.tokenizer_bytes() or b"", "toy")
    return calibration_corpus(tokenizer, [texts], num_tokens=TOKENS, window_tokens=WINDOW)


class ByHand(Seen):
    """A checkpoint whose matrices are replaced, one after another, by what GPTQ makes of them."""

    def __init__(self, checkpoint: Checkpoint, corpus: Corpus, formats: dict[str, str], block_columns: int) -> None:
        super().__init__(checkpoint)
        self.sequences = [window.token_ids for window in corpus.windows]
        self.formats, self.block_columns = formats, block_columns
        self.quantized: dict[str, Floats] = {}

    def tensor(self, name: str) -> Floats:
        return self.quantized.get(name, self.checkpoint.tensor(name))

    def inputs_of(self, name: str) -> list[Floats]:
        """Run whole models, with everything that is quantized by now."""
        self.inputs.clear()
        states = [self.states(ids) for ids in self.sequences]
        return states if name == EMBEDDING else self.inputs[name]

    def quantize_all(self) -> None:
        embedding, *matrices = matrix_shapes(self.config, has_separate_head=False)
        assert embedding == EMBEDDING
        for name in (*matrices, embedding):
            self.quantized[name] = self.rounded(name)

    def rounded(self, name: str) -> Floats:
        rows, x, format = capped_rows(self.inputs_of(name)), self.tensor(name), self.formats[name]
        edges = range(0, x.shape[1], self.block_columns)
        parts = [[row[:, edge : edge + self.block_columns] for row in rows] for edge in edges]
        # Products of each sequence in float32, sums of them in float64: a weight near a tie shows every difference.
        products = tuple(np.sum([(x.T @ x).astype(np.float64) for x in part], axis=0) for part in parts)
        importance = np.concatenate([np.diag(product) for product in products]).astype(np.float32)
        guide = Guide(importance, None if name == EMBEDDING else DenseFeedback.of(products))
        book = None
        if format in CODEBOOK_SIZES:
            book = learn_codebook(sample_rows(self.checkpoint, name, x.shape), format, guide)
        arrays = dict(encode_rows(format, x, book, guide).parts)
        if book is not None:
            arrays["codebook"] = pack_codebook(book)
        return dequantize(PackedMatrix(format, (x.shape[0], x.shape[1]), arrays))


@pytest.mark.parametrize(("family", "block_columns"), [("mqa", 2048), ("mha", 2048), ("mqa", 192)])
def test_file_holds_what_the_work_by_hand_gives(
    family: str,
    block_columns: int,
    toy_checkpoint: Callable[[str], Path],
    texts: Path,
    tmp_path: Path,
    gptq_options: Options,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gptq, "BLOCK_COLUMNS", block_columns)
    report = quantize(toy_checkpoint(family), tmp_path / "model", gptq_options)
    folder, checkpoint = DequantizedFolder(open_model_folder(tmp_path / "model")), open_checkpoint(toy_checkpoint(family))
    corpus = corpus_of(checkpoint, texts)
    assert corpus.num_tokens >= TOKENS
    by_hand = ByHand(checkpoint, corpus, {tensor.name: tensor.format for tensor in report.tensors}, block_columns)
    by_hand.quantize_all()
    assert by_hand.quantized.keys() == matrix_shapes(checkpoint.config, has_separate_head=False).keys()
    for name, expected in by_hand.quantized.items():
        np.testing.assert_array_equal(folder.tensor(name), expected, err_msg=name)
