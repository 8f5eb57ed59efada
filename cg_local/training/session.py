"""One call of `cg-local train`: from a recipe's file to a trained model folder.

Owns the run folder: `corpus/`, `tokenizer.model`, checkpoints, `log.jsonl`, `loss.png`. The steps themselves are the
other modules'.
Invariant: called again with the same arguments it goes on where it stopped, whatever it was doing then.
"""

from __future__ import annotations

import datetime
import functools
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cg_local.errors import TrainingError
from cg_local.training import dataset, prepare, tokenizer_trainer, train
from cg_local.training.packing import BatchStream
from cg_local.training.recipe import Recipe
from cg_local.training.workers import WorkerStream

Report = Callable[[str], None]

REPORT_SECONDS = 10.0
"""Time between two lines about the loss."""


@dataclass(frozen=True)
class Length:
    """How long to train; one of the three, or none for the recipe's `total_steps`.

    Attributes:
        steps: steps of the whole run, earlier sessions included: the run can be repeated bit by bit.
        minutes: training time of this session; the learning rate has decayed when it is over.
        until: the same by the clock, "HH:MM".
    """

    steps: int | None = None
    minutes: float | None = None
    until: str | None = None

    def clock(self, recipe: Recipe) -> train.Clock:
        """The clock of a run.

        Raises:
            TrainingError: no length, or more than one, or none that can be meant.
        """
        given = [value for value in (self.steps, self.minutes, self.until) if value is not None]
        if len(given) > 1:
            raise TrainingError("give one of --steps, --minutes and --until, not several.")
        if self.minutes is not None or self.until is not None:
            left = seconds_until(self.until) if self.until is not None else 60.0 * (self.minutes or 0.0)
            end = time.time() + left
            return train.Clock(None, lambda: end - time.time())
        steps = self.steps or recipe.run.total_steps
        if steps <= 0:
            raise TrainingError("no length: give --steps, --minutes or --until, or total_steps in the recipe's [run].")
        return train.Clock(steps, lambda: 0.0)


def seconds_until(clock_time: str) -> float:
    """Seconds from now to the next "HH:MM" of the local clock.

    Raises:
        TrainingError: not a time.
    """
    try:
        wanted = datetime.time.fromisoformat(clock_time)
    except ValueError as error:
        raise TrainingError(f"--until {clock_time}: not a time such as 04:20.") from error
    now = datetime.datetime.now()
    moment = datetime.datetime.combine(now.date(), wanted)
    return ((moment if moment > now else moment + datetime.timedelta(days=1)) - now).total_seconds()


def corpus_of(recipe: Recipe, folder: Path, report: Report) -> Path:
    """The prepared corpus of a run; made in the run's folder where it is not there yet.

    Raises:
        TrainingError: it cannot be made, or was made with other options.
    """
    if recipe.corpus.prepared:
        corpus = Path(recipe.corpus.prepared)
        if not (corpus / "sources.json").is_file():
            raise TrainingError(f"{corpus}: no prepared corpus ([corpus] prepared); a run's folder `corpus` is one.")
        return corpus
    recipe.corpus.check()
    corpus = folder / "corpus"
    if not prepare.is_prepared(corpus, recipe.corpus):
        report("reading the sources")
        prepare.prepare(corpus, recipe.corpus, report)
    return corpus


def tokenizer_of(recipe: Recipe, folder: Path, corpus: Path, report: Report) -> Path:
    """The tokenizer of a run; trained on the corpus where the recipe names none.

    Raises:
        TrainingError: its vocabulary has not the size that the model has.
    """
    path = Path(recipe.corpus.tokenizer) if recipe.corpus.tokenizer else folder / "tokenizer.model"
    if not recipe.corpus.tokenizer and not path.is_file():
        report(f"training a tokenizer of {recipe.model.vocab_size} pieces")
        with (corpus / "train.jsonl").open(encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        tokenizer_trainer.train_tokenizer(texts, path, vocab_size=recipe.model.vocab_size)
    size = dataset.load_encoder(path).get_piece_size()
    if size != recipe.model.vocab_size:
        raise TrainingError(f"{path}: has {size} pieces, but vocab_size in [model] is {recipe.model.vocab_size}.")
    return path


@contextmanager
def stopping(trainer: train.Trainer) -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT end the run after its current step, with a checkpoint."""
    before = {number: signal.signal(number, trainer.stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(recipe: Recipe, folder: Path, length: Length, report: Report) -> train.State:
    """Prepare what is missing and train.

    Args:
        recipe: the run's recipe.
        folder: the run's folder; created.
        length: how long.
        report: takes lines about what is being done.

    Returns:
        The last state, which is also the newest checkpoint.

    Raises:
        TrainingError: the recipe, its sources or the folder's checkpoints cannot be used.
    """
    clock = length.clock(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = corpus_of(recipe, folder, report)
    tokenizer = tokenizer_of(recipe, folder, corpus, report)
    report("reading the corpus")
    stream, validation = dataset.open_streams(corpus, tokenizer, recipe)
    said = 0.0

    def on_step(state: train.State, figures: dict[str, float]) -> None:
        nonlocal said
        if time.monotonic() - said >= REPORT_SECONDS:
            said = time.monotonic()
            speed = recipe.run.batch_tokens / figures["seconds"]
            report(
                f"step {state.step:,}, {state.tokens / 1e6:.2f} million tokens, {clock.progress(state.step):.0%}, "
                f"loss {figures['loss']:.3f}, {speed:,.0f} tokens/s"
            )

    with batch_makers(stream, corpus, tokenizer, recipe) as made:
        trainer = train.Trainer(recipe, folder, made, validation, clock, on_step)
        if trainer.state.step:
            report(f"going on from step {trainer.state.step:,}")
        report(f"training on {train.device_name()}, matrix products in {train.product_dtype(recipe.run.compute)}")
        with stopping(trainer):
            return trainer.run()


@contextmanager
def batch_makers(stream: BatchStream, corpus: Path, tokenizer: Path, recipe: Recipe) -> Iterator[BatchStream]:
    """The stream of a run, made by as many processes as the recipe asks for; they end with the context."""
    if not recipe.run.workers:
        yield stream
        return
    open_stream = functools.partial(dataset.open_training_stream, corpus, tokenizer, recipe)
    made = WorkerStream(stream, open_stream, recipe.run.workers)
    try:
        yield made
    finally:
        made.close()
