"""What `test_jax_mesh` runs in a process with eight virtual devices: greedy tokens and programs on several meshes.

    python jax_mesh_program.py CHECKPOINT MESH...

Prints one JSON document: by mesh, the answers of a batch, the collectives and the memory of a device.
"""

from __future__ import annotations

import json
import sys

import toy_jax
from toy_engines import toy_prompt

from cg_local.config import SamplingParams
from cg_local.jax_backend.generate import Generator
from cg_local.jax_backend.program_report import report_programs

BATCH, MAX_TOKENS = 8, 8


def main(checkpoint: str, meshes: list[str]) -> None:
    """Compute on each mesh and print."""
    found: dict[str, object] = {}
    prompts = [toy_prompt(3 + 9 * row, row) for row in range(BATCH)]
    for mesh in meshes:
        model = toy_jax.compiled(checkpoint, mesh)
        answers: list[list[int]] = [[] for _ in prompts]

        def keep(row: int, token_id: int, logprob: float, answers: list[list[int]] = answers) -> bool:
            answers[row].append(token_id)
            return True

        Generator(model, BATCH).run(prompts, [SamplingParams(max_tokens=MAX_TOKENS)] * BATCH, keep)
        (decode,) = report_programs(model, batch=BATCH, prompt_tokens=66, max_tokens=MAX_TOKENS, names=["decode"])
        found[mesh] = {
            "answers": answers,
            "collectives": {each.kind: [each.count, each.num_bytes] for each in decode.collectives},
            "argument_bytes": decode.argument_bytes,
            "aliased_bytes": decode.aliased_bytes,
            "is_exact": decode.is_exact,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
