"""The recipe of a run, read from a TOML file.

Owns the names and defaults of all options; each part's meaning is described at its own class.
Invariant: an unknown or misspelled option is refused, never ignored.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from cg_local.errors import TrainingError
from cg_local.training.fim import FimRecipe
from cg_local.training.model import Architecture
from cg_local.training.optimizer import OptimizerRecipe
from cg_local.training.packing import DataRecipe
from cg_local.training.prepare import CorpusRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class RunRecipe:
    """Size and pace of a run.

    Attributes:
        seed: of weights and data.
        batch_tokens: tokens of one step; rows are batch_tokens // sequence length.
        sequence_lengths: row lengths, each a multiple of 128, used one after another.
        length_starts: share of the run, 0..1 and rising from 0, at which each row length begins.
        test_share: share of files with "test" in their path that is used; they are many and alike.
        total_steps: length of the run in steps where the command line does not say otherwise; 0: it must.
        compute: "float32", or "auto": the factors of matrix products in bfloat16 on a GPU or TPU, sums in float32.
        log_steps: steps between two lines of the log. The host waits for a step's figures only there, so that a GPU
            computes meanwhile.
        workers: processes that make batches; 0: a thread. The batches are the same.
        checkpoint_seconds: time between checkpoints.
        validation_seconds: time between validations.
        validation_batches: batches of a validation.
    """

    seed: int = 1
    batch_tokens: int = 8192
    sequence_lengths: tuple[int, ...] = (512,)
    length_starts: tuple[float, ...] = (0.0,)
    test_share: float = 0.15
    total_steps: int = 0
    compute: str = "auto"
    log_steps: int = 1
    workers: int = 0
    checkpoint_seconds: float = 240.0
    validation_seconds: float = 900.0
    validation_batches: int = 4

    def sequence_length(self, progress: float) -> int:
        """The row length at a share of the run."""
        started = [
            length for length, start in zip(self.sequence_lengths, self.length_starts, strict=True) if progress >= start
        ]
        return started[-1]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run besides the corpus; the parts are described at their classes."""

    model: Architecture
    corpus: CorpusRecipe
    data: DataRecipe
    optimizer: OptimizerRecipe
    run: RunRecipe


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Args:
        path: TOML file with the tables `corpus`, `model`, `data`, `data.repeats`, `fim`, `optimizer` and `run`; what
            is left out has the default of its class. Paths in it are relative to its folder.

    Raises:
        TrainingError: the file cannot be read, has an option that no class knows, or a value that cannot be meant.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read as a recipe: {error}") from error
    data = dict(tables.pop("data", {}))
    repeats = tuple(sorted(data.pop("repeats", {}).items()))
    for name, times in repeats:
        if not isinstance(times, int | float) or times < 0:
            raise TrainingError(f"{path}: {name} in [data.repeats] is {times!r}; it must be a number from 0.")
    recipe = Recipe(
        model=build(Architecture, tables.pop("model", {}), path, "model"),
        corpus=located(build(CorpusRecipe, tables.pop("corpus", {}), path, "corpus"), path.parent),
        data=build(
            DataRecipe,
            {**data, "repeats": list(repeats), "fim": build(FimRecipe, tables.pop("fim", {}), path, "fim")},
            path,
            "data",
        ),
        optimizer=build(OptimizerRecipe, tables.pop("optimizer", {}), path, "optimizer"),
        run=build(RunRecipe, tables.pop("run", {}), path, "run"),
    )
    if tables:
        raise TrainingError(
            f"{path}: unknown table {sorted(tables)[0]!r}; known are corpus, model, data, fim, optimizer, run."
        )
    check(recipe)
    return recipe


def located(corpus: CorpusRecipe, folder: Path) -> CorpusRecipe:
    """The corpus recipe with its paths made absolute: `~` opened up, relative ones taken from `folder`."""

    def place(text: str) -> str:
        return str((folder / Path(text).expanduser()).resolve()) if text else ""

    libraries = []
    for item in corpus.standard_libraries:
        version, separator, path = item.partition("=")
        libraries.append(f"{version}={place(path)}" if separator else item)
    return replace(
        corpus,
        folders=tuple(map(place, corpus.folders)),
        wheels=tuple(map(place, corpus.wheels)),
        standard_libraries=tuple(libraries),
        evaluation=tuple(map(place, corpus.evaluation)),
        prepared=place(corpus.prepared),
        tokenizer=place(corpus.tokenizer),
    )


def check(recipe: Recipe) -> None:
    """Raise TrainingError where the parts of a recipe cannot be meant; the message names the option."""
    recipe.model.check()
    run = recipe.run
    rates = {name: getattr(recipe.data.fim, name) for name in ("fim_rate", "spm_rate", "path_rate", "eos_rate")}
    for name, rate in {**rates, "multi_file_rate": recipe.data.multi_file_rate, "test_share": run.test_share}.items():
        if not 0.0 <= rate <= 1.0:
            raise TrainingError(f"{name} is {rate}; it must be from 0 to 1.")
    if len(run.sequence_lengths) != len(run.length_starts) or run.length_starts[:1] != (0.0,):
        raise TrainingError(
            "sequence_lengths and length_starts must be equally many, and length_starts begin with 0.0."
        )
    for length in run.sequence_lengths:
        if length < 64 or run.batch_tokens < length:
            raise TrainingError(
                f"a row of {length} tokens must have at least 64 and fit in batch_tokens ({run.batch_tokens})."
            )
    if run.log_steps < 1 or run.workers < 0:
        raise TrainingError(f"log_steps is {run.log_steps} and workers {run.workers}; needed are from 1 and from 0.")
    if run.compute not in ("auto", "float32"):
        raise TrainingError(f"compute is {run.compute!r}; it must be auto or float32.")
    if recipe.optimizer.method not in ("muon", "adamw"):
        raise TrainingError(f"method is {recipe.optimizer.method!r}; it must be muon or adamw.")


T = TypeVar("T")


def build(kind: type[T], options: dict[str, object], path: Path, table: str) -> T:
    """Make a `kind` from a table's options, lists as tuples; unknown names and wrong types raise TrainingError."""
    known = {field.name: field for field in fields(cast(Any, kind))}
    for name, value in options.items():
        if name not in known:
            raise TrainingError(f"{path}: unknown option {name!r} in [{table}]; known are {', '.join(sorted(known))}.")
        wanted = type(known[name].default)
        is_number = wanted is float and isinstance(value, int) and not isinstance(value, bool)
        if known[name].default is not MISSING and not (
            is_number or isinstance(value, list if wanted is tuple else wanted)
        ):
            raise TrainingError(f"{path}: {name} in [{table}] is {value!r}; it must be like {known[name].default!r}.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
