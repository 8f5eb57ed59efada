"""The forward pass in JAX against the reference: logits, losses, cache, types, and training's pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy_engines import DequantizedFolder, relative_error, toy_prompt
from toy_jax import compiled, logits_of
from toy_models import MQA, write_toy_checkpoint

from cg_local import reference
from cg_local.checkpoint import open_checkpoint
from cg_local.errors import BackendError
from cg_local.jax_backend import parity
from cg_local.jax_backend.generate import Generator, left_padded
from cg_local.jax_backend.mesh import MeshShape, Shardings, make_mesh
from cg_local.jax_backend.model import padded_length
from cg_local.jax_backend.weights import PUBLISHED, device_weight_bytes, load_weights

CheckpointMaker = Callable[[str], Path]
FolderMaker = Callable[[str, str], Path]
# Float32 sums in another order, relative to the logits' deviation.
ROUNDING = 1e-5


@pytest.mark.parametrize("family", ["mqa", "mha"])
def test_batch_of_unequal_lengths_gives_each_sequence_the_logits_of_the_reference(
    family: str, toy_checkpoint: CheckpointMaker
) -> None:
    prompts = [toy_prompt(length, seed) for seed, length in enumerate((70, 1, 33))]
    found = logits_of(compiled(toy_checkpoint(family)), *prompts)
    for prompt, logits in zip(prompts, found, strict=True):
        assert relative_error(reference.logits(toy_checkpoint(family), prompt), logits) < ROUNDING


def test_prompt_of_several_query_blocks_equals_the_reference(toy_checkpoint: CheckpointMaker) -> None:
    prompt = toy_prompt(600)
    (found,) = logits_of(compiled(toy_checkpoint("mha")), prompt)
    assert relative_error(reference.logits(toy_checkpoint("mha"), prompt), found) < ROUNDING


@pytest.mark.parametrize("scheme", ["q4", "q8"])
def test_quantized_folder_equals_the_reference_on_its_dequantized_weights(scheme: str, toy_folder: FolderMaker) -> None:
    prompt, folder = toy_prompt(40), toy_folder("mqa", scheme)
    (found,) = logits_of(compiled(folder), prompt)
    assert relative_error(reference.logits(DequantizedFolder(folder), prompt), found) < ROUNDING


def test_separate_head_and_rounded_embedding_scale_are_those_of_the_reference(tmp_path: Path) -> None:
    # sqrt(288) = 16.97 becomes 17 in bfloat16.
    values = {**MQA, "hidden_size": 288}
    folder = write_toy_checkpoint(tmp_path / "source", values, lm_head="different", has_tokenizer=True)
    prompt = toy_prompt(20)
    (found,) = logits_of(compiled(folder, embedding_scale="bf16"), prompt)
    expected = reference.logits(folder, prompt, embedding_scale="bf16")
    assert relative_error(expected, found) < ROUNDING
    assert relative_error(reference.logits(folder, prompt), found) > ROUNDING


def test_bfloat16_is_within_its_stated_tolerance_and_no_further_than_needed(toy_checkpoint: CheckpointMaker) -> None:
    prompt, folder = toy_prompt(60), toy_checkpoint("mqa")
    (found,) = logits_of(compiled(folder, dtype="bfloat16"), prompt)
    expected = reference.logits(folder, prompt)
    share = np.abs(found - expected).max() / (expected.max() - expected.min())
    limit = parity.tolerance("bfloat16", 2, rounds_activations=False, rounds_cache=False).share
    assert limit / 20 < share < limit


@pytest.mark.parametrize("family", ["mqa", "mha"])
def test_decoding_token_by_token_gives_the_choices_and_logprobs_of_the_reference(
    family: str, toy_checkpoint: CheckpointMaker
) -> None:
    model, prompts = compiled(toy_checkpoint(family)), [toy_prompt(10, 1), toy_prompt(50, 2)]
    token_ids, starts = left_padded(prompts, 2)
    choice, cache = model.prefill(model.weights, model.new_cache(2, 128), token_ids, starts, is_greedy=True)
    chosen = [[int(each)] for each in choice.token_ids]
    logprobs = [[float(each)] for each in choice.logprobs]
    for step in range(5):
        choice, cache = model.decode(
            model.weights, cache, choice.token_ids, starts, np.int32(token_ids.shape[1] + step), is_greedy=True
        )
        for row in range(2):
            chosen[row].append(int(choice.token_ids[row]))
            logprobs[row].append(float(choice.logprobs[row]))
    for row, prompt in enumerate(prompts):
        expected = reference.logits(toy_checkpoint(family), [*prompt, *chosen[row]])[len(prompt) - 1 : -1]
        assert chosen[row] == expected.argmax(axis=1).tolist()
        log_p = expected.max(axis=1) - np.log(np.exp(expected).sum(axis=1))
        np.testing.assert_allclose(logprobs[row], log_p, atol=1e-5)


def test_losses_are_the_cross_entropy_of_the_reference(toy_checkpoint: CheckpointMaker) -> None:
    prompts = [toy_prompt(70, 1), toy_prompt(5, 2)]
    found = Generator(compiled(toy_checkpoint("mqa")), 3).losses(prompts)
    for prompt, losses in zip(prompts, found, strict=True):
        scores = reference.logits(toy_checkpoint("mqa"), prompt)[:-1].astype(np.float64)
        expected = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), prompt[1:]]
        np.testing.assert_allclose(losses, expected, atol=1e-5)


def test_weights_on_devices_are_the_published_ones_turned_and_counted(toy_checkpoint: CheckpointMaker) -> None:
    source = open_checkpoint(toy_checkpoint("mha"))
    shardings = Shardings(make_mesh(MeshShape()), source.config)
    weights = load_weights(source, shardings)
    np.testing.assert_array_equal(weights.embedding, source.tensor("model.embed_tokens.weight"))
    for name, stack in weights.layers.items():
        for layer in range(2):
            expected = source.tensor(f"model.layers.{layer}.{PUBLISHED[name]}.weight")
            np.testing.assert_array_equal(stack[layer], expected.T)
    arrays = [weights.embedding, weights.final_norm, *weights.layers.values()]
    assert device_weight_bytes(source.config, shardings, "float32") == sum(array.nbytes for array in arrays)


def test_unknown_dtype_is_refused(toy_checkpoint: CheckpointMaker) -> None:
    with pytest.raises(BackendError, match="dtype is 'float16'; give one of float32, bfloat16"):
        compiled(toy_checkpoint("mqa"), dtype="float16")


def test_lengths_are_rounded_up_to_few_shapes() -> None:
    assert [padded_length(length) for length in (1, 64, 65, 256, 257, 512, 513)] == [64, 64, 128, 256, 512, 512, 768]


def test_training_computes_the_same_logits(toy_checkpoint: CheckpointMaker) -> None:
    jnp = pytest.importorskip("jax.numpy")
    pytest.importorskip("optax")
    from cg_local.training import model as training

    loaded, prompt = compiled(toy_checkpoint("mqa")), toy_prompt(80)
    weights = loaded.weights
    params = {"embedding": weights.embedding, "final_norm": weights.final_norm}
    params |= {f"{layer}.{name}": stack[layer] for name, stack in weights.layers.items() for layer in range(2)}
    arch = training.Architecture(vocab_size=768, num_layers=2)
    found = training.logits(params, arch, jnp.asarray([prompt]))[0]
    (expected,) = logits_of(loaded, prompt)
    assert relative_error(expected, np.asarray(found)) < ROUNDING
