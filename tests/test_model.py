"""Proves the forward pass over kernels against the reference, and that logits depend on their sequence alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import Codes, expected_product, random_matrix
from numpy.typing import NDArray
from toy_engines import (
    DequantizedFolder,
    divergence,
    engine_of,
    linear_of_rounded_activations,
    relative_error,
    toy_prompt,
)
from toy_models import MQA, write_toy_checkpoint

from cg_local import reference
from cg_local.errors import CapacityError, ModelFolderError
from cg_local.kv_cache import KVCache
from cg_local.model import Activations, Model, Projections, SequenceSpan
from cg_local.model_folder import open_model_folder
from cg_local.packing import FORMATS, PackedMatrix
from cg_local.quant import quantize
from cg_local.workspace import Workspace

FolderMaker = Callable[[str, str], Path]
PROMPT = toy_prompt(300)


@pytest.fixture(scope="module")
def reference_logits(toy_checkpoint: Callable[[str], Path]) -> Callable[[str], NDArray[np.float32]]:
    """A function from a family to the reference's logits of PROMPT, computed once."""
    computed: dict[str, NDArray[np.float32]] = {}

    def logits_of(family: str) -> NDArray[np.float32]:
        if family not in computed:
            computed[family] = reference.logits(toy_checkpoint(family), PROMPT)
        return computed[family]

    return logits_of


def test_toy_weights_make_distinct_predictions(reference_logits: Callable[[str], NDArray[np.float32]]) -> None:
    """Agreement of the largest logit would mean little if it were always the same token."""
    assert len(set(reference_logits("mqa").argmax(axis=1).tolist())) > 100


@pytest.mark.parametrize("family", ["mqa", "mha"])
@pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
def test_bf16_model_predicts_every_token_as_the_reference(
    family: str, kv_dtype: str, toy_folder: FolderMaker, reference_logits: Callable[[str], NDArray[np.float32]]
) -> None:
    found = engine_of(toy_folder(family, "bf16"), kv_dtype=kv_dtype).logits(PROMPT)

    np.testing.assert_array_equal(found.argmax(axis=1), reference_logits(family).argmax(axis=1))


@pytest.mark.parametrize("family", ["mqa", "mha"])
@pytest.mark.parametrize(
    ("kv_dtype", "tolerance"),
    # float32 pages: sums of up to 512 terms in another order, measured 6e-7. float16 pages: K and V are rounded by up
    # to 2**-11 = 5e-4 each; independent roundings average out in the sums over context and columns, measured 8e-5.
    [("float32", 1e-5), ("float16", 5e-4)],
)
def test_bf16_logits_equal_the_reference_but_for_rounding(
    family: str,
    kv_dtype: str,
    tolerance: float,
    toy_folder: FolderMaker,
    reference_logits: Callable[[str], NDArray[np.float32]],
) -> None:
    found = engine_of(toy_folder(family, "bf16"), kv_dtype=kv_dtype).logits(PROMPT)

    assert relative_error(reference_logits(family), found) < tolerance


@pytest.mark.parametrize("family", ["mqa", "mha"])
@pytest.mark.parametrize(
    ("scheme", "kv_dtype", "bound"),
    # Measured: bf16 5e-14 and 2.5e-10, q8 6e-6, q4 2.5e-4.
    [("bf16", "float32", 1e-9), ("bf16", "float16", 1e-5), ("q8", "float16", 1e-3), ("q4", "float16", 1e-2)],
)
def test_divergence_from_the_reference_stays_within_its_bound(
    family: str,
    scheme: str,
    kv_dtype: str,
    bound: float,
    toy_folder: FolderMaker,
    reference_logits: Callable[[str], NDArray[np.float32]],
) -> None:
    found = engine_of(toy_folder(family, scheme), kv_dtype=kv_dtype).logits(PROMPT)

    assert divergence(reference_logits(family), found) < bound


@pytest.mark.parametrize("family", ["mqa", "mha"])
@pytest.mark.parametrize("scheme", ["q8", "q4"])
def test_integer_schemes_equal_the_reference_on_dequantized_weights_and_rounded_activations(
    family: str, scheme: str, toy_folder: FolderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy_folder(family, scheme)
    engine, source = engine_of(folder, kv_dtype="float32"), DequantizedFolder(folder)
    prompts = [[2 + seed, *toy_prompt(5, seed)[1:]] for seed in range(24)]
    monkeypatch.setattr(reference, "linear", linear_of_rounded_activations)

    errors = [relative_error(reference.logits(source, prompt), engine.logits(prompt)) for prompt in prompts]

    # The same codes on both sides leave float32 rounding (measured 4e-7). In about one prompt of ten that rounding tips
    # an activation next to a tie into the neighbouring code, which moves everything behind it by up to 1 %.
    assert sum(error < 1e-5 for error in errors) >= 12
    assert max(errors) < 1.6e-2


@pytest.mark.parametrize("family", ["mqa", "mha"])
@pytest.mark.parametrize("scheme", ["q8", "q4"])
def test_integer_schemes_differ_from_their_dequantized_weights_by_activation_rounding_alone(
    family: str, scheme: str, toy_folder: FolderMaker
) -> None:
    folder = toy_folder(family, scheme)
    expected = reference.logits(DequantizedFolder(folder), PROMPT)

    found = engine_of(folder).logits(PROMPT)

    # Codes of 127 steps to the largest of 32 values: rounding errors of step / sqrt(12), and the largest of 32 normal
    # values is about 2.1 deviations, so each product's input gets relative noise of 2.1 / 127 / sqrt(12) = 0.5 %. Nine
    # products follow each other (4 in each of 2 layers, and the head); independent noise adds up to 0.5 % * sqrt(9).
    assert relative_error(expected, found) < 1.6e-2


def test_model_with_a_separate_head_uses_it(tmp_path: Path) -> None:
    checkpoint = write_toy_checkpoint(tmp_path / "source", MQA, lm_head="different", has_tokenizer=True)
    quantize(checkpoint, tmp_path / "model", "bf16")

    found = engine_of(tmp_path / "model", kv_dtype="float32").logits(PROMPT[:20])

    assert relative_error(reference.logits(checkpoint, PROMPT[:20]), found) < 1e-5


@pytest.fixture(
    scope="module",
    # 100 inner columns make arrays that are not contiguous, for which more kernels must be compiled.
    params=[112, pytest.param(100, marks=pytest.mark.slow)],
    ids=lambda intermediate_size: f"{intermediate_size}-inner-columns",
)
def odd_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows fill no tile: 777 tokens, residual stream of 72, heads of 20."""
    shape = {"hidden_size": 72, "head_dim": 20, "num_attention_heads": 3, "vocab_size": 777}
    values = {**MQA, **shape, "intermediate_size": request.param}
    return write_toy_checkpoint(tmp_path_factory.mktemp("odd") / "source", values, has_tokenizer=True)


@pytest.fixture(scope="module")
def odd_folder(odd_checkpoint: Path) -> Path:
    folder = odd_checkpoint.with_name("model")
    quantize(odd_checkpoint, folder, "bf16")
    return folder


def test_model_whose_rows_fill_no_tile_equals_the_reference(odd_checkpoint: Path, odd_folder: Path) -> None:
    prompt = toy_prompt(40, vocab_size=777)

    found = engine_of(odd_folder, kv_dtype="float32").logits(prompt)

    assert relative_error(reference.logits(odd_checkpoint, prompt), found) < 1e-5


def test_model_whose_rows_fill_no_tile_computes_a_token_alone_as_among_others(odd_folder: Path) -> None:
    prompt = toy_prompt(40, vocab_size=777)

    alone = engine_of(odd_folder, prefill_chunk=1).logits(prompt)

    np.testing.assert_array_equal(alone, engine_of(odd_folder).logits(prompt))


class Runner:
    """A model with pages of its own, to call `forward` as an engine does."""

    def __init__(self, folder: Path, *, page_size: int = 16, num_pages: int = 64, dtype: str = "float16") -> None:
        self.model = Model(open_model_folder(folder))
        self.cache = KVCache(self.model.config, num_pages=num_pages, page_size=page_size, dtype=dtype)
        # NaN where nothing was written.
        self.cache.keys[:] = self.cache.values[:] = 0x7E00 if dtype == "float16" else np.nan

    def forward(self, token_ids: list[int], spans: list[SequenceSpan], rows: list[int]) -> NDArray[np.float32]:
        logits = self.model.forward(np.array(token_ids, np.int32), spans, self.cache, np.array(rows, np.int64))
        return logits.copy()

    def whole(self, token_ids: list[int], block_table: list[int]) -> NDArray[np.float32]:
        """Prefill one sequence in one step and return all its logits."""
        span = SequenceSpan(0, len(token_ids), 0, np.array(block_table, np.int32))
        return self.forward(token_ids, [span], list(range(len(token_ids))))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_pages_in_any_order_give_the_logits_of_contiguous_ones_bit_for_bit(dtype: str, toy_folder: FolderMaker) -> None:
    folder = toy_folder("mqa", "q4")
    shuffled = np.random.default_rng(0).permutation(64).tolist()

    expected = Runner(folder, dtype=dtype).whole(PROMPT, list(range(64)))

    np.testing.assert_array_equal(Runner(folder, dtype=dtype).whole(PROMPT, shuffled), expected)


@pytest.mark.parametrize("page_size", [1, 4, 64, 256])
def test_page_size_changes_logits_by_rounding_alone(page_size: int, toy_folder: FolderMaker) -> None:
    # The running maximum of softmax moves page by page, so sums are rescaled at other places: float32 rounding.
    folder = toy_folder("mha", "bf16")
    expected = Runner(folder).whole(PROMPT, list(range(19)))

    found = Runner(folder, page_size=page_size, num_pages=300).whole(PROMPT, list(range(-(-300 // page_size))))

    # float16 pages: a K or V next to a tie rounds the other way, by 2**-11, when its input moved by a float32 rounding.
    assert relative_error(expected, found) < 1e-4


def test_spans_of_several_sequences_give_each_its_own_logits_bit_for_bit(toy_folder: FolderMaker) -> None:
    folder = toy_folder("mha", "q4")
    prompts = [toy_prompt(count, seed) for seed, count in enumerate([5, 1, 70, 3])]
    tables = [[3], [9], [11, 2, 7, 1, 30], [8]]
    spans, start = [], 0
    for prompt, table in zip(prompts, tables, strict=True):
        spans.append(SequenceSpan(start, len(prompt), 0, np.array(table, np.int32)))
        start += len(prompt)

    joined = [token_id for prompt in prompts for token_id in prompt]
    together = Runner(folder).forward(joined, spans, list(range(start)))

    alone = [Runner(folder).whole(prompt, list(range(5))) for prompt in prompts]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_only_the_asked_rows_of_logits_are_computed(toy_folder: FolderMaker) -> None:
    folder = toy_folder("mqa", "q4")
    whole = Runner(folder).whole(PROMPT[:20], [0, 1])
    span = SequenceSpan(0, 20, 0, np.array([0, 1], np.int32))

    some = Runner(folder).forward(PROMPT[:20], [span], [19, 3])

    np.testing.assert_array_equal(some, whole[[19, 3]])


def test_step_without_asked_rows_writes_the_pages_all_the_same(toy_folder: FolderMaker) -> None:
    runner, table = Runner(toy_folder("mqa", "q4")), np.array([0, 1], np.int32)
    whole = Runner(toy_folder("mqa", "q4")).whole(PROMPT[:20], [0, 1])

    nothing = runner.forward(PROMPT[:19], [SequenceSpan(0, 19, 0, table)], [])
    last = runner.forward(PROMPT[19:20], [SequenceSpan(0, 1, 19, table)], [0])

    assert nothing.shape == (0, 768)
    np.testing.assert_array_equal(last[0], whole[19])


def test_smaller_step_after_a_larger_one_is_not_touched_by_what_it_left_behind(toy_folder: FolderMaker) -> None:
    runner = Runner(toy_folder("mqa", "q4"))
    expected = runner.whole(PROMPT[:5], [0])

    runner.whole(PROMPT, list(range(19)))

    np.testing.assert_array_equal(runner.whole(PROMPT[:5], [0]), expected)


def test_workspace_gives_the_same_memory_for_a_smaller_array() -> None:
    workspace = Workspace()
    large = workspace.array("x", (4, 8))

    small = workspace.array("x", (2, 3))

    assert np.shares_memory(large, small)
    assert workspace.num_bytes == 4 * 8 * 4


def test_scratch_memory_is_that_of_the_largest_step(toy_folder: FolderMaker) -> None:
    runner = Runner(toy_folder("mqa", "q4"))
    runner.whole(PROMPT, list(range(19)))
    largest = runner.model.scratch_bytes

    runner.whole(PROMPT[:5], [0])

    assert runner.model.scratch_bytes == largest > 0


@pytest.mark.parametrize(
    ("intermediate_size", "scheme", "activations"),
    # The down projection falls back to bf16, to i8g64, and to i8g64 with other activations than gate and up.
    [(544, "q8", "int8"), (576, "q4", "int8"), (576, "q4", "int16")],
)
def test_mlp_whose_down_projection_has_another_format_equals_the_reference(
    intermediate_size: int, scheme: str, activations: str, tmp_path: Path
) -> None:
    config = {**MQA, "intermediate_size": intermediate_size}
    checkpoint = write_toy_checkpoint(tmp_path / "checkpoint", config, has_tokenizer=True)
    quantize(checkpoint, tmp_path / "model", scheme)

    found = engine_of(tmp_path / "model", activations=activations).logits(PROMPT[:50])

    assert divergence(reference.logits(checkpoint, PROMPT[:50]), found) < {"q8": 1e-3, "q4": 1e-2}[scheme]


def test_matrix_without_a_kernel_is_refused_by_name() -> None:
    with pytest.raises(ModelFolderError, match=r"layers\.0\.mlp: .* no kernel for i5g32; quantize again"):
        Projections([PackedMatrix("i5g32", (16, 256), {})], ["mlp"], prefix="layers.0.")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_projection_of_each_format_equals_the_float64_product(format: str, num_tokens: int) -> None:
    # Activations that are whole numbers up to 127 in every group are their own codes.
    x = np.random.default_rng(3).integers(-126, 127, (num_tokens, 256)).astype(np.float32)
    x[:, ::32] = 127
    matrix, workspace = random_matrix(format, np.random.default_rng(4), (24, 256)), Workspace()
    codes = Codes(x.astype(np.int8), np.ones((num_tokens, 8), np.float32))
    expected, tolerance = expected_product(matrix, codes)

    (found,) = Projections([matrix], ["body"])(Activations(x, workspace, "x"), workspace)

    assert (np.abs(found - expected) <= tolerance).all()


def test_logits_that_do_not_fit_in_memory_are_refused_with_the_numbers(
    toy_folder: FolderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(toy_folder("mqa", "q8"))
    monkeypatch.setattr("cg_local.engine.available_bytes", lambda: 10_000)

    with pytest.raises(CapacityError, match=r"the logits of 4 tokens take 12\.0 KiB, 9\.8 KiB are free; ask for fewer"):
        engine.logits([2, 300, 301, 302])
    assert engine.block_manager.num_free_pages == engine.block_manager.num_pages


def test_logits_may_fill_the_whole_context(toy_folder: FolderMaker) -> None:
    assert len(engine_of(toy_folder("mqa", "q8"), max_context=64).logits(toy_prompt(64))) == 64


def test_logits_beyond_the_context_are_refused(toy_folder: FolderMaker) -> None:
    with pytest.raises(CapacityError, match=r"has 65 tokens, the context holds 64"):
        engine_of(toy_folder("mqa", "q8"), max_context=64).logits(toy_prompt(65))
