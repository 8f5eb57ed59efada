"""Writes a tuned checkpoint as a model folder, with its card.

    python -m cg_local.training.instruction.publish RUN_DIR OUT_DIR --nano FOLDER --pairs FILE [--results FILE ...]

Owns the card's text, and what a chat model's folder has beside a base model's: the chat template and its stop id.
Layout of the weights and configuration are `export`'s. Invariant: every figure in the card comes from a file.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cg_local.training import export
from cg_local.training.instruction.conversation import END_OF_TURN_ID
from cg_local.training.instruction.pairs import read_conversations

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""CodeGemma's chat format for transformers' `apply_chat_template`."""

HEAD = """# nano-it

The chat-tuned sibling of nano: a very small model for short Python functions, tuned by the cg-local project on
conversations that programs wrote. It writes, fixes, explains, renames, documents and tests functions of common kinds,
and it knows how to say what it is. **It is a toy in quality**: it has two million parameters, it was shown a few
hundred kinds of functions, and outside of them it mostly answers with one of those it knows. It holds no weights of
Google's.

| | |
| --- | --- |
"""

USE = """
## Use

    cg-local chat --model nano-it
    cg_local.load("nano-it").chat([{"role": "user", "content": "Write a function that reverses a string."}])

The format is CodeGemma's, by token ids: `<bos>`, then for each turn `<start_of_turn>`, `user` or `model`, a newline,
the text, `<end_of_turn>`, a newline; the prompt ends with `<start_of_turn>model` and a newline, and the model ends its
answer with `<end_of_turn>` (107). For gaps in files use nano: the tuning did not include them.
"""

EVALUATION = """
## Fifty questions

`benchmarks/instruction_questions.py` asks 50 fixed questions (`cg_local/training/instruction/questions.toml`), greedy,
at most 256 tokens. They were written before the training. The training data holds neither their wordings nor the code
in them or in their solutions, and shares no run of ten words with 25 letters with them; but most ask for *kinds* of
functions that it does hold, with other names, arguments and words. The {num_unfamiliar} marked unfamiliar ask for
functions that it never asks for. "Passes": a program of assertions about the answer runs to its end in a sandbox.
"""

DATA = """
## Data

{count} conversations ({turns} turns), all made by program from a seed (`cg_local/training/instruction/`):
{families} templates of simple functions and snippets with drawn names, constants and wordings; short functions of
nano's own corpus (see its card for packages and licences); small talk and short facts written by hand. Each first
question and its answer stand once. Loss was taken on answers alone.

| kind of the first question | conversations |
| --- | ---: |
{kinds}
"""

LIMITS = """
## Limits

- Short Python functions and simple English only. Requests outside its templates get a wrong answer rather than none.
- It does not reason or compute: arithmetic in its answers, such as expected values in tests, is remembered.
- Conversations beyond {context} tokens were never trained; long code is copied with errors.
- It does not fill gaps; nano does.
- Answers can repeat fragments of its training files. Check what you keep, and run it only after reading it.
"""


def facts(recipe: Mapping[str, Any], log: Sequence[Mapping[str, Any]], base: str, num_params: int) -> str:
    """The rows of the first table."""
    steps = [entry for entry in log if "loss" in entry]
    arch, last = recipe["model"], steps[-1]
    answers = sum(entry.get("answer_tokens", 0) for entry in steps)
    validations = [entry["validation_loss"] for entry in log if "validation_loss" in entry]
    rows = {
        "Parameters": f"{num_params:,} (bfloat16, embedding tied)",
        "Shape": f"{arch['num_layers']} layers, hidden {arch['hidden_size']}, vocabulary {arch['vocab_size']}: as nano",
        "Started from": base,
        "Tuned on": f"{last['tokens'] / 1e6:.2f} million tokens, {answers / 1e6:.2f} million of them answers, "
        f"in {last['step']:,} steps",
        "Compute": f"{last['elapsed'] / 3600:.2f} hours on 2 busy shared cores of an AMD EPYC (AVX2), float32, JAX",
        "Loss on answers": f"{validations[-1]:.3f} nats a token on conversations that were kept apart",
        "Licence": "that of cg-local",
    }
    return "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def evaluation(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of each result of `benchmarks/instruction_questions.py`."""
    if not results:
        return ""
    text = EVALUATION.format(num_unfamiliar=results[0]["scores"]["of these unfamiliar"]["questions"])
    for result in results:
        text += f"\nAs {result['scheme']} in the engine:\n\n"
        text += "| asked for | questions | code parses | stops by itself | passes |\n| --- | --: | --: | --: | --: |\n"
        for name, row in result["scores"].items():
            parsed = f"{row['parsed']} of {row['asked_for_code']}" if row["asked_for_code"] else "-"
            text += f"| {name} | {row['questions']} | {parsed} | {row['stopped']} | {row['passed']} |\n"
    return text


def data_section(pairs: Path, num_families: int) -> str:
    """What the conversations are."""
    conversations = read_conversations(pairs)
    kinds = Counter(item.kind for item in conversations)
    rows = "".join(f"| {kind} | {number:,} |\n" for kind, number in kinds.most_common())
    turns = sum(len(item.turns) for item in conversations)
    return DATA.format(
        count=f"{len(conversations):,}", turns=f"{turns:,}", families=num_families, kinds=rows.rstrip("\n")
    )


def publish(run: Path, out: Path, nano: Path, pairs: Path, results: Sequence[Path], base: str) -> Path:
    """Write the newest checkpoint of a tuning run as a model folder.

    Args:
        run: the run's folder.
        out: the model folder; its files of these names are replaced.
        nano: folder of the base model, for the tokenizer and the licence.
        pairs: the conversations of the run.
        results: outputs of `benchmarks/instruction_questions.py`.
        base: what the run started from, for the card.

    Returns:
        The checkpoint that was written.

    Raises:
        TrainingError: the run has no checkpoint.
    """
    from cg_local.training.instruction.families import load_families

    trained = export.TrainedRun.newest(run)
    params, context = trained.params(), trained.sequence_length
    export.write_model(
        out,
        params,
        export.config(trained.architecture, 2 * context),
        nano / "tokenizer.model",
        generation={**export.GENERATION_CONFIG, "eos_token_id": [1, END_OF_TURN_ID]},
        tokenizing={**export.TOKENIZER_CONFIG, "chat_template": CHAT_TEMPLATE},
    )
    shutil.copyfile(nano / "LICENSE", out / "LICENSE")
    num_params = sum(value.size for value in params.values())
    text = HEAD + facts(trained.recipe, trained.log, base, num_params) + USE
    text += evaluation([json.loads(result.read_text()) for result in results])
    text += data_section(pairs, len(load_families())) + LIMITS.format(context=context)
    (out / "README.md").write_text(text, encoding="utf-8")
    return trained.path


def main() -> None:
    """Command line entry; see the module's head."""
    parser = argparse.ArgumentParser(description="Publish the newest checkpoint of a tuning run.")
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--nano", type=Path, required=True, help="folder of the base model: tokenizer and licence")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="outputs of instruction_questions.py")
    parser.add_argument("--base", default="nano", help="what the run started from, for the card")
    options = parser.parse_args()
    path = publish(options.run, options.out, options.nano, options.pairs, options.results, options.base)
    print(f"{path} published to {options.out}")


if __name__ == "__main__":
    main()
