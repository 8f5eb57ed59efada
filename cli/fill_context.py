"""What `cg-local fill` tells the model beside the text around the gap, and how it shows the prompt.

This file owns the way from options to the arguments of `LocalModel.infill`. Which files help is `repository`'s, how
many tokens they get `prompt_budget`'s. Invariant: what --show-prompt prints is built of the arguments that the model
would be asked with.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cg_local.cli.fill_delivery import print_under
from cg_local.cli.fill_options import seconds_of
from cg_local.cli.render import notice, print_json, write_stdout
from cg_local.infill.cursor import STANDARD_INPUT_NAME

if TYPE_CHECKING:
    from cg_local.answers import Completion
    from cg_local.cli.fill_options import FillArguments
    from cg_local.cli.fill_places import Place
    from cg_local.prompts import Prompt
    from cg_local.repository.context import ContextFile
    from cg_local.runtime import LocalModel

MAX_CHARACTERS_PER_TOKEN = 16
"""Code has 3 to 4, and no text worth filling has more than this."""


@dataclass(frozen=True)
class FillPrompt:
    """The arguments with which a model is asked.

    Attributes:
        arguments: of `LocalModel.infill`, apart from the mode and the sampling.
        files: the context, in the order of the prompt.
        refused: path to reason, of files that would have helped.
        seconds: what gathering the context took.
        wish: tokens that the prompt might have had without --max-wait, where that allows fewer.
        is_context_cut: with those, more of other files would stand in it.
        is_speed_known: the limit follows from a measurement.
    """

    arguments: dict[str, Any]
    files: list[ContextFile] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    wish: int | None = None
    is_context_cut: bool = False
    is_speed_known: bool = True

    def is_shortened(self, *, truncated: bool) -> bool:
        """Whether --max-wait left something out; `truncated`: text around the gap was."""
        return self.wish is not None and (truncated or self.is_context_cut)

    def build(self, model: LocalModel) -> Prompt:
        """The prompt as `LocalModel.infill` builds it."""
        from cg_local.prompts import infill_prompt

        return infill_prompt(model.tokenizer, **self.arguments)


def fill_prompt(given: FillArguments, place: Place, model: LocalModel) -> FillPrompt:
    """Gather what the model is asked with.

    Args:
        given: the options.
        place: the gap; the whole text of its file decides the context.
        model: the loaded model.
    """
    from cg_local import prompt_budget as budgets

    wish = room = max(1, min(given.prompt_tokens(model.name), model.max_context - given.max_tokens))
    speed = None
    if given.max_wait is not None:
        speed = budgets.PrefillSpeeds.of_user().find(speed_key(model, given.threads))
        room = min(room, budgets.tokens_in(seconds_of(given.max_wait), speed))
    limit: dict[str, Any] = {"wish": wish, "is_speed_known": speed is not None} if room < wish else {}
    arguments: dict[str, Any] = {
        "prefix": place.gap.prefix,
        "suffix": place.gap.suffix,
        "path": place.path,
        "order": given.order.value if given.order else model.infill_order,
        "max_prompt_tokens": room,
    }
    source = place.source
    file = given.path if source.name == STANDARD_INPUT_NAME else source.name
    if given.context.value == "file" or file is None:
        return FillPrompt(arguments, **limit)

    from cg_local.repository.work_tree import find_work_tree

    is_asked = given.context.value == "repo"
    started = time.perf_counter()
    tree = find_work_tree(Path(file))
    path = tree.relative(Path(file))
    trained = budgets.trained_tokens(model.name, model.config.max_position_embeddings)
    if path is None or not (is_asked or budgets.context_pays(trained, tree.is_git)):
        return FillPrompt(arguments, **limit)

    from cg_local.repository.context import candidates, pack

    def count(part: str) -> int:
        return len(model.tokenizer.encode(part))

    found = candidates(tree, path, source.text)

    def packed(max_tokens: int) -> list[ContextFile]:
        # A file that is surely longer than the prompt need not be counted; that takes seconds for 100,000 lines.
        is_long = len(source.text) > MAX_CHARACTERS_PER_TOKEN * max_tokens
        text_tokens = (max_tokens if is_long else count(source.text)) + count(f"{path}\n") + 4
        return pack(tree, found, budgets.context_budget(max_tokens, text_tokens, fills_prompt=is_asked), count)

    files = packed(room)
    if files:
        arguments |= {"path": given.path or path, "context": [(each.path, each.text) for each in files]}
    if limit:
        limit["is_context_cut"] = packed(wish) != files
    return FillPrompt(arguments, files, tree.refused, time.perf_counter() - started, **limit)


def speed_key(model: LocalModel, threads: int | None) -> str:
    """What the speed of reading prompts depends on."""
    return f"{model.path.resolve()} {model.scheme} {threads or 'all'}"


@contextmanager
def compilation_watched() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Numba has compiled anything in the block; loading from its cache is not that.

    Numba tells of each compilation by an event: https://numba.readthedocs.io/en/stable/developer/event_api.html
    """
    from numba.core import event

    with event.install_recorder("numba:compile") as compilations:
        yield lambda: bool(compilations.buffer)


def remember_speed(given: FillArguments, model: LocalModel, answer: Completion, *, has_compiled: bool) -> None:
    """Keep what this fill showed of the model's speed, for `--max-wait`.

    Args:
        given: the options.
        model: what was asked.
        answer: holds the figures.
        has_compiled: kernels were compiled meanwhile. That takes up to a minute, once, and says nothing of the speed.
    """
    from cg_local.prompt_budget import PrefillSpeeds

    num_computed = answer.prompt_tokens - answer.cached_tokens
    if answer.stop_reason != "interrupted" and not has_compiled:
        PrefillSpeeds.of_user().remember(speed_key(model, given.threads), num_computed, answer.prefill_seconds)


def limit_members(made: FillPrompt, given: FillArguments, *, truncated: bool) -> dict[str, object]:
    """Return what a document says of --max-wait; nothing where it was not given."""
    if given.max_wait is None:
        return {}
    shortened = made.is_shortened(truncated=truncated)
    return {"max_prompt_tokens": made.arguments["max_prompt_tokens"], "shortened": shortened}


def tell_limit(made: FillPrompt, given: FillArguments, *, truncated: bool, name: str | None = None) -> None:
    """Tell a person that --max-wait left something out; `name`: of the place, where there are several."""
    if sys.stderr.isatty() and made.is_shortened(truncated=truncated):
        room, where = made.arguments["max_prompt_tokens"], f"{name}: " if name else ""
        unknown = "" if made.is_speed_known else " (this machine's speed is not known yet)"
        allowed = f"{room:,} tokens are allowed{unknown}, without it {made.wish:,}"
        notice(f"{where}--max-wait {given.max_wait} cut the prompt: {allowed}")


def show_prompt(made: FillPrompt, place: Place, model: LocalModel, given: FillArguments, *, is_single: bool) -> None:
    """Print the prompt on stdout, control tokens by their names, and the tokens of its parts on stderr.

    Args:
        made: of `fill_prompt`.
        place: what it is for.
        model: who would be asked.
        given: the options.
        is_single: there is no other place that it could be mistaken for.
    """
    prompt = made.build(model)
    text = spelled(prompt.token_ids, model)
    kinds = {each.path: each.kind for each in made.files}
    if given.json:
        print_json(
            {
                **place.identity,
                "file": place.target.file,
                "line": place.gap.line,
                "col": place.gap.column,
                "prompt": text,
                "token_ids": prompt.token_ids,
                "prompt_tokens": len(prompt.token_ids),
                "max_prompt_tokens": made.arguments["max_prompt_tokens"],
                "truncated": prompt.truncated,
                **limit_members(made, given, truncated=prompt.truncated),
                "parts": [
                    {
                        "name": part.name,
                        "kind": kinds.get(part.name, part.name),
                        "num_tokens": part.num_tokens,
                        "total_tokens": part.total_tokens,
                        "num_lines": part.num_lines,
                    }
                    for part in prompt.parts
                ],
                "refused": made.refused,
                "context_ms": round(1000 * made.seconds, 1),
            }
        )
        return
    if is_single:
        write_stdout(text + "\n")
    else:
        print_under(place, text + "\n")
        notice(f"{place.name}:")
    for part in prompt.parts:
        kind = kinds.get(part.name)
        cut = f" of about {part.total_tokens:,}" if part.is_cut else ""
        notice(f"{part.num_tokens:>6,} tokens{cut}: {part.name}{f' ({kind})' if kind else ''}")
    rest = len(prompt.token_ids) - sum(part.num_tokens for part in prompt.parts)
    notice(f"{rest:>6,} tokens: path line and control tokens")
    notice(f"{len(prompt.token_ids):>6,} tokens in all; {made.arguments['max_prompt_tokens']:,} are allowed")
    tell_limit(made, given, truncated=prompt.truncated)
    for path, reason in made.refused.items():
        notice(f"{path}: not read: {reason}")


def spelled(token_ids: list[int], model: LocalModel) -> str:
    """A prompt as text, its control tokens by their names."""
    tokenizer = model.tokenizer
    pieces: list[str] = []
    run: list[int] = []
    for token_id in token_ids:
        if tokenizer.token_bytes(token_id):
            run.append(token_id)
        else:
            pieces += [tokenizer.decode(run), tokenizer.piece(token_id)]
            run = []
    return "".join([*pieces, tokenizer.decode(run)])
