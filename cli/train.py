"""`cg-local train`: a recipe's file to a trained model folder."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cg_local.cli.render import notice, write_stdout
from cg_local.errors import TrainingError

if TYPE_CHECKING:
    from cg_local.training.recipe import Recipe


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The recipe: sources, sizes, rates.")],
    run: Annotated[
        Optional[Path], typer.Option("--run", metavar="DIR", help="Folder of the run; default: CONFIG without .toml.")  # noqa: UP045
    ] = None,
    steps: Annotated[
        Optional[int], typer.Option("--steps", min=1, help="Steps of the whole run; repeatable bit by bit.")  # noqa: UP045
    ] = None,
    minutes: Annotated[Optional[float], typer.Option("--minutes", min=0.01, help="Train for so long.")] = None,  # noqa: UP045
    until: Annotated[Optional[str], typer.Option("--until", metavar="HH:MM", help="Train until this time.")] = None,  # noqa: UP045
    export: Annotated[
        Optional[Path], typer.Option("--export", metavar="DIR", help="Write the model in the Hugging Face layout.")  # noqa: UP045
    ] = None,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw the losses to DIR/loss.png.")] = True,
) -> None:
    """Train a small fill-in-the-middle model with CodeGemma's recipe.

    Uses a GPU when JAX finds one. Called again it goes on; Ctrl-C ends it with a checkpoint.
    Needs the extra train: pip install 'cg-local[train]'.

    \b
    Examples:
      cg-local train mine.toml --minutes 60
      cg-local train mine.toml --steps 20000 --export ~/models/mine
    """
    session = _session()
    from cg_local.training.recipe import load_recipe

    recipe = load_recipe(config)
    folder = run or config.with_suffix("")
    if folder == config:
        raise TrainingError(f"{config}: name the run's folder with --run, or give the recipe the ending .toml.")
    state = session.run(recipe, folder, session.Length(steps, minutes, until), notice)
    if plot:
        _plot(folder)
    write_stdout(
        f"{folder}: step {state.step:,}, {state.tokens / 1e6:.2f} million tokens, {state.elapsed / 60:.1f} minutes\n"
    )
    if export is not None:
        write_stdout(_export(recipe, folder, export))


def _session() -> ModuleType:
    """The module that trains; a missing extra becomes a clear error."""
    try:
        from cg_local.training import session
    except ImportError as error:
        raise TrainingError(
            f"training needs the package {error.name}, which is not installed: pip install 'cg-local[train]'."
        ) from error
    return session


def _plot(folder: Path) -> None:
    """Draw the losses; without matplotlib the run is no less done, so that is only said."""
    from cg_local.training.plots import plot_losses, read_log

    try:
        plot_losses(read_log(folder / "log.jsonl"), folder / "loss.png")
    except TrainingError as error:
        sys.stderr.write(f"{error}\n")


def _export(recipe: Recipe, folder: Path, destination: Path) -> str:
    from cg_local.training.export import export
    from cg_local.training.session import corpus_of, tokenizer_of

    corpus = corpus_of(recipe, folder, notice)
    export(folder, destination, corpus, tokenizer_of(recipe, folder, corpus, notice))
    size = sum(path.stat().st_size for path in destination.iterdir() if path.is_file())
    return f"{destination}: exported, {size / 1e6:.1f} MB\n"
