"""`cg-local quantize`: what it prints, what it refuses, and that the result is a model folder."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Inside
from test_quant_importance import toy_pack
from toy_models import write_toy_checkpoint, write_toy_texts

from cg_local.checkpoint import open_checkpoint
from cg_local.cli.quantize_conflicts import conflict
from cg_local.errors import QuantizeError
from cg_local.model_folder import METADATA_KEY, open_model_folder
from cg_local.models import embedded_checkpoint
from cg_local.quant import Options, budget, dry_run, encoder, plan
from cg_local.quant.corpora import calibration_corpus
from cg_local.quant.dry_run import Estimate
from cg_local.quant.fingerprint import fingerprint
from cg_local.quant.importance import FILE_NAME
from cg_local.quant.journal import Journal, Slab
from cg_local.quant.schemes import QuantizationPlan
from cg_local.safetensors_file import SafetensorsFile
from cg_local.tokenizer import Tokenizer


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def source(toy_checkpoint: Callable[[str], Path]) -> str:
    return str(toy_checkpoint("mqa"))


def test_quantize_writes_a_model_folder_and_sums_it_up(inside: Inside, tmp_path: Path, source: str) -> None:
    done = inside.run("quantize", source, "out", "--scheme", "q8", "--verify", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith("out: q8, 1.3 MiB, 8.27 bits a weight, ")
    assert text.endswith(" dB; verified\n")
    assert open_model_folder(tmp_path / "out", verify=True).scheme == "q8"


def test_exact_copy_is_called_exact(inside: Inside, tmp_path: Path, source: str) -> None:
    done = inside.run("quantize", source, "out", "--scheme", "bf16", home=tmp_path)
    assert done.stdout.decode().endswith("; exact\n")


def test_dry_run_prints_the_plan_and_writes_nothing(inside: Inside, tmp_path: Path, source: str) -> None:
    done = inside.run("quantize", source, "out", "--dry-run", "--threads", "2", home=tmp_path)
    assert done.returncode == 0
    *plan, estimate = done.stdout.decode().splitlines()
    assert plan == [
        "f32         5 tensors     5.0 KiB",
        "i8g64       5 tensors   264.0 KiB",
        "c4g32      10 tensors   552.6 KiB",
        "q4         20 tensors   821.6 KiB  5.13 bits a weight",
    ]
    assert re.fullmatch(r"about \d+ s on 2 threads(, at most \d+\.\d [MG]iB of memory)?", estimate)
    assert list(tmp_path.iterdir()) == []


def test_dry_run_chooses_formats_once_and_counts_the_time_of_it(
    inside: Inside, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, choose = list[float](), budget.plan_budget

    def slow(*arguments: Any) -> QuantizationPlan:
        calls.append(1)
        time.sleep(0.2)
        return choose(*arguments)

    monkeypatch.setattr(encoder, "SAMPLE_GROUPS", 128)
    monkeypatch.setattr(budget, "plan_budget", slow)
    monkeypatch.setattr(dry_run, "_encoding_seconds", lambda *arguments: 0.0)
    done = inside.run("quantize", source, "out", "--dry-run", "--bits-per-weight", "5", home=tmp_path)
    assert (done.returncode, len(calls)) == (0, 1)
    options = Options(bits_per_weight=5.0)
    assert dry_run.measure(open_checkpoint(source), options, 1).seconds > 0.2


def test_existing_destination_is_refused_before_formats_are_chosen(
    inside: Inside, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(budget, "plan_budget")
    (tmp_path / "out").mkdir()
    for option, reason in (((), "exists; choose another"), (("--overwrite",), "not a sound model folder, so it stays")):
        done = inside.run("quantize", source, "out", "--bits-per-weight", "5", *option, home=tmp_path)
        assert (done.returncode, done.stdout) == (1, b"")
        assert reason in done.stderr.decode()
    (tmp_path / "file").write_text("")
    below = inside.run("quantize", source, "file/new/out", "--bits-per-weight", "5", home=tmp_path)
    assert below.stderr.decode().endswith("file is no folder that you may write in; choose another place\n")


def test_existing_destination_is_refused_unless_told(inside: Inside, tmp_path: Path, source: str) -> None:
    inside.run("quantize", source, "out", "--scheme", "bf16", home=tmp_path)
    done = inside.run("quantize", source, "out", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().endswith("exists; choose another folder or pass --overwrite\n")
    assert open_model_folder(tmp_path / "out").scheme == "bf16"
    assert inside.run("quantize", source, "out", "--scheme", "q8", "--overwrite", home=tmp_path).returncode == 0
    assert open_model_folder(tmp_path / "out").scheme == "q8"


def test_interrupted_run_says_where_the_work_lies_and_the_same_command_continues_it(
    inside: Inside, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, left = Journal.add, [12]

    def counting(journal: Journal, slab: Slab) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        add(journal, slab)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", counting)
        stopped = inside.run("quantize", source, "out", home=tmp_path)
    assert (stopped.returncode, stopped.stdout) == (130, b"")
    kept = r"cg-local: .*\.out\.partial: \d+\.\d MiB of work are kept; the same command continues at \d+ %, "
    assert re.fullmatch(kept + "with --restart it begins anew\n", stopped.stderr.decode())

    again = inside.run("quantize", source, "out", home=tmp_path)
    assert again.returncode == 0
    assert re.fullmatch(r"cg-local: .*out: continues at \d+ %\n", again.stderr.decode())

    left[0] = 5
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", counting)
        inside.run("quantize", source, "second", home=tmp_path)
    anew = inside.run("quantize", source, "second", "--restart", home=tmp_path)
    assert (anew.returncode, anew.stderr) == (0, b"")
    for name in ("model.safetensors", "config.json", "NOTICE", "tokenizer.model"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (64.4, "64 s"), (95, "2 min"), (3600, "60 min"), (9000, "2.5 h")]
)
def test_times_are_rounded_for_a_reader(
    inside: Inside, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch, seconds: float, text: str
) -> None:
    monkeypatch.setattr("cg_local.quant.estimate", lambda *args, **options: Estimate(plan(source), seconds, None, 1))
    done = inside.run("quantize", source, "out", "--dry-run", home=tmp_path)
    assert done.stdout.decode().endswith(f"\nabout {text} on 1 thread\n")


def test_missing_source_is_one_line(inside: Inside, tmp_path: Path) -> None:
    done = inside.run("quantize", "none", "out", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith("cg-local: error: none: no such folder")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not embedded_checkpoint("nano").joinpath("config.json").exists(), reason="nano is not here")
def test_embedded_name_can_be_quantized(inside: Inside, tmp_path: Path) -> None:
    done = inside.run("quantize", "nano", "out", "--dry-run", home=tmp_path)
    assert done.returncode == 0
    assert b"bits a weight" in done.stdout


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_toy_texts(tmp_path / "texts")


def options_of(folder: Path) -> dict[str, object]:
    """What the model says of how it was made."""
    told = json.loads(SafetensorsFile(folder / "model.safetensors", QuantizeError).metadata[METADATA_KEY])
    found: dict[str, object] = told["quantizer"]["options"]
    return found


def test_gptq_reads_the_texts_it_is_given(inside: Inside, tmp_path: Path, source: str, texts: Path) -> None:
    sizes = ("--corpus", str(texts), "--tokens", "200", "--window", "64")
    done = inside.run("quantize", source, "out", "--method", "gptq", *sizes, "--verify", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"out: q4, ")
    tokenizer = Tokenizer.from_file(Path(source) / "tokenizer.model")
    corpus = calibration_corpus(tokenizer, [texts], num_tokens=200, window_tokens=64)
    expected = {"scheme": "q4", "method": "gptq", "corpus": json.loads(json.dumps(corpus.document()))}
    assert options_of(tmp_path / "out") == expected
    dry = inside.run("quantize", source, "dry", "--method", "gptq", *sizes, "--dry-run", home=tmp_path)
    assert (dry.returncode, dry.stderr) == (0, b"")
    *_, total, estimate = dry.stdout.decode().splitlines()
    assert total.startswith("q4 ")
    assert estimate.startswith("time and memory of gptq are not estimated: ")
    few = inside.run("quantize", source, "few", "--method", "gptq", *sizes[:2], "--tokens", "99999", home=tmp_path)
    assert (few.returncode, few.stdout, few.stderr.count(b"\n")) == (1, b"", 1)
    assert b"99,999 are needed; name more files, or ask for fewer tokens" in few.stderr


def test_bits_per_weight_are_the_most_that_the_model_takes(inside: Inside, tmp_path: Path, source: str) -> None:
    done = inside.run("quantize", source, "out", "--bits-per-weight", "4.6", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    found = re.match(r"out: 4\.6bpw, .* (\d\.\d\d) bits a weight, ", done.stdout.decode())
    assert found is not None
    assert 4.4 < float(found[1]) <= 4.6
    assert open_model_folder(tmp_path / "out", verify=True).scheme == "4.6bpw"
    for bits, reason in (("2", "2 bits a weight; give 3 to 16"), ("3", "ask for more bits a weight")):
        refused = inside.run("quantize", source, "few", "--bits-per-weight", bits, home=tmp_path)
        assert (refused.returncode, refused.stdout, refused.stderr.count(b"\n")) == (1, b"", 1)
        assert refused.stderr.decode().endswith(f"{reason}\n")


def test_imp_without_a_pack_says_how_to_make_one(inside: Inside, tmp_path: Path, source: str) -> None:
    done = inside.run("quantize", source, "out", "--method", "imp", home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert b"importance.safetensors: no such file; make it with `cg-local calibrate`" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--corpus a", "--corpus does nothing without --method gptq, which alone reads texts"),
        ("--method imp --tokens 300", "--tokens does nothing without --method gptq, which alone reads texts"),
        ("--method fast --window 512", "--window does nothing without --method gptq, which alone reads texts"),
        ("--scheme q4 --bits-per-weight 4.5", "--scheme and --bits-per-weight do not go together: "),
        ("--scheme q8 --bits-per-weight 4.5", "--scheme and --bits-per-weight do not go together: "),
        ("--scheme bf16 --method imp", "--scheme bf16 and --method do not go together: "),
        ("--scheme bf16 --importance a", "--scheme bf16 and --importance do not go together: "),
        ("--method fast --importance a", "--method fast and --importance do not go together: "),
        ("--method gptq --importance a", "--importance does nothing with --method gptq, "),
    ],
)
def test_options_that_do_nothing_together_are_wrong_usage(
    inside: Inside, tmp_path: Path, source: str, arguments: str, message: str
) -> None:
    done = inside.run("quantize", source, "out", *arguments.split(), home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.decode().startswith(f"cg-local: error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_every_other_pair_of_options_goes_together() -> None:
    assert conflict(["bits_per_weight", "method", "importance", "corpus", "tokens", "window"], "gptq", "q4") is None
    assert conflict(["bits_per_weight", "importance", "verify", "overwrite"], "imp", "q4") is None
    assert conflict(["scheme", "importance"], None, "q4s") is None
    assert conflict(["scheme", "dry_run"], None, "bf16") is None
    assert conflict([], None, "q4") is None


def test_a_pack_of_other_weights_is_told_once(inside: Inside, tmp_path: Path, source: str) -> None:
    copied = write_toy_checkpoint(tmp_path / "copied", seed=1, has_tokenizer=True)
    toy_pack(weights=fingerprint(open_checkpoint(source))).save(copied / FILE_NAME)
    for option in ("--verify", "--dry-run"):
        done = inside.run("quantize", "copied", "out", option, "--scheme", "q8", home=tmp_path)
        assert done.returncode == 0
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(f"cg-local: {Path('copied', FILE_NAME)}: left aside: it was made for other weights of ")
    assert options_of(tmp_path / "out")["method"] == "fast"
