"""The recipe of a run, read from a TOML file.

Owns the names and defaults of all options; each part's meaning is described at its own class.
Invariant: an unknown or misspelled option is refused, never ignored.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from cg_local.errors import TrainingError
from cg_local.training.fim import FimRecipe
from cg_local.training.model import Architecture
from cg_local.training.optimizer import OptimizerRecipe
from cg_local.training.packing import DataRecipe

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
        checkpoint_seconds: time between checkpoints.
        validation_seconds: time between validations.
        validation_batches: batches of a validation.
    """

    seed: int = 1
    batch_tokens: int = 8192
    sequence_lengths: tuple[int, ...] = (512,)
    length_starts: tuple[float, ...] = (0.0,)
    test_share: float = 0.15
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
    data: DataRecipe
    optimizer: OptimizerRecipe
    run: RunRecipe


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Args:
        path: TOML file with the tables `model`, `data`, `data.repeats`, `fim`, `optimizer` and `run`; what is left out
            has the default of its class.

    Raises:
        TrainingError: the file cannot be read or has an option that no class knows.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read as a recipe: {error}") from error
    data = dict(tables.pop("data", {}))
    repeats = tuple(sorted(data.pop("repeats", {}).items()))
    recipe = Recipe(
        model=build(Architecture, tables.pop("model", {}), path, "model"),
        data=build(
            DataRecipe,
            {**data, "repeats": repeats, "fim": build(FimRecipe, tables.pop("fim", {}), path, "fim")},
            path,
            "data",
        ),
        optimizer=build(OptimizerRecipe, tables.pop("optimizer", {}), path, "optimizer"),
        run=build(RunRecipe, tables.pop("run", {}), path, "run"),
    )
    if tables:
        raise TrainingError(
            f"{path}: unknown table {sorted(tables)[0]!r}; known are model, data, fim, optimizer and run."
        )
    recipe.model.check()
    return recipe


T = TypeVar("T")


def build(kind: type[T], options: dict[str, object], path: Path, table: str) -> T:
    """Make a `kind` from a table's options, lists as tuples; unknown names raise TrainingError."""
    known = {field.name for field in fields(cast(Any, kind))}
    for name in options:
        if name not in known:
            raise TrainingError(f"{path}: unknown option {name!r} in [{table}]; known are {', '.join(sorted(known))}.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
