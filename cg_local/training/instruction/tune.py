"""Tunes a trained model on conversations.

    python -m cg_local.training.instruction.tune RECIPE.toml RUN_DIR --base MODEL --pairs FILE --tokenizer FILE
    (and --until HH:MM, or --minutes M, or --steps N)

Owns the start from other weights, the stream of conversations and the loss on answers. Steps, checkpoints, log and
schedule are `train`'s. Started again with the same RUN_DIR it goes on where the last checkpoint stands.
Invariant: with --steps, a run that was interrupted gives the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from cg_local.errors import TrainingError
from cg_local.training import checkpoint as checkpoints
from cg_local.training import dataset, fim, model, optimizer
from cg_local.training.export import published_name
from cg_local.training.instruction.conversation import Conversation, pack
from cg_local.training.instruction.pairs import read_conversations
from cg_local.training.packing import Batch, BatchStream, Packed
from cg_local.training.recipe import Recipe, load_recipe
from cg_local.training.session import Length
from cg_local.training.train import State, Trainer, save_state

ANSWER_SHARE = 0.7
"""Largest share of a batch's tokens that can be answers; logits are computed for so many tokens and no more."""

VALIDATION_SHARE = 0.02
"""Share of the conversations that is kept for validation."""

BLOCK_CONVERSATIONS = 2000
"""Conversations that are packed into rows together."""


class ConversationStream(BatchStream):
    """The endless, reproducible stream of batches of conversations."""

    def __init__(self, conversations: Sequence[Conversation], encode: fim.Encode, recipe: Recipe, seed: int) -> None:
        """Make the stream.

        Args:
            conversations: at least one, in a fixed order.
            encode: text to ids.
            recipe: the run's recipe.
            seed: of the order.
        """
        super().__init__([], encode, recipe.data, seed)
        self.packed = [
            pack(conversation, functools.partial(fim.control_free, encode)) for conversation in conversations
        ]
        self.blocks_per_epoch = max(1, math.ceil(len(self.packed) / BLOCK_CONVERSATIONS))

    def documents(self, block: int, max_tokens: int) -> Iterator[Packed]:
        """The conversations of one block; longer ones than `max_tokens` are left out.

        Args:
            block: number of the block, from 0 without end.
            max_tokens: longest conversation.
        """
        epoch, index = divmod(block, self.blocks_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.packed))
        for number in order[index :: self.blocks_per_epoch]:
            if len(self.packed[number].token_ids) <= max_tokens:
                yield self.packed[number]


def answer_loss(params: model.Params, recipe: Recipe, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss of the answers' tokens, in nats; logits are computed for these tokens alone, which saves a third."""
    arch = recipe.model
    hidden = model.hidden_states(params, arch, batch.token_ids, batch.document_ids, batch.positions)
    weights = jnp.asarray(batch.weights).reshape(-1)
    (places,) = jnp.nonzero(weights, size=int(ANSWER_SHARE * weights.size), fill_value=-1)
    is_used = places >= 0
    targets = jnp.roll(jnp.asarray(batch.token_ids), -1, axis=1).reshape(-1)[places]
    losses = model.token_losses(hidden.reshape(-1, arch.hidden_size)[places], params["embedding"], targets)
    loss = jnp.sum(losses * is_used) / jnp.maximum(1, jnp.sum(is_used))
    num_tokens = jnp.sum(jnp.asarray(batch.document_ids) > 0)
    return loss, {"loss": loss, "middle_loss": loss, "tokens": num_tokens, "answer_tokens": jnp.sum(is_used)}


def read_base(base: Path, recipe: Recipe) -> model.Params:
    """Weights to begin with.

    Args:
        base: a checkpoint of a run (`.npz`), or a model folder that `export` wrote.
        recipe: its `model` must have the sizes of the base.

    Raises:
        TrainingError: the base is missing or has other sizes.
    """
    wanted = model.initial_params(recipe.model, 0)
    try:
        if base.suffix == ".npz":
            arrays = checkpoints.load(base).arrays
            found = {
                name.removeprefix("params/"): value for name, value in arrays.items() if name.startswith("params/")
            }
        else:
            tensors = load_file(base / "model.safetensors")
            found = {name: np.asarray(tensors[published_name(name)], np.float32) for name in wanted}
            found = {name: value.T if is_stored_transposed(name, value) else value for name, value in found.items()}
    except (OSError, KeyError) as error:
        raise TrainingError(
            f"{base}: no weights of the recipe's shape ({error}). Give a checkpoint or a model."
        ) from error
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in wanted.items()}:
        raise TrainingError(f"{base}: its weights have other sizes than the recipe's [model]. Change the recipe.")
    return {name: jnp.asarray(found[name], jnp.float32) for name in wanted}


def is_stored_transposed(name: str, value: np.ndarray) -> bool:
    """Whether the published layout has the transpose of a weight: all matrices but the embedding."""
    return value.ndim == 2 and name != "embedding"


def begin(folder: Path, base: Path, recipe: Recipe) -> None:
    """Write the first checkpoint of a run, with the weights of `base`; nothing if the run has begun."""
    if checkpoints.latest(folder) is None:
        params = read_base(base, recipe)
        save_state(folder, State(params, optimizer.make_optimizer(recipe.optimizer).init(params), params), recipe)


def split(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """Conversations to train on, and every fiftieth, which is kept for validation."""
    step = round(1 / VALIDATION_SHARE)
    held_out = list(itertools.islice(conversations, 0, None, step))
    return [item for number, item in enumerate(conversations) if number % step], held_out


def main() -> None:
    """Command line entry; see the module's head."""
    parser = argparse.ArgumentParser(description="Tune a model on conversations.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--until", metavar="HH:MM")
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    encode = dataset.load_encoder(options.tokenizer).encode
    begin(options.folder, options.base, recipe)
    stream, validation = (
        ConversationStream(part, encode, recipe, recipe.run.seed) for part in split(read_conversations(options.pairs))
    )
    clock = Length(options.steps, options.minutes, options.until).clock(recipe)
    trainer = Trainer(recipe, options.folder, stream, validation, clock, loss_function=answer_loss)
    signal.signal(signal.SIGTERM, trainer.stop)
    signal.signal(signal.SIGINT, trainer.stop)
    state = trainer.run()
    print(f"step {state.step}, {state.tokens / 1e6:.2f} million tokens, {state.elapsed / 60:.1f} minutes")


if __name__ == "__main__":
    main()
