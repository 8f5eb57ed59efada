"""GPTQ's files against the same work by hand, layer after layer; what an interruption leaves, and what it all gains."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
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


@pytest.mark.usefixtures("one_blas_thread")
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
    folder, checkpoint = (
        DequantizedFolder(open_model_folder(tmp_path / "model")),
        open_checkpoint(toy_checkpoint(family)),
    )
    corpus = corpus_of(checkpoint, texts)
    assert corpus.num_tokens >= TOKENS
    by_hand = ByHand(checkpoint, corpus, {tensor.name: tensor.format for tensor in report.tensors}, block_columns)
    by_hand.quantize_all()
    assert by_hand.quantized.keys() == matrix_shapes(checkpoint.config, has_separate_head=False).keys()
    for name, expected in by_hand.quantized.items():
        np.testing.assert_array_equal(folder.tensor(name), expected, err_msg=name)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy checkpoint of two layers, both of them small."""
    values = {**MQA, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    return write_toy_checkpoint(tmp_path_factory.mktemp("shallow") / "toy", values, has_tokenizer=True)


@pytest.fixture
def expected(shallow: Path, tmp_path: Path, gptq_options: Options) -> dict[str, bytes]:
    """The model folder of a run that nothing disturbed."""
    quantize(shallow, tmp_path / "expected", gptq_options, is_resumable=False)
    return contents(tmp_path / "expected")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stream_files(model: Path) -> list[Path]:
    return sorted((model.parent / f".{model.name}.partial" / "method").glob("stream-*.f32"))


def interrupt(shallow: Path, model: Path, options: Options, num_slabs: int) -> None:
    """Run until so many slabs more are recorded."""
    add, left = Journal.add, [num_slabs]

    def counting(journal: Journal, slab: Slab) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        add(journal, slab)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", counting)
        with pytest.raises(KeyboardInterrupt):
            quantize(shallow, model, options)


def resume(shallow: Path, model: Path, options: Options) -> tuple[list[str], int]:
    """Run to the end; returns what was said of the work and how many branches of layers were computed."""
    said, branches = list[str](), [0]

    def counting(branch: Callable[..., Floats]) -> Callable[..., Floats]:
        def count(*arguments: object) -> Floats:
            branches[0] += 1
            return branch(*arguments)

        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptq, "attention_branch", counting(reference.attention_branch))
        patch.setattr(gptq, "feed_forward_branch", counting(reference.feed_forward_branch))
        quantize(shallow, model, options, on_notice=said.append)
    return [text for text in said if "columns do not divide" not in text], branches[0]


@pytest.mark.parametrize("steps", [(7,), (9, 3), (12, 1, 5)])
def test_interrupted_work_is_continued_to_the_same_bytes(
    steps: tuple[int, ...], shallow: Path, tmp_path: Path, gptq_options: Options, expected: dict[str, bytes]
) -> None:
    for step in steps:
        interrupt(shallow, tmp_path / "model", gptq_options, step)
    said, _ = resume(shallow, tmp_path / "model", gptq_options)
    assert "continues at" in said[0]
    assert contents(tmp_path / "model") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "model"]


def test_the_stream_is_taken_up_where_it_was_kept(
    shallow: Path, tmp_path: Path, gptq_options: Options, expected: dict[str, bytes]
) -> None:
    model = tmp_path / "model"
    interrupt(shallow, model, gptq_options, 14)
    kept = stream_files(model)
    assert kept
    _, with_files = resume(shallow, model, gptq_options)
    assert contents(model) == expected

    interrupt(shallow, tmp_path / "other", gptq_options, 14)
    for path in stream_files(tmp_path / "other"):
        path.unlink()
    _, without = resume(shallow, tmp_path / "other", gptq_options)
    assert without > with_files
    assert contents(tmp_path / "other") == expected


@pytest.mark.parametrize("damage", ["cut", "empty", "other shape", "flipped"])
def test_damaged_stream_is_computed_again(
    damage: str, shallow: Path, tmp_path: Path, gptq_options: Options, expected: dict[str, bytes]
) -> None:
    model = tmp_path / "model"
    interrupt(shallow, model, gptq_options, 14)
    for path in stream_files(model):
        data = bytearray(path.read_bytes())
        if damage == "other shape":
            zeros = np.zeros((3, 128), np.float32).tobytes()
            path.write_bytes(hashlib.sha256(zeros).digest() + zeros)
        elif damage == "flipped":
            data[-97] ^= 0x40  # an exponent of the last token
            path.write_bytes(data)
        else:
            path.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    resume(shallow, model, gptq_options)
    assert contents(model) == expected


def test_full_disk_is_told_and_the_work_continued(
    shallow: Path, tmp_path: Path, gptq_options: Options, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name.startswith("stream-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(QuantizeError, match=r"stream-1.*cannot be written \(No space left on device\); make room"):
            quantize(shallow, tmp_path / "model", gptq_options)
    said, _ = resume(shallow, tmp_path / "model", gptq_options)
    assert "continues at" in said[0]
    assert contents(tmp_path / "model") == expected


def test_other_texts_begin_anew(shallow: Path, tmp_path: Path, texts: Path, gptq_options: Options) -> None:
    interrupt(shallow, tmp_path / "model", gptq_options, 9)
    more = Options("q4", "gptq", corpus=[texts], calibration_tokens=TOKENS + 200, window_tokens=WINDOW)
    said, _ = resume(shallow, tmp_path / "model", more)
    assert "(its corpus differs, by --corpus, --tokens or edits: " in said[0]


def output_error(checkpoint: Checkpoint, corpus: Corpus, folder: Path) -> float:
    """Mean squared difference of the final states over their mean square, on the texts of the calibration."""
    published, quantized = Seen(checkpoint), DequantizedFolder(open_model_folder(folder))
    error = energy = 0.0
    for window in corpus.windows:
        expected = published.states(window.token_ids)
        *_, last = reference.residual_stream(quantized, window.token_ids)
        gain = quantized.tensor("model.norm.weight")
        found = reference.rms_norm(last, gain, quantized.config.rms_norm_eps)
        error += float(((found - expected) ** 2).sum())
        energy += float((expected**2).sum())
    return error / energy


@pytest.mark.parametrize("values", [MQA, MHA], ids=["mqa", "mha"])
def test_statistics_help_and_whole_statistics_help_more(
    values: dict[str, object], tmp_path: Path, texts: Path, gptq_options: Options
) -> None:
    source = write_toy_checkpoint(tmp_path / "source", values, has_tokenizer=True)
    checkpoint = open_checkpoint(source)
    corpus = corpus_of(checkpoint, texts)
    quantize(source, tmp_path / "fast", Options(method="fast"))
    importance_of(checkpoint, corpus).save(source / FILE_NAME)
    quantize(source, tmp_path / "imp", Options(method="imp"))
    quantize(source, tmp_path / "gptq", gptq_options)
    fast, imp, whole = (output_error(checkpoint, corpus, tmp_path / name) for name in ("fast", "imp", "gptq"))
    print(f"output error: fast {fast:.3e}, imp {imp:.3e}, gptq {whole:.3e}")
    assert whole < imp < fast
