"""Writes the model card from the recipe, the log and the record of sources.

Owns the card's text. Every figure in it comes from a file, so a card cannot disagree with its run.
"""

from __future__ import annotations

from typing import Any

HEAD = """# nano

A small fill-in-the-middle model for Python with the architecture of Google's CodeGemma (Gemma 1), trained from scratch by
the cg-local project. It is the default model of `cg-local`, so that everything works straight after installation.
**It is a toy in quality**: it completes easy lines and short blocks, and it is often wrong. It holds no weights of Google's,
and it was not trained by or with Google.

| | |
| --- | --- |
"""

USE = """
## Use

The first 169 token ids are CodeGemma's. A gap is asked for as CodeGemma is asked, with these ids and no spaces between:

    <bos><|fim_prefix|>{text before}<|fim_suffix|>{text after}<|fim_middle|>

The model answers with the middle and `<|file_separator|>`. A path and a newline may stand before `<|fim_prefix|>`. The order
suffix first, `<|fim_suffix|>{text after}<|fim_prefix|>{text before}<|fim_middle|>`, was trained equally often. Stop at ids 1,
67, 68, 69, 70 and 107. The folder has the Hugging Face layout; transformers loads it as `GemmaForCausalLM`.
"""

LIMITS = """
## Limits

- Python only, English comments only; it knows few libraries, and those superficially.
- Contexts beyond {context} tokens were never trained.
- It was not tuned for chat and does not follow instructions.
- It can repeat fragments of its training files, whose licences are listed above. Check what you keep.
- No filter for personal data was applied beyond dropping files that are not readable code.
"""


def row(name: str, value: object) -> str:
    """One row of a two-column table."""
    return f"| {name} | {value} |\n"


def curve(log: list[dict[str, Any]], num_rows: int = 12) -> str:
    """The loss over the run as a table: means over equal shares of the steps."""
    steps = [entry for entry in log if "loss" in entry]
    lines = "| tokens | minutes | loss, all tokens | loss, middles |\n| ---: | ---: | ---: | ---: |\n"
    size = max(1, len(steps) // num_rows)
    for start in range(0, len(steps) - size + 1, size):
        part = steps[start : start + size]
        all_loss, middle = (sum(entry[name] for entry in part) / size for name in ("loss", "middle_loss"))
        lines += f"| {part[-1]['tokens'] / 1e6:.2f} M | {part[-1]['elapsed'] / 60:.0f} | {all_loss:.3f} | {middle:.3f} |\n"
    return lines


def data_section(sources: dict[str, Any], recipe: dict[str, Any]) -> str:
    """The sources with versions, licences and bytes, and what was dropped."""
    repeats = dict(recipe["data"]["repeats"])
    text = "\n## Data\n\nPython source of these distributions, all from PyPI or python.org. \"Times\" is how often a file was drawn per\n"
    text += "epoch; of files with `test` in their path only a share of "
    text += f"{recipe['run']['test_share']:.0%} was used. An epoch is longer than the run, so most files were seen at most once.\n\n"
    text += "| source | version | licence as stated | files | bytes | times |\n| --- | --- | --- | ---: | ---: | ---: |\n"
    used = [source for source in sources["sources"] if repeats.get(source["name"], 1)]
    for source in sorted(used, key=lambda item: -item["bytes"]):
        times = repeats.get(source["name"], 1)
        text += f"| {source['name']} | {source['version']} | {source['licence']} | {source['files']} | {source['bytes']:,} | {times} |\n"
    text += "\nDropped files: " + "; ".join(f"{count:,} {reason}" for reason, count in sorted(sources["dropped"].items()))
    text += ". Files sharing ten words in a row (with at least 25 letters) with a prompt, a solution or a suffix of HumanEval or\n"
    text += f"HumanEval Infilling were dropped before training. {len(sources['held_out'])} files, chosen by the hash of their path,\n"
    return text + "were held out for validation.\n"


def model_card(
    recipe: dict[str, Any], log: list[dict[str, Any]], sources: dict[str, Any], *, num_params: int, measured: dict[str, Any]
) -> str:
    """The card as Markdown.

    Args:
        recipe: the recipe in the checkpoint.
        log: lines of the run's log up to the checkpoint.
        sources: content of `sources.json`.
        num_params: number of weights.
        measured: name to value of measured quality; may be empty.
    """
    arch, run, fim = recipe["model"], recipe["run"], recipe["fim"] if "fim" in recipe else recipe["data"]["fim"]
    steps = [entry for entry in log if "loss" in entry]
    last = steps[-1]
    shape = f"{arch['num_layers']} layers, hidden {arch['hidden_size']}, MLP {arch['intermediate_size']}, {arch['num_heads']} query heads"
    text = HEAD + row("Parameters", f"{num_params:,} (bfloat16, embedding tied)")
    text += row("Shape", f"{shape} of {arch['head_dim']}, {arch['num_kv_heads']} key-value head, vocabulary {arch['vocab_size']}")
    text += row("Context", f"{max(run['sequence_lengths'])} tokens")
    text += row("Trained on", f"{last['tokens'] / 1e6:.1f} million tokens in {last['step']:,} steps")
    text += row("Compute", f"{last['elapsed'] / 3600:.2f} hours on 2 shared cores of an AMD EPYC (AVX2), float32, JAX")
    text += row("Recipe", f"FIM rate {fim['fim_rate']:.0%}, suffix first in {fim['spm_rate']:.0%} of those; `cg_local/training/nano.toml`")
    text += row("Licence", "that of cg-local")
    text += USE + "\n## Quality\n\n"
    validations = [entry for entry in log if "validation_loss" in entry]
    if validations:
        final = validations[-1]
        text += f"Held-out files, after {final['tokens'] / 1e6:.1f} million tokens: {final['validation_loss']:.3f} nats per token over all\n"
        text += f"tokens, {final['validation_middle_loss']:.3f} over the middles.\n"
    text += "".join(f"- {name}: {value}\n" for name, value in measured.items())
    text += "\nTraining loss in nats per token:\n\n" + curve(log)
    return text + data_section(sources, recipe) + LIMITS.format(context=max(run["sequence_lengths"]))
