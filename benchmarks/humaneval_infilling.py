#!/usr/bin/env python3
"""HumanEval infilling: greedy completions of a model, run in a sandbox; pass@1 and exact match.

This file owns the command and the order of the measurement. Tasks and figures are `infilling_tasks`', walls around the
programs `sandbox`'s. Invariant: a result names everything that is needed to repeat it.

    python benchmarks/humaneval_infilling.py --data HumanEval-SingleLineInfilling.jsonl.gz --model nano --scheme q4
    python benchmarks/humaneval_infilling.py --data HumanEval-SingleLineInfilling.jsonl.gz --check-scorer

The table goes to stderr, the result to stdout as one line of JSON. README.md has the method.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from infilling_tasks import NUM_PUBLISHED, Score, Task, line_prediction, read_tasks, score
from model_loading import load, model_path, one_line, quantized_folder
from sandbox import TIMEOUT_SECONDS, Outcome, Sandbox

from cg_local.bench.cards import machine_card, model_card
from cg_local.bench.figures import spread
from cg_local.config import EngineConfig, SamplingParams
from cg_local.errors import CgLocalError
from cg_local.infill.postprocess import MiddleTrimmer
from cg_local.prompts import ORDERS, infill_prompt
from cg_local.tokenizer import Tokenizer

NUM_WORKERS = 2


@dataclass(frozen=True)
class Completion:
    """The answer to one task: text up to the stop token, why it ended, and what it took."""

    text: str
    stop_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True)
class Generator:
    """What answers prompts: token ids in, chosen ids and the reason of the end out."""

    tokenizer: Tokenizer
    max_context: int
    answer: Callable[[list[int]], tuple[list[int], str]]
    card: dict[str, object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print the table and the result."""
    options = parse_options(arguments)
    try:
        tasks = read_tasks(options.data)[: options.limit]
        # A single line is cut as `fill --mode line`; where several are missing, the text around the gap decides.
        options.mode = options.mode or ("line" if tasks[0].kind == "SingleLineInfilling" else "auto")
        sandbox = Sandbox(options.timeout)
        result = {"benchmark": "humaneval_infilling" + " scorer" * options.check_scorer, **_describe(tasks, sandbox)}
        if options.check_scorer:
            result["scores"] = check_scorer(tasks, sandbox)
        else:
            result |= measure(tasks, sandbox, options)
    except (CgLocalError, ValueError, OSError) as error:
        print(f"humaneval_infilling: {one_line(error)}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


def check_scorer(tasks: Sequence[Task], sandbox: Sandbox) -> dict[str, object]:
    """Score the canonical solutions, which must all pass, and empty completions, of which hardly any can."""
    scores: dict[str, object] = {}
    for name, completions in (
        ("canonical", [task.canonical_solution for task in tasks]),
        ("empty", [""] * len(tasks)),
    ):
        outcomes = run_checks(tasks, completions, sandbox)
        failed = [task.task_id for task, outcome in zip(tasks, outcomes, strict=True) if not outcome.passed]
        figures = score(tasks, completions, outcomes)
        print_table({name: figures})
        slowest = max(outcome.seconds for outcome in outcomes)
        scores[name] = asdict(figures) | {"slowest_seconds": slowest, "first_failed": failed[:10]}
    return scores


def measure(tasks: Sequence[Task], sandbox: Sandbox, options: argparse.Namespace) -> dict[str, object]:
    """Generate, score both variants, and describe the run."""
    started = time.perf_counter()
    with open_generator(options) as generator:
        completions = []
        for index, task in enumerate(tasks):
            completions.append(complete(task, generator, options))
            _show_progress("generated", index + 1, len(tasks))
    generation_seconds = time.perf_counter() - started
    if options.completions:
        _write_completions(options.completions, tasks, completions)
    raw = [(completion.text, completion.stop_reason == "stop_id") for completion in completions]
    trimmed = [trim(task, text, options, ended) for task, (text, ended) in zip(tasks, raw, strict=True)]
    scores = {}
    outcomes_of: dict[tuple[str, str], Outcome] = {}
    for name, answers in {"raw": raw, f"trimmed_{options.mode}": trimmed}.items():
        texts, ended = [text for text, _ in answers], [is_ended for _, is_ended in answers]
        scores[name] = score(tasks, texts, run_checks(tasks, texts, sandbox, outcomes_of), ended)
    print_table(scores)
    names = ("backend", "scheme", "order", "with_path", "max_tokens", "mode", "threads", "kv_dtype")
    return {
        "settings": {name: getattr(options, name) for name in names} | {"sampling": "greedy, one task at a time"},
        "model": generator.card,
        "scores": {name: asdict(figures) for name, figures in scores.items()},
        "generation": _generation_figures(completions, generation_seconds),
    }


def complete(task: Task, generator: Generator, options: argparse.Namespace) -> Completion:
    """Answer one task."""
    prompt = infill_prompt(
        generator.tokenizer,
        task.prompt,
        task.suffix,
        path=f"{task.entry_point}.py" if options.with_path else None,
        order=options.order,
        max_prompt_tokens=generator.max_context - options.max_tokens,
    )
    started = time.perf_counter()
    token_ids, stop_reason = generator.answer(prompt.token_ids)
    seconds = time.perf_counter() - started
    text = generator.tokenizer.decode(token_ids)
    return Completion(text, stop_reason, len(prompt.token_ids), len(token_ids), seconds)


def trim(task: Task, text: str, options: argparse.Namespace, ended: bool) -> tuple[str, bool]:
    """Cut a completion as `cg-local fill` does; what is left of it ends with the newline that the gap needs.

    Returns:
        The text, and whether it ended before the bound on tokens: by a stop of the trimming, or as it was (`ended`).
    """
    trimmer = MiddleTrimmer(task.prompt, task.suffix, mode=options.mode, path=f"{task.entry_point}.py")
    shown = trimmer.push(text)
    return line_prediction(shown + trimmer.finish()), ended or trimmer.stop_reason is not None


def run_checks(
    tasks: Sequence[Task],
    completions: Sequence[str],
    sandbox: Sandbox,
    known: dict[tuple[str, str], Outcome] | None = None,
) -> list[Outcome]:
    """Run the tests of all completions; what `known` holds by task id and text is not run again, the rest is added."""
    known = {} if known is None else known
    todo = [pair for pair in zip(tasks, completions, strict=True) if (pair[0].task_id, pair[1]) not in known]
    outcomes = sandbox.run_all((task.check_program(text) for task, text in todo), NUM_WORKERS)
    for count, ((task, text), outcome) in enumerate(zip(todo, outcomes, strict=True), 1):
        known[task.task_id, text] = outcome
        _show_progress("tested", count, len(todo))
    return [known[task.task_id, text] for task, text in zip(tasks, completions, strict=True)]


@contextmanager
def open_generator(options: argparse.Namespace) -> Iterator[Generator]:
    """Give the backend that was asked for."""
    folder = model_path(options.model)
    if options.backend == "reference":
        yield _reference_generator(folder, options)
        return
    with quantized_folder(folder, options.scheme, options.work) as quantized:
        config = EngineConfig(num_threads=options.threads, kv_dtype=options.kv_dtype)
        loaded = load(quantized, config)
        params = SamplingParams(max_tokens=options.max_tokens)

        def answer(token_ids: list[int]) -> tuple[list[int], str]:
            sequence = loaded.engine.add(token_ids, params, loaded.tokenizer.infill_stop_ids)
            loaded.engine.run()
            return sequence.completion_ids, str(sequence.stop_reason)

        card = model_card(folder) | {"quantized_sha256": model_card(quantized)["sha256"]}
        yield Generator(loaded.tokenizer, loaded.engine.max_context, answer, card)


def _reference_generator(folder: Path, options: argparse.Namespace) -> Generator:
    from reference_generation import CachedReference

    model = CachedReference(folder)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.model")

    def answer(token_ids: list[int]) -> tuple[list[int], str]:
        return model.generate(token_ids, options.max_tokens, tokenizer.infill_stop_ids)

    return Generator(tokenizer, model.config.max_position_embeddings, answer, model_card(folder))


def print_table(scores: Mapping[str, Score]) -> None:
    """Print the figures for a person, to stderr."""
    head = f"{'variant':<14} {'tasks':>5} {'pass@1':>7} {'95 % interval':>15} {'exact':>7} {'exact, no end space':>20}"
    head += f" {'ended':>7} {'repeats suffix':>15}"
    print(head, file=sys.stderr)
    for name, s in scores.items():
        interval = f"{s.pass_at_1_low:6.2%} - {s.pass_at_1_high:6.2%}"
        rates = f"{s.pass_at_1:7.2%} {interval:>15} {s.exact_match:7.2%} {s.exact_match_stripped:20.2%}"
        rates += f" {'' if s.ended is None else format(s.ended, '.2%'):>7} {s.repeats_suffix:15.2%}"
        print(f"{name:<14} {s.num_tasks:>5} {rates}", file=sys.stderr)


def _describe(tasks: Sequence[Task], sandbox: Sandbox) -> dict[str, object]:
    kind = tasks[0].kind
    return {
        "tasks": {"kind": kind, "num_tasks": len(tasks), "num_published": NUM_PUBLISHED[kind]},
        "sandbox": {**sandbox.isolation, "timeout_seconds": sandbox.timeout_seconds, "num_workers": NUM_WORKERS},
        "machine": machine_card(),
    }


def _generation_figures(completions: Sequence[Completion], seconds: float) -> dict[str, object]:
    reasons = [completion.stop_reason for completion in completions]
    return {
        "seconds": round(seconds, 2),
        "seconds_per_task": spread([completion.seconds for completion in completions]),
        "prompt_tokens": sum(completion.prompt_tokens for completion in completions),
        "completion_tokens": sum(completion.completion_tokens for completion in completions),
        "stop_reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }


def _write_completions(path: Path, tasks: Sequence[Task], completions: Sequence[Completion]) -> None:
    lines = [
        json.dumps({"task_id": task.task_id, **asdict(completion)})
        for task, completion in zip(tasks, completions, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _show_progress(verb: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{verb} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FILE", help="tasks of human-eval-infilling, .jsonl.gz")
    add("--model", default="nano", help="model folder, published weights, or a carried model's name (default: nano)")
    add("--backend", choices=("engine", "reference"), default="engine", help="default: engine")
    add("--scheme", choices=("q4", "q8", "bf16"), default="q4", help="of the engine's weights (default: q4)")
    add("--kv-dtype", choices=("float16", "float32", "int8"), default="float16", help="of the engine's K and V")
    add("--threads", type=int, help="of the engine (default: all cores)")
    add("--limit", type=int, metavar="N", help="only the first N tasks")
    add("--order", choices=ORDERS, default="psm", help="of the prompt (default: psm)")
    add("--with-path", action="store_true", help="start the prompt with the path line ENTRY_POINT.py")
    add("--without-path", dest="with_path", action="store_false", help="no path line (default)")
    add("--max-tokens", type=int, default=128, help="most tokens of a completion (default: 128)")
    add("--mode", choices=("line", "block", "auto"), help="how to trim (default: line, for multi-line tasks auto)")
    add("--timeout", type=float, default=TIMEOUT_SECONDS, help="seconds a program may run (default: 3)")
    add("--work", type=Path, metavar="FOLDER", help="keep quantized weights here instead of in a temporary folder")
    add("--completions", type=Path, metavar="FILE", help="write all completions as JSON lines")
    add("--check-scorer", action="store_true", help="score canonical and empty completions; needs no model")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
