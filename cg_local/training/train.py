"""Trains a model: the loop of steps, validation, checkpoints and log.

Owns the compiled step, the state of a run, and stopping in order. A run started again in the same folder goes on where
its newest checkpoint stands. What it is given to read is `session`'s work.
Invariant: with a length in steps, a run that was stopped or killed gives, on the same machine, the same weights bit for
bit as one that was not.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cg_local.errors import TrainingError
from cg_local.training import checkpoint as checkpoints
from cg_local.training import model, optimizer
from cg_local.training.packing import Batch, BatchStream, prefetch
from cg_local.training.recipe import Recipe

StepFunction = Callable[..., tuple[model.Params, optax.OptState, model.Params, dict[str, jax.Array]]]
LossFunction = Callable[[model.Params, Recipe, Batch], tuple[jax.Array, dict[str, jax.Array]]]


@dataclass
class Clock:
    """How much of the run is done.

    Attributes:
        total_steps: length in steps, or None where time decides.
        seconds_left: takes nothing and gives the seconds until the deadline.
        elapsed: training seconds so far, earlier sessions of the run included.
    """

    total_steps: int | None
    seconds_left: Callable[[], float]
    elapsed: float = 0.0

    def progress(self, step: int) -> float:
        """Share of the run done, 0..1; by time it is elapsed / (elapsed + time left), so that pauses do not count."""
        if self.total_steps is not None:
            return min(1.0, step / self.total_steps)
        left = max(0.0, self.seconds_left())
        return self.elapsed / max(self.elapsed + left, 1e-9) if left else 1.0


@dataclass
class State:
    """What a checkpoint holds: weights, their running average, optimizer state, step, data position, tokens seen,
    seconds, row length."""

    params: model.Params
    opt_state: optax.OptState
    average: model.Params
    step: int = 0
    position: tuple[int, int] = (0, 0)
    tokens: int = 0
    elapsed: float = 0.0
    length: int = 0


@dataclass(frozen=True)
class Pending:
    """A step whose figures the host has not read: they may not be computed yet.

    Attributes:
        figures: as the step function gives them.
        seconds: the host's time for the step; it does not wait for the device.
        waited: the part of it that was spent on data.
        factor: the share of the full learning rates.
        length: tokens of a row.
    """

    figures: dict[str, jax.Array]
    seconds: float
    waited: float
    factor: float
    length: int


def weighted_loss(params: model.Params, recipe: Recipe, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean loss of a batch, and the plain means over all tokens and over middles, in nats per token."""
    losses = model.batch_losses(params, recipe.model, batch.token_ids, batch.document_ids, batch.positions)
    is_target, is_middle = batch.weights > 0, batch.weights == recipe.data.middle_weight
    figures = {
        "loss": jnp.sum(losses * is_target) / jnp.sum(is_target),
        "middle_loss": jnp.sum(losses * is_middle) / jnp.maximum(1, jnp.sum(is_middle)),
        "tokens": jnp.sum(is_target),
    }
    return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights), figures


def matmul_precision(compute: str) -> str:
    """The precision of matrix products for a recipe's `compute`, as `jax.default_matmul_precision` names it.

    Weights, sums, norms and softmax stay in float32: only the factors of products are rounded (`products`), as the
    units of a GPU and a TPU take them. A CPU would only lose by it, so there they stay in float32 as well.
    """
    backend = jax.default_backend()
    if compute == "float32" or backend == "cpu":
        return "float32"
    return "bfloat16" if backend == "tpu" else "BF16_BF16_F32"


def device_name() -> str:
    """The device that JAX computes on, for people: for example "cpu" or "gpu (NVIDIA H100)"."""
    device = jax.devices()[0]
    return device.platform if device.platform == "cpu" else f"{device.platform} ({device.device_kind})"


def product_dtype(compute: str) -> str:
    """The type of the factors of matrix products for a recipe's `compute` on this machine."""
    return "float32" if matmul_precision(compute) == "float32" else "bfloat16"


@functools.cache
def make_step(recipe: Recipe, loss_function: LossFunction = weighted_loss) -> StepFunction:
    """The compiled update: (params, opt_state, average, batch arrays, rate factor, weight of the new weights in the
    average) to new params, new opt_state, new average, figures."""
    transformation = optimizer.make_optimizer(recipe.optimizer)

    def step(
        params: model.Params,
        opt_state: optax.OptState,
        average: model.Params,
        arrays: tuple[jax.Array, ...],
        factor: jax.Array,
        share: jax.Array,
    ) -> tuple[model.Params, optax.OptState, model.Params, dict[str, jax.Array]]:
        with jax.default_matmul_precision(matmul_precision(recipe.run.compute)):
            (_, figures), gradients = jax.value_and_grad(loss_function, has_aux=True)(params, recipe, Batch(*arrays))
        updates, opt_state = transformation.update(gradients, opt_state, params)
        params = jax.tree.map(lambda weight, update: weight + factor * update, params, updates)
        average = jax.tree.map(lambda mean, weight: mean + share * (weight - mean), average, params)
        squares = [jnp.sum(gradient * gradient) for gradient in gradients.values()]
        return params, opt_state, average, {**figures, "gradient_norm": jnp.sqrt(sum(squares))}

    compiled: StepFunction = jax.jit(step, donate_argnums=(0, 1, 2))
    return compiled


def save_state(folder: Path, state: State, recipe: Recipe) -> Path:
    """Write the state as a checkpoint; see `checkpoint.save`."""
    leaves = jax.tree.leaves(state.opt_state)
    arrays = {f"params/{name}": np.asarray(value) for name, value in state.params.items()}
    arrays |= {f"average/{name}": np.asarray(value) for name, value in state.average.items()}
    arrays |= {f"optimizer/{number:04d}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
    record = {"step": state.step, "position": list(state.position), "length": state.length}
    record |= {"tokens": state.tokens, "elapsed": state.elapsed}
    return checkpoints.save(folder, state.step, checkpoints.Checkpoint(arrays, {**record, "recipe": asdict(recipe)}))


def restore_state(path: Path, fresh: State) -> State:
    """Read a checkpoint into the structure of a fresh state.

    Raises:
        TrainingError: the checkpoint belongs to another architecture or optimizer.
    """
    saved = checkpoints.load(path)
    leaves, structure = jax.tree.flatten(fresh.opt_state)
    wanted = {f"params/{name}": value for name, value in fresh.params.items()}
    wanted |= {f"optimizer/{number:04d}": leaf for number, leaf in enumerate(leaves)}
    # Checkpoints from before there was an average: it begins at the weights.
    means = {name: saved.arrays.pop(f"average/{name}", saved.arrays.get(f"params/{name}")) for name in fresh.params}
    found = {name: value.shape for name, value in saved.arrays.items()}
    if found != {name: value.shape for name, value in wanted.items()}:
        raise TrainingError(
            f"{path}: made with another recipe (its weights differ in name or shape). Use another run folder."
        )
    params = {name: jnp.asarray(saved.arrays[f"params/{name}"]) for name in fresh.params}
    opt_state = jax.tree.unflatten(
        structure, [jnp.asarray(saved.arrays[f"optimizer/{i:04d}"]) for i in range(len(leaves))]
    )
    record: dict[str, Any] = saved.record
    block, index = record["position"]
    return State(
        params,
        opt_state,
        {name: jnp.asarray(value) for name, value in means.items()},
        record["step"],
        (block, index),
        record["tokens"],
        record["elapsed"],
        record.get("length", 0),
    )


def arrays_of(batch: Batch) -> tuple[np.ndarray, ...]:
    """The batch's arrays in the order that the compiled step takes."""
    return batch.token_ids, batch.document_ids, batch.positions, batch.weights


class Trainer:
    """One session of a run."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        stream: BatchStream,
        validation: BatchStream,
        clock: Clock,
        on_step: Callable[[State, dict[str, float]], None] = lambda state, figures: None,
        loss_function: LossFunction = weighted_loss,
    ) -> None:
        """Start or resume the run in `folder`.

        Args:
            recipe: the run's recipe; rates and lengths may differ from those it was begun with.
            folder: checkpoints and `log.jsonl`.
            stream: training data.
            validation: held-out data.
            clock: length of the run.
            on_step: called with the state and the newest step's figures whenever a line is logged: every `log_steps`
                steps, and before held-out data is looked at or a checkpoint is written.
            loss_function: what is minimised, and figures for the log, among them those of `weighted_loss`.
        """
        self.on_step = on_step
        self.recipe, self.folder, self.stream, self.validation, self.clock = recipe, folder, stream, validation, clock
        params = model.initial_params(recipe.model, recipe.run.seed)
        average = {name: jnp.array(value) for name, value in params.items()}  # its own memory: both are donated
        self.state = State(params, optimizer.make_optimizer(recipe.optimizer).init(params), average)
        newest = checkpoints.latest(folder)
        if newest is not None:
            self.state = restore_state(newest, self.state)
        clock.elapsed = self.state.elapsed
        self.step_function = make_step(recipe, loss_function)
        self.evaluate = jax.jit(lambda params, arrays: loss_function(params, recipe, Batch(*arrays))[1])
        self.is_stopping = False
        self.pending: list[Pending] = []
        folder.mkdir(parents=True, exist_ok=True)

    def stop(self, *_: object) -> None:
        """Signal handler: finish the current step, write a checkpoint, return."""
        self.is_stopping = True

    def log(self, **figures: object) -> None:
        """Append one line to `log.jsonl`."""
        state = self.state
        head = {
            "step": state.step,
            "tokens": state.tokens,
            "elapsed": round(state.elapsed, 1),
            "time": round(time.time(), 1),
        }
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({**head, **figures}) + "\n")

    def validate(self) -> None:
        """Log the loss on held-out files: the same batches every time, of the run's first row length."""
        self.read_figures()
        run = self.recipe.run
        length = run.sequence_lengths[0]
        batches = self.validation.batches(0, run.batch_tokens // length, length)
        chosen = itertools.islice(batches, run.validation_batches)
        figures = [
            (self.evaluate(self.state.params, arrays_of(batch)), self.evaluate(self.state.average, arrays_of(batch)))
            for batch in chosen
        ]
        if figures:
            means = {
                f"{kind}_{name}": round(float(np.mean([pair[index][name] for pair in figures])), 4)
                for index, kind in enumerate(("validation", "average"))
                for name in ("loss", "middle_loss")
            }
            self.log(**means)

    def batches(self) -> Iterator[Batch]:
        """Training batches; the row length follows the progress, and a new length begins at the next block."""
        while True:
            length = self.recipe.run.sequence_length(self.clock.progress(self.state.step))
            if self.state.length not in (0, length):
                self.state.position = (self.state.position[0] + 1, 0)
            self.state.length = length
            source = prefetch(self.stream, self.state.position, self.recipe.run.batch_tokens // length, length)
            for position, batch in source:
                self.state.position = position
                yield batch
                if self.recipe.run.sequence_length(self.clock.progress(self.state.step)) != length:
                    source.close()
                    break

    def run(self) -> State:
        """Train until the clock's end or a stop signal; returns the last state, which is also saved."""
        saved = validated = time.monotonic()
        batches = self.batches()
        while self.clock.progress(self.state.step) < 1.0 and not self.is_stopping:
            begin = time.monotonic()
            try:
                batch = next(batches)
            except TrainingError:
                if self.is_stopping:  # the signal reached the processes that make batches, too
                    break
                raise
            waited = time.monotonic() - begin
            self.take_step(batch, begin, waited)
            now = time.monotonic()
            if now - validated > self.recipe.run.validation_seconds:
                self.validate()
                validated = time.monotonic()
            if now - saved > self.recipe.run.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
        if not self.is_stopping:
            self.validate()
        self.save()
        return self.state

    def save(self) -> None:
        """Write a checkpoint; it counts the tokens and the time of all steps."""
        self.read_figures()
        save_state(self.folder, self.state, self.recipe)

    def take_step(self, batch: Batch, begin: float, waited: float) -> None:
        """One update, and with the last of `log_steps` a line in the log; `begin` is when the step started, `waited`
        the seconds spent on data."""
        state = self.state
        factor = optimizer.rate_factor(self.recipe.optimizer, state.step, self.clock.progress(state.step))
        share = optimizer.average_share(self.recipe.optimizer, state.step)
        state.params, state.opt_state, state.average, figures = self.step_function(
            state.params, state.opt_state, state.average, arrays_of(batch), jnp.float32(factor), jnp.float32(share)
        )
        state.step += 1
        seconds = time.monotonic() - begin
        self.count_time(seconds)
        self.pending.append(Pending(figures, seconds, waited, factor, batch.token_ids.shape[1]))
        if state.step % self.recipe.run.log_steps == 0:
            self.read_figures()

    def count_time(self, seconds: float) -> None:
        """Add to the time of training, by which a run of a given length ends."""
        self.state.elapsed += seconds
        self.clock.elapsed = self.state.elapsed

    def read_figures(self) -> None:
        """Wait for the steps since the last line, take over their figures, and log the newest step's with mean times.

        Raises:
            TrainingError: the loss is no number.
        """
        pending, self.pending = self.pending, []
        if not pending:
            return
        state, begin = self.state, time.monotonic()
        read: list[dict[str, Any]] = jax.device_get([item.figures for item in pending])
        device_seconds = time.monotonic() - begin
        self.count_time(device_seconds)
        state.tokens += sum(int(figures["tokens"]) for figures in read)
        values = {name: float(value) for name, value in read[-1].items() if name != "tokens"}
        if not np.isfinite(values["loss"]):
            raise TrainingError(
                f"step {state.step}: the loss is {values['loss']}. Resume from a checkpoint with lower rates."
            )
        rounded = {name: round(value, 4) for name, value in values.items()}
        seconds = (sum(item.seconds for item in pending) + device_seconds) / len(pending)
        self.on_step(state, {**values, "seconds": seconds})
        self.log(
            **rounded,
            rate=round(pending[-1].factor, 4),
            seconds=round(seconds, 3),
            data_seconds=round(float(np.mean([item.waited for item in pending])), 3),
            length=pending[-1].length,
        )
