"""`cg-local train`: one recipe's file to a model folder, going on, and errors in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import Inside

pytest.importorskip("jax")
pytest.importorskip("optax")

from cg_local.errors import TrainingError
from cg_local.training import checkpoint, plots, session, train
from cg_local.training.recipe import Recipe, load_recipe

WORDS = ("count", "total", "value", "index", "name", "first", "last", "result", "item", "other")
FUNCTION = '''def {name}_of_{other}({other}s, {name}):
    """Return the {name} of each of the {other}s."""
    {name}s = []
    for {other} in {other}s:
        if {other} > {name}:
            {name}s.append({other} - {name})
    return {name}s
'''
RECIPE = """
[corpus]
folders = ["code"]
any_licence = true
held_out_share = 0.1
[model]
vocab_size = 640
hidden_size = 256
intermediate_size = 256
num_layers = 1
[data]
files_per_block = 10
[optimizer]
warmup_steps = 5
[run]
batch_tokens = 256
sequence_lengths = [128]
checkpoint_seconds = 0.0
validation_batches = 1
total_steps = 4
"""


@pytest.fixture
def inside(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(capfdbinary, monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    for name in WORDS:
        for other in WORDS:
            (tmp_path / "code" / f"{name}_{other}.py").write_text(FUNCTION.format(name=name, other=other))
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def entries_of(run: Path, kind: str) -> list[dict[str, float]]:
    return [entry for entry in plots.read_log(run / "log.jsonl") if kind in entry]


def test_trains_draws_exports_and_goes_on(inside: Inside, tmp_path: Path, config: Path) -> None:
    done = inside.run("train", str(config), "--export", str(tmp_path / "model"), home=tmp_path)
    notices, run = done.stderr.decode(), tmp_path / "mine"
    assert done.returncode == 0, notices
    first, second = done.stdout.decode().splitlines()
    assert first.startswith(f"{run}: step 4, ")
    assert second.startswith(f"{tmp_path / 'model'}: exported, ")
    assert "reading the sources\n" in notices
    assert "training a tokenizer of 640 pieces\n" in notices
    assert "training on cpu, matrix products in float32\n" in notices
    assert {"config.json", "model.safetensors", "tokenizer.model", "README.md"} <= set(os.listdir(tmp_path / "model"))
    assert (tmp_path / "model" / "README.md").read_text().startswith("# model\n")
    assert len(entries_of(run, "validation_loss")) == 1
    if pytest.importorskip("matplotlib"):
        assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")

    again = inside.run("train", str(config), "--steps", "6", "--no-plot", home=tmp_path)
    assert "going on from step 4\n" in again.stderr.decode()
    assert "reading the sources" not in again.stderr.decode()
    assert [entry["step"] for entry in entries_of(run, "loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('folders = ["code"]', 'folders = ["none"]', "none: no such folder"),
        ("total_steps = 4", "", "no length: give --steps"),
        ("vocab_size = 640", 'vocab_size = "big"', "vocab_size in [model] is 'big'; it must be like 4096"),
        ("any_licence = true", "", "'none found'"),
        ("vocab_size = 640", "vocab_size = 300", "no tokenizer of this size can be trained on these texts"),
        ("vocab_size = 640", "vocab_size = 9000", "no tokenizer of this size can be trained on these texts"),
        ("any_licence = true", 'tokenizer = "gone.model"\nany_licence = true', "not a readable SentencePiece model"),
        ('folders = ["code"]', 'prepared = "gone"', "no prepared corpus"),
        ("[data]", "[data]\nmulti_file_rate = 2.0", "multi_file_rate is 2.0; it must be from 0 to 1"),
        ("[data]", "[fim]\nwhole_lines = 1.0\n[data]", "unknown option 'whole_lines' in [fim]"),
        ("batch_tokens = 256", "batch_tokens = 12800", "files give no batch of 100 rows of 128 tokens"),
        ("sequence_lengths = [128]", "sequence_lengths = [512]", "must have at least 64 and fit in batch_tokens"),
        ("warmup_steps = 5", 'method = "sgd"', "must be muon or adamw"),
        ("batch_tokens = 256", 'batch_tokens = 256\ncompute = "int4"', "must be auto or float32"),
    ],
)
def test_errors_are_one_line_that_names_the_place(
    inside: Inside, tmp_path: Path, config: Path, old: str, new: str, message: str
) -> None:
    config.write_text(RECIPE.replace(old, new))
    done = inside.run("train", str(config), home=tmp_path)
    last = done.stderr.decode().splitlines()[-1]
    assert (done.returncode, done.stdout) == (1, b"")
    assert last.startswith("cg-local: error: ")
    assert message in last


def test_run_needs_a_folder_of_its_own_and_one_length(inside: Inside, tmp_path: Path, config: Path) -> None:
    bare = config.rename(tmp_path / "mine")
    assert b"name the run's folder with --run" in inside.run("train", str(bare), home=tmp_path).stderr
    both = inside.run("train", str(bare), "--run", str(tmp_path / "r"), "--steps", "1", "--minutes", "1", home=tmp_path)
    assert b"give one of --steps, --minutes and --until" in both.stderr


@pytest.mark.parametrize("text", ["25:00", "noon", ""])
def test_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(TrainingError, match="not a time such as"):
        session.seconds_until(text)


def test_products_are_rounded_on_devices_only(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {}
    for backend in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr("jax.default_backend", lambda backend=backend: backend)
        names[backend] = [train.matmul_precision(compute) for compute in ("auto", "float32")]
    assert names["cpu"] == ["float32", "float32"]
    assert names["gpu"] == ["BF16_BF16_F32", "float32"]
    assert names["tpu"] == ["bfloat16", "float32"]


def test_products_of_a_gpu_step_take_bfloat16_and_sum_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    with jax.default_matmul_precision(train.matmul_precision("auto")):
        text = jax.jit(lambda x: x @ x).lower(np.ones((8, 8), np.float32)).as_text()
    assert "lhs_precision_type = bf16, rhs_precision_type = bf16, accumulation_type = f32" in text


def test_log_of_a_run_that_went_back_holds_each_step_once(tmp_path: Path) -> None:
    steps = [1, 2, 3, 2, 3, 4]
    lines = [
        json.dumps({"step": step, "loss": at, "middle_loss": 0.0, "tokens": step}) for at, step in enumerate(steps)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"step": 5, "lo']))
    entries = plots.read_log(tmp_path / "log.jsonl")
    assert [(entry["step"], entry["loss"]) for entry in entries] == [(1, 0), (2, 3), (3, 4), (4, 5)]


def test_smoothed_curve_is_the_mean_of_the_last_values() -> None:
    assert plots.smoothed([4.0, 2.0, 6.0, 8.0], 0.5) == [4.0, 3.0, 4.0, 7.0]


def session_of(config: Path, run: Path, steps: int) -> train.State:
    recipe: Recipe = load_recipe(config)
    return session.run(recipe, run, session.Length(steps=steps), lambda text: None)


@pytest.mark.slow
def test_process_killed_at_any_moment_goes_on_to_the_same_weights(tmp_path: Path, config: Path) -> None:
    whole = session_of(config, tmp_path / "whole", 40)
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "cg_local.cli", "train", str(config), "--run", str(run), "--steps", "40"]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
        before = checkpoint.latest(run)
        deadline = time.monotonic() + 120
        while checkpoint.latest(run) in (None, before) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL) if os.name == "posix" else process.kill()
        process.wait()
    resumed = session_of(config, run, 40)
    assert resumed.step == whole.step == 40
    for name, value in whole.params.items():
        assert np.array_equal(np.asarray(value), np.asarray(resumed.params[name])), name


@pytest.mark.slow
def test_loss_falls_within_a_minute_on_a_cpu(tmp_path: Path, config: Path) -> None:
    recipe = load_recipe(config)
    state = session.run(recipe, tmp_path / "run", session.Length(minutes=1.0), lambda text: None)
    losses = [entry["loss"] for entry in entries_of(tmp_path / "run", "loss")]
    assert state.step > 20
    # 640 pieces by chance cost 6.46 nats; a model that has learned the ten words and the frame needs far fewer.
    assert np.mean(losses[:3]) > 5.0
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    assert entries_of(tmp_path / "run", "validation_loss")[-1]["validation_loss"] < 0.7 * np.mean(losses[:3])
