#!/usr/bin/env python3
"""How soon a chat's second answer begins: in the same process, in a new one, and with nothing kept of the first turn.

This file owns what is said and timed. Invariant: all three answer the same conversation, each in a process of its own
that has just loaded the model, and a result is refused where their answers differ in a token.

    python benchmarks/chat_turns.py --model codegemma-7b-it-q4 --history 1500

It goes the way that `cg-local chat` goes (`Conversation`, `LocalModel.chat`, the store of K and V), without the screen;
`resume_speed.py` times the engine and the store below it. The table goes to stderr, the result to stdout as one line of
JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cg_local import SamplingParams
from cg_local.bench.cards import machine_card, model_card, usable_cores
from cg_local.bench.figures import spread
from cg_local.conversation import Conversation, Message
from cg_local.kv_store import KVStore
from cg_local.runtime import LocalModel, load

Result = dict[str, Any]
WORDS = ("number", "list", "of", "the", "returns", "value", "in", "file", "print", "name", "and", "class", "a", "line")
QUESTION = "And what happens when the list is empty?"
ANSWER_TOKENS = 16
KINDS = ("same_process", "new_process", "cold")


def main() -> None:
    """Measure the three ways and print how they compare."""
    options = _parser().parse_args()
    if options.turn:
        print(json.dumps(_turn(options)))
        return
    rounds = []
    for _ in range(options.repeat):
        with TemporaryDirectory(prefix="cg-local-chat-") as work:
            found = {kind: _process(kind, work, options) for kind in KINDS}
        if len({tuple(each["token_ids"]) for each in found.values()}) != 1:
            sys.exit("chat_turns: the answers differ; report this")
        rounds.append(found)
    figures = {kind: spread([found[kind]["first_token_seconds"] for found in rounds]) for kind in KINDS}
    for kind, figure in figures.items():
        share = figure["median"] / figures["cold"]["median"]
        computed = rounds[0][kind]["prompt_tokens"] - rounds[0][kind]["cached_tokens"]
        print(f"{kind:<14}{figure['median']:>8.3f} s  {share:>6.3f} x  {computed:>6,} tokens computed", file=sys.stderr)
    result = {
        "benchmark": {"name": "chat_turns", "repeat": options.repeat, "threads": usable_cores()},
        "model": model_card(Path(options.model)),
        "machine": machine_card(),
        "tokens": {"prompt": rounds[0]["cold"]["prompt_tokens"], "history": options.history},
        "figures": figures,
    }
    print(json.dumps(result))


def _process(kind: str, work: str, options: argparse.Namespace) -> Result:
    command = [sys.executable, __file__, "--turn", kind, "--work", work, "--model", options.model]
    done = subprocess.run([*command, "--history", str(options.history)], stdout=subprocess.PIPE, check=True)
    result: Result = json.loads(done.stdout)
    return result


def _turn(options: argparse.Namespace) -> Result:
    """Answer the second question, with the first one's K and V in memory, on disk, or lost."""
    model = load(options.model, max_context=options.history + 256)
    said, is_first = Path(options.work, "said.json"), options.turn == "same_process"
    if options.turn != "cold":
        model.use_kv_store(KVStore(Path(options.work, "kv")))
    if is_first:
        conversation = Conversation([Message("user", _long_question(model, options.history))])
        _answer(model, conversation)
        said.write_text(json.dumps([asdict(message) for message in conversation.messages]))
        model.save_prefix()
    messages = [Message(**{**each, "token_ids": tuple(each["token_ids"])}) for each in json.loads(said.read_text())]
    conversation = Conversation(messages)
    conversation.ask(QUESTION)
    return _answer(model, conversation)


def _answer(model: LocalModel, conversation: Conversation) -> Result:
    started = time.perf_counter()  # before the store is asked, as a person waits for that too
    stream = model.chat(conversation, params=SamplingParams(max_tokens=ANSWER_TOKENS), stream=True)
    next(stream, "")
    first_token_seconds = time.perf_counter() - started
    for _ in stream:
        pass
    result = stream.result
    conversation.answer(result.text, is_cut=True, token_ids=result.token_ids)
    return {
        "first_token_seconds": first_token_seconds,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "token_ids": list(result.token_ids),
    }


def _long_question(model: LocalModel, num_tokens: int) -> str:
    """A text of about so many tokens."""
    words: list[str] = []
    while len(model.tokenizer.encode(" ".join(words))) < num_tokens:
        words += [WORDS[(len(words) * 7 + place * place) % len(WORDS)] for place in range(20)]
    return " ".join(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--history", type=int, default=1500, help="tokens of the first question")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; each figure is their median")
    parser.add_argument("--turn", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
