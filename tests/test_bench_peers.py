"""The peers: their files, their programs, and (live, `-m peers`) that llama.cpp computes what the reference does.

CG_LOCAL_PEER_PYTHON names an interpreter that has llama-cpp-python; default: the one that runs the tests.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cg_local import reference
from cg_local.bench import peers
from cg_local.bench.engines import LlamaBench, Load, llama_engine
from cg_local.bench.peers import check_sources, llama_worker, make_peer_files, peer_file
from cg_local.checkpoint import open_checkpoint
from cg_local.config import SamplingParams
from cg_local.errors import BenchmarkError
from cg_local.gguf_export import SOURCES_KEY, export_gguf
from cg_local.model_folder import open_model_folder
from cg_local.models import embedded_checkpoint
from cg_local.tokenizer import Tokenizer

PEER_PYTHON = os.environ.get("CG_LOCAL_PEER_PYTHON", sys.executable)
PROMPTS = (
    "import os\n\n\ndef read_lines(path):\n    with open(path) as file:\n        ",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, ",
    "for name in sorted(names):\n    if ",
    "def test_addition():\n    assert ",
    '"""Reads a configuration."""\n\nfrom __future__ import annotations\n\nimport ',
)
LOAD = Load(num_threads=2, max_context=64, num_pages=4)

# Answers as llama_worker does; "quantizes" by copying the name of the type behind the file.
FAKE_WORKER = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    do = request.pop("do")
    if do == "quantize":
        with open(request["source"], "rb") as source, open(request["destination"], "wb") as file:
            file.write(source.read(4) + request["file_type"].encode())
    answers = {
        "load": {"seconds": 0.25, "version": {"fake": 1}, "sources": None},
        "prefill": {"seconds": 0.5},
        "decode": {"seconds": [0.1] * request.get("new_tokens", 0)},
        "memory": {"peak_resident_bytes": 7},
    }
    print(json.dumps(answers.get(do, {})), flush=True)
"""

# Prints a result as llama-bench does: 1 ms a token, 1 us more for each token of context.
FAKE_LLAMA_BENCH = """#!{python}
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "broken" in options["-m"]:
    sys.exit("error: failed to load model")
tokens = int(options["-p"]) + int(options["-n"])
assert (options["-fa"], options["-o"], options["-t"]) == ("1", "json", "2")
print(json.dumps([{{"avg_ns": tokens * (1000000 + 1000 * int(options["-d"]))}}]))
"""


@pytest.fixture
def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a fake in the place of llama_worker; gives the interpreter."""
    script = tmp_path / "fake_worker.py"
    script.write_text(FAKE_WORKER)
    monkeypatch.setattr(peers, "LLAMA_WORKER", script)
    return sys.executable


def test_files_are_found_by_the_end_of_their_names(tmp_path: Path) -> None:
    assert peer_file(tmp_path, "Q4_0") == tmp_path / "model-q4_0.gguf"
    (tmp_path / "codegemma-2b-Q4_0.gguf").touch()
    (tmp_path / "codegemma-2b-Q4_K_M.gguf").touch()
    assert peer_file(tmp_path, "Q4_0") == tmp_path / "codegemma-2b-Q4_0.gguf"
    assert peer_file(tmp_path, "Q4_K_M") == tmp_path / "codegemma-2b-Q4_K_M.gguf"


def test_missing_files_are_made_and_the_unquantized_one_is_removed(
    toy_checkpoint: Callable[[str], Path], tmp_path: Path, fake_worker: str
) -> None:
    pytest.importorskip("gguf")
    folder, told = tmp_path / "gguf", []
    make_peer_files(toy_checkpoint("mqa"), folder, ("Q4_0",), fake_worker, say=told.append)
    make_peer_files(toy_checkpoint("mqa"), folder, ("Q4_0", "Q8_0"), fake_worker, say=told.append)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "model-q4_0.gguf": b"GGUFq4_0",
        "model-q8_0.gguf": b"GGUFq8_0",
    }
    assert [text for text in told if text.startswith("quantizing")] == [
        "quantizing mqa to Q4_0",
        "quantizing mqa to Q8_0",
    ]


def test_files_of_other_weights_are_refused() -> None:
    ours = {"model.safetensors": {"sha256": "ab", "bytes": 1}, "config.json": {"sha256": "x"}}
    same = json.dumps({"model.safetensors": "ab", "config.json": "y"})
    assert check_sources(Path("a.gguf"), same, ours) is None
    assert "does not say" in str(check_sources(Path("a.gguf"), None, ours))
    assert "does not say" in str(check_sources(Path("a.gguf"), same, None))
    with pytest.raises(BenchmarkError, match="made from other weights"):
        check_sources(Path("a.gguf"), json.dumps({"model.safetensors": "cd"}), ours)


def test_peer_in_a_worker_gives_timed_records(tmp_path: Path, fake_worker: str) -> None:
    engine = llama_engine("Q4_0", tmp_path / "a.gguf", fake_worker, 2048)
    try:
        assert (engine.name, engine.max_tokens) == ("llama.cpp Q4_0", 2048)
        assert engine.load(LOAD)["seconds"] == 0.25
        assert engine.prefill([2, 3, 4]) == {"tokens": 3, "seconds": [0.5]}
        assert engine.decode([2], 2) == {"tokens": 2, "seconds": [0.1, 0.1]}
        assert engine.memory() == {"peak_resident_bytes": 7}
    finally:
        engine.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a script as a program")
def test_llama_bench_is_asked_for_prompts_and_single_tokens(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_text(FAKE_LLAMA_BENCH.format(python=sys.executable))
    program.chmod(0o755)
    engine = LlamaBench("Q4_0", tmp_path / "a.gguf", str(program), None)
    engine.load(LOAD)

    assert engine.prefill([2] * 512) == {"tokens": 512, "seconds": [pytest.approx(0.512)]}
    assert engine.decode([2] * 1000, 8) == {"tokens": 8, "seconds": [pytest.approx(0.016)]}
    assert engine.decode([2], 8)["seconds"] == [pytest.approx(0.008)]
    broken = LlamaBench("Q4_0", tmp_path / "broken.gguf", str(program), None)
    broken.load(LOAD)
    with pytest.raises(BenchmarkError, match="status 1: error: failed to load model"):
        broken.prefill([2])
    with pytest.raises(BenchmarkError, match="no result"):
        LlamaBench("Q4_0", tmp_path / "a.gguf", str(tmp_path / "none"), None).prefill([2])


@pytest.mark.peers
@pytest.mark.parametrize("family", ["mqa", "mha", "nano"])
def test_llama_cpp_computes_what_the_reference_computes(
    toy_checkpoint: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    folder = embedded_checkpoint("nano") if family == "nano" else toy_checkpoint(family)
    export_gguf(open_checkpoint(folder), tmp_path / "exact.gguf", is_widened=True)
    token_ids = [2, *np.random.default_rng(0).integers(217, 700, 95).tolist()]
    with llama_worker(PEER_PYTHON) as worker:
        loaded = worker.ask("load", model=str(tmp_path / "exact.gguf"), num_threads=2, max_context=128, is_exact=True)
        shape = worker.ask("logits", token_ids=token_ids, destination=str(tmp_path / "logits"))["shape"]
    found = np.fromfile(tmp_path / "logits", "<f4").reshape(shape).astype(np.float64)
    expected = reference.logits(folder, token_ids).astype(np.float64)

    assert SOURCES_KEY in open_and_list(tmp_path / "exact.gguf")
    assert loaded["sources"] is not None
    # llama.cpp computes GELU through a table of float16: relative errors of 2**-11 in the activations.
    assert np.abs(found - expected).max() < 2e-3 * (expected.max() - expected.min())
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    log_found, log_expected = log_softmax(found), log_softmax(expected)
    divergence = (np.exp(log_expected) * (log_expected - log_found)).sum(axis=1)
    assert divergence.mean() < 1e-5


@pytest.mark.peers
def test_logits_of_a_whole_prompt_are_those_of_its_tokens_one_by_one(tmp_path: Path) -> None:
    export_gguf(open_checkpoint(embedded_checkpoint("nano")), tmp_path / "exact.gguf", is_widened=True)
    token_ids = [2, *np.random.default_rng(0).integers(217, 4000, 599).tolist()]  # more than a batch
    with llama_worker(PEER_PYTHON) as worker:
        where = {"destination": str(tmp_path / "logits"), "token_ids": token_ids}
        worker.ask("load", model=str(tmp_path / "exact.gguf"), num_threads=2, max_context=640, is_exact=True)
        shape = worker.ask("logits", **where)["shape"]
        expected = np.fromfile(tmp_path / "logits", "<f4").reshape(shape)
        for first in (0, 511, 512, 598):
            shape = worker.ask("batch_logits", **where, first=first)["shape"]
            found = np.fromfile(tmp_path / "logits", "<f4").reshape(shape)
            assert found.shape == expected[first:].shape
            # Matrices of several tokens are multiplied by other kernels, in another order of sums.
            assert np.abs(found - expected[first:]).max() < 2e-3 * np.ptp(expected)
        worker.ask("load", model=str(tmp_path / "exact.gguf"), num_threads=2, max_context=640, kv_type="q8_0")
        shape = worker.ask("batch_logits", **where, first=0)["shape"]
    rounded = np.fromfile(tmp_path / "logits", "<f4").reshape(shape)
    assert 0 < np.abs(rounded - expected).max() < 0.1 * np.ptp(expected)


@pytest.mark.peers
def test_importance_changes_what_is_rounded_and_by_how_much(tmp_path: Path) -> None:
    nano = embedded_checkpoint("nano")
    name, column = "model.layers.1.mlp.up_proj.weight", 5
    weights = np.ones(open_checkpoint(nano).shape(name)[1], np.float32)
    weights[column] = 1000
    np.savez(tmp_path / "importance.npz", **{"blk.1.ffn_up.weight": weights})
    found = {}
    for importance in (None, tmp_path / "importance.npz"):
        folder = tmp_path / str(importance is None)
        make_peer_files(nano, folder, ("Q4_0",), PEER_PYTHON, say=lambda text: None, importance=importance)
        found[importance is None] = open_checkpoint(peer_file(folder, "Q4_0"))
    exact = open_checkpoint(nano).tensor(name)
    plain, weighted = (np.square(found[key].tensor(name) - exact).sum(axis=0) for key in (True, False))
    assert weighted[column] < 0.5 * plain[column]
    other = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(found[True].tensor(other), found[False].tensor(other))


@pytest.mark.peers
def test_llama_cpp_splits_text_into_the_tokenizers_ids(tmp_path: Path) -> None:
    folder = embedded_checkpoint("nano")
    export_gguf(open_checkpoint(folder), tmp_path / "nano.gguf")
    text = "def f(a,  b):\n\n\treturn a <= b  # \u00e9\u4e16\n    <table>x</table>"
    with llama_worker(PEER_PYTHON) as worker:
        worker.ask("load", model=str(tmp_path / "nano.gguf"), num_threads=1, max_context=64)
        found = worker.ask("tokenize", text=text)["token_ids"]
    assert found == Tokenizer.from_file(folder / "tokenizer.model").encode(text)


@pytest.mark.peers
def test_quantized_files_hold_the_model_folders_sources(tmp_path: Path) -> None:
    from cg_local.quant import quantize

    quantize(embedded_checkpoint("nano"), tmp_path / "q4", "q4")
    make_peer_files(embedded_checkpoint("nano"), tmp_path, ("Q4_0",), PEER_PYTHON, say=lambda text: None)
    with llama_worker(PEER_PYTHON) as worker:
        file = peer_file(tmp_path, "Q4_0")
        recorded = worker.ask("load", model=str(file), num_threads=1, max_context=64)["sources"]
    assert check_sources(file, recorded, open_model_folder(tmp_path / "q4").metadata["sources"]) is None


@pytest.mark.peers
def test_imported_file_has_the_logits_that_llama_cpp_computes(tmp_path: Path) -> None:
    nano = embedded_checkpoint("nano")
    export_gguf(open_checkpoint(nano), tmp_path / "nano.gguf", is_widened=True)
    imported = open_checkpoint(tmp_path / "nano.gguf")
    token_ids = [2, *Tokenizer.from_file(nano / "tokenizer.model").encode(PROMPTS[0] * 3)]
    with llama_worker(PEER_PYTHON) as worker:
        worker.ask("load", model=str(imported.path), num_threads=2, max_context=512, is_exact=True)
        shape = worker.ask("logits", token_ids=token_ids, destination=str(tmp_path / "logits"))["shape"]
    found = np.fromfile(tmp_path / "logits", "<f4").reshape(shape).astype(np.float64)
    ours = reference.logits(imported, token_ids)

    assert np.array_equal(ours, reference.logits(nano, token_ids))
    largest = np.abs(found - ours).max() / (ours.max() - ours.min())
    log_ours, log_found = log_softmax(ours.astype(np.float64)), log_softmax(found)
    divergence = (np.exp(log_ours) * (log_ours - log_found)).sum(axis=1).mean()
    print(f"{len(token_ids)} tokens: largest difference {largest:.2e} of the logits' range, KL {divergence:.2e}")
    # llama.cpp computes GELU through a table of float16: relative errors of 2**-11 in the activations.
    assert largest < 2e-3
    assert divergence < 1e-5
    assert np.array_equal(found.argmax(axis=1), ours.argmax(axis=1))


@pytest.mark.peers
def test_exported_file_says_in_llama_cpp_what_cg_local_says(tmp_path: Path) -> None:
    import cg_local
    from cg_local.quant import quantize

    nano = embedded_checkpoint("nano")
    export_gguf(open_checkpoint(nano), tmp_path / "nano.gguf", is_widened=True)
    quantize(tmp_path / "nano.gguf", tmp_path / "nano", "bf16")
    model = cg_local.load(tmp_path / "nano")
    with llama_worker(PEER_PYTHON) as worker:
        worker.ask("load", model=str(tmp_path / "nano.gguf"), num_threads=2, max_context=256, is_exact=True)
        for prompt in PROMPTS:
            theirs = greedy(worker, model.tokenizer, prompt, 24, tmp_path / "logits")
            ours = model.complete(prompt, params=SamplingParams(max_tokens=24)).text
            assert theirs == ours
            assert ours


def greedy(worker: Any, tokenizer: Tokenizer, prompt: str, num_tokens: int, scratch: Path) -> str:
    """Return the most probable text that llama.cpp finds, token by token, from the ids that it makes of the prompt."""
    token_ids = [2, *worker.ask("tokenize", text=prompt)["token_ids"]]
    first = len(token_ids)
    for _ in range(num_tokens):
        shape = worker.ask("logits", token_ids=token_ids, destination=str(scratch))["shape"]
        following = int(np.fromfile(scratch, "<f4").reshape(shape)[-1].argmax())
        if following in tokenizer.infill_stop_ids:
            break
        token_ids.append(following)
    return tokenizer.decode(token_ids[first:])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return natural logarithms of probabilities, row by row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def open_and_list(path: Path) -> set[str]:
    """Return the keys of a GGUF file's metadata."""
    import gguf

    return set(gguf.GGUFReader(path).fields)
