"""What options lead to: method, pack, formats; and what is refused before any work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_quant_importance import toy_pack
from toy_models import MHA, MQA, write_toy_checkpoint, write_toy_texts

from cg_local.checkpoint import open_checkpoint
from cg_local.errors import QuantizeError
from cg_local.model_folder_writer import DISK_SLACK_BYTES
from cg_local.quant import Options, quantize
from cg_local.quant.corpora import calibration_corpus
from cg_local.quant.encoder import ImportanceEncoder, SearchEncoder
from cg_local.quant.fingerprint import fingerprint
from cg_local.quant.gptq import GptqEncoder
from cg_local.quant.importance import FILE_NAME, ImportancePack
from cg_local.quant.methods import planned, prepared, published_tokenizer, required_tokenizer
from cg_local.quant.schemes import plan_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_toy_checkpoint(tmp_path / "source", {**MQA, "num_hidden_layers": 2}, has_tokenizer=True)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_toy_texts(tmp_path / "texts")


def pack_of(source: Path, seed: int = 0) -> ImportancePack:
    return toy_pack(seed=seed, weights=fingerprint(open_checkpoint(source)))


def method_of(source: Path, options: Options) -> dict[str, object]:
    _, encoder = prepared(open_checkpoint(source), options)
    return dict(encoder.options)


def test_without_a_pack_the_method_is_fast(source: Path) -> None:
    assert method_of(source, Options()) == {"method": "fast"}


def test_a_pack_beside_the_weights_is_used(source: Path) -> None:
    pack_of(source).save(source / FILE_NAME)
    expected = {"method": "imp", "importance": toy_pack().digest}
    assert method_of(source, Options()) == expected
    assert method_of(source, Options(method="imp")) == expected
    assert method_of(source, Options(method="fast")) == {"method": "fast"}


def test_a_pack_beside_a_single_file_of_weights_is_used(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from cg_local.gguf_export import export_gguf

    (tmp_path / "one").mkdir()
    export_gguf(open_checkpoint(source), tmp_path / "one" / "toy.gguf")
    pack_of(source).save(tmp_path / "one" / FILE_NAME)
    assert method_of(tmp_path / "one" / "toy.gguf", Options())["importance"] == toy_pack().digest


def test_a_named_pack_goes_before_the_one_beside_the_weights(source: Path, tmp_path: Path) -> None:
    pack_of(source).save(source / FILE_NAME)
    pack_of(source, 1).save(tmp_path / "other")
    found = method_of(source, Options(importance=tmp_path / "other"))
    assert found == {"method": "imp", "importance": toy_pack(seed=1).digest}


def test_kinds_of_encoders(source: Path, texts: Path) -> None:
    pack_of(source).save(source / FILE_NAME)
    checkpoint, corpus = open_checkpoint(source), {"corpus": [texts], "calibration_tokens": 200, "window_tokens": 64}
    kinds = {
        method: type(prepared(checkpoint, Options(method=method, **corpus))[1])  # type: ignore[arg-type]
        for method in ("fast", "imp", "gptq")
    }
    assert kinds == {"fast": SearchEncoder, "imp": ImportanceEncoder, "gptq": GptqEncoder}


def test_notices_come_before_the_work(source: Path, tmp_path: Path) -> None:
    toy_pack().save(source / FILE_NAME)
    events = list[str]()
    quantize(source, tmp_path / "out", on_notice=events.append, on_progress=lambda done, total, name: events.append(""))
    assert "left aside" in events[0]
    assert set(events[1:]) == {""}


def test_what_was_done_is_recorded_in_the_model(source: Path, tmp_path: Path) -> None:
    from cg_local.model_folder import METADATA_KEY
    from cg_local.safetensors_file import SafetensorsFile

    pack_of(source).save(source / FILE_NAME)
    quantize(source, tmp_path / "model", "q4s")
    told = json.loads(SafetensorsFile(tmp_path / "model" / "model.safetensors", QuantizeError).metadata[METADATA_KEY])
    expected = {"scheme": "q4s", "method": "imp", "importance": toy_pack().digest}
    assert told["quantizer"]["options"] == expected


def test_a_copy_has_no_method_and_needs_no_pack(source: Path) -> None:
    (source / FILE_NAME).write_bytes(b"nonsense")
    for method in (None, "fast", "imp", "gptq"):
        plan, encoder = prepared(open_checkpoint(source), Options("bf16", method))
        assert (plan.notices, encoder.options, encoder.workspace_bytes) == ((), {}, 0)


def test_disk_must_hold_the_stream_of_gptq_too(
    source: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options("q4", "gptq", corpus=[texts], calibration_tokens=200, window_tokens=64)
    checkpoint = open_checkpoint(source)
    plan, encoder = prepared(checkpoint, options)
    tokenizer = published_tokenizer(checkpoint)
    num_tokens = calibration_corpus(tokenizer, [texts], num_tokens=200, window_tokens=64).num_tokens
    assert encoder.workspace_bytes == 3 * num_tokens * 256 * 4
    needed = plan.num_bytes + encoder.workspace_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    with pytest.raises(QuantizeError, match=rf"{needed:,} bytes free, {needed + DISK_SLACK_BYTES:,} needed; make room"):
        quantize(source, tmp_path / "out", options)


@pytest.mark.parametrize("bits", [None, 5.0])
def test_a_pack_of_other_weights_is_refused_where_asked_for_and_else_left_aside(
    source: Path, tmp_path: Path, bits: float | None
) -> None:
    other = write_toy_checkpoint(tmp_path / "other", seed=1)
    pack_of(other).save(source / FILE_NAME)
    checkpoint, reason = open_checkpoint(source), "it was made for other weights of the same shape"
    for wanted in (Options(method="imp"), Options(importance=source / FILE_NAME)):
        with pytest.raises(QuantizeError) as caught:
            prepared(checkpoint, replace(wanted, bits_per_weight=bits))
        assert str(caught.value).startswith(f"{source / FILE_NAME}: {reason}")
        assert str(caught.value).endswith(f"; make one of {source} with `cg-local calibrate`, or pass --method fast")
    plan, encoder = prepared(checkpoint, Options(bits_per_weight=bits))
    assert encoder.options == {"method": "fast"}
    assert [text for text in plan.notices if text.startswith(f"{source / FILE_NAME}: left aside: {reason}")]
    assert plan.notices == planned(checkpoint, Options(bits_per_weight=bits)).notices
    assert plan.tensors == prepared(checkpoint, Options(method="fast", bits_per_weight=bits))[0].tensors


@pytest.mark.parametrize("ask", [planned, prepared])
def test_what_cannot_be_is_one_clear_line(ask: Callable[..., object], source: Path, tmp_path: Path) -> None:
    def refusal(options: Options) -> str:
        with pytest.raises(QuantizeError) as caught:
            ask(open_checkpoint(source), options)
        return str(caught.value)

    assert refusal(Options(method="best")) == "unknown method 'best'; known are fast, imp, gptq"
    assert refusal(Options("q5")) == "unknown scheme 'q5'; known are q4, q4s, q8, bf16"
    assert refusal(Options(method="imp")) == (
        f"{source / FILE_NAME}: no such file; make it with `cg-local calibrate`, name one with --importance, or pass "
        "--method fast"
    )
    assert refusal(Options(method="fast", importance=tmp_path / "pack")) == (
        "the method fast rounds without an importance pack; leave one of the two out"
    )
    assert refusal(Options(importance=tmp_path / "none")).startswith(f"{tmp_path / 'none'}: ")
    toy_pack(MHA).save(source / FILE_NAME)
    assert refusal(Options(method="imp")).startswith(f"{source / FILE_NAME}: it was made for another model: ")
    (source / FILE_NAME).write_bytes(b"nonsense")
    assert refusal(Options()).startswith(f"{source / FILE_NAME}: ")
    assert refusal(Options(bits_per_weight=2.0, method="fast")) == "2 bits a weight; give 3 to 16"


def test_gptq_looks_at_a_pack_only_to_choose_formats(source: Path, texts: Path) -> None:
    (source / FILE_NAME).write_bytes(b"nonsense")
    checkpoint = open_checkpoint(source)
    how = {"method": "gptq", "corpus": [texts], "calibration_tokens": 200, "window_tokens": 64}
    plan, _ = prepared(checkpoint, Options(**how))  # type: ignore[arg-type]
    assert plan == plan_checkpoint(checkpoint, "q4")
    with pytest.raises(QuantizeError, match="importance"):
        prepared(checkpoint, Options(bits_per_weight=4.6, **how))  # type: ignore[arg-type]


def test_plan_by_a_scheme_loads_no_numba(source: Path) -> None:
    pack_of(source).save(source / FILE_NAME)
    code = f"""
import sys
from pathlib import Path
from cg_local import quant
plan = quant.plan(Path({str(source)!r}), quant.Options("q4s", "imp"))
print(plan.scheme, sorted(name for name in sys.modules if name.split(".")[0] in ("numba", "llvmlite")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "q4s []\n"


def test_missing_tokenizer_is_told(tmp_path: Path) -> None:
    source = write_toy_checkpoint(tmp_path / "source")
    with pytest.raises(QuantizeError, match=r"source: tokenizer\.model is missing; download it"):
        required_tokenizer(open_checkpoint(source))
    with pytest.raises(QuantizeError, match=r"tokenizer\.model is missing"):
        prepared(open_checkpoint(source), Options(method="gptq"))
