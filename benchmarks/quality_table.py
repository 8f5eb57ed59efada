#!/usr/bin/env python3
"""Quality by bytes: this project's schemes and llama.cpp's file types of the same published weights, in one comparison.

This file owns which models are compared and the making of llama.cpp's files. It computes no figure itself
(`cg_local.quality`) and words none (`quality_text`). Invariant: every model of a result was made from the
same checkpoint and scored on the same tokens.

    python benchmarks/quality_table.py measure nano --peer-python PYTHON --work FOLDER [MODEL ...]
    python benchmarks/quality_table.py text          # the Markdown of benchmarks/results/quality-nano.json
    python benchmarks/quality_table.py text --write  # puts some of its rows into README.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quality_text import KV_MODELS, Document, markdown, of_kv, pairs, readme_text
from readme_markers import markers, write_part

from cg_local.bench.cards import machine_card
from cg_local.bench.peers import FILE_TYPES, make_peer_files, peer_file
from cg_local.errors import CgLocalError
from cg_local.model_store import find_model
from cg_local.quality.models import Reference, open_compared, open_reference
from cg_local.quality.places import Places
from cg_local.quality.report import Options, measure
from cg_local.quality.table import report

RESULTS = Path(__file__).resolve().parent / "results"
SCHEMES = ("q4", "q8")
IMPORTANCE_TOKENS = 32_768
# What llama.cpp's own collector leaves out: Gemma's head is the embedding, whose name does not begin with "blk.".
# Source: llama.cpp, tools/imatrix/imatrix.cpp.
EXCLUDED = ("model.embed_tokens.weight", "lm_head.weight")

AROUND = markers("quality", "quality_table.py")
KV_DTYPES = ("float16", "int8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line; measure, or print the text of a result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="make the files, compare, store the result")
    measuring.add_argument("reference", help="embedded name or folder of published weights")
    measuring.add_argument("models", nargs="*", type=Path, help="model folders and GGUF files beside those made here")
    measuring.add_argument("--schemes", default=",".join(SCHEMES), help="made here with cg-local quantize")
    measuring.add_argument("--kinds", default=",".join(FILE_TYPES), help="made here with llama.cpp")
    measuring.add_argument("--importance-kinds", default="Q4_0,Q4_K_S,Q4_K_M,IQ4_XS", help="also with an imatrix")
    measuring.add_argument("--peer-python", required=True, help="an interpreter that has llama-cpp-python")
    measuring.add_argument("--work", type=Path, required=True, help="folder for the models made here")
    measuring.add_argument("--tokens", type=int, default=40_960)
    measuring.add_argument("--window", type=int, default=512)
    measuring.add_argument("--kv-dtypes", default="float16", help="K and V of every model")
    measuring.add_argument("--kv-models", default=",".join(KV_MODELS), help="those of the models also run with int8")
    measuring.add_argument("--activations", default="int8,int16")
    measuring.add_argument("--output", type=Path)
    text = commands.add_parser("text", help="print the Markdown of a result")
    text.add_argument("result", nargs="?", type=Path, default=RESULTS / "quality-nano.json")
    text.add_argument("--write", action="store_true", help="put the rows for README into it")
    options = parser.parse_args(arguments)
    try:
        if options.command == "measure":
            measured(options)
        elif options.write:
            write_part(AROUND, readme_text(read(options.result)))
        else:
            print(markdown(read(options.result)))
    except (CgLocalError, OSError, ValueError) as error:
        print(f"quality_table: {error}", file=sys.stderr)
        return 1
    return 0


def measured(options: argparse.Namespace) -> None:
    """Make what is missing, compare, store result and plot, and print the tables."""
    from cg_local.quality.plot import write_plot
    from cg_local.quant.corpora import evaluation_corpus

    opened = open_reference(options.reference, find_model(options.reference).path)
    output = options.output or RESULTS / f"quality-{Path(opened.name).name}.json"
    paths = [*made_models(opened, options), *options.models]
    models = [open_compared(path, opened) for path in paths]
    baselines = pairs([model.name for model in models])
    texts = evaluation_corpus(opened.tokenizer, None, num_tokens=options.tokens, window_tokens=options.window)
    chosen = Options(
        kv_dtypes=tuple(options.kv_dtypes.split(",")),
        activations=tuple(options.activations.split(",")),
        peer_python=options.peer_python,
        baselines=baselines,
    )
    document = measure(opened, Places(texts), models, chosen, say=say)
    some = [model for model in models if model.name in options.kv_models.split(",")]
    if some:
        ways = Options(kv_dtypes=KV_DTYPES, peer_python=options.peer_python)
        document = with_kv(document, measure(opened, Places(texts), some, ways, say=say))
    document = {**document, "window_tokens": options.window, "machine": machine_card()}
    write_stored(document, output)
    write_plot(document, output.with_suffix(".svg"))
    print(report(document))


def with_kv(document: Document, other: Document) -> Document:
    """Return a result with another's comparisons of 8-bit K and V beside each model's own.

    Args:
        document: of all models.
        other: of some of them, on the same tokens.
    """
    found = {model["name"]: list(of_kv(model)) for model in other["models"]}
    models = [
        {**model, "comparisons": [*model["comparisons"], *found.get(model["name"], [])]} for model in document["models"]
    ]
    return {**document, "models": models}


def write_stored(document: Document, path: Path) -> None:
    """Store a result with six digits of each figure, a model a line, so that it stays small beside the code."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(each) for name, each in value.items()}
        if isinstance(value, list):
            return [rounded(each) for each in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    lines = [json.dumps(rounded(model), separators=(",", ":")) for model in document["models"]]
    rest = json.dumps({name: rounded(value) for name, value in document.items() if name != "models"})
    path.write_text(f'{rest[:-1]}, "models": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def say(text: str) -> None:
    """Tell how far it is, once for each model."""
    if "window" not in text and "layer" not in text:
        print(text, file=sys.stderr, flush=True)


def made_models(opened: Reference, options: argparse.Namespace) -> Iterator[Path]:
    """Make this project's model folders and llama.cpp's files, and yield their paths."""
    from cg_local.quant import quantize

    name = Path(opened.name).name
    options.work.mkdir(parents=True, exist_ok=True)
    for scheme in filter(None, options.schemes.split(",")):
        folder = options.work / f"{name}-{scheme}"
        if not folder.exists():
            say(f"quantizing {name} to {scheme}")
            quantize(opened.checkpoint.path, folder, scheme)
        yield folder
    plain = tuple(filter(None, options.kinds.split(",")))
    make_peer_files(opened.checkpoint.path, options.work / "llama", plain, options.peer_python, say=say)
    yield from renamed(options.work / "llama", plain, "")
    weighted = tuple(filter(None, options.importance_kinds.split(",")))
    if weighted:
        folder = options.work / "imatrix"
        importance = written_importance(opened, folder)
        make_peer_files(opened.checkpoint.path, folder, weighted, options.peer_python, say=say, importance=importance)
        yield from renamed(folder, weighted, "imatrix-")


def renamed(folder: Path, kinds: Sequence[str], mark: str) -> Iterator[Path]:
    """Name files by their type and a mark, as they shall stand in tables; `peer_file` finds them by the name's end."""
    for kind in kinds:
        file = peer_file(folder, kind)
        yield file.replace(folder / f"{mark}{FILE_TYPES[kind]}.gguf")


def written_importance(opened: Reference, folder: Path) -> Path:
    """Write the mean squares of each matrix's inputs over texts to calibrate on, as llama.cpp's imatrix has them."""
    import numpy as np

    from cg_local.checkpoint.gguf_names import gguf_name
    from cg_local.quant.corpora import calibration_corpus
    from cg_local.quant.hidden_states import final_states

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "importance.npz"
    if path.exists():
        return path
    say("collecting an imatrix")
    corpus = calibration_corpus(opened.tokenizer, None, num_tokens=IMPORTANCE_TOKENS, window_tokens=512)
    found: dict[str, Any] = {}

    def observe(name: str, inputs: list[Any]) -> None:
        if name not in EXCLUDED:
            squares = sum(np.square(x, dtype=np.float64).sum(axis=0) for x in inputs)
            found[gguf_name(name)] = (squares / sum(map(len, inputs))).astype(np.float32)

    final_states(opened.checkpoint, [window.token_ids for window in corpus.windows], observe=observe)
    np.savez(path, **found)
    return path


def read(path: Path) -> Document:
    """Read a stored result.

    Raises:
        ValueError: it is none.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or "num_scored" not in document:
        raise ValueError(f"{path}: no result of this program")
    return document


if __name__ == "__main__":
    sys.exit(main())
