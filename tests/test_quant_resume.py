"""Quantizing that is interrupted and continued: the same bytes in the end, whatever happened on the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import quantize_program
from toy_models import MQA, write_toy_checkpoint

from cg_local.errors import CheckpointError, QuantizeError
from cg_local.quant import encoder, quantize, slabs
from cg_local.quant.encode import EncodedRows
from cg_local.quant.encoder import SearchEncoder, Workplace
from cg_local.quant.journal import JOURNAL_FILE, Journal, Slab
from cg_local.quant.schemes import TensorPlan
from cg_local.quant.work_plan import PLAN_FILE

TOY: Mapping[str, object] = {**MQA, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("source") / "toy", TOY, has_tokenizer=True)


@contextlib.contextmanager
def small_slabs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in quantize_program.OF_A_TOY:
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The model folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("expected") / "model"
    with small_slabs():
        quantize(source, folder, is_resumable=False)
    return contents(folder)


@pytest.fixture(autouse=True)
def _slabs_of_a_toy() -> Iterator[None]:
    with small_slabs():
        yield


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_after(patch: pytest.MonkeyPatch, num_slabs: int, error: BaseException) -> None:
    """Let the next runs end with an error when they want to record one slab more."""
    add, left = Journal.add, [num_slabs]

    def counting(journal: Journal, slab: Slab) -> None:
        if not left[0]:
            raise error
        left[0] -= 1
        add(journal, slab)

    patch.setattr(Journal, "add", counting)


def interrupt(source: Path, folder: Path, num_slabs: int) -> list[str]:
    """Run until so many slabs are recorded, then interrupt; returns what was said."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, num_slabs, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            quantize(source, folder, on_notice=said.append)
    return said


def resume(source: Path, folder: Path, **options: object) -> tuple[list[str], int]:
    """Run to the end; returns what was said and how many rows were encoded."""
    said: list[str] = []
    rows: list[int] = []
    encode = SearchEncoder.encode

    def counting(encoder: SearchEncoder, tensor: TensorPlan, start: int, stop: int) -> EncodedRows:
        rows.append(stop - start)
        return encode(encoder, tensor, start, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchEncoder, "encode", counting)
        quantize(source, folder, on_notice=said.append, **options)  # type: ignore[arg-type]
    return said, sum(rows)


def all_rows(source: Path, folder: Path) -> int:
    """How many rows a run encodes that finds nothing."""
    _, rows = resume(source, folder.with_name("whole"))
    shutil.rmtree(folder.with_name("whole"))
    return rows


@pytest.mark.parametrize("num_slabs", [1, 4, 17, 26])
def test_interrupted_run_is_continued_where_it_stood(
    source: Path, tmp_path: Path, expected: dict[str, bytes], num_slabs: int
) -> None:
    model = tmp_path / "model"
    whole = all_rows(source, model)
    said = interrupt(source, model, num_slabs)
    assert names(tmp_path) == [".model.partial"]
    assert len(said) == 1
    assert ".model.partial: " in said[0]
    assert "of work are kept; the same command continues at " in said[0]
    journal = tmp_path / ".model.partial" / JOURNAL_FILE
    recorded = [json.loads(line[9:]) for line in journal.read_text().splitlines()]
    rows_done = sum(line["rows"][1] - line["rows"][0] for line in recorded if "rows" in line)

    said, rows = resume(source, model)

    assert rows == whole - rows_done
    assert [line.split(": ")[1].split(" at ")[0] for line in said] == ["continues"]
    assert names(tmp_path) == ["model"]
    assert contents(model) == expected


def test_run_that_is_stopped_again_and_again_arrives(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    model, runs = tmp_path / "model", 0
    while not model.exists():
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 5, KeyboardInterrupt())
            try:
                quantize(source, model, num_threads=1 + runs % 3)
            except KeyboardInterrupt:
                runs += 1
    assert runs == 5
    assert contents(model) == expected


@pytest.mark.parametrize(("num_threads", "block_bytes"), [(1, 32 << 10), (2, 16 << 20), (3, 1), (16, 64 << 10)])
def test_bytes_depend_neither_on_threads_nor_on_blocks(
    source: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    num_threads: int,
    block_bytes: int,
) -> None:
    monkeypatch.setattr(slabs, "MAX_BLOCK_BYTES", block_bytes)
    quantize(source, tmp_path / "model", num_threads=num_threads)
    assert contents(tmp_path / "model") == expected


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_failing_disk_keeps_the_work_and_says_so(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    write, left, said = os.write, [300_000], list[str]()

    def failing(descriptor: int, data: bytes) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(error, os.strerror(error))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(QuantizeError, match="[Nn]o space left" if error == errno.ENOSPC else "cannot be written"):
        quantize(source, tmp_path / "model", on_notice=said.append)
    monkeypatch.undo()
    assert "the same command continues" in said[0]
    resumed, _ = resume(source, tmp_path / "model")
    assert "continues at" in resumed[0]
    assert contents(tmp_path / "model") == expected


def weights_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial") / "folder" / "model.safetensors"


def test_damaged_slab_is_found_and_done_again(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    model = tmp_path / "model"
    interrupt(source, model, 20)
    data = bytearray(weights_of(model).read_bytes())
    data[len(data) // 2] ^= 1
    weights_of(model).write_bytes(data)

    said, _ = resume(source, model)

    assert "damaged since it was written; redone from there" in said[0]
    assert "continues at" in said[1]
    assert contents(model) == expected


def test_cut_and_missing_weights_are_found_and_done_again(
    source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    model = tmp_path / "model"
    interrupt(source, model, 20)
    os.truncate(weights_of(model), weights_of(model).stat().st_size // 3)
    interrupt(source, model, 3)
    weights_of(model).unlink()
    said, _ = resume(source, model)
    assert "damaged since it was written" in said[0]
    assert contents(model) == expected


def test_journal_is_believed_up_to_its_first_damaged_line(
    source: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    model, journal = tmp_path / "model", tmp_path / ".model.partial" / JOURNAL_FILE
    interrupt(source, model, 20)
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    said, _ = resume(source, model)
    assert "journal: damaged from line" in said[0]
    assert "continues at" in said[1]
    assert contents(model) == expected


@pytest.mark.parametrize("cut", [1, 30])
def test_unfinished_last_line_is_no_damage(source: Path, tmp_path: Path, expected: dict[str, bytes], cut: int) -> None:
    model, journal = tmp_path / "model", tmp_path / ".model.partial" / JOURNAL_FILE
    interrupt(source, model, 20)
    os.truncate(journal, journal.stat().st_size - cut)
    said, _ = resume(source, model)
    assert len(said) == 1
    assert "continues at" in said[0]
    assert contents(model) == expected


def damage_plan(source: Path, partial: Path, patch: pytest.MonkeyPatch) -> None:
    (partial / PLAN_FILE).write_bytes((partial / PLAN_FILE).read_bytes()[:-50])


def change_weights(source: Path, partial: Path, patch: pytest.MonkeyPatch) -> None:
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


def another_version(source: Path, partial: Path, patch: pytest.MonkeyPatch) -> None:
    plan = json.loads((partial / PLAN_FILE).read_bytes())
    plan["quantizer"]["code_sha256"] = "0" * 64
    (partial / PLAN_FILE).write_text(json.dumps(plan))


def other_options(source: Path, partial: Path, patch: pytest.MonkeyPatch) -> None:
    plan = json.loads((partial / PLAN_FILE).read_bytes())
    plan["options"]["search"] = "by heart"
    (partial / PLAN_FILE).write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (damage_plan, "its plan is damaged"),
        (change_weights, "the published weights changed since"),
        (another_version, "another version of cg-local began it"),
        (other_options, "it was begun with search by heart"),
    ],
)
def test_work_that_does_not_fit_is_begun_anew_with_one_notice(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Path, pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    source = write_toy_checkpoint(tmp_path / "source", TOY, has_tokenizer=True)
    interrupt(source, tmp_path / "model", 20)
    change(source, tmp_path / ".model.partial", monkeypatch)
    said, rows = resume(source, tmp_path / "model")
    assert len(said) == 1
    assert said[0].endswith(f"unfinished work cannot be continued ({reason}); it is begun anew")
    assert rows == all_rows(source, tmp_path / "model")
    quantize(source, tmp_path / "fresh")
    assert contents(tmp_path / "model") == contents(tmp_path / "fresh")


def test_work_of_another_scheme_is_begun_anew(source: Path, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "model", 20)
    said: list[str] = []
    quantize(source, tmp_path / "model", "q8", on_notice=said.append)
    assert "(it was begun with scheme q4)" in said[0]
    assert names(tmp_path) == ["model"]


def test_restart_discards_the_work_without_a_word(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    interrupt(source, tmp_path / "model", 20)
    said, rows = resume(source, tmp_path / "model", restart=True)
    assert said == []
    assert rows == all_rows(source, tmp_path / "model")
    assert contents(tmp_path / "model") == expected


def test_work_outlives_an_interruption_before_the_journal_is_read(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(source, tmp_path / "model", 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "obstacle", lambda journal: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            quantize(source, tmp_path / "model")
    said, _ = resume(source, tmp_path / "model")
    assert "continues at" in said[0]
    assert contents(tmp_path / "model") == expected


def test_interruption_before_the_first_slab_leaves_nothing(source: Path, tmp_path: Path) -> None:
    assert interrupt(source, tmp_path / "model", 0) == []
    assert names(tmp_path) == []


def test_run_that_is_not_to_be_continued_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, tensor: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    interrupt(source, tmp_path / "model", 20)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "model", is_resumable=False, on_progress=stop)
    assert names(tmp_path) == []


def test_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = write_toy_checkpoint(tmp_path / "source", TOY, has_tokenizer=True)

    def touch(done: int, total: int, tensor: str) -> None:
        os.utime(source / "model.safetensors", ns=(1, 1))

    with pytest.raises(CheckpointError, match=r"model\.safetensors: changed while it was being quantized; run"):
        quantize(source, tmp_path / "model", on_progress=touch)
    assert names(tmp_path) == ["source"]


def test_digests_of_the_source_are_taken_from_the_journal(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(source, tmp_path / "model", 26)
    assert (tmp_path / ".model.partial" / JOURNAL_FILE).read_text().count('"source"') == 3
    monkeypatch.setattr("cg_local.quant.source_files.SourceFiles._digest", None)
    resume(source, tmp_path / "model")
    assert contents(tmp_path / "model") == expected


class LayerByLayer(SearchEncoder):
    """Takes the tensors from the last to the first, one by one, and keeps count of them in a file of its own."""

    is_sequential = True
    log: Sequence[str] = ()

    def begin(self, place: Workplace) -> None:
        self.place, self.file = place, place.folder / "count"
        self.events: list[str] = [f"begin {self.file.read_text() if self.file.exists() else 'nothing'}"]
        type(self).log = self.events

    def order(self, tensors: Sequence[TensorPlan]) -> Sequence[TensorPlan]:
        return tensors[::-1]

    def prepare(self, tensor: TensorPlan) -> None:
        self.events.append(f"prepare {tensor.name}")
        super().prepare(tensor)

    def done(self, tensor: TensorPlan) -> None:
        self.events.append(f"done {tensor.name}")
        if tensor.format != "f32":
            assert self.place.packed(tensor.name).shape == tensor.shape
        self.file.write_text(tensor.name)
        super().done(tensor)


def test_sequential_encoder_has_its_order_its_folder_and_what_is_done(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "SearchEncoder", LayerByLayer)
    quantize(source, tmp_path / "whole")
    assert contents(tmp_path / "whole") == expected
    order = [event.split()[1] for event in LayerByLayer.log if event.startswith("prepare")]
    assert LayerByLayer.log == ["begin nothing", *(f"{what} {name}" for name in order for what in ("prepare", "done"))]

    interrupt(source, tmp_path / "model", 20)
    finished = [event.split()[1] for event in LayerByLayer.log if event.startswith("done")]
    assert finished
    quantize(source, tmp_path / "model")
    assert LayerByLayer.log[0] == f"begin {finished[-1]}"
    assert LayerByLayer.log[1 : len(finished) + 1] == [f"done {name}" for name in finished]
    assert LayerByLayer.log[len(finished) + 1] == f"prepare {order[len(finished)]}"
    assert contents(tmp_path / "model") == expected
