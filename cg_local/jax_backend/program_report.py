"""What a compiled program takes on each device, and what it sends between them.

This file owns reading XLA's own account of a program: memory_analysis() and the text of the optimized HLO. It compiles
nothing that would not run. Invariant: a collective inside of a loop counts as often as the loop runs; a program with a
loop whose number of rounds XLA does not state counts it once, and says so.

Source of the text: https://openxla.org/xla/operation_semantics; bytes are those of a collective's result on one device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cg_local.jax_backend.model import CompiledModel, padded_length

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
TYPE_BITS = {
    **{"pred": 8, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64},
    **{"bf16": 16, "f16": 16, "f32": 32, "f64": 64},
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\([^\n]*\) -> [^\n]* )?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind in one run of a program.

    Attributes:
        kind: of COLLECTIVES.
        count: how many are executed.
        num_bytes: of all their results on one device.
    """

    kind: str
    count: int
    num_bytes: int


@dataclass(frozen=True)
class ProgramReport:
    """A program on one device of its mesh, in bytes.

    Attributes:
        name: "prefill" or "decode".
        argument_bytes: weights, cache and tokens that it is given.
        aliased_bytes: the part of them (the donated cache) that its results take the place of.
        output_bytes: results, those in place of arguments included.
        temporary_bytes: what it needs meanwhile.
        collectives: what crosses between devices.
        is_exact: every loop's number of rounds is known.
    """

    name: str
    argument_bytes: int
    aliased_bytes: int
    output_bytes: int
    temporary_bytes: int
    collectives: tuple[Collective, ...]
    is_exact: bool

    @property
    def device_bytes(self) -> int:
        """Memory of one device while the program runs."""
        return self.argument_bytes + self.output_bytes - self.aliased_bytes + self.temporary_bytes


@dataclass
class _Computation:
    """One block of the text: its collectives, and which others it runs how often (None: unknown)."""

    found: list[tuple[str, int]] = field(default_factory=list)
    called: list[tuple[str, int | None]] = field(default_factory=list)


def report_programs(
    model: CompiledModel,
    *,
    batch: int,
    prompt_tokens: int,
    max_tokens: int,
    names: Sequence[str] = ("prefill", "decode"),
) -> list[ProgramReport]:
    """Compile prefill and greedy decode for a batch and report on them.

    Args:
        model: on its devices.
        batch: sequences; a multiple of the mesh's "data" axis.
        prompt_tokens: of the longest sequence.
        max_tokens: of the answers.
        names: of the programs.
    """
    length = padded_length(prompt_tokens)
    cache = model.new_cache(batch, padded_length(length + max_tokens))
    starts, tokens = np.zeros(batch, np.int32), np.zeros((batch, length), np.int32)
    programs = {
        "prefill": lambda: model.prefill.lower(model.weights, cache, tokens, starts, is_greedy=True),
        "decode": lambda: model.decode.lower(
            model.weights, cache, tokens[:, 0], starts, np.int32(length), is_greedy=True
        ),
    }
    return [report(name, programs[name]().compile()) for name in names]


def report(name: str, compiled: Any) -> ProgramReport:
    """Report on a compiled program.

    Args:
        name: of the program.
        compiled: jax.stages.Compiled.
    """
    memory = compiled.memory_analysis()
    collectives, is_exact = count_collectives(compiled.as_text())
    return ProgramReport(
        name=name,
        argument_bytes=int(memory.argument_size_in_bytes),
        aliased_bytes=int(memory.alias_size_in_bytes),
        output_bytes=int(memory.output_size_in_bytes),
        temporary_bytes=int(memory.temp_size_in_bytes),
        collectives=collectives,
        is_exact=is_exact,
    )


def count_collectives(text: str) -> tuple[tuple[Collective, ...], bool]:
    """Count the collectives that one run of a program executes.

    Args:
        text: optimized HLO, as compiled.as_text() gives it.

    Returns:
        One Collective a kind, and whether all loops' rounds are known.
    """
    computations, entry = _parse(text)
    totals: dict[str, tuple[int, int]] = {}
    is_exact = True
    pending = [(entry, 1)]
    while pending:
        name, times = pending.pop()
        computation = computations.get(name, _Computation())
        for kind, num_bytes in computation.found:
            count, total = totals.get(kind, (0, 0))
            totals[kind] = (count + times, total + times * num_bytes)
        for called, rounds in computation.called:
            is_exact &= rounds is not None or not _has_collectives(computations, called)
            pending.append((called, times * (rounds or 1)))
    kinds = [kind for kind in COLLECTIVES if kind in totals]
    return tuple(Collective(kind, *totals[kind]) for kind in kinds), is_exact


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation()
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations[head[2]] = _Computation()
            entry = head[2] if head[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            shape, operation = instruction[1], instruction[2]
            # An asynchronous collective is a pair; its start has the operands in its type, its end the result alone.
            kind = operation.removesuffix("-done")
            if kind in COLLECTIVES:
                current.found.append((kind, _bytes_of(shape)))
            current.called += _calls(line, operation)
    return computations, entry


def _calls(line: str, operation: str) -> Iterator[tuple[str, int | None]]:
    rounds: int | None = 1
    if operation == "while":
        stated = _TRIP_COUNT.search(line)
        rounds = int(stated[1]) if stated else None
    for name in _CALLED.findall(line):
        yield name, rounds
    for names in _BRANCHES.findall(line):
        for name in names.split(","):
            yield name.strip().lstrip("%"), 1


def _bytes_of(shape: str) -> int:
    """Return the bytes of a type as HLO writes it, tuples included."""
    return sum(
        TYPE_BITS.get(name, 32) * math.prod(int(size) for size in sizes.split(",") if size) // 8
        for name, sizes in _SHAPE.findall(shape)
    )


def _has_collectives(computations: dict[str, _Computation], name: str) -> bool:
    computation = computations.get(name, _Computation())
    return bool(computation.found) or any(_has_collectives(computations, called) for called, _ in computation.called)
