"""Writes the model card from the recipe, the log and the record of sources.

Owns the card's text. Every figure in it comes from a file, so a card cannot disagree with its run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

HEAD = """# {name}

{introduction}

| | |
| --- | --- |
"""

INTRODUCTION = """A small fill-in-the-middle model with the architecture of Google's CodeGemma (Gemma 1), trained from
scratch with cg-local. It holds no weights of Google's, and it was not trained by or with Google."""

USE = """
## Use

The first 169 token ids are CodeGemma's. A gap is asked for as CodeGemma is asked, with these ids and no spaces between:

    <bos><|fim_prefix|>{text before}<|fim_suffix|>{text after}<|fim_middle|>

The model answers with the middle and `<|file_separator|>`. A path and a newline may stand before `<|fim_prefix|>`. The
order suffix first, `<|fim_suffix|>{text after}<|fim_prefix|>{text before}<|fim_middle|>`, was trained equally often.
Stop at ids 1, 67, 68, 69, 70 and 107. The folder has the Hugging Face layout; transformers loads it as
`GemmaForCausalLM`.
"""

DATA = """
## Data

{note}"Times" is how often a file was drawn per epoch; of files with `test` in their path, {test_share:.0%} were used.

| source | version | licence as stated | files | bytes | times |
| --- | --- | --- | ---: | ---: | ---: |
{rows}
Files dropped: {dropped}. A file shares words with an evaluation set when ten words in a row, with at least 25 letters,
stand in a prompt, a solution or a suffix of it ({evaluation}). {num_held_out} files, chosen by the hash of their path,
were held out for validation.
"""

LIMITS = """
## Limits

- It knows the languages and libraries of its data, and those superficially.
- Contexts beyond {context} tokens were never trained.
- It was not tuned for chat and does not follow instructions.
- It can repeat fragments of its training files, whose licences are listed above. Check what you keep.
- No filter for personal data was applied beyond dropping files that are not readable code.
"""


def curve(steps: list[dict[str, Any]], num_rows: int = 12) -> str:
    """The loss over the run as a table: means over equal shares of the steps."""
    lines = "| tokens | minutes | loss, all tokens | loss, middles |\n| ---: | ---: | ---: | ---: |\n"
    size = max(1, len(steps) // num_rows)
    for start in range(0, len(steps) - size + 1, size):
        part = steps[start : start + size]
        tokens, minutes = part[-1]["tokens"] / 1e6, part[-1]["elapsed"] / 60
        overall, middle = (sum(entry[name] for entry in part) / size for name in ("loss", "middle_loss"))
        lines += f"| {tokens:.2f} M | {minutes:.0f} | {overall:.3f} | {middle:.3f} |\n"
    return lines


def data_section(sources: dict[str, Any], recipe: dict[str, Any], note: str) -> str:
    """The sources with versions, licences and bytes, and what was dropped."""
    repeats = dict(recipe["data"]["repeats"])
    rows = ""
    for source in sorted(sources["sources"], key=lambda item: -item["bytes"]):
        times = repeats.get(source["name"], recipe["data"]["other_repeats"])
        if times:
            cells = [
                source["name"],
                source["version"],
                source["licence"],
                source["files"],
                f"{source['bytes']:,}",
                times,
            ]
            rows += "| " + " | ".join(map(str, cells)) + " |\n"
    dropped = "; ".join(f"{count:,} {reason}" for reason, count in sorted(sources["dropped"].items())) or "none"
    test_share, num_held_out = recipe["run"]["test_share"], len(sources["held_out"])
    evaluation = ", ".join(Path(path).name for path in sources.get("options", {}).get("evaluation", [])) or "none given"
    return DATA.format(
        note=note and note + "\n\n",
        test_share=test_share,
        rows=rows,
        dropped=dropped,
        num_held_out=num_held_out,
        evaluation=evaluation,
    )


def facts(recipe: dict[str, Any], last: dict[str, Any], num_params: int, notes: dict[str, Any]) -> str:
    """The rows of the first table."""
    arch, run, fim = recipe["model"], recipe["run"], recipe["data"]["fim"]
    heads = f"{arch['num_heads']} query heads of {arch['head_dim']}, {arch['num_kv_heads']} key-value head"
    widths = f"hidden {arch['hidden_size']}, MLP {arch['intermediate_size']}, vocabulary {arch['vocab_size']}"
    rows = {
        "Parameters": f"{num_params:,} (bfloat16, embedding tied)",
        "Shape": f"{arch['num_layers']} layers, {widths}, {heads}",
        "Context": f"{max(run['sequence_lengths'])} tokens",
        "Trained on": f"{last['tokens'] / 1e6:.1f} million tokens in {last['step']:,} steps",
        "Compute": f"{last['elapsed'] / 3600:.2f} hours{notes.get('hardware', '')}",
        "Recipe": f"FIM rate {fim['fim_rate']:.0%}, suffix first in {fim['spm_rate']:.0%}",
    }
    rows |= notes.get("facts", {})
    return "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def quality(log: list[dict[str, Any]], notes: dict[str, Any]) -> str:
    """Validation losses as a sentence, and what else was measured as a list or as given."""
    text = "\n## Quality\n\n"
    validations = [entry for entry in log if "validation_loss" in entry]
    if validations:
        final = validations[-1]
        # What is exported: the running average where its loss is the lower one.
        kind = "average" if final.get("average_loss", math.inf) < final["validation_loss"] else "validation"
        losses = [
            f"{final[name]:.3f} nats per token over {part} (perplexity {math.exp(final[name]):.1f})"
            for name, part in ((f"{kind}_loss", "all tokens"), (f"{kind}_middle_loss", "the middles"))
        ]
        text += f"Held-out files after {final['tokens'] / 1e6:.1f} million tokens: {', '.join(losses)}.\n\n"
    text += "".join(f"- {name}: {value}\n" for name, value in notes.get("measured", {}).items())
    return text + str(notes.get("quality", ""))


def model_card(
    recipe: dict[str, Any],
    log: list[dict[str, Any]],
    sources: dict[str, Any],
    *,
    num_params: int,
    notes: dict[str, Any],
) -> str:
    """The card as Markdown.

    Args:
        recipe: the recipe in the checkpoint.
        log: lines of the run's log up to the checkpoint; at least one step.
        sources: content of `sources.json`.
        num_params: number of weights.
        notes: what no file of the run knows; all optional: `name` and `introduction` of the model, `hardware` behind
            the hours, `facts` and `measured` as name to value, `quality` and `data` as Markdown.
    """
    steps = [entry for entry in log if "loss" in entry]
    head = HEAD.format(name=notes.get("name", "model"), introduction=notes.get("introduction", INTRODUCTION))
    text = head + facts(recipe, steps[-1], num_params, notes) + USE + quality(log, notes)
    text += (
        "\nTraining loss in nats per token:\n\n" + curve(steps) + data_section(sources, recipe, notes.get("data", ""))
    )
    return text + LIMITS.format(context=max(recipe["run"]["sequence_lengths"]))
