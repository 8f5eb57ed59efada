"""One run: every engine loaded once, then rounds in which they are measured in turn.

This file owns the order of measurements and the document of raw figures. It computes no rate. Invariant: one thing is
measured at a time, engines stand next to each other in the same round with the same tokens, and whatever ends the run,
the document holds what was measured until then.

In a round the prompts come in ascending length, then the depths in descending order as beginnings of the longest
prompt: each engine then finds its context computed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cg_local.bench.cards import usable_cores
from cg_local.bench.engines import OWN_NAME, Load, MeasuredEngine, OwnEngine, Record
from cg_local.bench.figures import prefill_operations
from cg_local.bench.processes import FillProcess, busy_cores, prompt_lookup
from cg_local.bench.roofline import Roofline
from cg_local.config import EngineConfig, ModelConfig
from cg_local.errors import BenchmarkError
from cg_local.threads import default_threads

NUM_LOADS = 3
WARM_FILLS = 3
SHORT_PROMPT = 16
FIRST_RANDOM_ID = 512  # behind control ids, white space and bytes in CodeGemma's layout
FORMAT = 1

Say = Callable[[str], None]
Document = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        rounds: how often.
        num_threads: of every engine; None: what this engine chooses, and one for each core for the others.
        prefill: lengths of prompts.
        depths: tokens of context before single tokens are timed.
        batches: sequences that decode together, this engine only.
        new_tokens: single tokens of a round.
        seed: of the random tokens.
        has_processes: also time whole processes of `cg-local fill`, edits, and decode beside busy cores.
    """

    rounds: int
    num_threads: int | None
    prefill: tuple[int, ...]
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    new_tokens: int
    seed: int = 0
    has_processes: bool = True

    @property
    def max_context(self) -> int:
        """Tokens that one sequence takes at most."""
        needed = [length + 1 for length in self.prefill] + [depth + self.new_tokens + 2 for depth in self.depths]
        return max([*needed, self._tokens_in_batch(max(self.batches, default=0))])

    @property
    def num_pages(self) -> int:
        """Pages of K and V for the longest sequence and for the largest batch, one after the other."""
        page_size = EngineConfig().page_size
        # Those of a batch start one step after the other and are timed when all have started.
        largest = max(self.batches, default=0)
        of_one = -(-(SHORT_PROMPT + self.new_tokens + largest + 1) // page_size)
        return max(-(-self.max_context // page_size), of_one * largest)

    def within(self, limit: int) -> tuple[Plan, tuple[str, ...]]:
        """Leave out what a model's context does not hold.

        Args:
            limit: tokens that the model was trained for.

        Returns:
            The plan, and what was left out, by name.
        """
        fitting = replace(
            self,
            prefill=tuple(length for length in self.prefill if length < limit),
            depths=tuple(depth for depth in self.depths if depth + self.new_tokens + 2 <= limit),
            batches=tuple(size for size in self.batches if self._tokens_in_batch(size) <= limit),
        )
        return fitting, (
            *(f"prompt of {length:,}" for length in self.prefill if length not in fitting.prefill),
            *(f"{self.new_tokens} tokens after {depth:,}" for depth in self.depths if depth not in fitting.depths),
            *(f"{size} sequences" for size in self.batches if size not in fitting.batches),
        )

    def _tokens_in_batch(self, size: int) -> int:
        """Tokens of the first sequence of a batch: they start one step after the other, timed when all have started."""
        return SHORT_PROMPT + self.new_tokens + size + 2


class Session:
    """A run over loaded engines.

    Args:
        plan: what is measured.
        config: of the model.
        engines: this engine first, then the peers.
        cards: members of the document that are known beforehand.
        roofline: measures the machine's limits.
        say: told what is being measured.
        on_round: given the document after every round, and before an error.
    """

    def __init__(
        self,
        plan: Plan,
        config: ModelConfig,
        engines: Sequence[MeasuredEngine],
        *,
        cards: Document,
        roofline: Roofline,
        say: Say,
        on_round: Callable[[Document], None] = lambda document: None,
    ) -> None:
        self._plan, self._config, self._engines = plan, config, list(engines)
        self._roofline, self._say, self._on_round = roofline, say, on_round
        self._random = random.Random(plan.seed)
        self.document: Document = {
            "format": FORMAT,
            "plan": asdict(plan),
            "num_threads": plan.num_threads or default_threads(),
            **cards,
            "bytes_per_token": {},
            "prefill_operations": {str(n): prefill_operations(config, n) for n in plan.prefill},
            "prefill_chunk": EngineConfig().prefill_chunk,
            "engines": {},
            "rounds": [],
            "is_interrupted": False,
        }

    def run(self) -> Document:
        """Measure everything; an interrupt ends it early.

        Raises:
            BenchmarkError: an engine failed; what was measured before has been given to `on_round`.
        """
        try:
            for engine in self._engines:
                self._load(engine)
            own = self._own
            if own is not None:
                depths = {depth: own.bytes_per_token(depth + self._plan.new_tokens // 2) for depth in self._plan.depths}
                self.document["bytes_per_token"] = {str(depth): num_bytes for depth, num_bytes in depths.items()}
            if self._plan.has_processes:
                with FillProcess(self._plan.num_threads) as fill:
                    self._measure_rounds(fill)
            else:
                self._measure_rounds(None)
        except KeyboardInterrupt:
            self.document["is_interrupted"] = True
        except BenchmarkError:
            self._on_round(self.document)
            raise
        return self.document

    @property
    def _own(self) -> OwnEngine | None:
        return next((engine for engine in self._engines if isinstance(engine, OwnEngine)), None)

    def _load(self, engine: MeasuredEngine) -> None:
        """Load several times: the file is in the page cache from the second time on. Then touch every kernel once."""
        self._say(f"{engine.name}: loading")
        load = Load(self._plan.num_threads or default_threads(), self._plan.max_context, self._plan.num_pages)
        if isinstance(engine, OwnEngine) and self._plan.num_threads is None:
            load = replace(load, num_threads=None)
        answers = [engine.load(load) for _ in range(NUM_LOADS)]
        self.document["engines"][engine.name] = {
            "file": engine.file.name,
            "load_seconds": [answer["seconds"] for answer in answers],
            "version": answers[-1]["version"],
        }
        longest = max(self._plan.prefill, default=SHORT_PROMPT)
        warm_up = self._tokens(min(longest, 4 * SHORT_PROMPT))
        engine.prefill(warm_up)
        engine.decode(warm_up, 2)
        if isinstance(engine, OwnEngine):
            for size in self._plan.batches:
                engine.batch(size, 2, seed=size)

    def _measure_rounds(self, fill: FillProcess | None) -> None:
        for number in range(self._plan.rounds):
            figures: Document = {engine.name: {"prefill": {}, "decode": {}} for engine in self._engines}
            self.document["rounds"].append(figures)
            self._measure_round(number, figures, fill)
            for engine in self._engines:
                self.document["engines"][engine.name]["memory"] = engine.memory()
            self._on_round(self.document)

    def _measure_round(self, number: int, figures: Document, fill: FillProcess | None) -> None:
        plan, where = self._plan, f"round {number + 1} of {self._plan.rounds}"
        self._say(f"{where}: operations of the processor")
        figures["roofline"] = {"int8_gops_per_second": self._roofline.int8_peak()}
        longest = self._tokens(max([*plan.prefill, *plan.depths], default=1))
        for length in sorted(plan.prefill):
            token_ids = longest if length == len(longest) else self._tokens(length)
            for engine in self._in_turn(number, length):
                self._say(f"{where}: {engine.name}: prompt of {length:,} tokens")
                figures[engine.name]["prefill"][str(length)] = engine.prefill(token_ids)
        self._say(f"{where}: bandwidth of the memory")
        figures["roofline"]["read_gb_per_second"] = self._roofline.read_bandwidth()
        for depth in sorted(plan.depths, reverse=True):
            for engine in self._in_turn(number, depth):
                self._say(f"{where}: {engine.name}: tokens after {depth:,}")
                record = engine.decode(longest[: max(depth, 1)], plan.new_tokens)
                figures[engine.name]["decode"][str(depth)] = record
        own = self._own
        if own is not None:
            self._measure_own(own, number, figures[OWN_NAME], where)
        if fill is not None:
            self._measure_fill(fill, figures, where)

    def _measure_own(self, own: OwnEngine, number: int, figures: Record, where: str) -> None:
        plan = self._plan
        figures["batch"] = {}
        for size in plan.batches:
            self._say(f"{where}: {own.name}: {size} sequences together")
            figures["batch"][str(size)] = own.batch(size, plan.new_tokens, seed=1000 * plan.seed + number)
        if plan.has_processes:
            self._say(f"{where}: {own.name}: beside busy cores")
            with busy_cores(plan.num_threads or usable_cores()):
                figures["decode_beside_busy_cores"] = own.decode(self._tokens(1), plan.new_tokens)
            self._say(f"{where}: {own.name}: prompt lookup on edits")
            figures["prompt_lookup"] = prompt_lookup(own.file, plan.num_threads)

    def _measure_fill(self, fill: FillProcess, figures: Document, where: str) -> None:
        self._say(f"{where}: fill with nothing compiled")
        figures["fill"] = {"cold": fill.cold(), "warm": []}
        for _ in range(WARM_FILLS):
            self._say(f"{where}: fill with everything compiled")
            figures["fill"]["warm"].append(fill.warm())

    def _in_turn(self, number: int, length: int) -> Iterator[MeasuredEngine]:
        """Each round begins with another engine, so that none always follows the same one."""
        shift = number % len(self._engines)
        for engine in (*self._engines[shift:], *self._engines[:shift]):
            if engine.max_tokens is None or length <= engine.max_tokens:
                yield engine

    def _tokens(self, count: int) -> list[int]:
        """BOS and random tokens: a prompt that no earlier one begins with."""
        size = self._config.vocab_size
        first = min(FIRST_RANDOM_ID, size // 2)
        return [self._config.bos_token_id, *(self._random.randrange(first, size) for _ in range(count - 1))]
