"""Tuning: the loss counts answers alone, a run resumes bit for bit, and it starts from what it is given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

jax = pytest.importorskip("jax")
pytest.importorskip("optax")

from cg_local.errors import TrainingError  # noqa: E402
from cg_local.training import checkpoint, fim, model, optimizer, packing, prepare, recipe, train  # noqa: E402
from cg_local.training.instruction import publish, tune  # noqa: E402
from cg_local.training.instruction.conversation import Conversation, Turn  # noqa: E402

ARCH = model.Architecture(vocab_size=512, intermediate_size=256, num_layers=1, num_heads=4, num_kv_heads=2)
TINY = recipe.Recipe(
    ARCH, prepare.CorpusRecipe(), packing.DataRecipe(fim.FimRecipe()), optimizer.OptimizerRecipe(warmup_steps=2),
    recipe.RunRecipe(
        batch_tokens=256, sequence_lengths=(128,), checkpoint_seconds=1e9, validation_seconds=1e9, validation_batches=0
    ),
)  # fmt: skip
TALK = [Conversation("talk", (Turn(f"say {word}", word), Turn("and now?", word * 2))) for word in "abcdefghijklmnop"]


def encode(text: str) -> list[int]:
    return [256 + ord(char) % 128 for char in text]


def stream() -> tune.ConversationStream:
    return tune.ConversationStream(TALK, encode, TINY, 0)


def tuner(folder: Path, total_steps: int) -> train.Trainer:
    clock = train.Clock(total_steps, lambda: 0.0)
    return train.Trainer(TINY, folder, stream(), stream(), clock, loss_function=tune.answer_loss)


def test_loss_is_the_mean_over_the_answers_alone() -> None:
    params = model.initial_params(ARCH, 1)
    batch = next(stream().batches(0, 2, 128))
    assert 0 < np.count_nonzero(batch.weights) < 0.5 * batch.weights.size

    loss, figures = jax.jit(lambda params, batch: tune.answer_loss(params, TINY, packing.Batch(*batch)))(
        params, train.arrays_of(batch)
    )
    losses = jax.jit(lambda params, *arrays: model.batch_losses(params, ARCH, *arrays))(
        params, batch.token_ids, batch.document_ids, batch.positions
    )

    np.testing.assert_allclose(loss, np.asarray(losses)[batch.weights > 0].mean(), rtol=1e-5)
    assert figures["answer_tokens"] == np.count_nonzero(batch.weights)


def test_stream_gives_every_conversation_once_an_epoch_and_leaves_out_long_ones() -> None:
    documents = list(stream().documents(0, 128))
    assert len(documents) == len(TALK)
    assert list(stream().documents(0, 10)) == []


def test_interrupted_tuning_gives_bit_identical_weights(tmp_path: Path) -> None:
    params = model.initial_params(ARCH, 2)
    for name in ("whole", "cut"):
        save_base(tmp_path / "base", params)
        tune.begin(tmp_path / name, tmp_path / "base" / "step-0000000.npz", TINY)
    whole = tuner(tmp_path / "whole", 4).run()
    tuner(tmp_path / "cut", 2).run()  # its schedule ends earlier, so only the data and the state are compared below
    resumed = tuner(tmp_path / "cut", 4)
    assert resumed.state.step == 2
    again = tuner(tmp_path / "cut", 4)
    first, second = resumed.run(), again.run()
    assert first.step == second.step == whole.step == 4
    assert first.position == whole.position
    for name, value in first.params.items():
        np.testing.assert_array_equal(value, second.params[name])


def save_base(folder: Path, params: model.Params) -> None:
    arrays = {f"params/{name}": np.asarray(value) for name, value in params.items()}
    checkpoint.save(folder, 0, checkpoint.Checkpoint(arrays, {"step": 0}))


def test_tuning_starts_from_a_checkpoint_or_from_the_folder_that_it_publishes(tmp_path: Path) -> None:
    params = model.initial_params(ARCH, 3)
    save_base(tmp_path / "base", params)
    tune.begin(tmp_path / "run", tmp_path / "base" / "step-0000000.npz", TINY)
    state = tuner(tmp_path / "run", 1).state
    assert state.step == 0
    np.testing.assert_array_equal(state.params["embedding"], params["embedding"])

    tensors = publish.export.published_tensors({name: np.asarray(value) for name, value in params.items()})
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    read = tune.read_base(tmp_path / "model", TINY)
    for name, value in params.items():
        np.testing.assert_allclose(read[name], value, rtol=2**-8)


def test_published_folder_holds_the_newest_weights_the_chat_format_and_figures_of_the_steps_that_count(
    tmp_path: Path,
) -> None:
    run, nano, out = tmp_path / "run", tmp_path / "nano", tmp_path / "out"
    save_base(tmp_path / "base", model.initial_params(ARCH, 3))
    tune.begin(run, tmp_path / "base" / "step-0000000.npz", TINY)
    state = tuner(run, 2).run()
    step = {"loss": 1.0, "answer_tokens": 7, "tokens": 512, "elapsed": 3.6}
    log: list[dict[str, float]] = [{"step": 1, **step}, {"step": 2, **step, "tokens": 1024}]
    log += [{"step": 2, "validation_loss": 1.25}, {"step": 3, **step, "tokens": 99_000_000}]
    # A killed process leaves half a line.
    run.joinpath("log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log) + '{"step": 4, "lo')
    nano.mkdir()
    for name in ("tokenizer.model", "LICENSE"):
        nano.joinpath(name).write_text(name)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"kind": "talk", "turns": [{"question": "say a", "answer": "a"}]}\n')

    path = publish.publish(run, out, nano, pairs, [], "nano")
    assert path == checkpoint.latest(run)
    expected = publish.export.published_tensors({name: np.asarray(value) for name, value in state.params.items()})
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 256
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 107]
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == publish.CHAT_TEMPLATE
    assert [(out / name).read_text() for name in ("tokenizer.model", "LICENSE")] == ["tokenizer.model", "LICENSE"]
    card = (out / "README.md").read_text()
    assert "0.00 million tokens, 0.00 million of them answers, in 2 steps" in card
    assert "1.250 nats" in card


def test_run_without_a_checkpoint_cannot_be_published(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint yet"):
        publish.publish(tmp_path, tmp_path / "out", tmp_path, tmp_path, [], "nano")


def test_a_base_of_another_shape_or_none_is_refused(tmp_path: Path) -> None:
    save_base(tmp_path, model.initial_params(replace(ARCH, num_layers=2), 0))
    with pytest.raises(TrainingError, match="other sizes than the recipe's"):
        tune.read_base(tmp_path / "step-0000000.npz", TINY)
    with pytest.raises(TrainingError, match="no weights of the recipe's shape"):
        tune.read_base(tmp_path / "missing", TINY)
