#!/usr/bin/env python3
"""What a repository's other files do for a model that fills a line: log-probability and exact match of the true line.

This file owns which lines are asked for and how the answers are judged. Invariant: the variants of one line differ in
the budgets alone; files that a model was trained on are refused as far as its card tells.

    python benchmarks/repository_context.py --model nano --packages hypothesis fsspec filelock

A line is taken out of a file; the model sees the rest of it, with and without other files of the same package
(`cg_local.repository`), and each variant is asked for the probability of the true line, token by token, its line break
included. "exact" means that every token of it is the most probable one, so that greedy decoding writes just this line.
The table goes to stderr, the result to stdout as one line of JSON.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cg_local.bench.cards import machine_card, model_card
from cg_local.models import embedded_checkpoint
from cg_local.prompts import infill_prompt
from cg_local.repository.context import candidates, pack
from cg_local.repository.work_tree import WorkTree
from cg_local.runtime import LocalModel, load

Result = dict[str, Any]
STANDARD_LIBRARY = "python standard library"
HELD_OUT_SHARE = 0.01
"""Of the paths, as `cg_local.training.prepare` chose them; its default, which nano's recipe leaves as it is."""

MIN_LINE_CHARS, MAX_LINE_TOKENS = 10, 64
MIN_FILE_LINES, LINES_OF_A_FILE = 20, 4


@dataclass(frozen=True)
class Variant:
    """One way to build the prompt.

    Attributes:
        prompt_tokens: most tokens of the prompt.
        context_tokens: those of them that other files may take; 0: no other files.
    """

    prompt_tokens: int
    context_tokens: int

    @property
    def name(self) -> str:
        """Both numbers."""
        return f"{self.prompt_tokens}/{self.context_tokens}"


@dataclass(frozen=True)
class Case:
    """A line of a file, from 0."""

    package: str
    path: str
    line: int


def main() -> None:
    """Ask for all lines and print how the variants compare."""
    options = _parser().parse_args()
    variants = [Variant(*map(int, text.split("/"))) for text in options.variants]
    model = load(options.model, scheme=options.scheme)
    rows: list[Result] = []
    with TemporaryDirectory(prefix="cg-local-context-") as work:
        for package in options.packages:
            tree = WorkTree(copied(package, Path(work), options.model).resolve(), is_git=False)
            for case in lines_of(package, tree, options.lines, options.seed):
                rows += [row for row in [ask(model, tree, case, variants)] if row is not None]
                print(f"\r{len(rows)} lines", end="", file=sys.stderr)
    figures = {variant.name: figures_of(rows, variant, variants[0]) for variant in variants}
    print("\nprompt/context     lines  log-probability  exact  difference to the first, 95 % interval", file=sys.stderr)
    for name, figure in figures.items():
        print(
            f"{name:<16}{len(rows):>8}{figure['mean_logprob']:>17.4f}{figure['exact']:>7.3f}"
            f"{figure['difference']:>12.4f} +- {figure['margin']:.4f}",
            file=sys.stderr,
        )
    result = {
        "benchmark": {"name": "repository_context", **vars(options)},
        "model": model_card(model.path),
        "machine": machine_card(),
        "lines": len(rows),
        "figures": figures,
        "rows": rows if options.rows else None,
    }
    print(json.dumps(result))


def copied(package: str, work: Path, model: str) -> Path:
    """Copy a package's source into a folder of its own, which is then its repository.

    The model's card must not name the package; of the standard library all files are copied, and only those that were
    held out are asked for.
    """
    card = embedded_checkpoint(model) / "README.md"
    if package == STANDARD_LIBRARY:
        source, target = Path(sysconfig.get_path("stdlib")), work / "lib"
    else:
        trained = card.read_text(encoding="utf-8").lower() if card.is_file() else ""
        if f"| {package.replace('_', '-').lower()} |" in trained or f"| {package.lower()} |" in trained:
            sys.exit(f"repository_context: {model} was trained on {package}; name another package")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            sys.exit(f"repository_context: {package} is not installed, or no package; install it")
        source = Path(spec.submodule_search_locations[0])
        target = work / package / source.name
    skipped = shutil.ignore_patterns("__pycache__", "site-packages", "*.so", "idle_test", "test", "tests")
    shutil.copytree(source, target, ignore=skipped, dirs_exist_ok=True)
    return target if package == STANDARD_LIBRARY else target.parent


def lines_of(package: str, tree: WorkTree, count: int, seed: int) -> Iterator[Case]:
    """Lines of simple statements in files that other files may help with, files and lines drawn at random."""
    rng = random.Random(f"{seed}/{package}")
    paths = [path for path in tree.paths() if path.endswith(".py") and is_held_out(package, path)]
    for path in rng.sample(paths, len(paths)):
        if not count:
            break
        text = tree.read(path) or ""
        lines = list(statement_lines(text)) if text.count("\n") >= MIN_FILE_LINES else []
        if lines and candidates(tree, path, text):
            chosen = rng.sample(lines, min(LINES_OF_A_FILE, len(lines), count))
            count -= len(chosen)
            yield from (Case(package, path, line) for line in chosen)


def is_held_out(package: str, path: str) -> bool:
    """Whether training left a file out: all of a package that it did not use, some of the standard library."""
    from cg_local.training.corpus import Package, SourceFile

    return package != STANDARD_LIBRARY or SourceFile(Package(package, "", ""), path, "").is_held_out(HELD_OUT_SHARE)


def statement_lines(text: str) -> Iterator[int]:
    """Lines, from 0, that are one whole statement inside a function or class; imports and docstrings are none."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines = text.split("\n")
    for node in ast.walk(tree):
        if isinstance(
            node, ast.Return | ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Raise | ast.Expr | ast.Assert
        ):
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            line = lines[node.lineno - 1]
            is_alone = node.end_lineno == node.lineno and line[: node.col_offset].strip() == "" and node.col_offset > 0
            if is_alone and not is_text and len(line.strip()) >= MIN_LINE_CHARS:
                yield node.lineno - 1


def ask(model: LocalModel, tree: WorkTree, case: Case, variants: list[Variant]) -> Result | None:
    """Return log-probability and exactness of the true line for each variant; None where the line is too long."""
    text = tree.read(case.path)
    assert text is not None
    lines = text.splitlines(keepends=True)
    prefix, suffix = "".join(lines[: case.line]), "".join(lines[case.line + 1 :])
    true_ids = model.tokenizer.encode(lines[case.line])
    if len(true_ids) > MAX_LINE_TOKENS:
        return None
    found = candidates(tree, case.path, text)
    row: Result = {**asdict(case), "file_tokens": len(model.tokenizer.encode(text)), "num_tokens": len(true_ids)}
    for variant in variants:
        files = pack(tree, found, variant.context_tokens, lambda part: len(model.tokenizer.encode(part)))
        prompt = infill_prompt(
            model.tokenizer,
            prefix,
            suffix,
            path=case.path,
            order=model.infill_order,
            context=[(file.path, file.text) for file in files],
            context_share=variant.context_tokens / variant.prompt_tokens,
            max_prompt_tokens=variant.prompt_tokens,
        )
        rows = model.logits([*prompt.token_ids, *true_ids[:-1]])[len(prompt.token_ids) - 1 :].astype(np.float64)
        top = rows.max(axis=1)
        chosen = rows[np.arange(len(true_ids)), true_ids]
        logprobs = chosen - top - np.log(np.exp(rows - top[:, None]).sum(axis=1))
        row[variant.name] = {
            "logprob": float(logprobs.mean()),
            "exact": bool((chosen >= top).all()),
            "kinds": [file.kind for file in files],
            "context_tokens": sum(file.num_tokens for file in files),
        }
    return row


def figures_of(rows: list[Result], variant: Variant, first: Variant) -> Result:
    """Means over the lines, and the mean difference to the first variant with half its 95 % interval."""
    logprobs = np.array([row[variant.name]["logprob"] for row in rows])
    differences = logprobs - np.array([row[first.name]["logprob"] for row in rows])
    return {
        "mean_logprob": float(logprobs.mean()),
        "exact": float(np.mean([row[variant.name]["exact"] for row in rows])),
        "context_tokens": float(np.mean([row[variant.name]["context_tokens"] for row in rows])),
        "difference": float(differences.mean()),
        "margin": float(1.96 * differences.std() / max(len(rows), 1) ** 0.5),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="as of `cg-local fill`")
    parser.add_argument("--scheme", help="how to quantize an embedded model")
    parser.add_argument("--packages", nargs="+", default=[STANDARD_LIBRARY], help="installed packages")
    parser.add_argument("--lines", type=int, default=50, help="lines of each package")
    parser.add_argument(
        "--variants", nargs="+", default=["448/0", "448/64", "448/128", "448/224"], help="PROMPT/CONTEXT"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", action="store_true", help="put each line's figures into the result")
    return parser


if __name__ == "__main__":
    main()
