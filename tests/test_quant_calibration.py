"""What calibration observes against inputs captured by hand from the reference, and sensitivities computed by hand."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_models import MQA, toy_weights, write_toy_checkpoint

from cg_local import reference
from cg_local.checkpoint import Checkpoint, open_checkpoint
from cg_local.config import ModelConfig
from cg_local.errors import CapacityError, QuantizeError
from cg_local.model_folder import EMBEDDING, matrix_shapes
from cg_local.quant import calibration, encoder
from cg_local.quant.calibration import PROBE, calibrate, importance_of, needed_bytes, sensitivities_of
from cg_local.quant.calibration_work import PACK_FILE, STREAM_FILE
from cg_local.quant.corpora import Corpus
from cg_local.quant.corpus_windows import Window
from cg_local.quant.encoder import guide_by
from cg_local.quant.importance import ImportancePack, InputStatistics, input_name
from cg_local.quant.rounded_rows import Rounding, relative_error, rounded

Floats = NDArray[np.float32]
SEQUENCES = [[2, 5, 9, 700, 9, 12, 13, 400], [2, 400, 401, 402, 2, 767], [2, 30, 31]]
CORPUS = Corpus(tuple(Window(tuple(ids), "code", "a.py:1", 1) for ids in SEQUENCES), ())
DOWN = "model.layers.1.mlp.down_proj.weight"


class Seen:
    """A checkpoint whose matrices' inputs are noted, and of which one may have other values."""

    def __init__(self, checkpoint: Checkpoint, name: str = "", values: Floats | None = None) -> None:
        self.checkpoint, self.name, self.values = checkpoint, name, values
        self.inputs: dict[str, list[Floats]] = {}
        self.config, self.tensor_names = checkpoint.config, checkpoint.tensor_names

    def tensor(self, name: str) -> Floats:
        return self.values if name == self.name and self.values is not None else self.checkpoint.tensor(name)

    def observe(self, name: str, x: Floats) -> None:
        self.inputs.setdefault(name, []).append(x.copy())

    def states(self, ids: Sequence[int]) -> Floats:
        *_, last = reference.residual_stream(self, ids)
        return reference.rms_norm(last, self.tensor("model.norm.weight"), self.config.rms_norm_eps)


@pytest.mark.usefixtures("one_blas_thread")
@pytest.mark.parametrize("family", ["mqa", "mha"])
def test_importance_is_the_statistics_of_what_the_reference_multiplies_with(
    family: str, toy_checkpoint: Callable[[str], Path]
) -> None:
    checkpoint, steps = open_checkpoint(toy_checkpoint(family)), list[tuple[int, int]]()
    pack = importance_of(checkpoint, CORPUS, on_layer=lambda done, total: steps.append((done, total)))
    seen = Seen(checkpoint)
    seen.inputs[EMBEDDING] = [seen.states(ids) for ids in SEQUENCES]
    shapes = matrix_shapes(checkpoint.config, has_separate_head=False)
    assert pack.statistics.keys() == {input_name(name) for name in shapes}
    for name in shapes:
        expected = InputStatistics.of(seen.inputs[name])
        np.testing.assert_array_equal(pack.of(name).diagonal, expected.diagonal, strict=True)
        np.testing.assert_array_equal(pack.of(name).directions, expected.directions, strict=True)
    assert pack.sensitivities == {}
    sources = ["config.json", "model.safetensors", "tokenizer.model"]
    assert pack.document == {"corpus": CORPUS.document(), "sources": sources}
    assert steps == [(1, 2), (2, 2)]
    assert pack.misfit(checkpoint) is None


def kl_by_hand(checkpoint: Checkpoint, name: str, values: Floats) -> float:
    """Mean KL divergence of the next token's distribution, from whole rows of float64 logits."""
    logs = []
    for source in (Seen(checkpoint), Seen(checkpoint, name, values)):
        states = np.concatenate([source.states(ids)[:-1] for ids in SEQUENCES])
        z = (states @ source.tensor(EMBEDDING).T).astype(np.float64)
        logs.append(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())


@pytest.mark.usefixtures("one_blas_thread")
def test_sensitivity_is_divergence_over_relative_error(toy_checkpoint: Callable[[str], Path]) -> None:
    checkpoint, steps = open_checkpoint(toy_checkpoint("mqa")), list[tuple[int, int]]()
    pack = importance_of(checkpoint, CORPUS)
    found = sensitivities_of(checkpoint, CORPUS, pack, on_matrix=lambda done, total: steps.append((done, total)))
    shapes = matrix_shapes(checkpoint.config, has_separate_head=False)
    assert list(found) == list(shapes)
    assert steps == [(number, len(shapes)) for number in range(1, len(shapes) + 1)]
    for name in (DOWN, "model.layers.0.self_attn.q_proj.weight", EMBEDDING):
        x = checkpoint.tensor(name)
        y = rounded(PROBE, x, guide_by(pack, name, checkpoint))
        statistics = pack.of(name)
        h = np.diag(statistics.diagonal) + statistics.directions @ statistics.directions.T.astype(np.float64)
        error = y.astype(np.float64) - x
        relative = np.einsum("ri,ij,rj->", error, h, error) / np.einsum("ri,ij,rj->", x, h, x.astype(np.float64))
        assert relative == pytest.approx(relative_error(x, y, statistics), rel=1e-9)
        assert found[name] == pytest.approx(kl_by_hand(checkpoint, name, y) / relative, rel=1e-6)
        assert found[name] > 0


def test_a_matrix_that_rounds_without_error_is_of_no_concern(tmp_path: Path) -> None:
    weights = toy_weights(ModelConfig.from_dict(MQA, "toy"))
    weights[DOWN] = np.zeros_like(weights[DOWN])
    checkpoint = open_checkpoint(write_toy_checkpoint(tmp_path / "pruned", MQA, weights=weights))
    pack = importance_of(checkpoint, CORPUS)
    found = sensitivities_of(checkpoint, CORPUS, pack)
    assert found[DOWN] == 0.0
    assert found["model.layers.1.mlp.up_proj.weight"] == 0.0  # what it computes, the zeros take away again
    assert all(value >= 0 for value in found.values())


def test_relative_error_without_statistics_counts_all_columns_alike() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 8)).astype(np.float32)
    y = x + rng.standard_normal((5, 8)).astype(np.float32) / 8
    expected = ((y.astype(np.float64) - x) ** 2).sum() / (x.astype(np.float64) ** 2).sum()
    assert relative_error(x, y, None) == pytest.approx(expected, rel=1e-12)
    assert relative_error(np.zeros_like(x), y, None) == 0.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A toy of two small layers, whose codebooks are learned from a few rows."""
    values = {**MQA, "intermediate_size": 256, "num_attention_heads": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "SAMPLE_GROUPS", 128)
        yield write_toy_checkpoint(tmp_path_factory.mktemp("small") / "toy", values)


SHORT = Corpus(CORPUS.windows[2:], ())


def calibrated(
    source: Path, destination: Path, stop: str | None = None, probes: Corpus | None = SHORT, **options: Any
) -> tuple[bytes, list[str]]:
    """Make a pack, interrupted at a step's name; returns its bytes and what was said."""
    said, checkpoint = list[str](), open_checkpoint(source)

    def on_step(done: int, total: int, what: str) -> None:
        if what == stop:
            raise KeyboardInterrupt

    if stop is None:
        calibrate(checkpoint, destination, CORPUS, probes, on_step=on_step, on_notice=said.append, **options)
        return destination.read_bytes(), said
    with pytest.raises(KeyboardInterrupt):
        calibrate(checkpoint, destination, CORPUS, probes, on_step=on_step, on_notice=said.append, **options)
    return b"", said


@pytest.fixture(scope="module")
def undisturbed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The pack of a calibration that nothing interrupted."""
    path = tmp_path_factory.mktemp("pack") / "pack"
    data, said = calibrated(small, path)
    checkpoint = open_checkpoint(small)
    pack = importance_of(checkpoint, CORPUS)
    expected = replace(pack, sensitivities=sensitivities_of(checkpoint, SHORT, pack))
    assert ImportancePack.load(path).digest == expected.digest
    assert (said, [entry.name for entry in path.parent.iterdir()]) == ([], ["pack"])
    return data


@pytest.mark.parametrize(
    ("stop", "continued"),
    [
        ("layer 1 of 2", "continues behind layer 1"),
        ("layer 2 of 2", "continues behind layer 2"),
        ("matrix 1 of 15", "continues behind the last layer with 1 sensitivities known"),
        ("matrix 15 of 15", "continues behind the last layer with 15 sensitivities known"),
    ],
)
def test_interrupted_calibration_is_continued_to_the_same_pack(
    small: Path, tmp_path: Path, undisturbed: bytes, stop: str, continued: str
) -> None:
    path = tmp_path / "pack"
    _, said = calibrated(small, path, stop)
    kept = "the work so far is kept; the same command continues it, with --restart it begins anew"
    assert said == [f"{tmp_path / '.pack.partial'}: {kept}"]
    assert not path.exists()
    again, said = calibrated(small, path)
    assert said == [f"{path}: {continued}"]
    assert again == undisturbed
    assert [entry.name for entry in tmp_path.iterdir()] == ["pack"]


def test_work_that_does_not_fit_or_is_damaged_is_begun_anew(small: Path, tmp_path: Path) -> None:
    path, workspace = tmp_path / "pack", tmp_path / ".pack.partial"
    expected, _ = calibrated(small, path, probes=None)
    for damaged in (PACK_FILE, STREAM_FILE):
        calibrated(small, path, "layer 1 of 2", None)
        data = bytearray((workspace / damaged).read_bytes())
        data[-1] ^= 1
        (workspace / damaged).write_bytes(data)
        assert calibrated(small, path, probes=None) == (expected, [])
    calibrated(small, path, "layer 1 of 2", None)
    assert calibrated(small, path, probes=None, restart=True) == (expected, [])


def io_error(path: Path) -> ImportancePack:
    """Fail as a disk does, of which a second try may know nothing."""
    raise QuantizeError(f"{path}: cannot be read") from OSError(errno.EIO, "Input/output error")


def interrupting(path: Path) -> ImportancePack:
    raise KeyboardInterrupt


def lacking(path: Path) -> ImportancePack:
    raise MemoryError


@pytest.mark.parametrize(
    ("load", "error"), [(interrupting, KeyboardInterrupt), (lacking, MemoryError), (io_error, QuantizeError)]
)
def test_work_outlives_what_happens_while_it_is_read(
    small: Path,
    tmp_path: Path,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[[Path], ImportancePack],
    error: type[BaseException],
) -> None:
    path, workspace = tmp_path / "pack", tmp_path / ".pack.partial"
    calibrated(small, path, "layer 1 of 2")
    before = {entry.name: entry.read_bytes() for entry in workspace.iterdir() if entry.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(ImportancePack, "load", load)
        with pytest.raises(error):
            calibrate(open_checkpoint(small), path, CORPUS, SHORT)
    assert {entry.name: entry.read_bytes() for entry in workspace.iterdir() if entry.is_file()} == before
    assert calibrated(small, path) == (undisturbed, [f"{path}: continues behind layer 1"])


def test_statistics_are_gone_on_with_whatever_sensitivities_are_asked_for(
    small: Path, tmp_path: Path, undisturbed: bytes
) -> None:
    path, other = tmp_path / "pack", Corpus(CORPUS.windows[1:2], ())
    plain, _ = calibrated(small, tmp_path / "plain", probes=None)
    calibrated(small, path, "layer 1 of 2", probes=None)
    _, said = calibrated(small, path, "matrix 1 of 15", probes=other)
    assert said[0] == f"{path}: continues behind layer 1"
    again, said = calibrated(small, path)
    assert (again, said) == (undisturbed, [f"{path}: continues behind the last layer"])
    calibrated(small, path, "matrix 1 of 15")
    assert calibrated(small, path, probes=None) == (plain, [f"{path}: continues behind the last layer"])


def test_a_failure_before_anything_is_done_leaves_nothing_to_read(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImportancePack, "load", interrupting)
    with pytest.raises(KeyboardInterrupt):
        calibrate(open_checkpoint(small), tmp_path / "pack", CORPUS)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_before_the_first_layer_leaves_nothing(tmp_path: Path) -> None:
    weights = toy_weights(ModelConfig.from_dict(MQA, "toy"))
    weights["model.layers.0.input_layernorm.weight"][:] = 3e38
    source = write_toy_checkpoint(tmp_path / "source", MQA, weights=weights, dtype="F32")
    with np.errstate(all="ignore"), pytest.raises(QuantizeError, match="not finite"):
        calibrate(open_checkpoint(source), tmp_path / "pack", CORPUS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_too_little_memory_or_disk_is_told_before_anything_is_computed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(small)
    needed = needed_bytes(checkpoint.config, CORPUS)
    monkeypatch.setattr(calibration, "available_bytes", lambda: needed - 1)
    with pytest.raises(CapacityError, match=r"calibration on 17 tokens needs .* are free; ask for fewer --tokens, or"):
        calibrate(checkpoint, tmp_path / "pack", CORPUS)
    monkeypatch.setattr(calibration, "available_bytes", lambda: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(QuantizeError, match=r"1,000 bytes free, [0-9,]+ needed; make room or choose another disk"):
        calibrate(checkpoint, tmp_path / "pack", CORPUS)
    assert list(tmp_path.iterdir()) == []


def test_bytes_of_earlier_work_count_as_free(
    small: Path, tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needed(free: int) -> int:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        with pytest.raises(QuantizeError, match="make room") as told:
            calibrate(open_checkpoint(small), tmp_path / "pack", CORPUS, SHORT)
        return int(str(told.value).split("free, ")[1].split(" needed")[0].replace(",", ""))

    whole = needed(0)
    monkeypatch.undo()
    calibrated(small, tmp_path / "pack", "layer 2 of 2")
    rest = needed(0)
    assert rest < whole
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=rest))
    assert calibrated(small, tmp_path / "pack")[0] == undisturbed


def test_a_probed_matrix_is_rounded_a_few_rows_at_a_time(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, sizes = open_checkpoint(small), list[int]()
    pack = importance_of(checkpoint, SHORT)
    expected = sensitivities_of(checkpoint, SHORT, pack)
    of = Rounding.of
    monkeypatch.setattr(calibration, "PIECE_BYTES", 4 * 256 * 50)  # pieces that end inside of a tile
    monkeypatch.setattr(Rounding, "of", lambda rounding, x: sizes.append(x.nbytes) or of(rounding, x))
    found = sensitivities_of(checkpoint, SHORT, pack)
    assert max(sizes) == calibration.PIECE_BYTES
    assert found == pytest.approx(expected, rel=1e-6)
