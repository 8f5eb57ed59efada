#!/usr/bin/env python3
"""Quality by bytes: this project's schemes and llama.cpp's file types of the same published weights, in one comparison.

This file owns which models stand beside which, the making of llama.cpp's files, and the text that README shows of the
stored result. It computes no figure itself (`cg_local.quality`). Invariant: every model of a result was made from the
same checkpoint and scored on the same tokens.

    python benchmarks/quality_table.py measure nano --peer-python PYTHON --work FOLDER [MODEL ...]
    python benchmarks/quality_table.py text          # the Markdown of benchmarks/results/quality-nano.json
    python benchmarks/quality_table.py text --write  # puts some of its rows into README.md
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from readme_markers import markers, write_part

from cg_local.bench.cards import machine_card
from cg_local.bench.peers import FILE_TYPES, make_peer_files, peer_file
from cg_local.errors import CgLocalError
from cg_local.model_store import find_model
from cg_local.quality.models import GGUF, PUBLISHED, Reference, open_compared, open_reference
from cg_local.quality.places import Places
from cg_local.quality.report import END_TO_END, FORMAT_ONLY, Options, measure
from cg_local.quality.table import label_of, report

Document = dict[str, Any]
RESULTS = Path(__file__).resolve().parent / "results"
SCHEMES = ("q4", "q8")
# Name of a scheme -> the file type it is held against, the longest that fits a model's name first.
PAIRS: Mapping[str, str] = {"q4s": "q4_0", "q4": "q4_k_m", "q8": "q8_0"}
IMPORTANCE_TOKENS = 32_768
# What llama.cpp's own collector leaves out: Gemma's head is the embedding, whose name does not begin with "blk.".
# Source: llama.cpp, tools/imatrix/imatrix.cpp.
EXCLUDED = ("model.embed_tokens.weight", "lm_head.weight")

AROUND = markers("quality", "quality_table.py")
# README's rows: what they are called, the model's name in the result, how its activations are rounded.
README_ROWS = (
    ("llama.cpp Q4_0", "q4_0", None),
    ("`q4s`, method fast", "nano-q4s-fast", "int8"),
    ("`q4s`, imp", "nano-q4s-imp", "int8"),
    ("`q4s`, gptq", "nano-q4s-gptq", "int8"),
    ("formats chosen for Q4_0's bytes, imp", "nano-q4s-budget-imp", "int8"),
    ("llama.cpp Q4_K_M", "q4_k_m", None),
    ("llama.cpp Q4_K_M, imatrix", "imatrix-q4_k_m", None),
    ("formats chosen for Q4_K_M's bytes, imp", "nano-q4-budget-imp", "int8"),
    ("… gptq", "nano-q4-budget-gptq", "int8"),
    ("… for 0.93 of its bytes, imp", "nano-q4-93-imp", "int8"),
    ("llama.cpp Q8_0", "q8_0", None),
    ("`q8`, imp", "nano-q8-imp", "int8"),
    ('`q8`, imp, `activations="int16"`', "nano-q8-imp", "int16"),
)
# What 8-bit K and V add is shown of these: the weights nearest to the published ones, of which little else is seen.
KV_MODELS = ("nano-q8-imp", "q8_0")
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
    found = {model["name"]: list(_of_kv(model)) for model in other["models"]}
    models = [
        {**model, "comparisons": [*model["comparisons"], *found.get(model["name"], [])]} for model in document["models"]
    ]
    return {**document, "models": models}


def _of_kv(model: Document) -> Iterator[Document]:
    for comparison in model["comparisons"]:
        if comparison.get("kv_dtype") == "int8" and "added_kl" in comparison:
            yield comparison


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


def pairs(names: Sequence[str]) -> dict[int, int]:
    """Return, by the index of each of this project's models, that of the plain file type it is held against."""
    found = {}
    for index, name in enumerate(names):
        parts = name.lower().split("-")
        kind = next((PAIRS[scheme] for scheme in PAIRS if scheme in parts), None)
        target = next((i for i, other in enumerate(names) if other.lower() == kind), None)
        if target is not None and index != target:
            found[index] = target
    return found


def read(path: Path) -> Document:
    """Read a stored result.

    Raises:
        ValueError: it is none.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or "num_scored" not in document:
        raise ValueError(f"{path}: no result of this program")
    return document


def markdown(document: Document) -> str:
    """Return README's table: bytes, divergence of both comparisons, and ratios to the file type beside it."""
    group = next(iter(document["num_scored"]))
    lines = ["| model | MiB | bits a weight | KL, format alone | KL, as run | same top token | KL against |"]
    lines.append("| --- " * 7 + "|")
    sizes = {model["name"]: model["num_bytes"] for model in document["models"]}
    for model in sorted(document["models"], key=lambda model: model["num_bytes"]):
        if model["kind"] == PUBLISHED:
            continue
        plain, run = (first_of(model, kind) for kind in (FORMAT_ONLY, END_TO_END))
        name = f"llama.cpp {model['name']}" if model["kind"] == GGUF else f"**{model['name']}**"
        cells = [name, f"{model['num_bytes'] / 2**20:.2f}", f"{model['bits_per_weight']:.2f}"]
        cells += [with_interval(found["groups"][group]["kl_mean"]) if found else "-" for found in (plain, run)]
        cells.append(f"{(run or plain)['groups'][group]['top1_agreement']['value']:.1%}" if run or plain else "-")
        cells.append(ratio_text(model, run or plain, group, sizes))
        lines.append("| " + " | ".join(cells) + " |")
    added = [f"K and V in 8 bits add {text} to {name}." for name, text in added_by_kv(document, group).items()]
    return "\n".join([introduction(document, group), "", *lines, *([""] if added else []), *added])


def readme_text(document: Document) -> str:
    """Return README's rows: size, both divergences, and the ratio to the file type beside it.

    Raises:
        ValueError: a row's model is missing.
    """
    group = next(iter(document["num_scored"]))
    models = {model["name"]: model for model in document["models"]}
    missing = [name for _, name, _ in README_ROWS if name not in models]
    if missing:
        raise ValueError(f"the result has no {', '.join(missing)}")
    sizes = {name: model["num_bytes"] for name, model in models.items()}
    lines = [
        "| | bits a weight | KL, format alone | KL, as run | KL, as run, against |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, name, activations in README_ROWS:
        model = models[name]
        run = next(
            found
            for found in model["comparisons"]
            if found["comparison"] == END_TO_END and found.get("activations") in (activations, None)
        )
        plain = first_of(model, FORMAT_ONLY)
        cells = [label, f"{model['bits_per_weight']:.2f}"]
        cells += [with_interval(found["groups"][group]["kl_mean"]) if found else "-" for found in (plain, run)]
        cells.append(ratio_text(model, run, group, sizes))
        lines.append("| " + " | ".join(cells) + " |")
    lines += kv_rows(document, group)
    return introduction(document, group) + "\n\n" + "\n".join(lines)


def kv_rows(document: Document, group: str) -> list[str]:
    """Return README's row of 8-bit K and V: what they add to this project's weights, and to llama.cpp's.

    None in a result that was measured without.
    """
    models = {model["name"]: model for model in document["models"]}
    ours, theirs = KV_MODELS
    added = added_by_kv(document, group)
    if not {ours, theirs} <= added.keys():
        return []
    run = next(_of_kv(models[ours]))["groups"][group]["kl_mean"]
    cells = ["`q8`, imp, int8 K and V", f"{models[ours]['bits_per_weight']:.2f}", "-", with_interval(run)]
    cells.append(f"adds {added[ours]}; llama.cpp's q8_0 K and V to Q8_0: {added[theirs]}")
    return ["| " + " | ".join(cells) + " |"]


def added_by_kv(document: Document, group: str) -> dict[str, str]:
    """Return, by model, what 8-bit K and V add to its divergence, with the paired interval."""
    found = {}
    for model in document["models"]:
        for comparison in _of_kv(model):
            added = comparison["added_kl"][group]
            digits = max(0, 1 - math.floor(math.log10(max(added["high"] - added["low"], 1e-9) / 2)))
            low, high = (f"{added[name]:.{digits}f}" for name in ("low", "high"))
            found.setdefault(model["name"], f"{added['value']:.{digits}f} ({low} to {high})")
    return found


def introduction(document: Document, group: str) -> str:
    """Return what a table's divergences are of."""
    scored, documents = document["num_scored"][group], document["num_documents"][group]
    return (
        f"KL divergence from {document['reference']['name']}'s published weights in float32, in nats a token, over "
        f"{scored:,} held-out "
        f"tokens of code and gaps in {documents} files, with 95 % intervals over files."
    )


def first_of(model: Document, comparison: str) -> Document | None:
    """Return a model's first comparison of a kind: float16 K and V, int8 activations."""
    return next((found for found in model["comparisons"] if found["comparison"] == comparison), None)


def with_interval(estimate: Mapping[str, float]) -> str:
    """Return a divergence and half of its interval with the digits that mean something."""
    half = (estimate["high"] - estimate["low"]) / 2
    digits = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 6
    return f"{estimate['value']:.{digits}f} ± {half:.{digits}f}"


def ratio_text(model: Document, found: Document | None, group: str, sizes: Mapping[str, int]) -> str:
    """Return the paired ratio of the mean divergences with its interval, to which model, and the ratio of bytes."""
    if found is None or "ratios" not in found or found["ratios"][group]["kl_mean"]["value"] is None:
        return ""
    ratio = found["ratios"][group]["kl_mean"]
    other = model["baseline"]
    share = model["num_bytes"] / sizes[other]
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) x {other} at {share:.2f} x its bytes"


def bytes_at_equal_divergence(document: Document, comparison: str, group: str) -> dict[str, float]:
    """Return, by label, a model's bytes over those that llama.cpp's plain files need for the same divergence.

    Between two of their files ln KL is taken as linear in bytes; of files that another beats in both, none is used.
    Models beyond the range of the files have no figure.
    """
    peers, ours = list[tuple[float, float]](), list[tuple[str, float, float]]()
    for model in document["models"]:
        for found in model["comparisons"]:
            if found["comparison"] != comparison or found.get("kv_dtype", "float16") != "float16":
                continue
            point = float(model["num_bytes"]), math.log(max(found["groups"][group]["kl_mean"]["value"], 1e-300))
            if model["kind"] == GGUF and "imatrix" not in model["name"]:
                peers.append(point)
            elif model["kind"] not in (GGUF, PUBLISHED):
                ours.append((label_of(model, found), *point))
    best = [
        point for point in sorted(peers) if not any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in peers)
    ]
    found_ratios = {}
    for label, size, divergence in ours:
        for (low, high_kl), (high, low_kl) in pairwise(best):
            if low_kl <= divergence <= high_kl:
                needed = low + (high - low) * (high_kl - divergence) / (high_kl - low_kl)
                found_ratios[label] = size / needed
    return found_ratios


if __name__ == "__main__":
    sys.exit(main())
