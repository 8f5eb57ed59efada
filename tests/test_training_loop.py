"""The JAX model against transformers, document masks, exact resumption, the schedule and the export."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("optax")
import jax.numpy as jnp  # noqa: E402

from cg_local import reference  # noqa: E402
from cg_local.errors import TrainingError  # noqa: E402
from cg_local.training import checkpoint, export, fim, model, optimizer, packing, prepare, recipe, segments, train  # noqa: E402

ARCH = model.Architecture(vocab_size=512, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=2)
TINY = recipe.Recipe(
    ARCH, prepare.CorpusRecipe(), packing.DataRecipe(fim.FimRecipe(), files_per_block=2),
    optimizer.OptimizerRecipe(warmup_steps=2),
    recipe.RunRecipe(
        batch_tokens=256, sequence_lengths=(128,), checkpoint_seconds=1e9, validation_seconds=1e9, validation_batches=0
    ),
)  # fmt: skip


logits = jax.jit(lambda params, ids: model.logits(params, ARCH, ids))


def encode(text: str) -> list[int]:
    return [256 + ord(char) % 128 for char in text]


def stream() -> packing.BatchStream:
    source = "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n"
    return packing.BatchStream(
        [segments.outline("own", f"{i}.py", source, encode, 99) for i in range(8)], encode, TINY.data, 0
    )


def trainer(folder: Path, total_steps: int) -> train.Trainer:
    return train.Trainer(TINY, folder, stream(), stream(), train.Clock(total_steps, lambda: 0.0))


def random_params() -> model.Params:
    """Weights with norms away from 0, so that a wrong norm shows."""
    rng = np.random.default_rng(0)
    params = model.initial_params(ARCH, 0)
    return {name: value + 0.1 * rng.normal(size=value.shape) * name.endswith("norm") for name, value in params.items()}


def test_packed_documents_do_not_see_each_other() -> None:
    params, rng = random_params(), np.random.default_rng(1)
    first, second = (rng.integers(0, 512, size) for size in (70, 58))
    row = np.concatenate([first, second])[None]
    document_ids = np.repeat([1, 2], [70, 58])[None]
    positions = np.concatenate([np.arange(70), np.arange(58)])[None]
    hidden = jax.jit(lambda ids, documents, at: model.hidden_states(params, ARCH, ids, documents, at, chunk=32))(
        row, document_ids, positions
    )
    packed = np.asarray(hidden @ params["embedding"].T)[0]
    for part, ids in ((packed[:70], first), (packed[70:], second)):
        np.testing.assert_allclose(part, logits(params, jnp.asarray(ids[None]))[0], atol=2e-5)


def test_batch_losses_are_the_cross_entropy_of_the_next_token() -> None:
    params, ids = random_params(), np.random.default_rng(2).integers(0, 512, (1, 64))
    scores = np.asarray(logits(params, jnp.asarray(ids)), np.float64)[0]
    expected = np.log(np.exp(scores).sum(-1))[:-1] - scores[np.arange(63), ids[0, 1:]]
    losses = jax.jit(lambda *arrays: model.batch_losses(params, ARCH, *arrays))(
        ids, np.ones_like(ids), np.arange(64)[None]
    )
    np.testing.assert_allclose(np.asarray(losses)[0, :-1], expected, atol=1e-4)


def assert_same_weights(one: train.State, other: train.State) -> None:
    for kind in ("params", "average"):
        for name, value in getattr(one, kind).items():
            assert np.array_equal(np.asarray(value), np.asarray(getattr(other, kind)[name])), (kind, name)


def test_killed_run_goes_on_from_its_checkpoint_to_bit_identical_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(tmp_path / "whole", 6).run()
    first = trainer(tmp_path / "cut", 6)
    take_step = first.take_step

    def step_and_die(batch: packing.Batch, begin: float, waited: float) -> None:
        if first.state.step == 4:
            raise SystemExit  # nothing of the run's own code may answer a kill
        take_step(batch, begin, waited)
        if first.state.step == 3:
            train.save_state(first.folder, first.state, TINY)

    monkeypatch.setattr(first, "take_step", step_and_die)
    with pytest.raises(SystemExit):
        first.run()
    again = trainer(tmp_path / "cut", 6)
    assert again.state.step == 3
    assert_same_weights(whole, again.run())


def test_interrupted_run_gives_bit_identical_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainer(tmp_path / "whole", 6).run()
    first = trainer(tmp_path / "cut", 6)
    take_step = first.take_step

    def step_and_stop(batch: packing.Batch, begin: float, waited: float) -> None:
        take_step(batch, begin, waited)
        if first.state.step == 3:
            first.stop()

    monkeypatch.setattr(first, "take_step", step_and_stop)
    assert first.run().step == 3
    resumed = trainer(tmp_path / "cut", 6).run()
    assert resumed.step == whole.step == 6
    assert resumed.position == whole.position
    assert_same_weights(whole, resumed)


def test_log_line_of_several_steps_counts_the_tokens_of_all(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 5).run()
    rare = replace(TINY, run=replace(TINY.run, log_steps=3))
    run = train.Trainer(rare, tmp_path / "rare", stream(), stream(), train.Clock(5, lambda: 0.0))
    state = run.run()
    lines = [json.loads(line) for line in (tmp_path / "rare" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 5]
    assert state.tokens == whole.tokens == lines[-1]["tokens"]
    assert_same_weights(whole, state)


def test_time_of_the_device_is_counted_where_steps_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train.Trainer(
        replace(TINY, run=replace(TINY.run, log_steps=4)),
        tmp_path / "run", stream(), stream(), train.Clock(6, lambda: 0.0),
    )  # fmt: skip
    device_get = jax.device_get

    def slow(figures: object) -> object:
        time.sleep(0.2)
        return device_get(figures)

    monkeypatch.setattr(jax, "device_get", slow)
    elapsed = run.run().elapsed
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    counts = [4, 2]
    assert [line["step"] for line in lines] == [4, 6]
    assert all(line["seconds"] >= 0.2 / count for line, count in zip(lines, counts, strict=True))
    told = sum(line["seconds"] * count for line, count in zip(lines, counts, strict=True))
    assert elapsed == pytest.approx(told, abs=0.01)
    assert run.clock.elapsed == elapsed


@pytest.mark.parametrize("is_stopped", [True, False])
def test_stop_that_ends_the_makers_of_batches_too_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    run = trainer(tmp_path / "run", 100)
    batches = run.batches()

    def ending() -> Iterator[packing.Batch]:
        yield next(batches)
        if is_stopped:
            run.stop()  # while the trainer waits
        raise TrainingError("a process that makes batches has ended")

    monkeypatch.setattr(run, "batches", ending)
    if not is_stopped:
        with pytest.raises(TrainingError, match="has ended"):
            run.run()
        return
    state = run.run()
    newest = train.checkpoints.latest(tmp_path / "run")
    assert newest is not None
    assert train.restore_state(newest, state).step == 1


def test_run_cut_where_the_row_length_changes_goes_on_as_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(TINY.run, sequence_lengths=(128, 256), length_starts=(0.0, 0.5))

    def session(folder: Path) -> train.Trainer:
        made = train.Trainer(replace(TINY, run=run), folder, stream(), stream(), train.Clock(6, lambda: 0.0))
        figures = dict.fromkeys(("loss", "middle_loss", "tokens", "gradient_norm"), 1.0)
        monkeypatch.setattr(made, "step_function", lambda params, state, mean, *rest: (params, state, mean, figures))
        return made

    whole = session(tmp_path / "whole").run()
    first = session(tmp_path / "cut")
    take_step = first.take_step

    def step_and_stop(*arguments: object) -> None:
        take_step(*arguments)
        if first.state.step == 3:
            first.stop()

    monkeypatch.setattr(first, "take_step", step_and_stop)
    assert first.run().step == 3

    assert session(tmp_path / "cut").run().position == whole.position


def test_row_length_grows_with_the_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(TINY.run, sequence_lengths=(128, 256), length_starts=(0.0, 0.5))
    session = train.Trainer(replace(TINY, run=run), tmp_path, stream(), stream(), train.Clock(6, lambda: 0.0))
    shapes = []

    def count_only(
        params: object, state: object, mean: object, arrays: tuple[np.ndarray, ...], factor: object, share: object
    ) -> tuple[object, ...]:
        shapes.append(arrays[0].shape)
        return params, state, mean, dict.fromkeys(("loss", "middle_loss", "tokens", "gradient_norm"), 1.0)

    monkeypatch.setattr(session, "step_function", count_only)
    session.run()
    assert shapes == [(2, 128)] * 3 + [(1, 256)] * 3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, model.Params]:
    folder = tmp_path_factory.mktemp("export")
    state = trainer(folder / "run", 2).run()
    (folder / "tokenizer.model").write_bytes(b"tokenizer")
    sources = {
        "sources": [{"name": "own", "version": "1", "licence": "MIT", "files": 8, "bytes": 9}],
        "dropped": {},
        "held_out": [],
    }
    (folder / "sources.json").write_text(json.dumps(sources))
    export.export(folder / "run", folder / "out", folder, folder / "tokenizer.model")
    return folder / "out", state.params


def rounded_logits(params: model.Params, ids: np.ndarray) -> np.ndarray:
    """Logits of one sequence by the training model, weights rounded to bfloat16 as the export rounds them."""
    rounded = {name: jnp.asarray(value.astype(jnp.bfloat16), jnp.float32) for name, value in params.items()}
    return np.asarray(logits(rounded, jnp.asarray(ids[None]))[0])


def test_reference_computes_the_same_logits_from_the_export(exported: tuple[Path, model.Params]) -> None:
    folder, params = exported
    ids = np.random.default_rng(3).integers(0, 512, 48)
    np.testing.assert_allclose(rounded_logits(params, ids), reference.logits(folder, ids.tolist()), atol=1e-4)


@pytest.mark.transformers
def test_transformers_computes_the_same_logits_from_the_export(exported: tuple[Path, model.Params]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, params = exported
    published = transformers.GemmaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = np.random.default_rng(3).integers(0, 512, 48)
    with torch.no_grad():
        expected = published(torch.from_numpy(ids[None])).logits.numpy()[0]
    np.testing.assert_allclose(rounded_logits(params, ids), expected, atol=1e-4)


def test_export_names_every_tensor_as_published(exported: tuple[Path, model.Params]) -> None:
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(exported[0] / "model.safetensors", "np") as file:
        names = set(file.keys())
    assert len(names) == 9 * ARCH.num_layers + 2
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.1.post_attention_layernorm.weight"} <= names
    assert "| own | 1 | MIT |" in (exported[0] / "README.md").read_text()


def test_rate_rises_stays_and_falls_to_zero() -> None:
    plan = optimizer.OptimizerRecipe(warmup_steps=10, decay_share=0.25)
    factors = [optimizer.rate_factor(plan, step, step / 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[10:75]) == {1.0}
    assert factors[75:] == sorted(factors[75:], reverse=True)
    assert factors[100] == 0.0


def test_clock_by_time_counts_training_seconds_only() -> None:
    clock = train.Clock(None, lambda: 300.0, elapsed=100.0)
    assert clock.progress(5) == pytest.approx(0.25)
    assert train.Clock(None, lambda: -1.0, elapsed=100.0).progress(5) == 1.0


def test_checkpoint_that_is_cut_is_refused_by_name(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, checkpoint.Checkpoint({"a": np.arange(9)}, {"step": 7}))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"step-0000007\.npz: not a readable checkpoint"):
        checkpoint.load(path)


def test_checkpoint_folder_keeps_the_newest_only(tmp_path: Path) -> None:
    for step in range(5):
        checkpoint.save(tmp_path, step, checkpoint.Checkpoint({}, {}), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000003.npz", "step-0000004.npz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nsteps = 3\n", "unknown option 'steps'"),
        ("[runs]\n", "unknown table 'runs'"),
        ("[model]\nhidden_size = 300\n", "multiple of 256"),
    ],
)
def test_recipe_refuses_what_it_does_not_know(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=message):
        recipe.load_recipe(path)


def test_committed_recipe_is_readable() -> None:
    nano = recipe.load_recipe(Path(train.__file__).with_name("nano.toml"))
    assert nano.data.fim.fim_rate == 0.9
    assert nano.model.vocab_size == 4096
